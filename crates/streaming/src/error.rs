//! What can go wrong before a session begins; a session's own failures are told to its client.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use crisp_domain::ErrorKind;

/// A streaming server that cannot serve, or a request it does not take.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamingError {
    /// The address cannot be had.
    #[error("bind the streaming server to {address}")]
    Bind {
        /// Where it was to listen.
        address: SocketAddr,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A certificate or key file is not one.
    #[error("read {}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: rustls::pki_types::pem::Error,
    },
    /// Certificate and key do not serve.
    #[error("set up TLS")]
    Tls(#[source] rustls::Error),
    /// A certificate of our own cannot be made.
    #[error("make a certificate")]
    Certificate(#[source] rcgen::Error),
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(&'static str),
    /// Too many addresses were given out and not used.
    #[error("{outstanding} streaming requests wait for their clients, the most there may be")]
    Exhausted {
        /// How many there are.
        outstanding: usize,
    },
    /// The kernel gives no random numbers.
    #[error("draw a token")]
    Random(#[source] getrandom::Error),
}

impl StreamingError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Invalid(_) => ErrorKind::Invalid,
            Self::Exhausted { .. } => ErrorKind::Exhausted,
            Self::Bind { .. } | Self::Pem { .. } | Self::Tls(_) | Self::Certificate(_) | Self::Random(_) => {
                ErrorKind::Internal
            }
        }
    }
}
