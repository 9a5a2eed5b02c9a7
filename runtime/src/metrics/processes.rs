//! What `/proc` tells of a container's processes. They come and go while it is read: what is gone counts nothing.

use std::fs;
use std::os::linux::fs::MetadataExt as _;
use std::os::unix::ffi::OsStrExt as _;

use rustix::process::Pid;

/// Processes that are looked at; more count as processes only.
const PROCESSES_MAX: usize = 4096;
/// Descriptors of all processes of a container that are looked at.
const DESCRIPTORS_MAX: u64 = 1 << 16;

/// Sums over the processes of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Processes {
    pub(super) count: u64,
    pub(super) threads: u64,
    pub(super) descriptors: u64,
    /// Among the descriptors.
    pub(super) sockets: u64,
    /// Soft limit of open files of the first process; `None` when unlimited or unknown.
    pub(super) open_files_max: Option<u64>,
}

/// Looks at these processes; `init` is the first of the container.
pub(super) fn look_at(pids: &[Pid], init: Option<i32>) -> Processes {
    let mut seen = Processes {
        count: pids.len().try_into().unwrap_or(u64::MAX),
        open_files_max: init.and_then(open_files_max),
        ..Processes::default()
    };
    for pid in pids.iter().take(PROCESSES_MAX) {
        let pid = pid.as_raw_nonzero().get();
        seen.threads += threads(pid);
        count_descriptors(pid, &mut seen);
    }
    seen
}

/// The directory of its threads has a link from each of them, and two of its own.
fn threads(pid: i32) -> u64 {
    fs::metadata(format!("/proc/{pid}/task")).map_or(0, |task| task.st_nlink().saturating_sub(2))
}

fn count_descriptors(pid: i32, seen: &mut Processes) {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return };
    for entry in entries.flatten() {
        if seen.descriptors >= DESCRIPTORS_MAX {
            return;
        }
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        seen.descriptors += 1;
        seen.sockets += u64::from(target.as_os_str().as_bytes().starts_with(b"socket:["));
    }
}

fn open_files_max(pid: i32) -> Option<u64> {
    parse_open_files_max(&fs::read_to_string(format!("/proc/{pid}/limits")).ok()?)
}

/// `Max open files            1024                 4096                 files`
fn parse_open_files_max(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files "))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn a_process_and_its_descriptors_are_counted() {
        let me = rustix::process::getpid();
        let before = look_at(&[me], Some(me.as_raw_nonzero().get()));
        assert_eq!(before.count, 1);
        assert!(
            before.threads >= 1 && before.descriptors >= 3 && before.open_files_max.is_some(),
            "{before:?}"
        );
        // Other tests of this process open and close theirs meanwhile.
        let _pairs: Vec<_> = (0..500).map(|_| UnixStream::pair().unwrap()).collect();
        let after = look_at(&[me], None);
        assert!(after.sockets >= 1000 && after.descriptors >= 1000, "{after:?}");
        assert_eq!(after.open_files_max, None);
    }

    #[test]
    fn what_is_gone_counts_nothing() {
        let gone = Pid::from_raw(i32::MAX).unwrap();
        assert_eq!(look_at(&[gone], Some(i32::MAX)), Processes { count: 1, ..Processes::default() });
    }

    #[test]
    fn limits_are_read() {
        let text =
            "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024       4096       files\n";
        assert_eq!(parse_open_files_max(text), Some(1024));
        assert_eq!(parse_open_files_max("Max open files   unlimited  unlimited files\n"), None);
    }
}
