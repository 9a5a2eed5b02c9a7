//! Gives files a label: all of a volume, or one file.
//!
//! A volume's content may be another container's work, and may change meanwhile: every step goes from an open directory to one name
//! in it, no link is followed, and nothing but directories is opened.

use std::ffi::OsString;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;

use crate::{LsmError, Result};

const ATTRIBUTE: &str = "security.selinux";
/// Levels of directories below a volume; each costs a descriptor while it is walked.
const DEPTH_MAX: usize = 1024;
/// Directories that belong to the machine, with all below them.
const SYSTEM_TREES: [&str; 12] = [
    "/bin", "/boot", "/dev", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/sbin", "/sys", "/usr", "/etc",
];
/// Directories that belong to the machine, while what lies below them may be a volume.
const SYSTEM_DIRECTORIES: [&str; 10] =
    ["/", "/home", "/media", "/mnt", "/opt", "/root", "/run", "/srv", "/tmp", "/var"];
/// The same, one level down.
const SYSTEM_BELOW_VAR: [&str; 6] = ["cache", "lib", "log", "run", "spool", "tmp"];

/// Gives the file or the whole tree at `path` this label. File systems that have no labels, or one for all files, are passed over.
///
/// `path`: absolute and without links. `cancelled` is asked at each file.
///
/// # Errors
/// [`LsmError::SystemDirectory`], [`LsmError::Cancelled`], [`LsmError::TooDeep`], [`LsmError::Relabel`].
pub fn relabel(path: &Path, label: &str, cancelled: &dyn Fn() -> bool) -> Result<()> {
    if is_system(path) {
        return Err(LsmError::SystemDirectory(path.to_owned()));
    }
    let failed = |source: Errno| LsmError::Relabel { path: path.to_owned(), source: source.into() };
    let top = open(path).map_err(failed)?;
    set_open(top.as_fd(), label).map_err(failed)?;
    match open_dir(top.as_fd(), Path::new(".")).map_err(failed)? {
        Some(dir) => Walk { top: path, label, cancelled, names: Vec::new() }.run(dir),
        None => Ok(()),
    }
}

/// Gives one file or directory of our own this label.
///
/// # Errors
/// [`LsmError::Relabel`].
pub fn set(path: &Path, label: &str) -> Result<()> {
    let set = open(path).and_then(|file| set_open(file.as_fd(), label));
    set.map_err(|source| LsmError::Relabel { path: path.to_owned(), source: source.into() })
}

fn is_system(path: &Path) -> bool {
    let odd = !path.is_absolute() || path.components().any(|part| part == Component::ParentDir);
    let below_var = |name: &&str| path == Path::new("/var").join(name);
    odd || SYSTEM_TREES.iter().any(|tree| path.starts_with(tree))
        || SYSTEM_DIRECTORIES.iter().any(|dir| path == Path::new(dir))
        || SYSTEM_BELOW_VAR.iter().any(below_var)
}

fn open(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat2(
        CWD,
        path,
        flags,
        Mode::empty(),
        ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )
}

/// The directory of this name; none for anything else, and for what is gone.
fn open_dir(parent: BorrowedFd<'_>, name: &Path) -> rustix::io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOTDIR | Errno::LOOP | Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// By way of `/proc`, since an `O_PATH` descriptor takes no attribute itself.
fn set_open(file: BorrowedFd<'_>, label: &str) -> rustix::io::Result<()> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    ignore_unlabelled(rustix::fs::setxattr(path, ATTRIBUTE, label.as_bytes(), XattrFlags::empty()))
}

/// One name in an open directory; a link gets the label itself.
fn set_in(dir: BorrowedFd<'_>, name: &Path, label: &str) -> rustix::io::Result<()> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name.as_os_str().as_bytes());
    let path = PathBuf::from(OsString::from_vec(path));
    let mut now = [0; 1024];
    let known = rustix::fs::lgetxattr(&path, ATTRIBUTE, &mut now);
    // Writing it again would change the file's time and cost a write.
    if known.is_ok_and(|bytes| now[..bytes].strip_suffix(b"\0").unwrap_or(&now[..bytes]) == label.as_bytes())
    {
        return Ok(());
    }
    ignore_unlabelled(rustix::fs::lsetxattr(path, ATTRIBUTE, label.as_bytes(), XattrFlags::empty()))
}

fn ignore_unlabelled(set: rustix::io::Result<()>) -> rustix::io::Result<()> {
    match set {
        // ENOENT: somebody deleted it meanwhile.
        Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOENT) => Ok(()),
        Err(error) => Err(error),
    }
}

struct Walk<'a> {
    top: &'a Path,
    label: &'a str,
    cancelled: &'a dyn Fn() -> bool,
    /// Of the directories that are open below the top.
    names: Vec<OsString>,
}

impl Walk<'_> {
    fn run(mut self, top: OwnedFd) -> Result<()> {
        let mut stack = vec![Dir::new(top).map_err(|error| self.failed(error))?];
        while let Some(dir) = stack.last_mut() {
            if (self.cancelled)() {
                return Err(LsmError::Cancelled(self.top.to_owned()));
            }
            let Some(entry) = dir.read() else {
                stack.pop();
                self.names.pop();
                continue;
            };
            let entry = entry.map_err(|error| self.failed(error))?;
            let name = OsString::from_vec(entry.file_name().to_bytes().to_vec());
            if name == "." || name == ".." {
                continue;
            }
            self.names.push(name);
            match self.entry(dir, entry.file_type())? {
                Some(_) if stack.len() >= DEPTH_MAX => {
                    return Err(LsmError::TooDeep { path: self.top.to_owned(), max: DEPTH_MAX });
                }
                Some(child) => stack.push(Dir::new(child).map_err(|error| self.failed(error))?),
                None => drop(self.names.pop()),
            }
        }
        Ok(())
    }

    /// Labels the last of `names`, which lies in `dir`; opens it where it is a directory.
    fn entry(&self, dir: &Dir, kind: FileType) -> Result<Option<OwnedFd>> {
        let name = self.names.last().map(Path::new).unwrap_or(Path::new("."));
        let labelled = || {
            let dir = dir.fd()?;
            set_in(dir, name, self.label)?;
            match kind {
                FileType::Directory | FileType::Unknown => open_dir(dir, name),
                _ => Ok(None),
            }
        };
        labelled().map_err(|error| self.failed(error))
    }

    fn failed(&self, source: Errno) -> LsmError {
        LsmError::Relabel {
            path: self.top.join(self.names.iter().collect::<PathBuf>()),
            source: source.into(),
        }
    }
}

#[cfg(test)]
#[expect(clippy::print_stderr, reason = "what is not run is said")]
mod tests {
    use std::cell::Cell;
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    const LABEL: &str = "system_u:object_r:container_file_t:s0:c1,c2";

    fn label_of(path: &Path) -> Option<String> {
        let mut now = [0; 1024];
        let bytes = rustix::fs::lgetxattr(path, ATTRIBUTE, &mut now).ok()?;
        Some(String::from_utf8_lossy(&now[..bytes]).into_owned())
    }

    /// Attributes of the kernel's namespace need root; the file system must have them.
    fn tree() -> Option<tempfile::TempDir> {
        let dir = tempfile::tempdir().unwrap();
        let probe = rustix::fs::lsetxattr(dir.path(), ATTRIBUTE, b"x", XattrFlags::empty());
        if probe.is_err() {
            eprintln!("not run: labels cannot be set here ({probe:?})");
            return None;
        }
        Some(dir)
    }

    #[test]
    fn a_tree_is_labelled_and_links_lead_nowhere() {
        let (Some(dir), Some(outside)) = (tree(), tree()) else { return };
        let path = dir.path().canonicalize().unwrap();
        fs::create_dir_all(path.join("a/b")).unwrap();
        fs::write(path.join("a/b/file"), "x").unwrap();
        fs::write(outside.path().join("secret"), "x").unwrap();
        symlink(outside.path(), path.join("a/out")).unwrap();
        symlink(outside.path().join("secret"), path.join("secret")).unwrap();
        relabel(&path, LABEL, &|| false).unwrap();
        for name in ["", "a", "a/b", "a/b/file", "a/out", "secret"] {
            assert_eq!(label_of(&path.join(name)).as_deref(), Some(LABEL), "{name}");
        }
        assert_eq!(label_of(&outside.path().join("secret")), None);
        let changed = |path: &Path| rustix::fs::stat(path).unwrap().st_ctime_nsec;
        let before = changed(&path.join("a/b/file"));
        relabel(&path, LABEL, &|| false).unwrap();
        assert_eq!(changed(&path.join("a/b/file")), before, "a file that has the label is left alone");
        relabel(&path.join("a/b/file"), "other", &|| false).unwrap();
        assert_eq!(label_of(&path.join("a/b/file")).as_deref(), Some("other"));
    }

    #[test]
    fn it_ends_when_it_is_called_off() {
        let Some(dir) = tree() else { return };
        let path = dir.path().canonicalize().unwrap();
        (0..10).for_each(|n| fs::write(path.join(n.to_string()), "").unwrap());
        let asked = Cell::new(0);
        let stop = || {
            asked.set(asked.get() + 1);
            asked.get() > 3
        };
        assert!(matches!(relabel(&path, LABEL, &stop), Err(LsmError::Cancelled(_))));
        assert_eq!(asked.get(), 4);
    }

    #[test]
    fn a_tree_that_is_too_deep_is_an_error() {
        let Some(dir) = tree() else { return };
        let path = dir.path().canonicalize().unwrap();
        let mut at = rustix::fs::open(&path, OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..DEPTH_MAX {
            rustix::fs::mkdirat(&at, "d", Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, "d", OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        assert!(matches!(relabel(&path, LABEL, &|| false), Err(LsmError::TooDeep { .. })));
    }

    #[test]
    fn the_machines_own_directories_are_refused() {
        for path in [
            "/",
            "/etc",
            "/etc/hosts",
            "/usr/share/x",
            "/var",
            "/var/lib",
            "/run",
            "/tmp",
            "/proc/1",
            "x",
            "/srv/../etc",
        ] {
            let refused = relabel(Path::new(path), LABEL, &|| false);
            assert!(matches!(refused, Err(LsmError::SystemDirectory(_))), "{path}");
        }
        for path in ["/var/lib/kubelet/pods/x", "/tmp/x", "/srv/data", "/etcetera"] {
            assert!(!is_system(Path::new(path)), "{path}");
        }
    }

    #[test]
    fn a_path_with_a_link_in_it_is_refused() {
        let Some(dir) = tree() else { return };
        let path = dir.path().canonicalize().unwrap();
        fs::create_dir(path.join("real")).unwrap();
        symlink("real", path.join("link")).unwrap();
        assert!(matches!(relabel(&path.join("link"), LABEL, &|| false), Err(LsmError::Relabel { .. })));
        assert_eq!(label_of(&path.join("real")), None);
    }
}
