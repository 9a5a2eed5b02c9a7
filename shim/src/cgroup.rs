//! What a shim does with cgroups that the daemon made: entering them, telling OOM kills, killing an exec's tree.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crisp_proto::supervisor as pb;
use rustix::fs::{Mode, OFlags};

use crate::error::{Result, Step as _};

/// Longest cgroup file that is read whole.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Puts the calling process into its v1 cgroups by writing `0`: no lock of the whole system, unlike `cgroup.procs`.
pub(crate) fn join(cgroup: &pb::Cgroup) -> Result<()> {
    for tasks in &cgroup.v1_tasks {
        std::fs::write(tasks, "0").step(|| format!("join the cgroup of {tasks}"))?;
    }
    Ok(())
}

/// The v2 directory for `CLONE_INTO_CGROUP`, when there is one.
pub(crate) fn birth_directory(cgroup: &pb::Cgroup) -> Result<Option<File>> {
    if cgroup.v2_dir.is_empty() {
        return Ok(None);
    }
    open_directory(Path::new(&cgroup.v2_dir)).map(Some).step(|| format!("open the cgroup {}", cgroup.v2_dir))
}

fn open_directory(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

/// How often the kernel killed for lack of memory in this cgroup; 0 when it cannot be read.
///
/// The v1 file `memory.oom_control` and the v2 file `memory.events` both have a line `oom_kill <count>`.
pub(crate) fn oom_kills(oom_file: &str) -> u64 {
    if oom_file.is_empty() {
        return 0;
    }
    std::fs::read_to_string(oom_file).ok().and_then(|text| parse_oom_kills(&text)).unwrap_or(0)
}

fn parse_oom_kills(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

/// The processes of a container's cgroup.
pub(crate) fn members(cgroup: &pb::Cgroup) -> Result<Vec<i32>> {
    let v1 = cgroup.v1_tasks.first().map(Path::new).and_then(Path::parent);
    let v2 = (!cgroup.v2_dir.is_empty()).then(|| Path::new(&cgroup.v2_dir));
    let Some(dir) = v2.or(v1) else { return Ok(Vec::new()) };
    let text = read_bounded(&dir.join("cgroup.procs")).step(|| format!("list {}", dir.display()))?;
    // 0 stands for a process of another PID namespace.
    Ok(text.lines().filter_map(|line| line.parse().ok()).filter(|&pid| pid > 0).collect())
}

/// A sub-cgroup that holds one exec and all that it starts, so that it can be killed whole.
#[derive(Debug)]
pub(crate) struct ExecGroup {
    dir: PathBuf,
    version: Version,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    /// In one hierarchy, the freezer's where there is one.
    V1 {
        freezer: bool,
    },
    V2,
}

impl ExecGroup {
    /// Makes `exec-<id>` below the container's cgroup and changes `cgroup` so that a process enters it.
    ///
    /// `None` when the request names no cgroup.
    pub(crate) fn create(cgroup: &mut pb::Cgroup, exec_id: &str) -> Result<Option<Self>> {
        let name = format!("exec-{exec_id}");
        let group = if cgroup.v2_dir.is_empty() {
            let is_freezer = |tasks: &&mut String| tasks.contains("/freezer/");
            let freezer = cgroup.v1_tasks.iter().any(|tasks| tasks.contains("/freezer/"));
            let mut tasks = cgroup.v1_tasks.iter_mut();
            let chosen = if freezer { tasks.find(is_freezer) } else { tasks.next_back() };
            let Some(tasks) = chosen else { return Ok(None) };
            let Some(parent) = Path::new(tasks.as_str()).parent() else { return Ok(None) };
            let dir = parent.join(&name);
            *tasks = dir.join("tasks").to_string_lossy().into_owned();
            Self { dir, version: Version::V1 { freezer } }
        } else {
            let dir = Path::new(&cgroup.v2_dir).join(&name);
            cgroup.v2_dir = dir.to_string_lossy().into_owned();
            Self { dir, version: Version::V2 }
        };
        std::fs::create_dir(&group.dir).step(|| format!("make the cgroup {}", group.dir.display()))?;
        Ok(Some(group))
    }

    /// Moves a process that runs already, and what it has started meanwhile, into the group.
    ///
    /// What it started and left (a daemon's double fork) before this is not found.
    pub(crate) fn adopt(&self, pid: i32) -> io::Result<()> {
        std::fs::write(self.dir.join("cgroup.procs"), pid.to_string())?;
        let Some(container) = self.dir.parent() else { return Ok(()) };
        // Children of a process inside are inside too from now on; the ones from before are moved until none is found.
        loop {
            let inside = self.processes();
            let outside = read_bounded(&container.join("cgroup.procs"))?;
            let strays = outside.lines().filter_map(|line| line.parse::<i32>().ok());
            let strays: Vec<_> =
                strays.filter(|&pid| parent(pid).is_some_and(|parent| inside.contains(&parent))).collect();
            if strays.is_empty() {
                return Ok(());
            }
            for stray in strays {
                let _gone = std::fs::write(self.dir.join("cgroup.procs"), stray.to_string());
            }
        }
    }

    /// Sends KILL to everything inside. To be repeated until [`Self::is_empty`].
    pub(crate) fn kill(&self) {
        if self.version == Version::V2 && std::fs::write(self.dir.join("cgroup.kill"), "1").is_ok() {
            return;
        }
        // Frozen, nothing inside can fork while the list is read.
        self.freezer_state("FROZEN");
        for pid in self.processes() {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        self.freezer_state("THAWED");
    }

    fn freezer_state(&self, state: &str) {
        if self.version == (Version::V1 { freezer: true }) {
            let _unavailable = std::fs::write(self.dir.join("freezer.state"), state);
        }
    }

    fn processes(&self) -> Vec<i32> {
        let text = read_bounded(&self.dir.join("cgroup.procs")).unwrap_or_default();
        // 0 stands for a process of another PID namespace, which cannot be named here.
        text.lines().filter_map(|line| line.parse().ok()).filter(|&pid| pid > 0).collect()
    }

    /// Nothing runs inside.
    pub(crate) fn is_empty(&self) -> bool {
        self.processes().is_empty()
    }

    /// Removes the group; `false` while something is inside.
    pub(crate) fn remove(&self) -> bool {
        match std::fs::remove_dir(&self.dir) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }
}

/// Field 4 of `/proc/<pid>/stat`, the second one behind the name in brackets.
fn parent(pid: i32) -> Option<i32> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let rest = stat.get(stat.iter().rposition(|&byte| byte == b')')? + 1..)?;
    std::str::from_utf8(rest).ok()?.split_ascii_whitespace().nth(1)?.parse().ok()
}

fn read_bounded(path: &Path) -> io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    File::open(path)?.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oom_kills_are_read_from_both_versions() {
        let v1 = "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n";
        let v2 = "low 0\nhigh 0\nmax 12\noom 2\noom_kill 1\noom_group_kill 0\n";
        assert_eq!(parse_oom_kills(v1), Some(3));
        assert_eq!(parse_oom_kills(v2), Some(1));
        assert_eq!(parse_oom_kills("oom_kill_disable 0\n"), None);
    }
}
