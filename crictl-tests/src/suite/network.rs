//! Pod networks: the built-in bridge, host ports, CNI plugins.
use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use crisp_proto::cri;

use super::tests;
use crate::command::output;
use crate::eventually::{Seconds, eventually};
use crate::node::{Node, Options, Warm, same};
use crate::objects::Pod;
use crate::registry::Registry;

tests![
    pods_reach_each_other_and_the_node,
    host_ports_come_and_go,
    a_host_port_has_one_holder,
    addresses_are_given_again,
    #[options(with_cni)]
    cni_plugins_are_used_when_configured,
    #[options(broken_cni)]
    a_failing_plugin_fails_the_pod_and_leaves_nothing,
];

const SERVE: &str = "mkdir /www; echo $HOSTNAME >/www/index.html; exec httpd -f -p 80 -h /www";

fn address(node: &Node, pod: &Pod) -> Result<String> {
    Ok(node.cri.pod_status(&pod.id)?.network.context("network of the pod")?.ip)
}

/// Fetches `/` from the node itself.
fn get(address: &str) -> Result<String> {
    let limit = Duration::from_secs(2);
    let target = address.to_socket_addrs()?.next().context("an address")?;
    let mut stream =
        TcpStream::connect_timeout(&target, limit).with_context(|| format!("connect {address}"))?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

fn get_eventually(address: &str, expected: &str) -> Result<()> {
    eventually(Seconds(8), || {
        let text = get(address)?;
        ensure!(text.contains(expected), "{address} answers {text}");
        Ok(())
    })
}

fn mapping(container: i32, host: i32, host_ip: &str) -> cri::PortMapping {
    cri::PortMapping {
        protocol: cri::Protocol::Tcp.into(),
        container_port: container,
        host_port: host,
        host_ip: host_ip.into(),
    }
}

fn pods_reach_each_other_and_the_node(node: &mut Node, _: &mut Registry) -> Result<()> {
    let (server, _) = node.one("server", &["sh", "-c", SERVE])?;
    let ip = address(node, &server)?;
    get_eventually(&format!("{ip}:80"), "server")?;
    let (_, client) = node.one("client", &["sleep", "1000"])?;
    same(
        "from a pod",
        &node.exec(&client, &["wget", "-q", "-O", "-", &format!("http://{ip}/")])?.as_str(),
        &"server\n",
    )?;
    let gateway = node.exec(&client, &["ip", "route"])?;
    ensure!(gateway.contains("default via 10.77.1.1"), "routes {gateway}");
    Ok(())
}

fn host_ports_come_and_go(node: &mut Node, _: &mut Registry) -> Result<()> {
    let mut config = node.pod("ports");
    config.port_mappings = vec![mapping(80, 12080, ""), mapping(80, 12081, "127.0.0.1"), mapping(80, 0, "")];
    let pod = node.run(config)?;
    node.launch(&pod, &node.container("c", &["sh", "-c", SERVE]))?;
    get_eventually("127.0.0.1:12080", "ports")?;
    get_eventually("127.0.0.1:12081", "ports")?;
    get_eventually("10.77.1.1:12080", "ports")?;
    // Another pod, and the pod itself through the node's address.
    let (_, other) = node.one("other", &["sleep", "1000"])?;
    let fetch = ["timeout", "5", "wget", "-q", "-O", "-", "http://10.77.1.1:12080/"];
    same("from a pod", &node.exec(&other, &fetch)?.as_str(), &"ports\n")?;
    let own = node.launch(&pod, &node.container("own", &["sleep", "1000"]))?;
    same("from the pod itself", &node.exec(&own, &fetch)?.as_str(), &"ports\n")?;
    node.cri.stop_pod(&pod.id)?;
    ensure!(get("127.0.0.1:12080").is_err(), "the port is closed when the pod is stopped");
    Ok(())
}

fn a_host_port_has_one_holder(node: &mut Node, _: &mut Registry) -> Result<()> {
    let mut config = node.pod("holder");
    config.port_mappings = vec![mapping(80, 12090, "")];
    let holder = node.run(config)?;
    let mut config = node.pod("second");
    config.port_mappings = vec![mapping(8080, 12090, "")];
    let error = node.cri.run_pod(&config, "").err().context("the port is taken")?;
    same("code", &error.code(), &tonic::Code::AlreadyExists)?;
    ensure!(error.message().contains("12090"), "{error}");
    same("pods", &node.cri.pods()?.len(), &1)?;
    node.cri.stop_pod(&holder.id)?;
    node.run(config)?;
    Ok(())
}

fn addresses_are_given_again(node: &mut Node, _: &mut Registry) -> Result<()> {
    const PODS: usize = 300;
    let mut seen = std::collections::BTreeSet::new();
    for number in 0..PODS {
        let pod = node.run(node.pod(&format!("p{number}")))?;
        seen.insert(address(node, &pod)?);
        node.cri.remove_pod(&pod.id)?;
    }
    // 253 addresses are in the subnet.
    ensure!(seen.len() <= 253, "{} addresses", seen.len());
    let together: Vec<Pod> = (0..5).map(|n| node.run(node.pod(&format!("t{n}")))).collect::<Result<_>>()?;
    let distinct: std::collections::BTreeSet<String> =
        together.iter().map(|pod| address(node, pod)).collect::<Result<_>>()?;
    same("distinct addresses", &distinct.len(), &together.len())
}

fn with_cni() -> Options {
    let bridge = r#"{"type": "bridge", "bridge": "cni9", "isGateway": true, "ipMasq": true,
        "ipam": {"type": "host-local", "dataDir": "/run/t/1/cni-data", "ranges": [[{"subnet": "10.99.0.0/24"}]],
                 "routes": [{"dst": "0.0.0.0/0"}]}}"#;
    let portmap = r#"{"type": "portmap", "capabilities": {"portMappings": true}}"#;
    let cni = format!(r#"{{"cniVersion": "1.0.0", "name": "test", "plugins": [{bridge}, {portmap}]}}"#);
    Options { cni: Some(cni), ..Options::default() }
}

fn cni_plugins_are_used_when_configured(node: &mut Node, _: &mut Registry) -> Result<()> {
    // The plugin's own chains are made with the first mapping and stay.
    let mut first = node.pod("first");
    first.port_mappings = vec![mapping(80, 12071, "")];
    node.run(first)?;
    node.remove_all()?;
    node.rebase()?;
    let mut config = node.pod("plugged");
    config.port_mappings = vec![mapping(80, 12070, "")];
    let pod = node.run(config)?;
    let ip = address(node, &pod)?;
    ensure!(ip.starts_with("10.99.0."), "{ip} is from the plugin");
    node.launch(&pod, &node.container("c", &["sh", "-c", SERVE]))?;
    get_eventually(&format!("{ip}:80"), "plugged")?;
    get_eventually("10.99.0.1:12070", "plugged")?;
    let info = node.crictl(&["info"])?;
    ensure!(info.contains("\"test\""), "the name of the network in {info}");
    node.cri.stop_pod(&pod.id)?;
    let reserved = output(Command::new("find").args(["/run/t/1/cni-data", "-name", &ip]))?;
    same("reservation", &reserved.as_str(), &"")
}

fn broken_cni() -> Options {
    let cni = r#"{"cniVersion": "1.0.0", "name": "broken", "plugins": [
        {"type": "bridge", "bridge": "cni9", "ipam": {"type": "host-local", "dataDir": "/run/t/1/cni-data",
          "ranges": [[{"subnet": "10.99.0.0/24"}]]}},
        {"type": "no-such-plugin"}]}"#;
    Options { cni: Some(cni.into()), warm: Warm::Cold, ..Options::default() }
}

fn a_failing_plugin_fails_the_pod_and_leaves_nothing(node: &mut Node, _: &mut Registry) -> Result<()> {
    // The bridge itself stays, as the plugin leaves it: made here so that it does not count.
    output(Command::new("sh").args(["-c", "ip link add cni9 type bridge 2>/dev/null; ip link set cni9 up"]))?;
    let first = node.cri.run_pod(&node.pod("first"), "");
    ensure!(first.is_err(), "a plugin is missing");
    node.rebase()?;
    let error = node.cri.run_pod(&node.pod("refused"), "").err().context("a plugin is missing")?;
    ensure!(error.message().contains("no-such-plugin"), "{error}");
    same("pods", &node.cri.pods()?.len(), &0)?;
    let reserved = output(
        Command::new("sh").args(["-c", "ls /run/t/1/cni-data/broken 2>/dev/null | grep -c '^10' || true"]),
    )?;
    same("reserved addresses", &reserved.trim(), &"0")
}
