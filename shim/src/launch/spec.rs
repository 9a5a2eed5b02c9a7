//! From a container's specification to what libcontainer is given: what it does wrong is taken out and done here, what it cannot
//! do is refused before anything is made.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crisp_proto::supervisor as pb;
use libcontainer::container::{Container, ContainerStatus};
use oci_spec::runtime::{Hooks, LinuxNamespaceType, Mount, MountBuilder, Process, Spec};
use rustix::mount::MountPropagationFlags;

use super::covers::{self, Cover};
use super::hierarchies::Hierarchies;
use crate::error::{Error, Result, Step as _, chain};
use crate::process::{Filter, Label};
use crate::userns::{self, Entry};

/// Longest `config.json`.
const CONFIG_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Propagation types of mounts, in `/proc/self/mountinfo` and in a specification's options.
const PROPAGATIONS: [(&str, MountPropagationFlags, Recursion); 8] = [
    ("private", MountPropagationFlags::PRIVATE, Recursion::Here),
    ("rprivate", MountPropagationFlags::PRIVATE, Recursion::Below),
    ("slave", MountPropagationFlags::DOWNSTREAM, Recursion::Here),
    ("rslave", MountPropagationFlags::DOWNSTREAM, Recursion::Below),
    ("shared", MountPropagationFlags::SHARED, Recursion::Here),
    ("rshared", MountPropagationFlags::SHARED, Recursion::Below),
    ("unbindable", MountPropagationFlags::UNBINDABLE, Recursion::Here),
    ("runbindable", MountPropagationFlags::UNBINDABLE, Recursion::Below),
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Recursion {
    Here,
    Below,
}

/// Everything that init needs.
pub(super) struct Plan {
    /// For libcontainer: without seccomp, capabilities, resources, labels, limits, working directory.
    pub(super) spec: Rc<Spec>,
    /// The process as it was asked for.
    pub(super) process: Process,
    pub(super) filter: Option<Filter>,
    pub(super) label: Option<Label>,
    pub(super) rootfs: PathBuf,
    pub(super) cgroup: pb::Cgroup,
    /// The pod's user namespace and what belongs to it; `None` stays in the host's.
    pub(super) entry: Option<Entry>,
    /// The container's user as the host knows it.
    pub(super) host_user: Option<u32>,
    /// Attached after everything is mounted.
    pub(super) covers: Rc<Vec<Cover>>,
    /// Mount points inside the container that get a propagation type after everything is mounted.
    pub(super) propagation: Vec<(PathBuf, MountPropagationFlags)>,
    /// Attached after everything is mounted.
    pub(super) hierarchies: Rc<Option<Hierarchies>>,
    id: String,
    bundle: PathBuf,
    pub(super) state_dir: PathBuf,
}

impl Plan {
    pub(super) fn load(order: pb::CreateContainer) -> Result<Self> {
        let bundle = PathBuf::from(&order.bundle);
        let mut spec = read_spec(&bundle.join("config.json"))?;
        let cgroup = order.cgroup.unwrap_or_default();
        refuse_unsupported(&spec)?;
        let rootfs = rootfs(&spec, &bundle)?;
        let process = spec
            .process()
            .clone()
            .ok_or_else(|| Error::Invalid("the specification has no process".into()))?;
        let section = spec.linux().as_ref().and_then(|linux| linux.seccomp().as_ref());
        let filter = Filter::read(&bundle, section)?;
        let label = Label::wanted(&process)?;
        let hierarchies = Hierarchies::take(&mut spec, &cgroup)?;
        let propagation = take_propagation(&mut spec);
        let host_user = userns::host_user(&spec, process.user().uid());
        label_fresh_mounts(&mut spec);
        let entry = take_joined(&mut spec)?;
        let covers = covers::take(&mut spec)?;
        if entry.is_some() && !covers.is_empty() {
            // A mount that is handed in from outside would not be locked there.
            return Err(Error::Unsupported("a mount on /dev in a user namespace".into()));
        }
        strip(&mut spec);
        Ok(Self {
            spec: Rc::new(spec),
            process,
            filter,
            label,
            rootfs,
            cgroup,
            entry,
            host_user,
            covers: Rc::new(covers),
            propagation,
            hierarchies: Rc::new(hierarchies),
            id: order.container_id,
            bundle,
            state_dir: order.state_dir.into(),
        })
    }

    /// The clone flag for a PID namespace of its own, unless one was entered.
    pub(super) fn own_pid_namespace(&self) -> u64 {
        let namespaces = self.spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
        let own = namespaces.into_iter().flatten().any(|ns| ns.typ() == LinuxNamespaceType::Pid);
        if own { super::CLONE_NEWPID } else { 0 }
    }

    /// libcontainer's record of the container, which hooks are told.
    pub(super) fn container(&self) -> Result<Container> {
        Container::new(&self.id, ContainerStatus::Creating, None, &self.bundle, &self.state_dir)
            .map_err(|error| Error::Said(chain(&error)))
    }
}

fn read_spec(path: &Path) -> Result<Spec> {
    let step = || format!("read {}", path.display());
    let mut text = String::new();
    File::open(path).step(step)?.take(CONFIG_BYTES_MAX).read_to_string(&mut text).step(step)?;
    serde_json::from_str(&text).map_err(|error| Error::Invalid(format!("{}: {error}", path.display())))
}

/// The root filesystem. Its `dev` must be a directory of its own: libcontainer makes links and devices by joined paths, so a
/// link there would lead them onto the host.
fn rootfs(spec: &Spec, bundle: &Path) -> Result<PathBuf> {
    let root = spec.root().as_ref().ok_or_else(|| Error::Invalid("the specification has no root".into()))?;
    let path = bundle.join(root.path());
    let path = path.canonicalize().step(|| format!("find the root filesystem {}", path.display()))?;
    for name in ["dev", "proc", "sys"] {
        if std::fs::symlink_metadata(path.join(name)).is_ok_and(|meta| !meta.is_dir()) {
            return Err(Error::Invalid(format!("/{name} of the root filesystem is not a directory")));
        }
    }
    Ok(path)
}

/// With a user namespace: takes the namespaces that are joined out, and opens them while their paths can be reached; init is born in
/// them. What libcontainer makes itself then belongs to that user namespace.
fn take_joined(spec: &mut Spec) -> Result<Option<Entry>> {
    let Some(linux) = spec.linux_mut() else { return Ok(None) };
    let all = linux.namespaces().clone().unwrap_or_default();
    let (joined, rest): (Vec<_>, Vec<_>) = all.into_iter().partition(|ns| ns.path().is_some());
    let (user, others): (Vec<_>, Vec<_>) = joined.iter().partition(|ns| ns.typ() == LinuxNamespaceType::User);
    let Some(user) = user.first().and_then(|ns| ns.path().as_deref()) else { return Ok(None) };
    let entry = Entry::open(user, others.iter().filter_map(|ns| ns.path().as_deref()))?;
    linux.set_namespaces(Some(rest)).set_uid_mappings(None).set_gid_mappings(None);
    Ok(Some(entry))
}

/// What libcontainer ignores without a word, or fails at in the middle.
fn refuse_unsupported(spec: &Spec) -> Result<()> {
    let Some(linux) = spec.linux() else {
        return Err(Error::Invalid("the specification has no linux section".into()));
    };
    let unsupported = |what: &str| Err(Error::Unsupported(what.into()));
    let namespaces = linux.namespaces().iter().flatten();
    for namespace in namespaces {
        match namespace.typ() {
            LinuxNamespaceType::User if namespace.path().is_none() => {
                return unsupported("a user namespace of the container's own");
            }
            LinuxNamespaceType::Time => return unsupported("a time namespace"),
            _ => {}
        }
    }
    if !linux
        .namespaces()
        .iter()
        .flatten()
        .any(|ns| ns.typ() == LinuxNamespaceType::Mount && ns.path().is_none())
    {
        return unsupported("a container without a mount namespace of its own");
    }
    if linux.personality().as_ref().is_some_and(|p| p.flags().as_ref().is_some_and(|flags| !flags.is_empty()))
    {
        return unsupported("a personality with flags");
    }
    if let Some(resources) = linux.resources() {
        if resources.rdma().as_ref().is_some_and(|rdma| !rdma.is_empty()) {
            return unsupported("a limit on rdma");
        }
        let unified = resources.unified().as_ref().is_some_and(|unified| !unified.is_empty());
        if unified && !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            return unsupported("a unified cgroup setting on cgroup v1");
        }
    }
    if linux.intel_rdt().is_some() {
        return unsupported("intelRdt");
    }
    if linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty()) {
        return unsupported("a network device moved into the container");
    }
    for mount in spec.mounts().iter().flatten() {
        let options: Vec<_> = mount.options().iter().flatten().map(String::as_str).collect();
        if options.contains(&"tmpcopyup") {
            return unsupported("the mount option tmpcopyup");
        }
        if options.iter().any(|&o| o == "idmap" || o == "ridmap") || mount.uid_mappings().is_some() {
            return unsupported("an id-mapped mount");
        }
    }
    Ok(())
}

pub(super) fn special(typ: &str, destination: &Path, options: &[&str]) -> Result<Mount> {
    mount(typ.into(), typ, destination, options)
}

fn mount(source: PathBuf, typ: &str, destination: &Path, options: &[&str]) -> Result<Mount> {
    let options: Vec<_> = options.iter().map(|&option| option.to_owned()).collect();
    MountBuilder::default()
        .source(source)
        .typ(typ)
        .destination(destination)
        .options(options)
        .build()
        .map_err(|error| Error::Invalid(error.to_string()))
}

/// libcontainer ignores the propagation of single mounts: they are taken out of the options and set by init afterwards. Bind mounts
/// without one are private, as in runc.
fn take_propagation(spec: &mut Spec) -> Vec<(PathBuf, MountPropagationFlags)> {
    let mut wanted = Vec::new();
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for mount in &mut mounts {
        let mut options = mount.options().clone().unwrap_or_default();
        let bind =
            mount.typ().as_deref() == Some("bind") || options.iter().any(|o| o == "bind" || o == "rbind");
        let mut propagation = bind.then_some(MountPropagationFlags::PRIVATE | MountPropagationFlags::REC);
        options.retain(|option| {
            let found = PROPAGATIONS.iter().find(|(name, _, _)| name == option);
            if let Some((_, flags, recursion)) = found {
                let below = *recursion == Recursion::Below;
                propagation = Some(if below { *flags | MountPropagationFlags::REC } else { *flags });
            }
            found.is_none()
        });
        mount.set_options(Some(options));
        wanted.extend(propagation.map(|flags| (mount.destination().clone(), flags)));
    }
    spec.set_mounts(Some(mounts));
    wanted
}

/// libcontainer would label every mount, also those of a file system that exists already (cgroup, mqueue), whose label the kernel
/// does not change. Only what is made for this mount gets it; the root filesystem has it.
fn label_fresh_mounts(spec: &mut Spec) {
    let Some(linux) = spec.linux_mut() else { return };
    let label = linux.mount_label().clone();
    linux.set_mount_label(None);
    let mapped = linux.uid_mappings().as_ref().is_some_and(|mappings| !mappings.is_empty());
    // The option is an error where there is no SELinux, and in a user namespace.
    let Some(label) = label.filter(|_| !mapped && Path::new("/sys/fs/selinux/enforce").exists()) else {
        return;
    };
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for mount in mounts.iter_mut().filter(|mount| matches!(mount.typ().as_deref(), Some("tmpfs" | "devpts")))
    {
        let mut options = mount.options().clone().unwrap_or_default();
        options.push(format!("context={label}"));
        mount.set_options(Some(options));
    }
    spec.set_mounts(Some(mounts));
}

/// Takes out what init does itself.
fn strip(spec: &mut Spec) {
    if let Some(process) = spec.process_mut() {
        process
            .set_capabilities(None)
            .set_no_new_privileges(None)
            .set_apparmor_profile(None)
            .set_selinux_label(None)
            .set_rlimits(None)
            .set_oom_score_adj(None)
            .set_cwd("/".into());
    }
    if let Some(linux) = spec.linux_mut() {
        linux.set_seccomp(None).set_resources(None).set_cgroups_path(None);
        // libcontainer knows the names without the r, and always means all mounts below.
        let name = linux
            .rootfs_propagation()
            .as_deref()
            .map(|name| name.strip_prefix('r').unwrap_or(name).to_owned());
        linux.set_rootfs_propagation(name);
    }
    let lists = |hooks: &Hooks| {
        #[allow(deprecated, reason = "prestart hooks are still in use")]
        let all =
            [hooks.prestart(), hooks.create_runtime(), hooks.create_container(), hooks.start_container()];
        all.into_iter().flatten().any(|list| !list.is_empty())
    };
    if !spec.hooks().as_ref().is_some_and(lists) {
        spec.set_hooks(None);
    }
}
