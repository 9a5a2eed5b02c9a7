//! The one type the daemon sees: chooses who attaches, keeps the records, undoes what failed.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use crisp_domain::SandboxId;
use serde_json::Value;

use crate::bridge::Bridge;
use crate::cni::conf::PluginList;
use crate::cni::{self, Cni};
use crate::error::chain;
use crate::keyed::KeyedLock;
use crate::record::{Record, Records};
use crate::{
    AttachRequest, Attachment, IpPreference, NetworkConfig, NetworkError, Provider, Result, netlink, route,
};

/// Reason of the `NetworkReady` condition, as kubelets have seen it from every runtime.
const NOT_READY: &str = "NetworkPluginNotReady";

/// Why no pod can get a network now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct NotReady {
    /// One CamelCase word for the `NetworkReady` condition.
    pub reason: &'static str,
    /// What is missing and what to do.
    pub message: String,
}

/// The node's pod network.
#[derive(Debug)]
pub struct Network {
    cni: Cni,
    bridge: Bridge,
    bridge_enabled: bool,
    prefer: IpPreference,
    records: Records,
    /// One attach or detach per sandbox at a time.
    busy: KeyedLock<SandboxId>,
}

/// Who would attach a pod now.
enum Choice {
    Cni(PluginList),
    Bridge,
}

impl Network {
    /// Opens the network: loads the records and, where the built-in bridge is in use, makes it and its rules what they
    /// should be. Whatever the bridge lacks is told by [`Self::status`], so that pods with the host's network can run.
    ///
    /// # Errors
    /// [`NetworkError::Config`] for settings that make no sense, [`NetworkError::Locked`] when another daemon uses the
    /// directory, [`NetworkError::Record`] and [`NetworkError::File`].
    pub fn open(config: NetworkConfig) -> Result<Self> {
        let bridge = Bridge::new(&config.bridge, config.prefer)?;
        let cni = Cni::new(config.cni_conf_dir, config.cni_bin_dirs, config.plugin_timeout);
        let records = Records::open(&config.cache_dir)?;
        let ours: Vec<_> =
            records.all().into_iter().filter(|(_, r)| r.attachment.provider == Provider::Bridge).collect();
        for (id, record) in &ours {
            bridge.restore(id, record);
        }
        let network = Self {
            cni,
            bridge,
            bridge_enabled: config.bridge.enabled,
            prefer: config.prefer,
            records,
            busy: KeyedLock::new(),
        };
        if (!ours.is_empty() || matches!(network.choose(), Ok(Choice::Bridge)))
            && let Err(error) = network.bridge.ensure()
        {
            tracing::warn!(error = chain(&error), "the built-in network is not ready");
        }
        Ok(network)
    }

    fn choose(&self) -> Result<Choice> {
        match self.cni.load()? {
            Some((_, list)) => Ok(Choice::Cni(list)),
            None if self.bridge_enabled => Ok(Choice::Bridge),
            None => {
                let message =
                    "there is no CNI configuration, and the built-in bridge is switched off".to_owned();
                Err(NetworkError::NotReady { reason: NOT_READY, message })
            }
        }
    }

    /// Puts a sandbox into the network. What it may come to hold is on record before anything happens; on an error all
    /// is undone. A sandbox that is attached already is detached first: there is one ADD per attempt.
    ///
    /// # Errors
    /// [`NetworkError`]; [`NetworkError::Undo`] when the undo failed as well: [`Self::detach`] and [`Self::gc`] try it
    /// again.
    pub fn attach(&self, request: &AttachRequest) -> Result<Attachment> {
        let _busy = self.busy.lock(&request.sandbox_id);
        if let Some(earlier) = self.records.get(&request.sandbox_id) {
            self.undo(&request.sandbox_id, &earlier)?;
        }
        match self.choose()? {
            Choice::Cni(list) => self.attach_cni(request, &list),
            Choice::Bridge => self.attach_bridge(request),
        }
    }

    fn attach_bridge(&self, request: &AttachRequest) -> Result<Attachment> {
        let id = &request.sandbox_id;
        self.bridge.ensure()?;
        let pod = pod_name(request);
        let reserved = self.bridge.reserve(request, &pod)?;
        let record = self.bridge.record(request, pod, &reserved);
        let record = self.records.put(id, record).inspect_err(|_| self.bridge.cancel(id, &reserved))?;
        match self.bridge.connect(request, &reserved) {
            Ok(()) => Ok(record.attachment.clone()),
            Err(error) => Err(self.failed(id, &record, error)),
        }
    }

    fn attach_cni(&self, request: &AttachRequest, list: &PluginList) -> Result<Attachment> {
        let id = &request.sandbox_id;
        let wrong = |reason| NetworkError::Request { sandbox_id: id.clone(), reason };
        let attachment = Attachment {
            provider: Provider::Cni,
            network: list.name.clone(),
            ips: Vec::new(),
            result: Value::Null,
            port_mappings: request.port_mappings.iter().filter(|m| m.host_port != 0).cloned().collect(),
        };
        let intent = Record {
            pod: pod_name(request),
            netns: request.netns.clone(),
            complete: false,
            attachment,
            cni: Some(cni::record(request, list).map_err(wrong)?),
            bridge: None,
        };
        if !intent.attachment.port_mappings.is_empty() && !list.publishes_ports() {
            tracing::warn!(pod_id = %id, network = list.name, "no CNI plugin publishes host ports; they lead nowhere");
        }
        let intent = self.records.put(id, intent)?;
        match self.add_cni(request, &intent) {
            Ok(attachment) => Ok(attachment),
            // The record of a complete attachment, if it was written, holds no less than the intent.
            Err(error) => Err(self.failed(id, &self.records.get(id).unwrap_or(intent), error)),
        }
    }

    fn add_cni(&self, request: &AttachRequest, intent: &Record) -> Result<Attachment> {
        let id = &request.sandbox_id;
        let Some(cni) = &intent.cni else { return Ok(intent.attachment.clone()) };
        loopback_up(request)?;
        let result = self.cni.add(id, &request.netns, cni)?;
        let wrong = |reason| NetworkError::CniResult {
            plugin: intent.attachment.network.clone(),
            command: "ADD",
            reason,
        };
        let ips = cni::result::pod_ips(&result, cni::INTERFACE, self.prefer).map_err(wrong)?;
        let none = ips.is_empty();
        let attachment = Attachment { ips, result, ..intent.attachment.clone() };
        self.records.put(id, Record { complete: true, attachment: attachment.clone(), ..intent.clone() })?;
        // A kubelet makes a pod without an address again and again.
        if none { Err(wrong(format!("it gives {} no address", cni::INTERFACE))) } else { Ok(attachment) }
    }

    /// The error of an attach, after its undo.
    fn failed(&self, id: &SandboxId, record: &Record, attach: NetworkError) -> NetworkError {
        match self.undo(id, record) {
            Ok(()) => attach,
            Err(undo) => NetworkError::Undo { attach: Box::new(attach), undo: Box::new(undo) },
        }
    }

    /// As a detach, and the namespace is as before, if it is still there.
    fn undo(&self, id: &SandboxId, record: &Record) -> Result<()> {
        match &record.cni {
            Some(cni) => self.cni.del(id, live_netns(&record.netns), cni, &record.attachment.result)?,
            None => self.bridge.undo(id, record)?,
        }
        self.records.remove(id)
    }

    /// Takes a sandbox out of the network, with the configuration and the result of its attach. Twice is as once, and a
    /// namespace that is gone is fine. `netns`: where it is pinned now, if elsewhere than at the attach.
    ///
    /// Call it when the pod's processes are dead, and drop sockets that were opened in the namespace: the interface goes
    /// away with it.
    ///
    /// # Errors
    /// [`NetworkError`]; the record stays and a retry goes on. What fails for a sandbox whose attach never went through
    /// is logged, not returned; [`Self::gc`] tries it again.
    pub fn detach(&self, sandbox_id: &SandboxId, netns: Option<&Path>) -> Result<()> {
        let _busy = self.busy.lock(sandbox_id);
        let Some(record) = self.records.get(sandbox_id) else { return Ok(()) };
        match self.detach_record(sandbox_id, netns, &record) {
            Err(error) if !record.complete => {
                let error = chain(&error);
                tracing::warn!(pod_id = %sandbox_id, error, "an attach that failed cannot be undone yet");
                Ok(())
            }
            done => done,
        }
    }

    fn detach_record(&self, id: &SandboxId, netns: Option<&Path>, record: &Record) -> Result<()> {
        match &record.cni {
            Some(cni) => {
                let netns = netns.and_then(live_netns).or_else(|| live_netns(&record.netns));
                self.cni.del(id, netns, cni, &record.attachment.result)?;
            }
            None => self.bridge.disconnect(id, record)?,
        }
        self.records.remove(id)
    }

    /// Whether a pod can be attached now. Quick enough for every poll: the configuration is read, the bridge is looked
    /// at (and made again, if somebody removed it), and plugins that speak CNI 1.1 are asked in the background.
    ///
    /// # Errors
    /// [`NotReady`] with what is missing.
    pub fn status(&self) -> std::result::Result<(), NotReady> {
        let state = match self.cni.load() {
            Ok(Some((path, list))) => self.cni.status(&path, &list),
            Ok(None) => self.choose().and_then(|_| self.bridge.check()),
            Err(error) => Err(error),
        };
        state.map_err(|error| match error {
            NetworkError::NotReady { reason, message } => NotReady { reason, message },
            error => NotReady { reason: NOT_READY, message: chain(&error) },
        })
    }

    /// Detaches every sandbox on record that is not in `live`, and tells CNI plugins (1.1) who is left. At start, and
    /// whenever there is time; a sandbox that is just being attached belongs into `live`, too. It goes on after a failure.
    ///
    /// # Errors
    /// The first failure; the records of what failed stay for the next time.
    pub fn gc(&self, live: &[SandboxId]) -> Result<()> {
        let live: HashSet<&SandboxId> = live.iter().collect();
        let mut outcome = Ok(());
        for (id, _) in self.records.all() {
            if live.contains(&id) {
                continue;
            }
            let _busy = self.busy.lock(&id);
            let Some(record) = self.records.get(&id) else { continue };
            let done = self.detach_record(&id, None, &record);
            if let Err(error) = &done {
                tracing::warn!(pod_id = %id, error = chain(error), "a stale attachment cannot be removed yet");
            }
            outcome = outcome.and(done);
        }
        let attached: Vec<_> = self.records.all().into_iter().map(|(id, _)| id).collect();
        match self.choose() {
            Ok(Choice::Cni(list)) => outcome.and(self.cni.gc(&list, &attached)),
            Ok(Choice::Bridge) | Err(_) => outcome,
        }
    }

    /// For people, in the verbose status: the CNI configuration in use and the built-in bridge.
    #[must_use]
    pub fn describe(&self) -> Value {
        let mut all = self.cni.describe();
        if let Value::Object(all) = &mut all {
            all.insert("Attachments".into(), self.records.all().len().into());
            if self.bridge_enabled {
                all.insert("Bridge".into(), self.bridge.describe());
            }
        }
        all
    }

    /// What a sandbox is attached to; `None` when it is not, or not completely.
    #[must_use]
    pub fn attachment(&self, sandbox_id: &SandboxId) -> Option<Attachment> {
        let record = self.records.get(sandbox_id)?;
        record.complete.then(|| record.attachment.clone())
    }

    /// Removes the built-in bridge and its rules from the host. Not for normal work: pods that are attached lose their
    /// network.
    ///
    /// # Errors
    /// [`NetworkError::Netlink`].
    pub fn teardown(&self) -> Result<()> {
        self.bridge.teardown()
    }
}

fn pod_name(request: &AttachRequest) -> String {
    format!("{}/{}", request.pod_namespace, request.pod_name)
}

/// The path, if a namespace is pinned there. After a reboot a plain file may be left, which plugins choke on.
fn live_netns(path: &Path) -> Option<&Path> {
    /// `linux/magic.h`.
    const NSFS_MAGIC: u64 = 0x6e73_6673;
    let magic = rustix::fs::statfs(path).ok().and_then(|fs| u64::try_from(fs.f_type).ok())?;
    (magic == NSFS_MAGIC).then_some(path)
}

/// Loopback is ours: plugins of the list do not care for it.
fn loopback_up(request: &AttachRequest) -> Result<()> {
    let namespace = |source| NetworkError::Namespace { sandbox_id: request.sandbox_id.clone(), source };
    let socket = match &request.netlink {
        Some(given) => Arc::clone(given),
        None => Arc::new(crisp_sys::netns::open_netlink_in(&request.netns).map_err(namespace)?),
    };
    netlink::exchange(socket.as_fd(), &[route::up(route::LOOPBACK_INDEX)], |_, _| {})
        .map_err(|source| NetworkError::Netlink { operation: "bring the pod's loopback up".into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_is_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Network>();
        shared::<AttachRequest>();
    }
}
