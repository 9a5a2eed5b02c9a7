//! Many sessions one after the other: neither memory nor descriptors grow.
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::{descriptors, spoken};
use crate::eventually::{SOON, eventually};
use crate::node::Node;
use crate::registry::Registry;
use crate::suite::tests;
use crate::web::{Client, Message};

tests![attach_and_detach_cost_nothing_that_stays];

/// How many cycles; [`CYCLES_USUAL`] without it.
const CYCLES: &str = "CRICTL_TESTS_CYCLES";
const CYCLES_USUAL: u32 = 2000;
/// Allocators and caches have grown to their size after these.
const WARM_UP: u32 = 300;
const TIME_MAX: Duration = Duration::from_secs(1200);
/// Kept by allocators for a moment, or for good, whatever the number of cycles.
const GROWTH_KIB_MAX: u64 = 2048;

/// What a process holds.
#[derive(Clone, Copy, Debug)]
struct Held {
    descriptors: usize,
    /// Memory of its own; what it maps of files it shares with whoever runs on the machine.
    anonymous_kib: u64,
}

fn held(pid: u32) -> Result<Held> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let own = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).context("Anonymous")?;
    let anonymous_kib = own.split_whitespace().next().context("Anonymous")?.parse()?;
    Ok(Held { descriptors: descriptors(pid)?, anonymous_kib })
}

fn attach_and_detach_cost_nothing_that_stays(node: &mut Node, _: &mut Registry) -> Result<()> {
    let cycles = std::env::var(CYCLES).ok().map_or(Ok(CYCLES_USUAL), |number| number.parse())?;
    let pod = node.run(node.pod("cycles"))?;
    let mut config = node.container("main", &["sh", "-c", "while :; do echo tick; usleep 1000; done"]);
    // Kept nowhere.
    config.log_path = String::new();
    let id = node.launch(&pod, &config)?;
    let processes = [("daemon", node.daemon_pid()?), ("shim", shim()?)];
    let idle = processes.map(|(_, pid)| descriptors(pid));
    (0..WARM_UP).try_for_each(|_| cycle(node, &id))?;
    for ((name, pid), idle) in processes.into_iter().zip(idle) {
        settles(name, pid, idle?)?;
    }
    let before = processes.map(|(_, pid)| held(pid));
    let began = Instant::now();
    let mut done = 0;
    while done < cycles && began.elapsed() < TIME_MAX {
        cycle(node, &id).with_context(|| format!("cycle {done}"))?;
        done += 1;
    }
    crate::say!("  {done} cycles of attach and detach in {:.1} s", began.elapsed().as_secs_f64());
    for ((name, pid), before) in processes.into_iter().zip(before) {
        flat(name, pid, before?)?;
    }
    ensure!(done == cycles, "{done} of {cycles} cycles in {TIME_MAX:?}");
    Ok(())
}

/// Attaches over a WebSocket, hears the container, and goes without a farewell.
fn cycle(node: &Node, id: &str) -> Result<()> {
    let (client, path) = Client::of(&node.cri.listen_url(id)?)?;
    let heard = spoken(&mut client.websocket(&path, "v5.channel.k8s.io")?)?;
    ensure!(matches!(&heard, Message::Binary(text) if text.starts_with(b"\x01")), "heard {heard:?}");
    Ok(())
}

/// Waits until a process has no more descriptors open than when nothing was under way.
fn settles(name: &str, pid: u32, idle: usize) -> Result<()> {
    eventually(SOON, || {
        let now = descriptors(pid)?;
        ensure!(now <= idle, "{name}: {now} descriptors, {idle} when idle");
        Ok(())
    })
}

/// The process holds no more than before, a moment after the last session.
fn flat(name: &str, pid: u32, before: Held) -> Result<()> {
    let after = eventually(SOON, || {
        let now = held(pid)?;
        ensure!(now.descriptors <= before.descriptors, "{name}: {now:?}, before {before:?}");
        ensure!(
            now.anonymous_kib <= before.anonymous_kib + GROWTH_KIB_MAX,
            "{name}: {now:?}, before {before:?}"
        );
        Ok(now)
    })?;
    crate::say!("  {name}: before {before:?}, after {after:?}");
    Ok(())
}

/// The only shim of the node.
fn shim() -> Result<u32> {
    for process in fs::read_dir("/proc")?.flatten() {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&line).contains("crisp-shim") {
            return Ok(process.file_name().to_string_lossy().parse()?);
        }
    }
    anyhow::bail!("no shim runs")
}
