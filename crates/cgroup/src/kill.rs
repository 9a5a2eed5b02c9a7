//! Who is in a cgroup; freezing; killing all of them.

use std::os::fd::OwnedFd;
use std::time::Duration;

use crisp_domain::ErrorKind;
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Access, AtFlags, accessat};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::file::{read_at, read_if_there, tree, write_at};
use crate::layout::Hierarchy;
use crate::remove::{left_over, wait_for_change};
use crate::wait::Patience;
use crate::{Cgroup, CgroupError, Result, Version};

/// How long [`Cgroup::kill`] waits for the last process to end.
pub const KILL_WAIT_MAX: Duration = Duration::from_secs(10);
/// How long one freezing may take; a process that sleeps uninterruptibly cannot be frozen at all.
pub const FREEZE_WAIT_MAX: Duration = Duration::from_millis(100);
/// Processes killed in one round: as many descriptors are open at once.
const KILL_BATCH: usize = 256;

impl Cgroup {
    /// Whether its directory is there, in any tree.
    #[must_use]
    pub fn exists(&self) -> bool {
        let mut trees = self.layout.hierarchies.iter();
        trees.any(|tree| accessat(&tree.root, self.path.relative(), Access::EXISTS, AtFlags::empty()).is_ok())
    }

    /// Processes here and below, in any tree, sorted, as the caller's PID namespace sees them. A cgroup that is gone has none.
    ///
    /// # Errors
    /// [`CgroupError::Read`], [`CgroupError::Parse`].
    pub fn processes(&self) -> Result<Vec<Pid>> {
        Ok(self.pids()?.into_iter().filter_map(Pid::from_raw).collect())
    }

    /// Whether a process lives here or below. Zombies do not count.
    ///
    /// # Errors
    /// [`CgroupError::Read`].
    pub fn is_populated(&self) -> Result<bool> {
        match self.layout.version {
            Version::V1 => Ok(!self.pids()?.is_empty()),
            Version::V2 => {
                let events =
                    read_if_there(&self.layout.hierarchies[0], self.path.relative(), "cgroup.events")?;
                Ok(events.is_some_and(|text| text.lines().any(|line| line == "populated 1")))
            }
        }
    }

    /// Ends every process here and below with SIGKILL, also frozen ones, and returns when the last one has left, at most
    /// [`KILL_WAIT_MAX`] later. Processes that left the cgroup are never signalled. A cgroup that is gone, or empty, is fine.
    ///
    /// # Errors
    /// [`CgroupError::Populated`] when processes outlive it (uninterruptible sleep); [`CgroupError::Kill`].
    pub fn kill(&self) -> Result<()> {
        self.kill_within(KILL_WAIT_MAX)
    }

    /// Like [`Cgroup::kill`] with another bound.
    ///
    /// # Errors
    /// As for [`Cgroup::kill`].
    pub fn kill_within(&self, bound: Duration) -> Result<()> {
        let mut patience = Patience::new(bound);
        if self.layout.version == Version::V2 && self.kill_all_at_once()? {
            return self.wait_until_empty(&mut patience);
        }
        let killed = self.kill_each(&mut patience);
        // Whoever froze it: nothing may stay frozen.
        self.thaw().and(killed)
    }

    /// v2: whether the kernel has `cgroup.kill` (5.14).
    fn kill_all_at_once(&self) -> Result<bool> {
        let hierarchy = &self.layout.hierarchies[0];
        match write_at(hierarchy, self.path.relative(), "cgroup.kill", "1") {
            Ok(()) => Ok(true),
            Err(CgroupError::Write { source: Errno::NOENT | Errno::NODEV, .. }) => Ok(!self.exists()),
            Err(error) => Err(error),
        }
    }

    fn wait_until_empty(&self, patience: &mut Patience) -> Result<()> {
        let hierarchy = &self.layout.hierarchies[0];
        while self.is_populated()? {
            if patience.is_over() {
                return Err(left_over(hierarchy, self.path.relative(), patience));
            }
            wait_for_change(Version::V2, hierarchy, self.path.relative(), patience);
        }
        Ok(())
    }

    /// One round kills who is there. Only when somebody new is there afterwards, the next round freezes first: then nobody can
    /// fork between the look and the signal.
    fn kill_each(&self, patience: &mut Patience) -> Result<()> {
        loop {
            let pids = self.pids()?;
            if pids.is_empty() {
                return Ok(());
            }
            if patience.is_over() {
                return Err(self.survivors(&pids, patience));
            }
            let mut signalled = Vec::new();
            for batch in pids.chunks(KILL_BATCH) {
                signalled = self.signal(batch)?;
            }
            self.thaw()?;
            wait_for_exits(&signalled, patience);
            if self.pids()?.iter().any(|pid| pids.binary_search(pid).is_err()) {
                self.freeze_if_there()?;
            }
        }
    }

    fn freeze_if_there(&self) -> Result<()> {
        match self.freeze() {
            Err(CgroupError::NoController { .. }) => Ok(()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// SIGKILL through descriptors: opened first, then checked against a second look at the cgroup. A number seen twice
    /// with a descriptor opened in between is either the same process or the descriptor's process is dead.
    fn signal(&self, pids: &[i32]) -> Result<Vec<OwnedFd>> {
        let opened: Vec<(i32, OwnedFd)> = pids.iter().filter_map(|pid| open_pidfd(*pid)).collect();
        let still = self.pids()?;
        let mut signalled = Vec::with_capacity(opened.len());
        for (pid, fd) in opened.into_iter().filter(|(pid, _)| still.binary_search(pid).is_ok()) {
            match pidfd_send_signal(&fd, Signal::KILL) {
                Ok(()) => signalled.push(fd),
                Err(Errno::SRCH) => {}
                Err(source) => return Err(CgroupError::Kill { path: self.shown_dir(), pid, source }),
            }
        }
        Ok(signalled)
    }

    fn survivors(&self, pids: &[i32], patience: &Patience) -> CgroupError {
        let pids = pids.iter().take(8).copied().collect();
        CgroupError::Populated { path: self.shown_dir(), pids, waited_ms: patience.waited_ms() }
    }

    fn shown_dir(&self) -> std::path::PathBuf {
        self.freezer().unwrap_or(&self.layout.hierarchies[0]).dir(self.path.relative())
    }

    /// Sorted, without doubles; a process may be in one tree and not yet, or no longer, in another.
    fn pids(&self) -> Result<Vec<i32>> {
        let mut pids = Vec::new();
        for hierarchy in &self.layout.hierarchies {
            pids.extend(pids_of(hierarchy, self.path.relative())?);
        }
        pids.sort_unstable();
        pids.dedup();
        Ok(pids)
    }

    /// Stops every process here and below, or as many as can be stopped within [`FREEZE_WAIT_MAX`].
    ///
    /// # Errors
    /// [`CgroupError::Write`]; [`CgroupError::NoController`] without a freezer (v1).
    pub fn freeze(&self) -> Result<()> {
        let controller = CgroupError::NoController { controller: "freezer", field: "freeze" };
        let hierarchy = self.freezer().ok_or(controller)?;
        let (file, on, state, frozen) = match self.layout.version {
            Version::V1 => ("freezer.state", "FROZEN", "freezer.state", "FROZEN"),
            Version::V2 => ("cgroup.freeze", "1", "cgroup.events", "frozen 1"),
        };
        write_at(hierarchy, self.path.relative(), file, on)?;
        let mut patience = Patience::new(FREEZE_WAIT_MAX);
        while !read_at(hierarchy, self.path.relative(), state)?.lines().any(|line| line == frozen)
            && !patience.is_over()
        {
            wait_for_change(self.layout.version, hierarchy, self.path.relative(), &mut patience);
        }
        Ok(())
    }

    /// Lets every process here and below run, also in sub-cgroups that froze themselves. A cgroup that is gone is fine.
    ///
    /// # Errors
    /// [`CgroupError::Write`].
    pub fn thaw(&self) -> Result<()> {
        let Some(hierarchy) = self.freezer() else { return Ok(()) };
        let (file, off) = match self.layout.version {
            Version::V1 => ("freezer.state", "THAWED"),
            Version::V2 => ("cgroup.freeze", "0"),
        };
        for dir in tree(hierarchy, self.path.relative())? {
            match write_at(hierarchy, &dir, file, off) {
                Ok(()) | Err(CgroupError::Write { source: Errno::NOENT | Errno::NODEV, .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn freezer(&self) -> Option<&Hierarchy> {
        match self.layout.version {
            Version::V1 => self.layout.of("freezer"),
            Version::V2 => self.layout.hierarchies.first(),
        }
    }
}

fn open_pidfd(pid: i32) -> Option<(i32, OwnedFd)> {
    // A process that is gone meanwhile needs no signal; any other refusal shows as a survivor.
    pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok().map(|fd| (pid, fd))
}

/// Until each has ended or it takes too long for one round; new ones are for the next round.
fn wait_for_exits(processes: &[OwnedFd], patience: &mut Patience) {
    const LOOKS_MAX: usize = 8;
    let mut left: Vec<&OwnedFd> = processes.iter().collect();
    for _ in 0..LOOKS_MAX {
        let mut wakers: Vec<PollFd<'_>> = left.iter().map(|fd| PollFd::new(*fd, PollFlags::IN)).collect();
        if wakers.is_empty() || patience.is_over() {
            return;
        }
        patience.rest(&mut wakers);
        let over: Vec<bool> = wakers.iter().map(|waker| !waker.revents().is_empty()).collect();
        let mut over = over.into_iter();
        left.retain(|_| !over.next().unwrap_or(false));
    }
}

/// Processes of one tree, here and below; 0 stands for one of a PID namespace that we do not see and is left out.
pub(crate) fn pids_of(hierarchy: &Hierarchy, dir: &str) -> Result<Vec<i32>> {
    let mut pids = Vec::new();
    for dir in tree(hierarchy, dir)? {
        let text = match read_if_there(hierarchy, &dir, "cgroup.procs") {
            // A threaded cgroup of v2 lists its processes at its domain.
            Ok(text) => text.unwrap_or_default(),
            Err(error) => return Err(error),
        };
        pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
    }
    Ok(pids)
}
