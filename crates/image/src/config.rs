use std::path::PathBuf;
use std::time::Duration;

/// How registries are reached and pulls run. The default is what an unconfigured daemon uses.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RegistryConfig {
    /// Trees of `hosts.toml` files, the first that knows a registry wins. Read on every pull.
    pub config_roots: Vec<PathBuf>,
    /// A pull that brings less than [`PROGRESS_BYTES_MIN`] in this time while it waits for the network is given up; zero: never.
    pub progress_timeout: Duration,
    /// Layers of one image that are fetched and unpacked at the same time.
    pub layers_parallel: usize,
    /// Layers that are fetched and unpacked at the same time on the whole node.
    pub node_layers_parallel: usize,
    /// Whether `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` count; never for loopback hosts.
    pub proxy: ProxySource,
    /// Pause before the second try of a request that failed for a while; it doubles with each more.
    pub retry_pause: Duration,
    /// Longest silence on one connection before the request is made again from where it stopped.
    pub silence_max: Duration,
    /// Registries that a name without one is tried at, in this order; never empty.
    pub search: Vec<String>,
    /// Names of images that clients must not collect; one that ends in `*` stands for all that begin so.
    pub pinned: Vec<String>,
    /// The platform to choose from an index; `None` is this machine's.
    pub platform: Option<crate::Platform>,
}

/// Bytes that a pull must bring within its progress timeout: a rate with a floor, so that a trickle does not count as life.
pub const PROGRESS_BYTES_MIN: u64 = 16 << 10;

/// Where the addresses of HTTP proxies come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProxySource {
    /// There is none.
    Off,
    /// The usual variables of the daemon's environment.
    Environment,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            config_roots: vec!["/etc/containerd/certs.d".into(), "/etc/docker/certs.d".into()],
            progress_timeout: Duration::from_secs(300),
            layers_parallel: 3,
            node_layers_parallel: 8,
            proxy: ProxySource::Environment,
            retry_pause: Duration::from_millis(250),
            silence_max: Duration::from_secs(30),
            search: vec![crate::reference::DEFAULT_REGISTRY.to_owned()],
            pinned: Vec::new(),
            platform: None,
        }
    }
}
