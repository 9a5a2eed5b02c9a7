//! Making a cgroup: directories, limits, device filter; nothing is left of one that could not be finished.

use std::time::Duration;

use rustix::fs::{Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;

use crate::devices::DeviceTable;
use crate::file::{read_at, remove_dir, write_at};
use crate::layout::{Hierarchy, Layout};
use crate::limits::{Absent, Current, Refused, Setting, settings};
use crate::remove::remove_tree;
use crate::wait::Patience;
use crate::{Cgroup, CgroupError, CgroupPath, Cgroups, Resources, Result, Version};

/// Mode of the directories.
const DIR_MODE: Mode = Mode::from_raw_mode(0o755);
/// Tries to make a directory whose parents somebody else removes meanwhile.
const MAKE_TRIES_MAX: usize = 4;
/// v2: controllers that a container's cgroup has where the machine has them; also those that only count.
const V2_CONTROLLERS: [&str; 6] = ["cpu", "cpuset", "io", "memory", "pids", "hugetlb"];

impl Cgroups {
    /// Makes a cgroup in every tree and applies `resources` before any process can be in it. Missing parents are made, without
    /// limits. A leftover of the same name is replaced when no process is in it. When it fails, nothing of it is left.
    ///
    /// # Errors
    /// [`CgroupError::Exists`] when processes are in a cgroup of that name; [`CgroupError::Resource`],
    /// [`CgroupError::NoController`], [`CgroupError::Write`] for limits that cannot be had; [`CgroupError::Make`];
    /// [`CgroupError::DeviceFilter`].
    pub fn create(&self, path: &CgroupPath, resources: &Resources) -> Result<Cgroup> {
        if path.is_root() {
            return Err(CgroupError::Path {
                path: path.to_string(),
                reason: "is the root, which is always there",
            });
        }
        // Before anything is made: a value that cannot be is refused without a trace.
        let wanted = Wanted::of(self.0.version, resources)?;
        let mut made = Made::new(&self.0);
        for hierarchy in &self.0.hierarchies {
            made.leaf(hierarchy, path)?;
        }
        wanted.apply(&self.0, path)?;
        made.keep();
        Ok(self.open(path))
    }

    /// Applies `resources` to a cgroup that somebody else has just made for us, such as the delegated scope of a container. When it
    /// fails, the cgroup stays, as far limited as it was.
    ///
    /// # Errors
    /// As [`Cgroups::create`], but for [`CgroupError::Exists`] and [`CgroupError::Make`].
    pub fn limit(&self, path: &CgroupPath, resources: &Resources) -> Result<Cgroup> {
        Wanted::of(self.0.version, resources)?.apply(&self.0, path)?;
        Ok(self.open(path))
    }

    /// Makes a cgroup in one that is there, unless it is there, and hands no controller down to it: what is in it is counted and
    /// limited above, and the parent may go on to have processes of its own.
    ///
    /// # Errors
    /// [`CgroupError::Make`], also when the parent is gone.
    pub fn nest(&self, path: &CgroupPath) -> Result<Cgroup> {
        for hierarchy in &self.0.hierarchies {
            match mkdirat(&hierarchy.root, path.relative(), DIR_MODE) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(source) => {
                    return Err(CgroupError::Make { path: hierarchy.dir(path.relative()), source });
                }
            }
        }
        Ok(self.open(path))
    }

    /// Makes a cgroup without limits, unless it is there: a default parent of pods, the place of the shims.
    ///
    /// # Errors
    /// [`CgroupError::Make`]; [`CgroupError::Write`] when CPUs and memory nodes cannot be inherited (v1).
    pub fn ensure(&self, path: &CgroupPath) -> Result<Cgroup> {
        let mut made = Made::new(&self.0);
        for hierarchy in self.0.hierarchies.iter().filter(|_| !path.is_root()) {
            made.directory(hierarchy, path)?;
        }
        self.0.prepare(path, &[])?;
        made.keep();
        Ok(self.open(path))
    }
}

/// What a fresh cgroup gets, checked as far as can be without it.
struct Wanted {
    settings: Vec<Setting>,
    devices: Option<DeviceTable>,
}

impl Wanted {
    fn of(version: Version, resources: &Resources) -> Result<Self> {
        let devices = resources.devices.as_deref().map(DeviceTable::new).transpose()?;
        Ok(Self { settings: settings(version, resources, &Current::Fresh)?, devices })
    }

    fn apply(&self, layout: &Layout, path: &CgroupPath) -> Result<()> {
        layout.prepare(path, &self.settings)?;
        apply(layout, path, &self.settings)?;
        match self.devices.as_ref().filter(|table| !table.is_open()) {
            Some(table) => layout.filter_devices(path, table),
            None => Ok(()),
        }
    }
}

/// Directories made so far; removed again, newest first, unless kept.
struct Made<'a> {
    layout: &'a Layout,
    dirs: Vec<(&'a Hierarchy, CgroupPath)>,
}

impl<'a> Made<'a> {
    fn new(layout: &'a Layout) -> Self {
        Self { layout, dirs: Vec::new() }
    }

    fn keep(mut self) {
        self.dirs.clear();
    }

    /// A fresh directory.
    fn leaf(&mut self, hierarchy: &'a Hierarchy, path: &CgroupPath) -> Result<()> {
        if self.directory(hierarchy, path)? {
            return Ok(());
        }
        let mut at_once = Patience::new(Duration::ZERO);
        match remove_tree(self.layout, hierarchy, path.relative(), &mut at_once) {
            Ok(()) => {}
            Err(CgroupError::Populated { .. } | CgroupError::Remove { source: Errno::BUSY, .. }) => {
                return Err(CgroupError::Exists { path: hierarchy.dir(path.relative()) });
            }
            Err(error) => return Err(error),
        }
        match self.directory(hierarchy, path)? {
            true => Ok(()),
            false => Err(CgroupError::Exists { path: hierarchy.dir(path.relative()) }),
        }
    }

    /// Whether the directory is new. Parents are made on the way.
    fn directory(&mut self, hierarchy: &'a Hierarchy, path: &CgroupPath) -> Result<bool> {
        let mut last = Errno::NOENT;
        for _ in 0..MAKE_TRIES_MAX {
            match mkdirat(&hierarchy.root, path.relative(), DIR_MODE) {
                Ok(()) => {
                    self.dirs.push((hierarchy, path.clone()));
                    return Ok(true);
                }
                Err(Errno::EXIST) => return Ok(false),
                Err(Errno::NOENT) => last = Errno::NOENT,
                Err(source) => {
                    return Err(CgroupError::Make { path: hierarchy.dir(path.relative()), source });
                }
            }
            if let Some(parent) = path.parent().filter(|parent| !parent.is_root()) {
                self.directory(hierarchy, &parent)?;
            }
        }
        Err(CgroupError::Make { path: hierarchy.dir(path.relative()), source: last })
    }
}

impl Drop for Made<'_> {
    fn drop(&mut self) {
        for (hierarchy, path) in self.dirs.iter().rev() {
            // A parent that somebody else uses by now stays.
            let _kept = remove_dir(hierarchy, path.relative());
        }
    }
}

impl Layout {
    /// What must be in place before limits can be written.
    fn prepare(&self, path: &CgroupPath, settings: &[Setting]) -> Result<()> {
        match self.version {
            Version::V1 => {
                self.of("cpuset").map_or(Ok(()), |hierarchy| inherit_cpuset(hierarchy, path, settings))
            }
            Version::V2 => {
                let parent = path.parent().unwrap_or_else(CgroupPath::root);
                self.hierarchies.iter().try_for_each(|hierarchy| enable_needed(hierarchy, &parent, settings))
            }
        }
    }

    fn filter_devices(&self, path: &CgroupPath, table: &DeviceTable) -> Result<()> {
        match self.version {
            Version::V1 => self.write_devices(path, table),
            Version::V2 => self.attach_devices(path, table),
        }
    }

    fn write_devices(&self, path: &CgroupPath, table: &DeviceTable) -> Result<()> {
        let hierarchy = self
            .of("devices")
            .ok_or(CgroupError::NoController { controller: "devices", field: "devices" })?;
        table.v1_writes().iter().try_for_each(|(deny, text)| {
            write_at(hierarchy, path.relative(), if *deny { "devices.deny" } else { "devices.allow" }, text)
        })
    }

    fn attach_devices(&self, path: &CgroupPath, table: &DeviceTable) -> Result<()> {
        let hierarchy = &self.hierarchies[0];
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = openat(&hierarchy.root, path.relative(), flags, Mode::empty())
            .map_err(|source| CgroupError::Read { path: hierarchy.dir(path.relative()), source })?;
        let attached = self.programs.attach(table, dir);
        attached.map_err(|source| CgroupError::DeviceFilter { path: hierarchy.dir(path.relative()), source })
    }
}

/// v1: a fresh cpuset is empty and takes no process; CPUs and nodes come from above, level by level.
fn inherit_cpuset(hierarchy: &Hierarchy, path: &CgroupPath, settings: &[Setting]) -> Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if settings.iter().any(|setting| setting.file == file) {
            let parent = path.parent().unwrap_or_else(CgroupPath::root);
            inherited(hierarchy, &parent, file)?;
        } else {
            inherited(hierarchy, path, file)?;
        }
    }
    Ok(())
}

/// The list in force at `path`, after taking over the parent's where it was empty.
fn inherited(hierarchy: &Hierarchy, path: &CgroupPath, file: &str) -> Result<String> {
    let own = read_at(hierarchy, path.relative(), file)?;
    let Some(parent) = path.parent().filter(|_| own.trim().is_empty()) else { return Ok(own) };
    let list = inherited(hierarchy, &parent, file)?;
    write_at(hierarchy, path.relative(), file, list.trim())?;
    Ok(list)
}

/// v2: the parent must hand its controllers down; those that a limit needs without fail.
fn enable_needed(hierarchy: &Hierarchy, parent: &CgroupPath, settings: &[Setting]) -> Result<()> {
    let wanted: Vec<&str> = V2_CONTROLLERS.into_iter().filter(|name| hierarchy.has(name)).collect();
    let Err((refused, error)) = enable(hierarchy, parent, &wanted)? else { return Ok(()) };
    let needed =
        settings.iter().any(|s| s.absent == Absent::Fail && refused.iter().any(|name| *name == s.controller));
    if needed { Err(error) } else { Ok(()) }
}

type Enabled<'a> = std::result::Result<(), (Vec<&'a str>, CgroupError)>;

/// Hands `wanted` down from `path` to its children. The inner error names the controllers that could not be handed down.
fn enable<'a>(hierarchy: &Hierarchy, path: &CgroupPath, wanted: &[&'a str]) -> Result<Enabled<'a>> {
    let text = read_at(hierarchy, path.relative(), "cgroup.subtree_control")?;
    let have: Vec<&str> = text.split_ascii_whitespace().collect();
    let missing: Vec<&str> = wanted.iter().filter(|name| !have.contains(name)).copied().collect();
    if missing.is_empty() {
        return Ok(Ok(()));
    }
    if let Some(parent) = path.parent() {
        // What the parent lacks fails here too, with an error that says so.
        let _above = enable(hierarchy, &parent, &missing)?;
    }
    let all: Vec<String> = missing.iter().map(|name| format!("+{name}")).collect();
    if write_at(hierarchy, path.relative(), "cgroup.subtree_control", &all.join(" ")).is_ok() {
        return Ok(Ok(()));
    }
    Ok(enable_one_by_one(hierarchy, path, &missing))
}

fn enable_one_by_one<'a>(hierarchy: &Hierarchy, path: &CgroupPath, names: &[&'a str]) -> Enabled<'a> {
    let mut failed = Vec::new();
    let mut last = None;
    for name in names {
        if let Err(error) =
            write_at(hierarchy, path.relative(), "cgroup.subtree_control", &format!("+{name}"))
        {
            failed.push(*name);
            last = Some(error);
        }
    }
    last.map_or(Ok(()), |error| Err((failed, error)))
}

/// Writes the settings in order.
pub(crate) fn apply(layout: &Layout, path: &CgroupPath, settings: &[Setting]) -> Result<()> {
    let mut rest = settings;
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        match (write_setting(layout, path, first), after.split_first()) {
            (Err(CgroupError::Write { source: Errno::INVAL, .. }), Some((second, after)))
                if first.refused == Refused::NextFirst =>
            {
                write_setting(layout, path, second)?;
                write_setting(layout, path, first)?;
                rest = after;
            }
            (written, _) => written?,
        }
    }
    Ok(())
}

/// The tree of a setting; `None` when it may be missing and is.
pub(crate) fn tree_of<'a>(layout: &'a Layout, setting: &Setting) -> Result<Option<&'a Hierarchy>> {
    match layout.of(&setting.controller) {
        Some(hierarchy) => Ok(Some(hierarchy)),
        None if setting.absent == Absent::Skip => Ok(None),
        None => Err(missing(setting)),
    }
}

fn missing(setting: &Setting) -> CgroupError {
    match &setting.controller {
        std::borrow::Cow::Borrowed(controller) => {
            CgroupError::NoController { controller, field: setting.field }
        }
        std::borrow::Cow::Owned(_) => {
            let value = setting.file.to_string();
            CgroupError::Resource {
                field: setting.field,
                value,
                reason: "this machine has no such controller",
            }
        }
    }
}

fn write_setting(layout: &Layout, path: &CgroupPath, setting: &Setting) -> Result<()> {
    let Some(hierarchy) = tree_of(layout, setting)? else { return Ok(()) };
    match write_at(hierarchy, path.relative(), &setting.file, &setting.value) {
        Err(CgroupError::Write { source: Errno::NOENT, .. }) if setting.absent == Absent::Skip => Ok(()),
        other => other,
    }
}
