use std::sync::atomic::{AtomicI64, Ordering};

use crisp_domain::SandboxId;
use crisp_proto::cri::{PodSandboxConfig, PodSandboxMetadata};
use futures_util::FutureExt as _;

use super::queue::EVENTS_WAITING_MAX;
use super::*;
use crate::pod::PodCgroup;

const STARTED: ContainerEventType = ContainerEventType::ContainerStartedEvent;

fn id(digit: char) -> SandboxId {
    digit.to_string().repeat(64).parse().unwrap()
}

/// A pod; `version` stands for its content.
fn picture(digit: char, uid: &str, version: i64) -> Picture {
    let metadata = PodSandboxMetadata { uid: uid.to_owned(), ..Default::default() };
    let config = PodSandboxConfig { metadata: Some(metadata), ..Default::default() };
    let record = PodRecord {
        id: id(digit),
        config: Arc::new(config),
        created_at: Timestamp(version),
        cgroup: PodCgroup::Given("/x".into()),
        state: PodState::Ready,
        ..empty()
    };
    Picture { pod: Arc::new(record), containers: Arc::new([]) }
}

/// Every other field of a record.
fn empty() -> PodRecord {
    serde_json::from_value(serde_json::json!({
        "id": id('0'), "config": PodSandboxConfig::default(), "handler": "", "created_at": 0,
        "cgroup": {"Given": "/x"}, "state": "Ready", "ips": [], "init": null, "overhead": null, "resources": null,
    }))
    .unwrap()
}

fn take(queue: &Queue) -> Option<Result<Arc<Event>>> {
    queue.next().now_or_never().flatten()
}

fn version(event: &Event) -> i64 {
    event.picture.pod.created_at.0
}

#[test]
fn nobody_looks_when_nobody_listens() {
    let hub = Hub::default();
    hub.tell("a", STARTED, || panic!("looked"));
    let queue = hub.listen(Vec::new).unwrap();
    drop(queue);
    // One look may tell that the listener is gone; then it is known.
    hub.tell("a", STARTED, || picture('a', "u", 1));
    hub.tell("a", STARTED, || panic!("looked"));
}

#[test]
fn a_listener_that_is_too_slow_is_cut_off_alone() {
    let hub = Hub::default();
    let (slow, quick) = (hub.listen(|| vec![picture('a', "u", 1)]).unwrap(), hub.listen(Vec::new).unwrap());
    for _ in 0..=EVENTS_WAITING_MAX {
        hub.tell("a", STARTED, || picture('a', "u", 1));
        assert_eq!(take(&quick).unwrap().unwrap().id, "a");
    }
    let error = take(&slow).unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exhausted);
    assert_eq!(hub.told().listeners.len(), 1);
    hub.tell("a", STARTED, || picture('a', "u", 1));
    assert!(take(&quick).unwrap().is_ok());
}

#[test]
fn the_stream_is_over_after_an_error() {
    let hub = Hub::default();
    let queue = hub.listen(Vec::new).unwrap();
    for _ in 0..=EVENTS_WAITING_MAX {
        hub.tell("a", STARTED, || picture('a', "u", 1));
    }
    let all: Vec<_> = events(queue).collect().now_or_never().unwrap();
    assert!(matches!(&all[..], [Err(_)]), "{all:?}");
}

#[test]
fn times_never_go_back_with_the_clock() {
    let hub = Hub::default();
    let queue = hub.listen(Vec::new).unwrap();
    let future = Timestamp::now().0 + 3_600_000_000_000;
    hub.told().last = future;
    hub.tell("a", STARTED, || picture('a', "u", 1));
    assert_eq!(take(&queue).unwrap().unwrap().at, Timestamp(future));
    let late = hub.listen(|| vec![picture('a', "u", 1)]).unwrap();
    assert_eq!(take(&late).unwrap().unwrap().at, Timestamp(future));
}

#[test]
fn the_snapshot_comes_first_and_has_the_newest_sandbox_of_each_pod() {
    let hub = Hub::default();
    let all = || {
        vec![
            picture('a', "u", 3),
            picture('b', "u", 2),
            picture('c', "v", 1),
            picture('d', "", 0),
            picture('e', "", 9),
        ]
    };
    let queue = hub.listen(all).unwrap();
    hub.tell("later", STARTED, || picture('a', "u", 3));
    let ids: Vec<_> = std::iter::from_fn(|| take(&queue)).map(|event| event.unwrap().id.clone()).collect();
    let first = |digit| id(digit).to_string();
    assert_eq!(ids, [first('d'), first('c'), first('a'), first('e'), "later".to_owned()]);
}

#[test]
fn closing_gives_what_waits_and_then_ends() {
    let hub = Hub::default();
    let queue = hub.listen(Vec::new).unwrap();
    hub.tell("a", STARTED, || picture('a', "u", 1));
    hub.close();
    hub.tell("b", STARTED, || panic!("nobody listens any more"));
    let all: Vec<_> = events(queue).collect().now_or_never().unwrap();
    assert_eq!(all.len(), 1);
    let late: Vec<_> = events(hub.listen(Vec::new).unwrap()).collect().now_or_never().unwrap();
    assert!(late.is_empty());
}

#[test]
fn listeners_are_bounded_and_those_that_left_make_room() {
    let hub = Hub::default();
    let mut queues: Vec<_> = (0..LISTENERS_MAX).map(|_| hub.listen(Vec::new).unwrap()).collect();
    assert_eq!(hub.listen(Vec::new).unwrap_err().kind(), ErrorKind::Exhausted);
    queues.pop();
    hub.listen(Vec::new).unwrap();
}

#[test]
fn a_stop_is_news_once_and_never_after_the_pod_is_gone() {
    let mut told = Told::default();
    assert!(told.first_stop("a", |_| true));
    assert!(!told.first_stop("a", |_| true));
    assert!(told.first_stop("b", |id| id == "b"));
    assert!(!told.first_stop("a", |id| id == "b"));
    assert_eq!(told.stopped, HashSet::from(["b".to_owned()]));
}

#[test]
fn no_event_shows_an_older_pod_than_one_before_it() {
    const CHANGES: i64 = 200;
    let (hub, state) = (Hub::default(), AtomicI64::new(0));
    let queue = hub.listen(Vec::new).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..CHANGES {
                    state.fetch_add(1, Ordering::SeqCst);
                    hub.tell("a", STARTED, || picture('a', "u", state.load(Ordering::SeqCst)));
                }
            });
        }
    });
    let seen: Vec<_> = std::iter::from_fn(|| take(&queue)).map(|event| event.unwrap()).collect();
    assert_eq!(seen.len(), 800);
    assert!(seen.is_sorted_by_key(|event| (event.at, version(event))));
    assert_eq!(version(seen.last().unwrap()), 4 * CHANGES);
}

#[tokio::test]
async fn a_waiting_listener_is_woken() {
    let hub = Arc::new(Hub::default());
    let queue = hub.listen(Vec::new).unwrap();
    let waiting = tokio::spawn(async move { queue.next().await });
    tokio::task::yield_now().await;
    hub.tell("a", STARTED, || picture('a', "u", 1));
    assert_eq!(waiting.await.unwrap().unwrap().unwrap().id, "a");
}
