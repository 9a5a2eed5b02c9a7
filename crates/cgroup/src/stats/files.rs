//! The files of one cgroup, read into one buffer.

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

use super::Psi;
use super::parse::parse_psi;
use crate::file::{FILE_BYTES_MAX, parse_error};
use crate::layout::Hierarchy;
use crate::limits::parse_limit;
use crate::{Cgroup, CgroupError, Result};

/// First size of the buffer in bytes: `memory.stat` fits.
const BUFFER_BYTES: usize = 8 << 10;

/// Reads the files of one cgroup, each in one `read` unless it is longer than the buffer.
pub(super) struct Files<'a> {
    cgroup: &'a Cgroup,
    buffer: Vec<u8>,
}

impl<'a> Files<'a> {
    pub(super) fn of(cgroup: &'a Cgroup) -> Self {
        Self { cgroup, buffer: Vec::new() }
    }

    /// The text of a file; `None` when the controller, the file or the cgroup is not there, or the kernel has that account
    /// switched off.
    pub(super) fn text(&mut self, controller: &str, file: &str) -> Result<Option<String>> {
        self.parsed(controller, file, |text| Some(text.to_owned()))
    }

    pub(super) fn number(&mut self, controller: &str, file: &str) -> Result<Option<u64>> {
        self.parsed(controller, file, |text| text.trim().parse().ok())
    }

    /// `Some(None)` is a limit that is not set.
    pub(super) fn limit(&mut self, controller: &str, file: &str) -> Result<Option<Option<u64>>> {
        self.parsed(controller, file, parse_limit)
    }

    pub(super) fn psi(&mut self, controller: &str, file: &str) -> Result<Option<Psi>> {
        self.parsed(controller, file, parse_psi)
    }

    /// What `parse` makes of a file; it refuses with `None`.
    pub(super) fn parsed<T>(
        &mut self,
        controller: &str,
        file: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(hierarchy) = self.cgroup.layout.of(controller) else { return Ok(None) };
        let dir = self.cgroup.path.relative();
        let length = match read(hierarchy, &format!("{dir}/{file}"), &mut self.buffer) {
            Ok(length) => length,
            Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => return Ok(None),
            Err(source) => {
                return Err(CgroupError::Read { path: hierarchy.dir(dir).join(file), source });
            }
        };
        let text = String::from_utf8_lossy(self.buffer.get(..length).unwrap_or_default());
        parse(&text).map(Some).ok_or_else(|| parse_error(hierarchy, dir, file, &text))
    }

    /// The page sizes that have an account here: what stands between `hugetlb.` and `suffix` in the names of the files, sorted.
    pub(super) fn page_sizes(&self, suffix: &str) -> Result<Vec<String>> {
        let Some(hierarchy) = self.cgroup.layout.of("hugetlb") else { return Ok(Vec::new()) };
        let dir = self.cgroup.path.relative();
        let fail = |source| CgroupError::Read { path: hierarchy.dir(dir), source };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = match openat(&hierarchy.root, dir, flags, Mode::empty()) {
            Ok(opened) => opened,
            Err(Errno::NOENT | Errno::NODEV) => return Ok(Vec::new()),
            Err(source) => return Err(fail(source)),
        };
        let mut sizes = Vec::new();
        for entry in rustix::fs::Dir::new(opened).map_err(fail)? {
            let Ok(entry) = entry else { break };
            let name = entry.file_name().to_string_lossy();
            let size = name.strip_prefix("hugetlb.").and_then(|rest| rest.strip_suffix(suffix));
            // `hugetlb.2MB.rsvd.current` counts reservations.
            sizes.extend(size.filter(|size| !size.contains('.')).map(str::to_owned));
        }
        sizes.sort();
        sizes.truncate(super::PAGE_SIZES_MAX);
        Ok(sizes)
    }
}

/// Reads a file; gives its length. These files are one record each, which comes whole with the first `read` that has room for it, so
/// a read that leaves room was the last one.
fn read(hierarchy: &Hierarchy, path: &str, buffer: &mut Vec<u8>) -> rustix::io::Result<usize> {
    let fd = openat(&hierarchy.root, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut length = 0;
    loop {
        if length == buffer.len() {
            if length >= FILE_BYTES_MAX {
                return Err(Errno::FBIG);
            }
            buffer.resize((length * 2).max(BUFFER_BYTES), 0);
        }
        let Some(room) = buffer.get_mut(length..) else { return Ok(length) };
        let wanted = room.len();
        let read = rustix::io::read(&fd, room)?;
        length += read;
        if read < wanted {
            return Ok(length);
        }
    }
}
