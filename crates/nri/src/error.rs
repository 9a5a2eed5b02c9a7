use std::io;
use std::path::PathBuf;

use crisp_domain::ErrorKind;

/// Why a request fails because of plugins, or plugins cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NriError {
    /// A plugin said no, and why.
    #[error("plugin {plugin} refused {call}: {message}")]
    Refused {
        /// `NN-name`.
        plugin: String,
        /// Name of the request.
        call: &'static str,
        /// What the plugin said, cut to a line.
        message: String,
    },
    /// Two plugins want the same thing otherwise.
    #[error("plugins {first} and {second} both set {field}")]
    Conflict {
        /// Who set it.
        first: String,
        /// Who set it again.
        second: String,
        /// What, with its key.
        field: String,
    },
    /// A plugin asks for what makes no sense.
    #[error("plugin {plugin}: {problem}")]
    Answer {
        /// `NN-name`.
        plugin: String,
        /// What is wrong.
        problem: String,
    },
    /// A validating plugin did not answer: what is not validated is not made.
    #[error("validating plugin {plugin} failed: {cause}")]
    Validator {
        /// `NN-name`.
        plugin: String,
        /// What happened to it.
        cause: String,
    },
    /// A plugin could not join.
    #[error("plugin {plugin} cannot join: {cause}")]
    Join {
        /// `NN-name`, or what is known of it.
        plugin: String,
        /// What happened.
        cause: String,
    },
    /// The socket for plugins cannot be had.
    #[error("listen for plugins on {}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl NriError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Refused { .. }
            | Self::Conflict { .. }
            | Self::Answer { .. }
            | Self::Validator { .. }
            | Self::Join { .. }
            | Self::Listen { .. } => ErrorKind::Internal,
        }
    }
}
