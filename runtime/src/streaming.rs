//! Exec, Attach and PortForward: the calls check and give out addresses, the streaming server serves the sessions, and this connects
//! both to containers and pods.
//!
//! A session holds no lock. It ends with its process, its container or its pod: the end of an exec and of an attachment comes from the
//! shim, that of a pod from its record.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use crisp_proto::cri::{
    AttachRequest, AttachResponse, ExecRequest, ExecResponse, PortForwardRequest, PortForwardResponse,
};
use crisp_spec::Terminal;
use crisp_streaming::{
    Backend, Config, End, Exit, Failure, InputEnd, Process, Server, Size, StreamingError, Tls,
};
use futures_util::future::BoxFuture;
use oci_spec::runtime::{Box as ConsoleSize, BoxBuilder};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use tokio::net::TcpSocket;

use crate::config::{Streaming, StreamingTls};
use crate::container::Container;
use crate::daemon::Daemon;
use crate::error::{Doing as _, Error, Result};
use crate::pod::Pod;
use crate::pod::state::PodState;
use crate::supervisor::{AttachEnd, AttachSession, AttachStream, ExecSession, ExecStream};
use crate::{blocking, cgroups, container};

/// `localhost`, as a pod sees it, in the order in which it is tried.
const LOCALHOST: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
/// A port of `localhost` that neither accepts nor refuses is firewalled.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The streaming server, once it listens.
#[derive(Debug, Default)]
pub(crate) struct Streams(OnceLock<Server>);

impl Streams {
    fn server(&self) -> Result<&Server> {
        self.0.get().ok_or_else(|| Error::Internal {
            what: "prepare a session",
            cause: "the streaming server does not listen".to_owned(),
        })
    }
}

/// Binds the streaming server; called once, before the daemon's socket appears.
///
/// # Errors
/// When the address cannot be bound or the certificate not be read.
pub(crate) async fn serve(daemon: &Arc<Daemon>) -> Result<()> {
    let config = config(&daemon.config.streaming);
    let backend = Arc::new(Sessions(Arc::downgrade(daemon)));
    let server = Server::bind(&config, backend).await.map_err(refused("start the streaming server"))?;
    daemon.streams.0.set(server).map_err(|_second| Error::Internal {
        what: "start the streaming server",
        cause: "it runs already".to_owned(),
    })
}

fn config(streaming: &Streaming) -> Config {
    Config {
        address: streaming.address,
        port: streaming.port,
        tls: match &streaming.tls {
            StreamingTls::Off => Tls::Off,
            StreamingTls::SelfSigned => Tls::SelfSigned,
            StreamingTls::Files { cert, key } => Tls::Files { cert: cert.clone(), key: key.clone() },
        },
        idle_timeout: streaming.idle_timeout,
    }
}

fn refused(doing: &'static str) -> impl Fn(StreamingError) -> Error {
    move |error| match error {
        StreamingError::Invalid(reason) => Error::Invalid(reason.to_owned()),
        error => Error::step(doing, error.kind(), error),
    }
}

/// # Errors
/// [`Error::NotFound`], [`Error::WrongState`] where the container does not run, [`Error::Invalid`]; kind `Exhausted` where too many wait.
pub(crate) fn exec(daemon: &Arc<Daemon>, request: ExecRequest) -> Result<ExecResponse> {
    let container = daemon.containers.get(&request.container_id)?;
    container.require_running()?;
    let request = crisp_streaming::ExecRequest {
        container: container.id.to_string(),
        command: request.cmd,
        ends: [(End::Stdin, request.stdin), (End::Stdout, request.stdout), (End::Stderr, request.stderr)]
            .into(),
        tty: request.tty,
    };
    let url = daemon.streams.server()?.exec_url(request).map_err(refused("prepare an exec"))?;
    Ok(ExecResponse { url })
}

/// # Errors
/// As [`exec`]; [`Error::Invalid`] too where the container was made otherwise than the client thinks.
pub(crate) fn attach(daemon: &Arc<Daemon>, request: AttachRequest) -> Result<AttachResponse> {
    let container = daemon.containers.get(&request.container_id)?;
    container.require_running()?;
    let config = &container.record().config;
    if request.tty != config.tty {
        let has = if config.tty { "a" } else { "no" };
        return Err(Error::Invalid(format!("container {} has {has} terminal", container.id)));
    }
    if request.stdin && !config.stdin {
        return Err(Error::Invalid(format!("container {} was made without stdin", container.id)));
    }
    let request = crisp_streaming::AttachRequest {
        container: container.id.to_string(),
        ends: [(End::Stdin, request.stdin), (End::Stdout, request.stdout), (End::Stderr, request.stderr)]
            .into(),
        tty: request.tty,
    };
    let url = daemon.streams.server()?.attach_url(request).map_err(refused("prepare an attachment"))?;
    Ok(AttachResponse { url })
}

/// # Errors
/// [`Error::NotFound`], [`Error::WrongState`] where the pod is not ready, [`Error::Invalid`]; kind `Exhausted` where too many wait.
pub(crate) fn port_forward(daemon: &Arc<Daemon>, request: PortForwardRequest) -> Result<PortForwardResponse> {
    let pod = daemon.pods.get(&request.pod_sandbox_id)?;
    pod.require_ready()?;
    let port = |port: &i32| u16::try_from(*port).map_err(|_range| Error::Invalid(format!("port {port}")));
    let request = crisp_streaming::PortForwardRequest {
        pod: pod.id.to_string(),
        ports: request.port.iter().map(port).collect::<Result<_>>()?,
    };
    let url =
        daemon.streams.server()?.port_forward_url(request).map_err(refused("prepare a port-forward"))?;
    Ok(PortForwardResponse { url })
}

/// What sessions ask of the daemon.
struct Sessions(Weak<Daemon>);

impl Sessions {
    fn daemon(&self) -> Result<Arc<Daemon>> {
        self.0
            .upgrade()
            .ok_or_else(|| Error::Internal { what: "begin a session", cause: "the daemon ends".to_owned() })
    }

    fn container(&self, id: &str) -> Result<(Arc<Daemon>, Arc<Container>)> {
        let daemon = self.daemon()?;
        let container = daemon.containers.get(id)?;
        container.require_running()?;
        Ok((daemon, container))
    }

    fn pod(&self, id: &str) -> Result<Arc<Pod>> {
        let pod = self.daemon()?.pods.get(id)?;
        pod.require_ready()?;
        Ok(pod)
    }

    async fn begin_exec(&self, request: crisp_streaming::ExecRequest, size: Option<Size>) -> Result<Process> {
        let (daemon, container) = self.container(&request.container)?;
        let terminal = if request.tty { Terminal::Allocated } else { Terminal::None };
        let process = crisp_spec::ExecRequest { command: request.command, terminal };
        let process_json = container::exec::process(&container, process, size.and_then(console_size)).await?;
        let cgroup = cgroups::container_entry(&daemon, &container)?;
        let exec = ExecStream {
            container: &container.id,
            process_json,
            cgroup: &cgroup,
            terminal: request.tty,
            stdin: request.ends.has(End::Stdin),
            // Somebody must read what a terminal says.
            stdout: request.tty || request.ends.has(End::Stdout),
            stderr: request.ends.has(End::Stderr),
        };
        let session = container.pod.supervisor()?.exec(exec).await.doing("run the command")?;
        Ok(exec_process(session))
    }

    async fn begin_attach(&self, request: crisp_streaming::AttachRequest) -> Result<Process> {
        let (_, container) = self.container(&request.container)?;
        let attach = AttachStream {
            container: &container.id,
            stdin: request.ends.has(End::Stdin),
            stdout: request.ends.has(End::Stdout),
            stderr: request.ends.has(End::Stderr),
        };
        let session = container.pod.supervisor()?.attach(attach).await.doing("attach to the container")?;
        let config = &container.record().config;
        let input_end = if config.stdin_once && !config.tty { InputEnd::Closes } else { InputEnd::Detaches };
        Ok(attached_process(session, input_end))
    }
}

impl Backend for Sessions {
    fn exec(
        &self,
        request: crisp_streaming::ExecRequest,
        size: Option<Size>,
    ) -> BoxFuture<'_, Result<Process, Failure>> {
        Box::pin(async move { self.begin_exec(request, size).await.map_err(|error| failure(&error)) })
    }

    fn attach(&self, request: crisp_streaming::AttachRequest) -> BoxFuture<'_, Result<Process, Failure>> {
        Box::pin(async move { self.begin_attach(request).await.map_err(|error| failure(&error)) })
    }

    fn dial<'a>(&'a self, pod: &'a str, port: u16) -> BoxFuture<'a, Result<TcpStream, Failure>> {
        Box::pin(async move {
            let pod = self.pod(pod).map_err(|error| failure(&error))?;
            dial(&pod, port).await.map_err(|error| failure(&error))
        })
    }

    fn pod_ended<'a>(&'a self, pod: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let Ok(pod) = self.pod(pod) else { return };
            // An error means that nobody can publish a further state: it is gone.
            let _gone = pod.subscribe().wait_for(|record| record.state != PodState::Ready).await.is_err();
        })
    }
}

/// In words for a client; whoever runs the node finds them in the log as well.
fn failure(error: &Error) -> Failure {
    tracing::debug!(%error, "a streaming session cannot begin");
    Failure(error.to_string())
}

fn console_size(size: Size) -> Option<ConsoleSize> {
    BoxBuilder::default().width(size.columns).height(size.rows).build().ok()
}

fn exec_process(session: ExecSession) -> Process {
    let ExecSession { stdin, stdout, stderr, mut process } = session;
    let resizer = process.resizer();
    Process {
        stdin,
        stdout,
        stderr,
        exit: Box::pin(async move {
            match process.end().await {
                Ok(exit) => Exit::Code(exit.status.code()),
                Err(error) => Exit::Failed(error.to_string()),
            }
        }),
        resize: Box::new(move |size| {
            if let Some(terminal) = &resizer {
                terminal.resize(size.columns, size.rows);
            }
        }),
        input_end: InputEnd::Closes,
    }
}

fn attached_process(session: AttachSession, input_end: InputEnd) -> Process {
    let AttachSession { stdin, stdout, stderr, mut attachment } = session;
    let resizer = attachment.resizer();
    Process {
        stdin,
        stdout,
        stderr,
        exit: Box::pin(async move {
            match attachment.end().await {
                Ok(AttachEnd::Exited(_) | AttachEnd::StreamsEnded) => Exit::Detached,
                Ok(AttachEnd::TooSlow) => {
                    Exit::Failed("the client takes too little of the output".to_owned())
                }
                Err(error) => Exit::Failed(error.to_string()),
            }
        }),
        resize: Box::new(move |size| resizer.resize(size.columns, size.rows)),
        input_end,
    }
}

/// Connects to a port of `localhost` in the pod's network.
///
/// Sockets belong to the namespace they are made in: only the making needs a thread there.
async fn dial(pod: &Arc<Pod>, port: u16) -> Result<TcpStream> {
    let [first, second] = LOCALHOST.map(|address| SocketAddr::new(address, port));
    match connect(pod, first).await {
        Ok(socket) => Ok(socket),
        // What IPv4 says counts: most pods have nothing on IPv6.
        Err(refused) => connect(pod, second).await.map_err(|_second| refused),
    }
}

async fn connect(pod: &Arc<Pod>, address: SocketAddr) -> Result<TcpStream> {
    let netns = pod.netns();
    let socket = blocking::run(move || match netns {
        Some(netns) => {
            crisp_sys::netns::in_netns(&netns, || socket(address)).doing("enter the pod's network")?
        }
        None => socket(address),
    });
    let socket = TcpSocket::from_std_stream(TcpStream::from(socket.await?));
    let connected = tokio::time::timeout(CONNECT_TIMEOUT, socket.connect(address)).await;
    let limit_ms = u64::try_from(CONNECT_TIMEOUT.as_millis()).unwrap_or(u64::MAX);
    let connected = connected.map_err(|_late| Error::Timeout { what: "the connection", limit_ms })?;
    connected.and_then(tokio::net::TcpStream::into_std).doing("connect")
}

fn socket(address: SocketAddr) -> Result<OwnedFd> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    rustix::net::socket_with(family, SocketType::STREAM, flags, None).doing("make a socket")
}
