//! What makes containers: libcontainer in a launcher, or an OCI runtime binary. Both are begun here and reported by the event loop,
//! so that no container waits for another.

use std::os::fd::OwnedFd;
use std::path::Path;

use crisp_proto::supervisor as pb;
use crisp_sys::clone::{Child, SingleThreaded};

use crate::builtin::Builtin;
use crate::command::Command;
use crate::error::{Error, Result};
use crate::oci::OciBinary;
use crate::process::Filtered;
use crate::restore::Restored;

/// The container's ends of its descriptors, to be closed in the shim once they were given away.
#[derive(Debug)]
pub(crate) struct ChildStdio {
    pub(crate) stdin: OwnedFd,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
}

/// Something begun, and what will tell its result.
#[derive(Debug)]
pub(crate) enum Begun {
    /// Reports come over a control socket; the launcher is a child of the shim and leads a process group.
    Launcher { child: Child, control: OwnedFd, console: Option<OwnedFd> },
    /// The end of a command tells.
    Command(Command),
}

/// What an exec is begun with.
#[derive(Debug)]
pub(crate) struct ExecOrder<'a> {
    pub(crate) container_id: &'a str,
    pub(crate) exec_id: &'a str,
    pub(crate) bundle: &'a Path,
    pub(crate) state_dir: &'a Path,
    pub(crate) filtered: Filtered,
    /// Of the container's init.
    pub(crate) init: &'a OwnedFd,
    /// In the host's PID namespace.
    pub(crate) init_pid: i32,
    pub(crate) process_json: &'a [u8],
    pub(crate) cgroup: &'a pb::Cgroup,
    /// `None` for a terminal.
    pub(crate) stdio: Option<ChildStdio>,
}

/// A kind of container maker.
pub(crate) trait Runtime {
    /// Begins to make the container up to the point where its init waits.
    fn create(&self, order: &pb::CreateContainer, stdio: ChildStdio) -> Result<Begun>;

    /// Lets init execute its program. `control`: what [`Begun::Launcher`] gave. `None`: the control socket tells when, or, where there
    /// is none, it runs by now.
    fn start(&self, order: &pb::CreateContainer, control: Option<&OwnedFd>) -> Result<Option<Command>>;

    /// Begins an exec.
    fn exec(&self, order: ExecOrder<'_>) -> Result<Begun>;

    /// Removes what the handler itself keeps of an ended container, if it keeps anything.
    fn delete(&self, order: &pb::CreateContainer) -> Result<Option<Command>>;
}

/// The handler that a request names.
pub(crate) fn of(handler: Option<&pb::Handler>, single: SingleThreaded) -> Result<Box<dyn Runtime>> {
    match handler.and_then(|handler| handler.kind.as_ref()) {
        Some(pb::handler::Kind::Builtin(_)) => Ok(Box::new(Builtin::new(single))),
        Some(pb::handler::Kind::OciBinary(binary)) => Ok(Box::new(OciBinary::new(single, binary.clone())?)),
        Some(pb::handler::Kind::Restore(restore)) => Ok(Box::new(Restored::new(single, restore.clone())?)),
        None => Err(Error::Unsupported("a handler of this kind".into())),
    }
}
