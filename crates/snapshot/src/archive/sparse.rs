//! Maps of sparse files: which runs of the file the stored bytes are.

use super::header::{BLOCK, Block, unsigned};
use super::pax::decimal;

/// A run of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// The part of a map that an old GNU header holds.
pub(super) struct OldGnu {
    pub(super) size: u64,
    pub(super) pieces: Vec<Piece>,
    /// Whether another block of the map follows.
    pub(super) more: bool,
}

const PIECE_BYTES: usize = 24;

/// Type `S`: four pieces in the header at 386, "more" at 482, the apparent size at 483.
pub(super) fn old_gnu(block: &Block) -> Result<OldGnu, &'static str> {
    let mut pieces = Vec::new();
    push_pieces(&block[386..482], &mut pieces)?;
    Ok(OldGnu { size: unsigned(&block[483..495])?, pieces, more: block[482] != 0 })
}

/// A block of the map behind the header: 21 pieces, "more" at 504.
pub(super) fn old_gnu_more(block: &Block, pieces: &mut Vec<Piece>) -> Result<bool, &'static str> {
    push_pieces(&block[..504], pieces)?;
    Ok(block[504] != 0)
}

fn push_pieces(table: &[u8], pieces: &mut Vec<Piece>) -> Result<(), &'static str> {
    for row in table.chunks_exact(PIECE_BYTES) {
        // An unused row ends the table.
        if row[0] == 0 {
            break;
        }
        pieces.push(Piece { offset: unsigned(&row[..12])?, len: unsigned(&row[12..])? });
    }
    Ok(())
}

/// Pieces must follow each other, lie in the file, and account for all stored bytes.
pub(super) fn check(pieces: &[Piece], size: u64, stored: u64) -> Result<(), &'static str> {
    let (mut end, mut sum) = (0u64, 0u64);
    for piece in pieces {
        if piece.offset < end {
            return Err("a sparse map overlaps itself");
        }
        end = piece.offset.checked_add(piece.len).ok_or("a sparse map is out of range")?;
        sum = sum.checked_add(piece.len).ok_or("a sparse map is out of range")?;
    }
    if end > size {
        return Err("a sparse map exceeds its file");
    }
    if sum == stored { Ok(()) } else { Err("a sparse map does not fit its data") }
}

/// The lines of form 1.0: a count, then that many offsets and lengths.
#[derive(Default)]
pub(super) struct Lines {
    line: Vec<u8>,
    count: Option<u64>,
    offset: Option<u64>,
    pieces: Vec<Piece>,
}

/// Digits of a 64-bit number.
const LINE_BYTES_MAX: usize = 20;

impl Lines {
    pub(super) fn push(&mut self, byte: u8) -> Result<(), &'static str> {
        if byte != b'\n' {
            self.line.push(byte);
            return if self.line.len() > LINE_BYTES_MAX {
                Err("a sparse map has a long line")
            } else {
                Ok(())
            };
        }
        let number = decimal(&self.line)?.ok_or("a sparse map has an empty line")?;
        self.line.clear();
        match (self.count, self.offset.take()) {
            (None, _) => self.count = Some(number),
            (Some(_), None) => self.offset = Some(number),
            (Some(_), Some(offset)) => self.pieces.push(Piece { offset, len: number }),
        }
        Ok(())
    }

    pub(super) fn complete(&self) -> bool {
        self.count == Some(self.pieces.len() as u64) && self.offset.is_none()
    }

    pub(super) fn pieces(&self) -> usize {
        self.pieces.len()
    }

    pub(super) fn into_pieces(self) -> Vec<Piece> {
        self.pieces
    }
}

const _: () = assert!(504 % PIECE_BYTES == 0 && 504 < BLOCK);
