//! The one type the daemon sees: chooses who attaches, keeps the records, undoes what failed.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crisp_domain::SandboxId;
use crisp_store::Durability;
use serde_json::Value;

use crate::bridge::Bridge;
use crate::cni::conf::{self, PluginList, Source};
use crate::cni::watch::Watch;
use crate::cni::{self, Cni};
use crate::error::chain;
use crate::gate::Gate;
use crate::keyed::KeyedLock;
use crate::ports;
use crate::record::{CniRecord, Record, Records};
use crate::template::{self, PodCidrs};
use crate::{
    AttachRequest, Attachment, IpPreference, NETWORKS_MAX, NetworkConfig, NetworkError, Provider, Result,
    netlink, route,
};

/// Reason of the `NetworkReady` condition, as kubelets have seen it from every runtime.
pub(crate) const NOT_READY: &str = "NetworkPluginNotReady";
/// How long one [`Network::gc`] goes on; after that it begins nothing more.
const GC_TIME_MAX: Duration = Duration::from_secs(60);
/// How long it waits for a moment in which nobody is attached, to ask plugins for their GC.
const GC_QUIET_WAIT_MAX: Duration = Duration::from_secs(5);
/// How long the plugins' GC may take in all: attaching waits for it.
const GC_ALONE_MAX: Duration = Duration::from_secs(15);
/// Stale sandboxes that are detached at once: plugins wait for locks of the host more than for a processor.
const GC_WORKERS: usize = 4;
/// The configuration that is made of the template.
const TEMPLATE_RESULT: &str = "10-crisp.conflist";
const POD_CIDRS_VERSION: u32 = 1;

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
    cni: Arc<Cni>,
    bridge: Bridge,
    bridge_enabled: bool,
    prefer: IpPreference,
    template: Option<PathBuf>,
    /// What [`Self::apply_pod_cidr`] was told last, for plugins that take ranges from the runtime.
    pod_cidrs: RwLock<Vec<String>>,
    pod_cidrs_path: PathBuf,
    records: Records,
    /// One attach or detach per sandbox at a time.
    busy: KeyedLock<SandboxId>,
    /// Plugins are told what is left while none of them attaches or detaches.
    gate: Gate,
    /// Held from the look for a host port's holder until the claim is on record.
    claiming: Mutex<()>,
    _watch: Watch,
}

/// Who would attach a pod now.
enum Choice {
    Cni(Vec<Source>),
    Bridge,
}

/// What became of a pod CIDR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CidrOutcome {
    /// There is no template, or no CIDR, so there is nothing to do.
    Nothing,
    /// A configuration is there that is not made of the template; it stays.
    Kept(PathBuf),
    /// The configuration of the template is there now.
    Written(PathBuf),
}

impl Network {
    /// Opens the network: loads the records and, where the built-in bridge is in use, makes it and its rules what they
    /// should be. Whatever the bridge lacks is told by [`Self::status`], so that pods with the host's network can run.
    ///
    /// # Errors
    /// [`NetworkError::Config`] for settings that make no sense, [`NetworkError::Locked`] when another daemon uses the
    /// directory, [`NetworkError::Record`] and [`NetworkError::File`].
    pub fn open(config: NetworkConfig) -> Result<Self> {
        if config.cni_networks_max == 0 || config.cni_networks_max > NETWORKS_MAX {
            let reason = format!("must lie between 1 and {NETWORKS_MAX}");
            let value = config.cni_networks_max.to_string();
            return Err(NetworkError::Config { setting: "cni.max_networks", value, reason });
        }
        let bridge = Bridge::new(&config.bridge, config.prefer)?;
        let cni = Arc::new(Cni::new(&config));
        let records = Records::open(&config.cache_dir)?;
        let ours: Vec<_> =
            records.all().into_iter().filter(|(_, r)| r.attachment.provider == Provider::Bridge).collect();
        for (id, record) in &ours {
            bridge.restore(id, record);
        }
        let pod_cidrs_path = config.cache_dir.join("pod-cidrs.json");
        let pod_cidrs: Option<Vec<String>> =
            crisp_store::read(&pod_cidrs_path, POD_CIDRS_VERSION).map_err(NetworkError::Record)?;
        let network = Self {
            _watch: Watch::start(&cni),
            cni,
            bridge,
            bridge_enabled: config.bridge.enabled,
            prefer: config.prefer,
            template: config.cni_template,
            pod_cidrs: RwLock::new(pod_cidrs.unwrap_or_default()),
            pod_cidrs_path,
            records,
            busy: KeyedLock::new(),
            gate: Gate::default(),
            claiming: Mutex::default(),
        };
        if (!ours.is_empty() || matches!(network.choose(None), Ok(Choice::Bridge)))
            && let Err(error) = network.bridge.ensure()
        {
            tracing::warn!(error = chain(&error), "the built-in network is not ready");
        }
        Ok(network)
    }

    /// `dir`: instead of the node's own.
    fn choose(&self, dir: Option<&Path>) -> Result<Choice> {
        let from = dir.unwrap_or(self.cni.conf_dir());
        let sources = self.cni.load_from(from)?;
        if !sources.is_empty() {
            return Ok(Choice::Cni(sources));
        }
        let why = match dir {
            None if self.bridge_enabled => return Ok(Choice::Bridge),
            None => "and the built-in bridge is switched off",
            Some(_) => "which the pod's handler asks for",
        };
        let message = format!("there is no CNI configuration in {}, {why}", from.display());
        Err(NetworkError::NotReady { reason: NOT_READY, message })
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
        match self.choose(request.cni_conf_dir.as_deref())? {
            Choice::Cni(sources) => self.attach_cni(request, &self.cni.settle(&sources)?),
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

    fn attach_cni(&self, request: &AttachRequest, lists: &[PluginList]) -> Result<Attachment> {
        let id = &request.sandbox_id;
        let wrong = |reason| NetworkError::Request { sandbox_id: id.clone(), reason };
        let port_mappings = request.port_mappings.iter().filter(|m| m.host_port != 0).cloned().collect();
        let ip_ranges = self.pod_cidrs.read().unwrap_or_else(PoisonError::into_inner).clone();
        let intent = Record {
            pod: pod_name(request),
            netns: request.netns.clone(),
            complete: false,
            attachment: Attachment {
                provider: Provider::Cni,
                network: lists.first().map(|list| list.name.clone()).unwrap_or_default(),
                ips: Vec::new(),
                result: Value::Null,
                port_mappings,
            },
            cni: cni::records(request, lists, &ip_ranges).map_err(wrong)?,
            bridge: None,
        };
        let publishes = lists.iter().any(PluginList::publishes_ports);
        if !intent.attachment.port_mappings.is_empty() && !publishes {
            tracing::warn!(pod_id = %id, "no CNI plugin publishes host ports; they lead nowhere");
        }
        let _working = self.gate.enter();
        let intent = if publishes { self.claim_ports(id, intent)? } else { self.records.put(id, intent)? };
        match self.add_cni(request, &intent) {
            Ok(attachment) => Ok(attachment),
            // What was written down on the way holds no less than the intent.
            Err(error) => Err(self.failed(id, &self.records.get(id).unwrap_or(intent), error)),
        }
    }

    /// Writes the intent down, unless another sandbox has one of its host ports: the plugins would let the two disturb
    /// each other.
    fn claim_ports(&self, id: &SandboxId, intent: Record) -> Result<Arc<Record>> {
        let wanted = &intent.attachment.port_mappings;
        if wanted.is_empty() {
            return self.records.put(id, intent);
        }
        let _claiming = self.claiming.lock().unwrap_or_else(PoisonError::into_inner);
        let clash = |record: &Record| ports::clash(wanted, &record.attachment.port_mappings);
        if let Some((other, record)) = self.records.find(id, |record| clash(record).is_some()) {
            let port = clash(&record).map(ports::mapping_text).unwrap_or_default();
            let holder = format!("sandbox {other} (pod {})", record.pod);
            return Err(NetworkError::PortTaken { port, holder });
        }
        self.records.put(id, intent)
    }

    fn add_cni(&self, request: &AttachRequest, intent: &Record) -> Result<Attachment> {
        let id = &request.sandbox_id;
        loopback_up(request)?;
        let mut record = intent.clone();
        for number in 0..record.cni.len() {
            record.cni[number].result = self.cni.add(id, &request.netns, &record.cni[number])?;
            if number + 1 < record.cni.len() {
                self.records.put(id, record.clone())?;
            }
        }
        let wrong = |reason| NetworkError::CniResult {
            plugin: intent.attachment.network.clone(),
            command: "ADD",
            reason,
        };
        let results: Vec<Value> = record.cni.iter().map(|network| network.result.clone()).collect();
        let first = results.first().unwrap_or(&Value::Null);
        let ips = cni::result::pod_ips(first, cni::INTERFACE, self.prefer).map_err(wrong)?;
        let none = ips.is_empty();
        record.complete = true;
        record.attachment = Attachment { ips, result: cni::result::merge(&results), ..record.attachment };
        let record = self.records.put(id, record)?;
        // A kubelet makes a pod without an address again and again.
        if none {
            return Err(wrong(format!("it gives {} no address", cni::INTERFACE)));
        }
        Ok(record.attachment.clone())
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
        if record.cni.is_empty() {
            self.bridge.undo(id, record)?;
        } else {
            self.del_cni(id, live_netns(&record.netns), record)?;
        }
        self.records.remove(id)
    }

    /// Leaves every network, the last first, whatever one of them answers.
    fn del_cni(&self, id: &SandboxId, netns: Option<&Path>, record: &Record) -> Result<()> {
        let _working = self.gate.enter();
        let only = record.cni.len() == 1;
        let mut outcome = Ok(());
        for network in record.cni.iter().rev() {
            // The first daemons wrote the result with the attachment only.
            let known = network.result.is_null() && only;
            let result = if known { &record.attachment.result } else { &network.result };
            let network = CniRecord { result: result.clone(), ..network.clone() };
            outcome = outcome.and(self.cni.del(id, netns, &network));
        }
        outcome
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
        if record.cni.is_empty() {
            self.bridge.disconnect(id, record)?;
        } else {
            let netns = netns.and_then(live_netns).or_else(|| live_netns(&record.netns));
            self.del_cni(id, netns, record)?;
        }
        self.records.remove(id)
    }

    /// Whether a pod can be attached now. Quick enough for every poll: the configuration is read, the bridge is looked
    /// at (and made again, if somebody removed it), and plugins that speak CNI 1.1 are asked in the background.
    ///
    /// # Errors
    /// [`NotReady`] with what is missing.
    pub fn status(&self) -> Result<(), NotReady> {
        let state = match self.choose(None) {
            Ok(Choice::Cni(sources)) => self.cni.status(&sources),
            Ok(Choice::Bridge) => self.bridge.check(),
            Err(error) => Err(error),
        };
        state.map_err(|error| match error {
            NetworkError::NotReady { reason, message } => NotReady { reason, message },
            error => NotReady { reason: NOT_READY, message: chain(&error) },
        })
    }

    /// Whether a sandbox that is attached still has what it was given: plugins are asked to CHECK, the bridge is looked at.
    /// One that is not attached, or not completely, has nothing to lose. A detach waits for it.
    ///
    /// # Errors
    /// [`NetworkError::Changed`] with the network and what is wrong; of a pod nothing is changed.
    pub fn check(&self, sandbox_id: &SandboxId) -> Result<()> {
        let _busy = self.busy.lock(sandbox_id);
        let Some(record) = self.records.get(sandbox_id).filter(|record| record.complete) else {
            return Ok(());
        };
        let changed = |network: &str, source| NetworkError::Changed {
            network: network.to_owned(),
            source: Box::new(source),
        };
        if record.cni.is_empty() {
            let checked = self.bridge.check_pod(sandbox_id, &record);
            return checked.map_err(|error| changed(&record.attachment.network, error));
        }
        record.cni.iter().try_for_each(|network| {
            let checked = self.cni.check(sandbox_id, &record.netns, network);
            checked.map_err(|error| changed(network.name(), error))
        })
    }

    /// As [`Self::gc_where`], with a list. No sandbox may be attached meanwhile that is not in it.
    ///
    /// # Errors
    /// As [`Self::gc_where`].
    pub fn gc(&self, live: &[SandboxId]) -> Result<()> {
        let live: HashSet<&SandboxId> = live.iter().collect();
        self.gc_where(&|id| live.contains(id))
    }

    /// Detaches every sandbox on record that is not live, and tells CNI plugins (1.1) who is left. At start, and whenever
    /// there is time; it goes on after a failure, and ends after a minute and the plugin calls that are under way then.
    /// Others may be attached meanwhile: `is_live` is asked about a sandbox when it is its turn, and must be true of one
    /// that is being attached, or will be.
    ///
    /// # Errors
    /// The first failure, or [`NetworkError::Unfinished`]; the records of what failed stay for the next time.
    pub fn gc_where(&self, is_live: &(dyn Fn(&SandboxId) -> bool + Sync)) -> Result<()> {
        let deadline = Instant::now() + GC_TIME_MAX;
        let outcome = self.detach_stale(is_live, deadline);
        if let Some(id) = self.records.unknown().iter().find(|id| is_live(id)) {
            // A plugin would free the addresses of whoever is not named.
            tracing::warn!(pod_id = %id, "its network record cannot be read; CNI plugins are not told what is left");
            return outcome;
        }
        outcome.and(self.tell_what_is_left())
    }

    /// The first half of [`Self::gc_where`]: what a failed undo left is tried again. It may hold addresses, and host ports that
    /// others want. Quick when there is nothing.
    ///
    /// # Errors
    /// As [`Self::gc_where`].
    pub fn retry_stale(&self, is_live: &(dyn Fn(&SandboxId) -> bool + Sync)) -> Result<()> {
        if self.records.all().iter().all(|(id, _)| is_live(id)) {
            return Ok(());
        }
        self.detach_stale(is_live, Instant::now() + GC_TIME_MAX)
    }

    fn tell_what_is_left(&self) -> Result<()> {
        let lists = self.cni.collectable();
        if lists.is_empty() {
            return Ok(());
        }
        let Some(_alone) = self.gate.alone(GC_QUIET_WAIT_MAX) else {
            tracing::info!("pods come and go; CNI plugins are told what is left another time");
            return Ok(());
        };
        let deadline = Instant::now() + GC_ALONE_MAX;
        let mut outcome = Ok(());
        for list in &lists {
            outcome = outcome.and(self.cni.gc(list, &self.attached_to(&list.name), deadline));
        }
        outcome
    }

    fn detach_stale(&self, is_live: &(dyn Fn(&SandboxId) -> bool + Sync), deadline: Instant) -> Result<()> {
        let queue = Mutex::new(self.records.all().into_iter().map(|(id, _)| id).filter(|id| !is_live(id)));
        let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = || {
            let mut outcome = Ok(());
            while Instant::now() < deadline
                && let Some(id) = next()
            {
                outcome = outcome.and(self.detach_unless(&id, is_live));
            }
            outcome
        };
        let outcome = std::thread::scope(|scope| {
            let workers: Vec<_> = (1..GC_WORKERS).map(|_| scope.spawn(work)).collect();
            let own = work();
            workers.into_iter().fold(own, |all, worker| all.and(worker.join().unwrap_or(Ok(()))))
        });
        let left = std::iter::from_fn(next).count();
        match outcome {
            Ok(()) if left > 0 => Err(NetworkError::Unfinished { left, after_ms: GC_TIME_MAX.as_millis() }),
            outcome => outcome,
        }
    }

    fn detach_unless(&self, id: &SandboxId, is_live: &(dyn Fn(&SandboxId) -> bool + Sync)) -> Result<()> {
        let _busy = self.busy.lock(id);
        let Some(record) = self.records.get(id).filter(|_| !is_live(id)) else { return Ok(()) };
        self.detach_record(id, None, &record).inspect_err(|error| {
            tracing::warn!(pod_id = %id, error = chain(error), "a stale attachment cannot be removed yet");
        })
    }

    /// Sandboxes and their interfaces in a CNI network.
    fn attached_to(&self, network: &str) -> Vec<(SandboxId, String)> {
        let all = self.records.all();
        let attached = all.iter().flat_map(|(id, record)| {
            record
                .cni
                .iter()
                .filter(|cni| cni.name() == network)
                .map(|cni| (id.clone(), cni.interface.clone()))
        });
        attached.collect()
    }

    /// Takes note of the node's pod CIDR, `10.1.0.0/24` or several with commas between: CNI plugins with the capability
    /// `ipRanges` get it, and the template, if there is one, becomes `<conf dir>/10-crisp.conflist`, if that is there or no
    /// configuration is. An empty CIDR changes nothing.
    ///
    /// # Errors
    /// [`NetworkError::Template`], also for a template that does not give a CNI configuration; [`NetworkError::Config`] for
    /// what is no CIDR, [`NetworkError::File`], [`NetworkError::Record`].
    pub fn apply_pod_cidr(&self, pod_cidr: &str) -> Result<CidrOutcome> {
        let wrong = |reason| NetworkError::Config { setting: "pod_cidr", value: pod_cidr.to_owned(), reason };
        let cidrs: PodCidrs = pod_cidr.parse().map_err(wrong)?;
        if cidrs.is_empty() {
            return Ok(CidrOutcome::Nothing);
        }
        self.remember(&cidrs)?;
        let Some(template) = &self.template else { return Ok(CidrOutcome::Nothing) };
        let dir = self.cni.conf_dir();
        let ours = dir.join(TEMPLATE_RESULT);
        let files = conf::files(dir)?;
        if let Some(other) = files.first().filter(|_| !files.contains(&ours)) {
            return Ok(CidrOutcome::Kept(other.clone()));
        }
        template::apply(template, &cidrs, &ours)?;
        Ok(CidrOutcome::Written(ours))
    }

    fn remember(&self, cidrs: &PodCidrs) -> Result<()> {
        let texts = cidrs.texts();
        let mut known = self.pod_cidrs.write().unwrap_or_else(PoisonError::into_inner);
        if *known != texts {
            crisp_store::write(&self.pod_cidrs_path, POD_CIDRS_VERSION, &texts, Durability::Durable)
                .map_err(NetworkError::Record)?;
            *known = texts;
        }
        Ok(())
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

    /// Whether something is on record of a sandbox: an attachment, or what a failed attach could not undo. Never waits.
    #[must_use]
    pub fn holds(&self, sandbox_id: &SandboxId) -> bool {
        self.records.get(sandbox_id).is_some()
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
