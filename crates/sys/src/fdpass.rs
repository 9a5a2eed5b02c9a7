//! Packets with descriptors beside them (`SCM_RIGHTS`) over Unix sockets that keep message boundaries.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

/// Most descriptors beside one packet.
pub const PACKET_FDS_MAX: usize = 8;

/// Whether a call waits until it can be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Waits.
    Block,
    /// Fails with `WouldBlock` instead of waiting.
    Never,
}

/// Two connected sockets of type `SOCK_SEQPACKET`, closed on exec.
///
/// # Errors
/// When the process is out of descriptors.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends one packet.
///
/// `fds`: at most [`PACKET_FDS_MAX`]. A peer that is gone is `BrokenPipe`, never a signal.
///
/// # Errors
/// The kernel's; `InvalidInput` for too many descriptors.
pub fn send(socket: impl AsFd, data: &[u8], fds: &[BorrowedFd<'_>], wait: Wait) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut flags = SendFlags::NOSIGNAL;
    if wait == Wait::Never {
        flags |= SendFlags::DONTWAIT;
    }
    let sent = rustix::io::retry_on_intr(|| sendmsg(&socket, &[IoSlice::new(data)], &mut ancillary, flags))?;
    if sent == data.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// A received packet.
#[derive(Debug)]
pub struct Packet {
    /// What was sent.
    pub data: Vec<u8>,
    /// The descriptors beside it, closed on exec.
    pub fds: Vec<OwnedFd>,
}

/// Receives one packet of at most `bytes_max` bytes; `None` when the peer has closed the connection.
///
/// An empty packet cannot be told from the end of the connection, so nobody sends one.
///
/// # Errors
/// The kernel's; `InvalidData` for a packet that is longer or has more descriptors than allowed (it is consumed).
pub fn receive(socket: impl AsFd, bytes_max: usize, wait: Wait) -> io::Result<Option<Packet>> {
    let mut flags = RecvFlags::CMSG_CLOEXEC;
    if wait == Wait::Never {
        flags |= RecvFlags::DONTWAIT;
    }
    // The real length of the packet, so that no connection needs a buffer of its own for the largest one.
    let peek = flags | RecvFlags::PEEK | RecvFlags::TRUNC;
    let (_, len) = rustix::io::retry_on_intr(|| rustix::net::recv(&socket, &mut [0u8; 0][..], peek))?;
    let mut data = vec![0; len.min(bytes_max)];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(&socket, &mut [IoSliceMut::new(&mut data)], &mut ancillary, flags)
    })?;
    let fds = ancillary
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    data.truncate(received.bytes);
    Ok((received.bytes > 0).then_some(Packet { data, fds }))
}

/// Receives the first descriptor that comes over a stream, whatever text comes along.
///
/// # Errors
/// The kernel's; `WouldBlock` when nothing is there and the socket does not block; `UnexpectedEof` without a descriptor.
pub fn receive_from_stream(socket: impl AsFd) -> io::Result<OwnedFd> {
    let mut text = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PACKET_FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    rustix::io::retry_on_intr(|| {
        recvmsg(&socket, &mut [IoSliceMut::new(&mut text)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut fds = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    });
    fds.by_ref().flatten().next().ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    #[test]
    fn packets_keep_their_borders_and_carry_descriptors() {
        let (a, b) = pair().unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        send(&a, b"one", &[writer.as_fd()], Wait::Block).unwrap();
        send(&a, b"two", &[], Wait::Block).unwrap();
        drop(writer);
        let first = receive(&b, 100, Wait::Block).unwrap().unwrap();
        assert_eq!(first.data, b"one");
        let second = receive(&b, 100, Wait::Block).unwrap().unwrap();
        assert_eq!((second.data.as_slice(), second.fds.len()), (&b"two"[..], 0));
        let passed = first.fds.into_iter().next().unwrap();
        std::fs::File::from(passed).write_all(b"through").unwrap();
        let mut text = String::new();
        std::fs::File::from(reader).read_to_string(&mut text).unwrap();
        assert_eq!(text, "through");
    }

    #[test]
    fn a_packet_that_is_too_long_is_an_error_and_the_next_one_is_read() {
        let (a, b) = pair().unwrap();
        send(&a, &[7; 50], &[], Wait::Block).unwrap();
        send(&a, b"next", &[], Wait::Block).unwrap();
        assert_eq!(receive(&b, 10, Wait::Block).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(receive(&b, 10, Wait::Block).unwrap().unwrap().data, b"next");
    }

    #[test]
    fn the_end_of_a_connection_and_an_empty_queue_are_told_apart() {
        let (a, b) = pair().unwrap();
        assert_eq!(receive(&b, 10, Wait::Never).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(a);
        // A process that another test begins may hold a copy for a moment.
        let limit = Timespec { tv_sec: 60, tv_nsec: 0 };
        assert_eq!(poll(&mut [PollFd::new(&b, PollFlags::IN)], Some(&limit)), Ok(1));
        assert!(receive(&b, 10, Wait::Never).unwrap().is_none());
        assert_eq!(send(&b, b"x", &[], Wait::Never).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
