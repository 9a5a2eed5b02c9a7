//! The daemon, as its clients see it.

use std::path::{Path, PathBuf};

use crisp_proto::admin::{self, admin_client::AdminClient};
use crisp_proto::cri;
use crisp_proto::cri::image_service_client::ImageServiceClient;
use crisp_proto::cri::runtime_service_client::RuntimeServiceClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};

use super::error::{CliError, Result};

/// What kubelet and crictl accept, too.
const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// A connection to the daemon. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    pub(crate) runtime: RuntimeServiceClient<Channel>,
    pub(crate) images: ImageServiceClient<Channel>,
    pub(crate) admin: AdminClient<Channel>,
}

impl Client {
    /// Connects to the socket; `unix://` in front of the path is accepted, as `crictl` writes it.
    ///
    /// # Errors
    /// [`CliError::Unreachable`].
    pub(crate) async fn connect(address: &Path) -> Result<Self> {
        let path = match address.to_str().and_then(|text| text.strip_prefix("unix://")) {
            Some(path) => PathBuf::from(path),
            None => address.to_owned(),
        };
        // The transport hides the reason of a failed connect; a plain one tells it.
        let unreachable = |source| CliError::Unreachable { address: path.clone(), source };
        UnixStream::connect(&path).await.map(drop).map_err(unreachable)?;
        let socket = path.clone();
        let connector = tower::service_fn(move |_: tonic::transport::Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(connector)
            .await
            .map_err(|error| unreachable(std::io::Error::other(error)))?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX),
            images: ImageServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX),
            admin: AdminClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX),
        })
    }

    /// Where the daemon keeps things.
    ///
    /// # Errors
    /// [`CliError::Rpc`].
    pub(crate) async fn describe(&mut self) -> Result<admin::DescribeResponse> {
        let answer = self.admin.describe(admin::DescribeRequest {}).await;
        answer.map(tonic::Response::into_inner).map_err(CliError::rpc("ask the daemon where it keeps things"))
    }

    /// Name and version of who answers.
    ///
    /// # Errors
    /// [`CliError::Rpc`].
    pub(crate) async fn version(&mut self) -> Result<String> {
        let answer = self.runtime.version(cri::VersionRequest { version: String::new() }).await;
        let version = answer.map_err(CliError::rpc("ask the daemon for its version"))?.into_inner();
        Ok(format!("{} {}", version.runtime_name, version.runtime_version))
    }

    /// # Errors
    /// [`CliError::Rpc`].
    pub(crate) async fn pods(&mut self, filter: cri::PodSandboxFilter) -> Result<Vec<cri::PodSandbox>> {
        let request = cri::ListPodSandboxRequest { filter: Some(filter) };
        let answer = self.runtime.list_pod_sandbox(request).await;
        answer.map(|answer| answer.into_inner().items).map_err(CliError::rpc("list the pods"))
    }

    /// # Errors
    /// [`CliError::Rpc`].
    pub(crate) async fn containers(&mut self, filter: cri::ContainerFilter) -> Result<Vec<cri::Container>> {
        let request = cri::ListContainersRequest { filter: Some(filter) };
        let answer = self.runtime.list_containers(request).await;
        answer.map(|answer| answer.into_inner().containers).map_err(CliError::rpc("list the containers"))
    }

    /// # Errors
    /// [`CliError::Rpc`]; also when the answer is empty.
    pub(crate) async fn container_status(&mut self, id: &str) -> Result<cri::ContainerStatus> {
        let request = cri::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer = self.runtime.container_status(request).await;
        let status = answer
            .map(|answer| answer.into_inner().status)
            .map_err(CliError::rpc("read a container's status"))?;
        status.ok_or_else(|| CliError::Invalid(format!("the daemon gave no status for container {id}")))
    }

    /// # Errors
    /// [`CliError::Rpc`]; also when the answer is empty.
    pub(crate) async fn pod_status(&mut self, id: &str) -> Result<cri::PodSandboxStatus> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let answer = self.runtime.pod_sandbox_status(request).await;
        let status =
            answer.map(|answer| answer.into_inner().status).map_err(CliError::rpc("read a pod's status"))?;
        status.ok_or_else(|| CliError::Invalid(format!("the daemon gave no status for pod {id}")))
    }

    /// # Errors
    /// [`CliError::Rpc`].
    pub(crate) async fn all_images(&mut self) -> Result<Vec<cri::Image>> {
        let answer = self.images.list_images(cri::ListImagesRequest { filter: None }).await;
        answer.map(|answer| answer.into_inner().images).map_err(CliError::rpc("list the images"))
    }

    /// The image, when it is here.
    ///
    /// # Errors
    /// [`CliError::Rpc`].
    pub(crate) async fn image(&mut self, reference: &str) -> Result<Option<cri::Image>> {
        let image = Some(cri::ImageSpec { image: reference.to_owned(), ..Default::default() });
        let answer = self.images.image_status(cri::ImageStatusRequest { image, verbose: false }).await;
        answer
            .map(|answer| answer.into_inner().image)
            .map_err(CliError::rpc(format!("look for image {reference}")))
    }
}
