//! From a reference to a complete image.

use std::sync::Arc;

use crisp_snapshot::ChainId;
use tokio::sync::watch;

use crate::auth::Auth;
use crate::board::{Board, LayerState, Part};
use crate::digest::{Digest, ImageId};
use crate::error::{ImageError, Result};
use crate::image::Image;
use crate::index::{Complete, Names};
use crate::layer::{Source, Wanted};
use crate::manifest::{self, CheckedConfig, Descriptor, Document, INDEX_DEPTH_MAX, Manifest};
use crate::reference::{ImageRef, Target};
use crate::registry::{Fetched, Session};
use crate::store::Inner;

/// Runs one pull to its end. Whoever waits for it sees its board.
pub(crate) async fn run(
    inner: Arc<Inner>,
    reference: ImageRef,
    auth: Auth,
    board: watch::Sender<Board>,
) -> Result<Arc<Image>> {
    let session = Arc::new(Session::open(&inner.registry, &reference, auth).await?);
    if let Some(image) = unchanged(&inner, &session, &reference).await? {
        return Ok(image);
    }
    let top = session.resolve(&reference).await?;
    let digest = top.digest.clone();
    if let Some(image) = known(&inner, &reference, &digest).await? {
        return Ok(image);
    }
    let manifest = choose(&inner, &session, top).await?;
    let (config_bytes, config) = configuration(&inner, &session, &manifest).await?;
    let layers = manifest.layers.iter().zip(&config.diff_ids).map(|(descriptor, diff_id)| Wanted {
        source: Source::Registry(Arc::clone(&session), descriptor.clone()),
        name: descriptor.digest.clone(),
        bytes: descriptor.size,
        diff_id: diff_id.clone(),
    });
    let found = Found {
        digest: digest.clone(),
        layers: layers.collect(),
        config_bytes,
        config,
        annotations: manifest.annotations,
        names: names(&reference, &digest),
    };
    complete(&inner, found, &board).await
}

/// An image whose documents are here and checked.
pub(crate) struct Found {
    /// What it is known by while it is pulled.
    pub(crate) digest: Digest,
    pub(crate) layers: Vec<Wanted>,
    pub(crate) config_bytes: Vec<u8>,
    pub(crate) config: CheckedConfig,
    pub(crate) annotations: std::collections::BTreeMap<String, String>,
    pub(crate) names: Names,
}

/// Gets the layers that are missing, then records the image. Its layers are held until then.
pub(crate) async fn complete(
    inner: &Arc<Inner>,
    found: Found,
    board: &watch::Sender<Board>,
) -> Result<Arc<Image>> {
    let chain = ChainId::chain(&found.config.diff_ids);
    let _pin = inner.pins.hold_settled(&chain).await;
    board.send_modify(|board| board.images.push(part(inner, &found, &chain)));
    let progress = |position, done| board.send_modify(|board| board.note(position, done));
    inner.maker.ensure(&found.layers, &chain, &progress).await?;
    let complete = Complete {
        config_bytes: found.config_bytes,
        config: found.config,
        chain,
        annotations: found.annotations,
        names: found.names,
    };
    inner.blocking(&found.digest, move |inner| inner.index.add(complete)).await
}

fn part(inner: &Inner, found: &Found, chain: &[ChainId]) -> Part {
    let all = found.layers.iter().zip(chain).enumerate();
    let missing = all.filter(|(_, (_, id))| inner.maker.layers.contains(id).is_none());
    let layers = missing.map(|(position, (wanted, _))| LayerState {
        position,
        digest: wanted.name.clone(),
        done: 0,
        total: wanted.bytes,
        finished: false,
    });
    Part { digest: found.digest.clone(), layers_all: found.layers.len(), layers: layers.collect() }
}

/// The names of an image that `reference` resolved to: pulled by digest it gets no tag.
fn names(reference: &ImageRef, digest: &Digest) -> Names {
    let tags = match reference.target() {
        Target::Tag(_) => vec![reference.to_string()],
        Target::Digest(_) => Vec::new(),
    };
    Names { tags, digests: vec![reference.at(digest.clone()).to_string()] }
}

/// A tag that is here already may point to what it did: the registry tells that without its document, and without counting a
/// download.
async fn unchanged(
    inner: &Arc<Inner>,
    session: &Session,
    reference: &ImageRef,
) -> Result<Option<Arc<Image>>> {
    if inner.index.published().by_name(reference).is_none() {
        return Ok(None);
    }
    match session.peek(reference).await? {
        Some(digest) => known(inner, reference, &digest).await,
        None => Ok(None),
    }
}

/// The image that this digest stands for, if it is here; it gets the names of the reference.
async fn known(inner: &Arc<Inner>, reference: &ImageRef, digest: &Digest) -> Result<Option<Arc<Image>>> {
    let Some(image) = inner.index.published().by_digest(digest).cloned() else { return Ok(None) };
    let names = names(reference, digest);
    inner.blocking(digest, move |inner| inner.index.name(&image.id, &names)).await
}

/// Follows indexes to the manifest for this platform.
async fn choose(inner: &Inner, session: &Session, top: Fetched) -> Result<Manifest> {
    let mut fetched = top;
    for _ in 0..=INDEX_DEPTH_MAX + 1 {
        let subject = format!("{}@{}", session.name, fetched.digest);
        let index = match manifest::parse(&subject, &fetched.content_type, &fetched.bytes)? {
            Document::Manifest(manifest) => return Ok(manifest),
            Document::Index(index) => index,
        };
        fetched = session.manifest(index.choose(&subject, &inner.platform)?).await?;
    }
    let reason = format!("more than {INDEX_DEPTH_MAX} indexes below the first");
    Err(ImageError::Document { subject: session.name.clone(), reason })
}

/// The configuration: it may be here, under another name of the image.
async fn configuration(
    inner: &Arc<Inner>,
    session: &Session,
    manifest: &Manifest,
) -> Result<(Vec<u8>, CheckedConfig)> {
    let Descriptor { digest, .. } = &manifest.config;
    let id = ImageId(digest.clone());
    let here = inner.index.published().by_id(&id).is_some();
    let kept = if here {
        inner.blocking(digest, move |inner| inner.index.config_bytes(&id)).await.ok()
    } else {
        None
    };
    let bytes = match kept {
        Some(bytes) => bytes,
        None => session.config(&manifest.config).await?,
    };
    let subject = format!("{}@{digest}", session.name);
    let checked = manifest::parse_config(&subject, &bytes, Some(manifest.layers.len()))?;
    Ok((bytes, checked))
}
