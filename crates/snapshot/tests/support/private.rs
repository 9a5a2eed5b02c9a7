//! Tests that mount: each runs again in a process of its own, in a private mount namespace, on a tmpfs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(
    dead_code,
    unreachable_pub,
    clippy::print_stderr,
    reason = "each test uses its part; what is not run is said"
)]

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use crisp_snapshot::{ChainId, LayerStore, Limits, Rootfs, SnapshotError};

const INSIDE: &str = "CRISP_TEST_PRIVATE_MOUNTS";

/// Runs `body` with an empty tmpfs as its argument. `name`: of the test function that calls.
pub fn in_private_mounts(name: &str, body: impl FnOnce(&Path)) {
    if !rustix::process::geteuid().is_root() {
        eprintln!("{name}: NOT RUN, needs root");
        return;
    }
    if std::env::var_os(INSIDE).is_some() {
        let home = tempfile::tempdir().unwrap();
        let none = crisp_sys::mount::Tmpfs { bytes_max: None, mode: 0o755 };
        crisp_sys::mount::tmpfs(home.path(), &none).unwrap();
        body(home.path());
        crisp_sys::mount::unmount_detach(home.path()).unwrap();
        return;
    }
    let me = std::env::current_exe().unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "--"]).arg(me);
    let status = command.args([name, "--exact", "--nocapture"]).env(INSIDE, "1").status().unwrap();
    assert!(status.success(), "{name} failed in its namespace");
}

pub fn commit(store: &LayerStore, parent: Option<&ChainId>, tar: &[u8]) -> Result<ChainId, SnapshotError> {
    store.commit(store.unpack(tar, &Limits::default())?, parent)
}

/// Opens a store that was just closed: that takes until the thread that cleans up at its opening has ended.
pub fn reopen(home: &Path) -> LayerStore {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match LayerStore::open(home) {
            Err(SnapshotError::InUse { .. }) if Instant::now() < deadline => std::thread::yield_now(),
            opened => return opened.unwrap(),
        }
    }
}

/// Commits layers on top of each other; the answer is their chain.
pub fn commit_all(store: &LayerStore, tars: &[Vec<u8>]) -> Vec<ChainId> {
    let mut chain: Vec<ChainId> = Vec::new();
    for tar in tars {
        let next = commit(store, chain.last(), tar).unwrap_or_else(|e| panic!("{}", full(&e)));
        chain.push(next);
    }
    chain
}

/// An error with all its causes.
pub fn full(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |e| e.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Shows an image and tells all that is in it.
pub fn listing(store: &LayerStore, chain: &[ChainId], target: &Path) -> BTreeMap<String, String> {
    let rootfs = Rootfs::mount_read_only(store, chain, target).unwrap_or_else(|e| panic!("{}", full(&e)));
    let all = tree(rootfs.target());
    Rootfs::unmount(target).unwrap();
    all
}

/// Every path below `root` with kind, mode and content.
pub fn tree(root: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut todo = vec![PathBuf::new()];
    while let Some(path) = todo.pop() {
        let full = root.join(&path);
        let stat = std::fs::symlink_metadata(&full).unwrap_or_else(|e| panic!("{}: {e}", full.display()));
        let (kind, mode) = (stat.file_type(), stat.mode() & 0o7777);
        let what = if kind.is_dir() {
            todo.extend(std::fs::read_dir(&full).unwrap().map(|e| path.join(e.unwrap().file_name())));
            format!("dir {mode:o}")
        } else if kind.is_symlink() {
            format!("link {}", std::fs::read_link(&full).unwrap().display())
        } else if kind.is_file() {
            format!("file {mode:o} {}", String::from_utf8_lossy(&std::fs::read(&full).unwrap()))
        } else if kind.is_fifo() {
            format!("fifo {mode:o}")
        } else {
            format!("device {mode:o} {:x}", stat.rdev())
        };
        all.insert(String::from_utf8_lossy(path.as_os_str().as_bytes()).into_owned(), what);
    }
    all
}
