//! The daemon goes away and comes back.
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use crisp_proto::cri;
use rustix::process::Signal;

use super::tests;
use crate::eventually::{SOON, eventually};
use crate::node::{BUSYBOX, Node, Options, same};
use crate::objects::Pod;
use crate::registry::Registry;

tests![
    a_killed_daemon_loses_no_line_and_no_exit_code,
    a_terminated_daemon_leaves_pods_running,
    pods_can_be_managed_after_a_restart,
    a_pod_that_ended_meanwhile_is_known,
    daemons_run_side_by_side,
];

const COUNT: &str = "i=0; while :; do echo $i; i=$((i+1)); usleep 1000; done";
const PODS: usize = 10;

/// Ten pods that count; every second one has a container that ends by itself after a while.
fn a_killed_daemon_loses_no_line_and_no_exit_code(node: &mut Node, _: &mut Registry) -> Result<()> {
    let mut counters = Vec::new();
    let mut ending = Vec::new();
    for number in 0..PODS {
        let pod = node.run(node.pod(&format!("p{number}")))?;
        let counter = node.container("counter", &["sh", "-c", COUNT]);
        let id = node.launch(&pod, &counter)?;
        let code = i32::try_from(20 + number)?;
        let gate = format!("/dev/shm/go; echo last words; exit {code}");
        let ends = node.container(
            "ends",
            &["sh", "-c", &format!("echo on; until [ -e /dev/shm/go ]; do usleep 20000; done; cat {gate}")],
        );
        let ended = node.launch(&pod, &ends)?;
        counters.push((pod.clone(), counter, id));
        ending.push((pod, ends, ended, code));
    }
    let pids: Vec<String> = counters
        .iter()
        .map(|(_, _, id)| Ok(node.crictl_json(&["inspect", id])?["info"]["pid"].to_string()))
        .collect::<Result<_>>()?;
    node.signal_daemon(Signal::KILL)?;
    for pid in pids {
        std::fs::write(format!("/proc/{pid}/root/dev/shm/go"), "")?;
    }
    // Everything happens without the daemon: the counters go on and the others end.
    for (pod, ends, _, _) in &ending {
        eventually(SOON, || {
            let log = node.log(pod, ends)?;
            ensure!(log.iter().any(|line| line.text == "last words"), "{log:?}");
            Ok(())
        })?;
    }
    let lines: Vec<usize> =
        counters.iter().map(|(pod, config, _)| Ok(node.log(pod, config)?.len())).collect::<Result<_>>()?;
    node.start_daemon()?;
    for (_, _, id, code) in &ending {
        // The last words come a moment before the end.
        let status = eventually(SOON, || {
            let status = node.cri.container_status(id)?;
            same("state", &status.state(), &cri::ContainerState::ContainerExited)?;
            Ok(status)
        })?;
        same("exit code", &status.exit_code, code)?;
        ensure!(status.finished_at > status.started_at, "{status:?}");
    }
    for ((pod, config, id), before) in counters.iter().zip(lines) {
        same("counter", &node.cri.container_status(id)?.state(), &cri::ContainerState::ContainerRunning)?;
        same("pod", &node.cri.pod_status(&pod.id)?.state(), &cri::PodSandboxState::SandboxReady)?;
        eventually(SOON, || {
            let now = node.log(pod, config)?.len();
            ensure!(now > before + 20, "the counter goes on: {before} then {now} lines");
            Ok(())
        })?;
        node.cri.stop(id, 0)?;
        complete(node, pod, config)?;
    }
    Ok(())
}

/// The log of a counter holds every number once, in order.
fn complete(node: &Node, pod: &Pod, config: &cri::ContainerConfig) -> Result<()> {
    for (at, line) in node.log(pod, config)?.iter().enumerate() {
        same("line", &line.text, &at.to_string())?;
    }
    Ok(())
}

fn a_terminated_daemon_leaves_pods_running(node: &mut Node, _: &mut Registry) -> Result<()> {
    let pod = node.run(node.pod("stays"))?;
    let config = node.container("counter", &["sh", "-c", COUNT]);
    let id = node.launch(&pod, &config)?;
    let began = std::time::Instant::now();
    let status = node.signal_daemon(Signal::TERM)?;
    ensure!(
        status.success() && began.elapsed() < Duration::from_secs(5),
        "{status} after {:?}",
        began.elapsed()
    );
    ensure!(!node.socket().exists() || node.cri.pods().is_err(), "nobody answers");
    let before = node.log(&pod, &config)?.len();
    eventually(SOON, || {
        ensure!(node.log(&pod, &config)?.len() > before + 20, "the counter goes on");
        Ok(())
    })?;
    node.start_daemon()?;
    same("state", &node.cri.container_status(&id)?.state(), &cri::ContainerState::ContainerRunning)?;
    node.cri.stop(&id, 0)?;
    complete(node, &pod, &config)
}

fn pods_can_be_managed_after_a_restart(node: &mut Node, _: &mut Registry) -> Result<()> {
    let (pod, id) = node.one("managed", &["sleep", "1000"])?;
    let created =
        node.cri.create(&pod.id, &node.container("created", &["sh", "-c", "exit 8"]), &pod.config)?;
    let status = node.cri.container_status(&id)?;
    let ip = node.cri.pod_status(&pod.id)?.network.context("network")?.ip;
    node.signal_daemon(Signal::KILL)?;
    node.start_daemon()?;
    same("status", &node.cri.container_status(&id)?, &status)?;
    same("address", &node.cri.pod_status(&pod.id)?.network.context("network")?.ip, &ip)?;
    node.exec(&id, &["true"])?;
    node.cri.start(&created)?;
    same("exit code", &node.wait_exit(&created)?.exit_code, &8)?;
    let late = node.launch(&pod, &node.container("late", &["sleep", "1000"]))?;
    node.exec(&late, &["ping", "-c", "1", &ip])?;
    let taken = node.cri.run_pod(&pod.config, "");
    same(
        "the name is still taken",
        &taken.err().map(|s| s.code()).or(Some(tonic::Code::AlreadyExists)),
        &Some(tonic::Code::AlreadyExists),
    )?;
    let other = node.run(node.pod("other"))?;
    ensure!(node.cri.pod_status(&other.id)?.network.context("network")?.ip != ip, "an address is given once");
    Ok(())
}

fn a_pod_that_ended_meanwhile_is_known(node: &mut Node, _: &mut Registry) -> Result<()> {
    let (_, id) = node.one("gone", &["sleep", "1000"])?;
    let pid = node.crictl_json(&["inspect", &id])?["info"]["pid"].to_string();
    node.signal_daemon(Signal::KILL)?;
    crate::command::run(std::process::Command::new("kill").args(["-KILL", &pid]))?;
    eventually(SOON, || {
        // A zombie whose status its shim has not taken yet would be no end that was missed.
        ensure!(!std::path::Path::new("/proc").join(&pid).exists(), "process {pid} is there");
        Ok(())
    })?;
    node.start_daemon()?;
    same("exit code", &node.wait_exit(&id)?.exit_code, &137)
}

fn daemons_run_side_by_side(node: &mut Node, registry: &mut Registry) -> Result<()> {
    let before = node.daemon_pid()?;
    let mut other = Node::start("side-by-side", 2, registry, &Options::default())?;
    other.allow_process(before);
    let (first, _) = node.one("same-name", &["sleep", "1000"])?;
    let (second, id) = other.one("same-name", &["sleep", "1000"])?;
    ensure!(first.id != second.id, "ids differ");
    same("pods of the first", &node.cri.pods()?.len(), &1)?;
    same("pods of the second", &other.cri.pods()?.len(), &1)?;
    let ip = other.cri.pod_status(&second.id)?.network.context("network")?.ip;
    ensure!(ip.starts_with("10.77.2."), "{ip}");
    other.signal_daemon(Signal::KILL)?;
    node.remove_all()?;
    other.start_daemon()?;
    other.exec(&id, &["true"])?;
    other.remove_all()?;
    same(
        "images of the second",
        &other.cri.images()?.iter().any(|image| image.repo_tags.contains(&BUSYBOX.to_owned())),
        &true,
    )?;
    ensure!(other.signal_daemon(Signal::TERM)?.success(), "the second daemon ends");
    Ok(())
}
