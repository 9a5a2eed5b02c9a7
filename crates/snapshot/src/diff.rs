//! A container's changes as an OCI layer, and back.
//!
//! Source: OCI image specification, layer.md, "Representing Changes".

use std::collections::HashMap;
use std::ffi::CStr;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::entry;
use crate::error::{Result, SnapshotError};
use crate::records::Attributes;
use crate::unpack::{failed, named, refused};

/// Directories in each other, as in a layer that is unpacked.
const DEPTH_MAX: usize = 200;

/// Bytes of paths that are remembered: of files with several names, and of what is deleted. A container makes as many as it likes.
const REMEMBERED_BYTES_MAX: usize = 64 << 20;

/// Rough cost of a remembered path beside its bytes.
const OVERHEAD_BYTES: usize = 64;

/// Bytes by which content passes.
const BUFFER_BYTES: usize = 256 << 10;

/// Writes what is in `upper`, the upper directory of an overlay, as an uncompressed layer; the paths that are deleted there.
///
/// The directory is read through descriptors; links in it are written, never followed. Sockets are left out: nobody can listen there
/// again. What changes meanwhile may be written half.
///
/// # Errors
/// [`SnapshotError::Refused`] for directories that are nested too deep; [`SnapshotError::Limit`] for too many links and deletions;
/// [`SnapshotError::Entry`], [`SnapshotError::Io`].
pub(crate) fn write(upper: &Path, to: impl Write) -> Result<Vec<PathBuf>> {
    let root = rustix::fs::open(upper, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(SnapshotError::io("open", upper))?;
    let mut diff =
        Diff { tar: tar::Builder::new(to), deleted: Vec::new(), linked: HashMap::new(), remembered: 0 };
    diff.directory(&root, &mut PathBuf::from(".")).map_err(|e| named(e, upper.display().to_string()))?;
    diff.tar.into_inner().and_then(|mut to| to.flush()).map_err(writing)?;
    Ok(diff.deleted)
}

struct Diff<W: Write> {
    tar: tar::Builder<W>,
    deleted: Vec<PathBuf>,
    /// Where files with several names were written first.
    linked: HashMap<(u64, u64), PathBuf>,
    remembered: usize,
}

impl<W: Write> Diff<W> {
    /// Accounts for a path that will be remembered.
    fn charge(&mut self, path: &Path) -> Result<()> {
        self.remembered += path.as_os_str().len() + OVERHEAD_BYTES;
        if self.remembered <= REMEMBERED_BYTES_MAX {
            return Ok(());
        }
        let max = REMEMBERED_BYTES_MAX as u64;
        Err(SnapshotError::Limit { limit: "remembered_bytes_max", max, entry: String::new() })
    }

    fn directory(&mut self, dir: &OwnedFd, path: &mut PathBuf) -> Result<()> {
        if path.components().count() > DEPTH_MAX {
            return Err(refused("its directories are nested too deep"));
        }
        let attributes = entry::attributes_of(dir.as_fd()).map_err(failed("read the attributes of"))?;
        self.append(&attributes, tar::EntryType::Directory, path, &mut std::io::empty())?;
        if is_opaque(dir.as_fd())? {
            self.append(
                &Attributes::default(),
                tar::EntryType::Regular,
                &path.join(".wh..wh..opq"),
                &mut std::io::empty(),
            )?;
        }
        let mut entries = Dir::read_from(dir).map_err(failed("list"))?;
        while let Some(entry) = entries.read() {
            let entry = entry.map_err(failed("list"))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            path.push(std::ffi::OsStr::from_bytes(name.to_bytes()));
            let done = self.entry(dir.as_fd(), name, path);
            done.map_err(|error| named(error, path.display().to_string()))?;
            path.pop();
        }
        Ok(())
    }

    fn entry(&mut self, dir: BorrowedFd<'_>, name: &CStr, path: &mut PathBuf) -> Result<()> {
        let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(()),
            stat => stat.map_err(failed("look at"))?,
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            return self.whiteout(path);
        }
        if kind != FileType::Directory && stat.st_nlink > 1 {
            let id = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.linked.get(&id).cloned() {
                return self.link(&attributes(&stat), tar::EntryType::Link, path, &first);
            }
            self.charge(path)?;
            drop(self.linked.insert(id, path.clone()));
        }
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let open = |more| rustix::fs::openat(dir, name, flags | more, Mode::empty()).map_err(failed("open"));
        match kind {
            FileType::Directory => self.directory(&open(OFlags::RDONLY | OFlags::DIRECTORY)?, path),
            FileType::RegularFile => self.file(File::from(open(OFlags::RDONLY)?), path),
            FileType::Symlink => {
                let target =
                    rustix::fs::readlinkat(dir, name, Vec::new()).map_err(failed("read the link"))?;
                let target = Path::new(std::ffi::OsStr::from_bytes(target.to_bytes()));
                self.link(&attributes(&stat), tar::EntryType::Symlink, path, target)
            }
            FileType::CharacterDevice => self.node(&stat, tar::EntryType::Char, path),
            FileType::BlockDevice => self.node(&stat, tar::EntryType::Block, path),
            FileType::Fifo => self.node(&stat, tar::EntryType::Fifo, path),
            _ => Ok(()),
        }
    }

    fn whiteout(&mut self, path: &Path) -> Result<()> {
        let name = path.file_name().unwrap_or_default();
        let hidden = path.with_file_name(std::ffi::OsStr::from_bytes(&[b".wh.", name.as_bytes()].concat()));
        self.append(&Attributes::default(), tar::EntryType::Regular, &hidden, &mut std::io::empty())?;
        self.charge(path)?;
        self.deleted.push(Path::new("/").join(path.strip_prefix(".").unwrap_or(path)));
        Ok(())
    }

    fn file(&mut self, file: File, path: &Path) -> Result<()> {
        let attributes = entry::attributes_of(file.as_fd()).map_err(failed("read the attributes of"))?;
        self.append(&attributes, tar::EntryType::Regular, path, &mut &file)
    }

    fn append(
        &mut self,
        attributes: &Attributes,
        kind: tar::EntryType,
        path: &Path,
        content: &mut dyn Content,
    ) -> Result<()> {
        let mut header = header(attributes, kind);
        let size = content.size()?;
        header.set_size(size);
        let xattrs = attributes.xattrs.iter().filter_map(|(name, value)| {
            std::str::from_utf8(name).ok().map(|name| (format!("SCHILY.xattr.{name}"), value))
        });
        let xattrs: Vec<(String, &Vec<u8>)> = xattrs.collect();
        if !xattrs.is_empty() {
            let pairs = xattrs.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
            self.tar.append_pax_extensions(pairs).map_err(writing)?;
        }
        // A file that shrinks meanwhile is filled with zeros.
        let content = content.chain(std::io::repeat(0)).take(size);
        let content = std::io::BufReader::with_capacity(BUFFER_BYTES, content);
        self.tar.append_data(&mut header, path, content).map_err(writing)
    }

    fn link(&mut self, attributes: &Attributes, kind: tar::EntryType, path: &Path, to: &Path) -> Result<()> {
        let mut header = header(attributes, kind);
        header.set_size(0);
        self.tar.append_link(&mut header, path, to).map_err(writing)
    }

    fn node(&mut self, stat: &Stat, kind: tar::EntryType, path: &Path) -> Result<()> {
        let mut header = header(&attributes(stat), kind);
        header.set_size(0);
        header.set_device_major(rustix::fs::major(stat.st_rdev)).map_err(writing)?;
        header.set_device_minor(rustix::fs::minor(stat.st_rdev)).map_err(writing)?;
        self.tar.append_data(&mut header, path, std::io::empty()).map_err(writing)
    }
}

/// The content of an entry, whose size stands before it.
trait Content: Read {
    fn size(&self) -> Result<u64>;
}

impl Content for std::io::Empty {
    fn size(&self) -> Result<u64> {
        Ok(0)
    }
}

impl Content for &File {
    fn size(&self) -> Result<u64> {
        let stat = rustix::fs::fstat(self).map_err(failed("look at"))?;
        Ok(u64::try_from(stat.st_size).unwrap_or(0))
    }
}

fn header(attributes: &Attributes, kind: tar::EntryType) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(attributes.mode);
    header.set_uid(attributes.uid.into());
    header.set_gid(attributes.gid.into());
    header.set_mtime(u64::try_from(attributes.mtime.secs).unwrap_or(0));
    header
}

fn attributes(stat: &Stat) -> Attributes {
    Attributes {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: crate::archive::Time { secs: stat.st_mtime, nanos: 0 },
        xattrs: Vec::new(),
    }
}

fn is_opaque(dir: BorrowedFd<'_>) -> Result<bool> {
    let mut value = [0u8; 1];
    match rustix::fs::fgetxattr(dir, crate::settle::OPAQUE.0, &mut value[..]) {
        Ok(_) => Ok(value == crate::settle::OPAQUE.1),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(false),
        Err(source) => Err(failed("read the attributes of")(source)),
    }
}

fn writing(source: std::io::Error) -> SnapshotError {
    SnapshotError::Entry { operation: "write into a layer", entry: String::new(), source }
}
