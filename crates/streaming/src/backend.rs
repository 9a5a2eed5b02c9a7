//! What the daemon does for a session.

use std::fmt;
use std::net::TcpStream;
use std::os::fd::OwnedFd;

use futures_util::future::BoxFuture;

/// An end of a process that a client may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The client writes, the process reads.
    Stdin,
    /// The process writes; with a terminal, everything.
    Stdout,
    /// The process writes; none with a terminal.
    Stderr,
}

/// A set of [`End`]s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ends(u8);

impl<const N: usize> From<[(End, bool); N]> for Ends {
    /// The ends that are wanted.
    fn from(ends: [(End, bool); N]) -> Self {
        Self(ends.into_iter().filter(|(_, wanted)| *wanted).fold(0, |bits, (end, _)| bits | Self::bit(end)))
    }
}

impl Ends {
    /// Whether `end` is in it.
    #[must_use]
    pub fn has(self, end: End) -> bool {
        self.0 & Self::bit(end) != 0
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn bit(end: End) -> u8 {
        match end {
            End::Stdin => 1,
            End::Stdout => 2,
            End::Stderr => 4,
        }
    }
}

/// A further process in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    /// A container's full ID.
    pub container: String,
    /// Program and arguments, not empty.
    pub command: Vec<String>,
    /// What the client wants; not empty, no stderr with a terminal.
    pub ends: Ends,
    /// Whether the process gets a terminal.
    pub tty: bool,
}

/// The ends of a container's own process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachRequest {
    /// A container's full ID.
    pub container: String,
    /// What the client wants; not empty, no stderr with a terminal.
    pub ends: Ends,
    /// Whether the container has a terminal.
    pub tty: bool,
}

/// Connections into a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortForwardRequest {
    /// A pod's full ID.
    pub pod: String,
    /// Ports of the protocol with fixed channels, at most 127; the others name the port of each connection.
    pub ports: Vec<u16>,
}

/// A process's ends as a session sees them; dropping it tells the daemon that the client is gone.
pub struct Process {
    /// Written to; dropped (and shut down, where it is a socket) at the end of the client's input. Non-blocking.
    pub stdin: Option<OwnedFd>,
    /// Read to its end, and thrown away where the client does not want it. Non-blocking.
    pub stdout: Option<OwnedFd>,
    /// Read to its end. Non-blocking.
    pub stderr: Option<OwnedFd>,
    /// Resolves at the end of the process, or of this client's part in it. Dropped with the session: what
    /// must happen then belongs into a guard inside.
    pub exit: BoxFuture<'static, Exit>,
    /// Sets the terminal's size.
    pub resize: Resize,
    /// What the end of the client's input means beyond the closing of `stdin`.
    pub input_end: InputEnd,
}

/// What the end of a client's input means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputEnd {
    /// That the process gets no more; its output goes on.
    Closes,
    /// That the client is done with a process that others may go on with.
    Detaches,
}

/// Sets a terminal's size. Must not block.
pub type Resize = Box<dyn Fn(Size) + Send + Sync>;

/// A terminal's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// ≥ 1.
    pub columns: u16,
    /// ≥ 1.
    pub rows: u16,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("stdin", &self.stdin)
            .field("stdout", &self.stdout)
            .field("stderr", &self.stderr)
            .finish_non_exhaustive()
    }
}

/// How a session's process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Exit {
    /// With this code; 128+n for signal n.
    Code(i32),
    /// Nobody knows, for this reason.
    Failed(String),
    /// The client's part is over: its container ended, or its input did where that ends it.
    Detached,
}

/// Why the daemon cannot do it, in words for the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Failure(pub String);

/// What the daemon does for a session.
pub trait Backend: Send + Sync + 'static {
    /// Starts a process, its terminal (where it gets one) of this size if that is known. Dropping the future gives it up.
    fn exec(&self, request: ExecRequest, size: Option<Size>) -> BoxFuture<'_, Result<Process, Failure>>;

    /// Joins a running container's own process. Dropping the future gives it up.
    fn attach(&self, request: AttachRequest) -> BoxFuture<'_, Result<Process, Failure>>;

    /// Connects to a port of `localhost` as the pod sees it; the socket is non-blocking.
    fn dial<'a>(&'a self, pod: &'a str, port: u16) -> BoxFuture<'a, Result<TcpStream, Failure>>;

    /// Resolves when connections into this pod must end: it was stopped, or is unknown.
    fn pod_ended<'a>(&'a self, pod: &'a str) -> BoxFuture<'a, ()>;
}
