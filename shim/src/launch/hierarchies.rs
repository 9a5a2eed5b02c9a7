//! cgroup v1 inside a container: a tmpfs with a read-only view of the container's own cgroup in each hierarchy.
//!
//! libcontainer's own mounts of them are writable and show the host's `name=systemd`. It makes the tmpfs alone; the views are copied
//! beforehand and attached by init when all else is mounted, which takes a tenth of the system calls of ordinary mounts.

use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crisp_proto::supervisor as pb;
use crisp_sys::idmap::{self, Attributes, Change};
use crisp_sys::mount::{self, Reach};
use crisp_sys::path::{Resolve, RootedDir};
use oci_spec::runtime::{Mount, Spec};
use rustix::fs::{AtFlags, Gid, Uid};
use rustix::mount::MountFlags;

use super::spec::special;
use crate::error::{Error, Result, Step as _, chain};

/// Mode of the mount points, as of the hierarchies' own directories.
const DIRECTORY_MODE: u32 = 0o755;

/// The views that wait for their tmpfs.
#[derive(Debug)]
pub(super) struct Hierarchies {
    mount_point: PathBuf,
    views: Vec<View>,
}

#[derive(Debug)]
struct View {
    target: PathBuf,
    tree: OwnedFd,
}

impl Hierarchies {
    /// Puts the tmpfs in the place of the specification's cgroup mount. `None` where there is no such mount, or cgroup v2.
    ///
    /// # Errors
    /// When a cgroup's directory cannot be copied.
    pub(super) fn take(spec: &mut Spec, cgroup: &pb::Cgroup) -> Result<Option<Self>> {
        let mut mounts = spec.mounts().clone().unwrap_or_default();
        let is_cgroup = |mount: &Mount| mount.typ().as_deref() == Some("cgroup");
        let Some(at) = mounts.iter().position(is_cgroup).filter(|_| cgroup.v2_dir.is_empty()) else {
            return Ok(None);
        };
        let mount_point = mounts[at].destination().clone();
        mounts[at] = special("tmpfs", &mount_point, &["nosuid", "nodev", "noexec", "mode=755"])?;
        let mut views = Vec::new();
        for dir in cgroup.v1_tasks.iter().filter_map(|tasks| Path::new(tasks).parent()) {
            let Some(target) = hierarchy_name(dir).map(|name| mount_point.join(name)) else { continue };
            // A volume there is what its container wants to see.
            if !mounts.iter().any(|mount| mount.destination().starts_with(&target)) {
                views.push(View { target, tree: copy(dir)? });
            }
        }
        spec.set_mounts(Some(mounts));
        Ok(Some(Self { mount_point, views }))
    }

    /// Attaches the views inside the container and makes the tmpfs read-only.
    ///
    /// # Errors
    /// What the kernel says, with the mount point.
    pub(super) fn attach(&self) -> Result<()> {
        let root = RootedDir::open(Path::new("/")).map_err(|error| Error::Said(chain(&error)))?;
        self.views.iter().try_for_each(|view| view.attach(&root))?;
        let flags = MountFlags::RDONLY
            | MountFlags::BIND
            | MountFlags::NOSUID
            | MountFlags::NODEV
            | MountFlags::NOEXEC;
        rustix::mount::mount_remount(&self.mount_point, flags, "")
            .step(|| format!("make {} read-only", self.mount_point.display()))
    }
}

impl View {
    fn attach(&self, root: &RootedDir) -> Result<()> {
        let said = |error: &(dyn std::error::Error + 'static)| {
            Error::Said(format!("mount {}: {}", self.target.display(), chain(error)))
        };
        let point = root
            .create_dir_all(&self.target, DIRECTORY_MODE)
            .and_then(|dir| dir.open_path(Path::new("."), Resolve::InRoot))
            .map_err(|error| said(&error))?;
        // Not the container's user's, which this process has already.
        rustix::fs::chownat(&point, "", Some(Uid::ROOT), Some(Gid::ROOT), AtFlags::EMPTY_PATH)
            .step(|| format!("set the owner of {}", self.target.display()))?;
        mount::attach_at(self.tree.as_fd(), point.as_fd()).map_err(|error| said(&error))
    }
}

/// A detached, private, read-only copy of what is mounted at a cgroup's directory.
fn copy(dir: &Path) -> Result<OwnedFd> {
    let read_only = Change {
        set: Attributes::READ_ONLY
            .with(Attributes::NO_SUID)
            .with(Attributes::NO_DEV)
            .with(Attributes::NO_EXEC),
        private: true,
        ..Change::default()
    };
    let copied = idmap::copy(dir, Reach::Single)
        .and_then(|tree| idmap::change(tree.as_fd(), Reach::Single, read_only).map(|()| tree));
    copied.map_err(|error| Error::Said(format!("copy the mount of {}: {}", dir.display(), chain(&error))))
}

/// Name of the hierarchy's mount point: the nearest directory above that lies on another file system.
fn hierarchy_name(dir: &Path) -> Option<PathBuf> {
    let device = std::fs::metadata(dir).ok()?.dev();
    let top =
        dir.ancestors().take_while(|dir| std::fs::metadata(dir).is_ok_and(|m| m.dev() == device)).last()?;
    top.file_name().map(PathBuf::from)
}
