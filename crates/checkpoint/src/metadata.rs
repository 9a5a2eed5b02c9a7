use serde::{Deserialize, Serialize};

use crate::error::{CheckpointError, Result};

/// Name of [`Descriptors`] among the images.
pub const DESCRIPTORS: &str = "descriptors.json";
/// Longest text of an archive's field that is looked at.
const FIELD_BYTES_MAX: usize = 4096;

/// `config.dump`. Times are RFC 3339.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Config {
    /// Of the container.
    pub id: String,
    /// Of the container.
    pub name: String,
    /// Id of the image.
    pub rootfs_image: String,
    /// A repository digest.
    pub rootfs_image_ref: String,
    /// A tag.
    pub rootfs_image_name: String,
    /// Name of the runtime.
    pub runtime: String,
    /// When it was created.
    pub created_time: String,
    /// When it was checkpointed.
    pub checkpointed_time: String,
    /// When it was itself restored.
    pub restored_time: String,
    /// It came from a checkpoint.
    pub restored: bool,
}

impl Config {
    /// Reads `config.dump`.
    ///
    /// # Errors
    /// [`CheckpointError::Malformed`].
    pub fn parse(text: &[u8]) -> Result<Self> {
        let config: Self = serde_json::from_slice(text)
            .map_err(|error| CheckpointError::Malformed(format!("config.dump: {error}")))?;
        if config.images().any(|name| name.len() > FIELD_BYTES_MAX) {
            return Err(CheckpointError::Malformed("config.dump: the image's name is too long".to_owned()));
        }
        Ok(config)
    }

    /// What its image may be found by, the surest first.
    pub fn images(&self) -> impl Iterator<Item = &str> {
        [&self.rootfs_image_ref, &self.rootfs_image, &self.rootfs_image_name]
            .into_iter()
            .map(String::as_str)
            .filter(|name| !name.is_empty())
    }
}

/// What a container's stdin, stdout and stderr were, as `/proc/<pid>/fd` shows them: `pipe:[4711]` for a pipe of its supervisor, else a
/// path or nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Descriptors(pub [String; 3]);

impl Descriptors {
    /// Reads `descriptors.json`.
    ///
    /// # Errors
    /// [`CheckpointError::Malformed`].
    pub fn parse(text: &[u8]) -> Result<Self> {
        serde_json::from_slice(text)
            .map_err(|error| CheckpointError::Malformed(format!("{DESCRIPTORS}: {error}")))
    }

    /// Pipes with the descriptor that each was, no pipe twice.
    #[must_use]
    pub fn pipes(&self) -> Vec<(usize, &str)> {
        let mut pipes: Vec<(usize, &str)> = Vec::new();
        for (number, name) in self.0.iter().enumerate() {
            if is_pipe(name) && !pipes.iter().any(|(_, seen)| seen == name) {
                pipes.push((number, name));
            }
        }
        pipes
    }
}

fn is_pipe(name: &str) -> bool {
    let inode = name.strip_prefix("pipe:[").and_then(|rest| rest.strip_suffix(']'));
    inode.is_some_and(|inode| {
        inode.len() <= 20 && !inode.is_empty() && inode.bytes().all(|b| b.is_ascii_digit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_pipes_reach_a_command_line() {
        let text = br#"["/dev/null", "pipe:[12]", "pipe:[12]"]"#;
        assert_eq!(Descriptors::parse(text).unwrap().pipes(), [(1, "pipe:[12]")]);
        for bad in ["pipe:[]", "pipe:[1", "pipe:[1],x", "tty:[1]", "pipe:[-1]"] {
            assert!(Descriptors([bad.into(), String::new(), String::new()]).pipes().is_empty(), "{bad}");
        }
        for bad in [&b"[]"[..], b"{}", b"[1,2,3]", b"nonsense"] {
            assert!(Descriptors::parse(bad).is_err());
        }
    }

    #[test]
    fn the_image_is_named_by_others_as_by_us() {
        let text = br#"{"id":"a","name":"b","rootfsImage":"sha256:1","rootfsImageName":"docker.io/x:1","unknown":1}"#;
        let config = Config::parse(text).unwrap();
        assert_eq!(config.images().collect::<Vec<_>>(), ["sha256:1", "docker.io/x:1"]);
        assert!(Config::parse(b"[").is_err());
    }
}
