//! Runs one CNI plugin once: a program with a request in its environment and on stdin, a result on stdout.
//!
//! The program leads a process group of its own. At its deadline the whole group is killed; output beyond a bound is an
//! error, not memory. A child of the plugin that keeps stdout open is not waited for: the plugin's end counts.
//!
//! Source: CNI specification 1.1, section 2 "Execution protocol".

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde_json::Value;

use crate::{NetworkError, Result};

/// A result, or an error object, in bytes.
pub(crate) const RESULT_BYTES_MAX: usize = 4 << 20;
/// What is kept of a plugin's stderr, its end, in bytes.
const STDERR_BYTES_MAX: usize = 64 << 10;
/// What of it goes into an error message, in bytes.
const STDERR_SHOWN_BYTES_MAX: usize = 1024;
/// How long a killed plugin may take to be gone.
const KILLED_WAIT_MAX: Duration = Duration::from_secs(2);
/// Plugins call other programs (iptables, ip) by name.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// One call of one plugin.
#[derive(Debug)]
pub(crate) struct Call<'a> {
    /// Its `type`.
    pub(crate) plugin: &'a str,
    /// `ADD`, `DEL`, `CHECK`, `STATUS`, `GC`, `VERSION`.
    pub(crate) command: &'static str,
    pub(crate) bin_dirs: &'a [PathBuf],
    /// `CNI_CONTAINERID`, `CNI_NETNS` and so on; [`Self::command`] and the path are added.
    pub(crate) environment: Vec<(&'static str, String)>,
    pub(crate) config: &'a Value,
    pub(crate) timeout: Duration,
}

/// Finds a plugin by its `type`.
pub(crate) fn find(plugin: &str, bin_dirs: &[PathBuf]) -> Option<PathBuf> {
    bin_dirs.iter().map(|dir| dir.join(plugin)).find(|path| path.is_file())
}

/// Where plugins lie and how long they may take.
#[derive(Debug, Clone)]
pub(crate) struct Runner {
    pub(crate) bin_dirs: Arc<[PathBuf]>,
    pub(crate) timeout: Duration,
}

impl Runner {
    pub(crate) fn find(&self, plugin: &str) -> Option<PathBuf> {
        find(plugin, &self.bin_dirs)
    }

    /// The same with at most this much time for a call.
    pub(crate) fn within(&self, timeout: Duration) -> Self {
        Self { bin_dirs: Arc::clone(&self.bin_dirs), timeout: self.timeout.min(timeout) }
    }

    /// Runs one plugin once.
    ///
    /// # Errors
    /// As [`Call::run`].
    pub(crate) fn call(
        &self,
        plugin: &str,
        command: &'static str,
        config: &Value,
        environment: Vec<(&'static str, String)>,
    ) -> Result<Value> {
        let (bin_dirs, timeout) = (&self.bin_dirs, self.timeout);
        Call { plugin, command, bin_dirs, environment, config, timeout }.run()
    }
}

impl Call<'_> {
    /// Runs the plugin; gives what it printed as JSON, null for nothing.
    ///
    /// # Errors
    /// [`NetworkError::CniRun`], [`NetworkError::CniTimeout`], [`NetworkError::CniFailed`] with the plugin's own words,
    /// [`NetworkError::CniResult`].
    pub(crate) fn run(&self) -> Result<Value> {
        let program = find(self.plugin, self.bin_dirs).ok_or_else(|| {
            let dirs: Vec<_> = self.bin_dirs.iter().map(|d| d.display().to_string()).collect();
            let reason = format!("no such program in {}", dirs.join(", "));
            self.failed_to_run(io::Error::new(io::ErrorKind::NotFound, reason))
        })?;
        let started = Instant::now();
        let output = self.execute(&program)?;
        let elapsed_ms = started.elapsed().as_millis();
        tracing::debug!(plugin = self.plugin, command = self.command, elapsed_ms, "CNI plugin ran");
        self.interpret(&output)
    }

    fn execute(&self, program: &Path) -> Result<Output> {
        let path: Vec<_> = self.bin_dirs.iter().map(|d| d.display().to_string()).collect();
        let mut child = Command::new(program)
            .env_clear()
            .env("PATH", PATH)
            .env("CNI_COMMAND", self.command)
            .env("CNI_PATH", path.join(":"))
            .envs(self.environment.iter().map(|(name, value)| (*name, value.as_str())))
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|e| self.failed_to_run(e))?;
        let conversation = Conversation::begin(&mut child, self.config.to_string().into_bytes());
        let outcome = conversation.and_then(|c| c.run(Instant::now() + self.timeout));
        if !matches!(outcome, Ok(Some(_))) {
            kill_group(&child);
        }
        let status = reap(child).map_err(|e| self.failed_to_run(e))?;
        let outcome = outcome.map_err(|e| self.failed_to_run(e))?;
        match (status, outcome) {
            (Some(status), Some((stdout, stderr))) => Ok(Output { status, stdout, stderr }),
            (None, _) | (_, None) => Err(NetworkError::CniTimeout {
                plugin: self.plugin.to_owned(),
                command: self.command,
                after_ms: self.timeout.as_millis(),
            }),
        }
    }

    fn interpret(&self, output: &Output) -> Result<Value> {
        let text = output.stdout.trim_ascii();
        if !output.status.success() {
            return Err(self.failure(output));
        }
        if text.is_empty() {
            return Ok(Value::Null);
        }
        serde_json::from_slice(text).map_err(|e| NetworkError::CniResult {
            plugin: self.plugin.to_owned(),
            command: self.command,
            reason: format!("not JSON: {e}"),
        })
    }

    /// The error object on stdout, or else the end of what was said.
    fn failure(&self, output: &Output) -> NetworkError {
        let object: Value = serde_json::from_slice(output.stdout.trim_ascii()).unwrap_or(Value::Null);
        let field =
            |name: &str| object.get(name).and_then(Value::as_str).unwrap_or_default().trim().to_owned();
        let code = object.get("code").and_then(Value::as_u64);
        let message = match (field("msg"), field("details")) {
            (msg, details) if msg.is_empty() && details.is_empty() => {
                let said =
                    if output.stderr.trim_ascii().is_empty() { &output.stdout } else { &output.stderr };
                format!("{}: {}", output.status, tail(said))
            }
            (msg, details) if details.is_empty() => msg,
            (msg, details) => format!("{msg}: {details}"),
        };
        NetworkError::CniFailed { plugin: self.plugin.to_owned(), command: self.command, code, message }
    }

    fn failed_to_run(&self, source: io::Error) -> NetworkError {
        NetworkError::CniRun { plugin: self.plugin.to_owned(), command: self.command, source }
    }
}

fn tail(said: &[u8]) -> String {
    let said = said.trim_ascii();
    let from = said.len().saturating_sub(STDERR_SHOWN_BYTES_MAX);
    String::from_utf8_lossy(&said[from..]).into_owned()
}

#[derive(Debug)]
struct Output {
    status: ExitStatus,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

fn pid_of(child: &Child) -> Option<Pid> {
    i32::try_from(child.id()).ok().and_then(Pid::from_raw)
}

/// Collects a child that has ended, or was killed; `None` for one that hangs in the kernel all the same (a dead network
/// file system), which is then collected whenever it ends.
fn reap(mut child: Child) -> io::Result<Option<ExitStatus>> {
    let Some(pid) = pid_of(&child) else { return child.wait().map(Some) };
    let ended = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
    let timeout = Timespec::try_from(KILLED_WAIT_MAX).map_err(io::Error::other)?;
    if rustix::event::poll(&mut [PollFd::new(&ended, PollFlags::IN)], Some(&timeout))? > 0 {
        return child.wait().map(Some);
    }
    std::thread::Builder::new().name("cni-reaper".into()).spawn(move || child.wait())?;
    Ok(None)
}

fn kill_group(child: &Child) {
    if let Some(pid) = pid_of(child) {
        // ESRCH: nobody is left in it.
        let _ = rustix::process::kill_process_group(pid, Signal::KILL);
    }
}

/// The pipes to a running plugin.
struct Conversation {
    ended: OwnedFd,
    stdin: Option<std::process::ChildStdin>,
    stdout: Option<std::process::ChildStdout>,
    stderr: Option<std::process::ChildStderr>,
    request: Vec<u8>,
    written: usize,
    out: Vec<u8>,
    err: Vec<u8>,
}

impl Conversation {
    fn begin(child: &mut Child, request: Vec<u8>) -> io::Result<Self> {
        let pid = pid_of(child).ok_or(io::ErrorKind::NotFound)?;
        let ended = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        for pipe in [
            stdin.as_ref().map(AsFd::as_fd),
            stdout.as_ref().map(AsFd::as_fd),
            stderr.as_ref().map(AsFd::as_fd),
        ] {
            pipe.map_or(Ok(()), |fd| rustix::io::ioctl_fionbio(fd, true))?;
        }
        Ok(Self { ended, stdin, stdout, stderr, request, written: 0, out: Vec::new(), err: Vec::new() })
    }

    /// Talks until the plugin ends: its stdout and stderr, or `None` at the deadline.
    fn run(mut self, deadline: Instant) -> io::Result<Option<(Vec<u8>, Vec<u8>)>> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            let ended = self.wait(left)?;
            self.write()?;
            self.read()?;
            if ended {
                return Ok(Some((self.out, self.err)));
            }
        }
    }

    /// Waits for any of the descriptors; tells whether the plugin has ended.
    fn wait(&self, left: Duration) -> io::Result<bool> {
        let mut wanted = vec![PollFd::new(&self.ended, PollFlags::IN)];
        wanted.extend(self.stdin.as_ref().map(|fd| PollFd::new(fd, PollFlags::OUT)));
        wanted.extend(self.stdout.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
        wanted.extend(self.stderr.as_ref().map(|fd| PollFd::new(fd, PollFlags::IN)));
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match rustix::event::poll(&mut wanted, Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => return Ok(false),
            polled => polled?,
        };
        Ok(wanted[0].revents().contains(PollFlags::IN))
    }

    fn write(&mut self) -> io::Result<()> {
        let Some(stdin) = &mut self.stdin else { return Ok(()) };
        match stdin.write(&self.request[self.written..]) {
            Ok(n) => self.written += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock || e.kind() == io::ErrorKind::Interrupted => {
                return Ok(());
            }
            // It does not care for its request; what it says counts.
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => self.written = self.request.len(),
            Err(e) => return Err(e),
        }
        if self.written == self.request.len() {
            self.stdin = None;
        }
        Ok(())
    }

    fn read(&mut self) -> io::Result<()> {
        if let Some(stdout) = &mut self.stdout
            && drain(stdout, &mut self.out, RESULT_BYTES_MAX)?
        {
            self.stdout = None;
        }
        if self.out.len() > RESULT_BYTES_MAX {
            return Err(io::Error::other(format!("it printed more than {RESULT_BYTES_MAX} bytes")));
        }
        if let Some(stderr) = &mut self.stderr
            && drain(stderr, &mut self.err, STDERR_BYTES_MAX)?
        {
            self.stderr = None;
        }
        let surplus = self.err.len().saturating_sub(STDERR_BYTES_MAX);
        self.err.drain(..surplus);
        Ok(())
    }
}

/// Reads what is there, a little more than `bytes_max` at most; true at the end of the stream.
fn drain(pipe: &mut impl Read, into: &mut Vec<u8>, bytes_max: usize) -> io::Result<bool> {
    let mut buffer = [0u8; 16 << 10];
    let mut taken = 0;
    while taken <= bytes_max {
        match pipe.read(&mut buffer) {
            Ok(0) => return Ok(true),
            Ok(n) => {
                into.extend_from_slice(&buffer[..n]);
                taken += n;
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Puts a program there. Another process writes it: one that a test beside is just starting would have a copy of a descriptor
    /// of ours, and what is open for writing cannot be run.
    fn put_program(path: &Path, text: &str) {
        let mut writer = Command::new("sh")
            .args(["-c", r#"cat > "$0" && chmod 755 "$0""#])
            .arg(path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        writer.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(writer.wait().unwrap().success());
    }

    fn call(script: &str, timeout: Duration) -> Result<Value> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plugin");
        put_program(&path, &format!("#!/bin/sh\n{script}\n"));
        let config = json!({"name": "n", "filler": "x".repeat(200_000)});
        let environment = vec![("CNI_IFNAME", "eth0".to_owned())];
        let bin_dirs = [PathBuf::from("/nonexistent"), dir.path().to_owned()];
        let call = Call {
            plugin: "plugin",
            command: "ADD",
            bin_dirs: &bin_dirs,
            environment,
            config: &config,
            timeout,
        };
        call.run()
    }

    /// More than a loaded machine needs.
    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_plugin_gets_its_request_and_only_the_environment_that_is_meant() {
        let given = call(r#"n=$(wc -c); e=$(env | cut -d= -f1 | sort | tr '\n' ' '); echo "{\"n\": $n, \"c\": \"$CNI_COMMAND\", \"e\": \"$e\"}""#, LONG).unwrap();
        assert_eq!(given["n"], 200_000 + 24);
        assert_eq!(given["c"], "ADD");
        let names: Vec<_> = given["e"]
            .as_str()
            .unwrap()
            .split_whitespace()
            .filter(|n| !matches!(*n, "PWD" | "_" | "OLDPWD" | "SHLVL"))
            .collect();
        assert_eq!(names, ["CNI_COMMAND", "CNI_IFNAME", "CNI_PATH", "PATH"]);
    }

    #[test]
    fn what_a_failing_plugin_says_is_told() {
        let cases = [
            (
                r#"echo '{"code": 11, "msg": "try later", "details": "busy"}'; exit 1"#,
                "try later: busy",
                Some(11),
            ),
            ("echo '{\"code\": 7, \"msg\": \"no\"}'; exit 1", "no", Some(7)),
            ("echo broken >&2; exit 3", "exit status: 3: broken", None),
            ("kill -9 $$", "signal: 9", None),
        ];
        for (script, said, expected) in cases {
            let e = call(script, LONG).unwrap_err();
            let NetworkError::CniFailed { code, message, .. } = &e else { panic!("{e}") };
            assert!(message.contains(said), "{message}");
            assert_eq!(*code, expected);
        }
        assert!(matches!(call("echo nonsense", LONG), Err(NetworkError::CniResult { .. })));
        assert_eq!(call("true", LONG).unwrap(), Value::Null);
    }

    #[test]
    fn a_plugin_that_hangs_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", pid_file.display());
        // Long enough for the script to come to its end in any case.
        let e = call(&script, Duration::from_secs(5)).unwrap_err();
        assert!(matches!(e, NetworkError::CniTimeout { after_ms: 5000, .. }), "{e}");
        let pid: i32 = std::fs::read_to_string(pid_file).unwrap().trim().parse().unwrap();
        let dead = || match std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) => stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')),
            Err(_) => true,
        };
        let deadline = Instant::now() + Duration::from_secs(60);
        while !dead() {
            assert!(Instant::now() < deadline, "the plugin's child {pid} lives on");
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_child_that_keeps_stdout_open_is_not_waited_for() {
        let started = Instant::now();
        assert_eq!(call("sleep 100 & echo '{}'", LONG).unwrap(), json!({}));
        assert!(started.elapsed() < LONG);
    }

    #[test]
    fn endless_output_is_an_error_and_endless_complaints_are_cut() {
        let e = call("yes", LONG).unwrap_err();
        assert!(matches!(e, NetworkError::CniRun { .. }), "{e}");
        let e = call("yes complaint | head -c 1000000 >&2; exit 1", LONG).unwrap_err();
        assert!(e.to_string().len() < 2 * STDERR_SHOWN_BYTES_MAX, "{}", e.to_string().len());
    }

    #[test]
    fn an_absent_plugin_names_where_it_was_looked_for() {
        let config = json!({});
        let bin_dirs = [PathBuf::from("/nonexistent")];
        let call = Call {
            plugin: "p",
            command: "ADD",
            bin_dirs: &bin_dirs,
            environment: vec![],
            config: &config,
            timeout: LONG,
        };
        let NetworkError::CniRun { source, .. } = call.run().unwrap_err() else { panic!() };
        assert!(source.to_string().contains("/nonexistent"));
    }
}
