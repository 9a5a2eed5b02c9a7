//! A pod's directory on this machine: its logs and its own volumes.
//!
//! ```text
//! <root>/local/<pod uid>/logs/<container>/<attempt>.log
//!                        volumes/<name>/                  an emptyDir, or the tmpfs of one in memory
//! ```

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::error::{CliError, Result};
use super::manifest::{HostPathKind, PlannedVolume, VolumeKind};

/// Everybody may write to an emptyDir, as in Kubernetes; with a group, its members share what they make.
const VOLUME_MODE: u32 = 0o777;
const GROUP_VOLUME_MODE: u32 = 0o2777;

/// The directory of a pod, from its uid.
///
/// # Errors
/// When the uid is not a UUID: it comes from a label, and names a directory that will be removed.
pub(crate) fn data_dir(root: &Path, uid: &str) -> Result<PathBuf> {
    if !is_uid(uid) {
        return Err(CliError::Invalid(format!("{uid:?} is not the uid of a pod that `crisp run` made")));
    }
    Ok(root.join("local").join(uid))
}

/// Whether a directory of ours may have this name: a UUID.
pub(crate) fn is_uid(text: &str) -> bool {
    text.len() == 36 && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

/// Makes the volumes below the pod's directory.
///
/// # Errors
/// Naming the volume; what was made stays for [`remove`].
pub(crate) fn prepare(data: &Path, volumes: &[PlannedVolume]) -> Result<()> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(data.join("volumes"));
    made.map_err(CliError::io(format!("make {}", data.display())))?;
    for volume in volumes {
        let name = &volume.name;
        prepare_one(volume)
            .map_err(CliError::io(format!("prepare volume {name} at {}", volume.path.display())))?;
    }
    Ok(())
}

fn prepare_one(volume: &PlannedVolume) -> io::Result<()> {
    match &volume.kind {
        VolumeKind::Host(kind) => host_path(&volume.path, *kind)?,
        VolumeKind::Directory { group } => own_directory(&volume.path, *group)?,
        VolumeKind::Memory { bytes_max, group } => {
            own_directory(&volume.path, None)?;
            mount_tmpfs(&volume.path, *bytes_max)?;
            set_owner(&volume.path, *group)?;
        }
    }
    for below in &volume.sub_paths {
        let path = volume.path.join(below);
        if !path.exists() {
            DirBuilder::new().recursive(true).mode(0o755).create(path)?;
        }
    }
    Ok(())
}

fn own_directory(path: &Path, group: Option<i64>) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(path)?;
    set_owner(path, group)
}

/// After the fact, because the umask takes bits from `mkdir`.
fn set_owner(path: &Path, group: Option<i64>) -> io::Result<()> {
    if let Some(group) = group {
        let group = u32::try_from(group).map_err(io::Error::other)?;
        std::os::unix::fs::chown(path, None, Some(group))?;
    }
    let mode = if group.is_some() { GROUP_VOLUME_MODE } else { VOLUME_MODE };
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

fn mount_tmpfs(path: &Path, bytes_max: u64) -> io::Result<()> {
    use rustix::mount::MountFlags;
    let mut options = "mode=0777".to_owned();
    if bytes_max > 0 {
        options.push_str(&format!(",size={bytes_max}"));
    }
    let options = std::ffi::CString::new(options)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    Ok(rustix::mount::mount("tmpfs", path, "tmpfs", flags, Some(options.as_c_str()))?)
}

fn host_path(path: &Path, kind: HostPathKind) -> io::Result<()> {
    let expect = |what: &str, holds: fn(&std::fs::FileType) -> bool| {
        let found = std::fs::metadata(path)?.file_type();
        if holds(&found) { Ok(()) } else { Err(io::Error::other(format!("is not a {what}"))) }
    };
    match kind {
        HostPathKind::Unchecked => Ok(()),
        HostPathKind::DirectoryOrCreate if !path.exists() => {
            DirBuilder::new().recursive(true).mode(0o755).create(path)
        }
        HostPathKind::FileOrCreate if !path.exists() => File::create_new(path).map(drop),
        HostPathKind::Directory | HostPathKind::DirectoryOrCreate => {
            expect("directory", std::fs::FileType::is_dir)
        }
        HostPathKind::File | HostPathKind::FileOrCreate => expect("file", std::fs::FileType::is_file),
        HostPathKind::Socket => expect("socket", |kind| kind.is_socket()),
        HostPathKind::CharDevice => expect("character device", |kind| kind.is_char_device()),
        HostPathKind::BlockDevice => expect("block device", |kind| kind.is_block_device()),
    }
}

/// Removes a pod's directory; already gone is fine.
///
/// # Errors
/// When a volume cannot be unmounted or a file not be removed.
pub(crate) fn remove(data: &Path) -> Result<()> {
    let failed = || CliError::io(format!("remove {}", data.display()));
    let volumes = match std::fs::read_dir(data.join("volumes")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return remove_tree(data).map_err(failed()),
        Err(error) => return Err(failed()(error)),
    };
    for volume in volumes {
        unmount(&volume.map_err(failed())?.path()).map_err(failed())?;
    }
    remove_tree(data).map_err(failed())
}

/// EINVAL: nothing is mounted there (umount(2)).
fn unmount(path: &Path) -> io::Result<()> {
    use rustix::mount::UnmountFlags;
    match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(rustix::io::Errno::INVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn remove_tree(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn volume(path: PathBuf, kind: VolumeKind, sub_paths: &[&str]) -> PlannedVolume {
        let sub_paths: BTreeSet<PathBuf> = sub_paths.iter().map(PathBuf::from).collect();
        PlannedVolume { name: "v".to_owned(), path, kind, sub_paths }
    }

    #[test]
    fn only_a_uuid_names_a_directory() {
        let root = Path::new("/var/lib/crisp");
        let uid = "11111111-2222-4333-8444-555555555555";
        assert_eq!(data_dir(root, uid).unwrap(), root.join("local").join(uid));
        for uid in
            ["", "..", "../../../../../../../../../../../etc/x", "11111111-2222-4333-8444-55555555555/"]
        {
            assert!(data_dir(root, uid).is_err(), "{uid}");
        }
    }

    #[test]
    fn directories_are_made_and_removed_with_the_pod() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("local/uid");
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("keep"), "x").unwrap();
        let empty = data.join("volumes/v");
        let host = dir.path().join("made/by/us");
        prepare(
            &data,
            &[
                volume(empty.clone(), VolumeKind::Directory { group: None }, &["a/b"]),
                volume(host.clone(), VolumeKind::Host(HostPathKind::DirectoryOrCreate), &[]),
            ],
        )
        .unwrap();
        assert_eq!(empty.metadata().unwrap().mode() & 0o7777, 0o777);
        assert!(empty.join("a/b").is_dir() && host.is_dir());
        // A container can leave anything in its volume.
        std::os::unix::fs::symlink(&outside, empty.join("link")).unwrap();
        remove(&data).unwrap();
        assert!(!data.exists() && host.exists() && outside.join("keep").exists());
        remove(&data).unwrap();
    }

    #[test]
    fn host_paths_are_checked_by_their_kind() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let missing = dir.path().join("missing");
        let table = [
            (dir.path(), HostPathKind::Directory, true),
            (&file, HostPathKind::Directory, false),
            (&file, HostPathKind::DirectoryOrCreate, false),
            (&file, HostPathKind::File, true),
            (&file, HostPathKind::FileOrCreate, true),
            (&file, HostPathKind::Socket, false),
            (&missing, HostPathKind::File, false),
            (&missing, HostPathKind::Unchecked, true),
            (Path::new("/dev/null"), HostPathKind::CharDevice, true),
            (Path::new("/dev/null"), HostPathKind::BlockDevice, false),
            (&missing, HostPathKind::FileOrCreate, true),
        ];
        for (path, kind, fits) in table {
            assert_eq!(host_path(path, kind).is_ok(), fits, "{} {kind:?}", path.display());
        }
        assert!(missing.is_file(), "the last one made it");
    }
}
