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

/// Where the running program's code and constants lie in memory.
#[derive(Debug)]
pub struct ProgramText {
    ranges: Vec<(usize, usize)>,
}

impl ProgramText {
    /// Finds the mappings of the program's file that were never written.
    ///
    /// # Errors
    /// Whatever reading `/proc/self/smaps` gives.
    pub fn find() -> io::Result<Self> {
        Ok(Self { ranges: untouched(&std::fs::read_to_string("/proc/self/smaps")?) })
    }

    /// Takes these pages out of the process's memory. They stay in the file's cache, shared by everybody who runs it, and come back
    /// as they are used: a fault maps sixteen at a time, so a program that did many things once holds nearly all of them.
    pub fn release(&self) {
        for &(start, len) in &self.ranges {
            // SAFETY: the range is a private mapping of the program's file without write permission and without a page of its own
            // (see `untouched`), so dropping its pages loses nothing: the kernel reads the same bytes back from the file on the
            // next use, including the return from this call. Nobody changes the program's mappings.
            let _kept =
                unsafe { libc::madvise(std::ptr::without_provenance_mut(start), len, libc::MADV_DONTNEED) };
        }
    }
}

/// Start and length of the file mappings in `/proc/<pid>/smaps` that cannot be written and hold no anonymous (written) page.
fn untouched(smaps: &str) -> Vec<(usize, usize)> {
    let mut ranges = Vec::new();
    let mut candidate = None;
    for line in smaps.lines() {
        if let Some(range) = mapping(line) {
            candidate = range;
        } else if line.starts_with("Anonymous:") && line.trim_end().ends_with(" 0 kB") {
            ranges.extend(candidate.take());
        }
    }
    ranges
}

/// The head of a mapping, `<start>-<end> <mode> <offset> <device> <inode> …`: its range when it is a file's and cannot be
/// written. `None` for any other line.
fn mapping(line: &str) -> Option<Option<(usize, usize)>> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    let mode = fields.next()?;
    let inode = fields.nth(2)?;
    let fixed = matches!(mode, "r-xp" | "r--p") && inode != "0";
    Some(fixed.then_some((start, end.checked_sub(start)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_that_was_released_goes_on_running() {
        let text = ProgramText::find().unwrap();
        let here = ProgramText::find as *const () as usize;
        assert!(text.ranges.iter().any(|&(start, len)| (start..start + len).contains(&here)));
        text.release();
        assert!(!ProgramText::find().unwrap().ranges.is_empty());
    }

    #[test]
    fn only_file_mappings_that_were_never_written_are_released() {
        let smaps = "\
00400000-00401000 r--p 00000000 00:01 219    /memfd:x (deleted)
Size:                  4 kB
Anonymous:             0 kB
00401000-00403000 r-xp 00001000 00:01 219    /memfd:x (deleted)
Anonymous:             0 kB
00403000-00404000 r--p 00003000 00:01 219    /memfd:x (deleted)
Anonymous:             4 kB
00404000-00405000 rw-p 00004000 00:01 219    /memfd:x (deleted)
Anonymous:             0 kB
00405000-00406000 r--p 00000000 00:00 0      [vvar]
Anonymous:             0 kB
";
        assert_eq!(untouched(smaps), [(0x400_000, 0x1000), (0x401_000, 0x2000)]);
    }

    #[test]
    fn a_sealed_program_cannot_be_written() {
        let fd = sealed_program("test", b"#!/bin/true\n").unwrap();
        assert_eq!(rustix::io::write(&fd, b"x"), Err(Errno::PERM));
        assert_eq!(rustix::fs::ftruncate(&fd, 0), Err(Errno::PERM));
    }
}
