//! GetContainerEvents: what a kubelet that does not poll relies on.
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use crisp_proto::cri::{
    self, ContainerEventResponse as Event, ContainerEventType as Type, ContainerState, PodSandboxState,
};
use hyper_util::rt::TokioIo;
use rustix::process::Signal;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Status, Streaming};

use super::tests;
use crate::eventually::{SOON, eventually};
use crate::node::{Node, same};
use crate::objects::Pod;
use crate::paths;
use crate::registry::Registry;

tests![
    tells_a_pods_life_in_order,
    shows_what_is_there_first,
    tells_a_failed_start_and_a_dead_shim,
    tells_a_dead_pid_1,
    a_dead_pid_1_is_known_after_a_restart,
    cuts_off_a_slow_reader_alone,
    streams_end_with_the_daemon,
    crictl_shows_events,
];

/// How long an event may take.
const PATIENCE: Duration = Duration::from_secs(90);
/// For one container of a flood on a busy machine.
const EACH_MAX: Duration = Duration::from_secs(1);
/// More events than the daemon keeps for a listener, and than fit into the connection.
const FLOOD: usize = 1400;
/// Containers made at a time by the flood.
const FLOOD_PARALLEL: usize = 8;
/// Size of an annotation of the flooded pod: connections buffer bytes, the daemon counts events.
const FLOOD_BYTES: usize = 16 << 10;

/// The events of a stream, as they came.
struct Listener(Receiver<Result<Event, Status>>);

impl Listener {
    fn new(node: &Node) -> Result<Self> {
        let (send, receive) = sync_channel(100_000);
        let mut client = node.cri.client();
        node.cri.together(async move {
            let stream = client.get_container_events(cri::GetEventsRequest {}).await?.into_inner();
            tokio::spawn(pass_on(stream, send));
            Ok::<_, Status>(())
        })?;
        Ok(Self(receive))
    }

    fn next(&self) -> Result<Event> {
        self.0.recv_timeout(PATIENCE).context("no event came")?.context("the stream failed")
    }

    /// The next events, in words.
    fn take(&self, count: usize) -> Result<Vec<Event>> {
        (0..count).map(|number| self.next().with_context(|| format!("event {number}"))).collect()
    }

    /// Nothing waits here; what the daemon has still to tell comes after what is told next.
    fn is_empty(&self) -> bool {
        self.0.try_recv().is_err()
    }
}

async fn pass_on(mut stream: Streaming<Event>, send: SyncSender<Result<Event, Status>>) {
    loop {
        let event = match stream.message().await {
            Ok(Some(event)) => Ok(event),
            Ok(None) => return,
            Err(status) => Err(status),
        };
        let failed = event.is_err();
        if send.send(event).is_err() || failed {
            return;
        }
    }
}

/// Whom the event is of, and its type.
fn gist(event: &Event) -> (&str, Type) {
    (&event.container_id, event.container_event_type())
}

fn gists(events: &[Event]) -> Vec<(&str, Type)> {
    events.iter().map(gist).collect()
}

/// Each event tells the pod, and the times never go back.
fn check_pod(events: &[Event], pod: &Pod) -> Result<()> {
    for event in events {
        let status = event.pod_sandbox_status.as_ref().context("status of the pod")?;
        same("pod", &status.id, &pod.id)?;
        same("metadata", &status.metadata, &pod.config.metadata)?;
    }
    ensure!(events.is_sorted_by_key(|event| event.created_at), "times go back: {events:?}");
    ensure!(events.iter().all(|event| event.created_at > 0), "no time: {events:?}");
    Ok(())
}

/// The container as the event shows it.
fn container<'a>(event: &'a Event, id: &str) -> Result<&'a cri::ContainerStatus> {
    event.containers_statuses.iter().find(|status| status.id == id).context("status of the container")
}

fn tells_a_pods_life_in_order(node: &mut Node, _: &mut Registry) -> Result<()> {
    let listener = Listener::new(node)?;
    let pod = node.run(node.pod("life"))?;
    let beside = node.launch(&pod, &node.container("beside", &["sleep", "1000"]))?;
    let id = node.launch(
        &pod,
        &node.container("main", &["sh", "-c", "until [ -e /end ]; do usleep 20000; done; exit 3"]),
    )?;
    node.exec(&id, &["touch", "/end"])?;
    node.wait_exit(&id)?;
    node.cri.remove(&id)?;
    node.cri.stop_pod(&pod.id)?;
    // Again, which changes nothing and is not told.
    node.cri.stop_pod(&pod.id)?;
    node.cri.remove_pod(&pod.id)?;
    let events = listener.take(12)?;
    let (pod_id, main, beside) = (pod.id.as_str(), id.as_str(), beside.as_str());
    let want = [
        (pod_id, Type::ContainerCreatedEvent),
        (pod_id, Type::ContainerStartedEvent),
        (beside, Type::ContainerCreatedEvent),
        (beside, Type::ContainerStartedEvent),
        (main, Type::ContainerCreatedEvent),
        (main, Type::ContainerStartedEvent),
        (main, Type::ContainerStoppedEvent),
        (main, Type::ContainerDeletedEvent),
        (beside, Type::ContainerStoppedEvent),
        (pod_id, Type::ContainerStoppedEvent),
        (beside, Type::ContainerDeletedEvent),
        (pod_id, Type::ContainerDeletedEvent),
    ];
    same("events", &gists(&events), &want.to_vec())?;
    check_pod(&events, &pod)?;
    let state = |event: usize, id: &str| container(&events[event], id).map(cri::ContainerStatus::state);
    same("created", &state(4, main)?, &ContainerState::ContainerCreated)?;
    same("started", &state(5, main)?, &ContainerState::ContainerRunning)?;
    same("the other one", &state(5, beside)?, &ContainerState::ContainerRunning)?;
    let ended = container(&events[6], main)?;
    same("stopped", &ended.state(), &ContainerState::ContainerExited)?;
    same("exit", &(ended.exit_code, ended.reason.as_str()), &(3, "Error"))?;
    ensure!(container(&events[7], main).is_err(), "a deleted container is told: {:?}", events[7]);
    same("after the deletion", &state(7, beside)?, &ContainerState::ContainerRunning)?;
    let pod_state =
        |event: usize| events[event].pod_sandbox_status.as_ref().map(cri::PodSandboxStatus::state);
    same("ready", &pod_state(0), &Some(PodSandboxState::SandboxReady))?;
    same("stopped", &pod_state(9), &Some(PodSandboxState::SandboxNotready))?;
    same("deleted", &pod_state(11), &Some(PodSandboxState::SandboxNotready))?;
    ensure!(listener.is_empty(), "more events than things that happened");
    Ok(())
}

fn shows_what_is_there_first(node: &mut Node, _: &mut Registry) -> Result<()> {
    let old = node.run(node.pod("again"))?;
    node.cri.stop_pod(&old.id)?;
    let mut config = old.config.clone();
    config.metadata.as_mut().context("metadata")?.attempt = 1;
    let pod = node.run(config)?;
    let running = node.launch(&pod, &node.container("running", &["sleep", "1000"]))?;
    let exited = node.launch(&pod, &node.container("exited", &["false"]))?;
    node.wait_exit(&exited)?;
    let created = node.cri.create(&pod.id, &node.container("created", &["true"]), &pod.config)?;
    let listener = Listener::new(node)?;
    let events = listener.take(4)?;
    check_pod(&events, &pod)?;
    same("pod", &gist(&events[0]), &(pod.id.as_str(), Type::ContainerStartedEvent))?;
    let mut rest = gists(&events[1..]);
    rest.sort();
    let mut want = vec![
        (running.as_str(), Type::ContainerStartedEvent),
        (exited.as_str(), Type::ContainerStoppedEvent),
        (created.as_str(), Type::ContainerCreatedEvent),
    ];
    want.sort();
    same("containers", &rest, &want)?;
    ensure!(events.iter().all(|event| event.created_at == events[0].created_at), "one picture, one time");
    same("in each", &events[0].containers_statuses.len(), &3)?;
    let newest_first =
        |statuses: &[cri::ContainerStatus]| statuses.is_sorted_by(|a, b| a.created_at >= b.created_at);
    ensure!(newest_first(&events[0].containers_statuses), "of several tries the newest comes first");
    // Only the newest sandbox of a pod is shown, so what comes next is news.
    node.cri.remove(&created)?;
    let next = listener.next()?;
    same("next", &gist(&next), &(created.as_str(), Type::ContainerDeletedEvent))?;
    ensure!(next.created_at >= events[0].created_at, "times go back");
    Ok(())
}

fn tells_a_failed_start_and_a_dead_shim(node: &mut Node, _: &mut Registry) -> Result<()> {
    let listener = Listener::new(node)?;
    let pod = node.run(node.pod("broken"))?;
    let id = node.cri.create(&pod.id, &node.container("main", &["/no/such/program"]), &pod.config)?;
    ensure!(node.cri.start(&id).is_err(), "a program that is not there was started");
    let events = listener.take(4)?;
    same("failed", &gist(&events[3]), &(id.as_str(), Type::ContainerStoppedEvent))?;
    same("reason", &container(&events[3], &id)?.reason.as_str(), &"StartError")?;
    let running = node.launch(&pod, &node.container("running", &["sleep", "1000"]))?;
    listener.take(2)?;
    kill_shim(&pod)?;
    let events = listener.take(2)?;
    let mut seen = gists(&events);
    seen.sort();
    let mut want =
        vec![(pod.id.as_str(), Type::ContainerStoppedEvent), (running.as_str(), Type::ContainerStoppedEvent)];
    want.sort();
    same("the shim's death", &seen, &want)?;
    // The stop finds a pod that has stopped, and tells nothing more of it.
    node.cri.stop_pod(&pod.id)?;
    node.cri.remove_pod(&pod.id)?;
    let deleted = listener.take(3)?;
    ensure!(
        deleted.iter().all(|event| event.container_event_type() == Type::ContainerDeletedEvent),
        "{:?}",
        gists(&deleted)
    );
    same("last", &deleted[2].container_id, &pod.id)
}

fn tells_a_dead_pid_1(node: &mut Node, _: &mut Registry) -> Result<()> {
    let listener = Listener::new(node)?;
    let pod = node.run(sharing(node))?;
    listener.take(2)?;
    kill_pid_1(&pod)?;
    let stopped = listener.take(1)?;
    same("the death of PID 1", &gist(&stopped[0]), &(pod.id.as_str(), Type::ContainerStoppedEvent))?;
    let status = stopped[0].pod_sandbox_status.as_ref().context("no status")?;
    same("state", &status.state(), &PodSandboxState::SandboxNotready)?;
    // The stop finds a pod that has stopped, and tells nothing more of it.
    node.cri.stop_pod(&pod.id)?;
    node.cri.remove_pod(&pod.id)?;
    same("last", &gist(&listener.take(1)?[0]), &(pod.id.as_str(), Type::ContainerDeletedEvent))
}

/// A pod that has lost its PID 1 has its shim, and may have containers that run: those that share no PID namespace.
fn a_dead_pid_1_is_known_after_a_restart(node: &mut Node, _: &mut Registry) -> Result<()> {
    let pod = node.run(sharing(node))?;
    let mut config = node.container("own", &["sh", "-c", "while [ ! -e /end ]; do sleep 0.05; done; exit 7"]);
    let options = cri::NamespaceOption { pid: cri::NamespaceMode::Container.into(), ..Default::default() };
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().namespace_options = Some(options);
    let id = node.launch(&pod, &config)?;
    kill_pid_1(&pod)?;
    let lost = || same("state", &node.cri.pod_status(&pod.id)?.state(), &PodSandboxState::SandboxNotready);
    eventually(SOON, lost)?;
    let pid = node.crictl_json(&["inspect", &id])?["info"]["pid"].to_string();
    node.signal_daemon(Signal::KILL)?;
    std::fs::write(format!("/proc/{pid}/root/end"), "")?;
    node.start_daemon()?;
    same("exit code", &node.wait_exit(&id)?.exit_code, &7)?;
    node.cri.stop_pod(&pod.id)?;
    node.cri.remove_pod(&pod.id)?;
    node.check_leaks()
}

fn sharing(node: &Node) -> cri::PodSandboxConfig {
    let mut config = node.pod("shared");
    let options = cri::NamespaceOption { pid: cri::NamespaceMode::Pod.into(), ..Default::default() };
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().namespace_options = Some(options);
    config
}

fn kill_pid_1(pod: &Pod) -> Result<()> {
    let shim = shim_of(pod)?.as_raw_nonzero();
    let children = std::fs::read_to_string(format!("/proc/{shim}/task/{shim}/children"))?;
    // Made with the pod, so it is the first one.
    let init = children.split_whitespace().next().context("the pod has no PID 1")?.parse()?;
    Ok(rustix::process::kill_process(rustix::process::Pid::from_raw(init).context("pid")?, Signal::KILL)?)
}

fn kill_shim(pod: &Pod) -> Result<()> {
    Ok(rustix::process::kill_process(shim_of(pod)?, Signal::KILL)?)
}

/// The process whose command line names the pod.
fn shim_of(pod: &Pod) -> Result<rustix::process::Pid> {
    for entry in std::fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<i32>() else { continue };
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        if line.contains("crisp-shim") && line.contains(&pod.id) {
            return rustix::process::Pid::from_raw(pid).context("pid");
        }
    }
    bail!("the pod has no shim")
}

/// A connection that takes little that is not read.
fn narrow_channel(node: &Node) -> Result<Channel> {
    const WINDOW_BYTES: u32 = 64 << 10;
    let socket = node.socket();
    let connect = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    let endpoint = Endpoint::try_from("http://localhost")?
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    Ok(endpoint.connect_with_connector_lazy(connect))
}

/// Creates and removes containers in the pod: two events each.
fn flood(node: &Node, pod: &Pod, count: usize) -> Result<()> {
    let work = (0..FLOOD_PARALLEL).map(|lane| {
        let mut client = node.cri.client();
        let requests: Vec<_> = (0..count / FLOOD_PARALLEL)
            .map(|number| cri::CreateContainerRequest {
                pod_sandbox_id: pod.id.clone(),
                config: Some(node.container(&format!("c-{lane}-{number}"), &["true"])),
                sandbox_config: Some(pod.config.clone()),
            })
            .collect();
        async move {
            for request in requests {
                let container_id = client.create_container(request).await?.into_inner().container_id;
                client.remove_container(cri::RemoveContainerRequest { container_id }).await?;
            }
            Ok::<_, Status>(())
        }
    });
    node.cri.together(futures_util::future::try_join_all(work))?;
    Ok(())
}

fn cuts_off_a_slow_reader_alone(node: &mut Node, _: &mut Registry) -> Result<()> {
    let mut config = node.pod("flood");
    config.annotations.insert("example.org/big".to_owned(), "x".repeat(FLOOD_BYTES));
    let pod = node.run(config)?;
    let quick = Listener::new(node)?;
    let channel = node.cri.together(async { narrow_channel(node) })?;
    let mut slow_client = cri::runtime_service_client::RuntimeServiceClient::new(channel);
    let mut slow =
        node.cri.together(slow_client.get_container_events(cri::GetEventsRequest {}))?.into_inner();
    flood(node, &pod, 16)?;
    let before = Instant::now();
    flood(node, &pod, FLOOD / 2)?;
    // Who waited for somebody that does not read would wait for ever.
    let each = before.elapsed() / u32::try_from(FLOOD / 2)?;
    ensure!(each < EACH_MAX, "a container took {each:?}");
    let status = node.cri.together(async {
        loop {
            match tokio::time::timeout(PATIENCE, slow.message()).await {
                Ok(Ok(Some(_))) => {}
                Ok(Ok(None)) => return Err("it ended without an error".to_owned()),
                Ok(Err(status)) => return Ok(status),
                Err(_) => return Err("it was not cut off".to_owned()),
            }
        }
    });
    same("code", &status.map(|status| status.code()), &Ok(tonic::Code::ResourceExhausted))?;
    // The snapshot of the pod, and two events for each container.
    let events = quick.take(1 + 2 * 16 + FLOOD / FLOOD_PARALLEL / 2 * FLOOD_PARALLEL * 2)?;
    check_pod(&events, &pod)?;
    node.cri.stop_pod(&pod.id)?;
    same("goes on", &gist(&quick.next()?), &(pod.id.as_str(), Type::ContainerStoppedEvent))
}

fn streams_end_with_the_daemon(node: &mut Node, _: &mut Registry) -> Result<()> {
    const AT_ONCE: Duration = Duration::from_secs(10);
    let listener = Listener::new(node)?;
    node.run(node.pod("outlives"))?;
    listener.take(2)?;
    let began = Instant::now();
    let status = node.signal_daemon(Signal::TERM)?;
    ensure!(status.success(), "SIGTERM ended the daemon with {status}");
    ensure!(began.elapsed() < AT_ONCE, "the daemon ended after {:?}", began.elapsed());
    // The other end of the channel is gone: the stream ended, and not with an error.
    let end = listener.0.recv_timeout(PATIENCE);
    ensure!(matches!(end, Err(RecvTimeoutError::Disconnected)), "{end:?}");
    node.start_daemon()?;
    let again = Listener::new(node)?;
    same("snapshot", &again.next()?.container_event_type(), &Type::ContainerStartedEvent)
}

fn crictl_shows_events(node: &mut Node, _: &mut Registry) -> Result<()> {
    let pod = node.run(node.pod("shown"))?;
    let endpoint = format!("unix://{}", node.socket().display());
    let mut crictl = Command::new(paths::tools().join("crictl"))
        .args([
            "--config",
            "/dev/null",
            "--timeout",
            "180s",
            "--runtime-endpoint",
            &endpoint,
            "events",
            "-o",
            "json",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    node.allow_process(crictl.id());
    let stdout = crictl.stdout.take().context("stdout of crictl")?;
    let (send, lines) = sync_channel(100_000);
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                return;
            }
        }
    });
    let wait_for = |text: &str| -> Result<()> {
        loop {
            let line = lines.recv_timeout(PATIENCE).with_context(|| format!("crictl shows no {text}"))?;
            if line.contains(text) {
                return Ok(());
            }
        }
    };
    let shown = wait_for(&pod.id).and_then(|()| {
        node.cri.stop_pod(&pod.id)?;
        wait_for("CONTAINER_STOPPED_EVENT")
    });
    crictl.kill()?;
    crictl.wait()?;
    shown
}
