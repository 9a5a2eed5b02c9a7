//! Devices: from paths on the host to nodes and rules of the device cgroup.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

use crate::error::SpecError;
use crate::input::{
    BindMount, ContainerInput, DeviceAccess, DeviceKind, DeviceNode, DeviceRequest, MountAccess, MountOption,
    Privilege, Propagation,
};

/// Device nodes of one container.
const DEVICES_MAX: usize = 8192;
/// How deep directories of devices are searched.
const DEPTH_MAX: usize = 8;
/// Directories below `/dev` that are mounts or views of their own, not devices of the host.
const NOT_DEVICES: [&str; 7] = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"];

/// Character devices that every container may use: null, zero, full, random, urandom, tty, console, ptmx, and the
/// pseudo-terminals (Linux `Documentation/admin-guide/devices.txt`). `None` is every minor number.
const STANDARD: [(i64, Option<i64>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

impl DeviceAccess {
    /// Read, write and make.
    #[must_use]
    pub fn all() -> Self {
        Self("rwm".into())
    }

    /// A subset of `rwm`, each letter once.
    ///
    /// # Errors
    /// [`SpecError::Field`] for anything else, and for nothing.
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        let sorted: String = ['r', 'w', 'm'].into_iter().filter(|letter| text.contains(*letter)).collect();
        if sorted.is_empty() || sorted.len() != text.len() {
            return Err(SpecError::field("permissions of a device", text, "not a subset of rwm"));
        }
        Ok(Self(sorted))
    }

    /// As the device cgroup writes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Finds the requested devices: links are followed, a directory stands for every device below it.
///
/// # Errors
/// [`SpecError::Device`] for one that is missing, [`SpecError::NotADevice`], [`SpecError::Mount`] for a path in the
/// container that is not absolute, [`SpecError::TooMany`].
pub fn resolve(requests: &[DeviceRequest]) -> Result<Vec<DeviceNode>, SpecError> {
    let mut nodes = Vec::new();
    for request in requests {
        let inside = PathBuf::from(crate::mounts::clean(&request.container_path)?);
        let failed = |source| SpecError::Device { path: request.host_path.clone(), source };
        let host = fs::canonicalize(&request.host_path).map_err(failed)?;
        let metadata = fs::metadata(&host).map_err(failed)?;
        if metadata.is_dir() {
            walk(&host, &inside, DEPTH_MAX, &request.access, &mut nodes)?;
        } else {
            let node = node(&metadata, &host, inside, &request.access);
            nodes.push(node.ok_or_else(|| SpecError::NotADevice(request.host_path.clone()))?);
        }
        bounded(&nodes)?;
    }
    Ok(nodes)
}

/// Every device of the host's `/dev`, for a privileged container. Terminals and what a container has of its own stay out.
///
/// # Errors
/// [`SpecError::Device`] when `/dev` cannot be read.
pub fn host_devices() -> Result<Vec<DeviceNode>, SpecError> {
    let dev = Path::new("/dev");
    let mut nodes = Vec::new();
    walk(dev, dev, DEPTH_MAX, &DeviceAccess::all(), &mut nodes)?;
    nodes.retain(|node| node.path != Path::new("/dev/console") && node.path != Path::new("/dev/ptmx"));
    bounded(&nodes)?;
    Ok(nodes)
}

fn bounded(nodes: &[DeviceNode]) -> Result<(), SpecError> {
    if nodes.len() > DEVICES_MAX {
        Err(SpecError::TooMany { what: "devices", max: DEVICES_MAX })
    } else {
        Ok(())
    }
}

fn walk(
    host: &Path,
    inside: &Path,
    depth: usize,
    access: &DeviceAccess,
    nodes: &mut Vec<DeviceNode>,
) -> Result<(), SpecError> {
    let failed = |source| SpecError::Device { path: host.into(), source };
    let mut entries: Vec<fs::DirEntry> =
        fs::read_dir(host).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        let top_view = host == Path::new("/dev") && NOT_DEVICES.iter().any(|known| name == *known);
        // A node or a directory can vanish while we look; links are left to what they point to.
        let Ok(metadata) = fs::symlink_metadata(entry.path()) else { continue };
        if metadata.is_dir() {
            if !top_view && depth > 1 {
                match walk(&entry.path(), &inside.join(&name), depth - 1, access, nodes) {
                    Err(SpecError::Device { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                    walked => walked?,
                }
            }
        } else if let Some(node) = node(&metadata, &entry.path(), inside.join(&name), access) {
            nodes.push(node);
        }
        bounded(nodes)?;
    }
    Ok(())
}

fn node(metadata: &fs::Metadata, host: &Path, path: PathBuf, access: &DeviceAccess) -> Option<DeviceNode> {
    let file_type = metadata.file_type();
    let kind = if file_type.is_char_device() {
        DeviceKind::Char
    } else if file_type.is_block_device() {
        DeviceKind::Block
    } else {
        return None;
    };
    let rdev = metadata.rdev();
    Some(DeviceNode {
        host: host.to_owned(),
        path,
        kind,
        major: rustix::fs::major(rdev),
        minor: rustix::fs::minor(rdev),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        access: access.clone(),
    })
}

/// Nodes for the specification. The standard ones are every handler's own business. No node can be made in a user namespace, so
/// there they are mounts ([`as_mounts`]): handlers would bind the host's node of the *container's* path.
pub(crate) fn nodes(input: &ContainerInput) -> Option<Vec<LinuxDevice>> {
    if input.sandbox.user.is_some() {
        return None;
    }
    let mut seen = std::collections::HashSet::new();
    // The last request for a path counts.
    let mut nodes: Vec<LinuxDevice> =
        input.devices.iter().rev().filter(|node| seen.insert(&node.path)).map(to_oci).collect();
    nodes.reverse();
    (!nodes.is_empty()).then_some(nodes)
}

/// Device nodes as binds of the host's nodes, for a container in a user namespace.
pub(crate) fn as_mounts(nodes: &[DeviceNode]) -> Vec<BindMount> {
    let mut seen = std::collections::HashSet::new();
    let last = nodes.iter().rev().filter(|node| seen.insert(&node.path));
    let mut mounts: Vec<BindMount> = last.map(as_mount).collect();
    mounts.reverse();
    mounts
}

fn as_mount(node: &DeviceNode) -> BindMount {
    BindMount {
        source: node.host.clone(),
        destination: node.path.display().to_string(),
        access: MountAccess::ReadWrite,
        propagation: Propagation::Private,
        options: vec![MountOption::NoSuid, MountOption::NoExec],
        ids: None,
    }
}

fn to_oci(node: &DeviceNode) -> LinuxDevice {
    let mut device = LinuxDevice::default();
    device
        .set_path(node.path.clone())
        .set_typ(oci_type(node.kind))
        .set_major(i64::from(node.major))
        .set_minor(i64::from(node.minor))
        .set_file_mode(Some(node.mode))
        .set_uid(Some(node.uid))
        .set_gid(Some(node.gid));
    device
}

fn oci_type(kind: DeviceKind) -> LinuxDeviceType {
    match kind {
        DeviceKind::Char => LinuxDeviceType::C,
        DeviceKind::Block => LinuxDeviceType::B,
    }
}

/// Rules of the device cgroup: nothing, then what every container has, then what was requested. `mknod` alone opens
/// nothing: every device that is not listed stays closed.
pub(crate) fn rules(input: &ContainerInput) -> Vec<LinuxDeviceCgroup> {
    if input.config.security.privilege == Privilege::Privileged {
        return vec![allow(LinuxDeviceType::A, None, None, "rwm")];
    }
    let mut rules = vec![
        deny_all(),
        allow(LinuxDeviceType::C, None, None, "m"),
        allow(LinuxDeviceType::B, None, None, "m"),
    ];
    rules.extend(STANDARD.map(|(major, minor)| allow(LinuxDeviceType::C, Some(major), minor, "rwm")));
    rules.extend(input.devices.iter().map(|node| {
        let (major, minor) = (i64::from(node.major), i64::from(node.minor));
        allow(oci_type(node.kind), Some(major), Some(minor), node.access.as_str())
    }));
    rules
}

fn allow(typ: LinuxDeviceType, major: Option<i64>, minor: Option<i64>, access: &str) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(true).set_typ(Some(typ)).set_major(major).set_minor(minor).set_access(Some(access.into()));
    rule
}

fn deny_all() -> LinuxDeviceCgroup {
    let mut rule = allow(LinuxDeviceType::A, None, None, "rwm");
    rule.set_allow(false);
    rule
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(host: &str, inside: &str) -> DeviceRequest {
        DeviceRequest { host_path: host.into(), container_path: inside.into(), access: DeviceAccess::all() }
    }

    #[test]
    fn permissions_are_a_subset_of_rwm() {
        for (text, sorted) in [("rwm", "rwm"), ("mr", "rm"), ("w", "w")] {
            assert_eq!(DeviceAccess::parse(text).unwrap().as_str(), sorted);
        }
        for text in ["", "rr", "rx", "rwmr", "RW", " r", "é"] {
            assert!(DeviceAccess::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_node_keeps_its_numbers() {
        let nodes = resolve(&[request("/dev/zero", "/dev/my-zero")]).unwrap();
        assert_eq!((nodes[0].kind, nodes[0].major, nodes[0].minor), (DeviceKind::Char, 1, 5));
        assert_eq!(nodes[0].path, Path::new("/dev/my-zero"));
    }

    #[test]
    fn links_and_directories_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/dev/null", dir.path().join("link")).unwrap();
        let link = dir.path().join("link").display().to_string();
        assert_eq!(resolve(&[request(&link, "/dev/x")]).unwrap()[0].minor, 3);
        let all = host_devices().unwrap();
        assert!(all.iter().any(|node| node.path == Path::new("/dev/null")));
        assert!(
            all.iter().all(|node| !node.path.starts_with("/dev/pts") && !node.path.starts_with("/dev/shm"))
        );
    }

    #[test]
    fn devices_can_be_mounts_and_the_last_of_a_path_counts() {
        let nodes = resolve(&[request("/dev/null", "/dev/a"), request("/dev/zero", "/dev/a")]).unwrap();
        let mounts = as_mounts(&nodes);
        assert_eq!(mounts.len(), 1);
        assert_eq!(
            (mounts[0].source.as_path(), mounts[0].destination.as_str()),
            (Path::new("/dev/zero"), "/dev/a")
        );
    }

    #[test]
    fn what_is_no_device_is_refused() {
        assert!(matches!(resolve(&[request("/dev/nothing-here", "/dev/x")]), Err(SpecError::Device { .. })));
        assert!(matches!(resolve(&[request("/etc/passwd", "/dev/x")]), Err(SpecError::NotADevice(_))));
        assert!(resolve(&[request("/dev/null", "dev/x")]).is_err());
        assert!(resolve(&[request("/dev/null", "/dev/../../x")]).is_err());
    }
}
