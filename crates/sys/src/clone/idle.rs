//! A process that does nothing: it owns new namespaces until they are pinned or opened.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use super::fork::{CloneArgs, RawArgs};
use crate::pidfd;

/// Handlers of the caller must not run in the child (`linux/sched.h`, since 5.5).
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
/// Exit code of a child whose parent died before it could ask for its own end.
const CODE_ORPHAN: i32 = 1;

/// A process in new namespaces that waits for its end. It ends with this value, and with the thread that made it.
#[derive(Debug)]
pub(crate) struct Idle {
    /// Its number in the caller's PID namespace.
    pub(crate) pid: i32,
    pidfd: OwnedFd,
}

impl Idle {
    /// `namespaces`: `CLONE_NEW…` flags. Also from a process of many threads, of which `unshare(2)` makes no user namespace.
    ///
    /// # Errors
    /// The kernel's, e.g. `ENOSPC` at a limit of namespaces.
    pub(crate) fn start(namespaces: u64) -> io::Result<Self> {
        let parent = rustix::process::getpid().as_raw_nonzero().get();
        let mut pidfd: libc::c_int = -1;
        let args = CloneArgs { namespaces: namespaces | CLONE_CLEAR_SIGHAND, ..CloneArgs::default() };
        let raw = args.raw(&raw mut pidfd);
        // SAFETY: valid arguments of the size given; no CLONE_VM, so the child's memory is a copy. The child (pid 0) makes
        // system calls only and never returns. There is no safe wrapper.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const raw, size_of::<RawArgs>()) };
        if pid == 0 {
            idle(parent);
        }
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        let pid = i32::try_from(pid).map_err(|_out_of_range| io::ErrorKind::InvalidData)?;
        // SAFETY: CLONE_PIDFD is always set: the kernel put a new descriptor of ours there.
        Ok(Self { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        // A child of ours that nobody else waits for: both can only fail when it is gone.
        let _gone = pidfd::kill(&self.pidfd);
        let _status = pidfd::wait(&self.pidfd);
    }
}

fn idle(parent: libc::c_int) -> ! {
    // SAFETY: integers only.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    // SAFETY: takes nothing. Another parent than at birth: it died before the line above.
    if unsafe { libc::getppid() } != parent {
        // SAFETY: takes an integer and does not return.
        unsafe { libc::_exit(CODE_ORPHAN) };
    }
    loop {
        // SAFETY: takes nothing.
        unsafe { libc::pause() };
    }
}
