//! Signatures first.
#![allow(missing_docs, clippy::missing_errors_doc, unused_variables, reason = "signatures first")]
use crate::*;
use rustix::process::Pid;
use std::time::Duration;
impl Cgroups {
    /// Makes a cgroup in every tree, limits before any process can be in it; missing parents are made. A leftover of the same
    /// name is replaced when it is empty.
    pub fn create(&self, path: &CgroupPath, resources: &Resources) -> Result<Cgroup> {
        Err(CgroupError::NotMounted)
    }
    /// Makes a cgroup without limits unless it is there (a default parent, the shims' own place).
    pub fn ensure(&self, path: &CgroupPath) -> Result<Cgroup> {
        Err(CgroupError::NotMounted)
    }
    /// Names of the cgroups directly below `parent` in any tree: what recovery compares with the records.
    pub fn children(&self, parent: &CgroupPath) -> Result<Vec<String>> {
        Err(CgroupError::NotMounted)
    }
}
impl Cgroup {
    /// Applies all or nothing.
    pub fn update(&self, resources: &Resources) -> Result<()> {
        Err(CgroupError::NotMounted)
    }
    /// SIGKILL to every process here and below; returns when the cgroup is empty, or Populated after KILL_WAIT_MAX.
    pub fn kill(&self) -> Result<()> {
        Err(CgroupError::NotMounted)
    }
    pub fn kill_within(&self, bound: Duration) -> Result<()> {
        Err(CgroupError::NotMounted)
    }
    pub fn freeze(&self) -> Result<()> {
        Err(CgroupError::NotMounted)
    }
    pub fn thaw(&self) -> Result<()> {
        Err(CgroupError::NotMounted)
    }
    /// Processes here and below; gone cgroup = empty.
    pub fn processes(&self) -> Result<Vec<Pid>> {
        Err(CgroupError::NotMounted)
    }
    pub fn is_populated(&self) -> Result<bool> {
        Err(CgroupError::NotMounted)
    }
    pub fn exists(&self) -> bool {
        false
    }
    /// Removes it and all below, in every tree; absent is fine. Fails with Populated when processes are left.
    pub fn remove(&self) -> Result<()> {
        Err(CgroupError::NotMounted)
    }
    /// Removes it where nothing is in it: true when it is gone from every tree.
    pub fn remove_if_empty(&self) -> Result<bool> {
        Err(CgroupError::NotMounted)
    }
    pub fn stats(&self) -> Result<Stats> {
        Err(CgroupError::NotMounted)
    }
    pub fn oom_kills(&self) -> Result<u64> {
        Err(CgroupError::NotMounted)
    }
}
