//! Device nodes in a user namespace, where none can be made: binds of the host's own.
//!
//! Those that a request names are binds from the beginning (`crisp_spec::devices`). Vendors and plugins add theirs to the finished
//! specification, by number; a handler left alone with them would bind whatever the host has at the *container's* path.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType, Mount, Spec};

use crate::error::{Error, Result};

/// Of such a bind, as of those that a request names.
const OPTIONS: [&str; 4] = ["bind", "rprivate", "nosuid", "noexec"];

/// Replaces the specification's device nodes by binds.
///
/// # Errors
/// [`Error::Invalid`] for a device of which the host has no node.
pub(super) fn to_binds(spec: &mut Spec) -> Result<()> {
    let Some(nodes) = spec.linux().as_ref().and_then(|linux| linux.devices().clone()) else { return Ok(()) };
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for node in &nodes {
        let mut mount = Mount::default();
        mount
            .set_source(Some(of_host(node)?))
            .set_destination(node.path().clone())
            .set_typ(Some("bind".to_owned()))
            .set_options(Some(OPTIONS.map(str::to_owned).to_vec()));
        mounts.retain(|known| known.destination() != node.path());
        mounts.push(mount);
    }
    spec.set_mounts(Some(mounts));
    if let Some(linux) = spec.linux_mut() {
        linux.set_devices(None);
    }
    Ok(())
}

/// The host's node: at the same path, or where the kernel says.
fn of_host(node: &LinuxDevice) -> Result<PathBuf> {
    let mut places = std::iter::once(node.path().clone()).chain(named_by_kernel(node));
    places.find(|path| is(path, node)).ok_or_else(|| {
        let (path, major, minor) = (node.path().display(), node.major(), node.minor());
        Error::Invalid(format!(
            "device {path} ({major}:{minor}) cannot be made in a user namespace, and the host has no node of it"
        ))
    })
}

fn is(path: &Path, node: &LinuxDevice) -> bool {
    let Ok(metadata) = std::fs::metadata(path) else { return false };
    let kind = match node.typ() {
        LinuxDeviceType::C | LinuxDeviceType::U => metadata.file_type().is_char_device(),
        LinuxDeviceType::B => metadata.file_type().is_block_device(),
        LinuxDeviceType::P | LinuxDeviceType::A => false,
    };
    let number = metadata.rdev();
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    kind && (i64::from(major), i64::from(minor)) == (node.major(), node.minor())
}

/// Source: `Documentation/admin-guide/sysfs-rules.rst`, "/sys/dev"; `DEVNAME` is the name below `/dev`.
fn named_by_kernel(node: &LinuxDevice) -> Option<PathBuf> {
    let class = match node.typ() {
        LinuxDeviceType::B => "block",
        LinuxDeviceType::C | LinuxDeviceType::U => "char",
        LinuxDeviceType::P | LinuxDeviceType::A => return None,
    };
    let about = format!("/sys/dev/{class}/{}:{}/uevent", node.major(), node.minor());
    let about = std::fs::read_to_string(about).ok()?;
    let name = about.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
    Some(Path::new("/dev").join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(path: &str, major: i64, minor: i64) -> Spec {
        let mut node = LinuxDevice::default();
        node.set_path(path.into()).set_typ(LinuxDeviceType::C).set_major(major).set_minor(minor);
        let mut spec = Spec::default();
        if let Some(linux) = spec.linux_mut() {
            linux.set_devices(Some(vec![node]));
        }
        spec
    }

    #[test]
    fn a_node_is_bound_by_its_number_wherever_the_container_has_it() {
        for path in ["/dev/null", "/dev/vendor/device", "/dev/zero"] {
            let mut spec = spec(path, 1, 3);
            to_binds(&mut spec).unwrap();
            let mounts = spec.mounts().clone().unwrap();
            let bind = mounts.iter().find(|mount| mount.destination() == Path::new(path)).unwrap();
            assert_eq!(bind.source().as_deref(), Some(Path::new("/dev/null")), "{path}");
            assert!(spec.linux().as_ref().unwrap().devices().is_none());
        }
    }

    #[test]
    fn a_device_without_a_node_is_refused() {
        let error = to_binds(&mut spec("/dev/null", 4095, 1)).unwrap_err();
        assert!(matches!(error, Error::Invalid(text) if text.contains("/dev/null (4095:1)")));
    }
}
