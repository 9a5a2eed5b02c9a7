//! Calls to systemd's manager. Each operation has a connection of its own, so there is nothing to keep alive.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout_at};

use crate::wire::{Call, HEAD_BYTES, Head, Incoming, Property, Value, Writer};
use crate::{Result, Slice, SystemdError};

/// How long one operation may take with all its tries: longer than a `daemon-reload` of a large node.
pub const CALL_MAX: Duration = Duration::from_secs(30);
/// How long a scope may take after systemd accepted it.
pub const SCOPE_WAIT_MAX: Duration = Duration::from_secs(30);
/// Operations under way at once. systemd does one thing after the other: more would only wait there.
pub const CONNECTIONS_MAX: usize = 16;
/// Messages that may come before an answer. The private socket tells everybody everything.
const MESSAGES_MAX: usize = 100_000;
/// Longest line of the authentication.
const LINE_BYTES_MAX: usize = 512;
/// Pause before another try, and between two looks at the kernel; it doubles.
const PAUSE_MIN: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// Pause before systemd is asked whether what does not come is still meant to come; it doubles. systemd runs its jobs only when no message
/// is left to answer: whoever waits and keeps asking waits for ever on a busy node.
const ASK_PAUSE_MIN: Duration = Duration::from_millis(500);
const ASK_PAUSE_MAX: Duration = Duration::from_secs(2);

const PRIVATE_SOCKET: &str = "/run/systemd/private";
const BUS_SOCKET: &str = "/run/dbus/system_bus_socket";
const MANAGER: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER_INTERFACE: &str = "org.freedesktop.systemd1.Manager";
const BUS: &str = "org.freedesktop.DBus";
const BUS_PATH: &str = "/org/freedesktop/DBus";

/// Whether systemd runs this machine (`sd_booted`, and PID 1 is the one that a caller reaches).
#[must_use]
pub fn is_pid_1() -> bool {
    let comm = std::fs::read_to_string("/proc/1/comm").unwrap_or_default();
    Path::new("/run/systemd/system").is_dir() && comm.trim_end() == "systemd"
}

/// systemd's manager. Cheap to clone; holds no connection.
#[derive(Debug, Clone)]
pub struct Systemd {
    doors: Arc<[Door]>,
    slots: Arc<Semaphore>,
}

/// A socket where the manager is reached.
#[derive(Debug, Clone)]
struct Door {
    path: PathBuf,
    kind: DoorKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DoorKind {
    /// The manager's own.
    Private,
    /// A message bus, which wants a greeting first.
    Bus,
}

/// A scope to be made.
#[derive(Debug)]
pub struct ScopeRequest<'a> {
    /// Its name, such as `crisp-….scope`.
    pub unit: &'a str,
    /// Where it lies; made where it is missing.
    pub slice: &'a Slice,
    /// For people.
    pub description: &'a str,
    /// The process that is put into it; the scope ends when it is empty.
    pub pid: i32,
    /// Limits.
    pub properties: Vec<Property>,
}

impl ScopeRequest<'_> {
    fn properties(&self) -> Vec<Property> {
        let text = |name, value: &str| Property { name, value: Value::Text(value.to_owned()) };
        let mut all = vec![
            text("Description", self.description),
            text("Slice", self.slice.as_str()),
            Property { name: "PIDs", value: Value::Numbers(vec![self.pid.unsigned_abs()]) },
            // Everything below is ours, and nobody else writes there.
            Property { name: "Delegate", value: Value::Bool(true) },
            // Containers are ended by the kubelet's own shutdown, not by the order of units.
            Property { name: "DefaultDependencies", value: Value::Bool(false) },
            // A failed scope is forgotten like any other, so nothing of a dead container stays.
            text("CollectMode", "inactive-or-failed"),
        ];
        all.extend(self.properties.iter().cloned());
        all
    }
}

impl Systemd {
    /// The manager of this machine.
    #[must_use]
    pub fn system() -> Self {
        let door = |path: &str, kind| Door { path: path.into(), kind };
        Self::with([door(PRIVATE_SOCKET, DoorKind::Private), door(BUS_SOCKET, DoorKind::Bus)].into())
    }

    fn with(doors: Arc<[Door]>) -> Self {
        Self { doors, slots: Arc::new(Semaphore::new(CONNECTIONS_MAX)) }
    }

    /// Makes a scope and returns when its process is in it, with all limits in force.
    ///
    /// # Errors
    /// [`SystemdError::Refused`] of kind `Exists` when another process holds a scope of this name; [`SystemdError::Timeout`];
    /// [`SystemdError::HolderEnded`].
    pub async fn start_scope(&self, request: &ScopeRequest<'_>) -> Result<()> {
        let mut body = Writer::default();
        body.text(request.unit);
        body.text("fail");
        body.properties(&request.properties());
        body.no_units();
        let method = Method::new("StartTransientUnit", "ssa(sv)a(sa(sv))", body, request.unit);
        match self.call(&[method]).await {
            // A try whose answer was lost may have succeeded.
            Err(error) if error.kind() == crisp_domain::ErrorKind::Exists && self.holds(request)? => Ok(()),
            Err(error) => Err(error),
            Ok(()) => self.wait_for_scope(request).await,
        }
    }

    /// Changes a unit's limits until the next boot, and returns when systemd has written them.
    ///
    /// # Errors
    /// [`SystemdError::Refused`]; [`SystemdError::Timeout`].
    pub async fn set_properties(&self, unit: &str, properties: &[Property]) -> Result<()> {
        let mut body = Writer::default();
        body.text(unit);
        body.boolean(true);
        body.properties(properties);
        // systemd writes to cgroups after its answer and before the next message: the second answer says that it is done.
        self.call(&[Method::new("SetUnitProperties", "sba(sv)", body, unit), get_unit(unit)]).await
    }

    /// Stops a unit and returns when it is gone; one that is not there is fine.
    ///
    /// # Errors
    /// [`SystemdError::Refused`]; [`SystemdError::Timeout`] when what runs in it does not end.
    pub async fn stop(&self, unit: &str) -> Result<()> {
        let mut body = Writer::default();
        body.text(unit);
        body.text("replace");
        match self.call(&[Method::new("StopUnit", "ss", body, unit)]).await {
            Err(error) if error.kind() == crisp_domain::ErrorKind::NotFound => return Ok(()),
            other => other?,
        }
        let mut pause = PAUSE_MIN;
        let deadline = Instant::now() + SCOPE_WAIT_MAX;
        while self.is_loaded(unit).await? {
            if Instant::now() >= deadline {
                return Err(timed_out("the end of a unit", SCOPE_WAIT_MAX));
            }
            rest(&mut pause, ASK_PAUSE_MAX).await;
        }
        Ok(())
    }

    /// Whether systemd knows a unit by this name that is loaded.
    ///
    /// # Errors
    /// [`SystemdError::Timeout`] and others of a failed call.
    pub async fn is_loaded(&self, unit: &str) -> Result<bool> {
        match self.call(&[get_unit(unit)]).await {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == crisp_domain::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether systemd can be reached and answers.
    ///
    /// # Errors
    /// Why not.
    pub async fn ping(&self) -> Result<()> {
        let body = Writer::default();
        let mut method = Method::new("Ping", "", body, "itself");
        method.interface = "org.freedesktop.DBus.Peer";
        self.call(&[method]).await
    }

    async fn wait_for_scope(&self, request: &ScopeRequest<'_>) -> Result<()> {
        let mut pause = PAUSE_MIN;
        let (deadline, mut question) = (Instant::now() + SCOPE_WAIT_MAX, Question::new());
        while !self.holds(request)? {
            if Instant::now() >= deadline {
                return Err(timed_out("the making of a scope", SCOPE_WAIT_MAX));
            }
            if question.is_due() {
                // A scope that failed is forgotten at once: then this says so.
                self.call(&[get_unit(request.unit)]).await?;
                question.answered();
            }
            rest(&mut pause, PAUSE_MAX).await;
        }
        Ok(())
    }

    /// Whether the kernel has the process in the scope's cgroup.
    #[expect(clippy::unused_self, reason = "the kernel that this manager works on")]
    fn holds(&self, request: &ScopeRequest<'_>) -> Result<bool> {
        let path = PathBuf::from(format!("/proc/{}/cgroup", request.pid));
        match std::fs::read_to_string(&path) {
            Ok(text) => Ok(is_in(&text, request.unit)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(SystemdError::HolderEnded { unit: request.unit.to_owned() })
            }
            Err(source) => Err(SystemdError::Kernel { path, source }),
        }
    }

    /// One connection, these calls in order, at most [`CALL_MAX`] with all tries. Every call may be repeated.
    async fn call(&self, methods: &[Method<'_>]) -> Result<()> {
        let Some(first) = methods.first() else { return Ok(()) };
        // Never closed; and without a slot there is no harm.
        let _slot = self.slots.acquire().await.ok();
        let deadline = Instant::now() + CALL_MAX;
        let mut pause = PAUSE_MIN;
        loop {
            let tried = timeout_at(deadline, self.try_call(methods)).await;
            match tried.unwrap_or_else(|_elapsed| Err(timed_out(first.member, CALL_MAX))) {
                Err(error) if error.is_transient() && Instant::now() + pause < deadline => {
                    rest(&mut pause, PAUSE_MAX).await;
                }
                other => return other,
            }
        }
    }

    async fn try_call(&self, methods: &[Method<'_>]) -> Result<()> {
        let mut connection = Connection::open(&self.doors).await?;
        for method in methods {
            connection.call(method).await?;
        }
        Ok(())
    }
}

fn get_unit(unit: &str) -> Method<'_> {
    let mut body = Writer::default();
    body.text(unit);
    Method::new("GetUnit", "s", body, unit)
}

fn timed_out(call: &'static str, limit: Duration) -> SystemdError {
    SystemdError::Timeout { call, limit_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX) }
}

async fn rest(pause: &mut Duration, max: Duration) {
    sleep(*pause).await;
    *pause = (*pause * 2).min(max);
}

/// When systemd is asked again about a unit that is waited for.
#[derive(Debug)]
struct Question {
    pause: Duration,
    at: Instant,
}

impl Question {
    fn new() -> Self {
        Self { pause: ASK_PAUSE_MIN, at: Instant::now() + ASK_PAUSE_MIN }
    }

    fn is_due(&self) -> bool {
        Instant::now() >= self.at
    }

    /// The next one counts from here: a slow answer must not make it due at once.
    fn answered(&mut self) {
        self.pause = (self.pause * 2).min(ASK_PAUSE_MAX);
        self.at = Instant::now() + self.pause;
    }
}

/// `text`: of `/proc/<pid>/cgroup`; the unified hierarchy has the number 0.
fn is_in(text: &str, unit: &str) -> bool {
    let path = text.lines().find_map(|line| line.strip_prefix("0::"));
    path.is_some_and(|path| path.rsplit('/').next() == Some(unit))
}

/// A call, ready to be sent.
#[derive(Debug)]
struct Method<'a> {
    destination: &'static str,
    path: &'static str,
    interface: &'static str,
    member: &'static str,
    signature: &'static str,
    body: Vec<u8>,
    /// For errors.
    unit: &'a str,
}

impl<'a> Method<'a> {
    fn new(member: &'static str, signature: &'static str, body: Writer, unit: &'a str) -> Self {
        let (destination, path, interface) = (MANAGER, MANAGER_PATH, MANAGER_INTERFACE);
        Self { destination, path, interface, member, signature, body: body.finish(), unit }
    }

    fn hello() -> Self {
        let body = Writer::default();
        let hello = Self::new("Hello", "", body, "the bus");
        Self { destination: BUS, path: BUS_PATH, interface: BUS, ..hello }
    }

    fn encode(&self, serial: u32) -> Vec<u8> {
        let Self { destination, path, interface, member, signature, .. } = *self;
        Call { destination, path, interface, member, signature, body: &self.body }.encode(serial)
    }
}

struct Connection {
    stream: UnixStream,
    serial: u32,
}

impl Connection {
    /// The first door where somebody answers.
    async fn open(doors: &[Door]) -> Result<Self> {
        let mut failed = Err(SystemdError::Protocol { call: "connect", what: "there is no socket" });
        for door in doors {
            failed = match UnixStream::connect(&door.path).await {
                Ok(stream) => return Self::greet(stream, door.kind).await,
                Err(source) => Err(SystemdError::Connect { path: door.path.clone(), source }),
            };
        }
        failed
    }

    async fn greet(stream: UnixStream, kind: DoorKind) -> Result<Self> {
        let mut connection = Self { stream, serial: 0 };
        connection.authenticate().await?;
        if kind == DoorKind::Bus {
            connection.call(&Method::hello()).await?;
        }
        Ok(connection)
    }

    /// Source: D-Bus specification, "Authentication Protocol"; the kernel vouches for the user.
    async fn authenticate(&mut self) -> Result<()> {
        const CALL: &str = "AUTH";
        let uid = rustix::process::geteuid().as_raw().to_string();
        let hex: String = uid.bytes().map(|byte| format!("{byte:02x}")).collect();
        // In one piece, as systemd's own clients do it: a call that systemd reads together with BEGIN lies in its buffer until
        // something else comes.
        self.send(CALL, format!("\0AUTH EXTERNAL {hex}\r\nBEGIN\r\n").as_bytes()).await?;
        let answer = self.line(CALL).await?;
        if answer.starts_with(b"OK ") {
            return Ok(());
        }
        Err(SystemdError::Refused {
            call: CALL,
            unit: "the connection".to_owned(),
            name: "EXTERNAL".to_owned(),
            message: String::from_utf8_lossy(&answer).trim_end().to_owned(),
        })
    }

    async fn line(&mut self, call: &'static str) -> Result<Vec<u8>> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            if line.len() == LINE_BYTES_MAX {
                return Err(SystemdError::Protocol { call, what: "too long a line" });
            }
            line.push(self.stream.read_u8().await.map_err(|source| SystemdError::Broken { call, source })?);
        }
        Ok(line)
    }

    async fn send(&mut self, call: &'static str, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await.map_err(|source| SystemdError::Broken { call, source })
    }

    async fn call(&mut self, method: &Method<'_>) -> Result<()> {
        self.serial += 1;
        self.send(method.member, &method.encode(self.serial)).await?;
        for _ in 0..MESSAGES_MAX {
            match self.receive(method.member).await? {
                Incoming::Return(serial) if serial == self.serial => return Ok(()),
                Incoming::Error { serial, name, message } if serial == self.serial => {
                    return Err(SystemdError::Refused {
                        call: method.member,
                        unit: method.unit.to_owned(),
                        name,
                        message,
                    });
                }
                Incoming::Return(_) | Incoming::Error { .. } | Incoming::Other => {}
            }
        }
        Err(SystemdError::Protocol { call: method.member, what: "it does not come" })
    }

    async fn receive(&mut self, call: &'static str) -> Result<Incoming> {
        let broken = |source| SystemdError::Broken { call, source };
        let malformed = |what| SystemdError::Protocol { call, what };
        let mut head = [0; HEAD_BYTES];
        self.stream.read_exact(&mut head).await.map_err(broken)?;
        let head = Head::parse(head).map_err(malformed)?;
        let mut rest = vec![0; head.rest()];
        self.stream.read_exact(&mut rest).await.map_err(broken)?;
        head.incoming(&rest).map_err(malformed)
    }
}

#[cfg(test)]
#[path = "client_tests.rs"]
mod tests;
