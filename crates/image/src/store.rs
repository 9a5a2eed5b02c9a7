use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crisp_snapshot::{ChainId, LayerStore, SnapshotError, Usage};
use tokio::sync::watch;
use tracing::{Span, warn};

use crate::auth::Auth;
use crate::board::Board;
use crate::config::RegistryConfig;
use crate::digest::Digest;
use crate::error::{ImageError, Result, chain};
use crate::image::{Image, Progress};
use crate::index::Index;
use crate::job::Jobs;
use crate::layer::Maker;
use crate::pins::{LayerPin, Pins};
use crate::platform::Platform;
use crate::reference::{ImageRef, Target};
use crate::registry::Registry;
use crate::{import, pull, threads};

const DIRECTORY: &str = "images";

/// The images of this node: a handle to be cloned.
///
/// Reading ([`Self::list`], [`Self::resolve`], [`Self::fs_usage`]) is from memory and never waits. What is said to be blocking
/// touches the disk and belongs on a blocking thread; what is async needs a tokio runtime with time and I/O.
#[derive(Debug, Clone)]
pub struct ImageStore(Arc<Inner>);

/// What the parts of a pull share.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) registry: Arc<Registry>,
    pub(crate) index: Index,
    pub(crate) pins: Arc<Pins>,
    pub(crate) maker: Arc<Maker>,
    pub(crate) platform: Platform,
    /// As in [`RegistryConfig::search`].
    search: Vec<String>,
    /// For temporary files on the images' own file system.
    pub(crate) scratch: PathBuf,
    /// Pulls by reference and credentials: nobody gets an image on somebody else's password.
    pulls: Jobs<(String, Digest), Arc<Image>, Board>,
}

/// Who hears of progress. It is called from the waiting task, and must not block.
pub type OnProgress<'a> = &'a (dyn Fn(Progress) + Send + Sync);

/// What [`ImageStore::collect`] removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Layers that are gone.
    pub layers: usize,
    /// What they took.
    pub usage: Usage,
}

impl Inner {
    /// Runs blocking work. `label` names it in the error when the runtime ends meanwhile.
    pub(crate) async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        label: &Digest,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (inner, span) = (Arc::clone(self), Span::current());
        let done = threads::run(move || span.in_scope(|| work(&inner))).await;
        done.map_err(|_error| ImageError::Cancelled { subject: label.to_string() })?
    }
}

impl ImageStore {
    /// Opens the images below `root`, the durable root directory. Blocking.
    ///
    /// Images of which a part is missing are dropped. No layer is removed yet, since containers of an earlier run may use some:
    /// take their pins, then call [`Self::collect`].
    ///
    /// # Errors
    /// [`ImageError::Record`] and [`ImageError::Io`] when the directory cannot be read or repaired.
    pub fn open(root: &Path, layers: LayerStore, config: RegistryConfig) -> Result<Self> {
        let dir = root.join(DIRECTORY);
        let index = Index::open(dir.clone(), layers.clone(), config.pinned.clone())?;
        Ok(Self(Arc::new(Inner {
            index,
            pins: Arc::default(),
            maker: Arc::new(Maker::new(layers, &config)),
            platform: config.platform.clone().unwrap_or_else(Platform::host),
            search: config.search.clone(),
            registry: Arc::new(Registry::new(config)),
            scratch: dir,
            pulls: Jobs::default(),
        })))
    }

    /// All images, ordered by id.
    #[must_use]
    pub fn list(&self) -> Arc<[Arc<Image>]> {
        Arc::clone(&self.0.index.published().images)
    }

    /// Finds an image: by id with or without `sha256:`, by name and digest, by name and tag (normalised as in
    /// [`ImageRef`]), by the beginning of an id. `None` when there is none.
    ///
    /// # Errors
    /// [`ImageError::Ambiguous`] for the beginning of several ids, [`ImageError::Reference`] for what can be no name.
    pub fn resolve(&self, text: &str) -> Result<Option<Arc<Image>>> {
        self.0.index.published().resolve(text, &self.0.search)
    }

    /// Pulls an image. A tag is always resolved at the registry; a name with a digest that is complete here needs no network.
    ///
    /// Equal pulls (same reference and credentials) run once; dropping the future of the last one stops it. Layers that are
    /// complete stay for the next attempt until [`Self::collect`]; nothing of an incomplete image is ever listed.
    ///
    /// # Errors
    /// See [`ImageError`]; [`ImageError::is_registry_unavailable`] tells a registry that was away.
    pub async fn pull(&self, reference: &str, auth: Auth, progress: OnProgress<'_>) -> Result<Arc<Image>> {
        let mut candidates = ImageRef::candidates(reference, &self.0.search)?;
        if candidates.len() == 1 {
            return self.pull_one(candidates.remove(0), auth, progress).await;
        }
        let mut tried = Vec::with_capacity(candidates.len());
        for candidate in candidates {
            match self.pull_one(candidate, auth.clone(), progress).await {
                Err(error) if error.lets_search_on() => tried.push(error),
                done => return done,
            }
        }
        Err(ImageError::ShortName { name: reference.to_owned(), tried })
    }

    async fn pull_one(
        &self,
        reference: ImageRef,
        auth: Auth,
        progress: OnProgress<'_>,
    ) -> Result<Arc<Image>> {
        if let (Target::Digest(_), Some(image)) =
            (reference.target(), self.0.index.published().by_name(&reference))
        {
            return Ok(Arc::clone(image));
        }
        let name = reference.to_string();
        let key = (name.clone(), auth.key());
        let inner = Arc::clone(&self.0);
        let (job, _) = self.0.pulls.join(key, &name, move |board| pull::run(inner, reference, auth, board));
        let mut seen = Board::default();
        job.wait(|board| board.since(&mut seen).into_iter().for_each(progress)).await
    }

    /// Imports the images of an archive: an OCI image layout (directory or archive) or what `docker save` wrote, plain or
    /// compressed with gzip or zstd. `name` replaces the names inside, for an archive with one image.
    ///
    /// # Errors
    /// [`ImageError::Archive`] and those of a pull. Images before the one that failed are here.
    pub async fn import(
        &self,
        archive: &Path,
        name: Option<&str>,
        progress: OnProgress<'_>,
    ) -> Result<Vec<Arc<Image>>> {
        let name = name.map(str::parse).transpose()?;
        let (board, mut news) = watch::channel(Board::default());
        let mut work = std::pin::pin!(import::run(Arc::clone(&self.0), archive.into(), name, &board));
        let mut seen = Board::default();
        loop {
            tokio::select! {
                biased;
                // The sender lives as long as this function.
                _ = news.changed() => {}
                done = &mut work => {
                    news.borrow_and_update().since(&mut seen).into_iter().for_each(progress);
                    return done;
                }
            }
            news.borrow_and_update().since(&mut seen).into_iter().for_each(progress);
        }
    }

    /// Removes the image that `text` means, with all its names; what is not here is fine. It is invisible to everyone when this
    /// returns. Its layers go with the next [`Self::collect`], those that containers use after them.
    ///
    /// # Errors
    /// Those of [`Self::resolve`]; [`ImageError::Record`] when the record cannot be removed: the image is then still here.
    pub async fn remove(&self, text: &str) -> Result<()> {
        let Some(image) = self.resolve(text)? else { return Ok(()) };
        self.0.blocking(&image.id.0.clone(), move |inner| inner.index.remove(&image.id)).await
    }

    /// Keeps the layers of an image for as long as the pin lives, whatever happens to the image.
    pub fn pin(&self, image: &Image) -> LayerPin {
        self.pin_chain(&image.chain)
    }

    /// As [`Self::pin`], by the layers that a container's record names.
    pub fn pin_chain(&self, chain: &[ChainId]) -> LayerPin {
        self.0.pins.hold(chain)
    }

    /// Removes the layers that no image has, no pin holds and no pull makes. Blocking.
    ///
    /// To be called after [`Self::remove`], after the removal of a container, and at start once all pins are taken.
    ///
    /// # Errors
    /// The first failure; the other layers are removed all the same.
    pub fn collect(&self) -> Result<Collected> {
        let layers = &self.0.maker.layers;
        let (mut collected, mut first_error) = (Collected::default(), None);
        for (id, usage) in top_first(layers) {
            let Some(_dying) = self.0.pins.condemn(&id, || self.is_referenced(&id)) else { continue };
            // A container may have pinned it since.
            match layers.remove_unless(&id, || self.0.pins.is_held(&id)) {
                Ok(true) => {
                    collected.layers += 1;
                    collected.usage = collected.usage + usage;
                }
                Ok(false) => {}
                // A layer was put on it and let go since the list was made: the next collection takes both.
                Err(SnapshotError::HasChildren { .. }) => {}
                Err(error) => {
                    warn!(chain = %id, error = chain(&error), "layer is not removed");
                    first_error.get_or_insert(error);
                }
            }
        }
        first_error.map_or(Ok(collected), |error| Err(ImageError::Layers(error)))
    }

    fn is_referenced(&self, id: &ChainId) -> bool {
        self.0.index.published().images.iter().any(|image| image.chain.contains(id))
    }

    /// What layers and records take, from accounts that are kept: no walk.
    #[must_use]
    pub fn fs_usage(&self) -> Usage {
        self.0.maker.layers.usage() + self.0.index.published().usage()
    }

    /// The configuration of an image, byte for byte as its author wrote it. Blocking.
    ///
    /// # Errors
    /// [`ImageError::Io`] when the image was removed meanwhile, [`ImageError::Mismatch`] when the file was changed.
    pub fn config_json(&self, image: &Image) -> Result<Vec<u8>> {
        self.0.index.config_bytes(&image.id)
    }
}

/// All layers, each before the one that it lies on.
fn top_first(layers: &LayerStore) -> Vec<(ChainId, Usage)> {
    let depth = |id: &ChainId| {
        let (mut depth, mut seen, mut at) = (0usize, HashSet::new(), id.clone());
        while let Some(parent) = layers.parent(&at).filter(|_| seen.insert(at.clone())) {
            (depth, at) = (depth + 1, parent);
        }
        depth
    };
    let mut all: Vec<_> = layers.list().into_iter().map(|(id, usage)| (depth(&id), id, usage)).collect();
    all.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    all.into_iter().map(|(_, id, usage)| (id, usage)).collect()
}
