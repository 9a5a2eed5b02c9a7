//! Frames of SPDY/3.1: a decoder that is fed bytes as they come, and encoders.
//!
//! ```text
//!  control  1 | version 3 (15 bits) | type (16) | flags (8) | length (24) | body
//!  data     0 | stream (31 bits)                | flags (8) | length (24) | payload
//! ```
//! The payload of a data frame is handed on piece by piece, as it comes; only control frames are gathered.

use flate2::DecompressError;

use super::headers::{HeaderReader, HeaderWriter, Headers};

/// Bytes before every frame's body.
pub const FRAME_HEADER_BYTES: usize = 8;
/// Body of a control frame.
pub const CONTROL_FRAME_BYTES_MAX: usize = 64 * 1024;

const VERSION: u16 = 3;
const CONTROL: u8 = 0x80;
const FLAG_FIN: u8 = 1;
const STREAM_MASK: u32 = 0x7fff_ffff;

/// `RST_STREAM`: the stream's headers make no sense.
pub const RESET_PROTOCOL_ERROR: u32 = 1;
/// `RST_STREAM`: there are too many streams.
pub const RESET_REFUSED: u32 = 3;
/// `RST_STREAM`: it is not wanted any more.
pub const RESET_CANCEL: u32 = 5;
/// `RST_STREAM`: what is behind it failed.
pub const RESET_INTERNAL: u32 = 6;
/// `GOAWAY`: the session is over.
pub const GOAWAY_OK: u32 = 0;
/// `GOAWAY`: the peer broke the protocol.
pub const GOAWAY_PROTOCOL_ERROR: u32 = 1;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const HEADERS: u16 = 8;

/// Bytes that are not SPDY/3.1 as we read it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// Another version's frame.
    #[error("frame of SPDY version {0}")]
    Version(u16),
    /// A control frame above [`CONTROL_FRAME_BYTES_MAX`].
    #[error("control frame of {0} bytes")]
    ControlSize(usize),
    /// A control frame too short for its type.
    #[error("control frame of type {0} is too short")]
    Short(u16),
    /// A header block that does not parse.
    #[error("malformed header block")]
    HeaderBlock,
    /// A header block that inflates beyond its limit.
    #[error("header block inflates to more than {} bytes", super::headers::HEADER_BLOCK_BYTES_MAX)]
    HeaderBlockSize,
    /// More pairs than there may be.
    #[error("header block of {0} headers")]
    TooManyHeaders(usize),
    /// A header block that does not inflate.
    #[error("inflate header block")]
    Zlib(#[source] DecompressError),
}

/// Whether a frame is its sender's last on the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fin {
    /// More may follow.
    No,
    /// The sender's half is closed.
    Yes,
}

impl Fin {
    fn of(flags: u8) -> Self {
        if flags & FLAG_FIN == 0 { Self::No } else { Self::Yes }
    }
}

/// What a peer said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event<'a> {
    /// A new stream.
    SynStream {
        /// Its ID.
        stream: u32,
        /// Whether nothing will follow on it.
        fin: Fin,
        /// What it is for.
        headers: Headers,
    },
    /// A stream was accepted.
    SynReply {
        /// Its ID.
        stream: u32,
    },
    /// A stream was broken off.
    Reset {
        /// Its ID.
        stream: u32,
        /// One of the `RESET_…` numbers.
        status: u32,
    },
    /// To be echoed where the ID is odd (the client's).
    Ping {
        /// Any number.
        id: u32,
    },
    /// The peer opens and accepts no more streams.
    GoAway,
    /// More headers for a stream.
    Headers {
        /// Its ID.
        stream: u32,
        /// Whether nothing will follow on it.
        fin: Fin,
    },
    /// A piece of a data frame.
    Data {
        /// The stream's ID.
        stream: u32,
        /// Where the payload was split, `Yes` only on its last piece.
        fin: Fin,
        /// May be empty, with `fin`.
        chunk: &'a [u8],
    },
}

#[derive(Debug)]
enum State {
    /// Gathers a frame's header.
    Header,
    /// Gathers a control frame's body of `length` bytes.
    Control { kind: u16, flags: u8, length: usize },
    /// Hands on a data frame's payload.
    Data { stream: u32, fin: Fin, left: usize },
    /// Drops a frame we have no use for.
    Skip { left: usize },
}

/// Reads one direction of a connection.
#[derive(Debug)]
pub struct Decoder {
    state: State,
    gathered: Vec<u8>,
    headers: HeaderReader,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { state: State::Header, gathered: Vec::new(), headers: HeaderReader::default() }
    }
}

impl Decoder {
    /// Takes bytes off the front of `input` up to the next event; `None` when all are taken and none is complete.
    ///
    /// # Errors
    /// What no peer in its senses sends; the connection cannot be read further.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Event<'a>>, FrameError> {
        loop {
            match self.state {
                State::Header => {
                    if !self.gather(input, FRAME_HEADER_BYTES) {
                        return Ok(None);
                    }
                    self.state = self.begin()?;
                    self.gathered.clear();
                }
                State::Control { kind, flags, length } => {
                    if !self.gather(input, length) {
                        return Ok(None);
                    }
                    self.state = State::Header;
                    let event = self.control(kind, flags);
                    self.gathered.clear();
                    if let Some(event) = event? {
                        return Ok(Some(event));
                    }
                }
                State::Data { stream, fin, left } => match self.data(stream, fin, left, input) {
                    Next::Event(event) => return Ok(Some(event)),
                    Next::Frame => {}
                    Next::Input => return Ok(None),
                },
                State::Skip { left } => {
                    let (skipped, rest) = input.split_at(left.min(input.len()));
                    *input = rest;
                    if skipped.len() < left {
                        self.state = State::Skip { left: left - skipped.len() };
                        return Ok(None);
                    }
                    self.state = State::Header;
                }
            }
        }
    }

    /// Whether `length` bytes are gathered now.
    fn gather(&mut self, input: &mut &[u8], length: usize) -> bool {
        let missing = length - self.gathered.len();
        let (taken, rest) = input.split_at(missing.min(input.len()));
        self.gathered.extend(taken);
        *input = rest;
        taken.len() == missing
    }

    /// The state after a frame's header, which is gathered.
    fn begin(&self) -> Result<State, FrameError> {
        let word = self.word(0);
        let flags = self.gathered.get(4).copied().unwrap_or_default();
        let length = usize::try_from(self.word(4) & 0x00ff_ffff).unwrap_or(usize::MAX);
        if self.gathered.first().is_none_or(|first| first & CONTROL == 0) {
            return Ok(State::Data { stream: word, fin: Fin::of(flags), left: length });
        }
        let [.., high, low] = (word >> 16).to_be_bytes();
        let version = u16::from_be_bytes([high & !CONTROL, low]);
        if version != VERSION {
            return Err(FrameError::Version(version));
        }
        if length > CONTROL_FRAME_BYTES_MAX {
            return Err(FrameError::ControlSize(length));
        }
        let [.., high, low] = word.to_be_bytes();
        Ok(match u16::from_be_bytes([high, low]) {
            kind @ (SYN_STREAM | SYN_REPLY | RST_STREAM | PING | GOAWAY | HEADERS) => {
                State::Control { kind, flags, length }
            }
            // SETTINGS and WINDOW_UPDATE among them: windows are not kept.
            _ => State::Skip { left: length },
        })
    }

    fn data<'a>(&mut self, stream: u32, fin: Fin, left: usize, input: &mut &'a [u8]) -> Next<'a> {
        let (chunk, rest) = input.split_at(left.min(input.len()));
        *input = rest;
        if chunk.len() < left {
            if chunk.is_empty() {
                return Next::Input;
            }
            self.state = State::Data { stream, fin, left: left - chunk.len() };
            return Next::Event(Event::Data { stream, fin: Fin::No, chunk });
        }
        self.state = State::Header;
        if chunk.is_empty() && fin == Fin::No {
            return Next::Frame;
        }
        Next::Event(Event::Data { stream, fin, chunk })
    }

    fn control<'a>(&mut self, kind: u16, flags: u8) -> Result<Option<Event<'a>>, FrameError> {
        let fixed = match kind {
            SYN_STREAM => 10,
            SYN_REPLY | PING | HEADERS => 4,
            _ => 8,
        };
        let block = self.gathered.get(fixed..).ok_or(FrameError::Short(kind))?;
        let stream = self.word(0) & STREAM_MASK;
        let fin = Fin::of(flags);
        Ok(Some(match kind {
            SYN_STREAM => Event::SynStream { stream, fin, headers: self.headers.read(block)? },
            SYN_REPLY => {
                self.headers.read(block)?;
                Event::SynReply { stream }
            }
            HEADERS => {
                self.headers.read(block)?;
                Event::Headers { stream, fin }
            }
            RST_STREAM => Event::Reset { stream, status: self.word(4) },
            PING => Event::Ping { id: self.word(0) },
            _ => Event::GoAway,
        }))
    }

    /// The gathered word at `at`; what is not there is 0.
    fn word(&self, at: usize) -> u32 {
        self.gathered.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |word| u32::from_be_bytes(*word))
    }
}

enum Next<'a> {
    Event(Event<'a>),
    /// The next frame begins.
    Frame,
    /// More input is needed.
    Input,
}

/// The header of a data frame; `length` < 2²⁴.
#[must_use]
pub fn data_header(stream: u32, fin: Fin, length: usize) -> [u8; FRAME_HEADER_BYTES] {
    let [a, b, c, d] = (stream & STREAM_MASK).to_be_bytes();
    let [.., e, f, g] = length.to_be_bytes();
    [a, b, c, d, flags(fin), e, f, g]
}

/// Opens a stream: the client's part.
#[must_use]
pub fn syn_stream(stream: u32, headers: &Headers, writer: &mut HeaderWriter) -> Vec<u8> {
    let mut body = stream.to_be_bytes().to_vec();
    body.extend([0; 6]);
    body.extend(writer.write(headers));
    control(SYN_STREAM, &body)
}

/// Accepts a stream.
#[must_use]
pub fn syn_reply(stream: u32, writer: &mut HeaderWriter) -> Vec<u8> {
    let mut body = stream.to_be_bytes().to_vec();
    body.extend(writer.write(&Headers::default()));
    control(SYN_REPLY, &body)
}

/// Breaks a stream off.
#[must_use]
pub fn rst_stream(stream: u32, status: u32) -> Vec<u8> {
    control(RST_STREAM, &two_words(stream, status))
}

/// Asks for, or is, an echo.
#[must_use]
pub fn ping(id: u32) -> Vec<u8> {
    control(PING, &id.to_be_bytes())
}

/// Ends the session after the client's stream `last`.
#[must_use]
pub fn goaway(last: u32, status: u32) -> Vec<u8> {
    control(GOAWAY, &two_words(last, status))
}

fn two_words(first: u32, second: u32) -> [u8; 8] {
    let ([a, b, c, d], [e, f, g, h]) = (first.to_be_bytes(), second.to_be_bytes());
    [a, b, c, d, e, f, g, h]
}

fn control(kind: u16, body: &[u8]) -> Vec<u8> {
    let ([a, b], [.., d, e, f]) = (kind.to_be_bytes(), body.len().to_be_bytes());
    let mut frame = vec![CONTROL, 3, a, b, 0, d, e, f];
    frame.extend(body);
    frame
}

fn flags(fin: Fin) -> u8 {
    match fin {
        Fin::No => 0,
        Fin::Yes => FLAG_FIN,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An event with its payload owned.
    #[derive(Debug, Clone, PartialEq, Eq)]
    enum Seen {
        Data(u32, Fin, Vec<u8>),
        Other(Event<'static>),
    }

    /// Everything in `bytes`, which come in pieces of `step`; neighbouring pieces of data are joined.
    fn decode(bytes: &[u8], step: usize) -> Result<Vec<Seen>, FrameError> {
        let (mut decoder, mut seen) = (Decoder::default(), Vec::new());
        for mut input in bytes.chunks(step) {
            while let Some(event) = decoder.next(&mut input)? {
                push(&mut seen, event);
            }
            assert!(input.is_empty());
            assert!(decoder.gathered.len() <= CONTROL_FRAME_BYTES_MAX);
        }
        Ok(seen)
    }

    fn push(seen: &mut Vec<Seen>, event: Event<'_>) {
        match (event, seen.last_mut()) {
            (Event::Data { stream, fin, chunk }, Some(Seen::Data(last, open @ Fin::No, bytes)))
                if stream == *last =>
            {
                bytes.extend(chunk);
                *open = fin;
            }
            (Event::Data { stream, fin, chunk }, _) => seen.push(Seen::Data(stream, fin, chunk.to_vec())),
            (Event::SynStream { stream, fin, headers }, _) => {
                seen.push(Seen::Other(Event::SynStream { stream, fin, headers }));
            }
            (Event::SynReply { stream }, _) => seen.push(Seen::Other(Event::SynReply { stream })),
            (Event::Reset { stream, status }, _) => seen.push(Seen::Other(Event::Reset { stream, status })),
            (Event::Ping { id }, _) => seen.push(Seen::Other(Event::Ping { id })),
            (Event::GoAway, _) => seen.push(Seen::Other(Event::GoAway)),
            (Event::Headers { stream, fin }, _) => seen.push(Seen::Other(Event::Headers { stream, fin })),
        }
    }

    fn data(stream: u32, fin: Fin, payload: &[u8]) -> Vec<u8> {
        [&data_header(stream, fin, payload.len())[..], payload].concat()
    }

    #[derive(Debug, Clone)]
    enum Sent {
        Data(u32, Fin, Vec<u8>),
        Open(u32, String),
        Reply(u32),
        Reset(u32),
        Ping(u32),
        GoAway,
        Settings,
    }

    fn sent() -> impl Strategy<Value = Sent> {
        let id = 1..STREAM_MASK;
        let fin = prop_oneof![Just(Fin::No), Just(Fin::Yes)];
        prop_oneof![
            (id.clone(), fin, prop::collection::vec(any::<u8>(), 1..200))
                .prop_map(|(s, f, d)| Sent::Data(s, f, d)),
            (id.clone(), "[a-z]{0,9}").prop_map(|(s, v)| Sent::Open(s, v)),
            id.clone().prop_map(Sent::Reply),
            id.clone().prop_map(Sent::Reset),
            any::<u32>().prop_map(Sent::Ping),
            Just(Sent::GoAway),
            Just(Sent::Settings),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded_however_it_is_split(frames in prop::collection::vec(sent(), 0..20), step in 1usize..300) {
            let (mut bytes, mut want, mut writer) = (Vec::new(), Vec::new(), HeaderWriter::default());
            for frame in frames {
                match frame {
                    Sent::Data(stream, fin, payload) => {
                        bytes.extend(data(stream, fin, &payload));
                        push(&mut want, Event::Data { stream, fin, chunk: &payload });
                    }
                    Sent::Open(stream, value) => {
                        let headers = Headers::from([("streamtype", value.as_str())]);
                        bytes.extend(syn_stream(stream, &headers, &mut writer));
                        want.push(Seen::Other(Event::SynStream { stream, fin: Fin::No, headers }));
                    }
                    Sent::Reply(stream) => {
                        bytes.extend(syn_reply(stream, &mut writer));
                        want.push(Seen::Other(Event::SynReply { stream }));
                    }
                    Sent::Reset(stream) => {
                        bytes.extend(rst_stream(stream, RESET_CANCEL));
                        want.push(Seen::Other(Event::Reset { stream, status: RESET_CANCEL }));
                    }
                    Sent::Ping(id) => {
                        bytes.extend(ping(id));
                        want.push(Seen::Other(Event::Ping { id }));
                    }
                    Sent::GoAway => {
                        bytes.extend(goaway(1, GOAWAY_OK));
                        want.push(Seen::Other(Event::GoAway));
                    }
                    Sent::Settings => bytes.extend(control(4, &[0; 12])),
                }
            }
            prop_assert_eq!(decode(&bytes, step).unwrap(), want);
        }

        #[test]
        fn whatever_comes_stays_bounded(bytes in prop::collection::vec(any::<u8>(), 0..4000), step in 1usize..500) {
            drop(decode(&bytes, step));
        }

        #[test]
        fn whatever_control_frames_hold_stays_bounded(kind in 0u16..12, body in prop::collection::vec(any::<u8>(), 0..400)) {
            drop(decode(&control(kind, &body), 64));
        }
    }

    #[test]
    fn bad_frames_are_refused() {
        assert!(matches!(decode(&[0x80, 2, 0, 1, 0, 0, 0, 0], 8), Err(FrameError::Version(2))));
        assert!(matches!(decode(&[0x80, 3, 0, 1, 0, 1, 0, 1], 8), Err(FrameError::ControlSize(65_537))));
        assert!(matches!(decode(&control(SYN_STREAM, &[0; 9]), 8), Err(FrameError::Short(SYN_STREAM))));
        assert!(matches!(decode(&control(RST_STREAM, &[0; 7]), 8), Err(FrameError::Short(RST_STREAM))));
    }

    #[test]
    fn an_end_without_data_is_told_and_nothing_is_not() {
        let bytes = [data(5, Fin::No, &[]), data(5, Fin::Yes, &[])].concat();
        assert_eq!(decode(&bytes, 100).unwrap(), [Seen::Data(5, Fin::Yes, Vec::new())]);
    }
}
