//! Execs, from the request to the end of everything that they started.

use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use crisp_proto::supervisor as pb;
use crisp_sys::pidfd::Ended;
use rustix::process::{Pid, Signal};

use crate::cgroup::ExecGroup;
use crate::command::Outcome;
use crate::container::{Asker, Exec, Kill, Phase, Process, Purpose};
use crate::control::{self, Report};
use crate::epoll::Token;
use crate::error::{Error, Result, Step as _, chain};
use crate::handler::{self, Begun, ChildStdio, ExecOrder};
use crate::server::{Role, Server};

/// Execs at a time in one pod.
const EXECS_MAX: usize = 1024;
/// Longest description of an exec's process.
const PROCESS_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Longest id of an exec; it names a cgroup and files.
const ID_BYTES_MAX: usize = 64;
/// Groups of ended execs that are kept for another try at removing them; the rest goes with the container's cgroup.
const LEFTOVERS_MAX: usize = 64;
/// Until a tree that is being killed is looked at again; it doubles up to [`KILL_PAUSE_MAX`].
const KILL_PAUSE_MIN: Duration = Duration::from_millis(5);
/// Longest pause between two looks.
const KILL_PAUSE_MAX: Duration = Duration::from_secs(1);
/// How long a runtime binary may take to begin an exec.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(100);
/// How long an exec without a client lives on, to put its things in order; a daemon says the same of clients that leave it.
const HANG_UP_GRACE: Duration = Duration::from_secs(5);
/// How long the end of a killed exec waits for what it started.
const TREE_KILL_TIMEOUT: Duration = Duration::from_secs(2);

impl Server {
    pub(crate) fn exec(&mut self, asker: Asker, order: pb::Exec, fds: Vec<OwnedFd>) -> Result<()> {
        let key = self.find(&order.container_id)?;
        self.check_exec(key, &order)?;
        let Some(container) = self.containers.get(&key) else { return Ok(()) };
        let init = container.init.as_ref();
        let Some((init, init_pid)) = init.and_then(|init| Some((init.pidfd()?, init.pid))) else {
            return Err(Error::WrongState { id: order.container_id, state: "without an init" });
        };
        let (stdio, process_json) = descriptors(&order, fds)?;
        let handler = handler::of(container.order.handler.as_ref(), self.single)?;
        let mut cgroup = order.cgroup.unwrap_or_default();
        let group = ExecGroup::create(&mut cgroup, &order.exec_id)?;
        let begun = handler.exec(ExecOrder {
            container_id: container.id(),
            exec_id: &order.exec_id,
            bundle: &container.bundle(),
            filtered: container.filtered,
            state_dir: container.state_dir(),
            init,
            init_pid,
            process_json: &process_json,
            cgroup: &cgroup,
            stdio,
        });
        let begun = match begun {
            Ok(begun) => begun,
            Err(error) => {
                self.remove_group(group);
                return Err(error);
            }
        };
        let timeout = (order.timeout_ms > 0).then(|| Duration::from_millis(order.timeout_ms));
        let exec_key = self.new_key();
        let mut exec = Exec {
            container: key,
            id: order.exec_id,
            connection: asker.connection,
            asker: Some(asker),
            failure: None,
            process: None,
            control: None,
            terminal: None,
            group,
            deadline: timeout.and_then(|timeout| Instant::now().checked_add(timeout)),
            time_up: Kill::TimeUp,
            kill: Kill::No,
            killed_at: None,
            kill_again: None,
            exit: None,
        };
        match begun {
            Begun::Launcher { control, .. } => {
                self.epoll.add(&control, Token::ExecControl(exec_key)).step(|| "watch the exec")?;
                exec.control = Some(control);
                self.execs.insert(exec_key, exec);
            }
            Begun::Command(command) => {
                self.execs.insert(exec_key, exec);
                self.run_command(command, Purpose::Exec(exec_key), COMMAND_TIMEOUT);
            }
        }
        Ok(())
    }

    fn check_exec(&self, key: u32, order: &pb::Exec) -> Result<()> {
        let id = &order.exec_id;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if id.is_empty() || id.len() > ID_BYTES_MAX || !id.bytes().all(plain) {
            return Err(Error::Invalid(format!("{id:?} is no id of an exec")));
        }
        if self.execs.values().any(|exec| exec.container == key && exec.id == *id) {
            return Err(Error::Exists { what: "exec", id: id.clone() });
        }
        if self.execs.len() >= EXECS_MAX {
            return Err(Error::Limit(format!("{EXECS_MAX} execs are running in this pod")));
        }
        match self.containers.get(&key).map(|container| &container.phase) {
            Some(Phase::Running) => Ok(()),
            Some(phase) => Err(Error::WrongState { id: order.container_id.clone(), state: phase.name() }),
            None => Err(Error::NotFound { what: "container", id: order.container_id.clone() }),
        }
    }

    /// Something came over an exec's control socket.
    pub(crate) fn exec_control_ready(&mut self, key: u32) {
        loop {
            let Some(exec) = self.execs.get_mut(&key) else { return };
            let Some(control) = &exec.control else { return };
            match control::receive(control) {
                Ok(Some(Report::Process { pid, pidfd })) => {
                    exec.process = Some(Process::new(pid, Some(pidfd)));
                    self.claim(pid, Role::Exec(key));
                }
                Ok(Some(Report::Terminal(master))) => exec.terminal = Some(master),
                Ok(Some(Report::Failed(text))) => {
                    exec.failure.get_or_insert(text);
                }
                Ok(Some(Report::Ready)) => {}
                Ok(None) => return self.exec_control_closed(key),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    exec.failure.get_or_insert(format!("a report of the exec cannot be read: {error}"));
                    return self.exec_control_closed(key);
                }
            }
        }
    }

    /// The program was executed, or everything ended.
    fn exec_control_closed(&mut self, key: u32) {
        let Some(exec) = self.execs.get_mut(&key) else { return };
        if let Some(control) = exec.control.take() {
            self.epoll.remove(control.as_fd());
        }
        if exec.failure.is_none() && (exec.process.is_some() || exec.exit.is_some()) {
            self.answer_exec(key);
            self.finish_exec(key);
        } else if exec.process.is_none() || exec.exit.is_some() {
            self.exec_failed(key);
        } else {
            // Its end is answered with the failure.
            kill_tree(exec);
        }
    }

    fn answer_exec(&mut self, key: u32) {
        let Some(exec) = self.execs.get_mut(&key) else { return };
        let (Some(asker), Some(process)) = (exec.asker.take(), &exec.process) else { return };
        let (answer, terminal) = (process.started(), exec.terminal.take());
        self.reply(asker, Ok(answer), terminal);
    }

    /// Whoever asked is told why. A helper that died before its report may have left a process, which nobody would know.
    fn exec_failed(&mut self, key: u32) {
        let Some(mut exec) = self.execs.remove(&key) else { return };
        kill_tree(&exec);
        self.remove_group(exec.group.take());
        self.forget_exec_files(exec.container, &exec.id);
        if exec.kill == Kill::TimeUp && exec.failure.is_none() {
            return self.timed_out_on_the_way(exec);
        }
        let text = exec.failure.unwrap_or_else(|| "the exec ended before its program ran".into());
        if let Some(asker) = exec.asker {
            self.reply(asker, Err(Error::Said(text)), None);
        }
    }

    /// The time was up before there was a process to name: a timeout as any other, not a failure.
    fn timed_out_on_the_way(&mut self, exec: Exec) {
        if let Some(asker) = exec.asker {
            let nobody = pb::Started { pid: 0, start_time_ticks: 0 };
            self.reply(asker, Ok(pb::reply::Result::Started(nobody)), None);
        }
        let killed = Ended::Signal(crate::exit::SIGKILL);
        self.announce_exec_exit(exec, crate::exit::exit(killed, 0));
    }

    fn announce_exec_exit(&mut self, exec: Exec, exit: pb::Exit) {
        let container = self.containers.get(&exec.container);
        self.announce(pb::message::Kind::ExecExited(pb::ExecExited {
            container_id: container.map(|container| container.id().to_owned()).unwrap_or_default(),
            exec_id: exec.id,
            exit: Some(exit),
            timed_out: exec.kill == Kill::TimeUp,
        }));
    }

    fn forget_exec_files(&self, container: u32, id: &str) {
        if let Some(container) = self.containers.get(&container) {
            crate::oci::forget_exec(container.state_dir(), id);
        }
    }

    pub(crate) fn exec_command_ended(&mut self, key: u32, outcome: Result<Outcome>) {
        let made = outcome.and_then(|outcome| {
            let pid = outcome.pid.ok_or_else(|| Error::Said("the runtime told no pid".into()))?;
            Ok((self.open_process(pid)?, outcome.terminal))
        });
        let Some(exec) = self.execs.get_mut(&key) else { return };
        match made {
            Ok((process, terminal)) => {
                let pid = process.pid;
                // The binary has put it into the container's cgroup. A process that is gone needs no group.
                if let Some(group) = &exec.group {
                    let _gone = group.adopt(pid);
                }
                (exec.process, exec.terminal) = (Some(process), terminal);
                self.answer_exec(key);
                self.claim(pid, Role::Exec(key));
            }
            Err(error) => {
                // Killed with what it began when the time was up, it has not failed.
                if exec.kill != Kill::TimeUp {
                    exec.failure.get_or_insert(chain(&error));
                }
                self.exec_failed(key);
            }
        }
    }

    /// The process of an exec was reaped.
    pub(crate) fn exec_ended(&mut self, key: u32, ended: Ended) {
        // What it told before its end comes first.
        self.exec_control_ready(key);
        let Some(exec) = self.execs.get_mut(&key) else { return };
        exec.exit = Some(crate::exit::exit(ended, 0));
        if exec.asker.is_none() {
            self.finish_exec(key);
        } else if exec.control.is_none() {
            self.exec_failed(key);
        }
        // Else its helper still holds the control socket, whose end tells whether the program ran.
    }

    /// Tells the end of an exec, once nothing is left of one that is being killed.
    fn finish_exec(&mut self, key: u32) {
        let Some(exec) = self.execs.get(&key) else { return };
        let Some(exit) = exec.exit else { return };
        let tree_lives = exec.kill != Kill::No && exec.group.as_ref().is_some_and(|group| !group.is_empty());
        // What does not die by then (a hung file system) is left to the container's end.
        if tree_lives && exec.killed_at.is_none_or(|at| at.elapsed() < TREE_KILL_TIMEOUT) {
            return;
        }
        let Some(mut exec) = self.execs.remove(&key) else { return };
        self.remove_group(exec.group.take());
        self.forget_exec_files(exec.container, &exec.id);
        self.announce_exec_exit(exec, exit);
    }

    /// Removes an exec's group. One that still holds processes is tried again when a child has ended: often the helper that began the
    /// exec, which may outlive it.
    pub(crate) fn remove_group(&mut self, group: Option<ExecGroup>) {
        self.leftovers.extend(group);
        self.leftovers.retain(|group| !group.remove());
        self.leftovers.truncate(LEFTOVERS_MAX);
    }

    pub(crate) fn exec_deadlines(&self) -> impl Iterator<Item = Instant> + '_ {
        self.execs.values().filter_map(|exec| match exec.kill {
            Kill::No => exec.deadline,
            Kill::Asked | Kill::TimeUp => exec.kill_again.map(|(at, _)| at),
        })
    }

    /// With the connection to its daemon an exec has lost its client.
    pub(crate) fn hang_up_execs(&mut self, connection: u32) {
        for exec in self.execs.values_mut().filter(|exec| exec.connection == connection) {
            exec.kill_at(HANG_UP_GRACE);
        }
    }

    /// Execs die with their container, also where its init was not the first process of their PID namespace.
    pub(crate) fn kill_execs(&mut self, container: u32) {
        for exec in self.execs.values_mut().filter(|exec| exec.container == container) {
            if exec.kill == Kill::No {
                exec.kill = Kill::Asked;
            }
        }
    }

    pub(crate) fn exec_tick(&mut self, now: Instant) {
        for exec in self.execs.values_mut() {
            if exec.kill == Kill::No && exec.deadline.is_some_and(|deadline| now >= deadline) {
                exec.kill = exec.time_up;
            }
        }
        let due = |exec: &Exec| exec.kill != Kill::No && exec.kill_again.is_none_or(|(at, _)| now >= at);
        let killed: Vec<_> = self.execs.iter().filter(|(_, exec)| due(exec)).map(|(&key, _)| key).collect();
        for key in killed {
            if let Some(exec) = self.execs.get_mut(&key) {
                exec.killed_at.get_or_insert(now);
                let pause = exec.kill_again.map_or(KILL_PAUSE_MIN, |(_, pause)| pause);
                exec.kill_again = Some((now + pause, (2 * pause).min(KILL_PAUSE_MAX)));
                kill_tree(exec);
            }
            self.kill_commands(|purpose| matches!(purpose, Purpose::Exec(of) if *of == key));
            self.finish_exec(key);
        }
    }
}

/// The group holds everything that the exec started; without one its session's process group and its first process are all
/// that can be named.
fn kill_tree(exec: &Exec) {
    if let Some(group) = &exec.group {
        group.kill();
    }
    let Some(process) = exec.process.as_ref().filter(|_| exec.exit.is_none()) else { return };
    if exec.group.is_none()
        && let Some(pid) = Pid::from_raw(process.pid)
    {
        let _no_such_group = rustix::process::kill_process_group(pid, Signal::KILL);
    }
    let _gone = process.kill();
}

/// The descriptors beside the request: stdio unless there is a terminal, then the process when it is too long for the packet.
fn descriptors(order: &pb::Exec, fds: Vec<OwnedFd>) -> Result<(Option<ChildStdio>, Vec<u8>)> {
    let mut fds = fds.into_iter();
    let mut next =
        |what: &str| fds.next().ok_or_else(|| Error::Invalid(format!("no descriptor for the exec's {what}")));
    let stdio = if order.terminal {
        None
    } else {
        Some(ChildStdio { stdin: next("stdin")?, stdout: next("stdout")?, stderr: next("stderr")? })
    };
    if !order.process_json.is_empty() {
        return Ok((stdio, order.process_json.clone()));
    }
    let mut json = Vec::new();
    let mut file = std::fs::File::from(next("process")?).take(PROCESS_BYTES_MAX);
    file.read_to_end(&mut json).step(|| "read the exec's process")?;
    Ok((stdio, json))
}
