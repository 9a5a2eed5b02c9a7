//! The supervisor of one pod: one thread, one wait.
//!
//! It owns the pod's processes, pipes, terminals, log files and exit records. It holds no policy: everything it needs comes in
//! requests. Connections come and go; nothing here depends on one being there. Requests that take time are begun and answered
//! by a later event, so that no container waits for another.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crisp_proto::supervisor as pb;
use crisp_sys::clone::{ProgramText, SingleThreaded, claim_inherited, close_on_exec_from, watch_signals};
use crisp_sys::pidfd::{self, Ended};
use rustix::net::SocketFlags;

use crate::attach::Attachers;
use crate::cgroup::ExecGroup;
use crate::connection::Connection;
use crate::container::{Asker, Container, Exec, Process, RunningCommand};
use crate::epoll::{Epoll, Interest, Token};
use crate::error::{Result, Step as _, chain};
use crate::log::Stream;
use crate::output::Scratch;
use crate::service::PodInitStart;

/// The listening socket.
const LISTENER_FD: i32 = 3;
/// Number of SIGCHLD.
const SIGCHLD: i32 = 17;
/// Number of SIGPIPE: an attacher may close its pipe at any time.
const SIGPIPE: i32 = 13;
/// Exits kept of processes that nobody has claimed yet: an init may end before its launcher has reported it.
const UNCLAIMED_MAX: usize = 64;
/// Connections at a time; the daemon needs one, a new daemon one more.
const CONNECTIONS_MAX: usize = 64;
/// Packets taken from a connection before others get their turn.
const REQUESTS_PER_TURN: usize = 16;
/// Memory is given back when nothing has happened for this long.
const IDLE: Duration = Duration::from_millis(500);
/// The error log ends here.
const ERROR_LOG_BYTES_MAX: u64 = 256 * 1024;

/// Runs the supervisor; its exit code.
pub(crate) fn main(args: impl Iterator<Item = OsString>) -> u8 {
    let args: Vec<_> = args.collect();
    let [flag, pod_dir] = args.as_slice() else { return 2 };
    if flag != "--pod-dir" {
        return 2;
    }
    let pod_dir = PathBuf::from(pod_dir);
    let panics = pod_dir.clone();
    std::panic::set_hook(Box::new(move |info| note(&panics, &info.to_string())));
    match Server::new(pod_dir.clone()).and_then(|mut server| server.run()) {
        Ok(()) => 0,
        Err(error) => {
            note(&pod_dir, &chain(&error));
            1
        }
    }
}

/// Adds a line to the shim's own log, which exists only when there is something to say.
fn note(pod_dir: &Path, text: &str) {
    let path = pod_dir.join("shim.log");
    if std::fs::metadata(&path).is_ok_and(|meta| meta.len() > ERROR_LOG_BYTES_MAX) {
        return;
    }
    if let Ok(mut file) = std::fs::OpenOptions::new().append(true).create(true).open(path) {
        let _nowhere_to_tell = writeln!(file, "{} {text}", crisp_domain::Timestamp::now().0);
    }
}

/// What a child of the shim is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Init(u32),
    Launcher(u32),
    Exec(u32),
    Command(u32),
    /// With this pid.
    PodInit(i32),
}

#[derive(Debug)]
pub(crate) struct Server {
    pub(crate) single: SingleThreaded,
    pod_dir: PathBuf,
    pub(crate) epoll: Epoll,
    listener: OwnedFd,
    signals: OwnedFd,
    connections: BTreeMap<u32, Connection>,
    next_key: u32,
    pub(crate) containers: BTreeMap<u32, Container>,
    pub(crate) execs: BTreeMap<u32, Exec>,
    pub(crate) attachers: Attachers,
    pub(crate) commands: BTreeMap<u32, RunningCommand>,
    pub(crate) pod_init: Option<Process>,
    /// While it makes itself ready.
    pub(crate) pod_init_start: Option<PodInitStart>,
    pub(crate) children: BTreeMap<i32, Role>,
    unclaimed: VecDeque<(i32, Ended)>,
    /// Groups of ended execs that still hold processes.
    pub(crate) leftovers: Vec<ExecGroup>,
    pub(crate) scratch: Scratch,
    /// When something happened last; nothing once the memory was given back.
    active: Option<Instant>,
    text: Option<ProgramText>,
    /// Set when the shim is to end.
    pub(crate) ending: Option<(Asker, Instant)>,
}

impl Server {
    fn new(pod_dir: PathBuf) -> Result<Self> {
        let listener = claim_inherited(LISTENER_FD).step(|| "claim the listening socket")?;
        become_supervisor()?;
        let signals = watch_signals(&[SIGCHLD, SIGPIPE]).step(|| "watch signals")?;
        let epoll = Epoll::new().step(|| "make an epoll")?;
        rustix::io::ioctl_fionbio(&listener, true).step(|| "make the listening socket not block")?;
        epoll.add(&listener, Token::Listener).step(|| "watch the listening socket")?;
        epoll.add(&signals, Token::Signals).step(|| "watch signals")?;
        Ok(Self {
            single: SingleThreaded::verify().step(|| "count the threads")?,
            pod_dir,
            epoll,
            listener,
            signals,
            connections: BTreeMap::new(),
            next_key: 0,
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            attachers: Attachers::default(),
            commands: BTreeMap::new(),
            pod_init: None,
            pod_init_start: None,
            children: BTreeMap::new(),
            unclaimed: VecDeque::new(),
            leftovers: Vec::new(),
            scratch: Scratch::default(),
            active: Some(Instant::now()),
            text: ProgramText::find().ok(),
            ending: None,
        })
    }

    fn run(&mut self) -> Result<()> {
        loop {
            let timeout = self.next_wake();
            if let (None, Some(text)) = (self.active, &self.text) {
                // Right before the wait: what lies between here and there is all that comes back.
                text.release();
            }
            let tokens = self.epoll.wait(timeout).step(|| "wait for events")?;
            if !tokens.is_empty() {
                self.active = Some(Instant::now());
            }
            for token in tokens {
                self.handle(token);
            }
            self.tick();
            if self.ended() {
                return Ok(());
            }
        }
    }

    fn handle(&mut self, token: Token) {
        match token {
            Token::Listener => self.accept(),
            Token::Signals => self.reap(),
            Token::Connection(key) => self.serve(key),
            Token::Control(key) => self.control_ready(key),
            Token::Stdout(key) => self.pump(key, Stream::Stdout),
            Token::Stderr(key) => self.pump(key, Stream::Stderr),
            Token::ExecControl(key) => self.exec_control_ready(key),
            Token::Stdin(key) => self.input_ready(key),
            Token::AttachedStdin(key) => self.attached_input_ready(key),
            Token::AttachedStdout(key) => self.attached_output_ready(key, Stream::Stdout),
            Token::AttachedStderr(key) => self.attached_output_ready(key, Stream::Stderr),
            Token::PodInitControl => self.pod_init_control_ready(),
        }
    }

    pub(crate) fn new_key(&mut self) -> u32 {
        self.next_key = self.next_key.wrapping_add(1);
        self.next_key
    }

    /// Tells the error log.
    pub(crate) fn note(&self, text: &str) {
        note(&self.pod_dir, text);
    }

    fn accept(&mut self) {
        while let Ok(socket) =
            rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
        {
            let key = self.new_key();
            if self.connections.len() < CONNECTIONS_MAX
                && self.epoll.add(&socket, Token::Connection(key)).is_ok()
            {
                self.connections.insert(key, Connection::new(socket));
            }
        }
    }

    fn serve(&mut self, key: u32) {
        for _ in 0..REQUESTS_PER_TURN {
            let Some(connection) = self.connections.get_mut(&key) else { return };
            let received = connection.flush().and_then(|()| connection.receive());
            match received {
                Ok(Some(packet)) => self.request(key, packet),
                Ok(None) => break,
                Err(_) => return self.drop_connection(key),
            }
        }
        self.set_interest(key);
    }

    /// Out of the epoll first: a child between its clone and its `execve` may hold a duplicate, which would keep it there.
    fn drop_connection(&mut self, key: u32) {
        if let Some(connection) = self.connections.remove(&key) {
            self.epoll.remove(connection.fd());
        }
        self.hang_up_execs(key);
    }

    fn set_interest(&self, key: u32) {
        let Some(connection) = self.connections.get(&key) else { return };
        let interest = if connection.is_behind() { Interest::ReadWrite } else { Interest::Read };
        let _closed = self.epoll.change(connection.fd(), Token::Connection(key), interest);
    }

    /// Sends to one connection; one that fails or fell too far behind is dropped.
    fn send(&mut self, key: u32, message: &pb::Message, fd: Option<OwnedFd>) {
        let Some(connection) = self.connections.get_mut(&key) else { return };
        let was_behind = connection.is_behind();
        if connection.send(message, fd).is_err() {
            self.drop_connection(key);
        } else if connection.is_behind() != was_behind {
            self.set_interest(key);
        }
    }

    pub(crate) fn reply(&mut self, asker: Asker, result: Result<pb::reply::Result>, fd: Option<OwnedFd>) {
        let result =
            result.unwrap_or_else(|error| pb::reply::Result::Failure(crate::service::failure(&error)));
        let reply = pb::Reply { id: asker.request, result: Some(result) };
        self.send(asker.connection, &pb::Message { kind: Some(pb::message::Kind::Reply(reply)) }, fd);
    }

    /// From now on the connection gets events.
    pub(crate) fn greet(&mut self, key: u32) {
        if let Some(connection) = self.connections.get_mut(&key) {
            connection.greeted = true;
        }
    }

    pub(crate) fn announce(&mut self, kind: pb::message::Kind) {
        let message = pb::Message { kind: Some(kind) };
        let keys: Vec<_> = self.connections.iter().filter(|(_, c)| c.greeted).map(|(&key, _)| key).collect();
        for key in keys {
            self.send(key, &message, None);
        }
    }

    /// Takes the status of every child that has ended, whoever's it was: the shim is a subreaper.
    fn reap(&mut self) {
        // What was signalled does not matter: one signal may stand for many children.
        let mut info = [0u8; 128];
        while rustix::io::read(&self.signals, &mut info).is_ok() {}
        while let Ok(Some((pid, ended))) = pidfd::reap_any() {
            match self.children.remove(&pid) {
                Some(role) => self.child_ended(role, ended),
                None => self.unclaimed_ended(pid, ended),
            }
        }
        self.remove_group(None);
    }

    fn unclaimed_ended(&mut self, pid: i32, ended: Ended) {
        if self.unclaimed.len() == UNCLAIMED_MAX {
            self.unclaimed.pop_front();
        }
        self.unclaimed.push_back((pid, ended));
    }

    fn child_ended(&mut self, role: Role, ended: Ended) {
        match role {
            Role::Init(key) => self.init_ended(key, ended),
            Role::Exec(key) => self.exec_ended(key, ended),
            Role::Command(key) => self.command_ended(key, ended),
            Role::Launcher(key) => {
                if let Some(container) = self.containers.get_mut(&key) {
                    container.launcher = None;
                }
            }
            Role::PodInit(pid) => self.pod_init_ended(pid),
        }
    }

    /// Registers a child. If it has ended already, that is handled now.
    ///
    /// The pidfd decides: a number alone may be that of an orphan that ended before, and the queue of those may have lost one.
    pub(crate) fn claim(&mut self, pid: i32, role: Role) {
        let unreaped = self.pidfd_of(role).map(pidfd::is_unreaped);
        match (unreaped, self.take_unclaimed(pid)) {
            (Some(true), _) | (None, None) => {
                self.children.insert(pid, role);
            }
            (_, Some(ended)) => self.child_ended(role, ended),
            (Some(false), None) => self.child_ended(role, Ended::Signal(crate::exit::SIGKILL)),
        }
    }

    fn take_unclaimed(&mut self, pid: i32) -> Option<Ended> {
        let at = self.unclaimed.iter().position(|(unclaimed, _)| *unclaimed == pid)?;
        self.unclaimed.remove(at).map(|(_, ended)| ended)
    }

    fn pidfd_of(&self, role: Role) -> Option<&OwnedFd> {
        match role {
            Role::Init(key) => self.containers.get(&key)?.init.as_ref()?.pidfd(),
            Role::Exec(key) => self.execs.get(&key)?.process.as_ref()?.pidfd(),
            Role::Command(key) => Some(&self.commands.get(&key)?.command.child.pidfd),
            Role::Launcher(key) => Some(&self.containers.get(&key)?.launcher.as_ref()?.pidfd),
            Role::PodInit(pid) => self.pod_init.as_ref().filter(|init| init.pid == pid)?.pidfd(),
        }
    }

    /// A process that a command has reported.
    pub(crate) fn open_process(&self, pid: i32) -> Result<Process> {
        if self.unclaimed.iter().any(|(ended, _)| *ended == pid) {
            return Ok(Process::new(pid, None));
        }
        let pidfd = pidfd::open(pid).step(|| format!("open the process {pid}"))?;
        Ok(Process::new(pid, Some(pidfd)))
    }

    /// A process that has ended may still be reported by whoever made it.
    fn may_still_claim(&self) -> bool {
        let creating = self.containers.values().any(|container| !container.launcher_done());
        let entering = self.execs.values().any(|exec| exec.control.is_some());
        creating || entering || !self.commands.is_empty()
    }

    fn next_wake(&self) -> Option<Duration> {
        let now = Instant::now();
        let deadlines =
            self.lifecycle_deadlines().chain(self.exec_deadlines()).chain(self.attach_deadlines());
        let idle = self.active.map(|at| at + IDLE);
        let ending = self.ending.map(|(_, deadline)| deadline);
        let init = self.pod_init_start.as_ref().map(|start| start.deadline);
        let next = deadlines.chain(self.terminal_deadlines()).chain(idle).chain(ending).chain(init).min();
        next.map(|at| at.saturating_duration_since(now))
    }

    fn tick(&mut self) {
        let now = Instant::now();
        self.lifecycle_tick(now);
        self.exec_tick(now);
        self.attach_tick(now);
        self.terminal_tick(now);
        self.pod_init_tick(now);
        if self.active.is_some_and(|at| now >= at + IDLE) {
            self.active = None;
            self.scratch.release();
        }
        if !self.may_still_claim() {
            self.unclaimed = VecDeque::new();
        }
    }

    /// The end was asked for, and everything is reaped or had its time.
    fn ended(&mut self) -> bool {
        let Some((asker, deadline)) = self.ending else { return false };
        if !self.children.is_empty() && Instant::now() < deadline {
            return false;
        }
        self.reply(asker, Ok(pb::reply::Result::Done(pb::Done {})), None);
        true
    }
}

/// Detaches from the daemon's session and descriptors, and makes sure that orphans below become children.
fn become_supervisor() -> Result<()> {
    // A leader of a process group cannot, and is alone already.
    let _leader = rustix::process::setsid();
    close_on_exec_from(3).step(|| "close inherited descriptors")?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).step(|| "become a subreaper")?;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .step(|| "become not dumpable")?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    rustix::process::chdir("/").step(|| "go to the root directory")?;
    // Containers start from these groups.
    rustix::thread::set_thread_groups(&[]).step(|| "leave the supplementary groups")?;
    crisp_sys::clone::reset_signals().step(|| "reset the signals")?;
    crate::process::spare_supervisor(OOM_SCORE_ADJ)
}

/// The kernel shall rather end a container than its supervisor; where that may not be set, it stays.
const OOM_SCORE_ADJ: i32 = -998;

impl Drop for Server {
    fn drop(&mut self) {
        for connection in self.connections.values() {
            self.epoll.remove(connection.fd());
        }
        self.epoll.remove(self.listener.as_fd());
    }
}
