//! A machine of our own inside this one: private mount, network, PID, IPC, UTS and cgroup namespaces.
//!
//! ```text
//! crictl-tests test            (outside: makes one cgroup per hierarchy, removes them at the end)
//!   └─ unshare … crictl-tests inside   PID 1: mounts proc, sys, the cgroups, /run; reaps; ends with the driver's code
//!        └─ crictl-tests driver        the tests; every process they start dies with PID 1
//! ```
//! Nothing that a failing test leaves can outlive the run: mounts, addresses, nftables rules and processes end with
//! their namespace, cgroups are removed from outside.
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{WaitOptions, wait};

use crate::command::{output, run};
use crate::eventually::{Seconds, eventually};

/// Name of our cgroups in each hierarchy; the process id of the run follows.
const CGROUP_PREFIX: &str = "crictl-tests-";

/// A cgroup hierarchy of this machine.
#[derive(Clone, Debug)]
struct Hierarchy {
    mount_point: PathBuf,
    /// `memory`, `cpu,cpuacct`, `none,name=systemd`; empty for version 2.
    options: String,
}

/// Runs this program again with these arguments in namespaces of its own; gives back its exit code.
///
/// # Errors
/// When the caller is not root, or a cgroup cannot be made.
pub fn run_inside(arguments: &[String]) -> Result<i32> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "root is required: the tests make namespaces, mounts and cgroups"
    );
    let hierarchies = hierarchies(&fs::read_to_string("/proc/self/mountinfo")?);
    remove_stale(&hierarchies);
    let name = format!("{CGROUP_PREFIX}{}", std::process::id());
    let cgroups: Vec<PathBuf> =
        hierarchies.iter().map(|hierarchy| hierarchy.mount_point.join(&name)).collect();
    for cgroup in &cgroups {
        make_cgroup(cgroup)?;
    }
    // The child joins the cgroups itself, so that this process stays where it was.
    let join = "for cgroup; do [ \"$cgroup\" = -- ] && break; echo $$ >\"$cgroup/cgroup.procs\" || exit 125; shift; done; shift; exec \"$@\"";
    let status = Command::new("sh")
        .args(["-c", join, "sh"])
        .args(&cgroups)
        .arg("--")
        .args([
            // A run that is killed takes everything with it.
            "setpriv",
            "--pdeathsig",
            "KILL",
            "--",
            "unshare",
            "--mount",
            "--net",
            "--pid",
            "--ipc",
            "--uts",
            "--cgroup",
            "--fork",
            "--kill-child",
        ])
        .args(["--propagation", "private", "--"])
        .arg(std::env::current_exe()?)
        .args(["inside", "--"])
        .args(arguments)
        .status()
        .context("start unshare")?;
    for cgroup in &cgroups {
        remove_cgroup(cgroup);
    }
    Ok(status.code().unwrap_or(125))
}

/// PID 1 of the namespaces: sets them up, runs the driver, reaps.
///
/// # Errors
/// When a mount is refused.
pub fn inside(arguments: &[String]) -> Result<i32> {
    let hierarchies = hierarchies(&fs::read_to_string("/proc/self/mountinfo")?);
    mount(&["-t", "proc", "proc", "/proc"])?;
    mount_cgroups(&hierarchies)?;
    mount(&["-t", "tmpfs", "-o", "mode=755", "crictl-tests", "/run"])?;
    fs::create_dir_all("/run/tmp")?;
    run(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    let mut command = Command::new(std::env::current_exe()?);
    let driver = command
        .args(["driver", "--"])
        .args(arguments)
        .env("RUST_LIB_BACKTRACE", "0")
        .env("TMPDIR", "/run/tmp")
        .spawn()?
        .id();
    loop {
        // Everything whose parent ended comes to us; only the driver's end matters.
        let Some((pid, status)) = wait(WaitOptions::empty())? else { bail!("no child is left") };
        if pid.as_raw_nonzero().get().unsigned_abs() == driver {
            return Ok(status.exit_status().unwrap_or(125));
        }
    }
}

fn mount(arguments: &[&str]) -> Result<()> {
    run(Command::new("mount").args(arguments)).map(drop)
}

/// Mounts sysfs and each hierarchy anew, so that they show our network and begin at our cgroup.
fn mount_cgroups(hierarchies: &[Hierarchy]) -> Result<()> {
    mount(&["-t", "sysfs", "sysfs", "/sys"])?;
    if let [only] = hierarchies
        && only.options.is_empty()
    {
        mount(&["-t", "cgroup2", "cgroup2", "/sys/fs/cgroup"])?;
        return delegate(Path::new("/sys/fs/cgroup"));
    }
    mount(&["-t", "tmpfs", "-o", "mode=755", "cgroup", "/sys/fs/cgroup"])?;
    for hierarchy in hierarchies {
        fs::create_dir_all(&hierarchy.mount_point)?;
        let target = hierarchy.mount_point.display().to_string();
        if hierarchy.options.is_empty() {
            mount(&["-t", "cgroup2", "cgroup2", &target])?;
        } else {
            mount(&["-t", "cgroup", "-o", &hierarchy.options, "cgroup", &target])?;
        }
    }
    Ok(())
}

/// Version 2 allows controllers below a cgroup only when it holds no process: ours goes one down.
fn delegate(root: &Path) -> Result<()> {
    let own = root.join("runner");
    fs::create_dir_all(&own)?;
    fs::write(own.join("cgroup.procs"), "0")?;
    for controller in fs::read_to_string(root.join("cgroup.controllers"))?.split_whitespace() {
        fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"))?;
    }
    Ok(())
}

/// The cgroup hierarchies in a mountinfo.
fn hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((mount, file_system)) = line.split_once(" - ") else { continue };
        let (Some(point), mut fields) = (mount.split(' ').nth(4), file_system.split(' ')) else { continue };
        let (kind, options) = (fields.next().unwrap_or_default(), fields.nth(1).unwrap_or_default());
        let options = match kind {
            "cgroup2" => String::new(),
            "cgroup" => controllers(options),
            _ => continue,
        };
        if !found.iter().any(|known| known.mount_point == Path::new(point)) {
            found.push(Hierarchy { mount_point: point.into(), options });
        }
    }
    found
}

/// Of the super block's options those that name the hierarchy.
fn controllers(options: &str) -> String {
    const OTHERS: [&str; 6] = ["rw", "ro", "xattr", "clone_children", "noprefix", "cpuset_v2_mode"];
    let kept: Vec<&str> = options
        .split(',')
        .filter(|option| !OTHERS.contains(option) && !option.starts_with("release_agent"))
        .collect();
    if kept.iter().all(|option| option.starts_with("name=")) {
        format!("none,{}", kept.join(","))
    } else {
        kept.join(",")
    }
}

fn make_cgroup(path: &Path) -> Result<()> {
    fs::create_dir(path).with_context(|| format!("make cgroup {}", path.display()))?;
    // A new cpuset is empty and takes no process until it has what its parent has.
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let parent = path.parent().unwrap_or(path).join(file);
        if let Ok(value) = fs::read_to_string(&parent) {
            fs::write(path.join(file), value.trim()).with_context(|| format!("copy {}", parent.display()))?;
        }
    }
    Ok(())
}

/// Removes the cgroup and all below, deepest first; waits for the last processes to leave.
fn remove_cgroup(path: &Path) {
    let removed = eventually(Seconds(5), || {
        for folder in output(Command::new("find").arg(path).args(["-depth", "-type", "d"]))?.lines() {
            drop(fs::remove_dir(folder));
        }
        ensure!(!path.exists(), "{} is still in use", path.display());
        Ok(())
    });
    if let Err(error) = removed {
        drop(writeln!(std::io::stderr(), "{error:#}"));
    }
}

/// Cgroups of runs that were killed; those of live runs hold processes and stay.
fn remove_stale(hierarchies: &[Hierarchy]) {
    let own = std::process::id().to_string();
    for hierarchy in hierarchies {
        let Ok(entries) = fs::read_dir(&hierarchy.mount_point) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let Some(pid) = name.strip_prefix(CGROUP_PREFIX) else { continue };
            // One with our own process id is not ours: it is not made yet.
            if pid == own || !Path::new("/proc").join(pid).exists() {
                remove_cgroup(&entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_a_hybrid_host() {
        let text = "31 23 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755\n\
            32 31 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            33 31 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
            34 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
            35 31 0:30 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset,clone_children\n";
        let found: Vec<(String, String)> =
            hierarchies(text).into_iter().map(|h| (h.mount_point.display().to_string(), h.options)).collect();
        let expected = [
            ("/sys/fs/cgroup/unified", ""),
            ("/sys/fs/cgroup/systemd", "none,name=systemd"),
            ("/sys/fs/cgroup/cpu,cpuacct", "cpu,cpuacct"),
            ("/sys/fs/cgroup/cpuset", "cpuset"),
        ];
        let expected: Vec<(String, String)> =
            expected.iter().map(|(point, options)| ((*point).to_owned(), (*options).to_owned())).collect();
        assert_eq!(found, expected);
    }
}
