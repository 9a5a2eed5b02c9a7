//! Port-forward by the real `crictl`.
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use crisp_proto::cri;
use sha2::{Digest as _, Sha256};

use super::client::Session;
use super::{TRANSPORTS, descriptors, descriptors_return};
use crate::node::{Node, same};
use crate::peer::{self, Peer};
use crate::registry::Registry;
use crate::suite::tests;

tests![
    carries_both_halves_and_many_connections,
    reaches_a_pod_in_the_network_of_the_node,
    tells_of_a_refused_port,
    carries_much_unharmed,
];

const AT_ONCE: u32 = 60;
const MUCH_BYTES: usize = 64 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// The network namespace of a pod.
pub(crate) fn netns(node: &Node, pod: &str) -> PathBuf {
    node.dir().join("state/pods").join(pod).join("ns/net")
}

/// A client that forwards a free local port, which is given.
pub(crate) fn forward(node: &Node, transport: &str, pod: &str, port: u16) -> Result<(Session, u16)> {
    let ports = format!(":{port}");
    let session = Session::start(node.crictl_command(&["port-forward", "-r", transport, pod, &ports]))?;
    session.says(&format!("-> {port}"))?;
    let text = session.text();
    let local = text.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next());
    let local = local.and_then(|port| port.parse().ok()).with_context(|| format!("local port in {text}"))?;
    Ok((session, local))
}

fn connect(port: u16) -> Result<TcpStream> {
    let socket = TcpStream::connect(("127.0.0.1", port))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Sends a text, ends its half, and reads the answer to its end.
fn ask(port: u16, text: &str) -> Result<String> {
    let mut socket = connect(port)?;
    socket.write_all(text.as_bytes())?;
    socket.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    Ok(answer)
}

fn carries_both_halves_and_many_connections(node: &mut Node, _: &mut Registry) -> Result<()> {
    let pod = node.run(node.pod("forward"))?;
    let peer = Peer::start(Some(&netns(node, &pod.id)), peer::echo)?;
    for transport in TRANSPORTS {
        let (session, port) = forward(node, transport, &pod.id, peer.port())?;
        same("answer", &ask(port, "hello")?.as_str(), &"hello<5 bytes>")?;
        let before = descriptors(node.daemon_pid()?)?;
        let asking: Vec<_> = (0..AT_ONCE)
            .map(|number| {
                let text = format!("connection {number}").repeat(1000);
                std::thread::spawn(move || -> Result<()> {
                    let expected = format!("{text}<{} bytes>", text.len());
                    ensure!(ask(port, &text)? == expected, "connection {number} got something else");
                    Ok(())
                })
            })
            .collect();
        for client in asking {
            client.join().map_err(|_panic| anyhow!("a client panicked"))?.with_context(|| session.text())?;
        }
        descriptors_return(node, before)?;
        session.kill()?;
    }
    Ok(())
}

fn reaches_a_pod_in_the_network_of_the_node(node: &mut Node, _: &mut Registry) -> Result<()> {
    let mut config = node.pod("host");
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.namespace_options.get_or_insert_default().network = cri::NamespaceMode::Node.into();
    let pod = node.run(config)?;
    let peer = Peer::start(None, peer::echo)?;
    for transport in TRANSPORTS {
        let (_session, port) = forward(node, transport, &pod.id, peer.port())?;
        same("answer", &ask(port, "hello")?.as_str(), &"hello<5 bytes>")?;
    }
    Ok(())
}

fn tells_of_a_refused_port(node: &mut Node, _: &mut Registry) -> Result<()> {
    let pod = node.run(node.pod("refused"))?;
    for transport in TRANSPORTS {
        let (session, port) = forward(node, transport, &pod.id, 9)?;
        // An answer that breaks off is none, too.
        let answer = ask(port, "hello").unwrap_or_default();
        same("answer", &answer.as_str(), &"")?;
        session.says("refused")?;
    }
    Ok(())
}

fn carries_much_unharmed(node: &mut Node, _: &mut Registry) -> Result<()> {
    let pod = node.run(node.pod("much"))?;
    let peer = Peer::start(Some(&netns(node, &pod.id)), peer::echo)?;
    let much = noise(MUCH_BYTES);
    let ending = format!("<{MUCH_BYTES} bytes>");
    for transport in TRANSPORTS {
        let (session, port) = forward(node, transport, &pod.id, peer.port())?;
        let mut socket = connect(port)?;
        let mut writer = socket.try_clone()?;
        let sent = much.clone();
        let writing = std::thread::spawn(move || -> Result<()> {
            writer.write_all(&sent)?;
            Ok(writer.shutdown(Shutdown::Write)?)
        });
        let mut back = Vec::with_capacity(MUCH_BYTES + ending.len());
        socket.read_to_end(&mut back).with_context(|| session.text())?;
        writing.join().map_err(|_panic| anyhow!("the writer panicked"))??;
        same("length", &back.len(), &(MUCH_BYTES + ending.len()))?;
        let (text, last) = back.split_at(MUCH_BYTES);
        same("checksum", &Sha256::digest(text), &Sha256::digest(&much))?;
        same("ending", &String::from_utf8_lossy(last).as_ref(), &ending.as_str())?;
    }
    Ok(())
}

/// Bytes without a pattern (xorshift, 64 bits).
fn noise(bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut noise = Vec::with_capacity(bytes);
    while noise.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        noise.extend_from_slice(&state.to_le_bytes());
    }
    noise.truncate(bytes);
    noise
}
