//! How much goes through attach and port-forward, and what it costs. Client, peer, daemon and shim share the processors.
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::polling::{TICKS_PER_SECOND, of_process};
use crate::node::Node;
use crate::peer::Peer;
use crate::say;
use crate::suite::streaming::forward::{forward, netns};
use crate::web::{Client, Message, WebSocket};

const OUTPUT_BYTES: usize = 1 << 30;
/// What is logged lies in the memory of the machine, with its stamps.
const LOGGED_BYTES: usize = 128 << 20;
const PART_BYTES: usize = 16 << 20;
const FORWARD_BYTES: usize = 1 << 30;
/// By crictl, which is slower than the daemon.
const BY_CRICTL_BYTES: usize = 256 << 20;
const CHUNK_BYTES: usize = 128 << 10;
const MEGA: f64 = 1e6;

/// Measures each way and prints a table.
pub(super) fn run(node: &Node) -> Result<()> {
    say!("\nstreams through the daemon\n{:<52}{:>9}{:>10}{:>10}", "what", "MB/s", "daemon", "shims");
    let count = OUTPUT_BYTES / CHUNK_BYTES;
    let zeroes = format!("read go; exec dd if=/dev/zero bs={CHUNK_BYTES} count={count} 2>/dev/null");
    attach(node, "attach, zeroes, no log (WebSocket)", &zeroes, OUTPUT_BYTES, "")?;
    let line = "x".repeat(99);
    // Made before it is measured: a shell's programs make lines slower than they are carried.
    let lines = format!(
        "yes {line} | head -c {PART_BYTES} >/tmp/lines; read go; for part in $(seq {}); do cat /tmp/lines; done",
        LOGGED_BYTES / PART_BYTES
    );
    attach(node, "attach, lines, no log (WebSocket)", &lines, LOGGED_BYTES, "")?;
    attach(node, "attach, lines, logged (WebSocket)", &lines, LOGGED_BYTES, "main.log")?;
    forward_out(node)?;
    forward_in(node)?;
    for transport in ["spdy", "websocket"] {
        forward_by_crictl(node, transport)?;
    }
    node.remove_all()
}

/// Times the work, and counts the processor seconds of daemon and shims in it.
fn measured(node: &Node, what: &str, bytes: usize, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let used = || -> Result<[u64; 2]> {
        let shims = super::shims().into_iter().map(of_process).sum::<Result<u64>>()?;
        Ok([of_process(node.daemon_pid()?)?, shims])
    };
    let (before, began) = (used()?, Instant::now());
    work().with_context(|| what.to_owned())?;
    let took = began.elapsed();
    let after = used()?;
    let [daemon, shims] =
        [0, 1].map(|at| Duration::from_secs_f64((after[at] - before[at]) as f64 / TICKS_PER_SECOND));
    say!(
        "{what:<52}{:>9.0}{:>8.2} s{:>8.2} s",
        bytes as f64 / MEGA / took.as_secs_f64(),
        daemon.as_secs_f64(),
        shims.as_secs_f64()
    );
    Ok(())
}

fn attach(node: &Node, what: &str, script: &str, bytes: usize, log: &str) -> Result<()> {
    let pod = node.run(node.pod("attach"))?;
    let mut config = node.container("main", &["sh", "-c", script]);
    config.stdin = true;
    config.log_path = log.to_owned();
    let id = node.launch(&pod, &config)?;
    let (client, path) = Client::of(&node.cri.talk_url(&id)?)?;
    let mut session = client.websocket(&path, "v4.channel.k8s.io")?;
    measured(node, what, bytes, || {
        session.send(0, b"go\n")?;
        drain(&mut session, 1, bytes)
    })?;
    node.remove_all()
}

/// Reads so many bytes of a channel.
fn drain(session: &mut WebSocket, channel: u8, bytes: usize) -> Result<()> {
    let (mut message, mut left) = (Vec::new(), bytes);
    while left > 0 {
        ensure!(session.receive_into(&mut message)?, "the session ended {left} bytes early");
        match message.split_first() {
            Some((first, data)) if *first == channel => left = left.saturating_sub(data.len()),
            Some((_, data)) if data.len() > 2 => anyhow::bail!("{}", String::from_utf8_lossy(data)),
            _ => {}
        }
    }
    Ok(())
}

/// Sends zeroes until the other side has enough.
fn pour(mut socket: TcpStream) {
    let chunk = vec![0; CHUNK_BYTES];
    while socket.write_all(&chunk).is_ok() {}
}

/// Takes [`FORWARD_BYTES`] and says so.
fn swallow(socket: TcpStream) {
    let Ok(mut answer) = socket.try_clone() else { return };
    let wanted = u64::try_from(FORWARD_BYTES).unwrap_or(u64::MAX);
    if std::io::copy(&mut socket.take(wanted), &mut std::io::sink()).is_ok_and(|taken| taken == wanted) {
        drop(answer.write_all(b"all"));
    }
}

fn forward_out(node: &Node) -> Result<()> {
    let pod = node.run(node.pod("out"))?;
    let peer = Peer::start(Some(&netns(node, &pod.id)), pour)?;
    let (client, path) = Client::of(&node.cri.forward_url(&pod.id, peer.port())?)?;
    let mut session = client.websocket(&path, "v4.channel.k8s.io")?;
    measured(node, "port-forward from the pod (WebSocket)", FORWARD_BYTES, || {
        drain(&mut session, 0, FORWARD_BYTES)
    })
}

fn forward_in(node: &Node) -> Result<()> {
    let pod = node.run(node.pod("in"))?;
    let peer = Peer::start(Some(&netns(node, &pod.id)), swallow)?;
    let (client, path) = Client::of(&node.cri.forward_url(&pod.id, peer.port())?)?;
    let mut session = client.websocket(&path, "v4.channel.k8s.io")?;
    let chunk = vec![0; CHUNK_BYTES];
    measured(node, "port-forward into the pod (WebSocket)", FORWARD_BYTES, || {
        for _ in 0..FORWARD_BYTES / CHUNK_BYTES {
            session.send(0, &chunk)?;
        }
        loop {
            match session.receive()? {
                Message::Binary(message) if message == b"\x00all" => return Ok(()),
                Message::Binary(_) => {}
                Message::Closed => anyhow::bail!("the session ended"),
            }
        }
    })
}

fn forward_by_crictl(node: &Node, transport: &str) -> Result<()> {
    let pod = node.run(node.pod(transport))?;
    let peer = Peer::start(Some(&netns(node, &pod.id)), pour)?;
    let (_session, port) = forward(node, transport, &pod.id, peer.port())?;
    let what = format!("port-forward from the pod by crictl ({transport})");
    measured(node, &what, BY_CRICTL_BYTES, || {
        let socket = TcpStream::connect(("127.0.0.1", port))?;
        let (mut left, mut chunk) = (BY_CRICTL_BYTES, vec![0; CHUNK_BYTES]);
        let mut reader = &socket;
        while left > 0 {
            let count = reader.read(&mut chunk)?;
            ensure!(count > 0, "the connection ended {left} bytes early");
            left = left.saturating_sub(count);
        }
        Ok(socket.shutdown(Shutdown::Both)?)
    })
}
