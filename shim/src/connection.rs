//! A daemon's connection. Sending never waits: what the socket does not take is queued within bounds, and a connection that falls
//! further behind is dropped. Its daemon connects again and asks for the state.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use crisp_proto::supervisor as pb;
use crisp_sys::fdpass::{self, Packet, Wait};
use prost::Message as _;

/// Longest request.
const REQUEST_BYTES_MAX: usize = 256 * 1024;
/// Bytes that may wait for a connection that does not read.
const OUTBOX_BYTES_MAX: usize = 256 * 1024;

#[derive(Debug)]
pub(crate) struct Connection {
    socket: OwnedFd,
    outbox: VecDeque<(Vec<u8>, Option<OwnedFd>)>,
    outbox_bytes: usize,
    /// It has said Hello, so it gets events.
    pub(crate) greeted: bool,
}

/// The connection cannot be used any more.
#[derive(Debug)]
pub(crate) struct Broken;

impl Connection {
    pub(crate) fn new(socket: OwnedFd) -> Self {
        Self { socket, outbox: VecDeque::new(), outbox_bytes: 0, greeted: false }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The next request; `Ok(None)` when there is none now.
    pub(crate) fn receive(&self) -> Result<Option<Packet>, Broken> {
        match fdpass::receive(&self.socket, REQUEST_BYTES_MAX, Wait::Never) {
            Ok(Some(packet)) => Ok(Some(packet)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Ok(None) | Err(_) => Err(Broken),
        }
    }

    pub(crate) fn send(&mut self, message: &pb::Message, fd: Option<OwnedFd>) -> Result<(), Broken> {
        self.outbox_bytes += message.encoded_len();
        self.outbox.push_back((message.encode_to_vec(), fd));
        self.flush()?;
        if self.outbox_bytes > OUTBOX_BYTES_MAX { Err(Broken) } else { Ok(()) }
    }

    /// Sends what the socket takes.
    pub(crate) fn flush(&mut self) -> Result<(), Broken> {
        while let Some((data, fd)) = self.outbox.front() {
            let fds: Vec<_> = fd.iter().map(OwnedFd::as_fd).collect();
            match fdpass::send(&self.socket, data, &fds, Wait::Never) {
                Ok(()) => {
                    self.outbox_bytes -= data.len();
                    self.outbox.pop_front();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(_) => return Err(Broken),
            }
        }
        // An idle connection holds no memory.
        self.outbox = VecDeque::new();
        Ok(())
    }

    /// Something waits to be sent.
    pub(crate) fn is_behind(&self) -> bool {
        !self.outbox.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_that_does_not_read_is_broken_and_never_waited_for() {
        let (ours, _theirs) = fdpass::pair().unwrap();
        let mut connection = Connection::new(ours);
        let text = "x".repeat(1000);
        let failure = pb::Failure { code: 0, message: text };
        let reply = pb::Reply { id: 1, result: Some(pb::reply::Result::Failure(failure)) };
        let message = pb::Message { kind: Some(pb::message::Kind::Reply(reply)) };
        let sent = (0..10_000).take_while(|_| connection.send(&message, None).is_ok()).count();
        assert!(connection.is_behind());
        assert!((OUTBOX_BYTES_MAX / 1010..9_999).contains(&sent), "{sent}");
    }
}
