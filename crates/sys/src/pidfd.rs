//! Processes by descriptor: a number can be given to another process, a pidfd cannot.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions, pidfd_open, pidfd_send_signal, waitid,
};

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It called `exit` with the lowest eight bits.
    Code(u8),
    /// A signal with this kernel number killed it.
    Signal(u8),
}

/// A descriptor of the process with this number, closed on exec.
///
/// Only sure to mean the same process while the caller knows that the number was not given away: for its own children that it
/// has not waited for.
///
/// # Errors
/// `NotFound` (`ESRCH`) when there is none.
pub fn open(pid: i32) -> io::Result<OwnedFd> {
    let pid = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(pidfd_open(pid, PidfdFlags::empty())?)
}

/// Sends a signal by kernel number; a process that has ended already is `Ok`.
///
/// # Errors
/// `InvalidInput` for a number that is no signal; the kernel's otherwise.
pub fn signal(pidfd: impl AsFd, number: i32) -> io::Result<()> {
    let signal = crate::clone::signal_from_number(number).ok_or(io::ErrorKind::InvalidInput)?;
    match pidfd_send_signal(pidfd, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Kills the process; one that has ended already is `Ok`.
///
/// # Errors
/// The kernel's.
pub fn kill(pidfd: impl AsFd) -> io::Result<()> {
    match pidfd_send_signal(pidfd, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Nobody has waited for the process yet, so its number is still its own.
pub fn is_unreaped(pidfd: impl AsFd) -> bool {
    // A process that has ended and was not waited for (a zombie) still takes the empty signal.
    crate::clone::probe_signal(pidfd)
}

/// Takes the status of one child that has ended, without waiting; `None` when there is none.
///
/// The pid is free for reuse afterwards.
///
/// # Errors
/// The kernel's; no children at all is `Ok(None)`.
pub fn reap_any() -> io::Result<Option<(i32, Ended)>> {
    match rustix::process::wait(WaitOptions::NOHANG) {
        Ok(Some((pid, status))) => {
            let pid = pid.as_raw_nonzero().get();
            Ok(Some((pid, ended(status.exit_status(), status.terminating_signal()))))
        }
        Ok(None) | Err(rustix::io::Errno::CHILD) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Takes the status of the child that `pidfd` means, waiting for its end.
///
/// # Errors
/// `ECHILD` when it is no child of the caller or was waited for before.
pub fn wait(pidfd: impl AsFd) -> io::Result<Ended> {
    let status = rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED))?;
    status
        .map(|status| ended(status.exit_status(), status.terminating_signal()))
        .ok_or_else(|| io::ErrorKind::NotFound.into())
}

fn ended(code: Option<i32>, signal: Option<i32>) -> Ended {
    let byte = |number: i32| u8::try_from(number & 0xff).unwrap_or(u8::MAX);
    signal.map_or(Ended::Code(byte(code.unwrap_or(0))), |signal| Ended::Signal(byte(signal)))
}
