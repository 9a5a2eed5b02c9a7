//! PID 1 of a pod whose containers share a PID namespace: it reaps what they leave behind and does nothing else, so it may do
//! nothing else. It has a user of its own, no capability, an empty file system and a filter of a few system calls.

use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use crisp_proto::supervisor as pb;
use crisp_sys::clone::{Child, CloneArgs, SingleThreaded, claim_inherited, reset_signals, watch_signals};
use crisp_sys::fdpass;
use crisp_sys::seccomp::Program;
use rustix::fs::{Gid, Mode, OFlags, Uid};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::control::{self, CONTROL_FD};
use crate::error::{Error, Result, Step as _, chain};
use crate::userns::{self, Birth, Entry};

/// Flag of `clone3` for a new PID namespace (`linux/sched.h`).
const CLONE_NEWPID: u64 = 0x2000_0000;
/// Number of SIGCHLD.
const SIGCHLD: i32 = 17;
/// Nobody's user and group: above those of images, below those of user namespaces.
const NOBODY: u32 = 65_535;

/// A container kill is meant to spare it.
const OOM_SCORE_ADJ: i32 = -998;

/// Starts it in a new PID namespace and in the pod's namespaces. Over the socket it tells when it has confined itself.
pub(crate) fn start(single: SingleThreaded, order: &pb::StartPodInit) -> Result<(Child, OwnedFd)> {
    let cgroup = order.cgroup.clone().unwrap_or_default();
    let birth = crate::cgroup::birth_directory(&cgroup)?;
    let (control, theirs) = fdpass::pair().step(|| "make a control socket")?;
    let args = CloneArgs { cgroup: birth.as_ref().map(|dir| dir.as_fd()), ..CloneArgs::default() };
    let child = match Entry::of_pins(&order.namespace_paths)? {
        None => {
            let args = CloneArgs { namespaces: CLONE_NEWPID, ..args };
            let paths = &order.namespace_paths;
            single
                .fork(&args, || run_as_init(&theirs, &order.mount_label, || settle(&cgroup, paths)))
                .step(|| "clone the pod's init")?
        }
        Some(entry) => {
            let birth = Birth { entry: &entry, middle: args, namespaces: CLONE_NEWPID };
            let run = || run_as_init(&theirs, &order.mount_label, || Ok(()));
            userns::fork(single, &birth, || settle(&cgroup, &[]), run)?
        }
    };
    Ok((child, control))
}

/// What takes the rights of the host's root.
fn settle(cgroup: &pb::Cgroup, namespaces: &[String]) -> Result<()> {
    crate::cgroup::join(cgroup)?;
    // Sets the lowest value that the process may take later, too.
    crate::process::set_oom_score_adj(Some(OOM_SCORE_ADJ))?;
    namespaces.iter().try_for_each(|path| enter_namespace(Path::new(path)))
}

/// Returns only when it failed: the exit code.
fn run_as_init(control: &OwnedFd, label: &str, settle: impl FnOnce() -> Result<()>) -> u8 {
    let error = settle().map_or_else(|error| error, |()| execute(control, label));
    control::send_failed(control, &chain(&error));
    1
}

/// Returns only the error.
fn execute(control: &OwnedFd, label: &str) -> Error {
    let prepare = || -> Result<[OwnedFd; 3]> {
        let null = || rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        let step = || "open /dev/null";
        Ok([null().step(step)?, null().step(step)?, null().step(step)?])
    };
    let fds = match prepare().and_then(|[a, b, c]| {
        let control = control.try_clone().step(|| "duplicate the control socket")?;
        Ok([a, b, c, control])
    }) {
        Ok(fds) => fds,
        Err(error) => return error,
    };
    crate::builtin::run_self(&fds, &["init", label]);
    Error::Said("the pod's init could not be executed".into())
}

/// Whatever kind of namespace lies there.
fn enter_namespace(path: &Path) -> Result<()> {
    let step = || format!("enter the namespace {}", path.display());
    let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).step(step)?;
    rustix::thread::move_into_link_name_space(fd.as_fd(), None).step(step)
}

/// Runs as PID 1. Its argument is the label of its root, or empty.
pub(crate) fn run(mut args: impl Iterator<Item = OsString>) -> u8 {
    let Ok(control) = claim_inherited(CONTROL_FD) else { return 2 };
    match confine(&args.next().unwrap_or_default()) {
        Ok(signals) => {
            if control::send_ready(&control).is_err() {
                return 1;
            }
            drop(control);
            reap_for_ever(&signals)
        }
        Err(error) => {
            control::send_failed(&control, &chain(&error));
            1
        }
    }
}

/// Leaves everything behind that it does not need. The descriptor tells of children that ended.
fn confine(label: &OsStr) -> Result<OwnedFd> {
    reset_signals().step(|| "reset the signals")?;
    let signals = watch_signals(&[SIGCHLD]).step(|| "watch signals")?;
    rustix::io::ioctl_fionbio(&signals, false).step(|| "watch signals")?;
    // A container kill is meant to spare it: the kernel takes containers first.
    crate::process::set_oom_score_adj(Some(OOM_SCORE_ADJ))?;
    rustix::process::setsid().step(|| "make a session")?;
    // While there is a /proc.
    let nobody = nobody();
    empty_root(label)?;
    drop_privileges(nobody)?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .step(|| "become not dumpable")?;
    Program::parse(&filter()).and_then(|program| program.load(0)).step(|| "load the filter")?;
    Ok(signals)
}

fn empty_root(label: &OsStr) -> Result<()> {
    let step = || "make an empty root";
    let mut options = b"size=4k,mode=000".to_vec();
    if !label.is_empty() {
        options.extend([b",context=\"", label.as_bytes(), b"\""].concat());
    }
    let options = CString::new(options).map_err(std::io::Error::from).step(step)?;
    crisp_sys::clone::enter_new_mount_namespace().step(step)?;
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .step(step)?;
    let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    // Any directory will do; /proc is always there.
    rustix::mount::mount("none", "/proc", "tmpfs", flags, options.as_c_str()).step(step)?;
    rustix::process::chdir("/proc").step(step)?;
    rustix::process::pivot_root(".", ".").step(step)?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).step(step)?;
    rustix::process::chdir("/").step(step)
}

/// [`NOBODY`], or the highest user of a user namespace that has fewer. Users and groups are mapped alike.
fn nobody() -> u32 {
    let text = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let length = text.split_whitespace().nth(2).and_then(|length| length.parse::<u32>().ok());
    length.map_or(NOBODY, |length| NOBODY.min(length.saturating_sub(1)))
}

fn drop_privileges(nobody: u32) -> Result<()> {
    let step = || "drop privileges";
    for cap in CapabilitySet::all().iter() {
        match rustix::thread::remove_capability_from_bounding_set(cap) {
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error).step(step),
        }
    }
    rustix::thread::set_thread_groups(&[]).step(step)?;
    let (uid, gid) = (Uid::from_raw(nobody), Gid::from_raw(nobody));
    rustix::thread::set_thread_res_gid(gid, gid, gid).step(step)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).step(step)?;
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, sets).step(step)?;
    rustix::thread::set_no_new_privs(true).step(step)
}

/// What PID 1 still calls: it reads signals, takes statuses, tells that it is ready and closes; the rest is for its end.
#[cfg(target_arch = "x86_64")]
const ALLOWED: (u32, &[u32]) = (
    0xc000_003e,
    // read, close, sendmsg, wait4, waitid, rt_sigreturn, restart_syscall, munmap, exit, exit_group
    &[0, 3, 46, 61, 247, 15, 219, 11, 60, 231],
);
#[cfg(target_arch = "aarch64")]
const ALLOWED: (u32, &[u32]) = (0xc000_00b7, &[63, 57, 211, 260, 95, 139, 128, 215, 93, 94]);

/// A program that answers everything else with EPERM (`linux/filter.h`, `linux/seccomp.h`).
fn filter() -> Vec<u8> {
    const LOAD: u16 = 0x20;
    const JUMP_IF_EQUAL: u16 = 0x15;
    const RETURN: u16 = 0x06;
    const ALLOW: u32 = 0x7fff_0000;
    const EPERM: u32 = 0x0005_0001;
    /// Offsets in `struct seccomp_data`.
    const NUMBER: u32 = 0;
    const ARCH: u32 = 4;
    let (arch, allowed) = ALLOWED;
    let mut program =
        vec![(LOAD, 0, 0, ARCH), (JUMP_IF_EQUAL, 1, 0, arch), (RETURN, 0, 0, EPERM), (LOAD, 0, 0, NUMBER)];
    for &number in allowed {
        program.extend([(JUMP_IF_EQUAL, 0, 1, number), (RETURN, 0, 0, ALLOW)]);
    }
    program.push((RETURN, 0, 0, EPERM));
    let bytes = |(code, jt, jf, k): (u16, u8, u8, u32)| {
        let mut bytes = code.to_ne_bytes().to_vec();
        bytes.extend([jt, jf]);
        bytes.extend(k.to_ne_bytes());
        bytes
    };
    program.into_iter().flat_map(bytes).collect()
}

fn reap_for_ever(signals: &OwnedFd) -> u8 {
    let mut info = [0u8; 128];
    loop {
        while let Ok(Some(_)) = crisp_sys::pidfd::reap_any() {}
        if rustix::io::retry_on_intr(|| rustix::io::read(signals, &mut info)).is_err() {
            return 1;
        }
    }
}
