//! What a run needs and a fresh machine lacks: Debian packages, the Kubernetes tools, the images.
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command::fetch;
use crate::say;
use crate::{images, paths};

/// Program that must exist, and the package that holds it.
const PROGRAMS: [(&str, &str); 11] = [
    ("/usr/bin/docker-registry", "docker-registry"),
    ("/usr/sbin/runc", "runc"),
    ("/usr/bin/crun", "crun"),
    ("/usr/lib/cni/bridge", "containernetworking-plugins"),
    ("/usr/sbin/ip", "iproute2"),
    ("/usr/sbin/nft", "nftables"),
    ("/usr/bin/unshare", "util-linux"),
    ("/usr/bin/ipcmk", "util-linux"),
    ("/usr/sbin/mke2fs", "e2fsprogs"),
    ("/usr/bin/cc", "gcc"),
    ("/usr/lib/x86_64-linux-gnu/libc.a", "libc6-dev"),
];

/// The tools built from the pinned Go module: name, arguments of `go`.
const TOOLS: [(&str, &[&str], &str); 3] = [
    ("crictl", &["build"], "sigs.k8s.io/cri-tools/cmd/crictl"),
    ("critest", &["test", "-c"], "sigs.k8s.io/cri-tools/cmd/critest"),
    ("ginkgo", &["build"], "github.com/onsi/ginkgo/v2/ginkgo"),
];

/// Installs, builds and makes what is missing; says what it does.
///
/// # Errors
/// When a package, a tool or an image cannot be had.
pub fn all() -> Result<()> {
    packages()?;
    tools()?;
    say!("images from Debian packages: {}", paths::images().display());
    images::build(&paths::images())
}

fn packages() -> Result<()> {
    let mut missing: Vec<&str> =
        PROGRAMS.iter().filter(|(path, _)| !Path::new(path).exists()).map(|(_, package)| *package).collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    say!("apt-get install {}", missing.join(" "));
    // Another apt of this machine is waited for.
    const LOCK: &str = "-oDPkg::Lock::Timeout=600";
    fetch(Command::new("apt-get").args([LOCK, "update", "-qq"]))?;
    fetch(
        Command::new("apt-get")
            .args([LOCK, "install", "-y", "-qq", "--no-install-recommends"])
            .args(&missing)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )?;
    Ok(())
}

/// The tools are built again when the module's pins change.
fn tools() -> Result<()> {
    let module = paths::crate_dir().join("tools");
    let bin = paths::tools();
    let pins = fs::read_to_string(module.join("go.sum")).context("read go.sum of the tools")?;
    let stamp = bin.join("go.sum");
    if fs::read_to_string(&stamp).is_ok_and(|built| built == pins) {
        return Ok(());
    }
    fs::create_dir_all(&bin)?;
    for (name, verb, package) in TOOLS {
        say!("go {} {package}", verb.join(" "));
        let mut go = Command::new("go");
        go.arg(verb[0]).arg("-C").arg(&module).args(&verb[1..]);
        fetch(go.arg("-ldflags=-s -w").arg("-o").arg(bin.join(name)).arg(package))?;
    }
    fs::write(stamp, pins)?;
    Ok(())
}
