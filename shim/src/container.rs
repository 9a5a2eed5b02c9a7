//! One container and one exec, as the shim holds them.
//!
//! ```text
//! Creating ──ready──▶ Created ──start──▶ Starting ──executed──▶ Running ──init reaped──▶ Exited
//!    │ failed            │ init reaped       │ failed, init reaped ▲                         ▲
//!    ▼                   └──────────────────-┴────────────────────-┴─────────────────────────┘
//! forgotten
//! ```

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crisp_proto::supervisor as pb;
use crisp_sys::clone::Child;
use crisp_sys::pidfd::Ended;

use crate::attach::Input;
use crate::cgroup::ExecGroup;
use crate::command::Command;
use crate::hooks::Hooks;
use crate::output::Output;
use crate::process::Filtered;

/// Who asked: a connection and the number of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Asker {
    pub(crate) connection: u32,
    pub(crate) request: u64,
}

/// How far a container has come.
#[derive(Debug)]
pub(crate) enum Phase {
    /// Its launcher or its runtime binary is at work.
    Creating {
        asker: Asker,
        failure: Option<String>,
        patience: Patience,
    },
    /// Its init waits.
    Created,
    /// Its init was told to execute the program.
    Starting {
        /// Until it is answered.
        asker: Option<Asker>,
        failure: Option<String>,
        patience: Patience,
    },
    Running,
    /// The record is on disk.
    Exited(pb::Exit),
}

/// What takes too long is killed; what does not die of it is not waited for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Patience {
    deadline: Instant,
    killed: bool,
}

/// What a [`Patience`] comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Impatience {
    Kill,
    GiveUp,
}

/// How long something that was killed may take to die.
const DEATH_MAX: Duration = Duration::from_secs(5);

impl Patience {
    pub(crate) fn new(time: Duration) -> Self {
        Self { deadline: Instant::now() + time, killed: false }
    }

    pub(crate) fn deadline(self) -> Instant {
        self.deadline
    }

    /// What is due now, once each.
    pub(crate) fn due(&mut self, now: Instant) -> Option<Impatience> {
        if now < self.deadline {
            return None;
        }
        self.deadline = now + DEATH_MAX;
        Some(if std::mem::replace(&mut self.killed, true) { Impatience::GiveUp } else { Impatience::Kill })
    }

    /// It is being killed for another reason.
    pub(crate) fn shorten(&mut self) {
        *self = Self { deadline: Instant::now() + DEATH_MAX, killed: true };
    }
}

impl Phase {
    /// Of a creation or a start.
    pub(crate) fn patience(&mut self) -> Option<&mut Patience> {
        match self {
            Self::Creating { patience, .. } | Self::Starting { patience, .. } => Some(patience),
            Self::Created | Self::Running | Self::Exited(_) => None,
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Creating { .. } => "being created",
            Self::Created => "created",
            Self::Starting { .. } => "being started",
            Self::Running => "running",
            Self::Exited(_) => "exited",
        }
    }
}

/// The process of a container's init or of an exec.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    /// Nothing for one that had ended before it could be opened.
    pidfd: Option<OwnedFd>,
    /// Field 22 of `/proc/<pid>/stat`; 0 when it had ended before it could be read.
    start_time_ticks: u64,
}

impl Process {
    /// `None`: it was reaped already, so its number may be another's.
    pub(crate) fn new(pid: i32, pidfd: Option<OwnedFd>) -> Self {
        let Some(pidfd) = pidfd else { return Self { pid, pidfd, start_time_ticks: 0 } };
        let stat = std::fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
        // Read before this, the file was the process's own: its number was not free for another.
        let is_there = crisp_sys::pidfd::is_unreaped(&pidfd);
        let start_time_ticks = if is_there { parse_start_time(&stat).unwrap_or(0) } else { 0 };
        Self { pid, pidfd: Some(pidfd), start_time_ticks }
    }

    /// Names the process for good.
    pub(crate) fn started(&self) -> pb::reply::Result {
        pb::reply::Result::Started(pb::Started { pid: self.pid, start_time_ticks: self.start_time_ticks })
    }

    pub(crate) fn pidfd(&self) -> Option<&OwnedFd> {
        self.pidfd.as_ref()
    }

    /// Sends a signal (kernel number); one that has ended already is fine.
    pub(crate) fn signal(&self, number: i32) -> std::io::Result<()> {
        self.pidfd.as_ref().map_or(Ok(()), |pidfd| crisp_sys::pidfd::signal(pidfd, number))
    }

    pub(crate) fn kill(&self) -> std::io::Result<()> {
        self.pidfd.as_ref().map_or(Ok(()), crisp_sys::pidfd::kill)
    }
}

/// Field 22 of `/proc/<pid>/stat`. The second field is a name in brackets that may hold anything, brackets and spaces included.
fn parse_start_time(stat: &[u8]) -> Option<u64> {
    let after_name = stat.iter().rposition(|&byte| byte == b')')? + 1;
    let rest = std::str::from_utf8(&stat[after_name..]).ok()?;
    rest.split_ascii_whitespace().nth(22 - 3)?.parse().ok()
}

#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) order: pb::CreateContainer,
    pub(crate) phase: Phase,
    pub(crate) filtered: Filtered,
    /// Of a container that this shim makes itself.
    pub(crate) hooks: Hooks,
    /// Until it was reaped.
    pub(crate) launcher: Option<Child>,
    /// Until it was reaped.
    pub(crate) init: Option<Process>,
    /// Init has said that it waits for its start.
    pub(crate) ready: bool,
    /// How init ended, while its launcher still holds the control socket, whose end tells whether the program ran.
    pub(crate) ended: Option<Ended>,
    /// Until init has executed its program.
    pub(crate) control: Option<OwnedFd>,
    /// Where the terminal's master comes from.
    pub(crate) console: Option<OwnedFd>,
    pub(crate) output: Output,
    pub(crate) input: Input,
    /// OOM kills that its cgroup counted before it started.
    pub(crate) oom_kills_before: u64,
    /// Who waits for it to be forgotten, until when.
    pub(crate) deleters: Vec<(Asker, Instant)>,
}

impl Container {
    pub(crate) fn id(&self) -> &str {
        &self.order.container_id
    }

    pub(crate) fn state_dir(&self) -> &Path {
        Path::new(&self.order.state_dir)
    }

    pub(crate) fn bundle(&self) -> PathBuf {
        PathBuf::from(&self.order.bundle)
    }

    /// The state as a daemon is told; nothing while it is not made yet.
    pub(crate) fn state(&self) -> Option<pb::ContainerState> {
        let (phase, exit) = match &self.phase {
            Phase::Creating { .. } => return None,
            Phase::Created | Phase::Starting { .. } => (pb::Phase::Created, None),
            Phase::Running => (pb::Phase::Running, None),
            Phase::Exited(exit) => (pb::Phase::Exited, Some(*exit)),
        };
        let pid = self.init.as_ref().map_or(0, |init| init.pid);
        Some(pb::ContainerState { container_id: self.id().to_owned(), phase: phase.into(), pid, exit })
    }
}

#[derive(Debug)]
pub(crate) struct Exec {
    pub(crate) container: u32,
    pub(crate) id: String,
    /// Of whoever asked for it and hears its end.
    pub(crate) connection: u32,
    /// Until it is answered.
    pub(crate) asker: Option<Asker>,
    pub(crate) failure: Option<String>,
    pub(crate) process: Option<Process>,
    pub(crate) control: Option<OwnedFd>,
    pub(crate) terminal: Option<OwnedFd>,
    pub(crate) group: Option<ExecGroup>,
    /// When the whole tree is killed.
    pub(crate) deadline: Option<Instant>,
    /// Why, at the deadline.
    pub(crate) time_up: Kill,
    pub(crate) kill: Kill,
    /// When its tree was first killed.
    pub(crate) killed_at: Option<Instant>,
    /// When it is killed again, and the pause after that.
    pub(crate) kill_again: Option<(Instant, Duration)>,
    /// Reaped; its helper's end of the control socket, or its tree, is waited for.
    pub(crate) exit: Option<pb::Exit>,
}

impl Exec {
    /// Kills it after this time, unless its own time is up before.
    pub(crate) fn kill_at(&mut self, after: Duration) {
        let at = Instant::now().checked_add(after);
        if self.deadline.is_none_or(|deadline| at.is_some_and(|at| at < deadline)) {
            self.deadline = at;
            self.time_up = Kill::Asked;
        }
    }
}

/// Whether an exec is being killed, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kill {
    No,
    Asked,
    TimeUp,
}

/// What a command of an OCI runtime is for.
#[derive(Debug)]
pub(crate) enum Purpose {
    Create(u32),
    Start(u32),
    Delete(u32),
    /// Takes back what a failed creation has left.
    Undo(u32),
    Exec(u32),
    Poststart {
        key: u32,
        /// Of the start.
        asker: Asker,
    },
    Poststop(u32),
}

#[derive(Debug)]
pub(crate) struct RunningCommand {
    pub(crate) command: Command,
    pub(crate) purpose: Purpose,
    pub(crate) patience: Patience,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let fields = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20 21";
        for name in ["sh", "a b", "x) S 1 2", ""] {
            assert_eq!(parse_start_time(format!("12 ({name}) {fields}").as_bytes()), Some(4711), "{name}");
        }
        assert_eq!(parse_start_time(b"12 (sh) S 1"), None);
    }
}
