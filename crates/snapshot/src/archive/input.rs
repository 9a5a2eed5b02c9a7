//! The stream: buffered, bounded, hashed, counted.

use std::io::{ErrorKind, Read};

use sha2::{Digest, Sha256};

use super::header::{BLOCK, Block};
use crate::error::{Result, SnapshotError};

/// Large enough that small files are written straight from it, small enough for the cache.
const BUFFER_BYTES: usize = 256 << 10;

pub(super) struct Input<R> {
    reader: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// Bytes read from the reader.
    read: u64,
    read_max: u64,
    hash: Sha256,
}

impl<R: Read> Input<R> {
    pub(super) fn new(reader: R, read_max: u64) -> Self {
        let buffer = vec![0; BUFFER_BYTES].into_boxed_slice();
        Self { reader, buffer, start: 0, end: 0, read: 0, read_max, hash: Sha256::new() }
    }

    /// Position in the stream of the next byte.
    pub(super) fn offset(&self) -> u64 {
        self.read - (self.end - self.start) as u64
    }

    /// Between 1 and `max` bytes. The end of the stream is an error: the archive promised more.
    pub(super) fn take(&mut self, max: u64) -> Result<&[u8]> {
        if self.start == self.end && !self.fill()? {
            return Err(self.truncated());
        }
        let len = usize::try_from(max).unwrap_or(usize::MAX).min(self.end - self.start);
        self.start += len;
        Ok(&self.buffer[self.start - len..self.start])
    }

    pub(super) fn skip(&mut self, mut bytes: u64) -> Result<()> {
        while bytes > 0 {
            bytes -= self.take(bytes)?.len() as u64;
        }
        Ok(())
    }

    /// The next block; none at the end of the stream.
    pub(super) fn block(&mut self) -> Result<Option<Block>> {
        if self.start == self.end && !self.fill()? {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            let bytes = self.take((BLOCK - filled) as u64)?;
            block[filled..filled + bytes.len()].copy_from_slice(bytes);
            filled += bytes.len();
        }
        Ok(Some(block))
    }

    pub(super) fn drain(&mut self) -> Result<()> {
        while self.fill()? {}
        Ok(())
    }

    pub(super) fn into_hash(self) -> Sha256 {
        self.hash
    }

    /// Replaces the buffer, of which nothing is left. False at the end of the stream.
    fn fill(&mut self) -> Result<bool> {
        (self.start, self.end) = (0, 0);
        let len = loop {
            match self.reader.read(&mut self.buffer) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(source) => return Err(SnapshotError::Stream { offset: self.read, source }),
                Ok(len) => break len,
            }
        };
        self.read += len as u64;
        if self.read > self.read_max {
            return Err(SnapshotError::Limit {
                limit: "stream_bytes_max",
                max: self.read_max,
                entry: String::new(),
            });
        }
        self.end = len;
        self.hash.update(&self.buffer[..len]);
        Ok(len > 0)
    }

    fn truncated(&self) -> SnapshotError {
        SnapshotError::Malformed { offset: self.read, reason: "it breaks off" }
    }
}
