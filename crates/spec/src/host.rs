//! Facts of this machine that a specification depends on.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use crate::capability::CapabilitySet;
use crate::error::SpecError;
use crate::input::{CgroupVersion, HostFacts, SwapAccounting};

const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// Bit of `CAP_SYS_RESOURCE`, which alone may lower `oom_score_adj`.
const SYS_RESOURCE: &str = "SYS_RESOURCE";
const OOM_SCORE_ADJ_LOWEST: i32 = -1000;

/// Reads the facts of this machine and of the calling process. Cheap enough to repeat at every start of the daemon, not at every
/// container.
///
/// # Errors
/// [`SpecError::Host`] when the process's own status cannot be read; what a kernel does not offer counts as absent.
pub fn probe() -> Result<HostFacts, SpecError> {
    let status = read("/proc/self/status")?;
    let capabilities = permitted(&status);
    let cgroup = if Path::new(CGROUP_ROOT).join("cgroup.controllers").exists() {
        CgroupVersion::V2
    } else {
        CgroupVersion::V1
    };
    let may_lower = CapabilitySet::named(SYS_RESOURCE).is_ok_and(|bit| capabilities.contains(bit));
    let own = read("/proc/self/oom_score_adj")?.trim().parse().unwrap_or(0);
    Ok(HostFacts {
        capabilities,
        cgroup,
        hugepage_sizes: hugepage_sizes(cgroup),
        swap: swap(cgroup),
        oom_score_adj_min: if may_lower { OOM_SCORE_ADJ_LOWEST } else { own },
        cgroup2_options: cgroup2_options(&read("/proc/self/mountinfo")?),
    })
}

fn read(path: &str) -> Result<String, SpecError> {
    fs::read_to_string(path).map_err(|source| SpecError::Host { path: path.into(), source })
}

fn permitted(status: &str) -> CapabilitySet {
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
    };
    // What left the bounding set cannot be given to a child either.
    CapabilitySet::from_mask(mask("CapPrm:") & mask("CapBnd:"))
}

/// Page sizes with a file of the hugetlb controller: `hugetlb.2MB.limit_in_bytes` on v1 in the controller's root, on v2
/// the sizes of the kernel when the controller is available.
fn hugepage_sizes(cgroup: CgroupVersion) -> BTreeSet<String> {
    match cgroup {
        CgroupVersion::V1 => {
            let names = names(&Path::new(CGROUP_ROOT).join("hugetlb"));
            names.iter().filter_map(|name| hugetlb_size(name)).collect()
        }
        CgroupVersion::V2 => {
            let controllers =
                fs::read_to_string(Path::new(CGROUP_ROOT).join("cgroup.controllers")).unwrap_or_default();
            if !controllers.split_whitespace().any(|name| name == "hugetlb") {
                return BTreeSet::new();
            }
            let names = names(Path::new("/sys/kernel/mm/hugepages"));
            names.iter().filter_map(|name| kernel_size(name)).collect()
        }
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).map(|entries| entries.filter_map(Result::ok).collect::<Vec<_>>());
    let entries = entries.unwrap_or_else(|_: io::Error| Vec::new());
    entries.into_iter().filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

fn hugetlb_size(file: &str) -> Option<String> {
    file.strip_prefix("hugetlb.")?
        .strip_suffix(".limit_in_bytes")
        .filter(|size| !size.contains('.'))
        .map(Into::into)
}

/// `hugepages-2048kB` is `2MB`, as the cgroup files write it.
fn kernel_size(name: &str) -> Option<String> {
    let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    Some(match kib {
        kib if kib >= 1 << 20 => format!("{}GB", kib >> 20),
        kib if kib >= 1 << 10 => format!("{}MB", kib >> 10),
        kib => format!("{kib}KB"),
    })
}

fn swap(cgroup: CgroupVersion) -> SwapAccounting {
    let root = Path::new(CGROUP_ROOT);
    let present = match cgroup {
        CgroupVersion::V1 => root.join("memory/memory.memsw.limit_in_bytes").exists(),
        // The root has no memory.swap.max of its own; the first level below it has.
        CgroupVersion::V2 => names(root).iter().any(|name| root.join(name).join("memory.swap.max").exists()),
    };
    if present { SwapAccounting::Present } else { SwapAccounting::Absent }
}

/// Super block options of the cgroup2 mount that a second mount must repeat.
fn cgroup2_options(mountinfo: &str) -> Vec<String> {
    let line = mountinfo.lines().find_map(|line| line.split_once(" - cgroup2 "));
    let options = line.and_then(|(_, rest)| rest.split(' ').nth(1)).unwrap_or_default();
    let kept = ["nsdelegate", "memory_recursiveprot", "favordynmods", "memory_hugetlb_accounting"];
    options.split(',').filter(|option| kept.contains(option)).map(ToString::to_string).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A cgroup v1 machine whose daemon holds everything.
    pub(crate) fn host() -> HostFacts {
        HostFacts {
            capabilities: CapabilitySet::ALL,
            cgroup: CgroupVersion::V1,
            hugepage_sizes: BTreeSet::from(["2MB".to_string()]),
            swap: SwapAccounting::Present,
            oom_score_adj_min: -1000,
            cgroup2_options: vec!["nsdelegate".into(), "memory_recursiveprot".into()],
        }
    }

    #[test]
    fn this_machine_has_facts() {
        let facts = probe().unwrap();
        assert!((-1000..=1000).contains(&facts.oom_score_adj_min));
    }

    #[test]
    fn capabilities_are_what_is_held_and_bounded() {
        let status = "Name:\tx\nCapPrm:\t0000000000000003\nCapEff:\t0\nCapBnd:\t0000000000000006\n";
        assert_eq!(permitted(status), CapabilitySet::named("DAC_OVERRIDE").unwrap());
        assert_eq!(permitted("nothing"), CapabilitySet::EMPTY);
    }

    #[test]
    fn page_sizes_are_written_as_in_cgroups() {
        let cases = [("hugepages-2048kB", "2MB"), ("hugepages-1048576kB", "1GB"), ("hugepages-64kB", "64KB")];
        for (name, size) in cases {
            assert_eq!(kernel_size(name).as_deref(), Some(size));
        }
        assert_eq!(hugetlb_size("hugetlb.2MB.limit_in_bytes").as_deref(), Some("2MB"));
        assert_eq!(hugetlb_size("hugetlb.2MB.rsvd.limit_in_bytes"), None);
    }

    #[test]
    fn host_options_of_cgroup2_are_kept() {
        let line = "30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot\n";
        assert_eq!(cgroup2_options(line), ["nsdelegate", "memory_recursiveprot"]);
        assert!(cgroup2_options("").is_empty());
    }
}
