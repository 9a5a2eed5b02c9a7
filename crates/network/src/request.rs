//! What the daemon asks for and what it gets.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use crisp_domain::SandboxId;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A sandbox that wants a network.
#[derive(Debug, Clone)]
pub struct AttachRequest {
    /// The CNI container id.
    pub sandbox_id: SandboxId,
    /// A file the network namespace is pinned to.
    pub netns: PathBuf,
    /// A route socket opened inside `netns`, as `crisp_sys::netns::create_pod_namespaces` returns it. It spares the
    /// built-in bridge a thread; without it one is opened. A socket keeps its namespace alive: drop it at the stop.
    pub netlink: Option<Arc<OwnedFd>>,
    /// Name of the pod, for `CNI_ARGS` and messages.
    pub pod_name: String,
    /// Kubernetes namespace of the pod, for `CNI_ARGS` and messages.
    pub pod_namespace: String,
    /// Kubernetes uid of the pod, for `CNI_ARGS`.
    pub pod_uid: String,
    /// Entries with `host_port` 0 publish nothing.
    pub port_mappings: Vec<PortMapping>,
    /// Where to look for CNI configurations instead of the node's directory: that of the pod's handler. When it holds
    /// none, the pod gets no network: the built-in bridge stands in for the node's directory only.
    pub cni_conf_dir: Option<PathBuf>,
    /// Passed on to CNI plugins that declare the `bandwidth` capability; the built-in bridge shapes traffic itself.
    pub bandwidth: Option<Bandwidth>,
    /// Passed on to CNI plugins that declare the `dns` capability.
    pub dns: Option<Dns>,
    /// Passed on to CNI plugins that declare the `cgroupPath` capability.
    pub cgroup_path: Option<String>,
    /// Passed on to CNI plugins that declare the `io.kubernetes.cri.pod-annotations` capability.
    pub annotations: BTreeMap<String, String>,
}

impl AttachRequest {
    /// A request with nothing optional in it.
    #[must_use]
    pub fn new(sandbox_id: SandboxId, netns: PathBuf) -> Self {
        Self {
            sandbox_id,
            netns,
            netlink: None,
            pod_name: String::new(),
            pod_namespace: String::new(),
            pod_uid: String::new(),
            port_mappings: Vec::new(),
            cni_conf_dir: None,
            bandwidth: None,
            dns: None,
            cgroup_path: None,
            annotations: BTreeMap::new(),
        }
    }
}

/// A transport protocol of a port mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// Lower case, as CNI plugins want it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }

    /// The number in an IP header (IANA protocol numbers).
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// A port of the host that leads to a port of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PortMapping {
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port in the pod, 1–65535.
    pub container_port: u16,
    /// Port on the host; 0 publishes nothing.
    pub host_port: u16,
    /// Address of the host; `None` or an unspecified address means all.
    pub host_ip: Option<IpAddr>,
}

/// Limits from the pod's bandwidth annotations; `None` is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Bits per second into the pod.
    pub ingress_bits_per_second: Option<u64>,
    /// Bits per second out of the pod.
    pub egress_bits_per_second: Option<u64>,
}

/// The pod's resolver configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    /// Addresses of name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

/// Who made an attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// The built-in bridge.
    Bridge,
    /// A chain of CNI plugins.
    Cni,
}

/// A sandbox's place in a network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attachment {
    /// Who made it, and who takes it apart.
    pub provider: Provider,
    /// Name of the first CNI network, or of the bridge.
    pub network: String,
    /// Addresses of the pod's interface `eth0`, the preferred family first.
    pub ips: Vec<IpAddr>,
    /// The CNI result, as `PodSandboxStatus` shows it in `info.cniResult`; the results of several networks in one. The
    /// built-in bridge writes one, too.
    pub result: Value,
    /// The host ports that are published.
    pub port_mappings: Vec<PortMapping>,
}
