//! The handler `crisp`: libcontainer in a launcher, and the shim's own way into a running container.

use std::ffi::CString;
use std::os::fd::{AsFd as _, OwnedFd};

use crisp_proto::supervisor as pb;
use crisp_sys::clone::{CloneArgs, SingleThreaded, dup_above, dup_onto};
use crisp_sys::fdpass::{self, Wait};
use prost::Message as _;

use crate::command::Command;
use crate::control::{self, CONSOLE_FD, CONTROL_FD};
use crate::error::{Error, Result, Step as _};
use crate::handler::{Begun, ChildStdio, ExecOrder, Runtime};

/// Descriptors are moved above this before they are put in their places, so that none overwrites another.
const FD_FLOOR: i32 = 10;

#[derive(Debug, Clone, Copy)]
pub(crate) struct Builtin {
    single: SingleThreaded,
}

impl Builtin {
    pub(crate) fn new(single: SingleThreaded) -> Self {
        Self { single }
    }
}

impl Runtime for Builtin {
    fn create(&self, order: &pb::CreateContainer, stdio: ChildStdio) -> Result<Begun> {
        let (control, theirs) = fdpass::pair().step(|| "make a control socket")?;
        fdpass::send(&control, &order.encode_to_vec(), &[], Wait::Never)
            .step(|| "send the launcher its order")?;
        let terminal = order.stdio.as_ref().is_some_and(|stdio| stdio.terminal);
        let console = terminal.then(fdpass::pair).transpose().step(|| "make a console socket")?;
        let (console, their_console) = console.unzip();
        let mut fds = vec![stdio.stdin, stdio.stdout, stdio.stderr, theirs];
        fds.extend(their_console);
        debug_assert_eq!((CONTROL_FD, CONSOLE_FD), (3, 4), "places in the list above");
        let child = self
            .single
            .fork(&CloneArgs::default(), || {
                // A group of its own, to be killed whole: it runs hooks.
                let _leader = rustix::process::setsid();
                run_self(&fds, &["launch"]);
                127
            })
            .step(|| "start the launcher")?;
        Ok(Begun::Launcher { child, control, console })
    }

    fn start(&self, order: &pb::CreateContainer, control: Option<&OwnedFd>) -> Result<Option<Command>> {
        let gone =
            || Error::WrongState { id: order.container_id.clone(), state: "without an init that waits" };
        control::send_go(control.ok_or_else(gone)?).step(|| "tell init to start")?;
        Ok(None)
    }

    fn exec(&self, order: ExecOrder<'_>) -> Result<Begun> {
        let (control, theirs) = fdpass::pair().step(|| "make a control socket")?;
        let birth = crate::cgroup::birth_directory(order.cgroup)?;
        let args = CloneArgs { cgroup: birth.as_ref().map(|dir| dir.as_fd()), ..CloneArgs::default() };
        let child = self
            .single
            .fork(&args, || crate::exec::run(self.single, &order, &theirs))
            .step(|| "start the helper of an exec")?;
        Ok(Begun::Launcher { child, control, console: None })
    }

    fn delete(&self, _: &pb::CreateContainer) -> Result<Option<Command>> {
        Ok(None)
    }
}

/// Executes this program anew, from the memory file that it runs from, with these descriptors as 0, 1, 2, …; returns on error.
pub(crate) fn run_self(fds: &[OwnedFd], args: &[&str]) {
    let place = || -> std::io::Result<()> {
        let moved = fds.iter().map(|fd| dup_above(fd, FD_FLOOR)).collect::<Result<Vec<_>, _>>()?;
        (0..).zip(&moved).try_for_each(|(number, fd)| dup_onto(fd, number))
    };
    let args: Result<Vec<CString>, _> =
        ["crisp-shim"].iter().chain(args).copied().map(CString::new).collect();
    if let (Ok(()), Ok(()), Ok(args)) = (place(), crate::process::unspare(), args) {
        // Signals stay blocked in this copy of the shim; the new program wants none of that.
        let _unchanged = crisp_sys::clone::reset_signals();
        let _error = crisp_sys::clone::exec(c"/proc/self/exe", &args, &[]);
    }
}
