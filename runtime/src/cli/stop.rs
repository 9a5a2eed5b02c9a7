//! `crisp stop`, and how any pod of `crisp run` ends.

use std::path::Path;
use std::process::ExitCode;

use crisp_proto::cri;
use futures_util::future;

use super::client::Client;
use super::error::{CliError, Result};
use super::ui::Ui;
use super::{StopArgs, labels, leftovers, output, pods, volumes};

/// Seconds of grace that a manifest may ask for; a day.
const GRACE_SECONDS_MAX: u32 = 86_400;
const GRACE_SECONDS_DEFAULT: u32 = 30;

pub(super) async fn stop(mut client: Client, args: &StopArgs) -> Result<ExitCode> {
    let ui = Ui { quiet: false };
    let all = client.pods(cri::PodSandboxFilter::default()).await?;
    let chosen: Vec<&cri::PodSandbox> = if args.all {
        all.iter().filter(|pod| is_ours(pod)).collect()
    } else {
        args.pods.iter().map(|name| pods::choose(&all, name)).collect::<Result<_>>()?
    };
    if let Some(foreign) = chosen.iter().find(|pod| !is_ours(pod)) {
        let name = pods::full_name(foreign);
        return Err(CliError::Invalid(format!(
            "{name} was not made by `crisp run`; its own client has to stop it (or `crictl stopp {0}; crictl rmp {0}`)",
            &foreign.id[..foreign.id.len().min(12)]
        )));
    }
    let root = client.describe().await?.root;
    let ended = chosen.iter().map(|pod| {
        let client = client.clone();
        let grace = args.grace.unwrap_or_else(|| grace_of(pod));
        let root = &root;
        async move { (pods::full_name(pod), end(client, pod, Path::new(root), grace).await) }
    });
    let mut code = ExitCode::SUCCESS;
    for (name, outcome) in future::join_all(ended).await {
        match outcome {
            Ok(()) => ui.step("stop", &name)?,
            Err(error) => {
                output::err_line(&format!("crisp: stop {name}: {error}"))?;
                code = ExitCode::FAILURE;
            }
        }
    }
    if args.all {
        leftovers::remove(&mut client, Path::new(&root)).await?;
    }
    Ok(code)
}

/// Whether `crisp run` made the pod.
pub(super) fn is_ours(pod: &cri::PodSandbox) -> bool {
    pod.labels.get(labels::MANAGED_BY).is_some_and(|by| by == labels::MANAGED_BY_RUN)
}

fn grace_of(pod: &cri::PodSandbox) -> u32 {
    let said = pod.annotations.get(labels::GRACE_SECONDS).and_then(|text| text.parse().ok());
    said.unwrap_or(GRACE_SECONDS_DEFAULT).min(GRACE_SECONDS_MAX)
}

/// Stops the containers with their grace, the last made first, removes the pod and its directory.
///
/// # Errors
/// Of the daemon and of the removal. It can be repeated.
pub(super) async fn end(
    mut client: Client,
    pod: &cri::PodSandbox,
    root: &Path,
    grace_seconds: u32,
) -> Result<()> {
    let uid = pod.metadata.as_ref().map(|metadata| metadata.uid.as_str()).unwrap_or_default();
    let data = volumes::data_dir(root, uid)?;
    let containers = pods::containers(&mut client, &pod.id).await?;
    stop_containers(&client, &containers, grace_seconds).await?;
    let id = || pod.id.clone();
    let stopped = client.runtime.stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: id() }).await;
    stopped.map_err(CliError::rpc("stop the pod"))?;
    let removed =
        client.runtime.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id: id() }).await;
    removed.map_err(CliError::rpc("remove the pod"))?;
    volumes::remove(&data)
}

/// Stops the containers, and returns when they have ended. All at once: what a container needs of another while it ends is not known.
pub(super) async fn stop_containers(
    client: &Client,
    containers: &[cri::Container],
    grace_seconds: u32,
) -> Result<()> {
    let stops = containers.iter().map(|container| {
        let mut client = client.clone();
        let request =
            cri::StopContainerRequest { container_id: container.id.clone(), timeout: grace_seconds.into() };
        async move { client.runtime.stop_container(request).await }
    });
    let stopped = future::try_join_all(stops).await;
    stopped.map(drop).map_err(CliError::rpc("stop the containers"))
}
