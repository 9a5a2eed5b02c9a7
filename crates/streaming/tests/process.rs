//! Exec and attach from a client's side.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use crisp_domain::ErrorKind;
use crisp_streaming::spdy::frame::{self as spdy, Fin};
use crisp_streaming::ws::frame::Operation;
use crisp_streaming::{AttachRequest, Config};
use serde_json::{Value, json};
use support::{Message, Said, Spdy, WebSocket, ends, exec, request, server, soon, spdy_request, ws_request};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).unwrap()
}

fn success() -> Value {
    json!({ "metadata": {}, "status": "Success" })
}

#[tokio::test]
async fn spdy_tells_output_and_the_code() {
    let (server, processes) = server(Config::default()).await;
    let url = server.exec_url(exec(&["sh", "-c", "echo out; echo err >&2; exit 7"], "oe")).unwrap();
    let mut client = Spdy::connect(&url, "v4.channel.k8s.io").await;
    let error = client.open([("streamtype", "error")]).await;
    let stdout = client.open([("streamType", "stdout")]).await;
    let stderr = client.open([("streamtype", "stderr")]).await;
    assert_eq!(client.all(stdout).await, b"out\n");
    assert_eq!(client.all(stderr).await, b"err\n");
    let status = json(&client.all(error).await);
    assert_eq!(status["details"]["causes"][0], json!({ "reason": "ExitCode", "message": "7" }));
    assert!(client.closed().await.contains(&Said::GoAway));
    soon(processes.settled()).await;
}

#[tokio::test]
async fn spdy_passes_input_and_its_end() {
    let (server, _) = server(Config::default()).await;
    let url = server.exec_url(exec(&["cat"], "io")).unwrap();
    let mut client = Spdy::connect(&url, "v4.channel.k8s.io, v3.channel.k8s.io").await;
    let error = client.open([("streamtype", "error")]).await;
    let stdin = client.open([("streamtype", "stdin")]).await;
    // Before the last stream, so before the process.
    client.data(stdin, b"early ", Fin::No).await;
    let stdout = client.open([("streamtype", "stdout")]).await;
    client.data(stdin, b"late", Fin::Yes).await;
    assert_eq!(client.all(stdout).await, b"early late");
    assert_eq!(json(&client.all(error).await), success());
}

#[tokio::test]
async fn old_spdy_says_nothing_of_success_and_words_of_failure() {
    let (server, _) = server(Config::default()).await;
    for (version, code, said) in [
        ("v2.channel.k8s.io", "0", ""),
        ("v3.channel.k8s.io", "3", "command terminated with non-zero exit code: exit status 3"),
    ] {
        let url = server.exec_url(exec(&["sh", "-c", &format!("exit {code}")], "o")).unwrap();
        let mut client = Spdy::connect(&url, version).await;
        let error = client.open([("streamtype", "error")]).await;
        client.open([("streamtype", "stdout")]).await;
        assert_eq!(String::from_utf8(client.all(error).await).unwrap(), said);
    }
}

#[tokio::test]
async fn the_first_spdy_ends_stdin_and_resets_errors_at_once() {
    let (server, _) = server(Config::default()).await;
    let url = server.exec_url(exec(&["cat"], "io")).unwrap();
    let mut client = Spdy::connect(&url, "channel.k8s.io").await;
    let error = client.open([("streamtype", "error")]).await;
    let stdin = client.open([("streamtype", "stdin")]).await;
    let stdout = client.open([("streamtype", "stdout")]).await;
    client.expect(&Said::Fin(stdin)).await;
    client.expect(&Said::Reset(error, spdy::RESET_CANCEL)).await;
    client.data(stdin, b"still read", Fin::Yes).await;
    assert_eq!(client.all(stdout).await, b"still read");
}

#[tokio::test]
async fn a_program_that_cannot_start_is_an_internal_error() {
    let (server, _) = server(Config::default()).await;
    let url = server.exec_url(exec(&["/no/such/program"], "o")).unwrap();
    let mut client = WebSocket::connect(&url, "v4.channel.k8s.io").await;
    let status = json(&client.all().await[3]);
    assert_eq!((&status["reason"], &status["code"]), (&json!("InternalError"), &json!(500)));
}

#[tokio::test]
async fn sizes_reach_the_terminal_even_when_early() {
    let (server, processes) = server(Config::default()).await;
    let url = server.exec_url(exec(&["cat"], "iot")).unwrap();
    let mut client = Spdy::connect(&url, "v4.channel.k8s.io").await;
    let resize = client.open([("streamtype", "resize")]).await;
    client.data(resize, br#"{"Width":100,"Height":40}"#, Fin::No).await;
    let error = client.open([("streamtype", "error")]).await;
    let stdin = client.open([("streamtype", "stdin")]).await;
    let stdout = client.open([("streamtype", "stdout")]).await;
    client.data(stdin, b"x", Fin::No).await;
    client.expect(&Said::Data(stdout, b"x".to_vec())).await;
    assert_eq!(*processes.sizes.lock().unwrap(), [(100, 40)]);
    client.data(stdin, b"", Fin::Yes).await;
    assert_eq!(json(&client.all(error).await), success());
}

#[tokio::test]
async fn pings_are_echoed_though_stdin_stalls_and_memory_stays_bounded() {
    let (server, processes) = server(Config::default()).await;
    let url = server.exec_url(exec(&["sleep", "1000"], "io")).unwrap();
    let mut client = Spdy::connect(&url, "v4.channel.k8s.io").await;
    for kind in ["error", "stdout"] {
        client.open([("streamtype", kind)]).await;
    }
    let stdin = client.open([("streamtype", "stdin")]).await;
    // The pipe takes 64 KiB, the rest waits.
    for _ in 0..5 {
        client.data(stdin, &[0; 32 * 1024], Fin::No).await;
    }
    client.raw(&spdy::ping(9)).await;
    client.expect(&Said::Ping(9)).await;
    // Far more than buffers hold: the server stops reading, and so the client cannot go on.
    let flood = async {
        for _ in 0..4096 {
            client.write.write_all(&spdy::data_header(stdin, Fin::No, 32 * 1024)).await.unwrap();
            client.write.write_all(&[0; 32 * 1024]).await.unwrap();
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(2), flood).await.is_err());
    drop(server);
    soon(processes.settled()).await;
}

#[tokio::test]
async fn a_client_that_leaves_is_missed_though_nothing_is_read_from_it() {
    let (server, processes) = server(Config::default()).await;
    let url = server.exec_url(exec(&["sleep", "1000"], "i")).unwrap();
    let mut client = WebSocket::connect(&url, "v5.channel.k8s.io").await;
    // More than the pipe and the buffers hold, so that the server stops reading; less than the sockets hold besides.
    for _ in 0..14 {
        client.binary(0, &[0; 32 * 1024]).await;
    }
    drop(client);
    soon(processes.settled()).await;
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_process() {
    let (server, processes) = server(Config::default()).await;
    for protocol in ["v4.channel.k8s.io", "v5.channel.k8s.io"] {
        let url = server.exec_url(exec(&["cat"], "io")).unwrap();
        let mut client = WebSocket::connect(&url, protocol).await;
        client.binary(0, b"x").await;
        assert_eq!(client.hear().await, Some(Message::Data(vec![1])));
        assert_eq!(client.hear().await, Some(Message::Data(vec![1, b'x'])));
        drop(client);
        soon(processes.settled()).await;
    }
}

#[tokio::test]
async fn websockets_pass_input_its_end_and_the_status() {
    let (server, _) = server(Config::default()).await;
    let url = server.exec_url(exec(&["sh", "-c", "cat; echo e >&2; exit 3"], "ioe")).unwrap();
    let mut client = WebSocket::connect(&url, "unknown, v5.channel.k8s.io, v4.channel.k8s.io").await;
    client.send(Operation::Binary, &[]).await;
    client.binary(9, b"unknown channel").await;
    client.binary(4, br#"{"Width":1,"Height":1}"#).await;
    client.send(Operation::Ping, b"there?").await;
    client.binary(0, b"in").await;
    client.binary(255, &[0]).await;
    let channels = client.all().await;
    assert_eq!((&channels[1][..], &channels[2][..]), (&b"in"[..], &b"e\n"[..]));
    assert_eq!(json(&channels[3])["details"]["causes"][0]["message"], "3");
}

#[tokio::test]
async fn broken_signals_end_a_v5_session() {
    let (server, processes) = server(Config::default()).await;
    for signal in [&[][..], &[0, 0], &[77]] {
        let url = server.exec_url(exec(&["cat"], "io")).unwrap();
        let mut client = WebSocket::connect(&url, "v5.channel.k8s.io").await;
        client.binary(255, signal).await;
        client.all().await;
        soon(processes.settled()).await;
    }
}

#[tokio::test]
async fn large_messages_in_parts_pass() {
    let (server, _) = server(Config::default()).await;
    let url = server.exec_url(exec(&["sha256sum"], "io")).unwrap();
    let mut client = WebSocket::connect(&url, "v5.channel.k8s.io").await;
    for _ in 0..4 {
        client.binary(0, &[7; 3_000_000]).await;
    }
    client.binary(255, &[0]).await;
    let want = std::process::Command::new("sh")
        .args(["-c", r"head -c 12000000 /dev/zero | tr '\0' '\7' | sha256sum"])
        .output()
        .unwrap();
    assert_eq!(client.all().await[1], want.stdout);
}

#[tokio::test]
async fn output_of_any_size_arrives_whole() {
    let (server, _) = server(Config::default()).await;
    for size in [1, 124, 125, 32_767, 32_768, 32_769, 131_072, 131_100, 5_000_000] {
        let command = format!("head -c {size} /dev/zero | tr '\\0' x");
        let url = server.exec_url(exec(&["sh", "-c", &command], "o")).unwrap();
        let mut client = WebSocket::connect(&url, "v5.channel.k8s.io").await;
        assert!(client.all().await[1] == vec![b'x'; size], "{size} over WebSocket");
        let url = server.exec_url(exec(&["sh", "-c", &command], "o")).unwrap();
        let mut client = Spdy::connect(&url, "v4.channel.k8s.io").await;
        client.open([("streamtype", "error")]).await;
        let stdout = client.open([("streamtype", "stdout")]).await;
        assert!(client.all(stdout).await == vec![b'x'; size], "{size} over SPDY");
    }
}

#[tokio::test]
async fn base64_both_ways() {
    let (server, _) = server(Config::default()).await;
    for (protocol, v4) in [("v4.base64.channel.k8s.io", true), ("base64.channel.k8s.io", false)] {
        let url = server.exec_url(exec(&["head", "-c", "100"], "io")).unwrap();
        let mut client = WebSocket::connect(&url, protocol).await;
        let input = vec![b'y'; 100];
        for part in input.chunks(40) {
            client.send(Operation::Text, format!("0{}", BASE64.encode(part)).as_bytes()).await;
        }
        let (mut stdout, mut error) = (Vec::new(), Vec::new());
        while let Some(Message::Data(message)) = client.hear().await {
            let plain = BASE64.decode(&message[1..]).unwrap();
            match message[0] {
                b'1' => stdout.extend(plain),
                b'3' => error.extend(plain),
                other => panic!("channel {other}"),
            }
        }
        assert_eq!(stdout, input);
        if v4 {
            assert_eq!(json(&error), success());
        } else {
            assert_eq!(error, b"");
        }
    }
}

#[tokio::test]
async fn attach_is_a_session_too_and_get_is_as_good_as_post() {
    let (server, _) = server(Config::default()).await;
    let request = AttachRequest { container: "c".to_owned(), ends: ends("io"), tty: false };
    let url = server.attach_url(request).unwrap();
    assert!(url.contains("/attach/"), "{url}");
    let mut client = WebSocket::connect(&url, "").await;
    client.binary(0, b"hello").await;
    assert_eq!(client.hear().await, Some(Message::Data(vec![1])));
    assert_eq!(client.hear().await, Some(Message::Data(b"\x01hello".to_vec())));
    client.send(Operation::Close, &[3, 232]).await;
    assert_eq!(client.all().await[3], b"");
}

#[tokio::test]
async fn the_end_of_its_input_detaches_a_client() {
    let (server, processes) = server(Config::default()).await;
    let request = AttachRequest { container: "c".to_owned(), ends: ends("io"), tty: false };
    let mut client = WebSocket::connect(&server.attach_url(request).unwrap(), "v5.channel.k8s.io").await;
    client.binary(0, b"last words").await;
    assert_eq!(client.hear().await, Some(Message::Data(vec![1])));
    assert_eq!(client.hear().await, Some(Message::Data(b"\x01last words".to_vec())));
    client.binary(255, &[0]).await;
    assert_eq!(json(&client.all().await[3]), success());
    soon(processes.settled()).await;
}

#[tokio::test]
async fn a_child_left_behind_does_not_hold_the_session() {
    let (server, _) = server(Config::default()).await;
    let url = server.exec_url(exec(&["sh", "-c", "sleep 100 & echo $!"], "o")).unwrap();
    let mut client = WebSocket::connect(&url, "v4.channel.k8s.io").await;
    let channels = client.all().await;
    assert_eq!(json(&channels[3]), success());
    let pid = String::from_utf8(channels[1].clone()).unwrap();
    let killed = std::process::Command::new("kill").arg(pid.trim()).status().unwrap();
    assert!(killed.success());
}

#[tokio::test]
async fn requests_that_make_no_sense_get_no_address() {
    let (server, _) = server(Config::default()).await;
    for (request, kind) in [
        (exec(&["true"], ""), ErrorKind::Invalid),
        (exec(&["true"], "t"), ErrorKind::Invalid),
        (exec(&["true"], "oet"), ErrorKind::Invalid),
        (exec(&[], "o"), ErrorKind::Invalid),
    ] {
        assert_eq!(server.exec_url(request).unwrap_err().kind(), kind);
    }
    assert_eq!(server.port_forward_url(support::forward(&[0])).unwrap_err().kind(), ErrorKind::Invalid);
    for _ in 0..1000 {
        server.exec_url(exec(&["true"], "o")).unwrap();
    }
    assert_eq!(server.exec_url(exec(&["true"], "o")).unwrap_err().kind(), ErrorKind::Exhausted);
}

#[tokio::test]
async fn refusals_have_their_numbers() {
    let (server, _) = server(Config::default()).await;
    let url = || server.exec_url(exec(&["true"], "o")).unwrap();
    let v4 = "v4.channel.k8s.io";
    // Used, of another kind, unknown.
    let used = url();
    assert_eq!(spdy_request(&used, v4).await.status, 101);
    assert_eq!(spdy_request(&used, v4).await.status, 404);
    assert_eq!(spdy_request(&url().replace("/exec/", "/attach/"), v4).await.status, 404);
    assert_eq!(spdy_request(&format!("{}0", url()), v4).await.status, 404);
    assert_eq!(spdy_request(&url().replace("/exec/", "/"), v4).await.status, 404);
    assert_eq!(request("PUT", &url(), "").await.status, 405);
    // No upgrade, or half of one.
    assert_eq!(request("GET", &url(), "").await.status, 400);
    assert_eq!(
        request("GET", &url(), "Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4\r\n").await.status,
        400
    );
    assert_eq!(request("POST", &url(), "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n").await.status, 400);
    let old = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 8\r\n";
    assert_eq!(request("GET", &url(), old).await.status, 426);
    let body =
        "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4\r\nContent-Length: 5\r\n";
    assert_eq!(request("POST", &url(), body).await.status, 400);
    // No sub-protocol in common.
    let refused = spdy_request(&url(), "v5.channel.k8s.io").await;
    assert_eq!(refused.status, 403);
    let ours = ["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"];
    assert_eq!(refused.header("x-accepted-stream-protocol-versions"), ours);
    assert_eq!(ws_request(&url(), "v6.channel.k8s.io").await.status, 403);
    let agreed = spdy_request(&url(), "v9, v2.channel.k8s.io,v4.channel.k8s.io").await;
    assert_eq!((agreed.status, agreed.header("x-stream-protocol-version")), (101, vec!["v2.channel.k8s.io"]));
}

#[tokio::test]
async fn nonsense_ends_the_connection_and_the_process() {
    let (server, processes) = server(Config::default()).await;
    let nonsense: [&[u8]; 3] =
        [&[0x80, 2, 0, 1, 0, 0, 0, 0], &[0x80, 3, 0, 1, 0xff, 0xff, 0xff, 0xff], &[0xff; 64]];
    for bytes in nonsense {
        let url = server.exec_url(exec(&["cat"], "io")).unwrap();
        let mut client = Spdy::connect(&url, "v4.channel.k8s.io").await;
        for kind in ["error", "stdin", "stdout"] {
            client.open([("streamtype", kind)]).await;
        }
        client.raw(bytes).await;
        assert!(client.closed().await.contains(&Said::GoAway), "{bytes:x?}");
        soon(processes.settled()).await;
    }
    let url = server.exec_url(exec(&["cat"], "io")).unwrap();
    let mut client = WebSocket::connect(&url, "v5.channel.k8s.io").await;
    client.socket.write_all(&[0x82, 0xff, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]).await.unwrap();
    client.all().await;
    soon(processes.settled()).await;
}

#[tokio::test]
async fn streams_that_are_too_many_twice_or_even_are_refused() {
    let (server, _) = server(Config::default()).await;
    let url = server.exec_url(exec(&["cat"], "io")).unwrap();
    let mut client = Spdy::connect(&url, "v4.channel.k8s.io").await;
    client.open([("streamtype", "error")]).await;
    let twice = client.syn([("streamtype", "error")]).await;
    client.expect(&Said::Reset(twice, spdy::RESET_PROTOCOL_ERROR)).await;
    for _ in 0..15 {
        client.open([("streamtype", "whatever")]).await;
    }
    let many = client.syn([("streamtype", "stdin")]).await;
    client.expect(&Said::Reset(many, spdy::RESET_REFUSED)).await;
}

#[tokio::test]
async fn a_flood_of_pings_that_reads_nothing_is_cut_off() {
    let (server, processes) = server(Config::default()).await;
    let url = server.exec_url(exec(&["sleep", "1000"], "o")).unwrap();
    let mut response = spdy_request(&url, "v4.channel.k8s.io").await;
    let pings = spdy::ping(1).repeat(4096);
    let flood = async { while response.socket.write_all(&pings).await.is_ok() {} };
    soon(flood).await;
    soon(processes.settled()).await;
}

/// Waits until the server ends the connection, with time running as fast as nothing happens.
async fn to_the_end(mut socket: tokio::net::TcpStream) {
    tokio::time::pause();
    // A reset is an end too: what was written last may not have arrived by then.
    drop(socket.read_to_end(&mut Vec::new()).await);
    tokio::time::resume();
}

#[tokio::test]
async fn a_head_that_never_ends_is_not_waited_for() {
    let (server, _) = server(Config::default()).await;
    let url = server.exec_url(exec(&["true"], "o")).unwrap();
    let address = url.strip_prefix("http://").unwrap().split_once('/').unwrap().0;
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    socket.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ").await.unwrap();
    to_the_end(socket).await;
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let endless = format!("GET / HTTP/1.1\r\nHost: x\r\nX-Long: {}", "x".repeat(1 << 20));
    // The server may stop reading before everything is written.
    drop(soon(socket.write_all(endless.as_bytes())).await);
    let mut rest = Vec::new();
    drop(soon(socket.read_to_end(&mut rest)).await);
    assert!(rest.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&rest));
}

#[tokio::test]
async fn streams_that_never_come_are_not_waited_for() {
    let (server, _) = server(Config::default()).await;
    let url = server.exec_url(exec(&["cat"], "io")).unwrap();
    let begun = tokio::time::Instant::now();
    let mut client = Spdy::connect(&url, "v4.channel.k8s.io").await;
    client.open([("streamtype", "error")]).await;
    tokio::time::pause();
    let Spdy { mut heard, write: _write, .. } = client;
    assert_eq!(heard.recv().await, Some(Said::GoAway));
    assert!(begun.elapsed() >= Duration::from_secs(30), "{:?}", begun.elapsed());
    assert_eq!(heard.recv().await, None);
}

#[tokio::test]
async fn a_silent_session_ends_after_its_time() {
    let idle_timeout = Duration::from_millis(300);
    let config = Config { idle_timeout: Some(idle_timeout), ..Config::default() };
    let (server, processes) = server(config).await;
    let url = server.exec_url(exec(&["cat"], "io")).unwrap();
    let begun = std::time::Instant::now();
    let mut client = WebSocket::connect(&url, "v5.channel.k8s.io").await;
    client.all().await;
    assert!(begun.elapsed() >= idle_timeout, "{:?}", begun.elapsed());
    soon(processes.settled()).await;
}

#[tokio::test]
async fn a_server_that_is_dropped_takes_its_sessions_with_it() {
    let (server, processes) = server(Config::default()).await;
    let url = server.exec_url(exec(&["cat"], "io")).unwrap();
    let mut client = WebSocket::connect(&url, "v5.channel.k8s.io").await;
    assert_eq!(client.hear().await, Some(Message::Data(vec![1])));
    drop(server);
    assert_eq!(client.hear().await, None);
    soon(processes.settled()).await;
}
