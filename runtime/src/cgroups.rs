//! Where pods, containers and shims are accounted: the daemon's use of `crisp_cgroup`, and of systemd where that owns the tree.
//!
//! Which of the two a pod is under is told by its recorded cgroup alone: one that ends in `.slice` is systemd's.

mod holder;
mod scope;

use std::sync::Arc;

use crisp_cgroup::{Cgroup, CgroupPath, Cgroups, DeviceAccess, DeviceKind, DeviceRule, Resources, Version};
use crisp_domain::SandboxId;
use crisp_proto::cri::{CgroupDriver as CriDriver, NamespaceMode, PodSandboxConfig};
use crisp_systemd::{Slice, Stage};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, Spec};

use self::scope::{Scope, Scopes};
use crate::blocking::{self, Kind};
use crate::config::{CgroupDriver, Config, Handler};
use crate::container::Container;
use crate::daemon::Daemon;
use crate::error::{Doing as _, Error, Result};
use crate::pod::{Pod, PodCgroup};
use crate::supervisor::CgroupEntry;

/// The leaf for a pod's PID 1, beside the containers'.
const POD_INIT: &str = "init";
/// The slice of pods whose request names none.
const DEFAULT_SLICE: &str = "system.slice";
/// Processes of ours in a scope that the container's own limit does not count.
const HOLDERS: i64 = 1;

/// Who makes the cgroups of containers.
#[derive(Debug)]
pub(crate) enum Driver {
    /// The daemon.
    Cgroupfs,
    /// systemd.
    Systemd(Arc<Scopes>),
}

impl Driver {
    /// The configured driver; `auto` is systemd where it is PID 1 and the hierarchy is the unified one.
    ///
    /// # Errors
    /// [`Error::Invalid`] for systemd where it cannot be, and for a handler that asks systemd where it is not asked.
    pub(crate) fn open(config: &Config, cgroups: &Cgroups) -> Result<Self> {
        match choose(config.cgroup_driver, Init::here(), cgroups.version())? {
            Chosen::Systemd => Ok(Self::Systemd(Arc::new(Scopes::new(cgroups)?))),
            Chosen::Cgroupfs => refuse_systemd_handlers(config).map(|()| Self::Cgroupfs),
        }
    }

    /// As RuntimeConfig tells it.
    pub(crate) fn cri(&self) -> CriDriver {
        match self {
            Self::Cgroupfs => CriDriver::Cgroupfs,
            Self::Systemd(_) => CriDriver::Systemd,
        }
    }

    pub(crate) fn is_systemd(&self) -> bool {
        self.chosen() == Chosen::Systemd
    }

    fn chosen(&self) -> Chosen {
        match self {
            Self::Cgroupfs => Chosen::Cgroupfs,
            Self::Systemd(_) => Chosen::Systemd,
        }
    }
}

/// What runs as PID 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Init {
    Systemd,
    Other,
}

impl Init {
    /// Of this machine.
    pub(crate) fn here() -> Self {
        if crisp_systemd::is_pid_1() { Self::Systemd } else { Self::Other }
    }
}

/// A driver, `auto` being decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chosen {
    Cgroupfs,
    Systemd,
}

/// The rule of [`Driver::open`], for a machine of this kind.
///
/// # Errors
/// [`Error::Invalid`] that says what is missing.
pub(crate) fn choose(wanted: CgroupDriver, init: Init, version: Version) -> Result<Chosen> {
    let missing = match (init, version) {
        (Init::Systemd, Version::V2) => None,
        (Init::Systemd, Version::V1) => Some("it needs cgroup v2, and this machine has v1"),
        (Init::Other, Version::V1 | Version::V2) => Some("systemd does not run this machine"),
    };
    match (wanted, missing) {
        (CgroupDriver::Auto | CgroupDriver::Systemd, None) => Ok(Chosen::Systemd),
        (CgroupDriver::Auto, Some(_)) | (CgroupDriver::Cgroupfs, _) => Ok(Chosen::Cgroupfs),
        (CgroupDriver::Systemd, Some(missing)) => {
            Err(Error::Invalid(format!("cgroup_driver = \"systemd\": {missing}")))
        }
    }
}

fn refuse_systemd_handlers(config: &Config) -> Result<()> {
    let asks = |handler: &Handler| matches!(handler, Handler::Oci(oci) if oci.systemd_cgroup == Some(true));
    match config.handlers.iter().find(|(_, handler)| asks(handler)) {
        Some((name, _)) => Err(Error::Invalid(format!(
            "handlers.{name}.systemd_cgroup = true, but the cgroup driver is cgroupfs: pods and containers would be in two places"
        ))),
        None => Ok(()),
    }
}

/// Where a request's pod goes: into the parent it names, or into a cgroup of its own.
///
/// # Errors
/// [`Error::Invalid`] for a parent that this driver does not serve.
pub(crate) fn of_pod(daemon: &Daemon, config: &PodSandboxConfig, id: &SandboxId) -> Result<PodCgroup> {
    let parent = config.linux.as_ref().map_or("", |linux| linux.cgroup_parent.as_str());
    place(daemon.driver.chosen(), parent, &daemon.config.cgroup_parent, id.as_str())
}

fn place(driver: Chosen, parent: &str, default_parent: &str, id: &str) -> Result<PodCgroup> {
    match (driver, parent) {
        (Chosen::Cgroupfs, "") => {
            Ok(PodCgroup::Ours(format!("{}/{id}", default_parent.trim_end_matches('/'))))
        }
        (Chosen::Cgroupfs, parent) if parent.trim_end_matches('/').ends_with(".slice") => {
            Err(Error::Invalid(format!(
                "linux.cgroup_parent {parent:?} names a slice of systemd, but this node's cgroup driver is cgroupfs"
            )))
        }
        (Chosen::Cgroupfs, parent) => {
            let path = CgroupPath::new(&format!("/{}", parent.trim_matches('/')));
            Ok(PodCgroup::Given(path.doing("check linux.cgroup_parent")?.to_string()))
        }
        (Chosen::Systemd, "") => {
            let slice = default_slice(default_parent)?.child(&format!("crisp-{id}"));
            Ok(PodCgroup::Ours(slice.doing("name the pod's slice")?.cgroup()))
        }
        (Chosen::Systemd, parent) => {
            let slice = Slice::of_path(parent);
            Ok(PodCgroup::Given(slice.doing("check linux.cgroup_parent (the driver is systemd)")?.cgroup()))
        }
    }
}

/// The configured parent where it names a slice, else the one of system services.
fn default_slice(configured: &str) -> Result<Slice> {
    let name = if configured.ends_with(".slice") { configured } else { DEFAULT_SLICE };
    Slice::of_path(name).doing("check cgroup_parent")
}

/// The slice that a pod's containers go to; `None` for a pod whose cgroups the daemon makes.
fn slice_of(pod: &Pod) -> Result<Option<Slice>> {
    let record = pod.record();
    let path = record.cgroup.path();
    if !path.ends_with(".slice") {
        return Ok(None);
    }
    Slice::of_path(path).map(Some).doing("read the pod's slice")
}

fn scope_of(pod: &Pod, id: &str) -> Result<Option<Scope>> {
    slice_of(pod)?.map(|slice| Scope::of(slice, id)).transpose()
}

/// The driver of a pod that systemd accounts.
fn scopes(daemon: &Daemon) -> Result<&Arc<Scopes>> {
    match &daemon.driver {
        Driver::Systemd(scopes) => Ok(scopes),
        Driver::Cgroupfs => Err(Error::WrongState {
            what: "node",
            id: "cgroup_driver".to_owned(),
            state: "cgroupfs".to_owned(),
            needed: "systemd, under which this pod was made: remove the pod",
        }),
    }
}

/// Waits for systemd on a blocking thread. Nothing that is waited for here needs another one.
fn wait<T>(call: impl Future<Output = crisp_systemd::Result<T>>) -> crisp_systemd::Result<T> {
    tokio::runtime::Handle::current().block_on(call)
}

/// The place of all shims, away from every pod; under the systemd driver [`keep_shims`] makes it.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn make_shims(driver: &Driver, cgroups: &Cgroups, parent: &str) -> Result<CgroupEntry> {
    let cgroup = match driver {
        Driver::Systemd(_) => cgroups.open(&Scopes::shims(&default_slice(parent)?)?.path),
        Driver::Cgroupfs => {
            let path = CgroupPath::new(parent).and_then(|parent| parent.join("shims"));
            cgroups.ensure(&path.doing("check cgroup_parent")?).doing("make the cgroup of the shims")?
        }
    };
    Ok(CgroupEntry { oom_file: None, ..entry(&cgroup) })
}

/// Makes sure that the place of the shims is there.
///
/// # Errors
/// What systemd says.
pub(crate) async fn keep_shims(daemon: &Daemon) -> Result<()> {
    match &daemon.driver {
        Driver::Cgroupfs => Ok(()),
        Driver::Systemd(scopes) => {
            scopes.keep_shims(&Scopes::shims(&default_slice(&daemon.config.cgroup_parent)?)?).await
        }
    }
}

/// How a process enters `cgroup`.
pub(crate) fn entry(cgroup: &Cgroup) -> CgroupEntry {
    CgroupEntry { v1_tasks: cgroup.join_v1_tasks(), v2_dir: cgroup.v2_dir(), oom_file: cgroup.oom_file() }
}

/// Makes the pod's cgroup where the request named no parent; a parent that was named is its owner's to make. systemd makes a slice with
/// its first scope; that of a PID 1 is begun here, beside the pod's network.
pub(crate) fn make_pod(daemon: &Daemon, pod: &Pod) -> Result<()> {
    if let Some(scope) = scope_of(pod, pod.id.as_str())? {
        if pod.namespaces().pid() == NamespaceMode::Pod {
            scopes(daemon)?.prepare(scope, Resources::default());
        }
        return Ok(());
    }
    let path = pod.cgroup_path()?;
    match pod.record().cgroup {
        PodCgroup::Ours(_) => daemon.cgroups.ensure(&path).doing("make the pod's cgroup").map(drop),
        PodCgroup::Given(_) => Ok(()),
    }
}

/// Makes the leaf for the pod's PID 1.
pub(crate) async fn make_pod_init(daemon: &Arc<Daemon>, pod: &Arc<Pod>) -> Result<CgroupEntry> {
    if let Some(scope) = scope_of(pod, pod.id.as_str())? {
        scopes(daemon)?.take(&scope, &Resources::default()).await?;
        return Ok(entry(&daemon.cgroups.open(&scope.path)));
    }
    let (daemon, pod) = (Arc::clone(daemon), Arc::clone(pod));
    blocking::run(move || {
        let path = pod_init_path(&pod)?;
        let cgroup =
            daemon.cgroups.create(&path, &Resources::default()).doing("make the cgroup of the pod's init")?;
        Ok(entry(&cgroup))
    })
    .await
}

fn pod_init_path(pod: &Pod) -> Result<CgroupPath> {
    if let Some(scope) = scope_of(pod, pod.id.as_str())? {
        return Ok(scope.path);
    }
    // The id keeps pods apart that share a parent.
    pod.cgroup_path()?.join(&format!("{POD_INIT}-{}", pod.id)).doing("name the cgroup of the pod's init")
}

/// Removes what [`make_pod`] and [`make_pod_init`] made; absent is fine.
pub(crate) async fn remove_pod(daemon: &Daemon, pod: &Pod) -> Result<()> {
    // A path that cannot be was never made.
    let Ok(path) = pod_init_path(pod) else { return Ok(()) };
    let (slice, scope) = (slice_of(pod)?, scope_of(pod, pod.id.as_str())?);
    kill_and_remove(daemon, scope.as_ref(), daemon.cgroups.open(&path)).await?;
    match (&pod.record().cgroup, slice) {
        (PodCgroup::Ours(_), Some(slice)) => {
            scopes(daemon)?.systemd.stop(slice.as_str()).await.doing("stop the pod's slice")
        }
        (PodCgroup::Ours(_), None) => {
            let cgroup = daemon.cgroups.open(&pod.cgroup_path()?);
            blocking::run_as(Kind::Cgroup, move || cgroup.remove().doing("remove the pod's cgroup")).await
        }
        (PodCgroup::Given(_), _) => Ok(()),
    }
}

/// Ends what runs in a cgroup of ours and removes it; absent is fine.
async fn kill_and_remove(daemon: &Daemon, scope: Option<&Scope>, cgroup: Cgroup) -> Result<()> {
    let systemd = match (&daemon.driver, scope) {
        (Driver::Systemd(scopes), Some(scope)) => Some((scopes, scope)),
        (Driver::Systemd(_) | Driver::Cgroupfs, _) => None,
    };
    if let Some((scopes, scope)) = systemd {
        scopes.settle(&scope.unit).await;
    }
    if !cgroup.exists() {
        return Ok(());
    }
    let killed = cgroup.clone();
    blocking::run_as(Kind::Cgroup, move || killed.kill().doing("kill what runs in a cgroup")).await?;
    match systemd {
        Some((scopes, scope)) => scopes.gone(scope).await,
        None => blocking::run_as(Kind::Cgroup, move || cgroup.remove().doing("remove a cgroup")).await,
    }
}

/// The cgroup of a container.
pub(crate) fn container_path(container: &Container) -> Result<CgroupPath> {
    match scope_of(&container.pod, container.id.as_str())? {
        Some(scope) => Ok(scope.path),
        None => container.pod.cgroup_path()?.join(container.id.as_str()).doing("name the container's cgroup"),
    }
}

/// The cgroup of a container in the words of its OCI specification: `slice:prefix:name` for a program that asks systemd.
///
/// # Errors
/// As [`container_path`].
pub(crate) fn spec_path(daemon: &Daemon, container: &Container) -> Result<String> {
    let handler = daemon.handler_kind(&container.pod.record().handler)?;
    let asks = matches!(handler, crate::supervisor::HandlerKind::OciBinary { systemd_cgroup: true, .. });
    match scope_of(&container.pod, container.id.as_str())?.filter(|_| asks) {
        Some(scope) => Ok(scope.oci_path(container.id.as_str())),
        None => container_path(container).map(|path| path.to_string()),
    }
}

/// Processes of ours that the counters of the container's cgroup contain: to be taken off `pids.current`.
///
/// # Errors
/// As [`container_path`].
pub(crate) fn holders(pod: &Pod) -> Result<u64> {
    Ok(slice_of(pod)?.map_or(0, |_| HOLDERS.unsigned_abs()))
}

fn open(daemon: &Daemon, container: &Container) -> Result<Cgroup> {
    Ok(daemon.cgroups.open(&container_path(container)?))
}

/// Begins what takes another program's time, beside the making of the container's files: the scope. May be left out; then
/// [`make_container`] does it.
pub(crate) fn prepare_container(daemon: &Daemon, container: &Container) -> Result<()> {
    let Some(scope) = scope_of(&container.pod, container.id.as_str())? else { return Ok(()) };
    if let Handler::Builtin = daemon.handler(&container.pod.record().handler)? {
        scopes(daemon)?.prepare(scope, scope_limits(&container.record().resources));
    }
    Ok(())
}

/// Makes the container's cgroup with its limits. An OCI runtime program makes it itself, from the specification.
pub(crate) async fn make_container(daemon: &Arc<Daemon>, container: &Arc<Container>) -> Result<CgroupEntry> {
    let path = container_path(container)?;
    if let Handler::Oci(_) = daemon.handler(&container.pod.record().handler)? {
        return Ok(entry(&daemon.cgroups.open(&path)));
    }
    let limits = container.record().resources.clone();
    let scope = scope_of(&container.pod, container.id.as_str())?;
    if let Some(scope) = &scope {
        scopes(daemon)?.take(scope, &scope_limits(&limits)).await?;
    }
    let (daemon, container) = (Arc::clone(daemon), Arc::clone(container));
    blocking::run(move || {
        let devices = Some(device_rules(&container)?);
        let made = match scope {
            // The properties are in force; this adds what has none, and the exact numbers.
            Some(_) => daemon.cgroups.limit(&path, &Resources { devices, ..scope_limits(&limits) }),
            None => daemon.cgroups.create(&path, &Resources { devices, ..resources(&limits) }),
        };
        made.doing("make the container's cgroup").map(|cgroup| entry(&cgroup))
    })
    .await
}

/// Takes over the cgroup that an OCI runtime program has just made: its scope stays until we have read its counters.
///
/// # Errors
/// When the scope is not where it should be.
pub(crate) async fn adopt_container(daemon: &Daemon, container: &Container) -> Result<()> {
    let Some(scope) = scope_of(&container.pod, container.id.as_str())? else { return Ok(()) };
    match daemon.handler(&container.pod.record().handler)? {
        Handler::Builtin => Ok(()),
        Handler::Oci(_) => scopes(daemon)?.hold(&scope).await,
    }
}

/// How another process enters a running container's cgroup.
pub(crate) fn container_entry(daemon: &Daemon, container: &Container) -> Result<CgroupEntry> {
    open(daemon, container).map(|cgroup| entry(&cgroup))
}

/// Refuses limits that this machine cannot give or that cannot be.
pub(crate) fn check(daemon: &Daemon, limits: &crisp_spec::Resources) -> Result<()> {
    crisp_spec::resources::to_oci(limits, &daemon.host).doing("check the resources").map(drop)
}

/// Changes a running container's limits and then confirms them, all or none: what `confirm` says is undone as well. Blocks.
pub(crate) fn update_container(
    daemon: &Daemon,
    container: &Container,
    limits: &crisp_spec::Resources,
    confirm: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let cgroup = open(daemon, container)?;
    let Some(scope) = scope_of(&container.pod, container.id.as_str())? else {
        return cgroup.update_and(&resources(limits), confirm).doing("change the container's limits")?;
    };
    let scopes = scopes(daemon)?;
    let wanted = scope_limits(limits);
    let old = scope_properties(&scope_limits(&container.record().resources), Stage::Fresh)?;
    let properties = scope_properties(&wanted, Stage::Live)?;
    let set = |properties: &[crisp_systemd::Property]| {
        wait(scopes.systemd.set_properties(&scope.unit, properties)).doing("change the scope's limits")
    };
    let confirm = || {
        // systemd rounds, and writes files of its own beside those that were asked for: the exact values go last.
        let confirmed = set(&properties)
            .and_then(|()| cgroup.update(&wanted).doing("change the container's limits"))
            .and_then(|()| confirm());
        if confirmed.is_err()
            && let Err(error) = set(&crisp_systemd::undo(&properties, &old))
        {
            tracing::error!(container_id = %container.id, %error, "the scope keeps limits that were refused");
        }
        confirmed
    };
    cgroup.update_and(&wanted, confirm).doing("change the container's limits")?
}

fn scope_properties(limits: &Resources, stage: Stage) -> Result<Vec<crisp_systemd::Property>> {
    crisp_systemd::of_resources(limits, stage).doing("tell systemd the limits")
}

/// Kills everything in the container's cgroup; one that is gone is fine.
pub(crate) fn kill_container(daemon: &Daemon, container: &Container) -> Result<()> {
    let cgroup = open(daemon, container)?;
    if cgroup.exists() { cgroup.kill().doing("kill the container's processes") } else { Ok(()) }
}

/// Removes the container's cgroup, with what an ended init left running in it.
pub(crate) async fn remove_container(daemon: &Daemon, container: &Container) -> Result<()> {
    let scope = scope_of(&container.pod, container.id.as_str())?;
    kill_and_remove(daemon, scope.as_ref(), open(daemon, container)?).await
}

/// Lets a frozen container run, so that it can answer a signal.
pub(crate) async fn thaw(daemon: &Arc<Daemon>, container: &Arc<Container>) {
    let (owner, frozen) = (Arc::clone(daemon), Arc::clone(container));
    let thawed = blocking::run(move || open(&owner, &frozen)?.thaw().doing("thaw the container")).await;
    if let Err(error) = thawed {
        tracing::debug!(container_id = %container.id, %error, "thaw before the stop signal");
    }
}

/// The limits of a scope, in which a holder of ours is counted.
fn scope_limits(limits: &crisp_spec::Resources) -> Resources {
    let limits = resources(limits);
    let pids_max =
        if limits.pids_max > 0 { limits.pids_max.saturating_add(HOLDERS) } else { limits.pids_max };
    Resources { pids_max, ..limits }
}

/// The limits in the words of `crisp_cgroup`.
fn resources(limits: &crisp_spec::Resources) -> Resources {
    Resources {
        cpu_shares: limits.cpu_shares.unwrap_or(0),
        cpu_quota_us: limits.cpu_quota_us.unwrap_or(0),
        cpu_period_us: limits.cpu_period_us.unwrap_or(0),
        cpuset_cpus: limits.cpuset_cpus.clone(),
        cpuset_mems: limits.cpuset_mems.clone(),
        memory_limit_bytes: limits.memory_limit_bytes.unwrap_or(0),
        memory_swap_limit_bytes: limits.memory_swap_limit_bytes.unwrap_or(0),
        hugepages: limits.hugepage_limits.iter().map(|(size, bytes)| (size.clone(), *bytes)).collect(),
        unified: limits.unified.clone(),
        pids_max: limits.pids_limit.unwrap_or(0),
        devices: None,
    }
}

/// The device rules of the container's specification, which is what every handler applies.
fn device_rules(container: &Container) -> Result<Vec<DeviceRule>> {
    let spec = Spec::load(container.dir.config()).map_err(|error| Error::Internal {
        what: "read the container's specification",
        cause: error.to_string(),
    })?;
    let rules = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref()?.devices().clone());
    rules.unwrap_or_default().iter().map(device_rule).collect()
}

fn device_rule(rule: &LinuxDeviceCgroup) -> Result<DeviceRule> {
    let access = rule.access().as_deref().unwrap_or("rwm");
    let kind = match rule.typ().unwrap_or_default() {
        LinuxDeviceType::A => DeviceKind::All,
        LinuxDeviceType::B => DeviceKind::Block,
        LinuxDeviceType::C | LinuxDeviceType::U => DeviceKind::Char,
        LinuxDeviceType::P => return Err(Error::Invalid("a device rule for a FIFO".to_owned())),
    };
    let number = |number: Option<i64>| number.and_then(|number| u32::try_from(number).ok());
    Ok(DeviceRule {
        allow: rule.allow(),
        kind,
        major: number(rule.major()),
        minor: number(rule.minor()),
        access: DeviceAccess {
            read: access.contains('r'),
            write: access.contains('w'),
            mknod: access.contains('m'),
        },
    })
}

#[cfg(test)]
mod tests {
    use crisp_domain::ErrorKind;

    use super::*;

    #[test]
    fn auto_is_systemd_where_it_can_be() {
        use CgroupDriver::{Auto, Cgroupfs, Systemd};
        for (wanted, init, version, want) in [
            (Auto, Init::Systemd, Version::V2, Some(Chosen::Systemd)),
            (Auto, Init::Systemd, Version::V1, Some(Chosen::Cgroupfs)),
            (Auto, Init::Other, Version::V2, Some(Chosen::Cgroupfs)),
            (Systemd, Init::Systemd, Version::V2, Some(Chosen::Systemd)),
            (Systemd, Init::Systemd, Version::V1, None),
            (Systemd, Init::Other, Version::V2, None),
            (Cgroupfs, Init::Systemd, Version::V2, Some(Chosen::Cgroupfs)),
        ] {
            assert_eq!(choose(wanted, init, version).ok(), want, "{wanted:?} {init:?} {version:?}");
        }
    }

    fn given(driver: Chosen, parent: &str) -> Result<String> {
        place(driver, parent, "/crisp", "0a").map(|cgroup| match cgroup {
            PodCgroup::Given(path) => path,
            PodCgroup::Ours(path) => format!("ours {path}"),
        })
    }

    #[test]
    fn a_pod_goes_where_the_request_says() {
        for (driver, parent, want) in [
            (Chosen::Cgroupfs, "kubepods/burstable/pod1/", "/kubepods/burstable/pod1"),
            (Chosen::Cgroupfs, "", "ours /crisp/0a"),
            (
                Chosen::Systemd,
                "/kubepods.slice/kubepods-pod1_2.slice",
                "/kubepods.slice/kubepods-pod1_2.slice",
            ),
            (Chosen::Systemd, "kubepods-pod1.slice", "/kubepods.slice/kubepods-pod1.slice"),
            (Chosen::Systemd, "", "ours /system.slice/system-crisp.slice/system-crisp-0a.slice"),
        ] {
            assert_eq!(given(driver, parent).unwrap(), want);
        }
        assert_eq!(
            place(Chosen::Systemd, "", "/my.slice", "0a").unwrap().path(),
            "/my.slice/my-crisp.slice/my-crisp-0a.slice"
        );
    }

    #[test]
    fn a_parent_of_the_other_driver_is_refused() {
        for (driver, parent) in [
            (Chosen::Systemd, "/kubepods/burstable/pod1"),
            (Chosen::Systemd, "/kubepods.slice/pod1"),
            (Chosen::Systemd, "/a--b.slice"),
            (Chosen::Cgroupfs, "/kubepods.slice/kubepods-pod1.slice"),
            (Chosen::Cgroupfs, "kubepods.slice/"),
            (Chosen::Cgroupfs, "/kubepods/../.."),
            (Chosen::Cgroupfs, "/a\nb"),
        ] {
            assert_eq!(given(driver, parent).unwrap_err().kind(), ErrorKind::Invalid, "{driver:?} {parent}");
        }
    }

    #[test]
    fn a_holder_does_not_use_up_the_containers_processes() {
        let limits = |pids_limit| crisp_spec::Resources { pids_limit, ..crisp_spec::Resources::default() };
        let max = |pids_limit| scope_limits(&limits(pids_limit)).pids_max;
        assert_eq!((max(Some(10)), max(Some(-1)), max(None)), (11, -1, 0));
    }
}
