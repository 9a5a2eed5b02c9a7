use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Length of an id: 256 bits as lower-case hexadecimal digits.
const ID_HEX_LEN: usize = 64;

/// A text that is not 64 lower-case hexadecimal digits.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not an id of 64 lower-case hexadecimal digits")]
pub struct IdError(String);

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            /// A fresh id from the kernel's random number generator.
            ///
            /// # Errors
            /// When the kernel gives no random bytes.
            pub fn random() -> Result<Self, getrandom::Error> {
                random_hex().map(|hex| Self(hex.into()))
            }

            /// The 64 hexadecimal digits.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                check(text).map(|()| Self(text.into()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                check(&text).map(|()| Self(text.into()))
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

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        // As a map key it can be looked up by its text.
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

id!(
    /// The id of a pod sandbox.
    SandboxId
);
id!(
    /// The id of a container.
    ContainerId
);

fn check(text: &str) -> Result<(), IdError> {
    let hex = text.len() == ID_HEX_LEN && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if hex { Ok(()) } else { Err(IdError(text.chars().take(ID_HEX_LEN + 1).collect())) }
}

fn random_hex() -> Result<String, getrandom::Error> {
    let mut bytes = [0u8; ID_HEX_LEN / 2];
    getrandom::fill(&mut bytes)?;
    Ok(bytes
        .iter()
        .flat_map(|b| [b >> 4, b & 15])
        .map(|n| char::from(b"0123456789abcdef"[usize::from(n)]))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_ids_parse_and_differ() {
        let (a, b) = (SandboxId::random().unwrap(), SandboxId::random().unwrap());
        assert_ne!(a, b);
        assert_eq!(a, a.as_str().parse().unwrap());
    }

    #[test]
    fn what_is_no_id_is_refused() {
        let long = "a".repeat(65);
        for text in ["", "abc", &"A".repeat(64), &"g".repeat(64), &long, "../../../etc"] {
            assert!(text.parse::<ContainerId>().is_err(), "{text}");
        }
    }
}
