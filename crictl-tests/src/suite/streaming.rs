//! Exec, attach and port-forward: by the real `crictl` over both transports, and by clients that break the rules.
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use crisp_proto::cri;
use rustix::process::Signal;

use self::client::Session;
use super::tests;
use crate::eventually::{SOON, eventually};
use crate::node::{Node, Options, same};
use crate::objects::Pod;
use crate::registry::Registry;
use crate::web::{Client, Message, WebSocket};

pub(super) mod bad;
pub(crate) mod client;
pub(super) mod cycles;
pub(crate) mod forward;

tests![
    an_exec_gives_both_streams_and_the_code,
    an_exec_has_a_terminal,
    an_attached_client_talks_and_others_listen,
    stdin_once_ends_with_its_client,
    an_attached_terminal,
    a_killed_client_leaves_nothing,
    a_stop_ends_sessions_at_once,
    sessions_end_with_the_daemon,
    #[options(with_tls)]
    sessions_over_tls,
];

const TRANSPORTS: [&str; 2] = ["spdy", "websocket"];
/// A stop that waits for no session takes less.
const STOP_LIMIT: Duration = Duration::from_secs(4);

fn with_tls() -> Options {
    Options { more: "[streaming]\ntls = \"self-signed\"\n".to_owned(), ..Options::default() }
}

/// Descriptors that a process has open.
fn descriptors(pid: u32) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// Waits until the daemon has no more descriptors open than before.
fn descriptors_return(node: &Node, before: usize) -> Result<()> {
    let pid = node.daemon_pid()?;
    eventually(SOON, || {
        let now = descriptors(pid)?;
        ensure!(now <= before, "{now} descriptors of the daemon, not {before}");
        Ok(())
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Presence {
    Here,
    Gone,
}

/// Whether a process with these arguments runs, in whatever container.
fn presence(arguments: &str) -> Presence {
    let Ok(processes) = fs::read_dir("/proc") else { return Presence::Gone };
    let here = processes.flatten().any(|process| {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).trim_end_matches('\0').replace('\0', " ") == arguments
    });
    if here { Presence::Here } else { Presence::Gone }
}

/// Waits until a process with these arguments runs, or until none does.
fn wait_process(arguments: &str, wanted: Presence) -> Result<()> {
    eventually(SOON, || same(arguments, &presence(arguments), &wanted))
}

fn an_exec_gives_both_streams_and_the_code(node: &mut Node, _: &mut Registry) -> Result<()> {
    let (_, id) = node.one("exec", &["sleep", "1000"])?;
    for transport in TRANSPORTS {
        let exec = |command: &[&str]| -> Result<(Option<i32>, String, String)> {
            let arguments = [&["exec", "-r", transport, &id], command].concat();
            let done = node.crictl_command(&arguments).output()?;
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            Ok((done.status.code(), text(&done.stdout), text(&done.stderr)))
        };
        same("success", &exec(&["echo", "out"])?, &(Some(0), "out\n".to_owned(), String::new()))?;
        let (code, stdout, stderr) = exec(&["sh", "-c", "echo out; echo err >&2; exit 42"])?;
        same("stdout", &stdout.as_str(), &"out\n")?;
        ensure!(stderr.starts_with("err\n"), "{stderr}");
        // crictl tells the code in words only.
        ensure!(code == Some(1) && stderr.contains("exit code 42"), "{code:?} {stderr}");
        let (code, _, stderr) = exec(&["no-such-program"])?;
        ensure!(code == Some(1) && stderr.contains("no-such-program"), "{code:?} {stderr}");
        let (_, stdout, _) = exec(&["head", "-c", "3000000", "/dev/zero"])?;
        same("all of a long output", &stdout.len(), &3_000_000)?;

        let mut session =
            Session::start(node.crictl_command(&["exec", "-i", "-r", transport, &id, "md5sum"]))?;
        session.write(&"0123456789abcdef".repeat(1 << 16))?;
        session.close_input();
        let (status, text) = session.end()?;
        ensure!(status.success(), "{status} {text}");
        digest_is(node, &id, &text)?;
    }
    Ok(())
}

/// The digest that the container itself gives to the same text.
fn digest_is(node: &Node, id: &str, text: &str) -> Result<()> {
    let script = "yes 0123456789abcdef | tr -d '\\n' | head -c 1048576 | md5sum";
    same("digest", &text.trim(), &node.exec(id, &["sh", "-c", script])?.trim())
}

fn an_exec_has_a_terminal(node: &mut Node, _: &mut Registry) -> Result<()> {
    let (_, id) = node.one("tty", &["sleep", "1000"])?;
    for transport in TRANSPORTS {
        let command = node.crictl_command(&["exec", "-i", "-t", "-r", transport, &id, "sh"]);
        let mut session = Session::on_terminal(&command, 33, 101)?;
        // A size travels beside the other streams.
        session.write("until stty size | grep '33 101'; do usleep 20000; done\n")?;
        session.says("33 101\r\n")?;
        session.resize(44, 144)?;
        session.write("until stty size | grep '44 144'; do usleep 20000; done; tty; exit 7\n")?;
        session.says("44 144\r\n")?;
        session.says("/dev/pts/")?;
        let (status, text) = session.end()?;
        ensure!(!status.success() && text.contains("exit code 7"), "{status} {text}");
    }
    Ok(())
}

/// Runs a container whose configuration is changed.
fn launch(
    node: &Node,
    name: &str,
    command: &[&str],
    change: fn(&mut cri::ContainerConfig),
) -> Result<(Pod, String)> {
    let pod = node.run(node.pod(name))?;
    let mut config = node.container("main", command);
    change(&mut config);
    let id = node.launch(&pod, &config)?;
    Ok((pod, id))
}

fn an_attached_client_talks_and_others_listen(node: &mut Node, _: &mut Registry) -> Result<()> {
    let script =
        "while :; do echo tick; usleep 50000; done & while read line; do echo got $line; done; sleep 1000";
    let (_, id) = launch(node, "attach", &["sh", "-c", script], |c| c.stdin = true)?;
    for transport in TRANSPORTS {
        let mut talks = Session::start(node.crictl_command(&["attach", "-i", "-r", transport, &id]))?;
        let listens = Session::start(node.crictl_command(&["attach", "-r", transport, &id]))?;
        talks.says("tick")?;
        listens.says("tick")?;
        talks.write(&format!("{transport} here\n"))?;
        let answer = format!("got {transport} here");
        talks.says(&answer)?;
        listens.says(&answer)?;
        // Its end detaches it alone.
        talks.close_input();
        talks.end()?;
        let heard = listens.text().len();
        eventually(SOON, || {
            ensure!(listens.text().len() > heard, "the other client hears nothing more");
            Ok(())
        })?;
    }
    same("state", &node.cri.container_status(&id)?.state(), &cri::ContainerState::ContainerRunning)
}

fn stdin_once_ends_with_its_client(node: &mut Node, _: &mut Registry) -> Result<()> {
    for transport in TRANSPORTS {
        let (_, id) =
            launch(node, &format!("once-{transport}"), &["sh", "-c", "cat; echo all; exit 5"], |c| {
                c.stdin = true;
                c.stdin_once = true;
            })?;
        let mut session = Session::start(node.crictl_command(&["attach", "-i", "-r", transport, &id]))?;
        session.write("some text\n")?;
        session.says("some text")?;
        session.close_input();
        same("exit code", &node.wait_exit(&id)?.exit_code, &5)?;
        let (_, text) = session.end()?;
        ensure!(text.contains("all"), "{text}");
        let error = node.crictl_fails(&["attach", "-r", transport, &id])?;
        ensure!(error.contains("FailedPrecondition") || error.contains("not running"), "{error}");
    }
    Ok(())
}

fn an_attached_terminal(node: &mut Node, _: &mut Registry) -> Result<()> {
    let (_, id) = launch(node, "tty", &["sh"], |c| {
        c.stdin = true;
        c.tty = true;
    })?;
    for transport in TRANSPORTS {
        let command = node.crictl_command(&["attach", "-i", "-t", "-r", transport, &id]);
        let mut session = Session::on_terminal(&command, 35, 105)?;
        session.write("until stty size | grep '35 105'; do usleep 20000; done\n")?;
        session.says("35 105\r\n")?;
        session.resize(45, 145)?;
        session.write("until stty size | grep '45 145'; do usleep 20000; done; echo $((40+2))\n")?;
        session.says("\n42\r\n")?;
        session.kill()?;
    }
    same("state", &node.cri.container_status(&id)?.state(), &cri::ContainerState::ContainerRunning)
}

fn a_killed_client_leaves_nothing(node: &mut Node, _: &mut Registry) -> Result<()> {
    let (pod, id) =
        launch(node, "killed", &["sh", "-c", "while :; do echo tick; usleep 20000; done"], |c| {
            c.stdin = true;
        })?;
    // What the first session makes once stays.
    node.crictl(&["exec", &id, "true"])?;
    let before = descriptors(node.daemon_pid()?)?;
    for transport in TRANSPORTS {
        let exec =
            Session::start(node.crictl_command(&["exec", "-i", "-r", transport, &id, "sleep", "4711"]))?;
        let busy = Session::start(node.crictl_command(&["exec", "-r", transport, &id, "yes", "4712"]))?;
        let attached = Session::start(node.crictl_command(&["attach", "-i", "-r", transport, &id]))?;
        let forward =
            Session::start(node.crictl_command(&["port-forward", "-r", transport, &pod.id, ":80"]))?;
        wait_process("sleep 4711", Presence::Here)?;
        busy.says("4712")?;
        attached.says("tick")?;
        forward.says("Forwarding from")?;
        for session in [exec, busy, attached, forward] {
            session.kill()?;
        }
        wait_process("sleep 4711", Presence::Gone)?;
        wait_process("yes 4712", Presence::Gone)?;
        descriptors_return(node, before)?;
    }
    Ok(())
}

/// One session of each kind, all under way.
fn sessions(node: &Node, pod: &str, id: &str, transport: &str) -> Result<Vec<Session>> {
    let exec = Session::start(node.crictl_command(&["exec", "-i", "-r", transport, id, "sleep", "4713"]))?;
    let attached = Session::start(node.crictl_command(&["attach", "-r", transport, id]))?;
    let forward = Session::start(node.crictl_command(&["port-forward", "-r", transport, pod, ":80"]))?;
    wait_process("sleep 4713", Presence::Here)?;
    attached.says("tick")?;
    forward.says("Forwarding from")?;
    Ok(vec![exec, attached, forward])
}

const TICKS: [&str; 3] = ["sh", "-c", "while :; do echo tick; usleep 20000; done"];

fn a_stop_ends_sessions_at_once(node: &mut Node, _: &mut Registry) -> Result<()> {
    for transport in TRANSPORTS {
        let (pod, id) = node.one(&format!("stop-{transport}"), &TICKS)?;
        let mut open = sessions(node, &pod.id, &id, transport)?;
        let began = Instant::now();
        node.cri.stop(&id, 0)?;
        ensure!(began.elapsed() < STOP_LIMIT, "StopContainer took {:?}", began.elapsed());
        for session in &mut open[..2] {
            session.end()?;
        }
        let began = Instant::now();
        node.cri.stop_pod(&pod.id)?;
        ensure!(began.elapsed() < STOP_LIMIT, "StopPodSandbox took {:?}", began.elapsed());
        open[2].end()?;

        let (pod, id) = node.one(&format!("stopp-{transport}"), &TICKS)?;
        let mut open = sessions(node, &pod.id, &id, transport)?;
        let began = Instant::now();
        node.cri.stop_pod(&pod.id)?;
        ensure!(began.elapsed() < STOP_LIMIT, "StopPodSandbox took {:?}", began.elapsed());
        open.iter_mut().try_for_each(|session| session.end().map(drop))?;
    }
    Ok(())
}

fn sessions_end_with_the_daemon(node: &mut Node, _: &mut Registry) -> Result<()> {
    let (pod, id) = node.one("restart", &TICKS)?;
    for transport in TRANSPORTS {
        for signal in [Signal::TERM, Signal::KILL] {
            let mut open = sessions(node, &pod.id, &id, transport)?;
            node.signal_daemon(signal).with_context(|| format!("{signal:?} with open sessions"))?;
            for session in &mut open {
                session.end().with_context(|| format!("after {signal:?}"))?;
            }
            node.start_daemon()?;
            wait_process("sleep 4713", Presence::Gone)
                .with_context(|| format!("{transport}, after {signal:?}"))?;
            node.crictl(&["exec", "-r", transport, &id, "true"])?;
        }
    }
    same("state", &node.cri.container_status(&id)?.state(), &cri::ContainerState::ContainerRunning)
}

/// The next message with content: a session begins with an empty one for each channel.
fn spoken(session: &mut WebSocket) -> Result<Message> {
    loop {
        match session.receive()? {
            Message::Binary(message) if message.len() < 2 => {}
            message => return Ok(message),
        }
    }
}

fn sessions_over_tls(node: &mut Node, _: &mut Registry) -> Result<()> {
    let (_, id) = node.one("tls", &["sleep", "1000"])?;
    let url = node.cri.exec_url(&id, &["cat"])?;
    ensure!(url.starts_with("https://"), "{url}");
    let (client, path) = Client::of(&url)?;
    let mut session = client.websocket(&path, "v5.channel.k8s.io")?;
    session.send(0, b"over TLS")?;
    same("echo", &spoken(&mut session)?, &Message::Binary(b"\x01over TLS".to_vec()))?;
    drop(session);
    // A plain client on the port of TLS gets no session, and costs none.
    let url = node.cri.exec_url(&id, &["cat"])?.replace("https", "http");
    let (client, path) = Client::of(&url)?;
    ensure!(client.websocket(&path, "v5.channel.k8s.io").is_err(), "a session without TLS");
    for transport in TRANSPORTS {
        // Without a flag for the certificate crictl takes any.
        let said = node.crictl(&["exec", "-r", transport, &id, "echo", "by crictl"])?;
        same(transport, &said.as_str(), &"by crictl\n")?;
    }
    Ok(())
}
