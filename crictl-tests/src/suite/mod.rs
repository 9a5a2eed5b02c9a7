//! The tests, by what they look at.
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::node::{Node, Options};
use crate::registry::Registry;
use crate::say;

mod cdi;
mod cli;
mod container;
mod crictl;
mod events;
mod exec;
mod faults;
mod handlers;
mod image;
mod layers;
mod metrics;
mod mounts;
mod neighbours;
mod network;
mod nri;
mod pod;
mod races;
mod replay;
mod restart;
mod stats;
pub(crate) mod streaming;
mod userns;

/// Port of the registry inside the namespaces.
pub const REGISTRY_PORT: u16 = 5000;

/// One test: what the node is like, and what is done with it.
#[derive(Clone, Copy, Debug)]
pub struct Test {
    /// Named for the behaviour.
    pub name: &'static str,
    /// How the node differs from the usual one.
    pub options: fn() -> Options,
    /// The test itself; pods that it leaves are removed and then nothing may be left.
    pub body: fn(&mut Node, &mut Registry) -> Result<()>,
}

/// A list of tests on usual nodes, named after their functions.
macro_rules! tests {
    ($($(#[options($options:expr)])? $name:ident),* $(,)?) => {
        /// The tests of this module.
        pub(crate) const TESTS: &[$crate::suite::Test] = &[$($crate::suite::Test {
            name: stringify!($name),
            options: $crate::suite::tests!(@options $($options)?),
            body: $name,
        }),*];
    };
    (@options) => { $crate::node::Options::default };
    (@options $options:expr) => { $options };
}
pub(crate) use tests;

fn all() -> Vec<(&'static str, &'static Test)> {
    let modules: &[(&str, &[Test])] = &[
        ("crictl", crictl::TESTS),
        ("cli", cli::TESTS),
        ("pod", pod::TESTS),
        ("container", container::TESTS),
        ("races", races::TESTS),
        ("exec", exec::TESTS),
        ("streaming", streaming::TESTS),
        ("streaming", streaming::forward::TESTS),
        ("streaming", streaming::bad::TESTS),
        ("streaming", streaming::cycles::TESTS),
        ("mounts", mounts::TESTS),
        ("network", network::TESTS),
        ("stats", stats::TESTS),
        ("metrics", metrics::TESTS),
        ("events", events::TESTS),
        ("image", image::TESTS),
        ("layers", layers::TESTS),
        ("handlers", handlers::TESTS),
        ("cdi", cdi::TESTS),
        ("nri", nri::TESTS),
        ("restart", restart::TESTS),
        ("neighbours", neighbours::TESTS),
        ("userns", userns::TESTS),
        ("faults", faults::TESTS),
        ("replay", replay::TESTS),
    ];
    modules.iter().flat_map(|(module, tests)| tests.iter().map(move |test| (*module, test))).collect()
}

/// Runs the tests whose `module::name` contains one of the filters (all without a filter); says what failed and why.
///
/// # Errors
/// When the registry does not start.
pub fn run(filters: &[String]) -> Result<bool> {
    let mut registry = Registry::start(Path::new("/run/registry"), REGISTRY_PORT)?;
    let mut failed = BTreeSet::new();
    let mut passed = 0_u32;
    for (module, test) in all() {
        let name = format!("{module}::{}", test.name);
        if !filters.is_empty() && !filters.iter().any(|filter| name.contains(filter.as_str())) {
            continue;
        }
        let began = Instant::now();
        match run_one(&name, test, &mut registry) {
            Ok(()) => {
                passed += 1;
                say!("test {name} ... ok ({:.1} s)", began.elapsed().as_secs_f64());
            }
            Err(error) => {
                say!("test {name} ... FAILED ({:.1} s)\n{error:?}\n", began.elapsed().as_secs_f64());
                failed.insert(name);
            }
        }
    }
    for name in &failed {
        say!("failed: {name}");
    }
    say!("{passed} passed, {} failed", failed.len());
    Ok(failed.is_empty() && passed > 0)
}

fn run_one(name: &str, test: &Test, registry: &mut Registry) -> Result<()> {
    let mut node = Node::start(name, 1, registry, &(test.options)()).context("start the node")?;
    let done =
        (test.body)(&mut node, registry).and_then(|()| node.finish().context("at the end of the test"));
    if done.is_err() {
        node.keep_log();
    }
    done
}

/// Starts a node and keeps it until standard input ends.
///
/// # Errors
/// When the node does not start.
pub fn wait_here() -> Result<()> {
    let registry = Registry::start(Path::new("/run/registry"), REGISTRY_PORT)?;
    let node = Node::start("node", 1, &registry, &Options::default())?;
    say!(
        "enter with: nsenter -a -t PID, where PID is what `pgrep -f 'crictl-tests inside'` prints last outside"
    );
    say!("crictl --runtime-endpoint unix://{}", node.socket().display());
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}
