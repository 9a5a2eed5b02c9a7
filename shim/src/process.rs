//! The last steps of a process before its program runs, the same for a container's init and for an exec: limits, security label,
//! filter, capabilities, and the search for the program.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::OnceLock;

use crisp_sys::clone::close_all_from_except;
use crisp_sys::seccomp::Program;
use oci_spec::runtime::{
    Capabilities, Capability as Cap, LinuxCapabilities, LinuxSeccomp, LinuxSeccompFilterFlag, PosixRlimit,
    PosixRlimitType, Process,
};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::error::{Error, Result, Step as _};

/// Name of the compiled filter in a container's bundle.
const FILTER_FILE: &str = "seccomp.bpf";
/// Longest [`FILTER_FILE`].
const FILTER_BYTES_MAX: u64 = 8 * crisp_sys::seccomp::INSTRUCTIONS_MAX as u64;

/// Where programs are looked for when the environment does not say.
const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Whether a container was made with a seccomp filter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filtered {
    Yes,
    No,
}

impl Filtered {
    /// Looks into a bundle from which a container is about to be made.
    pub(crate) fn of(bundle: &Path) -> Self {
        if bundle.join(FILTER_FILE).exists() { Self::Yes } else { Self::No }
    }
}

/// A seccomp filter with its flags.
#[derive(Debug, Clone)]
pub(crate) struct Filter {
    program: Program,
    flags: u32,
}

impl Filter {
    /// Reads the compiled filter of a container whose specification has this seccomp section.
    pub(crate) fn read(bundle: &Path, section: Option<&LinuxSeccomp>) -> Result<Option<Self>> {
        use std::io::Read as _;
        let Some(section) = section else { return Ok(None) };
        let mut flags = 0;
        for flag in section.flags().iter().flatten() {
            flags |= match flag {
                LinuxSeccompFilterFlag::SeccompFilterFlagLog => crisp_sys::seccomp::flags::LOG,
                LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => crisp_sys::seccomp::flags::SPEC_ALLOW,
                // One thread: nobody to synchronise with.
                LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
                other => return Err(Error::Unsupported(format!("seccomp flag {other:?}"))),
            };
        }
        let path = bundle.join(FILTER_FILE);
        let step = || format!("read the seccomp filter {}", path.display());
        let mut bytes = Vec::new();
        File::open(&path).step(step)?.take(FILTER_BYTES_MAX + 1).read_to_end(&mut bytes).step(step)?;
        Ok(Some(Self { program: Program::parse(&bytes).step(step)?, flags }))
    }

    fn load(&self) -> Result<()> {
        self.program.load(self.flags).step(|| "load the seccomp filter")
    }
}

/// A security label that a process asks for, checked against what this kernel runs.
#[derive(Debug, Clone)]
pub(crate) struct Label {
    /// Below `/proc`.
    attribute: &'static str,
    value: String,
}

impl Label {
    /// # Errors
    /// A label for a security module that this kernel does not run is refused, never ignored.
    pub(crate) fn wanted(process: &Process) -> Result<Option<Self>> {
        let wanted = |value: &Option<String>| value.clone().filter(|value| !value.is_empty());
        if let Some(value) = wanted(process.selinux_label()) {
            if !Path::new("/sys/fs/selinux/enforce").exists() {
                return Err(Error::Invalid(format!(
                    "SELinux label {value} asked for, but SELinux is not enabled"
                )));
            }
            return Ok(Some(Self { attribute: "thread-self/attr/exec", value }));
        }
        let Some(profile) = wanted(process.apparmor_profile()) else { return Ok(None) };
        let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
        if !enabled.is_ok_and(|text| text.starts_with('Y')) {
            return Err(Error::Invalid(format!(
                "AppArmor profile {profile} asked for, but AppArmor is not enabled"
            )));
        }
        let own = Path::new("/proc/thread-self/attr/apparmor/exec").exists();
        let attribute = if own { "thread-self/attr/apparmor/exec" } else { "thread-self/attr/exec" };
        Ok(Some(Self { attribute, value: format!("exec {profile}") }))
    }

    /// Opens the calling thread's attribute. `proc` is the host's `/proc`: the container's may be anything (CVE-2019-16884).
    pub(crate) fn open(&self, proc: impl std::os::fd::AsFd) -> Result<OpenLabel> {
        use rustix::fs::{Mode, OFlags, openat};
        let file = openat(proc, self.attribute, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
            .step(|| format!("open /proc/{}", self.attribute))?;
        Ok(OpenLabel { file: file.into(), value: self.value.clone() })
    }
}

/// A label to be taken on by the next `execve`; good for the thread that opened it.
#[derive(Debug)]
pub(crate) struct OpenLabel {
    file: File,
    value: String,
}

impl OpenLabel {
    fn apply(&self) -> Result<()> {
        (&self.file)
            .write_all(self.value.as_bytes())
            .step(|| format!("set the security label {}", self.value))
    }
}

/// The host's `/proc`, to be opened before a container's mounts are entered.
pub(crate) fn open_proc() -> Result<std::os::fd::OwnedFd> {
    use rustix::fs::{Mode, OFlags, open};
    open("/proc", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).step(|| "open /proc")
}

/// What a process still is to lose, and the filter it gets. Built from the whole specification; nothing is left at a default.
#[derive(Debug)]
pub(crate) struct Confinement {
    pub(crate) bounding: CapabilitySet,
    pub(crate) sets: CapabilitySets,
    pub(crate) ambient: CapabilitySet,
    pub(crate) no_new_privs: bool,
    pub(crate) filter: Option<Filter>,
}

impl Confinement {
    pub(crate) fn new(process: &Process, filter: Option<Filter>) -> Self {
        let none = LinuxCapabilities::default;
        // No capabilities section at all: none, never those of the shim.
        let caps = process.capabilities().clone().unwrap_or_else(|| {
            let mut caps = none();
            caps.set_bounding(None)
                .set_effective(None)
                .set_inheritable(None)
                .set_permitted(None)
                .set_ambient(None);
            caps
        });
        Self {
            bounding: set(caps.bounding().as_ref()),
            sets: CapabilitySets {
                effective: set(caps.effective().as_ref()),
                permitted: set(caps.permitted().as_ref()),
                inheritable: set(caps.inheritable().as_ref()),
            },
            ambient: set(caps.ambient().as_ref()),
            no_new_privs: process.no_new_privileges().unwrap_or(false),
            filter,
        }
    }

    /// Applies everything. The process has its user already, and all capabilities that it may still need.
    ///
    /// A filter without `no_new_privs` needs `CAP_SYS_ADMIN`, so it is loaded before the capabilities go; with `no_new_privs` it
    /// is loaded last, so that it need not allow what comes before.
    pub(crate) fn apply(&self) -> Result<()> {
        self.begin()?;
        self.complete()
    }

    /// All but what [`Self::complete`] does. A process that waits afterwards has no more rights than its program.
    pub(crate) fn begin(&self) -> Result<()> {
        if self.no_new_privs {
            rustix::thread::set_no_new_privs(true).step(|| "set no_new_privs")?;
        } else if let Some(filter) = &self.filter {
            filter.load()?;
        }
        self.drop_capabilities()
    }

    /// Loads a filter that needs no capability.
    pub(crate) fn complete(&self) -> Result<()> {
        match &self.filter {
            Some(filter) if self.no_new_privs => filter.load(),
            Some(_) | None => Ok(()),
        }
    }

    fn drop_capabilities(&self) -> Result<()> {
        for cap in CapabilitySet::all().difference(self.bounding).iter() {
            match rustix::thread::remove_capability_from_bounding_set(cap) {
                // EINVAL: a capability that this kernel does not have.
                Ok(()) | Err(rustix::io::Errno::INVAL) => {}
                Err(error) => return Err(error).step(|| "drop capabilities from the bounding set"),
            }
        }
        // What the daemon itself was not given cannot be passed on.
        let held = rustix::thread::capabilities(None).step(|| "read the capabilities")?.permitted;
        let sets = CapabilitySets {
            effective: self.sets.effective & held,
            permitted: self.sets.permitted & held,
            inheritable: self.sets.inheritable & held,
        };
        rustix::thread::clear_ambient_capability_set().step(|| "clear the ambient capabilities")?;
        rustix::thread::set_capabilities(None, sets).step(|| "set the capabilities")?;
        for cap in (self.ambient & sets.permitted & sets.inheritable).iter() {
            rustix::thread::configure_capability_in_ambient_set(cap, true)
                .step(|| "raise an ambient capability")?;
        }
        Ok(())
    }
}

/// Makes all permitted capabilities effective again, as after a change of the user.
pub(crate) fn raise_permitted() -> Result<()> {
    let mut sets = rustix::thread::capabilities(None).step(|| "read the capabilities")?;
    sets.effective = sets.permitted;
    rustix::thread::set_capabilities(None, sets).step(|| "raise the capabilities")
}

fn set(caps: Option<&Capabilities>) -> CapabilitySet {
    caps.into_iter().flatten().fold(CapabilitySet::empty(), |all, &cap| all | bit(cap))
}

/// The kernel's bit (`linux/capability.h`).
fn bit(cap: Cap) -> CapabilitySet {
    use CapabilitySet as S;
    match cap {
        Cap::AuditControl => S::AUDIT_CONTROL,
        Cap::AuditRead => S::AUDIT_READ,
        Cap::AuditWrite => S::AUDIT_WRITE,
        Cap::BlockSuspend => S::BLOCK_SUSPEND,
        Cap::Bpf => S::BPF,
        Cap::CheckpointRestore => S::CHECKPOINT_RESTORE,
        Cap::Chown => S::CHOWN,
        Cap::DacOverride => S::DAC_OVERRIDE,
        Cap::DacReadSearch => S::DAC_READ_SEARCH,
        Cap::Fowner => S::FOWNER,
        Cap::Fsetid => S::FSETID,
        Cap::IpcLock => S::IPC_LOCK,
        Cap::IpcOwner => S::IPC_OWNER,
        Cap::Kill => S::KILL,
        Cap::Lease => S::LEASE,
        Cap::LinuxImmutable => S::LINUX_IMMUTABLE,
        Cap::MacAdmin => S::MAC_ADMIN,
        Cap::MacOverride => S::MAC_OVERRIDE,
        Cap::Mknod => S::MKNOD,
        Cap::NetAdmin => S::NET_ADMIN,
        Cap::NetBindService => S::NET_BIND_SERVICE,
        Cap::NetBroadcast => S::NET_BROADCAST,
        Cap::NetRaw => S::NET_RAW,
        Cap::Perfmon => S::PERFMON,
        Cap::Setgid => S::SETGID,
        Cap::Setfcap => S::SETFCAP,
        Cap::Setpcap => S::SETPCAP,
        Cap::Setuid => S::SETUID,
        Cap::SysAdmin => S::SYS_ADMIN,
        Cap::SysBoot => S::SYS_BOOT,
        Cap::SysChroot => S::SYS_CHROOT,
        Cap::SysModule => S::SYS_MODULE,
        Cap::SysNice => S::SYS_NICE,
        Cap::SysPacct => S::SYS_PACCT,
        Cap::SysPtrace => S::SYS_PTRACE,
        Cap::SysRawio => S::SYS_RAWIO,
        Cap::SysResource => S::SYS_RESOURCE,
        Cap::SysTime => S::SYS_TIME,
        Cap::SysTtyConfig => S::SYS_TTY_CONFIG,
        Cap::Syslog => S::SYSLOG,
        Cap::WakeAlarm => S::WAKE_ALARM,
    }
}

/// Sets the resource limits. What may not be raised (no `CAP_SYS_RESOURCE`) stays at the hard limit that is there.
pub(crate) fn set_rlimits(rlimits: &[PosixRlimit]) -> Result<()> {
    for rlimit in rlimits {
        let resource = resource(rlimit.typ());
        let mut wanted = Rlimit { current: limit(rlimit.soft()), maximum: limit(rlimit.hard()) };
        let mut result = rustix::process::setrlimit(resource, wanted);
        if result == Err(rustix::io::Errno::PERM) {
            wanted.maximum = rustix::process::getrlimit(resource).maximum;
            wanted.current = lower(wanted.current, wanted.maximum);
            result = rustix::process::setrlimit(resource, wanted);
        }
        result.step(|| format!("set the limit {:?}", rlimit.typ()))?;
    }
    Ok(())
}

/// `RLIM_INFINITY` is the highest number.
fn limit(value: u64) -> Option<u64> {
    (value != u64::MAX).then_some(value)
}

fn lower(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn resource(typ: PosixRlimitType) -> Resource {
    match typ {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    }
}

const OOM_SCORE_ADJ: &str = "/proc/self/oom_score_adj";

/// What the shim was started with. Set once, by [`spare_supervisor`].
static OOM_SCORE_ADJ_BEFORE: OnceLock<i32> = OnceLock::new();

/// Sets `oom_score_adj`. Without the right to go below what is there, it stays.
pub(crate) fn set_oom_score_adj(value: Option<i32>) -> Result<()> {
    let Some(value) = value else { return Ok(()) };
    match std::fs::write(OOM_SCORE_ADJ, value.to_string()) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        result => result.step(|| format!("write {value} to {OOM_SCORE_ADJ}")),
    }
}

/// Sets the shim's own `oom_score_adj` and remembers what it was, which is what its children get back.
pub(crate) fn spare_supervisor(value: i32) -> Result<()> {
    let text = std::fs::read_to_string(OOM_SCORE_ADJ).step(|| format!("read {OOM_SCORE_ADJ}"))?;
    OOM_SCORE_ADJ_BEFORE.get_or_init(|| text.trim().parse().unwrap_or(0));
    set_oom_score_adj(Some(value))
}

/// In a child of the shim: takes back what [`spare_supervisor`] has set. What is to become a container's process must not be
/// spared, also when its specification does not say what it gets.
pub(crate) fn unspare() -> Result<()> {
    set_oom_score_adj(OOM_SCORE_ADJ_BEFORE.get().copied())
}

/// Goes to the working directory, which is made when it is missing, and makes sure that it lies inside the container.
pub(crate) fn enter_cwd(cwd: &Path) -> Result<()> {
    let step = || format!("enter the working directory {}", cwd.display());
    if cwd.as_os_str().is_empty() {
        return Ok(());
    }
    if !cwd.is_absolute() {
        return Err(Error::Invalid(format!("working directory {} is not absolute", cwd.display())));
    }
    match rustix::process::chdir(cwd) {
        Err(rustix::io::Errno::NOENT) => {
            make_directories(cwd).step(|| format!("make the working directory {}", cwd.display()))?;
            rustix::process::chdir(cwd).step(step)?;
        }
        result => result.step(step)?,
    }
    // `getcwd(2)` gives "(unreachable)…" for a directory outside of the root (CVE-2024-21626).
    let seen = rustix::process::getcwd(Vec::new()).step(step)?;
    if seen.as_bytes().starts_with(b"/") {
        Ok(())
    } else {
        Err(Error::Invalid(format!("working directory {} lies outside of the container", cwd.display())))
    }
}

/// The missing directories belong to root, as when a privileged process makes them.
fn make_directories(path: &Path) -> io::Result<()> {
    let missing: Vec<_> = path.ancestors().take_while(|dir| !dir.exists()).collect();
    for dir in missing.into_iter().rev() {
        std::fs::create_dir(dir)?;
        std::os::unix::fs::chown(dir, Some(0), Some(0))?;
    }
    Ok(())
}

/// A program with its arguments and environment, ready for `execve`.
#[derive(Debug)]
pub(crate) struct Executable {
    args: Vec<CString>,
    env: Vec<CString>,
    label: Option<OpenLabel>,
}

impl Executable {
    /// # Errors
    /// No arguments, or a NUL in one of the strings.
    pub(crate) fn new(process: &Process, label: Option<OpenLabel>) -> Result<Self> {
        let strings = |strings: &Option<Vec<String>>| {
            strings.iter().flatten().map(|text| CString::new(text.as_str())).collect::<Result<Vec<_>, _>>()
        };
        let nul = |_| Error::Invalid("an argument or a variable holds a NUL character".into());
        let (args, env) = (strings(process.args()).map_err(nul)?, strings(process.env()).map_err(nul)?);
        if args.first().is_none_or(|name| name.is_empty()) {
            return Err(Error::Invalid("no program to run".into()));
        }
        Ok(Self { args, env: last_of_each_name(env), label })
    }

    /// Adds a variable unless the environment has it.
    pub(crate) fn default_variable(&mut self, name: &str, value: &str) {
        let prefix = format!("{name}=");
        if self.env.iter().any(|variable| variable.as_bytes().starts_with(prefix.as_bytes())) {
            return;
        }
        if let Ok(variable) = CString::new(prefix + value) {
            self.env.push(variable);
        }
    }

    /// Closes every descriptor of the calling process but its stdio, these, and what [`Self::exec`] itself still needs, so that
    /// the program's path leads to nothing of the host. From here on no owner of a descriptor may be dropped.
    pub(crate) fn close_others(&self, keep: &[BorrowedFd<'_>]) -> Result<()> {
        let label = self.label.as_ref().map(|label| label.file.as_fd());
        let keep: Vec<_> = keep.iter().copied().chain(label).collect();
        close_all_from_except(3, &keep).step(|| "close inherited descriptors")
    }

    /// Replaces the calling program; returns only the error.
    pub(crate) fn exec(&self) -> Error {
        if let Some(label) = &self.label
            && let Err(error) = label.apply()
        {
            return error;
        }
        let name = &self.args[0];
        let shown = name.to_string_lossy().into_owned();
        let fail = |source| Error::Step { step: format!("execute {shown:?}"), source };
        if name.as_bytes().contains(&b'/') {
            return fail(crisp_sys::clone::exec(name, &self.args, &self.env));
        }
        // As execvp(3): go on after what is not there, remember what may not be executed.
        let mut worst = io::Error::from_raw_os_error(rustix::io::Errno::NOENT.raw_os_error());
        for dir in self.path().split(|&byte| byte == b':') {
            let dir: &[u8] = if dir.is_empty() { b"." } else { dir };
            let path = Path::new(OsStr::from_bytes(dir)).join(OsStr::from_bytes(name.as_bytes()));
            let Ok(path) = CString::new(path.into_os_string().as_bytes()) else { continue };
            let error = crisp_sys::clone::exec(&path, &self.args, &self.env);
            match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {}
                io::ErrorKind::PermissionDenied => worst = error,
                _ => return fail(error),
            }
        }
        fail(worst)
    }

    fn path(&self) -> &[u8] {
        let path = self.env.iter().find_map(|variable| variable.as_bytes().strip_prefix(b"PATH="));
        path.unwrap_or(PATH_DEFAULT.as_bytes())
    }
}

/// Of variables that are set twice the last one counts; programs differ in which they take.
fn last_of_each_name(env: Vec<CString>) -> Vec<CString> {
    fn name(variable: &CString) -> &[u8] {
        variable.as_bytes().split(|&byte| byte == b'=').next().unwrap_or_default()
    }
    let mut kept: Vec<CString> = Vec::with_capacity(env.len());
    let mut places = std::collections::HashMap::<Vec<u8>, usize>::new();
    for variable in env {
        match places.get(name(&variable)) {
            Some(&at) => kept[at] = variable,
            None => {
                places.insert(name(&variable).to_vec(), kept.len());
                kept.push(variable);
            }
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_variable_set_twice_the_last_one_counts_in_the_first_place() {
        let env = ["A=1", "B=2", "A=3", "C"].map(|text| CString::new(text).unwrap());
        let kept = last_of_each_name(env.into());
        assert_eq!(kept, ["A=3", "B=2", "C"].map(|text| CString::new(text).unwrap()));
    }

    #[test]
    fn without_a_capabilities_section_nothing_is_kept() {
        let mut process = Process::default();
        process.set_capabilities(None);
        let confinement = Confinement::new(&process, None);
        assert!(confinement.bounding.is_empty() && confinement.sets.permitted.is_empty());
    }
}
