//! The launcher: a process of one thread that makes one container through libcontainer and ends.
//!
//! The shim starts it from its own program as `crisp-shim launch`, with the container's stdio at 0–2 and a control socket at 3.
//! It makes init as the *shim's* child (`CLONE_PARENT`), so the shim learns the exit code and nothing of libcontainer stays in
//! memory. Init prepares the container with libcontainer's `container_init_process` and waits for the word to start.

mod covers;
mod executor;
mod hierarchies;
mod init;
mod spec;
mod trace;

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use crisp_proto::supervisor as pb;
use crisp_sys::clone::{CloneArgs, Parent, SingleThreaded, claim_inherited};
use crisp_sys::fdpass::{self, Wait};
use libcontainer::process::channel;
use oci_spec::runtime::LinuxNamespaceType;
use prost::Message as _;
use rustix::thread::ThreadNameSpaceType;

use self::spec::Plan;
use crate::control::{self, CONSOLE_FD, CONTROL_FD};
use crate::error::{Error, Result, Step as _, chain};
use crate::userns::{self, Birth};

/// Longest order: the request that the shim got in one packet.
const ORDER_BYTES_MAX: usize = 256 * 1024;

/// Flag of `clone3` for a new PID namespace (`linux/sched.h`).
const CLONE_NEWPID: u64 = 0x2000_0000;

/// Runs the launcher; its exit code.
pub(crate) fn run() -> u8 {
    let Ok(control) = claim_inherited(CONTROL_FD) else { return 2 };
    match launch(&control) {
        Ok(()) => 0,
        Err(error) => {
            control::send_failed(&control, &chain(&error));
            1
        }
    }
}

fn launch(control: &OwnedFd) -> Result<()> {
    let single = SingleThreaded::verify().step(|| "count the launcher's threads")?;
    let packet = fdpass::receive(control, ORDER_BYTES_MAX, Wait::Block).step(|| "receive the order")?;
    let packet = packet.ok_or_else(|| Error::Invalid("no order".into()))?;
    let order = pb::CreateContainer::decode(packet.data.as_slice())
        .map_err(|error| Error::Invalid(format!("the order cannot be read: {error}")))?;
    let terminal = order.stdio.as_ref().is_some_and(|stdio| stdio.terminal);
    let console =
        terminal.then(|| claim_inherited(CONSOLE_FD)).transpose().step(|| "claim the console socket")?;
    trace::install();
    let plan = Plan::load(order)?;
    let mut channels = Channels::open().map_err(|error| Error::Said(chain(&error)))?;
    let listener = init::open_gate(&plan)?;

    let birth = crate::cgroup::birth_directory(&plan.cgroup)?;
    let args = CloneArgs {
        parent: Parent::CallersParent,
        cgroup: birth.as_ref().map(std::os::fd::AsFd::as_fd),
        ..CloneArgs::default()
    };
    let child = match &plan.entry {
        None => {
            let args = CloneArgs { namespaces: enter_or_new_pid_namespace(&plan)?, ..args };
            let run = || init::run(&plan, control, console, listener, &mut channels);
            single.fork(&args, run).step(|| "clone the container's init")?
        }
        Some(entry) => {
            let birth = Birth { entry, middle: args, namespaces: plan.own_pid_namespace() };
            let run = || init::run(&plan, control, console, listener, &mut channels);
            userns::fork(single, &birth, || init::settle(&plan), run)?
        }
    };
    control::send_process(control, child.pid, child.pidfd.as_fd()).step(|| "report init")?;
    channels.serve_hooks(&plan, child.pid)
}

/// The clone flag for a PID namespace of its own; a given one is entered, so that the child is born there.
fn enter_or_new_pid_namespace(plan: &Plan) -> Result<u64> {
    let namespaces = plan.spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
    let pid = namespaces.into_iter().flatten().find(|ns| ns.typ() == LinuxNamespaceType::Pid);
    let Some(pid) = pid else { return Ok(0) };
    let Some(path) = pid.path() else { return Ok(CLONE_NEWPID) };
    enter_namespace(path, ThreadNameSpaceType::PROCESS_ID)?;
    Ok(0)
}

pub(crate) fn enter_namespace(path: &Path, kind: ThreadNameSpaceType) -> Result<()> {
    use rustix::fs::{Mode, OFlags};
    let step = || format!("enter the namespace {}", path.display());
    let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).step(step)?;
    #[allow(deprecated, reason = "takes one kind by a descriptor, which is what is meant")]
    rustix::thread::move_into_link_name_space(fd.as_fd(), Some(kind_of(kind))).step(step)
}

fn kind_of(kind: ThreadNameSpaceType) -> rustix::thread::LinkNameSpaceType {
    use rustix::thread::LinkNameSpaceType as Link;
    match kind {
        ThreadNameSpaceType::PROCESS_ID => Link::ProcessID,
        ThreadNameSpaceType::NETWORK => Link::Network,
        ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME => Link::HostNameAndNISDomainName,
        _ => Link::InterProcessCommunication,
    }
}

/// libcontainer's channels between its main process and init. Both processes hold all ends until init is executed, so that init
/// never fails for want of a reader.
pub(crate) struct Channels {
    to_main: channel::MainSender,
    from_init: channel::MainReceiver,
    to_init: channel::InitSender,
    from_main: channel::InitReceiver,
}

impl Channels {
    fn open() -> Result<Self, channel::ChannelError> {
        let (to_main, from_init) = channel::main_channel()?;
        let (to_init, from_main) = channel::init_channel()?;
        Ok(Self { to_main, from_init, to_init, from_main })
    }

    /// Runs the hooks that belong to the runtime's namespaces when init asks for them.
    fn serve_hooks(mut self, plan: &Plan, pid: i32) -> Result<()> {
        let Some(hooks) = plan.spec.hooks() else { return Ok(()) };
        let said = |error: &dyn std::error::Error| Error::Said(error.to_string());
        // Init's copy of this end is then the last one: when init dies, the wait below ends.
        self.to_main.close().map_err(|error| said(&error))?;
        if self.from_init.wait_for_hook_request().is_err() {
            // Init has failed before and has told so itself.
            return Ok(());
        }
        let container = plan.container()?;
        #[allow(deprecated, reason = "prestart hooks are still in use, and have to run")]
        let before = [hooks.prestart(), hooks.create_runtime()];
        for list in before {
            let pid = Some(nix::unistd::Pid::from_raw(pid));
            libcontainer::hooks::run_hooks(list.as_ref(), Some(&container.state), None, pid, None)
                .map_err(|error| Error::Said(format!("run a hook: {}", chain(&error))))?;
        }
        self.to_init.hook_done().map_err(|error| said(&error))
    }
}
