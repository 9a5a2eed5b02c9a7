//! Several plugins' answers as one. Each answer is claimed first ([`Claims`]), then laid over two things: what is asked of the
//! runtime, and the container as the next plugin sees it.

mod overlay;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use crate::api::{
    Container, ContainerAdjustment, ContainerEviction, ContainerUpdate, CreateContainerResponse, Field,
    LinuxContainerAdjustment, LinuxContainerUpdate, LinuxRdt, LinuxResources, OwningPlugins, PodSandbox,
    UpdateContainerResponse,
};
use crate::error::NriError;
use crate::owners::Claims;
use crate::removal;
pub use overlay::overlay;

/// The answers to a creation, so far.
#[derive(Debug)]
pub(crate) struct Creation {
    pub(crate) pod: PodSandbox,
    /// As the next plugin sees it.
    pub(crate) container: Container,
    pub(crate) adjust: ContainerAdjustment,
    pub(crate) updates: Updates,
}

/// Updates of containers, and evictions, so far.
#[derive(Debug, Default)]
pub(crate) struct Updates {
    /// In the order in which containers were first named.
    order: Vec<String>,
    by_id: BTreeMap<String, ContainerUpdate>,
    pub(crate) evictions: Vec<ContainerEviction>,
    pub(crate) owners: OwningPlugins,
}

impl Creation {
    pub(crate) fn new(pod: PodSandbox, container: Container) -> Self {
        Self { pod, container, adjust: ContainerAdjustment::default(), updates: Updates::default() }
    }

    /// Takes one plugin's answer.
    ///
    /// # Errors
    /// [`NriError::Conflict`]; [`NriError::Answer`] for an update of the container itself.
    pub(crate) fn apply(&mut self, plugin: &str, answer: CreateContainerResponse) -> Result<(), NriError> {
        let CreateContainerResponse { adjust, update, evict } = answer;
        let own = |id: &str| id == self.container.id;
        if update.iter().any(|update| own(&update.container_id))
            || evict.iter().any(|eviction| own(&eviction.container_id))
        {
            let problem = "it updates or evicts the container that is being created".to_owned();
            return Err(NriError::Answer { plugin: plugin.to_owned(), problem });
        }
        if let Some(adjust) = adjust {
            let owners = &mut self.updates.owners;
            claim(&mut Claims { owners, container: &self.container.id, plugin }, &adjust)?;
            overlay::container(&mut self.container, &adjust);
            overlay(&mut self.adjust, adjust);
        }
        self.updates.apply(plugin, update, evict)
    }
}

impl Updates {
    /// The resources of one container as the request has them, to be updated further.
    pub(crate) fn of_request(container: &str, resources: LinuxResources) -> Self {
        let mut updates = Self::default();
        updates.entry(container).linux = Some(LinuxContainerUpdate { resources: Some(resources) });
        updates
    }

    /// Takes one plugin's answer to an update or a stop.
    ///
    /// # Errors
    /// [`NriError::Conflict`].
    pub(crate) fn apply_answer(
        &mut self,
        plugin: &str,
        answer: UpdateContainerResponse,
    ) -> Result<(), NriError> {
        self.apply(plugin, answer.update, answer.evict)
    }

    pub(crate) fn apply(
        &mut self,
        plugin: &str,
        updates: Vec<ContainerUpdate>,
        evictions: Vec<ContainerEviction>,
    ) -> Result<(), NriError> {
        for update in updates {
            self.update(plugin, update)?;
        }
        self.evictions.extend(evictions);
        Ok(())
    }

    fn update(&mut self, plugin: &str, update: ContainerUpdate) -> Result<(), NriError> {
        let Some(resources) = update.linux.and_then(|linux| linux.resources) else { return Ok(()) };
        // A conflict that may be ignored must leave nothing of it.
        let mut owners = self.owners.clone();
        let claims = &mut Claims { owners: &mut owners, container: &update.container_id, plugin };
        match claim_resources(claims, &resources) {
            Err(error) if update.ignore_failure => {
                tracing::info!(%error, "an update by a plugin is left out, as it allows");
                return Ok(());
            }
            claimed => claimed?,
        }
        self.owners = owners;
        let known = self.by_id.contains_key(&update.container_id);
        let merged = self.entry(&update.container_id);
        merged.ignore_failure = update.ignore_failure && (merged.ignore_failure || !known);
        let target = merged.linux.get_or_insert_default().resources.get_or_insert_default();
        overlay::resources(target, resources);
        Ok(())
    }

    fn entry(&mut self, id: &str) -> &mut ContainerUpdate {
        if !self.by_id.contains_key(id) {
            self.order.push(id.to_owned());
        }
        let new = || ContainerUpdate { container_id: id.to_owned(), ..ContainerUpdate::default() };
        self.by_id.entry(id.to_owned()).or_insert_with(new)
    }

    /// The resources of one container, as they are by now.
    pub(crate) fn resources_of(&self, id: &str) -> Option<&LinuxResources> {
        self.by_id.get(id)?.linux.as_ref()?.resources.as_ref()
    }

    /// The updates, in order.
    pub(crate) fn list(&self) -> Vec<ContainerUpdate> {
        self.order.iter().filter_map(|id| self.by_id.get(id).cloned()).collect()
    }

    /// Takes out the update of one container.
    pub(crate) fn take(&mut self, id: &str) -> Option<LinuxResources> {
        self.order.retain(|other| other != id);
        self.by_id.remove(id)?.linux?.resources
    }
}

/// Claims all that an adjustment sets, and clears what it removes.
fn claim(claims: &mut Claims<'_>, adjust: &ContainerAdjustment) -> Result<(), NriError> {
    let ContainerAdjustment { annotations, mounts, env, hooks, linux, rlimits, cdi_devices, args } = adjust;
    keys(claims, Field::Annotations, annotations.keys())?;
    keys(claims, Field::Mounts, mounts.iter().map(|mount| &mount.destination))?;
    keys(claims, Field::Env, env.iter().map(|variable| &variable.key))?;
    keys(claims, Field::CdiDevices, cdi_devices.iter().map(|device| &device.name))?;
    keys(claims, Field::Rlimits, rlimits.iter().map(|limit| &limit.r#type))?;
    if let Some(first) = args.first() {
        if first.is_empty() {
            claims.clear(Field::Args);
        }
        claims.claim(Field::Args)?;
    }
    if hooks.is_some() {
        claims.share(Field::OciHooks);
    }
    linux.as_ref().map_or(Ok(()), |linux| claim_linux(claims, linux))
}

fn claim_linux(claims: &mut Claims<'_>, adjust: &LinuxContainerAdjustment) -> Result<(), NriError> {
    keys(claims, Field::Devices, adjust.devices.iter().map(|device| &device.path))?;
    keys(claims, Field::Namespace, adjust.namespaces.iter().map(|namespace| &namespace.r#type))?;
    keys(claims, Field::Sysctl, adjust.sysctl.keys())?;
    keys(claims, Field::LinuxNetDevices, adjust.net_devices.keys())?;
    let simple = [
        (Field::CgroupsPath, !adjust.cgroups_path.is_empty()),
        (Field::OomScoreAdj, adjust.oom_score_adj.is_some()),
        (Field::IoPriority, adjust.io_priority.is_some()),
        (Field::SeccompPolicy, adjust.seccomp_policy.is_some()),
        (Field::LinuxSched, adjust.scheduler.is_some()),
        (Field::MemoryPolicy, adjust.memory_policy.is_some()),
    ];
    fields(claims, &simple)?;
    if let Some(rdt) = &adjust.rdt {
        claim_rdt(claims, rdt)?;
    }
    adjust.resources.as_ref().map_or(Ok(()), |resources| claim_resources(claims, resources))
}

fn claim_rdt(claims: &mut Claims<'_>, rdt: &LinuxRdt) -> Result<(), NriError> {
    if rdt.remove {
        for field in [Field::RdtClosId, Field::RdtSchemata, Field::RdtEnableMonitoring] {
            claims.clear(field);
        }
    }
    let set = [
        (Field::RdtClosId, rdt.clos_id.is_some()),
        (Field::RdtSchemata, rdt.schemata.is_some()),
        (Field::RdtEnableMonitoring, rdt.enable_monitoring.is_some()),
    ];
    fields(claims, &set)
}

fn claim_resources(claims: &mut Claims<'_>, resources: &LinuxResources) -> Result<(), NriError> {
    let memory = resources.memory.unwrap_or_default();
    let cpu = resources.cpu.clone().unwrap_or_default();
    let set = [
        (Field::MemLimit, memory.limit.is_some()),
        (Field::MemReservation, memory.reservation.is_some()),
        (Field::MemSwapLimit, memory.swap.is_some()),
        (Field::MemKernelLimit, memory.kernel.is_some()),
        (Field::MemTcpLimit, memory.kernel_tcp.is_some()),
        (Field::MemSwappiness, memory.swappiness.is_some()),
        (Field::MemDisableOomKiller, memory.disable_oom_killer.is_some()),
        (Field::MemUseHierarchy, memory.use_hierarchy.is_some()),
        (Field::CpuShares, cpu.shares.is_some()),
        (Field::CpuQuota, cpu.quota.is_some()),
        (Field::CpuPeriod, cpu.period.is_some()),
        (Field::CpuRealtimeRuntime, cpu.realtime_runtime.is_some()),
        (Field::CpuRealtimePeriod, cpu.realtime_period.is_some()),
        (Field::CpuSetCpUs, !cpu.cpus.is_empty()),
        (Field::CpuSetMems, !cpu.mems.is_empty()),
        (Field::PidsLimit, resources.pids.is_some()),
        (Field::BlockioClass, resources.blockio_class.is_some()),
        (Field::RdtClass, resources.rdt_class.is_some()),
    ];
    fields(claims, &set)?;
    keys(claims, Field::HugepageLimits, resources.hugepage_limits.iter().map(|limit| &limit.page_size))?;
    keys(claims, Field::CgroupsUnified, resources.unified.keys())
}

fn fields(claims: &mut Claims<'_>, set: &[(Field, bool)]) -> Result<(), NriError> {
    set.iter().filter(|(_, set)| *set).try_for_each(|(field, _)| claims.claim(*field))
}

/// Removals first, so that a plugin may replace what another one set, whatever the order in its answer.
fn keys<'a>(
    claims: &mut Claims<'_>,
    field: Field,
    keys: impl Iterator<Item = &'a String> + Clone,
) -> Result<(), NriError> {
    for removed in keys.clone().filter_map(|key| removal(key)) {
        claims.clear_entry(field, removed);
    }
    keys.filter(|key| removal(key).is_none()).try_for_each(|key| claims.claim_entry(field, key))
}
