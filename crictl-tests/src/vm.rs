//! The smoke test on a node with systemd and cgroup v2, in a virtual machine that `vm/vmtest` boots.
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::command::run;
use crate::images::{Compression, Tree, catalog, layer};
use crate::{paths, say};

/// What the command in the machine may take, in seconds; its processor is emulated.
const LIMIT_SECONDS: &str = "300";

/// Boots the machine and runs `vm/smoke.sh` in it; whether it went well.
///
/// # Errors
/// When the machine cannot be built.
pub fn smoke() -> Result<bool> {
    let vm = paths::crate_dir().join("vm");
    let share = paths::cache().join("vm-share");
    stage(&share)?;
    run(Command::new(vm.join("vmtest")).arg("build")).context("build the machine")?;
    let status = Command::new(vm.join("vmtest"))
        .args(["run", "--timeout", LIMIT_SECONDS, "--share"])
        .arg(format!("{}:/share", share.display()))
        .args(["--", "sh", "/share/smoke.sh"])
        .status()?;
    say!("vm: {}", if status.success() { "passed" } else { "FAILED" });
    Ok(status.success())
}

/// Puts into a folder what the machine needs.
fn stage(share: &Path) -> Result<()> {
    if share.exists() {
        fs::remove_dir_all(share)?;
    }
    fs::create_dir_all(share)?;
    for name in ["crisp", "crisp-shim"] {
        fs::copy(paths::binaries().join(name), share.join(name)).with_context(|| format!("copy {name}"))?;
    }
    fs::copy(paths::tools().join("crictl"), share.join("crictl")).context("copy crictl")?;
    fs::copy(paths::crate_dir().join("vm/smoke.sh"), share.join("smoke.sh"))?;
    fs::write(share.join("busybox.tar"), busybox_archive()?)?;
    Ok(())
}

/// An image of this machine's static busybox as `docker save` writes it.
fn busybox_archive() -> Result<Vec<u8>> {
    let mut tree = Tree::default().file("bin/busybox", fs::read("/bin/busybox")?, 0o755).dir("tmp", 0o1777);
    for applet in ["sh", "sleep", "echo", "cat", "wget", "httpd", "ip", "true", "ls", "usleep", "id", "dd"] {
        tree = tree.link(&format!("bin/{applet}"), "busybox");
    }
    let tar = tree.tar()?;
    let packed = layer::Layer::of_tar(&tar, Compression::OciPlain)?;
    let config = serde_json::json!({
        "architecture": catalog::architecture(), "os": "linux",
        "config": {"Cmd": ["sh"], "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [packed.diff_id]},
    });
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": ["example.org/busybox:1"], "Layers": ["layer.tar"]}]);
    Tree::default()
        .file("config.json", serde_json::to_vec(&config)?, 0o644)
        .file("layer.tar", tar, 0o644)
        .file("manifest.json", serde_json::to_vec(&manifest)?, 0o644)
        .tar()
}
