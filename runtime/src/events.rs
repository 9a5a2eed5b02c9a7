//! GetContainerEvents: every change of a pod or container, told to whoever listens.
//!
//! ```text
//! a change is published ─▶ tell: under one lock, take the time, then the pod's records ─▶ queue of each listener ─▶ message ─▶ client
//!                                                                    full: that stream ends with RESOURCE_EXHAUSTED
//! ```
//! What a kubelet may rely on:
//!
//! - **Snapshot first.** A new listener is told what is there: of each pod one event for itself and one for each of its
//!   containers, of the type that led to the present state. Whatever changes from then on follows, so nothing falls between a
//!   relist and the subscription. Of several sandboxes of one Kubernetes pod only the newest is in the snapshot, because a
//!   kubelet keeps one status per pod and the last one told wins.
//! - **Order.** An event holds the pod and all its containers as they were after the change; time and records are taken under one lock,
//!   the time first. So `created_at` never decreases, and no event is older in content than one before it.
//! - **An object's events**: created (a client has its id), started, stopped (the status tells the exit), deleted. A pod's stop is told
//!   once: after those of its containers when a client asked for it, at once when the pod lost its shim or its PID 1. Its deletion is
//!   told while its status is still known, after those of its containers.
//! - **No event is left out.** A listener that does not keep up is cut off, and nobody waits for it.
//!
//! A queue holds the records that the index published, not messages: an event costs a few pointers until its listener takes it, and
//! nothing at all when nobody listens.

mod queue;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crisp_domain::{ErrorKind, Timestamp};
use crisp_proto::cri::{ContainerEventResponse, ContainerEventType};
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use tonic::Status;

use crate::container::state::ContainerState;
use crate::container::{Container, ContainerRecord};
use crate::daemon::Daemon;
use crate::error::{Error, Result};
use crate::index::Indexed as _;
use crate::pod::state::PodState;
use crate::pod::{Pod, PodRecord};
use queue::Queue;

/// Listeners at a time.
const LISTENERS_MAX: usize = 64;

/// Who listens, and what they were told.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    told: Mutex<Told>,
}

#[derive(Debug, Default)]
struct Told {
    listeners: Vec<Weak<Queue>>,
    /// Time of the last event, 0 before it. The clock may be set back; the times told never go back.
    last: i64,
    /// Ids of the pods whose stop was told.
    stopped: HashSet<String>,
    /// The daemon ends.
    closed: bool,
}

/// A pod and its containers as they were at a time.
#[derive(Debug, Clone)]
struct Picture {
    pod: Arc<PodRecord>,
    containers: Arc<[Arc<ContainerRecord>]>,
}

/// Something that happened, and what the pod was like then.
#[derive(Debug)]
struct Event {
    /// Of the container, or of the pod itself.
    id: String,
    what: ContainerEventType,
    at: Timestamp,
    picture: Picture,
}

impl Event {
    fn message(&self) -> ContainerEventResponse {
        let containers = self.picture.containers.iter();
        ContainerEventResponse {
            container_id: self.id.clone(),
            container_event_type: self.what.into(),
            created_at: self.at.0,
            pod_sandbox_status: Some(crate::cri::sandbox_status(&self.picture.pod)),
            containers_statuses: containers.map(|record| crate::cri::container_status(record)).collect(),
        }
    }
}

/// More listeners than [`LISTENERS_MAX`].
#[derive(Debug, thiserror::Error)]
#[error("{LISTENERS_MAX} clients listen to events already")]
struct TooMany;

impl Hub {
    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells all listeners; `look` runs only when there is one, after the event's time was taken.
    fn tell(&self, id: &str, what: ContainerEventType, look: impl FnOnce() -> Picture) {
        self.told().tell(id, what, look);
    }

    /// Adds a listener, whose first events show what `look` finds.
    fn listen(&self, look: impl FnOnce() -> Vec<Picture>) -> Result<Arc<Queue>> {
        let mut told = self.told();
        told.listeners.retain(|listener| listener.strong_count() > 0);
        if told.listeners.len() >= LISTENERS_MAX {
            return Err(Error::step("listen to events", ErrorKind::Exhausted, TooMany));
        }
        let at = told.now();
        let present = newest(look()).iter().flat_map(|picture| present(picture, at)).collect();
        let queue = Arc::new(Queue::new(present));
        if told.closed {
            queue.close();
        } else {
            told.listeners.push(Arc::downgrade(&queue));
        }
        Ok(queue)
    }

    /// Ends every stream, now and from now on, after what was told already.
    pub(crate) fn close(&self) {
        let mut told = self.told();
        told.closed = true;
        told.listeners.drain(..).filter_map(|listener| listener.upgrade()).for_each(|queue| queue.close());
    }
}

impl Told {
    /// The time now, and never before an earlier answer.
    fn now(&mut self) -> Timestamp {
        self.last = Timestamp::now().0.max(self.last);
        Timestamp(self.last)
    }

    fn tell(&mut self, id: &str, what: ContainerEventType, look: impl FnOnce() -> Picture) {
        if self.listeners.is_empty() {
            return;
        }
        let at = self.now();
        let event = Arc::new(Event { id: id.to_owned(), what, at, picture: look() });
        self.listeners.retain(|listener| listener.upgrade().is_some_and(|queue| queue.push(&event)));
    }

    /// Tells that a pod has stopped, if it has, once: the end of the shim and the end of the stop that ended it are noticed apart from
    /// each other, in either order.
    fn tell_stop(&mut self, daemon: &Daemon, pod: &Pod) {
        let exists = |id: &str| daemon.pods.find_any(id).is_some();
        if pod.state() == PodState::NotReady && self.first_stop(pod.id.as_str(), exists) {
            self.tell(pod.id.as_str(), ContainerEventType::ContainerStoppedEvent, || look_at(daemon, pod));
        }
    }

    /// Whether this stop of a pod is news. `exists` tells which pods there are still.
    fn first_stop(&mut self, id: &str, exists: impl Fn(&str) -> bool) -> bool {
        let news = exists(id) && !self.stopped.contains(id);
        self.stopped.retain(|id| exists(id));
        if news {
            self.stopped.insert(id.to_owned());
        }
        news
    }
}

/// The newest sandbox of each Kubernetes pod.
fn newest(pictures: Vec<Picture>) -> Vec<Picture> {
    let mut by_uid: HashMap<String, Picture> = HashMap::new();
    let mut others = Vec::new();
    for picture in pictures {
        let uid = crate::pod::metadata(&picture.pod.config).uid;
        match by_uid.get_mut(&uid) {
            _ if uid.is_empty() => others.push(picture),
            None => drop(by_uid.insert(uid, picture)),
            Some(known) if known.pod.created_at < picture.pod.created_at => *known = picture,
            Some(_) => {}
        }
    }
    others.extend(by_uid.into_values());
    others.sort_by_key(|picture| picture.pod.created_at);
    others
}

/// The events that led to what is there.
fn present(picture: &Picture, at: Timestamp) -> Vec<Arc<Event>> {
    use ContainerEventType as What;
    let pod = match picture.pod.state {
        PodState::Ready => What::ContainerStartedEvent,
        PodState::Creating | PodState::Stopping | PodState::NotReady => What::ContainerStoppedEvent,
    };
    let container = |state: &ContainerState| match state {
        ContainerState::Creating | ContainerState::Created | ContainerState::Starting => {
            What::ContainerCreatedEvent
        }
        ContainerState::Running { .. } => What::ContainerStartedEvent,
        ContainerState::Exited { .. } => What::ContainerStoppedEvent,
    };
    let containers =
        picture.containers.iter().map(|record| (record.id.to_string(), container(&record.state)));
    std::iter::once((picture.pod.id.to_string(), pod))
        .chain(containers)
        .map(|(id, what)| Arc::new(Event { id, what, at, picture: picture.clone() }))
        .collect()
}

/// The pod and those of its containers that clients know of.
fn look_at(daemon: &Daemon, pod: &Pod) -> Picture {
    Picture { pod: pod.record(), containers: containers_of(daemon, pod).into() }
}

/// The containers of a pod that clients know of, the newest first: of several tries of one container, kubelets take the first in the
/// list.
pub(crate) fn containers_of(daemon: &Daemon, pod: &Pod) -> Vec<Arc<ContainerRecord>> {
    let containers = daemon.containers_of(pod);
    let visible = containers.iter().filter(|container| container.is_visible());
    newest_first(visible.map(|container| container.record()).collect())
}

fn newest_first(mut records: Vec<Arc<ContainerRecord>>) -> Vec<Arc<ContainerRecord>> {
    records.sort_by_key(|record| std::cmp::Reverse(record.created_at));
    records
}

/// All pods, in one pass over the containers.
fn look_at_all(daemon: &Daemon) -> Vec<Picture> {
    let mut by_pod: HashMap<String, Vec<Arc<ContainerRecord>>> = HashMap::new();
    for container in daemon.containers.visible() {
        by_pod.entry(container.pod.id.to_string()).or_default().push(container.record());
    }
    let picture = |pod: Arc<Pod>| Picture {
        pod: pod.record(),
        containers: newest_first(by_pod.remove(pod.id.as_str()).unwrap_or_default()).into(),
    };
    daemon.pods.visible().into_iter().map(picture).collect()
}

/// A client gets the pod's id. The first time it is told of as created and started: from here on anybody may see it and change it, so
/// whoever gets the id after the first waits until that was told.
pub(crate) fn claim_pod(daemon: &Daemon, pod: &Pod) {
    let mut told = daemon.events.told();
    if pod.claim() {
        for what in [ContainerEventType::ContainerCreatedEvent, ContainerEventType::ContainerStartedEvent] {
            told.tell(pod.id.as_str(), what, || look_at(daemon, pod));
        }
        // It may have lost its shim before anybody knew of it.
        told.tell_stop(daemon, pod);
    }
}

/// As [`claim_pod`], of a container that was created.
pub(crate) fn claim_container(daemon: &Daemon, container: &Container) {
    let mut told = daemon.events.told();
    if container.claim() {
        let what = ContainerEventType::ContainerCreatedEvent;
        told.tell(container.id.as_str(), what, || look_at(daemon, &container.pod));
    }
}

/// Tells of a pod. Called after the change was published; never waits. A pod that no client knows of is not told of.
pub(crate) fn pod(daemon: &Daemon, pod: &Pod, what: ContainerEventType) {
    if !pod.is_claimed() {
        return;
    }
    let mut told = daemon.events.told();
    match what {
        ContainerEventType::ContainerStoppedEvent => told.tell_stop(daemon, pod),
        ContainerEventType::ContainerCreatedEvent
        | ContainerEventType::ContainerStartedEvent
        | ContainerEventType::ContainerDeletedEvent => {
            told.tell(pod.id.as_str(), what, || look_at(daemon, pod));
        }
    }
}

/// Tells of a container. Called after the change was published; never waits. One that no client knows of is not told of.
pub(crate) fn container(daemon: &Daemon, container: &Container, what: ContainerEventType) {
    if container.is_claimed() {
        daemon.events.tell(container.id.as_str(), what, || look_at(daemon, &container.pod));
    }
}

/// What is there, then every event from now on. It ends without an error when the daemon does.
///
/// # Errors
/// Of kind [`ErrorKind::Exhausted`] when there are too many listeners.
pub(crate) fn subscribe(
    daemon: &Daemon,
) -> Result<BoxStream<'static, std::result::Result<ContainerEventResponse, Status>>> {
    let queue = daemon.events.listen(|| look_at_all(daemon))?;
    Ok(events(queue)
        .map(|event| event.map(|event| event.message()).map_err(|error| crate::cri::status(&error)))
        .boxed())
}

/// The queue's events; after an error it is over.
fn events(queue: Arc<Queue>) -> impl futures_util::Stream<Item = Result<Arc<Event>>> + Send {
    stream::unfold(Some(queue), async |queue| {
        let queue = queue?;
        let next = queue.next().await?;
        let queue = next.is_ok().then_some(queue);
        Some((next, queue))
    })
}

#[cfg(test)]
mod tests;
