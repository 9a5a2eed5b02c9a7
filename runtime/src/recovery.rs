//! Start-up is recovery; there is no other start-up. Each record is compared with its shim, and each pod and container moves
//! forward or back:
//!
//! | record | shim | action |
//! |---|---|---|
//! | pod `Creating` | any | taken apart, forgotten |
//! | pod `Ready` | answers | watched again; its account settles the containers |
//! | pod `Ready` | slow | served with its last known state; met when it answers |
//! | pod `Ready` | gone | containers killed and settled from their exit records (else lost); pod not ready |
//! | pod `Stopping` | any | stays so; the next stop goes on |
//! | container `Creating` | – | deleted |
//! | container `Starting` | any | killed, ended with `StartError` |
//! | container `Running` | runs | goes on |
//! | container `Running` | exited | ended as the shim recorded |
//! | a record that cannot be read | – | left on disk, reported, never guessed at; nothing is swept |
//! | files without a record | – | removed |

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crisp_domain::{SandboxId, Timestamp};
use futures_util::future::join_all;
use serde::de::DeserializeOwned;

use crate::blocking;
use crate::container::state::{ContainerEvent, ContainerState, End, EndReason};
use crate::container::{CONTAINER_RECORD_VERSION, Container, ContainerRecord, create, exit};
use crate::daemon::Daemon;
use crate::error::{Doing as _, Result};
use crate::pod::state::PodState;
use crate::pod::{POD_RECORD_VERSION, Pod, PodRecord, stop, watch};

/// How long one shim may take to answer. A hung one does not hold up the others, nor the socket.
const SHIM_ANSWER_MAX: Duration = Duration::from_secs(5);

/// Between two looks for networks that pods which are gone have left.
const STALE_NETWORKS_PERIOD: Duration = Duration::from_secs(60);

/// Brings records, shims and kernel together. Afterwards the daemon may serve.
///
/// # Errors
/// When the state directory cannot be read.
pub(crate) async fn run(daemon: &Arc<Daemon>) -> Result<()> {
    let loading = Arc::clone(daemon);
    let loaded = blocking::run(move || load(&loading)).await?;
    let pods = daemon.pods.all();
    join_all(pods.iter().map(|pod| recover_pod(daemon, pod))).await;
    match loaded {
        Records::All => {
            let sweeping = Arc::clone(daemon);
            blocking::run(move || sweep(&sweeping)).await?;
            sweep_networks(daemon);
            tokio::spawn(retry_stale_networks(Arc::downgrade(daemon)));
        }
        // What such a record describes may run: its network, layers and files cannot be told from leftovers.
        Records::SomeUnreadable => tracing::error!("nothing is cleaned up while records cannot be read"),
    }
    tracing::info!(pods = daemon.pods.all().len(), containers = daemon.containers.all().len(), "recovered");
    Ok(())
}

/// Tries again, while the daemon lives, what the undoing of a failed pod could not take off its network: such a pod is forgotten, and
/// what it holds (addresses, host ports) is in the way of others.
async fn retry_stale_networks(daemon: Weak<Daemon>) {
    // The start has just tried.
    let first = tokio::time::Instant::now() + STALE_NETWORKS_PERIOD;
    let mut ticks = tokio::time::interval_at(first, STALE_NETWORKS_PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(daemon) = daemon.upgrade() else { return };
        let retried = blocking::run(move || {
            let is_live = |id: &SandboxId| daemon.pods.find_any(id.as_str()).is_some();
            daemon.network.retry_stale(&is_live).doing("take pods that are gone off their network")
        });
        if let Err(error) = retried.await {
            tracing::debug!(%error, "trying again later");
        }
    }
}

/// Whether every record could be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Records {
    All,
    SomeUnreadable,
}

fn load(daemon: &Daemon) -> Result<Records> {
    let (pods, all_pods) = records::<PodRecord>(&daemon.dirs.pods(), "sandbox.json", POD_RECORD_VERSION)?;
    for record in pods {
        let dir = daemon.dirs.pod(record.id.as_str());
        let pod = Arc::new(Pod::new(record, dir));
        for chain in &pod.record().image_volumes {
            pod.keep_layers(daemon.images.pin_chain(chain));
        }
        daemon.lsm.recovered(&pod);
        pod.claim();
        report_clash(daemon.pods.insert(pod));
    }
    let (containers, all_containers) =
        records::<ContainerRecord>(&daemon.dirs.containers(), "container.json", CONTAINER_RECORD_VERSION)?;
    for record in containers {
        load_container(daemon, record);
    }
    let all = all_pods == Records::All && all_containers == Records::All;
    Ok(if all { Records::All } else { Records::SomeUnreadable })
}

/// Two records with one name: the second is what a failed creation could not delete, and the sweep deletes it.
fn report_clash(inserted: Result<()>) {
    if let Err(error) = inserted {
        tracing::error!(%error, "a second record of the same name is left out");
    }
}

fn load_container(daemon: &Daemon, record: ContainerRecord) {
    let Some(pod) = daemon.pods.find_any(record.pod_id.as_str()) else {
        tracing::warn!(container_id = %record.id, pod_id = %record.pod_id, "container without a pod");
        return;
    };
    let pin = daemon.images.pin_chain(&record.image.chain);
    let dir = daemon.dirs.container(record.id.as_str());
    let container = Arc::new(Container::new(record, pod, dir, pin));
    container.claim();
    report_clash(daemon.containers.insert(container));
}

/// The records below `dir`, one directory each. One that cannot be read is reported and left.
fn records<T: DeserializeOwned>(dir: &Path, file: &str, version: u32) -> Result<(Vec<T>, Records)> {
    let (mut found, mut all) = (Vec::new(), Records::All);
    for entry in std::fs::read_dir(dir).doing("list the records")? {
        let path = entry.doing("list the records")?.path().join(file);
        match crisp_store::read(&path, version) {
            Ok(Some(record)) => found.push(record),
            Ok(None) => {}
            Err(error) => {
                let error = crate::error::chain(&error);
                tracing::error!(path = %path.display(), error, "a record cannot be read; it is left alone");
                all = Records::SomeUnreadable;
            }
        }
    }
    Ok((found, all))
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
    if let Ok(Some(supervision)) = tokio::time::timeout(SHIM_ANSWER_MAX, watch::meet(pod)).await {
        pod.set_supervisor(Some(supervision.client));
    }
    stop::stop(daemon, pod).await?;
    stop::forget(daemon, pod).await
}

async fn forget_half_made(daemon: &Arc<Daemon>, pod: &Pod) {
    for container in daemon.containers_of(pod) {
        if container.state() == ContainerState::Creating {
            match create::discard(daemon, &container).await {
                Ok(()) => daemon.containers.remove(&container),
                Err(error) => {
                    tracing::error!(container_id = %container.id, %error, "delete a half-made container")
                }
            }
        }
    }
}

async fn meet_shim(daemon: &Arc<Daemon>, pod: &Arc<Pod>) {
    let (owner, met) = (Arc::clone(daemon), Arc::clone(pod));
    let meeting = tokio::spawn(async move {
        let supervision = watch::meet(&met).await;
        if let Some(supervision) = &supervision {
            met.set_supervisor(Some(supervision.client.clone()));
        }
        end_half_started(&owner, &met).await;
        match supervision {
            Some(supervision) => {
                // Who asks first is told of what ended meanwhile.
                let ends = watch::ends(&owner, &met, &supervision.state);
                join_all(ends.iter().map(|(container, seen)| exit::settle(&owner, container, *seen))).await;
                reopen_netlink(&met).await;
                watch::spawn(owner, met, supervision);
            }
            None => {
                tracing::warn!(pod_id = %met.id, "the pod's shim is gone");
                watch::gone(&owner, &met).await;
            }
        }
    });
    if tokio::time::timeout(SHIM_ANSWER_MAX, meeting).await.is_err() {
        // It may only be slow: the pod keeps its last known state, and the meeting goes on.
        tracing::error!(pod_id = %pod.id, "the pod's shim does not answer; serving without it");
    }
}

/// A start that the old daemon did not finish is not finished by this one: nobody knows how far it came.
async fn end_half_started(daemon: &Arc<Daemon>, pod: &Pod) {
    for container in daemon.containers_of(pod) {
        if container.state() == ContainerState::Starting {
            exit::report(&container, exit::clean_up(daemon, &container).await);
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

/// Detaches pods that are gone from their networks, in the background: plugins may take their time, and others begin meanwhile.
fn sweep_networks(daemon: &Arc<Daemon>) {
    let daemon = Arc::clone(daemon);
    tokio::task::spawn_blocking(move || {
        let is_live = |id: &SandboxId| daemon.pods.find_any(id.as_str()).is_some();
        if let Err(error) = daemon.network.gc_where(&is_live) {
            tracing::warn!(error = %crate::error::chain(&error), "clean up the networks of pods that are gone");
        }
    });
}

/// Removes what no record names: writable layers, directories, layers.
fn sweep(daemon: &Daemon) -> Result<()> {
    sweep_pods(daemon)?;
    let ids: HashSet<String> =
        daemon.containers.all().iter().map(|container| container.id.to_string()).collect();
    let dirs = &daemon.dirs;
    let mut found = HashSet::new();
    for dir in [dirs.containers(), dirs.writable_layers(), dirs.views()] {
        found.extend(names(&dir)?);
    }
    for name in found {
        if !ids.contains(&name) {
            sweep_container(daemon, &name);
        }
    }
    if let Err(error) = daemon.images.collect() {
        tracing::warn!(error = %crate::error::chain(&error), "collect unused layers");
    }
    Ok(())
}

/// Directories of which the record was never written, or is deleted already: nothing is mounted there.
fn sweep_pods(daemon: &Daemon) -> Result<()> {
    for name in names(&daemon.dirs.pods())? {
        let dir = daemon.dirs.pod(&name);
        if !dir.record().exists()
            && let Err(error) = stop::remove_dir(dir.path())
        {
            tracing::warn!(pod_id = name, %error, "remove what a pod without a record left");
        }
    }
    Ok(())
}

fn sweep_container(daemon: &Daemon, name: &str) {
    let dir = daemon.dirs.container(name);
    let swept = || -> Result<()> {
        crate::container::views::release(dir.views())?;
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
