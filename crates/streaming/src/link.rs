//! The writing half of a connection: whole frames, one at a time, control frames first.
//!
//! Whoever has data waits for its turn and writes itself: no task between. Control frames (replies, echoes,
//! resets) are left in a bounded queue, so that the reader never waits for a client that does not read. A
//! frame whose writer is dropped half way is finished by whoever writes next.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;

use crate::output::Framing;
use crate::spdy::frame::Fin;

/// Control frames that wait for a client to read; one that makes us say more is broken or hostile.
const CONTROL_BYTES_MAX: usize = 256 * 1024;
/// The last words of a session may take this long.
const FINISH_TIMEOUT: Duration = Duration::from_secs(10);

/// The writing half of a connection.
pub(crate) struct Link {
    out: tokio::sync::Mutex<Out>,
    control: Mutex<Vec<u8>>,
    /// There is control, or the rest of a frame, to write.
    work: Notify,
    framing: Framing,
    begun: Instant,
    /// Milliseconds after `begun`.
    last_traffic: AtomicU64,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("framing", &self.framing).finish_non_exhaustive()
    }
}

struct Out {
    sink: Box<dyn AsyncWrite + Send + Unpin>,
    /// The rest of a frame whose writer was dropped.
    rest: Vec<u8>,
}

/// The client makes us say more than it reads.
#[derive(Debug, thiserror::Error)]
#[error("the client does not read the answers it asks for")]
pub(crate) struct Flood;

impl Link {
    /// A link that writes frames of the kind `framing`.
    pub(crate) fn new(sink: Box<dyn AsyncWrite + Send + Unpin>, framing: Framing) -> Self {
        Self {
            out: tokio::sync::Mutex::new(Out { sink, rest: Vec::new() }),
            control: Mutex::new(Vec::new()),
            work: Notify::new(),
            framing,
            begun: Instant::now(),
            last_traffic: AtomicU64::new(0),
        }
    }

    /// How data is framed.
    pub(crate) fn framing(&self) -> Framing {
        self.framing
    }

    /// Writes whole frames, waiting for its turn and for the client.
    pub(crate) async fn send(&self, frames: &[u8]) -> io::Result<()> {
        let mut out = self.out.lock().await;
        self.send_control(&mut out).await?;
        self.write(&mut out, frames, Begun::WithTheFirstByte).await
    }

    /// Writes `payload` as one message on `stream`, and that nothing follows where `fin` says so.
    pub(crate) async fn message(&self, stream: u32, payload: &[u8], fin: Fin) -> io::Result<()> {
        self.send(&self.framing.message(stream, payload, fin)).await
    }

    /// Leaves a control frame for [`Link::run`].
    pub(crate) fn control(&self, frame: &[u8]) -> Result<(), Flood> {
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        if control.len() + frame.len() > CONTROL_BYTES_MAX {
            return Err(Flood);
        }
        control.extend_from_slice(frame);
        drop(control);
        self.work.notify_one();
        Ok(())
    }

    /// Writes control frames as they come; ends when the connection does.
    pub(crate) async fn run(&self) -> io::Error {
        loop {
            self.work.notified().await;
            if let Err(error) = self.send(&[]).await {
                return error;
            }
        }
    }

    /// Writes what waits and `last`, then ends the direction.
    pub(crate) async fn finish(&self, last: &[u8]) -> io::Result<()> {
        let finish = async {
            self.send(last).await?;
            self.out.lock().await.sink.shutdown().await
        };
        tokio::time::timeout(FINISH_TIMEOUT, finish).await?
    }

    /// There was traffic.
    pub(crate) fn touch(&self) {
        let now = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_traffic.store(now, Ordering::Relaxed);
    }

    /// Waits until there was no traffic for `limit`; for ever without one.
    pub(crate) async fn idle(&self, limit: Option<Duration>) {
        let Some(limit) = limit else { return std::future::pending().await };
        loop {
            let last = Duration::from_millis(self.last_traffic.load(Ordering::Relaxed));
            let quiet = self.begun.elapsed().saturating_sub(last);
            match limit.checked_sub(quiet) {
                Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
                _ => return,
            }
        }
    }

    async fn send_control(&self, out: &mut Out) -> io::Result<()> {
        // Without it what follows would stand inside a broken frame.
        let rest = std::mem::take(&mut out.rest);
        self.write(out, &rest, Begun::Already).await?;
        let control = std::mem::take(&mut *self.control.lock().unwrap_or_else(PoisonError::into_inner));
        self.write(out, &control, Begun::Already).await
    }

    /// Writes `frames`, of which nothing is lost when the future is dropped once they have begun.
    async fn write(&self, out: &mut Out, frames: &[u8], begun: Begun) -> io::Result<()> {
        if frames.is_empty() {
            return Ok(());
        }
        Sending { link: self, out, frames, sent: 0, begun }.run().await
    }
}

/// When frames count as said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begun {
    WithTheFirstByte,
    Already,
}

struct Sending<'a> {
    link: &'a Link,
    out: &'a mut Out,
    frames: &'a [u8],
    sent: usize,
    begun: Begun,
}

impl Sending<'_> {
    async fn run(mut self) -> io::Result<()> {
        while let Some(left @ [_, ..]) = self.frames.get(self.sent..) {
            match self.out.sink.write(left).await {
                Ok(0) => return self.fail(io::ErrorKind::WriteZero.into()),
                Ok(written) => self.sent += written,
                Err(error) => return self.fail(error),
            }
            self.link.touch();
        }
        // TLS keeps what a socket does not take.
        self.out.sink.flush().await
    }

    /// The connection is broken: there is nothing to finish.
    fn fail(&mut self, error: io::Error) -> io::Result<()> {
        self.sent = self.frames.len();
        Err(error)
    }
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        let left = self.frames.get(self.sent..).unwrap_or_default();
        let said = self.sent > 0 || self.begun == Begun::Already;
        if said && !left.is_empty() {
            self.out.rest = left.to_vec();
            self.link.work.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;
    use tokio::io::AsyncReadExt as _;

    use super::*;

    /// What the client's socket holds.
    const ROOM: usize = 4;

    #[tokio::test]
    async fn a_frame_whose_writers_are_dropped_one_after_another_is_finished() {
        let (ours, mut theirs) = tokio::io::duplex(ROOM);
        let link = Link::new(Box::new(ours), Framing::Spdy);
        assert!(link.send(b"abcdef").now_or_never().is_none(), "dropped half way");
        assert!(link.send(b"never begun").now_or_never().is_none(), "dropped while it finishes the first");
        link.control(b"gh").unwrap();
        let write = async {
            link.send(b"ij").await.unwrap();
            link.finish(b"").await.unwrap();
        };
        let read = async {
            let mut all = String::new();
            theirs.read_to_string(&mut all).await.unwrap();
            all
        };
        assert_eq!(tokio::join!(write, read).1, "abcdefghij");
    }
}
