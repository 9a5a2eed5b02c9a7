use std::path::Path;
use std::sync::Arc;

use crisp_snapshot::{ChainId, LayerStore, Usage};

use crate::auth::Auth;
use crate::config::RegistryConfig;
use crate::error::{ImageError, Result};
use crate::image::{Image, Progress};

/// The images of this node: a handle to be cloned.
#[derive(Debug, Clone)]
pub struct ImageStore {}

/// Keeps layers from being collected until it is dropped.
#[derive(Debug)]
#[must_use = "the layers may be collected when it is dropped"]
pub struct LayerPin {}

/// What [`ImageStore::collect`] removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// Layers that are gone.
    pub layers: usize,
    /// What they took.
    pub usage: Usage,
}

fn later<T>() -> Result<T> {
    Err(ImageError::Unsupported { subject: "image store".into(), reason: "not built yet".into() })
}

#[allow(
    missing_docs,
    clippy::missing_errors_doc,
    unused_variables,
    clippy::unused_async,
    reason = "skeleton"
)]
impl ImageStore {
    /// Blocking. Drops the records of images whose layers are gone. Collects nothing: pin what containers use, then [`Self::collect`].
    pub fn open(root: &Path, layers: LayerStore, config: RegistryConfig) -> Result<Self> {
        later()
    }
    pub fn list(&self) -> Arc<[Arc<Image>]> {
        Arc::new([])
    }
    pub fn resolve(&self, text: &str) -> Result<Option<Arc<Image>>> {
        later()
    }
    pub async fn pull(
        &self,
        reference: &str,
        auth: Auth,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Arc<Image>> {
        later()
    }
    pub async fn remove(&self, text: &str) -> Result<()> {
        later()
    }
    pub fn pin(&self, image: &Image) -> LayerPin {
        LayerPin {}
    }
    /// For a container that is older than this daemon.
    pub fn pin_chain(&self, chain: &[ChainId]) -> LayerPin {
        LayerPin {}
    }
    /// Blocking.
    pub fn collect(&self) -> Result<Collected> {
        later()
    }
    pub async fn import(
        &self,
        archive: &Path,
        name: Option<&str>,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Vec<Arc<Image>>> {
        later()
    }
    pub fn fs_usage(&self) -> Usage {
        Usage { bytes: 0, inodes: 0 }
    }
    pub fn config_json(&self, image: &Image) -> Result<Vec<u8>> {
        later()
    }
}
