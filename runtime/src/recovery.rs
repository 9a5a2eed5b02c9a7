//! Start-up is recovery; there is no other start-up. Each record is compared with its shim, and each pod and container moves
//! forward or back:
//!
//! | record | shim | action |
//! |---|---|---|
//! | pod `Creating` | any | taken apart, forgotten: while serving |
//! | pod `Ready` | answers | watched again; its account settles the containers |
//! | pod `Ready` | slow | served with its last known state; met when it answers |
//! | pod `Ready` | gone | containers killed and settled from their exit records (else lost); pod not ready |
//! | pod `Stopping` | any | stays so; the next stop goes on |
//! | pod `NotReady` | answers | it lost its PID 1: watched again, until it is stopped |
//! | pod `NotReady` | gone | what its containers' records say of running is settled |
//! | container `Creating` | – | deleted: while serving |
//! | container `Starting` | any | killed, ended with `StartError` |
//! | container `Running` | runs | goes on |
//! | container `Running` | exited | ended as the shim recorded |
//! | a record that cannot be read | – | left on disk, reported, never guessed at; nothing is swept |
//! | files without a record | – | removed: while serving |
//!
//! What is done while serving may wait for plugins and disks. What a dead daemon had not finished making has no name any more, so that
//! it can be made again at once, and nobody sees it; its addresses and host ports are its own until they are freed.

mod afterwards;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use crisp_domain::Timestamp;
use futures_util::future::join_all;
use serde::de::DeserializeOwned;

pub(crate) use self::afterwards::afterwards;

use crate::blocking;
use crate::container::state::{ContainerEvent, ContainerState, End, EndReason};
use crate::container::{Container, ContainerRecord, exit};
use crate::daemon::Daemon;
use crate::error::{Doing as _, Result};
use crate::pod::state::PodState;
use crate::pod::{Pod, PodRecord, watch};
use crate::published::Record;

/// How long one shim may take to answer. A hung one does not hold up the others, nor the socket.
const SHIM_ANSWER_MAX: Duration = Duration::from_secs(5);

/// What recovery leaves to be done while the daemon serves.
#[derive(Debug)]
pub(crate) struct Rest {
    records: Records,
    half_made: HalfMade,
}

/// What a daemon before this one was making when it ended. Invisible, and without a name.
#[derive(Debug, Default)]
struct HalfMade {
    pods: Vec<Arc<Pod>>,
    containers: Vec<Arc<Container>>,
}

/// Brings records, shims and kernel together. Then the daemon may serve, and [`afterwards`] does the rest.
///
/// # Errors
/// When the state directory cannot be read.
pub(crate) async fn run(daemon: &Arc<Daemon>) -> Result<Rest> {
    let loading = Arc::clone(daemon);
    let rest = blocking::run(move || load(&loading)).await?;
    let pods = daemon.pods.all();
    join_all(pods.iter().map(|pod| recover_pod(daemon, pod))).await;
    tracing::info!(pods = pods.len(), containers = daemon.containers.all().len(), "recovered");
    Ok(rest)
}

/// Whether every record could be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Records {
    All,
    SomeUnreadable,
}

fn load(daemon: &Daemon) -> Result<Rest> {
    let mut half_made = HalfMade::default();
    let (pods, all_pods) = records::<PodRecord>(&daemon.dirs.pods(), "sandbox.json")?;
    for record in pods {
        let dir = daemon.dirs.pod(record.id.as_str());
        let pod = Arc::new(Pod::new(record, dir));
        for chain in &pod.record().image_volumes {
            pod.keep_layers(daemon.images.pin_chain(chain));
        }
        daemon.lsm.recovered(&pod);
        if pod.state() == PodState::Creating {
            daemon.pods.insert_nameless(Arc::clone(&pod));
            half_made.pods.push(pod);
        } else {
            pod.claim();
            report_clash(daemon.pods.insert(pod));
        }
    }
    let (containers, all_containers) =
        records::<ContainerRecord>(&daemon.dirs.containers(), "container.json")?;
    for record in containers {
        half_made.containers.extend(load_container(daemon, record));
    }
    let all = all_pods == Records::All && all_containers == Records::All;
    Ok(Rest { records: if all { Records::All } else { Records::SomeUnreadable }, half_made })
}

/// Two records with one name: the second is what a failed creation could not delete, and the sweep deletes it.
fn report_clash(inserted: Result<()>) {
    if let Err(error) = inserted {
        tracing::error!(%error, "a second record of the same name is left out");
    }
}

/// The container, if it is half-made.
fn load_container(daemon: &Daemon, record: ContainerRecord) -> Option<Arc<Container>> {
    let Some(pod) = daemon.pods.find_any(record.pod_id.as_str()) else {
        tracing::warn!(container_id = %record.id, pod_id = %record.pod_id, "container without a pod");
        return None;
    };
    let pin = daemon.images.pin_chain(&record.image.chain);
    let dir = daemon.dirs.container(record.id.as_str());
    let container = Arc::new(Container::new(record, pod, dir, pin));
    if container.state() == ContainerState::Creating {
        daemon.containers.insert_nameless(Arc::clone(&container));
        return Some(container);
    }
    container.claim();
    report_clash(daemon.containers.insert(container));
    None
}

/// The records below `dir`, one directory each. One that cannot be read is reported and left.
fn records<R: Record + DeserializeOwned>(dir: &Path, file: &str) -> Result<(Vec<R>, Records)> {
    let (mut found, mut all) = (Vec::new(), Records::All);
    for entry in std::fs::read_dir(dir).doing("list the records")? {
        let path = entry.doing("list the records")?.path().join(file);
        match crisp_store::read(&path, R::VERSION) {
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
    match pod.state() {
        // One that is not ready because it lost its PID 1 has its shim, and containers that run.
        PodState::Ready | PodState::Stopping | PodState::NotReady => meet_shim(daemon, pod).await,
        PodState::Creating => {}
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
                if met.state() != PodState::NotReady {
                    tracing::warn!(pod_id = %met.id, "the pod's shim is gone");
                }
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
