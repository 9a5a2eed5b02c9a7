//! Several byte streams over one: frames of a header and a payload.
//!
//! ```text
//! 0        4        8
//! ┌────────┬────────┬─────────┐
//! │ stream │ length │ payload │   both numbers big-endian
//! └────────┴────────┴─────────┘
//! ```
//! Streams are neither opened nor closed on the wire. A frame is not a message: streams are bytes.

use crate::ttrpc;

/// Bytes of a frame's header.
pub(crate) const HEADER_BYTES: usize = 8;
/// Bytes of a frame's payload: a whole message.
pub(crate) const PAYLOAD_BYTES_MAX: usize = ttrpc::HEADER_BYTES + ttrpc::MESSAGE_BYTES_MAX;
/// Payload of a message's first frame. Go's plugins read a frame with one read into the buffer of their reader, which has 4096
/// bytes, or, past it, right into the message: a frame that does not fit there ends the connection.
const FIRST_PAYLOAD_BYTES: usize = 4096;

/// The streams of the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// The runtime calls the plugin.
    Plugin,
    /// The plugin calls the runtime.
    Runtime,
}

impl Stream {
    fn number(self) -> u32 {
        match self {
            Self::Plugin => 1,
            Self::Runtime => 2,
        }
    }

    /// `None` for a stream that nobody reads.
    pub(crate) fn of(number: u32) -> Option<Self> {
        [Self::Plugin, Self::Runtime].into_iter().find(|stream| stream.number() == number)
    }
}

/// A frame's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) stream: u32,
    pub(crate) payload_bytes: usize,
}

impl Header {
    /// `None` when the payload is larger than [`PAYLOAD_BYTES_MAX`].
    pub(crate) fn parse(bytes: [u8; HEADER_BYTES]) -> Option<Self> {
        let [a, b, c, d, e, f, g, h] = bytes;
        let payload_bytes = usize::try_from(u32::from_be_bytes([e, f, g, h])).ok()?;
        let header = Self { stream: u32::from_be_bytes([a, b, c, d]), payload_bytes };
        (payload_bytes <= PAYLOAD_BYTES_MAX).then_some(header)
    }
}

/// A message in frames, ready for the wire.
pub(crate) fn frames(stream: Stream, message: &[u8]) -> Vec<u8> {
    let (first, rest) = message.split_at(message.len().min(FIRST_PAYLOAD_BYTES));
    let mut bytes = Vec::with_capacity(message.len() + 2 * HEADER_BYTES);
    for payload in std::iter::once(first).chain(rest.chunks(PAYLOAD_BYTES_MAX)) {
        bytes.extend(stream.number().to_be_bytes());
        // A payload is at most PAYLOAD_BYTES_MAX.
        bytes.extend(u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend(payload);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Streams and payloads of whole frames.
    fn parse(mut bytes: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let mut frames = Vec::new();
        while let Some((header, rest)) = bytes.split_first_chunk() {
            let header = Header::parse(*header).unwrap();
            let (payload, rest) = rest.split_at(header.payload_bytes);
            frames.push((header.stream, payload.to_vec()));
            bytes = rest;
        }
        frames
    }

    proptest! {
        #[test]
        fn frames_carry_the_message(message in proptest::collection::vec(any::<u8>(), 0..20_000)) {
            let frames = parse(&frames(Stream::Runtime, &message));
            prop_assert!(frames.iter().all(|(stream, _)| *stream == 2));
            prop_assert!(frames[0].1.len() <= FIRST_PAYLOAD_BYTES);
            prop_assert_eq!(frames.concat_payloads(), message);
        }

        #[test]
        fn any_header_is_bounded(bytes: [u8; HEADER_BYTES]) {
            if let Some(header) = Header::parse(bytes) {
                prop_assert!(header.payload_bytes <= PAYLOAD_BYTES_MAX);
            }
        }
    }

    trait Payloads {
        fn concat_payloads(&self) -> Vec<u8>;
    }

    impl Payloads for Vec<(u32, Vec<u8>)> {
        fn concat_payloads(&self) -> Vec<u8> {
            self.iter().flat_map(|(_, payload)| payload.clone()).collect()
        }
    }

    #[test]
    fn the_wire_form_is_the_protocols() {
        assert_eq!(frames(Stream::Plugin, b"ab"), [0, 0, 0, 1, 0, 0, 0, 2, b'a', b'b']);
        assert_eq!(Stream::of(2), Some(Stream::Runtime));
        assert_eq!(Stream::of(0), None);
    }
}
