//! From a filter to the program that the kernel runs.

use std::io::{Read, Seek, SeekFrom};

use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
    error::SeccompError as LibraryError,
};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
    LinuxSyscall,
};

use crate::error::SeccompError;
use crate::newer;

/// Bytes of the longest program that the kernel takes: `BPF_MAXINSNS` instructions of 8 bytes.
pub(crate) const PROGRAM_BYTES_MAX: usize = 4096 * INSTRUCTION_BYTES;
/// Bytes of one `struct sock_filter`.
pub(crate) const INSTRUCTION_BYTES: usize = 8;
/// libseccomp's binary tree instead of a list: a syscall late in the list then costs about 9 comparisons, not 400.
const OPTIMIZE_BINARY_TREE: u32 = 2;
const EPERM: u32 = 1;

/// Compiles a filter into `struct sock_filter[]` of the native byte order. Names that this libseccomp does not know are left
/// out: they get the default action. Where the default action is an errno that the profile does not name, syscalls newer than any of
/// the profile's get ENOSYS, so that programs fall back instead of giving up.
///
/// # Errors
/// [`SeccompError::Unsupported`] for a filter that notifies a listener, [`SeccompError::Profile`] for an unknown architecture or flag
/// and a trace value out of range, [`SeccompError::Compile`] when libseccomp refuses, [`SeccompError::TooLong`].
pub fn compile(filter: &LinuxSeccomp) -> Result<Vec<u8>, SeccompError> {
    if filter.listener_path().is_some() {
        return Err(SeccompError::Unsupported("a listener"));
    }
    filter_flags(filter)?;
    let default = action(filter.default_action(), filter.default_errno_ret())?;
    let mut context = ScmpFilterContext::new(default).map_err(refused("begin a filter"))?;
    let architectures = add_architectures(&mut context, filter)?;
    context.set_ctl_optimize(OPTIMIZE_BINARY_TREE).map_err(refused("choose a binary tree"))?;
    for rule in filter.syscalls().iter().flatten() {
        add_rule(&mut context, rule, default)?;
    }
    let mut program = newer::prefix(filter, &architectures);
    program.extend(export(&context)?);
    if program.len() > PROGRAM_BYTES_MAX {
        return Err(SeccompError::TooLong(program.len()));
    }
    Ok(program)
}

/// The flags with which the filter is to be loaded, as seccomp(2) takes them.
///
/// # Errors
/// [`SeccompError::Unsupported`] for a flag that means nothing without a listener.
pub fn filter_flags(filter: &LinuxSeccomp) -> Result<u32, SeccompError> {
    let mut bits = 0;
    for flag in filter.flags().iter().flatten() {
        bits |= match flag {
            // A filter is loaded by a process with one thread: there is nothing to synchronise.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => 1 << 1,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => 1 << 2,
            _ => return Err(SeccompError::Unsupported("a flag for listeners")),
        };
    }
    Ok(bits)
}

fn refused(operation: &'static str) -> impl FnOnce(LibraryError) -> SeccompError {
    move |source| SeccompError::Compile { operation, source }
}

/// Adds the filter's architectures to the native one, which a new context has; without any in the filter it stays alone.
fn add_architectures(
    context: &mut ScmpFilterContext,
    filter: &LinuxSeccomp,
) -> Result<Vec<ScmpArch>, SeccompError> {
    let mut all = vec![ScmpArch::native()];
    for wanted in filter.architectures().iter().flatten() {
        let arch = architecture(*wanted)?;
        if arch == ScmpArch::Native || all.contains(&arch) {
            continue;
        }
        // Of the other byte order, which no process of this machine has.
        if same_byte_order(arch) {
            context.add_arch(arch).map_err(refused("add an architecture"))?;
            all.push(arch);
        }
    }
    Ok(all)
}

fn same_byte_order(arch: ScmpArch) -> bool {
    use ScmpArch as A;
    let big = matches!(
        arch,
        A::Mips
            | A::Mips64
            | A::Mips64N32
            | A::Ppc
            | A::Ppc64
            | A::S390
            | A::S390X
            | A::Parisc
            | A::Parisc64
            | A::M68k
            | A::Sheb
    );
    big == cfg!(target_endian = "big")
}

fn add_rule(
    context: &mut ScmpFilterContext,
    rule: &LinuxSyscall,
    default: ScmpAction,
) -> Result<(), SeccompError> {
    let action = action(rule.action(), rule.errno_ret())?;
    // libseccomp refuses rules that change nothing.
    if action == default {
        return Ok(());
    }
    let alternatives = alternatives(rule.args().as_deref().unwrap_or_default());
    for name in rule.names() {
        let Ok(syscall) = ScmpSyscall::from_name(name) else { continue };
        for conditions in &alternatives {
            let added = if conditions.is_empty() {
                context.add_rule(action, syscall)
            } else {
                context.add_rule_conditional(action, syscall, conditions)
            };
            added.map_err(refused("add a rule"))?;
        }
    }
    Ok(())
}

/// All conditions at once; or each alone where two look at the same argument, which libseccomp cannot combine and profiles
/// mean as alternatives.
fn alternatives(args: &[LinuxSeccompArg]) -> Vec<Vec<ScmpArgCompare>> {
    let repeated =
        args.iter().enumerate().any(|(at, arg)| args[..at].iter().any(|other| other.index() == arg.index()));
    let conditions = args.iter().map(condition);
    if repeated { conditions.map(|one| vec![one]).collect() } else { vec![conditions.collect()] }
}

fn condition(arg: &LinuxSeccompArg) -> ScmpArgCompare {
    use LinuxSeccompOperator as Op;
    // `Profile::parse` has refused an index beyond the sixth; whatever else comes matches nothing in libseccomp.
    let index = u32::try_from(arg.index()).unwrap_or(u32::MAX);
    let (operator, value) = match arg.op() {
        Op::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
        Op::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
        Op::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
        Op::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
        Op::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
        Op::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
        Op::ScmpCmpMaskedEq => (ScmpCompareOp::MaskedEqual(arg.value()), arg.value_two().unwrap_or(0)),
    };
    ScmpArgCompare::new(index, operator, value)
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, SeccompError> {
    use LinuxSeccompAction as A;
    let errno = errno.unwrap_or(EPERM);
    let value =
        u16::try_from(errno).map_err(|_range| SeccompError::Profile(format!("{errno} is no errno")))?;
    Ok(match action {
        A::ScmpActKill | A::ScmpActKillThread => ScmpAction::KillThread,
        A::ScmpActKillProcess => ScmpAction::KillProcess,
        A::ScmpActTrap => ScmpAction::Trap,
        A::ScmpActErrno => ScmpAction::Errno(i32::from(value)),
        A::ScmpActTrace => ScmpAction::Trace(value),
        A::ScmpActLog => ScmpAction::Log,
        A::ScmpActAllow => ScmpAction::Allow,
        A::ScmpActNotify => return Err(SeccompError::Unsupported("a listener")),
    })
}

fn architecture(arch: Arch) -> Result<ScmpArch, SeccompError> {
    Ok(match arch {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        // Newer than the oldest libseccomp that we build with.
        other => return Err(SeccompError::Profile(format!("architecture {other} is not known here"))),
    })
}

/// libseccomp writes to a descriptor; a memory file holds any length, where a pipe could fill up.
fn export(context: &ScmpFilterContext) -> Result<Vec<u8>, SeccompError> {
    let failed = |source: std::io::Error| SeccompError::Cache {
        operation: "export the filter to",
        path: "memfd:crisp-seccomp".into(),
        source,
    };
    let memory = rustix::fs::memfd_create("crisp-seccomp", rustix::fs::MemfdFlags::CLOEXEC);
    let mut file = std::fs::File::from(memory.map_err(|errno| failed(errno.into()))?);
    context.export_bpf(&file).map_err(refused("export the filter"))?;
    let mut program = Vec::new();
    file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut program)).map_err(failed)?;
    Ok(program)
}

#[cfg(test)]
#[path = "compile_tests.rs"]
mod tests;
