//! What a specification is made from. Two classes (the security frame of the design): a *request* comes from the
//! kubelet and is policy; *content* comes from an image and never widens a request. Facts about the host and the
//! sandbox are the daemon's own.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crisp_domain::ContainerId;
use crisp_sys::userns::IdMap;
use oci_spec::runtime::LinuxSeccomp;
use serde::{Deserialize, Serialize};

use crate::capability::{CapabilityRequest, CapabilitySet};
use crate::signal::Signal;
use crate::users::{ResolvedUser, UserRequest};

/// Everything that [`crate::build`] looks at. The same input gives the same specification, byte for byte.
#[derive(Debug, Clone)]
pub struct ContainerInput {
    /// Of the container to be made.
    pub id: ContainerId,
    /// What the kubelet asked for.
    pub config: ContainerConfig,
    /// What the image says (content, not policy).
    pub image: ImageConfig,
    /// Facts of the sandbox that the container joins.
    pub sandbox: SandboxFacts,
    /// Facts of this machine and of the daemon's own privileges.
    pub host: HostFacts,
    /// Who the process runs as: the answer of [`crate::users::resolve`] for `config.security.user`.
    pub user: ResolvedUser,
    /// `root.path`: absolute, or relative to the bundle.
    pub rootfs: PathBuf,
    /// `linux.cgroupsPath`, as the cgroup driver wants it: `<cgroup_parent>/<container id>` for cgroupfs.
    pub cgroups_path: PathBuf,
    /// CRI mounts after [`crate::mounts::resolve`], image volumes and anonymous volumes among them.
    pub mounts: Vec<BindMount>,
    /// Requested devices after [`crate::devices::resolve`]; for a privileged container also those of
    /// [`crate::devices::host_devices`].
    pub devices: Vec<DeviceNode>,
    /// The filter for `config.security.seccomp`, made for [`crate::capability::granted`]; `None` runs unconfined.
    pub seccomp: Option<LinuxSeccomp>,
    /// Limits of the runtime's own configuration; empty leaves the ones that the process inherits.
    pub rlimits: Vec<Rlimit>,
    /// What the machine's security modules are told; decided elsewhere, as the filter is.
    pub labels: SecurityLabels,
    /// Annotation keys that the handler's configuration lets through to the specification; the rest stays out.
    pub allowed_annotations: BTreeSet<String>,
}

/// Names under which AppArmor and SELinux know the container. They are checked by whoever fills them in: a handler passes them on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecurityLabels {
    /// AppArmor profile of the process, loaded in the kernel; `None` for none.
    pub apparmor: Option<String>,
    /// SELinux label of the process.
    pub process: Option<String>,
    /// SELinux label of the file systems that are mounted for it.
    pub mount: Option<String>,
}

/// The part of a CRI container's configuration that its specification depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ContainerConfig {
    /// Replaces the image's entrypoint and command when it is not empty.
    pub command: Vec<String>,
    /// Arguments of `command` or of the image's entrypoint.
    pub args: Vec<String>,
    /// Absolute; empty means the image's, else `/`.
    pub working_dir: String,
    /// Names and values in the order given; later ones win. A value is any bytes without NUL.
    pub envs: Vec<(String, Vec<u8>)>,
    /// As requested; [`crate::mounts::resolve`] turns them into [`ContainerInput::mounts`].
    pub mounts: Vec<MountRequest>,
    /// As requested; [`crate::devices::resolve`] turns them into [`ContainerInput::devices`].
    pub devices: Vec<DeviceRequest>,
    /// Unstructured; see [`ContainerInput::allowed_annotations`].
    pub annotations: BTreeMap<String, String>,
    /// A terminal, or three streams.
    pub terminal: Terminal,
    /// Users, namespaces, capabilities, confinement.
    pub security: SecurityRequest,
    /// Limits.
    pub resources: Resources,
    /// Wins over the image's.
    pub stop_signal: Option<Signal>,
}

/// Whether a process gets a terminal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Terminal {
    /// Three pipes or files.
    #[default]
    None,
    /// One pseudo-terminal for all three streams.
    Allocated,
}

/// CRI's `LinuxContainerSecurityContext`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecurityRequest {
    /// Ordinary or privileged.
    pub privilege: Privilege,
    /// Additions to and removals from the default set.
    pub capabilities: CapabilityRequest,
    /// Which namespaces to share; the daemon turns it into [`SandboxFacts::namespaces`].
    pub namespaces: NamespaceRequest,
    /// Who runs it.
    pub user: UserRequest,
    /// Whether the root filesystem can be written.
    pub root: RootAccess,
    /// Whether execve may gain privileges.
    pub new_privileges: NewPrivileges,
    /// Verbatim; empty masks nothing.
    pub masked_paths: Vec<String>,
    /// Verbatim; empty protects nothing.
    pub readonly_paths: Vec<String>,
    /// The daemon turns it into [`ContainerInput::seccomp`].
    pub seccomp: SeccompRequest,
    /// Which AppArmor profile.
    pub apparmor: AppArmorRequest,
    /// Parts of an SELinux label.
    pub selinux: Option<SelinuxRequest>,
}

/// Ordinary or privileged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Privilege {
    /// Confined.
    #[default]
    Ordinary,
    /// All capabilities and devices of the host, nothing masked, no seccomp.
    Privileged,
}

/// Whether the container may write to its root filesystem.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RootAccess {
    /// Writes go to the container's own layer.
    #[default]
    ReadWrite,
    /// CRI's `readonly_rootfs`.
    ReadOnly,
}

/// The kernel's `no_new_privs` bit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NewPrivileges {
    /// Setuid programs work.
    #[default]
    Allowed,
    /// execve grants nothing.
    Forbidden,
}

/// CRI's namespace modes, as requested.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamespaceRequest {
    /// POD or NODE.
    pub network: NamespaceMode,
    /// POD, CONTAINER, NODE or TARGET.
    pub pid: NamespaceMode,
    /// POD, CONTAINER or NODE.
    pub ipc: NamespaceMode,
    /// POD, NODE or nothing said.
    pub user: UserNamespaceRequest,
    /// Container id, for [`NamespaceMode::Target`].
    pub target_id: Option<String>,
}

/// Which user namespace was asked for. It is the sandbox's that counts; a container must not ask for another one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum UserNamespaceRequest {
    /// Nothing was said: the sandbox's.
    #[default]
    Unset,
    /// The host's.
    Node,
    /// The pod's, which has these ids.
    Pod(IdMap),
}

/// One namespace's mode.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum NamespaceMode {
    /// Shared by the containers of the pod.
    #[default]
    Pod,
    /// The container's own.
    Container,
    /// The host's.
    Node,
    /// That of another container of the pod.
    Target,
}

/// Which seccomp profile was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum SeccompRequest {
    /// Nothing was said; unconfined unless the operator configured otherwise.
    #[default]
    Unset,
    /// The built-in profile.
    RuntimeDefault,
    /// No filter.
    Unconfined,
    /// A profile file on this node, by absolute path.
    Localhost(PathBuf),
}

/// Which AppArmor profile was asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum AppArmorRequest {
    /// Nothing was said: the default profile where AppArmor is enabled.
    #[default]
    Unset,
    /// The default profile, or an error.
    RuntimeDefault,
    /// None.
    Unconfined,
    /// A loaded profile, by name.
    Localhost(String),
}

/// Parts of an SELinux label; an empty part keeps the default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SelinuxRequest {
    /// SELinux user.
    pub user: String,
    /// SELinux role.
    pub role: String,
    /// SELinux type.
    pub typ: String,
    /// `s0[-s0][:c…]`, checked where the request is parsed.
    pub level: String,
}

/// A CRI mount as requested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountRequest {
    /// Absolute path in the container.
    pub container_path: String,
    /// Where it comes from.
    pub source: MountSource,
    /// Writable or not.
    pub access: MountAccess,
    /// Whether mounts made later on one side show on the other.
    pub propagation: Propagation,
    /// More options of the bind mount.
    pub options: Vec<MountOption>,
    /// The ids that its files show with, where the request gives some.
    pub ids: Option<IdMap>,
}

/// Where a mount comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountSource {
    /// A path of this machine.
    Host(PathBuf),
    /// An image's content, read-only.
    Image {
        /// Name or id of a local image.
        image: String,
        /// Directory inside of it; empty is its root.
        sub_path: String,
    },
}

/// Writable or not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MountAccess {
    /// Writable as far as the file system is.
    #[default]
    ReadWrite,
    /// This mount alone; mounts below it stay as they are.
    ReadOnly,
    /// This mount and all below it.
    RecursiveReadOnly,
}

/// Mount propagation between host and container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Propagation {
    /// None.
    #[default]
    Private,
    /// Host mounts show in the container.
    HostToContainer,
    /// Both ways.
    Bidirectional,
}

/// A restriction that a CRI mount may carry, or its opposite. Applied to the mounts below as well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountOption {
    /// Programs do not run.
    NoExec,
    /// Programs run.
    Exec,
    /// Device nodes do not open.
    NoDev,
    /// Device nodes open.
    Dev,
    /// Setuid bits have no effect.
    NoSuid,
    /// Setuid bits have effect.
    Suid,
}

/// A mount whose source exists and was resolved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindMount {
    /// Absolute, no symbolic links left.
    pub source: PathBuf,
    /// Absolute path in the container, as requested.
    pub destination: String,
    /// Writable or not.
    pub access: MountAccess,
    /// Checked against the source's own propagation.
    pub propagation: Propagation,
    /// More options of the bind mount.
    pub options: Vec<MountOption>,
    /// As requested, for the mount's mappings in the specification.
    pub ids: Option<IdMap>,
}

/// A CRI device as requested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceRequest {
    /// A device node, or a directory of them.
    pub host_path: PathBuf,
    /// Where it appears in the container.
    pub container_path: String,
    /// What the container may do with it.
    pub access: DeviceAccess,
}

/// A subset of `rwm` for the device cgroup, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceAccess(pub(crate) String);

/// A device node that exists on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceNode {
    /// The node on this machine.
    pub host: PathBuf,
    /// Where it appears in the container.
    pub path: PathBuf,
    /// Character or block.
    pub kind: DeviceKind,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// What the container may do with it.
    pub access: DeviceAccess,
}

/// Kind of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// Character device.
    Char,
    /// Block device.
    Block,
}

/// CRI's `LinuxContainerResources`. `None`, and an empty text or map, means "not set".
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    /// Relative weight, 2 to 262144.
    pub cpu_shares: Option<u64>,
    /// Microseconds of CPU per period; -1 is no limit.
    pub cpu_quota_us: Option<i64>,
    /// Microseconds.
    pub cpu_period_us: Option<u64>,
    /// List of CPUs, as `0-2,7`.
    pub cpuset_cpus: String,
    /// List of memory nodes, as `0-1`.
    pub cpuset_mems: String,
    /// Bytes; -1 is no limit.
    pub memory_limit_bytes: Option<i64>,
    /// Memory and swap together, bytes; -1 is no limit.
    pub memory_swap_limit_bytes: Option<i64>,
    /// Bytes by page size (`2MB`, `1GB`).
    pub hugepage_limits: BTreeMap<String, u64>,
    /// cgroup v2 files and their content.
    pub unified: BTreeMap<String, String>,
    /// -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// Not in CRI: from the runtime's configuration.
    pub pids_limit: Option<i64>,
}

/// A resource limit of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rlimit {
    /// Which.
    pub kind: oci_spec::runtime::PosixRlimitType,
    /// Limit in force.
    pub soft: u64,
    /// Up to where the process may raise it.
    pub hard: u64,
}

/// The facts of an image's configuration (content).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// `NAME=value` entries.
    pub env: Vec<String>,
    /// Entrypoint.
    pub entrypoint: Vec<String>,
    /// Cmd.
    pub cmd: Vec<String>,
    /// WorkingDir; may be empty.
    pub working_dir: String,
    /// User; may be empty.
    pub user: String,
    /// Paths of Volumes.
    pub volumes: Vec<String>,
    /// StopSignal; may be empty.
    pub stop_signal: String,
}

/// What the container takes from its sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxFacts {
    /// Host name in the pod's UTS namespace; `HOSTNAME` for the process.
    pub hostname: String,
    /// Namespaces, after the request's modes were turned into paths.
    pub namespaces: Namespaces,
    /// The pod's user namespace.
    pub user: Option<UserNamespace>,
    /// `/dev/shm`.
    pub shm: Shm,
    /// Host paths of the files that the runtime provides.
    pub files: SandboxFiles,
}

/// A pinned user namespace that containers join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserNamespace {
    /// Pinned file.
    pub path: PathBuf,
    /// Its ids.
    pub ids: IdMap,
}

/// One answer per kind of namespace; mount is always the container's own, cgroup follows from [`HostFacts`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Namespaces {
    /// Network.
    pub network: Namespace,
    /// Processes.
    pub pid: Namespace,
    /// System V and POSIX message queues.
    pub ipc: Namespace,
    /// Host name.
    pub uts: Namespace,
}

/// Where one namespace comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Namespace {
    /// The host's.
    Host,
    /// A new one for this container.
    New,
    /// The one at this path (a pinned file or `/proc/<pid>/ns/…`).
    Join(PathBuf),
}

/// Where `/dev/shm` comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shm {
    /// A bind of this directory: the sandbox's, or the host's `/dev/shm`.
    Bind(PathBuf),
    /// A tmpfs of the container's own.
    Private,
}

/// Host paths of the files that the runtime provides; `None` leaves the image's file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SandboxFiles {
    /// `/etc/hostname`.
    pub hostname: Option<PathBuf>,
    /// `/etc/hosts`.
    pub hosts: Option<PathBuf>,
    /// `/etc/resolv.conf`.
    pub resolv_conf: Option<PathBuf>,
    /// `/sys`, shown read-only in place of a sysfs, which a user namespace may mount for a network of its own only.
    pub sys: Option<PathBuf>,
}

/// Facts of this machine. [`crate::host::probe`] reads them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// Capabilities that the daemon itself holds: more cannot be given.
    pub capabilities: CapabilitySet,
    /// Which hierarchy is mounted at `/sys/fs/cgroup`.
    pub cgroup: CgroupVersion,
    /// Page sizes that the hugetlb controller limits, as `2MB`; empty without it.
    pub hugepage_sizes: BTreeSet<String>,
    /// Whether swap is accounted and limited per cgroup.
    pub swap: SwapAccounting,
    /// The lowest `oom_score_adj` that the daemon may set.
    pub oom_score_adj_min: i32,
    /// Options of the host's cgroup2 mount that a mount of the same hierarchy must repeat (`nsdelegate`, …).
    pub cgroup2_options: Vec<String>,
}

/// cgroup version of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CgroupVersion {
    /// One hierarchy per controller (also hybrid).
    V1,
    /// The unified hierarchy.
    V2,
}

/// Whether swap is accounted per cgroup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SwapAccounting {
    /// Limits apply.
    Present,
    /// Limits are left out.
    Absent,
}

/// A process to run beside a container's init, in its namespaces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecRequest {
    /// Program and arguments; not empty.
    pub command: Vec<String>,
    /// A terminal, or three streams.
    pub terminal: Terminal,
}

/// What was asked for and could not be given in full; the container runs all the same. For the log.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Warning {
    /// The kernel or the daemon lacks these capabilities.
    CapabilitiesSkipped(CapabilitySet),
    /// The machine has no controller for these page sizes.
    HugepageSizesSkipped(Vec<String>),
    /// Raised to the daemon's own floor.
    OomScoreAdjRaised {
        /// As requested.
        requested: i32,
        /// As set.
        set: i32,
    },
}
