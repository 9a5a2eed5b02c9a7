//! Which hosts serve a registry, from the `hosts.toml` trees that operators have.
//!
//! ```text
//! <root>/registry.example_5000_/hosts.toml      for registry.example:5000; or <root>/registry.example:5000/
//! <root>/_default/hosts.toml                    for every registry without a directory of its own
//! <directory>/{ca.crt, client.cert, client.key} where there is no hosts.toml
//! ```
//!
//! Source: CRI contract, "hosts.toml directory layout". The files are the operator's: policy, read anew for every pull.

use std::fs;
use std::io::Read as _;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use toml::{Table, Value};
use tracing::warn;

/// Largest `hosts.toml`, in bytes.
const HOSTS_BYTES_MAX: u64 = 1 << 20;
/// Most hosts of one registry.
const HOSTS_MAX: usize = 64;
const FILE: &str = "hosts.toml";
const HOST_KEYS: [&str; 8] = [
    "capabilities",
    "ca",
    "client",
    "skip_verify",
    "header",
    "override_path",
    "dial_timeout",
    // Known to other programs; nothing here depends on it.
    "fsverity",
];

/// A host to ask, and how.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Endpoint {
    /// The root of its API, `https://host:port/v2`, without a slash at the end.
    pub(crate) base: String,
    /// `host[:port]`, lower case.
    pub(crate) host: String,
    pub(crate) scheme: Scheme,
    /// The registry that it stands in for, sent as the query parameter `ns`.
    pub(crate) namespace: Option<String>,
    /// Another scheme of the endpoint before: for when that one was not reached, or was no registry.
    pub(crate) instead: bool,
    pub(crate) serves: Serves,
    /// Sent with every request to this very host.
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) tls: TlsSettings,
    pub(crate) dial_timeout: Option<Duration>,
}

/// How a host is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    Http,
    Https,
}

impl Scheme {
    /// That of a URL; all but `https` is taken for plain.
    pub(crate) fn of(url: &url::Url) -> Self {
        if url.scheme() == "https" { Self::Https } else { Self::Http }
    }

    /// The settings, if they matter.
    pub(crate) fn tls(self, settings: &TlsSettings) -> Option<&TlsSettings> {
        match self {
            Self::Http => None,
            Self::Https => Some(settings),
        }
    }
}

/// What a host is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Serves {
    All,
    /// Content by its digest; not what a tag means.
    Content,
    /// What a tag means, and no content.
    Tags,
    Nothing,
}

impl Serves {
    fn of(capabilities: &[&str]) -> Self {
        match (capabilities.contains(&"resolve"), capabilities.contains(&"pull")) {
            (true, true) => Self::All,
            (false, true) => Self::Content,
            (true, false) => Self::Tags,
            (false, false) => Self::Nothing,
        }
    }

    /// Whether it may say what a tag means.
    pub(crate) fn resolves(self) -> bool {
        matches!(self, Self::All | Self::Tags)
    }

    /// Whether content may come from it.
    pub(crate) fn pulls(self) -> bool {
        matches!(self, Self::All | Self::Content)
    }
}

/// How a TLS host is verified, and what we show it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct TlsSettings {
    /// PEM files of authorities beside the system's.
    pub(crate) ca: Vec<PathBuf>,
    /// PEM files of client certificates; the key is in the same file when there is no second one.
    pub(crate) client: Vec<(PathBuf, Option<PathBuf>)>,
    pub(crate) skip_verify: bool,
}

impl TlsSettings {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// The hosts of `registry` in the order in which they are to be tried; the registry's own comes last.
///
/// `registry` is that of an [`ImageRef`](crate::ImageRef), so it is safe as a file name.
pub(crate) fn endpoints(roots: &[PathBuf], registry: &str) -> Vec<Endpoint> {
    let Some(dir) = directory(roots, registry) else {
        return own(registry, Options::default());
    };
    let file = dir.join(FILE);
    match read(&file) {
        Ok(Some(text)) => match parse(&text, &dir, registry) {
            Ok(endpoints) => return endpoints,
            Err(reason) => warn!(path = %file.display(), reason, "registry host file is not usable"),
        },
        Ok(None) => {}
        Err(error) => warn!(path = %file.display(), %error, "registry host file cannot be read"),
    }
    own(registry, Options { tls: certificates(&dir), ..Options::default() })
}

fn directory(roots: &[PathBuf], registry: &str) -> Option<PathBuf> {
    let with_port = registry.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
    let names = with_port.map(|(host, port)| format!("{host}_{port}_"));
    let names: Vec<String> = names.into_iter().chain([registry.to_owned(), "_default".to_owned()]).collect();
    roots.iter().flat_map(|root| names.iter().map(move |name| root.join(name))).find(|dir| dir.is_dir())
}

fn read(path: &Path) -> std::io::Result<Option<String>> {
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut text = String::new();
    file.take(HOSTS_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > HOSTS_BYTES_MAX {
        return Err(std::io::Error::other(format!("it is larger than {HOSTS_BYTES_MAX} bytes")));
    }
    Ok(Some(text))
}

/// The keys that a host and the top level share.
#[derive(Clone)]
struct Options {
    serves: Serves,
    headers: Vec<(HeaderName, HeaderValue)>,
    tls: TlsSettings,
    override_path: bool,
    dial_timeout: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            serves: Serves::All,
            headers: Vec::new(),
            tls: TlsSettings::default(),
            override_path: false,
            dial_timeout: None,
        }
    }
}

/// Reads a host file. `dir` is where its relative paths begin.
fn parse(text: &str, dir: &Path, registry: &str) -> Result<Vec<Endpoint>, String> {
    let top: Table = text.parse().map_err(|e: toml::de::Error| e.to_string())?;
    warn_unknown(dir, &top, &["server", "host"]);
    let mut endpoints = Vec::new();
    let hosts = match top.get("host") {
        None => &Table::new(),
        Some(hosts) => hosts.as_table().ok_or("host is not a table")?,
    };
    if hosts.len() > HOSTS_MAX {
        return Err(format!("it has {} hosts, the limit is {HOSTS_MAX}", hosts.len()));
    }
    for (url, table) in hosts {
        let table = table.as_table().ok_or_else(|| format!("host {url:?} is not a table"))?;
        warn_unknown(dir, table, &[]);
        let options = options(table, dir).map_err(|e| format!("host {url:?}: {e}"))?;
        endpoints.extend(at(url, registry, options).map_err(|e| format!("host {url:?}: {e}"))?);
    }
    let options = options(&top, dir)?;
    match top.get("server") {
        None => endpoints.extend(own(registry, options)),
        Some(server) => {
            let url = server.as_str().ok_or("server is not a string")?;
            endpoints.extend(at(url, registry, options).map_err(|e| format!("server {url:?}: {e}"))?);
        }
    }
    Ok(endpoints)
}

fn warn_unknown(dir: &Path, table: &Table, more: &[&str]) {
    for key in table.keys().filter(|k| !HOST_KEYS.contains(&k.as_str()) && !more.contains(&k.as_str())) {
        warn!(dir = %dir.display(), key, "unknown key in registry host file");
    }
}

fn options(table: &Table, dir: &Path) -> Result<Options, String> {
    let flag = |key: &str| match table.get(key) {
        None => Ok(false),
        Some(value) => value.as_bool().ok_or_else(|| format!("{key} is not true or false")),
    };
    let mut options = Options { override_path: flag("override_path")?, ..Options::default() };
    if let Some(value) = table.get("capabilities") {
        let names = strings(value).ok_or("capabilities is not a list of strings")?;
        options.serves = Serves::of(&names);
    }
    if let Some(value) = table.get("ca") {
        let files = strings(value).ok_or("ca is not a string or a list of strings")?;
        options.tls.ca = files.into_iter().map(|f| dir.join(f)).collect();
    }
    if let Some(value) = table.get("client") {
        options.tls.client = clients(value, dir)?;
    }
    options.tls.skip_verify = flag("skip_verify")?;
    if let Some(value) = table.get("header") {
        options.headers = headers(value.as_table().ok_or("header is not a table")?)?;
    }
    if let Some(value) = table.get("dial_timeout") {
        let text = value.as_str().ok_or("dial_timeout is not a string")?;
        options.dial_timeout =
            Some(duration(text).ok_or_else(|| format!("dial_timeout {text:?} is no duration"))?);
    }
    Ok(options)
}

/// A string, or a list of strings.
fn strings(value: &Value) -> Option<Vec<&str>> {
    match value {
        Value::String(one) => Some(vec![one]),
        Value::Array(many) => many.iter().map(Value::as_str).collect(),
        _ => None,
    }
}

/// A string (certificate and key in one file), a list of those, or a list of `[certificate, key]` pairs.
fn clients(value: &Value, dir: &Path) -> Result<Vec<(PathBuf, Option<PathBuf>)>, String> {
    let one = |value: &Value| match value {
        Value::String(file) => Some((dir.join(file), None)),
        Value::Array(pair) => match pair.as_slice() {
            [Value::String(cert)] => Some((dir.join(cert), None)),
            [Value::String(cert), Value::String(key)] if key.is_empty() => Some((dir.join(cert), None)),
            [Value::String(cert), Value::String(key)] => Some((dir.join(cert), Some(dir.join(key)))),
            _ => None,
        },
        _ => None,
    };
    let parsed = match value {
        Value::Array(many) => many.iter().map(one).collect(),
        single => one(single).map(|c| vec![c]),
    };
    parsed.ok_or_else(|| "client is not a file, a list of files or a list of [certificate, key]".into())
}

fn headers(table: &Table) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    let mut headers = Vec::new();
    for (name, value) in table {
        let values =
            strings(value).ok_or_else(|| format!("header {name:?} is not a string or a list of strings"))?;
        let parsed = HeaderName::try_from(name).map_err(|_error| format!("{name:?} is no header name"))?;
        for value in values {
            // The value may be a credential: it does not belong in the message.
            let mut value =
                HeaderValue::try_from(value).map_err(|_error| format!("bad value of header {name:?}"))?;
            value.set_sensitive(true);
            headers.push((parsed.clone(), value));
        }
    }
    Ok(headers)
}

/// A duration as Go prints and reads it: `30s`, `1m30s`, `500ms`, `1.5h`.
fn duration(text: &str) -> Option<Duration> {
    let (mut rest, mut sum) = (text, 0f64);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let unit_len = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        sum += number.parse::<f64>().ok()? * seconds;
        rest = tail;
    }
    (!text.is_empty()).then(|| Duration::try_from_secs_f64(sum).ok()).flatten()
}

/// The endpoints that a URL of the file means: two where TLS settings are given for a plain one.
fn at(url: &str, registry: &str, options: Options) -> Result<Vec<Endpoint>, String> {
    let url = if url.contains("://") { url.to_owned() } else { format!("https://{url}") };
    let parsed = url::Url::parse(&url).map_err(|e| e.to_string())?;
    let scheme = match parsed.scheme() {
        "https" => Scheme::Https,
        "http" => Scheme::Http,
        other => return Err(format!("scheme {other:?} is neither http nor https")),
    };
    if !parsed.username().is_empty() || parsed.password().is_some() {
        return Err("credentials do not belong in a URL".into());
    }
    let host = authority(&parsed).ok_or("it has no host")?;
    let path = parsed.path().trim_end_matches('/');
    let both = scheme == Scheme::Http && !options.tls.is_default() && parsed.port().is_some();
    let schemes: &[Scheme] = if both { &[Scheme::Https, Scheme::Http] } else { &[scheme] };
    Ok(ways(schemes.iter().map(|scheme| endpoint(*scheme, &host, path, registry, options.clone())).collect()))
}

/// `host[:port]` of a URL, without a port that is the scheme's own.
pub(crate) fn authority(url: &url::Url) -> Option<String> {
    let host = url.host_str()?.to_ascii_lowercase();
    Some(url.port().map_or_else(|| host.clone(), |port| format!("{host}:{port}")))
}

/// The registry itself, where nothing else is configured.
fn own(registry: &str, options: Options) -> Vec<Endpoint> {
    let host = api_host(registry).to_ascii_lowercase();
    let port = host.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    if !is_loopback(&host) || port.is_none_or(|p| p == 443) {
        return vec![endpoint(Scheme::Https, &host, "", registry, options)];
    }
    // A registry on this machine: plain first unless TLS was set up for it.
    let explicit = !options.tls.is_default();
    let mut lax = options.clone();
    lax.tls.skip_verify |= !explicit;
    let (https, http) = (
        endpoint(Scheme::Https, &host, "", registry, lax),
        endpoint(Scheme::Http, &host, "", registry, options),
    );
    ways(if explicit { vec![https, http] } else { vec![http, https] })
}

/// Marks all but the first as ways to the same place.
fn ways(mut endpoints: Vec<Endpoint>) -> Vec<Endpoint> {
    endpoints.iter_mut().skip(1).for_each(|endpoint| endpoint.instead = true);
    endpoints
}

fn api_host(registry: &str) -> &str {
    if registry == "docker.io" { "registry-1.docker.io" } else { registry }
}

/// Whether `host[:port]` is this machine by its name alone; no name is looked up.
pub(crate) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(""),
        None => host.split(':').next().unwrap_or(""),
    };
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

fn endpoint(scheme: Scheme, host: &str, path: &str, registry: &str, options: Options) -> Endpoint {
    let prefix = match scheme {
        Scheme::Http => "http",
        Scheme::Https => "https",
    };
    let version = if options.override_path || path.ends_with("/v2") { "" } else { "/v2" };
    let same = host.eq_ignore_ascii_case(registry) || host.eq_ignore_ascii_case(api_host(registry));
    Endpoint {
        base: format!("{prefix}://{host}{path}{version}"),
        host: host.into(),
        scheme,
        instead: false,
        namespace: (!same).then(|| registry.into()),
        serves: options.serves,
        headers: options.headers,
        tls: options.tls,
        dial_timeout: options.dial_timeout,
    }
}

/// The layout of certificates without a host file.
fn certificates(dir: &Path) -> TlsSettings {
    let mut tls = TlsSettings::default();
    let Ok(entries) = fs::read_dir(dir) else { return tls };
    let mut files: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).take(HOSTS_MAX).collect();
    files.sort();
    for file in files {
        match file.extension().and_then(|e| e.to_str()) {
            Some("crt") => tls.ca.push(file),
            Some("cert") => {
                let key = file.with_extension("key");
                tls.client.push((file, Some(key)));
            }
            _ => {}
        }
    }
    tls
}

#[cfg(test)]
#[path = "hosts_tests.rs"]
mod tests;
