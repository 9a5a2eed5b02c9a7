//! All plugins, in order, and what is asked of all of them.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::join_all;
use prost::Message;
use tokio::sync::{RwLock, RwLockReadGuard};

use crate::api::{
    Container, ContainerAdjustment, ContainerEviction, ContainerUpdate, CreateContainerRequest, Event,
    LinuxResources, PodSandbox, PostCreateContainerRequest, PostStartContainerRequest,
    PostUpdateContainerRequest, PostUpdatePodSandboxRequest, RemoveContainerRequest, RemovePodSandboxRequest,
    RunPodSandboxRequest, StartContainerRequest, StopContainerRequest, StopContainerResponse,
    StopPodSandboxRequest, UpdateContainerRequest, UpdateContainerResponse, UpdatePodSandboxRequest,
    ValidateContainerAdjustmentRequest, ValidateContainerAdjustmentResponse,
};
use crate::error::NriError;
use crate::merge::{Creation, Updates};
use crate::plugin::Plugin;
use crate::{Runtime, Settings};

/// What the plugins want of a container that is being created.
#[derive(Debug, Clone, Default)]
pub struct Adjusted {
    /// Of the container itself. Keys that begin with `-` remove; they come before what is set anew.
    pub adjust: ContainerAdjustment,
    /// Of others.
    pub others: Updated,
}

/// What the plugins want of existing containers.
#[derive(Debug, Clone, Default)]
pub struct Updated {
    /// The request's own limits as the plugins changed them; `None` where the request has none, or no plugin was asked.
    pub resources: Option<LinuxResources>,
    /// Of other containers.
    pub updates: Vec<ContainerUpdate>,
    /// Containers to be stopped.
    pub evictions: Vec<ContainerEviction>,
}

/// The plugins, and the way for them to register.
pub struct Plugins {
    pub(crate) settings: Settings,
    pub(crate) runtime: Arc<dyn Runtime>,
    /// In order of index, then name. A registration holds it whole while the plugin synchronises, so that no request goes past a
    /// plugin that knows the state before it; requests only look, and never wait for each other's plugins.
    pub(crate) plugins: RwLock<Vec<Arc<Plugin>>>,
    /// How many there are.
    count: AtomicUsize,
    /// Their names, in order: for a look that waits for no plugin.
    listed: Mutex<Vec<String>>,
    /// Creations and removals hold it shared; a registration takes it whole, before `plugins`.
    pub(crate) creations: RwLock<()>,
    pub(crate) ending: AtomicBool,
}

impl std::fmt::Debug for Plugins {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plugins")
            .field("settings", &self.settings)
            .field("count", &self.count)
            .finish_non_exhaustive()
    }
}

impl Plugins {
    /// None yet; [`Plugins::start`] launches and listens.
    pub fn new(settings: Settings, runtime: Arc<dyn Runtime>) -> Arc<Self> {
        Arc::new(Self {
            settings,
            runtime,
            plugins: RwLock::default(),
            count: AtomicUsize::new(0),
            listed: Mutex::default(),
            creations: RwLock::new(()),
            ending: AtomicBool::new(false),
        })
    }

    /// Whether there is nobody to ask.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// Names of the plugins, in order. Waits for nothing.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.listed.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn publish(&self, plugins: &[Arc<Plugin>]) {
        let names = plugins.iter().map(|plugin| plugin.identity.to_string()).collect();
        *self.listed.lock().unwrap_or_else(PoisonError::into_inner) = names;
        self.count.store(plugins.len(), Ordering::Release);
    }

    /// Held by a creation until its result shows in [`Runtime::state`], and by a removal from its hook until it no longer shows.
    pub async fn creation(&self) -> RwLockReadGuard<'_, ()> {
        self.creations.read().await
    }

    async fn all(&self) -> Vec<Arc<Plugin>> {
        self.plugins.read().await.clone()
    }

    /// Adds one. The caller holds the list whole.
    pub(crate) fn insert(&self, plugins: &mut Vec<Arc<Plugin>>, plugin: Arc<Plugin>) {
        plugins.push(plugin);
        plugins.sort_by(|a, b| a.identity.cmp(&b.identity));
        self.publish(plugins);
    }

    /// Takes a plugin out.
    pub(crate) async fn remove(&self, gone: &Arc<Plugin>) {
        let mut plugins = self.plugins.write().await;
        plugins.retain(|plugin| !Arc::ptr_eq(plugin, gone));
        self.publish(&plugins);
    }

    /// Tells every plugin of a pod's event.
    ///
    /// # Errors
    /// [`NriError::Refused`], the first one; the others are told all the same.
    async fn tell_pod(&self, event: Event, pod: &PodSandbox, request: &impl Message) -> Result<(), NriError> {
        self.tell(event, pod, None, request).await
    }

    async fn tell(
        &self,
        event: Event,
        pod: &PodSandbox,
        container: Option<&Container>,
        request: &impl Message,
    ) -> Result<(), NriError> {
        let mut first = Ok(());
        for plugin in self.all().await {
            let told = plugin.tell(event, request, pod, container).await;
            if first.is_ok() {
                first = told;
            }
        }
        first
    }

    /// The pod is made; nobody sees it yet. The first plugin that refuses ends it.
    ///
    /// # Errors
    /// [`NriError::Refused`]: the pod must be undone.
    pub async fn run_pod(&self, pod: PodSandbox) -> Result<(), NriError> {
        let request = RunPodSandboxRequest { pod: Some(pod.clone()) };
        for plugin in self.all().await {
            plugin.tell(Event::RunPodSandbox, &request, &pod, None).await?;
        }
        Ok(())
    }

    /// The pod's resources will change.
    ///
    /// # Errors
    /// [`NriError::Refused`].
    pub async fn update_pod(
        &self,
        pod: PodSandbox,
        overhead: Option<LinuxResources>,
        resources: Option<LinuxResources>,
    ) -> Result<(), NriError> {
        let request = UpdatePodSandboxRequest {
            pod: Some(pod),
            overhead_linux_resources: overhead,
            linux_resources: resources,
        };
        for plugin in self.all().await {
            plugin.ask::<crate::api::Empty>(Event::UpdatePodSandbox, &request).await?;
        }
        Ok(())
    }

    /// The pod's resources changed.
    ///
    /// # Errors
    /// [`NriError::Refused`], when all were told.
    pub async fn updated_pod(&self, pod: PodSandbox) -> Result<(), NriError> {
        let request = PostUpdatePodSandboxRequest { pod: Some(pod.clone()) };
        self.tell_pod(Event::PostUpdatePodSandbox, &pod, &request).await
    }

    /// The pod's containers are dead.
    ///
    /// # Errors
    /// [`NriError::Refused`], when all were told.
    pub async fn stop_pod(&self, pod: PodSandbox) -> Result<(), NriError> {
        let request = StopPodSandboxRequest { pod: Some(pod.clone()) };
        self.tell_pod(Event::StopPodSandbox, &pod, &request).await
    }

    /// The pod goes.
    ///
    /// # Errors
    /// [`NriError::Refused`], when all were told.
    pub async fn remove_pod(&self, pod: PodSandbox) -> Result<(), NriError> {
        let request = RemovePodSandboxRequest { pod: Some(pod.clone()) };
        self.tell_pod(Event::RemovePodSandbox, &pod, &request).await
    }

    /// Asks every plugin what it wants of a container that is being created; then those that validate.
    ///
    /// # Errors
    /// [`NriError`]: the container must not be made.
    pub async fn create_container(
        &self,
        pod: PodSandbox,
        container: Container,
    ) -> Result<Adjusted, NriError> {
        let plugins = self.all().await;
        let pristine = container.clone();
        let mut creation = Creation::new(pod, container);
        for plugin in &plugins {
            let request = CreateContainerRequest {
                pod: Some(creation.pod.clone()),
                container: Some(creation.container.clone()),
            };
            if let Some(answer) = plugin.ask(Event::CreateContainer, &request).await? {
                creation.apply(&plugin.identity.to_string(), answer)?;
            }
        }
        validate(&plugins, pristine, &creation).await?;
        let updates = creation.updates;
        let others = Updated { resources: None, updates: updates.list(), evictions: updates.evictions };
        Ok(Adjusted { adjust: creation.adjust, others })
    }

    /// The container is created.
    ///
    /// # Errors
    /// [`NriError::Refused`], when all were told.
    pub async fn created_container(&self, pod: PodSandbox, container: Container) -> Result<(), NriError> {
        let request =
            PostCreateContainerRequest { pod: Some(pod.clone()), container: Some(container.clone()) };
        self.tell(Event::PostCreateContainer, &pod, Some(&container), &request).await
    }

    /// The container will be started. The first plugin that refuses ends it.
    ///
    /// # Errors
    /// [`NriError::Refused`]: it must not start.
    pub async fn start_container(&self, pod: PodSandbox, container: Container) -> Result<(), NriError> {
        let request = StartContainerRequest { pod: Some(pod.clone()), container: Some(container.clone()) };
        for plugin in self.all().await {
            plugin.tell(Event::StartContainer, &request, &pod, Some(&container)).await?;
        }
        Ok(())
    }

    /// The container runs.
    ///
    /// # Errors
    /// [`NriError::Refused`], when all were told.
    pub async fn started_container(&self, pod: PodSandbox, container: Container) -> Result<(), NriError> {
        let request =
            PostStartContainerRequest { pod: Some(pod.clone()), container: Some(container.clone()) };
        self.tell(Event::PostStartContainer, &pod, Some(&container), &request).await
    }

    /// Asks every plugin what it makes of new limits.
    ///
    /// # Errors
    /// [`NriError`]: the limits must stay.
    pub async fn update_container(
        &self,
        pod: PodSandbox,
        container: Container,
        resources: LinuxResources,
    ) -> Result<Updated, NriError> {
        let id = container.id.clone();
        let mut request =
            UpdateContainerRequest { pod: Some(pod), container: Some(container), linux_resources: None };
        let mut updates = Updates::of_request(&id, resources);
        for plugin in self.all().await {
            request.linux_resources = updates.resources_of(&id).cloned();
            let answer: Option<UpdateContainerResponse> =
                plugin.ask(Event::UpdateContainer, &request).await?;
            updates.apply_answer(&plugin.identity.to_string(), answer.unwrap_or_default())?;
        }
        let resources = updates.take(&id);
        Ok(Updated { resources, updates: updates.list(), evictions: updates.evictions })
    }

    /// The new limits are in force.
    ///
    /// # Errors
    /// [`NriError::Refused`], when all were told.
    pub async fn updated_container(&self, pod: PodSandbox, container: Container) -> Result<(), NriError> {
        let request =
            PostUpdateContainerRequest { pod: Some(pod.clone()), container: Some(container.clone()) };
        self.tell(Event::PostUpdateContainer, &pod, Some(&container), &request).await
    }

    /// The container ended, by whatever. All are asked what others get of what it leaves; who refuses is logged and has no say.
    pub async fn stop_container(&self, pod: PodSandbox, container: Container) -> Updated {
        let request = StopContainerRequest { pod: Some(pod), container: Some(container) };
        let mut updates = Updates::default();
        for plugin in self.all().await {
            let answer = plugin.ask::<StopContainerResponse>(Event::StopContainer, &request).await;
            let applied = answer.and_then(|answer| {
                let answer = answer.unwrap_or_default();
                updates.apply(&plugin.identity.to_string(), answer.update, Vec::new())
            });
            if let Err(error) = applied {
                tracing::warn!(%error, "a plugin's answer to the end of a container is left out");
            }
        }
        Updated { resources: None, updates: updates.list(), evictions: Vec::new() }
    }

    /// The container goes.
    ///
    /// # Errors
    /// [`NriError::Refused`], when all were told.
    pub async fn remove_container(&self, pod: PodSandbox, container: Container) -> Result<(), NriError> {
        let request = RemoveContainerRequest { pod: Some(pod.clone()), container: Some(container.clone()) };
        self.tell(Event::RemoveContainer, &pod, Some(&container), &request).await
    }

    /// Takes no more plugins, says goodbye to those there are, ends the processes of launched ones.
    pub async fn shut_down(&self) {
        self.ending.store(true, Ordering::Release);
        let plugins = std::mem::take(&mut *self.plugins.write().await);
        self.publish(&[]);
        join_all(plugins.iter().map(|plugin| plugin.shut_down(self.settings.request_timeout))).await;
        // Socket file: the next runtime makes its own.
        let _gone = std::fs::remove_file(&self.settings.socket);
        let ended =
            tokio::task::spawn_blocking(move || plugins.iter().for_each(|plugin| plugin.end_process()));
        let _panicked = ended.await;
    }
}

/// Asks the validating plugins, all at once. Without an answer nothing is made: a validator that is gone cannot have agreed.
async fn validate(plugins: &[Arc<Plugin>], pristine: Container, creation: &Creation) -> Result<(), NriError> {
    let event = Event::ValidateContainerAdjustment;
    let validators: Vec<&Arc<Plugin>> = plugins.iter().filter(|plugin| plugin.is_subscribed(event)).collect();
    if validators.is_empty() {
        return Ok(());
    }
    let request = ValidateContainerAdjustmentRequest {
        pod: Some(creation.pod.clone()),
        container: Some(pristine),
        adjust: Some(creation.adjust.clone()),
        update: creation.updates.list(),
        owners: Some(creation.updates.owners.clone()),
        plugins: plugins.iter().map(|plugin| plugin.instance()).collect(),
    };
    let asked = validators.into_iter().map(|plugin| validated_by(plugin, &request));
    join_all(asked).await.into_iter().collect()
}

async fn validated_by(plugin: &Plugin, request: &ValidateContainerAdjustmentRequest) -> Result<(), NriError> {
    let name = plugin.identity.to_string();
    let answer: Option<ValidateContainerAdjustmentResponse> =
        plugin.ask(Event::ValidateContainerAdjustment, request).await?;
    match answer {
        None => Err(NriError::Validator { plugin: name, cause: plugin.connection.closed().await }),
        Some(ValidateContainerAdjustmentResponse { reject: true, reason }) => {
            let message = if reason.is_empty() { "it gives no reason".to_owned() } else { reason };
            Err(NriError::Refused { plugin: name, call: "the adjustment", message })
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
#[path = "plugins_tests.rs"]
mod tests;
