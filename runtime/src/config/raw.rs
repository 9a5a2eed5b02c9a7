//! What the file says, and its way to what it means.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::{
    AppArmor, BUILTIN_HANDLER, Cdi, CgroupDriver, Checkpoint, Cni, Config, ConfigError, Handler,
    IpPreference, Limits, Network, Nri, OciHandler, Overrides, PROGRAMS_FOUND, Registry, Security, Streaming,
    StreamingTls, Subnet, find_program,
};

/// `sun_path` holds 108 bytes with the terminating zero (unix(7)).
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// `<state>/containers/<id of 64 bytes>/x<4 digits>` is the longest socket below it.
const STATE_PATH_BYTES_MAX: usize = SOCKET_PATH_BYTES_MAX - "/containers/".len() - 64 - "/x0000".len();
/// `IFNAMSIZ` - 1, see netdevice(7).
const INTERFACE_NAME_BYTES_MAX: usize = 15;
/// The smallest MTU that IPv4 asks of a link (RFC 791), and the largest IP packet.
const MTU_RANGE: std::ops::RangeInclusive<u64> = 68..=65_535;
const LAYERS_PARALLEL_RANGE: std::ops::RangeInclusive<u64> = 1..=32;
const BLOCKING_THREADS_RANGE: std::ops::RangeInclusive<u64> = 4..=1024;
/// 0 is one that is free.
const PORT_RANGE: std::ops::RangeInclusive<u64> = 0..=65_535;
const NETWORKS_RANGE: std::ops::RangeInclusive<u64> = 1..=16;
/// The kernel's `nr_open` bounds what a process may have (proc_sys_fs(5)); 2³⁰ is its largest value.
const OPEN_FILES_RANGE: std::ops::RangeInclusive<u64> = 64..=1 << 30;
const LOG_LINE_BYTES_RANGE: std::ops::RangeInclusive<u64> = 256..=1_048_576;
/// No duration of the file is longer than a day.
const DURATION_MAX: Duration = Duration::from_secs(24 * 60 * 60);

type Key<T> = Option<Spanned<T>>;

/// The file as it is written: every key optional, unknown keys refused.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct RawConfig {
    listen: Key<PathBuf>,
    root: Key<PathBuf>,
    state: Key<PathBuf>,
    log: Key<String>,
    cgroup_parent: Key<String>,
    cgroup_driver: CgroupDriver,
    default_handler: Key<String>,
    cni: RawCni,
    network: RawNetwork,
    registry: RawRegistry,
    streaming: RawStreaming,
    nri: RawNri,
    cdi: RawCdi,
    security: RawSecurity,
    checkpoint: RawCheckpoint,
    limits: RawLimits,
    handlers: BTreeMap<String, Spanned<RawHandler>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawCni {
    conf_dir: Key<PathBuf>,
    bin_dirs: Key<Vec<PathBuf>>,
    plugin_timeout: Key<String>,
    max_networks: Key<u64>,
    ip_preference: IpPreference,
    template: Key<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawStreaming {
    address: Key<String>,
    port: Key<u64>,
    tls: RawTls,
    tls_cert: Key<PathBuf>,
    tls_key: Key<PathBuf>,
    idle_timeout: Key<String>,
}

#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum RawTls {
    #[default]
    Off,
    SelfSigned,
    Files,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawNri {
    enabled: Option<bool>,
    socket: Key<PathBuf>,
    plugin_dir: Key<PathBuf>,
    plugin_config_dir: Key<PathBuf>,
    registration_timeout: Key<String>,
    request_timeout: Key<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawCdi {
    enabled: Option<bool>,
    spec_dirs: Key<Vec<PathBuf>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawSecurity {
    apparmor: Key<String>,
    selinux: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawCheckpoint {
    criu: Key<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawNetwork {
    enabled: Option<bool>,
    bridge: Key<String>,
    subnet: Key<String>,
    ipv6_subnet: Key<String>,
    mtu: Key<u64>,
    masquerade: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawRegistry {
    config_path: Key<Vec<PathBuf>>,
    progress_timeout: Key<String>,
    layers_parallel: Key<u64>,
    search: Key<Vec<String>>,
    pinned: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawLimits {
    blocking_threads: Key<u64>,
    open_files_soft: Key<u64>,
    open_files_hard: Key<u64>,
    log_line_bytes: Key<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawHandler {
    kind: RawKind,
    path: Key<PathBuf>,
    root: Key<PathBuf>,
    systemd_cgroup: Key<bool>,
    args: Key<Vec<String>>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum RawKind {
    Builtin,
    Oci,
}

impl RawConfig {
    /// # Errors
    /// [`ConfigError::Parse`], with the line and the key.
    pub(crate) fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_of(text, span.start));
            let said = error.message().trim().replace("unknown field", "unknown key");
            let message = match key_of(text, line) {
                Some(key) => format!("{key}: {said}"),
                None => said,
            };
            ConfigError::Parse { path: path.to_owned(), line, message }
        })
    }
}

/// The key that is set on a line (1-based), with the table it is in. A parser's message gives the place, not always the key.
fn key_of(text: &str, line: usize) -> Option<String> {
    let (key, _) = text.lines().nth(line.checked_sub(1)?)?.split_once('=')?;
    let mut before: Vec<&str> = text.lines().take(line).collect();
    before.reverse();
    let table = before.iter().find_map(|line| line.trim().strip_prefix('[')?.split_once(']'));
    Some(match table {
        Some((table, _)) => format!("{}.{}", table.trim(), key.trim()),
        None => key.trim().to_owned(),
    })
}

/// 1-based line of a byte offset.
fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|&byte| byte == b'\n').count()
}

/// A value with the place it came from, for messages.
struct Said<T> {
    value: T,
    origin: String,
    key: String,
}

impl<T> Said<T> {
    fn refuse(&self, problem: impl Into<String>) -> ConfigError {
        let problem = problem.into();
        // A flag's name is its key.
        let problem =
            if self.origin.starts_with("--") { problem } else { format!("{}: {problem}", self.key) };
        ConfigError::Value { origin: self.origin.clone(), problem }
    }
}

/// Turns [`RawConfig`] into [`Config`].
pub(super) struct Checker<'a> {
    pub(super) path: &'a Path,
    pub(super) text: &'a str,
    pub(super) is_program: &'a dyn Fn(&Path) -> bool,
}

impl Checker<'_> {
    pub(super) fn config(&self, raw: RawConfig, flags: &Overrides) -> Result<Config, ConfigError> {
        let state = self.dir("state", raw.state, flags.state.as_ref(), "/run/crisp")?;
        if state.as_os_str().len() > STATE_PATH_BYTES_MAX {
            let state = Said { value: (), origin: self.path.display().to_string(), key: "state".to_owned() };
            return Err(state.refuse(format!(
                "its path has at most {STATE_PATH_BYTES_MAX} bytes, since sockets lie deep below it"
            )));
        }
        let root = self.dir("root", raw.root, flags.root.as_ref(), "/var/lib/crisp")?;
        let listen = self.said("listen", raw.listen, flags.listen.as_ref(), || state.join("crisp.sock"));
        let listen = check_socket(&listen)?;
        let handlers = self.handlers(raw.handlers, &state)?;
        let default_handler =
            self.said("default_handler", raw.default_handler, None, || BUILTIN_HANDLER.to_owned());
        if !handlers.contains_key(&default_handler.value) {
            let names: Vec<&str> = handlers.keys().map(String::as_str).collect();
            return Err(default_handler.refuse(format!(
                "no handler {:?}; there are {}",
                default_handler.value,
                names.join(", ")
            )));
        }
        Ok(Config {
            listen,
            root,
            log: check_log(&self.said("log", raw.log, flags.log.as_ref(), || "info".to_owned()))?,
            cgroup_parent: check_cgroup(
                &self.said("cgroup_parent", raw.cgroup_parent, None, || "/crisp".to_owned()),
            )?,
            cgroup_driver: raw.cgroup_driver,
            cni: self.cni(raw.cni)?,
            network: self.network(raw.network)?,
            registry: self.registry(raw.registry)?,
            streaming: self.streaming(raw.streaming)?,
            nri: self.nri(raw.nri)?,
            cdi: Cdi {
                enabled: raw.cdi.enabled.unwrap_or(true),
                spec_dirs: self.dirs("cdi.spec_dirs", raw.cdi.spec_dirs, &["/etc/cdi", "/var/run/cdi"])?,
            },
            security: self.security(raw.security)?,
            checkpoint: Checkpoint {
                criu: self.dir("checkpoint.criu", raw.checkpoint.criu, None, "/usr/sbin/criu")?,
            },
            limits: self.limits(raw.limits)?,
            handlers,
            default_handler: default_handler.value,
            state,
        })
    }

    fn cni(&self, raw: RawCni) -> Result<Cni, ConfigError> {
        Ok(Cni {
            conf_dir: self.dir("cni.conf_dir", raw.conf_dir, None, "/etc/cni/net.d")?,
            bin_dirs: self.dirs("cni.bin_dirs", raw.bin_dirs, &["/opt/cni/bin", "/usr/lib/cni"])?,
            plugin_timeout: self.duration("cni.plugin_timeout", raw.plugin_timeout, "60s")?,
            max_networks: in_range(
                &self.said("cni.max_networks", raw.max_networks, None, || 1),
                &NETWORKS_RANGE,
            )?,
            ip_preference: raw.ip_preference,
            template: self.optional_path("cni.template", raw.template)?,
        })
    }

    fn streaming(&self, raw: RawStreaming) -> Result<Streaming, ConfigError> {
        let idle = self.said("streaming.idle_timeout", raw.idle_timeout, None, || "4h".to_owned());
        let address = self.said("streaming.address", raw.address, None, || "127.0.0.1".to_owned());
        let cert = self.optional_path("streaming.tls_cert", raw.tls_cert)?;
        let key = self.optional_path("streaming.tls_key", raw.tls_key)?;
        let tls = match (raw.tls, cert, key) {
            (RawTls::Off, None, None) => StreamingTls::Off,
            (RawTls::SelfSigned, None, None) => StreamingTls::SelfSigned,
            (RawTls::Files, Some(cert), Some(key)) => StreamingTls::Files { cert, key },
            (RawTls::Off | RawTls::SelfSigned | RawTls::Files, _, _) => {
                let tls = Said {
                    value: (),
                    origin: self.path.display().to_string(),
                    key: "streaming.tls".to_owned(),
                };
                return Err(tls.refuse("\"files\" needs tls_cert and tls_key, and nothing else takes them"));
            }
        };
        Ok(Streaming {
            address: address
                .value
                .parse::<IpAddr>()
                .map_err(|error| address.refuse(format!("{:?}: {error}", address.value)))?,
            port: in_range(&self.said("streaming.port", raw.port, None, || 0), &PORT_RANGE)?,
            tls,
            idle_timeout: if idle.value == "0" { None } else { Some(parse_duration(&idle)?) },
        })
    }

    fn nri(&self, raw: RawNri) -> Result<Nri, ConfigError> {
        let socket = self.said("nri.socket", raw.socket, None, || PathBuf::from("/var/run/nri/nri.sock"));
        Ok(Nri {
            enabled: raw.enabled.unwrap_or(false),
            socket: check_socket(&socket)?,
            plugin_dir: self.dir("nri.plugin_dir", raw.plugin_dir, None, "/opt/nri/plugins")?,
            plugin_config_dir: self.dir(
                "nri.plugin_config_dir",
                raw.plugin_config_dir,
                None,
                "/etc/nri/conf.d",
            )?,
            registration_timeout: self.duration(
                "nri.registration_timeout",
                raw.registration_timeout,
                "5s",
            )?,
            request_timeout: self.duration("nri.request_timeout", raw.request_timeout, "2s")?,
        })
    }

    fn security(&self, raw: RawSecurity) -> Result<Security, ConfigError> {
        let apparmor = self.said("security.apparmor", raw.apparmor, None, || "auto".to_owned());
        Ok(Security {
            apparmor: match apparmor.value.as_str() {
                "auto" => AppArmor::Auto,
                "off" => AppArmor::Off,
                "" => return Err(apparmor.refuse("it is \"auto\", \"off\" or the name of a loaded profile")),
                name => AppArmor::Profile(name.to_owned()),
            },
            selinux: raw.selinux.unwrap_or(false),
        })
    }

    fn optional_path(&self, key: &str, file: Key<PathBuf>) -> Result<Option<PathBuf>, ConfigError> {
        file.map(|path| check_absolute(&self.said(key, Some(path), None, PathBuf::new))).transpose()
    }

    fn network(&self, raw: RawNetwork) -> Result<Network, ConfigError> {
        let subnet = self.said("network.subnet", raw.subnet, None, || "10.88.0.0/16".to_owned());
        let ipv6 =
            raw.ipv6_subnet.map(|text| self.said("network.ipv6_subnet", Some(text), None, String::new));
        let mtu = self.said("network.mtu", raw.mtu, None, || 0);
        Ok(Network {
            enabled: raw.enabled.unwrap_or(true),
            bridge: check_interface(&self.said("network.bridge", raw.bridge, None, || "crisp0".to_owned()))?,
            subnet: check_subnet_v4(&subnet)?,
            ipv6_subnet: ipv6.as_ref().map(check_subnet_v6).transpose()?,
            mtu: if mtu.value == 0 { None } else { Some(in_range(&mtu, &MTU_RANGE)?) },
            masquerade: raw.masquerade.unwrap_or(true),
        })
    }

    fn registry(&self, raw: RawRegistry) -> Result<Registry, ConfigError> {
        let parallel = self.said("registry.layers_parallel", raw.layers_parallel, None, || 4);
        let search = self.said("registry.search", raw.search, None, || vec!["docker.io".to_owned()]);
        let roots = &["/etc/containerd/certs.d", "/etc/docker/certs.d"];
        Ok(Registry {
            config_path: self.dirs("registry.config_path", raw.config_path, roots)?,
            progress_timeout: self.duration("registry.progress_timeout", raw.progress_timeout, "60s")?,
            layers_parallel: in_range(&parallel, &LAYERS_PARALLEL_RANGE)?,
            search: check_search(&search)?,
            pinned: raw.pinned.unwrap_or_default(),
        })
    }

    fn limits(&self, raw: RawLimits) -> Result<Limits, ConfigError> {
        let threads = self.said("limits.blocking_threads", raw.blocking_threads, None, || 64);
        let line = self.said("limits.log_line_bytes", raw.log_line_bytes, None, || 16_384);
        let soft = self.said("limits.open_files_soft", raw.open_files_soft, None, || 1024);
        let hard = self.said("limits.open_files_hard", raw.open_files_hard, None, || 524_288);
        if soft.value > hard.value {
            return Err(soft.refuse(format!("{} is above open_files_hard, {}", soft.value, hard.value)));
        }
        Ok(Limits {
            blocking_threads: in_range(&threads, &BLOCKING_THREADS_RANGE)?,
            open_files_soft: in_range(&soft, &OPEN_FILES_RANGE)?,
            open_files_hard: in_range(&hard, &OPEN_FILES_RANGE)?,
            log_line_bytes: in_range(&line, &LOG_LINE_BYTES_RANGE)?,
        })
    }

    fn handlers(
        &self,
        raw: BTreeMap<String, Spanned<RawHandler>>,
        state: &Path,
    ) -> Result<BTreeMap<String, Handler>, ConfigError> {
        let mut handlers = BTreeMap::from([(BUILTIN_HANDLER.to_owned(), Handler::Builtin)]);
        for name in PROGRAMS_FOUND {
            if let Some(path) = find_program(name, self.is_program) {
                handlers.insert(name.to_owned(), Handler::Oci(OciHandler::new(name, path, state)));
            }
        }
        for (name, handler) in raw {
            let handler = self.handler(&name, handler, state)?;
            handlers.insert(name, handler);
        }
        Ok(handlers)
    }

    fn handler(&self, name: &str, raw: Spanned<RawHandler>, state: &Path) -> Result<Handler, ConfigError> {
        let table = Said { origin: self.at(raw.span().start), key: format!("handlers.{name}"), value: () };
        if !is_handler_name(name) {
            return Err(
                table.refuse("a name has letters, digits, '-', '_' and '.' only, and at most 63 bytes")
            );
        }
        let raw = raw.into_inner();
        match raw.kind {
            RawKind::Builtin => {
                let only_oci = raw.path.is_some() || raw.root.is_some() || raw.args.is_some();
                if only_oci || raw.systemd_cgroup.is_some() {
                    return Err(table.refuse("kind \"builtin\" takes no path, root, systemd_cgroup or args"));
                }
                Ok(Handler::Builtin)
            }
            RawKind::Oci if name == BUILTIN_HANDLER => {
                Err(table.refuse("this name is the built-in handler's; choose another for a program"))
            }
            RawKind::Oci => self.oci_handler(name, raw, state, &table),
        }
    }

    fn oci_handler(
        &self,
        name: &str,
        raw: RawHandler,
        state: &Path,
        table: &Said<()>,
    ) -> Result<Handler, ConfigError> {
        let key = |field: &str| format!("handlers.{name}.{field}");
        let path = match raw.path {
            Some(path) => check_absolute(&self.said(&key("path"), Some(path), None, PathBuf::new))?,
            None => find_program(name, self.is_program)
                .ok_or_else(|| table.refuse(format!("no program {name:?} was found; set its `path`")))?,
        };
        let defaults = OciHandler::new(name, path, state);
        let root = self.said(&key("root"), raw.root, None, || defaults.root.clone());
        Ok(Handler::Oci(OciHandler {
            root: check_absolute(&root)?,
            systemd_cgroup: raw.systemd_cgroup.map(Spanned::into_inner),
            args: raw.args.map(Spanned::into_inner).unwrap_or_default(),
            ..defaults
        }))
    }

    /// The flag's value, else the file's, else the default.
    fn said<T: Clone>(
        &self,
        key: &str,
        file: Key<T>,
        flag: Option<&T>,
        default: impl FnOnce() -> T,
    ) -> Said<T> {
        let key_name = key.to_owned();
        match (flag, file) {
            (Some(value), _) => Said { value: value.clone(), origin: format!("--{key}"), key: key_name },
            (None, Some(value)) => {
                Said { origin: self.at(value.span().start), key: key_name, value: value.into_inner() }
            }
            (None, None) => Said { value: default(), origin: "default".to_owned(), key: key_name },
        }
    }

    fn at(&self, offset: usize) -> String {
        format!("{}:{}", self.path.display(), line_of(self.text, offset))
    }

    fn dir(
        &self,
        key: &str,
        file: Key<PathBuf>,
        flag: Option<&PathBuf>,
        default: &str,
    ) -> Result<PathBuf, ConfigError> {
        check_absolute(&self.said(key, file, flag, || PathBuf::from(default)))
    }

    fn dirs(
        &self,
        key: &str,
        file: Key<Vec<PathBuf>>,
        default: &[&str],
    ) -> Result<Vec<PathBuf>, ConfigError> {
        let dirs = self.said(key, file, None, || default.iter().map(PathBuf::from).collect());
        match dirs.value.iter().find(|dir| !is_plain_absolute(dir)) {
            Some(dir) => Err(dirs.refuse(format!("{:?} is not an absolute path without \"..\"", dir))),
            None => Ok(dirs.value),
        }
    }

    fn duration(&self, key: &str, file: Key<String>, default: &str) -> Result<Duration, ConfigError> {
        parse_duration(&self.said(key, file, None, || default.to_owned()))
    }
}

fn parse_duration(said: &Said<String>) -> Result<Duration, ConfigError> {
    let parsed =
        said.value.parse::<jiff::SignedDuration>().ok().and_then(|span| Duration::try_from(span).ok());
    match parsed {
        Some(value) if !value.is_zero() && value <= DURATION_MAX => Ok(value),
        _ => {
            Err(said.refuse(format!("{:?} is not a duration such as \"30s\", at most 24 hours", said.value)))
        }
    }
}

impl OciHandler {
    fn new(name: &str, path: PathBuf, state: &Path) -> Self {
        Self { path, root: state.join("runtimes").join(name), systemd_cgroup: None, args: Vec::new() }
    }
}

fn is_plain_absolute(path: &Path) -> bool {
    path.is_absolute() && !path.components().any(|part| part == std::path::Component::ParentDir)
}

fn check_absolute(said: &Said<PathBuf>) -> Result<PathBuf, ConfigError> {
    if is_plain_absolute(&said.value) {
        return Ok(said.value.clone());
    }
    Err(said.refuse(format!("{:?} is not an absolute path without \"..\"", said.value)))
}

fn check_socket(said: &Said<PathBuf>) -> Result<PathBuf, ConfigError> {
    let path = check_absolute(said)?;
    if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        return Err(said.refuse(format!("a socket's path has at most {SOCKET_PATH_BYTES_MAX} bytes")));
    }
    Ok(path)
}

fn check_log(said: &Said<String>) -> Result<String, ConfigError> {
    match tracing_subscriber::EnvFilter::try_new(&said.value) {
        Ok(_) => Ok(said.value.clone()),
        Err(error) => Err(said.refuse(format!("{:?} is not a log level or filter: {error}", said.value))),
    }
}

/// Host names; what they mean is checked when a name is looked for.
fn check_search(said: &Said<Vec<String>>) -> Result<Vec<String>, ConfigError> {
    let is_host =
        |name: &String| name.contains(['.', ':']) && !name.contains(['/', '@', ' ']) || name == "localhost";
    match said.value.iter().find(|name| !is_host(name)) {
        Some(name) => {
            Err(said.refuse(format!("{name:?} is not the name of a registry, such as \"docker.io\"")))
        }
        None if said.value.is_empty() => Err(said.refuse("at least one registry must be searched")),
        None => Ok(said.value.clone()),
    }
}

fn check_cgroup(said: &Said<String>) -> Result<String, ConfigError> {
    let path = Path::new(&said.value);
    if !is_plain_absolute(path) || path.parent().is_none() {
        return Err(said
            .refuse(format!("{:?} is not a path below a hierarchy's root, such as \"/crisp\"", said.value)));
    }
    Ok(said.value.trim_end_matches('/').to_owned())
}

/// The rules of the kernel's `dev_valid_name` (net/core/dev.c).
fn check_interface(said: &Said<String>) -> Result<String, ConfigError> {
    let name = &said.value;
    let allowed = |byte: u8| byte.is_ascii_graphic() && byte != b'/' && byte != b':';
    let fits = (1..=INTERFACE_NAME_BYTES_MAX).contains(&name.len());
    if !fits || name == "." || name == ".." || !name.bytes().all(allowed) {
        return Err(
            said.refuse(format!("{name:?} is not the name of an interface (1 to 15 bytes, no '/' or ':')"))
        );
    }
    Ok(name.clone())
}

fn is_handler_name(name: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=63).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(allowed)
}

fn in_range<T: TryFrom<u64>>(
    said: &Said<u64>,
    range: &std::ops::RangeInclusive<u64>,
) -> Result<T, ConfigError> {
    let value = range.contains(&said.value).then_some(said.value).and_then(|value| T::try_from(value).ok());
    value.ok_or_else(|| {
        said.refuse(format!("{} is not from {} to {}", said.value, range.start(), range.end()))
    })
}

fn check_subnet_v4(said: &Said<String>) -> Result<Subnet<Ipv4Addr>, ConfigError> {
    let (address, prefix) = split_subnet::<Ipv4Addr>(said, 30)?;
    let host = u32::MAX.checked_shr(prefix.into()).unwrap_or(0);
    if address.to_bits() & host != 0 {
        let network = Ipv4Addr::from_bits(address.to_bits() & !host);
        return Err(
            said.refuse(format!("{:?} has host bits set; did you mean {network}/{prefix}?", said.value))
        );
    }
    Ok(Subnet { address, prefix })
}

fn check_subnet_v6(said: &Said<String>) -> Result<Subnet<Ipv6Addr>, ConfigError> {
    let (address, prefix) = split_subnet::<Ipv6Addr>(said, 126)?;
    let host = u128::MAX.checked_shr(prefix.into()).unwrap_or(0);
    if address.to_bits() & host != 0 {
        let network = Ipv6Addr::from_bits(address.to_bits() & !host);
        return Err(
            said.refuse(format!("{:?} has host bits set; did you mean {network}/{prefix}?", said.value))
        );
    }
    Ok(Subnet { address, prefix })
}

/// Address and prefix length; `prefix_max` leaves room for the gateway and one pod.
fn split_subnet<A: std::str::FromStr>(said: &Said<String>, prefix_max: u8) -> Result<(A, u8), ConfigError> {
    let parts = said.value.split_once('/');
    let parsed = parts.and_then(|(address, prefix)| Some((address.parse().ok()?, prefix.parse().ok()?)));
    match parsed {
        Some((address, prefix)) if (1..=prefix_max).contains(&prefix) => Ok((address, prefix)),
        _ => {
            Err(said
                .refuse(format!("{:?} is not ADDRESS/PREFIX with a prefix of 1 to {prefix_max}", said.value)))
        }
    }
}
