//! Profiles in the common JSON format (that of Docker, Podman and Kubernetes' `localhost` profiles), with rules that depend on
//! capabilities, architecture and kernel.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::sync::LazyLock;

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSyscall,
};
use serde::Deserialize;

use crate::error::SeccompError;

/// Bytes of a profile.
pub const PROFILE_BYTES_MAX: u64 = 1 << 20;
/// A syscall has six arguments.
const ARGUMENTS: usize = 6;
/// The kernel carries an errno in the lower 16 bits of a verdict and caps it at `MAX_ERRNO`.
const ERRNO_MAX: u32 = 4095;

const DEFAULT: &str = include_str!("../profiles/default.json");

/// A profile: an action for each syscall, some of them under conditions.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Profile {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    architectures: Option<Vec<Arch>>,
    arch_map: Option<Vec<Architecture>>,
    flags: Option<Vec<LinuxSeccompFilterFlag>>,
    listener_path: Option<String>,
    listener_metadata: Option<String>,
    syscalls: Option<Vec<Rule>>,
}

/// A machine's own architecture and the others that it can run.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Architecture {
    architecture: Arch,
    sub_architectures: Option<Vec<Arch>>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Rule {
    names: Option<Vec<String>>,
    /// Of the oldest profiles; stands alone.
    name: Option<String>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    args: Option<Vec<LinuxSeccompArg>>,
    includes: Option<Condition>,
    excludes: Option<Condition>,
}

/// Capabilities, architectures by their Go names, and the least kernel.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<KernelVersion>,
}

/// The first two numbers of a kernel's version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
pub struct KernelVersion {
    /// The 6 of 6.12.
    pub major: u32,
    /// The 12 of 6.12.
    pub minor: u32,
}

impl KernelVersion {
    /// Of a release as `uname -r` prints it: `6.12.3-arch1`.
    #[must_use]
    pub fn parse(release: &str) -> Option<Self> {
        let (major, rest) = release.split_once('.')?;
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        Some(Self { major: major.parse().ok()?, minor: rest[..digits].parse().ok()? })
    }
}

impl TryFrom<String> for KernelVersion {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text).ok_or_else(|| format!("{text:?} is not a kernel version"))
    }
}

/// What a profile's conditions are decided by.
#[derive(Debug, Clone)]
pub struct Target {
    /// Names with `CAP_` of what the container is granted.
    pub capabilities: BTreeSet<String>,
    /// Of the machine.
    pub arch: Arch,
    /// Of the machine.
    pub kernel: KernelVersion,
}

impl Target {
    /// This machine, for a container with these capabilities (names with `CAP_`).
    #[must_use]
    pub fn native(capabilities: impl IntoIterator<Item = String>) -> Self {
        let release = rustix::system::uname();
        // A release that cannot be read counts as old: conditions on it then do not widen the filter.
        let kernel = KernelVersion::parse(&release.release().to_string_lossy());
        Self {
            capabilities: capabilities.into_iter().collect(),
            arch: native_arch(),
            kernel: kernel.unwrap_or(KernelVersion { major: 0, minor: 0 }),
        }
    }
}

fn native_arch() -> Arch {
    match std::env::consts::ARCH {
        "x86_64" => Arch::ScmpArchX86_64,
        "x86" => Arch::ScmpArchX86,
        "aarch64" => Arch::ScmpArchAarch64,
        "arm" => Arch::ScmpArchArm,
        "riscv64" => Arch::ScmpArchRiscv64,
        "s390x" => Arch::ScmpArchS390x,
        "powerpc64" if cfg!(target_endian = "little") => Arch::ScmpArchPpc64le,
        _ => Arch::ScmpArchNative,
    }
}

/// The names that profiles use in `arches` for the architectures that we know a name of.
fn go_name(arch: Arch) -> &'static str {
    match arch {
        Arch::ScmpArchX86_64 => "amd64",
        Arch::ScmpArchX86 => "x86",
        Arch::ScmpArchX32 => "x32",
        Arch::ScmpArchAarch64 => "arm64",
        Arch::ScmpArchArm => "arm",
        Arch::ScmpArchRiscv64 => "riscv64",
        Arch::ScmpArchS390x => "s390x",
        Arch::ScmpArchS390 => "s390",
        Arch::ScmpArchPpc64le => "ppc64le",
        Arch::ScmpArchLoongarch64 => "loong64",
        _ => "",
    }
}

/// The built-in profile: what programs need is allowed, what is known and harmful answers EPERM, what is newer than the
/// profile ENOSYS, so that programs fall back.
#[must_use]
pub fn default_profile() -> Profile {
    static PARSED: LazyLock<Profile> = LazyLock::new(|| {
        #[expect(clippy::expect_used, reason = "the text is part of this program, and a test parses it")]
        Profile::parse(DEFAULT.as_bytes()).expect("the built-in profile is a profile")
    });
    PARSED.clone()
}

impl Profile {
    /// Parses JSON.
    ///
    /// # Errors
    /// [`SeccompError::Parse`] for what is no profile, [`SeccompError::Profile`] for rules that mean nothing: no name, an
    /// argument beyond the sixth, an errno beyond 4095.
    pub fn parse(json: &[u8]) -> Result<Self, SeccompError> {
        let profile: Self = serde_json::from_slice(json).map_err(SeccompError::Parse)?;
        profile.check()?;
        Ok(profile)
    }

    /// Reads a `localhost` profile.
    ///
    /// # Errors
    /// [`SeccompError::Path`] unless the path is absolute and leads to a regular file of at most [`PROFILE_BYTES_MAX`] bytes,
    /// [`SeccompError::Read`] when it cannot be read, and those of [`Profile::parse`].
    pub fn load(path: &Path) -> Result<Self, SeccompError> {
        let refused = |reason| SeccompError::Path { path: path.into(), reason };
        let failed = |source| SeccompError::Read { path: path.into(), source };
        if !path.is_absolute() {
            return Err(refused("not an absolute path"));
        }
        // Asked before it is opened: opening a FIFO waits for a writer.
        if !std::fs::metadata(path).map_err(failed)?.is_file() {
            return Err(refused("not a regular file"));
        }
        let mut json = Vec::new();
        let file = File::open(path).map_err(failed)?;
        let read = file.take(PROFILE_BYTES_MAX + 1).read_to_end(&mut json).map_err(failed)?;
        if read as u64 > PROFILE_BYTES_MAX {
            return Err(refused("longer than 1 MiB"));
        }
        Self::parse(&json)
    }

    fn check(&self) -> Result<(), SeccompError> {
        let wrong = |text: String| Err(SeccompError::Profile(text));
        if self.default_errno_ret.is_some_and(|errno| errno > ERRNO_MAX) {
            return wrong("defaultErrnoRet is no errno".into());
        }
        for rule in self.syscalls.iter().flatten() {
            let names = rule.names();
            if names.is_empty() || names.iter().any(String::is_empty) {
                return wrong("a rule without a name".into());
            }
            if rule.errno_ret.is_some_and(|errno| errno > ERRNO_MAX) {
                return wrong(format!("errnoRet of {} is no errno", names[0]));
            }
            if rule.args.iter().flatten().any(|arg| arg.index() >= ARGUMENTS) {
                return wrong(format!("an argument of {} beyond the sixth", names[0]));
            }
        }
        Ok(())
    }

    /// The filter of one container: what is left when the conditions are decided.
    #[must_use]
    pub fn to_linux_seccomp(&self, target: &Target) -> LinuxSeccomp {
        let architectures = self.architectures(target);
        let rules =
            self.syscalls.iter().flatten().filter(|rule| rule.applies(target)).map(Rule::to_oci).collect();
        let mut oci = LinuxSeccomp::default();
        oci.set_default_action(self.default_action)
            .set_default_errno_ret(self.default_errno_ret)
            .set_architectures((!architectures.is_empty()).then_some(architectures))
            .set_flags(self.flags.clone().filter(|flags| !flags.is_empty()))
            .set_listener_path(self.listener_path.clone().filter(|path| !path.is_empty()).map(Into::into))
            .set_listener_metadata(self.listener_metadata.clone())
            .set_syscalls(Some(rules));
        oci
    }

    fn architectures(&self, target: &Target) -> Vec<Arch> {
        let mut all: Vec<Arch> = self.architectures.clone().unwrap_or_default();
        for entry in self.arch_map.iter().flatten().filter(|entry| entry.architecture == target.arch) {
            all.push(entry.architecture);
            all.extend(entry.sub_architectures.iter().flatten());
        }
        let mut once = Vec::new();
        for arch in all {
            if !once.contains(&arch) {
                once.push(arch);
            }
        }
        once
    }
}

impl Rule {
    fn names(&self) -> Vec<String> {
        self.names.iter().flatten().chain(&self.name).cloned().collect()
    }

    fn applies(&self, target: &Target) -> bool {
        let included = self.includes.as_ref().is_none_or(|condition| condition.all_hold(target));
        included && !self.excludes.as_ref().is_some_and(|condition| condition.any_holds(target))
    }

    fn to_oci(&self) -> LinuxSyscall {
        let mut oci = LinuxSyscall::default();
        oci.set_names(self.names())
            .set_action(self.action)
            .set_errno_ret(self.errno_ret)
            .set_args(self.args.clone().filter(|args| !args.is_empty()));
        oci
    }
}

impl Condition {
    /// For `includes`: each part that is there holds; all capabilities, one of the architectures.
    fn all_hold(&self, target: &Target) -> bool {
        let granted = |name: &String| target.capabilities.contains(name);
        let caps = self.caps.iter().flatten().all(granted);
        let arches = self.arches.as_ref().filter(|list| !list.is_empty());
        let arch = arches.is_none_or(|list| list.iter().any(|name| name == go_name(target.arch)));
        caps && arch && self.min_kernel.is_none_or(|least| target.kernel >= least)
    }

    /// For `excludes`: one part that holds is enough; one of the capabilities, one of the architectures.
    fn any_holds(&self, target: &Target) -> bool {
        let caps = self.caps.iter().flatten().any(|name| target.capabilities.contains(name));
        let arch = self.arches.iter().flatten().any(|name| name == go_name(target.arch));
        caps || arch || self.min_kernel.is_some_and(|least| target.kernel >= least)
    }
}

#[cfg(test)]
#[path = "profile_tests.rs"]
mod tests;
