//! Pod networks behind one type, [`Network`]: a CNI plugin chain when the node has a CNI configuration, the built-in
//! bridge when it has none.
//!
//! ```text
//!             ┌ <cni_conf_dir> has a file ─▶ cni    plugins as programs, JSON on stdin and stdout; one or more networks
//! Network ────┤
//!             └ it has none ───────────────▶ bridge veth + bridge over rtnetlink, host ports over nf_tables
//!    │
//!    └ records: <cache_dir>/attachments/<sandbox id>.json, written before the first effect, removed after the last
//! ```
//!
//! Invariants:
//! - what was attached is detached the same way, with the configuration it was attached with, whatever the node's
//!   configuration says by then;
//! - an address belongs to a sandbox exactly as long as the record names it, so the records *are* the address pool;
//! - no call waits for another sandbox, but for a few microseconds of bookkeeping.
//!
//! Everything is blocking; the daemon calls it on blocking threads.
#![forbid(unsafe_code)]

mod bridge;
mod cni;
mod config;
mod conntrack;
mod error;
mod gate;
mod keyed;
mod netlink;
mod network;
mod nft;
mod ports;
mod record;
mod request;
mod route;
mod stats;
mod subnet;
mod tc;
mod template;

pub use cni::survey::{CniFile, CniNetwork, cni_files};
pub use config::{BridgeConfig, IpPreference, NETWORKS_MAX, NetworkConfig};
pub use error::NetworkError;
pub use network::{CidrOutcome, Network, NotReady};
pub use request::{AttachRequest, Attachment, Bandwidth, Dns, PortMapping, Protocol, Provider};
pub use stats::{InterfaceStats, interface_stats};
pub use template::{PodCidrs, render_template};

/// Result of this crate's calls.
pub type Result<T, E = NetworkError> = std::result::Result<T, E>;
