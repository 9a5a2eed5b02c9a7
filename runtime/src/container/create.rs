//! CreateContainer: record, files, specification. Nothing runs yet; a failure leaves nothing.

use std::path::PathBuf;
use std::sync::Arc;

use crisp_domain::{ContainerId, ErrorKind, Timestamp};
use crisp_image::Image;
use crisp_proto::cri::ContainerConfig;

use super::state::{ContainerEvent, ContainerState};
use super::{Container, ContainerRecord, ImageFacts, bundle, metadata, remove, unique_name};
use crate::blocking::{self, Kind};
use crate::cgroups;
use crate::checkpoint::{self, Origin, restore};
use crate::cri::config;
use crate::daemon::Daemon;
use crate::error::{Doing as _, Error, Result};
use crate::pod::{self, Pod};
use crate::{events, nri};

/// Makes a container, or joins the job that makes it, or claims the one that was made for a caller who hung up.
///
/// # Errors
/// [`Error::NameInUse`] when a client has the container of this name already; [`Error::NotFound`] for an image that is not
/// here; [`Error::Invalid`] for a bad configuration; whatever a step says.
pub(crate) async fn run(
    daemon: &Arc<Daemon>,
    pod: &Arc<Pod>,
    config: Option<ContainerConfig>,
) -> Result<ContainerId> {
    let config = config.ok_or_else(|| Error::Invalid("config is missing".to_owned()))?;
    if config.metadata.as_ref().is_none_or(|metadata| metadata.name.is_empty()) {
        return Err(Error::Invalid("config.metadata.name is missing".to_owned()));
    }
    let name = unique_name(&metadata(&config), &pod::metadata(&pod.record().config));
    let job = || make(Arc::clone(daemon), Arc::clone(pod), config);
    let id = match claimable(daemon, pod, &name)? {
        Some(container) => container.id.clone(),
        None => daemon.container_jobs.join_or_start(format!("{} {name}", pod.id), job).await?,
    };
    if let Some(container) = daemon.containers.find_any(id.as_str()) {
        // Only now does anybody see it.
        events::claim_container(daemon, &container);
    }
    Ok(id)
}

/// The finished container of this name that nobody has claimed. One of an earlier pod of the same name is not meant.
fn claimable(daemon: &Daemon, pod: &Pod, name: &str) -> Result<Option<Arc<Container>>> {
    match daemon.containers.by_name(name) {
        Some(container) if container.is_claimed() || container.pod.id != pod.id => Err(Error::NameInUse {
            what: "container",
            name: name.to_owned(),
            holder: container.id.to_string(),
        }),
        Some(container) if container.state() == ContainerState::Created => Ok(Some(container)),
        Some(_) | None => Ok(None),
    }
}

async fn make(daemon: Arc<Daemon>, pod: Arc<Pod>, config: ContainerConfig) -> Result<ContainerId> {
    let _creation = daemon.nri.creation().await;
    let _gate = pod.gate.read().await;
    pod.require_ready()?;
    let request = config::container(&config)?;
    require_privileged_pod(&pod, &request)?;
    let checkpoint = checkpoint(&daemon, &config).await?;
    let image = match &checkpoint {
        Some(checkpoint) => Arc::clone(&checkpoint.image),
        None => image(&daemon, &config)?,
    };
    let pod_init = pod::start::init_for(&daemon, &pod, &request).await?;
    let container = reserve(&daemon, &pod, config, &request, &image).await?;
    let made = async {
        cgroups::prepare_container(&daemon, &container)?;
        let (owner, bundled) = (Arc::clone(&daemon), Arc::clone(&container));
        let (spec, made) = blocking::run_as(Kind::Bundle, move || {
            if let Some(checkpoint) = checkpoint {
                bundled.update(|record| record.checkpoint = checkpoint.facts.clone())?;
                checkpoint.place(&owner, &bundled)?;
            }
            bundle::make(&owner, &bundled, request, &image, pod_init)
        })
        .await?;
        let spec = nri::create_container(&daemon, &container, spec).await?;
        let (owner, bundled) = (Arc::clone(&daemon), Arc::clone(&container));
        blocking::run_as(Kind::Bundle, move || {
            if bundled.record().checkpoint.origin == Origin::Checkpoint {
                restore::check(&owner, &bundled, &spec)?;
            }
            bundle::write_spec(&owner, &bundled, spec)?;
            bundled.update(|record| record.made = Some(made))?;
            bundled.apply(ContainerEvent::Made)
        })
        .await
    };
    match made.await {
        Ok(()) => {
            nri::created_container(&daemon, &container).await;
            tracing::info!(container_id = %container.id, "container created");
            daemon.forget_container_unless_claimed(&container);
            Ok(container.id.clone())
        }
        Err(error) => {
            undo(&daemon, &container).await;
            Err(error)
        }
    }
}

/// The checkpoint that is named in the place of the image, if it is one.
async fn checkpoint(daemon: &Arc<Daemon>, config: &ContainerConfig) -> Result<Option<restore::Source>> {
    if !restore::is_named(daemon, config) {
        return Ok(None);
    }
    let (daemon, config) = (Arc::clone(daemon), config.clone());
    blocking::run_as(Kind::Bundle, move || restore::source(&daemon, &config)).await
}

/// A privileged container needs a pod that announced it.
fn require_privileged_pod(pod: &Pod, request: &crisp_spec::ContainerConfig) -> Result<()> {
    let record = pod.record();
    let security = record.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let announced = security.is_some_and(|security| security.privileged);
    if request.security.privilege == crisp_spec::Privilege::Privileged && !announced {
        return Err(Error::Invalid(
            "a privileged container needs a sandbox whose security context is privileged".to_owned(),
        ));
    }
    Ok(())
}

/// The image, which must be here already.
fn image(daemon: &Daemon, config: &ContainerConfig) -> Result<Arc<Image>> {
    let name = config.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
    if name.is_empty() {
        return Err(Error::Invalid("config.image.image is missing".to_owned()));
    }
    let found = daemon.images.resolve(name).doing("look the image up")?;
    found.ok_or_else(|| Error::NotFound { what: "image", id: name.to_owned() })
}

/// The intent: name, id and layers are taken, and on disk, before anything else happens.
async fn reserve(
    daemon: &Arc<Daemon>,
    pod: &Arc<Pod>,
    config: ContainerConfig,
    request: &crisp_spec::ContainerConfig,
    image: &Image,
) -> Result<Arc<Container>> {
    let id = ContainerId::random().map_err(|error| {
        Error::step("make a container id", ErrorKind::Internal, std::io::Error::other(error))
    })?;
    let record = ContainerRecord {
        id: id.clone(),
        pod_id: pod.id.clone(),
        log_path: log_path(&pod.record().config.log_directory, &config.log_path)?,
        image: facts(image, &config),
        config: Arc::new(config),
        created_at: Timestamp::now(),
        state: ContainerState::Creating,
        resources: request.resources.clone(),
        made: None,
        checkpoint: checkpoint::Facts::default(),
    };
    let dir = daemon.dirs.container(id.as_str());
    let container = Arc::new(Container::new(record, Arc::clone(pod), dir, daemon.images.pin(image)));
    daemon.containers.insert(Arc::clone(&container))?;
    let recorded = blocking::run({
        let container = Arc::clone(&container);
        move || {
            crisp_store::ensure_dir(container.dir.state()).doing("make the container directory")?;
            container.update(|_| ())
        }
    })
    .await;
    if let Err(error) = recorded {
        undo(daemon, &container).await;
        return Err(error);
    }
    Ok(container)
}

/// Removes what the making of a container has made so far.
pub(crate) async fn discard(daemon: &Arc<Daemon>, container: &Arc<Container>) -> Result<()> {
    cgroups::remove_container(daemon, container).await?;
    let half = Arc::clone(container);
    blocking::run_as(Kind::Disk, move || remove::delete(&half)).await
}

/// Takes a half-made container apart. What cannot be deleted is left to the next start of the daemon, which sweeps.
async fn undo(daemon: &Arc<Daemon>, container: &Arc<Container>) {
    if let Err(error) = discard(daemon, container).await {
        tracing::error!(container_id = %container.id, %error, "a failed container cannot be deleted");
    }
    daemon.containers.remove(container);
}

/// What the container tells of its image: what was requested, where that is a name of it, else the image's own names.
fn facts(image: &Image, config: &ContainerConfig) -> ImageFacts {
    let spec = config.image.clone().unwrap_or_default();
    let requested = if spec.user_specified_image.is_empty() { spec.image } else { spec.user_specified_image };
    ImageFacts {
        id: image.id.to_string(),
        reference: image.repo_digests.first().cloned().unwrap_or_else(|| image.id.to_string()),
        name: image.repo_tags.first().cloned().unwrap_or(requested),
        chain: image.chain.clone(),
    }
}

/// The log's absolute path; nothing when either part is empty.
fn log_path(directory: &str, path: &str) -> Result<Option<PathBuf>> {
    if directory.is_empty() || path.is_empty() {
        return Ok(None);
    }
    let escapes = path.starts_with('/') || path.contains('\0') || path.split('/').any(|part| part == "..");
    if escapes {
        return Err(Error::Invalid(format!("config.log_path {path:?} leaves the pod's log directory")));
    }
    Ok(Some(PathBuf::from(directory).join(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_stays_in_its_directory() {
        assert_eq!(
            log_path("/var/log/pods/p", "main/0.log").unwrap(),
            Some("/var/log/pods/p/main/0.log".into())
        );
        assert_eq!(log_path("", "main/0.log").unwrap(), None);
        assert_eq!(log_path("/var/log/pods/p", "").unwrap(), None);
        for path in ["../0.log", "main/../../0.log", "/etc/passwd", "a\0b"] {
            assert!(matches!(log_path("/var/log/pods/p", path), Err(Error::Invalid(_))), "{path:?}");
        }
    }
}
