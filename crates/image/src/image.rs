use std::collections::BTreeMap;

use crisp_snapshot::ChainId;
use oci_spec::image::ImageConfiguration;

use crate::digest::{Digest, ImageId};

/// An image that is here, complete and verified.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Image {
    /// The digest of its configuration.
    pub id: ImageId,
    /// `registry/repository:tag`, sorted.
    pub repo_tags: Vec<String>,
    /// `registry/repository@sha256:…`, sorted; the digest of what a tag resolved to, so that of the index where there is one.
    pub repo_digests: Vec<String>,
    /// Bytes that its layers and its configuration take here; never 0. Layers that images share count in each.
    pub size_bytes: u64,
    /// Its configuration: content, to be treated as data.
    pub config: ImageConfiguration,
    /// Its layers, bottom first.
    pub chain: Vec<ChainId>,
    /// Whether clients are asked not to collect it.
    pub pinned: bool,
    /// The annotations of its manifest.
    pub annotations: BTreeMap<String, String>,
    /// Whom its process runs as when the container does not say.
    pub user: ImageUser,
}

impl Image {
    /// The first tag, else the first digest, else the id: what to call it in front of people.
    #[must_use]
    pub fn display_name(&self) -> &str {
        self.repo_tags.first().or(self.repo_digests.first()).map_or(self.id.as_str(), String::as_str)
    }
}

/// The user that an image's configuration names, without the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageUser {
    /// None: root.
    None,
    /// By number.
    Uid(i64),
    /// By a name from the image's `/etc/passwd`.
    Name(String),
}

impl ImageUser {
    /// From the `User` of a configuration: `user[:group]`.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let user = text.split(':').next().unwrap_or("");
        match user.parse::<i64>() {
            _ if user.is_empty() => Self::None,
            Ok(uid) => Self::Uid(uid),
            Err(_) => Self::Name(user.into()),
        }
    }
}

/// Something that happened during a pull or an import.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// The manifest is known.
    Resolved {
        /// The digest that the reference resolved to.
        digest: Digest,
        /// Layers of the image.
        layers: usize,
        /// Those that are not here yet.
        layers_missing: usize,
        /// The compressed size of those, in bytes.
        bytes: u64,
    },
    /// More of a layer arrived.
    LayerBytes {
        /// The layer, as the manifest names it.
        digest: Digest,
        /// Compressed bytes so far.
        done: u64,
        /// Compressed bytes in all.
        total: u64,
    },
    /// A layer is verified, unpacked and kept.
    LayerDone {
        /// The layer, as the manifest names it.
        digest: Digest,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_is_a_number_or_a_name() {
        for (text, user) in [
            ("", ImageUser::None),
            (":group", ImageUser::None),
            ("1002", ImageUser::Uid(1002)),
            ("www-data", ImageUser::Name("www-data".into())),
            ("1003:group", ImageUser::Uid(1003)),
            ("www-data:group", ImageUser::Name("www-data".into())),
            ("99999999999999999999", ImageUser::Name("99999999999999999999".into())),
        ] {
            assert_eq!(ImageUser::parse(text), user, "{text}");
        }
    }
}
