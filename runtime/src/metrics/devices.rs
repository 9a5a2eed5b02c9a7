//! Block devices by name, and the file system of the writable layers.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Names that are kept; more are looked up each time.
const NAMES_MAX: usize = 1024;

/// The file system of the writable layers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Disk {
    /// As [`Devices::name`] has it.
    pub(super) device: String,
    /// Major, minor; major 0 has no block device.
    pub(super) number: (u32, u32),
    pub(super) bytes: u64,
    pub(super) inodes: u64,
    pub(super) inodes_free: u64,
}

/// Names of devices by major and minor.
#[derive(Debug, Default)]
pub(super) struct Devices(Mutex<HashMap<(u32, u32), String>>);

impl Devices {
    /// `/dev/sda1`; what has no such name goes by what is mounted (`tmpfs`), at last by its number.
    pub(super) fn name(&self, number: (u32, u32)) -> String {
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(name) = known().get(&number) {
            return name.clone();
        }
        let (major, minor) = number;
        let uevent = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent"));
        let name = uevent
            .ok()
            .as_deref()
            .and_then(device_name)
            .or_else(|| mount_source(&std::fs::read_to_string("/proc/self/mountinfo").ok()?, number));
        let name = name.unwrap_or_else(|| format!("{major}:{minor}"));
        let mut names = known();
        if names.len() < NAMES_MAX {
            names.insert(number, name.clone());
        }
        name
    }

    /// The file system that `dir` lies on; unknown sizes are 0.
    pub(super) fn disk(&self, dir: &Path) -> Disk {
        let number = rustix::fs::stat(dir)
            .map(|stat| (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev)))
            .unwrap_or_default();
        let disk = Disk { device: self.name(number), number, ..Disk::default() };
        match rustix::fs::statvfs(dir) {
            Ok(stat) => Disk {
                bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
                inodes: stat.f_files,
                inodes_free: stat.f_ffree,
                ..disk
            },
            Err(_) => disk,
        }
    }
}

/// From a block device's `uevent`.
fn device_name(uevent: &str) -> Option<String> {
    uevent.lines().find_map(|line| Some(format!("/dev/{}", line.strip_prefix("DEVNAME=")?)))
}

/// What is mounted as this device: `36 35 98:0 /root /point options - type source options` (proc_pid_mountinfo(5)).
fn mount_source(mountinfo: &str, (major, minor): (u32, u32)) -> Option<String> {
    let number = format!("{major}:{minor}");
    let line = mountinfo.lines().find(|line| line.split(' ').nth(2) == Some(number.as_str()))?;
    Some(line.split_once(" - ")?.1.split(' ').nth(1)?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named() {
        assert_eq!(device_name("MAJOR=8\nDEVNAME=sda1\nDEVTYPE=disk\n").as_deref(), Some("/dev/sda1"));
        let mounts = "22 27 0:21 / /proc rw - proc proc rw\n30 27 0:5 / /a rw shared:1 - tmpfs none rw\n";
        assert_eq!(mount_source(mounts, (0, 5)).as_deref(), Some("none"));
        assert_eq!(mount_source(mounts, (0, 2)), None);
        assert_eq!(Devices::default().name((4095, 77)), "4095:77");
    }

    #[test]
    fn a_file_system_has_sizes() {
        let disk = Devices::default().disk(Path::new("/"));
        assert!(disk.bytes > 0 && !disk.device.is_empty(), "{disk:?}");
        assert_eq!(Devices::default().disk(Path::new("/nonexistent")).bytes, 0);
    }
}
