//! Port-forward sessions: many connections into one pod.
//!
//! Each has a pair of streams, one for data, one for the words of a failure. A pair lives in a task of its own, from its first stream on.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::backend::{Backend, Failure, PortForwardRequest};
use crate::fd::Fd;
use crate::inlet::Inlet;
use crate::link::Link;
use crate::output::{self, Framing};
use crate::session::{self, Broken, Connection, Outcome};
use crate::spdy::frame::{self, Fin};
use crate::spdy::headers::Headers;
use crate::spdy::session::{self as spdy, Answer, STREAM_CREATION_TIMEOUT, Streams};
use crate::ws::session::{self as ws, Channels, HalfClose};

/// Connections of one session at a time.
pub(crate) const PAIRS_MAX: usize = 256;
/// Ports of a session with fixed channels: two channels each, numbered in a byte.
pub(crate) const PORTS_MAX: usize = 127;
const REQUEST_ID_BYTES_MAX: usize = 128;
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);
/// After the pod's end, what the client still says has this long from byte to byte.
const CLIENT_SILENCE_MAX: Duration = Duration::from_secs(1);
/// After the client's end, the pod's answer has this long from byte to byte. Longer, since a request may
/// end with its sender's half while the answer is still thought over.
const POD_SILENCE_MAX: Duration = Duration::from_secs(60);

/// Serves a session to its end.
pub(crate) async fn serve(request: PortForwardRequest, connection: Connection, backend: Arc<dyn Backend>) {
    let Connection { mut input, link, idle_timeout } = connection;
    let pod = Arc::new(Pod { id: request.pod, link: Arc::clone(&link), backend });
    let read = async {
        match link.framing() {
            Framing::Spdy | Framing::Tunnel => {
                spdy::read(&mut input, &link, &mut ForwardStreams::new(Arc::clone(&pod))).await.into()
            }
            Framing::Channels | Framing::Base64Channels => match ForwardChannels::new(&request.ports, &pod)
                .await
            {
                Ok(mut channels) => ws::read(&mut input, &link, HalfClose::None, &mut channels).await.into(),
                Err(error) => Outcome::Broken(error.into()),
            },
        }
    };
    let outcome = tokio::select! {
        outcome = read => outcome,
        error = link.run() => Outcome::Broken(Broken::Connection(error)),
        () = link.idle(idle_timeout) => Outcome::Idle,
        () = pod.backend.pod_ended(&pod.id) => Outcome::Done,
    };
    session::close(&link, &mut input, outcome).await;
}

/// Where connections go, and where they are answered.
struct Pod {
    id: String,
    link: Arc<Link>,
    backend: Arc<dyn Backend>,
}

/// One connection.
#[derive(Debug)]
struct Pair {
    port: u16,
    data: OnceLock<u32>,
    error: OnceLock<u32>,
    inlet: Inlet,
    /// The second stream came.
    complete: Notify,
    /// The client broke it off.
    cancelled: Notify,
    last_byte: Mutex<Instant>,
}

impl Pair {
    fn new(port: u16) -> Self {
        Self {
            port,
            data: OnceLock::new(),
            error: OnceLock::new(),
            inlet: Inlet::default(),
            complete: Notify::new(),
            cancelled: Notify::new(),
            last_byte: Mutex::new(Instant::now()),
        }
    }

    /// The data stream's ID, when both streams are there.
    fn stream(&self) -> Option<u32> {
        self.error.get().and(self.data.get()).copied()
    }

    /// Takes `stream` as one half; `false` where it has that already.
    fn take(&self, half: Half, stream: u32) -> bool {
        let slot = match half {
            Half::Data => &self.data,
            Half::Error => &self.error,
        };
        let taken = slot.set(stream).is_ok();
        if self.stream().is_some() {
            self.complete.notify_one();
        }
        taken
    }

    async fn push(&self, chunk: &[u8]) {
        self.touch();
        self.inlet.push(chunk).await;
    }

    fn touch(&self) {
        *self.last_byte.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    async fn silence(&self, limit: Duration) {
        loop {
            let quiet = self.last_byte.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
            match limit.checked_sub(quiet) {
                Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
                _ => return,
            }
        }
    }

    /// From the first stream to the last byte.
    async fn run(&self, pod: &Pod) {
        let ended = tokio::select! {
            ended = self.connect(pod) => ended,
            () = self.cancelled.notified() => self.end_error(pod).await,
        };
        self.inlet.close();
        if let Err(error) = ended {
            tracing::debug!(%error, port = self.port, "forwarded connection breaks off");
        }
    }

    async fn connect(&self, pod: &Pod) -> io::Result<()> {
        if tokio::time::timeout(STREAM_CREATION_TIMEOUT, self.complete.notified()).await.is_err() {
            return self.fail(pod, "the client did not open both streams").await;
        }
        let Some(stream) = self.stream() else { return Ok(()) };
        match self.dial(pod).await {
            Ok(socket) => self.copy(pod, stream, socket).await,
            Err(failure) => {
                let text = format!("error forwarding port {} to pod {}: {failure}", self.port, pod.id);
                self.fail(pod, &text).await
            }
        }
    }

    async fn dial(&self, pod: &Pod) -> Result<Arc<Fd>, Failure> {
        let dialled = tokio::time::timeout(DIAL_TIMEOUT, pod.backend.dial(&pod.id, self.port)).await;
        let socket = dialled.unwrap_or_else(|_late| Err(Failure("timed out".to_owned())))?;
        Fd::new(socket.into()).map(Arc::new).map_err(|error| Failure(error.to_string()))
    }

    async fn fail(&self, pod: &Pod, text: &str) -> io::Result<()> {
        if let Some(error) = self.error.get() {
            pod.link.message(*error, text.as_bytes(), Fin::No).await?;
        }
        let streams = [self.error.get(), self.data.get()];
        streams.into_iter().flatten().try_for_each(|stream| reset(&pod.link, *stream, frame::RESET_INTERNAL))
    }

    async fn copy(&self, pod: &Pod, stream: u32, socket: Arc<Fd>) -> io::Result<()> {
        self.inlet.open(Arc::clone(&socket));
        let (_never_left_open, left_open) = watch::channel(false);
        let told = output::copy(&socket, &pod.link, stream, left_open, || self.touch());
        let (mut told, mut heard) = (std::pin::pin!(told), std::pin::pin!(self.inlet.drain()));
        let ended = tokio::select! {
            told = &mut told => match told {
                Ok(()) => {
                    self.touch();
                    tokio::select! { _ = heard => {}, () = self.silence(CLIENT_SILENCE_MAX) => {} }
                    true
                }
                Err(error) => {
                    tracing::debug!(%error, port = self.port, "a pod's connection ends early");
                    false
                }
            },
            _ = &mut heard => {
                self.touch();
                tokio::select! { told = told => told.is_ok(), () = self.silence(POD_SILENCE_MAX) => false }
            }
        };
        if !ended {
            reset(&pod.link, stream, frame::RESET_CANCEL)?;
        }
        self.end_error(pod).await
    }

    /// There will be no words of failure.
    async fn end_error(&self, pod: &Pod) -> io::Result<()> {
        match self.error.get() {
            Some(error) => output::end(&pod.link, *error).await,
            None => Ok(()),
        }
    }
}

/// Breaks a stream off, where that can be said.
fn reset(link: &Link, stream: u32, status: u32) -> io::Result<()> {
    match link.framing() {
        Framing::Spdy | Framing::Tunnel => link
            .control(&link.framing().control(&frame::rst_stream(stream, status)))
            .map_err(|flood| io::Error::other(flood.to_string())),
        Framing::Channels | Framing::Base64Channels => Ok(()),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Half {
    Data,
    Error,
}

/// What makes two streams a pair.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Request(String),
    /// Very old clients say nothing: the error stream's number, which the data stream's follows.
    ErrorStream(u32),
}

/// The streams of a SPDY client.
struct ForwardStreams {
    pod: Arc<Pod>,
    pairs: HashMap<Key, Arc<Pair>>,
    streams: HashMap<u32, (Arc<Pair>, Half)>,
    tasks: JoinSet<Key>,
}

impl ForwardStreams {
    fn new(pod: Arc<Pod>) -> Self {
        Self { pod, pairs: HashMap::new(), streams: HashMap::new(), tasks: JoinSet::new() }
    }

    /// Forgets pairs that ended.
    fn reap(&mut self) {
        while let Some(ended) = self.tasks.try_join_next() {
            let Some(pair) = ended.ok().and_then(|key| self.pairs.remove(&key)) else { continue };
            for stream in [pair.data.get(), pair.error.get()].into_iter().flatten() {
                self.streams.remove(stream);
            }
        }
    }

    fn pair(&mut self, key: Key, port: u16) -> Option<Arc<Pair>> {
        if let Some(pair) = self.pairs.get(&key) {
            return (pair.port == port).then(|| Arc::clone(pair));
        }
        let pair = Arc::new(Pair::new(port));
        self.pairs.insert(key.clone(), Arc::clone(&pair));
        let (task, pod) = (Arc::clone(&pair), Arc::clone(&self.pod));
        self.tasks.spawn(async move {
            task.run(&pod).await;
            key
        });
        Some(pair)
    }
}

/// Which connection a stream belongs to; nothing where its headers make no sense.
fn parse(stream: u32, headers: &Headers) -> Option<(Key, Half, u16)> {
    let half = match headers.get("streamtype")? {
        "data" => Half::Data,
        "error" => Half::Error,
        _ => return None,
    };
    let port = headers.get("port")?.parse().ok().filter(|port| *port > 0)?;
    let key = match (headers.get("requestid"), half) {
        (Some(id), _) if id.len() > REQUEST_ID_BYTES_MAX => return None,
        (Some(id), _) => Key::Request(id.to_owned()),
        (None, Half::Error) => Key::ErrorStream(stream),
        (None, Half::Data) => Key::ErrorStream(stream.checked_sub(2)?),
    };
    Some((key, half, port))
}

impl Streams for ForwardStreams {
    fn opened(&mut self, stream: u32, headers: &Headers) -> Answer {
        self.reap();
        let malformed = Answer::Refuse(frame::RESET_PROTOCOL_ERROR);
        let Some((key, half, port)) = parse(stream, headers) else { return malformed };
        if self.pairs.len() >= PAIRS_MAX && !self.pairs.contains_key(&key) {
            return Answer::Refuse(frame::RESET_REFUSED);
        }
        match self.pair(key, port) {
            Some(pair) if pair.take(half, stream) => {
                self.streams.insert(stream, (pair, half));
                Answer::Accept
            }
            _ => malformed,
        }
    }

    async fn data(&mut self, stream: u32, chunk: &[u8], fin: Fin) {
        let Some((pair, Half::Data)) = self.streams.get(&stream) else { return };
        if !chunk.is_empty() {
            pair.push(chunk).await;
        }
        if fin == Fin::Yes {
            pair.inlet.end();
        }
    }

    fn reset(&mut self, stream: u32) {
        if let Some((pair, Half::Data)) = self.streams.get(&stream) {
            pair.inlet.close();
            pair.cancelled.notify_one();
        }
    }
}

/// The fixed channels of a WebSocket client: data at 2i, words of failure at 2i+1.
struct ForwardChannels {
    pairs: Vec<Arc<Pair>>,
    _tasks: JoinSet<()>,
}

impl ForwardChannels {
    async fn new(ports: &[u16], pod: &Arc<Pod>) -> io::Result<Self> {
        let (mut pairs, mut tasks) = (Vec::new(), JoinSet::new());
        for (data, port) in (0..).step_by(2).zip(ports.iter().take(PORTS_MAX)) {
            for channel in [data, data + 1] {
                pod.link.message(channel, &port.to_le_bytes(), Fin::No).await?;
            }
            let pair = Arc::new(Pair::new(*port));
            pair.take(Half::Data, data);
            pair.take(Half::Error, data + 1);
            let (task, pod) = (Arc::clone(&pair), Arc::clone(pod));
            tasks.spawn(async move { task.run(&pod).await });
            pairs.push(pair);
        }
        Ok(Self { pairs, _tasks: tasks })
    }
}

impl Channels for ForwardChannels {
    async fn data(&mut self, channel: u8, chunk: &[u8]) {
        let pair = self.pairs.get(usize::from(channel / 2)).filter(|_| channel.is_multiple_of(2));
        if let Some(pair) = pair {
            pair.push(chunk).await;
        }
    }

    fn closed(&mut self, _channel: u8) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;
    use std::os::unix::net::UnixStream as StdUnixStream;

    use futures_util::future::BoxFuture;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;

    use super::*;
    use crate::backend::{AttachRequest, ExecRequest, Process};

    const ERROR: u32 = 1;
    const DATA: u32 = 3;

    /// Its connections are there already.
    struct Connected;

    impl Backend for Connected {
        fn exec(
            &self,
            _: ExecRequest,
            _: Option<crate::backend::Size>,
        ) -> BoxFuture<'_, Result<Process, Failure>> {
            unreachable!("nothing is started")
        }

        fn attach(&self, _: AttachRequest) -> BoxFuture<'_, Result<Process, Failure>> {
            unreachable!("nothing is attached to")
        }

        fn dial<'a>(&'a self, _: &'a str, _: u16) -> BoxFuture<'a, Result<TcpStream, Failure>> {
            unreachable!("nothing is dialled")
        }

        fn pod_ended<'a>(&'a self, _: &'a str) -> BoxFuture<'a, ()> {
            unreachable!("nobody waits for the pod")
        }
    }

    struct Bench {
        pod: Pod,
        pair: Pair,
        /// The session's end of the connection into the pod, and the pod's.
        ours: Arc<Fd>,
        theirs: UnixStream,
        client: tokio::io::DuplexStream,
    }

    fn bench() -> Bench {
        let (sink, client) = tokio::io::duplex(1024);
        let link = Arc::new(Link::new(Box::new(sink), Framing::Spdy));
        let pod = Pod { id: "p".to_owned(), link, backend: Arc::new(Connected) };
        let pair = Pair::new(80);
        assert!(pair.take(Half::Error, ERROR) && pair.take(Half::Data, DATA));
        let (ours, theirs) = StdUnixStream::pair().unwrap();
        for end in [&ours, &theirs] {
            end.set_nonblocking(true).unwrap();
        }
        let (ours, theirs) = (Arc::new(Fd::new(ours.into()).unwrap()), UnixStream::from_std(theirs).unwrap());
        Bench { pod, pair, ours, theirs, client }
    }

    impl Bench {
        async fn half_close(&mut self, last: &[u8]) {
            self.theirs.write_all(last).await.unwrap();
            self.theirs.shutdown().await.unwrap();
        }

        /// Everything that was said to the client.
        async fn said(mut self) -> Vec<u8> {
            drop(self.pod);
            let mut said = Vec::new();
            self.client.read_to_end(&mut said).await.unwrap();
            said
        }
    }

    fn ended(last: &[u8]) -> Vec<u8> {
        let message = |stream, payload, fin| Framing::Spdy.message(stream, payload, fin);
        [message(DATA, last, Fin::No), message(DATA, b"", Fin::Yes), message(ERROR, b"", Fin::Yes)].concat()
    }

    #[tokio::test(start_paused = true)]
    async fn the_pods_half_close_leaves_the_client_a_moment_from_byte_to_byte() {
        let mut bench = bench();
        bench.half_close(b"bye").await;
        let client = async {
            for byte in b"you too" {
                tokio::time::sleep(CLIENT_SILENCE_MAX - Duration::from_millis(10)).await;
                bench.pair.push(&[*byte]).await;
            }
            bench.pair.inlet.end();
        };
        let copied = bench.pair.copy(&bench.pod, DATA, Arc::clone(&bench.ours));
        tokio::join!(async { copied.await.unwrap() }, client);
        let mut heard = String::new();
        bench.theirs.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "you too");
        assert_eq!(bench.said().await, ended(b"bye"));
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_pods_half_close_a_silent_client_is_not_waited_for() {
        let mut bench = bench();
        bench.half_close(b"bye").await;
        let begun = Instant::now();
        bench.pair.copy(&bench.pod, DATA, Arc::clone(&bench.ours)).await.unwrap();
        assert!((CLIENT_SILENCE_MAX..CLIENT_SILENCE_MAX * 2).contains(&begun.elapsed()));
        assert_eq!(bench.said().await, ended(b"bye"));
    }

    #[tokio::test(start_paused = true)]
    async fn after_the_clients_end_the_pod_may_think() {
        let mut bench = bench();
        bench.pair.push(b"what?").await;
        bench.pair.inlet.end();
        let begun = Instant::now();
        let copied = bench.pair.copy(&bench.pod, DATA, Arc::clone(&bench.ours));
        let answer = async {
            tokio::time::sleep(POD_SILENCE_MAX - Duration::from_millis(10)).await;
            bench.theirs.write_all(b"that").await.unwrap();
            bench.theirs.shutdown().await.unwrap();
        };
        tokio::join!(async { copied.await.unwrap() }, answer);
        assert!(begun.elapsed() < POD_SILENCE_MAX);
        assert_eq!(bench.said().await, ended(b"that"));
    }
}
