//! The daemon's error: what failed and on what, and what a caller can do about it.

use std::sync::Arc;

use crisp_domain::ErrorKind;
pub(crate) use crisp_domain::chain;

/// Result of the daemon's operations.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// Cloneable, because everybody who joined a job gets the same one.
#[derive(Debug, Clone, thiserror::Error)]
#[expect(clippy::error_impl_error, reason = "the one error of this program")]
pub(crate) enum Error {
    #[error("{what} {id:?} not found")]
    NotFound { what: &'static str, id: String },
    #[error("{prefix:?} is ambiguous: {what}s {first} and {second} begin with it")]
    Ambiguous { what: &'static str, prefix: String, first: String, second: String },
    #[error("{0}")]
    Invalid(String),
    #[error("{what} name {name:?} is in use by {holder}")]
    NameInUse { what: &'static str, name: String, holder: String },
    #[error("{what} {id} is {state}, not {needed}")]
    WrongState { what: &'static str, id: String, state: String, needed: &'static str },
    #[error("{0} is not implemented")]
    Unimplemented(&'static str),
    #[error("{what}: {cause}")]
    Internal { what: &'static str, cause: String },
    #[error("all {threads} threads for {kind} are busy, and none got free within {waited_ms} ms")]
    Busy { threads: usize, kind: &'static str, waited_ms: u64 },
    #[error("{what} did not end within {limit_ms} ms")]
    Timeout { what: &'static str, limit_ms: u64 },
    #[error("ImageVolumeMountFailed: {0}")]
    ImageVolume(Box<Error>),
    #[error("{doing}: {}", chain(&**source))]
    Step { doing: &'static str, kind: ErrorKind, source: Arc<dyn std::error::Error + Send + Sync> },
    #[error("{}", chain(&**source))]
    Pull { registry_away: bool, kind: ErrorKind, source: Arc<dyn std::error::Error + Send + Sync> },
}

impl Error {
    /// A failed step of a job: what was being done, and the error of the crate that did it.
    pub(crate) fn step<E>(doing: &'static str, kind: ErrorKind, source: E) -> Self
    where
        E: std::error::Error + Send + Sync + 'static,
    {
        Self::Step { doing, kind, source: Arc::new(source) }
    }

    pub(crate) fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::Ambiguous { .. } | Self::Invalid(_) => ErrorKind::Invalid,
            Self::NameInUse { .. } => ErrorKind::Exists,
            Self::WrongState { .. } => ErrorKind::WrongState,
            Self::Unimplemented(_) => ErrorKind::Unsupported,
            Self::Internal { .. } => ErrorKind::Internal,
            Self::Busy { .. } => ErrorKind::Exhausted,
            Self::Timeout { .. } => ErrorKind::Timeout,
            Self::ImageVolume(cause) => cause.kind(),
            Self::Step { kind, .. } | Self::Pull { kind, .. } => *kind,
        }
    }
}

/// `result.doing("mount the root filesystem")?`: adds the step to an error of one of our crates.
pub(crate) trait Doing<T> {
    fn doing(self, what: &'static str) -> Result<T>;
}

/// The errors of our crates, which all tell their kind.
pub(crate) trait Kinded: std::error::Error + Send + Sync + Sized + 'static {
    fn error_kind(&self) -> ErrorKind;
}

impl<T, E: Kinded> Doing<T> for std::result::Result<T, E> {
    fn doing(self, what: &'static str) -> Result<T> {
        self.map_err(|error| Error::step(what, error.error_kind(), error))
    }
}

macro_rules! kinded {
    ($($error:ty),* $(,)?) => {
        $(impl Kinded for $error {
            fn error_kind(&self) -> ErrorKind {
                self.kind()
            }
        })*
    };
}

kinded!(
    crisp_cgroup::CgroupError,
    crisp_image::ImageError,
    crisp_lsm::LsmError,
    crisp_network::NetworkError,
    crisp_seccomp::SeccompError,
    crisp_snapshot::SnapshotError,
    crisp_spec::SpecError,
    crisp_store::StoreError,
    crisp_systemd::SystemdError,
    crate::supervisor::Error,
);

impl Kinded for std::io::Error {
    fn error_kind(&self) -> ErrorKind {
        ErrorKind::Internal
    }
}

impl Kinded for crisp_sys::mount::MountError {
    fn error_kind(&self) -> ErrorKind {
        match self {
            Self::NotMappable { .. } => ErrorKind::Unsupported,
            _ => ErrorKind::Internal,
        }
    }
}

impl Kinded for crisp_sys::netns::NetnsError {
    fn error_kind(&self) -> ErrorKind {
        ErrorKind::Internal
    }
}

impl Kinded for crisp_sys::path::PathError {
    fn error_kind(&self) -> ErrorKind {
        // The path came with an image or a request, and it does not work there.
        ErrorKind::Invalid
    }
}

impl Kinded for rustix::io::Errno {
    fn error_kind(&self) -> ErrorKind {
        ErrorKind::Internal
    }
}
