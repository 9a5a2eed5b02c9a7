//! An exec: a process inside a running container, by the shim's own way.
//!
//! ```text
//! shim ─ clone ─▶ helper: joins the cgroup, enters the namespaces of init (one setns by pidfd)
//!                   └─ clone(CLONE_PARENT) ─▶ process: a child of the shim, born in the PID namespace
//!                                             user, confinement (the same as init's), execve
//! ```

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use crisp_sys::clone::{CloneArgs, Parent, SingleThreaded, close_all_from_except, dup_above, dup_onto};
use oci_spec::runtime::{Process, Spec};
use rustix::fs::{Gid, Mode, Uid};
use rustix::thread::ThreadNameSpaceType as Ns;

use crate::control;
use crate::error::{Error, Result, Step as _, chain};
use crate::handler::ExecOrder;
use crate::process::{self, Confinement, Executable, Filter, Filtered, Label};

/// Exit code of an exec that could not run its program.
const CODE_NOT_STARTED: u8 = 127;
/// Descriptors are moved above this before they are put in their places.
const FD_FLOOR: i32 = 10;

/// Runs in the helper; its exit code.
pub(crate) fn run(single: SingleThreaded, order: &ExecOrder<'_>, control: &OwnedFd) -> u8 {
    match enter(single, order, control) {
        Ok(()) => 0,
        Err(error) => {
            control::send_failed(control, &chain(&error));
            CODE_NOT_STARTED
        }
    }
}

/// What is read on the host's side of the border.
struct Prepared {
    process: Process,
    filter: Option<Filter>,
    label: Option<Label>,
    proc: OwnedFd,
    own_user_namespace: bool,
}

fn enter(single: SingleThreaded, order: &ExecOrder<'_>, control: &OwnedFd) -> Result<()> {
    crate::cgroup::join(order.cgroup)?;
    crisp_sys::clone::reset_signals().step(|| "reset the signals")?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .step(|| "make the process not dumpable")?;
    let process: Process = serde_json::from_slice(order.process_json)
        .map_err(|error| Error::Invalid(format!("the process of the exec: {error}")))?;
    let prepared = Prepared {
        filter: filter(order)?,
        label: Label::wanted(&process)?,
        proc: process::open_proc()?,
        own_user_namespace: has_own_user_namespace(order)?,
        process,
    };
    process::unspare()?;
    process::set_oom_score_adj(prepared.process.oom_score_adj())?;
    // Nothing of the shim's goes along. Its owners are in this copy too, where nothing drops them.
    let mut keep = kept(order, control);
    keep.extend([order.init.as_fd(), prepared.proc.as_fd()]);
    close_all_from_except(3, &keep).step(|| "close inherited descriptors")?;
    enter_namespaces(order, &prepared)?;
    let args = CloneArgs { parent: Parent::CallersParent, ..CloneArgs::default() };
    let child = single
        .fork(&args, || {
            let error = become_program(order, &prepared, control);
            control::send_failed(control, &chain(&error));
            CODE_NOT_STARTED
        })
        .step(|| "clone the process of the exec")?;
    control::send_process(control, child.pid, child.pidfd.as_fd()).step(|| "report the process")
}

/// All of them by one call: the kernel takes the user namespace first, and the rights of the host's root count for the others still.
fn enter_namespaces(order: &ExecOrder<'_>, prepared: &Prepared) -> Result<()> {
    let mut namespaces = Ns::MOUNT
        | Ns::NETWORK
        | Ns::INTER_PROCESS_COMMUNICATION
        | Ns::HOST_NAME_AND_NIS_DOMAIN_NAME
        | Ns::PROCESS_ID
        | Ns::CONTROL_GROUP;
    if prepared.own_user_namespace {
        namespaces |= Ns::USER;
    }
    rustix::thread::move_into_thread_name_spaces(order.init.as_fd(), namespaces)
        .step(|| "enter the container's namespaces")?;
    if !prepared.own_user_namespace {
        return Ok(());
    }
    // Until here it is the host's root, whom this user namespace does not know.
    let step = || "become the root of the container's user namespace";
    rustix::thread::set_thread_groups(&[]).step(step)?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).step(step)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).step(step)?;
    // A change of the user makes a process dumpable again.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable).step(step)
}

/// Whether the container's init is in another user namespace than the shim. Joining one's own is an error.
fn has_own_user_namespace(order: &ExecOrder<'_>) -> Result<bool> {
    let namespace = |process: &str| {
        let path = format!("/proc/{process}/ns/user");
        rustix::fs::stat(&path).map(|stat| (stat.st_dev, stat.st_ino)).step(|| format!("look at {path}"))
    };
    let theirs = namespace(&order.init_pid.to_string())?;
    // The number was not given to another process, so what was seen was init's.
    if !crisp_sys::pidfd::is_unreaped(order.init) {
        return Err(Error::Said("the container's init has ended".into()));
    }
    Ok(theirs != namespace("self")?)
}

/// What the process needs until its stdio stands.
fn kept<'a>(order: &'a ExecOrder<'_>, control: &'a OwnedFd) -> Vec<BorrowedFd<'a>> {
    let stdio = order.stdio.iter().flat_map(|stdio| [&stdio.stdin, &stdio.stdout, &stdio.stderr]);
    stdio.chain([control]).map(|fd| fd.as_fd()).collect()
}

/// The container's filter, whose flags stand in its specification. One that the container has and that is not found any more is
/// an error: without it an exec would be freer than its container.
fn filter(order: &ExecOrder<'_>) -> Result<Option<Filter>> {
    if order.filtered == Filtered::No {
        return Ok(None);
    }
    let path = order.bundle.join("config.json");
    let text = std::fs::read(&path).step(|| format!("read {}", path.display()))?;
    let spec: Spec = serde_json::from_slice(&text).map_err(|error| Error::Invalid(format!("{error}")))?;
    Filter::read(order.bundle, spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref()))
}

/// Runs in the new process; returns only the error.
fn become_program(order: &ExecOrder<'_>, prepared: &Prepared, control: &OwnedFd) -> Error {
    match prepare(order, prepared, control) {
        Ok(executable) => executable.exec(),
        Err(error) => error,
    }
}

fn prepare(order: &ExecOrder<'_>, prepared: &Prepared, control: &OwnedFd) -> Result<Executable> {
    let process = &prepared.process;
    let label = prepared.label.as_ref().map(|label| label.open(&prepared.proc)).transpose()?;
    let executable = Executable::new(process, label)?;
    // From here on paths are the container's.
    executable.close_others(&kept(order, control))?;
    rustix::process::setsid().step(|| "make a session")?;
    match &order.stdio {
        Some(stdio) => place([stdio.stdin.as_fd(), stdio.stdout.as_fd(), stdio.stderr.as_fd()])?,
        None => open_terminal(process, control)?,
    }
    executable.close_others(&[control.as_fd()])?;
    set_user(process)?;
    process::enter_cwd(process.cwd())?;
    process::set_rlimits(process.rlimits().as_deref().unwrap_or_default())?;
    Confinement::new(process, prepared.filter.clone()).apply()?;
    Ok(executable)
}

fn place(fds: [BorrowedFd<'_>; 3]) -> Result<()> {
    let step = || "put the descriptors in their places";
    let mut moved = Vec::with_capacity(fds.len());
    for fd in fds {
        moved.push(dup_above(fd, FD_FLOOR).step(step)?);
    }
    (0..).zip(&moved).try_for_each(|(number, fd)| dup_onto(fd, number)).step(step)
}

/// A terminal of the container's own devpts, by descriptors alone (CVE-2025-52565).
fn open_terminal(process: &Process, control: &OwnedFd) -> Result<()> {
    use rustix::fs::{OFlags, fstat, fstatfs, major, minor, open};
    use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
    /// `DEVPTS_SUPER_MAGIC` (`linux/magic.h`).
    const DEVPTS: u64 = 0x1cd1;
    let step = || "open a terminal";
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = open("/dev/pts/ptmx", flags, Mode::empty()).step(step)?;
    let (stat, fs) = (fstat(&master).step(step)?, fstatfs(&master).step(step)?);
    if (major(stat.st_rdev), minor(stat.st_rdev)) != (5, 2) || u64::try_from(fs.f_type).ok() != Some(DEVPTS) {
        return Err(Error::Invalid("/dev/pts/ptmx of the container is not a terminal".into()));
    }
    unlockpt(&master).step(step)?;
    let slave = ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY).step(step)?;
    rustix::fs::fchown(&slave, Some(Uid::from_raw(process.user().uid())), None).step(step)?;
    if let Some(size) = process.console_size() {
        let cells = |count: u64| u16::try_from(count).unwrap_or(u16::MAX);
        let (ws_row, ws_col) = (cells(size.height()), cells(size.width()));
        let size = rustix::termios::Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&slave, size).step(step)?;
    }
    rustix::process::ioctl_tiocsctty(&slave).step(step)?;
    control::send_terminal(control, master.as_fd()).step(|| "hand over the terminal")?;
    place([slave.as_fd(); 3])
}

fn set_user(process: &Process) -> Result<()> {
    let user = process.user();
    if let Some(umask) = user.umask() {
        rustix::process::umask(Mode::from_raw_mode(umask & 0o777));
    }
    let groups: Vec<_> = user.additional_gids().iter().flatten().map(|&gid| Gid::from_raw(gid)).collect();
    rustix::thread::set_thread_groups(&groups).step(|| "set the supplementary groups")?;
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    rustix::thread::set_keep_capabilities(true).step(|| "keep the capabilities")?;
    rustix::thread::set_thread_res_gid(gid, gid, gid).step(|| format!("set the group {}", user.gid()))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid).step(|| format!("set the user {}", user.uid()))?;
    rustix::thread::set_keep_capabilities(false).step(|| "stop keeping the capabilities")?;
    process::raise_permitted()
}
