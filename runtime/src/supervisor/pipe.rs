//! Pipes between a session and a container's process.

use std::os::fd::OwnedFd;

use rustix::pipe::PipeFlags;

use super::Error;

/// A pipe; its end that the session keeps does not block.
#[derive(Debug)]
pub(super) struct Pipe {
    /// The session's end.
    pub(super) ours: OwnedFd,
    /// What is given away.
    pub(super) theirs: OwnedFd,
}

/// One whose writing end is given away.
pub(super) fn output(bytes: usize) -> Result<Pipe, Error> {
    let (reader, writer) = make(bytes)?;
    keep(reader, writer)
}

/// One whose reading end is given away.
pub(super) fn input(bytes: usize) -> Result<Pipe, Error> {
    let (reader, writer) = make(bytes)?;
    keep(writer, reader)
}

fn keep(ours: OwnedFd, theirs: OwnedFd) -> Result<Pipe, Error> {
    rustix::io::ioctl_fionbio(&ours, true).map_err(|errno| Error::Stdio(errno.into()))?;
    Ok(Pipe { ours, theirs })
}

fn make(bytes: usize) -> Result<(OwnedFd, OwnedFd), Error> {
    let (reader, writer) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|errno| Error::Stdio(errno.into()))?;
    // One of the usual size works as well: the machine may allow no more.
    let _smaller = rustix::pipe::fcntl_setpipe_size(&writer, bytes);
    Ok((reader, writer))
}
