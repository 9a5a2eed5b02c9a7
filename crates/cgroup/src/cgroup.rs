use std::path::PathBuf;
use std::sync::Arc;

use crate::layout::Layout;
use crate::{CgroupPath, Version};

/// One cgroup, in all trees of the machine. A name, not a resource: dropping it removes nothing.
#[derive(Debug, Clone)]
pub struct Cgroup {
    pub(crate) layout: Arc<Layout>,
    pub(crate) path: CgroupPath,
}

impl Cgroup {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &CgroupPath {
        &self.path
    }

    /// v1: the `tasks` file of each tree; a single-threaded process joins by writing `0` to each. Empty on v2.
    #[must_use]
    pub fn join_v1_tasks(&self) -> Vec<PathBuf> {
        match self.layout.version {
            Version::V1 => {
                self.layout.hierarchies.iter().map(|h| h.dir(self.path.relative()).join("tasks")).collect()
            }
            Version::V2 => Vec::new(),
        }
    }

    /// v2: the directory, for `CLONE_INTO_CGROUP`.
    #[must_use]
    pub fn v2_dir(&self) -> Option<PathBuf> {
        match self.layout.version {
            Version::V1 => None,
            Version::V2 => self.layout.hierarchies.first().map(|h| h.dir(self.path.relative())),
        }
    }

    /// The file whose field `oom_kill` counts processes that the OOM killer took.
    ///
    /// - v1: `memory.oom_control`. Counts victims of this cgroup alone, not of those below it, whichever limit (its own, an ancestor's, the
    ///   machine's) ran out. No notification by poll on this file; an eventfd registered in `cgroup.event_control` fires when
    ///   *this* limit runs out, also when nothing is killed in the end. So: read the counter at each exit.
    /// - v2: `memory.events`. Counts victims of this cgroup and of those below it, whichever limit ran out. `poll` gives
    ///   `POLLPRI`, inotify gives `IN_MODIFY`, on each change.
    ///
    /// Both counters start at 0 in a fresh cgroup and have grown before the victim's exit can be waited for. Read it before the cgroup is removed.
    /// `None` when there is no memory controller.
    #[must_use]
    pub fn oom_file(&self) -> Option<PathBuf> {
        let hierarchy = self.layout.of("memory")?;
        Some(hierarchy.dir(self.path.relative()).join(self.oom_file_name()))
    }

    pub(crate) fn oom_file_name(&self) -> &'static str {
        match self.layout.version {
            Version::V1 => "memory.oom_control",
            Version::V2 => "memory.events",
        }
    }
}
