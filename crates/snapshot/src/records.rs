//! What a layer remembers from unpacking until it is placed on a parent.
//!
//! All paths are real ones below the layer's root: no link, no `.`, no leading slash; the root itself is empty.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::Limits;
use crate::archive::Time;
use crate::error::{Result, SnapshotError};

/// What an inode carries beside its content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A directory of the layer.
#[derive(Debug)]
pub(crate) enum Directory {
    /// It has an entry.
    Given(Attributes),
    /// Something lies in it: it is the parent layer's directory, if that has one.
    Implied,
}

#[derive(Debug, Default)]
pub(crate) struct Records {
    pub(crate) dirs: BTreeMap<Vec<u8>, Directory>,
    /// What the layers below must not show.
    pub(crate) whiteouts: BTreeSet<Vec<u8>>,
    /// Directories of which the layers below must not show anything.
    pub(crate) opaques: BTreeSet<Vec<u8>>,
    /// Hard links to what this layer did not have yet: target by path and position in the archive.
    links: BTreeMap<Vec<u8>, (u64, Vec<u8>)>,
    links_seen: u64,
    pub(crate) xattrs_dropped: u64,
    bytes: usize,
}

/// Rough cost of a remembered path beside its bytes.
const OVERHEAD_BYTES: usize = 128;

impl Records {
    /// Accounts for something that will be remembered. `entry`: for the error.
    pub(crate) fn charge(&mut self, path: &[u8], more: usize, limits: &Limits) -> Result<()> {
        self.bytes = self.bytes.saturating_add(path.len() + more + OVERHEAD_BYTES);
        if self.bytes <= limits.remembered_bytes_max {
            return Ok(());
        }
        Err(SnapshotError::Limit {
            limit: "remembered_bytes_max",
            max: limits.remembered_bytes_max as u64,
            entry: String::from_utf8_lossy(path).into_owned(),
        })
    }

    /// What is remembered, in bytes, roughly.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// A directory had to be made for something in it.
    pub(crate) fn imply(&mut self, path: Vec<u8>) {
        self.dirs.entry(path).or_insert(Directory::Implied);
    }

    pub(crate) fn link(&mut self, path: Vec<u8>, target: Vec<u8>) {
        self.links_seen += 1;
        drop(self.links.insert(path, (self.links_seen, target)));
    }

    /// The links in the order of the archive.
    pub(crate) fn take_links(&mut self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut links: Vec<_> = std::mem::take(&mut self.links).into_iter().collect();
        links.sort_by_key(|(_, (position, _))| *position);
        links.into_iter().map(|(path, (_, target))| (path, target)).collect()
    }

    /// A later entry takes the place of `path`.
    pub(crate) fn replace(&mut self, path: &[u8]) {
        if !self.links.is_empty() {
            drop(self.links.remove(path));
        }
    }

    /// What was at `path` is removed, with all below it. Whiteouts stay: they speak of the layers below.
    pub(crate) fn forget(&mut self, path: &[u8]) {
        self.replace(path);
        drop(self.dirs.remove(path));
        for below in keys_below(&self.dirs, path) {
            drop(self.dirs.remove(&below));
        }
        for below in keys_below(&self.links, path) {
            drop(self.links.remove(&below));
        }
    }

    /// The directory `from` turned out to be `to`: all below it is there. What `to` has already wins.
    pub(crate) fn move_below(&mut self, from: &[u8], to: &[u8]) -> Vec<Vec<u8>> {
        let moved = |path: &[u8]| [to, &path[from.len()..]].concat();
        drop(self.dirs.remove(from));
        let mut implied = Vec::new();
        for path in keys_below(&self.dirs, from) {
            let Some(directory) = self.dirs.remove(&path) else { continue };
            if matches!(directory, Directory::Implied) {
                implied.push(moved(&path));
            }
            self.dirs.entry(moved(&path)).or_insert(directory);
        }
        for set in [&mut self.whiteouts, &mut self.opaques] {
            let (there, here): (BTreeSet<_>, _) =
                std::mem::take(set).into_iter().partition(|path| is_below(path, from));
            *set = here;
            set.extend(there.iter().map(|path| moved(path)));
        }
        for path in keys_below(&self.links, from) {
            if let Some(link) = self.links.remove(&path) {
                self.links.entry(moved(&path)).or_insert(link);
            }
        }
        implied
    }

    /// Whether the layers below show nothing at `path`, whatever they have: a directory above it is opaque or made anew.
    pub(crate) fn hides(&self, path: &[u8]) -> bool {
        if self.whiteouts.is_empty() && self.opaques.is_empty() {
            return false;
        }
        ancestors(path).any(|above| self.whiteouts.contains(above) || self.opaques.contains(above))
    }
}

/// The directories above a path, nearest first; the root, empty, is the last. The root has none.
pub(crate) fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::successors(parent(path), |path| parent(path))
}

/// The directory of a path; none for the root.
pub(crate) fn parent(path: &[u8]) -> Option<&[u8]> {
    if path.is_empty() {
        return None;
    }
    Some(path.iter().rposition(|&b| b == b'/').map_or(b"".as_slice(), |slash| &path[..slash]))
}

/// Last component of a path.
pub(crate) fn name(path: &[u8]) -> &[u8] {
    path.iter().rposition(|&b| b == b'/').map_or(path, |slash| &path[slash + 1..])
}

pub(crate) fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

fn is_below(path: &[u8], above: &[u8]) -> bool {
    above.is_empty() && !path.is_empty()
        || path.strip_prefix(above).is_some_and(|rest| rest.first() == Some(&b'/'))
}

fn keys_below<V>(map: &BTreeMap<Vec<u8>, V>, above: &[u8]) -> Vec<Vec<u8>> {
    let from = [above, b"/"].concat();
    let range = (Bound::Excluded(from.as_slice()), Bound::Unbounded);
    map.range::<[u8], _>(range)
        .map(|(path, _)| path)
        .take_while(|path| path.starts_with(&from))
        .cloned()
        .collect()
}
