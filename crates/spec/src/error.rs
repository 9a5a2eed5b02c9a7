use std::io;
use std::path::PathBuf;

use crisp_domain::ErrorKind;

/// Characters of a foreign text that an error repeats.
const QUOTE_CHARS_MAX: usize = 128;

/// Why no specification could be made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// Neither the request nor the image names a program.
    #[error("no command: the container sets none and the image has no entrypoint and no command")]
    NoCommand,
    /// A field of the request or of the image configuration cannot be used.
    #[error("{field} {value:?}: {reason}")]
    Field {
        /// Which field.
        field: &'static str,
        /// Its content, cut.
        value: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Two fields do not go together, or one is missing.
    #[error("{0}")]
    Combination(&'static str),
    /// Not a capability that Linux has.
    #[error("unknown capability {0:?}")]
    UnknownCapability(String),
    /// Not a signal.
    #[error("unknown signal {0:?}")]
    UnknownSignal(String),
    /// A sysctl that a pod may not set.
    #[error("sysctl {key:?}: {reason}")]
    Sysctl {
        /// As requested, cut.
        key: String,
        /// Why not.
        reason: &'static str,
    },
    /// A mount that cannot be made as requested.
    #[error("mount at {destination:?}: {reason}")]
    Mount {
        /// Path in the container, cut.
        destination: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A mount's source could not be found or made.
    #[error("prepare source {} of the mount at {destination:?}", path.display())]
    MountSource {
        /// Path in the container, cut.
        destination: String,
        /// Path on the host.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The source's own mount does not propagate as the request needs.
    #[error("{} is mounted on {}, which is not {wanted}", path.display(), mount_point.display())]
    Propagation {
        /// Source of the mount.
        path: PathBuf,
        /// The mount that it lies on.
        mount_point: PathBuf,
        /// `shared`, or `shared or slave`.
        wanted: &'static str,
    },
    /// A device node could not be read.
    #[error("read device {}", path.display())]
    Device {
        /// Path on the host.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The path of a device request is something else.
    #[error("{} is neither a device node nor a directory", .0.display())]
    NotADevice(PathBuf),
    /// A named limit of this crate was passed.
    #[error("more than {max} {what}")]
    TooMany {
        /// What was counted.
        what: &'static str,
        /// The limit.
        max: usize,
    },
    /// The image knows no such user.
    #[error("the image's /etc/passwd has no user {0:?}")]
    UnknownUser(String),
    /// The image knows no such group.
    #[error("the image's /etc/group has no group {0:?}")]
    UnknownGroup(String),
    /// The image's user or group file cannot be read.
    #[error("read {path} of the image")]
    UserFile {
        /// Path in the container.
        path: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The request is fine, but this runtime does not do it.
    #[error("{0} is not supported")]
    Unsupported(&'static str),
    /// Facts of this machine could not be read.
    #[error("read {}", path.display())]
    Host {
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl SpecError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Unsupported(_) => ErrorKind::Unsupported,
            Self::TooMany { .. } => ErrorKind::Exhausted,
            Self::Host { .. } => ErrorKind::Internal,
            Self::UserFile { source, .. }
            | Self::Device { source, .. }
            | Self::MountSource { source, .. } => match source.kind() {
                io::ErrorKind::OutOfMemory | io::ErrorKind::StorageFull => ErrorKind::Internal,
                _ => ErrorKind::Invalid,
            },
            _ => ErrorKind::Invalid,
        }
    }

    /// A field that cannot be used, its content cut to what a message can hold.
    #[must_use]
    pub fn field(field: &'static str, value: &str, reason: &'static str) -> Self {
        Self::Field { field, value: quote(value), reason }
    }

    pub(crate) fn mount(destination: &str, reason: &'static str) -> Self {
        Self::Mount { destination: quote(destination), reason }
    }
}

/// A foreign text, cut to what a message can hold.
pub(crate) fn quote(text: &str) -> String {
    text.chars().take(QUOTE_CHARS_MAX).collect()
}
