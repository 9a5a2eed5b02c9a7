//! Programs in sealed memory files: what runs from one cannot be changed, by nobody, through `/proc/<pid>/exe`.

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;

/// Writes a program into a memory file and seals it against every change. Closed on exec.
///
/// # Errors
/// The kernel's, e.g. no memory.
pub fn sealed_program(name: &str, program: &[u8]) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Since 6.3 a memory file says whether it may be executed; older kernels know no such flag.
    let fd = match memfd_create(name, flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => memfd_create(name, flags),
        result => result,
    }?;
    let mut file = File::from(fd);
    file.write_all(program)?;
    fcntl_add_seals(file.as_fd(), SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE | SealFlags::SEAL)?;
    Ok(file.into())
}

/// Where the running program's code lies in memory.
#[derive(Debug)]
pub struct ProgramText {
    start: usize,
    len: usize,
}

impl ProgramText {
    /// Finds the code of a static program; `None` when it cannot be told.
    #[must_use]
    pub fn find() -> Option<Self> {
        let here = (Self::find as *const () as usize, "r-xp");
        let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
        maps.lines().find_map(|line| Self::parse(line).filter(|(text, mode)| text.holds(here.0) && mode == here.1))
            .map(|(text, _)| text)
    }

    /// `<start>-<end> <mode> …`
    fn parse(line: &str) -> Option<(Self, String)> {
        let (range, rest) = line.split_once(' ')?;
        let (start, end) = range.split_once('-')?;
        let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
        let mode = rest.split_whitespace().next()?.to_owned();
        Some((Self { start, len: end.checked_sub(start)? }, mode))
    }

    fn holds(&self, address: usize) -> bool {
        (self.start..self.start + self.len).contains(&address)
    }

    /// Takes the code's pages out of the process's memory. They stay in the file's cache, shared by everybody who runs it, and come
    /// back one by one as they are used: a fault maps sixteen at a time, so a program that did many things once holds them all.
    pub fn release(&self) {
        // SAFETY: the range is the mapping of this program's code from its file: never written (mode r-x, private), so dropping
        // its pages loses nothing and the kernel reads the same bytes back on the next use, including the return from this call.
        let _kept = unsafe {
            libc::madvise(std::ptr::without_provenance_mut(self.start), self.len, libc::MADV_DONTNEED)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_that_was_released_goes_on_running() {
        let text = ProgramText::find().unwrap();
        text.release();
        assert!(text.holds(ProgramText::find as *const () as usize));
    }

    #[test]
    fn a_sealed_program_cannot_be_written() {
        let fd = sealed_program("test", b"#!/bin/true\n").unwrap();
        assert_eq!(rustix::io::write(&fd, b"x"), Err(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(&fd, 0), Err(Errno::PERM));
    }
}
