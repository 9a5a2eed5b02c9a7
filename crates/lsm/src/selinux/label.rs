//! Labels and their parts: `user:role:type:level`.

use std::fmt;

use crisp_spec::SelinuxRequest;

use super::categories::CATEGORIES;
use crate::error::quote;
use crate::{LsmError, Result};

/// Bytes of one part of a label.
const PART_BYTES_MAX: usize = 256;

/// A label in its four parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Label {
    pub(super) user: String,
    pub(super) role: String,
    pub(super) typ: String,
    pub(super) level: String,
}

impl Label {
    /// # Errors
    /// [`LsmError::Policy`] for a text of fewer parts: labels come from the policy or from our own records.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        let mut next = || parts.next().filter(|part| !part.is_empty());
        match (next(), next(), next(), next()) {
            (Some(user), Some(role), Some(typ), Some(level)) => Ok(Self { user, role, typ, level }),
            _ => Err(LsmError::Policy(format!("{:?} is no label", quote(text)))),
        }
    }

    pub(super) fn with_level(&self, level: &str) -> Self {
        Self { level: level.to_owned(), ..self.clone() }
    }

    pub(super) fn with_type(&self, typ: &str) -> Self {
        Self { typ: typ.to_owned(), ..self.clone() }
    }

    /// Takes the parts that the request names.
    pub(super) fn replace(&mut self, request: &SelinuxRequest) {
        let parts = [
            (&mut self.user, &request.user),
            (&mut self.role, &request.role),
            (&mut self.typ, &request.typ),
            (&mut self.level, &request.level),
        ];
        for (part, wanted) in parts.into_iter().filter(|(_, wanted)| !wanted.is_empty()) {
            part.clone_from(wanted);
        }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}:{}", self.user, self.role, self.typ, self.level)
    }
}

/// Checks the parts of a label as a client names them; empty ones stay open.
///
/// # Errors
/// [`LsmError::Label`] for a user, role or type that is no word, and a level that is not `s0[-s0][:c1,c3.c5]`.
pub fn request(user: &str, role: &str, typ: &str, level: &str) -> Result<SelinuxRequest> {
    let refused = |field, value: &str, reason| Err(LsmError::Label { field, value: quote(value), reason });
    for (field, text) in [("user", user), ("role", role), ("type", typ)] {
        let word = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        if !word || text.len() > PART_BYTES_MAX {
            return refused(field, text, "no part of a label");
        }
    }
    if !level.is_empty() && !is_level(level) {
        return refused("level", level, "not like s0:c1,c2");
    }
    Ok(SelinuxRequest { user: user.into(), role: role.into(), typ: typ.into(), level: level.into() })
}

/// `s0[-s0][:c#(,c#|.c#)*]`
fn is_level(text: &str) -> bool {
    let (sensitivity, categories) = match text.split_once(':') {
        Some((sensitivity, categories)) => (sensitivity, Some(categories)),
        None => (text, None),
    };
    let category = |text: &str| super::categories::number(text).is_some_and(|number| number < CATEGORIES);
    matches!(sensitivity, "s0" | "s0-s0")
        && text.len() <= PART_BYTES_MAX
        && categories.is_none_or(|list| list.split([',', '.']).all(category))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_checked() {
        for good in ["", "s0", "s0:c1", "s0:c1,c5", "s0-s0:c0.c1023", "s0:c1,c3.c5"] {
            assert!(request("", "", "", good).is_ok(), "{good}");
        }
        for bad in [
            "s0,c4,c5", "s1", "s0:", "s0:c", "s0:c1024", "s0:c1,", "s0:c1:c2", "s0:C1", " s0", "s0:c+1",
            "s0:c1\n", "s0-s0-s0",
        ] {
            assert!(
                matches!(request("", "", "", bad), Err(LsmError::Label { field: "level", .. })),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn a_part_is_one_word() {
        assert!(request("system_u", "system_r", "my.type-2_t", "").is_ok());
        for bad in ["a:b", "a b", "a\0", "a\n", "ä", "\""] {
            assert!(request("", "", bad, "").is_err(), "{bad:?}");
        }
        assert!(request(&"u".repeat(PART_BYTES_MAX + 1), "", "", "").is_err());
    }

    #[test]
    fn labels_print_as_they_were_read() {
        let text = "system_u:system_r:container_t:s0:c1,c2";
        let label = Label::parse(text).unwrap();
        assert_eq!((label.typ.as_str(), label.level.as_str()), ("container_t", "s0:c1,c2"));
        assert_eq!(label.to_string(), text);
        for bad in ["", "a:b:c", "a::c:s0", "a:b:c:"] {
            assert!(Label::parse(bad).is_err(), "{bad:?}");
        }
    }
}
