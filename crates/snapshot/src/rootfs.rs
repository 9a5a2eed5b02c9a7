//! Root filesystems: an overlay of layers, with or without a writable layer.

use std::path::{Path, PathBuf};

use crisp_sys::mount::{self, Overlay, Writable};
use crisp_sys::path::RootedDir;
use rustix::fs::Mode;

use crate::error::{Result, SnapshotError};
use crate::store::make_dir;
use crate::{ChainId, LayerStore, Usage, tree};

const UPPER: &str = "upper";
const WORK: &str = "work";

/// A mounted root filesystem. It stays mounted when this value goes; [`Rootfs::unmount`] ends it.
#[derive(Debug)]
pub struct Rootfs {
    target: PathBuf,
}

impl Rootfs {
    /// Mounts a container's root filesystem.
    ///
    /// `writable`: its directory for changes, made if missing, on a file system that can carry an overlay's upper directory.
    /// `chain`: the image's layers, bottom first; none gives an empty root. `target`: the mount point, made if missing. Changes
    /// found in `writable` are kept. The mount is `volatile`: after a crash of the machine `writable` must be removed.
    ///
    /// Device nodes, setuid files and capabilities of the image are in effect there.
    ///
    /// # Errors
    /// [`SnapshotError::LayerNotFound`]; [`SnapshotError::Mounted`]; [`SnapshotError::Mount`], [`SnapshotError::Io`].
    pub fn prepare(store: &LayerStore, writable: &Path, chain: &[ChainId], target: &Path) -> Result<Self> {
        let lowers = store.lowers(chain)?;
        check_free(target)?;
        let (upper, work) = (writable.join(UPPER), writable.join(WORK));
        make_dir(writable, 0o700)?;
        make_upper(&upper, lowers.first().map_or(&upper, |top| top))?;
        // Every volatile mount leaves a mark in the work directory that refuses the next one (`work/incompat/volatile`). Nothing
        // else of worth is in there while it is not mounted.
        tree::remove(&work)?;
        make_dir(&work, 0o700)?;
        make_dir(target, 0o700)?;
        let overlay = Overlay { lowers: &lowers, writable: Some(Writable { upper: &upper, work: &work }) };
        mount::overlay(&overlay, target).map_err(SnapshotError::mount(target))?;
        Ok(Self { target: target.to_owned() })
    }

    /// Mounts an image to look at: read-only, and no device node, setuid file or program in it has effect.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub fn mount_read_only(store: &LayerStore, chain: &[ChainId], target: &Path) -> Result<Self> {
        let mut lowers = store.lowers(chain)?;
        check_free(target)?;
        // Without an upper directory older kernels ask for two lower ones.
        if lowers.len() == 1 {
            lowers.push(store.bottom());
        }
        make_dir(target, 0o700)?;
        let view = Overlay { lowers: &lowers, writable: None };
        mount::overlay(&view, target).map_err(SnapshotError::mount(target))?;
        Ok(Self { target: target.to_owned() })
    }

    /// Where it is mounted.
    #[must_use]
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// A descriptor below which paths of the container resolve.
    ///
    /// # Errors
    /// [`SnapshotError::Path`].
    pub fn open(&self) -> Result<RootedDir> {
        RootedDir::open(&self.target).map_err(SnapshotError::path("open the root"))
    }

    /// Takes a root filesystem off `target`, in use or not, and removes the empty mount point. Already gone is success.
    ///
    /// # Errors
    /// [`SnapshotError::Mount`], [`SnapshotError::Io`].
    pub fn unmount(target: &Path) -> Result<()> {
        mount::unmount_detach(target).map_err(SnapshotError::mount(target))?;
        match rustix::fs::rmdir(target) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(source) => Err(SnapshotError::io("remove", target)(source)),
        }
    }

    /// Removes a container's writable directory whatever is in it, however deep; links are removed, never followed. Already gone
    /// is success.
    ///
    /// # Errors
    /// [`SnapshotError::Io`] with the first thing that could not be removed; the rest is removed all the same.
    pub fn remove_writable(path: &Path) -> Result<()> {
        tree::remove(path)
    }

    /// What a container's changes occupy. A walk of its writable directory; blocks of 512 bytes as the file system counts them.
    /// What vanishes while it walks is not counted; a directory that is not there is empty.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub fn writable_usage(path: &Path) -> Result<Usage> {
        tree::usage(&path.join(UPPER))
    }
}

fn check_free(target: &Path) -> Result<()> {
    if mount::is_mountpoint(target).map_err(SnapshotError::mount(target))? {
        return Err(SnapshotError::Mounted { target: target.to_owned() });
    }
    Ok(())
}

/// The upper directory decides mode and owner of the merged root: take those of the topmost layer.
fn make_upper(upper: &Path, top: &Path) -> Result<()> {
    if upper.exists() {
        return Ok(());
    }
    let stat = rustix::fs::stat(top).map_err(SnapshotError::io("look at", top))?;
    make_dir(upper, 0o700)?;
    let owner = (rustix::fs::Uid::from_raw(stat.st_uid), rustix::fs::Gid::from_raw(stat.st_gid));
    rustix::fs::chown(upper, Some(owner.0), Some(owner.1))
        .map_err(SnapshotError::io("set the owner of", upper))?;
    rustix::fs::chmod(upper, Mode::from_raw_mode(stat.st_mode & 0o7777))
        .map_err(SnapshotError::io("set the mode of", upper))
}
