//! How the mounts of this machine propagate, from `mountinfo` (proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::error::SpecError;
use crate::input::Propagation;

/// Of the calling thread: threads may have mount namespaces of their own.
const MOUNTINFO: &str = "/proc/thread-self/mountinfo";
/// Bytes of the mount table that are read: room for about 300,000 mounts.
const MOUNTINFO_BYTES_MAX: u64 = 64 << 20;

/// The mounts that the calling thread sees.
#[derive(Debug, Clone, Default)]
pub struct MountTable(Vec<MountEntry>);

#[derive(Debug, Clone)]
struct MountEntry {
    mount_point: PathBuf,
    peers: Peers,
}

/// What a mount has to do with others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Peers {
    None,
    /// Mounts elsewhere show here.
    Master,
    /// And mounts here show elsewhere.
    Shared,
}

impl MountTable {
    /// Reads the table of the calling thread.
    ///
    /// # Errors
    /// [`SpecError::Host`] when it cannot be read; [`SpecError::TooMany`] when it is longer than 64 MiB.
    pub fn read() -> Result<Self, SpecError> {
        let failed = |source| SpecError::Host { path: MOUNTINFO.into(), source };
        let mut text = Vec::new();
        let file = File::open(MOUNTINFO).map_err(failed)?;
        let read = file.take(MOUNTINFO_BYTES_MAX + 1).read_to_end(&mut text).map_err(failed)?;
        if read as u64 > MOUNTINFO_BYTES_MAX {
            return Err(SpecError::TooMany { what: "bytes of the mount table", max: 64 << 20 });
        }
        Ok(Self::parse(&text))
    }

    /// Parses the table's text; a line that cannot be read is left out.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        Self(text.split(|b| *b == b'\n').filter_map(entry).collect())
    }

    /// The mount that `path` lies on: absolute, without links. Of several on one another, the uppermost.
    fn of(&self, path: &Path) -> Option<&MountEntry> {
        let depth = |entry: &&MountEntry| entry.mount_point.components().count();
        // max_by_key gives the last of equals: mounts are listed in the order they were made.
        self.0.iter().filter(|entry| path.starts_with(&entry.mount_point)).max_by_key(depth)
    }

    /// Whether `source` (absolute, without links) lies on a mount that propagates as `wanted` needs.
    ///
    /// # Errors
    /// [`SpecError::Propagation`] when it does not.
    pub fn check(&self, source: &Path, wanted: Propagation) -> Result<(), SpecError> {
        let entry = self.of(source);
        let peers = entry.map_or(Peers::None, |entry| entry.peers);
        let refused = |wanted| {
            let mount_point = entry.map_or_else(|| PathBuf::from("/"), |entry| entry.mount_point.clone());
            Err(SpecError::Propagation { path: source.into(), mount_point, wanted })
        };
        match wanted {
            Propagation::HostToContainer if peers == Peers::None => refused("shared or slave"),
            Propagation::Bidirectional if peers != Peers::Shared => refused("shared"),
            _ => Ok(()),
        }
    }
}

/// `id parent major:minor root mount-point options [optional fields] - type source super-options`.
fn entry(line: &[u8]) -> Option<MountEntry> {
    let mut fields = line.split(|b| *b == b' ');
    let mount_point = PathBuf::from(OsString::from_vec(unescape(fields.nth(4)?)));
    let optional: Vec<&[u8]> = fields.skip(1).take_while(|field| *field != b"-").collect();
    let tagged = |tag: &[u8]| optional.iter().any(|field| field.starts_with(tag));
    let peers = match (tagged(b"shared:"), tagged(b"master:")) {
        (true, _) => Peers::Shared,
        (false, true) => Peers::Master,
        (false, false) => Peers::None,
    };
    Some(MountEntry { mount_point, peers })
}

/// `\040` and the like: the kernel writes space, tab, line end and backslash as three octal digits.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        match octal(rest) {
            Some(byte) => {
                plain.push(byte);
                rest = &rest[4..];
            }
            None => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

fn octal(text: &[u8]) -> Option<u8> {
    let digits = text.strip_prefix(b"\\")?.get(..3)?;
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
22 1 254:1 / / rw,relatime - ext4 /dev/root rw
30 22 0:25 / /var rw,relatime shared:5 - ext4 /dev/root rw
31 30 0:26 / /var/lib/slave rw master:5 - tmpfs tmpfs rw
32 30 0:27 / /var/lib/both rw shared:9 master:5 - tmpfs tmpfs rw
33 30 0:28 / /var/private rw - tmpfs tmpfs rw
34 30 0:29 / /var/a\\040b rw shared:11 - tmpfs tmpfs rw
35 33 0:30 / /var/private rw shared:12 - tmpfs tmpfs rw
not a line
";

    #[test]
    fn sources_must_propagate_as_requested() {
        use Propagation::{Bidirectional, HostToContainer, Private};
        let table = MountTable::parse(TABLE);
        let cases = [
            ("/etc", Private, true),
            ("/etc", HostToContainer, false),
            ("/etc", Bidirectional, false),
            ("/var/x", HostToContainer, true),
            ("/var/x", Bidirectional, true),
            ("/var/lib/slave/x", HostToContainer, true),
            ("/var/lib/slave/x", Bidirectional, false),
            ("/var/lib/both", Bidirectional, true),
            ("/var/a b/c", Bidirectional, true),
            // Two mounts at one place: the upper one counts.
            ("/var/private/x", Bidirectional, true),
            // A name that only begins alike is another path.
            ("/varying", HostToContainer, false),
        ];
        for (path, wanted, fine) in cases {
            assert_eq!(table.check(Path::new(path), wanted).is_ok(), fine, "{path} {wanted:?}");
        }
    }

    #[test]
    fn the_kernels_own_table_is_read() {
        let table = MountTable::read().unwrap();
        assert_eq!(table.of(Path::new("/proc/self")).unwrap().mount_point, Path::new("/proc"));
    }
}
