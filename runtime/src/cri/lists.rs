//! What the lists hold, and the streaming lists: what their unary twins answer, in batches.
//!
//! A streaming list takes its snapshot at the start: pointers to published records. They become messages batch by batch, as the
//! client takes them, so the memory for messages does not grow with the list. An empty list ends at once.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use crisp_image::Image;
use crisp_proto::cri::*;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use prost::Message;
use tonic::Status;

use super::{convert, status};
use crate::container::{self, ContainerRecord};
use crate::daemon::Daemon;
use crate::error::{Doing as _, Result};
use crate::pod::{Pod, PodRecord};
use crate::{metrics, stats};

/// Batches on their way to a client.
pub(super) type Batches<T> = BoxStream<'static, std::result::Result<T, Status>>;

/// Most items of a message.
const BATCH_ITEMS_MAX: usize = 128;
/// Most bytes of a message that has more than one item.
const BATCH_BYTES_MAX: usize = 1 << 20;
/// Things whose numbers are read at a time: enough to read in parallel, few enough to hold.
const NUMBERS_WINDOW: usize = 32;

/// The pods that the filter lets through, as they are now.
///
/// # Errors
/// For an ambiguous id.
pub(super) fn select_pods(daemon: &Daemon, filter: Option<PodSandboxFilter>) -> Result<Vec<Arc<PodRecord>>> {
    let filter = filter.unwrap_or_default();
    let pods = match filter.id.as_str() {
        "" => daemon.pods.visible(),
        id => daemon.pods.find(id)?.into_iter().collect(),
    };
    let state = filter.state.map(|state| state.state);
    let mut records: Vec<_> = pods.iter().map(|pod| pod.record()).collect();
    records.retain(|record| {
        state.is_none_or(|state| convert::sandbox_state(record.state) as i32 == state)
            && selected(&record.config.labels, &filter.label_selector)
    });
    Ok(records)
}

/// The containers that the filter lets through, as they are now.
///
/// # Errors
/// For an ambiguous id.
pub(super) fn select_containers(
    daemon: &Daemon,
    filter: Option<ContainerFilter>,
) -> Result<Vec<Arc<ContainerRecord>>> {
    let filter = filter.unwrap_or_default();
    let state = filter.state.map(|state| state.state);
    let containers = find_containers(daemon, &filter.id, &filter.pod_sandbox_id)?;
    let mut records: Vec<_> = containers.iter().map(|container| container.record()).collect();
    records.retain(|record| {
        state.is_none_or(|state| convert::container_state(&record.state) as i32 == state)
            && selected(&record.config.labels, &filter.label_selector)
    });
    Ok(records)
}

/// The containers with this id and of this pod; empty means any. An id that nothing has gives none.
fn find_containers(daemon: &Daemon, id: &str, pod_id: &str) -> Result<Vec<Arc<container::Container>>> {
    let mut containers = match id {
        "" => daemon.containers.visible(),
        id => daemon.containers.find(id)?.into_iter().collect(),
    };
    if !pod_id.is_empty() {
        let pod = daemon.pods.find(pod_id)?;
        containers.retain(|container| pod.as_ref().is_some_and(|pod| container.pod.id == pod.id));
    }
    Ok(containers)
}

/// The containers whose statistics are asked for.
///
/// # Errors
/// For an ambiguous id.
pub(super) fn select_container_stats(
    daemon: &Daemon,
    filter: Option<ContainerStatsFilter>,
) -> Result<Vec<Arc<container::Container>>> {
    let filter = filter.unwrap_or_default();
    let mut containers = find_containers(daemon, &filter.id, &filter.pod_sandbox_id)?;
    containers.retain(|container| selected(&container.record().config.labels, &filter.label_selector));
    Ok(containers)
}

/// The pods whose statistics are asked for.
///
/// # Errors
/// For an ambiguous id.
pub(super) fn select_pod_stats(
    daemon: &Daemon,
    filter: Option<PodSandboxStatsFilter>,
) -> Result<Vec<Arc<Pod>>> {
    let filter = filter.unwrap_or_default();
    let mut pods = match filter.id.as_str() {
        "" => daemon.pods.visible(),
        id => daemon.pods.find(id)?.into_iter().collect(),
    };
    pods.retain(|pod| selected(&pod.record().config.labels, &filter.label_selector));
    Ok(pods)
}

/// The images that the filter names; all without one. What could be a name or an id, but is none of ours, gives none.
///
/// # Errors
/// For an ambiguous id.
pub(super) fn select_images(daemon: &Daemon, filter: Option<ImageFilter>) -> Result<Vec<Arc<Image>>> {
    let name = filter.and_then(|filter| filter.image).unwrap_or_default().image;
    if name.is_empty() {
        return Ok(daemon.images.list().to_vec());
    }
    Ok(daemon.images.resolve(&name).doing("look the image up")?.into_iter().collect())
}

/// Whether `labels` have every pair of `selector`.
fn selected(labels: &HashMap<String, String>, selector: &HashMap<String, String>) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// What is left of a list: the things that are not looked at yet, and messages that are made but not sent.
struct Left<S, T> {
    things: std::vec::IntoIter<S>,
    messages: VecDeque<T>,
}

/// The messages of `things`, in their order, in batches that are made when the client has room for them. `make` gets up to `window` things
/// at a time; it may make fewer messages, since things end.
fn batches<S, T, F>(
    things: Vec<S>,
    window: usize,
    make: impl Fn(Vec<S>) -> F + Send + 'static,
) -> Batches<Vec<T>>
where
    S: Send + 'static,
    T: Message + Send + 'static,
    F: Future<Output = Result<Vec<T>>> + Send,
{
    let left = Left { things: things.into_iter(), messages: VecDeque::new() };
    stream::try_unfold((left, make), move |(mut left, make)| async move {
        while left.messages.is_empty() {
            let next: Vec<S> = left.things.by_ref().take(window).collect();
            if next.is_empty() {
                return Ok(None);
            }
            left.messages = make(next).await.map_err(|error| status(&error))?.into();
        }
        Ok(Some((take_batch(&mut left.messages), (left, make))))
    })
    .boxed()
}

/// From the front: as many as one message of the stream bears, one at least.
fn take_batch<T: Message>(messages: &mut VecDeque<T>) -> Vec<T> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    while let Some(message) = messages.front() {
        bytes += message.encoded_len();
        if !batch.is_empty() && (batch.len() == BATCH_ITEMS_MAX || bytes > BATCH_BYTES_MAX) {
            break;
        }
        batch.extend(messages.pop_front());
    }
    batch
}

/// As [`batches`], for messages that follow from records alone.
fn converted<S, T>(records: Vec<Arc<S>>, convert: fn(&S) -> T) -> Batches<Vec<T>>
where
    S: Send + Sync + 'static,
    T: Message + Send + 'static,
{
    batches(records, BATCH_ITEMS_MAX, move |records| {
        std::future::ready(Ok(records.iter().map(|record| convert(record)).collect()))
    })
}

/// Puts each batch into its message.
fn answers<T: Send + 'static, A: 'static>(batches: Batches<Vec<T>>, wrap: fn(Vec<T>) -> A) -> Batches<A> {
    batches.map(move |batch| batch.map(wrap)).boxed()
}

pub(super) fn pods(
    daemon: &Arc<Daemon>,
    request: StreamPodSandboxesRequest,
) -> Result<Batches<StreamPodSandboxesResponse>> {
    let records = select_pods(daemon, request.filter)?;
    let items = converted(records, convert::sandbox);
    Ok(answers(items, |pod_sandboxes| StreamPodSandboxesResponse { pod_sandboxes }))
}

pub(super) fn containers(
    daemon: &Arc<Daemon>,
    request: StreamContainersRequest,
) -> Result<Batches<StreamContainersResponse>> {
    let records = select_containers(daemon, request.filter)?;
    let items = converted(records, convert::container);
    Ok(answers(items, |containers| StreamContainersResponse { containers }))
}

pub(super) fn container_stats(
    daemon: &Arc<Daemon>,
    request: StreamContainerStatsRequest,
) -> Result<Batches<StreamContainerStatsResponse>> {
    let containers = select_container_stats(daemon, request.filter)?;
    let daemon = Arc::clone(daemon);
    let items = batches(containers, NUMBERS_WINDOW, move |window| {
        let daemon = Arc::clone(&daemon);
        async move { stats::of_containers(&daemon, window).await }
    });
    Ok(answers(items, |container_stats| StreamContainerStatsResponse { container_stats }))
}

pub(super) fn pod_stats(
    daemon: &Arc<Daemon>,
    request: StreamPodSandboxStatsRequest,
) -> Result<Batches<StreamPodSandboxStatsResponse>> {
    let pods = select_pod_stats(daemon, request.filter)?;
    let daemon = Arc::clone(daemon);
    let items = batches(pods, NUMBERS_WINDOW, move |window| {
        let daemon = Arc::clone(&daemon);
        async move { stats::of_pods(&daemon, window).await }
    });
    Ok(answers(items, |pod_sandbox_stats| StreamPodSandboxStatsResponse { pod_sandbox_stats }))
}

pub(super) fn pod_metrics(
    daemon: &Arc<Daemon>,
    _request: StreamPodSandboxMetricsRequest,
) -> Result<Batches<StreamPodSandboxMetricsResponse>> {
    let pods = daemon.pods.visible();
    let daemon = Arc::clone(daemon);
    let items = batches(pods, NUMBERS_WINDOW, move |window| {
        let daemon = Arc::clone(&daemon);
        async move { metrics::of_pods(&daemon, window).await }
    });
    Ok(answers(items, |pod_sandbox_metrics| StreamPodSandboxMetricsResponse { pod_sandbox_metrics }))
}

pub(super) fn images(
    daemon: &Arc<Daemon>,
    request: StreamImagesRequest,
) -> Result<Batches<StreamImagesResponse>> {
    let images = select_images(daemon, request.filter)?;
    let items = converted(images, convert::image);
    Ok(answers(items, |images| StreamImagesResponse { images }))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use futures_util::FutureExt as _;

    use super::*;

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_selector_needs_every_pair() {
        let labels = map(&[("a", "1"), ("b", "2")]);
        assert!(selected(&labels, &map(&[])));
        assert!(selected(&labels, &map(&[("a", "1"), ("b", "2")])));
        assert!(!selected(&labels, &map(&[("a", "1"), ("b", "3")])));
        assert!(!selected(&labels, &map(&[("c", "1")])));
    }

    fn message(size: usize) -> UInt64Value {
        UInt64Value { value: size as u64 }
    }

    /// Things become messages of their own number; every third thing is gone.
    async fn most(things: Vec<u64>) -> Result<Vec<UInt64Value>> {
        Ok(things.into_iter().filter(|n| n % 3 != 0).map(|value| UInt64Value { value }).collect())
    }

    fn collect(things: Vec<u64>, window: usize) -> Vec<Vec<u64>> {
        let all: Vec<_> = batches(things, window, most).collect().now_or_never().unwrap();
        all.into_iter().map(|batch| batch.unwrap().iter().map(|message| message.value).collect()).collect()
    }

    #[test]
    fn each_item_comes_once_in_order_and_no_batch_is_empty() {
        for (count, window) in [(0, 1), (1, 1), (3, 1), (7, 2), (300, 1000), (1000, 32), (1000, 500)] {
            let got = collect((0..count).collect(), window);
            assert!(got.iter().all(|batch| !batch.is_empty() && batch.len() <= BATCH_ITEMS_MAX));
            let want: Vec<u64> = (0..count).filter(|n| n % 3 != 0).collect();
            assert_eq!(got.concat(), want, "{count} {window}");
        }
    }

    #[test]
    fn batches_are_bounded_in_bytes_but_for_one_item() {
        let text = |bytes: usize| ImageSpec { image: "x".repeat(bytes), ..ImageSpec::default() };
        let mut messages: VecDeque<_> =
            [2 * BATCH_BYTES_MAX, 10, BATCH_BYTES_MAX - 100, 200].into_iter().map(text).collect();
        let sizes: Vec<usize> =
            std::iter::from_fn(|| Some(take_batch(&mut messages).len()).filter(|length| *length > 0))
                .collect();
        assert_eq!(sizes, [1, 2, 1]);
    }

    #[test]
    fn messages_are_made_when_they_are_taken() {
        let made = Arc::new(Mutex::new(0));
        let counter = Arc::clone(&made);
        let mut stream = batches((0..1000).collect(), 10, move |things: Vec<usize>| {
            *counter.lock().unwrap() += things.len();
            std::future::ready(Ok(things.into_iter().map(message).collect()))
        });
        assert_eq!(*made.lock().unwrap(), 0);
        stream.next().now_or_never().unwrap().unwrap().unwrap();
        assert_eq!(*made.lock().unwrap(), 10);
    }

    #[test]
    fn an_error_ends_the_stream() {
        let failing = |_: Vec<u64>| {
            std::future::ready(Err::<Vec<UInt64Value>, _>(crate::error::Error::Invalid("no".to_owned())))
        };
        let all: Vec<_> = batches(vec![1, 2, 3], 1, failing).collect().now_or_never().unwrap();
        assert!(matches!(&all[..], [Err(_)]));
    }
}
