//! Copying files and trees that somebody else filled.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crisp_sys::path::{Resolve, RootedDir, reopen};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use crate::archive::{Kind, Time};
use crate::entry::{self, Owner};
use crate::error::{Result, SnapshotError};
use crate::records::Attributes;
use crate::unpack::{failed, named, refused};

/// Directories in each other that are copied.
const DEPTH_MAX: usize = 200;

/// Files, directories and links that are copied.
const ENTRIES_MAX: u64 = 1_000_000;

/// Bytes that are copied.
const BYTES_MAX: u64 = 16 << 30;

/// Copies what an image has in a directory that it declares as a volume into `dest`, an existing empty directory, with owners,
/// modes, times, links and the extended attributes that images may have.
///
/// `path` is resolved inside `rootfs`. An image that has nothing there leaves `dest` as it is. Device nodes and sockets are
/// left out: a volume is not bound to the image's device rules. When it fails, `dest` may hold a part; the caller removes it.
///
/// # Errors
/// [`SnapshotError::Refused`] when it is not a directory or is nested too deep, [`SnapshotError::Limit`] when it holds too much,
/// [`SnapshotError::Entry`], [`SnapshotError::Path`].
pub fn copy_up_volume(rootfs: &RootedDir, path: &Path, dest: &Path) -> Result<()> {
    let source = match rootfs.open_dir(path, Resolve::InRoot) {
        Ok(source) => source,
        Err(e) if e.is_not_found() => return Ok(()),
        Err(source) => return Err(SnapshotError::Path { operation: "open an image's volume", source }),
    };
    let source = open_dir(source.as_fd(), c".").map_err(SnapshotError::io("open the image's", path))?;
    let dest = RootedDir::open(dest).map_err(SnapshotError::path("open a volume"))?;
    let dest = open_dir(dest.as_fd(), c".").map_err(SnapshotError::io("open a volume for", path))?;
    let mut copy =
        Copy { top: dest.as_fd(), ours: Owner::of_process(), entries: 0, bytes: 0, linked: HashMap::new() };
    copy.directory(source.as_fd(), dest.as_fd(), &mut Vec::new())
        .map_err(|e| named(e, path.display().to_string()))
}

struct Copy<'a> {
    top: BorrowedFd<'a>,
    ours: Owner,
    entries: u64,
    bytes: u64,
    /// Where files with several names were copied to, below `top`.
    linked: HashMap<(u64, u64), Vec<u8>>,
}

impl Copy<'_> {
    fn directory(&mut self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, path: &mut Vec<Vec<u8>>) -> Result<()> {
        if path.len() > DEPTH_MAX {
            return Err(refused("its directories are nested too deep"));
        }
        let mut entries = Dir::read_from(from).map_err(failed("list"))?;
        while let Some(entry) = entries.read() {
            let entry = entry.map_err(failed("list"))?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            self.entries += 1;
            if self.entries > ENTRIES_MAX {
                return Err(SnapshotError::Limit {
                    limit: "entries",
                    max: ENTRIES_MAX,
                    entry: String::new(),
                });
            }
            path.push(name.to_bytes().to_vec());
            self.entry(from, to, name, path)?;
            path.pop();
        }
        // Last, for filling it changed its times.
        let attributes = entry::attributes_of(from).map_err(failed("read the attributes of"))?;
        entry::set_file(to, &attributes, self.ours).map(drop)
    }

    fn entry(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &CStr,
        path: &mut Vec<Vec<u8>>,
    ) -> Result<()> {
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("look at"))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let from = open_dir(from, name).map_err(failed("open"))?;
                rustix::fs::mkdirat(to, name, Mode::from_raw_mode(0o700)).map_err(failed("create"))?;
                let to = open_dir(to, name).map_err(failed("open"))?;
                return self.directory(from.as_fd(), to.as_fd(), path);
            }
            FileType::RegularFile | FileType::Symlink | FileType::Fifo => {}
            _ => return Ok(()),
        }
        if stat.st_nlink > 1 {
            let id = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.linked.get(&id) {
                return rustix::fs::linkat(self.top, first.as_slice(), to, name, AtFlags::empty())
                    .map_err(failed("link"));
            }
            drop(self.linked.insert(id, path.join(&b'/')));
        }
        self.bytes = self.bytes.saturating_add(u64::try_from(stat.st_size).unwrap_or(0));
        if self.bytes > BYTES_MAX {
            return Err(SnapshotError::Limit { limit: "bytes", max: BYTES_MAX, entry: String::new() });
        }
        let name = OsStr::from_bytes(name.to_bytes());
        node((from, name), (to, name), self.ours)
    }
}

/// Copies one file, link, FIFO or device, attributes included, to a name that is free.
pub(crate) fn node(from: (BorrowedFd<'_>, &OsStr), to: (BorrowedFd<'_>, &OsStr), ours: Owner) -> Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let found = rustix::fs::openat(from.0, from.1, flags, Mode::empty()).map_err(failed("open"))?;
    let stat = rustix::fs::fstat(&found).map_err(failed("look at"))?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => return file(&found, to, ours),
        FileType::Symlink => Kind::Symlink,
        FileType::CharacterDevice => Kind::Char,
        FileType::BlockDevice => Kind::Block,
        FileType::Fifo => Kind::Fifo,
        _ => return Err(refused("it cannot be copied")),
    };
    let attributes = Attributes {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        mtime: Time { secs: stat.st_mtime, nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0) },
        xattrs: Vec::new(),
    };
    let device = (rustix::fs::major(stat.st_rdev).into(), rustix::fs::minor(stat.st_rdev).into());
    if kind == Kind::Symlink {
        let target = rustix::fs::readlinkat(&found, "", Vec::new()).map_err(failed("read the link"))?;
        rustix::fs::symlinkat(target, to.0, to.1).map_err(failed("create"))?;
    } else {
        entry::make_node(to.0, to.1, kind, device, attributes.mode).map_err(failed("create"))?;
    }
    entry::set_node(to.0, to.1, kind, &attributes, ours)
}

fn file(found: &OwnedFd, to: (BorrowedFd<'_>, &OsStr), ours: Owner) -> Result<()> {
    let from = File::from(reopen(found.as_fd(), OFlags::RDONLY).map_err(failed("read"))?);
    let attributes = entry::attributes_of(from.as_fd()).map_err(failed("read the attributes of"))?;
    let to = File::from(entry::create_file(to.0, to.1).map_err(failed("create"))?);
    io::copy(&mut &from, &mut &to).map_err(|source| SnapshotError::Entry {
        operation: "copy",
        entry: String::new(),
        source,
    })?;
    entry::set_file(to.as_fd(), &attributes, ours).map(drop)
}

fn open_dir(parent: BorrowedFd<'_>, name: &CStr) -> std::result::Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}
