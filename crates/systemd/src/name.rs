//! Names of slices and where they lie.

use std::fmt;

use crate::{Result, SystemdError};

/// Longest unit name in bytes (`UNIT_NAME_MAX` with its end).
pub const UNIT_NAME_BYTES_MAX: usize = 255;
const SUFFIX: &str = ".slice";
/// The root slice.
const ROOT: &str = "-.slice";
/// Controllers whose files share a cgroup's directory with its children (`cg_needs_escape`).
const CONTROLLERS: [&str; 9] =
    ["cpu", "cpuacct", "cpuset", "io", "blkio", "memory", "devices", "pids", "bpf-firewall"];

/// A slice unit, such as `kubepods-burstable.slice`. Its dashes are its place: that one lies in `kubepods.slice`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice(Box<str>);

impl Slice {
    /// Checks a unit name.
    ///
    /// # Errors
    /// [`SystemdError::Name`] with the reason.
    ///
    /// Source: systemd.slice(5), systemd.unit(5).
    pub fn parse(name: &str) -> Result<Self> {
        let refuse = |reason| Err(SystemdError::Name { name: name.chars().take(80).collect(), reason });
        let Some(stem) = name.strip_suffix(SUFFIX) else { return refuse("does not end in .slice") };
        if name.len() > UNIT_NAME_BYTES_MAX {
            return refuse("is too long");
        }
        if name == ROOT {
            return Ok(Self(name.into()));
        }
        if !stem.bytes().all(|byte| byte.is_ascii_alphanumeric() || b":_.\\-".contains(&byte)) {
            return refuse("has a character that no unit name may have");
        }
        if stem.split('-').any(str::is_empty) {
            return refuse("has an empty part between its dashes");
        }
        Ok(Self(name.into()))
    }

    /// The slice that a path such as `/kubepods.slice/kubepods-pod1.slice` ends with: its last element alone counts.
    ///
    /// # Errors
    /// As [`Slice::parse`].
    pub fn of_path(path: &str) -> Result<Self> {
        Self::parse(path.trim_end_matches('/').rsplit('/').next().unwrap_or_default())
    }

    /// The slice `name` in this one; `name` may have dashes.
    ///
    /// # Errors
    /// As [`Slice::parse`].
    pub fn child(&self, name: &str) -> Result<Self> {
        match self.stem() {
            "-" => Self::parse(&format!("{name}{SUFFIX}")),
            stem => Self::parse(&format!("{stem}-{name}{SUFFIX}")),
        }
    }

    /// Its cgroup: `a-b.slice` lies at `/a.slice/a-b.slice`, the root slice at `/`.
    #[must_use]
    pub fn cgroup(&self) -> String {
        if &*self.0 == ROOT {
            return "/".to_owned();
        }
        let (mut path, mut stem) = (String::new(), String::new());
        for part in self.stem().split('-') {
            if !stem.is_empty() {
                stem.push('-');
            }
            stem.push_str(part);
            path.push('/');
            path.push_str(&escaped(&format!("{stem}{SUFFIX}")));
        }
        path
    }

    /// The unit's name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn stem(&self) -> &str {
        self.0.strip_suffix(SUFFIX).unwrap_or(&self.0)
    }
}

impl fmt::Display for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A unit's directory: names that the kernel could take for one of its own files get an underscore in front.
fn escaped(name: &str) -> String {
    let file = name.starts_with(['_', '.'])
        || name.starts_with("cgroup.")
        || name.rsplit_once('.').is_some_and(|(stem, _)| CONTROLLERS.contains(&stem));
    if file { format!("_{name}") } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_slice_lies_in_those_that_its_dashes_name() {
        for (name, path) in [
            ("-.slice", "/"),
            ("system.slice", "/system.slice"),
            (
                "kubepods-burstable-pod1_2.slice",
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice",
            ),
            ("memory.slice", "/_memory.slice"),
            ("cgroup.x.slice", "/_cgroup.x.slice"),
            ("_a.slice", "/__a.slice"),
            ("memory-a.slice", "/_memory.slice/memory-a.slice"),
        ] {
            assert_eq!(Slice::parse(name).unwrap().cgroup(), path);
        }
    }

    #[test]
    fn what_names_no_slice_is_refused() {
        let long = format!("{}.slice", "a".repeat(250));
        for name in [
            "",
            ".slice",
            "a",
            "a.scope",
            "-a.slice",
            "a-.slice",
            "a--b.slice",
            "--.slice",
            "a/b.slice",
            "a b.slice",
            "ü.slice",
            "a\n.slice",
            "..slice ",
            &long,
        ] {
            let refused = Slice::parse(name);
            assert_eq!(refused.unwrap_err().kind(), crisp_domain::ErrorKind::Invalid, "{name:?}");
        }
    }

    #[test]
    fn only_the_last_element_of_a_path_counts() {
        for path in ["/kubepods.slice/kubepods-pod1.slice", "kubepods-pod1.slice", "/x/kubepods-pod1.slice/"]
        {
            assert_eq!(Slice::of_path(path).unwrap().as_str(), "kubepods-pod1.slice");
        }
        assert!(Slice::of_path("/kubepods.slice/pod1").is_err());
        assert!(Slice::of_path("/").is_err());
    }

    #[test]
    fn children_carry_their_parents_name() {
        let system = Slice::parse("system.slice").unwrap();
        assert_eq!(
            system.child("crisp-1").unwrap().cgroup(),
            "/system.slice/system-crisp.slice/system-crisp-1.slice"
        );
        assert_eq!(Slice::parse("-.slice").unwrap().child("a").unwrap().as_str(), "a.slice");
        assert!(system.child("").is_err());
    }

    proptest! {
        #[test]
        fn a_checked_name_gives_a_plain_path(name in "[a-z0-9_.:-]{0,40}\\.slice") {
            if let Ok(slice) = Slice::parse(&name) {
                let path = slice.cgroup();
                prop_assert!(path.starts_with('/') && !path.contains("//"));
                prop_assert!(path.split('/').all(|part| part != ".." && part != "."));
                if name != ROOT {
                    prop_assert!(path.ends_with(&name));
                }
            }
        }
    }
}
