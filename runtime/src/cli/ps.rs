//! `crisp ps`.

use std::collections::HashMap;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crisp_proto::cri;
use futures_util::{StreamExt as _, stream};

use super::client::Client;
use super::error::Result;
use super::{PsArgs, PsFormat, output, pods};

/// Status calls under way at once.
const STATUS_PARALLEL: usize = 16;

/// One line: a container, or a pod without any.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    pod_id: String,
    pod: String,
    namespace: String,
    ip: String,
    container_id: String,
    container: String,
    state: String,
    restarts: u32,
    created_at: i64,
    image: String,
}

pub(super) async fn ps(mut client: Client, args: &PsArgs) -> Result<ExitCode> {
    let pods = client.pods(cri::PodSandboxFilter::default()).await?;
    let containers = client.containers(cri::ContainerFilter::default()).await?;
    let (pods, containers) = if args.all { (pods, containers) } else { living(pods, containers) };
    let ips = addresses(&client, &pods).await;
    let exits = exit_codes(&client, &containers).await;
    let rows = rows(&pods, &containers, &ips, &exits);
    let text = match args.output {
        PsFormat::Table => table(&rows, SystemTime::now()),
        PsFormat::Json => json(&rows),
    };
    output::bytes(text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// What runs: pods that are ready, containers that have not ended.
fn living(
    pods: Vec<cri::PodSandbox>,
    containers: Vec<cri::Container>,
) -> (Vec<cri::PodSandbox>, Vec<cri::Container>) {
    let pods = pods.into_iter().filter(|pod| pod.state() == cri::PodSandboxState::SandboxReady).collect();
    let ended = |container: &cri::Container| container.state() == cri::ContainerState::ContainerExited;
    (pods, containers.into_iter().filter(|container| !ended(container)).collect())
}

/// The first address of each pod. A pod that vanished meanwhile has none.
async fn addresses(client: &Client, pods: &[cri::PodSandbox]) -> HashMap<String, String> {
    let ready = pods.iter().filter(|pod| pod.state() == cri::PodSandboxState::SandboxReady);
    let calls = ready.map(|pod| {
        let (mut client, id) = (client.clone(), pod.id.clone());
        async move {
            let status = client.pod_status(&id).await.ok();
            let ip = status.and_then(|status| status.network).map(|network| network.ip).unwrap_or_default();
            (id, ip)
        }
    });
    stream::iter(calls).buffer_unordered(STATUS_PARALLEL).collect().await
}

/// The exit codes of those that ended.
async fn exit_codes(client: &Client, containers: &[cri::Container]) -> HashMap<String, (i32, String)> {
    let ended =
        containers.iter().filter(|container| container.state() == cri::ContainerState::ContainerExited);
    let calls = ended.map(|container| {
        let (mut client, id) = (client.clone(), container.id.clone());
        async move {
            let status = client.container_status(&id).await.ok()?;
            Some((id, (status.exit_code, status.reason)))
        }
    });
    stream::iter(calls).buffer_unordered(STATUS_PARALLEL).filter_map(async |found| found).collect().await
}

fn rows(
    pods: &[cri::PodSandbox],
    containers: &[cri::Container],
    ips: &HashMap<String, String>,
    exits: &HashMap<String, (i32, String)>,
) -> Vec<Row> {
    let mut rows = Vec::new();
    for pod in pods {
        let metadata = pod.metadata.clone().unwrap_or_default();
        let ready = pod.state() == cri::PodSandboxState::SandboxReady;
        let base = Row {
            pod_id: pod.id.clone(),
            pod: metadata.name,
            namespace: metadata.namespace,
            ip: ips.get(&pod.id).cloned().unwrap_or_default(),
            container_id: String::new(),
            container: String::new(),
            state: if ready { "pod only" } else { "stopped" }.to_owned(),
            restarts: 0,
            created_at: pod.created_at,
            image: String::new(),
        };
        let mut own: Vec<&cri::Container> =
            containers.iter().filter(|c| c.pod_sandbox_id == pod.id).collect();
        own.sort_by_key(|container| container.created_at);
        if own.is_empty() {
            rows.push(base);
            continue;
        }
        rows.extend(own.into_iter().map(|container| Row {
            container_id: container.id.clone(),
            container: pods::name(container).to_owned(),
            state: state(container, exits.get(&container.id)),
            restarts: container.metadata.as_ref().map_or(0, |metadata| metadata.attempt),
            created_at: container.created_at,
            image: image(container),
            ..base.clone()
        }));
    }
    rows
}

fn image(container: &cri::Container) -> String {
    let Some(image) = &container.image else { return container.image_ref.clone() };
    if image.user_specified_image.is_empty() {
        image.image.clone()
    } else {
        image.user_specified_image.clone()
    }
}

fn state(container: &cri::Container, exit: Option<&(i32, String)>) -> String {
    match (container.state(), exit) {
        (cri::ContainerState::ContainerCreated, _) => "created".to_owned(),
        (cri::ContainerState::ContainerRunning, _) => "running".to_owned(),
        (cri::ContainerState::ContainerUnknown, _) => "unknown".to_owned(),
        (cri::ContainerState::ContainerExited, None) => "exited".to_owned(),
        (cri::ContainerState::ContainerExited, Some((code, reason))) => match reason.as_str() {
            "" | "Completed" | "Error" => format!("exited ({code})"),
            reason => format!("exited ({code}, {reason})"),
        },
    }
}

fn table(rows: &[Row], now: SystemTime) -> String {
    let dash = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
    let short = |id: &str| dash(&id[..id.len().min(12)]);
    let cells = |row: &Row| {
        vec![
            row.namespace.clone(),
            row.pod.clone(),
            dash(&row.container),
            row.state.clone(),
            row.restarts.to_string(),
            age(row.created_at, now),
            dash(&row.ip),
            dash(&row.image),
            if row.container_id.is_empty() { short(&row.pod_id) } else { short(&row.container_id) },
        ]
    };
    let header = ["NAMESPACE", "POD", "CONTAINER", "STATE", "RESTARTS", "AGE", "IP", "IMAGE", "ID"];
    output::table(&header, &rows.iter().map(cells).collect::<Vec<_>>())
}

fn age(created_at_ns: i64, now: SystemTime) -> String {
    let created = UNIX_EPOCH + Duration::from_nanos(created_at_ns.try_into().unwrap_or(0));
    output::age(now.duration_since(created).unwrap_or_default())
}

fn json(rows: &[Row]) -> String {
    let list: Vec<serde_json::Value> = rows
        .iter()
        .map(|row| {
            serde_json::json!({
                "podId": row.pod_id, "pod": row.pod, "namespace": row.namespace, "ip": row.ip,
                "containerId": row.container_id, "container": row.container, "state": row.state,
                "restarts": row.restarts, "createdAtNs": row.created_at, "image": row.image,
            })
        })
        .collect();
    format!("{:#}\n", serde_json::Value::Array(list))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_containers_and_exits_become_lines() {
        let pod = |id: &str, name: &str, ready: bool| cri::PodSandbox {
            id: id.repeat(64),
            metadata: Some(cri::PodSandboxMetadata {
                name: name.into(),
                namespace: "default".into(),
                ..Default::default()
            }),
            state: i32::from(!ready),
            created_at: 1_000_000_000,
            ..Default::default()
        };
        let container = |id: &str, pod: &str, state: cri::ContainerState, at| cri::Container {
            id: id.repeat(64),
            pod_sandbox_id: pod.repeat(64),
            metadata: Some(cri::ContainerMetadata { name: format!("c-{id}"), attempt: 2 }),
            image: Some(cri::ImageSpec { image: "busybox".into(), ..Default::default() }),
            state: state.into(),
            created_at: at,
            ..Default::default()
        };
        let pods = [pod("a", "web", true), pod("b", "old", false)];
        let containers = [
            container("2", "a", cri::ContainerState::ContainerExited, 3_000_000_000),
            container("1", "a", cri::ContainerState::ContainerRunning, 2_000_000_000),
        ];
        let ips = HashMap::from([("a".repeat(64), "10.88.0.2".to_owned())]);
        let exits = HashMap::from([("2".repeat(64), (137, "OOMKilled".to_owned()))]);
        let rows = rows(&pods, &containers, &ips, &exits);
        let text = table(&rows, UNIX_EPOCH + Duration::from_secs(63));
        assert_eq!(
            text.lines().skip(1).collect::<Vec<_>>(),
            [
                "default    web  c-1        running                  2         61s  10.88.0.2  busybox  111111111111",
                "default    web  c-2        exited (137, OOMKilled)  2         60s  10.88.0.2  busybox  222222222222",
                "default    old  -          stopped                  0         62s  -          -        bbbbbbbbbbbb",
            ]
        );
        let parsed: serde_json::Value = serde_json::from_str(&json(&rows)).unwrap();
        assert_eq!(parsed[1]["state"], "exited (137, OOMKilled)");
    }
}
