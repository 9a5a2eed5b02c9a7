//! A CRI client whose calls wait for the answer.
use std::future::Future;
use std::path::Path;

use anyhow::Result;
use crisp_proto::cri;
use crisp_proto::cri::image_service_client::ImageServiceClient;
use crisp_proto::cri::runtime_service_client::RuntimeServiceClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

/// 16 MiB, as kubelets have it.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// No call of a test takes this long unless the daemon hangs.
const CALL_LIMIT: std::time::Duration = std::time::Duration::from_secs(180);
/// The same for a command, in seconds.
const EXEC_SECONDS: i64 = 90;

/// A connection to a CRI socket, with the runtime that drives it, between calls too: a server that ends waits for its
/// clients to let go.
#[derive(Debug)]
pub struct Cri {
    tokio: tokio::runtime::Runtime,
    channel: Channel,
}

impl Cri {
    /// Connects when the first call is made, and again after the daemon was restarted.
    ///
    /// # Errors
    /// When the runtime cannot be made.
    pub fn new(socket: &Path) -> Result<Self> {
        let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let channel = tokio.block_on(async { channel(socket) })?;
        Ok(Self { tokio, channel })
    }

    /// Makes a call of the runtime service.
    ///
    /// # Errors
    /// The call's status.
    pub fn runtime<T, F>(&self, call: impl FnOnce(RuntimeServiceClient<Channel>) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        self.tokio.block_on(call(runtime_client(&self.channel))).map(Response::into_inner)
    }

    /// Makes a call of the image service.
    ///
    /// # Errors
    /// The call's status.
    pub fn image<T, F>(&self, call: impl FnOnce(ImageServiceClient<Channel>) -> F) -> Result<T, Status>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let client =
            ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
        self.tokio.block_on(call(client)).map(Response::into_inner)
    }

    /// Runs several calls at once.
    pub fn together<T>(&self, work: impl Future<Output = T>) -> T {
        self.tokio.block_on(work)
    }

    /// A client for calls that run at once.
    #[must_use]
    pub fn client(&self) -> RuntimeServiceClient<Channel> {
        runtime_client(&self.channel)
    }

    /// The same for images.
    #[must_use]
    pub fn image_client(&self) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Runs a pod, gives its id.
    ///
    /// # Errors
    /// The call's status.
    pub fn run_pod(&self, config: &cri::PodSandboxConfig, handler: &str) -> Result<String, Status> {
        let request =
            cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.to_owned() };
        Ok(self.runtime(|mut c| async move { c.run_pod_sandbox(request).await })?.pod_sandbox_id)
    }

    /// Creates a container in the pod, gives its id.
    ///
    /// # Errors
    /// The call's status.
    pub fn create(
        &self,
        pod: &str,
        config: &cri::ContainerConfig,
        pod_config: &cri::PodSandboxConfig,
    ) -> Result<String, Status> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config.clone()),
            sandbox_config: Some(pod_config.clone()),
        };
        Ok(self.runtime(|mut c| async move { c.create_container(request).await })?.container_id)
    }

    /// Starts a container.
    ///
    /// # Errors
    /// The call's status.
    pub fn start(&self, container: &str) -> Result<(), Status> {
        let request = cri::StartContainerRequest { container_id: container.to_owned() };
        self.runtime(|mut c| async move { c.start_container(request).await }).map(drop)
    }

    /// Stops a container; `grace` is in seconds.
    ///
    /// # Errors
    /// The call's status.
    pub fn stop(&self, container: &str, grace: i64) -> Result<(), Status> {
        let request = cri::StopContainerRequest { container_id: container.to_owned(), timeout: grace };
        self.runtime(|mut c| async move { c.stop_container(request).await }).map(drop)
    }

    /// Removes a container.
    ///
    /// # Errors
    /// The call's status.
    pub fn remove(&self, container: &str) -> Result<(), Status> {
        let request = cri::RemoveContainerRequest { container_id: container.to_owned() };
        self.runtime(|mut c| async move { c.remove_container(request).await }).map(drop)
    }

    /// Stops a pod.
    ///
    /// # Errors
    /// The call's status.
    pub fn stop_pod(&self, pod: &str) -> Result<(), Status> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        self.runtime(|mut c| async move { c.stop_pod_sandbox(request).await }).map(drop)
    }

    /// Removes a pod.
    ///
    /// # Errors
    /// The call's status.
    pub fn remove_pod(&self, pod: &str) -> Result<(), Status> {
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: pod.to_owned() };
        self.runtime(|mut c| async move { c.remove_pod_sandbox(request).await }).map(drop)
    }

    /// The state of a container.
    ///
    /// # Errors
    /// The call's status.
    pub fn container_status(&self, container: &str) -> Result<cri::ContainerStatus, Status> {
        let request = cri::ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
        let answer = self.runtime(|mut c| async move { c.container_status(request).await })?;
        answer.status.ok_or_else(|| Status::internal("no status in the answer"))
    }

    /// The state of a pod.
    ///
    /// # Errors
    /// The call's status.
    pub fn pod_status(&self, pod: &str) -> Result<cri::PodSandboxStatus, Status> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: pod.to_owned(), verbose: false };
        let answer = self.runtime(|mut c| async move { c.pod_sandbox_status(request).await })?;
        answer.status.ok_or_else(|| Status::internal("no status in the answer"))
    }

    /// Runs a command in a container: exit code, stdout, stderr.
    ///
    /// # Errors
    /// The call's status.
    pub fn exec(&self, container: &str, command: &[&str]) -> Result<(i32, String, String), Status> {
        let request = cri::ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(|part| (*part).to_owned()).collect(),
            timeout: EXEC_SECONDS,
        };
        let answer = self.runtime(|mut c| async move { c.exec_sync(request).await })?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok((answer.exit_code, text(answer.stdout), text(answer.stderr)))
    }

    /// Where a command with these ends can be run: its address.
    ///
    /// # Errors
    /// The call's status.
    pub fn exec_url(&self, container: &str, command: &[&str]) -> Result<String, Status> {
        let request = cri::ExecRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(|part| (*part).to_owned()).collect(),
            stdin: true,
            stdout: true,
            stderr: true,
            tty: false,
        };
        Ok(self.runtime(|mut c| async move { c.exec(request).await })?.url)
    }

    /// Where a client listens to a container without a terminal.
    ///
    /// # Errors
    /// The call's status.
    pub fn listen_url(&self, container: &str) -> Result<String, Status> {
        self.attach_url(cri::AttachRequest { container_id: container.to_owned(), ..Default::default() })
    }

    /// The same where it talks, too.
    ///
    /// # Errors
    /// The call's status.
    pub fn talk_url(&self, container: &str) -> Result<String, Status> {
        self.attach_url(cri::AttachRequest {
            container_id: container.to_owned(),
            stdin: true,
            ..Default::default()
        })
    }

    fn attach_url(&self, request: cri::AttachRequest) -> Result<String, Status> {
        let request = cri::AttachRequest { stdout: true, stderr: true, ..request };
        Ok(self.runtime(|mut c| async move { c.attach(request).await })?.url)
    }

    /// Where a client reaches a port of the pod.
    ///
    /// # Errors
    /// The call's status.
    pub fn forward_url(&self, pod: &str, port: u16) -> Result<String, Status> {
        let request = cri::PortForwardRequest { pod_sandbox_id: pod.to_owned(), port: vec![i32::from(port)] };
        Ok(self.runtime(|mut c| async move { c.port_forward(request).await })?.url)
    }

    /// Pulls an image, gives its id.
    ///
    /// # Errors
    /// The call's status.
    pub fn pull(&self, image: &str) -> Result<String, Status> {
        let spec = cri::ImageSpec { image: image.to_owned(), ..Default::default() };
        let request = cri::PullImageRequest { image: Some(spec), ..Default::default() };
        Ok(self.image(|mut c| async move { c.pull_image(request).await })?.image_ref)
    }

    /// All images.
    ///
    /// # Errors
    /// The call's status.
    pub fn images(&self) -> Result<Vec<cri::Image>, Status> {
        let request = cri::ListImagesRequest::default();
        Ok(self.image(|mut c| async move { c.list_images(request).await })?.images)
    }

    /// Removes an image.
    ///
    /// # Errors
    /// The call's status.
    pub fn remove_image(&self, image: &str) -> Result<(), Status> {
        let spec = cri::ImageSpec { image: image.to_owned(), ..Default::default() };
        let request = cri::RemoveImageRequest { image: Some(spec) };
        self.image(|mut c| async move { c.remove_image(request).await }).map(drop)
    }

    /// All pods.
    ///
    /// # Errors
    /// The call's status.
    pub fn pods(&self) -> Result<Vec<cri::PodSandbox>, Status> {
        let request = cri::ListPodSandboxRequest::default();
        Ok(self.runtime(|mut c| async move { c.list_pod_sandbox(request).await })?.items)
    }

    /// All containers.
    ///
    /// # Errors
    /// The call's status.
    pub fn containers(&self) -> Result<Vec<cri::Container>, Status> {
        let request = cri::ListContainersRequest::default();
        Ok(self.runtime(|mut c| async move { c.list_containers(request).await })?.containers)
    }
}

fn runtime_client(channel: &Channel) -> RuntimeServiceClient<Channel> {
    RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

fn channel(socket: &Path) -> Result<Channel> {
    let socket = socket.to_owned();
    let connect = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::try_from("http://localhost")?.timeout(CALL_LIMIT);
    Ok(endpoint.connect_with_connector_lazy(connect))
}
