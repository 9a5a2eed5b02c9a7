//! Mounts that cover what libcontainer has made.
//!
//! libcontainer makes device nodes and links in whatever is mounted on `/dev`, even where that is the host's. So a container with a mount
//! of its own there first gets an ordinary `/dev`, which is covered when all is done.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use crisp_sys::mount::{self, Reach};
use crisp_sys::path::{Resolve, RootedDir};
use oci_spec::runtime::{Mount, Spec};
use rustix::fs::{AtFlags, Gid, Uid};

use super::spec::special;
use crate::error::{Error, Result, Step as _};

/// Modes of mount points that are missing, as runtimes make them.
const DIRECTORY_MODE: u32 = 0o755;
const FILE_MODE: u32 = 0o644;

/// A mount that waits.
#[derive(Debug)]
pub(super) struct Cover {
    tree: OwnedFd,
    target: PathBuf,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
}

/// Takes the bind mounts at and below `/dev` out of the specification, if there is one of all of `/dev`. Propagation was taken out
/// before, and the daemon gives sources that need no further options.
///
/// # Errors
/// `Unsupported` for options, since what is attached later is a plain bind; what the kernel says.
pub(super) fn take(spec: &mut Spec) -> Result<Vec<Cover>> {
    let dev = Path::new("/dev");
    let mounts = spec.mounts().clone().unwrap_or_default();
    if !mounts.iter().any(|mount| mount.destination() == dev && is_bind(mount)) {
        return Ok(Vec::new());
    }
    let (below, mut rest): (Vec<_>, Vec<_>) =
        mounts.into_iter().partition(|mount| mount.destination().starts_with(dev));
    let covers = below.iter().map(open).collect::<Result<_>>()?;
    let pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    rest.push(special("tmpfs", dev, &["nosuid", "mode=755", "size=64k"])?);
    rest.push(special("devpts", &dev.join("pts"), &pts)?);
    spec.set_mounts(Some(rest));
    Ok(covers)
}

fn is_bind(mount: &Mount) -> bool {
    mount.options().iter().flatten().any(|option| option == "bind" || option == "rbind")
}

fn open(mount: &Mount) -> Result<Cover> {
    let target = mount.destination().clone();
    let mut reach = None;
    for option in mount.options().iter().flatten() {
        match option.as_str() {
            "bind" => reach = Some(Reach::Single),
            "rbind" => reach = Some(Reach::Recursive),
            other => {
                return Err(Error::Unsupported(format!(
                    "the option {other} of the mount at {}",
                    target.display()
                )));
            }
        }
    }
    let (Some(reach), Some(source)) = (reach, mount.source()) else {
        return Err(Error::Unsupported(format!("the mount at {} beside one on /dev", target.display())));
    };
    let step = || format!("copy the mount {}", source.display());
    let kind = if std::fs::metadata(source).step(step)?.is_dir() { Kind::Directory } else { Kind::File };
    let tree =
        crisp_sys::idmap::copy(source, reach).map_err(|error| Error::Said(crate::error::chain(&error)))?;
    Ok(Cover { tree, target, kind })
}

impl Cover {
    /// Attaches it inside the container. A mount point that is missing is made, in what covers `/dev`.
    pub(super) fn attach(&self) -> Result<()> {
        let said = |error: &(dyn std::error::Error + 'static)| {
            Error::Said(format!("mount {}: {}", self.target.display(), crate::error::chain(error)))
        };
        let root = RootedDir::open(Path::new("/")).map_err(|error| said(&error))?;
        let missing =
            root.symlink_metadata(&self.target, Resolve::InRoot).map_err(|error| said(&error))?.is_none();
        let point = match self.kind {
            Kind::Directory => root
                .create_dir_all(&self.target, DIRECTORY_MODE)
                .and_then(|dir| dir.open_path(Path::new("."), Resolve::InRoot)),
            Kind::File => root.create_mount_file(&self.target, FILE_MODE),
        };
        let point = point.map_err(|error| said(&error))?;
        if missing {
            // Not the container's user's, which this process has already.
            rustix::fs::chownat(&point, "", Some(Uid::ROOT), Some(Gid::ROOT), AtFlags::EMPTY_PATH)
                .step(|| format!("set the owner of {}", self.target.display()))?;
        }
        mount::attach_at(self.tree.as_fd(), point.as_fd()).map_err(|error| said(&error))
    }
}
