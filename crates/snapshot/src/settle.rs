//! Placing a layer on its parents.
//!
//! A layer speaks of what is below it: it hides things, links to files, puts files into directories that only the parents
//! have, or that are links there. All of it is settled here, against a view of the parents, an overlay that nobody else sees:
//!
//! 1. a directory that the layer merely mentions and that is a link below is where the link leads;
//! 2. hard links to files below copy the file up, under both names, as a copy-up would;
//! 3. directories that the layer merely mentions take the attributes they have below;
//! 4. whiteouts and opaque directories are made where there is something to hide, and only there: overlayfs shows a stray
//!    whiteout in directories that it need not merge;
//! 5. directories get their attributes.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crisp_sys::mount::{self, Overlay};
use crisp_sys::path::{Missing, Resolve, RootedDir};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, XattrFlags};
use rustix::io::Errno;

use crate::archive::Time;
use crate::entry::{self, Owner};
use crate::error::{Result, SnapshotError};
use crate::records::{Attributes, Directory, Records, join, name, parent};
use crate::unpack::walking;
use crate::{copy, tree};

/// Marks a directory that hides all below it (Linux, Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories").
pub(crate) const OPAQUE: (&str, &[u8]) = ("trusted.overlay.opaque", b"y");

/// What a directory is that no layer has an entry for.
const DEFAULT_DIRECTORY_MODE: u32 = 0o755;

/// Directories of one layer that turn out to be links below.
const RELOCATIONS_MAX: usize = 4096;

/// `lowers`: contents of the layers below, topmost first, and an empty directory last. `scratch`: an empty directory.
pub(crate) fn settle(
    content: &RootedDir,
    records: Records,
    lowers: &[PathBuf],
    scratch: &Path,
) -> Result<()> {
    let view = if lowers.len() > 1 { Some(view(lowers, scratch)?) } else { None };
    let mut settler = Settler { content, view, records, ours: Owner::of_process() };
    settler.relocate()?;
    settler.link()?;
    settler.shelter()?;
    settler.inherit()?;
    settler.hide()?;
    settler.finish()
}

fn view(lowers: &[PathBuf], scratch: &Path) -> Result<RootedDir> {
    let overlay = Overlay { lowers, writable: None, label: None };
    let mount = mount::overlay_detached(&overlay, scratch).map_err(SnapshotError::mount(scratch))?;
    RootedDir::from_fd(mount).map_err(SnapshotError::path("open the layers below"))
}

struct Settler<'a> {
    content: &'a RootedDir,
    /// The layers below; none at the bottom.
    view: Option<RootedDir>,
    records: Records,
    ours: Owner,
}

impl Settler<'_> {
    fn relocate(&mut self) -> Result<()> {
        let implied =
            |(path, dir): (&Vec<u8>, &Directory)| matches!(dir, Directory::Implied).then(|| path.clone());
        let mut todo: VecDeque<Vec<u8>> = self.records.dirs.iter().filter_map(implied).collect();
        let mut relocations = 0;
        while let Some(path) = todo.pop_front() {
            if !matches!(self.records.dirs.get(&path), Some(Directory::Implied))
                || !self.is_link_below(&path)?
            {
                continue;
            }
            relocations += 1;
            if relocations > RELOCATIONS_MAX {
                return Err(refused(&path, "too many of its directories are links in the layers below"));
            }
            todo.extend(self.relocate_one(&path)?);
        }
        Ok(())
    }

    fn is_link_below(&self, path: &[u8]) -> Result<bool> {
        if self.records.whiteouts.contains(path) || self.records.opaques.contains(path) {
            return Ok(false);
        }
        let found = self.below(path)?;
        Ok(found.is_some_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink))
    }

    /// Moves a directory's content to where its namesake below leads, and tells the implied directories to look at again. A link
    /// that leads to no directory is replaced by the directory instead.
    fn relocate_one(&mut self, path: &[u8]) -> Result<Vec<Vec<u8>>> {
        let Some(view) = &self.view else { return Ok(Vec::new()) };
        let Ok(target) = view.walk(as_path(path), Missing::Fail) else { return Ok(Vec::new()) };
        let real = target.real.as_os_str().as_bytes().to_vec();
        let nested = real == path || real.strip_prefix(path).is_some_and(|rest| rest.first() == Some(&b'/'));
        if nested {
            return Ok(Vec::new());
        }
        let mut again = Vec::new();
        let to = self.make_dirs(&real, &mut again)?;
        let from = self.content.walk(as_path(path), Missing::Fail).map_err(|e| at(path, walking(e)))?;
        let from = open_here(from.fd.as_fd()).map_err(failed("open", path))?;
        merge(from.as_fd(), to.as_fd()).map_err(failed("move to where it leads", path))?;
        let above = self.content.walk(as_path(parent(path).unwrap_or_default()), Missing::Fail);
        let above = above.map_err(|e| at(path, walking(e)))?;
        tree::remove_at(above.fd.as_fd(), as_os(name(path))).map_err(failed("remove", path))?;
        again.extend(self.records.move_below(path, &real));
        Ok(again)
    }

    /// Makes a directory of the layer and those above it; `made` takes the new ones, which are implied.
    fn make_dirs(&mut self, path: &[u8], made: &mut Vec<Vec<u8>>) -> Result<OwnedFd> {
        let walked = self
            .content
            .walk(as_path(path), Missing::Create { mode: 0o700 })
            .map_err(|e| at(path, walking(e)))?;
        for new in walked.made {
            let new = new.as_os_str().as_bytes().to_vec();
            self.records.imply(new.clone());
            made.push(new);
        }
        Ok(walked.fd)
    }

    fn link(&mut self) -> Result<()> {
        for (path, target) in self.records.take_links() {
            let parent_fd = self.make_dirs(parent(&path).unwrap_or_default(), &mut Vec::new())?;
            let to = (parent_fd.as_fd(), as_os(name(&path)));
            tree::remove_at(to.0, to.1).map_err(failed("replace what is at", &path))?;
            self.records.forget(&path);
            if !self.link_here(&path, &target, to)? {
                self.link_below(&path, &target, to)?;
            }
        }
        Ok(())
    }

    /// To a file that this layer has, by now. False when it has none.
    fn link_here(&self, path: &[u8], target: &[u8], to: (BorrowedFd<'_>, &OsStr)) -> Result<bool> {
        let Ok(dir) = self.content.walk(as_path(parent(target).unwrap_or_default()), Missing::Fail) else {
            return Ok(false);
        };
        match rustix::fs::linkat(&dir.fd, as_os(name(target)), to.0, to.1, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(Errno::PERM) => Err(refused(path, "it is a hard link to a directory")),
            Err(source) => Err(failed("link", path)(source)),
        }
    }

    /// To a file of a layer below, which is copied up.
    fn link_below(&mut self, path: &[u8], target: &[u8], to: (BorrowedFd<'_>, &OsStr)) -> Result<()> {
        const GONE: &str = "it is a hard link to a file that does not exist";
        let Some(view) = &self.view else { return Err(refused(path, GONE)) };
        let dir = match view.walk(as_path(parent(target).unwrap_or_default()), Missing::Fail) {
            Ok(dir) => dir,
            Err(e) if e.is_not_found() => return Err(refused(path, GONE)),
            Err(e) => return Err(at(path, walking(e))),
        };
        let real = join(dir.real.as_os_str().as_bytes(), name(target));
        let stat = match rustix::fs::statat(&dir.fd, as_os(name(target)), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Err(refused(path, GONE)),
            Err(source) => return Err(failed("look at the target of", path)(source)),
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            return Err(refused(path, "it is a hard link to a directory"));
        }
        // The target may have been copied up already, under a name without links.
        if real != target && self.link_here(path, &real, to)? {
            return Ok(());
        }
        copy::node((dir.fd.as_fd(), as_os(name(target))), to, self.ours).map_err(|e| at(path, e))?;
        if self.records.hides(&real) || self.records.whiteouts.contains(&real) {
            return Ok(());
        }
        // The target is the same file from now on.
        let home = self.make_dirs(parent(&real).unwrap_or_default(), &mut Vec::new())?;
        match rustix::fs::linkat(to.0, to.1, &home, as_os(name(&real)), AtFlags::empty()) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(source) => Err(failed("link", path)(source)),
        }
    }

    /// Makes the directories of whiteouts, and opaque ones, again that were replaced meanwhile, and then replaced by directories once more.
    fn shelter(&mut self) -> Result<()> {
        let hidden_in = self.records.whiteouts.iter().filter_map(|path| parent(path)).map(<[u8]>::to_vec);
        let dirs: BTreeSet<Vec<u8>> = hidden_in.chain(self.records.opaques.iter().cloned()).collect();
        for dir in dirs {
            if self.look(&dir)?.is_some() || !self.below(&dir)?.is_some_and(|stat| is_dir(&stat)) {
                continue;
            }
            let mut ups = crate::records::ancestors(&dir);
            let nearest = ups.find_map(|up| self.look(up).transpose()).transpose()?;
            if nearest.is_some_and(|stat| is_dir(&stat)) {
                self.make_dirs(&dir, &mut Vec::new())?;
            }
        }
        Ok(())
    }

    fn inherit(&mut self) -> Result<()> {
        let implied: Vec<Vec<u8>> = self
            .records
            .dirs
            .iter()
            .filter(|(_, d)| matches!(d, Directory::Implied))
            .map(|(p, _)| p.clone())
            .collect();
        for path in implied {
            let found = match self.below(&path)? {
                Some(stat) if is_dir(&stat) && !self.records.whiteouts.contains(&path) => {
                    self.attributes_below(&path)?
                }
                _ => None,
            };
            let attributes = found.unwrap_or_else(|| {
                // Not the time of unpacking: the same layer gives the same tree.
                Attributes { mode: DEFAULT_DIRECTORY_MODE, mtime: Time::default(), ..Attributes::default() }
            });
            drop(self.records.dirs.insert(path, Directory::Given(attributes)));
        }
        Ok(())
    }

    fn attributes_below(&self, path: &[u8]) -> Result<Option<Attributes>> {
        let Some(view) = &self.view else { return Ok(None) };
        let dir = view.open_dir(as_path(path), Resolve::Strict).map_err(|e| at(path, walking(e)))?;
        let attributes = open_here(dir.as_fd()).and_then(|dir| entry::attributes_of(dir.as_fd()));
        attributes.map(Some).map_err(failed("read the attributes of", path))
    }

    fn hide(&mut self) -> Result<()> {
        let mut opaques = std::mem::take(&mut self.records.opaques);
        for path in &self.records.whiteouts {
            if self.below_with(path, &opaques)?.is_none() {
                continue;
            }
            match self.look(path)? {
                // A directory made anew shows nothing of its predecessor.
                Some(stat) if is_dir(&stat) => {
                    opaques.insert(path.clone());
                }
                Some(_) => {}
                None => self.make_whiteout(path)?,
            }
        }
        for path in &opaques {
            let merges = self.below_with(path, &opaques)?.is_some_and(|stat| is_dir(&stat));
            if merges && self.look(path)?.is_some_and(|stat| is_dir(&stat)) {
                self.make_opaque(path)?;
            }
        }
        Ok(())
    }

    fn make_whiteout(&self, path: &[u8]) -> Result<()> {
        // The directory may have been replaced later in the archive; then nothing of it shows anyway.
        let Ok(dir) = self.content.open_dir(as_path(parent(path).unwrap_or_default()), Resolve::Strict)
        else {
            return Ok(());
        };
        let made = rustix::fs::mknodat(&dir, as_os(name(path)), FileType::CharacterDevice, Mode::empty(), 0);
        made.map_err(failed("hide", path))
    }

    fn make_opaque(&self, path: &[u8]) -> Result<()> {
        let dir = self.open(path)?;
        rustix::fs::fsetxattr(&dir, OPAQUE.0, OPAQUE.1, XattrFlags::empty())
            .map_err(failed("make opaque", path))
    }

    fn finish(&self) -> Result<()> {
        for (path, directory) in &self.records.dirs {
            let Directory::Given(attributes) = directory else { continue };
            let dir = self.open(path)?;
            entry::set_file(dir.as_fd(), attributes, self.ours).map_err(|e| at(path, e))?;
        }
        Ok(())
    }

    fn open(&self, path: &[u8]) -> Result<OwnedFd> {
        let dir = self.content.open_dir(as_path(path), Resolve::Strict).map_err(|e| at(path, walking(e)))?;
        open_here(dir.as_fd()).map_err(failed("open", path))
    }

    /// What this layer has at a path.
    fn look(&self, path: &[u8]) -> Result<Option<Stat>> {
        self.content.symlink_metadata(as_path(path), Resolve::Strict).map_err(|e| at(path, walking(e)))
    }

    /// What the layers below show at a path, where this layer lets them.
    fn below(&self, path: &[u8]) -> Result<Option<Stat>> {
        self.below_with(path, &self.records.opaques)
    }

    fn below_with(&self, path: &[u8], opaques: &BTreeSet<Vec<u8>>) -> Result<Option<Stat>> {
        let Some(view) = &self.view else { return Ok(None) };
        if crate::records::ancestors(path)
            .any(|above| self.records.whiteouts.contains(above) || opaques.contains(above))
        {
            return Ok(None);
        }
        view.symlink_metadata(as_path(path), Resolve::Strict).map_err(|e| at(path, walking(e)))
    }
}

/// Moves all that is in `from` into `to`; directories that both have are merged, else what is in `from` wins. As deep as one
/// layer's directories may be.
fn merge(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> rustix::io::Result<()> {
    let mut entries = Dir::read_from(from)?;
    while let Some(entry) = entries.read() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = |dir| rustix::fs::openat(dir, name, flags, Mode::empty());
        match (open(from), open(to)) {
            (Ok(from), Ok(to)) => merge(from.as_fd(), to.as_fd())?,
            _ => {
                tree::remove_at(to, as_os(name.to_bytes()))?;
                rustix::fs::renameat(from, name, to, name)?;
            }
        }
    }
    Ok(())
}

/// The directory of an `O_PATH` descriptor, to be read and changed.
fn open_here(dir: BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(dir, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn is_dir(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

fn as_os(name: &[u8]) -> &OsStr {
    OsStr::from_bytes(name)
}

fn as_path(path: &[u8]) -> &Path {
    Path::new(as_os(path))
}

fn refused(path: &[u8], reason: &'static str) -> SnapshotError {
    SnapshotError::Refused { entry: String::from_utf8_lossy(path).into_owned(), reason }
}

fn failed(operation: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> SnapshotError {
    let entry = String::from_utf8_lossy(path).into_owned();
    move |source| SnapshotError::Entry { operation, entry, source: source.into() }
}

/// Names the path in an error that does not know it.
fn at(path: &[u8], error: SnapshotError) -> SnapshotError {
    crate::unpack::named(error, String::from_utf8_lossy(path).into_owned())
}
