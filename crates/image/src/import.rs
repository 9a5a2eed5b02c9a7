//! From an archive to images.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use tokio::sync::watch;

use crate::archive::{Archive, Saved};
use crate::board::Board;
use crate::digest::Digest;
use crate::error::{ImageError, Result};
use crate::image::Image;
use crate::index::Names;
use crate::layer::{Source, Wanted};
use crate::manifest::{
    self, CONFIG_BYTES_MAX, Descriptor, Document, INDEX_DEPTH_MAX, MANIFEST_BYTES_MAX, Manifest,
};
use crate::pull::{Found, complete};
use crate::reference::{ImageRef, Target};
use crate::store::Inner;

/// Most images in one archive.
const IMAGES_MAX: usize = 256;
/// Where tools write the name of an image in an image layout; the first is always a whole name, the second often a bare tag.
const NAME_ANNOTATIONS: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// Imports every image of the archive. `name`: what to call it, for an archive with one image; it replaces the names inside.
pub(crate) async fn run(
    inner: Arc<Inner>,
    path: PathBuf,
    name: Option<ImageRef>,
    board: &watch::Sender<Board>,
) -> Result<Vec<Arc<Image>>> {
    let label = Digest::of(path.as_os_str().as_encoded_bytes());
    let found = inner.blocking(&label, move |inner| find(inner, &path, name.as_ref())).await?;
    let mut images = Vec::with_capacity(found.len());
    for one in found {
        images.push(complete(&inner, one, board).await?);
    }
    Ok(images)
}

fn find(inner: &Inner, path: &Path, name: Option<&ImageRef>) -> Result<Vec<Found>> {
    let archive = Archive::open(path, &inner.scratch)?;
    let found = if archive.find("index.json")?.is_some() && archive.find("oci-layout")?.is_some() {
        in_layout(inner, &archive)?
    } else if archive.find("manifest.json")?.is_some() {
        let saved: Vec<Saved> = archive.json("manifest.json")?;
        bounded(&archive, saved)?.iter().map(|s| in_saved(&archive, s)).collect::<Result<_>>()?
    } else {
        return Err(archive.bad("it is neither an OCI image layout nor an archive of docker save"));
    };
    renamed(&archive, found, name)
}

fn bounded<T>(archive: &Archive, images: Vec<T>) -> Result<Vec<T>> {
    match images.len() {
        0 => Err(archive.bad("it has no image")),
        n if n > IMAGES_MAX => Err(archive.bad(format!("it has {n} images, the limit is {IMAGES_MAX}"))),
        _ => Ok(images),
    }
}

fn renamed(archive: &Archive, mut found: Vec<Found>, name: Option<&ImageRef>) -> Result<Vec<Found>> {
    let Some(name) = name else { return Ok(found) };
    let [one] = found.as_mut_slice() else {
        return Err(archive.bad(format!("it has {} images, so they cannot all be {name}", found.len())));
    };
    let Target::Tag(_) = name.target() else {
        return Err(archive.bad("an image is named by a tag, its digest follows from its content"));
    };
    let digests = one.names.digests.iter().filter_map(|d| d.rsplit_once('@')?.1.parse().ok());
    let digests = digests.map(|digest: Digest| name.at(digest).to_string()).collect();
    one.names = Names { tags: vec![name.to_string()], digests };
    Ok(found)
}

#[derive(Deserialize)]
struct LayoutIndex {
    manifests: Vec<Descriptor>,
}

fn in_layout(inner: &Inner, archive: &Archive) -> Result<Vec<Found>> {
    let index: LayoutIndex = archive.json("index.json")?;
    // Attestations and signatures lie beside the images that they are about.
    let images = index.manifests.into_iter().filter(|d| d.artifact_type.is_none() && !is_attestation(d));
    let mut found: Vec<Found> = Vec::new();
    for descriptor in bounded(archive, images.collect())? {
        let tag = annotated_name(&descriptor);
        // One image under several names is there once for each.
        if let Some(same) = found.iter_mut().find(|f| f.digest == descriptor.digest) {
            same.names = merged(&same.names, tag.as_ref(), &descriptor.digest);
            continue;
        }
        let names = merged(&Names::default(), tag.as_ref(), &descriptor.digest);
        let manifest = manifest_of(inner, archive, &descriptor)?;
        found.push(of_manifest(archive, descriptor.digest, manifest, names)?);
    }
    Ok(found)
}

fn is_attestation(descriptor: &Descriptor) -> bool {
    descriptor.platform.as_ref().is_some_and(|p| p.os == "unknown")
}

fn annotated_name(descriptor: &Descriptor) -> Option<ImageRef> {
    let annotations = descriptor.annotations.as_ref()?;
    let whole = |name: &&String| name.contains([':', '/']);
    let texts = NAME_ANNOTATIONS.iter().filter_map(|key| annotations.get(*key)).filter(whole);
    texts.filter_map(|text| text.parse().ok()).next()
}

fn merged(names: &Names, tag: Option<&ImageRef>, digest: &Digest) -> Names {
    let mut names = names.clone();
    if let Some(tag) = tag {
        names.tags.extend(matches!(tag.target(), Target::Tag(_)).then(|| tag.to_string()));
        names.digests.push(tag.at(digest.clone()).to_string());
    }
    names
}

fn manifest_of(inner: &Inner, archive: &Archive, descriptor: &Descriptor) -> Result<Manifest> {
    let mut next = descriptor.clone();
    for _ in 0..=INDEX_DEPTH_MAX + 1 {
        let bytes = archive.document(&next.digest, MANIFEST_BYTES_MAX)?;
        let subject = next.digest.to_string();
        match manifest::parse(&subject, &next.media_type, &bytes)? {
            Document::Manifest(manifest) => return Ok(manifest),
            Document::Index(index) => next = index.choose(&subject, &inner.platform)?.clone(),
        }
    }
    Err(archive.bad(format!("{}: more than {INDEX_DEPTH_MAX} indexes below the first", descriptor.digest)))
}

fn of_manifest(archive: &Archive, digest: Digest, manifest: Manifest, names: Names) -> Result<Found> {
    let config_bytes = archive.document(&manifest.config.digest, CONFIG_BYTES_MAX)?;
    let subject = manifest.config.digest.to_string();
    let config = manifest::parse_config(&subject, &config_bytes, Some(manifest.layers.len()))?;
    let layers = manifest.layers.iter().zip(&config.diff_ids).map(|(layer, diff_id)| {
        let blob = archive.blob(&layer.digest)?;
        Ok(Wanted {
            bytes: blob.len(),
            source: Source::File(blob, Some(layer.digest.clone())),
            name: layer.digest.clone(),
            diff_id: diff_id.clone(),
        })
    });
    let layers = layers.collect::<Result<_>>()?;
    Ok(Found { digest, layers, config_bytes, config, annotations: manifest.annotations, names })
}

/// An image of `docker save`: its layers have no digests of their own, their diff ids are what is verified.
fn in_saved(archive: &Archive, saved: &Saved) -> Result<Found> {
    let bytes = archive.need(&saved.config)?.read_all(CONFIG_BYTES_MAX);
    let config_bytes = bytes.map_err(|e| archive.bad(format!("{}: {e}", saved.config)))?;
    let digest = Digest::of(&config_bytes);
    let files = saved.layers.as_deref().unwrap_or_default();
    let config = manifest::parse_config(&saved.config, &config_bytes, Some(files.len()))?;
    let layers = files.iter().zip(&config.diff_ids).map(|(file, diff_id)| {
        let blob = archive.need(file)?;
        let name = diff_id.as_str().parse().map_err(|_error| archive.bad("a layer has no valid diff id"))?;
        Ok(Wanted { bytes: blob.len(), source: Source::File(blob, None), name, diff_id: diff_id.clone() })
    });
    let layers = layers.collect::<Result<_>>()?;
    let tags = saved.repo_tags.iter().flatten().map(|tag| Ok(tag.parse::<ImageRef>()?.to_string()));
    let names = Names { tags: tags.collect::<Result<_, ImageError>>()?, digests: Vec::new() };
    Ok(Found {
        digest,
        layers,
        config_bytes,
        config,
        annotations: std::collections::BTreeMap::default(),
        names,
    })
}
