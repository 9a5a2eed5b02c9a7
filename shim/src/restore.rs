//! The handler of a container that is brought back from a checkpoint. The program that does it (criu) makes init as a child of the shim
//! and leaves everything stopped, so that whoever asked can look at it before it runs.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use crisp_proto::supervisor as pb;
use crisp_sys::clone::SingleThreaded;
use rustix::fs::{Mode, OFlags};

use crate::builtin::Builtin;
use crate::command::{Command, Namespace, Order, Surroundings};
use crate::error::{Error, Result, Step as _};
use crate::handler::{Begun, ChildStdio, ExecOrder, Runtime};

/// Number of SIGCONT.
const SIGCONT: i32 = 18;
/// Files that may be handed over.
const INHERITED_MAX: usize = 16;

#[derive(Debug)]
pub(crate) struct Restored {
    single: SingleThreaded,
    restore: pb::Restore,
}

impl Restored {
    pub(crate) fn new(single: SingleThreaded, restore: pb::Restore) -> Result<Self> {
        if !Path::new(&restore.program).is_absolute() {
            return Err(Error::Invalid(format!("the program {:?} is not an absolute path", restore.program)));
        }
        if restore.inherited.len() > INHERITED_MAX {
            return Err(Error::Limit(format!("more than {INHERITED_MAX} files are handed over")));
        }
        Ok(Self { single, restore })
    }
}

impl Runtime for Restored {
    fn create(&self, order: &pb::CreateContainer, stdio: ChildStdio) -> Result<Begun> {
        if order.stdio.as_ref().is_some_and(|stdio| stdio.terminal) {
            return Err(Error::Unsupported("bringing a terminal back".into()));
        }
        let state_dir = Path::new(&order.state_dir);
        let mut inherited = vec![stdio.stdin, stdio.stdout, stdio.stderr];
        for path in &self.restore.inherited {
            inherited.push(open(path)?);
        }
        let mut args = vec![self.restore.program.clone()];
        args.extend(self.restore.args.iter().cloned());
        let (log, pid_file) = (state_dir.join("restore.log"), state_dir.join("init.pid"));
        let order_of_program = Order {
            program: None,
            args,
            env: None,
            stdio: None,
            log,
            pid_file: Some(pid_file),
            console: None,
        };
        let cgroup_namespace = if self.restore.cgroup_namespace { Namespace::Own } else { Namespace::Shims };
        let around = Surroundings { cgroup: order.cgroup.clone(), cgroup_namespace, inherited };
        Command::start_in(self.single, order_of_program, &around).map(Begun::Command)
    }

    /// Continues everything, the processes that init has started before the checkpoint as well.
    fn start(&self, order: &pb::CreateContainer, _: Option<&OwnedFd>) -> Result<Option<Command>> {
        for pid in crate::cgroup::members(&order.cgroup.clone().unwrap_or_default())? {
            // The number is that of a stopped process, which cannot end but by a kill; that is told otherwise.
            if let Ok(pidfd) = crisp_sys::pidfd::open(pid) {
                crisp_sys::pidfd::signal(pidfd.as_fd(), SIGCONT)
                    .step(|| format!("continue process {pid}"))?;
            }
        }
        Ok(None)
    }

    fn exec(&self, order: ExecOrder<'_>) -> Result<Begun> {
        Builtin::new(self.single).exec(order)
    }

    fn delete(&self, order: &pb::CreateContainer) -> Result<Option<Command>> {
        for name in ["restore.log", "init.pid"] {
            let _not_there = std::fs::remove_file(PathBuf::from(&order.state_dir).join(name));
        }
        Ok(None)
    }
}

fn open(path: &str) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).step(|| format!("open {path}"))
}
