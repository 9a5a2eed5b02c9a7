//! Mounts: overlay, bind, tmpfs, propagation, detaching.
//!
//! File systems are configured through `fsopen` and attached by descriptor with `move_mount`, so that no string of options has
//! to hold a hundred layers and no target path is walked twice. Kernels without overlay's `lowerdir+` (before 6.5) get one
//! `mount(2)` with short `/proc/self/fd` names instead.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};

/// Most lower directories that the kernel stacks (`OVL_MAX_STACK`, `fs/overlayfs/params.h`).
pub const OVERLAY_LOWERS_MAX: usize = 500;

/// Longest value that `fsconfig(FSCONFIG_SET_STRING)` takes, without its NUL (`fs/fsopen.c`).
const FSCONFIG_STRING_BYTES_MAX: usize = 255;

/// Longest option string of `mount(2)`: one page, with its NUL.
const MOUNT_OPTIONS_BYTES_MAX: usize = 4096;

/// A mount call that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// A file system could not be configured or instantiated.
    #[error("{step} of a {fs} file system for {}", target.display())]
    Configure {
        /// File system type.
        fs: &'static str,
        /// The call, and the option where there is one.
        step: &'static str,
        /// Where it should have gone.
        target: PathBuf,
        /// What the kernel said.
        source: Errno,
    },
    /// An operation on one path was refused.
    #[error("{operation} {}", path.display())]
    Path {
        /// The operation.
        operation: &'static str,
        /// Its subject.
        path: PathBuf,
        /// What the kernel said.
        source: Errno,
    },
    /// An operation on descriptors was refused.
    #[error("{operation} by descriptor")]
    Descriptor {
        /// The operation.
        operation: &'static str,
        /// What the kernel said.
        source: Errno,
    },
    /// The ids of a file system cannot be mapped (kernel, or kind of file system).
    #[error("{} lies on a file system whose ids cannot be mapped for a user namespace", path.display())]
    NotMappable {
        /// What was to be mounted.
        path: PathBuf,
        /// What the kernel said.
        source: Errno,
    },
    /// More layers than the kernel stacks.
    #[error("{count} layers, the kernel stacks at most {OVERLAY_LOWERS_MAX}")]
    TooManyLowers {
        /// How many were given.
        count: usize,
    },
}

impl MountError {
    /// The kernel's error number as an [`io::Error`], if the kernel was asked.
    #[must_use]
    pub fn errno(&self) -> Option<io::Error> {
        self.raw().map(io::Error::from)
    }

    fn raw(&self) -> Option<Errno> {
        match self {
            Self::Configure { source, .. }
            | Self::Path { source, .. }
            | Self::Descriptor { source, .. }
            | Self::NotMappable { source, .. } => Some(*source),
            Self::TooManyLowers { .. } => None,
        }
    }
}

type Result<T> = std::result::Result<T, MountError>;

/// The writable part of an overlay.
#[derive(Debug, Clone, Copy)]
pub struct Writable<'a> {
    /// Directory that takes the changes.
    pub upper: &'a Path,
    /// Empty directory of the same file system, for the kernel.
    pub work: &'a Path,
}

/// What an overlay is made of.
#[derive(Debug, Clone, Copy)]
pub struct Overlay<'a> {
    /// Read-only layers, topmost first; at least one.
    pub lowers: &'a [PathBuf],
    /// Where changes go; none makes the mount read-only, nosuid and nodev; programs run, since image
    /// volumes carry them. Always mounted `volatile`: no sync is ever waited for, and after
    /// a crash of the machine the upper directory must be thrown away.
    pub writable: Option<Writable<'a>>,
    /// SELinux label of all files in it, whatever the layers' own are; none leaves them. A kernel without SELinux refuses one.
    pub label: Option<&'a str>,
}

/// Whether mounts below the source come along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// The one mount.
    Single,
    /// The mount and all below it.
    Recursive,
}

/// Size and mode of a tmpfs.
#[derive(Debug, Clone, Copy)]
pub struct Tmpfs {
    /// Most bytes it holds; none takes the kernel's default (half of the memory).
    pub bytes_max: Option<u64>,
    /// Mode of its root directory, for example `0o1777`.
    pub mode: u32,
}

/// Mounts an overlay at `target`, an existing directory.
///
/// # Errors
/// [`MountError`] with the step that the kernel refused; nothing is mounted then.
pub fn overlay(overlay: &Overlay<'_>, target: &Path) -> Result<()> {
    match overlay_new_api(overlay, target) {
        Ok(mount) => attach(mount.as_fd(), target),
        Err(e) if lacks_lowerdir_plus(&e) => overlay_mount2(overlay, target),
        Err(e) => Err(e),
    }
}

/// An overlay that hangs nowhere: it is reached through the descriptor alone and ends with it.
///
/// `scratch`: an existing directory, mounted on for a moment on kernels that cannot do it otherwise.
///
/// # Errors
/// [`MountError`] with the step that the kernel refused.
pub fn overlay_detached(overlay: &Overlay<'_>, scratch: &Path) -> Result<OwnedFd> {
    match overlay_new_api(overlay, scratch) {
        Err(e) if lacks_lowerdir_plus(&e) => overlay_mount2_detached(overlay, scratch),
        other => other,
    }
}

/// Attaches a detached mount at `target`.
///
/// # Errors
/// [`MountError::Path`].
pub fn attach(mount: BorrowedFd<'_>, target: &Path) -> Result<()> {
    rustix::mount::move_mount(mount, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(on_path("attach a mount at", target))
}

/// Attaches a detached mount on the very file or directory that `target` (an `O_PATH` descriptor) refers to.
///
/// # Errors
/// [`MountError::Descriptor`].
pub fn attach_at(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", target, "", flags)
        .map_err(|source| MountError::Descriptor { operation: "attach a mount", source })
}

/// A detached copy of the mount at `source` (an `O_PATH` descriptor), for [`attach`] or [`attach_at`].
///
/// # Errors
/// [`MountError::Descriptor`].
pub fn clone_tree(source: BorrowedFd<'_>, reach: Reach) -> Result<OwnedFd> {
    let mut flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if reach == Reach::Recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(source, "", flags)
        .map_err(|source| MountError::Descriptor { operation: "copy a mount", source })
}

/// Shows `source` (file or directory) at `target`, which must be of the same kind.
///
/// # Errors
/// [`MountError`] with the step.
pub fn bind(source: &Path, target: &Path, reach: Reach) -> Result<()> {
    let source = open_o_path(source, OFlags::empty())?;
    let tree = clone_tree(source.as_fd(), reach)?;
    attach(tree.as_fd(), target)
}

/// Mounts a tmpfs at `target`: nosuid, nodev, noexec.
///
/// # Errors
/// [`MountError`] with the step.
pub fn tmpfs(target: &Path, options: &Tmpfs) -> Result<()> {
    let configure =
        |step| move |source| MountError::Configure { fs: "tmpfs", step, target: target.to_owned(), source };
    let fs = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).map_err(configure("fsopen"))?;
    if let Some(bytes) = options.bytes_max {
        set_string(fs.as_fd(), "size", bytes.to_string()).map_err(configure("option size"))?;
    }
    set_string(fs.as_fd(), "mode", format!("{:o}", options.mode)).map_err(configure("option mode"))?;
    rustix::mount::fsconfig_create(&fs).map_err(configure(CREATION))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let mount = rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(configure("fsmount"))?;
    attach(mount.as_fd(), target)
}

/// Stops mounts at `target` from spreading to other namespaces and the other way round.
///
/// # Errors
/// [`MountError::Path`], also when `target` is not a mount point.
pub fn make_private(target: &Path, reach: Reach) -> Result<()> {
    let mut flags = MountPropagationFlags::PRIVATE;
    if reach == Reach::Recursive {
        flags |= MountPropagationFlags::REC;
    }
    rustix::mount::mount_change(target, flags).map_err(on_path("make private", target))
}

/// Makes the mount at `target` read-only, whatever else is mounted from the same file system. The flags nosuid, nodev and
/// noexec that the mount has stay.
///
/// # Errors
/// [`MountError::Path`], also when `target` is not a mount point.
pub fn remount_read_only(target: &Path) -> Result<()> {
    let now = rustix::fs::statvfs(target).map_err(on_path("read the mount flags of", target))?.f_flag;
    let mut flags = MountFlags::BIND | MountFlags::RDONLY;
    for (has, keep) in [
        (rustix::fs::StatVfsMountFlags::NOSUID, MountFlags::NOSUID),
        (rustix::fs::StatVfsMountFlags::NODEV, MountFlags::NODEV),
        (rustix::fs::StatVfsMountFlags::NOEXEC, MountFlags::NOEXEC),
    ] {
        if now.contains(has) {
            flags |= keep;
        }
    }
    rustix::mount::mount_remount(target, flags, "").map_err(on_path("make read-only", target))
}

/// Takes the topmost mount off `target`, even while it is in use; its users keep it until they end. Nothing mounted there, or
/// nothing there at all, is success. The last component of `target` is not followed when it is a symbolic link.
///
/// # Errors
/// [`MountError::Path`].
pub fn unmount_detach(target: &Path) -> Result<()> {
    match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
        // "Not a mount point", but also "locked": tell them apart.
        Err(Errno::INVAL) if !is_mountpoint(target)? => Ok(()),
        Err(source) => Err(on_path("unmount", target)(source)),
    }
}

/// As [`unmount_detach`], for a copy of other mounts: nothing but the copy goes. What came along below it shares its unmounting with
/// the originals (mount_namespaces(7)), so those would be taken off as well where the machine's mounts are shared, as systemd has it.
///
/// # Errors
/// [`MountError::Path`].
pub fn unmount_copy(target: &Path) -> Result<()> {
    if is_mountpoint(target)? {
        make_private(target, Reach::Recursive)?;
    }
    unmount_detach(target)
}

/// Whether something is mounted right at `target`. A path that does not exist is no mount point.
///
/// # Errors
/// [`MountError::Path`].
pub fn is_mountpoint(target: &Path) -> Result<bool> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    match rustix::fs::statx(CWD, target, flags, StatxFlags::empty()) {
        Ok(stat) => Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
        Err(source) => Err(on_path("look at", target)(source)),
    }
}

fn overlay_new_api(overlay: &Overlay<'_>, target: &Path) -> Result<OwnedFd> {
    check_count(overlay)?;
    let configure =
        |step| move |source| MountError::Configure { fs: "overlay", step, target: target.to_owned(), source };
    let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(configure("fsopen"))?;
    // Opened descriptors must live until the file system exists, since the kernel walks the names below /proc/self/fd.
    let mut open = Vec::new();
    for lower in overlay.lowers {
        let name = short_name(lower, &mut open)?;
        set_string(fs.as_fd(), "lowerdir+", name).map_err(configure(LOWERDIR_PLUS))?;
    }
    let mut attributes = MountAttrFlags::empty();
    if let Some(writable) = overlay.writable {
        let (upper, work) = (short_name(writable.upper, &mut open)?, short_name(writable.work, &mut open)?);
        set_string(fs.as_fd(), "upperdir", upper).map_err(configure("option upperdir"))?;
        set_string(fs.as_fd(), "workdir", work).map_err(configure("option workdir"))?;
        rustix::mount::fsconfig_set_flag(&fs, "volatile").map_err(configure("option volatile"))?;
    } else {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY
            | MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV;
    }
    if let Some(label) = overlay.label {
        set_string(fs.as_fd(), "context", label).map_err(configure("option context"))?;
    }
    for (key, value) in OVERLAY_OPTIONS {
        set_string(fs.as_fd(), key, value).map_err(configure("a fixed option"))?;
    }
    rustix::mount::fsconfig_create(&fs).map_err(configure(CREATION))?;
    rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(configure("fsmount"))
}

const LOWERDIR_PLUS: &str = "option lowerdir+";
const CREATION: &str = "creation";

/// No option by which one layer could redirect into another, and no index that would tie the directories to this mount.
const OVERLAY_OPTIONS: [(&str, &str); 3] = [("index", "off"), ("redirect_dir", "off"), ("metacopy", "off")];

/// Kernels without `lowerdir+` refuse the option itself or, where overlay still takes its options as one string (before 6.5), the
/// creation; before 5.2 there is no `fsopen`. The same number has other causes, too; then `mount(2)` fails as well.
fn lacks_lowerdir_plus(error: &MountError) -> bool {
    match error {
        MountError::Configure { step, source, .. } => {
            ([LOWERDIR_PLUS, CREATION].contains(step) && *source == Errno::INVAL) || *source == Errno::NOSYS
        }
        _ => false,
    }
}

fn overlay_mount2_detached(overlay: &Overlay<'_>, scratch: &Path) -> Result<OwnedFd> {
    overlay_mount2(overlay, scratch)?;
    let root = open_o_path(scratch, OFlags::DIRECTORY);
    unmount_detach(scratch)?;
    root
}

fn overlay_mount2(overlay: &Overlay<'_>, target: &Path) -> Result<()> {
    check_count(overlay)?;
    let mut open = Vec::new();
    let mut data = String::from("lowerdir=");
    for (n, lower) in overlay.lowers.iter().enumerate() {
        data.push_str(if n == 0 { "" } else { ":" });
        data.push_str(&descriptor_name(lower, &mut open)?);
    }
    if let Some(writable) = overlay.writable {
        let (upper, work) =
            (descriptor_name(writable.upper, &mut open)?, descriptor_name(writable.work, &mut open)?);
        data.push_str(&format!(",upperdir={upper},workdir={work},volatile"));
    }
    if let Some(label) = overlay.label {
        // Quoted, since its categories are separated as options are.
        data.push_str(&format!(",context=\"{label}\""));
    }
    for (key, value) in OVERLAY_OPTIONS {
        data.push_str(&format!(",{key}={value}"));
    }
    if data.len() >= MOUNT_OPTIONS_BYTES_MAX {
        return Err(MountError::TooManyLowers { count: overlay.lowers.len() });
    }
    let view = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    let flags = if overlay.writable.is_some() { MountFlags::empty() } else { view };
    let data = CString::new(data).unwrap_or_default();
    rustix::mount::mount("overlay", target, "overlay", flags, data.as_c_str())
        .map_err(on_path("mount an overlay at", target))
}

fn check_count(overlay: &Overlay<'_>) -> Result<()> {
    let count = overlay.lowers.len();
    if count > OVERLAY_LOWERS_MAX { Err(MountError::TooManyLowers { count }) } else { Ok(()) }
}

/// The path itself where overlay takes it literally, else a name below `/proc/self/fd`.
fn short_name(path: &Path, open: &mut Vec<OwnedFd>) -> Result<String> {
    match path.to_str() {
        Some(text) if text.len() <= FSCONFIG_STRING_BYTES_MAX && !text.contains(['\\', ',', ':']) => {
            Ok(text.to_owned())
        }
        _ => descriptor_name(path, open),
    }
}

fn descriptor_name(path: &Path, open: &mut Vec<OwnedFd>) -> Result<String> {
    let fd = open_o_path(path, OFlags::DIRECTORY)?;
    let name = format!("/proc/self/fd/{}", fd.as_raw_fd());
    open.push(fd);
    Ok(name)
}

fn open_o_path(path: &Path, more: OFlags) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC | more, Mode::empty())
        .map_err(on_path("open", path))
}

fn set_string(fs: BorrowedFd<'_>, key: &str, value: impl AsRef<std::ffi::OsStr>) -> rustix::io::Result<()> {
    rustix::mount::fsconfig_set_string(fs, key, value.as_ref().as_bytes())
}

fn on_path(operation: &'static str, path: &Path) -> impl FnOnce(Errno) -> MountError {
    let path = path.to_owned();
    move |source| MountError::Path { operation, path, source }
}

#[cfg(test)]
#[path = "mount_tests.rs"]
mod tests;
