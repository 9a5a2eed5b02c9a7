//! What can be checkpointed here, and the words that CRIU is told it in.

use std::path::{Path, PathBuf};

use crisp_sys::path::{Missing, RootedDir};
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};
use rustix::fs::Access;

use crate::config::Handler;
use crate::container::Container;
use crate::daemon::Daemon;
use crate::error::{Doing as _, Error, Result};
use crate::supervisor::CgroupEntry;

/// The name under which CRIU records the network namespace that is not its to write.
pub(super) const NETWORK: &str = "extRootNetNS";
/// What files are masked with.
pub(super) const NULL: &str = "/dev/null";

/// # Errors
/// [`Error::Unimplemented`] that says what to install.
pub(super) fn require_criu(daemon: &Daemon) -> Result<()> {
    rustix::fs::access(&daemon.config.checkpoint.criu, Access::EXEC_OK).map_err(|_not_there| {
        Error::Unimplemented(
            "checkpointing without the program criu (install the package \"criu\", or name it by checkpoint.criu)",
        )
    })
}

/// # Errors
/// [`Error::Unimplemented`] for what CRIU, or our use of it, cannot bring back.
pub(super) fn require_supported(daemon: &Daemon, container: &Container, spec: &Spec) -> Result<()> {
    let unsupported = |what| Err(Error::Unimplemented(what));
    if !matches!(daemon.handler(&container.pod.record().handler)?, Handler::Builtin) {
        return unsupported("a checkpoint or restore by a handler other than the built-in one");
    }
    if container.record().config.tty {
        return unsupported("a checkpoint or restore of a container with a terminal");
    }
    if container.pod.user_ids().is_some() {
        return unsupported("a checkpoint or restore in a pod with a user namespace");
    }
    if namespace(spec, LinuxNamespaceType::Pid) != Some(None) {
        return unsupported("a checkpoint or restore of a container without a PID namespace of its own");
    }
    Ok(())
}

/// Whether the specification has such a namespace, and the one that is joined.
pub(super) fn namespace(spec: &Spec, kind: LinuxNamespaceType) -> Option<Option<&Path>> {
    let all = spec.linux().as_ref()?.namespaces().as_ref()?;
    all.iter().find(|namespace| namespace.typ() == kind).map(|namespace| namespace.path().as_deref())
}

pub(super) fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind") || options(mount).any(|option| matches!(option, "bind" | "rbind"))
}

pub(super) fn options(mount: &Mount) -> impl Iterator<Item = &str> {
    mount.options().iter().flatten().map(String::as_str)
}

/// The bind mounts: what is outside of the container, so that CRIU only notes where it was.
pub(super) fn binds(spec: &Spec) -> impl Iterator<Item = &Mount> {
    spec.mounts().iter().flatten().filter(|mount| is_bind(mount))
}

/// Where a path of the specification leads to inside a root filesystem: the kernel names mount points without links. A path that leads
/// nowhere is itself.
pub(super) fn real(root: &RootedDir, path: &Path) -> PathBuf {
    let place = root.walk_parent(path, Missing::Fail);
    place
        .map_or_else(|_none| path.to_owned(), |place| Path::new("/").join(place.parent.real).join(place.name))
}

/// The root filesystem of a process.
pub(super) fn root_of(pid: i32) -> Result<RootedDir> {
    RootedDir::open(Path::new(&format!("/proc/{pid}/root"))).doing("open the container's root filesystem")
}

/// Where a container sees its cgroups of version 1: they are bound there beside the specification.
pub(super) fn v1_hierarchies(pid: i32) -> Result<Vec<String>> {
    let text =
        std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).doing("look at the container's mounts")?;
    let mounts = crisp_checkpoint::mounts::parse(&text).doing("look at the container's mounts")?;
    Ok(mounts.into_values().filter(|mount| mount.kind == "cgroup").map(|mount| mount.at).collect())
}

/// The cgroups of version 1 of a container, with the names of their hierarchies (the shim's launcher names them so).
pub(super) fn v1_cgroups(entry: &CgroupEntry) -> Vec<(String, PathBuf)> {
    use std::os::unix::fs::MetadataExt as _;
    let device = |dir: &Path| std::fs::metadata(dir).map(|meta| meta.dev()).ok();
    let hierarchy = |dir: &Path| {
        let top = dir.ancestors().take_while(|above| device(above) == device(dir)).last()?;
        top.file_name().map(|name| name.to_string_lossy().into_owned())
    };
    let dirs = entry.v1_tasks.iter().filter_map(|tasks| tasks.parent());
    dirs.filter_map(|dir| hierarchy(dir).map(|name| (name, dir.to_owned()))).collect()
}

/// Paths that are hidden, and paths that cannot be written.
pub(super) fn covered(spec: &Spec) -> (&[String], &[String]) {
    let linux = spec.linux().as_ref();
    (
        linux.and_then(|linux| linux.masked_paths().as_deref()).unwrap_or_default(),
        linux.and_then(|linux| linux.readonly_paths().as_deref()).unwrap_or_default(),
    )
}

/// The end of what CRIU logged: its errors.
pub(super) fn last_errors(log: &Path) -> String {
    use std::io::{Read as _, Seek as _, SeekFrom};
    /// What is looked at, in bytes from the end.
    const TAIL: u64 = 256 << 10;
    /// What is told.
    const LINES: usize = 5;
    let mut text = Vec::new();
    let read = std::fs::File::open(log).and_then(|mut file| {
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(end.saturating_sub(TAIL)))?;
        file.take(TAIL).read_to_end(&mut text)
    });
    if read.is_err() {
        return "it left no log".to_owned();
    }
    let text = String::from_utf8_lossy(&text);
    let errors: Vec<&str> = text.lines().filter(|line| line.contains("Error (")).collect();
    let chosen = match errors.is_empty() {
        true => text.lines().collect(),
        false => errors,
    };
    chosen[chosen.len().saturating_sub(LINES)..].join("; ")
}
