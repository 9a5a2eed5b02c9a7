//! StopPodSandbox and RemovePodSandbox. Every step may be repeated, and bears that there is nothing left to do, so
//! the same steps serve a stop, the undoing of a failed start, and recovery.

use std::sync::Arc;
use std::time::Duration;

use crisp_proto::cri::ContainerEventType;
use futures_util::future::join_all;

use super::Pod;
use super::state::{PodEvent, PodState};
use crate::blocking::{self, Kind};
use crate::cgroups;
use crate::container;
use crate::daemon::Daemon;
use crate::error::{Doing as _, Result};
use crate::{events, nri};

/// Stops a pod, or joins the stop that is under way.
///
/// # Errors
/// The first step that failed; a repetition goes on from there.
pub(crate) async fn stop(daemon: &Arc<Daemon>, pod: &Arc<Pod>) -> Result<()> {
    let key = format!("stop {}", pod.id);
    let job = || {
        let (daemon, pod) = (Arc::clone(daemon), Arc::clone(pod));
        async move { steps(&daemon, &pod).await }
    };
    daemon.step_jobs.join_or_start(key, job).await
}

async fn steps(daemon: &Arc<Daemon>, pod: &Arc<Pod>) -> Result<()> {
    let begin = Arc::clone(pod);
    blocking::run(move || begin.apply(PodEvent::Stop)).await?;
    // From here on nothing new begins; what began before is waited for.
    drop(pod.gate.write().await);
    kill_containers(daemon, pod).await?;
    tell_plugins(daemon, pod).await?;
    end_shim(pod).await?;
    pod.set_netlink(None);
    let ended = pod.state() != PodState::NotReady;
    release(daemon, pod).await?;
    if ended {
        let stopped = Arc::clone(pod);
        blocking::run(move || stopped.apply(PodEvent::Stopped)).await?;
        events::pod(daemon, pod, ContainerEventType::ContainerStoppedEvent);
    }
    Ok(())
}

/// Takes apart what a daemon before this one was making when it ended. It stays `Creating`, which nobody sees; no plugin of ours has
/// heard of it, and no container was made in it.
///
/// # Errors
/// The first step that failed; a repetition goes on from there.
pub(crate) async fn take_apart(daemon: &Arc<Daemon>, pod: &Arc<Pod>) -> Result<()> {
    end_shim(pod).await?;
    release(daemon, pod).await?;
    forget(daemon, pod).await?;
    tracing::info!(pod_id = %pod.id, "a half-made pod is gone");
    Ok(())
}

/// Once per pod, however often it is stopped; the containers are dead by now and can still be looked at.
async fn tell_plugins(daemon: &Arc<Daemon>, pod: &Arc<Pod>) -> Result<()> {
    if pod.record().stop_told {
        return Ok(());
    }
    nri::stop_pod(daemon, pod).await;
    let told = Arc::clone(pod);
    blocking::run(move || told.update(|record| record.stop_told = true)).await
}

async fn kill_containers(daemon: &Arc<Daemon>, pod: &Pod) -> Result<()> {
    let containers = daemon.containers_of(pod);
    let stops = containers.iter().map(|container| container::stop::stop(daemon, container, Duration::ZERO));
    join_all(stops).await.into_iter().collect::<Result<()>>()?;
    for container in &containers {
        // Needs the shim, through which an OCI runtime's own state is deleted; and an earlier clean-up may have failed.
        let _ops = container.ops.lock().await;
        container::exit::clean_up(daemon, container).await?;
    }
    Ok(())
}

async fn end_shim(pod: &Pod) -> Result<()> {
    if let Ok(supervisor) = pod.supervisor() {
        match supervisor.shutdown().await {
            Ok(()) | Err(crate::supervisor::Error::Closed) => supervisor.died().await,
            Err(error) => return Err(error).doing("end the pod's shim"),
        }
        pod.set_supervisor(None);
    }
    Ok(())
}

/// Network, namespaces, shared memory, image volumes, cgroup.
async fn release(daemon: &Daemon, pod: &Arc<Pod>) -> Result<()> {
    detach(daemon, pod).await?;
    let released = Arc::clone(pod);
    blocking::run(move || unpin(&released)).await?;
    cgroups::remove_pod(daemon, pod).await
}

/// A pod that never came to its network does not wait for those whose plugins hang.
async fn detach(daemon: &Daemon, pod: &Pod) -> Result<()> {
    if !daemon.network.holds(&pod.id) {
        return Ok(());
    }
    let (network, id, netns) = (Arc::clone(&daemon.network), pod.id.clone(), pod.netns());
    blocking::run_as(Kind::Detach, move || {
        let known = netns.as_deref().filter(|path| path.exists());
        network.detach(&id, known).doing("take the pod's network down")
    })
    .await
}

fn unpin(pod: &Pod) -> Result<()> {
    for namespace in [pod.dir.pid(), pod.dir.net(), pod.dir.ipc(), pod.dir.uts(), pod.dir.user()] {
        crisp_sys::netns::unpin(&namespace).doing("release the pod's namespace")?;
    }
    crisp_sys::mount::unmount_detach(&pod.dir.shm()).doing("unmount the pod's shm")?;
    super::volumes::unmount_all(pod)
}

/// Removes a pod: stops it, removes its containers, then its files and its name.
///
/// # Errors
/// The first step that failed; a repetition goes on from there.
pub(crate) async fn remove(daemon: &Arc<Daemon>, pod: &Arc<Pod>) -> Result<()> {
    let key = format!("remove {}", pod.id);
    let job = || {
        let (daemon, pod) = (Arc::clone(daemon), Arc::clone(pod));
        async move { remove_steps(&daemon, &pod).await }
    };
    daemon.step_jobs.join_or_start(key, job).await
}

async fn remove_steps(daemon: &Arc<Daemon>, pod: &Arc<Pod>) -> Result<()> {
    stop(daemon, pod).await?;
    let containers = daemon.containers_of(pod);
    let removals = containers.iter().map(|container| container::remove::remove(daemon, container));
    join_all(removals).await.into_iter().collect::<Result<()>>()?;
    let _change = daemon.nri.creation().await;
    nri::remove_pod(daemon, pod).await;
    // While its status can still be told.
    events::pod(daemon, pod, ContainerEventType::ContainerDeletedEvent);
    pod.close();
    forget(daemon, pod).await?;
    tracing::info!(pod_id = %pod.id, "pod sandbox removed");
    Ok(())
}

/// Deletes the files of a stopped pod and frees its name.
pub(crate) async fn forget(daemon: &Daemon, pod: &Pod) -> Result<()> {
    let dir = pod.dir.path().to_owned();
    blocking::run(move || remove_dir(&dir)).await?;
    daemon.lsm.released(pod);
    daemon.pods.remove(pod);
    Ok(())
}

/// Removes a directory of records. Mounts below it are gone by now; one that is not is an error, and nothing in it is touched.
pub(crate) fn remove_dir(dir: &std::path::Path) -> Result<()> {
    crisp_snapshot::Rootfs::remove_writable(dir).doing("remove a state directory")
}
