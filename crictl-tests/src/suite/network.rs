//! Pod networks: the built-in bridge, host ports, CNI plugins.
use std::io::{Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use crisp_proto::cri;

use super::tests;
use crate::command::output;
use crate::eventually::{SOON, eventually};
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
    #[options(dual_stack)]
    pods_have_an_address_of_each_family,
    #[options(two_networks)]
    a_pod_joins_several_networks,
    #[options(with_bandwidth)]
    a_bandwidth_plugin_gets_the_annotations,
    the_built_in_network_limits_bandwidth,
    #[options(without_network)]
    the_node_gets_ready_when_a_configuration_appears,
    #[options(with_template)]
    the_pod_cidr_makes_a_configuration,
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
    eventually(SOON, || {
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
    let fetch = ["timeout", "60", "wget", "-q", "-O", "-", "http://10.77.1.1:12080/"];
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

fn dual_stack() -> Options {
    let cni_more = "ip_preference = \"ipv6\"".into();
    Options { more: "ipv6_subnet = \"fd00:77:1::/64\"".into(), cni_more, ..Options::default() }
}

fn pods_have_an_address_of_each_family(node: &mut Node, _: &mut Registry) -> Result<()> {
    let mut config = node.pod("dual");
    config.port_mappings = vec![mapping(80, 12085, "")];
    let pod = node.run(config)?;
    node.launch(&pod, &node.container("c", &["sh", "-c", &SERVE.replace("-p 80", "-p [::]:80")]))?;
    let network = node.cri.pod_status(&pod.id)?.network.context("network of the pod")?;
    ensure!(network.ip.starts_with("fd00:77:1::"), "the preferred family comes first: {network:?}");
    let [more] = network.additional_ips.as_slice() else { anyhow::bail!("{network:?}") };
    ensure!(more.ip.starts_with("10.77.1."), "{network:?}");
    get_eventually(&format!("[{}]:80", network.ip), "dual")?;
    get_eventually(&format!("{}:80", more.ip), "dual")?;
    get_eventually("[fd00:77:1::1]:12085", "dual")?;
    get_eventually("127.0.0.1:12085", "dual")?;
    node.cri.stop_pod(&pod.id)?;
    ensure!(get("[fd00:77:1::1]:12085").is_err(), "the port is closed when the pod is stopped");
    Ok(())
}

/// A network of the bridge plugin with addresses of its own.
fn bridge_network(name: &str, number: u8, more: &str) -> String {
    format!(
        r#"{{"cniVersion": "1.0.0", "name": "{name}", "plugins": [{{"type": "bridge", "bridge": "cni{number}",
            "isGateway": true, "ipam": {{"type": "host-local", "dataDir": "/run/t/1/cni-data",
            "ranges": [[{{"subnet": "10.{number}.0.0/24"}}]]}}}}{more}]}}"#
    )
}

fn two_networks() -> Options {
    let cni = Some(bridge_network("one", 98, ""));
    Options { cni, cni_more: "max_networks = 2".into(), ..Options::default() }
}

fn a_pod_joins_several_networks(node: &mut Node, _: &mut Registry) -> Result<()> {
    // The second configuration appears while the daemon runs.
    std::fs::write(node.dir().join("cni/20-two.conflist"), bridge_network("two", 97, ""))?;
    node.run(node.pod("first"))?;
    node.remove_all()?;
    node.rebase()?;
    let (pod, container) = node.one("joined", &["sleep", "1000"])?;
    ensure!(address(node, &pod)?.starts_with("10.98.0."), "the address of eth0 counts");
    let links = node.exec(&container, &["ip", "addr"])?;
    ensure!(links.contains("10.98.0.") && links.contains("10.97.0.") && links.contains("eth1"), "{links}");
    let info = node.crictl(&["inspectp", &pod.id])?;
    ensure!(info.contains("10.97.0."), "the verbose result has both: {info}");
    // Gone by the time of the stop: the pod leaves both all the same.
    std::fs::remove_file(node.dir().join("cni/20-two.conflist"))?;
    node.cri.stop_pod(&pod.id)?;
    let reserved = output(Command::new("find").args(["/run/t/1/cni-data", "-name", "10.*"]))?;
    same("reservations", &reserved.as_str(), &"")
}

fn with_bandwidth() -> Options {
    let more = r#", {"type": "bandwidth", "capabilities": {"bandwidth": true}}"#;
    Options { cni: Some(bridge_network("limited", 96, more)), ..Options::default() }
}

fn limited(node: &Node, name: &str) -> cri::PodSandboxConfig {
    let mut config = node.pod(name);
    for (way, rate) in [("ingress", "10M"), ("egress", "1.5M")] {
        config.annotations.insert(format!("kubernetes.io/{way}-bandwidth"), rate.to_owned());
    }
    config
}

fn shapers() -> Result<String> {
    let all = output(Command::new("tc").args(["qdisc", "show"]))?;
    Ok(all.lines().filter(|line| line.contains("tbf")).map(|line| format!("{line}\n")).collect())
}

fn a_bandwidth_plugin_gets_the_annotations(node: &mut Node, _: &mut Registry) -> Result<()> {
    let pod = node.run(limited(node, "limited"))?;
    let seen = shapers()?;
    ensure!(seen.contains("rate 10Mbit") && seen.contains("rate 1500Kbit"), "{seen}");
    node.cri.stop_pod(&pod.id)?;
    eventually(SOON, || same("limits", &shapers()?.as_str(), &""))
}

fn the_built_in_network_limits_bandwidth(node: &mut Node, _: &mut Registry) -> Result<()> {
    let pod = node.run(limited(node, "limited"))?;
    let seen = shapers()?;
    ensure!(seen.contains("rate 10Mbit"), "on the host's end: {seen}");
    node.cri.stop_pod(&pod.id)?;
    eventually(SOON, || same("limits", &shapers()?.as_str(), &""))?;
    let mut config = node.pod("refused");
    config.annotations.insert("kubernetes.io/egress-bandwidth".into(), "12".into());
    let error = node.cri.run_pod(&config, "").err().context("12 bit/s are no bandwidth")?;
    same("code", &error.code(), &tonic::Code::InvalidArgument)?;
    same("pods", &node.cri.pods()?.len(), &1)
}

fn without_network() -> Options {
    Options { more: "enabled = false".into(), warm: Warm::Cold, ..Options::default() }
}

fn network_condition(node: &Node) -> Result<cri::RuntimeCondition> {
    let request = cri::StatusRequest { verbose: false };
    let status =
        node.cri.runtime(|mut c| async move { c.status(request).await })?.status.context("status")?;
    status.conditions.into_iter().find(|c| c.r#type == "NetworkReady").context("NetworkReady")
}

fn the_node_gets_ready_when_a_configuration_appears(node: &mut Node, _: &mut Registry) -> Result<()> {
    let folder = node.dir().join("cni");
    let unready = |why: &str| {
        let condition = network_condition(node)?;
        same("status", &condition.status, &false)?;
        same("reason", &condition.reason.as_str(), &"NetworkPluginNotReady")?;
        ensure!(condition.message.contains(why), "{condition:?}");
        Ok(())
    };
    let ready = || {
        let condition = network_condition(node)?;
        ensure!(condition.status, "{condition:?}");
        Ok(())
    };
    unready("no CNI configuration")?;
    let error = node.cri.run_pod(&node.pod("early"), "").err().context("there is no network")?;
    same("code", &error.code(), &tonic::Code::Unavailable)?;
    std::fs::write(
        folder.join("10-n.conflist"),
        r#"{"cniVersion": "1.0.0", "name": "n", "type": "no-such-plugin"}"#,
    )?;
    eventually(SOON, || unready("no-such-plugin"))?;
    std::fs::write(folder.join("10-n.conflist"), bridge_network("late", 95, ""))?;
    eventually(SOON, ready)?;
    // The folder itself is replaced.
    std::fs::rename(&folder, node.dir().join("cni-before"))?;
    eventually(SOON, || unready("no CNI configuration"))?;
    std::os::unix::fs::symlink(node.dir().join("cni-before"), &folder)?;
    eventually(SOON, ready)?;
    let pod = node.run(node.pod("late"))?;
    ensure!(address(node, &pod)?.starts_with("10.95.0."));
    std::fs::remove_file(&folder)?;
    eventually(SOON, || unready("no CNI configuration"))?;
    node.remove_all()?;
    // The plugin's bridge stays, as plugins leave it.
    node.rebase()
}

fn with_template() -> Options {
    Options {
        more: "enabled = false".into(),
        cni_more: "template = \"/run/t/1/cni.template\"".into(),
        warm: Warm::Cold,
        ..Options::default()
    }
}

fn tell_pod_cidr(node: &Node, pod_cidr: &str) -> Result<(), tonic::Status> {
    let network_config = Some(cri::NetworkConfig { pod_cidr: pod_cidr.to_owned() });
    let request =
        cri::UpdateRuntimeConfigRequest { runtime_config: Some(cri::RuntimeConfig { network_config }) };
    node.cri.runtime(|mut c| async move { c.update_runtime_config(request).await }).map(drop)
}

fn the_pod_cidr_makes_a_configuration(node: &mut Node, _: &mut Registry) -> Result<()> {
    let template = r#"{"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "bridge", "bridge": "cni94",
        "isGateway": true, "ipam": {"type": "host-local", "dataDir": "/run/t/1/cni-data",
        "ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],
        "routes": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}]}}]}"#;
    std::fs::write("/run/t/1/cni.template", "{{.Nonsense}}")?;
    tell_pod_cidr(node, "")?;
    ensure!(!network_condition(node)?.status, "there is nothing yet");
    let error = tell_pod_cidr(node, "10.94.1.0/24").err().context("the template is wrong")?;
    ensure!(error.message().contains("line 1") && error.message().contains(".Nonsense"), "{error}");
    std::fs::write("/run/t/1/cni.template", template)?;
    tell_pod_cidr(node, "10.94.1.0/24,fd00:94::/64")?;
    eventually(SOON, || {
        let condition = network_condition(node)?;
        ensure!(condition.status, "{condition:?}");
        Ok(())
    })?;
    let pod = node.run(node.pod("templated"))?;
    let network = node.cri.pod_status(&pod.id)?.network.context("network of the pod")?;
    ensure!(network.ip.starts_with("10.94.1."), "{network:?}");
    ensure!(network.additional_ips.iter().any(|more| more.ip.starts_with("fd00:94::")), "{network:?}");
    node.remove_all()?;
    node.rebase()
}
