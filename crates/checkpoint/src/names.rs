use std::path::{Component, Path};

use crate::error::{CheckpointError, Result};

/// What was checkpointed.
pub const CONFIG: &str = "config.dump";
/// Directory of CRIU's images.
pub const IMAGES: &str = "checkpoint";
/// Changes of the root filesystem.
pub const ROOTFS_DIFF: &str = "rootfs-diff.tar";
/// Longest name of an image of CRIU.
const NAME_BYTES_MAX: usize = 128;

/// What becomes of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// A file at the top.
    Top(&'static str),
    /// A file in [`IMAGES`].
    Image(String),
    /// The top or [`IMAGES`] themselves.
    Directory,
    /// For people, or for other runtimes.
    Nothing,
}

/// Takes an entry's name apart.
pub(crate) fn wanted(path: &Path) -> Result<Wanted> {
    let shown = || path.display().to_string().chars().take(NAME_BYTES_MAX).collect();
    let refused = |reason| CheckpointError::Refused { entry: shown(), reason };
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::Normal(name) => {
                parts.push(name.to_str().ok_or_else(|| refused("its name is not UTF-8"))?)
            }
            Component::ParentDir => return Err(refused("its name leads upwards")),
            Component::RootDir | Component::Prefix(_) => return Err(refused("its name is absolute")),
        }
    }
    match *parts.as_slice() {
        [] => Ok(Wanted::Directory),
        [CONFIG] => Ok(Wanted::Top(CONFIG)),
        [ROOTFS_DIFF] => Ok(Wanted::Top(ROOTFS_DIFF)),
        [IMAGES] => Ok(Wanted::Directory),
        [IMAGES, name] if is_image(name) => Ok(Wanted::Image(name.to_owned())),
        [IMAGES, ..] => Err(refused("it is no image of CRIU")),
        _ => Ok(Wanted::Nothing),
    }
}

/// Names that CRIU uses, and nothing that its configuration or a shell could take for something else.
fn is_image(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    name.len() <= NAME_BYTES_MAX
        && name.bytes().all(plain)
        && !name.starts_with(['-', '.'])
        && (name.ends_with(".img")
            || name.ends_with(".json")
            || name == "stats-dump"
            || name.ends_with(".log"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_names_are_taken() {
        let table: [(&str, Option<Wanted>); 14] = [
            ("config.dump", Some(Wanted::Top(CONFIG))),
            ("./config.dump", Some(Wanted::Top(CONFIG))),
            ("rootfs-diff.tar", Some(Wanted::Top(ROOTFS_DIFF))),
            ("checkpoint/", Some(Wanted::Directory)),
            ("checkpoint/pages-1.img", Some(Wanted::Image("pages-1.img".into()))),
            ("checkpoint/descriptors.json", Some(Wanted::Image("descriptors.json".into()))),
            ("spec.dump", Some(Wanted::Nothing)),
            ("volumes/a.tar", Some(Wanted::Nothing)),
            ("../config.dump", None),
            ("/config.dump", None),
            ("checkpoint/../config.dump", None),
            ("checkpoint/a/b.img", None),
            ("checkpoint/-x.img", None),
            ("checkpoint/criu.conf", None),
        ];
        for (name, expected) in table {
            assert_eq!(wanted(Path::new(name)).ok(), expected, "{name}");
        }
    }
}
