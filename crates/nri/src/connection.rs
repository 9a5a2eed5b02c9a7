//! One plugin's socket: a task that reads, a task that writes, calls in both directions.

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};

use crate::mux::{self, Stream};
use crate::ttrpc::{self, Assembler, Body, Packet, ProtocolError, Request, Response, Status, code};

/// Messages that wait to be written.
const WRITES_MAX: usize = 16;
/// Requests of a plugin that wait to be served; more at once are refused.
const REQUESTS_MAX: usize = 8;

/// Why a call gave nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CallError {
    /// The peer answered so.
    #[error("{message} (code {code})")]
    Refused { code: i32, message: String },
    /// The connection is closed, or was closed meanwhile.
    #[error("the connection is closed: {0}")]
    Closed(String),
    #[error("no answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// The answer is not what was asked for.
    #[error("an answer that is no protobuf of its kind")]
    Malformed,
    #[error("a request of more than {} bytes", ttrpc::MESSAGE_BYTES_MAX)]
    TooLarge,
}

/// A request of the peer, to be answered by [`Connection::respond`].
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) call: u32,
    pub(crate) request: Request,
}

/// A connection. Closed when it is dropped, when the peer closes it, and when either side breaks the protocol.
#[derive(Debug)]
pub(crate) struct Connection {
    shared: Arc<Shared>,
    writes: mpsc::Sender<Write>,
}

/// A message in frames, and who waits until it is written.
#[derive(Debug)]
struct Write {
    bytes: Vec<u8>,
    written: oneshot::Sender<()>,
}

#[derive(Debug)]
struct Shared {
    /// The same socket, for closing it under the tasks.
    socket: StdUnixStream,
    calls: Mutex<Calls>,
    /// Why it closed.
    closed: watch::Sender<Option<String>>,
}

#[derive(Debug, Default)]
struct Calls {
    last: u32,
    waiting: HashMap<u32, oneshot::Sender<Response>>,
}

impl Connection {
    /// Takes a connected socket. What the peer asks comes out of the receiver.
    ///
    /// # Errors
    /// When the socket cannot be handed to the reactor.
    pub(crate) fn new(socket: StdUnixStream) -> io::Result<(Self, mpsc::Receiver<Incoming>)> {
        socket.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            socket: socket.try_clone()?,
            calls: Mutex::default(),
            closed: watch::Sender::new(None),
        });
        let (read, write) = UnixStream::from_std(socket)?.into_split();
        let (writes, to_write) = mpsc::channel(WRITES_MAX);
        let (requests, incoming) = mpsc::channel(REQUESTS_MAX);
        let reader = Reader { shared: Arc::clone(&shared), writes: writes.downgrade(), requests };
        tokio::spawn(reader.run(read));
        tokio::spawn(write_all(Arc::clone(&shared), write, to_write));
        Ok((Self { shared, writes }, incoming))
    }

    /// Calls `service.method` and waits for the answer. After a time-out the connection is of no use: close it.
    pub(crate) async fn call<A: prost::Message + Default>(
        &self,
        (service, method): (&str, &str),
        payload: Vec<u8>,
        limit: Duration,
    ) -> Result<A, CallError> {
        let answered = tokio::time::timeout(limit, self.exchange((service, method), payload, limit)).await;
        let response = answered.map_err(|_elapsed| CallError::TimedOut(limit))??;
        match response.into_result() {
            Ok(payload) => A::decode(payload.as_slice()).map_err(|_not_one| CallError::Malformed),
            // The plugin noticed the time-out before we did.
            Err(Status { code: code::DEADLINE_EXCEEDED, .. }) => Err(CallError::TimedOut(limit)),
            Err(Status { code, message }) => Err(CallError::Refused { code, message }),
        }
    }

    async fn exchange(
        &self,
        (service, method): (&str, &str),
        payload: Vec<u8>,
        limit: Duration,
    ) -> Result<Response, CallError> {
        let request = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload,
            timeout_nano: i64::try_from(limit.as_nanos()).unwrap_or(i64::MAX),
        };
        let (call, answer) = self.shared.register();
        let _forgotten_at_the_end = Forget { shared: &self.shared, call };
        let bytes = ttrpc::encode(&Packet { call, body: Body::Request(request) })
            .map_err(|_too_large| CallError::TooLarge)?;
        self.write(Stream::Plugin, &bytes).await?;
        let mut closed = self.shared.closed.subscribe();
        tokio::select! {
            answer = answer => answer.map_err(|_dropped| self.closed_error()),
            _ = closed.wait_for(Option::is_some) => Err(self.closed_error()),
        }
    }

    async fn write(&self, stream: Stream, message: &[u8]) -> Result<(), CallError> {
        if self.is_closed() {
            return Err(self.closed_error());
        }
        let (written, done) = oneshot::channel();
        let write = Write { bytes: mux::frames(stream, message), written };
        self.writes.send(write).await.map_err(|_ended| self.closed_error())?;
        done.await.map_err(|_ended| self.closed_error())
    }

    /// Answers a request. A peer that does not read for `limit` is disconnected.
    pub(crate) async fn respond(&self, call: u32, response: Response, limit: Duration) {
        let bytes = ttrpc::encode(&Packet { call, body: Body::Response(response) }).or_else(|too_large| {
            let refusal = Response::refusal(code::RESOURCE_EXHAUSTED, too_large.to_string());
            ttrpc::encode(&Packet { call, body: Body::Response(refusal) })
        });
        let Ok(bytes) = bytes else { return };
        match tokio::time::timeout(limit, self.write(Stream::Runtime, &bytes)).await {
            Ok(Ok(()) | Err(_)) => {}
            Err(_elapsed) => self.close("the plugin does not read"),
        }
    }

    /// Ends the connection; `why` is what later calls say. The first reason counts.
    pub(crate) fn close(&self, why: &str) {
        self.shared.close(why);
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.shared.closed.borrow().is_some()
    }

    /// Waits for the end, and tells why it came.
    pub(crate) async fn closed(&self) -> String {
        let mut closed = self.shared.closed.subscribe();
        // The sender lives in `shared`, so the channel cannot close here.
        let reason = closed.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        reason.unwrap_or_default()
    }

    fn closed_error(&self) -> CallError {
        CallError::Closed(self.shared.closed.borrow().clone().unwrap_or_default())
    }

    /// Pid of the process that connected; `None` when the kernel does not say.
    pub(crate) fn peer_pid(&self) -> Option<i32> {
        let credentials = rustix::net::sockopt::socket_peercred(&self.shared.socket).ok()?;
        Some(credentials.pid.as_raw_nonzero().get())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close("the runtime let go of it");
    }
}

impl Shared {
    fn calls(&self) -> std::sync::MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next call's number: odd, since the client opens it.
    fn register(&self) -> (u32, oneshot::Receiver<Response>) {
        let (sender, answer) = oneshot::channel();
        let mut calls = self.calls();
        calls.last = if calls.last == 0 { 1 } else { calls.last.wrapping_add(2) };
        let call = calls.last;
        calls.waiting.insert(call, sender);
        (call, answer)
    }

    fn close(&self, why: &str) {
        let first = self.closed.send_if_modified(|reason| {
            let first = reason.is_none();
            reason.get_or_insert_with(|| why.to_owned());
            first
        });
        if first && let Err(error) = self.socket.shutdown(Shutdown::Both) {
            tracing::debug!(%error, "shut a plugin's socket down");
        }
    }
}

/// Forgets a call, answered or not.
struct Forget<'a> {
    shared: &'a Shared,
    call: u32,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        drop(self.shared.calls().waiting.remove(&self.call));
    }
}

struct Reader {
    shared: Arc<Shared>,
    writes: mpsc::WeakSender<Write>,
    requests: mpsc::Sender<Incoming>,
}

impl Reader {
    async fn run(self, mut socket: OwnedReadHalf) {
        let why = match self.read(&mut socket).await {
            Ok(()) => "the plugin closed it".to_owned(),
            Err(Broken::Io(error)) => format!("read from the plugin: {error}"),
            Err(Broken::Protocol(error)) => format!("the plugin broke the protocol: {error}"),
        };
        self.shared.close(&why);
    }

    async fn read(&self, socket: &mut OwnedReadHalf) -> Result<(), Broken> {
        let (mut answers, mut requests) = (Assembler::default(), Assembler::default());
        let mut header = [0; mux::HEADER_BYTES];
        loop {
            match socket.read_exact(&mut header).await {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                read => read?,
            };
            let header = mux::Header::parse(header).ok_or(ProtocolError::Frame)?;
            let mut payload = vec![0; header.payload_bytes];
            socket.read_exact(&mut payload).await?;
            match Stream::of(header.stream) {
                Some(Stream::Plugin) => self.answered(answers.push(&payload)?),
                Some(Stream::Runtime) => self.asked(requests.push(&payload)?),
                None => {}
            }
        }
    }

    fn answered(&self, packets: Vec<Packet>) {
        for Packet { call, body } in packets {
            if let Body::Response(response) = body
                && let Some(waiting) = self.shared.calls().waiting.remove(&call)
            {
                // Who asked may have gone.
                let _delivered = waiting.send(response);
            }
        }
    }

    fn asked(&self, packets: Vec<Packet>) {
        for Packet { call, body } in packets {
            let Body::Request(request) = body else { continue };
            if self.requests.try_send(Incoming { call, request }).is_err() {
                self.refuse(call);
            }
        }
    }

    /// More at once than are taken. Where the refusal finds no room either, the caller's own time-out ends the call.
    fn refuse(&self, call: u32) {
        let response = Response::refusal(code::RESOURCE_EXHAUSTED, "too many requests at once");
        if let (Some(writes), Ok(bytes)) =
            (self.writes.upgrade(), ttrpc::encode(&Packet { call, body: Body::Response(response) }))
        {
            let (written, _nobody_waits) = oneshot::channel();
            let _room = writes.try_send(Write { bytes: mux::frames(Stream::Runtime, &bytes), written });
        }
    }
}

enum Broken {
    Io(io::Error),
    Protocol(ProtocolError),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<ProtocolError> for Broken {
    fn from(error: ProtocolError) -> Self {
        Self::Protocol(error)
    }
}

/// Writes whole messages, so that a caller that gives up never leaves half of one.
async fn write_all(shared: Arc<Shared>, mut socket: OwnedWriteHalf, mut messages: mpsc::Receiver<Write>) {
    while let Some(Write { bytes, written }) = messages.recv().await {
        if let Err(error) = socket.write_all(&bytes).await {
            return shared.close(&format!("write to the plugin: {error}"));
        }
        // Who waited may have given up.
        let _heard = written.send(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api;
    use crate::testing::{LIMIT, Peer, pair};

    const METHOD: (&str, &str) = ("service", "Method");

    #[tokio::test]
    async fn an_answer_of_any_size_comes_back() {
        let (ours, theirs) = pair();
        let (connection, _incoming) = Connection::new(ours).unwrap();
        let message = "x".repeat(3 << 20);
        let expected = message.clone();
        let peer = std::thread::spawn(move || {
            let mut peer = Peer::new(theirs);
            let (call, request) = peer.request();
            assert_eq!((request.service.as_str(), request.method.as_str()), METHOD);
            let echo = api::LinuxNetDevice { name: String::from_utf8(request.payload).unwrap() };
            peer.answer(call, &echo);
            peer
        });
        let answer: api::LinuxNetDevice = connection.call(METHOD, message.into_bytes(), LIMIT).await.unwrap();
        assert_eq!(answer.name, expected);
        drop(peer.join().unwrap());
        assert_eq!(connection.closed().await, "the plugin closed it");
    }

    #[tokio::test]
    async fn silence_and_death_end_a_call() {
        let (ours, theirs) = pair();
        let (connection, _incoming) = Connection::new(ours).unwrap();
        let short = Duration::from_millis(30);
        let late = connection.call::<api::Empty>(METHOD, Vec::new(), short).await;
        assert_eq!(late, Err(CallError::TimedOut(short)));
        assert!(connection.shared.calls().waiting.is_empty());
        let call = connection.call::<api::Empty>(METHOD, Vec::new(), LIMIT);
        let (dead, ()) = tokio::join!(call, async { drop(theirs) });
        assert!(matches!(dead, Err(CallError::Closed(_))), "{dead:?}");
    }

    #[tokio::test]
    async fn a_peer_that_does_not_read_is_bounded() {
        let (ours, _theirs) = pair();
        let (connection, _incoming) = Connection::new(ours).unwrap();
        let short = Duration::from_millis(20);
        for _ in 0..WRITES_MAX + 4 {
            let late = connection.call::<api::Empty>(METHOD, vec![0; 1 << 20], short).await;
            assert_eq!(late, Err(CallError::TimedOut(short)));
        }
        connection.close("enough");
        assert_eq!(
            connection.call::<api::Empty>(METHOD, Vec::new(), LIMIT).await,
            Err(CallError::Closed("enough".to_owned()))
        );
    }

    #[tokio::test]
    async fn a_broken_frame_closes_the_connection() {
        let (ours, mut theirs) = pair();
        let (connection, _incoming) = Connection::new(ours).unwrap();
        std::io::Write::write_all(&mut theirs, &[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff]).unwrap();
        assert!(connection.closed().await.contains("broke the protocol"));
    }

    #[tokio::test]
    async fn a_flood_of_requests_is_refused() {
        let (ours, theirs) = pair();
        let (_connection, incoming) = Connection::new(ours).unwrap();
        let mut peer = Peer::new(theirs);
        let refused = tokio::task::spawn_blocking(move || {
            for _ in 0..=REQUESTS_MAX {
                peer.ask(METHOD, &api::Empty {});
            }
            peer.response()
        });
        assert_eq!(refused.await.unwrap().unwrap_err().code, code::RESOURCE_EXHAUSTED);
        assert_eq!(incoming.len(), REQUESTS_MAX);
    }
}
