//! Reads tar archives, trusting nothing.
//!
//! The stream goes by once: headers of the v7, ustar, GNU and PAX forms, GNU sparse files in all four of their forms. Every byte up
//! to the end of the stream, also behind the end of the archive, is hashed, for the diff id covers them. Nothing is held but
//! one buffer and the bounded extensions of one entry.
//!
//! Sources: POSIX.1-2017 `pax`; GNU tar manual, "Basic Tar Format", "Storing Sparse Files".

mod header;
mod input;
mod pax;
mod sparse;

use std::io::Read;

use sha2::Sha256;

use crate::Limits;
use crate::error::{Result, SnapshotError};
use header::{BLOCK, Block, KIND_AT, Raw};
use input::Input;
use pax::Pax;
use sparse::Piece;

/// Extension headers that one entry may have: each kind once, and a global one.
const EXTENSIONS_MAX: usize = 8;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    HardLink,
    Symlink,
    Char,
    Block,
    Directory,
    Fifo,
}

/// Seconds since the epoch, which may lie before it, and nanoseconds above that.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Time {
    pub(crate) secs: i64,
    pub(crate) nanos: u32,
}

/// One entry, extensions applied.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    /// Permission bits, setuid, setgid, sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    pub(crate) mtime: Time,
    /// Apparent size in bytes, of a file.
    pub(crate) size: u64,
    /// Target of a link.
    pub(crate) link: Vec<u8>,
    /// Major and minor number of a device.
    pub(crate) device: (u64, u64),
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Whether [`Entry::size`] may exceed the data that follows.
    pub(crate) sparse: bool,
}

/// A run of a file's bytes.
pub(crate) struct Chunk<'a> {
    pub(crate) offset: u64,
    pub(crate) bytes: &'a [u8],
}

/// A tar archive being read.
pub(crate) struct Archive<'a, R> {
    input: Input<R>,
    limits: &'a Limits,
    data: Data,
}

/// What is left of the current entry.
#[derive(Default)]
struct Data {
    /// Bytes in the stream.
    left: u64,
    /// Zeros up to the next block.
    padding: u64,
    /// Where the bytes go, last piece first. A plain file is one piece.
    pieces: Vec<Piece>,
}

#[derive(Default)]
struct Extensions {
    pax: Option<Pax>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl<'a, R: Read> Archive<'a, R> {
    pub(crate) fn new(reader: R, limits: &'a Limits) -> Self {
        Self { input: Input::new(reader, limits.stream_bytes()), limits, data: Data::default() }
    }

    /// The next entry; what is left of the current one is skipped. None at the end of the archive.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        self.input.skip(std::mem::take(&mut self.data.left))?;
        self.input.skip(std::mem::take(&mut self.data.padding))?;
        self.data.pieces.clear();
        let mut extensions = Extensions::default();
        for _ in 0..=EXTENSIONS_MAX {
            let Some(block) = self.header_block()? else {
                return if extensions.is_empty() {
                    Ok(None)
                } else {
                    Err(self.malformed("it ends after an extension"))
                };
            };
            let raw = Raw::parse(&block).map_err(|reason| self.malformed(reason))?;
            match raw.kind {
                b'x' | b'X' => extensions.pax = Some(self.pax(&raw)?),
                b'g' => self.skip_global(&raw)?,
                b'L' => extensions.long_name = Some(self.long(&raw)?),
                b'K' => extensions.long_link = Some(self.long(&raw)?),
                _ => return self.entry(&block, raw, extensions).map(Some),
            }
        }
        Err(self.malformed("one entry has too many extension headers"))
    }

    /// The next run of the current file's bytes; none at its end.
    pub(crate) fn data(&mut self) -> Result<Option<Chunk<'_>>> {
        while self.data.pieces.last().is_some_and(|piece| piece.len == 0) {
            self.data.pieces.pop();
        }
        let Some(piece) = self.data.pieces.last_mut() else { return Ok(None) };
        let bytes = self.input.take(piece.len)?;
        let len = bytes.len() as u64;
        let offset = piece.offset;
        piece.offset += len;
        piece.len -= len;
        self.data.left -= len;
        Ok(Some(Chunk { offset, bytes }))
    }

    /// Reads the stream to its end and gives its digest.
    pub(crate) fn finish(mut self) -> Result<Sha256> {
        self.input.drain()?;
        Ok(self.input.into_hash())
    }

    /// The next header, or none at the end: two blocks of zeros, or the end of the stream, as other readers take it; the digest
    /// tells whether something is missing.
    fn header_block(&mut self) -> Result<Option<Block>> {
        let Some(block) = self.input.block()? else { return Ok(None) };
        if block != [0; BLOCK] {
            return Ok(Some(block));
        }
        match self.input.block()? {
            None => Ok(None),
            Some(second) if second == [0; BLOCK] => Ok(None),
            Some(_) => Err(self.malformed("a block of zeros stands between entries")),
        }
    }

    fn entry(&mut self, block: &Block, raw: Raw, extensions: Extensions) -> Result<Entry> {
        let pax = extensions.pax.unwrap_or_default();
        let path = pax.path.or(extensions.long_name).unwrap_or(raw.path);
        let kind = kind(raw.kind, &path).ok_or_else(|| self.malformed("an entry has an unknown type"))?;
        let link = pax.linkpath.or(extensions.long_link).unwrap_or(raw.link);
        let mut entry = Entry {
            path,
            kind,
            mode: raw.mode,
            uid: pax.uid.unwrap_or(raw.uid),
            gid: pax.gid.unwrap_or(raw.gid),
            mtime: pax.mtime.unwrap_or(Time { secs: raw.mtime, nanos: 0 }),
            size: 0,
            link,
            device: raw.device,
            xattrs: pax.xattrs,
            sparse: false,
        };
        if kind == Kind::File {
            // A PAX size belongs to this entry's data alone, never to an extension between the two.
            let stored = pax.size.unwrap_or(raw.size);
            self.file_data(&mut entry, block, stored, pax.sparse)?;
        }
        Ok(entry)
    }

    fn file_data(
        &mut self,
        entry: &mut Entry,
        block: &Block,
        stored: u64,
        sparse: pax::Sparse,
    ) -> Result<()> {
        self.data.left = stored;
        self.data.padding = padding(stored);
        let map = if block[KIND_AT] == b'S' {
            Some(self.old_gnu_map(block)?)
        } else {
            self.pax_map(entry, sparse)?
        };
        let Some((size, mut pieces)) = map else {
            entry.size = stored;
            self.data.pieces.push(Piece { offset: 0, len: stored });
            return Ok(());
        };
        entry.size = size;
        entry.sparse = true;
        sparse::check(&pieces, size, self.data.left).map_err(|reason| self.malformed(reason))?;
        pieces.reverse();
        self.data.pieces = pieces;
        Ok(())
    }

    fn old_gnu_map(&mut self, block: &Block) -> Result<(u64, Vec<Piece>)> {
        let map = sparse::old_gnu(block).map_err(|reason| self.malformed(reason))?;
        let (size, mut pieces, mut more) = (map.size, map.pieces, map.more);
        while more {
            let block = self.input.block()?.ok_or_else(|| self.malformed("it ends inside a sparse map"))?;
            more = sparse::old_gnu_more(&block, &mut pieces).map_err(|reason| self.malformed(reason))?;
            self.check_pieces(pieces.len())?;
        }
        Ok((size, pieces))
    }

    /// The map of a PAX sparse file (forms 0.0, 0.1 and 1.0), none for a plain one.
    fn pax_map(&mut self, entry: &mut Entry, sparse: pax::Sparse) -> Result<Option<(u64, Vec<Piece>)>> {
        if let Some(name) = sparse.name {
            entry.path = name;
        }
        if sparse.major == Some(1) {
            let size = sparse.size.ok_or_else(|| self.malformed("a sparse file has no size"))?;
            let pieces = self.map_in_data()?;
            return Ok(Some((size, pieces)));
        }
        let Some(size) = sparse.size else { return Ok(None) };
        if sparse.major.is_some_and(|major| major != 0) {
            return Err(self.malformed("a sparse file has an unknown form"));
        }
        self.check_pieces(sparse.map.len())?;
        Ok(Some((size, sparse.map)))
    }

    /// Form 1.0 keeps its map in front of the data: decimal lines, filled up to a block.
    fn map_in_data(&mut self) -> Result<Vec<Piece>> {
        let mut lines = sparse::Lines::default();
        loop {
            let block = self.data_block()?;
            for byte in block {
                lines.push(byte).map_err(|reason| self.malformed(reason))?;
                self.check_pieces(lines.pieces())?;
                if lines.complete() {
                    return Ok(lines.into_pieces());
                }
            }
        }
    }

    fn data_block(&mut self) -> Result<Block> {
        if self.data.left < BLOCK as u64 {
            return Err(self.malformed("a sparse map is longer than its file"));
        }
        self.data.left -= BLOCK as u64;
        self.input.block()?.ok_or_else(|| self.malformed("it ends inside a sparse map"))
    }

    fn check_pieces(&self, pieces: usize) -> Result<()> {
        let max = self.limits.sparse_pieces_max;
        if pieces <= max {
            return Ok(());
        }
        Err(SnapshotError::Limit { limit: "sparse_pieces_max", max: max as u64, entry: String::new() })
    }

    fn pax(&mut self, raw: &Raw) -> Result<Pax> {
        let content = self.extension(raw)?;
        Pax::parse(&content, self.limits.xattr_bytes_max).map_err(|refusal| match refusal {
            pax::Refusal::Malformed(reason) => self.malformed(reason),
            pax::Refusal::Xattrs => SnapshotError::Limit {
                limit: "xattr_bytes_max",
                max: self.limits.xattr_bytes_max as u64,
                entry: String::from_utf8_lossy(&raw.path).into_owned(),
            },
        })
    }

    /// A global header speaks of all entries that follow, a commit id for example; as other runtimes we take nothing from it.
    fn skip_global(&mut self, raw: &Raw) -> Result<()> {
        self.extension(raw).map(drop)
    }

    fn long(&mut self, raw: &Raw) -> Result<Vec<u8>> {
        let mut content = self.extension(raw)?;
        if let Some(end) = content.iter().position(|&b| b == 0) {
            content.truncate(end);
        }
        Ok(content)
    }

    fn extension(&mut self, raw: &Raw) -> Result<Vec<u8>> {
        let max = self.limits.extension_bytes_max as u64;
        if raw.size > max {
            return Err(SnapshotError::Limit { limit: "extension_bytes_max", max, entry: String::new() });
        }
        let mut content = Vec::new();
        let mut left = raw.size;
        while left > 0 {
            let bytes = self.input.take(left)?;
            left -= bytes.len() as u64;
            content.extend_from_slice(bytes);
        }
        self.input.skip(padding(raw.size))?;
        Ok(content)
    }

    fn malformed(&self, reason: &'static str) -> SnapshotError {
        SnapshotError::Malformed { offset: self.input.offset(), reason }
    }
}

impl Extensions {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.long_name.is_none() && self.long_link.is_none()
    }
}

fn padding(size: u64) -> u64 {
    let block = BLOCK as u64;
    (block - size % block) % block
}

fn kind(raw: u8, path: &[u8]) -> Option<Kind> {
    Some(match raw {
        // Before POSIX a directory was a file whose name ends in a slash.
        0 | b'0' if path.last() == Some(&b'/') => Kind::Directory,
        0 | b'0' | b'7' | b'S' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::Char,
        b'4' => Kind::Block,
        b'5' => Kind::Directory,
        b'6' => Kind::Fifo,
        _ => return None,
    })
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
