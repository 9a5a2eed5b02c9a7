//! Mounts: the defaults, the sandbox's files, and what CRI asks for.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crisp_sys::userns::IdMap;
use oci_spec::runtime::Mount;

use crate::error::SpecError;
use crate::input::{
    BindMount, CgroupVersion, ContainerInput, MountAccess, MountOption, MountRequest, MountSource, Privilege,
    Propagation, RootAccess, Shm,
};
use crate::propagation::MountTable;

/// CRI mounts of one container.
const MOUNTS_MAX: usize = 4096;
/// Bytes of a path, `PATH_MAX` of the kernel.
const PATH_BYTES_MAX: usize = 4095;
/// Group of terminals, as systems agree on it.
const TTY_GID: u32 = 5;
/// Mode of a directory that is made because a mount's source was missing.
const MISSING_SOURCE_MODE: u32 = 0o755;

/// What to do when the source of a mount does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MissingSource {
    /// Make it, a directory 0755: what workloads with an untyped `hostPath` rely on.
    Create,
    /// An error.
    Refuse,
}

/// Finds the sources on this machine, resolves their links and checks that their mounts propagate as requested. Image
/// volumes are the caller's: it replaces their source by a host path first.
///
/// # Errors
/// [`SpecError::MountSource`] for a source that is missing (or cannot be made), [`SpecError::Propagation`],
/// [`SpecError::Mount`] for a relative path and for a recursive read-only mount that propagates,
/// [`SpecError::Unsupported`] for an image volume.
pub fn resolve(requests: &[MountRequest], missing: MissingSource) -> Result<Vec<BindMount>, SpecError> {
    if requests.len() > MOUNTS_MAX {
        return Err(SpecError::TooMany { what: "mounts", max: MOUNTS_MAX });
    }
    let propagates = requests.iter().any(|request| request.propagation != Propagation::Private);
    let table = if propagates { Some(MountTable::read()?) } else { None };
    requests.iter().map(|request| resolve_one(request, missing, table.as_ref())).collect()
}

fn resolve_one(
    request: &MountRequest,
    missing: MissingSource,
    table: Option<&MountTable>,
) -> Result<BindMount, SpecError> {
    let refused = |reason| SpecError::mount(&request.container_path, reason);
    let destination = clean(&request.container_path)?;
    let MountSource::Host(path) = &request.source else {
        return Err(SpecError::Unsupported("a mount of an image"));
    };
    if !path.is_absolute() {
        return Err(refused("its source is not an absolute path"));
    }
    if request.access == MountAccess::RecursiveReadOnly && request.propagation != Propagation::Private {
        return Err(refused("a recursive read-only mount must be private"));
    }
    let failed = |source| SpecError::MountSource {
        destination: crate::error::quote(&request.container_path),
        path: path.clone(),
        source,
    };
    let source = find_source(path, missing).map_err(failed)?;
    if let Some(table) = table {
        table.check(&source, request.propagation)?;
    }
    let MountRequest { access, propagation, ref options, ref ids, .. } = *request;
    Ok(BindMount { source, destination, access, propagation, options: options.clone(), ids: ids.clone() })
}

fn find_source(path: &Path, missing: MissingSource) -> io::Result<PathBuf> {
    match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && missing == MissingSource::Create => {
            DirBuilder::new().recursive(true).mode(MISSING_SOURCE_MODE).create(path)?;
            fs::canonicalize(path)
        }
        found => found,
    }
}

/// An absolute path in the container without `//`, `.` and a slash at its end.
///
/// # Errors
/// [`SpecError::Mount`] for a relative path, the root itself, and one with `..` or a control character.
pub fn clean(destination: &str) -> Result<String, SpecError> {
    let refused = |reason| Err(SpecError::mount(destination, reason));
    if !destination.starts_with('/') || destination.len() > PATH_BYTES_MAX {
        return refused("not an absolute path");
    }
    if destination.chars().any(char::is_control) {
        return refused("a control character in its path");
    }
    let parts: Vec<&str> = destination.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return refused("`..` in its path");
    }
    if parts.is_empty() {
        return refused("nothing can be mounted on the root");
    }
    Ok(format!("/{}", parts.join("/")))
}

/// The paths of the image's `Volumes` that no CRI mount covers, cleaned: each gets an anonymous directory.
///
/// # Errors
/// [`SpecError::Mount`] for a path that [`clean`] refuses (CVE-2022-23648).
pub fn anonymous_volumes(volumes: &[String], mounts: &[MountRequest]) -> Result<Vec<String>, SpecError> {
    if volumes.len() > MOUNTS_MAX {
        return Err(SpecError::TooMany { what: "volumes of the image", max: MOUNTS_MAX });
    }
    let covered: Vec<String> =
        mounts.iter().map(|mount| clean(&mount.container_path)).collect::<Result<_, _>>()?;
    let mut wanted: Vec<String> = volumes.iter().map(|volume| clean(volume)).collect::<Result<_, _>>()?;
    wanted.retain(|volume| !covered.contains(volume));
    wanted.sort_unstable();
    wanted.dedup();
    Ok(wanted)
}

/// All mounts, parents before what lies below them.
pub(crate) fn list(input: &ContainerInput) -> Result<Vec<Mount>, SpecError> {
    let devices = input.sandbox.user.as_ref().map(|_| crate::devices::as_mounts(&input.devices));
    let binds: Vec<(String, &BindMount)> = input
        .mounts
        .iter()
        .chain(devices.iter().flatten())
        .map(|bind| Ok((clean(&bind.destination)?, bind)))
        .collect::<Result<_, SpecError>>()?;
    let own_dev = binds.iter().any(|(destination, _)| destination == "/dev");
    let replaced = |destination: &str| {
        binds.iter().any(|(own, _)| own == destination) || (own_dev && destination.starts_with("/dev/"))
    };
    let mut mounts = defaults(input);
    mounts.extend(sandbox_files(input));
    mounts.retain(|(destination, _)| !replaced(destination));
    for (destination, bind) in &binds {
        let mut mount = bind_mount(&bind.source, destination, bind_options(bind)?);
        if let Some(ids) = &bind.ids {
            mount
                .set_uid_mappings(crate::linux::mappings(&ids.uids))
                .set_gid_mappings(crate::linux::mappings(&ids.gids));
        }
        mounts.push((destination.clone(), mount));
    }
    mounts.sort_by_key(|(destination, _)| destination.matches('/').count());
    Ok(mounts.into_iter().map(|(_, mount)| mount).collect())
}

/// The weakest root propagation under which every mount propagates as it must; `None` leaves the handler's own. The
/// specification has these words alone; some handlers know `rshared` and `rslave` too, libcontainer refuses them.
pub(crate) fn root_propagation(input: &ContainerInput) -> Option<String> {
    let any = |wanted| input.mounts.iter().any(|mount| mount.propagation == wanted);
    if any(Propagation::Bidirectional) {
        Some("shared".into())
    } else if any(Propagation::HostToContainer) {
        Some("slave".into())
    } else {
        None
    }
}

type Placed = (String, Mount);

fn defaults(input: &ContainerInput) -> Vec<Placed> {
    let kernel = match input.config.security.privilege {
        Privilege::Ordinary => "ro",
        Privilege::Privileged => "rw",
    };
    let mut cgroup = vec!["nosuid", "noexec", "nodev", "relatime", kernel];
    // Mounting the host's own hierarchy again with fewer options would clear them for everybody.
    if input.host.cgroup == CgroupVersion::V2 && input.config.security.privilege == Privilege::Privileged {
        cgroup.extend(input.host.cgroup2_options.iter().map(String::as_str));
    }
    let mut pts = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    if input.sandbox.user.as_ref().is_none_or(|user| maps(&user.ids, TTY_GID)) {
        pts.push("gid=5");
    }
    let shm_size = ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"];
    vec![
        special("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        special("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        special("/dev/pts", "devpts", "devpts", &pts),
        special("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        match &input.sandbox.files.sys {
            Some(source) => {
                placed("/sys", source, &["rbind", "rprivate", "rnosuid", "rnoexec", "rnodev", "rro"])
            }
            None => special("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", kernel]),
        },
        special("/sys/fs/cgroup", "cgroup", "cgroup", &cgroup),
        match &input.sandbox.shm {
            Shm::Bind(source) => placed("/dev/shm", source, &["rbind", "rprivate", "rw"]),
            Shm::Private => special("/dev/shm", "tmpfs", "shm", &shm_size),
        },
    ]
}

/// Whether a group is one in the namespace.
fn maps(ids: &IdMap, gid: u32) -> bool {
    ids.gids.iter().any(|range| gid.checked_sub(range.inside).is_some_and(|at| at < range.length))
}

fn sandbox_files(input: &ContainerInput) -> Vec<Placed> {
    let access = match input.config.security.root {
        RootAccess::ReadWrite => "rw",
        RootAccess::ReadOnly => "ro",
    };
    let files = &input.sandbox.files;
    [
        ("/etc/hostname", &files.hostname),
        ("/etc/hosts", &files.hosts),
        ("/etc/resolv.conf", &files.resolv_conf),
    ]
    .into_iter()
    .filter_map(|(destination, source)| {
        source.as_ref().map(|source| placed(destination, source, &["rbind", "rprivate", access]))
    })
    .collect()
}

fn special(destination: &str, typ: &str, source: &str, options: &[&str]) -> Placed {
    let mut mount = Mount::default();
    mount
        .set_destination(destination.into())
        .set_typ(Some(typ.into()))
        .set_source(Some(source.into()))
        .set_options(Some(options.iter().map(ToString::to_string).collect()));
    (destination.into(), mount)
}

fn placed(destination: &str, source: &Path, options: &[&str]) -> Placed {
    let options = options.iter().map(ToString::to_string).collect();
    (destination.into(), bind_mount(source, destination, options))
}

fn bind_mount(source: &Path, destination: &str, options: Vec<String>) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(destination.into())
        .set_typ(Some("bind".into()))
        .set_source(Some(source.into()))
        .set_options(Some(options));
    mount
}

fn bind_options(bind: &BindMount) -> Result<Vec<String>, SpecError> {
    let propagation = match bind.propagation {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    };
    let access = match bind.access {
        MountAccess::ReadWrite => "rw",
        MountAccess::ReadOnly => "ro",
        MountAccess::RecursiveReadOnly if bind.propagation != Propagation::Private => {
            return Err(SpecError::mount(&bind.destination, "a recursive read-only mount must be private"));
        }
        MountAccess::RecursiveReadOnly => "rro",
    };
    let more = bind.options.iter().map(|option| match option {
        MountOption::NoExec => "rnoexec",
        MountOption::Exec => "rexec",
        MountOption::NoDev => "rnodev",
        MountOption::Dev => "rdev",
        MountOption::NoSuid => "rnosuid",
        MountOption::Suid => "rsuid",
    });
    Ok(["rbind", propagation, access].into_iter().chain(more).map(ToString::to_string).collect())
}

#[cfg(test)]
#[path = "mounts_tests.rs"]
mod tests;
