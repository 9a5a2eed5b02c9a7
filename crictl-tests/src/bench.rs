//! Times and memory as a client sees them. Printed, never judged: a test that measures time fails on a busy machine.
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use crisp_proto::cri;

use crate::cri::Cri;
use crate::eventually::pause;
use crate::node::{Node, Options};
use crate::objects::Pod;
use crate::registry::Registry;
use crate::say;
use crate::suite::REGISTRY_PORT;

mod listener;
mod polling;
mod streams;

const PODS: usize = 40;
const EXECS: usize = 200;
const CLIENTS: usize = 10;
const PODS_AT_ONCE: usize = 50;
const PODS_FOR_MEMORY: usize = 20;
/// As on a real node, where pods do not start back to back.
const PAUSE: Duration = Duration::from_millis(100);

/// Runs the benchmark and prints its tables; `disk` is a folder for what survives a reboot.
///
/// # Errors
/// When a call fails.
pub fn run(disk: Option<&Path>, extent: Extent) -> Result<()> {
    let registry = Registry::start(Path::new("/run/registry"), REGISTRY_PORT)?;
    // What a node has on: plugins may register, and somebody listens to the events.
    let more = "[nri]\nenabled = true\nsocket = \"/run/t/1/nri.sock\"\n".to_owned();
    let options = Options { disk: disk.map(Path::to_owned), log: "warn".into(), more, ..Options::default() };
    let mut node = Node::start("bench", 1, &registry, &options)?;
    if extent == Extent::Streams {
        streams::run(&node)?;
        return node.finish();
    }
    let listener = listener::Listener::start(&node.socket())?;
    let (paused, hurried) = (("with pauses", PAUSE), ("back to back", Duration::ZERO));
    let cases = [("crisp", paused), ("crisp", hurried), ("crun", hurried), ("runc", hurried)];
    let count = if extent == Extent::Short { 1 } else { cases.len() };
    for (handler, (text, pause)) in cases.into_iter().take(count) {
        lifecycle(&node, handler, pause).with_context(|| format!("handler {handler}"))?.print(handler, text);
    }
    execs(&node)?;
    at_once(&node)?;
    memory(&node)?;
    polling::run(&node, extent)?;
    if extent == Extent::Whole {
        streams::run(&node)?;
    }
    say!("\na listener heard {} events meanwhile", listener.heard());
    drop(listener);
    node.finish()
}

/// How much is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Extent {
    /// Everything.
    Whole,
    /// The built-in handler's pods, execs, memory, lists: a minute.
    Short,
    /// What exec, attach and port-forward carry.
    Streams,
}

/// Durations by stage.
#[derive(Default)]
struct Stages(Vec<(&'static str, Vec<Duration>)>);

impl Stages {
    fn add(&mut self, stage: &'static str, took: Duration) {
        match self.0.iter_mut().find(|(name, _)| *name == stage) {
            Some((_, times)) => times.push(took),
            None => self.0.push((stage, vec![took])),
        }
    }

    fn time<T>(&mut self, stage: &'static str, work: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let value = work();
        self.add(stage, began.elapsed());
        value
    }

    fn print(&self, handler: &str, text: &str) {
        say!(
            "\nhandler {handler}, {PODS} pods {text} (ms)\n{:<28}{:>9}{:>9}{:>9}",
            "stage",
            "p50",
            "p95",
            "max"
        );
        for (stage, times) in &self.0 {
            let [middle, high, most] = [50, 95, 100].map(|percent| millis(percentile(times, percent)));
            say!("{stage:<28}{middle:>9.2}{high:>9.2}{most:>9.2}");
        }
    }
}

fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(at).copied().unwrap_or_default()
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn lifecycle(node: &Node, handler: &str, between: Duration) -> Result<Stages> {
    let mut stages = Stages::default();
    for number in 0..PODS {
        pause(between);
        let config = node.pod(&format!("b{number}"));
        let container = node.container("c", &["sleep", "1000"]);
        let began = Instant::now();
        let id = stages.time("RunPodSandbox", || node.cri.run_pod(&config, handler))?;
        let created = stages.time("CreateContainer", || node.cri.create(&id, &container, &config))?;
        stages.time("StartContainer", || node.cri.start(&created))?;
        stages.add("pod up", began.elapsed());
        pause(between);
        stages.time("StopContainer (kill)", || node.cri.stop(&created, 0))?;
        stages.time("RemoveContainer", || node.cri.remove(&created))?;
        stages.time("StopPodSandbox", || node.cri.stop_pod(&id))?;
        stages.time("RemovePodSandbox", || node.cri.remove_pod(&id))?;
    }
    Ok(stages)
}

fn execs(node: &Node) -> Result<()> {
    let (_, id) = node.one("exec", &["sleep", "1000"])?;
    let mut stages = Stages::default();
    for _ in 0..EXECS {
        stages.time("ExecSync true", || node.cri.exec(&id, &["true"]))?;
    }
    stages.print("crisp", "(one pod, many execs)");
    node.remove_all()
}

/// Several clients with a connection each bring up pods, all at once.
fn at_once(node: &Node) -> Result<()> {
    let configs: Vec<cri::PodSandboxConfig> = (0..PODS_AT_ONCE).map(|n| node.pod(&format!("m{n}"))).collect();
    let container = node.container("c", &["sleep", "1000"]);
    let socket = node.socket();
    let began = Instant::now();
    std::thread::scope(|scope| {
        let (socket, container) = (&socket, &container);
        let clients: Vec<_> = configs
            .chunks(PODS_AT_ONCE / CLIENTS)
            .map(|share| scope.spawn(move || bring_up(&Cri::new(socket)?, share, container)))
            .collect();
        clients
            .into_iter()
            .try_for_each(|client| client.join().unwrap_or_else(|_| anyhow::bail!("a client panicked")))
    })?;
    let took = began.elapsed();
    say!(
        "\n{CLIENTS} clients, {PODS_AT_ONCE} pods: {:.0} ms, {:.1} pods/s",
        millis(took),
        f64::from(50_u8) / took.as_secs_f64()
    );
    node.remove_all()
}

fn bring_up(cri: &Cri, configs: &[cri::PodSandboxConfig], container: &cri::ContainerConfig) -> Result<()> {
    for config in configs {
        let pod = cri.run_pod(config, "")?;
        let id = cri.create(&pod, container, config)?;
        cri.start(&id)?;
    }
    Ok(())
}

fn memory(node: &Node) -> Result<()> {
    for number in 0..PODS_FOR_MEMORY {
        let pod: Pod = node.run(node.pod(&format!("p{number}")))?;
        node.launch(&pod, &node.container("c", &["sleep", "1000"]))?;
    }
    // What the starts themselves needed is given back a moment later.
    pause(Duration::from_secs(2));
    let shims: Vec<(u64, u64)> = shims()
        .iter()
        .map(|pid| {
            let process = Path::new("/proc").join(pid.to_string());
            Ok((kib(&process, "Pss:")?, kib(&process, "Private_Dirty:")?))
        })
        .collect::<Result<_>>()?;
    let count = shims.len().max(1) as u64;
    let (pss, dirty) = shims.iter().fold((0, 0), |(pss, dirty), shim| (pss + shim.0, dirty + shim.1));
    let daemon = format!("/proc/{}", node.daemon_pid()?);
    say!("\nmemory with {PODS_FOR_MEMORY} pods of one container");
    say!(
        "{} shims: PSS {} KiB each on average, {} KiB private dirty",
        shims.len(),
        pss / count,
        dirty / count
    );
    say!("daemon: PSS {} KiB", kib(Path::new(&daemon), "Pss:")?);
    node.remove_all()
}

/// Process ids of the shims.
fn shims() -> Vec<u32> {
    let is_shim = |process: &Path| {
        let command = fs::read(process.join("cmdline")).unwrap_or_default();
        let exe = fs::read_link(process.join("exe")).unwrap_or_default();
        String::from_utf8_lossy(&command).contains("crisp-shim")
            || exe.to_string_lossy().contains("crisp-shim")
    };
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let processes = entries.flatten().filter(|entry| is_shim(&entry.path()));
    processes.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok()).collect()
}

/// A line of `smaps_rollup` in KiB.
fn kib(process: &Path, key: &str) -> Result<u64> {
    let text = fs::read_to_string(process.join("smaps_rollup"))?;
    let line =
        text.lines().find(|line| line.starts_with(key)).with_context(|| format!("{key} in smaps_rollup"))?;
    Ok(line.split_whitespace().nth(1).unwrap_or("0").parse()?)
}
