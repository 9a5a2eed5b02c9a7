//! Making single files and nodes, and giving them their attributes.

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::archive::{Archive, Kind, Time};
use crate::error::Result;
use crate::limits::DeviceNodes;
use crate::records::Attributes;
use crate::unpack::{failed, refused};

/// Largest device numbers of Linux (`MINORBITS` in `include/linux/kdev_t.h`).
const MAJOR_MAX: u64 = (1 << 12) - 1;
const MINOR_MAX: u64 = (1 << 20) - 1;

/// Who owns what this process makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    uid: u32,
    gid: u32,
}

impl Owner {
    pub(crate) fn of_process() -> Self {
        Self { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }

    fn owns(self, attributes: &Attributes) -> bool {
        self.uid == attributes.uid && self.gid == attributes.gid
    }
}

/// A new file, never one that is there.
pub(crate) fn create_file(parent: BorrowedFd<'_>, name: &OsStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))
}

/// Writes the archive's current file. `sparse`: its apparent size, where that may exceed its last byte.
pub(crate) fn write_file<R: Read>(
    file: &OwnedFd,
    archive: &mut Archive<'_, R>,
    sparse: Option<u64>,
) -> Result<()> {
    while let Some(chunk) = archive.data()? {
        let (mut bytes, mut offset) = (chunk.bytes, chunk.offset);
        while !bytes.is_empty() {
            let written = match rustix::io::pwrite(file, bytes, offset) {
                Ok(0) => return Err(failed("write")(Errno::IO)),
                Ok(written) => written,
                Err(Errno::INTR) => continue,
                Err(source) => return Err(failed("write")(source)),
            };
            bytes = &bytes[written..];
            offset += written as u64;
        }
    }
    sparse.map_or(Ok(()), |size| rustix::fs::ftruncate(file, size).map_err(failed("set the size of")))
}

/// Owner, mode, extended attributes, times of a file or directory that is open. Tells how many extended attributes the file
/// system could not take.
pub(crate) fn set_file(file: BorrowedFd<'_>, attributes: &Attributes, ours: Owner) -> Result<u64> {
    // The order matters: a change of owner clears setuid and capabilities.
    if !ours.owns(attributes) {
        rustix::fs::fchown(file, uid(attributes), gid(attributes)).map_err(failed("set the owner of"))?;
    }
    rustix::fs::fchmod(file, Mode::from_raw_mode(attributes.mode)).map_err(failed("set the mode of"))?;
    let mut dropped = 0;
    for (name, value) in &attributes.xattrs {
        match rustix::fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty()) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP) => dropped += 1,
            Err(source) => return Err(failed("set an extended attribute of")(source)),
        }
    }
    rustix::fs::futimens(file, &times(attributes.mtime)).map_err(failed("set the times of"))?;
    Ok(dropped)
}

/// Owner, mode and times of what cannot be opened: a link, a device, a FIFO.
pub(crate) fn set_node(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    kind: Kind,
    attributes: &Attributes,
    ours: Owner,
) -> Result<()> {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    if !ours.owns(attributes) {
        rustix::fs::chownat(parent, name, uid(attributes), gid(attributes), flags)
            .map_err(failed("set the owner of"))?;
    }
    if kind != Kind::Symlink {
        // There is no chmod that spares links; through the descriptor it can only be the node itself.
        let found = rustix::fs::openat(
            parent,
            name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(failed("look at"))?;
        let shown = format!("/proc/self/fd/{}", found.as_raw_fd());
        rustix::fs::chmodat(CWD, shown, Mode::from_raw_mode(attributes.mode), AtFlags::empty())
            .map_err(failed("set the mode of"))?;
    }
    rustix::fs::utimensat(parent, name, &times(attributes.mtime), flags).map_err(failed("set the times of"))
}

/// A device or FIFO.
pub(crate) fn make_node(
    parent: BorrowedFd<'_>,
    name: &OsStr,
    kind: Kind,
    device: (u64, u64),
    mode: u32,
) -> rustix::io::Result<()> {
    let file_type = match kind {
        Kind::Char => FileType::CharacterDevice,
        Kind::Block => FileType::BlockDevice,
        _ => FileType::Fifo,
    };
    let number = |n: u64| u32::try_from(n).map_err(|_too_large| Errno::OVERFLOW);
    let device = rustix::fs::makedev(number(device.0)?, number(device.1)?);
    rustix::fs::mknodat(parent, name, file_type, Mode::from_raw_mode(mode), device)
}

/// Refuses devices by policy, impossible ones, and the one that overlayfs takes as "hidden".
pub(crate) fn check_device(kind: Kind, device: (u64, u64), policy: DeviceNodes) -> Result<()> {
    if policy == DeviceNodes::Refuse {
        return Err(refused("it is a device node"));
    }
    if kind == Kind::Char && device == (0, 0) {
        return Err(refused("it is a whiteout made by hand"));
    }
    if device.0 > MAJOR_MAX || device.1 > MINOR_MAX {
        return Err(refused("its device number is out of range"));
    }
    Ok(())
}

/// Extended attributes that an image may bring: those that programs in it make and read, and file capabilities. Never those by
/// which overlayfs directs itself, nor labels and access lists, which are the node's to give.
pub(crate) fn keeps_xattr(name: &[u8]) -> bool {
    name == b"security.capability" || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

fn uid(attributes: &Attributes) -> Option<Uid> {
    Some(Uid::from_raw(attributes.uid))
}

fn gid(attributes: &Attributes) -> Option<Gid> {
    Some(Gid::from_raw(attributes.gid))
}

fn times(time: Time) -> Timestamps {
    let time = Timespec { tv_sec: time.secs, tv_nsec: i64::from(time.nanos) };
    Timestamps { last_access: time, last_modification: time }
}

/// Attributes of something that is there; of its extended attributes those that an image may bring.
pub(crate) fn attributes_of(file: BorrowedFd<'_>) -> rustix::io::Result<Attributes> {
    let stat = rustix::fs::fstat(file)?;
    let mtime = Time { secs: stat.st_mtime, nanos: u32::try_from(stat.st_mtime_nsec).unwrap_or(0) };
    let mode = stat.st_mode & 0o7777;
    Ok(Attributes { mode, uid: stat.st_uid, gid: stat.st_gid, mtime, xattrs: xattrs_of(file)? })
}

/// Largest list of names and largest value that the kernel gives (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const XATTR_BYTES_MAX: usize = 64 << 10;

fn xattrs_of(file: BorrowedFd<'_>) -> rustix::io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    let len = match rustix::fs::flistxattr_query(file) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Ok(len) => len,
        Err(source) => return Err(source),
    };
    let mut names = vec![0u8; len.clamp(1, XATTR_BYTES_MAX)];
    let len = rustix::fs::flistxattr(file, &mut names[..])?;
    let mut xattrs = Vec::new();
    for name in names[..len].split(|&b| b == 0).filter(|name| keeps_xattr(name)) {
        let mut value = vec![0u8; XATTR_BYTES_MAX];
        match rustix::fs::fgetxattr(file, name, &mut value[..]) {
            Ok(len) => {
                value.truncate(len);
                xattrs.push((name.to_vec(), value));
            }
            // Gone meanwhile.
            Err(Errno::NODATA) => {}
            Err(source) => return Err(source),
        }
    }
    Ok(xattrs)
}
