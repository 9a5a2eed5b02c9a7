//! What the kernel gives.

use std::fs;
use std::path::Path;

use crisp_lsm::{apparmor, selinux};

use super::Finding;

/// clone3, pidfd, openat2, the mount API, `CLONE_INTO_CGROUP` and `CLOSE_RANGE_CLOEXEC` are all there from this version on.
const KERNEL_MIN: (u32, u32) = (5, 11);
/// From here on a read-only mount can be so recursively (mount_setattr).
const KERNEL_GOOD: (u32, u32) = (5, 12);
/// Controllers without which limits are not kept, and those whose absence costs less.
const CONTROLLERS_NEEDED: [&str; 3] = ["cpu", "memory", "pids"];
const CONTROLLERS_USEFUL: [&str; 2] = ["cpuset", "hugetlb"];
/// Bits of capabilities(7).
const CAPABILITIES_NEEDED: [(&str, u32); 8] = [
    ("CAP_CHOWN", 0),
    ("CAP_DAC_OVERRIDE", 1),
    ("CAP_KILL", 5),
    ("CAP_SETUID", 7),
    ("CAP_NET_ADMIN", 12),
    ("CAP_SYS_CHROOT", 18),
    ("CAP_SYS_ADMIN", 21),
    ("CAP_MKNOD", 27),
];
const CAP_SYS_RESOURCE: u32 = 24;
const LABELS_ENFORCED: &str = "SELinux, enforcing; containers get labels with [security] selinux = true";
const LABELS_REPORTED: &str = "SELinux, permissive; containers get labels with [security] selinux = true";

pub(super) fn look() -> Vec<Finding> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let euid = rustix::process::geteuid();
    let status = read("/proc/self/status");
    let mut findings = vec![root(euid.as_raw()), kernel(&release)];
    // What another user lacks, root may have.
    if euid.is_root() {
        findings.extend([capabilities(&status), sys_resource(&status)]);
    }
    findings.extend([
        namespaces(&|name| Path::new("/proc/self/ns").join(name).exists()),
        cgroups(crisp_cgroup::Cgroups::detect()),
        overlay(&read("/proc/filesystems")),
        seccomp(&read("/proc/sys/kernel/seccomp/actions_avail")),
        mandatory_access(&apparmor::state(), selinux::state()),
        propagation(&read("/proc/self/mountinfo")),
    ]);
    findings
}

fn root(euid: u32) -> Finding {
    match euid {
        0 => Finding::ok("root", "yes"),
        _ => Finding::fail("root", "no: run this, and the daemon, as root (sudo)"),
    }
}

fn kernel(release: &str) -> Finding {
    let version = version(release);
    let (major, minor) = KERNEL_MIN;
    if version < KERNEL_MIN {
        return Finding::fail("kernel", format!("{release}: {major}.{minor} or newer is needed"));
    }
    if version < KERNEL_GOOD {
        let (major, minor) = KERNEL_GOOD;
        let says = format!("{release}: recursive read-only mounts need {major}.{minor}");
        return Finding::warn("kernel", says);
    }
    Finding::ok("kernel", release)
}

/// Major and minor of `uname -r`.
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn effective(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

fn capabilities(status: &str) -> Finding {
    let effective = effective(status);
    let missing: Vec<&str> = CAPABILITIES_NEEDED
        .iter()
        .filter(|(_, bit)| effective & (1 << bit) == 0)
        .map(|(name, _)| *name)
        .collect();
    if missing.is_empty() {
        return Finding::ok("capabilities", "those that are needed");
    }
    let says = format!("without {}: run outside of a container, or with these added", missing.join(", "));
    Finding::fail("capabilities", says)
}

fn sys_resource(status: &str) -> Finding {
    if effective(status) & (1 << CAP_SYS_RESOURCE) != 0 {
        return Finding::ok("CAP_SYS_RESOURCE", "yes");
    }
    let says = "no: rlimits are not raised and oom_score_adj is not lowered below the daemon's own; they are clamped";
    Finding::warn("CAP_SYS_RESOURCE", says)
}

fn namespaces(exists: &dyn Fn(&str) -> bool) -> Finding {
    let missing: Vec<&str> =
        ["mnt", "net", "ipc", "uts", "pid", "cgroup"].into_iter().filter(|name| !exists(name)).collect();
    match missing.as_slice() {
        [] => Finding::ok("namespaces", "mnt net ipc uts pid cgroup"),
        missing => Finding::fail("namespaces", format!("the kernel has no {}", missing.join(", "))),
    }
}

fn cgroups(detected: Result<crisp_cgroup::Cgroups, crisp_cgroup::CgroupError>) -> Finding {
    match detected {
        Ok(cgroups) => {
            let version = match cgroups.version() {
                crisp_cgroup::Version::V1 => "v1",
                crisp_cgroup::Version::V2 => "v2",
            };
            controllers(version, &cgroups.controllers().collect::<Vec<_>>())
        }
        Err(error) => Finding::fail("cgroups", crate::error::chain(&error)),
    }
}

fn controllers(version: &str, found: &[&str]) -> Finding {
    let missing = |wanted: &[&'static str]| -> Vec<&'static str> {
        wanted.iter().copied().filter(|name| !found.contains(name)).collect()
    };
    let needed = missing(&CONTROLLERS_NEEDED);
    if !needed.is_empty() {
        let says = format!(
            "{version} without {}: enable them (kernel command line cgroup_enable=…, or cgroup.subtree_control)",
            needed.join(", ")
        );
        return Finding::fail("cgroups", says);
    }
    match missing(&CONTROLLERS_USEFUL).as_slice() {
        [] => Finding::ok("cgroups", format!("{version}: {}", found.join(" "))),
        useful => Finding::warn(
            "cgroups",
            format!("{version} without {}: these limits are not kept", useful.join(", ")),
        ),
    }
}

fn overlay(filesystems: &str) -> Finding {
    if filesystems.split_whitespace().any(|name| name == "overlay") {
        return Finding::ok("overlayfs", "yes");
    }
    Finding::fail("overlayfs", "the kernel does not have it: modprobe overlay")
}

fn seccomp(actions: &str) -> Finding {
    if actions.split_whitespace().any(|action| action == "errno") {
        return Finding::ok("seccomp", "yes");
    }
    Finding::fail("seccomp", "the kernel has no filters: CONFIG_SECCOMP_FILTER is needed")
}

fn mandatory_access(apparmor: &apparmor::State, selinux: selinux::State) -> Finding {
    match (apparmor, selinux) {
        (apparmor::State::Present { parser }, _) => {
            Finding::ok("LSM", format!("AppArmor; profiles are loaded by {}", parser.display()))
        }
        (apparmor::State::WithoutParser, _) => Finding::warn(
            "LSM",
            "AppArmor without apparmor_parser: pods that ask for no profile run without one, those that ask for the default are \
             refused; install the package apparmor",
        ),
        (apparmor::State::Absent, selinux::State::Enforcing) => Finding::ok("LSM", LABELS_ENFORCED),
        (apparmor::State::Absent, selinux::State::Permissive) => Finding::ok("LSM", LABELS_REPORTED),
        (apparmor::State::Absent, selinux::State::Absent) => Finding::ok(
            "LSM",
            "neither AppArmor nor SELinux; pods that ask for an AppArmor profile are refused",
        ),
    }
}

fn propagation(mountinfo: &str) -> Finding {
    // proc_pid_mountinfo(5): the fifth field is the mount point, optional fields follow the sixth.
    let root = mountinfo.lines().rfind(|line| line.split(' ').nth(4) == Some("/"));
    let shared = root.is_some_and(|line| line.split(' ').skip(6).any(|field| field.starts_with("shared:")));
    if shared {
        return Finding::ok("mount propagation", "/ is shared");
    }
    let says = "/ is private: volumes with Bidirectional or HostToContainer propagation need `mount --make-rshared /`";
    Finding::warn("mount propagation", says)
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn kernels_are_judged_by_version() {
        for (release, level) in [
            ("6.18.0-generic", Level::Ok),
            ("5.12", Level::Ok),
            ("5.11.0-21-generic", Level::Warn),
            ("5.10.0-21-amd64", Level::Fail),
            ("5.4.0", Level::Fail),
            ("4.19.0", Level::Fail),
            ("", Level::Fail),
        ] {
            assert_eq!(kernel(release).level, level, "{release}");
        }
    }

    #[test]
    fn missing_capabilities_are_named() {
        let status = |bits: u64| format!("Name:\tx\nCapEff:\t{bits:016x}\nCapBnd:\t{:016x}\n", u64::MAX);
        let all = 0x1ff_ffff_ffff;
        assert_eq!(capabilities(&status(all)).level, Level::Ok);
        assert!(capabilities(&status(all & !(1 << 21))).says.contains("without CAP_SYS_ADMIN:"));
        assert_eq!(sys_resource(&status(all)).level, Level::Ok);
        assert_eq!(sys_resource(&status(all & !(1 << 24))).level, Level::Warn);
        assert_eq!(capabilities("").level, Level::Fail);
    }

    #[test]
    fn controllers_are_needed_or_useful() {
        let all = ["cpu", "memory", "pids", "cpuset", "hugetlb"];
        assert_eq!(controllers("v2", &all).level, Level::Ok);
        assert!(controllers("v1", &all[..4]).says.contains("v1 without hugetlb"));
        assert_eq!(controllers("v1", &all[..4]).level, Level::Warn);
        assert!(controllers("v2", &["cpu"]).says.contains("memory, pids"));
        assert_eq!(controllers("v2", &["cpu"]).level, Level::Fail);
    }

    #[test]
    fn the_last_mount_on_root_counts() {
        let line =
            |id: u32, optional: &str| format!("{id} 1 0:3 / / rw,relatime {optional}- ext4 /dev/vda rw\n");
        assert_eq!(propagation(&(line(1, "") + &line(2, "shared:7 "))).level, Level::Ok);
        assert_eq!(propagation(&(line(1, "shared:7 ") + &line(2, ""))).level, Level::Warn);
        assert_eq!(propagation("3 1 0:3 / /shared:1 rw shared:2 - ext4 x rw\n").level, Level::Warn);
    }

    #[test]
    fn a_module_needs_what_loads_its_profiles() {
        let parser = || apparmor::State::Present { parser: "/sbin/apparmor_parser".into() };
        assert!(mandatory_access(&parser(), selinux::State::Absent).says.ends_with("/sbin/apparmor_parser"));
        assert_eq!(
            mandatory_access(&apparmor::State::WithoutParser, selinux::State::Absent).level,
            Level::Warn
        );
        let enforcing = mandatory_access(&apparmor::State::Absent, selinux::State::Enforcing);
        assert!(enforcing.says.starts_with("SELinux, enforcing"));
    }

    #[test]
    fn the_rest_is_judged_by_what_the_kernel_lists() {
        assert_eq!(overlay("nodev\tproc\nnodev\toverlay\n").level, Level::Ok);
        assert_eq!(overlay("nodev\toverlayish\n").level, Level::Fail);
        assert_eq!(seccomp("kill_process errno allow\n").level, Level::Ok);
        assert_eq!(seccomp("").level, Level::Fail);
        assert!(namespaces(&|name| name != "uts").says.ends_with("no uts"));
        assert_eq!(root(1000).level, Level::Fail);
    }
}
