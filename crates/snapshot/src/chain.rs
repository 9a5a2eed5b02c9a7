use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::SnapshotError;

const PREFIX: &str = "sha256:";
const HEX_LEN: usize = 64;

macro_rules! digest {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            /// `sha256:` and 64 lower-case hexadecimal digits.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }

            /// The 64 digits alone.
            #[must_use]
            pub fn hex(&self) -> &str {
                &self.0[PREFIX.len()..]
            }
        }

        impl FromStr for $name {
            type Err = SnapshotError;
            fn from_str(text: &str) -> Result<Self, SnapshotError> {
                check(text).map(|()| Self(text.into()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = SnapshotError;
            fn try_from(text: String) -> Result<Self, SnapshotError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0.into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

digest!(
    /// Digest of one layer's uncompressed tar stream.
    DiffId
);
digest!(
    /// Digest that names a layer together with all below it.
    ChainId
);

impl DiffId {
    pub(crate) fn of(hash: Sha256) -> Self {
        Self(text(hash).into())
    }
}

impl ChainId {
    /// The chain id of a layer on top of `parent`: the diff id itself at the bottom, else the digest of
    /// `"<parent> <diff id>"`.
    ///
    /// Source: OCI image specification, config.md, "Layer `ChainID`".
    #[must_use]
    pub fn next(parent: Option<&Self>, diff: &DiffId) -> Self {
        let Some(parent) = parent else { return Self(diff.0.clone()) };
        let hash = Sha256::new().chain_update(parent.as_str()).chain_update(" ").chain_update(diff.as_str());
        Self(text(hash).into())
    }

    /// The chain ids of an image, bottom first, from its diff ids, bottom first.
    #[must_use]
    pub fn chain(diffs: &[DiffId]) -> Vec<Self> {
        let mut chain: Vec<Self> = Vec::with_capacity(diffs.len());
        for diff in diffs {
            let next = Self::next(chain.last(), diff);
            chain.push(next);
        }
        chain
    }

    pub(crate) fn from_hex(hex: &str) -> Option<Self> {
        format!("{PREFIX}{hex}").parse().ok()
    }
}

fn text(hash: Sha256) -> String {
    let digits = b"0123456789abcdef";
    let hex = hash
        .finalize()
        .into_iter()
        .flat_map(|b| [b >> 4, b & 15])
        .map(|n| char::from(digits[usize::from(n)]));
    PREFIX.chars().chain(hex).collect()
}

fn check(text: &str) -> Result<(), SnapshotError> {
    let good = text.strip_prefix(PREFIX).is_some_and(|hex| {
        hex.len() == HEX_LEN && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    });
    if good { Ok(()) } else { Err(SnapshotError::Digest { text: text.chars().take(100).collect() }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed with `printf '%s %s' … | sha256sum`.
    #[test]
    fn a_chain_id_hashes_the_parent_and_the_diff() {
        let a: DiffId = format!("sha256:{}", "a".repeat(64)).parse().unwrap();
        let b: DiffId = format!("sha256:{}", "b".repeat(64)).parse().unwrap();
        let chain = ChainId::chain(&[a.clone(), b.clone()]);
        assert_eq!(chain[0].as_str(), a.as_str());
        assert_eq!(
            chain[1].as_str(),
            "sha256:ccd722928bd92476ba1745586fed6e45a102504185ad88cd89e01ff116fd146c"
        );
        assert_eq!(chain[1], ChainId::next(Some(&chain[0]), &b));
    }

    #[test]
    fn what_is_no_sha256_digest_is_refused() {
        let upper = format!("sha256:{}", "A".repeat(64));
        let other = format!("sha512:{}", "a".repeat(64));
        let long = format!("sha256:{}", "a".repeat(65));
        for text in ["", "sha256:", "sha256:../../etc", "sha256:../..", &upper, &other, &long] {
            assert!(text.parse::<ChainId>().is_err(), "{text}");
        }
    }
}
