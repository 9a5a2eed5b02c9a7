//! Whole trees that somebody else filled: removing and measuring them.
//!
//! Names are taken one at a time below open directories, links are never followed, other mounts never entered. However deep a
//! tree is, few descriptors are open.

use std::collections::HashSet;
use std::ffi::{CStr, CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::Usage;
use crate::error::{Result, SnapshotError};

/// Directories open at a time while a tree is removed. Deeper ones are moved up first.
const REMOVE_OPEN_MAX: usize = 64;

/// Bytes of a path that a walk opens at once; below a longer one it starts anew from a descriptor.
const WALK_PATH_BYTES_MAX: usize = 2000;

/// Descriptors of such starts that are open at a time.
const WALK_BASES_MAX: usize = 256;

/// Files with several names that a walk remembers; more are counted once per name.
const WALK_LINKED_MAX: usize = 1 << 20;

/// Removes `path` and all below it. Already gone is success; the first failure is told after everything else is removed.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let failed = |source| SnapshotError::io("remove", path)(source);
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(failed(Errno::INVAL));
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::openat(CWD, parent, flags, Mode::empty()) {
        Ok(parent) => remove_at(parent.as_fd(), name).map_err(failed),
        Err(Errno::NOENT) => Ok(()),
        Err(source) => Err(failed(source)),
    }
}

/// As [`remove`], of `name` in an open directory.
pub(crate) fn remove_at(parent: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // Linux says EISDIR for a directory; POSIX says EPERM, as for an immutable file: opening it tells.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(source) => return Err(source),
    }
    let top = match open_dir(parent, name.as_bytes()) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(source) => return Err(source),
    };
    let random = getrandom::u64().map_err(|_no_entropy| Errno::IO)?;
    let emptied = Emptying { top: top.as_fd(), moved_up: 0, random, first: Ok(()) }.run();
    let removed = match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    };
    emptied.and(removed)
}

struct Emptying<'a> {
    top: BorrowedFd<'a>,
    moved_up: u64,
    random: u64,
    first: rustix::io::Result<()>,
}

struct Level {
    fd: OwnedFd,
    entries: Dir,
    /// Its name in the level above; none for the top.
    name: Option<CString>,
}

impl Emptying<'_> {
    fn run(mut self) -> rustix::io::Result<()> {
        loop {
            let before = self.moved_up;
            self.pass()?;
            // What was moved up meanwhile may have been missed by the listing of the top.
            if self.moved_up == before || self.first.is_err() {
                return self.first;
            }
        }
    }

    fn pass(&mut self) -> rustix::io::Result<()> {
        let mut levels = vec![level(rustix::io::fcntl_dupfd_cloexec(self.top, 0)?, None)?];
        loop {
            let depth = levels.len();
            let Some(here) = levels.last_mut() else { return Ok(()) };
            match here.entries.read() {
                Some(Ok(entry)) => {
                    let name = entry.file_name();
                    if matches!(name.to_bytes(), b"." | b"..") {
                        continue;
                    }
                    if let Some(deeper) = self.unlink_or_enter(&here.fd, name, depth) {
                        levels.push(deeper);
                    }
                }
                Some(Err(source)) => {
                    self.note(source);
                    self.leave(&mut levels);
                }
                None => self.leave(&mut levels),
            }
        }
    }

    fn unlink_or_enter(&mut self, here: &OwnedFd, name: &CStr, depth: usize) -> Option<Level> {
        match rustix::fs::unlinkat(here, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return None,
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(source) => return self.none(source),
        }
        if depth >= REMOVE_OPEN_MAX {
            self.moved_up += 1;
            // Random, so that nothing in the tree can be in the way.
            let up = format!(".removing-{:x}-{}", self.random, self.moved_up);
            return rustix::fs::renameat(here, name, self.top, up).map_or_else(|e| self.none(e), |()| None);
        }
        let opened = open_dir(here.as_fd(), name.to_bytes()).and_then(|fd| level(fd, Some(name.to_owned())));
        opened.map_or_else(|e| self.none(e), Some)
    }

    fn leave(&mut self, levels: &mut Vec<Level>) {
        let Some(Level { name: Some(name), .. }) = levels.pop() else { return };
        let Some(above) = levels.last() else { return };
        match rustix::fs::unlinkat(&above.fd, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(source) => self.note(source),
        }
    }

    fn none(&mut self, source: Errno) -> Option<Level> {
        self.note(source);
        None
    }

    fn note(&mut self, source: Errno) {
        if self.first.is_ok() && source != Errno::NOENT {
            self.first = Err(source);
        }
    }
}

fn level(fd: OwnedFd, name: Option<CString>) -> rustix::io::Result<Level> {
    Ok(Level { entries: Dir::read_from(&fd)?, fd, name })
}

/// Opens a directory by names below `parent`, not through links, not into another mount.
fn open_dir(parent: BorrowedFd<'_>, path: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOATIME;
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    match rustix::fs::openat2(parent, path, flags, Mode::empty(), resolve) {
        // O_NOATIME is for the owner alone.
        Err(Errno::PERM) => {
            rustix::fs::openat2(parent, path, flags - OFlags::NOATIME, Mode::empty(), resolve)
        }
        other => other,
    }
}

/// What `path` and all below it occupies. What vanishes meanwhile is not counted; nothing there is nothing.
pub(crate) fn usage(path: &Path) -> Result<Usage> {
    let failed = |source| SnapshotError::io("measure", path)(source);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        Ok(root) => root,
        Err(Errno::NOENT) => return Ok(Usage::default()),
        Err(source) => return Err(failed(source)),
    };
    let mut measure = Measure::default();
    measure.count(&rustix::fs::fstat(&root).map_err(failed)?);
    measure.walk(root).map_err(failed)?;
    Ok(measure.usage)
}

#[derive(Default)]
struct Measure {
    usage: Usage,
    linked: HashSet<(u64, u64)>,
    // The last in is the first out, so few bases are in use at a time.
    todo: Vec<(Rc<Base>, Vec<u8>)>,
    live: Rc<()>,
}

/// Where paths of a walk start.
struct Base {
    fd: OwnedFd,
    _live: Rc<()>,
}

impl Measure {
    fn walk(&mut self, root: OwnedFd) -> rustix::io::Result<()> {
        let root = self.base(root)?;
        self.todo.push((root, b".".to_vec()));
        while let Some((base, path)) = self.todo.pop() {
            let dir = match open_dir(base.fd.as_fd(), &path) {
                Ok(dir) => dir,
                // Gone, replaced, or another mount.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => continue,
                Err(source) => return Err(source),
            };
            self.list(dir, &base, &path)?;
        }
        Ok(())
    }

    fn list(&mut self, dir: OwnedFd, base: &Rc<Base>, path: &[u8]) -> rustix::io::Result<()> {
        let mut entries = Dir::read_from(&dir)?;
        let long = path.len() > WALK_PATH_BYTES_MAX;
        let (base, path) = if long { (self.base(dir)?, b".".as_slice()) } else { (Rc::clone(base), path) };
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = match rustix::fs::statat(entries.fd()?, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(source) => return Err(source),
            };
            self.count(&stat);
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                self.todo.push((Rc::clone(&base), [path, b"/", name.to_bytes()].concat()));
            }
        }
        Ok(())
    }

    fn base(&self, fd: OwnedFd) -> rustix::io::Result<Rc<Base>> {
        if Rc::strong_count(&self.live) > WALK_BASES_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        Ok(Rc::new(Base { fd, _live: Rc::clone(&self.live) }))
    }

    fn count(&mut self, stat: &rustix::fs::Stat) {
        let several = stat.st_nlink > 1 && FileType::from_raw_mode(stat.st_mode) != FileType::Directory;
        if several && self.linked.len() < WALK_LINKED_MAX && !self.linked.insert((stat.st_dev, stat.st_ino)) {
            return;
        }
        let bytes = u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512);
        self.usage = self.usage + Usage { bytes, inodes: 1 };
    }
}

#[cfg(test)]
#[path = "tree_tests.rs"]
mod tests;
