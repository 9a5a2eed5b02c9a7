//! What a pod gives its containers.
use anyhow::{Context as _, Result, ensure};
use crisp_proto::cri;

use super::tests;
use crate::eventually::{SOON, eventually};
use crate::node::{Node, same};
use crate::registry::Registry;

tests![
    containers_talk_over_localhost,
    files_of_the_pod,
    sysctls_and_shared_memory,
    shared_process_namespace_is_reaped,
    host_namespaces,
    keeps_attributes,
    stop_is_idempotent_and_final,
    remove_takes_running_containers_with_it,
    a_name_is_free_after_removal,
    many_come_up_at_once,
];

fn containers_talk_over_localhost(node: &mut Node, _: &mut Registry) -> Result<()> {
    let pod = node.run(node.pod("talk"))?;
    let serve = node
        .container("serve", &["sh", "-c", "mkdir /www; echo pong >/www/ping; exec httpd -f -p 8080 -h /www"]);
    node.launch(&pod, &serve)?;
    let fetch = "for i in $(seq 600); do wget -q -O - http://127.0.0.1:8080/ping && exit 0; usleep 50000; done; exit 1";
    let fetch = node.container("fetch", &["sh", "-c", fetch]);
    let (code, log) = node.run_to_end(&pod, &fetch)?;
    same("exit code", &code, &0)?;
    ensure!(log.iter().any(|line| line.text == "pong" && line.stream == "stdout"), "log {log:?}");
    Ok(())
}

fn files_of_the_pod(node: &mut Node, _: &mut Registry) -> Result<()> {
    let mut config = node.pod("files");
    config.hostname = "somebody".into();
    config.dns_config = Some(cri::DnsConfig {
        servers: vec!["10.10.10.10".into()],
        searches: vec!["example.org".into()],
        options: vec!["ndots:8".into()],
    });
    let pod = node.run(config)?;
    let id = node.launch(&pod, &node.container("c", &["sleep", "1000"]))?;
    same("hostname", &node.exec(&id, &["hostname"])?.trim(), &"somebody")?;
    same("/etc/hostname", &node.exec(&id, &["cat", "/etc/hostname"])?.trim(), &"somebody")?;
    let ip = node.cri.pod_status(&pod.id)?.network.context("network")?.ip;
    // A kubelet mounts its own file there; without one it is the node's.
    same("hosts", &node.exec(&id, &["cat", "/etc/hosts"])?, &std::fs::read_to_string("/etc/hosts")?)?;
    let resolv = node.exec(&id, &["cat", "/etc/resolv.conf"])?;
    for line in ["nameserver 10.10.10.10", "search example.org", "options ndots:8"] {
        ensure!(resolv.lines().any(|seen| seen == line), "{line} in {resolv}");
    }
    let addresses = node.exec(&id, &["ip", "-o", "addr"])?;
    ensure!(addresses.contains("eth0") && addresses.contains(&ip), "addresses {addresses}");
    ensure!(addresses.contains("127.0.0.1/8"), "loopback is up: {addresses}");
    Ok(())
}

fn sysctls_and_shared_memory(node: &mut Node, _: &mut Registry) -> Result<()> {
    let mut config = node.pod("sysctl");
    let sysctls = [
        ("kernel.shm_rmid_forced", "1"),
        ("net.ipv4.ip_unprivileged_port_start", "80"),
        ("fs.mqueue.msg_max", "100"),
    ];
    let linux = config.linux.get_or_insert_default();
    linux.sysctls = sysctls.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let pod = node.run(config)?;
    let first = node.launch(&pod, &node.container("a", &["sleep", "1000"]))?;
    let second = node.launch(&pod, &node.container("b", &["sleep", "1000"]))?;
    for (name, value) in sysctls {
        let file = format!("/proc/sys/{}", name.replace('.', "/"));
        same(name, &node.exec(&second, &["cat", &file])?.trim(), &value)?;
    }
    node.exec(&first, &["sh", "-c", "echo shared >/dev/shm/note"])?;
    same("/dev/shm of the other", &node.exec(&second, &["cat", "/dev/shm/note"])?.trim(), &"shared")?;
    let mount = node.exec(&first, &["grep", " /dev/shm ", "/proc/mounts"])?;
    ensure!(mount.contains("tmpfs"), "{mount}");
    Ok(())
}

fn namespaces(pod: &mut cri::PodSandboxConfig, options: &cri::NamespaceOption) {
    let linux = pod.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().namespace_options = Some(options.clone());
}

fn in_namespaces(container: &mut cri::ContainerConfig, options: &cri::NamespaceOption) {
    let linux = container.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().namespace_options = Some(options.clone());
}

fn shared_process_namespace_is_reaped(node: &mut Node, _: &mut Registry) -> Result<()> {
    let options = cri::NamespaceOption { pid: cri::NamespaceMode::Pod.into(), ..Default::default() };
    let mut config = node.pod("shared");
    namespaces(&mut config, &options);
    let pod = node.run(config)?;
    let mut first = node.container("a", &["sleep", "4321"]);
    in_namespaces(&mut first, &options);
    node.launch(&pod, &first)?;
    let mut second = node.container("b", &["sleep", "1000"]);
    in_namespaces(&mut second, &options);
    let second = node.launch(&pod, &second)?;
    // A moment after its start a program has no arguments yet.
    eventually(SOON, || {
        let seen = node.exec(&second, &["ps", "-o", "pid,args"])?;
        ensure!(seen.contains("sleep 4321"), "the other container's process in {seen}");
        Ok(())
    })?;
    ensure!(node.exec(&second, &["sh", "-c", "echo $$"])?.trim() != "1", "the pod has its own PID 1");
    // An orphan goes to PID 1 of the pod, which must take it in.
    node.exec(&second, &["sh", "-c", "(sh -c 'sleep 0.1' &) ; true"])?;
    eventually(SOON, || {
        let seen = node.exec(&second, &["ps", "-o", "pid,stat,args"])?;
        ensure!(!seen.contains(" Z") && !seen.contains("sleep 0.1"), "an orphan is left: {seen}");
        Ok(())
    })
}

fn host_namespaces(node: &mut Node, _: &mut Registry) -> Result<()> {
    let all = cri::NamespaceMode::Node.into();
    let options = cri::NamespaceOption { network: all, pid: all, ipc: all, ..Default::default() };
    let mut config = node.pod("host");
    config.hostname = String::new();
    namespaces(&mut config, &options);
    let pod = node.run(config)?;
    let mut container = node.container("c", &["sleep", "1000"]);
    in_namespaces(&mut container, &options);
    let id = node.launch(&pod, &container)?;
    for kind in ["net", "pid", "ipc", "uts"] {
        let ours = std::fs::read_link(format!("/proc/self/ns/{kind}"))?.display().to_string();
        same(kind, &node.exec(&id, &["readlink", &format!("/proc/self/ns/{kind}")])?.trim(), &ours.as_str())?;
    }
    let network = node.cri.pod_status(&pod.id)?.network.unwrap_or_default();
    same("address of a host network pod", &network.ip.as_str(), &"")
}

fn keeps_attributes(node: &mut Node, _: &mut Registry) -> Result<()> {
    let pod = node.run(node.pod("attributes"))?;
    let status = node.cri.pod_status(&pod.id)?;
    same("metadata", &status.metadata, &pod.config.metadata)?;
    same("labels", &status.labels, &pod.config.labels)?;
    same("annotations", &status.annotations, &pod.config.annotations)?;
    ensure!(status.created_at > 0, "created_at {}", status.created_at);
    let listed = node.cri.pods()?;
    same("pods", &listed.len(), &1)?;
    same("metadata in the list", &listed[0].metadata, &pod.config.metadata)?;
    same("annotations in the list", &listed[0].annotations, &pod.config.annotations)
}

fn stop_is_idempotent_and_final(node: &mut Node, _: &mut Registry) -> Result<()> {
    let (pod, id) = node.one("stop", &["sleep", "1000"])?;
    node.cri.stop_pod(&pod.id)?;
    node.cri.stop_pod(&pod.id)?;
    same("container", &node.cri.container_status(&id)?.state(), &cri::ContainerState::ContainerExited)?;
    same("pod", &node.cri.pod_status(&pod.id)?.state(), &cri::PodSandboxState::SandboxNotready)?;
    let refused = node.cri.create(&pod.id, &node.container("late", &["true"]), &pod.config);
    same(
        "create in a stopped pod",
        &refused.err().map(|status| status.code()),
        &Some(tonic::Code::FailedPrecondition),
    )?;
    node.cri.remove_pod(&pod.id)?;
    node.cri.remove_pod(&pod.id)?;
    node.cri.stop_pod(&pod.id)?;
    node.check_leaks()
}

fn remove_takes_running_containers_with_it(node: &mut Node, _: &mut Registry) -> Result<()> {
    let (pod, _) = node.one("remove", &["sleep", "1000"])?;
    node.launch(&pod, &node.container("second", &["sh", "-c", "sleep 1000 & sleep 1000 & wait"]))?;
    node.cri.create(&pod.id, &node.container("created", &["true"]), &pod.config)?;
    node.cri.remove_pod(&pod.id)?;
    same("containers", &node.cri.containers()?.len(), &0)?;
    node.check_leaks()
}

fn a_name_is_free_after_removal(node: &mut Node, _: &mut Registry) -> Result<()> {
    let config = node.pod("again");
    let first = node.run(config.clone())?;
    node.cri.stop_pod(&first.id)?;
    node.cri.remove_pod(&first.id)?;
    let second = node.run(config)?;
    ensure!(first.id != second.id, "ids are not used twice");
    Ok(())
}

/// Ten clients at a time, each with a connection of its own: no call waits for another's pod for good.
fn many_come_up_at_once(node: &mut Node, _: &mut Registry) -> Result<()> {
    const CLIENTS: usize = 10;
    const PODS_EACH: usize = 5;
    let socket = node.socket();
    let configs: Vec<_> = (0..CLIENTS * PODS_EACH).map(|number| node.pod(&format!("m{number}"))).collect();
    let container = node.container("c", &["sleep", "1000"]);
    std::thread::scope(|scope| {
        let (socket, container) = (&socket, &container);
        let bring_up = move |configs: &[cri::PodSandboxConfig]| -> Result<()> {
            let cri = crate::cri::Cri::new(socket)?;
            for config in configs {
                let pod = cri.run_pod(config, "").context("RunPodSandbox")?;
                let id = cri.create(&pod, container, config).context("CreateContainer")?;
                cri.start(&id).context("StartContainer")?;
                let (code, _, _) = cri.exec(&id, &["true"]).context("ExecSync")?;
                same("exec", &code, &0)?;
            }
            Ok(())
        };
        let clients: Vec<_> =
            configs.chunks(PODS_EACH).map(|share| scope.spawn(move || bring_up(share))).collect();
        clients
            .into_iter()
            .try_for_each(|client| client.join().unwrap_or_else(|_| anyhow::bail!("a client panicked")))
    })?;
    same("running", &node.cri.containers()?.len(), &(CLIENTS * PODS_EACH))
}
