//! What a restored process may be, compared with what the kernel says of it.

use std::collections::HashMap;

use crate::error::{CheckpointError, Result};

/// Numbers of the capabilities by which a process takes on other users and groups (`linux/capability.h`).
const SETGID: u32 = 6;
const SETUID: u32 = 7;

/// What the request gives a container's processes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own, named where it is set")]
pub struct Granted {
    /// Bit mask of the bounding set.
    pub capabilities: u64,
    /// The user.
    pub uid: u32,
    /// The primary group and the additional ones.
    pub groups: Vec<u32>,
    /// They may not gain privileges.
    pub no_new_privileges: bool,
    /// They have a seccomp filter.
    pub filtered: bool,
}

/// Checks one process by its `/proc/<pid>/status`.
///
/// # Errors
/// [`CheckpointError::NotRequested`] that names what it has too much, or what is not told.
pub fn check(status: &str, granted: &Granted) -> Result<()> {
    let fields: HashMap<&str, &str> = status.lines().filter_map(|line| line.split_once(':')).collect();
    let field = |name: &str| {
        let value = fields.get(name).map(|value| value.trim());
        value.ok_or_else(|| CheckpointError::NotRequested(format!("the kernel does not tell its {name}")))
    };
    let refuse = |what: &str| Err(CheckpointError::NotRequested(what.to_owned()));
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        let bits = u64::from_str_radix(field(set)?, 16).unwrap_or(u64::MAX);
        if bits & !granted.capabilities != 0 {
            return Err(CheckpointError::NotRequested(format!(
                "a process has {set} {bits:016x}, and the request gives {:016x}",
                granted.capabilities
            )));
        }
    }
    let has = |capability: u32| granted.capabilities & (1 << capability) != 0;
    if !has(SETUID) && numbers(field("Uid")?).any(|uid| uid != Some(granted.uid)) {
        return refuse("a process is another user's");
    }
    let stray = |id: Option<u32>| id.is_none_or(|id| !granted.groups.contains(&id));
    if !has(SETGID) && numbers(field("Gid")?).chain(numbers(field("Groups")?)).any(stray) {
        return refuse("a process is in another group");
    }
    if granted.no_new_privileges && field("NoNewPrivs")? != "1" {
        return refuse("a process may gain privileges");
    }
    if granted.filtered && field("Seccomp")? != "2" {
        return refuse("a process has no seccomp filter");
    }
    Ok(())
}

fn numbers(text: &str) -> impl Iterator<Item = Option<u32>> {
    text.split_ascii_whitespace().map(|number| number.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str = "Name:\tsh\nUid:\t1000\t1000\t1000\t1000\nGid:\t5\t5\t5\t5\nGroups:\t5 7 \n\
        CapInh:\t0000000000000000\nCapPrm:\t0000000000000003\nCapEff:\t0000000000000003\n\
        CapBnd:\t0000000000000003\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n";

    fn granted() -> Granted {
        Granted { capabilities: 3, uid: 1000, groups: vec![5, 7], no_new_privileges: true, filtered: true }
    }

    #[test]
    fn a_process_may_have_less_but_not_more() {
        check(STATUS, &granted()).unwrap();
        check(
            STATUS,
            &Granted { capabilities: 0xff, no_new_privileges: false, filtered: false, ..granted() },
        )
        .unwrap();
        let too_much = [
            ("CapBnd:\t0000000000000003", "CapBnd:\t0000000000200003"),
            ("CapEff:\t0000000000000003", "CapEff:\tx"),
            ("Uid:\t1000\t1000", "Uid:\t1000\t0"),
            ("Gid:\t5", "Gid:\t0"),
            ("Groups:\t5 7", "Groups:\t5 8"),
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0"),
            ("Seccomp:\t2", "Seccomp:\t0"),
            ("Seccomp:\t2\n", ""),
        ];
        for (from, to) in too_much {
            let status = STATUS.replace(from, to);
            assert!(status != STATUS && check(&status, &granted()).is_err(), "{to}");
        }
    }

    #[test]
    fn who_may_change_users_may_have_changed() {
        let changed = STATUS.replace("Uid:\t1000", "Uid:\t33").replace("Gid:\t5", "Gid:\t33");
        check(&changed, &Granted { capabilities: 0xff, ..granted() }).unwrap();
    }
}
