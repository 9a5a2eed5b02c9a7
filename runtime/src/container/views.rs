//! Views: what a container's mounts show, prepared by the daemon, so that every handler only has to bind it.
//!
//! A handler that works inside a pod's user namespace can neither map ids nor reach the daemon's directories, and programs differ in
//! the mount options they know. So the daemon makes a detached copy of each source, gives it ids and restrictions, and attaches it:
//!
//! ```text
//! <state>/mounts/<container id>/   passable for the pod's root alone, who cannot list it
//!   rootfs   of a pod with a user namespace
//!   0 1 2 …  one per bind mount
//!   pid      the PID namespace of another container that is joined
//! ```
//!
//! They are taken off as soon as init has them in its own mount namespace, so no volume stays busy; `rootfs`, which programs look for
//! at every exec, stays until the end. Whatever removes them unmounts
//! first and deletes only empty directories and files: a mount that stays costs an error, never somebody's data.

mod nodes;

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _};
use std::path::{Path, PathBuf};

use crisp_sys::idmap::{self, Attributes, Change};
use crisp_sys::mount::{self, Reach};
use crisp_sys::userns::{self, IdMap, IdRange};
use oci_spec::runtime::{LinuxIdMapping, Mount, Spec};

use super::Container;
use crate::config::Handler;
use crate::daemon::Daemon;
use crate::error::{Doing as _, Error, Result};
use crate::pod::Pod;

/// The directories on the way may be passed, not listed: what a handler binds as the pod's root hangs below.
const PASSAGE_MODE: u32 = 0o711;
/// Of a container's own directory, whose group is the pod's root.
const VIEWS_MODE: u32 = 0o710;
const ROOTFS: &str = "rootfs";
const PID: &str = "pid";

/// Mount options by which a restriction is set or lifted, each also with an `r` for all mounts below. `rw`, which every mount says
/// that does not say otherwise, lifts nothing: a source that is read-only on this machine stays so.
const RESTRICTIONS: [(&str, &str, Attributes); 4] = [
    ("ro", "rw", Attributes::READ_ONLY),
    ("nosuid", "suid", Attributes::NO_SUID),
    ("nodev", "dev", Attributes::NO_DEV),
    ("noexec", "exec", Attributes::NO_EXEC),
];

/// Makes the directory of a container's views, unless it is there. Of other users only the pod's root may pass it.
///
/// # Errors
/// What the file system says.
pub(crate) fn make_dir(container: &Container) -> Result<()> {
    let dir = container.dir.views();
    match std::fs::DirBuilder::new().mode(VIEWS_MODE).create(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => return Ok(()),
        made => made.doing("make the directory of a container's mounts")?,
    }
    let Some((_, gid)) = container.pod.user_ids().and_then(|ids| ids.root()) else { return Ok(()) };
    std::os::unix::fs::chown(dir, None, Some(gid)).doing("open a container's mounts for its pod")
}

/// Makes the state directory and that of the views passable.
///
/// # Errors
/// What the file system says.
pub(crate) fn open_passage(state: &Path, views: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    crisp_store::ensure_dir(views).doing("make the directory of mounts")?;
    for dir in [state, views] {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(PASSAGE_MODE))
            .doing("make the state directory passable")?;
    }
    Ok(())
}

/// Puts views in the place of the specification's sources: of all in a pod with a user namespace, else of those that ask for what
/// the handler may not know. Blocks.
///
/// # Errors
/// Of kind `Unsupported` for a source whose ids cannot be mapped, by its path.
pub(crate) fn apply(daemon: &Daemon, container: &Container, spec: &mut Spec) -> Result<()> {
    let pod = PodIds::open(&container.pod)?;
    if pod.is_some() {
        nodes::to_binds(spec)?;
    }
    let program = matches!(daemon.handler(&container.pod.record().handler)?, Handler::Oci(_));
    let dir = container.dir.views();
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    let dev = Path::new("/dev");
    // The built-in handler attaches these itself, and no more than that (`shim/src/launch/covers.rs`).
    let said = if program && pod.is_none() { Options::SaidAgain } else { Options::InTheView };
    let covered = !program && mounts.iter().any(|mount| is_bind(mount) && mount.destination() == dev);
    for (number, mount) in mounts.iter_mut().enumerate().filter(|(_, mount)| is_bind(mount)) {
        let recursive =
            options(mount).any(|option| restriction(option).is_some_and(|r| r.reach == Reach::Recursive));
        if pod.is_some()
            || mount.uid_mappings().is_some()
            || (program && recursive)
            || (covered && mount.destination().starts_with(dev))
        {
            make_dir(container)?;
            let ids = ids_of(daemon, mount, pod.as_ref())?;
            place(mount, ids.as_ref().map(|ids| ids.as_fd()), &dir.join(number.to_string()), said)?;
        }
    }
    spec.set_mounts(Some(mounts));
    if pod.is_some()
        && let Some(root) = spec.root_mut()
    {
        make_dir(container)?;
        let view = dir.join(ROOTFS);
        attach(root.path(), Reach::Single, &view, |_| Ok(()))?;
        root.set_path(view);
    }
    Ok(())
}

/// Pins the PID namespace of a process, which is checked to be the one that is meant; the path of the pin.
///
/// # Errors
/// [`Error::Invalid`] when the process has ended.
pub(crate) fn pin_pid(container: &Container, process: crate::pod::Process) -> Result<PathBuf> {
    make_dir(container)?;
    let path = container.dir.views().join(PID);
    crate::pod::userns::pin_pid(process, &path)?;
    Ok(path)
}

/// Takes all views off; none is fine.
///
/// # Errors
/// When one stays.
pub(crate) fn release(dir: &Path) -> Result<()> {
    release_but(dir, None)?;
    match std::fs::remove_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.doing("remove the directory of a container's mounts"),
    }
}

/// Takes off what init has in its own mount namespace by now.
///
/// # Errors
/// When one stays.
pub(crate) fn release_mounts(dir: &Path) -> Result<()> {
    release_but(dir, Some(ROOTFS))
}

fn release_but(dir: &Path, kept: Option<&str>) -> Result<()> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.doing("list a container's mounts")?,
    };
    for entry in entries {
        let path = entry.doing("list a container's mounts")?.path();
        if kept.is_some_and(|kept| path.ends_with(kept)) {
            continue;
        }
        mount::unmount_copy(&path).doing("take a container's mount off")?;
        remove_mount_point(&path).doing("remove a mount point")?;
    }
    Ok(())
}

/// An empty file or directory; never what is below one.
fn remove_mount_point(path: &Path) -> std::io::Result<()> {
    if std::fs::symlink_metadata(path)?.is_dir() {
        std::fs::remove_dir(path)
    } else {
        std::fs::remove_file(path)
    }
}

/// The pod's user namespace with its ids.
struct PodIds {
    userns: OwnedFd,
    ids: IdMap,
}

impl PodIds {
    fn open(pod: &Pod) -> Result<Option<Self>> {
        let Some(ids) = pod.user_ids() else { return Ok(None) };
        let userns = userns::open(&pod.dir.user()).doing("open the pod's user namespace")?;
        Ok(Some(Self { userns, ids }))
    }
}

fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
        || options(mount).any(|option| option == "bind" || option == "rbind")
}

fn options(mount: &Mount) -> impl Iterator<Item = &str> {
    mount.options().iter().flatten().map(String::as_str)
}

/// The ids that a mount shows: its own, else those of the pod. Our own files and directories have the pod's owners on disk, devices
/// and the kernel's own file systems belong to nobody in there.
fn ids_of(daemon: &Daemon, mount: &Mount, pod: Option<&PodIds>) -> Result<Option<OwnedFd>> {
    let duplicate = |pod: &PodIds| pod.userns.try_clone().doing("open the pod's user namespace");
    if let (Some(uids), Some(gids)) = (mount.uid_mappings(), mount.gid_mappings()) {
        let own = IdMap { uids: ranges(uids), gids: ranges(gids) };
        return match pod.filter(|pod| pod.ids == own) {
            Some(pod) => duplicate(pod).map(Some),
            None => userns::with_mapping(&own).map(Some).map_err(|error| {
                Error::Invalid(format!("the ids of mount {:?}: {error}", mount.destination()))
            }),
        };
    }
    let source = mount.source().as_deref().unwrap_or(Path::new("/"));
    let ours = [daemon.dirs.state(), daemon.dirs.root()].into_iter().any(|dir| source.starts_with(dir));
    let kind = std::fs::metadata(source).doing("look at the source of a mount")?.file_type();
    let kernels = source == Path::new("/sys") || source == Path::new("/dev/shm");
    match pod {
        Some(pod) if !(ours || kernels || kind.is_char_device() || kind.is_block_device()) => {
            duplicate(pod).map(Some)
        }
        Some(_) | None => Ok(None),
    }
}

fn ranges(mappings: &[LinuxIdMapping]) -> Vec<IdRange> {
    let range =
        |m: &LinuxIdMapping| IdRange { inside: m.container_id(), outside: m.host_id(), length: m.size() };
    mappings.iter().map(range).collect()
}

/// Makes the view and the mount a bind of it, without further options unless they are to be said again.
fn place(mount: &mut Mount, userns: Option<BorrowedFd<'_>>, view: &Path, said: Options) -> Result<()> {
    let source = mount.source().clone().unwrap_or_default();
    let reach = if options(mount).any(|option| option == "rbind") { Reach::Recursive } else { Reach::Single };
    let restrictions: Vec<Restriction<'_>> = options(mount).filter_map(restriction).collect();
    attach(&source, reach, view, |tree| {
        if let Some(userns) = userns {
            idmap::map_ids(tree, userns, reach, &source)?;
        }
        restrictions
            .iter()
            .try_for_each(|restriction| idmap::change(tree, restriction.reach, restriction.change))
    })?;
    let rest = options(mount).filter_map(|option| match (restriction(option), said) {
        (None, _) => Some(option),
        (Some(_), Options::InTheView) => None,
        (Some(restriction), Options::SaidAgain) => Some(restriction.of_one_mount),
    });
    let rest = rest.map(str::to_owned).collect();
    mount.set_options(Some(rest)).set_source(Some(view.to_owned()));
    mount.set_uid_mappings(None).set_gid_mappings(None);
    Ok(())
}

/// A detached copy of `source`, finished by `prepare`, and attached at `view`, which is made of its kind.
fn attach(
    source: &Path,
    reach: Reach,
    view: &Path,
    prepare: impl FnOnce(BorrowedFd<'_>) -> std::result::Result<(), mount::MountError>,
) -> Result<()> {
    let tree = idmap::copy(source, reach).doing("copy the source of a mount")?;
    prepare(tree.as_fd()).doing("prepare a mount")?;
    if std::fs::metadata(source).doing("look at the source of a mount")?.is_dir() {
        std::fs::DirBuilder::new().mode(0o700).create(view).doing("make a mount point")?;
    } else {
        std::fs::File::create_new(view).doing("make a mount point")?;
    }
    mount::attach(tree.as_fd(), view).doing("attach a container's mount")
}

/// What becomes of the restrictions that a view has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Options {
    /// The handler does not hear of them. In a user namespace it could not change them.
    InTheView,
    /// It is told those of the mount itself: crun sets a mount's attributes to what it was told, and to nothing more.
    SaidAgain,
}

/// What an option says about the mount itself.
struct Restriction<'a> {
    reach: Reach,
    /// The same for the mount alone.
    of_one_mount: &'a str,
    change: Change,
}

fn restriction(option: &str) -> Option<Restriction<'_>> {
    let find = |name: &str| {
        let (set_by, _, attribute) =
            RESTRICTIONS.iter().find(|(set, clear, _)| *set == name || *clear == name)?;
        let (set, clear) = match name {
            "rw" => (Attributes::NONE, Attributes::NONE),
            name if name == *set_by => (*attribute, Attributes::NONE),
            _ => (Attributes::NONE, *attribute),
        };
        Some(Change { set, clear, private: false })
    };
    if let Some(change) = find(option) {
        return Some(Restriction { reach: Reach::Single, of_one_mount: option, change });
    }
    let of_one_mount = option.strip_prefix('r')?;
    let change = find(of_one_mount)?;
    Some(Restriction { reach: Reach::Recursive, of_one_mount, change })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_restrictions_of_one_mount_or_of_all() {
        let reach = |option| restriction(option).map(|r| (r.reach, r.change.set, r.change.clear));
        let (none, ro) = (Attributes::NONE, Attributes::READ_ONLY);
        assert_eq!(reach("ro"), Some((Reach::Single, ro, none)));
        assert_eq!(reach("rw"), Some((Reach::Single, none, none)));
        assert_eq!(reach("rro"), Some((Reach::Recursive, ro, none)));
        assert_eq!(reach("rexec"), Some((Reach::Recursive, none, Attributes::NO_EXEC)));
        for other in ["rbind", "rprivate", "relatime", "", "r"] {
            assert!(restriction(other).is_none(), "{other}");
        }
    }

    #[test]
    fn a_release_deletes_no_content() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("views");
        release(&dir).unwrap();
        std::fs::create_dir_all(dir.join("0/kept")).unwrap();
        release(&dir).unwrap_err();
        assert!(dir.join("0/kept").exists());
        std::fs::remove_dir(dir.join("0/kept")).unwrap();
        std::fs::write(dir.join("1"), "").unwrap();
        release(&dir).unwrap();
        assert!(!dir.exists());
    }
}
