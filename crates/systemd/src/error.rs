use std::path::PathBuf;

use crisp_domain::ErrorKind;

/// Result of this crate's operations.
pub type Result<T, E = SystemdError> = std::result::Result<T, E>;

/// What went wrong between us and systemd.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SystemdError {
    /// A text that names no slice.
    #[error("{name:?} names no systemd slice: it {reason}")]
    Name {
        /// What was given, cut.
        name: String,
        /// Why not.
        reason: &'static str,
    },
    /// A limit that cannot be said to systemd.
    #[error("{field} = {value:?}: {reason}")]
    Resource {
        /// The field of [`crisp_cgroup::Resources`].
        field: &'static str,
        /// Its value, cut.
        value: String,
        /// Why not.
        reason: &'static str,
    },
    /// Nobody answers at systemd's socket.
    #[error("connect to systemd at {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// The connection broke during a call.
    #[error("the connection to systemd broke during {call}")]
    Broken {
        /// The method.
        call: &'static str,
        /// The kernel's answer.
        source: std::io::Error,
    },
    /// No answer in time.
    #[error("systemd did not answer {call} within {limit_ms} ms")]
    Timeout {
        /// The method, or what was waited for.
        call: &'static str,
        /// How long it was waited for.
        limit_ms: u64,
    },
    /// An answer that is no D-Bus message, or not the one that was asked for.
    #[error("systemd's answer to {call} cannot be read: {what}")]
    Protocol {
        /// The method.
        call: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
    /// systemd said no.
    #[error("systemd refuses {call} of {unit}: {message} ({name})")]
    Refused {
        /// The method.
        call: &'static str,
        /// The unit.
        unit: String,
        /// D-Bus name of the error.
        name: String,
        /// systemd's words.
        message: String,
    },
    /// The scope's process ended before the scope was there.
    #[error("the process that holds {unit} ended before the scope was made")]
    HolderEnded {
        /// The scope.
        unit: String,
    },
    /// Where a process is accounted cannot be read.
    #[error("read {}", path.display())]
    Kernel {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: std::io::Error,
    },
}

impl SystemdError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Name { .. } | Self::Resource { .. } => ErrorKind::Invalid,
            Self::Connect { .. } | Self::Broken { .. } => ErrorKind::NotReady,
            Self::Timeout { .. } => ErrorKind::Timeout,
            Self::Refused { name, .. } => kind_of(name),
            Self::Protocol { .. } | Self::HolderEnded { .. } | Self::Kernel { .. } => ErrorKind::Internal,
        }
    }

    /// Another try, on another connection, may do: nobody was there, or left in the middle (`daemon-reexec`).
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Broken { .. })
    }
}

/// Source: sd-bus-errors, bus-common-errors.h.
fn kind_of(name: &str) -> ErrorKind {
    match name.rsplit('.').next().unwrap_or_default() {
        "UnitExists" => ErrorKind::Exists,
        "NoSuchUnit" | "UnknownObject" => ErrorKind::NotFound,
        "InvalidArgs" | "PropertyReadOnly" | "UnknownProperty" | "BadUnitSetting" => ErrorKind::Invalid,
        "LimitsExceeded" | "NoMemory" => ErrorKind::Exhausted,
        "Timeout" | "NoReply" => ErrorKind::Timeout,
        _ => ErrorKind::Internal,
    }
}
