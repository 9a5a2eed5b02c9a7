//! Port-forward from a client's side.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use crisp_streaming::Config;
use crisp_streaming::spdy::frame::{self as spdy, Fin};
use crisp_streaming::spdy::headers::{HeaderWriter, Headers};
use crisp_streaming::ws::frame::{self as ws, Operation};
use support::{Message, Said, Spdy, WebSocket, forward, server, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

const SPDY: &str = "portforward.k8s.io";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

async fn listen() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

/// A port that refuses connections. The socket keeps it from everybody else, who would get it otherwise.
fn refusing() -> (TcpSocket, u16) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, port)
}

/// A port that answers each connection, when its input has ended, with all of it and its length.
async fn echo() -> u16 {
    let (listener, port) = listen().await;
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut all = Vec::new();
                socket.read_to_end(&mut all).await.unwrap();
                socket.write_all(&all).await.unwrap();
                socket.write_all(all.len().to_string().as_bytes()).await.unwrap();
            });
        }
    });
    port
}

async fn pair(client: &mut Spdy, port: u16, id: &str) -> (u32, u32) {
    let port = port.to_string();
    let error = client.open([("streamtype", "error"), ("port", &port), ("requestid", id)]).await;
    let data = client.open([("streamtype", "data"), ("port", &port), ("requestid", id)]).await;
    (data, error)
}

#[tokio::test]
async fn connections_pass_both_ways_and_end_by_halves() {
    let (server, _) = server(Config::default()).await;
    let port = echo().await;
    let mut client = Spdy::connect(&server.port_forward_url(forward(&[])).unwrap(), SPDY).await;
    let (first, first_error) = pair(&mut client, port, "0").await;
    let (second, _) = pair(&mut client, port, "1").await;
    client.data(second, b"second", Fin::Yes).await;
    client.data(first, b"fir", Fin::No).await;
    client.data(first_error, b"", Fin::Yes).await;
    assert_eq!(client.all(second).await, b"second6");
    client.data(first, b"st", Fin::Yes).await;
    assert_eq!(client.all(first).await, b"first5");
    assert_eq!(client.all(first_error).await, b"");
}

#[tokio::test]
async fn very_old_clients_pair_by_number() {
    let (server, _) = server(Config::default()).await;
    let port = echo().await.to_string();
    let mut client = Spdy::connect(&server.port_forward_url(forward(&[])).unwrap(), SPDY).await;
    client.open([("streamtype", "error"), ("port", &port)]).await;
    let data = client.open([("streamtype", "data"), ("port", &port)]).await;
    client.data(data, b"old", Fin::Yes).await;
    assert_eq!(client.all(data).await, b"old3");
}

#[tokio::test]
async fn a_port_that_refuses_is_told_and_the_others_go_on() {
    let (server, _) = server(Config::default()).await;
    let good = echo().await;
    let (_kept, closed) = refusing();
    let mut client = Spdy::connect(&server.port_forward_url(forward(&[])).unwrap(), SPDY).await;
    let (bad, error) = pair(&mut client, closed, "bad").await;
    let text = String::from_utf8(client.all(error).await).unwrap();
    assert!(text.starts_with(&format!("error forwarding port {closed} to pod p: ")), "{text}");
    client.expect(&Said::Reset(bad, spdy::RESET_INTERNAL)).await;
    let (data, _) = pair(&mut client, good, "good").await;
    client.data(data, b"x", Fin::Yes).await;
    assert_eq!(client.all(data).await, b"x1");
}

#[tokio::test]
async fn streams_that_make_no_sense_are_reset() {
    let (server, _) = server(Config::default()).await;
    let mut client = Spdy::connect(&server.port_forward_url(forward(&[])).unwrap(), SPDY).await;
    let long = "x".repeat(200);
    for headers in [
        [("streamtype", "data"), ("port", "0"), ("requestid", "1")],
        [("streamtype", "data"), ("port", "65536"), ("requestid", "1")],
        [("streamtype", "data"), ("x", "80"), ("requestid", "1")],
        [("streamtype", "stdin"), ("port", "80"), ("requestid", "1")],
        [("x", "data"), ("port", "80"), ("requestid", "1")],
        [("streamtype", "data"), ("port", "80"), ("requestid", &long)],
    ] {
        let stream = client.syn(headers).await;
        client.expect(&Said::Reset(stream, spdy::RESET_PROTOCOL_ERROR)).await;
    }
    // The same half twice, and halves that disagree about the port.
    client.open([("streamtype", "data"), ("port", "80"), ("requestid", "2")]).await;
    for (kind, port) in [("data", "80"), ("error", "81")] {
        let stream = client.syn([("streamtype", kind), ("port", port), ("requestid", "2")]).await;
        client.expect(&Said::Reset(stream, spdy::RESET_PROTOCOL_ERROR)).await;
    }
}

#[tokio::test]
async fn pairs_have_a_limit_and_ended_ones_make_room() {
    let (server, _) = server(Config::default()).await;
    let port = echo().await;
    let mut client = Spdy::connect(&server.port_forward_url(forward(&[])).unwrap(), SPDY).await;
    let mut pairs = Vec::new();
    for n in 0..256 {
        pairs.push(pair(&mut client, port, &n.to_string()).await);
    }
    let text = port.to_string();
    let many = client.syn([("streamtype", "error"), ("port", &text), ("requestid", "x")]).await;
    client.expect(&Said::Reset(many, spdy::RESET_REFUSED)).await;
    let (data, error) = pairs[7];
    client.data(data, b"", Fin::Yes).await;
    assert_eq!(client.all(error).await, b"");
    // Its task ends after its last word: asked until it is seen.
    let freed = async {
        loop {
            let stream = client.syn([("streamtype", "error"), ("port", &text), ("requestid", "y")]).await;
            loop {
                match client.hear().await.unwrap() {
                    Said::Reply(reply) if reply == stream => return,
                    Said::Reset(refused, _) if refused == stream => break,
                    _ => {}
                }
            }
        }
    };
    soon(freed).await;
}

#[tokio::test]
async fn a_half_pair_is_not_waited_for() {
    let (server, _) = server(Config::default()).await;
    let mut client = Spdy::connect(&server.port_forward_url(forward(&[])).unwrap(), SPDY).await;
    let error = client.open([("streamtype", "error"), ("port", "80"), ("requestid", "1")]).await;
    tokio::time::pause();
    let Spdy { mut heard, write: _write, .. } = client;
    let want = b"the client did not open both streams".to_vec();
    assert_eq!(heard.recv().await, Some(Said::Data(error, want)));
    assert_eq!(heard.recv().await, Some(Said::Reset(error, spdy::RESET_INTERNAL)));
}

#[tokio::test]
async fn a_reset_closes_the_pods_connection() {
    let (server, _) = server(Config::default()).await;
    let (listener, port) = listen().await;
    let mut client = Spdy::connect(&server.port_forward_url(forward(&[])).unwrap(), SPDY).await;
    let (data, error) = pair(&mut client, port, "0").await;
    let (mut socket, _) = soon(listener.accept()).await.unwrap();
    client.data(data, b"x", Fin::No).await;
    assert_eq!(soon(socket.read_u8()).await.unwrap(), b'x');
    client.raw(&spdy::rst_stream(data, spdy::RESET_CANCEL)).await;
    assert_eq!(soon(socket.read(&mut [0])).await.unwrap_or(0), 0);
    assert_eq!(client.all(error).await, b"");
}

#[tokio::test]
async fn the_pods_half_close_ends_what_is_silent() {
    let (server, _) = server(Config::default()).await;
    let (listener, port) = listen().await;
    let mut client = Spdy::connect(&server.port_forward_url(forward(&[])).unwrap(), SPDY).await;
    let (data, error) = pair(&mut client, port, "0").await;
    let (mut socket, _) = soon(listener.accept()).await.unwrap();
    socket.write_all(b"bye").await.unwrap();
    socket.shutdown().await.unwrap();
    assert_eq!(client.all(data).await, b"bye");
    assert_eq!(client.all(error).await, b"");
    assert_eq!(soon(socket.read(&mut [0])).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn large_transfers_of_many_pairs_arrive_whole() {
    let (server, _) = server(Config::default()).await;
    let port = echo().await;
    let mut client = Spdy::connect(&server.port_forward_url(forward(&[])).unwrap(), SPDY).await;
    let payload: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    let (first, _) = pair(&mut client, port, "0").await;
    let (second, _) = pair(&mut client, port, "1").await;
    for chunk in payload.chunks(40_000) {
        client.data(first, chunk, Fin::No).await;
        client.data(second, chunk, Fin::No).await;
    }
    client.data(first, b"", Fin::Yes).await;
    client.data(second, b"", Fin::Yes).await;
    let want = [&payload[..], b"3000000"].concat();
    assert!(client.all(first).await == want);
    assert!(client.all(second).await == want);
}

#[tokio::test]
async fn an_ended_pod_ends_its_sessions() {
    let (server, processes) = server(Config::default()).await;
    let mut client = Spdy::connect(&server.port_forward_url(forward(&[])).unwrap(), SPDY).await;
    pair(&mut client, echo().await, "0").await;
    processes.pod_ended.notify_one();
    assert!(client.closed().await.contains(&Said::GoAway));
}

#[tokio::test]
async fn spdy_passes_inside_websocket() {
    let (server, _) = server(Config::default()).await;
    let port = echo().await.to_string();
    let mut client = WebSocket::connect(&server.port_forward_url(forward(&[])).unwrap(), TUNNEL).await;
    let (mut headers, mut bytes) = (HeaderWriter::default(), Vec::new());
    for (stream, kind) in [(1, "error"), (3, "data")] {
        let pairs = Headers::from([("streamtype", kind), ("port", &port), ("requestid", "0")]);
        bytes.extend(spdy::syn_stream(stream, &pairs, &mut headers));
    }
    bytes.extend(spdy::data_header(3, Fin::Yes, 6));
    bytes.extend(b"tunnel");
    // However it is cut into messages.
    for part in bytes.chunks(11) {
        client.send(Operation::Binary, part).await;
    }
    let (mut decoder, mut data, mut ended) = (spdy::Decoder::default(), Vec::<u8>::new(), false);
    while !ended {
        let Some(Message::Data(message)) = client.hear().await else { panic!("the tunnel ended") };
        let mut input = &message[..];
        while let Some(event) = decoder.next(&mut input).unwrap() {
            if let spdy::Event::Data { stream: 3, fin, chunk } = event {
                data.extend(chunk);
                ended |= fin == Fin::Yes;
            }
        }
    }
    assert_eq!(data, b"tunnel6");
    client.send(Operation::Close, &ws::CLOSE_NORMAL.to_be_bytes()).await;
    while !matches!(client.hear().await, Some(Message::Close) | None) {}
}

#[tokio::test]
async fn fixed_channels_name_their_ports_first() {
    let (server, _) = server(Config::default()).await;
    let (listener, port) = listen().await;
    let (_kept, closed) = refusing();
    for protocol in ["", "v4.channel.k8s.io"] {
        let url = server.port_forward_url(forward(&[port, closed])).unwrap();
        let mut client = WebSocket::connect(&url, protocol).await;
        let (mut socket, _) = soon(listener.accept()).await.unwrap();
        client.binary(0, b"ping").await;
        let mut ping = [0; 4];
        soon(socket.read_exact(&mut ping)).await.unwrap();
        assert_eq!(&ping, b"ping");
        socket.write_all(b"pong").await.unwrap();
        let mut channels: [Vec<u8>; 4] = Default::default();
        while channels[0].len() < 6 || channels[3].len() < 3 {
            let Some(Message::Data(message)) = client.hear().await else { panic!("ended: {channels:?}") };
            channels[usize::from(message[0])].extend(&message[1..]);
        }
        assert_eq!(channels[0], [&port.to_le_bytes()[..], b"pong"].concat());
        assert_eq!(
            (&channels[1][..], &channels[2][..]),
            (&port.to_le_bytes()[..], &closed.to_le_bytes()[..])
        );
        assert!(channels[3].starts_with(&closed.to_le_bytes()));
        assert!(String::from_utf8_lossy(&channels[3][2..]).starts_with("error forwarding port"));
        drop(client);
        assert_eq!(soon(socket.read(&mut [0])).await.unwrap_or(0), 0);
    }
    let url = server.port_forward_url(forward(&[])).unwrap();
    assert_eq!(support::ws_request(&url, "v4.channel.k8s.io").await.status, 400);
}

#[tokio::test]
async fn a_client_that_leaves_closes_every_connection() {
    let (server, _) = server(Config::default()).await;
    let (listener, port) = listen().await;
    let mut client = Spdy::connect(&server.port_forward_url(forward(&[])).unwrap(), SPDY).await;
    let mut sockets: Vec<TcpStream> = Vec::new();
    for n in 0..20 {
        pair(&mut client, port, &n.to_string()).await;
        sockets.push(soon(listener.accept()).await.unwrap().0);
    }
    drop(client);
    for mut socket in sockets {
        assert_eq!(soon(socket.read(&mut [0])).await.unwrap_or(0), 0);
    }
}

#[tokio::test]
async fn a_stalled_connection_holds_up_the_others_only_when_its_buffer_is_full() {
    let (server, _) = server(Config::default()).await;
    let (listener, stalled_port) = listen().await;
    let port = echo().await;
    let mut client = Spdy::connect(&server.port_forward_url(forward(&[])).unwrap(), SPDY).await;
    let (stalled, _) = pair(&mut client, stalled_port, "0").await;
    let (_unread, _) = soon(listener.accept()).await.unwrap();
    client.data(stalled, &[0; 100_000], Fin::No).await;
    let (data, _) = pair(&mut client, port, "1").await;
    client.data(data, b"x", Fin::Yes).await;
    assert_eq!(client.all(data).await, b"x1");
}
