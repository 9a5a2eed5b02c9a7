//! The daemon's own service: what its command line asks beyond the CRI. Pulls and imports report their progress.
//!
//! A call is one task: it ends with the work, or when the client is gone, which stops a pull that nobody else waits for.

use std::path::Path;
use std::sync::Arc;

use crisp_image::{Auth, Image, ImageError, Progress};
use crisp_proto::admin::admin_server::{Admin, AdminServer};
use crisp_proto::admin::image_progress::Event;
use crisp_proto::admin::{
    DescribeRequest, DescribeResponse, ImageDone, ImageProgress, ImageResolved, ImageSummary,
    ImportImageRequest, LayerProgress, PullImageRequest,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::cri::{pull_error, status};
use crate::daemon::Daemon;
use crate::error::Error;

/// Progress messages that wait for a slow client; further ones are left out, since each tells the state anew.
const PROGRESS_QUEUE_MAX: usize = 256;

type Answer<T> = std::result::Result<Response<T>, Status>;
type Sender = mpsc::Sender<std::result::Result<ImageProgress, Status>>;
type Stream = ReceiverStream<std::result::Result<ImageProgress, Status>>;

/// The service.
#[derive(Debug)]
pub(crate) struct Service {
    daemon: Arc<Daemon>,
}

/// The service on this daemon.
pub(crate) fn service(daemon: &Arc<Daemon>) -> AdminServer<Service> {
    AdminServer::new(Service { daemon: Arc::clone(daemon) })
}

#[tonic::async_trait]
impl Admin for Service {
    type PullImageStream = Stream;
    type ImportImageStream = Stream;

    async fn describe(&self, _request: Request<DescribeRequest>) -> Answer<DescribeResponse> {
        let config = &self.daemon.config;
        Ok(Response::new(DescribeResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            root: config.root.to_string_lossy().into_owned(),
            state: config.state.to_string_lossy().into_owned(),
            handlers: config.handlers.keys().cloned().collect(),
            default_handler: config.default_handler.clone(),
        }))
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Answer<Stream> {
        let request = request.into_inner();
        let auth = if request.username.is_empty() {
            Auth::Anonymous
        } else {
            Auth::Basic { username: request.username, password: request.password, server: None }
        };
        let images = self.daemon.images.clone();
        let (sender, receiver) = mpsc::channel(PROGRESS_QUEUE_MAX);
        let progress = progress_to(sender.clone());
        tokio::spawn(report(sender, async move {
            let image = images.pull(&request.reference, auth, &progress).await?;
            tracing::info!(image = request.reference, digest = %image.id, "image pulled");
            Ok(vec![image])
        }));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn import_image(&self, request: Request<ImportImageRequest>) -> Answer<Stream> {
        let request = request.into_inner();
        if !Path::new(&request.path).is_absolute() {
            return Err(status(&Error::Invalid(format!("{:?} is not an absolute path", request.path))));
        }
        let images = self.daemon.images.clone();
        let (sender, receiver) = mpsc::channel(PROGRESS_QUEUE_MAX);
        let progress = progress_to(sender.clone());
        tokio::spawn(report(sender, async move {
            let name = Some(request.name.as_str()).filter(|name| !name.is_empty());
            let imported = images.import(Path::new(&request.path), name, &progress).await?;
            tracing::info!(path = request.path, images = imported.len(), "images imported");
            Ok(imported)
        }));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

fn progress_to(sender: Sender) -> impl Fn(Progress) + Send + Sync {
    move |progress| {
        if let Some(event) = event(progress) {
            // A full queue drops the message: the next one tells more.
            let _full = sender.try_send(Ok(ImageProgress { event: Some(event) }));
        }
    }
}

/// Runs `work` unless the client leaves, and sends its result last.
async fn report(sender: Sender, work: impl Future<Output = Result<Vec<Arc<Image>>, ImageError>>) {
    let done = tokio::select! {
        done = work => done,
        () = sender.closed() => return,
    };
    let last = match done {
        Ok(images) => {
            let images = images.iter().map(|image| summary(image)).collect();
            Ok(ImageProgress { event: Some(Event::Done(ImageDone { images })) })
        }
        Err(error) => Err(status(&pull_error(error))),
    };
    // Nobody is left to tell when the client is gone.
    let _gone = sender.send(last).await;
}

fn event(progress: Progress) -> Option<Event> {
    let layer = |digest: &crisp_image::Digest, bytes_done, bytes_total, complete| {
        Some(Event::Layer(LayerProgress { digest: digest.to_string(), bytes_done, bytes_total, complete }))
    };
    match progress {
        Progress::Resolved { layers_missing, bytes, .. } => {
            let layers = u32::try_from(layers_missing).unwrap_or(u32::MAX);
            Some(Event::Resolved(ImageResolved { layers, bytes }))
        }
        Progress::LayerBytes { digest, done, total } => layer(&digest, done, total, false),
        Progress::LayerDone { digest } => layer(&digest, 0, 0, true),
        _ => None,
    }
}

fn summary(image: &Image) -> ImageSummary {
    ImageSummary {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size_bytes: image.size_bytes,
    }
}
