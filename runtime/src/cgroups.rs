//! Where pods, containers and shims are accounted: the daemon's use of `crisp_cgroup`.

use std::sync::Arc;

use crisp_cgroup::{Cgroup, CgroupPath, DeviceAccess, DeviceKind, DeviceRule, Resources};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType, Spec};

use crate::blocking;
use crate::config::Handler;
use crate::container::Container;
use crate::daemon::Daemon;
use crate::error::{Doing as _, Error, Result};
use crate::pod::{Pod, PodCgroup};
use crate::supervisor::CgroupEntry;

/// The leaf for a pod's PID 1, beside the containers'.
const POD_INIT: &str = "init";

/// The cgroup of all shims, away from every pod.
///
/// # Errors
/// When it cannot be made.
pub(crate) fn make_shims(cgroups: &crisp_cgroup::Cgroups, parent: &str) -> Result<CgroupEntry> {
    let path =
        CgroupPath::new(parent).and_then(|parent| parent.join("shims")).doing("check cgroup_parent")?;
    let cgroup = cgroups.ensure(&path).doing("make the cgroup of the shims")?;
    Ok(CgroupEntry { oom_file: None, ..entry(&cgroup) })
}

/// How a process enters `cgroup`.
pub(crate) fn entry(cgroup: &Cgroup) -> CgroupEntry {
    CgroupEntry { v1_tasks: cgroup.join_v1_tasks(), v2_dir: cgroup.v2_dir(), oom_file: cgroup.oom_file() }
}

/// Makes the pod's cgroup where the request named no parent; a parent that was named is its owner's to make.
pub(crate) fn make_pod(daemon: &Daemon, pod: &Pod) -> Result<()> {
    let path = pod.cgroup_path()?;
    match pod.record().cgroup {
        PodCgroup::Ours(_) => daemon.cgroups.ensure(&path).doing("make the pod's cgroup").map(drop),
        PodCgroup::Given(_) => Ok(()),
    }
}

/// Makes the leaf for the pod's PID 1.
pub(crate) async fn make_pod_init(daemon: &Arc<Daemon>, pod: &Arc<Pod>) -> Result<CgroupEntry> {
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
    // The id keeps pods apart that share a parent.
    pod.cgroup_path()?.join(&format!("{POD_INIT}-{}", pod.id)).doing("name the cgroup of the pod's init")
}

/// Removes what [`make_pod`] and [`make_pod_init`] made; absent is fine.
pub(crate) fn remove_pod(daemon: &Daemon, pod: &Pod) -> Result<()> {
    // A path that cannot be was never made.
    let Ok(path) = pod_init_path(pod) else { return Ok(()) };
    let init = daemon.cgroups.open(&path);
    if init.exists() {
        init.kill().doing("kill the pod's init")?;
        init.remove().doing("remove the cgroup of the pod's init")?;
    }
    match pod.record().cgroup {
        PodCgroup::Ours(_) => {
            daemon.cgroups.open(&pod.cgroup_path()?).remove().doing("remove the pod's cgroup")
        }
        PodCgroup::Given(_) => Ok(()),
    }
}

/// The cgroup of a container.
pub(crate) fn container_path(container: &Container) -> Result<CgroupPath> {
    container.pod.cgroup_path()?.join(container.id.as_str()).doing("name the container's cgroup")
}

fn open(daemon: &Daemon, container: &Container) -> Result<Cgroup> {
    Ok(daemon.cgroups.open(&container_path(container)?))
}

/// Makes the container's cgroup with its limits. An OCI runtime program makes it itself, from the specification.
pub(crate) fn make_container(daemon: &Daemon, container: &Container) -> Result<CgroupEntry> {
    let path = container_path(container)?;
    match daemon.handler(&container.pod.record().handler)? {
        Handler::Oci(_) => Ok(entry(&daemon.cgroups.open(&path))),
        Handler::Builtin => {
            let limits = Resources {
                devices: Some(device_rules(container)?),
                ..resources(&container.record().resources)
            };
            daemon
                .cgroups
                .create(&path, &limits)
                .doing("make the container's cgroup")
                .map(|cgroup| entry(&cgroup))
        }
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

/// Changes a running container's limits, all or none.
pub(crate) fn update_container(
    daemon: &Daemon,
    container: &Container,
    limits: &crisp_spec::Resources,
) -> Result<()> {
    open(daemon, container)?.update(&resources(limits)).doing("change the container's limits")
}

/// Kills everything in the container's cgroup; one that is gone is fine.
pub(crate) fn kill_container(daemon: &Daemon, container: &Container) -> Result<()> {
    let cgroup = open(daemon, container)?;
    if cgroup.exists() { cgroup.kill().doing("kill the container's processes") } else { Ok(()) }
}

/// Removes the container's cgroup, with what an ended init left running in it.
pub(crate) fn remove_container(daemon: &Daemon, container: &Container) -> Result<()> {
    let cgroup = open(daemon, container)?;
    if !cgroup.exists() {
        return Ok(());
    }
    cgroup.kill().doing("kill the container's processes")?;
    cgroup.remove().doing("remove the container's cgroup")
}

/// Lets a frozen container run, so that it can answer a signal.
pub(crate) async fn thaw(daemon: &Arc<Daemon>, container: &Arc<Container>) {
    let (owner, frozen) = (Arc::clone(daemon), Arc::clone(container));
    let thawed = blocking::run(move || open(&owner, &frozen)?.thaw().doing("thaw the container")).await;
    if let Err(error) = thawed {
        tracing::debug!(container_id = %container.id, %error, "thaw before the stop signal");
    }
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
