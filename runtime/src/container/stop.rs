//! StopContainer. One stop is under way at most; it signals once, and later calls only shorten its patience. Cancelling a
//! call never cancels the stop.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::sync::watch as channel;
use tokio::time::{Instant, sleep_until, timeout};

use super::state::ContainerState;
use super::{Container, exit};
use crate::blocking::{self, Kind};
use crate::cgroups;
use crate::daemon::Daemon;
use crate::error::Result;

/// Between two attempts to kill what does not die: a process in an uninterruptible sleep.
const KILL_AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Longest grace period; a longer one is cut, which nobody lives to see.
const GRACE_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// `SIGKILL`, where there is no grace.
const SIGKILL: i32 = 9;

/// Stops a container and waits for its end: its stop signal, then after `grace` the death of everything in it.
///
/// # Errors
/// When its state cannot be had; a container that does not run is fine.
pub(crate) async fn stop(daemon: &Arc<Daemon>, container: &Arc<Container>, grace: Duration) -> Result<()> {
    if container.state() == ContainerState::Starting {
        // A start under way is let settle.
        drop(container.ops.lock().await);
    }
    if !container.state().may_run() {
        return Ok(());
    }
    begin_or_shorten(daemon, container, grace);
    wait_for_end(container).await;
    Ok(())
}

/// Waits until the container is not alive.
pub(crate) async fn wait_for_end(container: &Container) {
    let mut records = container.subscribe();
    // The sender lives in the container, so the channel cannot close here.
    let _closed = records.wait_for(|record| !record.state.may_run()).await;
}

fn begin_or_shorten(daemon: &Arc<Daemon>, container: &Arc<Container>, grace: Duration) {
    let deadline = Instant::now() + grace.min(GRACE_MAX);
    let mut stop = container.stop.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(patience) = &*stop {
        patience.send_if_modified(|current| {
            let sooner = deadline < *current;
            *current = deadline.min(*current);
            sooner
        });
        return;
    }
    let (patience, deadlines) = channel::channel(deadline);
    *stop = Some(patience);
    drop(stop);
    let span = tracing::info_span!("stop", container_id = %container.id);
    let work = carry_out(Arc::clone(daemon), Arc::clone(container), deadlines, grace);
    tokio::spawn(tracing::Instrument::instrument(work, span));
}

async fn carry_out(
    daemon: Arc<Daemon>,
    container: Arc<Container>,
    mut deadlines: channel::Receiver<Instant>,
    grace: Duration,
) {
    if !grace.is_zero() {
        ask(&daemon, &container).await;
        wait_with_patience(&container, &mut deadlines).await;
    }
    while container.state().may_run() {
        kill(&daemon, &container).await;
        if timeout(KILL_AGAIN_AFTER, wait_for_end(&container)).await.is_err() {
            tracing::warn!("the container does not die; killing it again");
            // Who holds `ops` may be settling the end already, for as long as a process does not die.
            if container.pod.supervisor().is_err() && container.ops.try_lock().is_ok() {
                // No shim will tell its end.
                exit::spawn(&daemon, &container.id, exit::Seen::ShimGone);
            }
        }
    }
}

/// The stop signal, to the container's init alone.
async fn ask(daemon: &Arc<Daemon>, container: &Arc<Container>) {
    let signal = container.record().made.as_ref().map_or(SIGKILL, |made| made.stop_signal);
    cgroups::thaw(daemon, container).await;
    let Ok(supervisor) = container.pod.supervisor() else { return };
    if let Err(error) = supervisor.signal(&container.id, signal).await {
        tracing::warn!(%error, signal, "send the stop signal");
    }
}

async fn wait_with_patience(container: &Container, deadlines: &mut channel::Receiver<Instant>) {
    loop {
        let deadline = *deadlines.borrow_and_update();
        tokio::select! {
            () = wait_for_end(container) => return,
            () = sleep_until(deadline) => return,
            // Shortened: look at the new deadline.
            Ok(()) = deadlines.changed() => {}
        }
    }
}

/// Everything in the container's cgroup; init by its shim as well, in case it is in none.
async fn kill(daemon: &Arc<Daemon>, container: &Arc<Container>) {
    if let Ok(supervisor) = container.pod.supervisor()
        && let Err(error) = supervisor.signal(&container.id, SIGKILL).await
    {
        tracing::debug!(%error, "kill the container's init");
    }
    let (owner, doomed) = (Arc::clone(daemon), Arc::clone(container));
    if let Err(error) = blocking::run_as(Kind::Cgroup, move || cgroups::kill_container(&owner, &doomed)).await
    {
        tracing::warn!(%error, "kill the container's cgroup");
    }
}
