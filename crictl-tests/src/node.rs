//! A daemon in a private root: own folders, socket, bridge, subnet, cgroup.
//!
//! ```text
//! /run/t/<name>/config.toml  crisp.sock  daemon.log
//!              /root  /state  /certs.d  /cni  /bin (plugins of the test)  /logs/<pod>/
//! ```
use std::cell::Cell;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::command::{output, run};
use crate::cri::Cri;
use crate::eventually::{SOON, eventually};
use crate::leaks::{self, Inventory, Scope};
use crate::paths;
use crate::registry::Registry;

/// How long the daemon may take until it serves.
const READY_LIMIT: Duration = Duration::from_secs(90);
/// The image that every node has, and which [`Node::container`] uses.
pub const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-2";

/// What is run and removed before a test, so that what is made once does not count as left behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Warm {
    /// A pod with a container of [`BUSYBOX`], which is pulled.
    #[default]
    Container,
    /// A pod; there are no images.
    Pod,
    /// Nothing.
    Cold,
}

/// How a node differs from the usual one.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What is run before the test.
    pub warm: Warm,
    /// The root folder is a file system of this many bytes.
    pub root_bytes: Option<u64>,
    /// A CNI configuration list put into the node's folder.
    pub cni: Option<String>,
    /// Added to the section `[cni]` of the configuration file.
    pub cni_more: String,
    /// Added to the configuration file.
    pub more: String,
    /// Folder on a disk for what survives a reboot; the memory file system of the run without it.
    pub disk: Option<PathBuf>,
    /// What the daemon logs; `info` when empty.
    pub log: String,
}

/// A running daemon and what surrounds it.
#[derive(Debug)]
pub struct Node {
    /// Calls of the CRI.
    pub cri: Cri,
    name: String,
    dir: PathBuf,
    number: u8,
    daemon: Option<Child>,
    allowed: Vec<u32>,
    baseline: Inventory,
    pods: Cell<u32>,
}

impl Node {
    /// Starts a daemon. `number` chooses bridge and subnet.
    ///
    /// # Errors
    /// When it does not get ready.
    pub fn start(name: &str, number: u8, registry: &Registry, options: &Options) -> Result<Self> {
        let dir = PathBuf::from(format!("/run/t/{number}"));
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        for folder in ["root", "state", "certs.d", "cni", "logs"] {
            fs::create_dir_all(dir.join(folder))?;
        }
        if let Some(disk) = &options.disk {
            fs::create_dir_all(disk)?;
            run(Command::new("mount").arg("--bind").arg(disk).arg(dir.join("root")))?;
        }
        if let Some(bytes) = options.root_bytes {
            let size = format!("size={bytes},mode=700");
            run(Command::new("mount")
                .args(["-t", "tmpfs", "-o", &size, "crictl-tests"])
                .arg(dir.join("root")))?;
        }
        registry.write_hosts(&dir.join("certs.d"))?;
        if let Some(cni) = &options.cni {
            fs::write(dir.join("cni/10-test.conflist"), cni)?;
        }
        fs::write(dir.join("config.toml"), config(&dir, number, options))?;
        let cri = Cri::new(&dir.join("crisp.sock"))?;
        let mut node = Self {
            cri,
            name: name.to_owned(),
            dir,
            number,
            daemon: None,
            allowed: vec![registry.pid()],
            baseline: Inventory::default(),
            pods: Cell::new(0),
        };
        node.start_daemon()?;
        // On a hybrid machine OCI runtimes make the parent in the cgroup2 tree too, where Crisp makes nothing.
        let unified = Path::new("/sys/fs/cgroup/unified");
        if unified.join("cgroup.procs").exists() {
            fs::create_dir_all(unified.join(format!("crisp{number}")))?;
        }
        // The bridge, cgroups of the runtime: what is made once and stays must not count as left behind.
        if options.warm != Warm::Cold {
            node.run(node.pod("warm-up"))?;
            node.remove_all()?;
        }
        if options.warm == Warm::Container {
            node.warm_up()?;
        }
        node.baseline = Inventory::take(&node.scope())?;
        Ok(node)
    }

    /// The same for containers.
    fn warm_up(&self) -> Result<()> {
        self.cri.pull(BUSYBOX).context("pull the first image")?;
        let (_, container) = self.one("warm-up", &["sleep", "1000"])?;
        self.cri.exec(&container, &["true"])?;
        self.remove_all()
    }

    /// Name of the test that uses it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder of the node.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.dir.join("crisp.sock")
    }

    /// Name of its bridge.
    #[must_use]
    pub fn bridge(&self) -> String {
        format!("ct{}", self.number)
    }

    /// Process id of the daemon.
    ///
    /// # Errors
    /// When it does not run.
    pub fn daemon_pid(&self) -> Result<u32> {
        self.daemon.as_ref().map(Child::id).context("the daemon does not run")
    }

    /// Starts the daemon and waits for its line.
    ///
    /// # Errors
    /// When it ends or says nothing.
    pub fn start_daemon(&mut self) -> Result<()> {
        let program = paths::binaries().join("crisp");
        let log = fs::File::options().create(true).append(true).open(self.log_path())?;
        let mut child = Command::new(&program)
            .arg("serve")
            .arg("--config")
            .arg(self.dir.join("config.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let stdout = child.stdout.take().context("stdout of the daemon")?;
        self.daemon = Some(child);
        let (send, receive) = mpsc::sync_channel(1);
        std::thread::spawn(move || {
            let mut reader = BufReader::new(stdout);
            let mut line = String::new();
            let read = reader.read_line(&mut line).map(|_| line);
            drop(send.send(read));
            // Whatever else it prints is taken, so that it never waits for a reader.
            drop(std::io::copy(&mut reader, &mut std::io::sink()));
        });
        let line = receive.recv_timeout(READY_LIMIT).context("the daemon says nothing on stdout")??;
        ensure!(!line.is_empty(), "the daemon ended at once: {}", self.log_tail());
        Ok(())
    }

    /// Sends a signal to the daemon and waits for its end.
    ///
    /// # Errors
    /// When it does not end soon.
    pub fn signal_daemon(&mut self, signal: Signal) -> Result<ExitStatus> {
        let mut child = self.daemon.take().context("the daemon does not run")?;
        kill_process(Pid::from_child(&child), signal)?;
        let ended = eventually(SOON, || child.try_wait()?.context("the daemon still runs"));
        if ended.is_err() {
            child.kill()?;
            child.wait()?;
        }
        ended
    }

    /// The file that holds what the daemon said.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.dir.join("daemon.log")
    }

    /// The end of the daemon's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        const LINES: usize = 60;
        let text = fs::read(self.log_path()).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }

    /// `crictl` on this node: what it printed on stdout.
    ///
    /// # Errors
    /// When it ends with another code than 0.
    pub fn crictl(&self, arguments: &[&str]) -> Result<String> {
        output(&mut self.crictl_command(arguments))
    }

    /// `crictl`, expected to print JSON.
    ///
    /// # Errors
    /// When it fails or prints something else.
    pub fn crictl_json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.crictl(arguments)?;
        serde_json::from_str(&text).with_context(|| format!("crictl {arguments:?} printed {text}"))
    }

    /// `crictl` that must fail: what it printed on stderr.
    ///
    /// # Errors
    /// When it succeeds.
    pub fn crictl_fails(&self, arguments: &[&str]) -> Result<String> {
        let done = self.crictl_command(arguments).output()?;
        ensure!(
            !done.status.success(),
            "crictl {arguments:?} succeeded: {}",
            String::from_utf8_lossy(&done.stdout)
        );
        Ok(String::from_utf8_lossy(&done.stderr).into_owned())
    }

    /// `crictl` on this node, not started yet.
    #[must_use]
    pub fn crictl_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(paths::tools().join("crictl"));
        let endpoint = format!("unix://{}", self.socket().display());
        command.args(["--config", "/dev/null", "--timeout", "180s", "--runtime-endpoint", &endpoint]);
        command.args(["--image-endpoint", &endpoint]).args(arguments);
        command
    }

    /// The `crisp` command as a client of this node: what it printed on stdout.
    ///
    /// # Errors
    /// When it ends with another code than 0.
    pub fn crisp(&self, arguments: &[&str]) -> Result<String> {
        output(
            Command::new(paths::binaries().join("crisp")).args(arguments).env("CRISP_ADDRESS", self.socket()),
        )
    }

    /// Writes a file for a client.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write_json(&self, name: &str, value: &Value) -> Result<String> {
        let path = self.dir.join(name);
        fs::write(&path, serde_json::to_vec_pretty(value)?)?;
        Ok(path.display().to_string())
    }

    /// A number that no other pod of this node has.
    pub fn next_number(&self) -> u32 {
        self.pods.set(self.pods.get() + 1);
        self.pods.get()
    }

    /// Stops and removes every pod.
    ///
    /// # Errors
    /// The first status that is not a success.
    pub fn remove_all(&self) -> Result<()> {
        for pod in self.cri.pods()? {
            self.cri.stop_pod(&pod.id).with_context(|| format!("stop pod {}", pod.id))?;
            self.cri.remove_pod(&pod.id).with_context(|| format!("remove pod {}", pod.id))?;
        }
        Ok(())
    }

    fn scope(&self) -> Scope {
        let folders = ["state", "root/containers", "root/network"].map(|name| self.dir.join(name)).to_vec();
        Scope {
            folders,
            processes: self.allowed.iter().copied().chain(self.daemon.as_ref().map(Child::id)).collect(),
            daemon: self.daemon.as_ref().map(Child::id),
        }
    }

    /// Processes that belong to the test, not to the node.
    pub fn allow_process(&mut self, pid: u32) {
        self.allowed.push(pid);
    }

    /// Takes what is there now as what may be there.
    ///
    /// # Errors
    /// As [`Inventory::take`].
    pub fn rebase(&mut self) -> Result<()> {
        self.baseline = Inventory::take(&self.scope())?;
        Ok(())
    }

    /// Nothing of a pod is left: processes, mounts, namespaces, cgroups, files, addresses, rules.
    ///
    /// # Errors
    /// Names what is left.
    pub fn check_leaks(&self) -> Result<()> {
        leaks::check(&self.scope(), &self.baseline)
    }

    /// The end of a test that went well: removes every pod, looks for leaks, ends the daemon.
    ///
    /// # Errors
    /// Names what is left or what failed.
    pub fn finish(&mut self) -> Result<()> {
        if self.daemon.is_none() {
            self.start_daemon()?;
        }
        self.remove_all()?;
        self.check_leaks()?;
        let status = self.signal_daemon(Signal::TERM)?;
        ensure!(status.success(), "SIGTERM ended the daemon with {status}");
        // What it had started itself ends a moment after it.
        self.check_leaks().context("after the daemon's end")
    }

    /// Copies the daemon's log to the reports of failed tests.
    pub fn keep_log(&self) {
        drop(fs::create_dir_all(paths::reports()));
        let name = self.name.replace("::", "-");
        drop(fs::copy(self.log_path(), paths::reports().join(format!("failed-{name}.log"))));
    }

    /// Removes whatever is there, for the next test.
    pub fn wipe(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            drop(child.kill());
            drop(child.wait());
        }
        if let Err(error) = self.wipe_machine() {
            drop(writeln!(std::io::stderr(), "cleaning up after {}: {error:#}", self.name));
        }
    }

    fn wipe_machine(&self) -> Result<()> {
        eventually(SOON, || {
            let left = strangers(&self.scope())?;
            for pid in &left {
                if let Some(pid) = Pid::from_raw(*pid) {
                    // It may have ended just now; the next look tells.
                    kill_process(pid, Signal::KILL).ok();
                }
            }
            ensure!(left.is_empty(), "processes {left:?} do not end");
            Ok(())
        })?;
        let prefix = format!("{}/", self.dir.display());
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        for point in mounts.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
            if point.starts_with(&prefix) {
                run(Command::new("umount").args(["-l", point]))?;
            }
        }
        drop(run(Command::new("ip").args(["link", "del", &self.bridge()])));
        // The table of the built-in network is named after the bridge; plugins have tables of their own.
        for table in output(Command::new("nft").args(["list", "tables"]))?.lines() {
            if table.contains(&self.bridge()) || self.dir.join("cni/10-test.conflist").exists() {
                run(Command::new("nft").arg("delete").args(table.split_whitespace()))?;
            }
        }
        drop(run(Command::new("find").args([
            "/sys/fs/cgroup",
            "-depth",
            "-type",
            "d",
            "-path",
            &format!("*/crisp{}*", self.number),
            "-exec",
            "rmdir",
            "{}",
            ";",
        ])));
        fs::remove_dir_all(&self.dir)?;
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.wipe();
    }
}

/// Processes that are neither ours nor the registry's.
fn strangers(scope: &Scope) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
        if pid != 1 && pid != std::process::id() && !scope.processes.contains(&pid) {
            found.push(i32::try_from(pid)?);
        }
    }
    Ok(found)
}

fn config(dir: &Path, number: u8, options: &Options) -> String {
    let dir = dir.display();
    let log = if options.log.is_empty() { "info" } else { &options.log };
    format!(
        "listen = \"{dir}/crisp.sock\"\nroot = \"{dir}/root\"\nstate = \"{dir}/state\"\nlog = \"{log}\"\n\
         cgroup_parent = \"/crisp{number}\"\n\n[cni]\nconf_dir = \"{dir}/cni\"\nbin_dirs = [\"/usr/lib/cni\", \"{dir}/bin\"]\n{}\n\n\
         [registry]\nconfig_path = [\"{dir}/certs.d\"]\n\n\
         [network]\nbridge = \"ct{number}\"\nsubnet = \"10.77.{number}.0/24\"\n{}\n",
        options.cni_more, options.more
    )
}

/// Fails with the text unless the two are the same.
///
/// # Errors
/// When they differ; both are shown.
pub fn same<T: PartialEq + std::fmt::Debug>(what: &str, seen: &T, expected: &T) -> Result<()> {
    if seen != expected {
        bail!("{what}: {seen:?}, not {expected:?}");
    }
    Ok(())
}
