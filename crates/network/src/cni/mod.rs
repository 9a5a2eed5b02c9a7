//! CNI: the plugin chain that the node's administrator chose.
//!
//! An ADD goes through the plugins in order, each getting the result so far; a DEL goes through them backwards with the
//! final result, and stops at the first failure, because what a later plugin still leads to an address must not outlive
//! the address. Both use the configuration in the record, never what the node's directory holds by then.
//!
//! Source: CNI specification 1.1, sections 3 "Execution of Network Configurations" and 4 "Plugin Delegation".

pub(crate) mod conf;
pub(crate) mod invoke;
mod probe;
pub(crate) mod result;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crisp_domain::SandboxId;
use serde_json::{Map, Value, json};

use self::conf::{PluginList, Version, plugin_type};
use self::invoke::Call;
use self::probe::Probe;
use crate::record::CniRecord;
use crate::{AttachRequest, Bandwidth, NetworkError, PortMapping, Result};

/// The pod's interface.
pub(crate) const INTERFACE: &str = "eth0";

/// Finds and runs plugins.
#[derive(Debug)]
pub(crate) struct Cni {
    conf_dir: PathBuf,
    bin_dirs: Vec<PathBuf>,
    timeout: Duration,
    probe: Probe,
}

impl Cni {
    pub(crate) fn new(conf_dir: PathBuf, bin_dirs: Vec<PathBuf>, timeout: Duration) -> Self {
        let probe = Probe::new(bin_dirs.clone(), timeout);
        Self { conf_dir, bin_dirs, timeout, probe }
    }

    /// The node's configuration as it is now; `None`: there is none.
    pub(crate) fn load(&self) -> Result<Option<(PathBuf, PluginList)>> {
        conf::load(&self.conf_dir)
    }

    /// Whether pods can be attached with this configuration: its plugins exist and, from version 1.1 on, say so.
    pub(crate) fn status(&self, path: &Path, list: &PluginList) -> Result<()> {
        let missing =
            list.plugins.iter().map(plugin_type).find(|p| invoke::find(p, &self.bin_dirs).is_none());
        if let Some(plugin) = missing {
            let dirs: Vec<_> = self.bin_dirs.iter().map(|d| d.display().to_string()).collect();
            let reason = format!("plugin {plugin:?} is in none of {}", dirs.join(", "));
            return Err(NetworkError::CniConfig { path: path.to_owned(), reason });
        }
        if list.version < Version::V1_1_0 {
            return Ok(());
        }
        let wrong = |reason| NetworkError::CniConfig { path: path.to_owned(), reason };
        self.probe.status(list).map_err(wrong)
    }

    /// Runs ADD through the chain; gives the final result.
    pub(crate) fn add(&self, id: &SandboxId, netns: &Path, record: &CniRecord) -> Result<Value> {
        let list = recorded_list(record)?;
        let mut previous = None;
        for plugin in &list.plugins {
            let config = execution_config(&list, plugin, &record.capabilities, previous.as_ref());
            let result =
                self.call(plugin, "ADD", &config, environment(id, netns.display().to_string(), record))?;
            let wrong = |reason| NetworkError::CniResult {
                plugin: plugin_type(plugin).into(),
                command: "ADD",
                reason,
            };
            previous = Some(result::convert(result, list.version).map_err(wrong)?);
        }
        Ok(previous.unwrap_or(Value::Null))
    }

    /// Runs DEL through the whole chain, backwards, whatever a plugin answers. `netns`: `None` when it is gone. `result`: of the
    /// ADD, null when it never came to one: a plugin that is not on this machine has made nothing then.
    ///
    /// # Errors
    /// The first failure.
    pub(crate) fn del(
        &self,
        id: &SandboxId,
        netns: Option<&Path>,
        record: &CniRecord,
        result: &Value,
    ) -> Result<()> {
        let list = recorded_list(record)?;
        let netns = netns.map(|path| path.display().to_string()).unwrap_or_default();
        // Plugins before 0.4.0 do not expect a result here.
        let previous = Some(result).filter(|r| !r.is_null() && list.version >= Version::V0_4_0);
        let mut outcome = Ok(());
        for plugin in list.plugins.iter().rev() {
            let config = execution_config(&list, plugin, &record.capabilities, previous);
            if result.is_null() && invoke::find(plugin_type(plugin), &self.bin_dirs).is_none() {
                continue;
            }
            let answer = self.call(plugin, "DEL", &config, environment(id, netns.clone(), record));
            outcome = outcome.and(answer.map(drop));
        }
        outcome
    }

    /// Tells plugins (from version 1.1 on) which sandboxes are attached, so that they drop the rest. Every plugin is
    /// asked, whatever another answers.
    pub(crate) fn gc(&self, list: &PluginList, attached: &[SandboxId]) -> Result<()> {
        if list.version < Version::V1_1_0 || list.disable_gc {
            return Ok(());
        }
        let valid: Vec<_> =
            attached.iter().map(|id| json!({"containerID": id, "ifname": INTERFACE})).collect();
        let mut outcome = Ok(());
        for plugin in &list.plugins {
            let mut config = execution_config(list, plugin, &Value::Null, None);
            if let Value::Object(config) = &mut config {
                config.insert("cni.dev/valid-attachments".into(), valid.clone().into());
            }
            let asked = self.call(plugin, "GC", &config, Vec::new());
            outcome = outcome.and(asked.map(drop));
        }
        outcome
    }

    fn call(
        &self,
        plugin: &Map<String, Value>,
        command: &'static str,
        config: &Value,
        environment: Vec<(&'static str, String)>,
    ) -> Result<Value> {
        let plugin = plugin_type(plugin);
        Call { plugin, command, bin_dirs: &self.bin_dirs, environment, config, timeout: self.timeout }.run()
    }

    /// For people: where is looked and what was found.
    pub(crate) fn describe(&self) -> Value {
        let networks = match self.load() {
            Ok(Some((path, list))) => {
                json!([{"Config": list.to_value(), "IFName": INTERFACE, "Source": path}])
            }
            Ok(None) | Err(_) => json!([]),
        };
        json!({
            "PluginDirs": self.bin_dirs,
            "PluginConfDir": self.conf_dir,
            "PluginMaxConfNum": 1,
            "Networks": networks,
        })
    }
}

/// What is written down before an ADD.
///
/// # Errors
/// The reason why the request cannot be told to plugins.
pub(crate) fn record(request: &AttachRequest, list: &PluginList) -> std::result::Result<CniRecord, String> {
    Ok(CniRecord { config: list.to_value(), capabilities: capabilities(request), args: cni_args(request)? })
}

fn recorded_list(record: &CniRecord) -> Result<PluginList> {
    PluginList::from_value(record.config.clone())
        .map_err(|reason| NetworkError::CniConfig { path: "(of the record)".into(), reason })
}

fn cni_args(request: &AttachRequest) -> std::result::Result<String, String> {
    let pairs = [
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAMESPACE", &request.pod_namespace),
        ("K8S_POD_NAME", &request.pod_name),
        ("K8S_POD_INFRA_CONTAINER_ID", request.sandbox_id.as_str()),
        ("K8S_POD_UID", &request.pod_uid),
    ];
    // The format has no escape: such a name could set any other key.
    if let Some((key, value)) = pairs.iter().find(|(_, value)| value.contains([';', '=', '\0'])) {
        return Err(format!("{key} {value:?} holds a character that CNI_ARGS cannot carry"));
    }
    Ok(pairs.map(|(key, value)| format!("{key}={value}")).join(";"))
}

fn environment(id: &SandboxId, netns: String, record: &CniRecord) -> Vec<(&'static str, String)> {
    vec![
        ("CNI_CONTAINERID", id.to_string()),
        ("CNI_NETNS", netns),
        ("CNI_IFNAME", INTERFACE.to_owned()),
        ("CNI_ARGS", record.args.clone()),
    ]
}

/// Arguments by capability; a plugin gets those it declares.
fn capabilities(request: &AttachRequest) -> Value {
    let mut all = Map::new();
    let ports: Vec<_> = request.port_mappings.iter().filter(|m| m.host_port != 0).map(port_mapping).collect();
    if !ports.is_empty() {
        all.insert("portMappings".into(), ports.into());
    }
    if let Some(bandwidth) = request.bandwidth {
        all.insert("bandwidth".into(), bandwidth_argument(bandwidth));
    }
    if let Some(dns) = &request.dns {
        let dns = json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options});
        all.insert("dns".into(), dns);
    }
    if let Some(path) = &request.cgroup_path {
        all.insert("cgroupPath".into(), path.as_str().into());
    }
    if !request.annotations.is_empty() {
        all.insert("io.kubernetes.cri.pod-annotations".into(), json!(request.annotations));
    }
    all.into()
}

fn port_mapping(mapping: &PortMapping) -> Value {
    json!({
        "hostPort": mapping.host_port,
        "containerPort": mapping.container_port,
        "protocol": mapping.protocol.as_str(),
        "hostIP": mapping.host_ip.map(|ip| ip.to_string()).unwrap_or_default(),
    })
}

/// A rate needs a burst; the annotations give none, so it is as large as plugins take.
fn bandwidth_argument(bandwidth: Bandwidth) -> Value {
    let mut argument = Map::new();
    let mut limit = |rate: Option<u64>, rate_key: &str, burst_key: &str| {
        if let Some(rate) = rate {
            argument.insert(rate_key.into(), rate.into());
            argument.insert(burst_key.into(), u32::MAX.into());
        }
    };
    limit(bandwidth.ingress_bits_per_second, "ingressRate", "ingressBurst");
    limit(bandwidth.egress_bits_per_second, "egressRate", "egressBurst");
    argument.into()
}

/// The plugin's part of the list, made into a request.
fn execution_config(
    list: &PluginList,
    plugin: &Map<String, Value>,
    capabilities: &Value,
    previous: Option<&Value>,
) -> Value {
    let mut config = plugin.clone();
    config.insert("cniVersion".into(), list.version.as_str().into());
    config.insert("name".into(), list.name.as_str().into());
    let declared = config.remove("capabilities");
    let wants =
        |name: &str| declared.as_ref().and_then(|d| d.get(name)).and_then(Value::as_bool).unwrap_or(false);
    let arguments = capabilities.as_object().into_iter().flatten().filter(|(name, _)| wants(name));
    let arguments: Map<_, _> = arguments.map(|(name, value)| (name.clone(), value.clone())).collect();
    if !arguments.is_empty() {
        config.insert("runtimeConfig".into(), arguments.into());
    }
    if let Some(previous) = previous {
        config.insert("prevResult".into(), previous.clone());
    }
    config.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Dns, Protocol};

    fn request() -> AttachRequest {
        let mut request = AttachRequest::new("a".repeat(64).parse().unwrap(), "/ns".into());
        (request.pod_name, request.pod_namespace, request.pod_uid) =
            ("web".into(), "default".into(), "u-1".into());
        let mapping = |host_port| PortMapping {
            protocol: Protocol::Udp,
            container_port: 53,
            host_port,
            host_ip: Some("192.0.2.1".parse().unwrap()),
        };
        request.port_mappings = vec![mapping(5353), mapping(0)];
        request.bandwidth =
            Some(Bandwidth { ingress_bits_per_second: Some(1000), egress_bits_per_second: None });
        request.dns = Some(Dns { servers: vec!["192.0.2.2".into()], ..Dns::default() });
        request.cgroup_path = Some("/kubepods/a".into());
        request.annotations = [("k".to_owned(), "v".to_owned())].into();
        request
    }

    #[test]
    fn a_plugin_gets_the_capabilities_it_declares() {
        let text = r#"{"cniVersion":"1.0.0","name":"n","plugins":[
            {"type":"a","capabilities":{"portMappings":true,"bandwidth":true,"dns":false}},
            {"type":"b","capabilities":{"io.kubernetes.cri.pod-annotations":true,"cgroupPath":true,"dns":true}},
            {"type":"c"}]}"#;
        let list = PluginList::parse(text).unwrap();
        let record = record(&request(), &list).unwrap();
        let config =
            |n: usize, previous| execution_config(&list, &list.plugins[n], &record.capabilities, previous);
        assert_eq!(
            config(0, None),
            json!({
                "type": "a", "name": "n", "cniVersion": "1.0.0",
                "runtimeConfig": {
                    "portMappings": [{"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1"}],
                    "bandwidth": {"ingressRate": 1000, "ingressBurst": u32::MAX},
                },
            })
        );
        assert_eq!(
            config(1, None)["runtimeConfig"],
            json!({
                "dns": {"servers": ["192.0.2.2"], "searches": [], "options": []},
                "cgroupPath": "/kubepods/a",
                "io.kubernetes.cri.pod-annotations": {"k": "v"},
            })
        );
        let previous = json!({"ips": []});
        let expected = json!({"type": "c", "name": "n", "cniVersion": "1.0.0", "prevResult": previous});
        assert_eq!(config(2, Some(&previous)), expected);
    }

    #[test]
    fn args_name_the_pod_and_cannot_be_forged() {
        let id = "a".repeat(64);
        let expected = format!(
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID={id};K8S_POD_UID=u-1"
        );
        assert_eq!(cni_args(&request()).unwrap(), expected);
        let mut forged = request();
        forged.pod_name = "web;IP=10.0.0.1".into();
        assert!(cni_args(&forged).unwrap_err().contains("K8S_POD_NAME"));
    }
}
