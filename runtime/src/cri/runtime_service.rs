//! RuntimeService.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crisp_proto::cri::runtime_service_server::RuntimeService;
use crisp_proto::cri::*;
use tonic::{Request, Response, Status};
use tracing::Instrument as _;

use super::lists::{self, Batches};
use super::{config, convert, info, status};
use crate::blocking::{self, Kind};
use crate::container::{self, Container};
use crate::daemon::Daemon;
use crate::error::{Doing as _, Error, Result};
use crate::pod::{self, Pod};

type Answer<T> = std::result::Result<Response<T>, Status>;

/// What CRI calls the version of the runtime API's own protocol.
const KUBELET_API_VERSION: &str = "0.1.0";
/// The scheme of container ids in the Kubernetes API; it never changes.
const RUNTIME_NAME: &str = "crisp";

/// The service.
#[derive(Debug)]
pub(crate) struct Runtime {
    daemon: Arc<Daemon>,
}

/// Runs a call's body in its span and maps its error.
async fn answer<T>(span: tracing::Span, body: impl Future<Output = Result<T>>) -> Answer<T> {
    async { body.await.map(Response::new).map_err(|error| status(&error)) }.instrument(span).await
}

fn stream<T>(begun: Result<Batches<T>>) -> Answer<Batches<T>> {
    begun.map(Response::new).map_err(|error| status(&error))
}

fn unimplemented<T>(what: &'static str) -> Answer<T> {
    Err(status(&Error::Unimplemented(what)))
}

impl Runtime {
    pub(crate) fn new(daemon: Arc<Daemon>) -> Self {
        Self { daemon }
    }

    fn pod(&self, id: &str) -> Result<Arc<Pod>> {
        required("pod_sandbox_id", id)?;
        self.daemon.pods.get(id)
    }

    fn container(&self, id: &str) -> Result<Arc<Container>> {
        required("container_id", id)?;
        self.daemon.containers.get(id)
    }

    /// One entry per handler, and one with the empty name for the default one.
    fn handlers(&self) -> Vec<RuntimeHandler> {
        let names = std::iter::once("").chain(self.daemon.config.handlers.keys().map(String::as_str));
        let kernel = kernel();
        let features = |name: &str| RuntimeHandlerFeatures {
            // What a program may not know is done for it (`container/views.rs`).
            recursive_read_only_mounts: config::has_recursive_read_only(kernel),
            user_namespaces: self.daemon.user_namespaces(name),
        };
        names.map(|name| RuntimeHandler { name: name.to_owned(), features: Some(features(name)) }).collect()
    }
}

fn conditions(daemon: &Daemon) -> Vec<RuntimeCondition> {
    let condition = |r#type: &str, status, reason: &str, message: String| RuntimeCondition {
        r#type: r#type.to_owned(),
        status,
        reason: reason.to_owned(),
        message,
    };
    let network = match daemon.network.status() {
        Ok(()) => condition("NetworkReady", true, "", String::new()),
        Err(not_ready) => condition("NetworkReady", false, not_ready.reason, not_ready.message),
    };
    vec![condition("RuntimeReady", true, "", String::new()), network]
}

fn required(field: &str, value: &str) -> Result<()> {
    if value.is_empty() { Err(Error::Invalid(format!("{field} is missing"))) } else { Ok(()) }
}

/// Major and minor number of the running kernel.
fn kernel() -> Option<(u32, u32)> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    crisp_seccomp::KernelVersion::parse(&release).map(|kernel| (kernel.major, kernel.minor))
}

fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

#[tonic::async_trait]
impl RuntimeService for Runtime {
    async fn version(&self, _: Request<VersionRequest>) -> Answer<VersionResponse> {
        Ok(Response::new(VersionResponse {
            version: KUBELET_API_VERSION.to_owned(),
            runtime_name: RUNTIME_NAME.to_owned(),
            runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
            runtime_api_version: "v1".to_owned(),
        }))
    }

    async fn run_pod_sandbox(&self, request: Request<RunPodSandboxRequest>) -> Answer<RunPodSandboxResponse> {
        let request = request.into_inner();
        answer(tracing::info_span!("RunPodSandbox"), async {
            let parsed = pod::request::parse(request.config)?;
            let id = pod::start::run(&self.daemon, parsed, request.runtime_handler).await?;
            Ok(RunPodSandboxResponse { pod_sandbox_id: id.to_string() })
        })
        .await
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<StopPodSandboxRequest>,
    ) -> Answer<StopPodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        answer(tracing::info_span!("StopPodSandbox", pod_id = id), async {
            required("pod_sandbox_id", &id)?;
            if let Some(pod) = self.daemon.pods.find(&id)? {
                pod::stop::stop(&self.daemon, &pod).await?;
            }
            Ok(StopPodSandboxResponse {})
        })
        .await
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<RemovePodSandboxRequest>,
    ) -> Answer<RemovePodSandboxResponse> {
        let id = request.into_inner().pod_sandbox_id;
        answer(tracing::info_span!("RemovePodSandbox", pod_id = id), async {
            required("pod_sandbox_id", &id)?;
            if let Some(pod) = self.daemon.pods.find(&id)? {
                pod::stop::remove(&self.daemon, &pod).await?;
            }
            Ok(RemovePodSandboxResponse {})
        })
        .await
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<PodSandboxStatusRequest>,
    ) -> Answer<PodSandboxStatusResponse> {
        let request = request.into_inner();
        answer(tracing::debug_span!("PodSandboxStatus", pod_id = request.pod_sandbox_id), async {
            let pod = self.pod(&request.pod_sandbox_id)?;
            let containers = crate::events::containers_of(&self.daemon, &pod);
            let info = match request.verbose {
                true => {
                    let (daemon, pod) = (Arc::clone(&self.daemon), Arc::clone(&pod));
                    blocking::run_as(Kind::Look, move || info::pod(&daemon, &pod)).await?
                }
                false => HashMap::new(),
            };
            Ok(PodSandboxStatusResponse {
                status: Some(convert::sandbox_status(&pod.record())),
                info,
                containers_statuses: containers
                    .iter()
                    .map(|record| convert::container_status(record))
                    .collect(),
                // A kubelet with EventedPLEG that finds a time here takes the statuses above for its own: 1.37 then forgets which
                // containers are of the newest sandbox and runs init containers for ever, older ones take the ns for seconds and
                // refuse all events after. Without a time it asks for each container and takes the time itself.
                timestamp: 0,
            })
        })
        .await
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<ListPodSandboxRequest>,
    ) -> Answer<ListPodSandboxResponse> {
        let pods = lists::select_pods(&self.daemon, request.into_inner().filter);
        let items = pods.map_err(|error| status(&error))?.iter().map(|pod| convert::sandbox(pod)).collect();
        Ok(Response::new(ListPodSandboxResponse { items }))
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Answer<CreateContainerResponse> {
        let request = request.into_inner();
        answer(tracing::info_span!("CreateContainer", pod_id = request.pod_sandbox_id), async {
            let pod = self.pod(&request.pod_sandbox_id)?;
            config::check_kernel(request.config.as_ref(), kernel())?;
            let id = container::create::run(&self.daemon, &pod, request.config).await?;
            Ok(CreateContainerResponse { container_id: id.to_string() })
        })
        .await
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Answer<StartContainerResponse> {
        let id = request.into_inner().container_id;
        answer(tracing::info_span!("StartContainer", container_id = id), async {
            container::start::start(&self.daemon, &self.container(&id)?).await?;
            Ok(StartContainerResponse {})
        })
        .await
    }

    async fn stop_container(&self, request: Request<StopContainerRequest>) -> Answer<StopContainerResponse> {
        let StopContainerRequest { container_id: id, timeout } = request.into_inner();
        answer(tracing::info_span!("StopContainer", container_id = id, timeout), async {
            required("container_id", &id)?;
            if let Some(container) = self.daemon.containers.find(&id)? {
                container::stop::stop(&self.daemon, &container, seconds(timeout)).await?;
            }
            Ok(StopContainerResponse {})
        })
        .await
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Answer<RemoveContainerResponse> {
        let id = request.into_inner().container_id;
        answer(tracing::info_span!("RemoveContainer", container_id = id), async {
            required("container_id", &id)?;
            if let Some(container) = self.daemon.containers.find(&id)? {
                container::remove::remove(&self.daemon, &container).await?;
            }
            Ok(RemoveContainerResponse {})
        })
        .await
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Answer<ListContainersResponse> {
        let found = lists::select_containers(&self.daemon, request.into_inner().filter);
        let found = found.map_err(|error| status(&error))?;
        let containers = found.iter().map(|container| convert::container(container)).collect();
        Ok(Response::new(ListContainersResponse { containers }))
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Answer<ContainerStatusResponse> {
        let request = request.into_inner();
        answer(tracing::debug_span!("ContainerStatus", container_id = request.container_id), async {
            let container = self.container(&request.container_id)?;
            let status = Some(convert::container_status(&container.record()));
            let info = match request.verbose {
                true => {
                    let daemon = Arc::clone(&self.daemon);
                    blocking::run_as(Kind::Look, move || info::container(&daemon, &container)).await?
                }
                false => HashMap::new(),
            };
            Ok(ContainerStatusResponse { status, info })
        })
        .await
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Answer<UpdateContainerResourcesResponse> {
        let request = request.into_inner();
        answer(tracing::info_span!("UpdateContainerResources", container_id = request.container_id), async {
            let container = self.container(&request.container_id)?;
            let linux = request.linux.ok_or_else(|| Error::Invalid("linux is missing".to_owned()))?;
            let limits = config::resources(Some(&linux))?;
            container::update::update(&self.daemon, &container, limits).await?;
            Ok(UpdateContainerResourcesResponse {})
        })
        .await
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Answer<ReopenContainerLogResponse> {
        let id = request.into_inner().container_id;
        answer(tracing::info_span!("ReopenContainerLog", container_id = id), async {
            let container = self.container(&id)?;
            container.require_running()?;
            container.pod.supervisor()?.reopen_log(&container.id).await.doing("reopen the log")?;
            Ok(ReopenContainerLogResponse {})
        })
        .await
    }

    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        let ExecSyncRequest { container_id: id, cmd, timeout } = request.into_inner();
        answer(tracing::info_span!("ExecSync", container_id = id), async {
            let container = self.container(&id)?;
            let limit = (timeout > 0).then(|| seconds(timeout));
            let output = container::exec::exec_sync(&self.daemon, &container, cmd, limit).await?;
            Ok(ExecSyncResponse {
                stdout: output.stdout,
                stderr: output.stderr,
                exit_code: output.status.code(),
            })
        })
        .await
    }

    async fn container_stats(
        &self,
        request: Request<ContainerStatsRequest>,
    ) -> Answer<ContainerStatsResponse> {
        let id = request.into_inner().container_id;
        answer(tracing::debug_span!("ContainerStats", container_id = id), async {
            let stats = crate::stats::of_container(&self.daemon, &self.container(&id)?).await?;
            Ok(ContainerStatsResponse { stats: Some(stats) })
        })
        .await
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Answer<ListContainerStatsResponse> {
        let filter = request.into_inner().filter;
        answer(tracing::debug_span!("ListContainerStats"), async {
            let containers = lists::select_container_stats(&self.daemon, filter)?;
            Ok(ListContainerStatsResponse {
                stats: crate::stats::of_containers(&self.daemon, containers).await?,
            })
        })
        .await
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<PodSandboxStatsRequest>,
    ) -> Answer<PodSandboxStatsResponse> {
        let id = request.into_inner().pod_sandbox_id;
        answer(tracing::debug_span!("PodSandboxStats", pod_id = id), async {
            let stats = crate::stats::of_pod(&self.daemon, &self.pod(&id)?).await?;
            Ok(PodSandboxStatsResponse { stats: Some(stats) })
        })
        .await
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Answer<ListPodSandboxStatsResponse> {
        let filter = request.into_inner().filter;
        answer(tracing::debug_span!("ListPodSandboxStats"), async {
            let pods = lists::select_pod_stats(&self.daemon, filter)?;
            Ok(ListPodSandboxStatsResponse { stats: crate::stats::of_pods(&self.daemon, pods).await? })
        })
        .await
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        let verbose = request.into_inner().verbose;
        let daemon = Arc::clone(&self.daemon);
        // The network's state is read from the kernel and from files.
        let looked = blocking::run_as(Kind::Look, move || {
            let info = if verbose { info::daemon(&daemon) } else { HashMap::new() };
            Ok((conditions(&daemon), info))
        });
        let (conditions, info) = looked.await.map_err(|error| status(&error))?;
        Ok(Response::new(StatusResponse {
            status: Some(RuntimeStatus { conditions }),
            info,
            runtime_handlers: self.handlers(),
            features: Some(RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: self.daemon.user_namespaces(""),
                mount_options: true,
            }),
        }))
    }

    async fn runtime_config(&self, _: Request<RuntimeConfigRequest>) -> Answer<RuntimeConfigResponse> {
        let linux = LinuxRuntimeConfiguration { cgroup_driver: self.daemon.driver.cri().into() };
        Ok(Response::new(RuntimeConfigResponse { linux: Some(linux) }))
    }

    async fn update_runtime_config(
        &self,
        request: Request<UpdateRuntimeConfigRequest>,
    ) -> Answer<UpdateRuntimeConfigResponse> {
        let config = request.into_inner().runtime_config.and_then(|config| config.network_config);
        let pod_cidr = config.unwrap_or_default().pod_cidr;
        let network = Arc::clone(&self.daemon.network);
        answer(tracing::info_span!("UpdateRuntimeConfig", pod_cidr), async {
            let outcome =
                blocking::run(move || network.apply_pod_cidr(&pod_cidr).doing("apply the pod CIDR")).await?;
            tracing::info!(?outcome, "the node's pod CIDR");
            Ok(UpdateRuntimeConfigResponse {})
        })
        .await
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Answer<UpdatePodSandboxResourcesResponse> {
        let request = request.into_inner();
        answer(tracing::info_span!("UpdatePodSandboxResources", pod_id = request.pod_sandbox_id), async {
            let pod = self.pod(&request.pod_sandbox_id)?;
            let (overhead, resources) = (request.overhead.as_ref(), request.resources.as_ref());
            crate::nri::update_pod(&self.daemon, &pod, overhead, resources).await?;
            let updated = Arc::clone(&pod);
            blocking::run(move || {
                updated.update(|record| {
                    record.overhead = request.overhead;
                    record.resources = request.resources;
                })
            })
            .await?;
            crate::nri::updated_pod(&self.daemon, &pod).await;
            Ok(UpdatePodSandboxResourcesResponse {})
        })
        .await
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Answer<ExecResponse> {
        let request = request.into_inner();
        answer(tracing::info_span!("Exec", container_id = request.container_id), async {
            required("container_id", &request.container_id)?;
            crate::streaming::exec(&self.daemon, request)
        })
        .await
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Answer<AttachResponse> {
        let request = request.into_inner();
        answer(tracing::info_span!("Attach", container_id = request.container_id), async {
            required("container_id", &request.container_id)?;
            crate::streaming::attach(&self.daemon, request)
        })
        .await
    }

    async fn port_forward(&self, request: Request<PortForwardRequest>) -> Answer<PortForwardResponse> {
        let request = request.into_inner();
        answer(tracing::info_span!("PortForward", pod_id = request.pod_sandbox_id), async {
            required("pod_sandbox_id", &request.pod_sandbox_id)?;
            crate::streaming::port_forward(&self.daemon, request)
        })
        .await
    }

    async fn checkpoint_container(
        &self,
        request: Request<CheckpointContainerRequest>,
    ) -> Answer<CheckpointContainerResponse> {
        let request = request.into_inner();
        answer(tracing::info_span!("CheckpointContainer", container_id = request.container_id), async {
            crate::checkpoint::container(&self.daemon, request).await?;
            Ok(CheckpointContainerResponse {})
        })
        .await
    }

    async fn checkpoint_pod(&self, _: Request<CheckpointPodRequest>) -> Answer<CheckpointPodResponse> {
        unimplemented("CheckpointPod")
    }

    async fn restore_pod(&self, _: Request<RestorePodRequest>) -> Answer<RestorePodResponse> {
        unimplemented("RestorePod")
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Answer<ListMetricDescriptorsResponse> {
        answer(tracing::debug_span!("ListMetricDescriptors"), async {
            Ok(ListMetricDescriptorsResponse { descriptors: crate::metrics::descriptors() })
        })
        .await
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Answer<ListPodSandboxMetricsResponse> {
        answer(tracing::debug_span!("ListPodSandboxMetrics"), async {
            let pods = self.daemon.pods.visible();
            Ok(ListPodSandboxMetricsResponse {
                pod_metrics: crate::metrics::of_pods(&self.daemon, pods).await?,
            })
        })
        .await
    }

    type StreamPodSandboxesStream = Batches<StreamPodSandboxesResponse>;
    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        stream(lists::pods(&self.daemon, request.into_inner()))
    }

    type StreamContainersStream = Batches<StreamContainersResponse>;
    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        stream(lists::containers(&self.daemon, request.into_inner()))
    }

    type StreamContainerStatsStream = Batches<StreamContainerStatsResponse>;
    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        stream(lists::container_stats(&self.daemon, request.into_inner()))
    }

    type StreamPodSandboxStatsStream = Batches<StreamPodSandboxStatsResponse>;
    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        stream(lists::pod_stats(&self.daemon, request.into_inner()))
    }

    type StreamPodSandboxMetricsStream = Batches<StreamPodSandboxMetricsResponse>;
    async fn stream_pod_sandbox_metrics(
        &self,
        request: Request<StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        stream(lists::pod_metrics(&self.daemon, request.into_inner()))
    }

    type GetContainerEventsStream = Batches<ContainerEventResponse>;
    async fn get_container_events(
        &self,
        _: Request<GetEventsRequest>,
    ) -> Answer<Self::GetContainerEventsStream> {
        stream(crate::events::subscribe(&self.daemon))
    }
}
