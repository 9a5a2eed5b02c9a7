use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crisp_domain::ErrorKind;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The largest record, in bytes of its file.
pub const RECORD_BYTES_MAX: u64 = 16 << 20;

/// End of a temporary file's name; [`sweep`] removes what a killed writer left.
const TEMPORARY_SUFFIX: &str = ".tmp";

/// What a record must survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The death of the writer; not a power cut.
    Volatile,
    /// A power cut: file and directory are synced.
    Durable,
}

/// Why a record was not read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A file operation failed.
    #[error("{operation} {}", path.display())]
    Io {
        /// The operation as a verb.
        operation: &'static str,
        /// What it was done to.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The file is not a record, or not one of the expected shape.
    #[error("record {} is corrupt: {reason}", path.display())]
    Corrupt {
        /// The record's file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The record was written by another version of this program.
    #[error("record {} has version {found}, this program reads {known}", path.display())]
    Version {
        /// The record's file.
        path: PathBuf,
        /// The version in the file.
        found: u32,
        /// The version that was asked for.
        known: u32,
    },
    /// The record is larger than [`RECORD_BYTES_MAX`].
    #[error("record {} is larger than {RECORD_BYTES_MAX} bytes", path.display())]
    TooLarge {
        /// The record's file.
        path: PathBuf,
    },
}

impl StoreError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Io { source, .. } if full(source) => ErrorKind::Exhausted,
            Self::TooLarge { .. } => ErrorKind::Exhausted,
            Self::Io { .. } | Self::Corrupt { .. } | Self::Version { .. } => ErrorKind::Internal,
        }
    }
}

fn full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// The file's content; `record` is borrowed to write and owned to read.
#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    version: u32,
    record: T,
}

/// The part of the file that is the same in every version.
#[derive(Deserialize)]
struct Header {
    version: u32,
}

/// Writes `value` as version `version` of the record at `path`, replacing what was there. The file's mode is 0600.
///
/// # Errors
/// [`StoreError::Io`] naming the operation that failed, [`StoreError::TooLarge`]; the old record is then untouched
/// (or, when only the sync of the directory failed, the new one may not survive a power cut).
pub fn write<T: Serialize>(
    path: &Path,
    version: u32,
    value: &T,
    durability: Durability,
) -> Result<(), StoreError> {
    let bytes = serde_json::to_vec(&Envelope { version, record: value })
        .map_err(|e| StoreError::Corrupt { path: path.into(), reason: e.to_string() })?;
    replace(path, &bytes, durability)
}

/// Makes the file at `path` hold `bytes`, with mode 0600, as atomically as [`write()`] does a record.
///
/// # Errors
/// As [`write()`].
pub fn replace(path: &Path, bytes: &[u8], durability: Durability) -> Result<(), StoreError> {
    if bytes.len() as u64 > RECORD_BYTES_MAX {
        return Err(StoreError::TooLarge { path: path.into() });
    }
    let temporary = temporary_beside(path);
    let written = replace_by(path, &temporary, bytes, durability);
    if written.is_err() {
        // The error to report is the first one; `sweep` gets what stays.
        drop(fs::remove_file(&temporary));
    }
    written
}

fn replace_by(path: &Path, temporary: &Path, bytes: &[u8], durability: Durability) -> Result<(), StoreError> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(temporary)
        .map_err(io_error("create", temporary))?;
    file.write_all(bytes).map_err(io_error("write", temporary))?;
    if durability == Durability::Durable {
        file.sync_all().map_err(io_error("sync", temporary))?;
    }
    fs::rename(temporary, path).map_err(io_error("rename to", path))?;
    match (durability, path.parent()) {
        (Durability::Durable, Some(parent)) => sync_dir(parent),
        (Durability::Durable, None) | (Durability::Volatile, _) => Ok(()),
    }
}

fn temporary_beside(path: &Path) -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let (pid, n) = (std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
    path.with_file_name(format!(".{name}.{pid}.{n}{TEMPORARY_SUFFIX}"))
}

/// Reads the record at `path`; `None` when there is no such file.
///
/// # Errors
/// [`StoreError::Version`] when it is not version `version`, [`StoreError::Corrupt`] when it is no record of `T`,
/// [`StoreError::TooLarge`], [`StoreError::Io`].
pub fn read<T: DeserializeOwned>(path: &Path, version: u32) -> Result<Option<T>, StoreError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(io_error("open", path)(e)),
    };
    let mut bytes = Vec::new();
    file.take(RECORD_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(io_error("read", path))?;
    if bytes.len() as u64 > RECORD_BYTES_MAX {
        return Err(StoreError::TooLarge { path: path.into() });
    }
    let corrupt = |e: serde_json::Error| StoreError::Corrupt { path: path.into(), reason: e.to_string() };
    let found = serde_json::from_slice::<Header>(&bytes).map_err(corrupt)?.version;
    if found != version {
        return Err(StoreError::Version { path: path.into(), found, known: version });
    }
    serde_json::from_slice::<Envelope<T>>(&bytes).map(|e| Some(e.record)).map_err(corrupt)
}

/// Removes the record at `path`; one that is already gone is fine.
///
/// # Errors
/// [`StoreError::Io`].
pub fn remove(path: &Path, durability: Durability) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(io_error("remove", path)(e)),
    }
    match (durability, path.parent()) {
        (Durability::Durable, Some(parent)) => sync_dir(parent),
        (Durability::Durable, None) | (Durability::Volatile, _) => Ok(()),
    }
}

/// Makes the directory and its missing parents, each with mode 0700; one that exists stays as it is.
///
/// # Errors
/// [`StoreError::Io`].
pub fn ensure_dir(path: &Path) -> Result<(), StoreError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(io_error("make directory", path))
}

/// Removes the temporary files that killed writers left in `dir`. To be called when no writer runs: at start.
///
/// # Errors
/// [`StoreError::Io`].
pub fn sweep(dir: &Path) -> Result<(), StoreError> {
    for entry in fs::read_dir(dir).map_err(io_error("list", dir))? {
        let entry = entry.map_err(io_error("list", dir))?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.') && name.ends_with(TEMPORARY_SUFFIX) {
            fs::remove_file(entry.path()).map_err(io_error("remove", &entry.path()))?;
        }
    }
    Ok(())
}

/// Makes renames and removals in `dir` survive a power cut.
///
/// # Errors
/// [`StoreError::Io`].
pub fn sync_dir(dir: &Path) -> Result<(), StoreError> {
    // The parent of a bare file name is the empty path, which means the working directory.
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir).and_then(|d| d.sync_all()).map_err(io_error("sync directory", dir))
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_path_buf();
    move |source| StoreError::Io { operation, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("r.json");
        (dir, path)
    }

    #[test]
    fn what_was_written_is_read_and_replaced() {
        let (dir, path) = file();
        assert_eq!(read::<String>(&path, 1).unwrap(), None);
        for (value, durability) in [("a", Durability::Volatile), ("b", Durability::Durable)] {
            write(&path, 1, &value, durability).unwrap();
            assert_eq!(read::<String>(&path, 1).unwrap().unwrap(), value);
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file stays");
        remove(&path, Durability::Durable).unwrap();
        remove(&path, Durability::Durable).unwrap();
        assert_eq!(read::<String>(&path, 1).unwrap(), None);
    }

    #[test]
    fn what_is_no_record_names_its_path() {
        let (_dir, path) = file();
        for text in ["", "{", "[]", r#"{"version":1}"#, r#"{"version":1,"record":7}"#] {
            fs::write(&path, text).unwrap();
            let error = read::<String>(&path, 1).unwrap_err();
            assert!(matches!(error, StoreError::Corrupt { .. }), "{text}: {error}");
            assert!(error.to_string().contains("r.json"), "{error}");
        }
    }

    #[test]
    fn another_version_is_told_apart_from_corruption() {
        let (_dir, path) = file();
        write(&path, 2, &7, Durability::Volatile).unwrap();
        assert!(matches!(
            read::<String>(&path, 1).unwrap_err(),
            StoreError::Version { found: 2, known: 1, .. }
        ));
    }

    #[test]
    fn a_file_beyond_the_limit_is_not_loaded() {
        let (_dir, path) = file();
        File::create(&path).unwrap().set_len(RECORD_BYTES_MAX + 1).unwrap();
        assert!(matches!(read::<String>(&path, 1).unwrap_err(), StoreError::TooLarge { .. }));
    }

    #[test]
    fn a_failed_write_keeps_the_old_record() {
        let (dir, path) = file();
        write(&path, 1, &"old", Durability::Volatile).unwrap();
        let big = "x".repeat(usize::try_from(RECORD_BYTES_MAX).unwrap());
        assert!(write(&path, 1, &big, Durability::Volatile).is_err());
        assert_eq!(read::<String>(&path, 1).unwrap().unwrap(), "old");
        // The target is a directory that is not empty: the rename fails.
        let taken = dir.path().join("taken");
        fs::create_dir_all(taken.join("x")).unwrap();
        assert!(write(&taken, 1, &1, Durability::Volatile).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "no temporary file stays");
    }

    #[test]
    fn sweep_takes_only_temporary_files() {
        let (dir, path) = file();
        write(&path, 1, &1, Durability::Volatile).unwrap();
        fs::write(temporary_beside(&path), "half").unwrap();
        sweep(dir.path()).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
