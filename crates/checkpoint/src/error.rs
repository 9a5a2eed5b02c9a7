use std::io;

use crisp_domain::ErrorKind;
use crisp_sys::path::PathError;

/// Why an archive cannot be written or read, or what came of it is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// Not an archive of a checkpoint.
    #[error("the checkpoint is not valid: {0}")]
    Malformed(String),
    /// Something no honest archive has.
    #[error("the checkpoint's entry {entry:?} is refused: {reason}")]
    Refused {
        /// Its name.
        entry: String,
        /// Why.
        reason: &'static str,
    },
    /// A bound was reached.
    #[error("the checkpoint exceeds the limit {limit} of {max}")]
    Limit {
        /// Name of the bound.
        limit: &'static str,
        /// Its value.
        max: u64,
    },
    /// What was restored has more than the request gives.
    #[error("the restored container is not what was requested: {0}")]
    NotRequested(String),
    /// The file is there already.
    #[error("{0} exists already")]
    Exists(String),
    /// What the file system said.
    #[error("{step}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// A path did not lead where it must.
    #[error("{step}")]
    Path {
        /// What was being done.
        step: &'static str,
        /// The cause.
        source: PathError,
    },
}

impl CheckpointError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Malformed(_) | Self::Refused { .. } | Self::Limit { .. } | Self::NotRequested(_) => {
                ErrorKind::Invalid
            }
            Self::Exists(_) => ErrorKind::Exists,
            Self::Io { .. } | Self::Path { .. } => ErrorKind::Internal,
        }
    }
}

pub(crate) type Result<T> = std::result::Result<T, CheckpointError>;

pub(crate) fn io(step: &'static str) -> impl FnOnce(io::Error) -> CheckpointError {
    move |source| CheckpointError::Io { step, source }
}

pub(crate) fn errno(step: &'static str) -> impl FnOnce(rustix::io::Errno) -> CheckpointError {
    move |source| CheckpointError::Io { step, source: source.into() }
}
