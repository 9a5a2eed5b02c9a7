//! Netlink: messages out, answers in. One small codec for rtnetlink, nf_tables and conntrack.
//!
//! ```text
//! message    = length u32, type u16, flags u16, sequence u32, port u32, family header, attribute*   (4-byte aligned)
//! attribute  = length u16, type u16, payload, padding to 4
//! ```
//! Integers are in host order but where a protocol says otherwise (nf_tables and conntrack: big endian attributes).
//!
//! Several messages travel in one send; the kernel works through them before `send` returns, so the answers are there
//! already and nothing here ever waits: an answer that is missing is an error, not a hang.
//!
//! Source: `linux/netlink.h`, kernel documentation "Introduction to Netlink".

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;
use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

pub(crate) const REQUEST: u16 = 0x1;
pub(crate) const ACK: u16 = 0x4;
pub(crate) const DUMP: u16 = 0x300;
pub(crate) const REPLACE: u16 = 0x100;
pub(crate) const EXCL: u16 = 0x200;
pub(crate) const CREATE: u16 = 0x400;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_MIN_TYPE: u16 = 16;
const NLA_F_NESTED: u16 = 0x8000;
/// Without the flags for "nested" and "network byte order".
const NLA_TYPE_MASK: u16 = 0x3fff;
const HEADER_BYTES: usize = 16;
/// The kernel's dumps come in pieces of at most 32 KiB.
const RECEIVE_BYTES_MAX: usize = 64 << 10;
/// Room for the largest batch: a few thousand map elements.
const SEND_BUFFER_BYTES: usize = 4 << 20;

/// Attributes in the making.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attributes(Vec<u8>);

impl Attributes {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    #[cfg(test)]
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Adds one attribute. A payload that no attribute can hold (64 KiB) is cut; callers bound their lists.
    pub(crate) fn bytes(mut self, kind: u16, payload: &[u8]) -> Self {
        let payload = &payload[..payload.len().min(usize::from(u16::MAX) - 4)];
        let length = u16::try_from(payload.len() + 4).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(payload);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn u8(self, kind: u16, value: u8) -> Self {
        self.bytes(kind, &[value])
    }

    pub(crate) fn u32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    pub(crate) fn be32(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    /// A text with its terminating zero.
    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        let mut zero_terminated = Vec::with_capacity(value.len() + 1);
        zero_terminated.extend_from_slice(value.as_bytes());
        zero_terminated.push(0);
        self.bytes(kind, &zero_terminated)
    }

    pub(crate) fn nest(self, kind: u16, inner: &Self) -> Self {
        self.bytes(kind | NLA_F_NESTED, &inner.0)
    }

    /// As [`Self::nest`], behind a header, as the peer of a veth.
    pub(crate) fn nest_after(self, kind: u16, header: &[u8], inner: &Self) -> Self {
        let mut payload = header.to_vec();
        payload.extend_from_slice(&inner.0);
        self.bytes(kind | NLA_F_NESTED, &payload)
    }
}

/// A message to send.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    /// Family header and attributes.
    body: Vec<u8>,
}

impl Message {
    pub(crate) fn new(kind: u16, flags: u16, header: &[u8], attributes: &Attributes) -> Self {
        let mut body = Vec::with_capacity(header.len() + attributes.0.len());
        body.extend_from_slice(header);
        body.extend_from_slice(&attributes.0);
        Self { kind, flags: flags | REQUEST, body }
    }

    fn encode(&self, sequence: u32, out: &mut Vec<u8>) {
        let length = u32::try_from(HEADER_BYTES + self.body.len()).unwrap_or(u32::MAX);
        out.extend_from_slice(&length.to_ne_bytes());
        out.extend_from_slice(&self.kind.to_ne_bytes());
        out.extend_from_slice(&self.flags.to_ne_bytes());
        out.extend_from_slice(&sequence.to_ne_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.body);
        out.resize(out.len().next_multiple_of(4), 0);
    }

    /// Is an answer due that says that it is done?
    fn answered(&self) -> bool {
        self.flags & (ACK | DUMP) != 0
    }
}

/// Iterates over the attributes in `bytes`; what is malformed ends it.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(0..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & NLA_TYPE_MASK;
        let payload = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// The payload of the first attribute of this kind.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(k, _)| *k == kind).map(|(_, payload)| payload)
}

/// A text attribute without its terminating zero.
pub(crate) fn text(payload: &[u8]) -> String {
    let end = payload.iter().position(|b| *b == 0).unwrap_or(payload.len());
    String::from_utf8_lossy(&payload[..end]).into_owned()
}

/// A `u32` in host order at `offset`.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(offset..offset.checked_add(4)?)?.try_into().ok()?))
}

/// Opens a socket in the network namespace of the calling thread.
fn open(protocol: Option<Protocol>) -> io::Result<OwnedFd> {
    let socket =
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0))?;
    Ok(socket)
}

/// A socket to nf_tables and conntrack.
pub(crate) fn open_netfilter() -> io::Result<OwnedFd> {
    let socket = open(Some(NETFILTER))?;
    // Beyond the system's limit only with CAP_NET_ADMIN, which all else here needs, too.
    rustix::net::sockopt::set_socket_send_buffer_size_force(&socket, SEND_BUFFER_BYTES)?;
    Ok(socket)
}

/// A socket to rtnetlink.
pub(crate) fn open_route() -> io::Result<OwnedFd> {
    open(None)
}

/// Sends `messages` at once and reads all that comes back; each answer that carries data goes to `on_data` with its type
/// and its body behind the netlink header.
///
/// # Errors
/// The first error that the kernel answered with; the messages behind it were worked on all the same, unless they are a
/// batch.
pub(crate) fn exchange(
    socket: BorrowedFd<'_>,
    messages: &[Message],
    mut on_data: impl FnMut(u16, &[u8]),
) -> io::Result<()> {
    static SEQUENCE: AtomicU32 = AtomicU32::new(1);
    let count =
        u32::try_from(messages.len()).map_err(|_too_many| io::Error::from(io::ErrorKind::InvalidInput))?;
    let first = SEQUENCE.fetch_add(count, Ordering::Relaxed);
    let mut out = Vec::new();
    for (sequence, message) in (0..count).zip(messages) {
        message.encode(first.wrapping_add(sequence), &mut out);
    }
    rustix::net::send(socket, &out, SendFlags::empty())?;
    let mut due = messages.iter().filter(|m| m.answered()).count();
    let mut failed: Option<io::Error> = None;
    let mut buffer = vec![0u8; RECEIVE_BYTES_MAX];
    while due > 0 {
        let length = match receive(socket, &mut buffer) {
            // An aborted batch answers only what failed.
            Err(Errno::AGAIN) => break,
            received => received?,
        };
        for (kind, sequence, body) in split(&buffer[..length]) {
            let Some(message) =
                usize::try_from(sequence.wrapping_sub(first)).ok().and_then(|i| messages.get(i))
            else {
                continue; // the answer to an exchange that was given up
            };
            match outcome(kind, body) {
                Outcome::Data => on_data(kind, body),
                Outcome::Ignored => {}
                Outcome::Ended(result) => {
                    due -= usize::from(message.answered() && due > 0);
                    failed = failed.or(result.err());
                }
            }
        }
    }
    match failed {
        Some(error) => Err(error),
        None if due > 0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the kernel gave no answer")),
        None => Ok(()),
    }
}

fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize, Errno> {
    let (_, length) = rustix::net::recv(socket, &mut *buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC)?;
    if length > buffer.len() { Err(Errno::MSGSIZE) } else { Ok(length) }
}

enum Outcome {
    Data,
    Ignored,
    Ended(io::Result<()>),
}

fn outcome(kind: u16, body: &[u8]) -> Outcome {
    match kind {
        NLMSG_ERROR | NLMSG_DONE => {
            // NLMSG_DONE carries the dump's own error, or zero; old kernels leave it out.
            let code = u32_at(body, 0).map_or(0, u32::cast_signed);
            let ended =
                if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.wrapping_neg())) };
            Outcome::Ended(ended)
        }
        kind if kind < NLMSG_MIN_TYPE => Outcome::Ignored,
        _ => Outcome::Data,
    }
}

/// Takes a datagram apart: type, sequence, body.
fn split(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(bytes, 0)?).ok()?;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let sequence = u32_at(bytes, 8)?;
        let body = bytes.get(HEADER_BYTES..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, sequence, body))
    })
}

/// Idle sockets, so that concurrent callers never share one and nobody opens one per call.
#[derive(Debug)]
pub(crate) struct Sockets {
    open: fn() -> io::Result<OwnedFd>,
    idle: std::sync::Mutex<Vec<OwnedFd>>,
}

/// How many sockets are kept when nobody uses them.
const IDLE_SOCKETS_MAX: usize = 8;

impl Sockets {
    pub(crate) fn new(open: fn() -> io::Result<OwnedFd>) -> Self {
        Self { open, idle: std::sync::Mutex::default() }
    }

    /// Lends a socket to `work`. One that an error was seen on is closed: answers may still be queued in it.
    pub(crate) fn with<T>(&self, work: impl FnOnce(BorrowedFd<'_>) -> io::Result<T>) -> io::Result<T> {
        let idle = self.lock().pop();
        let socket = match idle {
            Some(socket) => socket,
            None => (self.open)()?,
        };
        let done = work(socket.as_fd());
        if done.is_ok() {
            let mut idle = self.lock();
            if idle.len() < IDLE_SOCKETS_MAX {
                idle.push(socket);
            }
        }
        done
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<OwnedFd>> {
        self.idle.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn messages_are_laid_out_as_the_kernel_reads_them() {
        let inner = Attributes::new().u8(1, 7);
        let body = Attributes::new().text(3, "lo").nest(2, &inner);
        let mut out = Vec::new();
        Message::new(16, ACK, &[9; 4], &body).encode(5, &mut out);
        let expected = [
            &40u32.to_ne_bytes()[..],
            &16u16.to_ne_bytes(),
            &5u16.to_ne_bytes(),
            &5u32.to_ne_bytes(),
            &[0; 4],
            &[9; 4],
            &7u16.to_ne_bytes(),
            &3u16.to_ne_bytes(),
            b"lo\0\0",
            &12u16.to_ne_bytes(),
            &0x8002u16.to_ne_bytes(),
            &5u16.to_ne_bytes(),
            &1u16.to_ne_bytes(),
            &[7, 0, 0, 0],
        ]
        .concat();
        assert_eq!(out, expected);
    }

    #[test]
    fn loopback_is_listed_and_an_unknown_type_is_an_error() {
        let socket = open_route().unwrap();
        let mut names = Vec::new();
        let dump = Message::new(18, DUMP, &[0; 16], &Attributes::new());
        exchange(socket.as_fd(), &[dump], |_, body| {
            names.extend(attribute(&body[16..], 3).map(text));
        })
        .unwrap();
        assert!(names.contains(&"lo".to_owned()), "{names:?}");
        let wrong = Message::new(0x3fff, ACK, &[0; 16], &Attributes::new());
        let e = exchange(socket.as_fd(), &[wrong], |_, _| {}).unwrap_err();
        assert_eq!(e.raw_os_error(), Some(Errno::OPNOTSUPP.raw_os_error()));
    }

    proptest! {
        #[test]
        fn attributes_read_back(list in proptest::collection::vec((0u16..0x3fff, proptest::collection::vec(any::<u8>(), 0..64)), 0..16)) {
            let mut made = Attributes::new();
            for (kind, payload) in &list {
                made = made.bytes(*kind, payload);
            }
            let read: Vec<_> = attributes(&made.0).map(|(k, p)| (k, p.to_vec())).collect();
            prop_assert_eq!(read, list);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            for (_, payload) in attributes(&bytes) {
                prop_assert!(payload.len() < bytes.len());
            }
            for (kind, _, body) in split(&bytes) {
                drop(outcome(kind, body));
            }
        }
    }
}
