//! The server: addresses for requests, sessions for connections.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

use crate::backend::{AttachRequest, Backend, End, ExecRequest, PortForwardRequest};
use crate::config::{Config, Tls};
use crate::error::StreamingError;
use crate::exec;
use crate::forward;
use crate::http::{self, Session, Waiting};
use crate::input::Input;
use crate::link::Link;
use crate::session::Connection;
use crate::tls;
use crate::token::Tokens;

/// Connections at a time; more wait in the kernel.
const CONNECTIONS_MAX: usize = 4096;
/// From the connection to the upgrade, whatever the client does meanwhile.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(30);
/// A request's head.
const HEAD_BYTES_MAX: usize = 32 * 1024;
const HEADERS_MAX: usize = 100;
/// While no descriptor is free, connections wait in the kernel this long before the next try.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// A peer that died without a word is noticed after these: silence, probes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_PROBES: u32 = 3;

/// A running server; dropping it ends every session.
#[derive(Debug)]
pub struct Server {
    shared: Arc<Shared>,
    /// `<scheme>://<host>:<port>`.
    base: String,
    accepting: JoinHandle<()>,
}

/// What sessions have in common.
pub(crate) struct Shared {
    pub(crate) tokens: Mutex<Tokens<Waiting>>,
    backend: Arc<dyn Backend>,
    idle_timeout: Option<Duration>,
    tls: Option<TlsAcceptor>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("idle_timeout", &self.idle_timeout).finish_non_exhaustive()
    }
}

impl Server {
    /// Listens, and serves sessions on tasks of the current runtime until it is dropped.
    ///
    /// # Errors
    /// [`StreamingError::Bind`] when the address cannot be had; [`StreamingError::Pem`], [`StreamingError::Tls`] and [`StreamingError::Certificate`] when TLS cannot be set up.
    pub async fn bind(config: &Config, backend: Arc<dyn Backend>) -> Result<Self, StreamingError> {
        let address = SocketAddr::new(config.address, config.port);
        let fail = |source| StreamingError::Bind { address, source };
        let host = reachable(config.address);
        let tls = tls::acceptor(&config.tls, host)?;
        let listener = TcpListener::bind(address).await.map_err(fail)?;
        let local = SocketAddr::new(host, listener.local_addr().map_err(fail)?.port());
        let scheme = if config.tls == Tls::Off { "http" } else { "https" };
        let shared =
            Arc::new(Shared { tokens: Mutex::default(), backend, idle_timeout: config.idle_timeout, tls });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Ok(Self { shared, base: format!("{scheme}://{local}"), accepting })
    }

    /// The address at which a client finds the process that `request` describes, once, within a minute.
    ///
    /// # Errors
    /// [`StreamingError::Invalid`] for a request that makes no sense, [`StreamingError::Exhausted`] when too many wait.
    pub fn exec_url(&self, request: ExecRequest) -> Result<String, StreamingError> {
        if request.command.is_empty() {
            return Err(StreamingError::Invalid("no command"));
        }
        self.process_url(exec::Request::Exec(request))
    }

    /// The address at which a client finds the container that `request` describes, once, within a minute.
    ///
    /// # Errors
    /// [`StreamingError::Invalid`] for a request that makes no sense, [`StreamingError::Exhausted`] when too many wait.
    pub fn attach_url(&self, request: AttachRequest) -> Result<String, StreamingError> {
        self.process_url(exec::Request::Attach(request))
    }

    /// The address at which a client finds the pod that `request` describes, once, within a minute.
    ///
    /// # Errors
    /// [`StreamingError::Invalid`] for a request that makes no sense, [`StreamingError::Exhausted`] when too many wait.
    pub fn port_forward_url(&self, request: PortForwardRequest) -> Result<String, StreamingError> {
        if request.ports.contains(&0) {
            return Err(StreamingError::Invalid("port 0"));
        }
        if request.ports.len() > forward::PORTS_MAX {
            return Err(StreamingError::Invalid("more than 127 ports"));
        }
        self.url(Waiting::PortForward(request))
    }

    fn process_url(&self, request: exec::Request) -> Result<String, StreamingError> {
        if request.ends().is_empty() {
            return Err(StreamingError::Invalid("none of stdin, stdout and stderr"));
        }
        if request.tty() && request.ends().has(End::Stderr) {
            return Err(StreamingError::Invalid("a terminal has no stderr"));
        }
        self.url(Waiting::Process(request))
    }

    fn url(&self, waiting: Waiting) -> Result<String, StreamingError> {
        let route = waiting.route();
        let mut tokens = self.shared.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        let token = tokens.insert(waiting, Instant::now())?;
        Ok(format!("{}/{route}/{token}", self.base))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// The address for a client on this node.
fn reachable(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) if address.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(address) if address.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        address => address,
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
        match listener.accept().await {
            Ok((socket, _)) => {
                let shared = Arc::clone(&shared);
                connections.spawn(async move {
                    if let Err(error) = serve(socket, &shared).await {
                        tracing::debug!(%error, "streaming connection ends before its session");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "accept streaming connection");
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

type Halves = (Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>);

async fn serve(socket: TcpStream, shared: &Shared) -> io::Result<()> {
    let duplicate = prepare(&socket)?;
    let upgraded = match &shared.tls {
        None => upgrade(socket, shared, halves).await?,
        Some(tls) => {
            let socket = tokio::time::timeout(UPGRADE_TIMEOUT, tls.accept(socket)).await??;
            upgrade(socket, shared, halves_of_tls).await?
        }
    };
    let Some((session, early, (read, write))) = upgraded else { return Ok(()) };
    let link = Arc::new(Link::new(write, session.protocol.framing));
    let connection =
        Connection { input: Input::new(read, early, duplicate), link, idle_timeout: shared.idle_timeout };
    match session.request {
        Waiting::Process(request) => {
            exec::serve(request, session.protocol.version, connection, &*shared.backend).await;
        }
        Waiting::PortForward(request) => {
            forward::serve(request, connection, Arc::clone(&shared.backend)).await
        }
    }
    Ok(())
}

fn halves(socket: TcpStream) -> Halves {
    let (read, write) = socket.into_split();
    (Box::new(read), Box::new(write))
}

fn halves_of_tls(socket: tokio_rustls::server::TlsStream<TcpStream>) -> Halves {
    let (read, write) = tokio::io::split(socket);
    (Box::new(read), Box::new(write))
}

/// Sets the socket up, and duplicates it for a look at its state.
fn prepare(socket: &TcpStream) -> io::Result<OwnedFd> {
    socket.set_nodelay(true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(socket, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(socket, KEEPALIVE_PROBES)?;
    socket.as_fd().try_clone_to_owned()
}

/// Speaks HTTP until a request is upgraded; nothing when the client leaves before.
async fn upgrade<I>(
    io: I,
    shared: &Shared,
    split: impl FnOnce(I) -> Halves,
) -> io::Result<Option<(Session, Bytes, Halves)>>
where
    I: AsyncRead + AsyncWrite + Send + Unpin,
{
    let agreed = Mutex::new(None);
    let service = service_fn(|request| {
        let (response, session) = http::answer(shared, &request);
        if let Some(session) = session {
            *agreed.lock().unwrap_or_else(PoisonError::into_inner) = Some(session);
        }
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(UPGRADE_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(io), service);
    let parts = tokio::time::timeout(UPGRADE_TIMEOUT, connection.without_shutdown()).await?;
    let parts = parts.map_err(io::Error::other)?;
    let session = agreed.lock().unwrap_or_else(PoisonError::into_inner).take();
    Ok(session.map(|session| (session, parts.read_buf, split(parts.io.into_inner()))))
}
