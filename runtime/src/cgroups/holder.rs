//! Processes that do nothing: systemd makes no scope without one, and ends a scope whose last process has left.
//!
//! A holder is a program of a few instructions in a page of its own: it waits until its standard input ends. Two pages of memory, and
//! no copy of anything of ours.

use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use crisp_sys::clone::{Child, Spawn, sealed_program};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::error::{Doing as _, Error, Result};

/// The kernel spares these, also when it kills a whole cgroup (`memory.oom.group`): the counter must outlive the container.
const OOM_SCORE_ADJ: &str = "-1000";
/// Where the program is loaded.
const BASE: u64 = 0x40_0000;
const ELF_HEADER_BYTES: u16 = 64;
const PROGRAM_HEADER_BYTES: u16 = 56;
const PROGRAM_HEADERS: u16 = 2;

/// `read(0, stack - 16, 1); exit(0)`.
#[cfg(target_arch = "x86_64")]
const CODE: (u16, &[u8]) = (
    62,
    &[
        0x31, 0xff, // xor edi, edi
        0x48, 0x8d, 0x74, 0x24, 0xf0, // lea rsi, [rsp - 16]
        0xba, 0x01, 0x00, 0x00, 0x00, // mov edx, 1
        0x31, 0xc0, // xor eax, eax
        0x0f, 0x05, // syscall: read
        0x31, 0xff, // xor edi, edi
        0xb8, 0x3c, 0x00, 0x00, 0x00, // mov eax, 60
        0x0f, 0x05, // syscall: exit
    ],
);
/// `read(0, stack - 16, 1); exit(0)`.
#[cfg(target_arch = "aarch64")]
const CODE: (u16, &[u8]) = (
    183,
    &[
        0x00, 0x00, 0x80, 0xd2, // mov x0, 0
        0xe1, 0x43, 0x00, 0xd1, // sub x1, sp, 16
        0x22, 0x00, 0x80, 0xd2, // mov x2, 1
        0xe8, 0x07, 0x80, 0xd2, // mov x8, 63
        0x01, 0x00, 0x00, 0xd4, // svc: read
        0x00, 0x00, 0x80, 0xd2, // mov x0, 0
        0xa8, 0x0b, 0x80, 0xd2, // mov x8, 93
        0x01, 0x00, 0x00, 0xd4, // svc: exit
    ],
);
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const CODE: (u16, &[u8]) = (0, &[]);

/// An ELF file with this code, and a stack that cannot be executed.
///
/// Source: System V ABI, "Object Files", 64-bit little endian; elf(5).
fn program() -> Vec<u8> {
    let (machine, code) = CODE;
    let headers = ELF_HEADER_BYTES + PROGRAM_HEADERS * PROGRAM_HEADER_BYTES;
    let size = u64::from(headers) + code.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend([2, machine].iter().flat_map(|number: &u16| number.to_le_bytes()));
    file.extend(1u32.to_le_bytes());
    for number in [BASE + u64::from(headers), u64::from(ELF_HEADER_BYTES), 0] {
        file.extend(number.to_le_bytes());
    }
    file.extend(0u32.to_le_bytes());
    let counts = [ELF_HEADER_BYTES, PROGRAM_HEADER_BYTES, PROGRAM_HEADERS, 0, 0, 0];
    file.extend(counts.iter().flat_map(|number| number.to_le_bytes()));
    // PT_LOAD, read and execute: the whole file. PT_GNU_STACK: read and write.
    segment(&mut file, 1, 5, [0, BASE, BASE, size, size, 0x1000]);
    segment(&mut file, 0x6474_e551, 6, [0, 0, 0, 0, 0, 16]);
    file.extend(code);
    file
}

fn segment(file: &mut Vec<u8>, kind: u32, flags: u32, numbers: [u64; 6]) {
    file.extend(kind.to_le_bytes());
    file.extend(flags.to_le_bytes());
    file.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
}

/// What holders are started from.
#[derive(Debug)]
pub(super) struct Holders {
    program: OwnedFd,
    /// For those that stay: they have both ends. Nothing is ever written to either pipe.
    endless: Pipe,
    /// For those that end with the daemon, which alone has the writing end.
    own: Pipe,
}

#[derive(Debug)]
struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Pipe {
    fn new() -> Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).doing("make the holders' pipe")?;
        Ok(Self { reader, writer })
    }
}

/// How long a holder stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stay {
    /// Until it is killed.
    ForGood,
    /// As long as this daemon.
    WithDaemon,
}

impl Holders {
    /// # Errors
    /// [`Error::Unimplemented`] on machines for which there is no such program; the kernel's.
    pub(super) fn new() -> Result<Self> {
        if CODE.1.is_empty() {
            return Err(Error::Unimplemented("the systemd cgroup driver on this processor"));
        }
        let program = sealed_program("crisp-hold", &program()).doing("write the holder's program")?;
        Ok(Self { program, endless: Pipe::new()?, own: Pipe::new()? })
    }

    /// Starts a holder, in this cgroup v2 directory or in the daemon's own.
    ///
    /// # Errors
    /// The kernel's.
    pub(super) fn start(&self, cgroup: Option<&Path>, stay: Stay) -> std::io::Result<Holder> {
        let args = [CString::from(c"crisp-hold")];
        let endless = [self.endless.reader.as_fd(), self.endless.writer.as_fd()];
        let own = [self.own.reader.as_fd()];
        let born_in = cgroup.map(File::open).transpose()?;
        let spawn = Spawn {
            program: self.program.as_fd(),
            args: &args,
            env: &[],
            fds: match stay {
                Stay::ForGood => &endless,
                Stay::WithDaemon => &own,
            },
            tasks: &[],
            cgroup: born_in.as_ref().map(File::as_fd),
        };
        let holder = Holder(Some(spawn.start()?));
        // Refused without CAP_SYS_RESOURCE: then a cgroup that dies as a whole loses its counter, nothing else.
        let adj = std::fs::write(format!("/proc/{}/oom_score_adj", holder.pid()), OOM_SCORE_ADJ);
        if let Err(error) = adj {
            tracing::debug!(%error, "spare a holder of out-of-memory kills");
        }
        Ok(holder)
    }
}

/// A running holder. Killed when it is dropped, unless it was released.
#[derive(Debug)]
pub(super) struct Holder(Option<Child>);

impl Holder {
    /// 0 for one that was released.
    pub(super) fn pid(&self) -> i32 {
        self.0.as_ref().map_or(0, |child| child.pid)
    }

    /// Lets it live on; its status is taken when it ends. When the daemon dies first, PID 1 does that.
    ///
    /// # Errors
    /// When its end cannot be waited for; then it is killed.
    pub(super) fn release(mut self) -> Result<()> {
        let Some(child) = &self.0 else { return Ok(()) };
        let pidfd = child.pidfd.try_clone().doing("duplicate a holder's descriptor")?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe for what holds no descriptor; an OwnedFd does"
        )]
        let ended = AsyncFd::with_interest(pidfd, Interest::READABLE).doing("wait for a holder")?;
        self.0 = None;
        tokio::spawn(async move {
            if ended.readable().await.is_ok() {
                let _status = crisp_sys::pidfd::wait(ended.get_ref());
            }
        });
        Ok(())
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        if let Some(child) = &self.0 {
            let _ended_already = crisp_sys::pidfd::kill(&child.pidfd);
            // It has nothing to finish: this does not wait long.
            let _status = crisp_sys::pidfd::wait(&child.pidfd);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// Its letter in `/proc/<pid>/stat`.
    fn state(holder: &Holder) -> Option<char> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", holder.pid())).ok()?;
        stat.rsplit(") ").next()?.chars().next()
    }

    fn waits(holder: &Holder) -> bool {
        state(holder) == Some('S')
    }

    /// Its status is not taken before it is dropped: until then it is a zombie.
    fn has_ended(holder: &Holder) -> bool {
        state(holder) == Some('Z')
    }

    fn eventually(what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !holds() {
            assert!(Instant::now() < deadline, "{what}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_holder_waits_until_it_is_killed() {
        let holders = Holders::new().unwrap();
        let holder = holders.start(None, Stay::ForGood).unwrap();
        eventually("it waits", || waits(&holder));
        // Both ends are its own: that ours are gone changes nothing.
        drop(holders);
        assert!(!has_ended(&holder));
        let pidfd = holder.0.as_ref().unwrap().pidfd.try_clone().unwrap();
        assert!(crisp_sys::pidfd::is_unreaped(&pidfd));
        drop(holder);
        assert!(!crisp_sys::pidfd::is_unreaped(&pidfd));
    }

    #[test]
    fn a_holder_of_the_daemon_ends_with_it() {
        let holders = Holders::new().unwrap();
        let stays = holders.start(None, Stay::ForGood).unwrap();
        let holder = holders.start(None, Stay::WithDaemon).unwrap();
        eventually("they wait", || waits(&holder) && waits(&stays));
        drop(holders);
        eventually("it ends", || has_ended(&holder));
        assert!(!has_ended(&stays));
    }

    #[test]
    fn a_holder_is_small() {
        let holders = Holders::new().unwrap();
        let holder = holders.start(None, Stay::ForGood).unwrap();
        eventually("it waits", || waits(&holder));
        let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", holder.pid())).unwrap();
        let private = rollup.lines().find_map(|line| line.strip_prefix("Private_Dirty:")).unwrap();
        let kib: u32 = private.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(kib <= 16, "{rollup}");
    }
}
