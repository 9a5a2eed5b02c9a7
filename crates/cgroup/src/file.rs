//! Reading and writing the files of a cgroup, relative to its tree's open root.

use std::io::Read;

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use crate::layout::Hierarchy;
use crate::{CgroupError, CgroupPath, Result};

/// Longest file that we read: `cgroup.procs` of a big cgroup is the largest.
pub(crate) const FILE_BYTES_MAX: usize = 8 << 20;
/// How much of a text an error message shows.
const SHOWN_BYTES_MAX: usize = 80;

fn name(path: &CgroupPath, file: &str) -> String {
    format!("{}/{file}", path.relative())
}

/// The whole of a file.
pub(crate) fn read_at(hierarchy: &Hierarchy, path: &CgroupPath, file: &str) -> Result<String> {
    let fail = |source| CgroupError::Read { path: hierarchy.dir(path).join(file), source };
    let fd = openat(&hierarchy.root, name(path, file), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(fail)?;
    let mut text = String::new();
    let limit = u64::try_from(FILE_BYTES_MAX).unwrap_or(u64::MAX);
    let read = std::fs::File::from(fd).take(limit + 1).read_to_string(&mut text);
    read.map_err(|error| fail(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?;
    if text.len() > FILE_BYTES_MAX {
        return Err(CgroupError::TooMany {
            path: hierarchy.dir(path).join(file),
            what: "bytes",
            max: FILE_BYTES_MAX,
        });
    }
    Ok(text)
}

/// `None` when the file, or the cgroup, is not there.
pub(crate) fn read_if_there(hierarchy: &Hierarchy, path: &CgroupPath, file: &str) -> Result<Option<String>> {
    match read_at(hierarchy, path, file) {
        Ok(text) => Ok(Some(text)),
        Err(CgroupError::Read { source: Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP, .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a value in one call, as the kernel demands.
pub(crate) fn write_at(hierarchy: &Hierarchy, path: &CgroupPath, file: &str, value: &str) -> Result<()> {
    let wrote = openat(&hierarchy.root, name(path, file), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|fd| rustix::io::write(fd, value.as_bytes()));
    match wrote {
        Ok(_) => Ok(()),
        Err(source) => {
            let value = value.trim_end().chars().take(SHOWN_BYTES_MAX).collect();
            Err(CgroupError::Write { path: hierarchy.dir(path).join(file), value, source })
        }
    }
}

/// An error that shows the start of what was read.
pub(crate) fn parse_error(hierarchy: &Hierarchy, path: &CgroupPath, file: &str, text: &str) -> CgroupError {
    let text = text.chars().take(SHOWN_BYTES_MAX).collect();
    CgroupError::Parse { path: hierarchy.dir(path).join(file), text }
}
