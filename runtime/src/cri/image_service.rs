//! ImageService.

use std::path::Path;
use std::sync::Arc;

use crisp_domain::{ErrorKind, Timestamp};
use crisp_image::{Auth, AuthFields, Image};
use crisp_proto::cri::image_service_server::ImageService;
use crisp_proto::cri::{
    AuthConfig, FilesystemIdentifier, FilesystemUsage, ImageFsInfoRequest, ImageFsInfoResponse, ImageSpec,
    ImageStatusRequest, ImageStatusResponse, ListImagesRequest, ListImagesResponse, PullImageRequest,
    PullImageResponse, RemoveImageRequest, RemoveImageResponse, StreamImagesRequest, StreamImagesResponse,
    UInt64Value,
};
use tonic::{Request, Response, Status};

use super::{convert, info, status};
use crate::daemon::Daemon;
use crate::error::{Doing as _, Error, Result};

type Answer<T> = std::result::Result<Response<T>, Status>;

/// The service.
#[derive(Debug)]
pub(crate) struct Images {
    daemon: Arc<Daemon>,
}

impl Images {
    pub(crate) fn new(daemon: Arc<Daemon>) -> Self {
        Self { daemon }
    }

    /// What could be a name or an id, but is none of ours, is absent rather than wrong.
    fn resolve(&self, text: &str) -> Result<Option<Arc<Image>>> {
        self.daemon.images.resolve(text).doing("look the image up")
    }

    async fn pull(&self, request: PullImageRequest) -> Result<String> {
        let name = image_name(request.image.as_ref())?;
        if let Some(image) = &request.image {
            self.daemon.handler(&image.runtime_handler)?;
        }
        let auth = auth(request.auth.as_ref())?;
        let pulled = self.daemon.images.pull(&name, auth, &|_progress| ()).await.map_err(pull_error)?;
        tracing::info!(image = name, digest = %pulled.id, "image pulled");
        Ok(pulled.id.to_string())
    }

    fn fs_info(&self) -> ImageFsInfoResponse {
        let usage = self.daemon.images.fs_usage();
        ImageFsInfoResponse {
            image_filesystems: vec![FilesystemUsage {
                timestamp: Timestamp::now().0,
                fs_id: Some(filesystem(self.daemon.dirs.root())),
                used_bytes: Some(UInt64Value { value: usage.bytes }),
                inodes_used: Some(UInt64Value { value: usage.inodes }),
            }],
            // Writable layers lie on the same file system.
            container_filesystems: Vec::new(),
        }
    }
}

/// The file system that holds images and writable layers, named by a directory on it.
pub(crate) fn filesystem(root: &Path) -> FilesystemIdentifier {
    FilesystemIdentifier { mountpoint: root.display().to_string() }
}

/// A failed pull, with what a kubelet reads from it.
pub(crate) fn pull_error(error: crisp_image::ImageError) -> Error {
    Error::Pull {
        registry_away: error.is_registry_unavailable(),
        kind: error.kind(),
        source: Arc::new(error),
    }
}

fn image_name(spec: Option<&ImageSpec>) -> Result<String> {
    match spec {
        Some(spec) if !spec.image.is_empty() => Ok(spec.image.clone()),
        _ => Err(Error::Invalid("image.image is missing".to_owned())),
    }
}

fn auth(auth: Option<&AuthConfig>) -> Result<Auth> {
    let Some(auth) = auth else { return Ok(Auth::Anonymous) };
    Auth::from_fields(&AuthFields {
        username: &auth.username,
        password: &auth.password,
        auth: &auth.auth,
        server_address: &auth.server_address,
        identity_token: &auth.identity_token,
        registry_token: &auth.registry_token,
    })
    .doing("read the credentials")
}

#[tonic::async_trait]
impl ImageService for Images {
    async fn list_images(&self, request: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        let found = super::lists::select_images(&self.daemon, request.into_inner().filter);
        let found = found.map_err(|error| status(&error))?;
        Ok(Response::new(ListImagesResponse {
            images: found.iter().map(|image| convert::image(image)).collect(),
        }))
    }

    type StreamImagesStream = super::lists::Batches<StreamImagesResponse>;

    async fn stream_images(&self, request: Request<StreamImagesRequest>) -> Answer<Self::StreamImagesStream> {
        let begun = super::lists::images(&self.daemon, request.into_inner());
        begun.map(Response::new).map_err(|error| status(&error))
    }

    async fn image_status(&self, request: Request<ImageStatusRequest>) -> Answer<ImageStatusResponse> {
        let request = request.into_inner();
        let answer = || -> Result<ImageStatusResponse> {
            let found = self.resolve(&image_name(request.image.as_ref())?)?;
            let info = match &found {
                Some(image) if request.verbose => info::image(image)?,
                _ => Default::default(),
            };
            Ok(ImageStatusResponse { image: found.map(|image| convert::image(&image)), info })
        };
        answer().map(Response::new).map_err(|error| status(&error))
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Answer<PullImageResponse> {
        let pulled = self.pull(request.into_inner()).await;
        pulled.map(|image_ref| Response::new(PullImageResponse { image_ref })).map_err(|error| status(&error))
    }

    async fn remove_image(&self, request: Request<RemoveImageRequest>) -> Answer<RemoveImageResponse> {
        let remove = async {
            let name = image_name(request.into_inner().image.as_ref())?;
            self.daemon.images.remove(&name).await.doing("remove the image")?;
            // A kubelet that makes room looks at once how much there is now, and evicts a pod when it is not enough.
            if let Err(error) = self.daemon.collect_layers().await {
                tracing::warn!(%error, "the collection of layers ended abnormally");
            }
            tracing::info!(image = name, "image removed");
            Ok(RemoveImageResponse {})
        };
        remove.await.map(Response::new).map_err(|error: Error| status(&error))
    }

    async fn image_fs_info(&self, _: Request<ImageFsInfoRequest>) -> Answer<ImageFsInfoResponse> {
        Ok(Response::new(self.fs_info()))
    }
}

/// An internal error of encoding verbose information.
pub(crate) fn encoding(error: serde_json::Error) -> Error {
    Error::step("encode verbose information", ErrorKind::Internal, error)
}
