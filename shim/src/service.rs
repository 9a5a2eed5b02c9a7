//! Requests: from the wire to what is done, and back.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crisp_domain::ErrorKind;
use crisp_proto::supervisor as pb;
use crisp_sys::fdpass::Packet;
use pb::request::Call;
use prost::Message as _;

use crate::command;
use crate::container::{Asker, Container, Kill, Phase, Process};
use crate::control::{self, Report};
use crate::epoll::Token;
use crate::error::{Error, Result, Step as _, chain};
use crate::server::{Role, Server};

/// The protocol that this shim speaks.
const PROTOCOL: u32 = 1;
/// How long the end of the shim waits for killed children.
const ENDING_TIMEOUT: Duration = Duration::from_secs(5);
/// Number of SIGKILL.
const SIGKILL: i32 = 9;

/// How long the pod's init may take to make itself ready.
const POD_INIT_TIMEOUT: Duration = Duration::from_secs(30);

/// A pod's init on its way.
#[derive(Debug)]
pub(crate) struct PodInitStart {
    asker: Asker,
    control: OwnedFd,
    pub(crate) deadline: Instant,
}

/// What a request comes to at once; `None`: the answer comes later.
pub(crate) type Answer = Result<Option<pb::reply::Result>>;

const DONE: pb::reply::Result = pb::reply::Result::Done(pb::Done {});

impl Server {
    /// Handles one packet of a connection.
    pub(crate) fn request(&mut self, connection: u32, packet: Packet) {
        let Ok(request) = pb::Request::decode(packet.data.as_slice()) else {
            self.note("a request could not be decoded");
            return;
        };
        let asker = Asker { connection, request: request.id };
        match self.call(asker, request.call, packet.fds) {
            Ok(Some(result)) => self.reply(asker, Ok(result), None),
            Ok(None) => {}
            Err(error) => self.reply(asker, Err(error), None),
        }
    }

    fn call(&mut self, asker: Asker, call: Option<Call>, fds: Vec<OwnedFd>) -> Answer {
        let call = call.ok_or_else(|| Error::Unsupported("a request of this kind".into()))?;
        if self.ending.is_some() && !matches!(call, Call::Hello(_)) {
            return Err(Error::WrongState { id: "of this pod".into(), state: "being ended" });
        }
        match call {
            Call::Hello(_) => {
                self.greet(asker.connection);
                Ok(Some(pb::reply::Result::State(self.state())))
            }
            Call::StartPodInit(order) => self.start_pod_init(asker, &order).map(|()| None),
            Call::Create(order) => self.create(asker, order).map(|()| None),
            Call::Start(order) => self.start(asker, &order.container_id).map(|()| None),
            Call::Signal(order) => self.signal(&order).map(|()| Some(DONE)),
            Call::Exec(order) => self.exec(asker, order, fds).map(|()| None),
            Call::ReopenLog(order) => self.reopen_log(&order.container_id).map(|()| Some(DONE)),
            Call::Delete(order) => self.delete(asker, &order.container_id),
            Call::Attach(order) => self.attach(&order, fds).map(|()| Some(DONE)),
            Call::ResizeTerminal(order) => self.resize_terminal(&order).map(|()| Some(DONE)),
            Call::Shutdown(_) => {
                self.shutdown(asker);
                Ok(None)
            }
        }
    }

    fn state(&self) -> pb::State {
        pb::State {
            protocol: PROTOCOL,
            shim_pid: rustix::process::getpid().as_raw_nonzero().get(),
            pod_init_pid: self.ready_pod_init().map_or(0, |init| init.pid),
            containers: self.containers.values().filter_map(Container::state).collect(),
        }
    }

    fn ready_pod_init(&self) -> Option<&Process> {
        self.pod_init.as_ref().filter(|_| self.pod_init_start.is_none())
    }

    fn start_pod_init(&mut self, asker: Asker, order: &pb::StartPodInit) -> Result<()> {
        if let Some(init) = &self.pod_init {
            return Err(Error::Exists { what: "the pod's init", id: init.pid.to_string() });
        }
        let (child, control) = crate::pod_init::start(self.single, order)?;
        self.pod_init = Some(Process::new(child.pid, Some(child.pidfd)));
        self.epoll.add(&control, Token::PodInitControl).step(|| "watch the pod's init")?;
        let deadline = Instant::now() + POD_INIT_TIMEOUT;
        self.pod_init_start = Some(PodInitStart { asker, control, deadline });
        self.claim(child.pid, Role::PodInit(child.pid));
        Ok(())
    }

    /// The pod's init is ready, or cannot become it.
    pub(crate) fn pod_init_control_ready(&mut self) {
        let Some(start) = &self.pod_init_start else { return };
        let result = match control::receive(&start.control) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
            Ok(Some(Report::Ready)) => Ok(()),
            Ok(Some(Report::Failed(text))) => Err(Error::Said(text)),
            Ok(_) | Err(_) => Err(Error::Said("the pod's init ended without a word".into())),
        };
        self.pod_init_started(result);
    }

    fn pod_init_started(&mut self, result: Result<()>) {
        let Some(start) = self.pod_init_start.take() else { return };
        self.epoll.remove(&start.control);
        let gone = || Error::Said("the pod's init is gone".into());
        let init = self.pod_init.as_ref().ok_or_else(gone);
        let answer = result.and_then(|()| init.map(Process::started));
        // One that was never there for anybody ends without a word.
        if answer.is_err()
            && let Some(Err(error)) = self.pod_init.take().map(|init| init.kill())
        {
            self.note(&format!("kill the pod's init: {error}"));
        }
        self.reply(start.asker, answer, None);
    }

    pub(crate) fn pod_init_tick(&mut self, now: Instant) {
        if self.pod_init_start.as_ref().is_some_and(|start| now >= start.deadline) {
            let seconds = POD_INIT_TIMEOUT.as_secs();
            self.pod_init_started(Err(Error::Said(format!(
                "the pod's init was not ready within {seconds} s"
            ))));
        }
    }

    /// The pod's init was reaped. One that never was ready is told by the answer to its start.
    pub(crate) fn pod_init_ended(&mut self, pid: i32) {
        if self.pod_init.as_ref().is_none_or(|init| init.pid != pid) {
            return;
        }
        self.pod_init_control_ready();
        if self.pod_init_start.is_some() {
            self.pod_init_started(Err(Error::Said("the pod's init ended before it was ready".into())));
        } else if self.pod_init.take().is_some() {
            self.announce(pb::message::Kind::PodInitExited(pb::PodInitExited { pid }));
        }
    }

    fn signal(&mut self, order: &pb::Signal) -> Result<()> {
        let key = self.find(&order.container_id)?;
        let step = || format!("send signal {} to {}", order.signal, order.container_id);
        if order.exec_id.is_empty() {
            if order.signal == SIGKILL {
                self.abort(key);
            }
            let init = self.containers.get(&key).and_then(|container| container.init.as_ref());
            return init.map_or(Ok(()), |init| init.signal(order.signal).step(step));
        }
        let exec = self.execs.values_mut().find(|exec| exec.container == key && exec.id == order.exec_id);
        let Some(exec) = exec else { return Ok(()) };
        if order.signal == SIGKILL {
            match order.after_ms {
                0 if exec.kill == Kill::No => exec.kill = Kill::Asked,
                0 => {}
                after => exec.kill_at(Duration::from_millis(after)),
            }
            return Ok(());
        }
        let process = exec.process.as_ref().filter(|_| exec.exit.is_none());
        process.map_or(Ok(()), |process| process.signal(order.signal).step(step))
    }

    fn reopen_log(&mut self, id: &str) -> Result<()> {
        let key = self.find(id)?;
        let Some(container) = self.containers.get_mut(&key) else { return Ok(()) };
        match container.phase {
            Phase::Running => container.output.open(),
            ref phase => Err(Error::WrongState { id: id.into(), state: phase.name() }),
        }
    }

    fn shutdown(&mut self, asker: Asker) {
        let inits = self.containers.values().filter_map(|container| container.init.as_ref());
        let execs = self.execs.values().filter_map(|exec| exec.process.as_ref());
        let processes = inits.chain(execs).chain(&self.pod_init).filter_map(Process::pidfd);
        let failed: Vec<_> = processes.filter_map(|pidfd| crisp_sys::pidfd::kill(pidfd).err()).collect();
        // With all that they have started: hooks among it.
        self.containers
            .values()
            .filter_map(|container| container.launcher.as_ref())
            .for_each(command::kill_group);
        self.kill_commands(|_all| true);
        for error in failed {
            self.note(&format!("kill at the end: {error}"));
        }
        self.ending = Some((asker, Instant::now() + ENDING_TIMEOUT));
    }

    /// The key of a container that is known.
    pub(crate) fn find(&self, id: &str) -> Result<u32> {
        let found = self.containers.iter().find(|(_, container)| container.id() == id);
        found.map(|(&key, _)| key).ok_or_else(|| Error::NotFound { what: "container", id: id.into() })
    }
}

/// An error as the daemon is told.
pub(crate) fn failure(error: &Error) -> pb::Failure {
    let code = match error.kind() {
        ErrorKind::NotFound => pb::Code::NotFound,
        ErrorKind::Invalid => pb::Code::Invalid,
        ErrorKind::Exists => pb::Code::Exists,
        ErrorKind::WrongState => pb::Code::WrongState,
        ErrorKind::Unsupported => pb::Code::Unsupported,
        ErrorKind::Exhausted => pb::Code::Exhausted,
        ErrorKind::NotReady | ErrorKind::Timeout | ErrorKind::Internal => pb::Code::Internal,
    };
    pb::Failure { code: code.into(), message: chain(error) }
}
