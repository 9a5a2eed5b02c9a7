//! What was restored, compared with the specification that the request was made to.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use crisp_checkpoint::mounts::{self, Wanted};
use crisp_checkpoint::tasks::{self, Granted};
use crisp_checkpoint::{CheckpointError, images};
use crisp_spec::capability::CapabilitySet;
use crisp_sys::path::{Resolve, RootedDir};
use oci_spec::runtime::{LinuxNamespaceType, Process, Spec};
use rustix::fs::FileType;

use super::host;
use super::restore::identity;
use crate::container::Container;
use crate::error::{Doing as _, Result};

/// Bytes of a compiled filter (`BPF_MAXINSNS` instructions of 8 bytes).
const FILTER_BYTES_MAX: u64 = 8 * 4096;
/// CRIU's image of filters.
const SECCOMP: &str = "seccomp.img";
/// Major and minor number of `/dev/null` (Linux, devices.txt).
const NULL_DEVICE: (u32, u32) = (1, 3);
/// Capabilities that the kernel numbers.
const CAPABILITIES: u32 = 64;

type Checked<T> = std::result::Result<T, CheckpointError>;

fn refuse<T>(what: impl Into<String>) -> Checked<T> {
    Err(CheckpointError::NotRequested(what.into()))
}

/// Checks the filters in the images, where the request has one.
pub(super) fn filters(container: &Container, spec: &Spec, images: &Path) -> Result<()> {
    use std::io::Read as _;
    if spec.linux().as_ref().is_none_or(|linux| linux.seccomp().is_none()) {
        return Ok(());
    }
    let mut filter = Vec::new();
    let ours = File::open(container.dir.seccomp()).doing("read the compiled filter")?;
    ours.take(FILTER_BYTES_MAX).read_to_end(&mut filter).doing("read the compiled filter")?;
    let Ok(theirs) = File::open(images.join(SECCOMP)) else {
        return refuse("its processes have no seccomp filter").doing("check the checkpoint");
    };
    images::check_filters(theirs, &filter).doing("check the checkpoint")
}

/// A label of a security module.
pub(super) enum Label<'a> {
    AppArmor(&'a str),
    SeLinux(&'a str),
}

impl Label<'_> {
    pub(super) fn for_criu(&self) -> String {
        match self {
            Self::AppArmor(profile) => format!("apparmor:{profile}"),
            Self::SeLinux(label) => format!("selinux:{label}"),
        }
    }

    /// Whether `current`, of `/proc/<pid>/attr/current`, is this one, enforced as far as the module does.
    fn is(&self, current: &str) -> bool {
        let current = current.trim_end_matches(['\0', '\n']);
        match self {
            Self::AppArmor("unconfined") => true,
            Self::AppArmor(profile) => {
                current.strip_prefix(profile).is_some_and(|mode| mode.is_empty() || mode.starts_with(" ("))
            }
            Self::SeLinux(label) => current == *label,
        }
    }
}

/// The label that the specification gives processes.
pub(super) fn label(spec: &Spec) -> Option<Label<'_>> {
    let process = spec.process().as_ref()?;
    let some = |text: &'_ Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    if some(process.selinux_label()) {
        return process.selinux_label().as_deref().map(Label::SeLinux);
    }
    some(process.apparmor_profile())
        .then(|| process.apparmor_profile().as_deref().map(Label::AppArmor))
        .flatten()
}

/// Checks all processes of a cgroup, of which `init` is the container's first.
pub(super) fn all(spec: &Spec, init: i32, pids: &[i32]) -> Checked<()> {
    namespaces(spec, init)?;
    mounted(spec, init)?;
    let granted = granted(spec);
    let of_init = own_namespaces(init)?;
    let here = namespace("self", "pid")?;
    for &pid in pids {
        // A process of ours, which holds the cgroup: what CRIU made is in the container's PID namespace, as init is.
        if namespace(&pid.to_string(), "pid")? == here {
            continue;
        }
        if own_namespaces(pid)? != of_init {
            return refuse("a process is in a namespace of its own");
        }
        tasks::check(&read(pid, "status")?, &granted)?;
        let limit = spec.process().as_ref().and_then(Process::oom_score_adj);
        let score: i32 = read(pid, "oom_score_adj")?.trim().parse().unwrap_or(i32::MIN);
        if limit.is_some_and(|limit| score < limit) {
            return refuse("a process is spared when memory is short");
        }
        if let Some(label) = label(spec)
            && !label.is(&read(pid, "attr/current")?)
        {
            return refuse("a process has another security label");
        }
    }
    match pids.contains(&init) {
        true => Ok(()),
        false => refuse("its first process is not in its cgroup"),
    }
}

fn read(pid: i32, name: &str) -> Checked<String> {
    std::fs::read_to_string(format!("/proc/{pid}/{name}"))
        .map_err(|source| CheckpointError::Io { step: "look at a restored process", source })
}

/// Kinds that processes are compared by.
const NAMESPACES: [(&str, LinuxNamespaceType); 7] = [
    ("pid", LinuxNamespaceType::Pid),
    ("mnt", LinuxNamespaceType::Mount),
    ("net", LinuxNamespaceType::Network),
    ("ipc", LinuxNamespaceType::Ipc),
    ("uts", LinuxNamespaceType::Uts),
    ("user", LinuxNamespaceType::User),
    ("cgroup", LinuxNamespaceType::Cgroup),
];

fn namespace(pid: &str, kind: &str) -> Checked<(u64, u64)> {
    let meta = std::fs::metadata(format!("/proc/{pid}/ns/{kind}"));
    meta.map(|meta| identity(&meta))
        .map_err(|source| CheckpointError::Io { step: "look at a restored process's namespaces", source })
}

fn own_namespaces(pid: i32) -> Checked<Vec<(u64, u64)>> {
    NAMESPACES.iter().map(|(name, _)| namespace(&pid.to_string(), name)).collect()
}

fn namespaces(spec: &Spec, init: i32) -> Checked<()> {
    for (name, kind) in NAMESPACES {
        let (found, here) = (namespace(&init.to_string(), name)?, namespace("self", name)?);
        let right = match host::namespace(spec, kind) {
            None => found == here,
            Some(None) => found != here,
            Some(Some(path)) => std::fs::metadata(path).is_ok_and(|meta| identity(&meta) == found),
        };
        if !right {
            return refuse(format!("its {name} namespace is not the requested one"));
        }
    }
    Ok(())
}

fn granted(spec: &Spec) -> Granted {
    let process = spec.process().as_ref();
    let user = process.map(Process::user);
    let bounding =
        process.and_then(|process| process.capabilities().as_ref()).and_then(|sets| sets.bounding().clone());
    let names: Vec<String> =
        bounding.into_iter().flatten().map(|capability| capability.to_string()).collect();
    let plain = |name: &str| name.trim_start_matches("CAP_").to_owned();
    let has = |number: &u32| {
        let capability: Vec<String> =
            CapabilitySet::from_mask(1 << number).names().map(|name| plain(&name)).collect();
        names.iter().any(|name| capability.contains(&plain(name)))
    };
    let groups = user.and_then(|user| user.additional_gids().clone()).unwrap_or_default();
    Granted {
        capabilities: (0..CAPABILITIES).filter(has).fold(0, |mask, number| mask | 1 << number),
        uid: user.map_or(0, |user| user.uid()),
        groups: groups.into_iter().chain(user.map(|user| user.gid())).collect(),
        no_new_privileges: process.and_then(Process::no_new_privileges).unwrap_or(false),
        filtered: spec.linux().as_ref().is_some_and(|linux| linux.seccomp().is_some()),
    }
}

fn mounted(spec: &Spec, init: i32) -> Checked<()> {
    let root = RootedDir::open(Path::new(&format!("/proc/{init}/root")))
        .map_err(|source| CheckpointError::Path { step: "open the restored root filesystem", source })?;
    let found = mounts::parse(&read(init, "mountinfo")?)?;
    mounts::check(&found, &wanted(spec, &root))?;
    for mount in host::binds(spec) {
        let source = mount.source().as_deref().unwrap_or(Path::new("/"));
        let inside = root.metadata(mount.destination(), Resolve::InRoot);
        match (inside, std::fs::metadata(source)) {
            (Ok(inside), Ok(source)) if (inside.st_dev, inside.st_ino) == identity(&source) => {}
            _ => return refuse(format!("the mount {:?} shows something else", mount.destination())),
        }
    }
    host::covered(spec).0.iter().try_for_each(|path| hidden(&root, &found, path))
}

/// A masked path shows the null device, or an empty directory that nobody can fill.
fn hidden(root: &RootedDir, found: &HashMap<String, mounts::Mount>, path: &str) -> Checked<()> {
    let Ok(Some(stat)) = root.symlink_metadata(Path::new(path), Resolve::InRoot) else { return Ok(()) };
    let null = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice
        && (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev)) == NULL_DEVICE;
    let empty = found.get(path).is_some_and(|mount| mount.kind == "tmpfs" && mount.read_only);
    if null || empty { Ok(()) } else { refuse(format!("{path:?} is not masked")) }
}

/// What must be mounted. Paths are covered where there is something to be covered.
fn wanted(spec: &Spec, root: &RootedDir) -> Vec<Wanted> {
    let read_only = spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly).unwrap_or(false);
    let top = Wanted { at: "/".to_owned(), kind: Some("overlay".to_owned()), read_only, recursive: false };
    let mut wanted = vec![top];
    let unified = is_unified();
    wanted.extend(spec.mounts().iter().flatten().map(|mount| {
        let has = |names: [&str; 2]| host::options(mount).any(|option| names.contains(&option));
        Wanted {
            at: host::real(root, mount.destination()).display().to_string(),
            kind: mount.typ().clone().filter(|_| !host::is_bind(mount)).map(kind_shown),
            read_only: has(["ro", "rro"]),
            // The hierarchies of version 1 are bound below.
            recursive: host::options(mount).any(|option| option == "rbind")
                || (mount.typ().as_deref() == Some("cgroup") && !unified),
        }
    }));
    let (masked, read_only) = host::covered(spec);
    let covers = masked.iter().map(|at| (at, false)).chain(read_only.iter().map(|at| (at, true)));
    let there = |at: &str| matches!(root.symlink_metadata(Path::new(at), Resolve::InRoot), Ok(Some(_)));
    let covers = covers.filter(|(at, _)| there(at));
    wanted.extend(covers.map(|(at, read_only)| Wanted {
        at: at.clone(),
        kind: None,
        read_only,
        recursive: false,
    }));
    wanted
}

/// As the kernel calls a type of the specification.
fn kind_shown(kind: String) -> String {
    match kind.as_str() {
        "cgroup" if is_unified() => "cgroup2".to_owned(),
        "cgroup" => "tmpfs".to_owned(),
        _ => kind,
    }
}

fn is_unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}
