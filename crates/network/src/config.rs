//! Settings of the network, as values.

use std::path::PathBuf;
use std::time::Duration;

/// Networks of one pod.
pub const NETWORKS_MAX: usize = 16;

/// What [`crate::Network::open`] needs to know.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// Where CNI configurations lie, `/etc/cni/net.d`. The first files in lexical order are used; it need not exist.
    pub cni_conf_dir: PathBuf,
    /// The directories that requests may name instead: plugins of these are told what is left, too.
    pub cni_more_conf_dirs: Vec<PathBuf>,
    /// How many networks a pod gets, each with an interface `eth0`, `eth1`, …: 1 to [`NETWORKS_MAX`].
    pub cni_networks_max: usize,
    /// What [`crate::Network::apply_pod_cidr`] makes a configuration of; see [`crate::render_template`].
    pub cni_template: Option<PathBuf>,
    /// Where CNI plugins lie, searched in order.
    pub cni_bin_dirs: Vec<PathBuf>,
    /// `<root>/network`: records of attachments. Made if missing.
    pub cache_dir: PathBuf,
    /// The built-in bridge.
    pub bridge: BridgeConfig,
    /// How long one call of one plugin may take before it is killed.
    pub plugin_timeout: Duration,
    /// Which address of a pod comes first.
    pub prefer: IpPreference,
}

impl NetworkConfig {
    /// The defaults with records in `cache_dir`.
    #[must_use]
    pub fn new(cache_dir: PathBuf) -> Self {
        Self {
            cni_conf_dir: "/etc/cni/net.d".into(),
            cni_more_conf_dirs: Vec::new(),
            cni_networks_max: 1,
            cni_template: None,
            cni_bin_dirs: vec!["/opt/cni/bin".into()],
            cache_dir,
            bridge: BridgeConfig::default(),
            plugin_timeout: Duration::from_secs(60),
            prefer: IpPreference::default(),
        }
    }
}

/// Which family comes first in [`crate::Attachment::ips`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum IpPreference {
    /// IPv4 first.
    #[default]
    Ipv4,
    /// IPv6 first.
    Ipv6,
    /// As the plugin listed them.
    Result,
}

/// The built-in bridge: used when there is no CNI configuration.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches of a configuration file")]
pub struct BridgeConfig {
    /// Off: without a CNI configuration the network is not ready.
    pub enabled: bool,
    /// Interface name, at most 15 bytes. Each daemon on a machine needs its own.
    pub name: String,
    /// IPv4 network in prefix notation; its first address becomes the gateway. At least a /30.
    pub subnet: String,
    /// IPv6 network in prefix notation, /64 to /126, for dual stack.
    pub ipv6_subnet: Option<String>,
    /// Maximum transmission unit in bytes; `None`: 1500.
    pub mtu: Option<u32>,
    /// Give traffic that leaves the subnet an address of the host.
    pub masquerade: bool,
}

impl Default for BridgeConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            name: "crisp0".into(),
            subnet: "10.88.0.0/16".into(),
            ipv6_subnet: None,
            mtu: None,
            masquerade: true,
        }
    }
}
