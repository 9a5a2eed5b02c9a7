//! Writing an archive: beside its place, then moved there whole.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, Mode, OFlags, RenameFlags};

use crate::error::{CheckpointError, Result, errno, io};

/// The owner alone may read what was in a container's memory.
const MODE: u32 = 0o600;

/// An archive in the making. Dropped before its end, it is removed.
pub struct Writer {
    archive: tar::Builder<File>,
    partial: Partial,
    target: PathBuf,
}

impl std::fmt::Debug for Writer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Writer").field("target", &self.target).finish_non_exhaustive()
    }
}

/// The file until it has its name.
#[derive(Debug)]
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        let _moved_or_gone = std::fs::remove_file(&self.0);
    }
}

impl Writer {
    /// Begins an archive for `target`, an absolute path in a directory that is there.
    ///
    /// # Errors
    /// [`CheckpointError::Exists`]; [`CheckpointError::Io`].
    pub fn create(target: &Path) -> Result<Self> {
        if target.symlink_metadata().is_ok() {
            return Err(CheckpointError::Exists(target.display().to_string()));
        }
        let name = target.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        // Of this writer alone: another container may be written to the same target, and one of the two gets the name.
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        let (pid, number) = (std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
        let partial = target.with_file_name(format!(".{name}.{pid}.{number}.partial"));
        // Left by a process with the same number that was killed.
        let _not_there = std::fs::remove_file(&partial);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(CWD, &partial, flags, Mode::from_raw_mode(MODE))
            .map_err(errno("create the archive"))?;
        let partial = Partial(partial);
        rustix::fs::fchmod(&file, Mode::from_raw_mode(MODE)).map_err(errno("set the mode of the archive"))?;
        Ok(Self { archive: tar::Builder::new(file.into()), partial, target: target.to_owned() })
    }

    /// Adds a file with this content.
    ///
    /// # Errors
    /// [`CheckpointError::Io`].
    pub fn text(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.append(name, content.len() as u64, content)
    }

    /// Adds what a file holds now; one that grows meanwhile is cut, one that shrinks is filled with zeros.
    ///
    /// # Errors
    /// [`CheckpointError::Io`].
    pub fn file(&mut self, name: &str, file: &File) -> Result<()> {
        let size = file.metadata().map_err(io("look at a file for the archive"))?.len();
        self.append(name, size, file.chain(std::io::repeat(0)).take(size))
    }

    /// Adds the plain files of a directory, not of those below.
    ///
    /// # Errors
    /// [`CheckpointError::Io`].
    pub fn directory(&mut self, name: &str, dir: &Path) -> Result<()> {
        let entries = std::fs::read_dir(dir).map_err(io("list the images"))?;
        for entry in entries {
            let entry = entry.map_err(io("list the images"))?;
            if !entry.file_type().map_err(io("look at an image"))?.is_file() {
                continue;
            }
            let file = File::open(entry.path()).map_err(io("open an image"))?;
            self.file(&format!("{name}/{}", entry.file_name().to_string_lossy()), &file)?;
        }
        Ok(())
    }

    /// Makes the archive durable and gives it its name.
    ///
    /// # Errors
    /// [`CheckpointError::Exists`] when something has got the name meanwhile; [`CheckpointError::Io`].
    pub fn finish(self) -> Result<()> {
        let file = self.archive.into_inner().map_err(io("write the archive"))?;
        file.sync_all().map_err(io("sync the archive"))?;
        match rustix::fs::renameat_with(CWD, &self.partial.0, CWD, &self.target, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::EXIST) => Err(CheckpointError::Exists(self.target.display().to_string())),
            Err(source) => Err(errno("name the archive")(source)),
        }
    }

    fn append(&mut self, name: &str, size: u64, content: impl Read) -> Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(MODE);
        header.set_entry_type(tar::EntryType::Regular);
        self.archive.append_data(&mut header, name, content).map_err(io("write the archive"))
    }
}
