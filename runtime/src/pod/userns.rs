//! A pod's user namespace, and PID namespaces by pinned files.

use std::path::Path;

use crisp_proto::cri::{IdMapping, NamespaceMode, PodSandboxConfig, UserNamespace};
use crisp_sys::netns;
use crisp_sys::userns::{IdMap, IdRange};

use super::{Process, namespaces};
use crate::error::{Doing as _, Error, Result};

/// The ids of the pod's user namespace, which were checked when the request was parsed; none where it is the host's.
pub(crate) fn ids(config: &PodSandboxConfig) -> Option<IdMap> {
    let userns = namespaces(config).userns_options?;
    let pod = NamespaceMode::try_from(userns.mode) == Ok(NamespaceMode::Pod);
    pod.then(|| id_map(&userns))
}

/// As requested.
pub(crate) fn id_map(userns: &UserNamespace) -> IdMap {
    IdMap { uids: ranges(&userns.uids), gids: ranges(&userns.gids) }
}

/// As requested.
pub(crate) fn ranges(mappings: &[IdMapping]) -> Vec<IdRange> {
    let range = |m: &IdMapping| IdRange { inside: m.container_id, outside: m.host_id, length: m.length };
    mappings.iter().map(range).collect()
}

/// Pins the PID namespace of a process to a new file. A namespace by a file is joined even when the process's number has gone to
/// another one meanwhile; by `/proc/<pid>` it would be that one's.
///
/// # Errors
/// [`Error::Invalid`] when the process has ended.
pub(crate) fn pin_pid(process: Process, path: &Path) -> Result<()> {
    let gone =
        || Error::Invalid(format!("the process {} whose PID namespace is joined has ended", process.pid));
    netns::pin_pid_namespace(process.pid, path).doing("pin a PID namespace")?;
    // A start time that is still the same after the pin proves that the pin is of that process.
    if start_time(process.pid) == Some(process.start_time_ticks) {
        return Ok(());
    }
    netns::unpin(path).doing("release a PID namespace")?;
    Err(gone())
}

/// Field 22 of `/proc/<pid>/stat` (proc(5)), after the name, which may hold anything.
fn start_time(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_a_start_time() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(start_time(own).is_some_and(|ticks| ticks > 0));
        assert_eq!(start_time(0), None);
    }
}
