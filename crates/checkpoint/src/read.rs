//! Reading an archive into a directory of our own.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Seek as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crisp_sys::path::{Resolve, RootedDir};
use rustix::fs::{Mode, OFlags};

use crate::error::{CheckpointError, Result, errno, io};
use crate::metadata::Config;
use crate::names::{CONFIG, IMAGES, ROOTFS_DIFF, Wanted, wanted};

/// Bounds of an archive.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Entries of all kinds.
    pub entries_max: u64,
    /// Bytes of all entries together, those that are skipped included.
    pub bytes_max: u64,
    /// Bytes of `config.dump`.
    pub config_bytes_max: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { entries_max: 100_000, bytes_max: 256 << 30, config_bytes_max: 1 << 20 }
    }
}

/// Bytes that are copied at a time.
const PIECE_BYTES: usize = 64 << 10;
/// Extension headers of one entry: long names, and none of ours is long.
const EXTENSION_BYTES_MAX: u64 = 64 << 10;

/// Takes `config.dump`, `rootfs-diff.tar` and CRIU's images from an archive into `to`, an empty directory of ours; what else is in it
/// is passed over. Only plain files and directories may be in it. On an error `to` may hold a part.
///
/// # Errors
/// [`CheckpointError::Malformed`], [`CheckpointError::Refused`], [`CheckpointError::Limit`] for what the archive did;
/// [`CheckpointError::Io`].
pub fn extract(archive: &File, to: &Path, limits: &Limits) -> Result<()> {
    let mut output = Output::open(to)?;
    let size = archive.metadata().map_err(io("look at the archive"))?.len();
    if size > limits.bytes_max {
        return Err(CheckpointError::Limit { limit: "bytes_max", max: limits.bytes_max });
    }
    let mut archive = tar::Archive::new(archive.take(size));
    let entries = archive.entries().map_err(malformed)?.raw(true);
    for (count, entry) in (1..).zip(entries) {
        if count > limits.entries_max {
            return Err(CheckpointError::Limit { limit: "entries_max", max: limits.entries_max });
        }
        let mut entry = entry.map_err(malformed)?;
        take(&mut entry, &mut output, limits)?;
    }
    output.check()
}

/// Reads `config.dump` of an archive and leaves the file where it was.
///
/// # Errors
/// As [`extract`].
pub fn config_of(archive: &File, limits: &Limits) -> Result<Config> {
    let mut file = archive;
    let parsed = find_config(file, limits);
    file.rewind().map_err(io("rewind the archive"))?;
    parsed
}

fn find_config(archive: &File, limits: &Limits) -> Result<Config> {
    let mut archive = tar::Archive::new(archive.take(limits.bytes_max));
    for (count, entry) in (0..limits.entries_max).zip(archive.entries().map_err(malformed)?.raw(true)) {
        let entry = entry.map_err(malformed)?;
        let name = entry.path().map_err(malformed)?;
        if entry.header().entry_type().is_file() && wanted(&name)? == Wanted::Top(CONFIG) {
            let mut text = Vec::new();
            entry.take(limits.config_bytes_max).read_to_end(&mut text).map_err(malformed)?;
            return Config::parse(&text);
        }
        if count + 1 == limits.entries_max {
            return Err(CheckpointError::Limit { limit: "entries_max", max: limits.entries_max });
        }
    }
    Err(CheckpointError::Malformed(format!("it has no {CONFIG}")))
}

/// The same of a directory that somebody else filled.
///
/// # Errors
/// As [`copy_images`].
pub fn config_in(from: &RootedDir, limits: &Limits) -> Result<Config> {
    let file = from
        .open_file(Path::new(CONFIG), Resolve::Strict)
        .map_err(|_no_plain_file| CheckpointError::Malformed(format!("{CONFIG} is no plain file")))?;
    let mut text = Vec::new();
    file.take(limits.config_bytes_max).read_to_end(&mut text).map_err(io("read config.dump"))?;
    Config::parse(&text)
}

fn malformed(error: std::io::Error) -> CheckpointError {
    CheckpointError::Malformed(error.to_string())
}

fn take(entry: &mut tar::Entry<'_, impl Read>, output: &mut Output, limits: &Limits) -> Result<()> {
    let kind = entry.header().entry_type();
    if kind.is_gnu_longname() || kind.is_pax_local_extensions() || kind.is_pax_global_extensions() {
        // No file of ours has such a name; its short one, which follows, decides.
        return match entry.size() {
            0..=EXTENSION_BYTES_MAX => Ok(()),
            _ => Err(CheckpointError::Limit { limit: "extension_bytes_max", max: EXTENSION_BYTES_MAX }),
        };
    }
    let path = entry.path().map_err(malformed)?.into_owned();
    let refused = |reason| CheckpointError::Refused { entry: path.display().to_string(), reason };
    let wanted = wanted(&path)?;
    match (wanted, kind.is_file(), kind.is_dir()) {
        (Wanted::Top(name), true, false) => {
            if name == CONFIG && entry.size() > limits.config_bytes_max {
                let max = limits.config_bytes_max;
                return Err(CheckpointError::Limit { limit: "config_bytes_max", max });
            }
            output.file(Place::Top, name, entry)
        }
        (Wanted::Image(name), true, false) => output.file(Place::Images, &name, entry),
        (Wanted::Directory, false, true)
        | (Wanted::Nothing, true, false)
        | (Wanted::Nothing, false, true) => Ok(()),
        (_, true, false) => Err(refused("it is a file, and a directory is meant")),
        (_, false, true) => Err(refused("it is a directory, and a file is meant")),
        _ => Err(refused("it is neither a file nor a directory")),
    }
}

/// Takes the same files from a directory that somebody else filled: the layer of an image that holds a checkpoint.
///
/// # Errors
/// As [`extract`].
pub fn copy_images(from: &RootedDir, to: &Path, limits: &Limits) -> Result<()> {
    let mut output = Output::open(to)?;
    let mut bytes = 0;
    let mut add = |output: &mut Output, place, path: &Path, name: &str| -> Result<()> {
        let file = from.open_file(path, Resolve::Strict).map_err(|_no_plain_file| {
            CheckpointError::Malformed(format!("{} is no plain file", path.display()))
        })?;
        bytes += file.metadata().map_err(io("look at an image"))?.len();
        if bytes > limits.bytes_max || (name == CONFIG && bytes > limits.config_bytes_max) {
            return Err(CheckpointError::Limit { limit: "bytes_max", max: limits.bytes_max });
        }
        output.file(place, name, &mut &file)
    };
    add(&mut output, Place::Top, Path::new(CONFIG), CONFIG)?;
    let has_diff = from.symlink_metadata(Path::new(ROOTFS_DIFF), Resolve::Strict);
    if has_diff.map_err(|source| CheckpointError::Path { step: "look at the layer", source })?.is_some() {
        add(&mut output, Place::Top, Path::new(ROOTFS_DIFF), ROOTFS_DIFF)?;
    }
    let images = from
        .open_dir(Path::new(IMAGES), Resolve::Strict)
        .map_err(|_none| CheckpointError::Malformed(format!("it has no directory {IMAGES}")))?;
    let list =
        rustix::fs::openat(&images, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(errno("list the images"))?;
    let mut list = rustix::fs::Dir::new(list).map_err(errno("list the images"))?;
    let mut count = 0;
    while let Some(entry) = list.read() {
        let entry = entry.map_err(errno("list the images"))?;
        let name = entry.file_name().to_string_lossy();
        if matches!(&*name, "." | "..") {
            continue;
        }
        count += 1;
        if count > limits.entries_max {
            return Err(CheckpointError::Limit { limit: "entries_max", max: limits.entries_max });
        }
        let path = Path::new(IMAGES).join(&*name);
        if let Wanted::Image(name) = wanted(&path)? {
            add(&mut output, Place::Images, &path, &name)?;
        }
    }
    output.check()
}

#[derive(Debug, Clone, Copy)]
enum Place {
    Top,
    Images,
}

/// The directory that is filled.
struct Output {
    top: OwnedFd,
    images: OwnedFd,
    seen: HashSet<String>,
}

impl Output {
    fn open(to: &Path) -> Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = |dir: BorrowedFd<'_>, name: &Path| rustix::fs::openat(dir, name, flags, Mode::empty());
        let top = open(rustix::fs::CWD, to).map_err(errno("open the checkpoint's directory"))?;
        rustix::fs::mkdirat(&top, IMAGES, Mode::from_raw_mode(0o700))
            .map_err(errno("make a directory for images"))?;
        let images = open(top.as_fd(), Path::new(IMAGES)).map_err(errno("open the directory for images"))?;
        Ok(Self { top, images, seen: HashSet::new() })
    }

    /// Writes a new file; a second one of the same name is refused. Zeros become holes: a small image may hold a file whose size is
    /// nothing but holes.
    fn file(&mut self, place: Place, name: &str, content: &mut impl Read) -> Result<()> {
        let (dir, path) = match place {
            Place::Top => (&self.top, name.to_owned()),
            Place::Images => (&self.images, format!("{IMAGES}/{name}")),
        };
        if !self.seen.insert(path.clone()) {
            return Err(CheckpointError::Refused { entry: path, reason: "it is there twice" });
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))
            .map_err(errno("create a file of the checkpoint"))?;
        copy_with_holes(content, &File::from(file))
    }

    fn check(&self) -> Result<()> {
        for needed in [CONFIG.to_owned(), format!("{IMAGES}/inventory.img")] {
            if !self.seen.contains(&needed) {
                return Err(CheckpointError::Malformed(format!("it has no {needed}")));
            }
        }
        Ok(())
    }
}

/// Copies into an empty file, and writes no piece that holds zeros only.
fn copy_with_holes(content: &mut impl Read, file: &File) -> Result<()> {
    let (mut buffer, mut at) = (vec![0; PIECE_BYTES], 0);
    loop {
        let read = content.read(&mut buffer).map_err(malformed)?;
        if read == 0 {
            return file.set_len(at).map_err(io("write a file of the checkpoint"));
        }
        let piece = &buffer[..read];
        if piece.iter().any(|&byte| byte != 0) {
            file.write_all_at(piece, at).map_err(io("write a file of the checkpoint"))?;
        }
        at += read as u64;
    }
}

#[cfg(test)]
#[path = "read_tests.rs"]
mod tests;
