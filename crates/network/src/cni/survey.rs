//! What a directory of CNI configurations holds, for whoever looks at a machine before a pod does.

use std::path::{Path, PathBuf};

use super::conf::{self, PluginList, plugin_type};
use super::invoke;
use crate::{NetworkConfig, Result};

/// A configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniFile {
    /// Where it is.
    pub path: PathBuf,
    /// Whether pods join its network: it is one of the first files.
    pub used: bool,
    /// What it says, or what is wrong with it.
    pub network: std::result::Result<CniNetwork, String>,
}

/// A network of plugins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniNetwork {
    /// Its name.
    pub name: String,
    /// The plugins in order, each address plugin behind the one that calls it; each once.
    pub plugins: Vec<String>,
    /// Those of them that are in no directory of programs.
    pub missing: Vec<String>,
}

/// The configuration files of `config`'s directory in the order in which they count; none where it does not exist. They are
/// read as for a pod, and nothing is run.
///
/// # Errors
/// [`crate::NetworkError::CniConfig`] when the directory cannot be read.
pub fn cni_files(config: &NetworkConfig) -> Result<Vec<CniFile>> {
    let files = conf::files(&config.cni_conf_dir)?.into_iter().enumerate();
    Ok(files
        .map(|(at, path)| CniFile {
            used: at < config.cni_networks_max,
            network: network(&path, &config.cni_bin_dirs),
            path,
        })
        .collect())
}

fn network(path: &Path, bin_dirs: &[PathBuf]) -> std::result::Result<CniNetwork, String> {
    let list = conf::read_list(path)?;
    let plugins = plugins(&list);
    let missing = plugins.iter().filter(|name| invoke::find(name, bin_dirs).is_none()).cloned().collect();
    Ok(CniNetwork { name: list.name, plugins, missing })
}

fn plugins(list: &PluginList) -> Vec<String> {
    let mut names = Vec::new();
    for plugin in &list.plugins {
        let ipam = plugin.get("ipam").and_then(|ipam| ipam.get("type")?.as_str());
        for name in std::iter::once(plugin_type(plugin)).chain(ipam.filter(|name| !name.is_empty())) {
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn every_file_is_told_with_its_use_its_fault_and_what_it_lacks() {
        let dir = tempfile::tempdir().unwrap();
        let (conf_dir, bin_dir) = (dir.path().join("net.d"), dir.path().join("bin"));
        for made in [&conf_dir, &bin_dir] {
            fs::create_dir(made).unwrap();
        }
        fs::write(bin_dir.join("bridge"), "").unwrap();
        let chain = r#"{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"bridge","ipam":{"type":"host-local"}},
            {"type":"portmap"},{"type":"bridge"}]}"#;
        for (name, text) in [
            ("10-a.conflist", chain),
            ("20-b.conf", "{"),
            ("30-c.json", r#"{"cniVersion":"1.0.0","name":"c","type":"bridge"}"#),
            ("05-readme.txt", ""),
        ] {
            fs::write(conf_dir.join(name), text).unwrap();
        }
        let mut config = NetworkConfig::new(dir.path().join("cache"));
        config.cni_conf_dir = conf_dir;
        config.cni_bin_dirs = vec![bin_dir];
        let [a, b, c] = cni_files(&config).unwrap().try_into().unwrap();
        assert_eq!([a.used, b.used, c.used], [true, false, false]);
        let a = a.network.unwrap();
        assert_eq!(
            (a.name.as_str(), a.plugins),
            ("a", ["bridge", "host-local", "portmap"].map(String::from).to_vec())
        );
        assert_eq!(a.missing, ["host-local", "portmap"]);
        assert!(b.network.unwrap_err().starts_with("not JSON"));
        assert!(c.network.unwrap().missing.is_empty());
        config.cni_conf_dir = dir.path().join("absent");
        assert!(cni_files(&config).unwrap().is_empty());
    }
}
