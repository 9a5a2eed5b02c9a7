//! What is on the machine: taken before and after a test, so that whatever stays behind is named.
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::command::output;
use crate::eventually::{SOON, eventually};

/// Everything that a pod can leave behind, one line each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory(BTreeSet<String>);

/// What belongs to the node under test, and what is not looked at.
#[derive(Clone, Debug)]
pub struct Scope {
    /// Folders whose files count.
    pub folders: Vec<std::path::PathBuf>,
    /// Processes that are not the node's: the harness itself, the registry.
    pub processes: Vec<u32>,
    /// Process of the daemon, whose descriptors count.
    pub daemon: Option<u32>,
}

impl Inventory {
    /// Looks at the machine now.
    ///
    /// # Errors
    /// When a program of iproute2 or nftables fails.
    pub fn take(scope: &Scope) -> Result<Self> {
        let mut found = BTreeSet::new();
        processes(scope, &mut found);
        mounts(&mut found)?;
        if let Some(pid) = scope.daemon {
            descriptors(pid, &mut found);
        }
        folders_below(Path::new("/sys/fs/cgroup"), "cgroup", 12, &mut found);
        for folder in &scope.folders {
            files_below(folder, &mut found);
        }
        network(&mut found)?;
        Ok(Self(found))
    }

    /// What is here and was not there.
    #[must_use]
    pub fn beyond(&self, earlier: &Self) -> Vec<String> {
        self.0.difference(&earlier.0).cloned().collect()
    }
}

/// Waits until nothing is left beyond the baseline; teardown may end a moment after the answer.
///
/// # Errors
/// Names what is left.
pub fn check(scope: &Scope, baseline: &Inventory) -> Result<()> {
    eventually(SOON, || {
        let left = Inventory::take(scope)?.beyond(baseline);
        if left.is_empty() {
            return Ok(());
        }
        bail!("left behind:\n  {}", left.join("\n  "))
    })
}

fn processes(scope: &Scope, found: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir("/proc") else { return };
    for entry in entries.flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        if pid == 1 || pid == std::process::id() || scope.processes.contains(&pid) {
            continue;
        }
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let state =
            stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).unwrap_or("?").to_owned();
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let name = String::from_utf8_lossy(&line).replace('\0', " ");
        // A zombie of somebody else's child says so in its state.
        let state = if state == "Z" { " (zombie)" } else { "" };
        found.insert(format!("process {pid}{state} {name}{}", stat.split(' ').nth(1).unwrap_or_default()));
    }
}

fn mounts(found: &mut BTreeSet<String>) -> Result<()> {
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let kind = fields.iter().position(|field| *field == "-").and_then(|at| fields.get(at + 1));
        if let (Some(point), Some(kind)) = (fields.get(4), kind) {
            found.insert(format!("mount {kind} {point}"));
        }
    }
    Ok(())
}

/// Namespaces and removed files that the daemon holds open, and how many pidfds and pipes.
fn descriptors(pid: u32, found: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return };
    let (mut pipes, mut pidfds) = (0_u32, 0_u32);
    for entry in entries.flatten() {
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let target = target.display().to_string();
        if target.starts_with("pipe:") {
            pipes += 1;
            found.insert(format!("pipe {pipes} of the daemon"));
        } else if target.contains("[pidfd]") {
            pidfds += 1;
            found.insert(format!("pidfd {pidfds} of the daemon"));
        } else if target.contains(":[") && !target.starts_with("socket") || target.starts_with('/') {
            found.insert(format!("descriptor of the daemon {target}"));
        }
    }
}

fn folders_below(folder: &Path, kind: &str, depth: u32, found: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if depth > 0 && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.insert(format!("{kind} {}", entry.path().display()));
            folders_below(&entry.path(), kind, depth - 1, found);
        }
    }
}

fn files_below(folder: &Path, found: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    // What a kubelet told of the node is no pod's.
    for entry in entries.flatten().filter(|entry| entry.file_name() != "pod-cidrs.json") {
        found.insert(format!("file {}", entry.path().display()));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            files_below(&entry.path(), found);
        }
    }
}

fn network(found: &mut BTreeSet<String>) -> Result<()> {
    for (kind, arguments) in
        [("link", ["-o", "link"]), ("address", ["-o", "addr"]), ("route", ["route", "show"])]
    {
        for line in output(Command::new("ip").args(arguments))?.lines() {
            // The kernel gives and takes these of a bridge in its own time.
            if !line.contains("inet6 fe80::") {
                found.insert(format!("{kind} {}", stable(kind, line)));
            }
        }
    }
    for line in output(Command::new("nft").args(["list", "ruleset"]))?.lines() {
        let line = line.trim();
        if line.len() > 1 {
            found.insert(format!("nftables {}", without_counters(line)));
        }
    }
    Ok(())
}

/// A rule without what its counter says.
fn without_counters(line: &str) -> String {
    let mut words = line.split_whitespace().peekable();
    let mut kept = Vec::new();
    while let Some(word) = words.next() {
        kept.push(word);
        if ["packets", "bytes"].contains(&word) {
            words.next();
        }
    }
    kept.join(" ")
}

/// The part of a line of `ip` that names the thing: states and addresses of the bridge change with its ports.
fn stable(kind: &str, line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    match kind {
        "link" => words.get(1).map_or("?", |name| name.trim_end_matches(':')).to_owned(),
        "address" => words.iter().skip(1).take(3).copied().collect::<Vec<_>>().join(" "),
        _ => words.iter().filter(|word| **word != "linkdown").copied().collect::<Vec<_>>().join(" "),
    }
}
