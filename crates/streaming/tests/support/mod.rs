//! A client of our own, and a backend that runs real processes.
#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::net::TcpStream as StdTcpStream;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crisp_streaming::spdy::frame::{self as spdy, Fin};
use crisp_streaming::spdy::headers::{HeaderWriter, Headers};
use crisp_streaming::ws::frame as ws;
use crisp_streaming::{
    AttachRequest, Backend, Config, End, Ends, ExecRequest, Exit, Failure, InputEnd, PortForwardRequest,
    Process, Server, Size,
};
use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};

pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Waits for `future`, but not for ever.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

/// Runs commands on this machine; counts what it runs.
#[derive(Debug, Default)]
pub(crate) struct Processes {
    pub(crate) running: Arc<AtomicUsize>,
    pub(crate) changed: Arc<Notify>,
    pub(crate) sizes: Arc<std::sync::Mutex<Vec<(u16, u16)>>>,
    pub(crate) pod_ended: Notify,
}

struct Guard(Arc<AtomicUsize>, Arc<Notify>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
        self.1.notify_one();
    }
}

fn non_blocking(fd: impl Into<OwnedFd>) -> Option<OwnedFd> {
    let fd = fd.into();
    rustix::io::ioctl_fionbio(&fd, true).unwrap();
    Some(fd)
}

impl Processes {
    fn start(&self, command: &[String], ends: Ends, input_end: InputEnd) -> Result<Process, Failure> {
        let end = |end| if ends.has(end) { Stdio::piped() } else { Stdio::null() };
        let mut child = tokio::process::Command::new(&command[0])
            .args(&command[1..])
            .stdin(end(End::Stdin))
            .stdout(end(End::Stdout))
            .stderr(end(End::Stderr))
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| Failure(error.to_string()))?;
        self.running.fetch_add(1, Ordering::SeqCst);
        let guard = Guard(Arc::clone(&self.running), Arc::clone(&self.changed));
        let sizes = Arc::clone(&self.sizes);
        Ok(Process {
            stdin: child.stdin.take().and_then(|end| non_blocking(end.into_owned_fd().unwrap())),
            stdout: child.stdout.take().and_then(|end| non_blocking(end.into_owned_fd().unwrap())),
            stderr: child.stderr.take().and_then(|end| non_blocking(end.into_owned_fd().unwrap())),
            exit: Box::pin(async move {
                let _guard = guard;
                Exit::Code(child.wait().await.unwrap().code().unwrap())
            }),
            resize: Box::new(move |size| sizes.lock().unwrap().push((size.columns, size.rows))),
            input_end,
        })
    }

    /// Waits until nothing runs.
    pub(crate) async fn settled(&self) {
        while self.running.load(Ordering::SeqCst) > 0 {
            self.changed.notified().await;
        }
    }
}

impl Backend for Processes {
    fn exec(&self, request: ExecRequest, _size: Option<Size>) -> BoxFuture<'_, Result<Process, Failure>> {
        Box::pin(async move { self.start(&request.command, request.ends, InputEnd::Closes) })
    }

    fn attach(&self, request: AttachRequest) -> BoxFuture<'_, Result<Process, Failure>> {
        Box::pin(async move {
            self.start(
                &["sh", "-c", "cat; exec sleep 1000"].map(str::to_owned),
                request.ends,
                InputEnd::Detaches,
            )
        })
    }

    fn dial<'a>(&'a self, _pod: &'a str, port: u16) -> BoxFuture<'a, Result<StdTcpStream, Failure>> {
        Box::pin(async move {
            let fail = |error: std::io::Error| Failure(error.to_string());
            TcpStream::connect(("127.0.0.1", port)).await.and_then(TcpStream::into_std).map_err(fail)
        })
    }

    fn pod_ended<'a>(&'a self, _pod: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(self.pod_ended.notified())
    }
}

pub(crate) async fn server(config: Config) -> (Server, Arc<Processes>) {
    let processes = Arc::new(Processes::default());
    (Server::bind(&config, Arc::clone(&processes) as Arc<dyn Backend>).await.unwrap(), processes)
}

/// Standard input, output, error: each wanted or not.
pub(crate) fn ends(wanted: &str) -> Ends {
    let has = |letter| wanted.contains(letter);
    Ends::from([(End::Stdin, has('i')), (End::Stdout, has('o')), (End::Stderr, has('e'))])
}

pub(crate) fn exec(command: &[&str], wanted: &str) -> ExecRequest {
    let command = command.iter().map(|&word| word.to_owned()).collect();
    ExecRequest { container: "c".to_owned(), command, ends: ends(wanted), tty: wanted.contains('t') }
}

pub(crate) fn forward(ports: &[u16]) -> PortForwardRequest {
    PortForwardRequest { pod: "p".to_owned(), ports: ports.to_vec() }
}

/// What a server said to a request.
#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) socket: TcpStream,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Vec<&str> {
        let named = |line: &'_ &str| line.split_once(':').is_some_and(|(n, _)| n.eq_ignore_ascii_case(name));
        self.head.lines().filter(named).map(|line| line.split_once(':').unwrap().1.trim()).collect()
    }
}

/// Asks for `url` with `headers`, each ending in `\r\n`.
pub(crate) async fn request(method: &str, url: &str, headers: &str) -> Response {
    let (address, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.set_nodelay(true).unwrap();
    let head = format!("{method} /{path} HTTP/1.1\r\nHost: {address}\r\n{headers}\r\n");
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(socket.read_u8()).await.expect("a response"));
    }
    let head = String::from_utf8(head).unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    Response { status, head, socket }
}

pub(crate) async fn spdy_request(url: &str, versions: &str) -> Response {
    let headers =
        format!("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {versions}\r\n");
    request("POST", url, &headers).await
}

pub(crate) async fn ws_request(url: &str, protocol: &str) -> Response {
    let offer =
        if protocol.is_empty() { String::new() } else { format!("Sec-WebSocket-Protocol: {protocol}\r\n") };
    let headers = format!(
        "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{offer}"
    );
    request("GET", url, &headers).await
}

/// What a SPDY server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    Reply(u32),
    Data(u32, Vec<u8>),
    Fin(u32),
    Reset(u32, u32),
    Ping(u32),
    GoAway,
}

/// A SPDY client: what is heard comes by a channel, so that writing never waits for reading.
pub(crate) struct Spdy {
    pub(crate) write: tokio::net::tcp::OwnedWriteHalf,
    pub(crate) heard: mpsc::Receiver<Said>,
    headers: HeaderWriter,
    next: u32,
    early: Vec<Said>,
}

impl Spdy {
    pub(crate) async fn connect(url: &str, versions: &str) -> Self {
        let response = spdy_request(url, versions).await;
        assert_eq!(response.status, 101, "{}", response.head);
        Self::over(response.socket)
    }

    pub(crate) fn over(socket: TcpStream) -> Self {
        let (mut read, write) = socket.into_split();
        let (tell, heard) = mpsc::channel(64);
        tokio::spawn(async move {
            let (mut decoder, mut buffer) = (spdy::Decoder::default(), vec![0; 1 << 16]);
            while let Ok(length @ 1..) = read.read(&mut buffer).await {
                let mut input = &buffer[..length];
                while let Some(event) = decoder.next(&mut input).unwrap() {
                    for said in said(event) {
                        if tell.send(said).await.is_err() {
                            return;
                        }
                    }
                }
            }
        });
        Self { write, heard, headers: HeaderWriter::default(), next: 1, early: Vec::new() }
    }

    /// Opens a stream and waits for nothing.
    pub(crate) async fn syn<const N: usize>(&mut self, headers: [(&str, &str); N]) -> u32 {
        let stream = self.next;
        self.next += 2;
        let frame = spdy::syn_stream(stream, &Headers::from(headers), &mut self.headers);
        self.raw(&frame).await;
        stream
    }

    /// Opens a stream and waits for the reply.
    pub(crate) async fn open<const N: usize>(&mut self, headers: [(&str, &str); N]) -> u32 {
        let stream = self.syn(headers).await;
        loop {
            match self.hear().await.expect("a reply") {
                Said::Reply(replied) => {
                    assert_eq!(replied, stream);
                    return stream;
                }
                other => self.early.push(other),
            }
        }
    }

    pub(crate) async fn raw(&mut self, frame: &[u8]) {
        soon(self.write.write_all(frame)).await.unwrap();
    }

    pub(crate) async fn data(&mut self, stream: u32, payload: &[u8], fin: Fin) {
        let frame = [&spdy::data_header(stream, fin, payload.len())[..], payload].concat();
        self.raw(&frame).await;
    }

    pub(crate) async fn hear(&mut self) -> Option<Said> {
        soon(self.heard.recv()).await
    }

    /// Everything said on `stream` until it is closed by an end or a reset.
    pub(crate) async fn all(&mut self, stream: u32) -> Vec<u8> {
        let mut all = Vec::new();
        for said in std::mem::take(&mut self.early) {
            match said {
                Said::Data(on, data) if on == stream => all.extend(data),
                Said::Fin(on) if on == stream => return all,
                other => self.early.push(other),
            }
        }
        while let Some(said) = self.hear().await {
            match said {
                Said::Data(on, data) if on == stream => all.extend(data),
                Said::Fin(on) | Said::Reset(on, _) if on == stream => return all,
                other => self.early.push(other),
            }
        }
        panic!("the connection ended within stream {stream}, after {:?}", self.early)
    }

    /// Waits for `want`, keeping what comes before.
    pub(crate) async fn expect(&mut self, want: &Said) {
        if self.early.contains(want) {
            return;
        }
        while let Some(said) = self.hear().await {
            if said == *want {
                return;
            }
            self.early.push(said);
        }
        panic!("the connection ended without {want:?}, after {:?}", self.early)
    }

    /// Waits for the end of the connection.
    pub(crate) async fn closed(&mut self) -> Vec<Said> {
        let mut all = std::mem::take(&mut self.early);
        while let Some(said) = self.hear().await {
            all.push(said);
        }
        all
    }
}

fn said(event: spdy::Event<'_>) -> Vec<Said> {
    let end = |stream, fin| (fin == Fin::Yes).then_some(Said::Fin(stream));
    match event {
        spdy::Event::SynReply { stream } => vec![Said::Reply(stream)],
        spdy::Event::Reset { stream, status } => vec![Said::Reset(stream, status)],
        spdy::Event::Ping { id } => vec![Said::Ping(id)],
        spdy::Event::GoAway => vec![Said::GoAway],
        spdy::Event::Data { stream, fin, chunk: [] } => end(stream, fin).into_iter().collect(),
        spdy::Event::Data { stream, fin, chunk } => {
            [Some(Said::Data(stream, chunk.to_vec())), end(stream, fin)].into_iter().flatten().collect()
        }
        other => panic!("a server does not say {other:?}"),
    }
}

/// A WebSocket client.
pub(crate) struct WebSocket {
    pub(crate) socket: TcpStream,
    decoder: ws::Decoder,
    unread: Vec<u8>,
    message: Vec<u8>,
}

/// What a WebSocket server said.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Data(Vec<u8>),
    Pong,
    Close,
}

impl WebSocket {
    pub(crate) async fn connect(url: &str, protocol: &str) -> Self {
        let response = ws_request(url, protocol).await;
        assert_eq!(response.status, 101, "{}", response.head);
        assert_eq!(response.header("sec-websocket-accept"), ["s3pPLMBiTxaQ9kYGzzhZRbK+xOo="]);
        let socket = response.socket;
        Self {
            socket,
            decoder: ws::Decoder::new(ws::Sender::Server),
            unread: Vec::new(),
            message: Vec::new(),
        }
    }

    pub(crate) async fn send(&mut self, operation: ws::Operation, payload: &[u8]) {
        let frame = ws::masked(operation, payload, [1, 2, 3, 250]);
        soon(self.socket.write_all(&frame)).await.unwrap();
    }

    pub(crate) async fn binary(&mut self, channel: u8, payload: &[u8]) {
        self.send(ws::Operation::Binary, &[&[channel], payload].concat()).await;
    }

    /// The next message; none at the end.
    pub(crate) async fn hear(&mut self) -> Option<Message> {
        loop {
            if let Some(message) = self.parse() {
                return Some(message);
            }
            let mut buffer = vec![0; 1 << 16];
            let length = soon(self.socket.read(&mut buffer)).await.unwrap();
            if length == 0 {
                return None;
            }
            self.unread.extend(&buffer[..length]);
        }
    }

    fn parse(&mut self) -> Option<Message> {
        let mut unread = std::mem::take(&mut self.unread);
        let mut input = unread.as_mut_slice();
        let mut heard = None;
        while heard.is_none() {
            let Some(event) = self.decoder.next(&mut input).unwrap() else { break };
            match event {
                ws::Event::Data { place, chunk } => {
                    self.message.extend(chunk);
                    heard = place.ends().then(|| Message::Data(std::mem::take(&mut self.message)));
                }
                ws::Event::Pong => heard = Some(Message::Pong),
                ws::Event::Close => heard = Some(Message::Close),
                ws::Event::Ping(_) => {}
            }
        }
        self.unread = input.to_vec();
        heard
    }

    /// Everything until the close frame, by channel.
    pub(crate) async fn all(&mut self) -> [Vec<u8>; 8] {
        let mut channels: [Vec<u8>; 8] = Default::default();
        loop {
            match self.hear().await.expect("a close frame") {
                Message::Data(message) => channels[usize::from(message[0])].extend(&message[1..]),
                Message::Pong => {}
                Message::Close => return channels,
            }
        }
    }
}
