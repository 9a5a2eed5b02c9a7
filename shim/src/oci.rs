//! A handler that is an OCI runtime binary (runc, crun), by the command line that they share. The shim is a subreaper, so the init
//! that the binary leaves behind becomes the shim's child.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crisp_proto::supervisor as pb;
use crisp_sys::clone::SingleThreaded;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::command::{Command, Order};
use crate::error::{Error, Result, Step as _};
use crate::handler::{Begun, ChildStdio, ExecOrder, Runtime};

#[derive(Debug)]
pub(crate) struct OciBinary {
    single: SingleThreaded,
    binary: pb::OciBinary,
}

impl OciBinary {
    pub(crate) fn new(single: SingleThreaded, binary: pb::OciBinary) -> Result<Self> {
        if !Path::new(&binary.path).is_absolute() {
            return Err(Error::Invalid(format!("the runtime {:?} is not an absolute path", binary.path)));
        }
        Ok(Self { single, binary })
    }

    /// `<binary> <global arguments> --root … --log … <sub-command> <arguments>`.
    fn args(&self, log: &Path, command: &[&str]) -> Vec<String> {
        let mut args = vec![self.binary.path.clone()];
        args.extend(self.binary.global_args.iter().cloned());
        for (name, value) in [("--root", self.binary.root.as_str()), ("--log-format", "json")] {
            args.extend([name.to_owned(), value.to_owned()]);
        }
        args.extend(["--log".to_owned(), log.to_string_lossy().into_owned()]);
        if self.binary.systemd_cgroup {
            args.push("--systemd-cgroup".into());
        }
        args.extend(command.iter().map(|&arg| arg.to_owned()));
        args
    }

    fn simple(&self, order: &pb::CreateContainer, command: &[&str]) -> Result<Command> {
        let log = Path::new(&order.state_dir).join("runtime.log");
        let args = self.args(&log, command);
        Command::start(
            self.single,
            Order { program: None, args, env: None, stdio: None, log, pid_file: None, console: None },
        )
    }
}

impl Runtime for OciBinary {
    fn create(&self, order: &pb::CreateContainer, stdio: ChildStdio) -> Result<Begun> {
        crate::userns::give_pipes_ahead(Path::new(&order.bundle), None, &stdio)?;
        let state_dir = Path::new(&order.state_dir);
        let (log, pid_file) = (state_dir.join("runtime.log"), state_dir.join("init.pid"));
        let socket_path = state_dir.join("tty");
        let terminal = order.stdio.as_ref().is_some_and(|stdio| stdio.terminal);
        let console = terminal.then(|| listen(&socket_path)).transpose()?;
        let (pid_text, socket_text) = (pid_file.to_string_lossy(), socket_path.to_string_lossy());
        let mut command = vec!["create", "--bundle", &order.bundle, "--pid-file", &pid_text];
        if terminal {
            command.extend(["--console-socket", &socket_text]);
        }
        command.push(&order.container_id);
        let args = self.args(&log, &command);
        let stdio = Some([stdio.stdin, stdio.stdout, stdio.stderr]);
        let order = Order { program: None, args, env: None, stdio, log, pid_file: Some(pid_file), console };
        Command::start(self.single, order).map(Begun::Command)
    }

    fn start(&self, order: &pb::CreateContainer, _: Option<&OwnedFd>) -> Result<Option<Command>> {
        self.simple(order, &["start", &order.container_id]).map(Some)
    }

    fn exec(&self, order: ExecOrder<'_>) -> Result<Begun> {
        if let Some(stdio) = &order.stdio {
            crate::userns::give_pipes_ahead(order.bundle, Some(order.process_json), stdio)?;
        }
        let file = |suffix: &str| order.state_dir.join(format!("exec-{}.{suffix}", order.exec_id));
        let (log, pid_file, process) = (file("log"), file("pid"), file("json"));
        std::fs::write(&process, order.process_json).step(|| format!("write {}", process.display()))?;
        let socket_path = exec_socket(order.state_dir, order.exec_id);
        let console = order.stdio.is_none().then(|| listen(&socket_path)).transpose()?;
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        let (process, pid_text, socket_text) = (text(&process), text(&pid_file), text(&socket_path));
        let mut command = vec!["exec", "--detach", "--process", &process, "--pid-file", &pid_text];
        if console.is_some() {
            command.extend(["--tty", "--console-socket", &socket_text]);
        }
        command.push(order.container_id);
        let args = self.args(&log, &command);
        let stdio = order.stdio.map(|stdio| [stdio.stdin, stdio.stdout, stdio.stderr]);
        let order = Order { program: None, args, env: None, stdio, log, pid_file: Some(pid_file), console };
        Command::start(self.single, order).map(Begun::Command)
    }

    fn delete(&self, order: &pb::CreateContainer) -> Result<Option<Command>> {
        self.simple(order, &["delete", "--force", &order.container_id]).map(Some)
    }
}

/// Where a runtime sends an exec's terminal. A socket's path has at most 107 bytes, so the name is short: of the id it has what
/// counts the execs of one daemon; whatever an earlier one left there is replaced.
fn exec_socket(state_dir: &Path, exec_id: &str) -> PathBuf {
    const DIGITS_MAX: usize = 4;
    let count = exec_id.rsplit('-').next().unwrap_or(exec_id);
    state_dir.join(format!("x{}", &count[count.len().saturating_sub(DIGITS_MAX)..]))
}

fn listen(path: &Path) -> Result<OwnedFd> {
    let step = || format!("listen at {}", path.display());
    let _not_there = std::fs::remove_file(path);
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).step(step)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path).step(step)?).step(step)?;
    rustix::net::listen(&socket, 1).step(step)?;
    Ok(socket)
}

/// Removes the files of an exec.
pub(crate) fn forget_exec(state_dir: &Path, exec_id: &str) {
    for suffix in ["log", "pid", "json"] {
        let _not_there = std::fs::remove_file(state_dir.join(format!("exec-{exec_id}.{suffix}")));
    }
    let _not_there = std::fs::remove_file(exec_socket(state_dir, exec_id));
}
