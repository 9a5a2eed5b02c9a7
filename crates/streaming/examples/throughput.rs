//! Prints how many megabytes a second pass, in a release build:
//! `cargo run --release -p crisp-streaming --example throughput [seconds per case]`.
//!
//! Everything shares this machine's processors: the server (two threads of a runtime), a minimal client on a
//! thread of its own that speaks the protocol over a blocking socket, and on another thread the process or the
//! pod's server, which writes or reads 128 KiB at a time. Payload is counted, at the end that receives it.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a program for whoever measures"
)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crisp_streaming::spdy::frame::{self as spdy, Fin};
use crisp_streaming::spdy::headers::{HeaderWriter, Headers};
use crisp_streaming::ws::frame::{self as ws, Operation};
use crisp_streaming::{
    AttachRequest, Backend, Config, End, Ends, ExecRequest, Exit, Failure, InputEnd, PortForwardRequest,
    Process, Server, Size,
};
use futures_util::future::BoxFuture;

const CHUNK: usize = 128 * 1024;

#[derive(Debug)]
struct Source;

impl Source {
    fn process(ends: Ends) -> Process {
        let (read, write) = std::io::pipe().unwrap();
        let (stdin, stdout) = if ends.has(End::Stdin) {
            thread::spawn(move || discard(read));
            (Some(OwnedFd::from(write)), None)
        } else {
            thread::spawn(move || fill(write));
            (None, Some(OwnedFd::from(read)))
        };
        for end in [&stdin, &stdout].into_iter().flatten() {
            rustix::io::ioctl_fionbio(end, true).unwrap();
        }
        Process {
            stdin,
            stdout,
            stderr: None,
            exit: Box::pin(std::future::pending::<Exit>()),
            resize: Box::new(|_| ()),
            input_end: InputEnd::Closes,
        }
    }
}

impl Backend for Source {
    fn exec(&self, request: ExecRequest, _size: Option<Size>) -> BoxFuture<'_, Result<Process, Failure>> {
        Box::pin(std::future::ready(Ok(Self::process(request.ends))))
    }

    fn attach(&self, request: AttachRequest) -> BoxFuture<'_, Result<Process, Failure>> {
        Box::pin(std::future::ready(Ok(Self::process(request.ends))))
    }

    fn dial<'a>(&'a self, _pod: &'a str, port: u16) -> BoxFuture<'a, Result<TcpStream, Failure>> {
        let socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
        socket.set_nonblocking(true).unwrap();
        Box::pin(std::future::ready(Ok(socket)))
    }

    fn pod_ended<'a>(&'a self, _pod: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(std::future::pending())
    }
}

static RECEIVED: AtomicU64 = AtomicU64::new(0);
static RUNNING: AtomicBool = AtomicBool::new(true);

fn fill(mut sink: impl Write) {
    let chunk = vec![b'x'; CHUNK];
    while sink.write_all(&chunk).is_ok() {}
}

fn discard(mut source: impl Read) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(read @ 1..) = source.read(&mut buffer) {
        RECEIVED.fetch_add(read as u64, Ordering::Relaxed);
    }
}

/// Counts payload and leaves the framing to the decoders.
#[derive(Debug, Clone, Copy)]
enum Wire {
    Spdy,
    Tunnel,
    Channels,
}

fn receive(mut socket: TcpStream, wire: Wire) {
    let (mut frames, mut messages) = (spdy::Decoder::default(), ws::Decoder::new(ws::Sender::Server));
    let mut buffer = vec![0; CHUNK];
    while let Ok(read @ 1..) = socket.read(&mut buffer) {
        let mut input = &mut buffer[..read];
        let received = match wire {
            Wire::Spdy => payload(&mut frames, input),
            Wire::Tunnel | Wire::Channels => {
                let mut received = 0;
                while let Some(event) = messages.next(&mut input).unwrap() {
                    if let ws::Event::Data { chunk, .. } = event {
                        received += if matches!(wire, Wire::Tunnel) {
                            payload(&mut frames, chunk)
                        } else {
                            chunk.len()
                        };
                    }
                }
                received
            }
        };
        RECEIVED.fetch_add(received as u64, Ordering::Relaxed);
    }
}

fn payload(frames: &mut spdy::Decoder, mut input: &[u8]) -> usize {
    let mut received = 0;
    while let Some(event) = frames.next(&mut input).unwrap() {
        if let spdy::Event::Data { chunk, .. } = event {
            received += chunk.len();
        }
    }
    received
}

/// Writes data frames of 32 KiB, four in a call.
fn send(mut socket: &TcpStream, wire: Wire, stream: u32) {
    let payload = vec![b'x'; 32 * 1024];
    let frame = match wire {
        Wire::Spdy => spdy_frame(stream, &payload),
        Wire::Tunnel => ws::masked(Operation::Binary, &spdy_frame(stream, &payload), [1, 2, 3, 4]),
        Wire::Channels => ws::masked(Operation::Binary, &[&[0][..], &payload].concat(), [1, 2, 3, 4]),
    };
    let frames = frame.repeat(4);
    while RUNNING.load(Ordering::Relaxed) {
        if socket.write_all(&frames).is_err() {
            return;
        }
    }
}

fn spdy_frame(stream: u32, payload: &[u8]) -> Vec<u8> {
    [&spdy::data_header(stream, Fin::No, payload.len())[..], payload].concat()
}

fn upgrade(url: &str, wire: Wire, protocol: &str) -> TcpStream {
    let (address, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut socket = TcpStream::connect(address).unwrap();
    let upgrade = match wire {
        Wire::Spdy => format!("Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {protocol}\r\n"),
        Wire::Tunnel | Wire::Channels => format!(
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\
             Sec-WebSocket-Protocol: {protocol}\r\n"
        ),
    };
    write!(socket, "GET /{path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\n{upgrade}\r\n").unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        socket.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    assert!(head.starts_with(b"HTTP/1.1 101"));
    socket
}

fn open(mut socket: &TcpStream, wire: Wire, streams: &[Headers]) {
    let mut writer = HeaderWriter::default();
    for (id, headers) in (1..).step_by(2).zip(streams) {
        let frame = spdy::syn_stream(id, headers, &mut writer);
        let bytes =
            if matches!(wire, Wire::Tunnel) { ws::masked(Operation::Binary, &frame, [0; 4]) } else { frame };
        socket.write_all(&bytes).unwrap();
    }
}

/// From the server to the client, or the other way.
#[derive(Debug, Clone, Copy)]
enum Way {
    Out,
    In,
}

fn measure(name: &str, socket: TcpStream, wire: Wire, way: Way, stream: u32) {
    RUNNING.store(true, Ordering::Relaxed);
    let reader = socket.try_clone().unwrap();
    // On the way in, the client only reads replies; what is received is counted at the other end.
    let receiver = thread::spawn(move || receive(reader, wire));
    let writer = socket.try_clone().unwrap();
    let sender = matches!(way, Way::In).then(|| thread::spawn(move || send(&writer, wire, stream)));
    let seconds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(3);
    let wait = |time: Duration| thread::park_timeout(time);
    wait(Duration::from_millis(300));
    let (begun, before) = (Instant::now(), RECEIVED.load(Ordering::Relaxed));
    wait(Duration::from_secs(seconds));
    let received = RECEIVED.load(Ordering::Relaxed) - before;
    let rate = received as f64 / begun.elapsed().as_secs_f64() / 1e6;
    println!("{name:<28} {rate:>7.0} MB/s");
    RUNNING.store(false, Ordering::Relaxed);
    socket.shutdown(std::net::Shutdown::Both).unwrap();
    receiver.join().unwrap();
    sender.map(thread::JoinHandle::join).transpose().unwrap();
}

/// A port that only sends, or only receives.
fn port(way: Way) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        match way {
            Way::Out => fill(socket),
            Way::In => discard(socket),
        }
    });
    port
}

fn attach(server: &Server, wire: Wire, way: Way) {
    let end = match way {
        Way::Out => End::Stdout,
        Way::In => End::Stdin,
    };
    let request = AttachRequest { container: "c".to_owned(), ends: Ends::from([(end, true)]), tty: false };
    let url = server.attach_url(request).unwrap();
    let (name, protocol) = match wire {
        Wire::Spdy => ("SPDY", "v4.channel.k8s.io"),
        Wire::Tunnel | Wire::Channels => ("WebSocket", "v5.channel.k8s.io"),
    };
    let socket = upgrade(&url, wire, protocol);
    if matches!(wire, Wire::Spdy) {
        let kind = if matches!(way, Way::Out) { "stdout" } else { "stdin" };
        open(
            &socket,
            wire,
            &[Headers::from([("streamtype", "error")]), Headers::from([("streamtype", kind)])],
        );
    }
    measure(&format!("{name} attach {way:?}"), socket, wire, way, 3);
}

fn forward(server: &Server, wire: Wire, way: Way) {
    let port = port(way);
    let url = server.port_forward_url(PortForwardRequest { pod: "p".to_owned(), ports: vec![port] }).unwrap();
    let (name, protocol) = match wire {
        Wire::Spdy => ("SPDY", "portforward.k8s.io"),
        Wire::Tunnel => ("SPDY in WebSocket", "SPDY/3.1+portforward.k8s.io"),
        Wire::Channels => ("WebSocket", "v4.channel.k8s.io"),
    };
    let socket = upgrade(&url, wire, protocol);
    if !matches!(wire, Wire::Channels) {
        let port = port.to_string();
        let pair = ["error", "data"]
            .map(|kind| Headers::from([("streamtype", kind), ("port", &port), ("requestid", "0")]));
        open(&socket, wire, &pair);
    }
    measure(
        &format!("{name} port-forward {way:?}"),
        socket,
        wire,
        way,
        if matches!(wire, Wire::Channels) { 0 } else { 3 },
    );
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let server = runtime.block_on(Server::bind(&Config::default(), Arc::new(Source))).unwrap();
    for wire in [Wire::Spdy, Wire::Channels] {
        attach(&server, wire, Way::Out);
        attach(&server, wire, Way::In);
    }
    for wire in [Wire::Spdy, Wire::Tunnel, Wire::Channels] {
        forward(&server, wire, Way::Out);
        forward(&server, wire, Way::In);
    }
}
