//! Attributes of detached mounts, and mounts that show other owners: a file of user 0 on disk belongs to the user that 0 is mapped
//! to in a user namespace, and what that user makes belongs to 0 on disk. Nothing is written for it (`mount_setattr(2)`, since 5.12;
//! which file systems can: ext4, xfs, btrfs, tmpfs since 6.3, … and as layers of an overlay since 5.19).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use crate::mount::{self, MountError, Reach};

/// `MOUNT_ATTR_IDMAP` (`linux/mount.h`).
const IDMAP: u64 = 0x0010_0000;

/// What changes of a mount that is not attached yet.
#[derive(Debug, Clone, Copy, Default)]
pub struct Change {
    /// Attributes that it gets.
    pub set: Attributes,
    /// Attributes that it loses.
    pub clear: Attributes,
    /// Whether it leaves its peer group: mounts made below it or below its peers then stay where they are made.
    pub private: bool,
}

/// Attributes of a mount, each of them a restriction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes(u64);

impl Attributes {
    /// None.
    pub const NONE: Self = Self(0);
    /// Nothing is written.
    pub const READ_ONLY: Self = Self(MountAttrFlags::MOUNT_ATTR_RDONLY.bits() as u64);
    /// Setuid bits have no effect.
    pub const NO_SUID: Self = Self(MountAttrFlags::MOUNT_ATTR_NOSUID.bits() as u64);
    /// Device nodes do not open.
    pub const NO_DEV: Self = Self(MountAttrFlags::MOUNT_ATTR_NODEV.bits() as u64);
    /// Programs do not run.
    pub const NO_EXEC: Self = Self(MountAttrFlags::MOUNT_ATTR_NOEXEC.bits() as u64);

    /// Those of both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// `struct mount_attr` (`linux/mount.h`, its first version).
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// Changes attributes of a detached mount, and with [`Reach::Recursive`] of all that came along below it: of all or of none.
///
/// # Errors
/// [`MountError::Descriptor`].
pub fn change(mount: BorrowedFd<'_>, reach: Reach, change: Change) -> Result<(), MountError> {
    let propagation = if change.private { libc::MS_PRIVATE } else { 0 };
    let attr =
        MountAttr { attr_set: change.set.0, attr_clr: change.clear.0, propagation, ..MountAttr::default() };
    set(mount, reach, &attr)
        .map_err(|source| MountError::Descriptor { operation: "change the attributes of a mount", source })
}

/// Shows the files of a detached mount with the ids of a user namespace. What lies below and cannot be mapped keeps its owners,
/// who are nobody in that namespace.
///
/// # Errors
/// [`MountError::NotMappable`] when the file system, or a kernel of that age, cannot; [`MountError::Descriptor`].
pub fn map_ids(
    mount: BorrowedFd<'_>,
    userns: BorrowedFd<'_>,
    reach: Reach,
    path: &Path,
) -> Result<(), MountError> {
    let fd = u64::from(userns.as_raw_fd().unsigned_abs());
    let attr = MountAttr { attr_set: IDMAP, userns_fd: fd, ..MountAttr::default() };
    let mut result = set(mount, reach, &attr);
    if reach == Reach::Recursive && result == Err(Errno::INVAL) {
        result = set(mount, Reach::Single, &attr);
    }
    result.map_err(|source| match source {
        // EPERM: a mount that is mapped already.
        Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM => {
            MountError::NotMappable { path: path.to_owned(), source }
        }
        source => MountError::Descriptor { operation: "map the ids of a mount", source },
    })
}

/// Whether mounts of the file system at `dir` can show other ids. Nothing is mounted for it.
///
/// # Errors
/// When no user namespace can be made, or `dir` cannot be opened.
pub fn supported(dir: &Path) -> io::Result<bool> {
    let userns = crate::userns::with_mapping(&crate::userns::IdMap::shifted(65_536, 65_536))?;
    let dir_fd = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let Ok(tree) = mount::clone_tree(dir_fd.as_fd(), Reach::Single) else { return Ok(false) };
    Ok(map_ids(tree.as_fd(), userns.as_fd(), Reach::Single, dir).is_ok())
}

/// A detached copy of what is mounted at `path`, a file or a directory.
///
/// # Errors
/// [`MountError::Path`], [`MountError::Descriptor`].
pub fn copy(path: &Path, reach: Reach) -> Result<OwnedFd, MountError> {
    let source = rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|source| MountError::Path { operation: "open", path: path.to_owned(), source })?;
    mount::clone_tree(source.as_fd(), reach)
}

fn set(mount: BorrowedFd<'_>, reach: Reach, attr: &MountAttr) -> Result<(), Errno> {
    let recursive = if reach == Reach::Recursive { libc::AT_RECURSIVE } else { 0 };
    let flags = libc::c_long::from(libc::AT_EMPTY_PATH | recursive);
    let size = size_of::<MountAttr>();
    // SAFETY: a descriptor that is borrowed for the call, an empty C string, and a structure of ours with its size; the kernel
    // only reads. There is no safe wrapper.
    let result = unsafe {
        libc::syscall(libc::SYS_mount_setattr, mount.as_raw_fd(), c"".as_ptr(), flags, &raw const *attr, size)
    };
    if result == 0 {
        return Ok(());
    }
    Err(Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::IO))
}
