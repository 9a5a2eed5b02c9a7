//! Which images are here, on disk and in memory.
//!
//! ```text
//! <root>/images/
//!   <id's hex>.json    record: names, annotations, layers
//!   <id's hex>.config  the image configuration, whose digest is the id
//! ```
//!
//! The configuration is written before the record, the layers before both: a record means a complete image. A tag that moves is
//! written into its new record first; each tag has the generation of its last writing, and at start the newest one wins, so a
//! crash in between is settled. Readers use a published snapshot and never wait for a writer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use crisp_snapshot::{ChainId, LayerStore, Usage};
use crisp_store::{Durability, StoreError};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::digest::{Digest, ImageId, is_hex};
use crate::error::{ImageError, Result};
use crate::image::{Image, ImageUser};
use crate::manifest::{CONFIG_BYTES_MAX, CheckedConfig, parse_config};
use crate::reference::ImageRef;

const RECORD_VERSION: u32 = 1;
const RECORD_SUFFIX: &str = "json";
const CONFIG_SUFFIX: &str = "config";
/// Fewest digits that may stand for an id.
const PREFIX_DIGITS_MIN: usize = 3;
/// Most tags, and most digests, of one image.
const NAMES_MAX: usize = 4096;

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    id: ImageId,
    /// Tag to the generation in which it was given.
    tags: BTreeMap<String, u64>,
    digests: BTreeSet<String>,
    annotations: BTreeMap<String, String>,
    chain: Vec<ChainId>,
}

/// The names that an image gets.
#[derive(Debug, Clone, Default)]
pub(crate) struct Names {
    pub(crate) tags: Vec<String>,
    pub(crate) digests: Vec<String>,
}

/// An image whose layers are all here.
#[derive(Debug)]
pub(crate) struct Complete {
    pub(crate) config_bytes: Vec<u8>,
    pub(crate) config: CheckedConfig,
    pub(crate) chain: Vec<ChainId>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(crate) names: Names,
}

/// What readers see.
#[derive(Debug, Default)]
pub(crate) struct Published {
    pub(crate) images: Arc<[Arc<Image>]>,
    by_hex: BTreeMap<String, Arc<Image>>,
    by_name: HashMap<String, Arc<Image>>,
    by_digest: HashMap<Digest, Arc<Image>>,
}

#[derive(Debug)]
pub(crate) struct Index {
    dir: PathBuf,
    layers: LayerStore,
    pinned: Vec<String>,
    /// One writer at a time; held while records are written and synced.
    state: Mutex<State>,
    published: ArcSwap<Published>,
}

#[derive(Debug, Default)]
struct State {
    images: BTreeMap<ImageId, (Record, Arc<Image>)>,
    generation: u64,
}

impl Index {
    /// Reads all records. One that is of no use (unreadable, its layers gone) is dropped: the image can be pulled again.
    pub(crate) fn open(dir: PathBuf, layers: LayerStore, pinned: Vec<String>) -> Result<Self> {
        crisp_store::ensure_dir(&dir)?;
        crisp_store::sweep(&dir)?;
        let index = Self { dir, layers, pinned, state: Mutex::default(), published: ArcSwap::default() };
        let mut state = State::default();
        for path in index.files(RECORD_SUFFIX)? {
            match index.load(&path) {
                Ok(Some((record, image))) => {
                    state.generation = state.generation.max(record.tags.values().copied().max().unwrap_or(0));
                    state.images.insert(record.id.clone(), (record, image));
                }
                Ok(None) => {}
                // Written by a newer version of this program: not ours to delete.
                Err(ImageError::Record(error @ StoreError::Version { .. })) => {
                    warn!(error = %error, "image record is not read");
                }
                Err(error) => {
                    warn!(path = %path.display(), error = %error, "image is dropped");
                    crisp_store::remove(&path, Durability::Durable)?;
                }
            }
        }
        index.settle_tags(&mut state)?;
        index.drop_orphans(&state)?;
        index.publish(&state);
        *index.lock() = state;
        Ok(index)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn files(&self, suffix: &str) -> Result<Vec<PathBuf>> {
        let error = |source| ImageError::Io { operation: "list", path: self.dir.clone(), source };
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(error)? {
            let path = entry.map_err(error)?.path();
            if path.extension().is_some_and(|e| e == suffix) {
                found.push(path);
            }
        }
        found.sort();
        Ok(found)
    }

    fn load(&self, path: &Path) -> Result<Option<(Record, Arc<Image>)>> {
        let Some(record) = crisp_store::read::<Record>(path, RECORD_VERSION)? else { return Ok(None) };
        let subject = path.display().to_string();
        let bad = |reason: String| ImageError::Document { subject: subject.clone(), reason };
        if path != self.path(&record.id, RECORD_SUFFIX) {
            return Err(bad("it is the record of another image".into()));
        }
        let bytes = self.config_bytes(&record.id)?;
        let checked = parse_config(&subject, &bytes, Some(record.chain.len()))?;
        if ChainId::chain(&checked.diff_ids) != record.chain {
            return Err(bad("its layers are not those of its configuration".into()));
        }
        if let Some(missing) = record.chain.iter().find(|c| self.layers.contains(c).is_none()) {
            return Err(bad(format!("its layer {missing} is gone")));
        }
        let image = self.image(&record, checked, bytes.len());
        Ok(Some((record, image)))
    }

    /// The configuration of an image, byte for byte.
    pub(crate) fn config_bytes(&self, id: &ImageId) -> Result<Vec<u8>> {
        use std::io::Read as _;
        let path = self.path(id, CONFIG_SUFFIX);
        let mut bytes = Vec::new();
        let read = fs::File::open(&path).and_then(|f| f.take(CONFIG_BYTES_MAX).read_to_end(&mut bytes));
        read.map_err(|source| ImageError::Io { operation: "read", path: path.clone(), source })?;
        let found = Digest::of(&bytes);
        if found != id.0 {
            let (subject, expected) = (path.display().to_string(), id.0.clone());
            return Err(ImageError::Mismatch { subject, expected, found: found.to_string() });
        }
        Ok(bytes)
    }

    fn path(&self, id: &ImageId, suffix: &str) -> PathBuf {
        self.dir.join(format!("{}.{suffix}", id.0.hex()))
    }

    fn image(&self, record: &Record, checked: CheckedConfig, config_bytes: usize) -> Arc<Image> {
        let layers = record.chain.iter().filter_map(|c| self.layers.contains(c)).map(|u| u.bytes);
        let user = checked.config.config().as_ref().and_then(|c| c.user().as_deref()).unwrap_or("");
        let names = || record.tags.keys().chain(&record.digests);
        Arc::new(Image {
            id: record.id.clone(),
            repo_tags: record.tags.keys().cloned().collect(),
            repo_digests: record.digests.iter().cloned().collect(),
            size_bytes: layers.fold(config_bytes as u64, u64::saturating_add),
            user: ImageUser::parse(user),
            config: checked.config,
            chain: record.chain.clone(),
            pinned: names().any(|name| self.pinned.iter().any(|pattern| matches(pattern, name))),
            annotations: record.annotations.clone(),
        })
    }

    /// Of two images with one tag the one that got it last keeps it.
    fn settle_tags(&self, state: &mut State) -> Result<()> {
        let mut newest: HashMap<String, u64> = HashMap::new();
        for (tag, generation) in state.images.values().flat_map(|(record, _)| &record.tags) {
            let entry = newest.entry(tag.clone()).or_default();
            *entry = (*entry).max(*generation);
        }
        for (record, image) in state.images.values_mut() {
            let before = record.tags.len();
            record.tags.retain(|tag, generation| newest.get(tag) == Some(generation));
            if record.tags.len() != before {
                self.write(record)?;
                *image = self.renamed(record, image);
            }
        }
        Ok(())
    }

    /// Configurations whose record was never written, or is gone.
    fn drop_orphans(&self, state: &State) -> Result<()> {
        for path in self.files(CONFIG_SUFFIX)? {
            let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or("");
            let id = format!("sha256:{stem}").parse().map(ImageId);
            let known =
                id.is_ok_and(|id| state.images.contains_key(&id) || self.path(&id, RECORD_SUFFIX).exists());
            if !known {
                crisp_store::remove(&path, Durability::Volatile)?;
            }
        }
        Ok(())
    }

    fn write(&self, record: &Record) -> Result<()> {
        let path = self.path(&record.id, RECORD_SUFFIX);
        Ok(crisp_store::write(&path, RECORD_VERSION, record, Durability::Durable)?)
    }

    fn renamed(&self, record: &Record, image: &Image) -> Arc<Image> {
        let names = || record.tags.keys().chain(&record.digests);
        Arc::new(Image {
            repo_tags: record.tags.keys().cloned().collect(),
            repo_digests: record.digests.iter().cloned().collect(),
            pinned: names().any(|name| self.pinned.iter().any(|pattern| matches(pattern, name))),
            annotations: record.annotations.clone(),
            ..image.clone()
        })
    }

    fn publish(&self, state: &State) {
        let mut next = Published {
            images: state.images.values().map(|(_, image)| Arc::clone(image)).collect(),
            ..Published::default()
        };
        for (_, image) in state.images.values() {
            next.by_hex.insert(image.id.0.hex().into(), Arc::clone(image));
            for name in image.repo_tags.iter().chain(&image.repo_digests) {
                next.by_name.insert(name.clone(), Arc::clone(image));
            }
            for digest in image.repo_digests.iter().filter_map(|d| d.rsplit_once('@')?.1.parse().ok()) {
                next.by_digest.insert(digest, Arc::clone(image));
            }
        }
        self.published.store(Arc::new(next));
    }

    /// What is here now.
    pub(crate) fn published(&self) -> Arc<Published> {
        self.published.load_full()
    }

    /// Records a complete image, or gives one that is here more names. Blocking.
    pub(crate) fn add(&self, complete: Complete) -> Result<Arc<Image>> {
        let id = ImageId(Digest::of(&complete.config_bytes));
        let mut state = self.lock();
        let old = state.images.get(&id).map(|(record, _)| record.clone());
        let is_new = old.is_none();
        let fresh = || Record {
            id: id.clone(),
            tags: BTreeMap::new(),
            digests: BTreeSet::new(),
            annotations: BTreeMap::new(),
            chain: complete.chain.clone(),
        };
        let mut record = old.unwrap_or_else(fresh);
        record.annotations.clone_from(&complete.annotations);
        if is_new {
            self.write_config(&id, &complete.config_bytes)?;
        }
        let image = self.image(&record, complete.config, complete.config_bytes.len());
        self.rename(&mut state, record, &image, &complete.names)
    }

    /// Gives an image more names; `None` when it is not here any more. Blocking.
    pub(crate) fn name(&self, id: &ImageId, names: &Names) -> Result<Option<Arc<Image>>> {
        let mut state = self.lock();
        let Some((record, image)) = state.images.get(id).cloned() else { return Ok(None) };
        let known = names.tags.iter().all(|tag| record.tags.contains_key(tag))
            && names.digests.iter().all(|digest| record.digests.contains(digest));
        if known {
            return Ok(Some(image));
        }
        self.rename(&mut state, record, &image, names).map(Some)
    }

    fn write_config(&self, id: &ImageId, bytes: &[u8]) -> Result<()> {
        Ok(crisp_store::replace(&self.path(id, CONFIG_SUFFIX), bytes, Durability::Durable)?)
    }

    fn rename(
        &self,
        state: &mut State,
        mut record: Record,
        image: &Image,
        names: &Names,
    ) -> Result<Arc<Image>> {
        state.generation += 1;
        record.tags.extend(names.tags.iter().map(|tag| (tag.clone(), state.generation)));
        record.digests.extend(names.digests.iter().cloned());
        if record.tags.len() > NAMES_MAX || record.digests.len() > NAMES_MAX {
            let reason = format!("it would have more than {NAMES_MAX} names");
            return Err(ImageError::Document { subject: record.id.to_string(), reason });
        }
        self.write(&record)?;
        let image = self.renamed(&record, image);
        let id = record.id.clone();
        state.images.insert(id.clone(), (record, Arc::clone(&image)));
        let taken = self.take_tags(state, &id, &names.tags);
        self.publish(state);
        taken.map(|()| image)
    }

    /// Takes the tags from every other image.
    fn take_tags(&self, state: &mut State, id: &ImageId, tags: &[String]) -> Result<()> {
        let mut first = Ok(());
        for (record, image) in
            state.images.iter_mut().filter(|(other, _)| *other != id).map(|(_, entry)| entry)
        {
            let before = record.tags.len();
            record.tags.retain(|tag, _| !tags.contains(tag));
            if record.tags.len() == before {
                continue;
            }
            *image = self.renamed(record, image);
            // When this fails, the generation settles it at the next start.
            first = first.and(self.write(record));
        }
        first
    }

    /// Forgets an image with all its names; one that is not here is fine. Blocking.
    pub(crate) fn remove(&self, id: &ImageId) -> Result<()> {
        let mut state = self.lock();
        if !state.images.contains_key(id) {
            return Ok(());
        }
        crisp_store::remove(&self.path(id, RECORD_SUFFIX), Durability::Durable)?;
        state.images.remove(id);
        self.publish(&state);
        Ok(crisp_store::remove(&self.path(id, CONFIG_SUFFIX), Durability::Volatile)?)
    }
}

/// A name, or the beginning of one and a star.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => name.starts_with(beginning),
        None => pattern == name,
    }
}

impl Published {
    /// Finds an image by what CRI clients write: id, name with digest or tag, beginning of an id. A name without a registry
    /// is one of the first registry of `search` that has it.
    pub(crate) fn resolve(&self, text: &str, search: &[String]) -> Result<Option<Arc<Image>>> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if let Some(image) = self.by_hex.get(hex) {
            return Ok(Some(Arc::clone(image)));
        }
        let names = ImageRef::candidates(text, search);
        if let Some(image) = names.iter().flatten().find_map(|name| self.by_name(name)) {
            return Ok(Some(Arc::clone(image)));
        }
        if is_hex(hex) && hex.len() >= PREFIX_DIGITS_MIN {
            return self.by_prefix(text, hex);
        }
        names.map(|_| None)
    }

    fn by_prefix(&self, text: &str, hex: &str) -> Result<Option<Arc<Image>>> {
        let mut found = self.by_hex.range(hex.to_owned()..).take_while(|(id, _)| id.starts_with(hex));
        match (found.next(), found.next()) {
            (Some(_), Some(_)) => Err(ImageError::Ambiguous { text: text.into() }),
            (one, _) => Ok(one.map(|(_, image)| Arc::clone(image))),
        }
    }

    pub(crate) fn by_name(&self, reference: &ImageRef) -> Option<&Arc<Image>> {
        self.by_name.get(&reference.to_string())
    }

    /// The image that a manifest or index digest stands for.
    pub(crate) fn by_digest(&self, digest: &Digest) -> Option<&Arc<Image>> {
        self.by_digest.get(digest)
    }

    pub(crate) fn by_id(&self, id: &ImageId) -> Option<&Arc<Image>> {
        self.by_hex.get(id.0.hex())
    }

    /// What the records take, roughly: a block for each of the two files.
    pub(crate) fn usage(&self) -> Usage {
        let images = self.images.len() as u64;
        Usage { bytes: images * 2 * 4096, inodes: images * 2 }
    }
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
