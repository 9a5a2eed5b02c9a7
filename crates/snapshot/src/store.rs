//! The layers on disk, their records, and what is in the making.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crisp_sys::path::{Resolve, RootedDir};
use rustix::fs::{CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::error::{Result, SnapshotError};
use crate::records::Records;
use crate::{ChainId, DiffId, Limits, Usage, settle, tree, unpack};

const LOCK: &str = ".lock";
const STAGING: &str = ".staging";
const REMOVED: &str = ".removed";
/// Two of them, since an overlay takes no directory twice.
const EMPTY: [&str; 3] = [".empty", ".empty/top", ".empty/bottom"];
const RECORD: &str = "layer.json";
pub(crate) const CONTENT: &str = "fs";
/// Directory of a staged layer where older kernels mount its parents for a moment.
const SCRATCH: &str = "view";

/// Version of `layer.json`.
const RECORD_VERSION: u32 = 1;
/// A record is a few hundred bytes.
const RECORD_BYTES_MAX: u64 = 16 << 10;

/// What `layer.json` holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    version: u32,
    chain: ChainId,
    diff: DiffId,
    parent: Option<ChainId>,
    usage: Usage,
}

/// All layers of one root directory. Clones share it; reads take no lock that a system call is made under.
#[derive(Debug, Clone)]
pub struct LayerStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    layers: PathBuf,
    index: RwLock<HashMap<ChainId, Record>>,
    /// Held while a layer appears or goes.
    changing: Mutex<()>,
    /// Bytes that staged layers remember.
    waiting: AtomicUsize,
    _lock: File,
}

/// A layer that is unpacked but not yet placed on a parent. Dropping it removes it.
#[derive(Debug)]
pub struct StagedLayer {
    staging: Staging,
    content: RootedDir,
    diff_id: DiffId,
    records: Records,
    waiting: Waiting,
}

impl StagedLayer {
    /// The digest of the stream that it was unpacked from, to the last byte.
    #[must_use]
    pub fn diff_id(&self) -> &DiffId {
        &self.diff_id
    }

    /// What it occupies now; committing can add a little. Walks the layer.
    ///
    /// # Errors
    /// [`SnapshotError::Io`].
    pub fn usage(&self) -> Result<Usage> {
        tree::usage(&self.staging.path.join(CONTENT))
    }

    /// Extended attributes that were not kept: of namespaces that images have no say in, or that the file system cannot hold.
    #[must_use]
    pub fn xattrs_dropped(&self) -> u64 {
        self.records.xattrs_dropped
    }
}

/// A directory below `.staging` that goes with its owner.
#[derive(Debug)]
struct Staging {
    path: PathBuf,
    store: Arc<Inner>,
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Best effort: what stays is removed when the store is opened again.
        let _gone_or_left = self.store.discard(&self.path);
    }
}

/// The share of a staged layer in what all of them remember.
#[derive(Debug)]
struct Waiting {
    bytes: usize,
    store: Arc<Inner>,
}

impl Waiting {
    fn new(store: &Arc<Inner>, bytes: usize, limits: &Limits) -> Result<Self> {
        let before = store.waiting.fetch_add(bytes, Ordering::Relaxed);
        let waiting = Self { bytes, store: Arc::clone(store) };
        let max = limits.waiting_bytes_max;
        if before.saturating_add(bytes) <= max {
            return Ok(waiting);
        }
        Err(SnapshotError::Limit { limit: "waiting_bytes_max", max: max as u64, entry: String::new() })
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.store.waiting.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl LayerStore {
    /// Opens the layers below `root`, the durable root directory. What a crash left half-made is moved out of the way at once
    /// and deleted by a background thread. A layer whose record cannot be read does not exist until it is committed again.
    ///
    /// # Errors
    /// [`SnapshotError::InUse`] when another process has them open; [`SnapshotError::Io`].
    pub fn open(root: &Path) -> Result<Self> {
        let layers = root.join("layers");
        make_dir(root, 0o711)?;
        make_dir(&layers, 0o711)?;
        for (dir, mode) in
            [(STAGING, 0o700), (REMOVED, 0o700), (EMPTY[0], 0o711), (EMPTY[1], 0o755), (EMPTY[2], 0o755)]
        {
            make_dir(&layers.join(dir), mode)?;
        }
        let lock = lock(&layers)?;
        let inner = Inner {
            index: RwLock::default(),
            changing: Mutex::default(),
            waiting: AtomicUsize::new(0),
            _lock: lock,
            layers,
        };
        for entry in inner.names(STAGING)? {
            inner.move_to_removed(&inner.layers.join(STAGING).join(entry))?;
        }
        let index = inner.load()?;
        *write(&inner.index) = index;
        let store = Self { inner: Arc::new(inner) };
        let sweeper = store.clone();
        std::thread::Builder::new()
            .name("layer-sweep".into())
            // What cannot be removed is tried again when the store is opened next.
            .spawn(move || drop(sweeper.sweep()))
            .map_err(SnapshotError::std_io("start the sweep of", &store.inner.layers))?;
        Ok(store)
    }

    /// Deletes what was moved out of the way: leftovers of a crash, removals that failed midway. [`Self::open`] starts it.
    ///
    /// # Errors
    /// The first failure; everything else is deleted all the same.
    pub fn sweep(&self) -> Result<()> {
        let mut first = Ok(());
        for name in self.inner.names(REMOVED)? {
            first = first.and(tree::remove(&self.inner.layers.join(REMOVED).join(name)));
        }
        first
    }

    /// What the layer occupies, if it is here.
    #[must_use]
    pub fn contains(&self, chain: &ChainId) -> Option<Usage> {
        read(&self.inner.index).get(chain).map(|layer| layer.usage)
    }

    /// All layers, ordered by id.
    #[must_use]
    pub fn list(&self) -> Vec<(ChainId, Usage)> {
        let mut all: Vec<_> = read(&self.inner.index).values().map(|l| (l.chain.clone(), l.usage)).collect();
        all.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        all
    }

    /// The layer below, none for a bottom layer or one that is not here.
    #[must_use]
    pub fn parent(&self, chain: &ChainId) -> Option<ChainId> {
        read(&self.inner.index).get(chain).and_then(|layer| layer.parent.clone())
    }

    /// Sum over all layers. Kept in memory, no walk.
    #[must_use]
    pub fn usage(&self) -> Usage {
        read(&self.inner.index).values().fold(Usage::default(), |sum, layer| sum + layer.usage)
    }

    /// Where the content of a layer is, whether or not it is here.
    #[must_use]
    pub fn layer_path(&self, chain: &ChainId) -> PathBuf {
        self.inner.home(chain).join(CONTENT)
    }

    /// The directory that holds all layers, for accounting of the file system.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.inner.layers
    }

    /// Unpacks one layer from its uncompressed tar stream, read to its end. Needs no parent: layers of an image unpack in
    /// parallel. An error of `tar` itself, for instance that the pull was cancelled, comes back as
    /// [`SnapshotError::Stream`]. On any error nothing stays.
    ///
    /// # Errors
    /// [`SnapshotError::Malformed`], [`SnapshotError::Refused`], [`SnapshotError::Limit`] for what the archive did;
    /// [`SnapshotError::Stream`], [`SnapshotError::Entry`], [`SnapshotError::Io`].
    pub fn unpack(&self, tar: impl Read, limits: &Limits) -> Result<StagedLayer> {
        let staging = self.stage()?;
        let path = staging.path.join(CONTENT);
        make_dir(&path, 0o755)?;
        let content = RootedDir::open(&path).map_err(SnapshotError::path("open a staged layer"))?;
        let (diff_id, records) = unpack::unpack(tar, &content, limits)?;
        let waiting = Waiting::new(&self.inner, records.bytes(), limits)?;
        Ok(StagedLayer { staging, content, diff_id, records, waiting })
    }

    /// Places a layer on its parent and makes it durable: whiteouts, links and directories that refer to layers below are
    /// settled, the data is synced, then the record, then it appears under its chain id. A layer that is here already is
    /// success, and `staged` goes.
    ///
    /// # Errors
    /// [`SnapshotError::LayerNotFound`] for the parent; [`SnapshotError::Refused`] for a hard link to what no layer has;
    /// [`SnapshotError::Entry`], [`SnapshotError::Io`], [`SnapshotError::Mount`].
    pub fn commit(&self, staged: StagedLayer, parent: Option<&ChainId>) -> Result<ChainId> {
        let mut committed = self.commit_all(vec![staged], parent)?;
        committed.pop().ok_or_else(|| SnapshotError::io("commit to", &self.inner.layers)(Errno::INVAL))
    }

    /// As [`Self::commit`] for layers on top of each other, bottom first, but the data of all is synced at once. The answer is
    /// their chain ids. On an error the layers below the one that failed may be there.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn commit_all(&self, staged: Vec<StagedLayer>, parent: Option<&ChainId>) -> Result<Vec<ChainId>> {
        let mut below: Vec<PathBuf> =
            self.below(parent)?.iter().map(|chain| self.layer_path(chain)).collect();
        let mut parent = parent.cloned();
        let mut settled = Vec::with_capacity(staged.len());
        for layer in staged {
            let chain = ChainId::next(parent.as_ref(), &layer.diff_id);
            if self.contains(&chain).is_some() {
                below.push(self.layer_path(&chain));
                settled.push((chain.clone(), None));
            } else {
                below.push(layer.staging.path.join(CONTENT));
                let staging = self.settle(layer, &chain, parent, &below[..below.len() - 1])?;
                settled.push((chain.clone(), Some(staging)));
            }
            parent = Some(chain);
        }
        if settled.iter().any(|(_, staging)| staging.is_some()) {
            let dir =
                File::open(&self.inner.layers).map_err(SnapshotError::std_io("open", &self.inner.layers))?;
            rustix::fs::syncfs(&dir).map_err(SnapshotError::io("sync", &self.inner.layers))?;
        }
        let mut chains = Vec::with_capacity(settled.len());
        for (chain, staging) in settled {
            if let Some((staging, record)) = staging {
                self.inner.publish(&staging.path, record)?;
            }
            chains.push(chain);
        }
        Ok(chains)
    }

    /// Moves the content of a staged layer, settled on the layers of `chain`, to `target`, which is not there yet. It is nobody's parent
    /// and has no id; it is not synced.
    pub(crate) fn place(&self, staged: StagedLayer, chain: &[ChainId], target: &Path) -> Result<()> {
        let below: Vec<PathBuf> = chain.iter().map(|chain| self.layer_path(chain)).collect();
        let id = ChainId::next(chain.last(), &staged.diff_id);
        let (staging, _) = self.settle(staged, &id, chain.last().cloned(), &below)?;
        rustix::fs::rename(staging.path.join(CONTENT), target)
            .map_err(SnapshotError::io("move a layer to", target))
    }

    /// Removes a layer: first from sight, then from disk. Not being there is success.
    ///
    /// # Errors
    /// As [`Self::remove_unless`].
    pub fn remove(&self, chain: &ChainId) -> Result<()> {
        self.remove_unless(chain, || false).map(drop)
    }

    /// As [`Self::remove`], unless somebody wants the layer by now; whether it is gone. `wanted` is asked in the moment in which the layer
    /// goes out of sight: who says first that he wants it, and then finds it here, has it.
    ///
    /// # Errors
    /// [`SnapshotError::HasChildren`] while another layer lies on it; [`SnapshotError::Io`], after which it is out of sight and
    /// what is left goes with the next [`Self::sweep`].
    pub fn remove_unless(&self, chain: &ChainId, wanted: impl FnOnce() -> bool) -> Result<bool> {
        let moved = {
            let _changing = self.inner.changing();
            if read(&self.inner.index).values().any(|layer| layer.parent.as_ref() == Some(chain)) {
                return Err(SnapshotError::HasChildren { chain: chain.clone() });
            }
            let hidden = {
                let mut index = write(&self.inner.index);
                if wanted() {
                    return Ok(false);
                }
                index.remove(chain)
            };
            let moved = self.inner.move_to_removed(&self.inner.home(chain));
            if let (Err(_), Some(record)) = (&moved, hidden) {
                drop(write(&self.inner.index).insert(chain.clone(), record));
            }
            moved?
        };
        moved.map_or(Ok(()), |path| tree::remove(&path)).map(|()| true)
    }

    /// The directories for an overlay, topmost first.
    pub(crate) fn lowers(&self, chain: &[ChainId]) -> Result<Vec<PathBuf>> {
        if let Some(chain) = chain.iter().find(|chain| self.contains(chain).is_none()) {
            return Err(SnapshotError::LayerNotFound { chain: chain.clone() });
        }
        let mut lowers: Vec<_> = chain.iter().rev().map(|chain| self.layer_path(chain)).collect();
        if lowers.is_empty() {
            lowers.push(self.inner.layers.join(EMPTY[1]));
        }
        Ok(lowers)
    }

    /// The directory that all layers lie below.
    pub(crate) fn layers_dir(&self) -> &Path {
        &self.inner.layers
    }

    /// A directory with nothing in it, to lie below others.
    pub(crate) fn bottom(&self) -> PathBuf {
        self.inner.layers.join(EMPTY[2])
    }

    /// `top` and all layers below it, bottom first.
    fn below(&self, top: Option<&ChainId>) -> Result<Vec<ChainId>> {
        let index = read(&self.inner.index);
        let mut chain = Vec::new();
        let mut next = top.cloned();
        while let Some(id) = next {
            let layer = index.get(&id).ok_or_else(|| SnapshotError::LayerNotFound { chain: id.clone() })?;
            next = layer.parent.clone();
            chain.push(id);
        }
        chain.reverse();
        Ok(chain)
    }

    /// Brings a staged layer into its final form, all but durable. `below`: contents of the layers below, bottom first.
    fn settle(
        &self,
        layer: StagedLayer,
        chain: &ChainId,
        parent: Option<ChainId>,
        below: &[PathBuf],
    ) -> Result<(Staging, Record)> {
        let StagedLayer { staging, content, diff_id, records, waiting: _until_settled } = layer;
        let scratch = staging.path.join(SCRATCH);
        make_dir(&scratch, 0o700)?;
        let lowers: Vec<PathBuf> = below.iter().rev().cloned().chain([self.bottom()]).collect();
        settle::settle(&content, records, &lowers, &scratch)?;
        rustix::fs::rmdir(&scratch).map_err(SnapshotError::io("remove", &scratch))?;
        let usage = tree::usage(&staging.path.join(CONTENT))?;
        let record = Record { version: RECORD_VERSION, chain: chain.clone(), diff: diff_id, parent, usage };
        write_record(&staging.path.join(RECORD), &record)?;
        Ok((staging, record))
    }

    fn stage(&self) -> Result<Staging> {
        let path = self.inner.layers.join(STAGING).join(random_name(&self.inner.layers)?);
        make_dir(&path, 0o700)?;
        Ok(Staging { path, store: Arc::clone(&self.inner) })
    }
}

impl Inner {
    fn home(&self, chain: &ChainId) -> PathBuf {
        self.layers.join(chain.hex())
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn names(&self, dir: &str) -> Result<Vec<std::ffi::OsString>> {
        let path = self.layers.join(dir);
        let entries = std::fs::read_dir(&path).map_err(SnapshotError::std_io("list", &path))?;
        let names = entries.map(|entry| entry.map(|e| e.file_name())).collect::<std::io::Result<_>>();
        names.map_err(SnapshotError::std_io("list", &path))
    }

    fn load(&self) -> Result<HashMap<ChainId, Record>> {
        let mut index = HashMap::new();
        for name in self.names(".")? {
            let Some(chain) = name.to_str().and_then(ChainId::from_hex) else { continue };
            match read_record(&self.home(&chain)) {
                Ok(record) if record.version == RECORD_VERSION && record.chain == chain => {
                    drop(index.insert(chain, record));
                }
                // Quarantined where it is: a container may still run on it. A commit of the same chain replaces it.
                Ok(_) | Err(_) => {}
            }
        }
        Ok(index)
    }

    /// The content is synced; make the record visible under its id.
    fn publish(&self, staged: &Path, record: Record) -> Result<()> {
        let home = self.home(&record.chain);
        let _changing = self.changing();
        if read(&self.index).contains_key(&record.chain) {
            return Ok(());
        }
        if let Some(parent) = &record.parent
            && !read(&self.index).contains_key(parent)
        {
            return Err(SnapshotError::LayerNotFound { chain: parent.clone() });
        }
        rustix::fs::chmod(staged, Mode::from_raw_mode(0o711))
            .map_err(SnapshotError::io("set the mode of", staged))?;
        // Whatever is there has no valid record.
        self.move_to_removed(&home)?;
        rustix::fs::rename(staged, &home).map_err(SnapshotError::io("publish", &home))?;
        sync_dir(&self.layers)?;
        drop(write(&self.index).insert(record.chain.clone(), record));
        Ok(())
    }

    /// Takes a directory out of sight; none if it was not there.
    fn move_to_removed(&self, path: &Path) -> Result<Option<PathBuf>> {
        let to = self.layers.join(REMOVED).join(random_name(&self.layers)?);
        match rustix::fs::rename(path, &to) {
            Ok(()) => Ok(Some(to)),
            Err(Errno::NOENT) => Ok(None),
            Err(source) => Err(SnapshotError::io("remove", path)(source)),
        }
    }

    fn discard(&self, path: &Path) -> Result<()> {
        self.move_to_removed(path)?.map_or(Ok(()), |path| tree::remove(&path))
    }
}

fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// Makes a directory of the store's own, with this mode whatever the umask; being there is success.
pub(crate) fn make_dir(path: &Path, mode: u32) -> Result<()> {
    match rustix::fs::mkdir(path, Mode::from_raw_mode(mode)) {
        Ok(()) => rustix::fs::chmod(path, Mode::from_raw_mode(mode))
            .map_err(SnapshotError::io("set the mode of", path)),
        Err(Errno::EXIST) => Ok(()),
        Err(source) => Err(SnapshotError::io("create", path)(source)),
    }
}

fn random_name(near: &Path) -> Result<String> {
    let number =
        getrandom::u64().map_err(|_no_entropy| SnapshotError::io("name a directory in", near)(Errno::IO))?;
    Ok(format!("{number:016x}"))
}

fn lock(layers: &Path) -> Result<File> {
    let path = layers.join(LOCK);
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let fd = rustix::fs::openat(CWD, &path, flags, Mode::from_raw_mode(0o600))
        .map_err(SnapshotError::io("open", &path))?;
    match rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(fd.into()),
        Err(Errno::WOULDBLOCK) => Err(SnapshotError::InUse { path: layers.to_owned() }),
        Err(source) => Err(SnapshotError::io("lock", &path)(source)),
    }
}

fn sync_dir(path: &Path) -> Result<()> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(SnapshotError::std_io("sync", path))
}

fn write_record(path: &Path, record: &Record) -> Result<()> {
    let text = serde_json::to_vec(record)
        .map_err(|source| SnapshotError::Record { path: path.to_owned(), source })?;
    let mut file = File::create_new(path).map_err(SnapshotError::std_io("create", path))?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(SnapshotError::std_io("write", path))
}

fn read_record(home: &Path) -> Result<Record> {
    let path = home.join(RECORD);
    let dir = RootedDir::open(home).map_err(SnapshotError::path("open a layer"))?;
    // The content directory must be there, too.
    dir.open_dir(Path::new(CONTENT), Resolve::Strict).map_err(SnapshotError::path("open a layer"))?;
    let text = dir
        .read_file(Path::new(RECORD), RECORD_BYTES_MAX)
        .map_err(SnapshotError::path("read a layer's record"))?;
    serde_json::from_slice(&text).map_err(|source| SnapshotError::Record { path, source })
}
