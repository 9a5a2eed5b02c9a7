//! The daemon's configuration: what the file and the flags say ([`RawConfig`], [`Overrides`]) becomes what it means
//! ([`Config`]), checked and with every default filled in.
//!
//! `config/default.toml` documents each key; `crisp config default` prints it, and a test keeps it equal to the code.

mod raw;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(crate) use raw::RawConfig;
use serde::Deserialize;

/// Read when `--config` is not given; may be absent.
pub(crate) const DEFAULT_FILE: &str = "/etc/crisp/config.toml";
/// The commented file that `crisp config default` prints.
pub(crate) const DEFAULT_TOML: &str = include_str!("config/default.toml");
/// Socket on which clients find the daemon when nothing else is said.
pub(crate) const DEFAULT_SOCKET: &str = "/run/crisp/crisp.sock";
/// The handler that always exists.
pub(crate) const BUILTIN_HANDLER: &str = "crisp";

/// Directories searched for OCI runtime programs.
pub(crate) const PROGRAM_DIRS: [&str; 6] =
    ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
/// Handlers that exist without configuration when their program does.
const PROGRAMS_FOUND: [&str; 2] = ["runc", "crun"];

/// Bytes of a configuration file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The daemon's configuration, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// Unix socket of the CRI services, absolute.
    pub(crate) listen: PathBuf,
    /// Durable state, absolute.
    pub(crate) root: PathBuf,
    /// State until reboot, absolute.
    pub(crate) state: PathBuf,
    /// Directives of the log filter; parse as `EnvFilter`.
    pub(crate) log: String,
    /// Cgroup of pods whose request names no parent, e.g. `/crisp`.
    pub(crate) cgroup_parent: String,
    pub(crate) cgroup_driver: CgroupDriver,
    pub(crate) cni: Cni,
    pub(crate) network: Network,
    pub(crate) registry: Registry,
    pub(crate) streaming: Streaming,
    pub(crate) nri: Nri,
    pub(crate) cdi: Cdi,
    pub(crate) security: Security,
    pub(crate) checkpoint: Checkpoint,
    pub(crate) limits: Limits,
    /// By name; [`BUILTIN_HANDLER`] is always there.
    pub(crate) handlers: BTreeMap<String, Handler>,
    /// A key of `handlers`.
    pub(crate) default_handler: String,
}

/// CNI plugins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cni {
    pub(crate) conf_dir: PathBuf,
    pub(crate) bin_dirs: Vec<PathBuf>,
    pub(crate) plugin_timeout: Duration,
    /// Networks that a pod joins, 1–16.
    pub(crate) max_networks: usize,
    pub(crate) ip_preference: IpPreference,
    /// Written out as a configuration when the kubelet tells the node's pod CIDR.
    pub(crate) template: Option<PathBuf>,
}

/// Which of a pod's addresses is the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum IpPreference {
    #[default]
    Ipv4,
    Ipv6,
    /// The order of the plugins' result.
    Cni,
}

/// Who makes the cgroups of containers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum CgroupDriver {
    /// systemd where it is PID 1 and the hierarchy is the unified one, else the daemon.
    #[default]
    Auto,
    /// systemd, as scopes.
    Systemd,
    /// The daemon itself.
    Cgroupfs,
}

/// The server for exec, attach and port-forward sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Streaming {
    pub(crate) address: IpAddr,
    /// 0 lets the kernel choose.
    pub(crate) port: u16,
    pub(crate) tls: StreamingTls,
    /// A session without traffic ends after this; `None` never.
    pub(crate) idle_timeout: Option<Duration>,
}

/// Whether sessions are encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StreamingTls {
    Off,
    /// By a certificate that is made at every start.
    SelfSigned,
    /// By these PEM files.
    Files {
        cert: PathBuf,
        key: PathBuf,
    },
}

/// Plugins by the Node Resource Interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Nri {
    pub(crate) enabled: bool,
    /// Where plugins register themselves.
    pub(crate) socket: PathBuf,
    /// Plugins that are started with the daemon.
    pub(crate) plugin_dir: PathBuf,
    pub(crate) plugin_config_dir: PathBuf,
    pub(crate) registration_timeout: Duration,
    pub(crate) request_timeout: Duration,
}

/// Devices by the Container Device Interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cdi {
    pub(crate) enabled: bool,
    /// In rising precedence.
    pub(crate) spec_dirs: Vec<PathBuf>,
}

/// Linux security modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Security {
    pub(crate) apparmor: AppArmor,
    pub(crate) selinux: bool,
}

/// What containers get that ask for the default AppArmor profile, or for none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum AppArmor {
    /// A profile of ours, loaded where the kernel has AppArmor.
    Auto,
    /// There is no default profile; one that is asked for by name still counts.
    Off,
    /// A profile that the operator loads.
    Profile(String),
}

/// Checkpoints of containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    /// The `criu` program; it need not exist.
    pub(crate) criu: PathBuf,
}

/// The built-in bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub(crate) struct Network {
    pub(crate) enabled: bool,
    /// Interface name, 1–15 bytes.
    pub(crate) bridge: String,
    pub(crate) subnet: Subnet<Ipv4Addr>,
    pub(crate) ipv6_subnet: Option<Subnet<Ipv6Addr>>,
    /// Bytes; `None` is the kernel's default.
    pub(crate) mtu: Option<u32>,
    pub(crate) masquerade: bool,
}

/// An address range: the network's address (host bits are zero) and its prefix length in bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Subnet<A> {
    pub(crate) address: A,
    pub(crate) prefix: u8,
}

impl<A: fmt::Display> fmt::Display for Subnet<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// Registries and pulls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Registry {
    /// Trees of `hosts.toml`, in order.
    pub(crate) config_path: Vec<PathBuf>,
    pub(crate) progress_timeout: Duration,
    /// Layers of one image fetched at once, 1–32.
    pub(crate) layers_parallel: usize,
    /// Where names without a registry are looked for, in order; not empty.
    pub(crate) search: Vec<String>,
    /// Images that a kubelet must not collect; `*` at the end stands for any rest.
    pub(crate) pinned: Vec<String>,
}

/// Bounds that an operator may move.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Threads for each kind of blocking work, 4–1024.
    pub(crate) blocking_threads: usize,
    /// Soft limit of open files that a container's processes get.
    pub(crate) open_files_soft: u64,
    /// Hard limit of open files; the daemon's own hard limit bounds it.
    pub(crate) open_files_hard: u64,
    /// Content bytes of one log entry, 256–1 MiB.
    pub(crate) log_line_bytes: u32,
}

/// How containers of a runtime class are run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Handler {
    /// libcontainer, through the shim's launcher.
    Builtin,
    /// A program with the OCI runtimes' command line.
    Oci(OciHandler),
}

/// A program with the OCI runtimes' command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OciHandler {
    /// Absolute path of the program; it need not exist yet.
    pub(crate) path: PathBuf,
    /// Its `--root`.
    pub(crate) root: PathBuf,
    /// Its `--systemd-cgroup`; `None` is as the cgroup driver.
    pub(crate) systemd_cgroup: Option<bool>,
    /// Put before the sub-command.
    pub(crate) args: Vec<String>,
}

/// What the command line says over the file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overrides {
    pub(crate) listen: Option<PathBuf>,
    pub(crate) root: Option<PathBuf>,
    pub(crate) state: Option<PathBuf>,
    pub(crate) log: Option<String>,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ConfigError {
    /// The file exists but cannot be read, or was named and does not exist.
    #[error("read the configuration {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// More than a megabyte.
    #[error("the configuration {} is larger than {bytes_max} bytes", path.display())]
    TooLarge { path: PathBuf, bytes_max: u64 },
    /// Not TOML, an unknown key, or a value of the wrong type. `message` names the key and shows the line.
    #[error("{}:{line}: {message}", path.display())]
    Parse { path: PathBuf, line: usize, message: String },
    /// A value that cannot be used. `origin` is `FILE:LINE`, then `problem` begins with the key, or the flag.
    #[error("{origin}: {problem}")]
    Value { origin: String, problem: String },
}

impl Config {
    /// Reads `file`, or [`DEFAULT_FILE`] when it is `None` (then it may be absent), lets the flags override it, checks it.
    ///
    /// # Errors
    /// Every variant of [`ConfigError`]; the first problem ends it.
    pub(crate) fn load(file: Option<&Path>, flags: &Overrides) -> Result<Self, ConfigError> {
        let path = file.unwrap_or(Path::new(DEFAULT_FILE));
        let text = match read(path) {
            Err(ConfigError::Read { source, .. })
                if file.is_none() && source.kind() == std::io::ErrorKind::NotFound =>
            {
                String::new()
            }
            other => other?,
        };
        Self::parse(path, &text, flags, &|program| program.is_file())
    }

    /// The pure half of [`Config::load`]: `path` is for messages; `is_program` says whether a file is there.
    ///
    /// # Errors
    /// [`ConfigError::Parse`] and [`ConfigError::Value`].
    pub(crate) fn parse(
        path: &Path,
        text: &str,
        flags: &Overrides,
        is_program: &dyn Fn(&Path) -> bool,
    ) -> Result<Self, ConfigError> {
        let raw = RawConfig::parse(path, text)?;
        raw::Checker { path, text, is_program }.config(raw, flags)
    }
}

/// Reads a configuration file's text.
///
/// # Errors
/// [`ConfigError::Read`], [`ConfigError::TooLarge`].
pub(crate) fn read(path: &Path) -> Result<String, ConfigError> {
    use std::io::Read as _;
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(ConfigError::TooLarge { path: path.to_owned(), bytes_max: FILE_BYTES_MAX });
    }
    Ok(text)
}

/// The first of `dirs` that holds a program of this name.
pub(crate) fn find_program(name: &str, is_program: &dyn Fn(&Path) -> bool) -> Option<PathBuf> {
    PROGRAM_DIRS.iter().map(|dir| Path::new(dir).join(name)).find(|path| is_program(path))
}
