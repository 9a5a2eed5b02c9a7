//! `bpf(2)` as far as device filters of cgroup v2 need it: load a program, attach it to a cgroup.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Most instructions of a program that the kernel takes from an unprivileged or privileged caller (`BPF_MAXINSNS`).
pub const INSNS_MAX: usize = 4096;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// Programs of the ancestors and of other owners stay in force: every one must allow.
const BPF_F_ALLOW_MULTI: u32 = 2;
/// The verifier's words, kept only to explain a refusal.
const VERIFIER_LOG_BYTES: usize = 4096;

/// One instruction, laid out as `struct bpf_insn` (`linux/bpf.h`).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Insn {
    /// Operation code.
    pub code: u8,
    /// Destination register in the low four bits, source in the high four (little endian machines).
    pub registers: u8,
    /// Jump distance or memory offset.
    pub off: i16,
    /// Immediate value.
    pub imm: i32,
}

/// A refused `bpf` call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BpfError {
    /// The program does not fit.
    #[error("{count} instructions are more than {INSNS_MAX}")]
    TooLong {
        /// Its length.
        count: usize,
    },
    /// The kernel wants a capability that we lack.
    #[error(
        "bpf {call} is not permitted: it needs CAP_BPF and CAP_NET_ADMIN, or CAP_SYS_ADMIN, in the initial user namespace"
    )]
    NotPermitted {
        /// `load` or `attach`.
        call: &'static str,
    },
    /// The kernel refused a program.
    #[error("bpf load of {count} instructions ({log})")]
    Load {
        /// Its length.
        count: usize,
        /// The verifier's last words.
        log: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel refused to attach a program.
    #[error("bpf attach to a cgroup")]
    Attach {
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

/// A loaded device program. It stays in force on a cgroup that it was attached to after this value is gone.
#[derive(Debug)]
pub struct DeviceProgram(OwnedFd);

/// The part of `union bpf_attr` that `BPF_PROG_LOAD` reads.
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

/// The part of `union bpf_attr` that `BPF_PROG_ATTACH` reads.
#[repr(C)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

impl DeviceProgram {
    /// Loads a program of type `BPF_PROG_TYPE_CGROUP_DEVICE`.
    ///
    /// # Errors
    /// [`BpfError::TooLong`], [`BpfError::NotPermitted`], or [`BpfError::Load`] with the verifier's words.
    pub fn load(insns: &[Insn]) -> Result<Self, BpfError> {
        if insns.len() > INSNS_MAX {
            return Err(BpfError::TooLong { count: insns.len() });
        }
        match load(insns, &mut []) {
            Ok(fd) => Ok(Self(fd)),
            Err(source) if source.raw_os_error() == Some(libc::EPERM) => {
                Err(BpfError::NotPermitted { call: "load" })
            }
            Err(source) => {
                let mut log = vec![0; VERIFIER_LOG_BYTES];
                // The log is worth a second try: a load that has one is slower.
                let again = load(insns, &mut log);
                again.map(Self).map_err(|_same| BpfError::Load {
                    count: insns.len(),
                    log: text(&log),
                    source,
                })
            }
        }
    }

    /// Puts the program in force on the cgroup v2 directory `cgroup` and all below it, beside the programs already there.
    ///
    /// # Errors
    /// [`BpfError::NotPermitted`], [`BpfError::Attach`].
    pub fn attach(&self, cgroup: BorrowedFd<'_>) -> Result<(), BpfError> {
        let attr = AttachAttr {
            target_fd: cgroup.as_raw_fd().cast_unsigned(),
            attach_bpf_fd: self.0.as_raw_fd().cast_unsigned(),
            attach_type: BPF_CGROUP_DEVICE,
            attach_flags: BPF_F_ALLOW_MULTI,
        };
        // SAFETY: `attr` is a prefix of union bpf_attr of the size given, and outlives the call.
        let done = unsafe {
            libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attr, size_of::<AttachAttr>())
        };
        match (done, io::Error::last_os_error()) {
            (0, _) => Ok(()),
            (_, source) if source.raw_os_error() == Some(libc::EPERM) => {
                Err(BpfError::NotPermitted { call: "attach" })
            }
            (_, source) => Err(BpfError::Attach { source }),
        }
    }
}

fn load(insns: &[Insn], log: &mut [u8]) -> io::Result<OwnedFd> {
    const LICENSE: &std::ffi::CStr = c"Apache-2.0";
    let attr = LoadAttr {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(insns.len()).unwrap_or(u32::MAX),
        insns: insns.as_ptr() as u64,
        license: LICENSE.as_ptr() as u64,
        log_level: u32::from(!log.is_empty()),
        log_size: u32::try_from(log.len()).unwrap_or(0),
        log_buf: if log.is_empty() { 0 } else { log.as_mut_ptr() as u64 },
        prog_name: *b"crisp_devices\0\0\0",
        ..LoadAttr::default()
    };
    // SAFETY: `attr` is a prefix of union bpf_attr of the size given; what it points to outlives the call, and the kernel
    // writes no more than log_size bytes to log_buf.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attr, size_of::<LoadAttr>()) };
    let fd = i32::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the kernel just returned this descriptor (close-on-exec) to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn text(log: &[u8]) -> String {
    let end = log.iter().position(|byte| *byte == 0).unwrap_or(log.len());
    String::from_utf8_lossy(&log[..end]).trim().replace('\n', "; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXIT: Insn = Insn { code: 0x95, registers: 0, off: 0, imm: 0 };

    fn return_value(imm: i32) -> [Insn; 2] {
        [Insn { code: 0xb7, registers: 0, off: 0, imm }, EXIT]
    }

    #[test]
    fn a_program_that_is_too_long_never_reaches_the_kernel() {
        let error = DeviceProgram::load(&vec![EXIT; INSNS_MAX + 1]).unwrap_err();
        assert!(matches!(error, BpfError::TooLong { count } if count == INSNS_MAX + 1), "{error}");
    }

    #[test]
    fn the_kernel_takes_good_programs_and_says_what_is_wrong_with_bad_ones() {
        match DeviceProgram::load(&return_value(1)) {
            Ok(_program) => {}
            // Not root.
            Err(BpfError::NotPermitted { call: "load" }) => return,
            Err(error) => panic!("{error}"),
        }
        // The register that a program returns is never set.
        let error = DeviceProgram::load(&[EXIT]).unwrap_err();
        assert!(matches!(&error, BpfError::Load { log, .. } if log.contains("R0")), "{error}");
    }

    #[test]
    fn a_program_is_attached_to_cgroups_only() {
        let Ok(program) = DeviceProgram::load(&return_value(1)) else { return };
        let dir = std::fs::File::open("/").unwrap();
        let error = program.attach(std::os::fd::AsFd::as_fd(&dir)).unwrap_err();
        assert!(matches!(error, BpfError::Attach { .. }), "{error}");
    }
}
