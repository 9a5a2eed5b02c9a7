//! WebSocket frames: a decoder that is fed bytes as they come, and encoders.
//!
//! Messages are handed on piece by piece, as they come, so that their size costs no memory. Only control
//! frames (at most 125 bytes) are gathered.
//!
//! Source: RFC 6455, section 5.

/// Payload of one message, whatever it is split into.
pub const MESSAGE_BYTES_MAX: u64 = 32 << 20;
/// The longest header of a frame that we send.
pub const FRAME_HEADER_BYTES_MAX: usize = 10;

const CONTROL_BYTES_MAX: usize = 125;
const FIN: u8 = 0x80;
const RESERVED: u8 = 0x70;
const OPCODE: u8 = 0x0f;
const MASKED: u8 = 0x80;
const HEADER_BYTES_MAX: usize = 14;

/// `Close`: all was said.
pub const CLOSE_NORMAL: u16 = 1000;
/// `Close`: the peer broke the protocol.
pub const CLOSE_PROTOCOL_ERROR: u16 = 1002;
/// `Close`: the peer said too much at once.
pub const CLOSE_TOO_BIG: u16 = 1009;

/// Bytes that are not WebSocket as we read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Bits of an extension that was not agreed on.
    #[error("reserved bits are set")]
    Reserved,
    /// An operation nobody defined.
    #[error("unknown operation {0}")]
    Operation(u8),
    /// Clients mask, servers do not.
    #[error("frame is masked where it must not be, or not where it must")]
    Masking,
    /// A control frame in parts or above 125 bytes.
    #[error("malformed control frame")]
    Control,
    /// A part without a beginning, or a beginning inside a message.
    #[error("parts of messages are out of order")]
    Continuation,
    /// A length in a longer form than it needs.
    #[error("malformed length")]
    Length,
    /// A message above [`MESSAGE_BYTES_MAX`].
    #[error("message of more than {MESSAGE_BYTES_MAX} bytes")]
    MessageSize,
}

impl FrameError {
    /// The number for the close frame.
    #[must_use]
    pub fn close_code(self) -> u16 {
        match self {
            Self::MessageSize => CLOSE_TOO_BIG,
            _ => CLOSE_PROTOCOL_ERROR,
        }
    }
}

/// What a frame is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// A further part of a message.
    Continuation,
    /// A message, or its first part, of UTF-8.
    Text,
    /// A message, or its first part, of bytes.
    Binary,
    /// The last frame of a direction.
    Close,
    /// To be answered with a pong of the same payload.
    Ping,
    /// The answer.
    Pong,
}

impl Operation {
    fn parse(code: u8) -> Result<Self, FrameError> {
        Ok(match code {
            0 => Self::Continuation,
            1 => Self::Text,
            2 => Self::Binary,
            8 => Self::Close,
            9 => Self::Ping,
            10 => Self::Pong,
            _ => return Err(FrameError::Operation(code)),
        })
    }

    fn code(self) -> u8 {
        match self {
            Self::Continuation => 0,
            Self::Text => 1,
            Self::Binary => 2,
            Self::Close => 8,
            Self::Ping => 9,
            Self::Pong => 10,
        }
    }

    fn is_control(self) -> bool {
        matches!(self, Self::Close | Self::Ping | Self::Pong)
    }
}

/// Where a piece is in its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The whole message.
    Whole,
    /// More follows.
    First,
    /// More precedes and follows.
    Middle,
    /// More precedes.
    Last,
}

impl Place {
    /// Whether a message begins with this piece.
    #[must_use]
    pub fn begins(self) -> bool {
        matches!(self, Self::Whole | Self::First)
    }

    /// Whether a message ends with this piece.
    #[must_use]
    pub fn ends(self) -> bool {
        matches!(self, Self::Whole | Self::Last)
    }

    fn of(first: Edge, last: Edge) -> Self {
        match (first, last) {
            (Edge::Here, Edge::Here) => Self::Whole,
            (Edge::Here, Edge::Elsewhere) => Self::First,
            (Edge::Elsewhere, Edge::Here) => Self::Last,
            (Edge::Elsewhere, Edge::Elsewhere) => Self::Middle,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Edge {
    Here,
    Elsewhere,
}

/// What a peer said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// A piece of a message.
    Data {
        /// Where it belongs.
        place: Place,
        /// Unmasked; may be empty.
        chunk: &'a [u8],
    },
    /// To be answered.
    Ping(Vec<u8>),
    /// An answer.
    Pong,
    /// The peer says no more.
    Close,
}

/// Who sends what a decoder reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// Its frames are masked.
    Client,
    /// Its frames are not.
    Server,
}

#[derive(Debug, Clone, Copy)]
struct Head {
    operation: Operation,
    last: Edge,
    length: u64,
    mask: [u8; 4],
}

#[derive(Debug)]
enum State {
    Header,
    Control(Head),
    Data { head: Head, done: u64, first: Edge },
}

/// Reads one direction of a connection.
#[derive(Debug)]
pub struct Decoder {
    sender: Sender,
    state: State,
    gathered: Vec<u8>,
    /// Bytes of the message under way.
    message: Option<u64>,
}

impl Decoder {
    /// A decoder for what `sender` sends.
    #[must_use]
    pub fn new(sender: Sender) -> Self {
        Self { sender, state: State::Header, gathered: Vec::with_capacity(HEADER_BYTES_MAX), message: None }
    }

    /// Takes bytes off the front of `input`, unmasking them in place, up to the next event; `None` when all are
    /// taken and none is complete.
    ///
    /// # Errors
    /// What no peer in its senses sends; the connection cannot be read further.
    pub fn next<'a>(&mut self, input: &mut &'a mut [u8]) -> Result<Option<Event<'a>>, FrameError> {
        loop {
            match self.state {
                State::Header => {
                    let Some(head) = self.header(input)? else { return Ok(None) };
                    self.gathered.clear();
                    self.state = self.begin(head)?;
                }
                State::Control(head) => {
                    let length = usize::try_from(head.length).unwrap_or(usize::MAX);
                    if !self.gather(input, length) {
                        return Ok(None);
                    }
                    self.state = State::Header;
                    return Ok(Some(self.control(head)));
                }
                State::Data { head, done, first } => return Ok(self.data(head, done, first, input)),
            }
        }
    }

    fn gather(&mut self, input: &mut &mut [u8], length: usize) -> bool {
        let missing = length.saturating_sub(self.gathered.len());
        let taken = take(input, missing);
        self.gathered.extend_from_slice(taken);
        taken.len() == missing
    }

    /// The next frame's head, when it is all there.
    fn header(&mut self, input: &mut &mut [u8]) -> Result<Option<Head>, FrameError> {
        if !self.gather(input, 2) {
            return Ok(None);
        }
        let (Some(&first), Some(&second)) = (self.gathered.first(), self.gathered.get(1)) else {
            return Ok(None);
        };
        if first & RESERVED != 0 {
            return Err(FrameError::Reserved);
        }
        let operation = Operation::parse(first & OPCODE)?;
        let masked = second & MASKED != 0;
        if masked != (self.sender == Sender::Client) {
            return Err(FrameError::Masking);
        }
        let extended = match second & !MASKED {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if !self.gather(input, 2 + extended + if masked { 4 } else { 0 }) {
            return Ok(None);
        }
        let length = self.length(second & !MASKED)?;
        let mask =
            self.gathered.get(2 + extended..).and_then(<[u8]>::first_chunk).copied().unwrap_or_default();
        let last = if first & FIN == 0 { Edge::Elsewhere } else { Edge::Here };
        Ok(Some(Head { operation, last, length, mask }))
    }

    fn length(&self, short: u8) -> Result<u64, FrameError> {
        let extended = self.gathered.get(2..).unwrap_or_default();
        let (length, least) = match short {
            126 => (extended.first_chunk().map_or(0, |bytes| u64::from(u16::from_be_bytes(*bytes))), 126),
            127 => (extended.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes)), 1 << 16),
            _ => (u64::from(short), 0),
        };
        if length < least { Err(FrameError::Length) } else { Ok(length) }
    }

    /// The state after `head`, where it may come now.
    fn begin(&mut self, head: Head) -> Result<State, FrameError> {
        if head.operation.is_control() {
            let fits = usize::try_from(head.length).is_ok_and(|length| length <= CONTROL_BYTES_MAX);
            return if fits && head.last == Edge::Here {
                Ok(State::Control(head))
            } else {
                Err(FrameError::Control)
            };
        }
        let (first, before) = match (head.operation, self.message) {
            (Operation::Continuation, Some(before)) => (Edge::Elsewhere, before),
            (Operation::Continuation, None) | (_, Some(_)) => return Err(FrameError::Continuation),
            (_, None) => (Edge::Here, 0),
        };
        let total = before.saturating_add(head.length);
        if total > MESSAGE_BYTES_MAX {
            return Err(FrameError::MessageSize);
        }
        self.message = (head.last == Edge::Elsewhere).then_some(total);
        Ok(State::Data { head, done: 0, first })
    }

    fn data<'a>(
        &mut self,
        head: Head,
        done: u64,
        first: Edge,
        input: &mut &'a mut [u8],
    ) -> Option<Event<'a>> {
        let left = head.length - done;
        let chunk = take(input, usize::try_from(left).unwrap_or(usize::MAX));
        if chunk.is_empty() && left > 0 {
            return None;
        }
        unmask(chunk, head.mask, done);
        let done = done + u64::try_from(chunk.len()).unwrap_or(left);
        let complete = done == head.length;
        self.state =
            if complete { State::Header } else { State::Data { head, done, first: Edge::Elsewhere } };
        let last = if complete { head.last } else { Edge::Elsewhere };
        Some(Event::Data { place: Place::of(first, last), chunk })
    }

    fn control<'a>(&mut self, head: Head) -> Event<'a> {
        let mut payload = std::mem::take(&mut self.gathered);
        unmask(&mut payload, head.mask, 0);
        match head.operation {
            Operation::Ping => Event::Ping(payload),
            Operation::Close => Event::Close,
            _ => Event::Pong,
        }
    }
}

fn take<'a>(input: &mut &'a mut [u8], most: usize) -> &'a mut [u8] {
    let all = std::mem::take(input);
    let (taken, rest) = all.split_at_mut(most.min(all.len()));
    *input = rest;
    taken
}

/// Masks, or unmasks, `chunk`, which begins `done` bytes into its frame. Sixteen bytes at a time: a client's every byte passes here.
pub fn unmask(chunk: &mut [u8], mask: [u8; 4], done: u64) {
    let [a, b, c, d] = mask;
    let turned = match done % 4 {
        0 => [a, b, c, d],
        1 => [b, c, d, a],
        2 => [c, d, a, b],
        _ => [d, a, b, c],
    };
    let word = u32::from_ne_bytes(turned);
    let wide = u128::from(word) * 0x0000_0001_0000_0001_0000_0001_0000_0001;
    let (blocks, rest) = chunk.as_chunks_mut::<16>();
    for block in blocks {
        *block = (u128::from_ne_bytes(*block) ^ wide).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(turned.iter().cycle()) {
        *byte ^= key;
    }
}

/// Writes the header of a server's frame that is a whole message to the end of `room`, and says how long it is.
#[must_use]
pub fn write_header(operation: Operation, length: usize, room: &mut [u8; FRAME_HEADER_BYTES_MAX]) -> usize {
    let first = FIN | operation.code();
    let [a, b, c, d, e, f, g, h] = u64::try_from(length).unwrap_or(u64::MAX).to_be_bytes();
    if length < 126 {
        [room[8], room[9]] = [first, h];
        2
    } else if length <= usize::from(u16::MAX) {
        [room[6], room[7], room[8], room[9]] = [first, 126, g, h];
        4
    } else {
        *room = [first, 127, a, b, c, d, e, f, g, h];
        10
    }
}

/// A server's frame that is a whole message.
#[must_use]
pub fn frame(operation: Operation, payload: &[&[u8]]) -> Vec<u8> {
    let length = payload.iter().map(|part| part.len()).sum();
    let mut room = [0; FRAME_HEADER_BYTES_MAX];
    let header = write_header(operation, length, &mut room);
    let mut frame = Vec::with_capacity(header + length);
    frame.extend_from_slice(room.get(FRAME_HEADER_BYTES_MAX - header..).unwrap_or_default());
    payload.iter().for_each(|part| frame.extend_from_slice(part));
    frame
}

/// A close frame.
#[must_use]
pub fn close(code: u16) -> Vec<u8> {
    frame(Operation::Close, &[&code.to_be_bytes()])
}

/// Turns a server's frame that is a whole message into a client's.
#[must_use]
pub fn masked(operation: Operation, payload: &[u8], mask: [u8; 4]) -> Vec<u8> {
    let mut bytes = frame(operation, &[payload]);
    let header = bytes.len() - payload.len();
    bytes[1] |= MASKED;
    unmask(&mut bytes[header..], mask, 0);
    bytes.splice(header..header, mask);
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq)]
    enum Seen {
        Message(Vec<u8>),
        Ping(Vec<u8>),
        Pong,
        Close,
    }

    fn decode(bytes: &[u8], step: usize, sender: Sender) -> Result<Vec<Seen>, FrameError> {
        let (mut decoder, mut seen, mut message) = (Decoder::new(sender), Vec::new(), Vec::new());
        for piece in bytes.chunks(step) {
            let mut piece = piece.to_vec();
            let mut input = piece.as_mut_slice();
            while let Some(event) = decoder.next(&mut input)? {
                match event {
                    Event::Data { place, chunk } => {
                        assert_eq!(place.begins(), message.is_empty() && place.begins());
                        message.extend(chunk);
                        if place.ends() {
                            seen.push(Seen::Message(std::mem::take(&mut message)));
                        }
                    }
                    Event::Ping(payload) => seen.push(Seen::Ping(payload)),
                    Event::Pong => seen.push(Seen::Pong),
                    Event::Close => seen.push(Seen::Close),
                }
            }
            assert!(decoder.gathered.capacity() <= 1024);
        }
        Ok(seen)
    }

    fn sent() -> impl Strategy<Value = (Vec<Vec<u8>>, Option<Vec<u8>>)> {
        let part = prop_oneof![0usize..300, Just(125), Just(126), Just(65_535), Just(65_536)]
            .prop_flat_map(|length| prop::collection::vec(any::<u8>(), length));
        (prop::collection::vec(part, 1..4), prop::option::of(prop::collection::vec(any::<u8>(), 0..126)))
    }

    /// A message in parts, a ping after its first part.
    fn encode(parts: &[Vec<u8>], ping: Option<&[u8]>, mask: [u8; 4]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (n, part) in parts.iter().enumerate() {
            let operation = if n == 0 { Operation::Binary } else { Operation::Continuation };
            let mut frame = masked(operation, part, mask);
            if n + 1 < parts.len() {
                frame[0] &= !FIN;
            }
            bytes.extend(frame);
            if let Some(ping) = ping.filter(|_| n == 0) {
                bytes.extend(masked(Operation::Ping, ping, mask));
            }
        }
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

        #[test]
        fn what_is_encoded_is_decoded_however_it_is_split(messages in prop::collection::vec(sent(), 0..4), mask in any::<[u8; 4]>(), step in 1usize..5000) {
            let (mut bytes, mut want) = (Vec::new(), Vec::new());
            for (parts, ping) in &messages {
                bytes.extend(encode(parts, ping.as_deref(), mask));
                let message = Seen::Message(parts.concat());
                let ping = ping.clone().map(Seen::Ping);
                match (parts.len(), ping) {
                    (_, None) => want.push(message),
                    (1, Some(ping)) => want.extend([message, ping]),
                    (_, Some(ping)) => want.extend([ping, message]),
                }
            }
            prop_assert_eq!(decode(&bytes, step, Sender::Client).unwrap(), want);
        }

        #[test]
        fn whatever_comes_stays_bounded(bytes in prop::collection::vec(any::<u8>(), 0..4000), step in 1usize..500) {
            drop(decode(&bytes, step, Sender::Client));
            drop(decode(&bytes, step, Sender::Server));
        }

        #[test]
        fn masking_is_per_byte(bytes in prop::collection::vec(any::<u8>(), 0..100), mask in any::<[u8; 4]>(), done in 0u64..9) {
            let mut fast = bytes.clone();
            unmask(&mut fast, mask, done);
            let at = |n: usize| mask[(n + usize::try_from(done).unwrap()) % 4];
            let slow: Vec<u8> = bytes.iter().enumerate().map(|(n, byte)| byte ^ at(n)).collect();
            prop_assert_eq!(fast, slow);
        }
    }

    #[test]
    fn a_servers_frames_are_read_by_a_client() {
        for length in [0, 125, 126, 65_535, 65_536] {
            let bytes = frame(Operation::Binary, &[&vec![7; length]]);
            assert_eq!(decode(&bytes, 1000, Sender::Server).unwrap(), [Seen::Message(vec![7; length])]);
        }
        assert_eq!(decode(&close(CLOSE_NORMAL), 9, Sender::Server).unwrap(), [Seen::Close]);
    }

    #[test]
    fn bad_frames_are_refused() {
        let cases: [(&[u8], FrameError); 9] = [
            (&[0xc2, 0x80, 0, 0, 0, 0], FrameError::Reserved),
            (&[0x83, 0x80, 0, 0, 0, 0], FrameError::Operation(3)),
            (&[0x82, 0x00], FrameError::Masking),
            (&[0x09, 0x80, 0, 0, 0, 0], FrameError::Control),
            (&[0x89, 0xfe, 0, 126, 0, 0, 0, 0], FrameError::Control),
            (&[0x80, 0x80, 0, 0, 0, 0], FrameError::Continuation),
            (&[0x02, 0x80, 0, 0, 0, 0, 0x82, 0x80, 0, 0, 0, 0], FrameError::Continuation),
            (&[0x82, 0xfe, 0, 125, 0, 0, 0, 0], FrameError::Length),
            (&[0x82, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], FrameError::MessageSize),
        ];
        for (bytes, want) in cases {
            assert_eq!(decode(bytes, 100, Sender::Client), Err(want), "{bytes:x?}");
        }
    }
}
