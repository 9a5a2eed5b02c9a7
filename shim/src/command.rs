//! A foreign program that the shim runs and waits for: an OCI runtime binary.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use crisp_sys::clone::{Child, CloneArgs, SingleThreaded, close_on_exec_from, dup_above, dup_onto};
use crisp_sys::pidfd::{self, Ended};
use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal};

use crate::error::{Error, Result, Step as _};

/// How much of a program's log is looked at for its last word.
const LOG_BYTES_MAX: u64 = 64 * 1024;
/// Descriptors are moved above this before they are put in their places.
const FD_FLOOR: i32 = 10;
/// What runtimes search programs in.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program to be run.
#[derive(Debug)]
pub(crate) struct Order {
    /// Absolute; `None` is the first argument.
    pub(crate) program: Option<String>,
    pub(crate) args: Vec<String>,
    /// `None` is what runtimes get: a path to search programs in.
    pub(crate) env: Option<Vec<String>>,
    /// 0, 1 and 2; `None` is `/dev/null`.
    pub(crate) stdio: Option<[OwnedFd; 3]>,
    /// Where it writes its log (one JSON object per line).
    pub(crate) log: PathBuf,
    /// Where it writes the pid of what it made.
    pub(crate) pid_file: Option<PathBuf>,
    /// A listening socket that it sends a terminal's master to.
    pub(crate) console: Option<OwnedFd>,
}

/// Which cgroup namespace a program runs in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Namespace {
    #[default]
    Shims,
    /// One whose root is the program's cgroup.
    Own,
}

/// Where a program runs, and what it gets beyond its stdio.
#[derive(Debug, Default)]
pub(crate) struct Surroundings {
    /// `None` is the shim's own.
    pub(crate) cgroup: Option<crisp_proto::supervisor::Cgroup>,
    pub(crate) cgroup_namespace: Namespace,
    /// Its descriptors from 3 on.
    pub(crate) inherited: Vec<OwnedFd>,
}

/// A running program.
#[derive(Debug)]
pub(crate) struct Command {
    pub(crate) child: Child,
    what: String,
    log: PathBuf,
    pid_file: Option<PathBuf>,
    console: Option<OwnedFd>,
}

/// What a program that ended well has left behind.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) pid: Option<i32>,
    pub(crate) terminal: Option<OwnedFd>,
}

impl Command {
    pub(crate) fn start(single: SingleThreaded, order: Order) -> Result<Self> {
        Self::start_in(single, order, &Surroundings::default())
    }

    /// As [`Self::start`], somewhere else.
    pub(crate) fn start_in(single: SingleThreaded, order: Order, around: &Surroundings) -> Result<Self> {
        let what = order.args.join(" ");
        let strings = |strings: Vec<String>| -> Result<Vec<CString>> {
            let strings: Result<_, _> = strings.into_iter().map(CString::new).collect();
            strings.map_err(|_nul| Error::Invalid(format!("an argument of {what} holds a NUL character")))
        };
        let mut program = strings(vec![order.program.unwrap_or_else(|| order.args[0].clone())])?;
        let (args, env) =
            (strings(order.args)?, strings(order.env.unwrap_or_else(|| vec![PATH.to_owned()]))?);
        let program = program.pop().unwrap_or_default();
        for stale in [Some(&order.log), order.pid_file.as_ref()].into_iter().flatten() {
            let _not_there = std::fs::remove_file(stale);
        }
        let stdio = match order.stdio {
            Some(stdio) => stdio,
            None => [null()?, null()?, null()?],
        };
        let birth = around.cgroup.as_ref().map(crate::cgroup::birth_directory).transpose()?.flatten();
        let clone = CloneArgs { cgroup: birth.as_ref().map(|dir| dir.as_fd()), ..CloneArgs::default() };
        let child = single
            .fork(&clone, || {
                run((&program, &args, &env), &stdio, around);
                127
            })
            .step(|| format!("start {what}"))?;
        Ok(Self { child, what, log: order.log, pid_file: order.pid_file, console: order.console })
    }

    /// Its command line.
    pub(crate) fn what(&self) -> &str {
        &self.what
    }

    /// What became of it.
    pub(crate) fn finish(self, ended: Ended) -> Result<Outcome> {
        if ended != Ended::Code(0) {
            let said = last_error(&self.log).unwrap_or_else(|| format!("it ended with {ended:?}"));
            return Err(Error::Said(format!("{}: {said}", self.what)));
        }
        let pid = self.pid_file.as_ref().map(|path| {
            let text = std::fs::read_to_string(path).step(|| format!("read {}", path.display()))?;
            text.trim()
                .parse()
                .map_err(|_not_a_number| Error::Said(format!("{}: its pid file holds {text:?}", self.what)))
        });
        let terminal = self.console.as_ref().map(receive_terminal).transpose()?;
        Ok(Outcome { pid: pid.transpose()?, terminal })
    }
}

/// Kills a child and all of the process group that it leads.
pub(crate) fn kill_group(child: &Child) {
    // While nobody has waited for the leader, the group's number is its own.
    if pidfd::is_unreaped(&child.pidfd)
        && let Some(pid) = Pid::from_raw(child.pid)
    {
        let _no_such_group = rustix::process::kill_process_group(pid, Signal::KILL);
    }
    let _gone = pidfd::kill(&child.pidfd);
}

pub(crate) fn null() -> Result<OwnedFd> {
    rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).step(|| "open /dev/null")
}

fn run(
    (program, args, env): (&CStr, &[CString], &[CString]),
    stdio: &[OwnedFd; 3],
    Surroundings { cgroup, cgroup_namespace, inherited }: &Surroundings,
) {
    if cgroup.as_ref().is_some_and(|cgroup| crate::cgroup::join(cgroup).is_err()) {
        return;
    }
    if *cgroup_namespace == Namespace::Own && crisp_sys::clone::enter_new_cgroup_namespace().is_err() {
        return;
    }
    let fds = stdio.iter().chain(inherited);
    let place = || -> std::io::Result<()> {
        let floor = FD_FLOOR.max(i32::try_from(3 + inherited.len()).unwrap_or(i32::MAX));
        let moved = fds.map(|fd| dup_above(fd, floor)).collect::<Result<Vec<_>, _>>()?;
        let after =
            (0..).zip(&moved).try_fold(0, |_, (number, fd)| dup_onto(fd, number).map(|()| number + 1))?;
        close_on_exec_from(after)?;
        // A group of its own, to be killed whole: it starts programs itself.
        rustix::process::setsid()?;
        crisp_sys::clone::reset_signals()
    };
    if place().is_ok() && crate::process::unspare().is_ok() {
        let _error = crisp_sys::clone::exec(program, args, env);
    }
}

/// The last error in a log of JSON lines, or its last line.
fn last_error(log: &std::path::Path) -> Option<String> {
    let mut text = String::new();
    File::open(log).ok()?.take(LOG_BYTES_MAX).read_to_string(&mut text).ok()?;
    let message = |line: &str| {
        let json: serde_json::Value = serde_json::from_str(line).ok()?;
        (json.get("level")?.as_str()? == "error").then(|| json.get("msg")?.as_str().map(str::to_owned))?
    };
    text.lines().rev().find_map(message).or_else(|| text.lines().next_back().map(str::to_owned))
}

fn receive_terminal(listener: &OwnedFd) -> Result<OwnedFd> {
    use rustix::net::SocketFlags;
    let step = || "receive the terminal";
    let socket =
        rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).step(step)?;
    crisp_sys::fdpass::receive_from_stream(socket).step(step)
}
