//! Plugins by the Node Resource Interface: every step in the life of a pod or container passes here.
//!
//! | hook | called | an error |
//! |---|---|---|
//! | [`run_pod`] | all is made, nobody sees the pod yet | undoes the pod |
//! | [`update_pod`] | before the resources are recorded | refuses the update |
//! | [`stop_pod`] | its containers are dead, its network is still there; once per pod | is logged |
//! | [`remove_pod`] | its files are still there | is logged |
//! | [`create_container`] | the specification is complete, nobody sees the container yet | undoes the container |
//! | [`start_container`] | before init is made | fails the start |
//! | [`update_container`] | before the limits change | refuses the update |
//! | [`stop_container`] | its end is recorded, whatever ended it | is logged |
//! | [`remove_container`] | its files are still there | is logged |
//!
//! Who saw something being made that is undone then, is told that it is gone. Without plugins a hook costs one atomic load. The
//! protocol, its bounds and the order of plugins are [`crisp_nri`]'s. Requests to plugins are boxed: their messages are large, and every
//! creation would carry them.

mod adjust;
mod machine;
mod message;
mod resources;

use std::sync::{Arc, OnceLock};

use crisp_domain::ErrorKind;
use crisp_nri::api::{Container as NriContainer, ContainerAdjustment, ContainerUpdate, PodSandbox};
use crisp_nri::{NriError, Plugins, Settings, Updated};
use crisp_proto::cri::LinuxContainerResources;
use crisp_spec::Resources;
use oci_spec::runtime::Spec;

use machine::Machine;

use crate::blocking;
use crate::config;
use crate::container::Container;
use crate::daemon::Daemon;
use crate::error::{Doing as _, Error, Kinded, Result};
use crate::pod::Pod;

impl Kinded for NriError {
    fn error_kind(&self) -> ErrorKind {
        self.kind()
    }
}

/// The plugins.
#[derive(Debug)]
pub(crate) struct Nri {
    /// `None` where plugins are not wanted.
    settings: Option<Settings>,
    /// Set when they are served.
    plugins: OnceLock<Arc<Plugins>>,
}

impl Nri {
    pub(crate) fn open(config: &config::Nri) -> Self {
        let settings = config.enabled.then(|| Settings {
            runtime_name: "crisp".to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
            socket: config.socket.clone(),
            plugin_dir: config.plugin_dir.clone(),
            plugin_config_dir: config.plugin_config_dir.clone(),
            registration_timeout: config.registration_timeout,
            request_timeout: config.request_timeout,
        });
        Self { settings, plugins: OnceLock::new() }
    }

    /// Held from before a pod or container exists until its creation hook has ended and its record says so, and from before its
    /// removal hook until it is gone. A plugin that synchronises waits for it, and keeps others from beginning, so that it misses
    /// nothing. Taken before `Container::ops`.
    pub(crate) async fn creation(&self) -> Option<tokio::sync::RwLockReadGuard<'_, ()>> {
        match self.plugins.get() {
            Some(plugins) => Some(plugins.creation().await),
            None => None,
        }
    }

    /// The plugins, if there are any.
    fn active(&self) -> Option<&Arc<Plugins>> {
        self.plugins.get().filter(|plugins| !plugins.is_empty())
    }

    /// Names of the plugins, in the order in which they are asked; `None` where plugins are not wanted. For the verbose status: no
    /// plugin is waited for.
    pub(crate) fn names(&self) -> Option<Vec<String>> {
        self.settings.as_ref().map(|_| self.plugins.get().map(|plugins| plugins.names()).unwrap_or_default())
    }
}

/// Starts plugins and lets others register; called once, after recovery.
///
/// # Errors
/// When the socket cannot be bound.
pub(crate) async fn serve(daemon: &Arc<Daemon>) -> Result<()> {
    let Some(settings) = daemon.nri.settings.clone() else { return Ok(()) };
    let plugins = Plugins::new(settings, Arc::new(Machine::new(daemon)));
    let served = Arc::clone(daemon.nri.plugins.get_or_init(|| plugins));
    served.start().await.doing("serve plugins")
}

/// Says goodbye to the plugins, and ends those that were started.
pub(crate) async fn shut_down(daemon: &Arc<Daemon>) {
    if let Some(plugins) = daemon.nri.plugins.get() {
        plugins.shut_down().await;
    }
}

pub(crate) async fn run_pod(daemon: &Arc<Daemon>, pod: &Arc<Pod>) -> Result<()> {
    let Some(plugins) = daemon.nri.active() else { return Ok(()) };
    let message = message::pod(&pod.record());
    let Err(refused) = Box::pin(plugins.run_pod(message.clone())).await else { return Ok(()) };
    log(Box::pin(plugins.stop_pod(message.clone())).await);
    log(Box::pin(plugins.remove_pod(message)).await);
    Err(refused).doing("ask the plugins about the pod")
}

/// Before UpdatePodSandboxResources is recorded.
pub(crate) async fn update_pod(
    daemon: &Arc<Daemon>,
    pod: &Arc<Pod>,
    overhead: Option<&LinuxContainerResources>,
    resources: Option<&LinuxContainerResources>,
) -> Result<()> {
    let Some(plugins) = daemon.nri.active() else { return Ok(()) };
    let (overhead, resources) = (overhead.and_then(message::of_cri), resources.and_then(message::of_cri));
    let told = Box::pin(plugins.update_pod(message::pod(&pod.record()), overhead, resources)).await;
    told.doing("ask the plugins about the pod's resources")
}

/// After UpdatePodSandboxResources was recorded.
pub(crate) async fn updated_pod(daemon: &Arc<Daemon>, pod: &Arc<Pod>) {
    if let Some(plugins) = daemon.nri.active() {
        log(Box::pin(plugins.updated_pod(message::pod(&pod.record()))).await);
    }
}

pub(crate) async fn stop_pod(daemon: &Arc<Daemon>, pod: &Arc<Pod>) {
    if let Some(plugins) = daemon.nri.active() {
        log(Box::pin(plugins.stop_pod(message::pod(&pod.record()))).await);
    }
}

pub(crate) async fn remove_pod(daemon: &Arc<Daemon>, pod: &Arc<Pod>) {
    if let Some(plugins) = daemon.nri.active() {
        log(Box::pin(plugins.remove_pod(message::pod(&pod.record()))).await);
    }
}

/// Gives the specification as the plugins adjusted it; resources that they changed are in the container's record as well.
pub(crate) async fn create_container(
    daemon: &Arc<Daemon>,
    container: &Arc<Container>,
    spec: Spec,
) -> Result<Spec> {
    let Some(plugins) = daemon.nri.active() else { return Ok(spec) };
    let (pod, asked) = messages_with(container, &spec);
    let made = Box::pin(adjusted(daemon, plugins, container, (pod.clone(), asked.clone()), spec)).await;
    match made {
        Ok(spec) => Ok(spec),
        Err(error) => {
            // What they want of others when it ends does not matter: it never ran.
            let _updates = Box::pin(plugins.stop_container(pod.clone(), asked.clone())).await;
            log(Box::pin(plugins.remove_container(pod, asked)).await);
            Err(error)
        }
    }
}

async fn adjusted(
    daemon: &Arc<Daemon>,
    plugins: &Plugins,
    container: &Arc<Container>,
    (pod, asked): (PodSandbox, NriContainer),
    mut spec: Spec,
) -> Result<Spec> {
    let adjusted =
        Box::pin(plugins.create_container(pod, asked)).await.doing("ask the plugins about the container")?;
    let (owner, target) = (Arc::clone(daemon), Arc::clone(container));
    let spec = blocking::run(move || {
        adjust_spec(&owner, &target, &mut spec, &adjusted.adjust)?;
        Ok((spec, adjusted.others))
    });
    let (spec, others) = spec.await?;
    machine::evict(daemon, others.evictions);
    let failed = machine::update(daemon, others.updates).await;
    match failed.first() {
        Some((ContainerUpdate { container_id, .. }, error)) => {
            Err(impossible(format!("{container_id}: {error}")))
        }
        None => Ok(spec),
    }
}

fn impossible(cause: String) -> Error {
    Error::Internal { what: "do what the plugins want", cause }
}

/// Everything of an adjustment. Blocks.
fn adjust_spec(
    daemon: &Daemon,
    container: &Container,
    spec: &mut Spec,
    wanted: &ContainerAdjustment,
) -> Result<()> {
    let devices: Vec<String> = wanted.cdi_devices.iter().map(|device| device.name.clone()).collect();
    daemon.cdi.inject_named(&devices, spec)?;
    adjust::apply(spec, wanted).map_err(impossible)?;
    let Some(linux) = &wanted.linux else { return Ok(()) };
    let mut limits = container.record().resources.clone();
    if let Some(changed) = &linux.resources {
        limits = limits.updated(&resources::from_nri(changed, daemon.host.cgroup).map_err(impossible)?);
    }
    if let Some(score) = linux.oom_score_adj {
        limits.oom_score_adj = i32::try_from(score.value).ok();
    }
    limit(daemon, container, spec, limits)?;
    match &linux.seccomp_policy {
        Some(policy) => filter(daemon, container, spec, adjust::seccomp(policy).map_err(impossible)?),
        None => Ok(()),
    }
}

/// Limits in the specification and in the record, which is what cgroups are made from.
fn limit(daemon: &Daemon, container: &Container, spec: &mut Spec, limits: Resources) -> Result<()> {
    if limits == container.record().resources {
        return Ok(());
    }
    let mut oci =
        crisp_spec::resources::to_oci(&limits, &daemon.host).doing("check the limits by plugins")?;
    if let Some(linux) = spec.linux_mut() {
        oci.set_devices(linux.resources().as_ref().and_then(|known| known.devices().clone()));
        linux.set_resources(Some(oci));
    }
    container.update(|record| record.resources = limits)
}

/// A filter of a plugin's own, with its compiled form in the bundle.
fn filter(
    daemon: &Daemon,
    container: &Container,
    spec: &mut Spec,
    filter: oci_spec::runtime::LinuxSeccomp,
) -> Result<()> {
    let program = daemon.seccomp.program(&filter).doing("compile the seccomp policy of a plugin")?;
    std::fs::write(container.dir.seccomp(), program).doing("write the compiled seccomp policy")?;
    if let Some(linux) = spec.linux_mut() {
        linux.set_seccomp(Some(filter));
    }
    Ok(())
}

/// The container is created.
pub(crate) async fn created_container(daemon: &Arc<Daemon>, container: &Arc<Container>) {
    let Some(plugins) = daemon.nri.active() else { return };
    let (pod, created) = messages(container).await;
    log(Box::pin(plugins.created_container(pod, created)).await);
}

pub(crate) async fn start_container(daemon: &Arc<Daemon>, container: &Arc<Container>) -> Result<()> {
    let Some(plugins) = daemon.nri.active() else { return Ok(()) };
    let (pod, starting) = messages(container).await;
    Box::pin(plugins.start_container(pod, starting)).await.doing("ask the plugins about the start")
}

/// The container runs.
pub(crate) async fn started_container(daemon: &Arc<Daemon>, container: &Arc<Container>) {
    let Some(plugins) = daemon.nri.active() else { return };
    let (pod, started) = messages(container).await;
    log(Box::pin(plugins.started_container(pod, started)).await);
}

/// Gives the limits as the plugins adjusted them.
pub(crate) async fn update_container(
    daemon: &Arc<Daemon>,
    container: &Arc<Container>,
    requested: Resources,
) -> Result<Resources> {
    let Some(plugins) = daemon.nri.active() else { return Ok(requested) };
    let (pod, target) = messages(container).await;
    let asked = Box::pin(plugins.update_container(pod, target, resources::to_nri(&requested))).await;
    let mut updated = asked.doing("ask the plugins about the limits")?;
    let limits = updated.resources.take().unwrap_or_default();
    let limits = resources::from_nri(&limits, daemon.host.cgroup).map_err(impossible)?;
    change_others(daemon, updated);
    Ok(Resources { oom_score_adj: requested.oom_score_adj, ..limits })
}

/// The new limits are in force.
pub(crate) async fn updated_container(daemon: &Arc<Daemon>, container: &Arc<Container>) {
    let Some(plugins) = daemon.nri.active() else { return };
    let (pod, updated) = messages(container).await;
    log(Box::pin(plugins.updated_container(pod, updated)).await);
}

pub(crate) async fn stop_container(daemon: &Arc<Daemon>, container: &Arc<Container>) {
    let Some(plugins) = daemon.nri.active() else { return };
    let (pod, stopped) = messages(container).await;
    change_others(daemon, Box::pin(plugins.stop_container(pod, stopped)).await);
}

pub(crate) async fn remove_container(daemon: &Arc<Daemon>, container: &Arc<Container>) {
    let Some(plugins) = daemon.nri.active() else { return };
    let (pod, removed) = messages(container).await;
    log(Box::pin(plugins.remove_container(pod, removed)).await);
}

/// What plugins want of other containers, in a task of its own: the caller holds the exclusion of its own container, and two
/// containers that change each other would wait for ever.
fn change_others(daemon: &Arc<Daemon>, updated: Updated) {
    machine::evict(daemon, updated.evictions);
    if updated.updates.is_empty() {
        return;
    }
    let daemon = Arc::clone(daemon);
    tokio::spawn(async move {
        for (update, error) in machine::update(&daemon, updated.updates).await {
            tracing::warn!(container_id = update.container_id, %error, "an update by a plugin cannot be done");
        }
    });
}

/// An error that changes nothing any more.
fn log(told: std::result::Result<(), NriError>) {
    if let Err(error) = told {
        tracing::warn!(%error, "a plugin refuses what has happened");
    }
}

/// The container as plugins see it.
async fn messages(container: &Arc<Container>) -> (PodSandbox, NriContainer) {
    let read = Arc::clone(container);
    let messages = blocking::run(move || {
        let spec = read_spec(&read);
        Ok(messages_with(&read, &spec))
    });
    messages.await.unwrap_or_else(|_panicked| messages_with(container, &no_spec()))
}

fn messages_with(container: &Container, spec: &Spec) -> (PodSandbox, NriContainer) {
    (message::pod(&container.pod.record()), message::container(&container.record(), spec))
}

/// The specification as it was written; one without anything where it cannot be read, since the id is what counts then.
fn read_spec(container: &Container) -> Spec {
    Spec::load(container.dir.config()).unwrap_or_else(|error| {
        tracing::debug!(container_id = %container.id, %error, "read the specification for the plugins");
        no_spec()
    })
}

fn no_spec() -> Spec {
    let mut spec = Spec::default();
    spec.set_process(None).set_mounts(None).set_hooks(None).set_linux(None);
    spec
}
