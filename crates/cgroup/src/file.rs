//! Reading and writing the files of a cgroup, relative to its tree's open root. `dir` is relative too, `.` for the root.

use std::io::Read;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, unlinkat};
use rustix::io::Errno;

use crate::layout::Hierarchy;
use crate::{CgroupError, Result};

/// Longest file that we read: `cgroup.procs` of a big cgroup is the largest.
pub(crate) const FILE_BYTES_MAX: usize = 8 << 20;
/// Most sub-cgroups of a cgroup, in all depths.
pub const SUBGROUPS_MAX: usize = 20_000;
/// How much of a text an error message shows.
const SHOWN_BYTES_MAX: usize = 80;

fn open_file(hierarchy: &Hierarchy, dir: &str, file: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    openat(&hierarchy.root, format!("{dir}/{file}"), flags | OFlags::CLOEXEC, Mode::empty())
}

/// Opens a file for reading or polling.
pub(crate) fn open_at(hierarchy: &Hierarchy, dir: &str, file: &str) -> Result<OwnedFd> {
    open_file(hierarchy, dir, file, OFlags::RDONLY)
        .map_err(|source| CgroupError::Read { path: hierarchy.dir(dir).join(file), source })
}

/// The whole of a file.
pub(crate) fn read_at(hierarchy: &Hierarchy, dir: &str, file: &str) -> Result<String> {
    let fd = open_at(hierarchy, dir, file)?;
    let limit = u64::try_from(FILE_BYTES_MAX).unwrap_or(u64::MAX);
    let mut text = String::new();
    std::fs::File::from(fd).take(limit + 1).read_to_string(&mut text).map_err(|error| CgroupError::Read {
        path: hierarchy.dir(dir).join(file),
        source: Errno::from_io_error(&error).unwrap_or(Errno::IO),
    })?;
    if text.len() > FILE_BYTES_MAX {
        return Err(CgroupError::TooMany {
            path: hierarchy.dir(dir).join(file),
            what: "bytes",
            max: FILE_BYTES_MAX,
        });
    }
    Ok(text)
}

/// `None` when the file, or the cgroup, is not there, or the kernel has that account switched off.
pub(crate) fn read_if_there(hierarchy: &Hierarchy, dir: &str, file: &str) -> Result<Option<String>> {
    match read_at(hierarchy, dir, file) {
        Ok(text) => Ok(Some(text)),
        Err(CgroupError::Read { source: Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a value in one call, as the kernel demands.
pub(crate) fn write_at(hierarchy: &Hierarchy, dir: &str, file: &str, value: &str) -> Result<()> {
    let wrote = open_file(hierarchy, dir, file, OFlags::WRONLY)
        .and_then(|fd| rustix::io::write(fd, value.as_bytes()));
    wrote.map(|_| ()).map_err(|source| {
        let value = value.trim_end().chars().take(SHOWN_BYTES_MAX).collect();
        CgroupError::Write { path: hierarchy.dir(dir).join(file), value, source }
    })
}

/// An error that shows the start of what was read.
pub(crate) fn parse_error(hierarchy: &Hierarchy, dir: &str, file: &str, text: &str) -> CgroupError {
    let text = text.chars().take(SHOWN_BYTES_MAX).collect();
    CgroupError::Parse { path: hierarchy.dir(dir).join(file), text }
}

/// Names of the directories in `dir`; none when it is not there.
pub(crate) fn subgroups(hierarchy: &Hierarchy, dir: &str) -> Result<Vec<String>> {
    let fail = |source| CgroupError::Read { path: hierarchy.dir(dir), source };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = match openat(&hierarchy.root, dir, flags, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::NODEV) => return Ok(Vec::new()),
        Err(source) => return Err(fail(source)),
    };
    let mut names = Vec::new();
    for entry in Dir::new(fd).map_err(fail)? {
        let entry = match entry {
            // It went away while we read.
            Err(Errno::NOENT | Errno::NODEV) => break,
            entry => entry.map_err(fail)?,
        };
        let name = entry.file_name().to_string_lossy();
        if entry.file_type() == FileType::Directory && name != "." && name != ".." {
            names.push(name.into_owned());
        }
    }
    Ok(names)
}

/// `dir` and all below it, parents before their children.
pub(crate) fn tree(hierarchy: &Hierarchy, dir: &str) -> Result<Vec<String>> {
    let mut dirs = vec![dir.to_owned()];
    let mut next = 0;
    while let Some(dir) = dirs.get(next).cloned() {
        next += 1;
        dirs.extend(subgroups(hierarchy, &dir)?.into_iter().map(|name| format!("{dir}/{name}")));
        if dirs.len() > SUBGROUPS_MAX {
            return Err(CgroupError::TooMany {
                path: hierarchy.dir(&dir),
                what: "sub-cgroups",
                max: SUBGROUPS_MAX,
            });
        }
    }
    Ok(dirs)
}

/// `rmdir`; a directory that is not there is removed.
pub(crate) fn remove_dir(hierarchy: &Hierarchy, dir: &str) -> rustix::io::Result<()> {
    match unlinkat(&hierarchy.root, dir, AtFlags::REMOVEDIR) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}
