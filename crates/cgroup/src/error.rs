use std::path::PathBuf;

use crisp_domain::ErrorKind;
use rustix::io::Errno;

/// What went wrong with a cgroup. Errors of the kernel carry the file and the value, so that a log line repeats the call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CgroupError {
    /// Neither cgroup v1 hierarchies nor cgroup v2 are mounted.
    #[error("no cgroup file system is mounted")]
    NotMounted,
    /// A text that is not a cgroup path.
    #[error("cgroup path {path:?} {reason}")]
    Path {
        /// The text, cut to its first bytes when it is long.
        path: String,
        /// What is wrong with it, as the rest of a sentence.
        reason: &'static str,
    },
    /// A limit that can never be applied on this kind of machine.
    #[error("resource {field} = {value:?}: {reason}")]
    Resource {
        /// Name of the field, as in [`crate::Resources`].
        field: &'static str,
        /// The value.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A limit was asked for whose controller this machine lacks.
    #[error("this machine has no cgroup controller {controller}, which {field} needs")]
    NoController {
        /// Kernel name, such as `memory`.
        controller: &'static str,
        /// What asked for it.
        field: &'static str,
    },
    /// A cgroup of this name is there and in use.
    #[error("cgroup {} exists and is in use", path.display())]
    Exists {
        /// The directory.
        path: PathBuf,
    },
    /// `mkdir` failed.
    #[error("make cgroup {}", path.display())]
    Make {
        /// The directory.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
    /// A directory or file could not be opened or read. `ENOENT` here means that the cgroup is gone.
    #[error("read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
    /// The kernel refused a value.
    #[error("write {value:?} to {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What was written.
        value: String,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
    /// A file holds what we do not understand.
    #[error("{} holds {text:?}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Its first bytes.
        text: String,
    },
    /// A memory limit below what is in use and cannot be reclaimed.
    #[error("memory limit {limit} of {} is below the {usage} bytes in use", path.display())]
    BelowUsage {
        /// The cgroup.
        path: PathBuf,
        /// Wanted limit in bytes.
        limit: u64,
        /// Bytes in use.
        usage: u64,
    },
    /// An update failed, and so did writing back an old value.
    #[error("{cause}; an old value was not restored")]
    NotRestored {
        /// Why the update failed.
        cause: Box<CgroupError>,
        /// Why the old value could not be written.
        #[source]
        source: Box<CgroupError>,
    },
    /// The device filter could not be installed (cgroup v2).
    #[error("install the device filter of cgroup {}", path.display())]
    DeviceFilter {
        /// The directory.
        path: PathBuf,
        /// Which call failed and how; `EPERM` names the capability that is missing.
        #[source]
        source: crisp_sys::bpf::BpfError,
    },
    /// Processes are left after the time a kill or a removal may take.
    #[error("processes {pids:?} are left in cgroup {} after {waited_ms} ms", path.display())]
    Populated {
        /// The cgroup.
        path: PathBuf,
        /// Some of the processes.
        pids: Vec<i32>,
        /// How long we waited.
        waited_ms: u64,
    },
    /// A process could not be signalled.
    #[error("kill process {pid} of cgroup {}", path.display())]
    Kill {
        /// The cgroup.
        path: PathBuf,
        /// The process.
        pid: i32,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
    /// `rmdir` failed.
    #[error("remove cgroup {}", path.display())]
    Remove {
        /// The directory.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
    /// More sub-cgroups, processes or bytes than we handle.
    #[error("{what} of {} exceed {max}", path.display())]
    TooMany {
        /// The cgroup or file.
        path: PathBuf,
        /// What there is too much of.
        what: &'static str,
        /// The limit.
        max: usize,
    },
}

/// `Result` of this crate.
pub type Result<T> = std::result::Result<T, CgroupError>;

impl CgroupError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Path { .. } | Self::Resource { .. } => ErrorKind::Invalid,
            Self::NotMounted | Self::NoController { .. } => ErrorKind::Unsupported,
            Self::Exists { .. } => ErrorKind::Exists,
            Self::BelowUsage { .. } => ErrorKind::WrongState,
            Self::Populated { .. } => ErrorKind::Timeout,
            Self::TooMany { .. } => ErrorKind::Exhausted,
            Self::Write { source: Errno::INVAL | Errno::RANGE, .. } => ErrorKind::Invalid,
            Self::Make { source, .. } => kind_of(*source),
            Self::Read { source, .. } | Self::Write { source, .. } | Self::Remove { source, .. } => {
                kind_of(*source)
            }
            Self::NotRestored { .. } | Self::Parse { .. } | Self::DeviceFilter { .. } | Self::Kill { .. } => {
                ErrorKind::Internal
            }
        }
    }
}

fn kind_of(source: Errno) -> ErrorKind {
    match source {
        Errno::NOENT | Errno::NODEV => ErrorKind::NotFound,
        Errno::AGAIN | Errno::NOSPC | Errno::NOMEM | Errno::MFILE | Errno::NFILE => ErrorKind::Exhausted,
        _ => ErrorKind::Internal,
    }
}
