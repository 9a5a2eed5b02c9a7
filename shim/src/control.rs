//! What a launcher, a container's init and an exec tell the shim over their control socket (`SOCK_SEQPACKET`).
//!
//! ```text
//! shim ── order (CreateContainer) ─▶ launcher     launcher ── Process (pid; pidfd) ─▶ shim
//!                                                 init ── Ready ─▶ shim
//! shim ── Go ─▶ init                              init ── end of the connection: it was executed
//!                                                 any ── Failed (text) ─▶ shim
//! ```
//! The socket is closed by a successful `execve`. An init that waits for `Go` ends when the shim's end of it is closed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crisp_sys::fdpass::{self, Wait};

/// Longest text of a failure.
const TEXT_BYTES_MAX: usize = 8 * 1024;
/// Longest packet in this direction.
const PACKET_BYTES_MAX: usize = TEXT_BYTES_MAX + 16;

/// Number of the control socket in a launcher.
pub(crate) const CONTROL_FD: i32 = 3;
/// Number of the socket that takes a terminal's master, in a launcher of a container with a terminal.
pub(crate) const CONSOLE_FD: i32 = 4;

/// A message towards the shim.
#[derive(Debug)]
pub(crate) enum Report {
    /// The process was made; its pidfd comes beside.
    Process { pid: i32, pidfd: OwnedFd },
    /// Init has its root filesystem and waits.
    Ready,
    /// The terminal's master, of an exec.
    Terminal(OwnedFd),
    /// It cannot go on; the text names the step.
    Failed(String),
}

const PROCESS: u8 = b'P';
const READY: u8 = b'R';
const TERMINAL: u8 = b'T';
const FAILED: u8 = b'E';
const GO: u8 = b'G';

pub(crate) fn send_process(control: impl AsFd, pid: i32, pidfd: BorrowedFd<'_>) -> io::Result<()> {
    let [a, b, c, d] = pid.to_ne_bytes();
    fdpass::send(control, &[PROCESS, a, b, c, d], &[pidfd], Wait::Block)
}

pub(crate) fn send_ready(control: impl AsFd) -> io::Result<()> {
    fdpass::send(control, &[READY], &[], Wait::Block)
}

pub(crate) fn send_terminal(control: impl AsFd, master: BorrowedFd<'_>) -> io::Result<()> {
    fdpass::send(control, &[TERMINAL], &[master], Wait::Block)
}

/// Tells a failure; the sender is about to end, so nothing can be done about an error here.
pub(crate) fn send_failed(control: impl AsFd, text: &str) {
    let mut packet = vec![FAILED];
    packet.extend_from_slice(&text.as_bytes()[..text.floor_char_boundary(TEXT_BYTES_MAX)]);
    let _nobody_listens = fdpass::send(control, &packet, &[], Wait::Block);
}

pub(crate) fn send_go(control: impl AsFd) -> io::Result<()> {
    fdpass::send(control, &[GO], &[], Wait::Never)
}

/// Waits for `Go`; `false` when the shim is gone.
pub(crate) fn wait_for_go(control: impl AsFd) -> bool {
    matches!(fdpass::receive(control, 1, Wait::Block), Ok(Some(packet)) if packet.data == [GO])
}

/// The next report, without waiting; `None` when the other side has closed the connection.
///
/// # Errors
/// `WouldBlock` when there is none yet; `InvalidData` for one that cannot be read.
pub(crate) fn receive(control: impl AsFd) -> io::Result<Option<Report>> {
    next(control, Wait::Never)
}

/// The next report; `None` when the other side has closed the connection.
///
/// # Errors
/// `InvalidData` for one that cannot be read.
pub(crate) fn wait(control: impl AsFd) -> io::Result<Option<Report>> {
    next(control, Wait::Block)
}

fn next(control: impl AsFd, wait: Wait) -> io::Result<Option<Report>> {
    let Some(packet) = fdpass::receive(control, PACKET_BYTES_MAX, wait)? else { return Ok(None) };
    let fd = packet.fds.into_iter().next();
    let report = match (packet.data.as_slice(), fd) {
        (&[PROCESS, a, b, c, d], Some(pidfd)) => {
            Report::Process { pid: i32::from_ne_bytes([a, b, c, d]), pidfd }
        }
        ([READY], None) => Report::Ready,
        ([TERMINAL], Some(master)) => Report::Terminal(master),
        ([FAILED, text @ ..], None) => Report::Failed(String::from_utf8_lossy(text).into_owned()),
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    Ok(Some(report))
}
