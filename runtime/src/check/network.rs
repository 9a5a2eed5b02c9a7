//! CNI, file by file; or the built-in network: tried, in namespaces of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crisp_domain::SandboxId;
use crisp_network::{AttachRequest, CniFile, CniNetwork, Network, NetworkConfig, cni_files};
use crisp_sys::netns::{PodNamespacesRequest, create_pod_namespaces, in_netns, unpin};

use super::Finding;
use crate::cli::output;
use crate::config::Config;
use crate::dirs::Dirs;

const THING: &str = "network";

pub(super) fn look(config: &Config) -> Vec<Finding> {
    let network = crate::daemon::network(config, &Dirs::new(&config.state, &config.root));
    match cni_files(&network) {
        Err(error) => vec![Finding::fail(THING, crate::error::chain(&error))],
        Ok(files) if !files.is_empty() => files.iter().map(|file| cni(file, &network)).collect(),
        Ok(_) if !network.bridge.enabled => {
            let says = format!(
                "no CNI configuration in {}, and [network] enabled = false",
                network.cni_conf_dir.display()
            );
            vec![Finding::fail(THING, says)]
        }
        Ok(_) => vec![
            built_in(network),
            forwarding(&fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap_or_default()),
        ],
    }
}

/// A file that is used keeps pods from running when it is wrong; another one may be meant for later.
fn cni(file: &CniFile, config: &NetworkConfig) -> Finding {
    let path = file.path.display();
    let networks = config.cni_networks_max;
    let unused =
        || format!("CNI: {path} is not used: the first by name counts ([cni] max_networks = {networks})");
    match (file.used, judge(&file.network, &config.cni_bin_dirs)) {
        (true, Ok(says)) => Finding::ok(THING, format!("CNI: {path}: {says}")),
        (true, Err(problem)) => Finding::fail(THING, format!("CNI: {path}: {problem}")),
        (false, Ok(_)) => Finding::ok(THING, unused()),
        (false, Err(problem)) => Finding::warn(THING, format!("{}; {problem}", unused())),
    }
}

/// What a file makes, or why it makes nothing.
fn judge(network: &Result<CniNetwork, String>, bin_dirs: &[PathBuf]) -> Result<String, String> {
    let network = network.as_ref().map_err(Clone::clone)?;
    if network.missing.is_empty() {
        return Ok(format!("network {} ({})", network.name, network.plugins.join(", ")));
    }
    let dirs: Vec<String> = bin_dirs.iter().map(|dir| dir.display().to_string()).collect();
    Err(format!("needs {}, not found in {}", network.missing.join(", "), dirs.join(", ")))
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
fn built_in(network: NetworkConfig) -> Finding {
    let bridge = format!("built-in: bridge {}, {}", network.bridge.name, network.bridge.subnet);
    if !rustix::process::geteuid().is_root() {
        return Finding::warn(THING, format!("{bridge}; only root can try it"));
    }
    match trial(network) {
        Ok(took) => Finding::ok(THING, format!("{bridge}; a trial took {}", output::took(took))),
        Err(error) => {
            let help = "the kernel needs veth, bridge and nf_tables with nat (modprobe veth bridge nf_tables nft_nat nft_masq)";
            Finding::fail(THING, format!("{bridge}; a trial failed: {error}; {help}"))
        }
    }
}

fn trial(network: NetworkConfig) -> Result<Duration, String> {
    let dir = std::env::temp_dir().join(format!("crisp-check-{}", std::process::id()));
    let tried = trial_in(network, &dir);
    for namespace in ["machine", "pod"] {
        unpin(&dir.join(namespace).join("net")).map_err(|error| crate::error::chain(&error))?;
    }
    fs::remove_dir_all(&dir).map_err(|error| format!("remove {}: {error}", dir.display()))?;
    tried
}

fn trial_in(mut network: NetworkConfig, dir: &Path) -> Result<Duration, String> {
    let machine = namespace(&dir.join("machine"))?;
    let pod = namespace(&dir.join("pod"))?;
    network.cache_dir = dir.join("cache");
    network.cni_conf_dir = dir.join("no-cni");
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
    fn files_in_use_must_be_right_and_others_are_told() {
        let mut config = NetworkConfig::new("/cache".into());
        config.cni_bin_dirs = vec!["/a".into(), "/b".into()];
        let sound = || CniNetwork { name: "n".into(), plugins: vec!["ptp".into()], missing: Vec::new() };
        let lacking = CniNetwork { missing: vec!["ptp".into()], ..sound() };
        let cases = [
            (true, Ok(sound()), Level::Ok, "/10-a.conf: network n (ptp)"),
            (true, Ok(lacking.clone()), Level::Fail, "/10-a.conf: needs ptp, not found in /a, /b"),
            (true, Err("not JSON".to_owned()), Level::Fail, "/10-a.conf: not JSON"),
            (false, Ok(sound()), Level::Ok, "is not used: the first by name counts ([cni] max_networks = 1)"),
            (false, Ok(lacking), Level::Warn, "max_networks = 1); needs ptp, not found in /a, /b"),
            (false, Err("not JSON".to_owned()), Level::Warn, "max_networks = 1); not JSON"),
        ];
        for (used, network, level, says) in cases {
            let finding = cni(&CniFile { path: "/10-a.conf".into(), used, network }, &config);
            assert_eq!(finding.level, level, "{}", finding.says);
            assert!(finding.says.ends_with(says), "{}", finding.says);
        }
    }
}
