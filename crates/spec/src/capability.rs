//! Capability sets: parsing, the default set, what a container is granted.

use std::fmt;
use std::str::FromStr;

use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities};

use crate::error::{SpecError, quote};
use crate::input::{ContainerInput, HostFacts, Privilege, SecurityRequest};

/// Names by kernel number (`include/uapi/linux/capability.h`), without `CAP_`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What a container has when it asks for nothing.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// A set of capabilities, bit n being the kernel's number n.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct CapabilitySet(u64);

impl CapabilitySet {
    /// Nothing.
    pub const EMPTY: Self = Self(0);
    /// All that this program knows.
    pub const ALL: Self = Self((1 << NAMES.len()) - 1);

    /// From a mask as in `CapPrm` of `/proc/<pid>/status`; bits unknown here are left out.
    #[must_use]
    pub fn from_mask(mask: u64) -> Self {
        Self(mask & Self::ALL.0)
    }

    /// What a container has when it asks for nothing.
    #[must_use]
    pub fn container_default() -> Self {
        DEFAULT.iter().filter_map(|name| number(name)).fold(Self::EMPTY, |set, bit| Self(set.0 | 1 << bit))
    }

    /// The set of one capability, by name with or without `CAP_`, in any case.
    ///
    /// # Errors
    /// [`SpecError::UnknownCapability`] for a name that Linux does not have.
    pub fn named(name: &str) -> Result<Self, SpecError> {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        number(bare).map(|bit| Self(1 << bit)).ok_or_else(|| SpecError::UnknownCapability(quote(name)))
    }

    /// Both.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Common to both.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Without those of `other`.
    #[must_use]
    pub fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all of `other` are in it.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Names with `CAP_`, in the kernel's order.
    pub fn names(self) -> impl Iterator<Item = String> {
        NAMES
            .iter()
            .enumerate()
            .filter(move |(bit, _)| self.0 >> bit & 1 == 1)
            .map(|(_, name)| format!("CAP_{name}"))
    }

    fn to_oci(self) -> Capabilities {
        let bit_set = |bit: &usize| self.0 >> bit & 1 == 1;
        (0..NAMES.len()).filter(bit_set).filter_map(|bit| Capability::from_str(NAMES[bit]).ok()).collect()
    }
}

impl fmt::Debug for CapabilitySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

fn number(bare: &str) -> Option<usize> {
    NAMES.iter().position(|name| *name == bare)
}

/// CRI's additions and removals, parsed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CapabilityRequest {
    add: CapabilitySet,
    drop: CapabilitySet,
    all: Option<All>,
    ambient: CapabilitySet,
}

/// `ALL` comes before the single names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum All {
    Added,
    Dropped,
}

impl CapabilityRequest {
    /// Parses the three lists: names with or without `CAP_`, in any case, or `ALL`.
    ///
    /// # Errors
    /// [`SpecError::UnknownCapability`] for anything else; `ALL` is no ambient capability.
    pub fn parse(add: &[String], drop: &[String], ambient: &[String]) -> Result<Self, SpecError> {
        let (add, add_all) = parse_list(add)?;
        let (drop, drop_all) = parse_list(drop)?;
        let ambient = ambient
            .iter()
            .map(|name| CapabilitySet::named(name))
            .try_fold(CapabilitySet::EMPTY, |set, one| one.map(|one| set.union(one)))?;
        // Dropping all wins over adding all: the smaller set when both were said.
        let all = match (add_all, drop_all) {
            (_, true) => Some(All::Dropped),
            (true, false) => Some(All::Added),
            (false, false) => None,
        };
        Ok(Self { add, drop, all, ambient })
    }

    /// What is asked for, before the host's own limits.
    fn wanted(self) -> CapabilitySet {
        let base = match self.all {
            None => CapabilitySet::container_default(),
            Some(All::Added) => CapabilitySet::ALL,
            Some(All::Dropped) => CapabilitySet::EMPTY,
        };
        base.union(self.add).difference(self.drop).union(self.ambient)
    }
}

fn parse_list(names: &[String]) -> Result<(CapabilitySet, bool), SpecError> {
    let mut set = CapabilitySet::EMPTY;
    let mut all = false;
    for name in names {
        if name.eq_ignore_ascii_case("ALL") {
            all = true;
        } else {
            set = set.union(CapabilitySet::named(name)?);
        }
    }
    Ok((set, all))
}

/// The bounding set of the container: what it asks for, as far as the daemon holds it. Conditional seccomp rules
/// are decided by this set.
#[must_use]
pub fn granted(security: &SecurityRequest, host: &HostFacts) -> CapabilitySet {
    match security.privilege {
        Privilege::Privileged => host.capabilities,
        Privilege::Ordinary => security.capabilities.wanted().intersection(host.capabilities),
    }
}

/// What was named in the request and cannot be granted. The whole of `ALL` is not a name.
#[must_use]
pub(crate) fn skipped(security: &SecurityRequest, host: &HostFacts) -> CapabilitySet {
    let named =
        security.capabilities.add.union(security.capabilities.ambient).difference(security.capabilities.drop);
    named.difference(granted(security, host))
}

/// The five sets. Inheritable stays empty, so that no file capability of the image can raise a non-root process
/// (CVE-2022-24769 class), unless ambient capabilities are asked for, which need it.
pub(crate) fn sets(input: &ContainerInput) -> LinuxCapabilities {
    let granted = granted(&input.config.security, &input.host);
    let ambient = input.config.security.capabilities.ambient.intersection(granted);
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(granted.to_oci()))
        .set_permitted(Some(granted.to_oci()))
        .set_effective(Some(granted.to_oci()))
        .set_inheritable(Some(ambient.to_oci()))
        .set_ambient(Some(ambient.to_oci()));
    sets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(add: &[&str], drop: &[&str]) -> CapabilitySet {
        let own = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        CapabilityRequest::parse(&own(add), &own(drop), &[]).unwrap().wanted()
    }

    fn set(names: &[&str]) -> CapabilitySet {
        names.iter().fold(CapabilitySet::EMPTY, |set, name| set.union(CapabilitySet::named(name).unwrap()))
    }

    #[test]
    fn all_is_processed_before_single_names() {
        let default = CapabilitySet::container_default();
        let cases = [
            (request(&[], &[]), default),
            (request(&["ALL"], &[]), CapabilitySet::ALL),
            (request(&[], &["all"]), CapabilitySet::EMPTY),
            (request(&["NET_ADMIN"], &["ALL"]), set(&["NET_ADMIN"])),
            (request(&["ALL"], &["SYS_ADMIN"]), CapabilitySet::ALL.difference(set(&["SYS_ADMIN"]))),
            (request(&["all", "NET_ADMIN"], &["All"]), set(&["NET_ADMIN"])),
            (
                request(&["cap_net_admin"], &["CAP_CHOWN"]),
                default.union(set(&["NET_ADMIN"])).difference(set(&["CHOWN"])),
            ),
            (request(&["CHOWN"], &["CHOWN"]), default.difference(set(&["CHOWN"]))),
        ];
        for (at, (got, wanted)) in cases.into_iter().enumerate() {
            assert_eq!(got, wanted, "case {at}");
        }
    }

    #[test]
    fn an_unknown_name_is_refused() {
        for name in ["", "CAP_", "ROOT", "CAP_CAP_CHOWN", "CHOWN "] {
            let list = [name.to_string()];
            assert!(CapabilityRequest::parse(&list, &[], &[]).is_err(), "{name:?}");
            assert!(CapabilityRequest::parse(&[], &list, &[]).is_err(), "{name:?}");
        }
        assert!(CapabilityRequest::parse(&[], &[], &["ALL".into()]).is_err());
    }

    #[test]
    fn every_name_is_known_to_the_specification() {
        assert_eq!(CapabilitySet::ALL.to_oci().len(), NAMES.len());
        assert_eq!(CapabilitySet::container_default().to_oci().len(), DEFAULT.len());
    }
}
