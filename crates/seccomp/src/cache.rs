//! Compiled programs, by the filter that they were made from.
//!
//! ```text
//! <dir>/<sha256 of libseccomp's version and the filter's JSON>.bpf     struct sock_filter[], mode 0600
//! ```
//! A file is complete as soon as it has its name. Programs are read by nobody but us: the directory is ours (0700).

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write as _};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use libseccomp::ScmpVersion;
use oci_spec::runtime::LinuxSeccomp;
use sha2::{Digest, Sha256};

use crate::compile::{INSTRUCTION_BYTES, PROGRAM_BYTES_MAX, compile};
use crate::error::SeccompError;

/// Programs in memory: some 5 KiB each.
const MEMORY_ENTRIES_MAX: usize = 64;
/// Programs on disk; beyond it the oldest go when the cache is opened.
const DISK_ENTRIES_MAX: usize = 512;
/// Part of every key: to be raised when the same filter compiles into another program.
const COMPILER: &str = "crisp 1";
const SUFFIX: &str = "bpf";
const TEMPORARY_SUFFIX: &str = "tmp";

/// Compiled programs in a directory, the recent ones in memory too. One per directory and process.
#[derive(Debug)]
pub struct Cache {
    dir: PathBuf,
    library: String,
    memory: Mutex<HashMap<String, Arc<[u8]>>>,
}

impl Cache {
    /// Opens, and makes, the directory; half-written files of a killed process go.
    ///
    /// # Errors
    /// [`SeccompError::Cache`] when the directory cannot be made or read, [`SeccompError::Compile`] when libseccomp does not tell
    /// its version.
    pub fn open(dir: &Path) -> Result<Self, SeccompError> {
        let failed = failed("make", dir);
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        let version = ScmpVersion::current()
            .map_err(|source| SeccompError::Compile { operation: "ask for the version", source })?;
        prune(dir)?;
        Ok(Self { dir: dir.into(), library: format!("libseccomp {version}"), memory: Mutex::default() })
    }

    /// The file with the filter's program; compiled now if it is not there.
    ///
    /// # Errors
    /// As [`compile`], and [`SeccompError::Cache`] when the file cannot be written.
    pub fn get(&self, filter: &LinuxSeccomp) -> Result<PathBuf, SeccompError> {
        let key = self.key(filter)?;
        let path = self.path(&key);
        if self.remembered(&key).is_some() && path.exists() {
            return Ok(path);
        }
        self.load_or_compile(&key, filter)?;
        Ok(path)
    }

    /// The filter's program; compiled now if it is not there.
    ///
    /// # Errors
    /// As [`Cache::get`].
    pub fn program(&self, filter: &LinuxSeccomp) -> Result<Arc<[u8]>, SeccompError> {
        let key = self.key(filter)?;
        match self.remembered(&key) {
            Some(program) => Ok(program),
            None => self.load_or_compile(&key, filter),
        }
    }

    fn remembered(&self, key: &str) -> Option<Arc<[u8]>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    /// Two threads may compile the same filter at once: both write the same bytes.
    fn load_or_compile(&self, key: &str, filter: &LinuxSeccomp) -> Result<Arc<[u8]>, SeccompError> {
        let path = self.path(key);
        let program: Arc<[u8]> = match read(&path).map_err(failed("read", &path))? {
            Some(program) => program.into(),
            None => {
                let program = compile(filter)?;
                write(&path, &program)?;
                program.into()
            }
        };
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        if memory.len() >= MEMORY_ENTRIES_MAX {
            memory.clear();
        }
        memory.insert(key.to_string(), Arc::clone(&program));
        Ok(program)
    }

    /// The JSON of a filter is canonical: its types hold lists and fields in order, no map.
    fn key(&self, filter: &LinuxSeccomp) -> Result<String, SeccompError> {
        let json = serde_json::to_vec(filter).map_err(SeccompError::Parse)?;
        let mut hash = Sha256::new();
        for part in [COMPILER.as_bytes(), self.library.as_bytes(), &json] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        let mut key = String::with_capacity(64);
        for byte in hash.finalize() {
            write!(key, "{byte:02x}").map_err(|_full| SeccompError::Profile("no memory".into()))?;
        }
        Ok(key)
    }

    fn path(&self, key: &str) -> PathBuf {
        self.dir.join(key).with_extension(SUFFIX)
    }
}

fn failed(operation: &'static str, path: &Path) -> impl Fn(io::Error) -> SeccompError {
    move |source| SeccompError::Cache { operation, path: path.into(), source }
}

/// `None` when there is no such file, or one that cannot be a program: it is then written again.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let mut program = Vec::new();
    file.take(PROGRAM_BYTES_MAX as u64 + 1).read_to_end(&mut program)?;
    let whole =
        !program.is_empty() && program.len() <= PROGRAM_BYTES_MAX && program.len() % INSTRUCTION_BYTES == 0;
    Ok(whole.then_some(program))
}

/// Writes beside, syncs, renames: under its name a file is whole, power cuts included.
fn write(path: &Path, program: &[u8]) -> Result<(), SeccompError> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let unique =
        format!("{}-{}.{TEMPORARY_SUFFIX}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed));
    let temporary = path.with_extension(unique);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(program)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        // The error to report is the first one; what stays goes at the next open.
        drop(fs::remove_file(&temporary));
    }
    written.map_err(failed("write", path))
}

/// Removes half-written files and, beyond [`DISK_ENTRIES_MAX`], the oldest programs.
fn prune(dir: &Path) -> Result<(), SeccompError> {
    let mut programs: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed("list", dir))? {
        let path = entry.map_err(failed("list", dir))?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some(TEMPORARY_SUFFIX) => fs::remove_file(&path).map_err(failed("remove", &path))?,
            Some(SUFFIX) => {
                let modified = fs::metadata(&path).and_then(|metadata| metadata.modified());
                programs.push((modified.unwrap_or(SystemTime::UNIX_EPOCH), path));
            }
            _ => {}
        }
    }
    programs.sort_unstable();
    let surplus = programs.len().saturating_sub(DISK_ENTRIES_MAX);
    for (_, path) in &programs[..surplus] {
        fs::remove_file(path).map_err(failed("remove", path))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Target, default_profile};

    fn filter(capabilities: &[&str]) -> LinuxSeccomp {
        let target = Target::native(capabilities.iter().map(ToString::to_string));
        default_profile().to_linux_seccomp(&target)
    }

    fn files(dir: &Path) -> usize {
        fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn a_filter_is_compiled_once() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let path = cache.get(&filter(&[])).unwrap();
        let program = fs::read(&path).unwrap();
        assert_eq!(*cache.program(&filter(&[])).unwrap(), *program);
        assert_eq!(program, compile(&filter(&[])).unwrap());
        assert_ne!(cache.get(&filter(&["CAP_SYS_ADMIN"])).unwrap(), path);
        assert_eq!(files(dir.path()), 2);
        // Another process finds the file: what it holds is taken, not compiled again.
        fs::write(&path, [6u8, 0, 0, 0, 0, 0, 0, 0]).unwrap();
        let again = Cache::open(dir.path()).unwrap();
        assert_eq!(again.program(&filter(&[])).unwrap().len(), 8);
        assert_eq!(files(dir.path()), 2);
    }

    #[test]
    fn what_cannot_be_a_program_is_written_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = Cache::open(dir.path()).unwrap().get(&filter(&[])).unwrap();
        for broken in [&[][..], &[1, 2, 3], &[0; PROGRAM_BYTES_MAX + 8]] {
            fs::write(&path, broken).unwrap();
            let cache = Cache::open(dir.path()).unwrap();
            assert_eq!(*cache.program(&filter(&[])).unwrap(), *compile(&filter(&[])).unwrap());
            assert_eq!(fs::read(&path).unwrap(), compile(&filter(&[])).unwrap());
        }
    }

    #[test]
    fn a_removed_file_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let path = cache.get(&filter(&[])).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(cache.get(&filter(&[])).unwrap().exists());
    }

    #[test]
    fn leftovers_go_when_the_cache_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("k.1-0.tmp"), b"half").unwrap();
        for n in 0..DISK_ENTRIES_MAX + 3 {
            fs::write(dir.path().join(format!("{n}.bpf")), [0u8; 8]).unwrap();
        }
        Cache::open(dir.path()).unwrap();
        assert_eq!(files(dir.path()), DISK_ENTRIES_MAX);
    }
}
