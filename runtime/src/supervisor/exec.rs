//! Execs: a session with streams of its own, and the collected one of ExecSync.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crisp_domain::{ContainerId, ExitStatus, Timestamp};
use crisp_proto::supervisor as pb;
use crisp_proto::supervisor::reply::Result as Answer;
use crisp_proto::supervisor::request::Call;
use rustix::fs::MemfdFlags;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::oneshot;

use super::connection::{ExecEnd, REQUEST_BYTES_MAX};
use super::pipe::{self, Pipe};
use super::{CgroupEntry, Error, Exit, Resizer, SupervisorClient, wire};

/// Bytes that are kept of each output stream: with both, and what is around them, an answer stays below the 16 MiB that CRI
/// clients take. What comes after is read and thrown away, so that the command is not blocked.
const EXEC_SYNC_OUTPUT_BYTES_MAX: usize = ((16 << 20) - (64 << 10)) / 2;
/// How long the output is still read when the command has ended: what it left behind may hold the pipes for ever.
const EXEC_SYNC_DRAIN_MAX: Duration = Duration::from_secs(2);
/// What a pipe of an exec with streams holds.
const STREAM_PIPE_BYTES: usize = 256 << 10;
/// What a pipe of a collected exec holds: the usual size, since probes are many.
const SYNC_PIPE_BYTES: usize = 64 << 10;
/// How long an exec whose client is gone lives on: it was hung up, and may want to put its things in order.
const HANG_UP_GRACE: Duration = Duration::from_secs(5);
/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;
/// What a request says besides the process, bytes, generously.
const REQUEST_AROUND_BYTES: usize = 32 << 10;
/// Kernel number.
const SIGKILL: i32 = 9;

/// An exec whose output is collected.
#[derive(Debug, Clone)]
pub(crate) struct ExecSync<'a> {
    pub(crate) container: &'a ContainerId,
    /// JSON of an OCI `process` object.
    pub(crate) process_json: Vec<u8>,
    /// The container's cgroup.
    pub(crate) cgroup: &'a CgroupEntry,
    /// `None` is no limit.
    pub(crate) timeout: Option<Duration>,
}

/// What an exec printed and how it ended; each stream is cut so that both fit one CRI message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExecOutput {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) status: ExitStatus,
    /// The whole process tree was killed because its time was up.
    pub(crate) timed_out: bool,
}

/// An exec with streams.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "one for each stream, as in the protocol")]
pub(crate) struct ExecStream<'a> {
    pub(crate) container: &'a ContainerId,
    /// JSON of an OCI `process` object, with `"terminal": true` where there is one.
    pub(crate) process_json: Vec<u8>,
    /// The container's cgroup.
    pub(crate) cgroup: &'a CgroupEntry,
    pub(crate) terminal: bool,
    /// Of what is not asked for the process gets `/dev/null`. A terminal is always all of its stdio.
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
}

/// A running exec with the session's ends of its stdio: descriptors that do not block.
#[derive(Debug)]
pub(crate) struct ExecSession {
    /// With a terminal `stdin` and `stdout` are two descriptors of its master, whose reading fails with EIO when nobody has the terminal
    /// open any more.
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    pub(crate) process: ExecProcess,
}

/// A running exec. Dropped before its end it is killed with its whole process tree, one with streams after [`HANG_UP_GRACE`].
#[derive(Debug)]
pub(crate) struct ExecProcess {
    client: SupervisorClient,
    container: ContainerId,
    id: String,
    end: oneshot::Receiver<ExecEnd>,
    ended: bool,
    /// Between its loss and its death.
    grace: Duration,
    terminal: Option<Arc<OwnedFd>>,
}

impl ExecProcess {
    /// Waits for the end; may be cancelled and called again, but not once it has answered. Output may be in the pipes still, and what it
    /// has left behind may hold them for ever.
    ///
    /// # Errors
    /// [`Error::Closed`] when the connection to the shim broke: the end is not known.
    pub(crate) async fn end(&mut self) -> Result<Exit, Error> {
        self.ended().await.map(|(exit, _)| exit)
    }

    async fn ended(&mut self) -> Result<ExecEnd, Error> {
        let end = (&mut self.end).await;
        self.ended = end.is_ok();
        end.map_err(|_dropped| Error::Closed)
    }

    /// Sets the size of its terminal, which it keeps open as long as it lives.
    pub(crate) fn resizer(&self) -> Option<Resizer> {
        self.terminal.clone().map(Resizer::of_master)
    }
}

impl Drop for ExecProcess {
    fn drop(&mut self) {
        if !self.ended {
            self.client.connection.forget_exec(&self.id);
            self.client.connection.send_soon(Call::Signal(pb::Signal {
                container_id: self.container.to_string(),
                signal: SIGKILL,
                exec_id: self.id.clone(),
                after_ms: u64::try_from(self.grace.as_millis()).unwrap_or(u64::MAX),
            }));
        }
    }
}

/// What both kinds of exec are begun with.
struct Order<'a> {
    container: &'a ContainerId,
    process_json: Vec<u8>,
    cgroup: &'a CgroupEntry,
    terminal: bool,
    timeout: Option<Duration>,
    grace: Duration,
}

impl SupervisorClient {
    /// Runs a process in the container and collects its output. Dropping the future kills the process tree.
    ///
    /// # Errors
    /// [`Error::Refused`] with the cause when it cannot be executed.
    pub(crate) async fn exec_sync(&self, exec: ExecSync<'_>) -> Result<ExecOutput, Error> {
        let (stdout, stderr) = (pipe::output(SYNC_PIPE_BYTES)?, pipe::output(SYNC_PIPE_BYTES)?);
        let stdio = [null()?, stdout.theirs, stderr.theirs];
        let order = Order {
            container: exec.container,
            process_json: exec.process_json,
            cgroup: exec.cgroup,
            terminal: false,
            timeout: exec.timeout,
            grace: Duration::ZERO,
        };
        let (mut process, _) = self.begin(order, &stdio).await?;
        drop(stdio);
        let receiver = |fd| Receiver::from_owned_fd(fd).map_err(Error::Stdio);
        collect(&mut process, receiver(stdout.ours)?, receiver(stderr.ours)?).await
    }

    /// Starts a process in the container with streams of its own.
    ///
    /// # Errors
    /// [`Error::Refused`] with the cause when it cannot be executed.
    pub(crate) async fn exec(&self, exec: ExecStream<'_>) -> Result<ExecSession, Error> {
        let wanted = |wanted: bool| wanted && !exec.terminal;
        let stdin = wanted(exec.stdin).then(|| pipe::input(STREAM_PIPE_BYTES)).transpose()?;
        let stdout = wanted(exec.stdout).then(|| pipe::output(STREAM_PIPE_BYTES)).transpose()?;
        let stderr = wanted(exec.stderr).then(|| pipe::output(STREAM_PIPE_BYTES)).transpose()?;
        let ((stdin, their_stdin), (stdout, their_stdout), (stderr, their_stderr)) =
            (ends(stdin)?, ends(stdout)?, ends(stderr)?);
        let theirs = [their_stdin, their_stdout, their_stderr];
        let order = Order {
            container: exec.container,
            process_json: exec.process_json,
            cgroup: exec.cgroup,
            terminal: exec.terminal,
            timeout: None,
            grace: HANG_UP_GRACE,
        };
        let stdio = if exec.terminal { &[][..] } else { &theirs[..] };
        let (mut process, fds) = self.begin(order, stdio).await?;
        if !exec.terminal {
            return Ok(ExecSession { stdin, stdout, stderr, process });
        }
        let master = fds.into_iter().next().ok_or(Error::Answer { what: "Exec" })?;
        rustix::io::ioctl_fionbio(&master, true).map_err(|errno| Error::Stdio(errno.into()))?;
        let end = |wanted: bool| wanted.then(|| master.try_clone()).transpose().map_err(Error::Stdio);
        let (stdin, stdout) = (end(exec.stdin)?, end(exec.stdout)?);
        process.terminal = Some(Arc::new(master));
        Ok(ExecSession { stdin, stdout, stderr: None, process })
    }

    /// Starts it; `stdio`: stdin, stdout, stderr, or nothing with a terminal, whose master comes back.
    async fn begin(&self, exec: Order<'_>, stdio: &[OwnedFd]) -> Result<(ExecProcess, Vec<OwnedFd>), Error> {
        let id = unique_id();
        let end = self.connection.expect_exec(&id);
        let mut process = ExecProcess {
            client: self.clone(),
            container: exec.container.clone(),
            id: id.clone(),
            end,
            ended: false,
            grace: exec.grace,
            terminal: None,
        };
        let large = exec.process_json.len() + REQUEST_AROUND_BYTES > REQUEST_BYTES_MAX;
        let file = large.then(|| memory_file(&exec.process_json)).transpose().map_err(Error::Stdio)?;
        let call = pb::Exec {
            container_id: exec.container.to_string(),
            exec_id: id,
            process_json: if large { Vec::new() } else { exec.process_json },
            terminal: exec.terminal,
            cgroup: Some(wire::cgroup(exec.cgroup)),
            timeout_ms: exec.timeout.map_or(0, |limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
        };
        let fds: Vec<_> = stdio.iter().chain(&file).map(OwnedFd::as_fd).collect();
        match self.connection.ask("Exec", Call::Exec(call), &fds).await {
            Ok((Answer::Started(_), fds)) => Ok((process, fds)),
            Ok(_) => Err(Error::Answer { what: "Exec" }),
            Err(refused @ Error::Refused { .. }) => {
                // Nothing runs, so there is nothing to kill.
                process.ended = true;
                self.connection.forget_exec(&process.id);
                Err(refused)
            }
            Err(error) => Err(error),
        }
    }
}

async fn collect(process: &mut ExecProcess, stdout: Receiver, stderr: Receiver) -> Result<ExecOutput, Error> {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let (exit, timed_out) = {
        let reads = async { tokio::join!(read(stdout, &mut out), read(stderr, &mut err)) };
        tokio::pin!(reads);
        let mut at_end = false;
        let end = loop {
            tokio::select! {
                end = process.ended() => break end?,
                _ = &mut reads, if !at_end => at_end = true,
            }
        };
        if !at_end {
            // What is left of it is nobody's to wait for.
            let _still_held = tokio::time::timeout(EXEC_SYNC_DRAIN_MAX, reads).await;
        }
        end
    };
    Ok(ExecOutput { stdout: out, stderr: err, status: exit.status, timed_out })
}

/// Reads to the end of the pipe, keeping the first [`EXEC_SYNC_OUTPUT_BYTES_MAX`] bytes.
async fn read(mut pipe: Receiver, kept: &mut Vec<u8>) {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match pipe.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => {
                let room = EXEC_SYNC_OUTPUT_BYTES_MAX - kept.len();
                kept.extend_from_slice(&buffer[..count.min(room)]);
            }
        }
    }
}

/// The session's end of a stream, and the process's.
fn ends(stream: Option<Pipe>) -> Result<(Option<OwnedFd>, OwnedFd), Error> {
    match stream {
        Some(pipe) => Ok((Some(pipe.ours), pipe.theirs)),
        None => Ok((None, null()?)),
    }
}

fn null() -> Result<OwnedFd, Error> {
    let file = File::options().read(true).write(true).open("/dev/null");
    file.map(OwnedFd::from).map_err(Error::Stdio)
}

fn memory_file(bytes: &[u8]) -> std::io::Result<OwnedFd> {
    use std::io::{Seek as _, Write as _};
    let mut file = File::from(rustix::fs::memfd_create("process", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}

/// Unique among the execs and attachments of all daemons that a shim outlives.
pub(super) fn unique_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{:x}-{:x}", Timestamp::now().0, NEXT.fetch_add(1, Ordering::Relaxed))
}
