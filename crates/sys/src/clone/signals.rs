//! Signal masks and dispositions.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd, OwnedFd};

use rustix::process::Signal;

/// Highest signal number (`_NSIG`, `asm/signal.h`).
const SIGNAL_MAX: i32 = 64;

/// The signal with this kernel number, real-time signals included.
#[must_use]
pub fn signal_from_number(number: i32) -> Option<Signal> {
    if !(1..=SIGNAL_MAX).contains(&number) {
        return None;
    }
    // SAFETY: the number is one of the kernel's signals. The reserved ones (32–34 inside a C library) are only ever sent to
    // other processes here, where the kernel's numbers hold.
    Some(unsafe { Signal::from_raw_unchecked(number) })
}

/// Whether a signal could be sent through this pidfd: signal 0, which is only checked.
pub(crate) fn probe(pidfd: impl AsFd) -> bool {
    // SAFETY: integers and a null pointer, which means "no further information". rustix has no signal 0.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            0,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    result == 0
}

/// Blocks these signals in the calling thread and gives a descriptor that is readable while one of them is pending.
///
/// The descriptor does not block and is closed on exec; children inherit the mask until [`reset`].
///
/// # Errors
/// The kernel's.
pub fn watch(numbers: &[i32]) -> io::Result<OwnedFd> {
    let set = signal_set(numbers);
    mask(libc::SIG_BLOCK, &set)?;
    // SAFETY: `set` is an initialised signal set; -1 asks for a new descriptor.
    let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Gives the calling process the state in which programs expect to start: nothing blocked, nothing ignored.
///
/// # Errors
/// The kernel's.
pub fn reset() -> io::Result<()> {
    for number in 1..=SIGNAL_MAX {
        // SAFETY: sets a disposition to the default and installs no handler; numbers that cannot be changed (KILL, STOP, those
        // of the C library) are refused, which is fine.
        let _refused = unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    mask(libc::SIG_SETMASK, &signal_set(&[]))
}

fn mask(how: libc::c_int, set: &libc::sigset_t) -> io::Result<()> {
    // SAFETY: `set` is initialised; no old mask is asked for.
    let result = unsafe { libc::pthread_sigmask(how, set, std::ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}

fn signal_set(numbers: &[i32]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: `sigemptyset` initialises what it is given and cannot fail.
    let _zero = unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: initialised just above.
    let mut set = unsafe { set.assume_init() };
    for &number in numbers {
        // SAFETY: `set` is initialised; a wrong number is refused and changes nothing.
        let _refused = unsafe { libc::sigaddset(&raw mut set, number) };
    }
    set
}
