//! Verbose information: a map of texts, which tools read as JSON objects (CONTRACT of the CRI tools: `crictl inspect*`).

use std::collections::HashMap;

use crisp_image::Image;
use serde_json::{Value, json};

use super::image_service::encoding;
use crate::config::Handler;
use crate::container::state::ContainerState;
use crate::container::{self, Container};
use crate::daemon::Daemon;
use crate::error::Result;
use crate::pod::{self, Pod};

type Info = HashMap<String, String>;

fn one(key: &str, value: &Value) -> Info {
    HashMap::from([(key.to_owned(), value.to_string())])
}

/// Of an image.
pub(crate) fn image(image: &Image) -> Result<Info> {
    let spec = serde_json::to_value(&image.config).map_err(encoding)?;
    let chain = image.chain.last().map(ToString::to_string);
    let labels = spec.pointer("/config/Labels").cloned().unwrap_or_else(|| json!({}));
    Ok(one("info", &json!({ "chainID": chain, "imageSpec": spec, "labels": labels })))
}

/// The kind of a pod's handler and what it is called with. A handler that was configured when the pod was made may be gone since.
fn handler(daemon: &Daemon, pod: &Pod) -> (&'static str, Value) {
    match daemon.handler(&pod.record().handler) {
        Ok(Handler::Builtin) => ("builtin", json!({})),
        Ok(Handler::Oci(oci)) => {
            ("oci", json!({ "binaryName": oci.path, "root": oci.root, "systemdCgroup": oci.systemd_cgroup }))
        }
        Err(_) => ("unknown", json!({})),
    }
}

/// Of a container. Blocks: its specification is read from its bundle.
pub(crate) fn container(daemon: &Daemon, container: &Container) -> Result<Info> {
    let record = container.record();
    let (runtime_type, runtime_options) = handler(daemon, &container.pod);
    let pid = match record.state {
        ContainerState::Running { pid, .. } => pid,
        ContainerState::Creating
        | ContainerState::Created
        | ContainerState::Starting
        | ContainerState::Exited { .. } => 0,
    };
    let spec: Value = std::fs::read(container.dir.config())
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        .unwrap_or(Value::Null);
    let security = record.config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
    let value = json!({
        "sandboxID": record.pod_id,
        "pid": pid,
        "removing": daemon.step_jobs.is_running(&container::remove::key(container)),
        "snapshotKey": record.id,
        "snapshotter": "overlay",
        "runtimeType": runtime_type,
        "runtimeOptions": runtime_options,
        "config": serde_json::to_value(&*record.config).map_err(encoding)?,
        "runtimeSpec": spec,
        "privileged": security.is_some_and(|security| security.privileged),
        "checkpointedAt": record.checkpoint.checkpointed_at.map(|at| at.0),
        "restored": record.checkpoint.origin == crate::checkpoint::Origin::Checkpoint,
        "exit": serde_json::to_value(&record.state).map_err(encoding)?,
    });
    Ok(one("info", &value))
}

/// Of a pod.
pub(crate) fn pod(daemon: &Daemon, pod: &Pod) -> Result<Info> {
    let record = pod.record();
    let namespaces: Vec<Value> = [
        ("user", pod.dir.user()),
        ("network", pod.dir.net()),
        ("ipc", pod.dir.ipc()),
        ("uts", pod.dir.uts()),
        ("pid", pod.dir.pid()),
    ]
    .into_iter()
    .filter(|(_, path)| path.exists())
    .map(|(kind, path)| json!({ "type": kind, "path": path }))
    .collect();
    let attachment = daemon.network.attachment(&pod.id);
    let (runtime_type, runtime_options) = handler(daemon, pod);
    let value = json!({
        "pid": record.init.map_or(0, |init| init.pid),
        "processStatus": if record.init.is_some() { "running" } else { "none" },
        "netNamespaceClosed": pod.netlink().is_none(),
        // Pods are made of no image: their namespaces are pinned, and a PID 1 is the shim's.
        "image": "",
        "snapshotKey": "",
        "snapshotter": "",
        "runtimeHandler": record.handler,
        "runtimeType": runtime_type,
        "runtimeOptions": runtime_options,
        "sandboxMetadata": {
            "id": record.id,
            "name": pod::metadata(&record.config).name,
            "namespace": pod::metadata(&record.config).namespace,
            "uid": pod::metadata(&record.config).uid,
            "attempt": pod::metadata(&record.config).attempt,
            "createdAt": record.created_at.0,
            "ips": record.ips,
            "state": record.state.name(),
        },
        "config": serde_json::to_value(&*record.config).map_err(encoding)?,
        "runtimeSpec": { "linux": { "namespaces": namespaces, "cgroupsPath": record.cgroup.path() } },
        "networkCheck": pod.network_check(),
        "cniResult": attachment.map(|attachment| attachment.result),
        "overhead": serde_json::to_value(&record.overhead).map_err(encoding)?,
        "resources": serde_json::to_value(&record.resources).map_err(encoding)?,
    });
    Ok(one("info", &value))
}

/// Of the daemon.
pub(crate) fn daemon(daemon: &Daemon) -> Info {
    let config = json!({
        "rootDir": daemon.dirs.root(),
        "stateDir": daemon.dirs.state(),
        "listen": daemon.config.listen,
        "cgroupParent": daemon.config.cgroup_parent,
        "cgroupDriver": daemon.driver.cri().as_str_name(),
        "defaultHandler": daemon.config.default_handler,
        "handlers": daemon.config.handlers.keys().collect::<Vec<_>>(),
    });
    let load_status =
        daemon.network.status().map_or_else(|not_ready| not_ready.to_string(), |()| "OK".to_owned());
    HashMap::from([
        ("config".to_owned(), config.to_string()),
        ("nri".to_owned(), json!({ "plugins": daemon.nri.names() }).to_string()),
        ("cdi".to_owned(), json!({ "problems": daemon.cdi.problems() }).to_string()),
        ("cniconfig".to_owned(), daemon.network.describe().to_string()),
        ("lastCNILoadStatus".to_owned(), load_status),
        ("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
    ])
}
