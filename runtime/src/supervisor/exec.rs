//! Execs: a session on the caller's own descriptors, and the collected one of ExecSync.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crisp_domain::{ContainerId, ExitStatus, Timestamp};
use crisp_proto::supervisor as pb;
use crisp_proto::supervisor::reply::Result as Answer;
use crisp_proto::supervisor::request::Call;
use rustix::fs::MemfdFlags;
use rustix::pipe::PipeFlags;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::oneshot;

use super::connection::{ExecEnd, REQUEST_BYTES_MAX};
use super::{CgroupEntry, Error, SupervisorClient, wire};

/// Bytes that are kept of each output stream: with both, and what is around them, an answer stays below the 16 MiB that CRI
/// clients take. What comes after is read and thrown away, so that the command is not blocked.
const EXEC_SYNC_OUTPUT_BYTES_MAX: usize = ((16 << 20) - (64 << 10)) / 2;
/// How long the output is still read when the command has ended: what it left behind may hold the pipes for ever.
const EXEC_SYNC_DRAIN_MAX: Duration = Duration::from_secs(2);
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

/// A running exec; dropping it before its end kills its whole process tree.
#[derive(Debug)]
struct Session<'a> {
    client: &'a SupervisorClient,
    container: &'a ContainerId,
    id: String,
    end: oneshot::Receiver<ExecEnd>,
    ended: bool,
}

impl Session<'_> {
    async fn end(&mut self) -> Result<ExecEnd, Error> {
        let end = (&mut self.end).await;
        self.ended = end.is_ok();
        end.map_err(|_dropped| Error::Closed)
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.client.connection.forget_exec(&self.id);
            self.client.connection.send_now(Call::Signal(pb::Signal {
                container_id: self.container.to_string(),
                signal: SIGKILL,
                exec_id: self.id.clone(),
                after_ms: 0,
            }));
        }
    }
}

impl SupervisorClient {
    /// Runs a process in the container and collects its output. Dropping the future kills the process tree.
    ///
    /// # Errors
    /// [`Error::Refused`] with the cause when it cannot be executed.
    pub(crate) async fn exec_sync(&self, exec: ExecSync<'_>) -> Result<ExecOutput, Error> {
        let stdin = OwnedFd::from(File::open("/dev/null").map_err(Error::Stdio)?);
        let (stdout, stdout_in) = pipe()?;
        let (stderr, stderr_in) = pipe()?;
        let mut session = self.begin(&exec, [stdin, stdout_in, stderr_in]).await?;
        collect(&mut session, stdout, stderr).await
    }

    /// Starts it on these descriptors: stdin, stdout, stderr.
    async fn begin<'a>(&'a self, exec: &ExecSync<'a>, stdio: [OwnedFd; 3]) -> Result<Session<'a>, Error> {
        let id = exec_id();
        let end = self.connection.expect_exec(&id);
        let mut session =
            Session { client: self, container: exec.container, id: id.clone(), end, ended: false };
        let large = exec.process_json.len() + REQUEST_AROUND_BYTES > REQUEST_BYTES_MAX;
        let file = large.then(|| memory_file(&exec.process_json)).transpose().map_err(Error::Stdio)?;
        let call = pb::Exec {
            container_id: exec.container.to_string(),
            exec_id: id,
            process_json: if large { Vec::new() } else { exec.process_json.clone() },
            terminal: false,
            cgroup: Some(wire::cgroup(exec.cgroup)),
            timeout_ms: exec.timeout.map_or(0, |limit| u64::try_from(limit.as_millis()).unwrap_or(u64::MAX)),
        };
        let fds: Vec<_> = stdio.iter().chain(&file).map(OwnedFd::as_fd).collect();
        match self.connection.ask("Exec", Call::Exec(call), &fds).await {
            Ok((Answer::Started(_), _)) => Ok(session),
            Ok(_) => Err(Error::Answer { what: "Exec" }),
            Err(refused @ Error::Refused { .. }) => {
                // Nothing runs, so there is nothing to kill.
                session.ended = true;
                self.connection.forget_exec(&session.id);
                Err(refused)
            }
            Err(error) => Err(error),
        }
    }
}

async fn collect(session: &mut Session<'_>, stdout: Receiver, stderr: Receiver) -> Result<ExecOutput, Error> {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let (exit, timed_out) = {
        let reads = async { tokio::join!(read(stdout, &mut out), read(stderr, &mut err)) };
        tokio::pin!(reads);
        let mut at_end = false;
        let end = loop {
            tokio::select! {
                end = session.end() => break end?,
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

fn pipe() -> Result<(Receiver, OwnedFd), Error> {
    let (reader, writer) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|errno| Error::Stdio(errno.into()))?;
    rustix::io::ioctl_fionbio(&reader, true).map_err(|errno| Error::Stdio(errno.into()))?;
    Ok((Receiver::from_owned_fd(reader).map_err(Error::Stdio)?, writer))
}

fn memory_file(bytes: &[u8]) -> std::io::Result<OwnedFd> {
    use std::io::{Seek as _, Write as _};
    let mut file = File::from(rustix::fs::memfd_create("process", MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}

/// Unique among the execs of all daemons that a shim outlives.
fn exec_id() -> String {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{:x}-{:x}", Timestamp::now().0, NEXT.fetch_add(1, Ordering::Relaxed))
}
