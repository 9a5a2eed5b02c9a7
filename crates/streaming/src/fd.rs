//! A process's end, or a socket into a pod: a non-blocking descriptor.

use std::io::{self, IoSliceMut};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::Shutdown;
use tokio::io::unix::AsyncFd;

/// A registered descriptor.
#[derive(Debug)]
pub(crate) struct Fd(AsyncFd<OwnedFd>);

impl Fd {
    /// Registers `fd`, which must be non-blocking and of a kind that can be waited for.
    #[expect(
        deprecated,
        reason = "its successor is unsafe for types that may close early; an `OwnedFd` does not"
    )]
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        AsyncFd::new(fd).map(Self)
    }

    /// Waits for bytes and reads them; 0 is the end.
    pub(crate) async fn read(&self, room: &mut [IoSliceMut<'_>]) -> io::Result<usize> {
        loop {
            let mut ready = self.0.readable().await?;
            let Ok(read) = ready.try_io(|fd| Ok(rustix::io::readv(fd.get_ref(), room)?)) else { continue };
            match read {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // A terminal whose other side is closed.
                Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => return Ok(0),
                read => return read,
            }
        }
    }

    /// Writes what goes in without waiting.
    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match rustix::io::write(self.0.get_ref(), bytes) {
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            written => Ok(written?),
        }
    }

    /// Writes everything.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.0.writable().await?;
            let Ok(written) = ready.try_io(|fd| Ok(rustix::io::write(fd.get_ref(), bytes)?)) else {
                continue;
            };
            match written {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                written => bytes = bytes.get(written?..).unwrap_or_default(),
            }
        }
        Ok(())
    }

    /// Ends the writing half of a socket; anything else ends when the descriptor is closed.
    pub(crate) fn end_writing(&self) {
        if let Err(error) = rustix::net::shutdown(self.0.get_ref(), Shutdown::Write) {
            tracing::trace!(%error, "nothing to shut down");
        }
    }
}
