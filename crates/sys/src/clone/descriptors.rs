//! Descriptors at fixed numbers: what a program inherits, and what it gives to the next one.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// `CLOSE_RANGE_CLOEXEC` (`linux/close_range.h`).
pub(super) const CLOEXEC: libc::c_uint = 1 << 2;

/// Which of the descriptors 0–63 were claimed.
static CLAIMED: AtomicU64 = AtomicU64::new(0);

/// Takes ownership of a descriptor that this program was started with, and closes it on exec from now on.
///
/// # Errors
/// `EBADF` when there is none; `AlreadyExists` for a number claimed before, `InvalidInput` above 63.
pub fn claim_inherited(number: RawFd) -> io::Result<OwnedFd> {
    let bit =
        u32::try_from(number).ok().and_then(|n| 1u64.checked_shl(n)).ok_or(io::ErrorKind::InvalidInput)?;
    if CLAIMED.fetch_or(bit, Ordering::Relaxed) & bit != 0 {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    // SAFETY: `fcntl` takes a number and an int; a wrong number is the error that we look for. The safe wrapper needs the
    // owner that is made below.
    let result = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open (checked above) and nobody else in this program owns it: it was inherited, its number was
    // not claimed before, and everything that the program opens itself has an owner of its own.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A duplicate with the lowest free number from `floor` on, closed on exec.
///
/// # Errors
/// When the process is out of descriptors.
pub fn dup_above(fd: impl AsFd, floor: RawFd) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, floor)?)
}

/// Puts a duplicate at this number for the program to be executed next; what was there is closed.
///
/// The number must not belong to an owner that is still used.
///
/// # Errors
/// The kernel's.
pub fn dup_onto(fd: impl AsFd, number: RawFd) -> io::Result<()> {
    let source = fd.as_fd().as_raw_fd();
    if source == number {
        // It is there already; only the flag is wrong.
        return Ok(rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty())?);
    }
    // SAFETY: numbers in, number out. The result is deliberately nobody's: it is for the next program. rustix's `dup2` would
    // need an owner of `number`.
    let result = unsafe { libc::dup3(source, number, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Marks all descriptors from this number on to be closed by `execve`.
///
/// # Errors
/// `ENOSYS`/`EINVAL` before Linux 5.11.
pub fn close_on_exec_from(first: RawFd) -> io::Result<()> {
    let first = libc::c_uint::try_from(first).map_err(|_out_of_range| io::ErrorKind::InvalidInput)?;
    // SAFETY: three integers; with this flag no descriptor is closed under its owner.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, CLOEXEC) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Closes all descriptors from this number on but these, under their owners: only for a process that is about to execute a
/// program or to end at once, and that drops no owner of a closed one on its way.
///
/// The kernel opens a program, and the interpreter that its `#!` names, before it closes what is marked to be closed on exec;
/// what a container may not reach through `/proc/self/fd` has to be closed before (CVE-2024-21626).
///
/// # Errors
/// `ENOSYS` before Linux 5.9; `InvalidInput` for a negative number.
pub fn close_all_from_except(first: RawFd, keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let number = |raw| libc::c_uint::try_from(raw).map_err(|_negative| io::ErrorKind::InvalidInput);
    let keep = keep.iter().map(|fd| number(fd.as_raw_fd())).collect::<Result<Vec<_>, _>>()?;
    for (from, to) in gaps(number(first)?, keep) {
        // SAFETY: three integers. Owners of what is closed here stay behind; that they are neither used nor dropped is what
        // this function asks of its callers, whose next step is `execve` or `_exit`.
        let result = unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// The ranges of numbers from `first` on between those to keep.
fn gaps(first: libc::c_uint, mut keep: Vec<libc::c_uint>) -> Vec<(libc::c_uint, libc::c_uint)> {
    keep.sort_unstable();
    let mut gaps = Vec::with_capacity(keep.len() + 1);
    let mut next = first;
    for kept in keep.into_iter().filter(|&kept| kept >= first) {
        if kept > next {
            gaps.push((next, kept - 1));
        }
        next = kept + 1;
    }
    gaps.push((next, libc::c_uint::MAX));
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_lies_in_no_gap() {
        let max = libc::c_uint::MAX;
        assert_eq!(gaps(3, vec![]), [(3, max)]);
        assert_eq!(gaps(3, vec![9, 3, 1, 4, 9, 7]), [(5, 6), (8, 8), (10, max)]);
        assert_eq!(gaps(3, vec![5]), [(3, 4), (6, max)]);
    }
}
