use std::io;
use std::path::{Path, PathBuf};

use crisp_domain::ErrorKind;
use crisp_sys::mount::MountError;
use crisp_sys::path::PathError;
use rustix::io::Errno;

use crate::ChainId;

/// What can go wrong with layers and root filesystems. Entries are named as the archive spells them, lossily decoded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// Not `sha256:` and 64 lower-case hexadecimal digits.
    #[error("{text:?} is not a sha256 digest")]
    Digest {
        /// The text, cut to 100 characters.
        text: String,
    },
    /// No such layer.
    #[error("layer {chain} does not exist")]
    LayerNotFound {
        /// Its chain id.
        chain: ChainId,
    },
    /// The stream is no tar archive, or breaks off.
    #[error("the layer is not a valid archive: {reason} (header at byte {offset})")]
    Malformed {
        /// Position in the stream, in bytes, of the last header that was read.
        offset: u64,
        /// What is wrong.
        reason: &'static str,
    },
    /// An entry that no honest image has, or that cannot be made.
    #[error("the layer's entry {entry:?} is refused: {reason}")]
    Refused {
        /// Its name.
        entry: String,
        /// Why.
        reason: &'static str,
    },
    /// A bound of [`crate::Limits`] was reached.
    #[error("the layer exceeds the limit {limit} of {max} at its entry {entry:?}")]
    Limit {
        /// Name of the bound.
        limit: &'static str,
        /// Its value.
        max: u64,
        /// Name of the entry, empty where it is not known yet.
        entry: String,
    },
    /// Reading the stream failed; the source is the reader's own error.
    #[error("read the layer's stream at byte {offset}")]
    Stream {
        /// Bytes read before.
        offset: u64,
        /// The reader's error.
        source: io::Error,
    },
    /// The kernel refused to make an entry.
    #[error("{operation} the layer's entry {entry:?}")]
    Entry {
        /// The operation.
        operation: &'static str,
        /// Its name.
        entry: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file operation of the store's own.
    #[error("{operation} {}", path.display())]
    Io {
        /// The operation.
        operation: &'static str,
        /// Its subject.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A layer's record cannot be understood.
    #[error("the layer record {} is not valid", path.display())]
    Record {
        /// The record.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// Another process has the store open.
    #[error("the layers in {} are in use by another process", path.display())]
    InUse {
        /// The store's directory.
        path: PathBuf,
    },
    /// Another layer lies on it.
    #[error("layer {chain} carries another layer")]
    HasChildren {
        /// Its chain id.
        chain: ChainId,
    },
    /// Something is mounted where a root filesystem should go.
    #[error("{} is mounted already", target.display())]
    Mounted {
        /// The mount point.
        target: PathBuf,
    },
    /// A mount was refused.
    #[error("mount or unmount {}", target.display())]
    Mount {
        /// The mount point.
        target: PathBuf,
        /// The step.
        #[source]
        source: MountError,
    },
    /// A path inside a root could not be used.
    #[error("{operation} inside a root filesystem")]
    Path {
        /// The operation.
        operation: &'static str,
        /// The step.
        #[source]
        source: PathError,
    },
}

impl SnapshotError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Digest { .. } | Self::Malformed { .. } | Self::Refused { .. } => ErrorKind::Invalid,
            Self::LayerNotFound { .. } => ErrorKind::NotFound,
            Self::Limit { .. } => ErrorKind::Exhausted,
            Self::Entry { source, .. } if is_of_the_archive(source) => ErrorKind::Invalid,
            Self::Entry { source, .. } | Self::Io { source, .. } | Self::Stream { source, .. } => {
                of_io(source)
            }
            Self::InUse { .. } | Self::HasChildren { .. } | Self::Mounted { .. } => ErrorKind::WrongState,
            Self::Mount { source: MountError::NotMappable { .. }, .. } => ErrorKind::Unsupported,
            Self::Mount { source, .. } => source.errno().map_or(ErrorKind::Exhausted, |e| of_io(&e)),
            Self::Path { source, .. } => of_path(source),
            Self::Record { .. } => ErrorKind::Internal,
        }
    }

    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(Errno) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { operation, path, source: source.into() }
    }

    pub(crate) fn std_io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { operation, path, source }
    }

    pub(crate) fn mount(target: &Path) -> impl FnOnce(MountError) -> Self {
        let target = target.to_owned();
        move |source| Self::Mount { target, source }
    }

    pub(crate) fn path(operation: &'static str) -> impl FnOnce(PathError) -> Self {
        move |source| Self::Path { operation, source }
    }
}

/// Names, link counts and attribute values that no file system takes.
fn is_of_the_archive(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NAMETOOLONG | Errno::MLINK | Errno::INVAL))
}

/// A full disk is a limit that was reached; the rest is the kernel's doing.
fn of_io(error: &io::Error) -> ErrorKind {
    match Errno::from_io_error(error) {
        Some(Errno::NOSPC | Errno::DQUOT | Errno::MFILE | Errno::NFILE) => ErrorKind::Exhausted,
        _ => ErrorKind::Internal,
    }
}

fn of_path(error: &PathError) -> ErrorKind {
    match error {
        PathError::WrongType { .. } | PathError::TooDeep { .. } => ErrorKind::Invalid,
        PathError::TooLarge { .. } => ErrorKind::Exhausted,
        PathError::Refused { source: Errno::NOTDIR | Errno::LOOP, .. } => ErrorKind::Invalid,
        other if other.is_not_found() => ErrorKind::NotFound,
        other => other.errno().map_or(ErrorKind::Internal, |e| of_io(&e)),
    }
}

pub(crate) type Result<T> = std::result::Result<T, SnapshotError>;
