//! The dump: CRIU writes processes, we copy files while they stand.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crisp_checkpoint::{DESCRIPTORS, Descriptors, IMAGES, ROOTFS_DIFF};
use crisp_sys::path::Resolve;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::fs::{CWD, FileType, Mode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::process::Command;

use super::host;
use crate::blocking::{self, Kind};
use crate::container::Container;
use crate::daemon::Daemon;
use crate::error::{Doing as _, Error, Result};

/// CRIU's log of a dump.
pub(super) const LOG: &str = "dump.log";
/// Two pipes with names: CRIU gives its scripts no descriptors.
const SAID: &str = "said";
const GO: &str = "go";
/// Runs when everything is written and nothing goes on yet: tells us, and waits until we are done. When the daemon dies, its end of the
/// pipe closes and the script fails, so that the container goes on. Of a daemon that has died before it knows by the pid, `timeout` is for what that misses.
fn script(limit: Duration) -> String {
    let (seconds, daemon) = (limit.as_secs() + 1, std::process::id());
    format!(
        "#!/bin/sh\n[ \"$CRTOOLS_SCRIPT_ACTION\" = post-dump ] || exit 0\n\
         kill -0 {daemon} || exit 1\n\
         exec timeout {seconds} sh -c 'echo >{SAID} && read -r _ <{GO}'\n"
    )
}
/// Largest file that is unlinked but open, which CRIU keeps whole.
const GHOST_LIMIT: &str = "64M";

/// Dumps a container below `work` within `limit`; the paths that it had deleted. Dropped on the way, CRIU is killed, and the container
/// goes on.
pub(super) async fn run(
    daemon: &Daemon,
    container: &Container,
    (pid, spec): (i32, &Spec),
    (work, limit): (&Path, Duration),
) -> Result<Vec<PathBuf>> {
    let (place, dumped) = (work.to_owned(), spec.clone());
    let args = blocking::run(move || prepare(&dumped, pid, &place, limit)).await?;
    let open = || -> std::io::Result<_> {
        let mut options = pipe::OpenOptions::new();
        let options = options.read_write(true);
        Ok((options.open_receiver(work.join(SAID))?, options.open_sender(work.join(GO))?))
    };
    let (mut said, mut go) = open().doing("open the pipes to criu's script")?;
    let mut criu = Command::new(&daemon.config.checkpoint.criu)
        .args(args)
        .current_dir(work)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .doing("start criu")?;
    let mut byte = [0];
    let deleted = tokio::select! {
        stands = said.read(&mut byte) => {
            stands.doing("wait for criu")?;
            let (writable, to) = (container.dir.writable().to_owned(), work.join(ROOTFS_DIFF));
            let deleted = blocking::run_as(Kind::Disk, move || copy(&writable, &to)).await?;
            go.write_all(b"\n").await.doing("answer criu")?;
            Some(deleted)
        }
        // It has failed before.
        ended = criu.wait() => ended.map(|_status| None).doing("wait for criu")?,
    };
    let status = criu.wait().await.doing("wait for criu")?;
    match deleted {
        Some(deleted) if status.success() => Ok(deleted),
        Some(_) | None => {
            let cause = format!("{status}: {}", host::last_errors(&work.join(LOG)));
            Err(Error::Internal { what: "criu cannot checkpoint the container", cause })
        }
    }
}

fn copy(writable: &Path, to: &Path) -> Result<Vec<PathBuf>> {
    let file = std::fs::File::create_new(to).doing("create the copy of the changes")?;
    let file = std::io::BufWriter::with_capacity(1 << 20, file);
    crisp_snapshot::Rootfs::write_changes(writable, file).doing("copy the container's changes")
}

fn prepare(spec: &Spec, pid: i32, work: &Path, limit: Duration) -> Result<Vec<String>> {
    use std::os::unix::fs::PermissionsExt as _;
    for name in [SAID, GO] {
        let (kind, mode) = (FileType::Fifo, Mode::from_raw_mode(0o600));
        rustix::fs::mknodat(CWD, work.join(name), kind, mode, 0).doing("make the pipes to criu's script")?;
    }
    let path = work.join("script");
    std::fs::write(&path, script(limit)).doing("write criu's script")?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).doing("write criu's script")?;
    let descriptors = descriptors(pid)?;
    let text = serde_json::to_vec(&descriptors).map_err(crate::cri::encoding)?;
    std::fs::write(work.join(IMAGES).join(DESCRIPTORS), text).doing("write the descriptors")?;
    args(spec, pid)
}

fn args(spec: &Spec, pid: i32) -> Result<Vec<String>> {
    let mut args: Vec<String> = [
        "dump",
        "--no-default-config",
        "--images-dir",
        IMAGES,
        "--work-dir",
        ".",
        "--log-file",
        LOG,
        "-v3",
        "--action-script",
        "./script",
        "--leave-running",
        "--manage-cgroups=ignore",
        "--tcp-established",
        "--file-locks",
        "--link-remap",
        "--ext-unix-sk",
        "--ghost-limit",
        GHOST_LIMIT,
        "--tree",
    ]
    .map(str::to_owned)
    .to_vec();
    args.push(pid.to_string());
    if host::namespace(spec, LinuxNamespaceType::Network).is_some() {
        use std::os::unix::fs::MetadataExt as _;
        let namespace =
            std::fs::metadata(format!("/proc/{pid}/ns/net")).doing("look at the network namespace")?;
        args.extend(["--external".to_owned(), format!("net[{}]:{}", namespace.ino(), host::NETWORK)]);
    }
    let root = host::root_of(pid)?;
    for mount in host::binds(spec) {
        let at = host::real(&root, mount.destination());
        let at = at.display();
        args.extend(["--external".to_owned(), format!("mnt[{at}]:{at}")]);
    }
    for at in host::v1_hierarchies(pid)? {
        args.extend(["--external".to_owned(), format!("mnt[{at}]:{at}")]);
    }
    for path in host::covered(spec).0 {
        let found = root.symlink_metadata(Path::new(path), Resolve::InRoot).ok().flatten();
        let is_file = found.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) != FileType::Directory);
        if is_file {
            args.extend(["--external".to_owned(), format!("mnt[{path}]:{}", host::NULL)]);
        }
    }
    Ok(args)
}

/// What init has as stdin, stdout and stderr. Pipes count that its parent, the shim, holds the other end of.
fn descriptors(pid: i32) -> Result<Descriptors> {
    let link = |path: &Path| {
        std::fs::read_link(path).map(|target| target.to_string_lossy().into_owned()).unwrap_or_default()
    };
    let shim = parent(pid)?;
    let entries = std::fs::read_dir(format!("/proc/{shim}/fd")).doing("look at the shim's descriptors")?;
    let shims: Vec<String> = entries.flatten().map(|entry| link(&entry.path())).collect();
    let of = |number: u8| {
        let name = link(Path::new(&format!("/proc/{pid}/fd/{number}")));
        if name.starts_with("pipe:") && !shims.contains(&name) { String::new() } else { name }
    };
    Ok(Descriptors([of(0), of(1), of(2)]))
}

fn parent(pid: i32) -> Result<i32> {
    let status =
        std::fs::read_to_string(format!("/proc/{pid}/status")).doing("look at the container's init")?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    line.and_then(|number| number.trim().parse().ok()).ok_or_else(|| Error::Internal {
        what: "look at the container's init",
        cause: "its parent is not told".to_owned(),
    })
}
