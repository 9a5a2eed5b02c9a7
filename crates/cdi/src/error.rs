use std::path::PathBuf;

use crisp_domain::ErrorKind;

/// Why a device cannot be injected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CdiError {
    /// Not `vendor/class=name`.
    #[error("CDI device {name:?}: {problem}")]
    Name {
        /// As requested.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// No file describes it.
    #[error("CDI device {name} is not described by any file in {}", list(dirs))]
    Unknown {
        /// As requested.
        name: String,
        /// Where it was looked for.
        dirs: Vec<PathBuf>,
    },
    /// Two files of the same precedence describe it.
    #[error("CDI device {name} is described by both {} and {}", first.display(), second.display())]
    Conflict {
        /// As requested.
        name: String,
        /// One of them.
        first: PathBuf,
        /// Another one.
        second: PathBuf,
    },
    /// What the file says cannot be done.
    #[error("CDI device {name} of {}: {problem}", file.display())]
    Edit {
        /// As requested.
        name: String,
        /// Who says it.
        file: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A request with more devices than can be meant.
    #[error("more than {0} CDI devices")]
    TooMany(usize),
}

fn list(dirs: &[PathBuf]) -> String {
    dirs.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", ")
}

impl CdiError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Name { .. } | Self::TooMany(_) => ErrorKind::Invalid,
            // The node's fault, not the request's; "not found" would be heard as the pod's absence.
            Self::Unknown { .. } | Self::Conflict { .. } | Self::Edit { .. } => ErrorKind::Internal,
        }
    }
}
