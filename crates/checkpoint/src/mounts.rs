//! The mounts of a restored container, compared with those that were requested.

use std::collections::HashMap;

use crate::error::{CheckpointError, Result};

/// One line of `/proc/<pid>/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where, as the container sees it.
    pub at: String,
    /// Type of the file system.
    pub kind: String,
    /// Nothing can be written: the mount or its file system is read-only.
    pub read_only: bool,
}

/// A mount that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own, named where it is set")]
pub struct Wanted {
    /// Where.
    pub at: String,
    /// Type of the file system; `None` is that of whatever is bound.
    pub kind: Option<String>,
    /// Whether it must be read-only.
    pub read_only: bool,
    /// What lies below may have mounts of its own.
    pub recursive: bool,
}

/// Reads `/proc/<pid>/mountinfo` (proc_pid_mountinfo(5)). Of several mounts on one place the last one counts.
///
/// # Errors
/// [`CheckpointError::NotRequested`] for a line that cannot be read.
pub fn parse(mountinfo: &str) -> Result<HashMap<String, Mount>> {
    let mut mounts = HashMap::new();
    for line in mountinfo.lines() {
        let mount = parse_line(line)
            .ok_or_else(|| CheckpointError::NotRequested(format!("its mount {line:?} cannot be read")))?;
        mounts.insert(mount.at.clone(), mount);
    }
    Ok(mounts)
}

fn parse_line(line: &str) -> Option<Mount> {
    let (mount, system) = line.split_once(" - ")?;
    let mount: Vec<&str> = mount.split(' ').collect();
    let system: Vec<&str> = system.split(' ').collect();
    let read_only = |options: &str| options.split(',').any(|option| option == "ro");
    Some(Mount {
        at: unescape(mount.get(4)?),
        kind: (*system.first()?).to_owned(),
        read_only: read_only(mount.get(5)?) || system.get(2).is_some_and(|options| read_only(options)),
    })
}

/// Blanks and backslashes are written as octal numbers.
fn unescape(text: &str) -> String {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.as_bytes();
    while let Some((&first, rest)) = bytes.split_first() {
        let number = (first == b'\\').then(|| rest.get(..3)).flatten();
        let byte = number.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        plain.push(byte.unwrap_or(first));
        bytes = if byte.is_some() { &rest[3..] } else { rest };
    }
    String::from_utf8_lossy(&plain).into_owned()
}

/// Checks that all that was asked for is there, no laxer, and nothing else.
///
/// # Errors
/// [`CheckpointError::NotRequested`].
pub fn check(found: &HashMap<String, Mount>, wanted: &[Wanted]) -> Result<()> {
    for want in wanted {
        let Some(mount) = found.get(&want.at) else {
            return Err(CheckpointError::NotRequested(format!("the mount {:?} is not there", want.at)));
        };
        if want.kind.as_ref().is_some_and(|kind| *kind != mount.kind) {
            return Err(CheckpointError::NotRequested(format!(
                "the mount {:?} is of type {}",
                want.at, mount.kind
            )));
        }
        if want.read_only && !mount.read_only {
            return Err(CheckpointError::NotRequested(format!("the mount {:?} is writable", want.at)));
        }
    }
    let below = |at: &str, of: &str| at.strip_prefix(of).is_some_and(|rest| rest.starts_with('/'));
    let expected =
        |at: &str| wanted.iter().any(|want| want.at == at || (want.recursive && below(at, &want.at)));
    match found.keys().find(|at| !expected(at)) {
        Some(stray) => Err(CheckpointError::NotRequested(format!("it has a mount at {stray:?}"))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTINFO: &str = "\
        10 9 0:30 / / rw,relatime - overlay overlay rw,lowerdir=a\n\
        11 10 0:31 / /proc rw,nosuid - proc proc rw\n\
        12 11 0:31 /sys /proc/sys ro,nosuid - proc proc rw\n\
        13 10 8:1 /data /my\\040data rw - ext4 /dev/sda1 ro\n\
        14 13 8:1 /x /my\\040data/x rw - ext4 /dev/sda1 rw\n";

    #[expect(clippy::fn_params_excessive_bools, reason = "a table's columns")]
    fn want(at: &str, kind: Option<&str>, read_only: bool, recursive: bool) -> Wanted {
        Wanted { at: at.to_owned(), kind: kind.map(str::to_owned), read_only, recursive }
    }

    fn all() -> Vec<Wanted> {
        vec![
            want("/", Some("overlay"), false, false),
            want("/proc", Some("proc"), false, false),
            want("/proc/sys", None, true, false),
            want("/my data", None, true, true),
        ]
    }

    #[test]
    fn what_was_asked_for_is_there_and_nothing_else() {
        let found = parse(MOUNTINFO).unwrap();
        check(&found, &all()).unwrap();
        let cases = [
            (3, want("/my data", None, true, false), "/my data/x"),
            (2, want("/proc/sys", Some("tmpfs"), true, false), "type proc"),
            (1, want("/proc", None, true, false), "writable"),
            (1, want("/sys", None, false, false), "not there"),
        ];
        for (at, other, text) in cases {
            let mut wanted = all();
            wanted[at] = other;
            let error = check(&found, &wanted).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
        assert!(parse("nonsense").is_err());
    }
}
