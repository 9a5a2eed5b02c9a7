//! Root filesystems: an overlay of layers, with or without a writable layer.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};

use crisp_sys::idmap;
use crisp_sys::mount::{self, Overlay, Reach, Writable};
use crisp_sys::path::RootedDir;
use rustix::fs::Mode;

use crate::error::{Result, SnapshotError};
use crate::store::make_dir;
use crate::{ChainId, LayerStore, Usage, tree};

const UPPER: &str = "upper";
const WORK: &str = "work";
/// Mount point of the mapped view of the layers, while an overlay is made of it.
const LAYERS_VIEW: &str = "layers";

/// Whose ids a root filesystem shows. The layers keep their owners on disk (0 is the image's root), the overlay is made of a view of
/// them that is mapped. What the container writes belongs on disk to the ids that it is mapped to: overlay makes its own things in the
/// writable directory as the host's root, whom a mapped view of that directory would not know.
#[derive(Debug, Clone, Copy)]
pub struct MappedIds<'a> {
    /// The user namespace.
    pub userns: BorrowedFd<'a>,
    /// An existing directory, on a private mount, where the views hang for the moment.
    pub scratch: &'a Path,
}

/// How a root filesystem shows.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shown<'a> {
    /// With the ids of a user namespace; else with those of the host.
    pub ids: Option<MappedIds<'a>>,
    /// SELinux label of all files; none where there is no SELinux.
    pub label: Option<&'a str>,
}

impl<'a> From<Option<MappedIds<'a>>> for Shown<'a> {
    fn from(ids: Option<MappedIds<'a>>) -> Self {
        Self { ids, label: None }
    }
}

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
        Self::prepare_for(store, writable, chain, target, Shown::default())
    }

    /// As [`Self::prepare`]; with other ids or an SELinux label.
    ///
    /// # Errors
    /// As [`Self::prepare`]; [`SnapshotError::Mount`] of kind `Unsupported` where the file system's ids cannot be mapped.
    pub fn prepare_for<'a>(
        store: &LayerStore,
        writable: &Path,
        chain: &[ChainId],
        target: &Path,
        shown: impl Into<Shown<'a>>,
    ) -> Result<Self> {
        let Shown { ids, label } = shown.into();
        let mut lowers = store.lowers(chain)?;
        check_free(target)?;
        let layers = ids.as_ref().map(|ids| View::open(ids, store.layers_dir(), LAYERS_VIEW)).transpose()?;
        if let Some(layers) = &layers {
            lowers = layers.paths(store.layers_dir(), &lowers)?;
        }
        let (upper, work) = (writable.join(UPPER), writable.join(WORK));
        make_dir(writable, 0o700)?;
        make_upper(&upper, lowers.first().map_or(&upper, |top| top))?;
        // Every volatile mount leaves a mark in the work directory that refuses the next one (`work/incompat/volatile`). Nothing
        // else of worth is in there while it is not mounted.
        tree::remove(&work)?;
        make_dir(&work, 0o700)?;
        make_dir(target, 0o700)?;
        let writable = Some(Writable { upper: &upper, work: &work });
        let overlay = Overlay { lowers: &lowers, writable, label };
        mount::overlay(&overlay, target).map_err(SnapshotError::mount(target))?;
        Ok(Self { target: target.to_owned() })
    }

    /// Mounts an image to look at: read-only, and no device node, setuid file or program in it has effect.
    ///
    /// # Errors
    /// As [`Self::prepare`].
    pub fn mount_read_only(store: &LayerStore, chain: &[ChainId], target: &Path) -> Result<Self> {
        Self::mount_read_only_for(store, chain, target, Shown::default())
    }

    /// As [`Self::mount_read_only`]; with other ids or an SELinux label.
    ///
    /// # Errors
    /// As [`Self::prepare_for`].
    pub fn mount_read_only_for<'a>(
        store: &LayerStore,
        chain: &[ChainId],
        target: &Path,
        shown: impl Into<Shown<'a>>,
    ) -> Result<Self> {
        let Shown { ids, label } = shown.into();
        let mut lowers = store.lowers(chain)?;
        check_free(target)?;
        // Without an upper directory older kernels ask for two lower ones.
        if lowers.len() == 1 {
            lowers.push(store.bottom());
        }
        make_dir(target, 0o700)?;
        let layers = ids.as_ref().map(|ids| View::open(ids, store.layers_dir(), LAYERS_VIEW)).transpose()?;
        if let Some(layers) = &layers {
            lowers = layers.paths(store.layers_dir(), &lowers)?;
        }
        let view = Overlay { lowers: &lowers, writable: None, label };
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

    /// Writes a container's changes as an uncompressed layer into `to`; the paths that it deleted, absolute. `writable`: its directory
    /// for changes. Nobody should write there meanwhile.
    ///
    /// # Errors
    /// [`SnapshotError::Refused`] for directories that are nested too deep; [`SnapshotError::Entry`], [`SnapshotError::Io`].
    pub fn write_changes(writable: &Path, to: impl std::io::Write) -> Result<Vec<PathBuf>> {
        crate::diff::write(&writable.join(UPPER), to)
    }

    /// Fills a container's directory for changes, which must not be there yet, with those of a layer that [`Self::write_changes`] wrote
    /// or somebody else: an enemy's input, as every layer. `chain`: the image below, bottom first.
    ///
    /// # Errors
    /// As [`LayerStore::unpack`] and [`LayerStore::commit`]. `writable` may be left without content.
    pub fn read_changes(
        store: &LayerStore,
        chain: &[ChainId],
        from: impl std::io::Read,
        writable: &Path,
        limits: &crate::Limits,
    ) -> Result<()> {
        let staged = store.unpack(from, limits)?;
        make_dir(writable, 0o700)?;
        store.place(staged, chain, &writable.join(UPPER))
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

/// A directory shown with mapped ids, for as long as this value lives: an overlay keeps what it is made of.
struct View {
    at: PathBuf,
}

impl View {
    fn open(ids: &MappedIds<'_>, source: &Path, name: &str) -> Result<Self> {
        let at = ids.scratch.join(name);
        make_dir(&at, 0o700)?;
        let view = Self { at };
        let failed = SnapshotError::mount(source);
        let map = || {
            let tree = idmap::copy(source, Reach::Single)?;
            idmap::map_ids(tree.as_fd(), ids.userns, Reach::Single, source)?;
            mount::attach(tree.as_fd(), &view.at)
        };
        map().map_err(failed)?;
        Ok(view)
    }

    /// The same directories below this view.
    fn paths(&self, source: &Path, paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
        let inside = |path: &PathBuf| {
            let relative = path
                .strip_prefix(source)
                .map_err(|_elsewhere| SnapshotError::io("find a layer at", path)(rustix::io::Errno::NOENT))?;
            Ok(self.at.join(relative))
        };
        paths.iter().map(inside).collect()
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // What stays is seen by whoever removes the scratch directory: it is not empty then.
        let _seen_later = mount::unmount_detach(&self.at);
        let _seen_later = rustix::fs::rmdir(&self.at);
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
