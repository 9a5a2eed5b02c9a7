//! The reading half of a connection.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use bytes::Bytes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::link::Link;

const BUFFER_BYTES: usize = 16 * 1024;
/// What a buffer grows to when it is read full.
const BUFFER_BYTES_MAX: usize = 128 * 1024;
/// While a connection is not read, its client's end shows in no event of its own.
const HANGUP_CHECK_PERIOD: Duration = Duration::from_secs(2);

/// The reading half of a connection.
pub(crate) struct Input {
    source: Box<dyn AsyncRead + Send + Unpin>,
    /// What came with the request's head.
    early: Bytes,
    buffer: Vec<u8>,
    hangup: Hangup,
}

impl std::fmt::Debug for Input {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Input")
            .field("early", &self.early.len())
            .field("hangup", &self.hangup)
            .finish_non_exhaustive()
    }
}

impl Input {
    /// Reads `early`, then `source`, whose socket `socket` duplicates.
    pub(crate) fn new(source: Box<dyn AsyncRead + Send + Unpin>, early: Bytes, socket: OwnedFd) -> Self {
        Self { source, early, buffer: vec![0; BUFFER_BYTES], hangup: Hangup(socket) }
    }

    /// The next bytes and the means to notice the client's end while they are dealt with; none at the end.
    pub(crate) async fn fill(&mut self, link: &Link) -> io::Result<(&mut [u8], &Hangup)> {
        let read = if self.early.is_empty() {
            self.source.read(&mut self.buffer).await?
        } else {
            let early = self.early.split_to(self.early.len().min(self.buffer.len()));
            self.buffer.get_mut(..early.len()).unwrap_or_default().copy_from_slice(&early);
            early.len()
        };
        link.touch();
        if read == self.buffer.len() && read < BUFFER_BYTES_MAX {
            self.buffer.resize(BUFFER_BYTES_MAX, 0);
        }
        Ok((self.buffer.get_mut(..read).unwrap_or_default(), &self.hangup))
    }

    /// Reads what still comes until the client closes: bytes unread when a socket is closed would make the kernel throw
    /// away what the client has not fetched yet.
    pub(crate) async fn discard(&mut self) {
        while matches!(self.source.read(&mut self.buffer).await, Ok(1..)) {}
    }
}

/// Tells whether a client is gone, without reading.
#[derive(Debug)]
pub(crate) struct Hangup(OwnedFd);

impl Hangup {
    /// Waits for `work`; `false` when the client went away meanwhile.
    pub(crate) async fn or(&self, work: impl Future<Output = ()>) -> bool {
        tokio::select! {
            biased;
            () = work => true,
            () = self.wait() => false,
        }
    }

    async fn wait(&self) {
        let mut checks =
            tokio::time::interval_at(tokio::time::Instant::now() + HANGUP_CHECK_PERIOD, HANGUP_CHECK_PERIOD);
        while !self.is_there() {
            checks.tick().await;
        }
    }

    fn is_there(&self) -> bool {
        let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
        let mut sockets = [PollFd::new(&self.0, gone)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut sockets, Some(&now)).is_ok()
            && sockets.iter().any(|socket| socket.revents().intersects(gone))
    }
}
