//! Starting a program from a process with many threads.
//!
//! Between `clone3` and `execveat` the child makes system calls only: everything they need is prepared before, because another
//! thread may hold any lock at that moment.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use super::fork::{Child, pointers};

/// Most descriptors that a spawned program is given.
pub const SPAWN_FDS_MAX: usize = 8;

/// Exit code of a child that could not execute its program.
const CODE_NOT_STARTED: i32 = 127;

/// A program to be started from an open file.
#[derive(Debug)]
pub struct Spawn<'a> {
    /// The program, e.g. a sealed memory file.
    pub program: BorrowedFd<'a>,
    /// Its arguments, its name first.
    pub args: &'a [CString],
    /// Its environment, `NAME=value` each.
    pub env: &'a [CString],
    /// What it inherits: these become its descriptors 0, 1, 2, … Nothing else stays open.
    pub fds: &'a [BorrowedFd<'a>],
    /// Files that the child writes `0` to before anything else: v1 `tasks` files, opened for writing.
    pub tasks: &'a [BorrowedFd<'a>],
    /// A cgroup v2 directory to be born in.
    pub cgroup: Option<BorrowedFd<'a>>,
}

impl Spawn<'_> {
    /// Starts the program.
    ///
    /// # Errors
    /// The kernel's, of the call that failed, up to and including `execveat`; `InvalidInput` for too many descriptors.
    pub fn start(&self) -> io::Result<Child> {
        if self.fds.len() > SPAWN_FDS_MAX {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // The child's error comes back through a pipe that a successful exec closes.
        let (reader, low_writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        // Above all numbers that the child will overwrite.
        let floor =
            libc::c_int::try_from(SPAWN_FDS_MAX).map_err(|_out_of_range| io::ErrorKind::InvalidInput)? + 1;
        let writer = super::dup_above(&low_writer, floor)?;
        drop(low_writer);
        let program = super::dup_above(self.program, floor)?;
        let mut moved = Vec::with_capacity(self.fds.len());
        for fd in self.fds {
            moved.push(super::dup_above(fd, floor)?);
        }
        let plan = Plan {
            program: program.as_raw_fd(),
            args: pointers(self.args),
            env: pointers(self.env),
            fds: moved.iter().map(AsRawFd::as_raw_fd).collect(),
            tasks: self.tasks.iter().map(AsRawFd::as_raw_fd).collect(),
            errors: writer.as_raw_fd(),
        };
        let child = plan.start(self.cgroup)?;
        drop(writer);
        match started(&reader) {
            Ok(()) => Ok(child),
            Err(error) => {
                // It ends by itself; nobody else knows of it.
                let _status = crate::pidfd::wait(&child.pidfd);
                Err(error)
            }
        }
    }
}

/// Everything the child needs, as plain numbers and pointers.
struct Plan {
    program: RawFd,
    args: Vec<*const libc::c_char>,
    env: Vec<*const libc::c_char>,
    fds: Vec<RawFd>,
    tasks: Vec<RawFd>,
    errors: RawFd,
}

impl Plan {
    fn start(&self, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Child> {
        let mut pidfd: libc::c_int = -1;
        let raw = super::CloneArgs { cgroup, ..super::CloneArgs::default() }.raw(&raw mut pidfd);
        // SAFETY: valid arguments of the size given; no CLONE_VM, so the child's memory is a copy. The child (pid 0) runs
        // `self.child`, which makes system calls only and never returns.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const raw, size_of_val(&raw)) };
        if pid == 0 {
            self.child();
        }
        if pid < 0 {
            return Err(io::Error::last_os_error());
        }
        let pid = i32::try_from(pid).map_err(|_out_of_range| io::ErrorKind::InvalidData)?;
        // SAFETY: CLONE_PIDFD is always set: the kernel put a new descriptor of ours there.
        Ok(Child { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
    }

    fn child(&self) -> ! {
        let errno = self.run();
        let bytes = errno.to_ne_bytes();
        // SAFETY: a buffer of our own and its length.
        let _written = unsafe { libc::write(self.errors, bytes.as_ptr().cast(), bytes.len()) };
        // SAFETY: ends the process without exit handlers.
        unsafe { libc::_exit(CODE_NOT_STARTED) }
    }

    /// Returns only when something failed: the error number.
    fn run(&self) -> i32 {
        for &tasks in &self.tasks {
            // SAFETY: a constant buffer and its length.
            if unsafe { libc::write(tasks, b"0".as_ptr().cast(), 1) } != 1 {
                return errno();
            }
        }
        for (number, &fd) in (0..).zip(&self.fds) {
            // SAFETY: two numbers; the source lies above every target.
            if unsafe { libc::dup3(fd, number, 0) } < 0 {
                return errno();
            }
        }
        let Ok(kept) = libc::c_uint::try_from(self.fds.len()) else { return libc::EINVAL };
        // SAFETY: three integers; closes nothing before the exec.
        if unsafe {
            libc::syscall(libc::SYS_close_range, kept, libc::c_uint::MAX, super::descriptors::CLOEXEC)
        } != 0
        {
            return errno();
        }
        // SAFETY: takes nothing; fails only for the leader of a process group, which a new process is not.
        unsafe { libc::setsid() };
        // SAFETY: NULL-terminated arrays of C strings that the parent's `Spawn` borrows; AT_EMPTY_PATH means the descriptor.
        unsafe {
            libc::syscall(
                libc::SYS_execveat,
                self.program,
                c"".as_ptr(),
                self.args.as_ptr(),
                self.env.as_ptr(),
                libc::AT_EMPTY_PATH,
            );
        }
        errno()
    }
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

/// Waits until the child has executed its program (the pipe is closed) or told why not.
fn started(errors: &OwnedFd) -> io::Result<()> {
    let mut bytes = [0; 4];
    match rustix::io::retry_on_intr(|| rustix::io::read(errors, &mut bytes))? {
        0 => Ok(()),
        _ => Err(io::Error::from_raw_os_error(i32::from_ne_bytes(bytes))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd as _;

    use super::*;

    fn shell(script: &str) -> Vec<CString> {
        ["sh", "-c", script].map(|arg| CString::new(arg).unwrap()).into()
    }

    #[test]
    fn a_program_gets_its_descriptors_and_nothing_else() {
        let program = File::open("/bin/sh").unwrap();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let null = File::open("/dev/null").unwrap();
        let args = shell("echo /proc/self/fd/* >&1; exit 3");
        let fds = [null.as_fd(), writer.as_fd(), writer.as_fd()];
        let spawn =
            Spawn { program: program.as_fd(), args: &args, env: &[], fds: &fds, tasks: &[], cgroup: None };
        let child = spawn.start().unwrap();
        assert_eq!(crate::pidfd::wait(&child.pidfd).unwrap(), crate::pidfd::Ended::Code(3));
        drop(writer);
        let text = std::io::read_to_string(File::from(reader)).unwrap();
        // One more is the shell's own, of the folder that it lists.
        assert!(text.starts_with("/proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2"), "{text}");
        assert_eq!(text.split_whitespace().count(), 4, "{text}");
    }

    #[test]
    fn a_program_that_cannot_be_executed_is_an_error() {
        let program = File::open("/dev/null").unwrap();
        let spawn = Spawn {
            program: program.as_fd(),
            args: &shell(""),
            env: &[],
            fds: &[],
            tasks: &[],
            cgroup: None,
        };
        assert_eq!(spawn.start().unwrap_err().kind(), io::ErrorKind::PermissionDenied);
    }
}
