//! Builds the shim and hands it to the daemon, which carries it as bytes and starts it from a sealed memory file.
//!
//! The shim is always a small optimised static program that is not position-independent (22 page faults to `main`, not 83),
//! whatever profile and target the daemon has: a nested Cargo builds it with the profile `shim` in a target folder of its own.
//! `CRISP_SHIM=FILE` takes that program instead.
#![expect(clippy::panic, reason = "how a build script fails")]

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the shim is made of, besides its dependencies from the lock file.
const SOURCES: [&str; 7] =
    ["shim/src", "shim/Cargo.toml", "crates/sys", "crates/domain", "proto/src", "Cargo.toml", "Cargo.lock"];

/// Prefixes of variables that Cargo sets for this build script and that would steer the nested build.
const NOT_INHERITED: [&str; 5] = ["CARGO_", "RUSTC", "RUSTDOC", "RUSTFLAGS", "DEP_"];
/// Those that do belong to the nested build too: caches, network, and the shared job tokens.
const INHERITED: [&str; 5] =
    ["CARGO_HOME", "CARGO_MAKEFLAGS", "CARGO_NET_", "CARGO_HTTP_", "CARGO_REGISTRIES_"];

fn main() {
    let workspace = PathBuf::from(required("CARGO_MANIFEST_DIR")).join("..");
    let out = PathBuf::from(required("OUT_DIR"));
    for source in SOURCES {
        println!("cargo::rerun-if-changed={}", workspace.join(source).display());
    }
    println!("cargo::rerun-if-env-changed=CRISP_SHIM");
    let shim = env::var_os("CRISP_SHIM").map_or_else(|| build(&workspace, &out), PathBuf::from);
    copy(&shim, &out.join("crisp-shim"));
    // Beside the daemon, for people: `target/<profile>/crisp-shim`.
    if let Some(profile_dir) = out.ancestors().nth(3) {
        copy(&shim, &profile_dir.join("crisp-shim"));
    }
}

/// Runs the nested Cargo; the path of the program it made.
fn build(workspace: &Path, out: &Path) -> PathBuf {
    let (target, flags) = target();
    let target_dir = target_dir(out).join("shim");
    let mut cargo = Command::new(required("CARGO"));
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| text.starts_with(prefix));
        if starts(&NOT_INHERITED) && !starts(&INHERITED) {
            cargo.env_remove(&name);
        }
    }
    cargo
        .current_dir(workspace)
        .args([
            "build",
            "--locked",
            "--quiet",
            "--package",
            "crisp-shim",
            "--profile",
            "shim",
            "--target",
            &target,
        ])
        .arg("--target-dir")
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    let status = cargo.status().unwrap_or_else(|error| panic!("run {cargo:?}: {error}"));
    assert!(status.success(), "the build of the shim ended with {status}: {cargo:?}");
    target_dir.join(target).join("shim/crisp-shim")
}

/// The static target: musl where its standard library is installed, else glibc's.
fn target() -> (String, Vec<&'static str>) {
    let arch = required("CARGO_CFG_TARGET_ARCH");
    let mut flags = vec!["-Crelocation-model=static", "-Ctarget-feature=+crt-static"];
    let musl = format!("{arch}-unknown-linux-musl");
    if has_std(&musl) {
        // The C library and its start files come with the toolchain, so the plain linker is enough.
        flags.push("-Clink-self-contained=yes");
        return (musl, flags);
    }
    println!(
        "cargo::warning=the target {musl} is not installed: the shim is linked with glibc and is larger"
    );
    (format!("{arch}-unknown-linux-gnu"), flags)
}

fn has_std(target: &str) -> bool {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let Ok(output) = Command::new(rustc).args(["--print", "target-libdir", "--target", target]).output()
    else {
        return false;
    };
    let dir = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let is_std = |entry: std::fs::DirEntry| entry.file_name().to_string_lossy().starts_with("libstd-");
    std::fs::read_dir(dir).is_ok_and(|entries| entries.flatten().any(is_std))
}

/// The target folder that `out` (`<target>[/<triple>]/<profile>/build/<package>/out`) is in: the nearest with Cargo's tag.
fn target_dir(out: &Path) -> PathBuf {
    let tagged = |dir: &&Path| dir.join("CACHEDIR.TAG").exists();
    out.ancestors().find(tagged).or_else(|| out.ancestors().nth(4)).unwrap_or(out).to_owned()
}

fn copy(from: &Path, to: &Path) {
    // The target may be running: replace it, do not write into it.
    let temporary = to.with_extension("new");
    std::fs::copy(from, &temporary)
        .and_then(|_| std::fs::rename(&temporary, to))
        .unwrap_or_else(|error| panic!("copy {} to {}: {error}", from.display(), to.display()));
}

fn required(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| panic!("Cargo sets {name}: {error}"))
}
