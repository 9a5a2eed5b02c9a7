//! The other handler kind: OCI runtime binaries of Debian.
use anyhow::{Context as _, Result, ensure};
use crisp_proto::cri;

use super::tests;
use crate::eventually::{SOON, eventually};
use crate::node::{Node, same};
use crate::registry::Registry;

tests![
    runc_runs_pods,
    crun_runs_pods,
    pods_of_different_handlers_side_by_side,
    an_unknown_handler_is_refused
];

fn walk(node: &mut Node, handler: &str) -> Result<()> {
    warm_up(node, handler)?;
    let pod = node.run_with(node.pod(handler), handler)?;
    same("handler", &node.cri.pod_status(&pod.id)?.runtime_handler.as_str(), &handler)?;
    let script = "trap 'echo ended; exit 6' TERM; echo started; while :; do sleep 0.05; done";
    let mut config = node.container("c", &["sh", "-c", script]);
    let linux = config.linux.get_or_insert_default();
    linux.resources.get_or_insert_default().memory_limit_in_bytes = 64 << 20;
    linux.security_context.get_or_insert_default().seccomp = Some(cri::SecurityProfile::default());
    let id = node.launch(&pod, &config)?;
    let address = node.exec(&id, &["ip", "-o", "-4", "addr", "show", "eth0"])?;
    ensure!(address.contains("10.77.1."), "network of the pod: {address}");
    same(
        "exec",
        &node.cri.exec(&id, &["sh", "-c", "echo out; echo err >&2; exit 3"])?,
        &(3, "out\n".into(), "err\n".into()),
    )?;
    same(
        "seccomp of exec",
        &node.exec(&id, &["grep", "Seccomp:", "/proc/self/status"])?.trim(),
        &"Seccomp:\t2",
    )?;
    let request = cri::ContainerStatsRequest { container_id: id.clone() };
    let stats =
        node.cri.runtime(|mut c| async move { c.container_stats(request).await })?.stats.context("stats")?;
    let memory = stats.memory.and_then(|memory| memory.working_set_bytes).context("memory")?;
    ensure!(memory.value > 0, "memory {memory:?}");
    eventually(SOON, || {
        ensure!(!node.log(&pod, &config)?.is_empty(), "the trap is set");
        Ok(())
    })?;
    node.cri.stop(&id, 60)?;
    same("exit code", &node.cri.container_status(&id)?.exit_code, &6)?;
    let log: Vec<String> = node.log(&pod, &config)?.into_iter().map(|line| line.text).collect();
    same("log", &log, &vec!["started".to_owned(), "ended".to_owned()])?;
    let failing = node.launch(&pod, &node.container("failing", &["sh", "-c", "exit 4"]))?;
    same("exit code", &node.wait_exit(&failing)?.exit_code, &4)
}

/// The folder of the program's own state is made once.
fn warm_up(node: &mut Node, handler: &str) -> Result<()> {
    let pod = node.run_with(node.pod("warm-up"), handler)?;
    let id = node.launch(&pod, &node.container("c", &["sleep", "1000"]))?;
    node.exec(&id, &["true"])?;
    node.remove_all()?;
    node.rebase()
}

fn runc_runs_pods(node: &mut Node, _: &mut Registry) -> Result<()> {
    walk(node, "runc")
}

fn crun_runs_pods(node: &mut Node, _: &mut Registry) -> Result<()> {
    walk(node, "crun")
}

fn pods_of_different_handlers_side_by_side(node: &mut Node, _: &mut Registry) -> Result<()> {
    for handler in ["runc", "crun"] {
        warm_up(node, handler)?;
    }
    for handler in ["crisp", "runc", "crun"] {
        let pod = node.run_with(node.pod(handler), handler)?;
        let id = node.launch(&pod, &node.container("c", &["sleep", "1000"]))?;
        node.exec(&id, &["true"])?;
    }
    same("running", &node.crictl(&["ps", "-q"])?.lines().count(), &3)
}

fn an_unknown_handler_is_refused(node: &mut Node, _: &mut Registry) -> Result<()> {
    let error = node.cri.run_pod(&node.pod("x"), "no-such-handler").err().context("an unknown handler")?;
    same("code", &error.code(), &tonic::Code::InvalidArgument)?;
    ensure!(error.message().contains("no-such-handler"), "{error}");
    same("pods", &node.cri.pods()?.len(), &0)?;
    node.check_leaks()
}
