//! Changing the limits of a cgroup that is there: all or nothing.

use rustix::io::Errno;

use crate::create::{apply, tree_of};
use crate::file::{parse_error, read_at, read_if_there, write_at};
use crate::layout::{Hierarchy, Layout};
use crate::limits::{Absent, Current, Setting, parse_cpu_max, parse_limit, settings};
use crate::stats::value_of;
use crate::{Cgroup, CgroupError, Resources, Result, Version};

const CPU_MAX: &str = "cpu.max";

type Confirmed<E> = std::result::Result<(), E>;

/// What a file held before.
struct Old<'a> {
    hierarchy: &'a Hierarchy,
    file: &'a str,
    text: String,
}

impl Cgroup {
    /// Applies every limit of `resources` that is set, or none: on a failure the old values are written back.
    ///
    /// # Errors
    /// [`CgroupError::BelowUsage`] for a memory limit below what is in use (v1: what the kernel cannot reclaim; v2: all but inactive
    /// page cache, since the kernel would kill there); [`CgroupError::Resource`], [`CgroupError::NoController`],
    /// [`CgroupError::Write`] for values that cannot be had; [`CgroupError::Read`] with `ENOENT` when the cgroup is gone;
    /// [`CgroupError::NotRestored`] when an old value could not be written back.
    pub fn update(&self, resources: &Resources) -> Result<()> {
        self.update_and(resources, || Ok::<_, std::convert::Infallible>(())).map(|Ok(())| ())
    }

    /// Like [`Cgroup::update`], and then does what belongs to it, such as recording it: when that fails, the old values are written
    /// back as well. The inner result is that of `confirm`.
    ///
    /// # Errors
    /// As for [`Cgroup::update`].
    pub fn update_and<E>(
        &self,
        resources: &Resources,
        confirm: impl FnOnce() -> Confirmed<E>,
    ) -> Result<Confirmed<E>> {
        if resources.devices.is_some() {
            let reason = "device access of a living cgroup stays as it is";
            return Err(CgroupError::Resource { field: "devices", value: String::new(), reason });
        }
        let settings = settings(self.layout.version, resources, &self.current(resources)?)?;
        self.refuse_shrink(&settings)?;
        let old = self.old_values(&settings)?;
        if let Err(error) = apply(&self.layout, &self.path, &settings) {
            let error = self.explain(error, &settings);
            return Err(match restore(self.path.relative(), &old) {
                Ok(()) => error,
                Err(lost) => CgroupError::NotRestored { cause: Box::new(error), source: Box::new(lost) },
            });
        }
        let confirmed = confirm();
        if confirmed.is_err() {
            restore(self.path.relative(), &old)?;
        }
        Ok(confirmed)
    }

    /// Reads only what a new value depends on.
    fn current(&self, resources: &Resources) -> Result<Current> {
        let memory = resources.memory_limit_bytes != 0 || resources.memory_swap_limit_bytes != 0;
        let (memory_file, total_file) = match self.layout.version {
            Version::V1 => ("memory.limit_in_bytes", Some("memory.memsw.limit_in_bytes")),
            Version::V2 => ("memory.max", None),
        };
        let quota =
            self.layout.version == Version::V2 && resources.cpu_period_us != 0 && resources.cpu_quota_us == 0;
        Ok(Current::Live {
            quota_us: if quota { self.quota()? } else { None },
            memory: if memory { self.limit("memory", memory_file)? } else { None },
            memory_and_swap: match total_file.filter(|_| memory) {
                Some(file) => self.limit("memory", file)?,
                None => None,
            },
        })
    }

    fn quota(&self) -> Result<Option<u64>> {
        let Some(hierarchy) = self.layout.of("cpu") else { return Ok(None) };
        let text = read_at(hierarchy, self.path.relative(), CPU_MAX)?;
        let parsed = parse_cpu_max(&text);
        parsed
            .map(|(quota, _)| quota)
            .ok_or_else(|| parse_error(hierarchy, self.path.relative(), CPU_MAX, &text))
    }

    /// A limit file; unlimited when the file is not there.
    fn limit(&self, controller: &str, file: &str) -> Result<Option<u64>> {
        let Some(hierarchy) = self.layout.of(controller) else { return Ok(None) };
        let Some(text) = read_if_there(hierarchy, self.path.relative(), file)? else { return Ok(None) };
        parse_limit(&text).ok_or_else(|| parse_error(hierarchy, self.path.relative(), file, &text))
    }

    /// v2: the kernel meets a limit below usage by reclaim and then by killing; v1 answers `EBUSY` by itself.
    fn refuse_shrink(&self, settings: &[Setting]) -> Result<()> {
        let wanted = settings.iter().find(|setting| setting.file == "memory.max");
        let Some(limit) = wanted.and_then(|setting| setting.value.parse::<u64>().ok()) else { return Ok(()) };
        let Some(usage) = self.working_set()?.filter(|usage| *usage > limit) else { return Ok(()) };
        Err(CgroupError::BelowUsage { path: self.memory_dir(), limit, usage })
    }

    fn working_set(&self) -> Result<Option<u64>> {
        let Some(hierarchy) = self.layout.of("memory") else { return Ok(None) };
        let dir = self.path.relative();
        let Some(usage) = self.limit("memory", "memory.current")? else { return Ok(None) };
        let stat = read_if_there(hierarchy, dir, "memory.stat")?.unwrap_or_default();
        Ok(Some(usage.saturating_sub(value_of(&stat, "inactive_file").unwrap_or(0))))
    }

    fn memory_dir(&self) -> std::path::PathBuf {
        self.layout.of("memory").unwrap_or(&self.layout.hierarchies[0]).dir(self.path.relative())
    }

    /// v1: the kernel says EBUSY when it cannot reclaim enough; the number helps.
    fn explain(&self, error: CgroupError, settings: &[Setting]) -> CgroupError {
        let CgroupError::Write { source: Errno::BUSY, ref path, .. } = error else { return error };
        let memory = settings.iter().find(|s| s.controller == "memory" && path.ends_with(s.file.as_ref()));
        let limit = memory.and_then(|setting| setting.value.parse().ok());
        let usage = self.limit("memory", "memory.usage_in_bytes").ok().flatten();
        match limit.zip(usage) {
            Some((limit, usage)) => CgroupError::BelowUsage { path: self.memory_dir(), limit, usage },
            None => error,
        }
    }

    fn old_values<'a>(&'a self, settings: &'a [Setting]) -> Result<Vec<Old<'a>>> {
        settings
            .iter()
            .filter_map(|setting| old_value(&self.layout, self.path.relative(), setting).transpose())
            .collect()
    }
}

fn old_value<'a>(layout: &'a Layout, dir: &str, setting: &'a Setting) -> Result<Option<Old<'a>>> {
    let Some(hierarchy) = tree_of(layout, setting)? else { return Ok(None) };
    let text = match setting.absent {
        Absent::Skip => read_if_there(hierarchy, dir, &setting.file)?,
        Absent::Fail => Some(read_at(hierarchy, dir, &setting.file)?),
    };
    Ok(text.map(|text| Old { hierarchy, file: &setting.file, text }))
}

/// Writes everything back, newest first. Values that the kernel checks against each other may have to go the other way round:
/// what failed is tried once more.
fn restore(dir: &str, old: &[Old<'_>]) -> Result<()> {
    let failed: Vec<&Old<'_>> = old.iter().rev().filter(|old| put_back(dir, old).is_err()).collect();
    failed.into_iter().try_for_each(|old| put_back(dir, old))
}

fn put_back(dir: &str, old: &Old<'_>) -> Result<()> {
    if old.text.trim().is_empty() {
        return if old.file.starts_with("cpuset.") { empty_list(dir, old) } else { Ok(()) };
    }
    let mut lines = old.text.lines().filter(|line| !line.trim().is_empty());
    lines.try_for_each(|line| write_at(old.hierarchy, dir, old.file, line))
}

/// An empty line empties a list: a write of no bytes never reaches the file. v2 refuses that once processes are there; then what
/// was in force through the empty list is written out.
fn empty_list(dir: &str, old: &Old<'_>) -> Result<()> {
    match write_at(old.hierarchy, dir, old.file, "\n") {
        Err(CgroupError::Write { source: Errno::NOSPC, .. }) => {
            let parent = dir.rsplit_once('/').map_or(".", |(parent, _)| parent);
            let list = read_at(old.hierarchy, parent, &format!("{}.effective", old.file))?;
            write_at(old.hierarchy, dir, old.file, list.trim())
        }
        other => other,
    }
}
