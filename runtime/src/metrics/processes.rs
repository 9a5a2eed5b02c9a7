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
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;
    use std::process::{Child, Command};
    use std::time::{Duration, Instant};

    use super::*;

    /// A process of one thread. This test's own has threads and descriptors of all others.
    struct Sleeper(Child);

    impl Sleeper {
        fn start([input, output]: [OwnedFd; 2]) -> Self {
            let mut command = Command::new("sleep");
            command.arg("1000").stdin(input).stdout(output).stderr(null());
            Self(command.spawn().unwrap())
        }

        fn pid(&self) -> Pid {
            Pid::from_child(&self.0)
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            self.0.kill().unwrap();
            self.0.wait().unwrap();
        }
    }

    fn null() -> OwnedFd {
        fs::File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn processes_and_their_descriptors_are_counted() {
        let (input, output) = UnixStream::pair().unwrap();
        let (plain, talks) =
            (Sleeper::start([null(), null()]), Sleeper::start([input.into(), output.into()]));
        let look = || {
            let both = look_at(&[plain.pid(), talks.pid()], Some(plain.pid().as_raw_nonzero().get()));
            [look_at(&[plain.pid()], None), look_at(&[talks.pid()], None), both]
        };
        let is_right = |[plain, talks, both]: [Processes; 3]| {
            // Besides what every child of this test inherits.
            let sockets = Processes { sockets: plain.sockets + 2, ..plain };
            (plain.count, plain.threads, plain.open_files_max) == (1, 1, None)
                && plain.descriptors >= 3
                && talks == sockets
                && both.open_files_max.is_some()
                && (both.count, both.threads) == (2, 2)
                && both.descriptors == plain.descriptors + talks.descriptors
                && both.sockets == plain.sockets + talks.sockets
        };
        // They open and close libraries first.
        let deadline = Instant::now() + Duration::from_secs(60);
        while !is_right(look()) {
            assert!(Instant::now() < deadline, "{:?}", look());
            std::thread::yield_now();
        }
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
