//! CNI, or the built-in network: tried, in namespaces of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crisp_domain::SandboxId;
use crisp_network::{AttachRequest, Network, NetworkConfig};
use crisp_sys::netns::{PodNamespacesRequest, create_pod_namespaces, in_netns, unpin};

use super::Finding;
use crate::cli::output;
use crate::config::Config;

/// Bytes of a CNI configuration.
const CONF_BYTES_MAX: u64 = 1 << 20;

pub(super) fn look(config: &Config) -> Vec<Finding> {
    match configuration(&config.cni.conf_dir) {
        Some(path) => vec![cni(&path, &fs::read_to_string(&path).unwrap_or_default(), &config.cni.bin_dirs)],
        None if !config.network.enabled => {
            let says = format!(
                "no CNI configuration in {}, and [network] enabled = false",
                config.cni.conf_dir.display()
            );
            vec![Finding::fail("network", says)]
        }
        None => vec![
            built_in(config),
            forwarding(&fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap_or_default()),
        ],
    }
}

/// The file that counts: the first by name.
fn configuration(dir: &Path) -> Option<PathBuf> {
    let entries = fs::read_dir(dir).ok()?.filter_map(Result::ok).map(|entry| entry.path());
    let is_conf = |path: &PathBuf| {
        path.extension()
            .is_some_and(|extension| extension == "conflist" || extension == "conf" || extension == "json")
    };
    entries
        .filter(is_conf)
        .filter(|path| fs::metadata(path).is_ok_and(|meta| meta.len() <= CONF_BYTES_MAX))
        .min()
}

fn cni(path: &Path, text: &str, bin_dirs: &[PathBuf]) -> Finding {
    let Some(types) = plugin_types(text) else {
        return Finding::fail("network", format!("CNI: {} is no network configuration", path.display()));
    };
    let missing: Vec<&String> =
        types.iter().filter(|name| !bin_dirs.iter().any(|dir| dir.join(name).is_file())).collect();
    if missing.is_empty() {
        return Finding::ok("network", format!("CNI: {} ({})", path.display(), types.join(", ")));
    }
    let dirs: Vec<String> = bin_dirs.iter().map(|dir| dir.display().to_string()).collect();
    let names: Vec<&str> = missing.iter().map(|name| name.as_str()).collect();
    Finding::fail(
        "network",
        format!("CNI: {} needs {}, not found in {}", path.display(), names.join(", "), dirs.join(", ")),
    )
}

/// The plugins of a list or of a single configuration, with the address plugin of each.
fn plugin_types(text: &str) -> Option<Vec<String>> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    let plugins = match value.get("plugins") {
        Some(plugins) => plugins.as_array()?.clone(),
        None => vec![value],
    };
    let mut types = Vec::new();
    for plugin in &plugins {
        types.push(plugin.get("type")?.as_str()?.to_owned());
        types.extend(plugin.pointer("/ipam/type").and_then(serde_json::Value::as_str).map(str::to_owned));
    }
    types.sort();
    types.dedup();
    (!types.is_empty()).then_some(types)
}

fn forwarding(value: &str) -> Finding {
    match value.trim() {
        "1" => Finding::ok("IP forwarding", "on"),
        "0" if is_writable("/proc/sys/net/ipv4/ip_forward") => {
            Finding::ok("IP forwarding", "off; the daemon turns it on")
        }
        _ => {
            Finding::fail("IP forwarding", "off, and /proc/sys is read-only: sysctl -w net.ipv4.ip_forward=1")
        }
    }
}

fn is_writable(path: &str) -> bool {
    rustix::fs::access(path, rustix::fs::Access::WRITE_OK).is_ok()
}

/// Attaches a pod to the bridge, with a host port, in two fresh network namespaces: veth, bridge and nftables in one go.
fn built_in(config: &Config) -> Finding {
    let bridge = format!("built-in: bridge {}, {}", config.network.bridge, config.network.subnet);
    match trial(config) {
        Ok(took) => Finding::ok("network", format!("{bridge}; a trial took {}", output::took(took))),
        Err(error) => {
            let help = "the kernel needs veth, bridge and nf_tables with nat (modprobe veth bridge nf_tables nft_nat nft_masq)";
            Finding::fail("network", format!("{bridge}; a trial failed: {error}; {help}"))
        }
    }
}

fn trial(config: &Config) -> Result<Duration, String> {
    let dir = std::env::temp_dir().join(format!("crisp-check-{}", std::process::id()));
    let tried = trial_in(config, &dir);
    for namespace in ["machine", "pod"] {
        unpin(&dir.join(namespace).join("net")).map_err(|error| crate::error::chain(&error))?;
    }
    fs::remove_dir_all(&dir).map_err(|error| format!("remove {}: {error}", dir.display()))?;
    tried
}

fn trial_in(config: &Config, dir: &Path) -> Result<Duration, String> {
    let machine = namespace(&dir.join("machine"))?;
    let pod = namespace(&dir.join("pod"))?;
    let mut network = NetworkConfig::new(dir.join("cache"));
    network.cni_conf_dir = dir.join("no-cni");
    network.bridge.name.clone_from(&config.network.bridge);
    network.bridge.subnet = config.network.subnet.to_string();
    let sandbox_id = SandboxId::random().map_err(|error| error.to_string())?;
    let mut request = AttachRequest::new(sandbox_id, pod);
    request.port_mappings.push(crisp_network::PortMapping {
        protocol: crisp_network::Protocol::Tcp,
        container_port: 80,
        host_port: 8080,
        host_ip: None,
    });
    let started = Instant::now();
    let attached = in_netns(&machine, move || {
        let network = Network::open(network)?;
        network.attach(&request)?;
        network.detach(&request.sandbox_id, Some(&request.netns))
    });
    let done = attached.map_err(|error| crate::error::chain(&error))?;
    done.map_err(|error| crate::error::chain(&error)).map(|()| started.elapsed())
}

/// A fresh network namespace, pinned below `dir`.
fn namespace(dir: &Path) -> Result<PathBuf, String> {
    fs::create_dir_all(dir).map_err(|error| format!("make {}: {error}", dir.display()))?;
    let request = PodNamespacesRequest {
        dir: dir.to_owned(),
        net: true,
        ipc: false,
        hostname: None,
        sysctls: Vec::new(),
    };
    let made = create_pod_namespaces(&request).map_err(|error| crate::error::chain(&error))?;
    made.net.ok_or_else(|| "no network namespace was made".to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn plugins_of_lists_and_single_configurations_are_found() {
        let list =
            r#"{"plugins": [{"type": "bridge", "ipam": {"type": "host-local"}}, {"type": "portmap"}]}"#;
        assert_eq!(plugin_types(list).unwrap(), ["bridge", "host-local", "portmap"]);
        assert_eq!(plugin_types(r#"{"type": "ptp"}"#).unwrap(), ["ptp"]);
        for text in ["", "{}", "[]", r#"{"plugins": [{}]}"#, r#"{"plugins": []}"#] {
            assert!(plugin_types(text).is_none(), "{text}");
        }
    }

    #[test]
    fn missing_plugins_are_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("bridge"), "").unwrap();
        let conf = dir.path().join("10-a.conflist");
        let text = r#"{"plugins": [{"type": "bridge"}, {"type": "portmap"}]}"#;
        let finding = cni(&conf, text, &[dir.path().to_owned()]);
        assert_eq!(finding.level, Level::Fail);
        assert!(finding.says.contains("needs portmap, not found in"), "{}", finding.says);
        assert_eq!(cni(&conf, r#"{"type": "bridge"}"#, &[dir.path().to_owned()]).level, Level::Ok);
    }

    #[test]
    fn the_first_configuration_by_name_counts() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["20-b.conf", "10-a.conflist", "05-readme.txt"] {
            fs::write(dir.path().join(name), "{}").unwrap();
        }
        assert_eq!(configuration(dir.path()).unwrap().file_name().unwrap(), "10-a.conflist");
        assert!(configuration(&dir.path().join("none")).is_none());
    }
}
