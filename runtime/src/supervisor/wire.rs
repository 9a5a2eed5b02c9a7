//! What daemon and shim tell each other, as domain types; the conversions from and to the messages live here alone.

use std::path::PathBuf;

use crisp_domain::{ContainerId, ErrorKind, ExitStatus, Timestamp};
use crisp_proto::supervisor as pb;

use super::Error;

/// How a new process enters a cgroup that exists already.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CgroupEntry {
    /// v1: the `tasks` file of each hierarchy.
    pub(crate) v1_tasks: Vec<PathBuf>,
    /// v2: the cgroup's directory.
    pub(crate) v2_dir: Option<PathBuf>,
    /// v1 `memory.oom_control`, v2 `memory.events`.
    pub(crate) oom_file: Option<PathBuf>,
}

/// Where a container's input and output go.
#[derive(Debug, Clone, Default)]
#[expect(clippy::struct_excessive_bools, reason = "as in the protocol")]
pub(crate) struct Stdio {
    pub(crate) terminal: bool,
    pub(crate) stdin: bool,
    pub(crate) stdin_once: bool,
    /// Absolute path of the CRI log; `None` discards the output.
    pub(crate) log_path: Option<PathBuf>,
    /// Content bytes of one log entry; `None` is the default, 16 KiB.
    pub(crate) log_line_bytes_max: Option<u32>,
}

/// Who makes the container.
#[derive(Debug, Clone)]
pub(crate) enum HandlerKind {
    /// libcontainer, in the shim's launcher.
    Builtin,
    /// An OCI runtime binary, called by its command line.
    OciBinary {
        path: PathBuf,
        /// Its `--root`.
        root: PathBuf,
        systemd_cgroup: bool,
        /// Arguments before the sub-command.
        global_args: Vec<String>,
    },
    /// A program that brings a checkpoint's processes back and leaves them stopped until the start.
    Restore {
        program: PathBuf,
        args: Vec<String>,
        /// Files that are handed over as descriptors, from 6 on.
        inherited: Vec<PathBuf>,
        /// In a cgroup namespace of its own.
        cgroup_namespace: bool,
    },
}

/// A container to be made: its directories exist, `config.json` is written, its root filesystem is mounted.
#[derive(Debug, Clone)]
pub(crate) struct ContainerSetup {
    pub(crate) id: ContainerId,
    /// Holds `config.json` and, when the specification has a seccomp section, `seccomp.bpf`.
    pub(crate) bundle: PathBuf,
    /// The shim keeps `exit.json` here.
    pub(crate) state_dir: PathBuf,
    pub(crate) cgroup: CgroupEntry,
    pub(crate) stdio: Stdio,
    pub(crate) handler: HandlerKind,
}

/// A process was made; pid (of the host's PID namespace) and start time name it for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Started {
    pub(crate) pid: i32,
    /// Field 22 of `/proc/<pid>/stat`, clock ticks since boot.
    pub(crate) start_time_ticks: u64,
}

/// How and when a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    pub(crate) status: ExitStatus,
    pub(crate) finished_at: Timestamp,
    /// The kernel killed for lack of memory in the container's cgroup.
    pub(crate) oom_killed: bool,
}

/// What a shim holds, by its own account.
#[derive(Debug, Clone)]
pub(crate) struct ShimState {
    pub(crate) shim_pid: i32,
    pub(crate) containers: Vec<ContainerStatus>,
}

/// One container of a [`ShimState`].
#[derive(Debug, Clone)]
pub(crate) struct ContainerStatus {
    pub(crate) id: ContainerId,
    pub(crate) phase: ContainerPhase,
}

/// How far a container has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContainerPhase {
    /// Its init waits for the start, or runs.
    Alive,
    Exited(Exit),
}

/// What a shim tells unasked. The exit record is on disk by then.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    ContainerExited {
        id: ContainerId,
        exit: Exit,
    },
    /// The pod's PID 1 has ended, and with it everything in its PID namespace.
    PodInitExited,
}

/// Why the shim let an attacher go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttachEnd {
    /// The container has exited.
    Exited(Exit),
    /// The container has closed every stream that was attached, and runs on; or its exit is about to be told.
    StreamsEnded,
    /// The client did not keep up and was dropped.
    TooSlow,
}

/// Name of the shim's exit record in a container's state directory.
const EXIT_RECORD: &str = "exit.json";
/// Bytes of an exit record.
const EXIT_RECORD_BYTES_MAX: u64 = 4096;

/// The exit record that a shim left; `None` when there is none that can be read.
pub(crate) fn exit_record(state_dir: &std::path::Path) -> Option<Exit> {
    #[derive(serde::Deserialize)]
    struct Record {
        version: u32,
        code: u32,
        signal: u32,
        finished_at: i64,
        oom_killed: bool,
    }
    let file = std::fs::File::open(state_dir.join(EXIT_RECORD)).ok()?;
    let record: Record = serde_json::from_reader(std::io::Read::take(file, EXIT_RECORD_BYTES_MAX)).ok()?;
    let Record { version: 1, code, signal, finished_at, oom_killed } = record else { return None };
    Some(exit(pb::Exit { code, signal, finished_at, oom_killed }))
}

pub(super) fn exit(exit: pb::Exit) -> Exit {
    let byte = |number: u32| u8::try_from(number).unwrap_or(u8::MAX);
    let status = match exit.signal {
        0 => ExitStatus::Code(byte(exit.code)),
        signal => ExitStatus::Signal(byte(signal)),
    };
    Exit { status, finished_at: Timestamp(exit.finished_at), oom_killed: exit.oom_killed }
}

pub(super) fn started(started: pb::Started) -> Started {
    Started { pid: started.pid, start_time_ticks: started.start_time_ticks }
}

pub(super) fn refused(failure: pb::Failure) -> Error {
    let kind = match failure.code() {
        pb::Code::Internal => ErrorKind::Internal,
        pb::Code::NotFound => ErrorKind::NotFound,
        pb::Code::Invalid => ErrorKind::Invalid,
        pb::Code::Exists => ErrorKind::Exists,
        pb::Code::WrongState => ErrorKind::WrongState,
        pb::Code::Unsupported => ErrorKind::Unsupported,
        pb::Code::Exhausted => ErrorKind::Exhausted,
    };
    Error::Refused { kind, message: failure.message }
}

/// An exit; `None` for an id that is none.
pub(super) fn container_exited(exited: pb::ContainerExited) -> Option<Event> {
    let id = exited.container_id.parse().ok()?;
    Some(Event::ContainerExited { id, exit: exit(exited.exit.unwrap_or_default()) })
}

pub(super) fn attach_end(ended: &pb::AttachEnded) -> AttachEnd {
    match ended.exit {
        Some(reported) => AttachEnd::Exited(exit(reported)),
        None if ended.streams_ended => AttachEnd::StreamsEnded,
        None => AttachEnd::TooSlow,
    }
}

pub(super) fn state(state: pb::State) -> Result<ShimState, Error> {
    let containers = state.containers.into_iter().map(container).collect::<Result<_, _>>()?;
    Ok(ShimState { shim_pid: state.shim_pid, containers })
}

fn container(container: pb::ContainerState) -> Result<ContainerStatus, Error> {
    let unreadable = Error::Answer { what: "Hello" };
    let phase = match container.phase() {
        pb::Phase::Created | pb::Phase::Running => ContainerPhase::Alive,
        pb::Phase::Exited => ContainerPhase::Exited(exit(container.exit.unwrap_or_default())),
    };
    Ok(ContainerStatus { id: container.container_id.parse().map_err(|_no_id| unreadable)?, phase })
}

pub(super) fn cgroup(entry: &CgroupEntry) -> pb::Cgroup {
    let text = |path: &PathBuf| path.display().to_string();
    pb::Cgroup {
        v1_tasks: entry.v1_tasks.iter().map(text).collect(),
        v2_dir: entry.v2_dir.as_ref().map(text).unwrap_or_default(),
        oom_file: entry.oom_file.as_ref().map(text).unwrap_or_default(),
    }
}

pub(super) fn create(setup: &ContainerSetup) -> pb::CreateContainer {
    pb::CreateContainer {
        container_id: setup.id.to_string(),
        bundle: setup.bundle.display().to_string(),
        state_dir: setup.state_dir.display().to_string(),
        cgroup: Some(cgroup(&setup.cgroup)),
        stdio: Some(stdio(&setup.stdio)),
        handler: Some(handler(&setup.handler)),
    }
}

fn stdio(stdio: &Stdio) -> pb::Stdio {
    pb::Stdio {
        terminal: stdio.terminal,
        stdin: stdio.stdin,
        stdin_once: stdio.stdin_once,
        log_path: stdio.log_path.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        log_line_bytes_max: stdio.log_line_bytes_max.unwrap_or(0),
    }
}

fn handler(handler: &HandlerKind) -> pb::Handler {
    let kind = match handler {
        HandlerKind::Builtin => pb::handler::Kind::Builtin(pb::Builtin {}),
        HandlerKind::OciBinary { path, root, systemd_cgroup, global_args } => {
            pb::handler::Kind::OciBinary(pb::OciBinary {
                path: path.display().to_string(),
                root: root.display().to_string(),
                systemd_cgroup: *systemd_cgroup,
                global_args: global_args.clone(),
            })
        }
        HandlerKind::Restore { program, args, inherited, cgroup_namespace } => {
            pb::handler::Kind::Restore(pb::Restore {
                cgroup_namespace: *cgroup_namespace,
                program: program.display().to_string(),
                args: args.clone(),
                inherited: inherited.iter().map(|path| path.display().to_string()).collect(),
            })
        }
    };
    pb::Handler { kind: Some(kind) }
}
