//! A container's output on its way into the log: pipes or a terminal in, one file out.
//!
//! Reads are large and entries are written in batches of whole entries, one `write` each, with one look at the clock per read.
//! Nothing that fails on the file's side stops the reading: a workload never waits for a full disk.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Instant;

use crisp_domain::Timestamp;

use crate::error::{Result, Step as _};
use crate::log::{self, LINE_BYTES_DEFAULT, LINE_BYTES_MAX, Stream, Time};

/// One read: what a pipe holds.
pub(crate) const READ_BYTES: usize = 64 * 1024;
/// A batch is written when it has this many bytes.
const WRITE_BYTES: usize = 256 * 1024;
/// What is read at most after a container's init has exited: others may still hold the pipe, and write for ever.
const DRAIN_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Mode of log files and of the folders made for them.
const LOG_MODE: u32 = 0o640;
const LOG_DIR_MODE: u32 = 0o755;

/// Buffers that all streams of the shim share; they are given back when nothing was read for a while.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Scratch {
    /// Room for `len` bytes of input.
    pub(crate) fn input(&mut self, len: usize) -> &mut [u8] {
        if self.input.len() < len {
            self.input.resize(len, 0);
        }
        &mut self.input[..len]
    }

    /// Gives the memory back.
    pub(crate) fn release(&mut self) {
        *self = Self::default();
    }
}

/// What one read brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pumped {
    /// This many bytes.
    Bytes(usize),
    /// Nothing is there now.
    Empty,
    /// Nobody has the terminal open now; somebody may open it again.
    HungUp,
    /// The stream has ended.
    End,
}

/// Both streams of a container and its log.
#[derive(Debug)]
pub(crate) struct Output {
    path: Option<PathBuf>,
    log: LogFile,
    line_max: usize,
    stdout: Option<Source>,
    stderr: Option<Source>,
}

#[derive(Debug)]
struct Source {
    fd: OwnedFd,
    /// The beginning of a line whose end has not come yet, shorter than an entry.
    unfinished: Vec<u8>,
    reading: Reading,
}

/// Whether a stream is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reading {
    On,
    /// Not while somebody who is attached is behind.
    Held,
    /// Not before then: nobody has the terminal open.
    HungUp(Instant),
}

impl Output {
    /// `line_max`: 0 is the default.
    pub(crate) fn new(path: Option<PathBuf>, line_max: u32) -> Self {
        let line_max = match usize::try_from(line_max) {
            Ok(0) | Err(_) => LINE_BYTES_DEFAULT,
            Ok(bytes) => bytes.min(LINE_BYTES_MAX),
        };
        Self { path, log: LogFile::default(), line_max, stdout: None, stderr: None }
    }

    /// Takes a stream's reading end, which must not block.
    pub(crate) fn attach(&mut self, stream: Stream, fd: OwnedFd) {
        *self.slot(stream) = Some(Source { fd, unfinished: Vec::new(), reading: Reading::On });
    }

    pub(crate) fn fd(&self, stream: Stream) -> Option<BorrowedFd<'_>> {
        self.source(stream).map(|source| source.fd.as_fd())
    }

    fn source(&self, stream: Stream) -> Option<&Source> {
        match stream {
            Stream::Stdout => self.stdout.as_ref(),
            Stream::Stderr => self.stderr.as_ref(),
        }
    }

    pub(crate) fn is_paused(&self, stream: Stream) -> bool {
        self.source(stream).is_some_and(|source| source.reading != Reading::On)
    }

    /// When a terminal that nobody has open is looked at again.
    pub(crate) fn look_again_at(&self) -> Option<Instant> {
        match self.stdout.as_ref()?.reading {
            Reading::HungUp(until) => Some(until),
            Reading::On | Reading::Held => None,
        }
    }

    /// The stream is not read for a while; `leave` takes its descriptor out of what is waited for.
    pub(crate) fn pause(&mut self, stream: Stream, why: Reading, leave: impl FnOnce(BorrowedFd<'_>)) {
        if let Some(source) = self.slot(stream) {
            source.reading = why;
            leave(source.fd.as_fd());
        }
    }

    /// The descriptor of a stream that is to be read again.
    pub(crate) fn resume(&mut self, stream: Stream) -> Option<BorrowedFd<'_>> {
        let source = self.slot(stream).as_mut()?;
        source.reading = Reading::On;
        Some(source.fd.as_fd())
    }

    /// Opens (or opens anew) the log file for appending, with the folders above it. The old file gets nothing any more.
    pub(crate) fn open(&mut self) -> Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let file = open_log(path).step(|| format!("open the log {}", path.display()))?;
        self.log.replace(file);
        Ok(())
    }

    /// Bytes of output that no file took.
    pub(crate) fn lost_bytes(&self) -> u64 {
        self.log.lost_bytes
    }

    /// Reads once from a stream, gives what came away, and logs it. At the end of the stream it is closed, after `leave` was told.
    pub(crate) fn pump(
        &mut self,
        stream: Stream,
        scratch: &mut Scratch,
        give: impl FnOnce(&[u8]),
        leave: impl FnOnce(BorrowedFd<'_>),
    ) -> Pumped {
        let Some(source) = self.slot(stream) else { return Pumped::End };
        let kept = source.unfinished.len();
        scratch.input(kept + READ_BYTES)[..kept].copy_from_slice(&source.unfinished);
        match rustix::io::retry_on_intr(|| {
            rustix::io::read(&source.fd, &mut scratch.input[kept..kept + READ_BYTES])
        }) {
            Ok(0) => self.end(stream, scratch, leave),
            Ok(count) => {
                source.unfinished.clear();
                give(&scratch.input[kept..kept + count]);
                if self.path.is_some() {
                    self.take(stream, kept + count, scratch);
                }
                Pumped::Bytes(count)
            }
            Err(rustix::io::Errno::AGAIN) => Pumped::Empty,
            // Of a terminal alone, whose master is read while its slave is not open.
            Err(rustix::io::Errno::IO) => Pumped::HungUp,
            Err(_) => self.end(stream, scratch, leave),
        }
    }

    /// Logs `scratch.input[..len]`.
    fn take(&mut self, stream: Stream, len: usize, scratch: &mut Scratch) {
        let head = (Time::new(self.log.now()), stream);
        let mut used = 0;
        loop {
            scratch.output.clear();
            let data = &scratch.input[used..len];
            let took = log::entries(&mut scratch.output, WRITE_BYTES, head, data, self.line_max);
            if took == 0 {
                break;
            }
            used += took;
            self.log.write(&scratch.output);
        }
        if used == len {
            return;
        }
        if let Some(source) = self.slot(stream) {
            source.unfinished.extend_from_slice(&scratch.input[used..len]);
        }
    }

    fn end(&mut self, stream: Stream, scratch: &mut Scratch, leave: impl FnOnce(BorrowedFd<'_>)) -> Pumped {
        self.flush(stream, scratch);
        if let Some(fd) = self.fd(stream) {
            leave(fd);
        }
        *self.slot(stream) = None;
        Pumped::End
    }

    /// Logs an unfinished line as it is.
    fn flush(&mut self, stream: Stream, scratch: &mut Scratch) {
        let time = Time::new(self.log.now());
        let Some(source) = self.slot(stream) else { return };
        let unfinished = std::mem::take(&mut source.unfinished);
        scratch.output.clear();
        log::unfinished(&mut scratch.output, (time, stream), &unfinished);
        self.log.write(&scratch.output);
    }

    /// Logs everything that is in the pipes now, unfinished lines included; for the moment when the container has exited.
    pub(crate) fn drain(
        &mut self,
        scratch: &mut Scratch,
        mut give: impl FnMut(Stream, &[u8]),
        leave: impl Fn(BorrowedFd<'_>),
    ) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let mut left = DRAIN_BYTES_MAX;
            loop {
                match self.pump(stream, scratch, |bytes| give(stream, bytes), &leave) {
                    Pumped::Bytes(count) if count < left => left -= count,
                    Pumped::HungUp => {
                        // Who could open it again has exited.
                        self.end(stream, scratch, &leave);
                        break;
                    }
                    Pumped::Bytes(_) | Pumped::Empty | Pumped::End => break,
                }
            }
            self.flush(stream, scratch);
        }
    }

    fn slot(&mut self, stream: Stream) -> &mut Option<Source> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }
}

fn open_log(path: &Path) -> io::Result<File> {
    if let Some(parent) = path.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(LOG_DIR_MODE).create(parent)?;
    }
    // A pipe or a device in the log's place must not stop the shim (O_NONBLOCK), and a link must not lead it elsewhere.
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::CLOEXEC;
    let flags = i32::try_from(flags.bits()).map_err(|_too_large| io::ErrorKind::InvalidInput)?;
    let file = OpenOptions::new().append(true).create(true).mode(LOG_MODE).custom_flags(flags).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    Ok(file)
}

#[derive(Debug, Default)]
struct LogFile {
    file: Option<File>,
    last_nanos: i64,
    lost_bytes: u64,
    /// The file ends inside an entry, because the disk was full.
    torn: bool,
}

impl LogFile {
    fn replace(&mut self, file: File) {
        self.file = Some(file);
        self.torn = false;
    }

    /// The time now, never before the last one of this file.
    fn now(&mut self) -> i64 {
        self.last_nanos = self.last_nanos.max(Timestamp::now().0);
        self.last_nanos
    }

    fn write(&mut self, mut batch: &[u8]) {
        let Some(file) = &mut self.file else { return };
        if batch.is_empty() {
            return;
        }
        if self.torn {
            // Ends the torn entry, so that what follows can be read.
            self.torn = file.write(b"\n").is_err();
        }
        while !batch.is_empty() {
            match file.write(batch) {
                Ok(written) => batch = &batch[written..],
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    self.lost_bytes += batch.len() as u64;
                    self.torn = true;
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe() -> (OwnedFd, OwnedFd) {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        (reader, writer)
    }

    fn contents(path: &Path) -> Vec<String> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| line[31..].to_owned()).collect()
    }

    struct Fixture {
        dir: tempfile::TempDir,
        output: Output,
        scratch: Scratch,
        stdout: OwnedFd,
        stderr: OwnedFd,
    }

    fn fixture(line_max: u32) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let mut output = Output::new(Some(dir.path().join("a/b/0.log")), line_max);
        let ((out, stdout), (err, stderr)) = (pipe(), pipe());
        output.attach(Stream::Stdout, out);
        output.attach(Stream::Stderr, err);
        output.open().unwrap();
        Fixture { dir, output, scratch: Scratch::default(), stdout, stderr }
    }

    fn write(fd: &OwnedFd, data: &[u8]) {
        assert_eq!(rustix::io::write(fd, data).unwrap(), data.len());
    }

    #[test]
    fn a_line_in_pieces_is_one_entry() {
        let mut f = fixture(0);
        let path = f.dir.path().join("a/b/0.log");
        for piece in ["one li", "ne\ntwo"] {
            write(&f.stdout, piece.as_bytes());
            f.output.pump(Stream::Stdout, &mut f.scratch, |_| (), |_| ());
        }
        assert_eq!(contents(&path), ["stdout F one line"]);
        write(&f.stderr, b"err\n");
        f.output.pump(Stream::Stderr, &mut f.scratch, |_| (), |_| ());
        drop(f.stdout);
        assert_eq!(f.output.pump(Stream::Stdout, &mut f.scratch, |_| (), |_| ()), Pumped::End);
        assert_eq!(contents(&path), ["stdout F one line", "stderr F err", "stdout P two"]);
    }

    #[test]
    fn a_long_line_is_cut_and_never_kept_whole() {
        let mut f = fixture(1000);
        write(&f.stdout, &[b'x'; 2500]);
        f.output.pump(Stream::Stdout, &mut f.scratch, |_| (), |_| ());
        write(&f.stdout, b"y\n");
        f.output.pump(Stream::Stdout, &mut f.scratch, |_| (), |_| ());
        let lengths: Vec<_> = contents(&f.dir.path().join("a/b/0.log"))
            .iter()
            .map(|l| (l[7..8].to_owned(), l.len() - 9))
            .collect();
        assert_eq!(lengths, [("P".into(), 1000), ("P".into(), 1000), ("F".into(), 501)]);
    }

    #[test]
    fn reopening_sends_what_follows_to_the_new_file() {
        let mut f = fixture(0);
        let path = f.dir.path().join("a/b/0.log");
        write(&f.stdout, b"old\nhal");
        f.output.pump(Stream::Stdout, &mut f.scratch, |_| (), |_| ());
        let rotated = f.dir.path().join("rotated");
        std::fs::rename(&path, &rotated).unwrap();
        f.output.open().unwrap();
        assert!(contents(&path).is_empty());
        write(&f.stdout, b"f\n");
        f.output.pump(Stream::Stdout, &mut f.scratch, |_| (), |_| ());
        assert_eq!(contents(&rotated), ["stdout F old"]);
        assert_eq!(contents(&path), ["stdout F half"]);
    }

    #[test]
    fn draining_takes_everything_though_the_pipe_stays_open() {
        let mut f = fixture(0);
        write(&f.stdout, b"a\nb");
        write(&f.stderr, b"c");
        f.output.drain(&mut f.scratch, |_, _| (), |_| ());
        let path = f.dir.path().join("a/b/0.log");
        assert_eq!(contents(&path), ["stdout F a", "stdout P b", "stderr P c"]);
        write(&f.stdout, b"later\n");
        assert_eq!(f.output.pump(Stream::Stdout, &mut f.scratch, |_| (), |_| ()), Pumped::Bytes(6));
        assert_eq!(contents(&path).last().unwrap(), "stdout F later");
    }

    #[test]
    fn a_full_disk_loses_output_but_never_stops_the_reader() {
        let mut f = fixture(0);
        f.output.log.replace(OpenOptions::new().append(true).open("/dev/full").unwrap());
        write(&f.stdout, b"lost\n");
        assert_eq!(f.output.pump(Stream::Stdout, &mut f.scratch, |_| (), |_| ()), Pumped::Bytes(5));
        assert!(f.output.lost_bytes() > 0);
        f.output.open().unwrap();
        write(&f.stdout, b"kept\n");
        f.output.pump(Stream::Stdout, &mut f.scratch, |_| (), |_| ());
        assert_eq!(contents(&f.dir.path().join("a/b/0.log")), ["stdout F kept"]);
    }

    #[test]
    fn what_is_no_regular_file_is_no_log() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        assert!(Output::new(Some(link), 0).open().is_err());
        assert!(Output::new(Some("/dev/null".into()), 0).open().is_err());
    }
}
