//! Loading a compiled seccomp filter. Compiling is the business of the crate `seccomp`.

use std::io;

/// Size of `struct sock_filter` (`linux/filter.h`).
const INSTRUCTION_BYTES: usize = 8;
/// Longest program that the kernel takes (`BPF_MAXINSNS`, `linux/bpf_common.h`).
pub const INSTRUCTIONS_MAX: usize = 4096;

/// Flags of `seccomp(SECCOMP_SET_MODE_FILTER)` (`linux/seccomp.h`).
pub mod flags {
    /// Log every action but `ALLOW`.
    pub const LOG: u32 = 1 << 1;
    /// Do not switch on the speculative store bypass mitigation.
    pub const SPEC_ALLOW: u32 = 1 << 2;
}

/// A filter program in memory, ready to be loaded.
#[derive(Debug, Clone)]
pub struct Program {
    instructions: Vec<libc::sock_filter>,
}

impl Program {
    /// Reads `struct sock_filter[]` of the native byte order.
    ///
    /// # Errors
    /// `InvalidData` when it is empty, too long, or no whole number of instructions.
    pub fn parse(bytes: &[u8]) -> io::Result<Self> {
        let count = bytes.len() / INSTRUCTION_BYTES;
        if count == 0 || count > INSTRUCTIONS_MAX || !bytes.len().is_multiple_of(INSTRUCTION_BYTES) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let instructions = bytes.as_chunks().0.iter().map(instruction).collect();
        Ok(Self { instructions })
    }

    /// Puts this filter on the calling thread, for good.
    ///
    /// Needs `CAP_SYS_ADMIN` or `no_new_privs`.
    ///
    /// # Errors
    /// `EACCES` without either; `EINVAL` for a program that the kernel's checker refuses.
    pub fn load(&self, flags: u32) -> io::Result<()> {
        let len =
            u16::try_from(self.instructions.len()).map_err(|_out_of_range| io::ErrorKind::InvalidData)?;
        let program = libc::sock_fprog { len, filter: self.instructions.as_ptr().cast_mut() };
        // SAFETY: `program` and the instructions that it points to live until the call returns; the kernel copies and only
        // reads them (the pointer is `*mut` in the C type alone). There is no safe wrapper.
        let result = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::c_long::from(libc::SECCOMP_SET_MODE_FILTER),
                libc::c_ulong::from(flags),
                &raw const program,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

fn instruction(bytes: &[u8; INSTRUCTION_BYTES]) -> libc::sock_filter {
    let [c0, c1, jt, jf, k0, k1, k2, k3] = *bytes;
    libc::sock_filter { code: u16::from_ne_bytes([c0, c1]), jt, jf, k: u32::from_ne_bytes([k0, k1, k2, k3]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `BPF_RET | BPF_K` with this value.
    fn ret(value: u32) -> [u8; 8] {
        let [k0, k1, k2, k3] = value.to_ne_bytes();
        let [c0, c1] = 6u16.to_ne_bytes();
        [c0, c1, 0, 0, k0, k1, k2, k3]
    }

    #[test]
    fn a_program_must_be_whole_and_bounded() {
        assert!(Program::parse(&[]).is_err());
        assert!(Program::parse(&[0; 7]).is_err());
        assert!(Program::parse(&[0; 9]).is_err());
        assert!(Program::parse(&vec![0; 8 * (INSTRUCTIONS_MAX + 1)]).is_err());
        assert!(Program::parse(&ret(0x7fff_0000)).is_ok());
    }

    #[test]
    fn a_loaded_filter_counts_for_its_thread() {
        std::thread::spawn(|| {
            rustix::thread::set_no_new_privs(true).unwrap();
            Program::parse(&ret(0x7fff_0000)).unwrap().load(0).unwrap();
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            assert!(status.contains("Seccomp:\t2"), "{status}");
        })
        .join()
        .unwrap();
    }
}
