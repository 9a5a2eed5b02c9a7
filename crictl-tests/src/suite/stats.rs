//! What containers and pods use.
use anyhow::{Context as _, Result, ensure};
use crisp_proto::cri;

use super::tests;
use crate::eventually::{SOON, eventually};
use crate::node::{Node, same};
use crate::registry::Registry;

tests![
    counts_what_a_container_uses,
    counts_what_a_pod_uses,
    filters_and_unknown_ids,
    image_file_system_grows
];

fn container_stats(node: &Node, id: &str) -> Result<cri::ContainerStats> {
    let request = cri::ContainerStatsRequest { container_id: id.to_owned() };
    node.cri.runtime(|mut c| async move { c.container_stats(request).await })?.stats.context("stats")
}

fn value(number: Option<&cri::UInt64Value>) -> u64 {
    number.map_or(0, |number| number.value)
}

fn counts_what_a_container_uses(node: &mut Node, _: &mut Registry) -> Result<()> {
    const BYTES: u64 = 4 << 20;
    let (_, id) = node.one("use", &["sleep", "1000"])?;
    let before = container_stats(node, &id)?;
    let cpu = |stats: &cri::ContainerStats| {
        value(stats.cpu.as_ref().and_then(|cpu| cpu.usage_core_nano_seconds.as_ref()))
    };
    ensure!(before.cpu.as_ref().is_some_and(|cpu| cpu.timestamp > 0), "{before:?}");
    ensure!(before.memory.as_ref().is_some_and(|memory| memory.timestamp > 0), "{before:?}");
    // The shell counts until it has used what is asked for below, and more: its own ticks, of 10 ms, tell.
    let count = "ticks=0; until [ $ticks -ge 10 ]; do \
        i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; \
        read -r stat </proc/$$/stat; set -- ${stat##*)}; ticks=$((${12}+${13})); done";
    node.exec(&id, &["sh", "-c", &format!("head -c {BYTES} /dev/urandom >/data; {count}")])?;
    eventually(SOON, || {
        let after = container_stats(node, &id)?;
        ensure!(cpu(&after) > cpu(&before) + 50_000_000, "cpu {} then {}", cpu(&before), cpu(&after));
        let memory = after.memory.as_ref().context("memory")?;
        ensure!(value(memory.working_set_bytes.as_ref()) > 0, "{memory:?}");
        let layer = after.writable_layer.as_ref().context("writable layer")?;
        ensure!(value(layer.used_bytes.as_ref()) >= BYTES, "{layer:?}");
        ensure!(value(layer.inodes_used.as_ref()) > 0, "{layer:?}");
        Ok(())
    })
}

fn pod_stats(node: &Node, id: &str) -> Result<cri::LinuxPodSandboxStats> {
    let request = cri::PodSandboxStatsRequest { pod_sandbox_id: id.to_owned() };
    let stats = node
        .cri
        .runtime(|mut c| async move { c.pod_sandbox_stats(request).await })?
        .stats
        .context("stats")?;
    stats.linux.context("linux stats")
}

fn counts_what_a_pod_uses(node: &mut Node, _: &mut Registry) -> Result<()> {
    let (pod, id) = node.one("network", &["sleep", "1000"])?;
    let received = |stats: &cri::LinuxPodSandboxStats| -> Result<u64> {
        let network = stats.network.as_ref().context("network")?;
        let eth0 = network.default_interface.as_ref().context("default interface")?;
        same("interface", &eth0.name.as_str(), &"eth0")?;
        Ok(value(eth0.rx_bytes.as_ref()))
    };
    let before = received(&pod_stats(node, &pod.id)?)?;
    node.exec(&id, &["ping", "-c", "3", "-i", "0.1", "-s", "1000", "10.77.1.1"])?;
    eventually(SOON, || {
        let stats = pod_stats(node, &pod.id)?;
        let after = received(&stats)?;
        ensure!(after >= before + 3000, "received {before} then {after}");
        ensure!(
            stats.process.as_ref().is_some_and(|p| value(p.process_count.as_ref()) >= 1),
            "{:?}",
            stats.process
        );
        same("containers", &stats.containers.len(), &1)?;
        Ok(())
    })
}

fn filters_and_unknown_ids(node: &mut Node, _: &mut Registry) -> Result<()> {
    let (pod, first) = node.one("first", &["sleep", "1000"])?;
    let (_, second) = node.one("second", &["sleep", "1000"])?;
    let list = |filter: Option<cri::ContainerStatsFilter>| -> Result<Vec<String>> {
        let request = cri::ListContainerStatsRequest { filter };
        let stats = node.cri.runtime(|mut c| async move { c.list_container_stats(request).await })?.stats;
        let mut ids: Vec<String> = stats.into_iter().filter_map(|s| s.attributes).map(|a| a.id).collect();
        ids.sort();
        Ok(ids)
    };
    let mut both = vec![first.clone(), second];
    both.sort();
    same("all", &list(None)?, &both)?;
    let by_pod = cri::ContainerStatsFilter { pod_sandbox_id: pod.id[..12].to_owned(), ..Default::default() };
    same("by pod", &list(Some(by_pod))?, &vec![first])?;
    let nobody = cri::ContainerStatsFilter { id: "f".repeat(64), ..Default::default() };
    same("unknown", &list(Some(nobody))?.len(), &0)?;
    let request = cri::ContainerStatsRequest { container_id: "f".repeat(64) };
    let error = node
        .cri
        .runtime(|mut c| async move { c.container_stats(request).await })
        .err()
        .context("unknown id")?;
    same("code", &error.code(), &tonic::Code::NotFound)
}

fn image_file_system_grows(node: &mut Node, _: &mut Registry) -> Result<()> {
    let used = || -> Result<u64> {
        let request = cri::ImageFsInfoRequest {};
        let info = node.cri.image(|mut c| async move { c.image_fs_info(request).await })?;
        let image = info.image_filesystems.first().context("image file system")?;
        ensure!(image.fs_id.as_ref().is_some_and(|id| !id.mountpoint.is_empty()), "{image:?}");
        Ok(value(image.used_bytes.as_ref()))
    };
    let before = used()?;
    node.cri.pull("nginx")?;
    let with = used()?;
    ensure!(with > before + (1 << 20), "{before} then {with}");
    node.cri.remove_image("nginx")?;
    // At once: a kubelet that makes room looks only now, and evicts a pod when it is not enough.
    same("after removal", &used()?, &before)
}
