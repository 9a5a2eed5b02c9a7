//! Clients that break the rules: a clear answer, and nothing left of them.
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tonic::Code;

use super::{Presence, descriptors, descriptors_return, wait_process};
use crate::eventually::pause;
use crate::node::{Node, same};
use crate::registry::Registry;
use crate::suite::tests;
use crate::web::Client;

tests![
    wrong_requests_get_a_status,
    malformed_websocket_frames_end_the_session,
    malformed_spdy_frames_end_the_session,
    too_many_waiting_requests_are_refused,
    slow_clients_run_into_limits,
];

/// Set to run what waits for time limits: a minute and a half.
const SLOW: &str = "CRICTL_TESTS_SLOW";
const COMMAND: [&str; 3] = ["sh", "-c", "cat; exec sleep 4714"];
const WEBSOCKET: &str =
    "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: Y3Jpc3AgdGVzdHMgaGVyZQ==\r\n";
const SPDY: &str = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n";
const VERSION: &str = "Sec-WebSocket-Version: 13\r\n";
const CHANNELS: &str = "Sec-WebSocket-Protocol: v4.channel.k8s.io\r\n";

/// The status of the answer to a request.
fn status(url: &str, method: &str, headers: &str) -> Result<u16> {
    let (mut client, path) = Client::of(url)?;
    client.send(format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").as_bytes())?;
    Ok(client.head()?.0)
}

fn wrong_requests_get_a_status(node: &mut Node, _: &mut Registry) -> Result<()> {
    let (_, id) = node.one("requests", &["sleep", "1000"])?;
    let exec = || node.cri.exec_url(&id, &["true"]);
    let good = format!("{WEBSOCKET}{VERSION}{CHANNELS}");
    let url = exec()?;
    let unknown = format!("{}/{}", url.rsplit_once('/').context("token")?.0, "0".repeat(32));
    same("unknown token", &status(&unknown, "GET", &good)?, &404)?;
    same("no token", &status(url.rsplit_once('/').context("token")?.0, "GET", &good)?, &404)?;
    same("token of another kind", &status(&url.replace("/exec/", "/attach/"), "GET", &good)?, &404)?;
    same("method", &status(&url, "DELETE", &good)?, &405)?;
    same("first use", &status(&url, "GET", &good)?, &101)?;
    same("second use", &status(&url, "GET", &good)?, &404)?;
    let others = "Sec-WebSocket-Protocol: v9.channel.k8s.io\r\n";
    for (what, headers, expected) in [
        ("no upgrade", String::new(), 400),
        ("another upgrade", "Connection: Upgrade\r\nUpgrade: h2c\r\n".to_owned(), 400),
        ("a body", format!("{good}Content-Length: 5\r\n"), 400),
        ("no key", format!("Connection: Upgrade\r\nUpgrade: websocket\r\n{VERSION}{CHANNELS}"), 400),
        ("version", format!("{WEBSOCKET}Sec-WebSocket-Version: 8\r\n{CHANNELS}"), 426),
        ("no common protocol", format!("{WEBSOCKET}{VERSION}{others}"), 403),
        ("no SPDY protocol", SPDY.to_owned(), 400),
        ("no common SPDY protocol", format!("{SPDY}X-Stream-Protocol-Version: v9.channel.k8s.io\r\n"), 403),
        ("a huge header", format!("{good}X-Huge: {}\r\n", "x".repeat(60_000)), 431),
        ("many headers", format!("{good}{}", "X-Many: x\r\n".repeat(200)), 431),
    ] {
        same(what, &status(&exec()?, "GET", &headers).context(what)?, &expected)?;
    }
    let (mut client, _) = Client::of(&exec()?)?;
    client.send(b"\x16\x03\x01 this is no HTTP\r\n\r\n")?;
    client.ends()?;
    same("still there", &node.crictl(&["exec", &id, "echo", "yes"])?.as_str(), &"yes\n")
}

/// Sends bytes after the upgrade. Each session has a process, which must end too.
fn breaks(node: &Node, id: &str, headers: &str, cases: &[(&str, &[u8], bool)]) -> Result<()> {
    // What the first session makes once stays.
    node.crictl(&["exec", id, "true"])?;
    let before = descriptors(node.daemon_pid()?)?;
    for (what, bytes, ends) in cases {
        let (mut client, path) = Client::of(&node.cri.exec_url(id, &COMMAND)?)?;
        client.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").as_bytes())?;
        same(what, &client.head()?.0, &101)?;
        client.send(bytes).with_context(|| (*what).to_owned())?;
        if *ends {
            client.ends().with_context(|| (*what).to_owned())?;
        }
        drop(client);
        descriptors_return(node, before).with_context(|| (*what).to_owned())?;
        for process in [COMMAND.join(" ").as_str(), "sleep 4714"] {
            wait_process(process, Presence::Gone).with_context(|| (*what).to_owned())?;
        }
    }
    same("still there", &node.crictl(&["exec", id, "echo", "yes"])?.as_str(), &"yes\n")
}

fn malformed_websocket_frames_end_the_session(node: &mut Node, _: &mut Registry) -> Result<()> {
    let (_, id) = node.one("websocket", &["sleep", "1000"])?;
    let headers = format!("{WEBSOCKET}{VERSION}{CHANNELS}");
    let flood = b"\x8a\x80\0\0\0\0".repeat(100_000);
    breaks(
        node,
        &id,
        &headers,
        &[
            ("not masked", b"\x82\x02\x00x", true),
            ("reserved bits", b"\xf2\x82\0\0\0\0\x00x", true),
            ("unknown operation", b"\x83\x82\0\0\0\0\x00x", true),
            ("long ping", b"\x89\xfe\x01\x00\0\0\0\0", true),
            ("ping in parts", b"\x09\x80\0\0\0\0", true),
            ("a part without a beginning", b"\x80\x82\0\0\0\0\x00x", true),
            ("length above 63 bits", b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0", true),
            ("a message of 1 GiB", b"\x82\xff\0\0\0\0\x40\0\0\0\0\0\0\0", true),
            ("unknown channel", b"\x82\x82\0\0\0\0\x4dx", false),
            ("an empty message", b"\x82\x80\0\0\0\0", false),
            ("a resize without sense", b"\x82\x84\0\0\0\0\x04{]]", false),
            ("half a frame", b"\x82\xfe\xff", false),
            ("a flood of pongs", &flood, false),
        ],
    )
}

fn malformed_spdy_frames_end_the_session(node: &mut Node, _: &mut Registry) -> Result<()> {
    let (_, id) = node.one("spdy", &["sleep", "1000"])?;
    let headers = format!("{SPDY}X-Stream-Protocol-Version: v4.channel.k8s.io\r\n");
    let settings = b"\x80\x03\x00\x04\x00\x00\x00\x04\x00\x00\x00\x00".repeat(100_000);
    let pings = b"\x80\x03\x00\x06\x00\x00\x00\x04\x00\x00\x00\x01".repeat(500_000);
    breaks(
        node,
        &id,
        &headers,
        &[
            ("another version", b"\x80\x09\x00\x01\x00\x00\x00\x0a\0\0\0\x01\0\0\0\0\0\0", true),
            ("unknown control frame", b"\x80\x03\x00\x63\x00\x00\x00\x00", false),
            (
                "a header block that is none",
                b"\x80\x03\x00\x01\x00\x00\x00\x12\0\0\0\x01\0\0\0\0\0\0garbage!",
                true,
            ),
            ("stream 0", b"\x80\x03\x00\x01\x00\x00\x00\x0a\0\0\0\0\0\0\0\0\0\0", true),
            ("a frame of 16 MiB", b"\x80\x03\x00\x01\x00\xff\xff\xff\0\0\0\x01\0\0\0\0\0\0", true),
            ("short SYN_STREAM", b"\x80\x03\x00\x01\x00\x00\x00\x02\0\0", true),
            ("data of no stream", b"\x00\x00\x00\x63\x00\x00\x00\x04text", false),
            ("RST of no stream", b"\x80\x03\x00\x03\x00\x00\x00\x08\0\0\0\x63\0\0\0\x01", false),
            ("GOAWAY", b"\x80\x03\x00\x07\x00\x00\x00\x08\0\0\0\0\0\0\0\0", false),
            ("half a frame", b"\x80\x03\x00", false),
            ("a flood of settings", &settings, false),
        ],
    )?;
    flood(node, &id, &headers, &pings)
}

/// Asks for answers and reads none: the server may cut the client off, and must not gather them.
fn flood(node: &Node, id: &str, headers: &str, bytes: &[u8]) -> Result<()> {
    let before = descriptors(node.daemon_pid()?)?;
    let (mut client, path) = Client::of(&node.cri.exec_url(id, &COMMAND)?)?;
    client.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n").as_bytes())?;
    same("flood of pings", &client.head()?.0, &101)?;
    // Cut off while it sends.
    drop(client.send(bytes));
    drop(client);
    descriptors_return(node, before)
}

fn too_many_waiting_requests_are_refused(node: &mut Node, _: &mut Registry) -> Result<()> {
    const WAITING_MAX: usize = 1000;
    let (pod, id) = node.one("tokens", &["sleep", "1000"])?;
    let before = descriptors(node.daemon_pid()?)?;
    let first = node.cri.exec_url(&id, &["true"])?;
    for _ in 1..WAITING_MAX {
        node.cri.exec_url(&id, &["true"])?;
    }
    let codes = [
        node.cri.exec_url(&id, &["true"]).err().map(|status| status.code()),
        node.cri.listen_url(&id).err().map(|status| status.code()),
        node.cri.forward_url(&pod.id, 80).err().map(|status| status.code()),
    ];
    same("codes", &codes, &[Some(Code::ResourceExhausted); 3])?;
    descriptors_return(node, before)?;
    // One that is used makes room.
    let (client, path) = Client::of(&first)?;
    drop(client.websocket(&path, "v4.channel.k8s.io")?);
    node.cri.listen_url(&id)?;
    Ok(())
}

fn slow_clients_run_into_limits(node: &mut Node, _: &mut Registry) -> Result<()> {
    if std::env::var_os(SLOW).is_none() {
        crate::say!("  not run: {SLOW} is not set");
        return Ok(());
    }
    let (_, id) = node.one("slow", &["sleep", "1000"])?;
    let url = node.cri.exec_url(&id, &["true"])?;
    let before = descriptors(node.daemon_pid()?)?;
    let (mut silent, _) = Client::of(&url)?;
    let (mut half, path) = Client::of(&url)?;
    half.send(format!("GET {path} HTTP/1.1\r\nHost:").as_bytes())?;
    // The limit is as long as the patience of one read.
    for client in [&mut silent, &mut half] {
        client.ends().or_else(|_| client.ends())?;
    }
    descriptors_return(node, before)?;
    pause(Duration::from_secs(35));
    let (client, path) = Client::of(&url)?;
    let error = client.websocket(&path, "v4.channel.k8s.io").err().context("an expired token was taken")?;
    ensure!(error.to_string().contains("404"), "{error:?}");
    Ok(())
}
