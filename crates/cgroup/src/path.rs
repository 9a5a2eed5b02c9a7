use std::fmt;
use std::str::FromStr;

use crate::CgroupError;

/// Longest path in bytes; leaves room for the mount point and a file name below `PATH_MAX`.
pub const PATH_BYTES_MAX: usize = 2048;
/// Most elements of a path.
pub const PATH_DEPTH_MAX: usize = 32;
/// Longest element in bytes (`NAME_MAX`).
pub const NAME_BYTES_MAX: usize = 255;

/// Where a cgroup lies below the mount point of its hierarchy: absolute, without `.`, `..`, control characters or
/// doubled slashes, bounded. `/` is the root.
///
/// Elements that end in `.slice` or `.scope` are units of systemd: who asks for such a cgroup asks systemd to make it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CgroupPath(Box<str>);

impl CgroupPath {
    /// Checks and normalises `text` (doubled and trailing slashes go).
    ///
    /// # Errors
    /// [`CgroupError::Path`] with the reason.
    pub fn new(text: &str) -> Result<Self, CgroupError> {
        let refuse =
            |reason| Err(CgroupError::Path { path: text.chars().take(PATH_BYTES_MAX).collect(), reason });
        if !text.starts_with('/') {
            return refuse("is not absolute");
        }
        let names: Vec<&str> = text.split('/').filter(|name| !name.is_empty()).collect();
        if text.len() > PATH_BYTES_MAX || names.len() > PATH_DEPTH_MAX {
            return refuse("is too long");
        }
        if let Some(reason) = names.iter().find_map(|name| refusal(name)) {
            return refuse(reason);
        }
        Ok(Self(format!("/{}", names.join("/")).into()))
    }

    /// `/`.
    #[must_use]
    pub fn root() -> Self {
        Self("/".into())
    }

    /// The path of `name` below this one.
    ///
    /// # Errors
    /// [`CgroupError::Path`] when `name` is no single element, or the result is too long.
    pub fn join(&self, name: &str) -> Result<Self, CgroupError> {
        if name.is_empty() || name.contains('/') {
            return Err(CgroupError::Path {
                path: name.chars().take(NAME_BYTES_MAX).collect(),
                reason: "is no single name",
            });
        }
        Self::new(&format!("{}/{name}", self.0))
    }

    /// The path above, `None` for the root.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        let (parent, name) = self.0.rsplit_once('/')?;
        let parent = if parent.is_empty() { "/" } else { parent };
        (!name.is_empty()).then(|| Self(parent.into()))
    }

    /// With its leading slash.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is `/`.
    #[must_use]
    pub fn is_root(&self) -> bool {
        &*self.0 == "/"
    }

    /// As the kernel wants it below a directory descriptor: no leading slash, `.` for the root.
    pub(crate) fn relative(&self) -> &str {
        if self.is_root() { "." } else { &self.0[1..] }
    }
}

fn refusal(name: &str) -> Option<&'static str> {
    match name {
        "." | ".." => Some("contains . or .."),
        _ if name.len() > NAME_BYTES_MAX => Some("has too long an element"),
        _ if name.chars().any(char::is_control) => Some("contains a control character"),
        _ => None,
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for CgroupPath {
    type Err = CgroupError;
    fn from_str(text: &str) -> Result<Self, CgroupError> {
        Self::new(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_paths_are_normalised() {
        for (text, want) in
            [("/", "/"), ("/a", "/a"), ("//a///b/", "/a/b"), ("/kubepods.slice/", "/kubepods.slice")]
        {
            assert_eq!(CgroupPath::new(text).unwrap().as_str(), want);
        }
    }

    #[test]
    fn bad_paths_are_refused() {
        let (long, deep, name) = ("/a".repeat(1025), "/a".repeat(33), format!("/{}", "n".repeat(256)));
        for text in ["", "a", "a/b", "/..", "/a/../b", "/./a", "/a\nb", "/a\0", &long, &deep, &name] {
            let error = CgroupPath::new(text).unwrap_err();
            assert_eq!(error.kind(), crisp_domain::ErrorKind::Invalid, "{text:?}");
        }
    }

    #[test]
    fn join_and_parent_are_inverse() {
        let root = CgroupPath::new("/").unwrap();
        let pod = root.join("crisp").unwrap();
        assert_eq!(pod.as_str(), "/crisp");
        let leaf = pod.join("0123").unwrap();
        assert_eq!(
            (leaf.as_str(), leaf.parent(), pod.parent()),
            ("/crisp/0123", Some(pod.clone()), Some(root.clone()))
        );
        assert_eq!(root.parent(), None);
        for name in ["", "a/b", "..", "."] {
            assert!(pod.join(name).is_err(), "{name:?}");
        }
    }
}
