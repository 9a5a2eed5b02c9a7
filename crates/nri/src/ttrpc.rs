//! ttrpc: requests and responses over a byte stream, each a header and a protobuf message.
//!
//! ```text
//! 0        4        8      9       10
//! ┌────────┬────────┬──────┬───────┬─────────┐
//! │ length │ stream │ type │ flags │ message │   both numbers big-endian; odd streams are the client's
//! └────────┴────────┴──────┴───────┴─────────┘
//! ```
//! Only unary calls: NRI has no other. Source: `PROTOCOL.md` and `request.proto` of ttrpc 1.2.

use prost::Message as _;

/// Bytes of a header.
pub(crate) const HEADER_BYTES: usize = 10;
/// Bytes of a message (ttrpc's own limit).
pub(crate) const MESSAGE_BYTES_MAX: usize = 4 << 20;

const TYPE_REQUEST: u8 = 1;
const TYPE_RESPONSE: u8 = 2;

/// gRPC's codes, as far as they are used here.
pub(crate) mod code {
    pub(crate) const OK: i32 = 0;
    pub(crate) const UNKNOWN: i32 = 2;
    pub(crate) const INVALID_ARGUMENT: i32 = 3;
    pub(crate) const DEADLINE_EXCEEDED: i32 = 4;
    pub(crate) const RESOURCE_EXHAUSTED: i32 = 8;
    pub(crate) const UNIMPLEMENTED: i32 = 12;
}

/// A call.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Request {
    #[prost(string, tag = "1")]
    pub(crate) service: String,
    #[prost(string, tag = "2")]
    pub(crate) method: String,
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) payload: Vec<u8>,
    /// How long the caller waits.
    #[prost(int64, tag = "4")]
    pub(crate) timeout_nano: i64,
}

/// Its answer.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Response {
    /// None, or code 0, is success.
    #[prost(message, optional, tag = "1")]
    pub(crate) status: Option<Status>,
    #[prost(bytes = "vec", tag = "2")]
    pub(crate) payload: Vec<u8>,
}

/// What went wrong.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Status {
    #[prost(int32, tag = "1")]
    pub(crate) code: i32,
    #[prost(string, tag = "2")]
    pub(crate) message: String,
}

impl Response {
    pub(crate) fn refusal(code: i32, message: impl Into<String>) -> Self {
        Self { status: Some(Status { code, message: message.into() }), payload: Vec::new() }
    }

    /// The payload, or what went wrong.
    pub(crate) fn into_result(self) -> Result<Vec<u8>, Status> {
        match self.status {
            Some(status) if status.code != code::OK => Err(status),
            Some(_) | None => Ok(self.payload),
        }
    }
}

/// What is on the wire.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Body {
    Request(Request),
    Response(Response),
}

/// A message with the number of its call.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Packet {
    pub(crate) call: u32,
    pub(crate) body: Body,
}

/// The peer does not speak ttrpc as agreed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProtocolError {
    #[error("a message of {0} bytes")]
    TooLarge(usize),
    #[error("a message of type {0}")]
    Type(u8),
    #[error("a message that is no protobuf: {0}")]
    Protobuf(#[from] prost::DecodeError),
    #[error("a frame of more than {} bytes", crate::mux::PAYLOAD_BYTES_MAX)]
    Frame,
}

/// The wire form.
///
/// # Errors
/// [`ProtocolError::TooLarge`].
pub(crate) fn encode(packet: &Packet) -> Result<Vec<u8>, ProtocolError> {
    let (kind, message) = match &packet.body {
        Body::Request(request) => (TYPE_REQUEST, request.encode_to_vec()),
        Body::Response(response) => (TYPE_RESPONSE, response.encode_to_vec()),
    };
    let length = u32::try_from(message.len()).ok().filter(|_| message.len() <= MESSAGE_BYTES_MAX);
    let length = length.ok_or(ProtocolError::TooLarge(message.len()))?;
    let mut bytes = Vec::with_capacity(HEADER_BYTES + message.len());
    bytes.extend(length.to_be_bytes());
    bytes.extend(packet.call.to_be_bytes());
    bytes.extend([kind, 0]);
    bytes.extend(message);
    Ok(bytes)
}

/// Puts messages together from the bytes of a stream. Holds one message at most.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    bytes: Vec<u8>,
}

impl Assembler {
    /// The messages that are complete with these bytes.
    ///
    /// # Errors
    /// The stream cannot be read any further after one.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Packet>, ProtocolError> {
        self.bytes.extend_from_slice(bytes);
        let mut packets = Vec::new();
        let mut rest = self.bytes.as_slice();
        while let Some((packet, after)) = take(rest)? {
            packets.push(packet);
            rest = after;
        }
        let used = self.bytes.len() - rest.len();
        self.bytes.drain(..used);
        if self.bytes.is_empty() {
            // A large message leaves no large buffer behind.
            self.bytes.shrink_to(HEADER_BYTES);
        }
        Ok(packets)
    }
}

type Taken<'a> = Option<(Packet, &'a [u8])>;

fn take(bytes: &[u8]) -> Result<Taken<'_>, ProtocolError> {
    let Some(([a, b, c, d, e, f, g, h, kind, _flags], rest)) = bytes.split_first_chunk::<HEADER_BYTES>()
    else {
        return Ok(None);
    };
    let length = usize::try_from(u32::from_be_bytes([*a, *b, *c, *d])).unwrap_or(usize::MAX);
    if length > MESSAGE_BYTES_MAX {
        return Err(ProtocolError::TooLarge(length));
    }
    let Some((message, rest)) = rest.split_at_checked(length) else { return Ok(None) };
    let body = match *kind {
        TYPE_REQUEST => Body::Request(Request::decode(message)?),
        TYPE_RESPONSE => Body::Response(Response::decode(message)?),
        other => return Err(ProtocolError::Type(other)),
    };
    Ok(Some((Packet { call: u32::from_be_bytes([*e, *f, *g, *h]), body }, rest)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packet() -> impl Strategy<Value = Packet> {
        let request =
            ("[a-z.]{0,20}", "[A-Z]{0,9}", proptest::collection::vec(any::<u8>(), 0..300), any::<i64>())
                .prop_map(|(service, method, payload, timeout_nano)| {
                    Body::Request(Request { service, method, payload, timeout_nano })
                });
        let response =
            (proptest::option::of((0..17i32, ".{0,20}")), proptest::collection::vec(any::<u8>(), 0..300))
                .prop_map(|(status, payload)| {
                    let status = status.map(|(code, message)| Status { code, message });
                    Body::Response(Response { status, payload })
                });
        (any::<u32>(), prop_oneof![request, response]).prop_map(|(call, body)| Packet { call, body })
    }

    proptest! {
        #[test]
        fn messages_survive_any_cutting(
            packets in proptest::collection::vec(packet(), 0..5),
            cuts in proptest::collection::vec(1usize..400, 1..20),
        ) {
            let bytes: Vec<u8> = packets.iter().flat_map(|packet| encode(packet).unwrap()).collect();
            let (mut assembler, mut got, mut rest) = (Assembler::default(), Vec::new(), bytes.as_slice());
            for cut in cuts.iter().cycle() {
                if rest.is_empty() { break; }
                let (now, later) = rest.split_at((*cut).min(rest.len()));
                got.extend(assembler.push(now).unwrap());
                rest = later;
            }
            prop_assert_eq!(got, packets);
            prop_assert!(assembler.bytes.is_empty());
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
            let _refused_or_not = Assembler::default().push(&bytes);
        }
    }

    #[test]
    fn too_large_messages_are_refused_by_their_header() {
        let mut header = (u32::try_from(MESSAGE_BYTES_MAX).unwrap() + 1).to_be_bytes().to_vec();
        header.extend([0, 0, 0, 1, TYPE_REQUEST, 0]);
        assert_eq!(Assembler::default().push(&header), Err(ProtocolError::TooLarge(MESSAGE_BYTES_MAX + 1)));
        let request = Request { payload: vec![0; MESSAGE_BYTES_MAX], ..Request::default() };
        assert!(encode(&Packet { call: 1, body: Body::Request(request) }).is_err());
    }

    #[test]
    fn the_wire_form_is_ttrpcs() {
        let request = Request { service: "s".into(), method: "m".into(), ..Request::default() };
        let bytes = encode(&Packet { call: 3, body: Body::Request(request) }).unwrap();
        assert_eq!(bytes, [0, 0, 0, 6, 0, 0, 0, 3, 1, 0, 0x0a, 1, b's', 0x12, 1, b'm']);
    }
}
