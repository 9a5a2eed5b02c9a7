//! CNI: the plugin chain that the node's administrator chose.
//!
//! An ADD goes through the plugins in order, each getting the result so far; a DEL goes through them backwards with the
//! final result, whatever one of them answers. Both use the configuration in the record, never what the node's directory
//! holds by then. With several networks each has its own interface, `eth0` the first, and they are left in reverse.
//!
//! Source: CNI specification 1.1, sections 3 "Execution of Network Configurations" and 4 "Plugin Delegation".

pub(crate) mod conf;
pub(crate) mod invoke;
mod probe;
pub(crate) mod result;
pub(crate) mod survey;
mod version;
pub(crate) mod watch;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crisp_domain::SandboxId;
use serde_json::{Map, Value, json};

use self::conf::{PluginList, Source, Verb, Version, plugin_type};
use self::invoke::Runner;
use self::probe::Probe;
use self::version::Spoken;
use crate::record::CniRecord;
use crate::{AttachRequest, Bandwidth, NetworkConfig, NetworkError, PortMapping, Result};

/// The pod's first interface; its addresses are the pod's.
pub(crate) const INTERFACE: &str = "eth0";
/// How long one plugin may take to drop what nobody has any more: attaching waits for it.
const GC_TIME_MAX: Duration = Duration::from_secs(10);
/// How long one plugin may take to look at what it gave: detaching waits for it.
const CHECK_TIME_MAX: Duration = Duration::from_secs(10);

/// The interface of the network with this number.
pub(crate) fn interface(number: usize) -> String {
    format!("eth{number}")
}

/// Finds and runs plugins.
#[derive(Debug)]
pub(crate) struct Cni {
    conf_dir: PathBuf,
    more_conf_dirs: Vec<PathBuf>,
    networks_max: usize,
    runner: Runner,
    spoken: Spoken,
    probe: Probe,
}

impl Cni {
    pub(crate) fn new(config: &NetworkConfig) -> Self {
        let runner = Runner { bin_dirs: config.cni_bin_dirs.clone().into(), timeout: config.plugin_timeout };
        let spoken = Spoken::default();
        Self {
            conf_dir: config.cni_conf_dir.clone(),
            more_conf_dirs: config.cni_more_conf_dirs.clone(),
            networks_max: config.cni_networks_max,
            probe: Probe::new(&runner, spoken.clone()),
            runner,
            spoken,
        }
    }

    pub(crate) fn conf_dir(&self) -> &Path {
        &self.conf_dir
    }

    /// The node's configurations as they are now; none: there is none.
    pub(crate) fn load(&self) -> Result<Vec<Source>> {
        self.load_from(&self.conf_dir)
    }

    /// The configurations in another directory.
    pub(crate) fn load_from(&self, dir: &Path) -> Result<Vec<Source>> {
        conf::load(dir, self.networks_max)
    }

    /// The lists in versions that their plugins speak. May run plugins, unlike [`Self::load`].
    pub(crate) fn settle(&self, sources: &[Source]) -> Result<Vec<PluginList>> {
        sources.iter().map(|source| Ok(self.spoken.settle(source, &self.runner)?.list)).collect()
    }

    /// Whether pods can be attached with these configurations: their plugins exist and, from version 1.1 on, say so.
    /// Waits for no plugin.
    ///
    /// # Errors
    /// [`NetworkError::CniConfig`] with the file, [`NetworkError::NotReady`] with what plugins said.
    pub(crate) fn status(&self, sources: &[Source]) -> Result<()> {
        for source in sources {
            let mut types = source.list.plugins.iter().map(plugin_type);
            if let Some(plugin) = types.find(|plugin| self.runner.find(plugin).is_none()) {
                let dirs: Vec<_> = self.runner.bin_dirs.iter().map(|d| d.display().to_string()).collect();
                return Err(source.wrong(format!("plugin {plugin:?} is in none of {}", dirs.join(", "))));
            }
        }
        let reason = crate::network::NOT_READY;
        self.probe.status(sources).map_err(|message| NetworkError::NotReady { reason, message })
    }

    /// Runs ADD through the chain; gives the final result.
    pub(crate) fn add(&self, id: &SandboxId, netns: &Path, record: &CniRecord) -> Result<Value> {
        let list = recorded_list(record)?;
        let mut previous = None;
        for plugin in &list.plugins {
            let config = execution_config(&list, plugin, &record.capabilities, previous.as_ref());
            let environment = environment(id, netns.display().to_string(), record);
            let result = self.runner.call(plugin_type(plugin), "ADD", &config, environment)?;
            let wrong = |reason| NetworkError::CniResult {
                plugin: plugin_type(plugin).into(),
                command: "ADD",
                reason,
            };
            previous = Some(result::convert(result, list.version).map_err(wrong)?);
        }
        Ok(previous.unwrap_or(Value::Null))
    }

    /// Runs CHECK through the chain, unless the configuration forbids it or is older than that.
    ///
    /// # Errors
    /// The first plugin's that finds something wrong.
    pub(crate) fn check(&self, id: &SandboxId, netns: &Path, record: &CniRecord) -> Result<()> {
        let list = recorded_list(record)?;
        if !list.allows(Verb::Check) {
            return Ok(());
        }
        let runner = self.runner.within(CHECK_TIME_MAX);
        list.plugins.iter().try_for_each(|plugin| {
            let config = execution_config(&list, plugin, &record.capabilities, Some(&record.result));
            let environment = environment(id, netns.display().to_string(), record);
            runner.call(plugin_type(plugin), "CHECK", &config, environment).map(drop)
        })
    }

    /// Runs DEL through the whole chain, backwards, whatever a plugin answers. `netns`: `None` when it is gone. A plugin
    /// that is not on this machine has made nothing, if the ADD never came to a result.
    ///
    /// # Errors
    /// The first failure.
    pub(crate) fn del(&self, id: &SandboxId, netns: Option<&Path>, record: &CniRecord) -> Result<()> {
        let list = recorded_list(record)?;
        let netns = netns.map(|path| path.display().to_string()).unwrap_or_default();
        let result = &record.result;
        // Plugins before 0.4.0 do not expect a result here.
        let previous = Some(result).filter(|r| !r.is_null() && list.version >= Version::V0_4_0);
        let mut outcome = Ok(());
        for plugin in list.plugins.iter().rev() {
            let name = plugin_type(plugin);
            if result.is_null() && self.runner.find(name).is_none() {
                continue;
            }
            let config = execution_config(&list, plugin, &record.capabilities, previous);
            let answer = self.runner.call(name, "DEL", &config, environment(id, netns.clone(), record));
            outcome = outcome.and(answer.map(drop));
        }
        outcome
    }

    /// The lists whose plugins want to be told what is left (from version 1.1 on), of every directory. May run plugins.
    pub(crate) fn collectable(&self) -> Vec<PluginList> {
        let dirs = std::iter::once(&self.conf_dir).chain(&self.more_conf_dirs);
        // A directory that cannot be used is told by the readiness, and by every attach.
        let lists = dirs.filter_map(|dir| self.settle(&self.load_from(dir).ok()?).ok()).flatten();
        lists.filter(|list| list.allows(Verb::Gc)).collect()
    }

    /// Tells the plugins of a list which sandboxes are attached, by which interface, so that they drop the rest. Every
    /// plugin is asked, whatever another answers, until `deadline`.
    ///
    /// # Errors
    /// The first failure.
    pub(crate) fn gc(
        &self,
        list: &PluginList,
        attached: &[(SandboxId, String)],
        deadline: Instant,
    ) -> Result<()> {
        let valid = attached.iter().map(|(id, name)| json!({"containerID": id, "ifname": name}));
        let valid: Vec<Value> = valid.collect();
        let mut outcome = Ok(());
        for plugin in &list.plugins {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::warn!(network = list.name, "no time is left to tell CNI plugins what is attached");
                break;
            }
            let mut config = execution_config(list, plugin, &Value::Null, None);
            if let Value::Object(config) = &mut config {
                // The second name is that of the specification's drafts, which plugins were built against.
                for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
                    config.insert(key.into(), valid.clone().into());
                }
            }
            let runner = self.runner.within(left.min(GC_TIME_MAX));
            let asked = runner.call(plugin_type(plugin), "GC", &config, Vec::new());
            outcome = outcome.and(asked.map(drop));
        }
        outcome
    }

    /// For people: where is looked and what was found.
    pub(crate) fn describe(&self) -> Value {
        let sources = self.load().unwrap_or_default();
        let networks = sources
            .iter()
            .enumerate()
            .map(|(n, s)| json!({"Config": s.list.to_value(), "IFName": interface(n), "Source": s.path}));
        json!({
            "PluginDirs": *self.runner.bin_dirs,
            "PluginConfDir": self.conf_dir,
            "PluginMaxConfNum": self.networks_max,
            "Networks": networks.collect::<Vec<_>>(),
        })
    }
}

/// What is written down before an ADD, one record for each network.
///
/// # Errors
/// The reason why the request cannot be told to plugins.
pub(crate) fn records(
    request: &AttachRequest,
    lists: &[PluginList],
    ip_ranges: &[String],
) -> Result<Vec<CniRecord>, String> {
    let (capabilities, args) = (capabilities(request, ip_ranges), cni_args(request)?);
    let record = |(number, list): (usize, &PluginList)| CniRecord {
        config: list.to_value(),
        capabilities: capabilities.clone(),
        args: args.clone(),
        interface: interface(number),
        result: Value::Null,
    };
    Ok(lists.iter().enumerate().map(record).collect())
}

fn recorded_list(record: &CniRecord) -> Result<PluginList> {
    PluginList::from_value(record.config.clone(), |_| Ok(Vec::new()))
        .map_err(|reason| NetworkError::CniConfig { path: "(of the record)".into(), reason })
}

fn cni_args(request: &AttachRequest) -> Result<String, String> {
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
        ("CNI_IFNAME", record.interface.clone()),
        ("CNI_ARGS", record.args.clone()),
    ]
}

/// Arguments by capability; a plugin gets those it declares.
fn capabilities(request: &AttachRequest, ip_ranges: &[String]) -> Value {
    let mut all = Map::new();
    if !ip_ranges.is_empty() {
        let sets = ip_ranges.iter().map(|subnet| json!([{"subnet": subnet}]));
        all.insert("ipRanges".into(), sets.collect());
    }
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
            {"type":"b","capabilities":{"io.kubernetes.cri.pod-annotations":true,"cgroupPath":true,"dns":true,"ipRanges":true}},
            {"type":"c"}]}"#;
        let list = PluginList::from_value(serde_json::from_str(text).unwrap(), |_| Ok(Vec::new())).unwrap();
        let record =
            records(&request(), std::slice::from_ref(&list), &["10.7.0.0/24".into()]).unwrap().remove(0);
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
                "ipRanges": [[{"subnet": "10.7.0.0/24"}]],
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
