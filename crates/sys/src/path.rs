//! Paths below a root that somebody else controls.
//!
//! A container, an image or an archive may put symbolic links anywhere. [`RootedDir`] is a descriptor of a directory below which
//! every path resolves inside the kernel (`openat2`), as if the directory were the root of the file system: `/x` and `../x` and
//! links to them stay inside. Nothing here joins strings and hopes.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

/// Most symbolic links that one path may lead through, as in the kernel (`MAXSYMLINKS`).
pub const LINKS_FOLLOWED_MAX: usize = 40;

/// Most components of a path that is created; each costs a descriptor while it is walked.
pub const COMPONENTS_MAX: usize = 256;

/// Most components that links may leave to walk (`PATH_MAX`).
const COMPONENTS_LEFT_MAX: usize = 4096;

/// How often `openat2` is repeated when a rename elsewhere disturbs it (`EAGAIN`, see `openat2(2)`).
const DISTURBED_TRIES_MAX: usize = 128;

/// What went wrong below a root.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// The kernel refused.
    #[error("{operation} {}", path.display())]
    Refused {
        /// The operation.
        operation: &'static str,
        /// The path as it was given, below the root.
        path: PathBuf,
        /// What the kernel said.
        source: Errno,
    },
    /// It is something else than what was asked for.
    #[error("{} is not a {wanted}", path.display())]
    WrongType {
        /// The path as it was given, below the root.
        path: PathBuf,
        /// `"regular file"` or `"directory"`.
        wanted: &'static str,
    },
    /// The file is longer than the caller takes.
    #[error("{} has more than {bytes_max} bytes", path.display())]
    TooLarge {
        /// The path as it was given, below the root.
        path: PathBuf,
        /// The bound.
        bytes_max: u64,
    },
    /// Too many symbolic links or components.
    #[error("{} leads through too many links or directories", path.display())]
    TooDeep {
        /// The path as it was given, below the root.
        path: PathBuf,
    },
}

impl PathError {
    /// Whether the cause is that nothing is there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused { source: Errno::NOENT, .. })
    }

    /// The kernel's error number as an [`io::Error`], where the kernel refused.
    #[must_use]
    pub fn errno(&self) -> Option<io::Error> {
        match self {
            Self::Refused { source, .. } => Some((*source).into()),
            _ => None,
        }
    }
}

type Result<T> = std::result::Result<T, PathError>;

/// How the links of a path are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolve {
    /// Links are followed, with this directory as `/`: for paths that a container or image chose.
    InRoot,
    /// No link, no `..` above this directory, no other mount: for what we laid out ourselves.
    Strict,
}

impl Resolve {
    fn flags(self) -> ResolveFlags {
        match self {
            Self::InRoot => ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
            Self::Strict => {
                ResolveFlags::BENEATH
                    | ResolveFlags::NO_SYMLINKS
                    | ResolveFlags::NO_MAGICLINKS
                    | ResolveFlags::NO_XDEV
            }
        }
    }
}

/// A directory below which all paths resolve. Absolute paths are taken relative to it.
#[derive(Debug)]
pub struct RootedDir {
    fd: OwnedFd,
}

impl AsFd for RootedDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<RootedDir> for OwnedFd {
    fn from(dir: RootedDir) -> Self {
        dir.fd
    }
}

impl RootedDir {
    /// Opens the directory at `path`, which the caller trusts: its links are followed on the host.
    ///
    /// # Errors
    /// [`PathError::Refused`].
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(refused("open", path))?;
        Ok(Self { fd })
    }

    /// Takes an open descriptor of a directory.
    ///
    /// # Errors
    /// [`PathError::WrongType`] for a descriptor of anything else.
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        let path = Path::new(".");
        let stat = rustix::fs::fstat(&fd).map_err(refused("look at", path))?;
        expect_type(&stat, FileType::Directory, path)?;
        Ok(Self { fd })
    }

    /// A second descriptor of the same directory.
    ///
    /// # Errors
    /// [`PathError::Refused`] when there is no free descriptor.
    pub fn try_clone(&self) -> Result<Self> {
        let fd =
            rustix::io::fcntl_dupfd_cloexec(&self.fd, 0).map_err(refused("duplicate", Path::new(".")))?;
        Ok(Self { fd })
    }

    /// An `O_PATH` descriptor of whatever `path` leads to, for `fstat`, mounting and the like.
    ///
    /// # Errors
    /// [`PathError::Refused`].
    pub fn open_path(&self, path: &Path, resolve: Resolve) -> Result<OwnedFd> {
        self.openat2(path, OFlags::PATH, resolve).map_err(refused("open", path))
    }

    /// The directory at `path`, as a root of its own.
    ///
    /// # Errors
    /// [`PathError::Refused`], with `ENOTDIR` for anything but a directory.
    pub fn open_dir(&self, path: &Path, resolve: Resolve) -> Result<Self> {
        let fd =
            self.openat2(path, OFlags::PATH | OFlags::DIRECTORY, resolve).map_err(refused("open", path))?;
        Ok(Self { fd })
    }

    /// The regular file at `path`, for reading. Nothing else is ever opened, so no device or FIFO can be set off.
    ///
    /// # Errors
    /// [`PathError::WrongType`], [`PathError::Refused`].
    pub fn open_file(&self, path: &Path, resolve: Resolve) -> Result<File> {
        let found = self.open_path(path, resolve)?;
        let stat = rustix::fs::fstat(&found).map_err(refused("look at", path))?;
        expect_type(&stat, FileType::RegularFile, path)?;
        reopen(found.as_fd(), OFlags::RDONLY).map(File::from).map_err(refused("read", path))
    }

    /// The whole content of the regular file at `path`, links followed inside the root.
    ///
    /// # Errors
    /// [`PathError::TooLarge`] above `bytes_max`, [`PathError::WrongType`], [`PathError::Refused`].
    pub fn read_file(&self, path: &Path, bytes_max: u64) -> Result<Vec<u8>> {
        let file = self.open_file(path, Resolve::InRoot)?;
        let mut content = Vec::new();
        file.take(bytes_max.saturating_add(1)).read_to_end(&mut content).map_err(|e| {
            let source = Errno::from_io_error(&e).unwrap_or(Errno::IO);
            PathError::Refused { operation: "read", path: path.to_owned(), source }
        })?;
        if content.len() as u64 > bytes_max {
            return Err(PathError::TooLarge { path: path.to_owned(), bytes_max });
        }
        Ok(content)
    }

    /// Type, mode, owner and times of what `path` leads to; the last link is followed too.
    ///
    /// # Errors
    /// [`PathError::Refused`].
    pub fn metadata(&self, path: &Path, resolve: Resolve) -> Result<Stat> {
        let found = self.open_path(path, resolve)?;
        rustix::fs::fstat(&found).map_err(refused("look at", path))
    }

    /// As [`Self::metadata`], but of the link itself where the last component is one. None when nothing is there, or when a
    /// component before is no directory (or, [`Resolve::Strict`], a link).
    ///
    /// # Errors
    /// [`PathError::Refused`].
    pub fn symlink_metadata(&self, path: &Path, resolve: Resolve) -> Result<Option<Stat>> {
        match self.openat2(path, OFlags::PATH | OFlags::NOFOLLOW, resolve) {
            Ok(found) => rustix::fs::fstat(&found).map(Some).map_err(refused("look at", path)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(source) => Err(refused("look at", path)(source)),
        }
    }

    /// The directory at `path`; it and missing parents are made with `mode` and owner root, the umask notwithstanding. Links
    /// are followed inside the root, also those that lead to what is not there yet.
    ///
    /// # Errors
    /// [`PathError::WrongType`] when something else is in the way, [`PathError::TooDeep`], [`PathError::Refused`].
    pub fn create_dir_all(&self, path: &Path, mode: u32) -> Result<Self> {
        match self.openat2(path, OFlags::PATH | OFlags::DIRECTORY, Resolve::InRoot) {
            Ok(fd) => Ok(Self { fd }),
            Err(Errno::NOENT) => Ok(Self { fd: self.walk(path, Missing::Create { mode })?.fd }),
            Err(Errno::NOTDIR) => Err(PathError::WrongType { path: path.to_owned(), wanted: "directory" }),
            Err(source) => Err(refused("open", path)(source)),
        }
    }

    /// An `O_PATH` descriptor of the file at `path` as a place to mount on: what is there stays as it is (but must not be a
    /// directory), else an empty file with `mode`, and parents with 0755, are made.
    ///
    /// # Errors
    /// As [`Self::create_dir_all`].
    pub fn create_mount_file(&self, path: &Path, mode: u32) -> Result<OwnedFd> {
        match self.openat2(path, OFlags::PATH, Resolve::InRoot) {
            Ok(fd) => return expect_not_directory(fd, path),
            Err(Errno::NOENT) => {}
            Err(source) => return Err(refused("open", path)(source)),
        }
        let place = self.walk_parent(path, Missing::Create { mode: 0o755 })?;
        // Not O_EXCL: who made the file in the meantime made the same one. The name is no link (NOFOLLOW).
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&place.parent.fd, &place.name, flags, Mode::from_raw_mode(mode))
            .map_err(refused("create", path))?;
        expect_not_directory(fd, path)
    }

    /// Walks `path` one component at a time, following links inside the root, to a directory.
    ///
    /// The answer carries the path without any link that it leads to. A missing component is an error or is made, as `missing`
    /// says; also at the end of a dangling link.
    ///
    /// # Errors
    /// [`PathError::WrongType`], [`PathError::TooDeep`], [`PathError::Refused`].
    pub fn walk(&self, path: &Path, missing: Missing) -> Result<Walked> {
        let mut walk = Walk::new(self, path);
        while let Some(name) = walk.todo.pop_front() {
            walk.enter(name, missing)?;
        }
        walk.finish()
    }

    /// As [`Self::walk`], but stops before the last component of `path` that is not a link: the place where a thing named
    /// `path` is or would be made.
    ///
    /// # Errors
    /// As [`Self::walk`]; [`PathError::WrongType`] when `path` is the root itself.
    pub fn walk_parent(&self, path: &Path, missing: Missing) -> Result<Place> {
        let mut walk = Walk::new(self, path);
        while let Some(name) = walk.todo.pop_front() {
            if !walk.todo.is_empty() || name == ".." {
                walk.enter(name, missing)?;
            } else if !walk.follow(&name)? {
                return Ok(Place { parent: walk.finish()?, name });
            }
        }
        Err(PathError::WrongType { path: path.to_owned(), wanted: "name in a directory" })
    }

    fn openat2(&self, path: &Path, flags: OFlags, resolve: Resolve) -> rustix::io::Result<OwnedFd> {
        // IN_ROOT takes "/x" itself; BENEATH refuses it, and "" is no path.
        let relative = path.strip_prefix("/").unwrap_or(path);
        let relative = if relative.as_os_str().is_empty() { Path::new(".") } else { relative };
        for _ in 0..DISTURBED_TRIES_MAX {
            match rustix::fs::openat2(
                &self.fd,
                relative,
                flags | OFlags::CLOEXEC,
                Mode::empty(),
                resolve.flags(),
            ) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }
}

/// What a walk does where nothing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// Fail with `ENOENT`.
    Fail,
    /// Make a directory of root's with this mode.
    Create {
        /// Permission bits.
        mode: u32,
    },
}

/// Where a walk ended.
#[derive(Debug)]
pub struct Walked {
    /// `O_PATH` descriptor of the directory.
    pub fd: OwnedFd,
    /// The same, below the root, without links, `.` or `..`; empty for the root.
    pub real: PathBuf,
    /// The directories that were made, as `real` paths, outermost first.
    pub made: Vec<PathBuf>,
}

/// A name in a directory; whether something is there is open.
#[derive(Debug)]
pub struct Place {
    /// The directory.
    pub parent: Walked,
    /// One component, never `.` or `..`.
    pub name: OsString,
}

struct Walk<'a> {
    root: &'a RootedDir,
    given: &'a Path,
    todo: VecDeque<OsString>,
    // Descriptors of the directories entered: `..` pops one, so a directory that is moved meanwhile leads nowhere else.
    stack: Vec<(OsString, OwnedFd)>,
    links: usize,
    made: Vec<PathBuf>,
}

impl<'a> Walk<'a> {
    fn new(root: &'a RootedDir, given: &'a Path) -> Self {
        Self { root, given, todo: names(given).collect(), stack: Vec::new(), links: 0, made: Vec::new() }
    }

    fn dir(&self) -> BorrowedFd<'_> {
        self.stack.last().map_or(self.root.as_fd(), |(_, fd)| fd.as_fd())
    }

    fn real(&self) -> PathBuf {
        self.stack.iter().map(|(name, _)| name).collect()
    }

    /// One component: a directory to enter, a link to expand, `..`.
    fn enter(&mut self, name: OsString, missing: Missing) -> Result<()> {
        if name == ".." {
            self.stack.pop();
            return Ok(());
        }
        if self.stack.len() >= COMPONENTS_MAX {
            return Err(PathError::TooDeep { path: self.given.to_owned() });
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(self.dir(), &name, flags, Mode::empty()) {
            Ok(fd) => self.stack.push((name, fd)),
            // O_PATH|O_NOFOLLOW|O_DIRECTORY answers ENOTDIR for a link, ELOOP elsewhere.
            Err(Errno::NOTDIR | Errno::LOOP) => {
                if !self.follow(&name)? {
                    let path = self.real().join(&name);
                    return Err(PathError::WrongType { path, wanted: "directory" });
                }
            }
            Err(Errno::NOENT) => return self.enter_missing(name, missing),
            Err(source) => return Err(refused("enter", &self.real().join(&name))(source)),
        }
        Ok(())
    }

    fn enter_missing(&mut self, name: OsString, missing: Missing) -> Result<()> {
        let path = self.real().join(&name);
        let Missing::Create { mode } = missing else {
            return Err(refused("enter", &path)(Errno::NOENT));
        };
        match rustix::fs::mkdirat(self.dir(), &name, Mode::from_raw_mode(mode)) {
            Ok(()) => {}
            // Somebody was faster; look again, a bounded number of times, what it is.
            Err(Errno::EXIST) => {
                self.links += 1;
                self.todo.push_front(name);
                return if self.links > LINKS_FOLLOWED_MAX {
                    Err(PathError::TooDeep { path })
                } else {
                    Ok(())
                };
            }
            Err(source) => return Err(refused("create", &path)(source)),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd =
            rustix::fs::openat(self.dir(), &name, flags, Mode::empty()).map_err(refused("enter", &path))?;
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(mode)).map_err(refused("set the mode of", &path))?;
        self.made.push(path);
        self.stack.push((name, fd));
        Ok(())
    }

    /// If `name` is a symbolic link here, puts its target in front of what is left to walk.
    fn follow(&mut self, name: &OsStr) -> Result<bool> {
        let target = match rustix::fs::readlinkat(self.dir(), name, Vec::new()) {
            Ok(target) => OsString::from_vec(target.into_bytes()),
            Err(Errno::INVAL | Errno::NOENT) => return Ok(false),
            Err(source) => return Err(refused("read the link", &self.real().join(name))(source)),
        };
        self.links += 1;
        if self.links > LINKS_FOLLOWED_MAX || self.todo.len() > COMPONENTS_LEFT_MAX {
            return Err(PathError::TooDeep { path: self.given.to_owned() });
        }
        if target.as_bytes().first() == Some(&b'/') {
            self.stack.clear();
        }
        for name in names(Path::new(&target)).collect::<Vec<_>>().into_iter().rev() {
            self.todo.push_front(name);
        }
        Ok(true)
    }

    fn finish(mut self) -> Result<Walked> {
        let real = self.real();
        let fd = match self.stack.pop() {
            Some((_, fd)) => fd,
            None => self.root.try_clone()?.fd,
        };
        Ok(Walked { fd, real, made: self.made })
    }
}

fn names(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|part| match part {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

/// Opens anew, with other flags, what an `O_PATH` descriptor refers to. Needs `/proc`.
///
/// # Errors
/// What the kernel says.
pub fn reopen(found: BorrowedFd<'_>, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let name = format!("/proc/self/fd/{}", found.as_raw_fd());
    rustix::fs::openat(CWD, name, flags | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())
}

fn expect_type(stat: &Stat, wanted: FileType, path: &Path) -> Result<()> {
    if FileType::from_raw_mode(stat.st_mode) == wanted {
        return Ok(());
    }
    let wanted = if wanted == FileType::Directory { "directory" } else { "regular file" };
    Err(PathError::WrongType { path: path.to_owned(), wanted })
}

fn expect_not_directory(fd: OwnedFd, path: &Path) -> Result<OwnedFd> {
    let stat = rustix::fs::fstat(&fd).map_err(refused("look at", path))?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        return Err(PathError::WrongType { path: path.to_owned(), wanted: "file" });
    }
    Ok(fd)
}

fn refused(operation: &'static str, path: &Path) -> impl FnOnce(Errno) -> PathError {
    let path = path.to_owned();
    move |source| PathError::Refused { operation, path, source }
}

/// Whether a path has a `..` component; such a path is for [`Resolve::InRoot`] only.
#[must_use]
pub fn has_parent_component(path: &Path) -> bool {
    path.components().any(|part| part == Component::ParentDir)
}

#[cfg(test)]
#[path = "path_tests.rs"]
mod tests;
