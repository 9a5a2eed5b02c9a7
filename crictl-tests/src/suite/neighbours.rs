//! What hangs holds up nobody else, while the daemon serves and when it comes back: a plugin that waits at a gate, a volume on a file
//! system that nobody serves.
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use crisp_proto::cri;
use futures_util::future::join_all;
use rustix::process::Signal;
use tonic::{Code, Request};

use super::tests;
use crate::command::{output, run};
use crate::cri::Cri;
use crate::eventually::{SOON, eventually};
use crate::node::{BUSYBOX, Node, Options, Warm, same};
use crate::objects::Pod;
use crate::registry::Registry;

tests![
    #[options(gated)]
    hung_plugins_hold_up_nobody_else,
    #[options(gated)]
    half_made_pods_go_while_the_daemon_serves,
    #[options(gated)]
    a_network_that_changed_is_told,
    #[options(with_reference_plugins)]
    networks_that_did_not_change_are_found_so,
    #[options(few_threads)]
    volumes_on_a_dead_file_system_hold_up_nobody_else,
    #[options(few_threads)]
    half_made_containers_go_while_the_daemon_serves,
];

/// Threads for each kind of work in the daemons of these tests.
const THREADS: usize = 4;
/// Pods that hang: more than there are threads.
const HUNG: usize = THREADS + 3;
/// Of the pods that publish a port.
const HOST_PORT: i32 = 12_095;

/// A CNI plugin. It notes who comes, and waits while a FIFO `gate.<command>` is there; `CHECK` fails while a file `broken` is there.
const PLUGIN: &str = r#"#!/bin/sh
cd /run/t/1/bin || exit 1
if [ "$CNI_COMMAND" = VERSION ]; then
    echo '{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}'
    exit
fi
echo "$CNI_CONTAINERID" >>"came.$CNI_COMMAND"
if [ -p "gate.$CNI_COMMAND" ]; then
    read -r _ <"gate.$CNI_COMMAND"
fi
if [ "$CNI_COMMAND" = ADD ]; then
    echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.5.0.2/24"}]}'
elif [ "$CNI_COMMAND" = CHECK ] && [ -e broken ]; then
    echo '{"code": 101, "msg": "the rule is gone"}'
    exit 1
fi
"#;

fn gated() -> Options {
    let plugin = r#"{"type": "gated", "capabilities": {"portMappings": true}}"#;
    Options {
        warm: Warm::Cold,
        cni: Some(format!(r#"{{"cniVersion": "1.0.0", "name": "guarded", "plugins": [{plugin}]}}"#)),
        cni_more: "plugin_timeout = \"10m\"".into(),
        ..few_threads()
    }
}

fn few_threads() -> Options {
    Options { more: format!("\n[limits]\nblocking_threads = {THREADS}"), ..Options::default() }
}

/// Puts the plugin there and uses everything once.
fn warm_up(node: &mut Node) -> Result<()> {
    fs::create_dir(node.dir().join("bin"))?;
    let plugin = node.dir().join("bin/gated");
    fs::write(&plugin, PLUGIN)?;
    fs::set_permissions(&plugin, fs::Permissions::from_mode(0o755))?;
    node.cri.pull(BUSYBOX)?;
    node.one("warm-up", &["sleep", "1000"])?;
    node.remove_all()?;
    forget_calls(node)?;
    node.rebase()
}

fn forget_calls(node: &Node) -> Result<()> {
    for entry in fs::read_dir(node.dir().join("bin"))? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("came.")) {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// The sandboxes that the plugin was called for.
fn came(node: &Node, command: &str) -> Vec<String> {
    let text = fs::read_to_string(node.dir().join("bin").join(format!("came.{command}"))).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn wait_until_came(node: &Node, command: &str, count: usize) -> Result<Vec<String>> {
    eventually(SOON, || {
        let seen = came(node, command);
        same("calls of the plugin", &seen.len(), &count)?;
        Ok(seen)
    })
}

/// A FIFO at which the plugin waits; it is opened when this is dropped, whatever becomes of the test.
#[derive(Debug)]
struct Gate(PathBuf);

impl Gate {
    fn close(node: &Node, command: &str) -> Result<Self> {
        let path = node.dir().join("bin").join(format!("gate.{command}"));
        run(Command::new("mkfifo").arg(&path))?;
        Ok(Self(path))
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // Who waits to open it for reading goes on when somebody writes, and finds its end when nobody does.
        let writer = File::options().read(true).write(true).open(&self.0);
        fs::remove_file(&self.0).ok();
        drop(writer);
    }
}

fn on_host(mut config: cri::PodSandboxConfig) -> cri::PodSandboxConfig {
    let linux = config.linux.get_or_insert_default();
    let namespaces = linux.security_context.get_or_insert_default().namespace_options.get_or_insert_default();
    namespaces.network = cri::NamespaceMode::Node.into();
    config
}

fn published(node: &Node, name: &str) -> cri::PodSandboxConfig {
    let mapping = cri::PortMapping { container_port: 80, host_port: HOST_PORT, ..Default::default() };
    cri::PodSandboxConfig { port_mappings: vec![mapping], ..node.pod(name) }
}

fn request(config: &cri::PodSandboxConfig) -> cri::RunPodSandboxRequest {
    cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() }
}

fn hung_plugins_hold_up_nobody_else(node: &mut Node, _: &mut Registry) -> Result<()> {
    warm_up(node)?;
    let (stays, worker) = node.one("stays", &["sleep", "1000"])?;
    let (goes, _) = node.one("goes", &["sleep", "1000"])?;
    forget_calls(node)?;
    let gate = Gate::close(node, "ADD")?;
    let hung: Vec<_> = (0..HUNG).map(|number| node.pod(&format!("hung-{number}"))).collect();
    let other = Cri::new(&node.socket())?;
    std::thread::scope(|scope| {
        let calls = scope.spawn(|| {
            let run = |config| {
                let mut client = other.client();
                async move { client.run_pod_sandbox(request(config)).await }
            };
            other.together(async { join_all(hung.iter().map(run)).await })
        });
        wait_until_came(node, "ADD", THREADS)?;
        others_go_on(node, &worker, &goes)?;
        a_late_call_hears_why(node)?;
        same("pods that hang", &came(node, "ADD").len(), &THREADS)?;
        drop(gate);
        let made = calls.join().map_err(|_panicked| anyhow::anyhow!("the calls panicked"))?;
        made.into_iter().collect::<Result<Vec<_>, _>>().context("a pod that hung")?;
        anyhow::Ok(())
    })?;
    // The one that nobody waited for is there as well, for who asks again.
    let late = node.run(late(node))?;
    let pods = node.cri.pods()?;
    same("pods", &pods.len(), &(HUNG + 3))?;
    ensure!([&stays.id, &late.id].iter().all(|id| pods.iter().any(|pod| pod.id == **id)), "{pods:?}");
    Ok(())
}

fn others_go_on(node: &Node, worker: &str, goes: &Pod) -> Result<()> {
    same("of a container that runs", &node.exec(worker, &["echo", "on"])?.as_str(), &"on\n")?;
    same("pods", &node.cri.pods()?.len(), &2)?;
    same("containers", &node.cri.containers()?.len(), &2)?;
    node.crictl(&["stats"])?;
    ensure!(node.crictl(&["info"])?.contains("guarded"), "the node's status is told");
    // More than there are threads, one after the other and side by side.
    for number in 0..=THREADS {
        let pod = node.run(on_host(node.pod(&format!("beside-{number}"))))?;
        let container = node.launch(&pod, &node.container("main", &["sleep", "1000"]))?;
        node.exec(&container, &["true"])?;
        node.cri.stop_pod(&pod.id)?;
        node.cri.remove_pod(&pod.id)?;
    }
    // One that is in the hung plugin's own network leaves it.
    node.cri.stop_pod(&goes.id)?;
    same("state", &node.cri.pod_status(&goes.id)?.state(), &cri::PodSandboxState::SandboxNotready)
}

/// The same at every call.
fn late(node: &Node) -> cri::PodSandboxConfig {
    let mut config = node.pod("late");
    config.metadata.get_or_insert_default().uid = "uid-late".into();
    config
}

fn a_late_call_hears_why(node: &Node) -> Result<()> {
    let config = late(node);
    // Its own clock began a little earlier than the daemon's: where the answer takes its time, the client ends the call itself.
    eventually(SOON, || {
        let mut call = Request::new(request(&config));
        call.set_timeout(Duration::from_secs(2));
        let refused = node.cri.runtime(|mut c| async move { c.run_pod_sandbox(call).await });
        let refused = refused.err().context("there is no thread for it")?;
        let reason = format!("all {THREADS} threads for joining networks are busy");
        ensure!(
            refused.code() == Code::DeadlineExceeded && refused.message().contains(&reason),
            "{refused:?}"
        );
        Ok(())
    })
}

fn half_made_pods_go_while_the_daemon_serves(node: &mut Node, _: &mut Registry) -> Result<()> {
    warm_up(node)?;
    let (stays, worker) = node.one("stays", &["sleep", "1000"])?;
    forget_calls(node)?;
    let half = published(node, "half");
    let id = kill_while_making(node, &half)?;
    let gate = Gate::close(node, "DEL")?;
    node.start_daemon()?;
    same("who is taken apart", &wait_until_came(node, "DEL", 1)?, &vec![id.clone()])?;
    node.exec(&worker, &["true"])?;
    same("pods", &node.cri.pods()?.into_iter().map(|pod| pod.id).collect(), &vec![stays.id])?;
    same("code", &node.cri.pod_status(&id).map_err(|status| status.code()).err(), &Some(Code::NotFound))?;
    // The same pod again, at once; but what the half-made one holds is not given away.
    let again = cri::PodSandboxConfig { port_mappings: Vec::new(), ..half.clone() };
    let again = node.run(again)?;
    node.launch(&again, &node.container("main", &["sleep", "1000"]))?;
    let other = published(node, "other");
    let refused = node.cri.run_pod(&other, "").err().context("the host port is taken")?;
    same("code", &refused.code(), &Code::AlreadyExists)?;
    ensure!(refused.message().contains(&id), "the holder is named: {refused}");
    // Killed on the way, the next one goes on.
    node.signal_daemon(Signal::KILL)?;
    node.start_daemon()?;
    wait_until_came(node, "DEL", 2)?;
    drop(gate);
    eventually(SOON, || node.run(other.clone()))?;
    let folder = node.dir().join("state/pods").join(&id);
    eventually(SOON, || {
        ensure!(!folder.exists(), "{} is left", folder.display());
        Ok(())
    })?;
    same("pods", &node.cri.pods()?.len(), &3)
}

/// Kills the daemon while the plugin puts a pod into its network; gives the pod's id.
fn kill_while_making(node: &mut Node, config: &cri::PodSandboxConfig) -> Result<String> {
    let gate = Gate::close(node, "ADD")?;
    let other = Cri::new(&node.socket())?;
    let id = std::thread::scope(|scope| {
        let call = scope.spawn(|| other.run_pod(config, ""));
        let id = wait_until_came(node, "ADD", 1)?.remove(0);
        node.signal_daemon(Signal::KILL)?;
        let answer = call.join().map_err(|_panicked| anyhow::anyhow!("the call panicked"))?;
        ensure!(answer.is_err(), "nobody made the pod");
        Ok(id)
    })?;
    drop(gate);
    Ok(id)
}

fn a_network_that_changed_is_told(node: &mut Node, _: &mut Registry) -> Result<()> {
    warm_up(node)?;
    let (pod, worker) = node.one("changed", &["sleep", "1000"])?;
    node.run(on_host(node.pod("without")))?;
    same("before a restart", &network_check(node, &pod)?, &("notAsked".into(), None))?;
    let broken = node.dir().join("bin/broken");
    fs::write(&broken, "")?;
    node.signal_daemon(Signal::TERM)?;
    node.start_daemon()?;
    let told = eventually(SOON, || {
        let (outcome, problem) = network_check(node, &pod)?;
        same("outcome", &outcome.as_str(), &"changed")?;
        problem.context("the problem")
    })?;
    ensure!(told.contains("\"guarded\"") && told.contains("the rule is gone"), "{told}");
    let log = fs::read_to_string(node.log_path())?;
    let line = log.lines().find(|line| line.contains("the rule is gone")).context("a line in the log")?;
    ensure!(line.contains("WARN") && line.contains(&pod.id) && line.contains("guarded"), "{line}");
    same("who is asked about", &came(node, "CHECK"), &vec![pod.id.clone()])?;
    same("state", &node.cri.pod_status(&pod.id)?.state(), &cri::PodSandboxState::SandboxReady)?;
    node.exec(&worker, &["true"])?;
    // Mended, it is not told any more.
    fs::remove_file(&broken)?;
    node.signal_daemon(Signal::KILL)?;
    node.start_daemon()?;
    found_as_made(node, &pod)
}

/// The network of the pod was asked, and has all that it was given.
fn found_as_made(node: &Node, pod: &Pod) -> Result<()> {
    eventually(SOON, || same("network", &network_check(node, pod)?, &("asMade".into(), None)))
}

fn with_reference_plugins() -> Options {
    let cni = r#"{"cniVersion": "1.0.0", "name": "reference", "plugins": [
        {"type": "bridge", "bridge": "cni9", "isGateway": true, "ipMasq": true,
         "ipam": {"type": "host-local", "dataDir": "/run/t/1/cni-data", "ranges": [[{"subnet": "10.99.0.0/24"}]]}},
        {"type": "portmap", "capabilities": {"portMappings": true}}]}"#;
    Options { cni: Some(cni.into()), warm: Warm::Cold, ..Options::default() }
}

/// By the reference plugins, and by the built-in network.
fn networks_that_did_not_change_are_found_so(node: &mut Node, _: &mut Registry) -> Result<()> {
    one_of_each(node)?;
    node.remove_all()?;
    node.rebase()?;
    let [plugged, built_in] = one_of_each(node)?;
    node.signal_daemon(Signal::KILL)?;
    node.start_daemon()?;
    found_as_made(node, &plugged)?;
    found_as_made(node, &built_in)?;
    let ports = output(Command::new("ip").args(["-o", "link", "show", "master", &node.bridge()]))?;
    let host_end = ports.split([':', '@']).nth(1).context("the built-in pod's interface")?.trim();
    run(Command::new("ip").args(["link", "del", host_end]))?;
    node.signal_daemon(Signal::KILL)?;
    node.start_daemon()?;
    eventually(SOON, || same("outcome", &network_check(node, &built_in)?.0.as_str(), &"changed"))?;
    found_as_made(node, &plugged)
}

/// A pod in the network of the reference plugins, and one in the built-in network.
fn one_of_each(node: &Node) -> Result<[Pod; 2]> {
    let configuration = node.dir().join("cni/10-test.conflist");
    let aside = node.dir().join("aside.conflist");
    // Without a host port: `portmap` misses rules of IPv6 that it does not make for IPv4 alone.
    let plugged = node.run(node.pod("plugged"))?;
    fs::rename(&configuration, &aside)?;
    let built_in = node.run(published(node, "built-in"))?;
    fs::rename(&aside, &configuration)?;
    Ok([plugged, built_in])
}

fn network_check(node: &Node, pod: &Pod) -> Result<(String, Option<String>)> {
    let inspected = node.crictl_json(&["inspectp", &pod.id])?;
    let check = &inspected["info"]["networkCheck"];
    let text = |field: &str| check[field].as_str().map(str::to_owned);
    Ok((text("outcome").with_context(|| format!("no outcome in {check}"))?, text("problem")))
}

/// A file system in user space whose server never answers.
#[derive(Debug)]
struct Dead {
    server: Option<File>,
    path: PathBuf,
}

impl Dead {
    fn mount(node: &Node) -> Result<Self> {
        let path = node.dir().join("dead");
        fs::create_dir(&path)?;
        let server = File::options().read(true).write(true).open("/dev/fuse")?;
        let options = "fd=0,rootmode=40000,user_id=0,group_id=0";
        let mut mount = Command::new("mount");
        mount.args(["-i", "-t", "fuse", "-o", options, "dead"]).arg(&path);
        run(mount.stdin(server.try_clone()?))?;
        Ok(Self { server: Some(server), path })
    }

    /// From now on whoever uses it, or waits for it, gets an error.
    fn end(&mut self) {
        self.server = None;
    }
}

impl Drop for Dead {
    fn drop(&mut self) {
        drop(run(Command::new("umount").arg("-l").arg(&self.path)));
    }
}

/// A container that needs something on the dead file system.
fn container_on(node: &Node, dead: &Dead, name: &str) -> cri::ContainerConfig {
    let host_path = dead.path.join("data").display().to_string();
    let mount = cri::Mount { container_path: "/data".into(), host_path, ..Default::default() };
    cri::ContainerConfig { mounts: vec![mount], ..node.container(name, &["sleep", "1000"]) }
}

fn create(pod: &Pod, config: cri::ContainerConfig) -> cri::CreateContainerRequest {
    cri::CreateContainerRequest {
        pod_sandbox_id: pod.id.clone(),
        config: Some(config),
        sandbox_config: Some(pod.config.clone()),
    }
}

/// Creates containers that hang; when all threads are busy with them, runs `meanwhile`, and then gives the answers.
fn while_volumes_hang(
    node: &mut Node,
    dead: &mut Dead,
    pod: &Pod,
    meanwhile: impl FnOnce(&mut Node) -> Result<()>,
) -> Result<Vec<Result<String, tonic::Status>>> {
    let requests: Vec<_> =
        (0..HUNG).map(|number| create(pod, container_on(node, dead, &format!("hung-{number}")))).collect();
    let late = create(pod, container_on(node, dead, "late"));
    let other = Cri::new(&node.socket())?;
    std::thread::scope(|scope| {
        let calls = scope.spawn(|| {
            let create = |request| {
                let mut client = other.client();
                async move { Ok(client.create_container(request).await?.into_inner().container_id) }
            };
            other.together(async { join_all(requests.into_iter().map(create)).await })
        });
        eventually(SOON, || {
            let mut call = Request::new(late.clone());
            call.set_timeout(Duration::from_secs(1));
            let refused = node.cri.runtime(|mut c| async move { c.create_container(call).await });
            let refused = refused.err().context("there is no thread for it")?;
            let reason = format!("all {THREADS} threads for making containers' files are busy");
            ensure!(
                refused.code() == Code::DeadlineExceeded && refused.message().contains(&reason),
                "{refused}"
            );
            Ok(())
        })?;
        let done = meanwhile(node);
        // Whatever went wrong: the calls end.
        dead.end();
        let answers = calls.join().map_err(|_panicked| anyhow::anyhow!("the calls panicked"))?;
        done.map(|()| answers)
    })
}

fn volumes_on_a_dead_file_system_hold_up_nobody_else(node: &mut Node, _: &mut Registry) -> Result<()> {
    let (stays, worker) = node.one("stays", &["sleep", "1000"])?;
    let mut dead = Dead::mount(node)?;
    let answers = while_volumes_hang(node, &mut dead, &stays, |node| {
        same("of a container that runs", &node.exec(&worker, &["echo", "on"])?.as_str(), &"on\n")?;
        same("containers", &node.cri.containers()?.len(), &1)?;
        node.crictl(&["stats"])?;
        for number in 0..=THREADS {
            let pod = node.run(node.pod(&format!("beside-{number}")))?;
            node.cri.stop_pod(&pod.id)?;
            node.cri.remove_pod(&pod.id)?;
        }
        node.cri.stop(&worker, 0)?;
        Ok(node.cri.remove(&worker)?)
    })?;
    for answer in answers {
        let refused = answer.err().context("its volume is dead")?;
        ensure!(refused.message().contains("not connected"), "{refused}");
    }
    // The one that nobody waited for has failed as well.
    eventually(SOON, || same("containers", &files(node, "state/containers")?.len(), &0))?;
    node.launch(&stays, &node.container("hung-0", &["sleep", "1000"]))?;
    Ok(())
}

fn half_made_containers_go_while_the_daemon_serves(node: &mut Node, _: &mut Registry) -> Result<()> {
    let (stays, worker) = node.one("stays", &["sleep", "1000"])?;
    let mut dead = Dead::mount(node)?;
    let answers = while_volumes_hang(node, &mut dead, &stays, |node| {
        // Those without a thread have begun as well.
        eventually(SOON, || {
            ensure!(files(node, "state/containers")?.len() > HUNG, "half-made containers are there");
            Ok(())
        })?;
        node.signal_daemon(Signal::KILL)?;
        node.start_daemon()?;
        node.exec(&worker, &["true"])?;
        same("containers", &node.cri.containers()?.len(), &1)?;
        // The same one again, at once.
        let again = node.launch(&stays, &node.container("hung-0", &["sleep", "1000"]))?;
        let mut known = vec![worker.clone(), again];
        known.sort();
        for folder in ["state/containers", "root/containers"] {
            eventually(SOON, || same(folder, &files(node, folder)?, &known))?;
        }
        Ok(())
    })?;
    ensure!(answers.iter().all(Result::is_err), "{answers:?}");
    Ok(())
}

/// The names in a folder of the node.
fn files(node: &Node, folder: &str) -> Result<Vec<String>> {
    let entries = fs::read_dir(node.dir().join(folder))?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}
