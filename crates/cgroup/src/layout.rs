use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cgroups_rs::fs::hierarchies::{Mountinfo, UNIFIED_MOUNTPOINT, is_cgroup2_unified_mode, mountinfo_self};
use rustix::fs::{Mode, OFlags};

use crate::device_program::ProgramCache;
use crate::file::read_at;
use crate::{Cgroup, CgroupError, CgroupPath, Result};

/// Where the init systems of hybrid machines mount cgroup2.
const HYBRID_MOUNTPOINT: &str = "/sys/fs/cgroup/unified";
/// `linux/magic.h`.
const CGROUP2_SUPER_MAGIC: rustix::fs::FsWord = 0x6367_7270;

/// Superblock options of a v1 mount that name no controller.
const V1_MOUNT_FLAGS: [&str; 8] =
    ["rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "all", "none"];

/// Which interface the kernel offers for limits. A hybrid machine (v1 controllers and an empty cgroup2 beside them) is [`Version::V1`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One tree per controller or group of controllers.
    V1,
    /// One tree.
    V2,
}

/// One mounted tree.
#[derive(Debug)]
pub(crate) struct Hierarchy {
    pub(crate) mount: PathBuf,
    /// Open for lookups only; every access is relative to it, so a later mount over the path changes nothing.
    pub(crate) root: OwnedFd,
    pub(crate) controllers: Vec<String>,
}

impl Hierarchy {
    fn open(mount: PathBuf, controllers: Vec<String>) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&mount, flags, Mode::empty())
            .map_err(|source| CgroupError::Read { path: mount.clone(), source })?;
        Ok(Self { mount, root, controllers })
    }

    pub(crate) fn has(&self, controller: &str) -> bool {
        self.controllers.iter().any(|name| name == controller)
    }

    /// The directory of a cgroup, for messages and for other processes; `dir` is relative, `.` for the root.
    pub(crate) fn dir(&self, dir: &str) -> PathBuf {
        if dir == "." { self.mount.clone() } else { self.mount.join(dir) }
    }
}

#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) version: Version,
    /// v2: exactly one.
    pub(crate) hierarchies: Vec<Hierarchy>,
    /// The cgroup2 tree of a hybrid machine. We make nothing there, but OCI runtime programs do, so we remove there.
    pub(crate) beside: Option<Hierarchy>,
    pub(crate) programs: ProgramCache,
}

/// The machine's cgroup file systems, detected once. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Cgroups(pub(crate) Arc<Layout>);

impl Cgroups {
    /// Looks at what is mounted in the caller's mount namespace.
    ///
    /// # Errors
    /// [`CgroupError::NotMounted`]; [`CgroupError::Read`] when a mount point cannot be opened.
    pub fn detect() -> Result<Self> {
        if is_cgroup2_unified_mode() {
            return Self::v2_at(Path::new(UNIFIED_MOUNTPOINT));
        }
        let beside = v2_mount().map(|mount| Hierarchy::open(mount, Vec::new())).transpose()?;
        Self::new(Version::V1, open_all(v1_mounts(&mountinfo_self()))?, beside)
    }

    /// A v1 layout of these trees: mount point and its controllers (a named tree has `name=…`).
    ///
    /// # Errors
    /// [`CgroupError::NotMounted`] when there is none; [`CgroupError::Read`] when one cannot be opened.
    pub fn v1_at(mounts: Vec<(PathBuf, Vec<String>)>) -> Result<Self> {
        Self::new(Version::V1, open_all(mounts)?, None)
    }

    /// The v2 layout mounted at `mount`; its controllers are those of `cgroup.controllers` there.
    ///
    /// # Errors
    /// [`CgroupError::Read`] when it cannot be opened or is no cgroup2 mount.
    pub fn v2_at(mount: &Path) -> Result<Self> {
        let names = read_at(&Hierarchy::open(mount.to_owned(), Vec::new())?, ".", "cgroup.controllers")?;
        Self::v2_with(mount, names.split_ascii_whitespace().map(str::to_owned).collect())
    }

    /// The v2 layout mounted at `mount`, using these controllers only.
    ///
    /// # Errors
    /// [`CgroupError::Read`] when it cannot be opened.
    pub fn v2_with(mount: &Path, controllers: Vec<String>) -> Result<Self> {
        Self::new(Version::V2, vec![Hierarchy::open(mount.to_owned(), controllers)?], None)
    }

    fn new(version: Version, hierarchies: Vec<Hierarchy>, beside: Option<Hierarchy>) -> Result<Self> {
        if hierarchies.is_empty() {
            return Err(CgroupError::NotMounted);
        }
        Ok(Self(Arc::new(Layout { version, hierarchies, beside, programs: ProgramCache::default() })))
    }

    /// v1 or v2.
    #[must_use]
    pub fn version(&self) -> Version {
        self.0.version
    }

    /// Names of all controllers, as the kernel spells them; on v1 named trees too (`name=systemd`).
    pub fn controllers(&self) -> impl Iterator<Item = &str> {
        self.0.hierarchies.iter().flat_map(|hierarchy| hierarchy.controllers.iter().map(String::as_str))
    }

    /// Mount points: one on v2, one per tree on v1.
    pub fn mounts(&self) -> impl Iterator<Item = &Path> {
        self.0.hierarchies.iter().map(|hierarchy| hierarchy.mount.as_path())
    }

    /// A handle for a cgroup that may exist or not. Touches nothing.
    #[must_use]
    pub fn open(&self, path: &CgroupPath) -> Cgroup {
        Cgroup { layout: Arc::clone(&self.0), path: path.clone() }
    }
}

fn open_all(mounts: Vec<(PathBuf, Vec<String>)>) -> Result<Vec<Hierarchy>> {
    mounts.into_iter().map(|(mount, names)| Hierarchy::open(mount, names)).collect()
}

impl Layout {
    pub(crate) fn of(&self, controller: &str) -> Option<&Hierarchy> {
        self.hierarchies.iter().find(|hierarchy| hierarchy.has(controller))
    }
}

/// One entry per v1 tree. Of several mounts of one tree the whole one counts, and the one at the usual place: binds of parts of
/// it into the root filesystems of containers show here too.
fn v1_mounts(mounts: &[Mountinfo]) -> Vec<(PathBuf, Vec<String>)> {
    let mut mounts: Vec<&Mountinfo> = mounts.iter().filter(|mount| mount.fs_type.0 == "cgroup").collect();
    mounts.sort_by_key(|mount| {
        (mount.mount_root != Path::new("/"), !mount.mount_point.starts_with(UNIFIED_MOUNTPOINT))
    });
    let mut trees: Vec<(PathBuf, Vec<String>)> = Vec::new();
    for mount in mounts {
        let names: Vec<String> =
            mount.super_opts.iter().filter(|option| names_controller(option)).cloned().collect();
        let seen = trees.iter().any(|(_, others)| others.iter().any(|other| names.contains(other)));
        if !names.is_empty() && !seen {
            trees.push((mount.mount_point.clone(), names));
        }
    }
    trees
}

/// The cgroup2 tree that a hybrid machine has beside the v1 ones.
fn v2_mount() -> Option<PathBuf> {
    let found = rustix::fs::statfs(HYBRID_MOUNTPOINT).is_ok_and(|stat| stat.f_type == CGROUP2_SUPER_MAGIC);
    found.then(|| HYBRID_MOUNTPOINT.into())
}

fn names_controller(option: &str) -> bool {
    let flag = V1_MOUNT_FLAGS.contains(&option) || option.starts_with("release_agent=");
    !flag && (!option.contains('=') || option.starts_with("name="))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(root: &str, point: &str, kind: &str, options: &str) -> Mountinfo {
        Mountinfo {
            mount_root: root.into(),
            mount_point: point.into(),
            fs_type: (kind.to_owned(), None),
            super_opts: options.split(',').map(str::to_owned).collect(),
        }
    }

    #[test]
    fn every_v1_tree_is_found_once_at_its_usual_place() {
        let mounts = [
            mount("/", "/", "ext4", "rw"),
            mount("/pod", "/var/rootfs/sys/fs/cgroup/memory", "cgroup", "rw,memory"),
            mount("/", "/mnt/cpu", "cgroup", "rw,cpu,cpuacct"),
            mount("/", "/sys/fs/cgroup/systemd", "cgroup", "rw,xattr,release_agent=/bin/x,name=systemd"),
            mount("/", "/sys/fs/cgroup/cpu,cpuacct", "cgroup", "rw,cpu,cpuacct"),
            mount("/", "/sys/fs/cgroup/memory", "cgroup", "rw,memory"),
            mount("/", "/sys/fs/cgroup/cpuset", "cgroup", "rw,cpuset,clone_children,cpuset_v2_mode"),
            mount("/", "/sys/fs/cgroup/unified", "cgroup2", "rw,nsdelegate"),
        ];
        let found = v1_mounts(&mounts);
        let found: Vec<_> =
            found.iter().map(|(point, names)| (point.to_str().unwrap(), names.join(" "))).collect();
        let want = [
            ("/sys/fs/cgroup/systemd", "name=systemd"),
            ("/sys/fs/cgroup/cpu,cpuacct", "cpu cpuacct"),
            ("/sys/fs/cgroup/memory", "memory"),
            ("/sys/fs/cgroup/cpuset", "cpuset"),
        ];
        assert_eq!(found, want.map(|(point, names)| (point, names.to_owned())));
        assert!(v1_mounts(&mounts[..1]).is_empty());
    }

    #[test]
    fn without_a_tree_there_is_no_layout() {
        assert!(matches!(Cgroups::v1_at(Vec::new()), Err(CgroupError::NotMounted)));
        let nowhere = Cgroups::v2_at(Path::new("/nonexistent"));
        assert!(matches!(nowhere, Err(CgroupError::Read { source: rustix::io::Errno::NOENT, .. })));
    }
}
