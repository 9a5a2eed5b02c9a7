//! The files that a pod's containers share: hostname, hosts, resolv.conf. The texts are pure functions.

use std::io;
use std::path::Path;

use crisp_proto::cri::{DnsConfig, PodSandboxConfig};

use crate::dirs::PodDir;
use crate::error::{Doing as _, Error, Result};

/// Bytes of a host file that is copied into a pod.
const HOST_FILE_BYTES_MAX: u64 = 1 << 20;

/// Writes the three files; `owner` is the user and group that they belong to, if not the host's root.
///
/// # Errors
/// [`Error::Invalid`] for DNS entries with a line break; otherwise what the file system says.
pub(crate) fn write(
    dir: &PodDir,
    config: &PodSandboxConfig,
    hostname: &str,
    owner: Option<(u32, u32)>,
) -> Result<()> {
    put(&dir.hostname(), format!("{hostname}\n").as_bytes())?;
    put(&dir.hosts(), &host_file("/etc/hosts")?)?;
    let resolv = match &config.dns_config {
        Some(dns) => resolv_conf(dns)?.into_bytes(),
        None => host_file("/etc/resolv.conf")?,
    };
    put(&dir.resolv_conf(), &resolv)?;
    let Some((uid, gid)) = owner else { return Ok(()) };
    [dir.hostname(), dir.hosts(), dir.resolv_conf()]
        .iter()
        .try_for_each(|path| std::os::unix::fs::chown(path, Some(uid), Some(gid)))
        .doing("set the owner of a file of the pod")
}

/// The text of `/etc/resolv.conf`: `search`, one `nameserver` each, `options`; an empty list gives no line.
///
/// # Errors
/// [`Error::Invalid`] for an entry that could begin another line.
pub(crate) fn resolv_conf(dns: &DnsConfig) -> Result<String> {
    let entries = dns.servers.iter().chain(&dns.searches).chain(&dns.options);
    for entry in entries {
        if entry.chars().any(char::is_control) {
            return Err(Error::Invalid(format!(
                "dns_config has an entry with a control character: {entry:?}"
            )));
        }
    }
    let mut text = String::new();
    let mut line = |key: &str, values: &[String]| {
        if !values.is_empty() {
            text.push_str(&format!("{key} {}\n", values.join(" ")));
        }
    };
    line("search", &dns.searches);
    for server in &dns.servers {
        line("nameserver", std::slice::from_ref(server));
    }
    line("options", &dns.options);
    Ok(text)
}

fn host_file(path: &str) -> Result<Vec<u8>> {
    let read = || -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        io::Read::read_to_end(
            &mut io::Read::take(std::fs::File::open(path)?, HOST_FILE_BYTES_MAX),
            &mut text,
        )?;
        Ok(text)
    };
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        other => other.doing("read the host's file for the pod"),
    }
}

/// Writes a file of mode 0644, whatever the umask is.
fn put(path: &Path, text: &[u8]) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let write = || {
        std::fs::write(path, text)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644))
    };
    write().doing("write a file of the pod")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[&str]) -> Vec<String> {
        entries.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn resolv_conf_has_the_lines_in_order() {
        let dns = DnsConfig {
            servers: list(&["10.0.0.1", "10.0.0.2"]),
            searches: list(&["a.local", "b.local"]),
            options: list(&["ndots:8"]),
        };
        let expected = "search a.local b.local\nnameserver 10.0.0.1\nnameserver 10.0.0.2\noptions ndots:8\n";
        assert_eq!(resolv_conf(&dns).unwrap(), expected);
        assert_eq!(resolv_conf(&DnsConfig::default()).unwrap(), "");
    }

    #[test]
    fn an_entry_cannot_begin_another_line() {
        let dns = DnsConfig { servers: list(&["10.0.0.1\noptions inet6"]), ..DnsConfig::default() };
        assert!(matches!(resolv_conf(&dns), Err(Error::Invalid(_))));
    }
}
