//! From a tar stream to a directory tree.
//!
//! The tree is ours alone while it grows: its parents are closed to everyone else. Still every name is taken below an open
//! descriptor and links are expanded by hand, inside the root, so that no archive can name what lies outside. Directories get
//! their attributes at the end (`settle`), since filling them changes their times.
//!
//! Whiteouts are remembered, not made: what they hide is known only with the parent.
//! Source: OCI image specification, layer.md, "Whiteouts".

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crisp_sys::path::{Missing, PathError, Resolve, RootedDir, Walked};
use rustix::fs::AtFlags;
use rustix::io::Errno;

use crate::archive::{Archive, Entry, Kind};
use crate::entry::{self, Owner};
use crate::error::{Result, SnapshotError};
use crate::records::{Attributes, Directory, Records, join, name, parent};
use crate::{DiffId, Limits, tree};

/// A name that hides what is below.
const WHITEOUT: &[u8] = b".wh.";
/// Names of the storage driver that whiteouts come from; all but the next are of no meaning to us.
const WHITEOUT_META: &[u8] = b".wh..wh.";
/// Hides all that the directory has below.
const OPAQUE: &[u8] = b".wh..wh..opq";

const REPLACES_TARGET: &str = "it is a hard link in the place of its own target";

/// Mode of a directory until the layer is settled. Without setgid nothing in it inherits a group.
const UNSETTLED_MODE: u32 = 0o700;

pub(crate) fn unpack(tar: impl Read, content: &RootedDir, limits: &Limits) -> Result<(DiffId, Records)> {
    let mut archive = Archive::new(tar, limits);
    let mut unpacker = Unpacker {
        content,
        limits,
        records: Records::default(),
        entries: 0,
        place: None,
        ours: Owner::of_process(),
    };
    unpacker.records.imply(Vec::new());
    while let Some(entry) = archive.next()? {
        let name = String::from_utf8_lossy(&entry.path).into_owned();
        unpacker.entry(entry, &mut archive).map_err(|e| named(e, name))?;
    }
    Ok((DiffId::of(archive.finish()?), unpacker.records))
}

/// Puts the entry's name into an error that arose where it was not known.
pub(crate) fn named(error: SnapshotError, name: String) -> SnapshotError {
    match error {
        SnapshotError::Limit { limit, max, entry } if entry.is_empty() => {
            SnapshotError::Limit { limit, max, entry: name }
        }
        SnapshotError::Entry { operation, source, entry } if entry.is_empty() => {
            SnapshotError::Entry { operation, source, entry: name }
        }
        SnapshotError::Refused { reason, entry } if entry.is_empty() => {
            SnapshotError::Refused { reason, entry: name }
        }
        other => other,
    }
}

pub(crate) fn refused(reason: &'static str) -> SnapshotError {
    SnapshotError::Refused { entry: String::new(), reason }
}

pub(crate) fn failed(operation: &'static str) -> impl FnOnce(Errno) -> SnapshotError {
    move |source| SnapshotError::Entry { operation, entry: String::new(), source: source.into() }
}

/// An error of walking to an entry: what the archive did is its fault, what the kernel refused is not.
pub(crate) fn walking(error: PathError) -> SnapshotError {
    match error {
        PathError::Refused { source, .. } => failed("walk to")(source),
        PathError::TooDeep { .. } => refused("its path leads through too many links or directories"),
        _ => refused("its path leads through something that is not a directory"),
    }
}

struct Unpacker<'a> {
    content: &'a RootedDir,
    limits: &'a Limits,
    records: Records,
    entries: u64,
    /// The directory of the last entry, as the archive spelled it: the next one is likely there, too.
    place: Option<(Vec<u8>, Walked)>,
    ours: Owner,
}

/// A path of the archive, cleaned.
enum Named {
    Root,
    Thing(Vec<u8>),
    /// Directory and name in it.
    Whiteout(Vec<u8>, Vec<u8>),
    Opaque(Vec<u8>),
    /// A leftover of a storage driver.
    Nothing,
}

impl Unpacker<'_> {
    fn entry<R: Read>(&mut self, entry: Entry, archive: &mut Archive<'_, R>) -> Result<()> {
        self.count(1)?;
        if entry.size > self.limits.file_bytes_max {
            return Err(limit("file_bytes_max", self.limits.file_bytes_max));
        }
        match self.clean(&entry.path)? {
            Named::Nothing => Ok(()),
            Named::Root if entry.kind == Kind::Directory => {
                let attributes = self.attributes(entry)?;
                drop(self.records.dirs.insert(Vec::new(), Directory::Given(attributes)));
                Ok(())
            }
            Named::Root => Err(refused("it is the root but not a directory")),
            Named::Whiteout(dir, name) => {
                let hidden = join(&self.enter(&dir)?, &name);
                self.records.charge(&hidden, 0, self.limits)?;
                self.records.whiteouts.insert(hidden);
                Ok(())
            }
            Named::Opaque(dir) => {
                let dir = self.enter(&dir)?;
                self.records.charge(&dir, 0, self.limits)?;
                self.records.opaques.insert(dir);
                Ok(())
            }
            Named::Thing(path) => self.make(&path, entry, archive),
        }
    }

    fn make<R: Read>(&mut self, path: &[u8], entry: Entry, archive: &mut Archive<'_, R>) -> Result<()> {
        let dir = self.enter(parent(path).unwrap_or_default())?;
        let name = OsStr::from_bytes(name(path));
        let real = join(&dir, name.as_bytes());
        self.records.replace(&real);
        match entry.kind {
            Kind::Directory => return self.directory(name, real, entry),
            Kind::HardLink => return self.hard_link(name, real, &entry),
            _ => {}
        }
        let kind = entry.kind;
        let (size, sparse, device) = (entry.size, entry.sparse, entry.device);
        let link = if kind == Kind::Symlink { self.link_target(&entry)?.to_vec() } else { Vec::new() };
        let attributes = self.attributes(entry)?;
        let make = |unpacker: &mut Self| -> rustix::io::Result<Option<std::os::fd::OwnedFd>> {
            let parent = unpacker.here();
            match kind {
                Kind::File => entry::create_file(parent, name).map(Some),
                Kind::Symlink => rustix::fs::symlinkat(link.as_slice(), parent, name).map(|()| None),
                _ => entry::make_node(parent, name, kind, device, attributes.mode).map(|()| None),
            }
        };
        if matches!(kind, Kind::Char | Kind::Block) {
            entry::check_device(kind, device, self.limits.device_nodes)?;
        }
        let file = match make(self) {
            Err(Errno::EXIST) => {
                self.clear(name, &real)?;
                make(self)
            }
            other => other,
        };
        let file = file.map_err(failed("create"))?;
        if let Some(file) = file {
            entry::write_file(&file, archive, sparse.then_some(size))?;
            self.records.xattrs_dropped += entry::set_file(file.as_fd(), &attributes, self.ours)?;
            return Ok(());
        }
        entry::set_node(self.here(), name, kind, &attributes, self.ours)
    }

    fn directory(&mut self, name: &OsStr, real: Vec<u8>, entry: Entry) -> Result<()> {
        let attributes = self.attributes(entry)?;
        if !self.make_directory(name)? {
            self.clear(name, &real)?;
            self.make_directory(name)?;
        }
        let xattr_bytes = attributes.xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.records.charge(&real, xattr_bytes, self.limits)?;
        drop(self.records.dirs.insert(real, Directory::Given(attributes)));
        Ok(())
    }

    /// False when something else is there.
    fn make_directory(&mut self, name: &OsStr) -> Result<bool> {
        match rustix::fs::mkdirat(self.here(), name, rustix::fs::Mode::from_raw_mode(UNSETTLED_MODE)) {
            Ok(()) => Ok(true),
            Err(Errno::EXIST) => {
                let stat = rustix::fs::statat(self.here(), name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(failed("look at"))?;
                Ok(rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory)
            }
            Err(source) => Err(failed("create")(source)),
        }
    }

    /// A target that this layer does not have, yet or at all, is looked for in the layers below when it is committed.
    fn hard_link(&mut self, name: &OsStr, real: Vec<u8>, entry: &Entry) -> Result<()> {
        let Named::Thing(target) = self.clean(&entry.link)? else {
            return Err(refused("it is a hard link to something that cannot have one"));
        };
        if target.strip_prefix(real.as_slice()).is_some_and(|rest| rest.first() == Some(&b'/')) {
            return Err(refused(REPLACES_TARGET));
        }
        let target_name = OsStr::from_bytes(crate::records::name(&target));
        let found = self.find_target(&target, &real)?;
        let Some((walked, stat)) = found else {
            self.clear(name, &real)?;
            self.records.charge(&real, target.len(), self.limits)?;
            self.records.link(real, target);
            return Ok(());
        };
        if rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory {
            return Err(refused("it is a hard link to a directory"));
        }
        let link = |unpacker: &Self| {
            rustix::fs::linkat(&walked.fd, target_name, unpacker.here(), name, AtFlags::empty())
        };
        let linked = match link(self) {
            Err(Errno::EXIST) => {
                self.clear(name, &real)?;
                link(self)
            }
            other => other,
        };
        match linked {
            Err(Errno::NOENT) => Err(refused(REPLACES_TARGET)),
            other => other.map_err(failed("link")),
        }
    }

    /// The directory of a hard link's target and the target's kind, where this layer has it.
    fn find_target(&self, target: &[u8], link: &[u8]) -> Result<Option<(Walked, rustix::fs::Stat)>> {
        let dir = Path::new(OsStr::from_bytes(parent(target).unwrap_or_default()));
        let walked = match self.content.walk(dir, Missing::Fail) {
            Ok(walked) => walked,
            Err(e) if e.is_not_found() => return Ok(None),
            Err(e) => return Err(walking(e)),
        };
        let name = name(target);
        if join(walked.real.as_os_str().as_bytes(), name) == link {
            return Err(refused("it is a hard link to itself"));
        }
        match rustix::fs::statat(&walked.fd, OsStr::from_bytes(name), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some((walked, stat))),
            Err(Errno::NOENT) => Ok(None),
            Err(source) => Err(failed("look at the target of")(source)),
        }
    }

    /// Removes what is at a name, for something of another kind to take its place.
    fn clear(&mut self, name: &OsStr, real: &[u8]) -> Result<()> {
        tree::remove_at(self.here(), name).map_err(failed("replace what is at"))?;
        self.records.forget(real);
        Ok(())
    }

    /// The directory last entered.
    fn here(&self) -> std::os::fd::BorrowedFd<'_> {
        self.place.as_ref().map_or(self.content.as_fd(), |(_, walked)| walked.fd.as_fd())
    }

    /// Enters a directory, made if need be, and tells its real path.
    fn enter(&mut self, dir: &[u8]) -> Result<Vec<u8>> {
        if let Some((spelled, walked)) = &self.place
            && spelled == dir
        {
            return Ok(walked.real.as_os_str().as_bytes().to_vec());
        }
        let path = Path::new(OsStr::from_bytes(dir));
        let walked = match self.content.open_dir(path, Resolve::Strict) {
            Ok(found) => Walked { fd: found.into(), real: path.to_owned(), made: Vec::new() },
            Err(_) => self.content.walk(path, Missing::Create { mode: UNSETTLED_MODE }).map_err(walking)?,
        };
        self.count(walked.made.len() as u64)?;
        for made in &walked.made {
            let made = made.as_os_str().as_bytes();
            self.records.charge(made, 0, self.limits)?;
            self.records.replace(made);
            self.records.imply(made.to_vec());
        }
        let real = walked.real.as_os_str().as_bytes().to_vec();
        self.place = Some((dir.to_vec(), walked));
        Ok(real)
    }

    fn count(&mut self, entries: u64) -> Result<()> {
        self.entries += entries;
        if self.entries > self.limits.entries_max {
            return Err(limit("entries_max", self.limits.entries_max));
        }
        Ok(())
    }

    fn link_target<'a>(&self, entry: &'a Entry) -> Result<&'a [u8]> {
        if entry.link.is_empty() || entry.link.contains(&0) {
            return Err(refused("it is a symbolic link without a target"));
        }
        if entry.link.len() > self.limits.path_bytes_max {
            return Err(limit("path_bytes_max", self.limits.path_bytes_max as u64));
        }
        Ok(&entry.link)
    }

    fn attributes(&mut self, entry: Entry) -> Result<Attributes> {
        let Entry { mode, uid, gid, mtime, xattrs, .. } = entry;
        // The highest number means "leave it" to the kernel.
        let id = |id: u64| u32::try_from(id).ok().filter(|&id| id != u32::MAX);
        let (Some(uid), Some(gid)) = (id(uid), id(gid)) else {
            return Err(refused("its owner is out of range"));
        };
        let given = xattrs.len();
        let xattrs: Vec<_> = xattrs.into_iter().filter(|(name, _)| entry::keeps_xattr(name)).collect();
        self.records.xattrs_dropped += (given - xattrs.len()) as u64;
        Ok(Attributes { mode, uid, gid, mtime, xattrs })
    }

    /// Takes a path apart. Absolute paths are meant from the root. `..` is in no honest archive.
    fn clean(&self, path: &[u8]) -> Result<Named> {
        if path.len() > self.limits.path_bytes_max {
            return Err(limit("path_bytes_max", self.limits.path_bytes_max as u64));
        }
        if path.is_empty() {
            return Err(refused("its name is empty"));
        }
        let parts: Vec<&[u8]> =
            path.split(|&b| b == b'/').filter(|part| !matches!(*part, b"" | b".")).collect();
        if parts.contains(&b"..".as_slice()) {
            return Err(refused("its name leads upwards"));
        }
        if parts.len() > self.limits.depth_max {
            return Err(limit("depth_max", self.limits.depth_max as u64));
        }
        let Some((last, dir)) = parts.split_last() else { return Ok(Named::Root) };
        if dir.iter().any(|part| part.starts_with(WHITEOUT_META)) {
            return Ok(Named::Nothing);
        }
        if dir.iter().any(|part| part.starts_with(WHITEOUT)) {
            return Err(refused("it lies in a whiteout"));
        }
        let Some(hidden) = last.strip_prefix(WHITEOUT) else { return Ok(Named::Thing(parts.join(&b'/'))) };
        let dir = dir.join(&b'/');
        if *last == OPAQUE {
            return Ok(Named::Opaque(dir));
        }
        if last.starts_with(WHITEOUT_META) {
            return Ok(Named::Nothing);
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(refused("it is a whiteout of nothing that can be hidden"));
        }
        Ok(Named::Whiteout(dir, hidden.to_vec()))
    }
}

fn limit(limit: &'static str, max: u64) -> SnapshotError {
    SnapshotError::Limit { limit, max, entry: String::new() }
}
