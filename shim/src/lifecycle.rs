//! A container's way from its creation to its end; see the picture in [`crate::container`].

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use crisp_proto::supervisor as pb;
use crisp_sys::pidfd::Ended;
use rustix::fs::{Mode, OFlags};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::attach::Input;
use crate::command::{self, Command, Outcome};
use crate::container::{Asker, Container, Impatience, Patience, Phase, Process, Purpose, RunningCommand};
use crate::control::{self, Report};
use crate::epoll::Token;
use crate::error::{Error, Result, Step as _, chain};
use crate::handler::{self, Begun, ChildStdio};
use crate::hooks::Hooks;
use crate::log::Stream;
use crate::output::Output;
use crate::process::Filtered;
use crate::server::{Role, Server};
use crate::service::Answer;

/// The kubelet gives a creation two minutes; what takes longer (a hung mount, a hook) is killed before.
const CREATE_TIMEOUT: Duration = Duration::from_secs(100);
/// The same of a start: a hook inside the container, or a program on a hung file system.
const START_TIMEOUT: Duration = CREATE_TIMEOUT;
/// Of a command that deletes what a runtime binary keeps, and of the death of a container's init before it is deleted.
const DELETE_TIMEOUT: Duration = Duration::from_secs(30);
/// Containers of one pod, the ended ones included.
const CONTAINERS_MAX: usize = 1024;

const DONE: pb::reply::Result = pb::reply::Result::Done(pb::Done {});

impl Container {
    /// Nothing of the creation can be reported any more.
    pub(crate) fn launcher_done(&self) -> bool {
        !matches!(self.phase, Phase::Creating { .. })
    }
}

/// Our ends of a container's descriptors.
struct Ends {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

impl Server {
    pub(crate) fn create(&mut self, asker: Asker, order: pb::CreateContainer) -> Result<()> {
        if self.find(&order.container_id).is_ok() {
            return Err(Error::Exists { what: "container", id: order.container_id });
        }
        if self.containers.len() >= CONTAINERS_MAX {
            return Err(Error::Limit(format!("the pod has {CONTAINERS_MAX} containers")));
        }
        let stdio = order.stdio.clone().unwrap_or_default();
        let log_path = (!stdio.log_path.is_empty()).then(|| stdio.log_path.clone().into());
        let mut output = Output::new(log_path, stdio.log_line_bytes_max);
        let (ends, child) = stdio_pairs(&stdio)?;
        let oom_file = order.cgroup.as_ref().map_or("", |cgroup| cgroup.oom_file.as_str());
        let oom_kills_before = crate::cgroup::oom_kills(oom_file);
        let bundle = Path::new(&order.bundle);
        let filtered = Filtered::of(bundle);
        let hooks = if is_builtin(&order) { Hooks::of(bundle)? } else { Hooks::default() };
        let begun = handler::of(order.handler.as_ref(), self.single)?.create(&order, child)?;

        let key = self.new_key();
        for (stream, fd) in [(Stream::Stdout, ends.stdout), (Stream::Stderr, ends.stderr)] {
            if let Some(fd) = fd {
                output.attach(stream, fd);
            }
        }
        let mut container = Container {
            order,
            phase: Phase::Creating { asker, failure: None, patience: Patience::new(CREATE_TIMEOUT) },
            filtered,
            hooks,
            launcher: None,
            init: None,
            ready: false,
            ended: None,
            control: None,
            console: None,
            output,
            input: Input::new(ends.stdin),
            oom_kills_before,
            deleters: Vec::new(),
        };
        let mut launcher = None;
        let command = match begun {
            Begun::Launcher { child, control, console } => {
                self.epoll.add(&control, Token::Control(key)).step(|| "watch the launcher")?;
                (container.control, container.console) = (Some(control), console);
                launcher = Some(child.pid);
                container.launcher = Some(child);
                None
            }
            Begun::Command(command) => Some(command),
        };
        self.containers.insert(key, container);
        if let Some(pid) = launcher {
            self.claim(pid, Role::Launcher(key));
        }
        if let Some(command) = command {
            self.run_command(command, Purpose::Create(key), CREATE_TIMEOUT);
        }
        Ok(())
    }

    /// Waits for a command of an OCI runtime without waiting.
    pub(crate) fn run_command(&mut self, command: Command, purpose: Purpose, time: Duration) {
        let (key, pid) = (self.new_key(), command.child.pid);
        self.commands.insert(key, RunningCommand { command, purpose, patience: Patience::new(time) });
        self.claim(pid, Role::Command(key));
    }

    /// Something came over a container's control socket.
    pub(crate) fn control_ready(&mut self, key: u32) {
        loop {
            let Some(container) = self.containers.get_mut(&key) else { return };
            let Some(control) = &container.control else { return };
            match control::receive(control) {
                Ok(Some(report)) => self.reported(key, report),
                Ok(None) => return self.control_closed(key),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    self.set_failure(key, format!("a report of the launcher cannot be read: {error}"));
                    return self.control_closed(key);
                }
            }
        }
    }

    fn reported(&mut self, key: u32, report: Report) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        match report {
            Report::Process { pid, pidfd } => {
                container.init = Some(Process::new(pid, Some(pidfd)));
                let failed = matches!(container.phase, Phase::Creating { failure: Some(_), .. });
                self.claim(pid, Role::Init(key));
                // Init runs beside its launcher, so its word may have come first.
                if failed {
                    self.kill_init(key);
                } else {
                    self.created_if_ready(key);
                }
            }
            Report::Ready => {
                container.ready = true;
                self.created_if_ready(key);
            }
            Report::Failed(text) => {
                let creating = matches!(container.phase, Phase::Creating { .. });
                self.set_failure(key, text);
                if creating {
                    // When it was the launcher that failed (a hook), init still waits for it.
                    self.kill_init(key);
                }
            }
            Report::Terminal(_) => {}
        }
    }

    fn set_failure(&mut self, key: u32, text: String) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        if let Phase::Creating { failure, .. } | Phase::Starting { failure, .. } = &mut container.phase {
            failure.get_or_insert(text);
        }
    }

    /// The creation is done when init waits for its start and the launcher has told which process it is.
    fn created_if_ready(&mut self, key: u32) {
        if self.containers.get(&key).is_some_and(|container| container.ready && container.init.is_some()) {
            self.created(key);
        }
    }

    /// Init waits for its start: the creation is done.
    fn created(&mut self, key: u32) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let asker = match container.phase {
            Phase::Creating { asker, failure: None, .. } => asker,
            // It was deleted or killed on the way.
            Phase::Creating { .. } => return self.kill_init(key),
            _ => return,
        };
        let terminal = container.console.take().map(receive_terminal).transpose();
        let attached = terminal.and_then(|terminal| attach_terminal(container, terminal));
        let gone = || Error::Said("the container's init is gone".into());
        let started = container.init.as_ref().map(Process::started).ok_or_else(gone);
        match attached.and(started) {
            Ok(started) => {
                container.phase = Phase::Created;
                self.reply(asker, Ok(started), None);
            }
            Err(error) => {
                self.set_failure(key, chain(&error));
                self.kill_init(key);
            }
        }
    }

    pub(crate) fn kill_init(&mut self, key: u32) {
        let init = self.containers.get(&key).and_then(|container| container.init.as_ref());
        if let Some(Err(error)) = init.map(Process::kill) {
            self.note(&format!("kill an init: {error}"));
        }
    }

    /// The last holder of the control socket has closed it: init has executed its program, or everything ended.
    fn control_closed(&mut self, key: u32) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        if let Some(control) = container.control.take() {
            self.epoll.remove(control.as_fd());
        }
        let ended = container.ended.take();
        match &container.phase {
            Phase::Starting { asker, failure: None, .. } => {
                let asker = *asker;
                container.phase = Phase::Running;
                if let Some(asker) = asker {
                    self.poststart(key, asker);
                }
            }
            // With a failure the answer waits until init is reaped.
            Phase::Creating { .. } if container.init.is_some() => self.kill_init(key),
            Phase::Creating { .. } => return self.creation_failed(key, ended),
            Phase::Starting { .. } | Phase::Created | Phase::Running | Phase::Exited(_) => {}
        }
        if let Some(ended) = ended {
            self.exited(key, ended);
        }
    }

    /// No process of the container is left; a runtime binary may keep something of it still.
    fn creation_failed(&mut self, key: u32, ended: Option<Ended>) {
        self.set_failure(
            key,
            match ended {
                Some(ended) => format!("init ended with {ended:?} before it was ready"),
                None => "the launcher ended without a word".into(),
            },
        );
        let Some(container) = self.containers.get(&key) else { return };
        if self.commands.values().any(|c| matches!(c.purpose, Purpose::Undo(of) if of == key)) {
            return;
        }
        let handler = handler::of(container.order.handler.as_ref(), self.single);
        match handler.and_then(|handler| handler.delete(&container.order)) {
            Ok(Some(command)) => self.run_command(command, Purpose::Undo(key), DELETE_TIMEOUT),
            Ok(None) => self.creation_undone(key),
            Err(error) => {
                self.note(&chain(&error));
                self.creation_undone(key);
            }
        }
    }

    /// Nothing of the container is left; whoever asked is told why.
    fn creation_undone(&mut self, key: u32) {
        let Some(container) = self.containers.remove(&key) else { return };
        if let Some(control) = &container.control {
            self.epoll.remove(control);
        }
        let Phase::Creating { asker, failure, .. } = container.phase else { return };
        let text = failure.unwrap_or_else(|| "it was not created".into());
        self.reply(asker, Err(Error::Said(text)), None);
        for (deleter, _) in container.deleters {
            self.reply(deleter, Ok(DONE), None);
        }
    }

    /// Ends a creation that is under way, whatever it hangs in: the launcher or the runtime binary with the hooks that it runs, and
    /// init. The end of these is what is answered.
    pub(crate) fn abort_creation(&mut self, key: u32, why: String) {
        self.set_failure(key, why);
        let Some(container) = self.containers.get_mut(&key) else { return };
        if let Phase::Creating { patience, .. } = &mut container.phase {
            patience.shorten();
        }
        if let Some(launcher) = &container.launcher {
            command::kill_group(launcher);
        }
        self.kill_commands(|purpose| matches!(purpose, Purpose::Create(of) if *of == key));
        self.kill_init(key);
    }

    /// Before init is killed: a creation or a start that is under way does not succeed any more, whatever it hangs in.
    pub(crate) fn abort(&mut self, key: u32) {
        match self.containers.get(&key).map(|container| &container.phase) {
            Some(Phase::Creating { .. }) => self.abort_creation(key, "it was killed".into()),
            Some(Phase::Starting { .. }) => {
                self.set_failure(key, "it was killed".into());
                self.kill_commands(|purpose| matches!(purpose, Purpose::Start(of) if *of == key));
            }
            Some(Phase::Created | Phase::Running | Phase::Exited(_)) | None => {}
        }
    }

    pub(crate) fn kill_commands(&mut self, which: impl Fn(&Purpose) -> bool) {
        for running in self.commands.values_mut().filter(|running| which(&running.purpose)) {
            running.patience.shorten();
            command::kill_group(&running.command.child);
        }
    }

    pub(crate) fn start(&mut self, asker: Asker, id: &str) -> Result<()> {
        let key = self.find(id)?;
        let Some(container) = self.containers.get_mut(&key) else { return Ok(()) };
        if !matches!(container.phase, Phase::Created) {
            return Err(Error::WrongState { id: id.into(), state: container.phase.name() });
        }
        // The log is there, and read into, before the first byte can be written.
        container.output.open()?;
        for (stream, token) in [(Stream::Stdout, Token::Stdout(key)), (Stream::Stderr, Token::Stderr(key))] {
            if let Some(fd) = container.output.fd(stream) {
                self.epoll.add(fd, token).step(|| "watch the container's output")?;
            }
        }
        let handler = handler::of(container.order.handler.as_ref(), self.single)?;
        let command = handler.start(&container.order, container.control.as_ref())?;
        container.phase =
            Phase::Starting { asker: Some(asker), failure: None, patience: Patience::new(START_TIMEOUT) };
        let nobody_tells = container.control.is_none();
        match command {
            Some(command) => self.run_command(command, Purpose::Start(key), START_TIMEOUT),
            None if nobody_tells => self.start_command_ended(key, Ok(Outcome::default())),
            None => {}
        }
        Ok(())
    }

    /// A container's init was reaped.
    pub(crate) fn init_ended(&mut self, key: u32, ended: Ended) {
        // What it told before its end comes first.
        self.control_ready(key);
        let Some(container) = self.containers.get_mut(&key) else { return };
        container.init = None;
        let undecided = matches!(container.phase, Phase::Creating { .. } | Phase::Starting { .. });
        let starting = |running: &RunningCommand| matches!(running.purpose, Purpose::Start(of) if of == key);
        if undecided && (container.control.is_some() || self.commands.values().any(starting)) {
            container.ended = Some(ended);
            return;
        }
        if matches!(container.phase, Phase::Creating { .. }) {
            return self.creation_failed(key, Some(ended));
        }
        self.exited(key, ended);
    }

    /// Output, record, state, word: in this order.
    fn exited(&mut self, key: u32, ended: Ended) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let (attachers, epoll) = (&mut self.attachers, &self.epoll);
        let give = |stream, bytes: &[u8]| attachers.give(key, stream, bytes, epoll);
        container.output.drain(&mut self.scratch, give, |fd| epoll.remove(fd));
        let oom_file = container.order.cgroup.as_ref().map_or("", |cgroup| cgroup.oom_file.as_str());
        let oom_kills = crate::cgroup::oom_kills(oom_file).saturating_sub(container.oom_kills_before);
        let exit = crate::exit::exit(ended, oom_kills);
        let recorded = crate::exit::write(container.state_dir(), &exit);
        container.input.close(&self.epoll);
        if let Some(control) = container.control.take() {
            self.epoll.remove(control.as_fd());
        }
        let before = std::mem::replace(&mut container.phase, Phase::Exited(exit));
        let id = container.id().to_owned();
        let lost = container.output.lost_bytes();
        if let Err(error) = recorded {
            self.note(&chain(&error));
        }
        if lost > 0 {
            self.note(&format!("{lost} bytes of output of {id} were lost"));
        }
        if let Phase::Starting { asker: Some(asker), failure, .. } = before {
            let text = failure.unwrap_or_else(|| format!("init ended with {ended:?} while it was started"));
            self.reply(asker, Err(Error::Said(text)), None);
        }
        self.announce(pb::message::Kind::ContainerExited(pb::ContainerExited {
            container_id: id,
            exit: Some(exit),
        }));
        self.end_attachers(key, exit);
        self.kill_execs(key);
        self.forget_if_asked(key);
    }

    pub(crate) fn delete(&mut self, asker: Asker, id: &str) -> Answer {
        let Ok(key) = self.find(id) else { return Ok(Some(DONE)) };
        let Some(container) = self.containers.get_mut(&key) else { return Ok(Some(DONE)) };
        // Longer than the command that deletes, and than its death.
        let until = Instant::now() + 2 * DELETE_TIMEOUT;
        match &container.phase {
            Phase::Running | Phase::Starting { .. } => {
                Err(Error::WrongState { id: id.into(), state: container.phase.name() })
            }
            Phase::Exited(_) => {
                container.deleters.push((asker, until));
                self.forget_if_asked(key);
                Ok(None)
            }
            Phase::Creating { .. } => {
                container.deleters.push((asker, until));
                self.abort_creation(key, "it was deleted".into());
                Ok(None)
            }
            Phase::Created => {
                container.deleters.push((asker, until));
                self.kill_init(key);
                Ok(None)
            }
        }
    }

    /// Forgets an ended container that somebody wants deleted, after its handler has.
    fn forget_if_asked(&mut self, key: u32) {
        let Some(container) = self.containers.get(&key) else { return };
        if container.deleters.is_empty()
            || self
                .commands
                .values()
                .any(|c| matches!(c.purpose, Purpose::Delete(of) | Purpose::Poststop(of) if of == key))
        {
            return;
        }
        let handler = handler::of(container.order.handler.as_ref(), self.single);
        match handler.and_then(|handler| handler.delete(&container.order)) {
            Ok(Some(command)) => self.run_command(command, Purpose::Delete(key), DELETE_TIMEOUT),
            Ok(None) => self.forget(key),
            Err(error) => {
                self.note(&chain(&error));
                self.forget(key);
            }
        }
    }

    /// Forgets it when its hooks after the end have run.
    pub(crate) fn forget(&mut self, key: u32) {
        if self.poststop(key) {
            return;
        }
        let Some(container) = self.containers.remove(&key) else { return };
        for stream in [Stream::Stdout, Stream::Stderr] {
            if let Some(fd) = container.output.fd(stream) {
                self.epoll.remove(fd);
            }
        }
        for (deleter, _) in container.deleters {
            self.reply(deleter, Ok(DONE), None);
        }
    }

    /// A command of an OCI runtime has ended.
    pub(crate) fn command_ended(&mut self, key: u32, ended: Ended) {
        let Some(running) = self.commands.remove(&key) else { return };
        self.command_done(running.purpose, running.command.finish(ended));
    }

    fn command_done(&mut self, purpose: Purpose, outcome: Result<Outcome>) {
        match purpose {
            Purpose::Create(key) => self.create_command_ended(key, outcome),
            Purpose::Start(key) => self.start_command_ended(key, outcome),
            Purpose::Delete(key) => {
                if let Err(error) = outcome {
                    self.note(&chain(&error));
                }
                self.forget(key);
            }
            Purpose::Undo(key) => {
                if let Err(error) = outcome {
                    self.note(&chain(&error));
                }
                self.creation_undone(key);
            }
            Purpose::Exec(key) => self.exec_command_ended(key, outcome),
            Purpose::Poststart { key, asker } => self.poststart_ended(key, asker, outcome.map(drop)),
            Purpose::Poststop(key) => self.poststop_ended(key, outcome.map(drop)),
        }
    }

    fn create_command_ended(&mut self, key: u32, outcome: Result<Outcome>) {
        let made = outcome.and_then(|outcome| {
            let pid = outcome.pid.ok_or_else(|| Error::Said("the runtime told no pid".into()))?;
            Ok((self.open_process(pid)?, outcome.terminal))
        });
        let Some(container) = self.containers.get_mut(&key) else { return };
        match made {
            Ok((init, terminal)) => {
                let pid = init.pid;
                container.init = Some(init);
                if let Some(terminal) = terminal
                    && let Err(error) = attach_terminal(container, Some(terminal))
                {
                    self.set_failure(key, chain(&error));
                }
                self.created(key);
                self.claim(pid, Role::Init(key));
            }
            Err(error) => {
                self.set_failure(key, chain(&error));
                self.creation_failed(key, None);
            }
        }
    }

    fn start_command_ended(&mut self, key: u32, outcome: Result<Outcome>) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let Phase::Starting { asker, .. } = container.phase else { return };
        let ended = container.ended.take();
        match outcome {
            Ok(_) => {
                container.phase = Phase::Running;
                if let Some(asker) = asker {
                    self.reply(asker, Ok(DONE), None);
                }
            }
            Err(error) => {
                self.set_failure(key, chain(&error));
                self.kill_init(key);
            }
        }
        if let Some(ended) = ended {
            self.exited(key, ended);
        }
    }

    pub(crate) fn lifecycle_deadlines(&self) -> impl Iterator<Item = Instant> + '_ {
        let containers = self.containers.values().flat_map(|container| {
            let phase = match &container.phase {
                Phase::Creating { patience, .. } => Some(patience.deadline()),
                // One that was given up is not waited for.
                Phase::Starting { patience, asker: Some(_), .. } => Some(patience.deadline()),
                Phase::Starting { .. } | Phase::Created | Phase::Running | Phase::Exited(_) => None,
            };
            phase.into_iter().chain(container.deleters.iter().map(|(_, until)| *until))
        });
        containers.chain(self.commands.values().map(|running| running.patience.deadline()))
    }

    pub(crate) fn lifecycle_tick(&mut self, now: Instant) {
        let mut due = Vec::new();
        for (&key, container) in &mut self.containers {
            due.extend(
                container.phase.patience().and_then(|patience| patience.due(now)).map(|what| (key, what)),
            );
        }
        for (key, what) in due {
            self.overdue(key, what);
        }
        self.commands_tick(now);
        self.deleters_tick(now);
    }

    /// A creation or a start takes too long.
    fn overdue(&mut self, key: u32, what: Impatience) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let (creating, seconds) = match container.phase {
            Phase::Creating { .. } => (true, CREATE_TIMEOUT.as_secs()),
            _ => (false, START_TIMEOUT.as_secs()),
        };
        match (what, creating) {
            (Impatience::Kill, true) => {
                self.abort_creation(key, format!("it was not created within {seconds} s"));
            }
            (Impatience::GiveUp, true) => self.creation_undone(key),
            (Impatience::Kill, false) => {
                self.set_failure(key, format!("it was not started within {seconds} s"));
                self.kill_commands(|purpose| matches!(purpose, Purpose::Start(of) if *of == key));
                self.kill_init(key);
            }
            (Impatience::GiveUp, false) => {
                // Its init does not die; the end of it is told when it comes.
                if let Phase::Starting { asker, failure, .. } = &mut container.phase
                    && let Some(asker) = asker.take()
                {
                    let text = failure.clone().unwrap_or_default();
                    self.reply(asker, Err(Error::Said(text)), None);
                }
            }
        }
    }

    fn commands_tick(&mut self, now: Instant) {
        let mut given_up = Vec::new();
        for (&key, running) in &mut self.commands {
            match running.patience.due(now) {
                Some(Impatience::Kill) => command::kill_group(&running.command.child),
                Some(Impatience::GiveUp) => given_up.push(key),
                None => {}
            }
        }
        for key in given_up {
            let Some(running) = self.commands.remove(&key) else { continue };
            let error = Error::Said(format!("{}: it does not end", running.command.what()));
            self.command_done(running.purpose, Err(error));
        }
    }

    /// Who waits for a deletion is told when it does not come about.
    fn deleters_tick(&mut self, now: Instant) {
        let mut late = Vec::new();
        for container in self.containers.values_mut() {
            let deleters = std::mem::take(&mut container.deleters);
            let (due, waiting) = deleters.into_iter().partition(|(_, until)| now >= *until);
            container.deleters = waiting;
            late.extend(due);
        }
        for (asker, _) in late {
            self.reply(asker, Err(Error::Said("a process of the container does not die".into())), None);
        }
    }
}

fn is_builtin(order: &pb::CreateContainer) -> bool {
    let kind = order.handler.as_ref().and_then(|handler| handler.kind.as_ref());
    matches!(kind, Some(pb::handler::Kind::Builtin(_)))
}

/// Pipes for what the container gets; with a terminal there are none, and its own ends are `/dev/null` until then.
fn stdio_pairs(stdio: &pb::Stdio) -> Result<(Ends, ChildStdio)> {
    let step = || "make the container's pipes";
    let null = || {
        rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).step(|| "open /dev/null")
    };
    if stdio.terminal {
        let child = ChildStdio { stdin: null()?, stdout: null()?, stderr: null()? };
        return Ok((Ends { stdin: None, stdout: None, stderr: None }, child));
    }
    let pipe = || -> Result<_> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).step(step)?;
        rustix::io::ioctl_fionbio(&reader, true).step(step)?;
        Ok((reader, writer))
    };
    let ((stdout, child_stdout), (stderr, child_stderr)) = (pipe()?, pipe()?);
    let (child_stdin, stdin) = if stdio.stdin {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).step(step)?;
        rustix::io::ioctl_fionbio(&writer, true).step(step)?;
        (reader, Some(writer))
    } else {
        (null()?, None)
    };
    let child = ChildStdio { stdin: child_stdin, stdout: child_stdout, stderr: child_stderr };
    Ok((Ends { stdin, stdout: Some(stdout), stderr: Some(stderr) }, child))
}

fn receive_terminal(console: OwnedFd) -> Result<OwnedFd> {
    use crisp_sys::fdpass::{Wait, receive};
    let packet = receive(console, 4096, Wait::Never).step(|| "receive the terminal")?;
    let fd = packet.and_then(|packet| packet.fds.into_iter().next());
    fd.ok_or_else(|| Error::Said("init sent no terminal".into()))
}

/// The terminal's output is logged as stdout; its master is also what input goes to.
fn attach_terminal(container: &mut Container, terminal: Option<OwnedFd>) -> Result<()> {
    let Some(terminal) = terminal else { return Ok(()) };
    let step = || "prepare the terminal";
    rustix::io::ioctl_fionbio(&terminal, true).step(step)?;
    container.input = Input::new(Some(terminal.try_clone().step(step)?));
    container.output.attach(Stream::Stdout, terminal);
    Ok(())
}
