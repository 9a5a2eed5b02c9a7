use std::io;
use std::path::PathBuf;

use crisp_domain::ErrorKind;

/// Why there is no filter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SeccompError {
    /// The profile's file cannot be read.
    #[error("read seccomp profile {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The path is relative, or leads to something else than a file.
    #[error("seccomp profile {}: {reason}", path.display())]
    Path {
        /// As requested.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The text is no profile.
    #[error("parse seccomp profile")]
    Parse(#[source] serde_json::Error),
    /// The profile has a rule that means nothing.
    #[error("seccomp profile: {0}")]
    Profile(String),
    /// The profile asks for what this runtime does not do.
    #[error("seccomp profile: {0} is not supported")]
    Unsupported(&'static str),
    /// libseccomp refused.
    #[error("{operation} with libseccomp")]
    Compile {
        /// What was tried.
        operation: &'static str,
        /// What the library said.
        #[source]
        source: libseccomp::error::SeccompError,
    },
    /// The program has more instructions than the kernel takes.
    #[error("the compiled filter has {0} bytes, more than the kernel takes")]
    TooLong(usize),
    /// The cache's directory cannot be used.
    #[error("{operation} {}", path.display())]
    Cache {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl SeccompError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Read { .. } | Self::Path { .. } | Self::Parse(_) | Self::Profile(_) | Self::TooLong(_) => {
                ErrorKind::Invalid
            }
            Self::Unsupported(_) => ErrorKind::Unsupported,
            Self::Compile { .. } | Self::Cache { .. } => ErrorKind::Internal,
        }
    }
}
