//! Which sysctls a pod may set: those that the kernel keeps per namespace, and only when the pod has that namespace.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::error::{SpecError, quote};
use crate::input::NamespaceMode;

/// Sysctls of one pod.
const SYSCTLS_MAX: usize = 256;
/// Bytes of a key or a value.
const TEXT_BYTES_MAX: usize = 1024;

/// Kept per IPC namespace, beside `fs.mqueue.*` (ipc_namespaces(7)).
const IPC_KEYS: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// A sysctl that the pod may set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    /// Components below `/proc/sys`; none is empty, `.` or `..`.
    components: Vec<String>,
    /// What to write, without a line end.
    value: String,
}

impl Sysctl {
    /// Relative to `/proc/sys`.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.components.iter().collect()
    }

    /// What to write, without a line end.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }

    /// Whether it belongs to the network namespace; otherwise to the IPC namespace.
    #[must_use]
    pub fn is_network(&self) -> bool {
        self.components.first().is_some_and(|first| first == "net")
    }
}

/// Checks the sysctls of a sandbox. Keys use dots, or slashes where a component holds a dot (`net/ipv4/conf/eth0.5/…`).
///
/// # Errors
/// [`SpecError::Sysctl`] for a key that is not kept per namespace, whose namespace the pod shares with the host
/// (CVE-2022-0532), or that holds anything but `a-zA-Z0-9_-.` and its separators, and for a value with a character that
/// is not printable (CVE-2022-0811).
pub fn validate_sysctls(
    sysctls: &BTreeMap<String, String>,
    network: NamespaceMode,
    ipc: NamespaceMode,
) -> Result<Vec<Sysctl>, SpecError> {
    if sysctls.len() > SYSCTLS_MAX {
        return Err(SpecError::TooMany { what: "sysctls", max: SYSCTLS_MAX });
    }
    sysctls.iter().map(|(key, value)| validate(key, value, network, ipc)).collect()
}

fn validate(key: &str, value: &str, network: NamespaceMode, ipc: NamespaceMode) -> Result<Sysctl, SpecError> {
    let refused = |reason| SpecError::Sysctl { key: quote(key), reason };
    let components = split(key).ok_or_else(|| refused("not a sysctl name"))?;
    let bad_value = value.len() > TEXT_BYTES_MAX
        || value.chars().any(|c| !(c.is_ascii_graphic() || c == ' ' || c == '\t'));
    if value.trim().is_empty() || bad_value {
        return Err(refused("its value is empty, too long or not printable"));
    }
    if components[0] == "net" {
        if network == NamespaceMode::Node {
            return Err(refused("the pod has the host's network namespace"));
        }
    } else if is_ipc(&components) {
        if ipc == NamespaceMode::Node {
            return Err(refused("the pod has the host's IPC namespace"));
        }
    } else {
        return Err(refused("not kept per namespace"));
    }
    Ok(Sysctl { components, value: value.to_string() })
}

fn is_ipc(components: &[String]) -> bool {
    let plain = IPC_KEYS.iter().any(|key| key.split('.').eq(components.iter().map(String::as_str)));
    plain || matches!(components, [fs, mqueue, _] if fs == "fs" && mqueue == "mqueue")
}

/// As sysctl(8) reads a name: the first separator decides; the other one is then its opposite.
fn split(key: &str) -> Option<Vec<String>> {
    if key.is_empty() || key.len() > TEXT_BYTES_MAX {
        return None;
    }
    let (separator, other) = match key.find(['.', '/']).map(|at| key.as_bytes()[at]) {
        Some(b'/') => ('/', None),
        _ => ('.', Some('/')),
    };
    let component = |part: &str| match other {
        Some(slash) => part.replace(slash, "."),
        None => part.to_string(),
    };
    let components: Vec<String> = key.split(separator).map(component).collect();
    let allowed = |part: &String| {
        let characters = part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
        characters && !part.is_empty() && part != "." && part != ".."
    };
    (components.len() >= 2 && components.iter().all(allowed)).then_some(components)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(key: &str, value: &str, network: NamespaceMode, ipc: NamespaceMode) -> Result<Sysctl, SpecError> {
        let map = BTreeMap::from([(key.to_string(), value.to_string())]);
        validate_sysctls(&map, network, ipc).map(|mut list| list.remove(0))
    }

    const POD: NamespaceMode = NamespaceMode::Pod;
    const NODE: NamespaceMode = NamespaceMode::Node;

    #[test]
    fn namespaced_sysctls_pass() {
        let cases = [
            ("net.ipv4.ip_unprivileged_port_start", "net/ipv4/ip_unprivileged_port_start"),
            ("net.ipv4.conf.eth0/5.forwarding", "net/ipv4/conf/eth0.5/forwarding"),
            ("net/ipv4/conf/eth0.5/forwarding", "net/ipv4/conf/eth0.5/forwarding"),
            ("kernel.shm_rmid_forced", "kernel/shm_rmid_forced"),
            ("kernel/sem", "kernel/sem"),
            ("fs.mqueue.msg_max", "fs/mqueue/msg_max"),
        ];
        for (key, path) in cases {
            assert_eq!(one(key, "1", POD, POD).unwrap().path(), PathBuf::from(path), "{key}");
        }
        assert_eq!(
            one("net.ipv4.ping_group_range", "0 2147483647", POD, POD).unwrap().value(),
            "0 2147483647"
        );
    }

    #[test]
    fn sysctls_of_the_host_are_refused() {
        let keys = [
            "kernel.core_pattern",
            "kernel/core_pattern",
            "vm.swappiness",
            "kernel.msgmax2",
            "fs.mqueue",
            "fs.file-max",
            "net",
            "kernel",
            "",
            ".",
            "..",
            "net..ipv4",
            "net/../kernel/core_pattern",
            "net.ipv4./..",
            "../net/x",
            "net./../kernel/core_pattern",
            "net/./x",
            "/net/ipv4/x",
            "net.ipv4.x+kernel.core_pattern",
            "net.ipv4.x=1",
            "net.ipv4.x y",
            "net.ipv4.x\n",
            "kernel.shm_rmid_forced/..",
            "kernel.shmmax.x",
            "fs.mqueue./.",
            "fs.mqueue.",
            "fs/mqueue.x",
            "kernel/shm.max",
        ];
        for key in keys {
            assert!(one(key, "1", POD, POD).is_err(), "{key:?}");
        }
    }

    #[test]
    fn host_namespaces_take_their_sysctls_away() {
        assert!(one("net.ipv4.ip_forward", "1", NODE, POD).is_err());
        assert!(one("net.ipv4.ip_forward", "1", POD, NODE).is_ok());
        assert!(one("kernel.shmmax", "1", POD, NODE).is_err());
        assert!(one("fs.mqueue.msg_max", "1", POD, NODE).is_err());
        assert!(one("kernel.shmmax", "1", NODE, POD).is_ok());
    }

    #[test]
    fn values_that_could_smuggle_are_refused() {
        for value in ["", " ", "1\n", "1\0", "1\r", "1\u{7f}", "é", &"1".repeat(TEXT_BYTES_MAX + 1)] {
            assert!(one("net.ipv4.ip_forward", value, POD, POD).is_err(), "{value:?}");
        }
        // What CVE-2022-0811 used is plain text here: the value goes to one file and nowhere else.
        let plain = one("net.ipv4.ip_forward", "1+kernel.core_pattern=|/x", POD, POD).unwrap();
        assert_eq!(plain.path(), PathBuf::from("net/ipv4/ip_forward"));
    }

    proptest! {
        #[test]
        fn no_key_leaves_its_tree(key in "(net|kernel|fs|vm|\\.\\.|/|\\.)?[a-z./+=\\\\ \\n\u{0}-]{0,24}") {
            if let Ok(sysctl) = one(&key, "1", POD, POD) {
                let path = sysctl.path();
                prop_assert!(path.is_relative());
                prop_assert!(path.components().all(|c| matches!(c, std::path::Component::Normal(_))));
                let kernel = |key: &str| path.as_os_str() == key.replace('.', "/").as_str();
                let tree = path.starts_with("net") || path.starts_with("fs/mqueue") || IPC_KEYS.into_iter().any(kernel);
                prop_assert!(tree, "{}", path.display());
            }
        }
    }
}
