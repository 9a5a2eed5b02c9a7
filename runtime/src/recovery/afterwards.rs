//! What recovery does while the daemon serves: leftovers go, and networks are looked at.
//!
//! Pods and containers come and go meanwhile. A creation enters the index before it makes a directory, and a removal leaves it after it
//! has deleted the last one: a directory that is there, and in no index afterwards, is nobody's.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crisp_domain::SandboxId;
use crisp_network::{Network, NetworkError};
use futures_util::StreamExt as _;
use futures_util::stream;

use super::{HalfMade, Records, Rest, SHIM_ANSWER_MAX};
use crate::blocking::{self, Kind};
use crate::container::{Container, create};
use crate::daemon::Daemon;
use crate::error::{Doing as _, Error, Result};
use crate::index::Indexed as _;
use crate::pod::state::PodState;
use crate::pod::{Pod, check, stop, watch};

/// Between two looks for networks that pods which are gone have left, and between two tries to take half-made things apart.
const RETRY_PERIOD: Duration = Duration::from_secs(60);
/// Half-made things that are taken apart at once: plugins and disks are the clients' first.
const TAKEN_APART_AT_ONCE: usize = 8;
/// Pods' networks that are looked at at once, for the same reason.
const CHECKS_AT_ONCE: usize = 2;

/// Does in the background what [`super::run`] left. Call it when the daemon serves.
pub(crate) fn afterwards(daemon: &Arc<Daemon>, rest: Rest) {
    tokio::spawn(take_all_apart(Arc::downgrade(daemon), rest.half_made));
    tokio::spawn(check_networks(Arc::clone(daemon)));
    match rest.records {
        Records::All => {
            tokio::spawn(sweep(Arc::clone(daemon)));
            tokio::spawn(sweep_networks(Arc::downgrade(daemon)));
        }
        // What such a record describes may run: its network, layers and files cannot be told from leftovers.
        Records::SomeUnreadable => tracing::error!("nothing is cleaned up while records cannot be read"),
    }
}

/// Until nothing half-made is left, or the daemon ends.
async fn take_all_apart(daemon: Weak<Daemon>, mut left: HalfMade) {
    loop {
        {
            let Some(daemon) = daemon.upgrade() else { return };
            left = left.take_apart(&daemon).await;
        }
        if left.pods.is_empty() && left.containers.is_empty() {
            return;
        }
        tokio::time::sleep(RETRY_PERIOD).await;
    }
}

impl HalfMade {
    /// What could not be taken apart now.
    async fn take_apart(self, daemon: &Arc<Daemon>) -> Self {
        let pods = stream::iter(self.pods).map(async |pod| {
            let gone = take_apart(daemon, &pod).await;
            log(&gone, pod.id(), "a half-made pod cannot be taken apart yet").then_some(pod)
        });
        let containers = stream::iter(self.containers).map(async |container| {
            let gone = discard(daemon, &container).await;
            log(&gone, container.id(), "a half-made container cannot be deleted yet").then_some(container)
        });
        let (pods, containers) = tokio::join!(
            pods.buffer_unordered(TAKEN_APART_AT_ONCE).filter_map(std::future::ready).collect(),
            containers.buffer_unordered(TAKEN_APART_AT_ONCE).filter_map(std::future::ready).collect(),
        );
        Self { pods, containers }
    }
}

/// Whether it has failed, which is logged.
fn log(done: &Result<()>, id: &str, what: &'static str) -> bool {
    if let Err(error) = done {
        tracing::warn!(id, %error, "{what}");
    }
    done.is_err()
}

async fn take_apart(daemon: &Arc<Daemon>, pod: &Arc<Pod>) -> Result<()> {
    let met = tokio::time::timeout(SHIM_ANSWER_MAX, watch::meet(pod)).await;
    let limit_ms = u64::try_from(SHIM_ANSWER_MAX.as_millis()).unwrap_or(u64::MAX);
    let supervision = met.map_err(|_elapsed| Error::Timeout { what: "the look for its shim", limit_ms })?;
    if let Some(supervision) = supervision {
        pod.set_supervisor(Some(supervision.client));
    }
    stop::take_apart(daemon, pod).await
}

async fn discard(daemon: &Arc<Daemon>, container: &Arc<Container>) -> Result<()> {
    let _gate = container.pod.gate.read().await;
    let _ops = container.ops.lock().await;
    // It may have gone with its pod meanwhile.
    if daemon.containers.find_any(container.id()).is_some() {
        create::discard(daemon, container).await?;
        daemon.containers.remove(container);
    }
    Ok(())
}

/// Looks once at the network of each pod that had one when the daemon came back.
async fn check_networks(daemon: Arc<Daemon>) {
    let ready = daemon.pods.all().into_iter().filter(|pod| pod.state() == PodState::Ready);
    stream::iter(ready).for_each_concurrent(CHECKS_AT_ONCE, |pod| check::network(&daemon, pod)).await;
}

/// Detaches pods that are gone from their networks, and while the daemon lives tries again what the undoing of a failed pod could not
/// take off its network: such a pod is forgotten, and what it holds (addresses, host ports) is in the way of others.
async fn sweep_networks(daemon: Weak<Daemon>) {
    if let Some(Err(error)) = sweep_with(&daemon, |network, is_live| network.gc_where(is_live)).await {
        tracing::warn!(%error, "clean up the networks of pods that are gone");
    }
    loop {
        tokio::time::sleep(RETRY_PERIOD).await;
        match sweep_with(&daemon, |network, is_live| network.retry_stale(is_live)).await {
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::debug!(%error, "trying again later"),
            None => return,
        }
    }
}

type IsLive<'a> = &'a (dyn Fn(&SandboxId) -> bool + Sync);

/// `None` when the daemon has ended.
async fn sweep_with(
    daemon: &Weak<Daemon>,
    sweep: impl FnOnce(&Network, IsLive<'_>) -> Result<(), NetworkError> + Send + 'static,
) -> Option<Result<()>> {
    let daemon = daemon.upgrade()?;
    let work = move || {
        let is_live = |id: &SandboxId| daemon.pods.find_any(id.as_str()).is_some();
        sweep(&daemon.network, &is_live).doing("take pods that are gone off their network")
    };
    Some(blocking::run_as(Kind::Detach, work).await)
}

/// Removes what no record names: writable layers, directories, layers.
async fn sweep(daemon: Arc<Daemon>) {
    let sweeping = Arc::clone(&daemon);
    let swept = blocking::run_as(Kind::Disk, move || {
        sweep_pods(&sweeping)?;
        sweep_containers(&sweeping)
    });
    if let Err(error) = swept.await {
        tracing::warn!(%error, "remove what no record names");
    }
    drop(daemon.collect_layers());
}

/// Directories of which the record was never written, or is deleted already: nothing is mounted there.
fn sweep_pods(daemon: &Daemon) -> Result<()> {
    for name in names(&daemon.dirs.pods())? {
        let dir = daemon.dirs.pod(&name);
        if daemon.pods.find_any(&name).is_none()
            && !dir.record().exists()
            && let Err(error) = stop::remove_dir(dir.path())
        {
            tracing::warn!(pod_id = name, %error, "remove what a pod without a record left");
        }
    }
    Ok(())
}

fn sweep_containers(daemon: &Daemon) -> Result<()> {
    let dirs = &daemon.dirs;
    let mut found = BTreeSet::new();
    for dir in [dirs.containers(), dirs.writable_layers(), dirs.views()] {
        found.extend(names(&dir)?);
    }
    for name in found {
        if daemon.containers.find_any(&name).is_none() {
            sweep_container(daemon, &name);
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
