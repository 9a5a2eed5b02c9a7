//! Real cgroups for tests, below one top-level cgroup of this test process that is removed in the end.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "each test binary uses a part, and says what was not run"
)]

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crisp_cgroup::{Cgroup, CgroupPath, Cgroups, Version};

/// Longest wait for a condition in a test.
pub const WAIT_MAX: Duration = Duration::from_secs(60);

/// Every layout that this machine offers: its own, and the cgroup2 beside v1 on a hybrid one. Empty without root.
pub fn layouts() -> Vec<Cgroups> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not run: needs root");
        return Vec::new();
    }
    let own = Cgroups::detect().unwrap();
    let beside = (own.version() == Version::V1).then(hybrid).flatten();
    [Some(own), beside].into_iter().flatten().collect()
}

fn hybrid() -> Option<Cgroups> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
    // Without controllers: none is handed down in a tree that is not ours.
    Some(Cgroups::v2_with(&PathBuf::from(line.split(' ').nth(1)?), Vec::new()).unwrap())
}

/// Only the machine's own layout, when it has this controller.
pub fn with(controller: &str) -> Option<Cgroups> {
    let found = layouts().into_iter().find(|cgroups| cgroups.controllers().any(|name| name == controller));
    if found.is_none() {
        eprintln!("not run: needs root and the controller {controller}");
    }
    found
}

const JOINED: &str = "joined";

/// A top-level cgroup that is killed and removed in the end.
pub struct Top {
    pub cgroups: Cgroups,
    pub path: CgroupPath,
}

impl Top {
    pub fn new(cgroups: &Cgroups) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("/crisp-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Self { cgroups: cgroups.clone(), path: CgroupPath::new(&name).unwrap() }
    }

    pub fn at(&self, below: &str) -> CgroupPath {
        CgroupPath::new(&format!("{}/{below}", self.path)).unwrap()
    }

    /// The text of a file of the machine's tree that has `controller` (v2: the only one).
    pub fn read(&self, cgroup: &Cgroup, file: &str) -> String {
        let dir = self.dirs(cgroup).into_iter().find(|dir| dir.join(file).exists());
        std::fs::read_to_string(dir.unwrap_or_else(|| panic!("no {file}")).join(file))
            .unwrap()
            .trim()
            .to_owned()
    }

    pub fn dirs(&self, cgroup: &Cgroup) -> Vec<PathBuf> {
        self.cgroups.mounts().map(|mount| mount.join(&cgroup.path().as_str()[1..])).collect()
    }

    /// A cgroup below another, as a container that manages its own would make it.
    pub fn nested(&self, below: &str) -> Cgroup {
        let cgroup = self.cgroups.open(&self.at(below));
        for dir in self.dirs(&cgroup) {
            std::fs::create_dir_all(&dir).unwrap();
            for file in
                ["cpuset.cpus", "cpuset.mems"].iter().filter(|_| self.cgroups.version() == Version::V1)
            {
                inherit(&dir, file);
            }
        }
        cgroup
    }

    /// Starts a shell that joins the cgroup in every tree, says so, and runs the script. It has joined when this returns.
    pub fn run(&self, cgroup: &Cgroup, script: &str) -> Child {
        let tasks = match cgroup.v2_dir() {
            Some(dir) => vec![dir.join("cgroup.procs")],
            None => cgroup.join_v1_tasks(),
        };
        let joins: String =
            tasks.iter().map(|file| format!("echo 0 > '{}' || exit 99; ", file.display())).collect();
        let script = format!("{joins} echo {JOINED}; {script}");
        let mut child = Command::new("sh")
            .args(["-c", &script])
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        // No byte more: the rest is the script's.
        let mut said = [0; JOINED.len() + 1];
        child.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
        assert_eq!(said[..JOINED.len()], *JOINED.as_bytes());
        child
    }
}

/// v1 only: a cpuset that is empty takes no process.
fn inherit(dir: &Path, file: &str) {
    let Ok(own) = std::fs::read_to_string(dir.join(file)) else { return };
    if own.trim().is_empty() {
        inherit(dir.parent().unwrap(), file);
        let above = std::fs::read_to_string(dir.parent().unwrap().join(file)).unwrap();
        std::fs::OpenOptions::new()
            .write(true)
            .open(dir.join(file))
            .unwrap()
            .write_all(above.as_bytes())
            .unwrap();
    }
}

impl Drop for Top {
    fn drop(&mut self) {
        let top = self.cgroups.open(&self.path);
        top.kill().unwrap();
        top.remove().unwrap();
        assert!(!top.exists());
    }
}

/// Looks at a condition until it holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < WAIT_MAX, "never happened: {what}");
        std::thread::yield_now();
    }
}
