//! Reading a container's log file in the CRI's format, once or for as long as it grows.
//!
//! `<time> <stdout|stderr> <F|P>[:…] <content>\n`: F ends a line of the container, P does not.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

/// Bytes of one read.
const READ_BYTES: usize = 64 << 10;
/// Bytes of one entry; the daemon writes at most 1 MiB of content, and a longer one is no log of ours.
const ENTRY_BYTES_MAX: usize = (1 << 20) + 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// One entry, borrowed from its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    /// RFC 3339, as written.
    pub(crate) time: &'a str,
    pub(crate) stream: Stream,
    /// The container's line goes on in the next entry of the stream.
    pub(crate) partial: bool,
    pub(crate) content: &'a [u8],
}

impl<'a> Entry<'a> {
    /// `None` for a line that is no entry.
    pub(crate) fn parse(line: &'a [u8]) -> Option<Self> {
        let mut parts = line.splitn(4, |&byte| byte == b' ');
        let time = std::str::from_utf8(parts.next()?).ok()?;
        let stream = match parts.next()? {
            b"stdout" => Stream::Stdout,
            b"stderr" => Stream::Stderr,
            _ => return None,
        };
        let partial = match parts.next()?.split(|&byte| byte == b':').next()? {
            b"F" => false,
            b"P" => true,
            _ => return None,
        };
        Some(Self { time, stream, partial, content: parts.next()? })
    }
}

/// A place in a log file that may grow and be rotated.
#[derive(Debug)]
pub(crate) struct LogReader {
    path: PathBuf,
    file: Option<File>,
    offset: u64,
    /// The beginning of an entry whose end is not written yet.
    rest: Vec<u8>,
}

impl LogReader {
    /// From the beginning. The file need not exist yet.
    pub(crate) fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), file: None, offset: 0, rest: Vec::new() }
    }

    /// So that only the last `lines` entries that end a line are read.
    ///
    /// # Errors
    /// Of the reads.
    pub(crate) fn skip_to_last(&mut self, lines: usize) -> io::Result<()> {
        self.open()?;
        if let Some(file) = &self.file {
            self.offset = offset_of_last(file, lines)?;
        }
        Ok(())
    }

    /// Gives every complete entry that was written since the last call, through a rotation too.
    ///
    /// # Errors
    /// Of the reads, and of `sink`.
    pub(crate) fn poll<E: From<io::Error>>(
        &mut self,
        sink: &mut dyn FnMut(Entry<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.open()?;
        self.drain(sink)?;
        while self.is_rotated()? {
            // What was written between our read and the rename is still in the old file.
            self.drain(sink)?;
            (self.file, self.offset) = (None, 0);
            self.rest.clear();
            self.open()?;
            self.drain(sink)?;
        }
        Ok(())
    }

    fn open(&mut self) -> io::Result<()> {
        if self.file.is_none() {
            match File::open(&self.path) {
                Ok(file) => self.file = Some(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn is_rotated(&self) -> io::Result<bool> {
        let Some(file) = &self.file else { return Ok(false) };
        match std::fs::metadata(&self.path) {
            Ok(now) => {
                let ours = file.metadata()?;
                Ok((now.dev(), now.ino()) != (ours.dev(), ours.ino()))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn drain<E: From<io::Error>>(
        &mut self,
        sink: &mut dyn FnMut(Entry<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(file) = &self.file else { return Ok(()) };
        let mut chunk = vec![0; READ_BYTES];
        loop {
            let count = file.read_at(&mut chunk, self.offset)?;
            if count == 0 {
                return Ok(());
            }
            self.offset += count as u64;
            self.rest.extend_from_slice(&chunk[..count]);
            let mut start = 0;
            while let Some(end) = self.rest[start..].iter().position(|&byte| byte == b'\n') {
                if let Some(entry) = Entry::parse(&self.rest[start..start + end]) {
                    sink(entry)?;
                }
                start += end + 1;
            }
            self.rest.drain(..start);
            if self.rest.len() > ENTRY_BYTES_MAX {
                self.rest.clear();
            }
        }
    }
}

/// Where the last `lines` full lines begin, looking from the end. Partial entries belong to the line that they begin.
fn offset_of_last(file: &File, lines: usize) -> io::Result<u64> {
    let mut position = file.metadata()?.len();
    if lines == 0 {
        return Ok(position);
    }
    let mut tail: Vec<u8> = Vec::new();
    let mut chunk = vec![0; READ_BYTES];
    while position > 0 {
        let count = usize::try_from(position.min(READ_BYTES as u64)).unwrap_or(READ_BYTES);
        position -= count as u64;
        file.read_exact_at(&mut chunk[..count], position)?;
        tail.splice(..0, chunk[..count].iter().copied());
        if let Some(offset) = start_of_last(&tail, lines, if position == 0 { Tail::Whole } else { Tail::Cut })
        {
            return Ok(position + offset as u64);
        }
        if tail.len() > READ_BYTES * 1024 {
            return Ok(position);
        }
    }
    Ok(0)
}

/// How much of a file its end is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tail {
    Whole,
    Cut,
}

/// In the end of a file, where the last `lines` lines begin; `None` when more of the file is needed to tell.
fn start_of_last(tail: &[u8], lines: usize, is: Tail) -> Option<usize> {
    let ends: Vec<usize> =
        tail.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at).collect();
    let mut full = 0;
    // Each entry from the last to the first; the first of a tail may lack its beginning.
    for (index, end) in ends.iter().enumerate().rev() {
        let start = match index.checked_sub(1) {
            Some(before) => ends[before] + 1,
            None if is == Tail::Whole => 0,
            None => return None,
        };
        if Entry::parse(&tail[start..*end]).is_some_and(|entry| !entry.partial) {
            if full == lines {
                return Some(end + 1);
            }
            full += 1;
        }
    }
    (is == Tail::Whole).then_some(0)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn read(reader: &mut LogReader) -> Vec<String> {
        let mut lines = Vec::new();
        reader
            .poll::<io::Error>(&mut |entry| {
                lines.push(String::from_utf8_lossy(entry.content).into_owned());
                Ok(())
            })
            .unwrap();
        lines
    }

    #[test]
    fn entries_are_parsed() {
        let time = "2026-11-21T05:00:00.123456789Z";
        let entry = |stream, partial, content| Some(Entry { time, stream, partial, content });
        let table: &[(&str, Option<Entry<'_>>)] = &[
            ("stdout F hello  world ", entry(Stream::Stdout, false, b"hello  world ")),
            ("stderr P part", entry(Stream::Stderr, true, b"part")),
            ("stdout F:x:y tagged", entry(Stream::Stdout, false, b"tagged")),
            ("stdout F ", entry(Stream::Stdout, false, b"")),
            ("stdout F", None),
            ("stdin F x", None),
            ("stdout X x", None),
            ("", None),
        ];
        for (text, expected) in table {
            assert_eq!(Entry::parse(format!("{time} {text}").as_bytes()), *expected, "{text:?}");
        }
    }

    #[test]
    fn a_growing_file_is_followed_through_a_rotation() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut reader = LogReader::new(&path);
        assert!(read(&mut reader).is_empty(), "the file does not exist yet");
        let append = |text: &str| {
            File::options()
                .create(true)
                .append(true)
                .open(&path)
                .unwrap()
                .write_all(text.as_bytes())
                .unwrap();
        };
        append("t stdout F one\nt stdout F t");
        assert_eq!(read(&mut reader), ["one"]);
        append("wo\nno entry\n");
        assert_eq!(read(&mut reader), ["two"]);
        append("t stdout F last of the old\n");
        std::fs::rename(&path, dir.path().join("0.log.1")).unwrap();
        assert_eq!(read(&mut reader), ["last of the old"], "between rename and reopen");
        append("t stdout F new\n");
        assert_eq!(read(&mut reader), ["new"]);
    }

    #[test]
    fn the_last_lines_are_found_from_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let mut text = String::new();
        for number in 0..9000 {
            text.push_str(&format!("t stdout P {number}-\nt stdout F {number}\n"));
        }
        std::fs::write(&path, &text).unwrap();
        for (lines, expected) in [(0, 0), (1, 2), (8000, 16_000), (9000, 18_000), (10_000, 18_000)] {
            let mut reader = LogReader::new(&path);
            reader.skip_to_last(lines).unwrap();
            let read = read(&mut reader);
            assert_eq!(read.len(), expected, "{lines}");
            if lines > 0 {
                assert_eq!(read[0], format!("{}-", 9000 - lines.min(9000)));
            }
        }
    }
}
