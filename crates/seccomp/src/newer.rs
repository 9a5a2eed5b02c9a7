//! ENOSYS for syscalls that are newer than a profile.
//!
//! A profile whose default is EPERM breaks programs on kernels newer than itself: they try the new syscall, understand
//! ENOSYS and fall back, and take EPERM for an answer. So a few instructions come before the filter:
//!
//! ```text
//! for each architecture:   arch == ARCH and nr > the highest number that the profile names  →  ENOSYS
//! ```

use libseccomp::{ScmpArch, ScmpSyscall};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction};

use crate::compile::INSTRUCTION_BYTES;

/// Offsets in `struct seccomp_data` (`linux/seccomp.h`).
const DATA_NR: u32 = 0;
const DATA_ARCH: u32 = 4;
/// `BPF_LD | BPF_W | BPF_ABS` and its like (`linux/bpf_common.h`).
const LOAD: u16 = 0x20;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;
/// `SECCOMP_RET_ERRNO | ENOSYS`.
const RETURN_ENOSYS: u32 = 0x0005_0000 | 38;
/// Numbers of x32 have this bit; they share their architecture's token with x86-64.
const X32_SYSCALL_BIT: u32 = 0x4000_0000;

/// The instructions to put before the filter's own; empty where its default action lets programs fall back or where the
/// profile names the errno itself.
pub(crate) fn prefix(filter: &LinuxSeccomp, architectures: &[ScmpArch]) -> Vec<u8> {
    if filter.default_action() != LinuxSeccompAction::ScmpActErrno || filter.default_errno_ret().is_some() {
        return Vec::new();
    }
    architectures.iter().filter_map(|arch| check(filter, *arch)).flatten().collect()
}

fn check(filter: &LinuxSeccomp, arch: ScmpArch) -> Option<Vec<u8>> {
    let token = audit_token(arch)?;
    let highest = highest(filter, arch)?;
    let x86_64 = arch == ScmpArch::X8664;
    let mut code = instruction(LOAD, 0, 0, DATA_ARCH).to_vec();
    code.extend(instruction(JUMP_EQUAL, 0, if x86_64 { 4 } else { 3 }, token));
    code.extend(instruction(LOAD, 0, 0, DATA_NR));
    if x86_64 {
        code.extend(instruction(JUMP_GREATER_OR_EQUAL, 2, 0, X32_SYSCALL_BIT));
    }
    code.extend(instruction(JUMP_GREATER, 0, 1, highest));
    code.extend(instruction(RETURN, 0, 0, RETURN_ENOSYS));
    Some(code)
}

fn highest(filter: &LinuxSeccomp, arch: ScmpArch) -> Option<u32> {
    let names = filter.syscalls().iter().flatten().flat_map(|rule| rule.names());
    let number = |name: &String| ScmpSyscall::from_name_by_arch(name, arch).ok();
    // Negative numbers stand for syscalls that this architecture does not have.
    names.filter_map(number).filter_map(|syscall| u32::try_from(syscall.as_raw_syscall()).ok()).max()
}

/// `AUDIT_ARCH_…` (`linux/audit.h`); x32 is told apart by its numbers and left alone.
fn audit_token(arch: ScmpArch) -> Option<u32> {
    match arch {
        ScmpArch::X8664 => Some(0xc000_003e),
        ScmpArch::X86 => Some(0x4000_0003),
        ScmpArch::Aarch64 => Some(0xc000_00b7),
        ScmpArch::Arm => Some(0x4000_0028),
        ScmpArch::Riscv64 => Some(0xc000_00f3),
        _ => None,
    }
}

/// One `struct sock_filter`.
fn instruction(code: u16, if_true: u8, if_false: u8, operand: u32) -> [u8; INSTRUCTION_BYTES] {
    let [c0, c1] = code.to_ne_bytes();
    let [k0, k1, k2, k3] = operand.to_ne_bytes();
    [c0, c1, if_true, if_false, k0, k1, k2, k3]
}
