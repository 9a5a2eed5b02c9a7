//! What can go wrong in a shim, and the code it is answered with.

use std::io;

use crisp_domain::ErrorKind;
pub(crate) use crisp_domain::chain;

/// A request that failed. The text goes to the daemon, so it names the step and the subject.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(clippy::error_impl_error, reason = "the one error of this program")]
pub(crate) enum Error {
    #[error("{what} {id} is not known here")]
    NotFound { what: &'static str, id: String },
    #[error("{what} {id} exists already")]
    Exists { what: &'static str, id: String },
    #[error("container {id} is {state}")]
    WrongState { id: String, state: &'static str },
    #[error("{0}")]
    Invalid(String),
    #[error("{0} is not supported by this handler")]
    Unsupported(String),
    #[error("{0}")]
    Limit(String),
    #[error("{step}")]
    Step { step: String, source: io::Error },
    /// The launcher, a container's init or an OCI runtime said so.
    #[error("{0}")]
    Said(String),
}

impl Error {
    /// What a caller can do about it.
    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Exists { .. } => ErrorKind::Exists,
            Self::WrongState { .. } => ErrorKind::WrongState,
            Self::Invalid(_) => ErrorKind::Invalid,
            Self::Unsupported(_) => ErrorKind::Unsupported,
            Self::Limit(_) => ErrorKind::Exhausted,
            Self::Step { .. } | Self::Said(_) => ErrorKind::Internal,
        }
    }
}

/// Result of the shim's operations.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// `call().step(|| "open the log")?`: names the step that a system call belongs to.
pub(crate) trait Step<T> {
    fn step<S: Into<String>>(self, step: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<io::Error>> Step<T> for std::result::Result<T, E> {
    fn step<S: Into<String>>(self, step: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|source| Error::Step { step: step().into(), source: source.into() })
    }
}
