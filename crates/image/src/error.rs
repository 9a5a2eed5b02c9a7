use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crisp_domain::ErrorKind;
use crisp_snapshot::SnapshotError;
use crisp_store::StoreError;

use crate::digest::Digest;

/// What every fallible function here returns.
pub type Result<T, E = ImageError> = std::result::Result<T, E>;

/// Why an image was not resolved, pulled, imported or removed. No text here ever has a credential in it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The text is no image reference.
    #[error("image reference {text:?}: {reason}")]
    Reference {
        /// What was given.
        text: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// Several images have an id that begins so.
    #[error("image id {text:?} is ambiguous")]
    Ambiguous {
        /// What was given.
        text: String,
    },
    /// The credentials of the request make no sense.
    #[error("registry credentials: {reason}")]
    Credentials {
        /// Which rule they break.
        reason: &'static str,
    },
    /// No registry could be reached, or it failed inside. Clients know this by the name `RegistryUnavailable`.
    #[error("{subject}: {attempts}")]
    RegistryUnavailable {
        /// The image or blob.
        subject: String,
        /// What each host did.
        attempts: Attempts,
    },
    /// The registry says that there is no such image.
    #[error("{subject}: not found: {attempts}")]
    NotInRegistry {
        /// The image or blob.
        subject: String,
        /// What each host did.
        attempts: Attempts,
    },
    /// A name without a registry is at none of those that are searched.
    #[error("{name}: at none of the registries that are searched: {}", each(tried))]
    ShortName {
        /// What was asked for.
        name: String,
        /// Each reference that was tried, and why it was not pulled.
        tried: Vec<ImageError>,
    },
    /// The registry does not let these credentials (or none) read the image.
    #[error("{subject}: authorization failed: {attempts}")]
    Denied {
        /// The image or blob.
        subject: String,
        /// What each host did.
        attempts: Attempts,
    },
    /// The registry answered with something that we cannot use.
    #[error("{subject}: {attempts}")]
    Answer {
        /// The image or blob.
        subject: String,
        /// What each host did.
        attempts: Attempts,
    },
    /// A manifest, index or image configuration that breaks its format or one of our limits.
    #[error("{subject}: {reason}")]
    Document {
        /// The document's digest or file.
        subject: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Content of a kind that is no container image, or needs something we do not offer.
    #[error("{subject}: {reason}")]
    Unsupported {
        /// The image or document.
        subject: String,
        /// What it is.
        reason: String,
    },
    /// The image does not exist for this machine.
    #[error("{subject}: no image for platform {wanted}; it has {available}")]
    Platform {
        /// The index.
        subject: String,
        /// The platform of this machine.
        wanted: String,
        /// Those that the index lists.
        available: String,
    },
    /// Content is not what its digest says.
    #[error("{subject}: digest is {found}, should be {expected}")]
    Mismatch {
        /// The document or layer.
        subject: String,
        /// What it should be.
        expected: Digest,
        /// What came.
        found: String,
    },
    /// A layer could not be unpacked or kept.
    #[error("unpack or keep layer {layer}")]
    Layer {
        /// The layer as the manifest names it.
        layer: Digest,
        /// What the layer store says.
        source: SnapshotError,
    },
    /// Too little arrived for too long.
    #[error("{reference}: the download made no progress for {} s", window.as_secs())]
    Stalled {
        /// The image.
        reference: String,
        /// How long we waited.
        window: Duration,
    },
    /// Nobody waits for the result any more.
    #[error("{subject}: cancelled")]
    Cancelled {
        /// What was under way.
        subject: String,
    },
    /// TLS files or settings of a host cannot be used.
    #[error("TLS of {host}: {reason}")]
    Tls {
        /// The host.
        host: String,
        /// What is wrong.
        reason: String,
    },
    /// An archive to import breaks its format or one of our limits.
    #[error("import {}: {reason}", archive.display())]
    Archive {
        /// The archive.
        archive: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A file operation failed.
    #[error("{operation} {}", path.display())]
    Io {
        /// The operation as a verb.
        operation: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// An image record could not be read or written.
    #[error(transparent)]
    Record(#[from] StoreError),
    /// The layer store could not be searched or cleaned.
    #[error(transparent)]
    Layers(#[from] SnapshotError),
    /// The failure of work that several callers waited for.
    #[error(transparent)]
    Shared(#[from] Arc<ImageError>),
}

impl ImageError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Reference { .. } | Self::Ambiguous { .. } | Self::Credentials { .. } => ErrorKind::Invalid,
            Self::Denied { .. } | Self::Document { .. } | Self::Archive { .. } => ErrorKind::Invalid,
            Self::NotInRegistry { .. } | Self::Platform { .. } => ErrorKind::NotFound,
            Self::RegistryUnavailable { .. } => ErrorKind::NotReady,
            Self::ShortName { tried, .. } => {
                let kinds = tried.iter().map(Self::kind);
                kinds.into_iter().find(|kind| *kind != ErrorKind::NotFound).unwrap_or(ErrorKind::NotFound)
            }
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::Stalled { .. } => ErrorKind::Timeout,
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => ErrorKind::Exhausted,
            Self::Answer { .. } | Self::Mismatch { .. } | Self::Cancelled { .. } | Self::Tls { .. } => {
                ErrorKind::Internal
            }
            Self::Io { .. } => ErrorKind::Internal,
            Self::Layer { source, .. } | Self::Layers(source) => source.kind(),
            Self::Record(source) => source.kind(),
            Self::Shared(source) => source.kind(),
        }
    }

    /// For several owners, without wrapping what is wrapped.
    pub(crate) fn into_shared(self) -> Arc<Self> {
        match self {
            Self::Shared(inner) => inner,
            other => Arc::new(other),
        }
    }

    /// The error itself, where it is one that several callers got.
    #[must_use]
    pub fn root(&self) -> &Self {
        match self {
            Self::Shared(inner) => inner.root(),
            other => other,
        }
    }

    /// Whether the registry was away: the daemon then begins its message with the token `RegistryUnavailable`.
    #[must_use]
    pub fn is_registry_unavailable(&self) -> bool {
        match self.root() {
            Self::RegistryUnavailable { .. } => true,
            Self::ShortName { tried, .. } => tried.iter().any(Self::is_registry_unavailable),
            _ => false,
        }
    }

    /// Whether another registry may have the image all the same.
    pub(crate) fn lets_search_on(&self) -> bool {
        let root = self.root();
        matches!(root, Self::RegistryUnavailable { .. } | Self::NotInRegistry { .. } | Self::Denied { .. })
    }
}

/// What each host did, in the order in which they were tried.
#[derive(Debug, Default)]
pub struct Attempts(pub(crate) Vec<Attempt>);

/// One host's failure.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) host: String,
    pub(crate) reason: String,
    pub(crate) failure: Failure,
}

/// What a failure says about the registry; the last attempt's decides about the error as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Not reached, or an answer of the 5xx or 429 kind.
    Unavailable,
    /// 404.
    NotFound,
    /// 401 or 403, or no token.
    Denied,
    /// Anything else.
    Other,
}

impl Attempts {
    /// Whether the host of the last attempt spoke as a registry does, so that another way to it leads nowhere else.
    pub(crate) fn is_settled(&self) -> bool {
        self.0.last().is_some_and(|a| matches!(a.failure, Failure::NotFound | Failure::Denied))
    }

    /// The error that these attempts amount to.
    pub(crate) fn into_error(self, subject: String) -> ImageError {
        let attempts = self;
        match attempts.0.last().map_or(Failure::Other, |a| a.failure) {
            Failure::Unavailable => ImageError::RegistryUnavailable { subject, attempts },
            Failure::NotFound => ImageError::NotInRegistry { subject, attempts },
            Failure::Denied => ImageError::Denied { subject, attempts },
            Failure::Other => ImageError::Answer { subject, attempts },
        }
    }
}

impl fmt::Display for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no host is configured that may serve it");
        }
        for (n, attempt) in self.0.iter().enumerate() {
            let separator = if n == 0 { "" } else { "; " };
            write!(f, "{separator}{}: {}", attempt.host, attempt.reason)?;
        }
        Ok(())
    }
}

/// An error with all that caused it, in one line.
fn each(errors: &[ImageError]) -> String {
    errors.iter().map(|error| chain(error)).collect::<Vec<_>>().join("; ")
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text
}
