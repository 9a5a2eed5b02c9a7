//! Sessions of a process: exec and attach.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, oneshot, watch};

use crate::backend::{AttachRequest, Backend, End, Ends, ExecRequest, Exit, Failure, InputEnd, Process};
use crate::fd::Fd;
use crate::inlet::{Drained, Inlet};
use crate::link::Link;
use crate::output::{self, Framing};
use crate::resize::Sizes;
use crate::session::{self, Broken, Connection, Outcome};
use crate::spdy::frame::{self, Fin};
use crate::spdy::headers::Headers;
use crate::spdy::session::{self as spdy, Answer, STREAM_CREATION_TIMEOUT, Streams};
use crate::status::{Version, status};
use crate::ws::session::{self as ws, Channels, HalfClose};

/// Streams of one connection; five have a use.
const STREAMS_MAX: usize = 16;

/// What the last input brings about is still told to a client whose input's end detaches it.
const DETACH_DELAY: Duration = Duration::from_secs(1);

/// A client whose session has failed may still fetch what was said before; one that does not is not waited for.
const FAILED_PATIENCE: Duration = Duration::from_secs(30);

/// Channels over WebSocket.
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// Which process.
#[derive(Debug, Clone)]
pub(crate) enum Request {
    Exec(ExecRequest),
    Attach(AttachRequest),
}

impl Request {
    pub(crate) fn ends(&self) -> Ends {
        match self {
            Self::Exec(request) => request.ends,
            Self::Attach(request) => request.ends,
        }
    }

    pub(crate) fn tty(&self) -> bool {
        match self {
            Self::Exec(request) => request.tty,
            Self::Attach(request) => request.tty,
        }
    }

    async fn start(&self, sizes: &Sizes, backend: &dyn Backend) -> Result<Process, Failure> {
        match self {
            Self::Exec(request) => {
                let size = if request.tty { sizes.first().await } else { None };
                backend.exec(request.clone(), size).await
            }
            Self::Attach(request) => backend.attach(request.clone()).await,
        }
    }
}

/// Serves a session to its end.
pub(crate) async fn serve(request: Request, version: Version, connection: Connection, backend: &dyn Backend) {
    let Connection { mut input, link, idle_timeout } = connection;
    let client = Client { stdin: Inlet::default(), sizes: Sizes::default(), ends: request.ends() };
    let session = Session { request: &request, version, client: &client, link: &link, backend };
    let (opened, ids) = oneshot::channel();
    let read = async {
        if link.framing() == Framing::Spdy {
            let mut streams = ExecStreams::new(&client, &request, version, opened);
            spdy::read(&mut input, &link, &mut streams).await
        } else {
            tell(opened, Ids::channels(client.ends));
            let half_close = if version >= Version::V5 { HalfClose::Signalled } else { HalfClose::None };
            ws::read(&mut input, &link, half_close, &mut ExecChannels { client: &client }).await
        }
    };
    let outcome = tokio::select! {
        read = read => Outcome::from(read),
        done = session.run(ids) => Outcome::from(done),
        error = link.run() => Outcome::Broken(Broken::Connection(error)),
        () = link.idle(idle_timeout) => Outcome::Idle,
    };
    session::close(&link, &mut input, outcome).await;
}

/// What comes from the client.
#[derive(Debug)]
struct Client {
    stdin: Inlet,
    sizes: Sizes,
    ends: Ends,
}

impl Client {
    fn wants(&self, end: End) -> bool {
        self.ends.has(end)
    }
}

/// Where the client expects what; nothing where it wants nothing.
#[derive(Debug, Clone, Copy, Default)]
struct Ids {
    stdin: Option<u32>,
    stdout: Option<u32>,
    stderr: Option<u32>,
    error: Option<u32>,
}

impl Ids {
    fn channels(ends: Ends) -> Self {
        let of = |end, channel: u8| ends.has(end).then_some(u32::from(channel));
        Self {
            stdin: of(End::Stdin, STDIN),
            stdout: of(End::Stdout, STDOUT),
            stderr: of(End::Stderr, STDERR),
            error: Some(u32::from(ERROR)),
        }
    }
}

/// Says where the client expects what.
fn tell(opened: oneshot::Sender<Ids>, ids: Ids) {
    if opened.send(ids).is_err() {
        tracing::trace!("the session ends before its streams are there");
    }
}

struct Session<'a> {
    request: &'a Request,
    version: Version,
    client: &'a Client,
    link: &'a Link,
    backend: &'a dyn Backend,
}

impl Session<'_> {
    /// From the streams to the status.
    async fn run(&self, ids: oneshot::Receiver<Ids>) -> io::Result<()> {
        let late = || io::Error::new(io::ErrorKind::TimedOut, "the client did not open its streams");
        let Ok(Ok(ids)) = tokio::time::timeout(STREAM_CREATION_TIMEOUT, ids).await else {
            return Err(late());
        };
        self.greet(ids).await?;
        let exit = match self.request.start(&self.client.sizes, self.backend).await {
            Ok(process) => run(process, ids, self.client, self.link).await?,
            Err(failure) => Exit::Failed(failure.0),
        };
        self.conclude(ids, &exit).await
    }

    /// What a client expects before any output.
    async fn greet(&self, ids: Ids) -> io::Result<()> {
        match self.link.framing() {
            Framing::Channels | Framing::Base64Channels => match ids.stdout.or(ids.stderr).or(ids.error) {
                Some(channel) => self.link.message(channel, &[], Fin::No).await,
                None => Ok(()),
            },
            Framing::Spdy | Framing::Tunnel if self.version == Version::V1 => {
                let stdin = ids.stdin.map(|stdin| frame::data_header(stdin, Fin::Yes, 0).to_vec());
                let error = ids.error.map(|error| frame::rst_stream(error, frame::RESET_CANCEL));
                self.link.send(&[stdin, error].into_iter().flatten().flatten().collect::<Vec<u8>>()).await
            }
            Framing::Spdy | Framing::Tunnel => Ok(()),
        }
    }

    /// The status; over SPDY v1 there is no stream left for it.
    async fn conclude(&self, ids: Ids, exit: &Exit) -> io::Result<()> {
        let spdy = self.link.framing() == Framing::Spdy;
        let Some(error) = ids.error.filter(|_| self.version > Version::V1 || !spdy) else { return Ok(()) };
        match status(self.version, exit) {
            Some(status) => self.link.message(error, &status, Fin::Yes).await,
            None if spdy => output::end(self.link, error).await,
            None => Ok(()),
        }
    }
}

/// Copies until the process has ended and its output is told.
async fn run(process: Process, ids: Ids, client: &Client, link: &Link) -> io::Result<Exit> {
    let Process { stdin, stdout, stderr, exit, resize, input_end } = process;
    match stdin.filter(|_| client.wants(End::Stdin)) {
        Some(stdin) => client.stdin.open(Arc::new(Fd::new(stdin)?)),
        None => client.stdin.close(),
    }
    let (ended, left_open) = watch::channel(false);
    let failed = Notify::new();
    let exit = async {
        let exit = exit.await;
        ended.send_replace(true);
        if matches!(exit, Exit::Failed(_)) {
            failed.notify_one();
        }
        Ok(exit)
    };
    let unfetched = async {
        failed.notified().await;
        tokio::time::sleep(FAILED_PATIENCE).await;
    };
    let outputs = async {
        tokio::try_join!(
            exit,
            copy(stdout, ids.stdout, link, left_open.clone()),
            copy(stderr, ids.stderr, link, left_open.clone()),
        )
    };
    let detach = async {
        if client.stdin.drain().await == Drained::Everything && input_end == InputEnd::Detaches {
            tokio::time::sleep(DETACH_DELAY).await;
        } else {
            std::future::pending().await
        }
    };
    tokio::select! {
        told = outputs => told.map(|(exit, (), ())| exit),
        () = detach => Ok(Exit::Detached),
        () = unfetched => Err(io::ErrorKind::TimedOut.into()),
        // Sizes may come as long as there is a client.
        () = client.sizes.apply(&resize) => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

async fn copy(
    source: Option<OwnedFd>,
    stream: Option<u32>,
    link: &Link,
    left_open: watch::Receiver<bool>,
) -> io::Result<()> {
    match (source, stream) {
        (Some(source), Some(stream)) => output::copy(&Fd::new(source)?, link, stream, left_open, || ()).await,
        (None, Some(stream)) => output::end(link, stream).await,
        (Some(source), None) => output::discard(&Fd::new(source)?, left_open).await,
        (None, None) => Ok(()),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Stdin,
    Stdout,
    Stderr,
    Error,
    Resize,
    /// Nobody knows, or nobody asked.
    Unused,
}

/// The streams of a SPDY client.
struct ExecStreams<'a> {
    client: &'a Client,
    expected: Vec<Role>,
    roles: Vec<(u32, Role)>,
    /// Told when the last expected stream is open.
    opened: Option<oneshot::Sender<Ids>>,
}

impl<'a> ExecStreams<'a> {
    fn new(client: &'a Client, request: &Request, version: Version, opened: oneshot::Sender<Ids>) -> Self {
        let resize = request.tty() && version >= Version::V3;
        let expected = [
            (Role::Error, true),
            (Role::Stdin, client.wants(End::Stdin)),
            (Role::Stdout, client.wants(End::Stdout)),
            (Role::Stderr, client.wants(End::Stderr)),
            (Role::Resize, resize),
        ];
        let expected = expected.into_iter().filter_map(|(role, wanted)| wanted.then_some(role)).collect();
        Self { client, expected, roles: Vec::new(), opened: Some(opened) }
    }

    fn role(&self, headers: &Headers) -> Role {
        let role = match headers.get("streamtype") {
            Some("stdin") => Role::Stdin,
            Some("stdout") => Role::Stdout,
            Some("stderr") => Role::Stderr,
            Some("error") => Role::Error,
            Some("resize") => Role::Resize,
            other => {
                tracing::debug!(stream_type = other, "client opens a stream of unknown type");
                Role::Unused
            }
        };
        if self.expected.contains(&role) { role } else { Role::Unused }
    }

    fn id(&self, role: Role) -> Option<u32> {
        self.roles.iter().find(|(_, have)| *have == role).map(|(stream, _)| *stream)
    }

    fn tell_when_complete(&mut self) {
        if !self.expected.iter().all(|role| self.id(*role).is_some()) {
            return;
        }
        let ids = Ids {
            stdin: self.id(Role::Stdin),
            stdout: self.id(Role::Stdout),
            stderr: self.id(Role::Stderr),
            error: self.id(Role::Error),
        };
        if let Some(opened) = self.opened.take() {
            tell(opened, ids);
        }
    }
}

impl Streams for ExecStreams<'_> {
    fn opened(&mut self, stream: u32, headers: &Headers) -> Answer {
        let role = self.role(headers);
        if self.roles.len() >= STREAMS_MAX {
            return Answer::Refuse(frame::RESET_REFUSED);
        }
        if role != Role::Unused && self.id(role).is_some() {
            return Answer::Refuse(frame::RESET_PROTOCOL_ERROR);
        }
        self.roles.push((stream, role));
        self.tell_when_complete();
        Answer::Accept
    }

    async fn data(&mut self, stream: u32, chunk: &[u8], fin: Fin) {
        let role = self.roles.iter().find(|(have, _)| *have == stream).map(|(_, role)| *role);
        match role {
            Some(Role::Stdin) => {
                self.client.stdin.push(chunk).await;
                if fin == Fin::Yes {
                    self.client.stdin.end();
                }
            }
            Some(Role::Resize) => self.client.sizes.push(chunk),
            Some(Role::Stdout | Role::Stderr | Role::Error | Role::Unused) | None => {}
        }
    }

    fn reset(&mut self, stream: u32) {
        if self.id(Role::Stdin) == Some(stream) {
            self.client.stdin.end();
        }
    }
}

/// The channels of a WebSocket client.
struct ExecChannels<'a> {
    client: &'a Client,
}

impl Channels for ExecChannels<'_> {
    async fn data(&mut self, channel: u8, chunk: &[u8]) {
        match channel {
            STDIN if self.client.wants(End::Stdin) => self.client.stdin.push(chunk).await,
            RESIZE => self.client.sizes.push(chunk),
            _ => {}
        }
    }

    fn closed(&mut self, channel: u8) -> bool {
        if channel == STDIN {
            self.client.stdin.end();
        }
        channel <= RESIZE
    }
}

#[cfg(test)]
mod tests {
    use std::io::IoSliceMut;

    use rustix::pipe::{PipeFlags, pipe_with};
    use tokio::io::AsyncReadExt as _;

    use super::*;

    /// Fewer bytes than the process says, more than a client has room for.
    const CLIENT_ROOM: usize = 16;

    fn failing(output: OwnedFd) -> Process {
        Process {
            stdin: None,
            stdout: Some(output),
            stderr: None,
            exit: Box::pin(std::future::ready(Exit::Failed("too slow".into()))),
            resize: Box::new(|_| ()),
            input_end: InputEnd::Closes,
        }
    }

    /// Reads its input to the end, thinks about it, and answers.
    async fn thoughtful(input: OwnedFd, output: OwnedFd) {
        let (input, mut all) = (Fd::new(input).unwrap(), vec![0; 64]);
        let mut length = 0;
        while let read @ 1.. = input.read(&mut [IoSliceMut::new(&mut all[length..])]).await.unwrap() {
            length += read;
        }
        tokio::time::sleep(DETACH_DELAY - Duration::from_millis(10)).await;
        rustix::io::write(&output, &all[..length]).unwrap();
        // It goes on without this client.
        std::future::pending::<()>().await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_last_input_brings_about_is_told_before_the_client_is_detached() {
        let pipe = || pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        let ((input, stdin), (stdout, output)) = (pipe(), pipe());
        let process = Process {
            stdin: Some(stdin),
            stdout: Some(stdout),
            stderr: None,
            exit: Box::pin(std::future::pending()),
            resize: Box::new(|_| ()),
            input_end: InputEnd::Detaches,
        };
        let (ours, mut theirs) = tokio::io::duplex(1024);
        let link = Link::new(Box::new(ours), Framing::Channels);
        let ends = Ends::from([(End::Stdin, true), (End::Stdout, true)]);
        let client = Client { stdin: Inlet::default(), sizes: Sizes::default(), ends };
        client.stdin.push(b"last words").await;
        client.stdin.end();
        let exit = tokio::select! {
            exit = run(process, Ids::channels(ends), &client, &link) => exit.unwrap(),
            () = thoughtful(input, output) => unreachable!("it goes on"),
        };
        assert_eq!(exit, Exit::Detached);
        drop(link);
        let mut said = Vec::new();
        theirs.read_to_end(&mut said).await.unwrap();
        assert_eq!(said, Framing::Channels.message(STDOUT.into(), b"last words", Fin::No));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_session_does_not_wait_for_a_client_that_does_not_read() {
        let (output, process) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap();
        rustix::io::write(&process, &[b'x'; 1000]).unwrap();
        drop(process);
        let (ours, _client) = tokio::io::duplex(CLIENT_ROOM);
        let link = Link::new(Box::new(ours), Framing::Channels);
        let ends = Ends::from([(End::Stdout, true)]);
        let client = Client { stdin: Inlet::default(), sizes: Sizes::default(), ends };
        let ended = run(failing(output), Ids::channels(ends), &client, &link).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
