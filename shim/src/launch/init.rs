//! A container's init, from its birth to the moment when its program runs.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;

use libcgroups::common::CgroupConfig;
use libcontainer::notify_socket::NotifyListener;
use libcontainer::process::args::{ContainerArgs, ContainerType};
use libcontainer::process::init::process::container_init_process;
use libcontainer::syscall::syscall::SyscallType;

use super::executor::Executor;
use super::spec::Plan;
use super::{Channels, trace};
use crate::control;
use crate::error::{Error, Result, Step as _, chain};
use crate::process;
use crate::userns;

/// Exit code of an init that could not run its program, as the kubelet's `StartError` has it.
pub(super) const CODE_NOT_STARTED: u8 = 128;

/// libcontainer's init waits for a connection before it runs the program. The wait that counts is ours (it ends with the shim), so
/// here a connection is waiting already.
pub(super) fn open_gate(plan: &Plan) -> Result<NotifyListener> {
    let path = plan.state_dir.join("notify.sock");
    let step = || format!("open the gate {}", path.display());
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).step(step),
        _ => {}
    }
    let listener =
        NotifyListener::new(&path).map_err(|error| Error::Said(format!("{}: {}", step(), chain(&error))))?;
    // By a short name: the path may be longer than an address can hold (108 bytes).
    let dir =
        rustix::fs::open(&plan.state_dir, rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC, 0o0.into());
    let dir = dir.step(step)?;
    let short = format!("/proc/self/fd/{}/notify.sock", dir.as_raw_fd());
    drop(std::os::unix::net::UnixStream::connect(&short).step(step)?);
    std::fs::remove_file(&path).step(step)?;
    Ok(listener)
}

/// Runs in the new process. Returns only when it failed: the exit code.
pub(super) fn run(
    plan: &Plan,
    control: &OwnedFd,
    console: Option<OwnedFd>,
    listener: NotifyListener,
    channels: &mut Channels,
) -> u8 {
    let error = match prepare(plan, control, console, listener, channels) {
        Ok(()) => Error::Said("init came to its end without running the program".into()),
        Err(error) => error,
    };
    control::send_failed(control, &chain(&error));
    CODE_NOT_STARTED
}

/// What takes the rights of the host's root: done before a user namespace is entered.
pub(super) fn settle(plan: &Plan) -> Result<()> {
    crate::cgroup::join(&plan.cgroup)?;
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    userns::give_pipes([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()], plan.host_user)?;
    process::set_oom_score_adj(plan.process.oom_score_adj())
}

fn prepare(
    plan: &Plan,
    control: &OwnedFd,
    console: Option<OwnedFd>,
    listener: NotifyListener,
    channels: &mut Channels,
) -> Result<()> {
    if plan.entry.is_none() {
        settle(plan)?;
    }
    crisp_sys::clone::reset_signals().step(|| "reset the signals")?;
    // Nobody in the container's namespaces may look into this process before it is the container's (CVE-2016-9962).
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .step(|| "make init not dumpable")?;
    let label = plan.label.as_ref().map(|label| label.open(process::open_proc()?)).transpose()?;
    let executor = Executor::new(plan, control.as_fd(), label)?;
    let container = plan.spec.hooks().is_some().then(|| plan.container()).transpose()?;
    // Never dropped: libcontainer closes the listener's descriptor under its owner, whose own close could then hit another's.
    let args = std::mem::ManuallyDrop::new(ContainerArgs {
        container_type: ContainerType::InitContainer,
        syscall: SyscallType::Linux,
        spec: plan.spec.clone(),
        rootfs: plan.rootfs.clone(),
        // libcontainer closes it.
        console_socket: console.map(std::os::fd::IntoRawFd::into_raw_fd),
        notify_listener: listener,
        preserve_fds: 0,
        container,
        user_ns_config: None,
        cgroup_config: CgroupConfig {
            cgroup_path: Path::new("/").into(),
            systemd_cgroup: false,
            container_name: String::new(),
        },
        detached: true,
        executor: Box::new(executor),
        no_pivot: false,
        stdin: None,
        stdout: None,
        stderr: None,
        as_sibling: true,
        pid_file: None,
    });
    container_init_process(&args, &mut channels.to_main, &mut channels.from_main).map_err(|error| {
        let text = chain(&error);
        Error::Said(match trace::first_error() {
            Some(step) => format!("{text} ({step})"),
            None => text,
        })
    })
}
