//! `crictl-tests`: prepares and runs the tests from outside.
#![forbid(unsafe_code)]

use anyhow::Result;
use clap::{Parser, Subcommand};
use crictl_tests::{bench, conformance, enter, kubelet, prepare, suite, vm};

mod times;

#[derive(Parser)]
#[command(about = "Tests of the built binaries from outside, over the CRI socket")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install packages, build crictl and critest, make the images; nothing is done twice.
    Prepare,
    /// Run the tests whose `module::name` contains one of these texts; all without one.
    Test {
        /// Parts of names.
        filters: Vec<String>,
    },
    /// Run critest and compare the outcome of each spec with CONFORMANCE.md.
    Critest(conformance::Suite),
    /// Measure times and memory.
    Bench {
        /// Folder on a disk for state that survives a reboot; memory without it.
        #[arg(long)]
        dir: Option<std::path::PathBuf>,
        /// How much is measured.
        #[arg(long, value_enum, default_value = "whole")]
        extent: bench::Extent,
    },
    /// Time the calls of pods at a daemon that runs.
    Times(times::Options),
    /// Run the pods of a real kubelet, whose binary the variable KUBELET names.
    Kubelet,
    /// Run the smoke test, other scripts, or critest, in a virtual machine with systemd, cgroup v2 and AppArmor.
    Vm(vm::Options),
    /// Start a node and wait for the end of standard input: for looking around with `nsenter`.
    Node,
    #[command(hide = true)]
    Inside { arguments: Vec<String> },
    #[command(hide = true)]
    Driver { arguments: Vec<String> },
}

fn main() -> Result<()> {
    let code = match Arguments::parse().command {
        Command::Prepare => {
            prepare::all()?;
            0
        }
        Command::Inside { arguments } => enter::inside(&arguments)?,
        Command::Driver { arguments } => {
            let again = std::iter::once("crictl-tests".to_owned()).chain(arguments);
            i32::from(!drive(Arguments::parse_from(again).command)?)
        }
        Command::Vm(options) => i32::from(!vm::run_in(options)?),
        Command::Times(options) => {
            times::run(&options)?;
            0
        }
        Command::Test { .. }
        | Command::Critest(_)
        | Command::Bench { .. }
        | Command::Kubelet
        | Command::Node => enter::run_inside(&std::env::args().skip(1).collect::<Vec<_>>())?,
    };
    std::process::exit(code)
}

/// What runs inside the namespaces; whether all went well.
fn drive(command: Command) -> Result<bool> {
    match command {
        Command::Test { filters } => suite::run(&filters),
        Command::Critest(suite) => conformance::run(&suite),
        Command::Bench { dir, extent } => bench::run(dir.as_deref(), extent).map(|()| true),
        Command::Kubelet => kubelet::run(),
        Command::Node => suite::wait_here().map(|()| true),
        Command::Prepare
        | Command::Vm(_)
        | Command::Times(_)
        | Command::Inside { .. }
        | Command::Driver { .. } => {
            anyhow::bail!("this command does not run inside")
        }
    }
}
