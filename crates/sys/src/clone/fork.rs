//! `clone3` for a process of one thread.
//!
//! A child of `clone3` is a copy of the calling thread alone. In a process of one thread that is a whole program: the child may
//! allocate and run ordinary code. With other threads it is not (one of them may hold the allocator's lock at that moment), so
//! the functions here ask for [`SingleThreaded`]; a multithreaded program uses [`super::Spawn`].

use std::ffi::{CStr, CString};
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Proof that the process had one thread when it was made. Who holds one starts no threads.
#[derive(Debug, Clone, Copy)]
pub struct SingleThreaded(PhantomData<*const ()>);

impl SingleThreaded {
    /// Counts the threads of the process.
    ///
    /// # Errors
    /// `ResourceBusy` when there is more than one; whatever reading `/proc/self/task` gives.
    pub fn verify() -> io::Result<Self> {
        match std::fs::read_dir("/proc/self/task")?.count() {
            1 => Ok(Self(PhantomData)),
            _ => Err(io::ErrorKind::ResourceBusy.into()),
        }
    }

    /// Makes a child that runs `child` and ends with its result as exit code.
    ///
    /// # Errors
    /// The kernel's, e.g. `EAGAIN` at a limit of processes.
    pub fn fork(self, args: &CloneArgs<'_>, child: impl FnOnce() -> u8) -> io::Result<Child> {
        let mut pidfd: libc::c_int = -1;
        let raw = args.raw(&raw mut pidfd);
        // SAFETY: the arguments are a valid `struct clone_args` of the size given, living until the call returns, and so is
        // `pidfd`. No stack and no CLONE_VM: the child gets copies of everything. The process has one thread (`self`), so the
        // copy is consistent. There is no safe wrapper.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const raw, size_of::<RawArgs>()) };
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        if pid == 0 {
            // The child must never return into the caller's code.
            let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(CODE_PANIC);
            end_now(code);
        }
        let pid = i32::try_from(pid).map_err(|_out_of_range| io::ErrorKind::InvalidData)?;
        // SAFETY: with CLONE_PIDFD, which is always set, the kernel put a new descriptor of ours there.
        Ok(Child { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
    }
}

/// Exit code of a child that panicked.
const CODE_PANIC: u8 = 101;

/// Whose child the new process becomes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Parent {
    /// The caller's.
    #[default]
    Caller,
    /// The caller's parent's (`CLONE_PARENT`): it waits, it learns the exit code.
    CallersParent,
}

/// What a new process is made with.
#[derive(Debug, Clone, Copy, Default)]
pub struct CloneArgs<'a> {
    /// `CLONE_NEW…` flags.
    pub namespaces: u64,
    /// Whose child it becomes.
    pub parent: Parent,
    /// A cgroup v2 directory to be born in.
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// A new process. The descriptor is closed on exec.
#[derive(Debug)]
pub struct Child {
    /// Its number in the caller's PID namespace.
    pub pid: i32,
    /// Means it for good.
    pub pidfd: OwnedFd,
}

/// `struct clone_args` (`linux/sched.h`, size of version 2).
#[repr(C)]
#[derive(Default)]
pub(super) struct RawArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
const CLONE_PIDFD: u64 = 0x1000;
const CLONE_PARENT: u64 = 0x8000;
const SIGCHLD: u64 = 17;

impl CloneArgs<'_> {
    pub(super) fn raw(&self, pidfd: *mut libc::c_int) -> RawArgs {
        let mut raw = RawArgs {
            flags: self.namespaces | CLONE_PIDFD,
            pidfd: pidfd.addr() as u64,
            ..RawArgs::default()
        };
        match self.parent {
            Parent::Caller => raw.exit_signal = SIGCHLD,
            // The kernel gives it the caller's exit signal and refuses one of its own.
            Parent::CallersParent => raw.flags |= CLONE_PARENT,
        }
        if let Some(cgroup) = self.cgroup {
            raw.flags |= CLONE_INTO_CGROUP;
            raw.cgroup = u64::from(cgroup.as_raw_fd().unsigned_abs());
        }
        raw
    }
}

/// Gives the calling thread a mount namespace of its own, a copy of the one it is in, and a root and working directory of its own.
///
/// # Errors
/// The kernel's, e.g. `EPERM` without `CAP_SYS_ADMIN`.
pub fn enter_new_mount_namespace() -> io::Result<()> {
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    // SAFETY: unsafe for `CLONE_FILES` alone, which takes descriptors from under their owners; it is not asked for.
    Ok(unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::FS) }?)
}

/// Gives the calling thread a cgroup namespace of its own, whose root is the cgroup that it is in.
///
/// # Errors
/// The kernel's, e.g. `EPERM` without `CAP_SYS_ADMIN`.
pub fn enter_new_cgroup_namespace() -> io::Result<()> {
    use rustix::thread::{UnshareFlags, unshare_unsafe};
    // SAFETY: unsafe for `CLONE_FILES` alone, which takes descriptors from under their owners; it is not asked for.
    Ok(unsafe { unshare_unsafe(UnshareFlags::NEWCGROUP) }?)
}

/// Replaces the calling program by the one at `path`; returns only the error.
#[must_use]
pub fn exec(path: &CStr, args: &[CString], env: &[CString]) -> io::Error {
    let (args, env) = (pointers(args), pointers(env));
    // SAFETY: NUL-terminated strings and NULL-terminated arrays of such, all alive during the call.
    unsafe { libc::execve(path.as_ptr(), args.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Replaces the calling program by the one in this descriptor; returns only the error.
#[must_use]
pub fn exec_descriptor(program: impl AsFd, args: &[CString], env: &[CString]) -> io::Error {
    let (args, env) = (pointers(args), pointers(env));
    let fd = program.as_fd().as_raw_fd();
    // SAFETY: as in `exec`; with AT_EMPTY_PATH the empty path means the descriptor itself.
    unsafe {
        libc::syscall(libc::SYS_execveat, fd, c"".as_ptr(), args.as_ptr(), env.as_ptr(), libc::AT_EMPTY_PATH);
    }
    io::Error::last_os_error()
}

/// Ends the process at once: nothing is dropped and no exit handler runs.
///
/// For a process that has closed descriptors under their owners ([`super::close_all_from_except`]).
pub fn end_now(code: u8) -> ! {
    // SAFETY: takes an integer and does not return.
    unsafe { libc::_exit(i32::from(code)) }
}

pub(super) fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain([std::ptr::null()]).collect()
}
