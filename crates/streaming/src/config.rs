//! How the server is set up.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

/// Where and how the server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Loopback, unless the kubelet is elsewhere.
    pub address: IpAddr,
    /// 0 lets the kernel choose.
    pub port: u16,
    /// Whether sessions are encrypted.
    pub tls: Tls,
    /// A session without traffic ends after this; `None` never.
    pub idle_timeout: Option<Duration>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            address: IpAddr::V4(Ipv4Addr::LOCALHOST),
            port: 0,
            tls: Tls::Off,
            idle_timeout: Some(Duration::from_secs(4 * 60 * 60)),
        }
    }
}

/// Whether sessions are encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tls {
    /// Plain HTTP: the token is the only secret, and it does not leave the node.
    Off,
    /// By a certificate made when the server is bound, for its address and `localhost`.
    SelfSigned,
    /// By these PEM files, read when the server is bound.
    Files {
        /// The chain, leaf first.
        cert: PathBuf,
        /// Its private key: PKCS#8, PKCS#1 or SEC1.
        key: PathBuf,
    },
}
