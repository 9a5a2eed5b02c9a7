//! What daemon and shim tell each other, as domain types; the conversions from and to the messages live here alone.

use std::path::PathBuf;
use std::time::Duration;

use crisp_domain::{ContainerId, ExitStatus, Timestamp};
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
    pub(crate) protocol: u32,
    pub(crate) shim_pid: i32,
    /// The pod's PID 1, when containers share a PID namespace.
    pub(crate) pod_init_pid: Option<i32>,
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
    /// Its init waits for the start.
    Created { pid: i32 },
    Running { pid: i32 },
    Exited(Exit),
}

/// What a shim tells unasked. The exit record is on disk by then.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    ContainerExited { id: ContainerId, exit: Exit },
    ExecExited { container: ContainerId, exec_id: String, exit: Exit, timed_out: bool },
}
