//! Start-up is recovery; there is no other start-up. Each record is compared with its shim, and each pod and container moves
//! forward or back:
//!
//! | record | shim | action |
//! |---|---|---|
//! | pod `Creating` | any | taken apart, forgotten |
//! | pod `Ready` | answers | watched again; its account settles the containers |
//! | pod `Ready` | gone | containers killed and settled from their exit records (else lost); pod not ready |
//! | pod `Stopping` | any | stays so; the next stop goes on |
//! | container `Creating` | – | deleted |
//! | container `Starting` | any | killed, ended with `StartError` |
//! | container `Running` | runs | goes on |
//! | container `Running` | exited | ended as the shim recorded |
//! | a record that cannot be read | – | left on disk, reported, never guessed at |
//! | files without a record | – | removed |

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crisp_domain::{SandboxId, Timestamp};
use futures_util::future::join_all;
use serde::de::DeserializeOwned;

use crate::blocking;
use crate::container::state::{ContainerEvent, ContainerState, End, EndReason};
use crate::container::{CONTAINER_RECORD_VERSION, Container, ContainerRecord, exit, remove};
use crate::daemon::Daemon;
use crate::error::{Doing as _, Result};
use crate::pod::state::PodState;
use crate::pod::{POD_RECORD_VERSION, Pod, PodRecord, stop, watch};
use crate::supervisor;

/// How long one shim may take to answer. A hung one does not hold up the others, nor the socket.
const SHIM_ANSWER_MAX: Duration = Duration::from_secs(5);

/// Brings records, shims and kernel together. Afterwards the daemon may serve.
///
/// # Errors
/// When the state directory cannot be read.
pub(crate) async fn run(daemon: &Arc<Daemon>) -> Result<()> {
    let loading = Arc::clone(daemon);
    blocking::run(move || load(&loading)).await?;
    let pods = daemon.pods.all();
    join_all(pods.iter().map(|pod| recover_pod(daemon, pod))).await;
    let sweeping = Arc::clone(daemon);
    blocking::run(move || sweep(&sweeping)).await?;
    tracing::info!(pods = daemon.pods.all().len(), containers = daemon.containers.all().len(), "recovered");
    Ok(())
}

fn load(daemon: &Daemon) -> Result<()> {
    for record in records::<PodRecord>(&daemon.dirs.pods(), "sandbox.json", POD_RECORD_VERSION)? {
        let dir = daemon.dirs.pod(record.id.as_str());
        let pod = Arc::new(Pod::new(record, dir));
        pod.claim();
        daemon.pods.insert(pod)?;
    }
    for record in
        records::<ContainerRecord>(&daemon.dirs.containers(), "container.json", CONTAINER_RECORD_VERSION)?
    {
        load_container(daemon, record)?;
    }
    Ok(())
}

fn load_container(daemon: &Daemon, record: ContainerRecord) -> Result<()> {
    let Some(pod) = daemon.pods.find_any(record.pod_id.as_str()) else {
        tracing::warn!(container_id = %record.id, pod_id = %record.pod_id, "container without a pod; removing it");
        return Ok(());
    };
    let pin = daemon.images.pin_chain(&record.image.chain);
    let dir = daemon.dirs.container(record.id.as_str());
    let container = Arc::new(Container::new(record, pod, dir, pin));
    container.claim();
    daemon.containers.insert(container)
}

/// The records below `dir`, one directory each. One that cannot be read is reported and left.
fn records<T: DeserializeOwned>(dir: &Path, file: &str, version: u32) -> Result<Vec<T>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).doing("list the records")? {
        let path = entry.doing("list the records")?.path().join(file);
        match crisp_store::read(&path, version) {
            Ok(Some(record)) => found.push(record),
            Ok(None) => {}
            Err(error) => {
                let error = crate::error::chain(&error);
                tracing::error!(path = %path.display(), error, "a record cannot be read; it is left alone");
            }
        }
    }
    Ok(found)
}

async fn recover_pod(daemon: &Arc<Daemon>, pod: &Arc<Pod>) {
    forget_half_made(daemon, pod).await;
    let result = match pod.state() {
        PodState::Creating => take_apart(daemon, pod).await,
        PodState::Ready | PodState::Stopping => {
            meet_shim(daemon, pod).await;
            Ok(())
        }
        PodState::NotReady => Ok(()),
    };
    if let Err(error) = result {
        tracing::error!(pod_id = %pod.id, %error, "recover the pod");
    }
}

async fn take_apart(daemon: &Arc<Daemon>, pod: &Arc<Pod>) -> Result<()> {
    if let Ok(supervision) = supervisor::connect(&pod.dir.socket()).await {
        pod.set_supervisor(Some(supervision.client));
    }
    stop::stop(daemon, pod).await?;
    stop::forget(daemon, pod).await
}

async fn forget_half_made(daemon: &Arc<Daemon>, pod: &Pod) {
    for container in daemon.containers_of(pod) {
        if container.state() == ContainerState::Creating {
            let (owner, half) = (Arc::clone(daemon), Arc::clone(&container));
            match blocking::run(move || remove::delete(&owner, &half)).await {
                Ok(()) => daemon.containers.remove(&container),
                Err(error) => {
                    tracing::error!(container_id = %container.id, %error, "delete a half-made container")
                }
            }
        }
    }
}

async fn meet_shim(daemon: &Arc<Daemon>, pod: &Arc<Pod>) {
    let answer = tokio::time::timeout(SHIM_ANSWER_MAX, supervisor::connect(&pod.dir.socket())).await;
    match answer {
        Ok(Ok(supervision)) => {
            pod.set_supervisor(Some(supervision.client.clone()));
            end_half_started(daemon, pod).await;
            reopen_netlink(pod).await;
            watch::spawn(Arc::clone(daemon), Arc::clone(pod), supervision);
        }
        Ok(Err(error)) => {
            tracing::warn!(pod_id = %pod.id, error = %crate::error::chain(&error), "the pod's shim is gone");
            end_half_started(daemon, pod).await;
            watch::gone(daemon, pod).await;
        }
        Err(_elapsed) => {
            // It may only be slow: the pod keeps its last known state, and a stop will end it.
            tracing::error!(pod_id = %pod.id, "the pod's shim does not answer");
        }
    }
}

/// A start that the old daemon did not finish is not finished by this one: nobody knows how far it came.
async fn end_half_started(daemon: &Arc<Daemon>, pod: &Pod) {
    for container in daemon.containers_of(pod) {
        if container.state() == ContainerState::Starting {
            exit::clean_up(daemon, &container).await;
            let reason =
                EndReason::StartError("the daemon ended while the container was being started".to_owned());
            let end = End { reason, finished_at: Timestamp::now() };
            let ended = Arc::clone(&container);
            if let Err(error) = blocking::run(move || ended.apply(ContainerEvent::Ended(end))).await {
                tracing::error!(container_id = %container.id, %error, "end a half-started container");
            }
        }
    }
}

async fn reopen_netlink(pod: &Arc<Pod>) {
    let Some(netns) = pod.netns() else { return };
    let opened =
        blocking::run(move || crisp_sys::netns::open_netlink_in(&netns).doing("open the pod's network"))
            .await;
    match opened {
        Ok(socket) => pod.set_netlink(Some(socket)),
        Err(error) => tracing::warn!(pod_id = %pod.id, %error, "no network statistics for this pod"),
    }
}

/// Removes what no record names: networks, writable layers, directories, layers.
fn sweep(daemon: &Daemon) -> Result<()> {
    let live: Vec<SandboxId> = daemon.pods.all().iter().map(|pod| pod.id.clone()).collect();
    if let Err(error) = daemon.network.gc(&live) {
        tracing::warn!(error = %crate::error::chain(&error), "clean up the networks of pods that are gone");
    }
    let ids: HashSet<String> =
        daemon.containers.all().iter().map(|container| container.id.to_string()).collect();
    for name in names(&daemon.dirs.containers())?.into_iter().chain(names(&daemon.dirs.writable_layers())?) {
        if !ids.contains(&name) && !unreadable(&daemon.dirs.container(&name).record()) {
            sweep_container(daemon, &name);
        }
    }
    if let Err(error) = daemon.images.collect() {
        tracing::warn!(error = %crate::error::chain(&error), "collect unused layers");
    }
    Ok(())
}

/// A record that is there but was not loaded is somebody's to look at.
fn unreadable(record: &Path) -> bool {
    crisp_store::read::<serde_json::Value>(record, CONTAINER_RECORD_VERSION).is_err()
}

fn sweep_container(daemon: &Daemon, name: &str) {
    let dir = daemon.dirs.container(name);
    let swept = || -> Result<()> {
        crisp_snapshot::Rootfs::unmount(&dir.rootfs()).doing("unmount an orphan's root filesystem")?;
        crisp_snapshot::Rootfs::remove_writable(dir.writable()).doing("delete an orphan's writable layer")?;
        stop::remove_dir(dir.state())
    };
    match swept() {
        Ok(()) => tracing::info!(container_id = name, "removed what a container without a record left"),
        Err(error) => tracing::warn!(container_id = name, %error, "remove an orphan"),
    }
}

fn names(dir: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(dir).doing("list the containers' directories")?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}
