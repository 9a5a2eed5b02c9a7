//! What can go wrong between daemon and shim.

use std::path::PathBuf;
use std::time::Duration;

use crisp_domain::ErrorKind;

/// A request to a shim that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(clippy::error_impl_error, reason = "the one error of the supervisor")]
pub(crate) enum Error {
    #[error("prepare the shim's program")]
    Program(#[source] std::io::Error),
    #[error("bind {}", path.display())]
    Bind {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("start the shim of {}", pod_dir.display())]
    Spawn {
        pod_dir: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("connect to the shim at {}", path.display())]
    Connect {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("send a request to the shim")]
    Send(#[source] std::io::Error),
    #[error("the shim is gone: its connection is closed")]
    Closed,
    #[error("the shim did not answer {what} within {limit:?}")]
    Timeout { what: &'static str, limit: Duration },
    #[error("the shim's answer to {what} cannot be understood")]
    Answer { what: &'static str },
    #[error("a request of {size} bytes is larger than {max}")]
    TooLarge { size: usize, max: usize },
    #[error("prepare the descriptors of an exec")]
    Stdio(#[source] std::io::Error),
    #[error("{message}")]
    Refused { kind: ErrorKind, message: String },
}

impl Error {
    /// Whether it proves that no shim listens any more: its socket is gone, or nobody accepts on it. Everything else (no free
    /// descriptor, a full backlog, a slow answer) says nothing about its containers.
    pub(crate) fn proves_death(&self) -> bool {
        use std::io::ErrorKind::{ConnectionRefused, NotFound};
        matches!(self, Self::Connect { source, .. } if matches!(source.kind(), ConnectionRefused | NotFound))
    }

    /// What a caller can do about it.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused { kind, .. } => *kind,
            Self::Timeout { .. } => ErrorKind::Timeout,
            Self::TooLarge { .. } => ErrorKind::Invalid,
            Self::Closed | Self::Connect { .. } => ErrorKind::NotReady,
            Self::Program(_)
            | Self::Bind { .. }
            | Self::Spawn { .. }
            | Self::Send(_)
            | Self::Answer { .. }
            | Self::Stdio(_) => ErrorKind::Internal,
        }
    }
}
