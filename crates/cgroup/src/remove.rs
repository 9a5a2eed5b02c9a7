//! Removal, with everything below.

use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;

use crate::file::{open_at, remove_dir, subgroups, tree};
use crate::kill::pids_of;
use crate::layout::{Hierarchy, Layout};
use crate::wait::Patience;
use crate::{Cgroup, CgroupError, CgroupPath, Cgroups, Result, Version};

/// How long a removal waits for processes that are about to end.
pub const REMOVE_WAIT_MAX: Duration = Duration::from_secs(2);
/// How many processes an error names.
const SHOWN_PIDS_MAX: usize = 8;

impl Cgroups {
    /// Names of the cgroups directly below `parent`, in any tree, sorted: what recovery compares with the records.
    ///
    /// # Errors
    /// [`CgroupError::Read`]; a parent that is not there has none.
    pub fn children(&self, parent: &CgroupPath) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for hierarchy in &self.0.hierarchies {
            names.extend(subgroups(hierarchy, parent.relative())?);
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }
}

impl Cgroup {
    /// Removes it with all cgroups below, in every tree; what is not there is removed. Processes that are about to end are
    /// waited for, at most [`REMOVE_WAIT_MAX`].
    ///
    /// # Errors
    /// [`CgroupError::Populated`] when processes are left: kill first. [`CgroupError::Remove`].
    pub fn remove(&self) -> Result<()> {
        self.refuse_root()?;
        let mut patience = Patience::new(REMOVE_WAIT_MAX);
        let trees = self.layout.hierarchies.iter().chain(&self.layout.beside);
        // One that fails does not keep the others.
        let failed =
            trees.map(|hierarchy| remove_tree(&self.layout, hierarchy, self.path.relative(), &mut patience));
        failed.fold(Ok(()), Result::and)
    }

    /// Removes it where nothing is in it and says whether it is gone from every tree. For parents that may still be in use.
    ///
    /// # Errors
    /// [`CgroupError::Remove`] for anything but "in use".
    pub fn remove_if_empty(&self) -> Result<bool> {
        self.refuse_root()?;
        let mut gone = true;
        for hierarchy in &self.layout.hierarchies {
            match remove_dir(hierarchy, self.path.relative()) {
                Ok(()) => {}
                Err(Errno::BUSY | Errno::NOTEMPTY) => gone = false,
                Err(source) => return Err(remove_error(hierarchy, self.path.relative(), source)),
            }
        }
        Ok(gone)
    }

    fn refuse_root(&self) -> Result<()> {
        let reason = "is the root, which stays";
        if self.path.is_root() {
            Err(CgroupError::Path { path: self.path.to_string(), reason })
        } else {
            Ok(())
        }
    }
}

fn remove_error(hierarchy: &Hierarchy, dir: &str, source: Errno) -> CgroupError {
    CgroupError::Remove { path: hierarchy.dir(dir), source }
}

/// Removes `dir` and all below from one tree.
pub(crate) fn remove_tree(
    layout: &Layout,
    hierarchy: &Hierarchy,
    dir: &str,
    patience: &mut Patience,
) -> Result<()> {
    loop {
        match remove_dir(hierarchy, dir) {
            Ok(()) => return Ok(()),
            Err(Errno::BUSY | Errno::NOTEMPTY) => {}
            Err(source) => return Err(remove_error(hierarchy, dir, source)),
        }
        for below in tree(hierarchy, dir)?.iter().rev() {
            match remove_dir(hierarchy, below) {
                Ok(()) | Err(Errno::BUSY | Errno::NOTEMPTY) => {}
                Err(source) => return Err(remove_error(hierarchy, below, source)),
            }
        }
        if remove_dir(hierarchy, dir).is_ok() {
            return Ok(());
        }
        if patience.is_over() {
            return Err(left_over(hierarchy, dir, patience));
        }
        wait_for_change(layout.version, hierarchy, dir, patience);
    }
}

/// Why it cannot be removed: the processes in it, or else the kernel's word.
pub(crate) fn left_over(hierarchy: &Hierarchy, dir: &str, patience: &Patience) -> CgroupError {
    let mut pids = pids_of(hierarchy, dir).unwrap_or_default();
    if pids.is_empty() {
        return remove_error(hierarchy, dir, Errno::BUSY);
    }
    pids.truncate(SHOWN_PIDS_MAX);
    CgroupError::Populated { path: hierarchy.dir(dir), pids, waited_ms: patience.waited_ms() }
}

/// v2 tells when the last process leaves; v1 has nothing of the kind.
pub(crate) fn wait_for_change(version: Version, hierarchy: &Hierarchy, dir: &str, patience: &mut Patience) {
    match open_at(hierarchy, dir, "cgroup.events") {
        Ok(events) if version == Version::V2 => patience.rest(&mut [PollFd::new(&events, PollFlags::PRI)]),
        _ => patience.rest(&mut []),
    }
}
