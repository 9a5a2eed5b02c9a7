//! The documents of an image: index, manifest, configuration. Pure: bytes in, checked values out.

use std::collections::BTreeMap;

use crisp_snapshot::DiffId;
use oci_spec::image::ImageConfiguration;
use serde::Deserialize;

use crate::digest::Digest;
use crate::error::{ImageError, Result};
use crate::platform::Platform;

/// Largest manifest or index, in bytes: what registries accept.
pub(crate) const MANIFEST_BYTES_MAX: u64 = 4 << 20;
/// Largest image configuration, in bytes.
pub(crate) const CONFIG_BYTES_MAX: u64 = 8 << 20;
/// Most values of an image configuration. Two bytes of JSON may take a hundred in memory, and configurations are kept there.
const CONFIG_VALUES_MAX: usize = 100_000;
/// Most layers of an image; the kernel's overlay takes 500.
pub(crate) const LAYERS_MAX: usize = 500;
/// Indexes below an index that are followed.
pub(crate) const INDEX_DEPTH_MAX: usize = 1;
/// Bytes of all annotations of a manifest that are kept.
const ANNOTATION_BYTES_MAX: usize = 64 << 10;
/// Platforms that an error message lists.
const PLATFORMS_SHOWN_MAX: usize = 32;

pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_SCHEMA_1: [&str; 2] = [
    "application/vnd.docker.distribution.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v1+prettyjws",
];
const CONFIGS: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];
/// Layers are told apart by what is in them (see `layer.rs`); the media type only has to be one of these.
const LAYERS: [&str; 10] = [
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

/// What a manifest says about one piece of content. Its `urls` are not read: content does not decide where we connect to.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
    #[serde(default)]
    pub(crate) artifact_type: Option<String>,
    #[serde(default)]
    pub(crate) annotations: Option<BTreeMap<String, String>>,
}

/// A document that a registry gave for a reference.
#[derive(Debug)]
pub(crate) enum Document {
    Index(Index),
    Manifest(Manifest),
}

#[derive(Debug)]
pub(crate) struct Index {
    pub(crate) manifests: Vec<Descriptor>,
}

#[derive(Debug)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
    pub(crate) annotations: BTreeMap<String, String>,
}

/// Every field that tells the two kinds of document apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    #[serde(default)]
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    artifact_type: Option<String>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default, rename = "fsLayers")]
    fs_layers: Option<serde::de::IgnoredAny>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

/// Reads an index or a manifest. `subject` names it in errors; `content_type` is what the registry called it, `""` for nothing.
///
/// A document that could be both, or that calls itself other than it is, is refused: two programs would take it for two images.
pub(crate) fn parse(subject: &str, content_type: &str, bytes: &[u8]) -> Result<Document> {
    let bad = |reason: String| ImageError::Document { subject: subject.into(), reason };
    let raw: Raw = serde_json::from_slice(bytes).map_err(|e| bad(format!("not a manifest: {e}")))?;
    let given = content_type.split(';').next().unwrap_or("").trim();
    let media_type = raw.media_type.clone().unwrap_or_else(|| given.into());
    if raw.fs_layers.is_some() || raw.schema_version == 1 || DOCKER_SCHEMA_1.contains(&media_type.as_str()) {
        return Err(unsupported(subject, "it has the obsolete Docker manifest schema 1"));
    }
    if raw.schema_version != 2 {
        return Err(bad(format!("schema version is {}, should be 2", raw.schema_version)));
    }
    let is_index = [OCI_INDEX, DOCKER_INDEX].contains(&media_type.as_str());
    let is_manifest = [OCI_MANIFEST, DOCKER_MANIFEST].contains(&media_type.as_str());
    // A media type that we do not know is no statement; one that we do know must fit.
    match (raw.manifests, raw.layers, raw.config) {
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
            Err(bad("it is ambiguous: both an index and a manifest".into()))
        }
        (Some(manifests), None, None) if !is_manifest => Ok(Document::Index(Index { manifests })),
        (None, layers, Some(config)) if !is_index => {
            let annotations = bounded(raw.annotations.unwrap_or_default());
            let manifest = Manifest { config, layers: layers.unwrap_or_default(), annotations };
            check_manifest(subject, raw.artifact_type.as_deref(), &manifest)?;
            Ok(Document::Manifest(manifest))
        }
        _ => Err(bad(format!("its content is not what its media type {media_type:?} says"))),
    }
}

fn unsupported(subject: &str, reason: impl Into<String>) -> ImageError {
    ImageError::Unsupported { subject: subject.into(), reason: reason.into() }
}

fn bounded(annotations: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let mut left = ANNOTATION_BYTES_MAX;
    let fits = |(key, value): &(String, String)| match left.checked_sub(key.len() + value.len()) {
        Some(rest) => {
            left = rest;
            true
        }
        None => false,
    };
    annotations.into_iter().take_while(fits).collect()
}

fn check_manifest(subject: &str, artifact_type: Option<&str>, manifest: &Manifest) -> Result<()> {
    let config_type = manifest.config.media_type.as_str();
    if !CONFIGS.contains(&config_type) {
        let kind = artifact_type.unwrap_or(config_type);
        return Err(unsupported(
            subject,
            format!("it is no container image but an artifact of type {kind:?}"),
        ));
    }
    if let Some(layer) = manifest.layers.iter().find(|l| !LAYERS.contains(&l.media_type.as_str())) {
        return Err(unsupported(subject, format!("a layer has the media type {:?}", layer.media_type)));
    }
    let bad = |reason: String| ImageError::Document { subject: subject.into(), reason };
    if manifest.layers.len() > LAYERS_MAX {
        return Err(bad(format!("it has {} layers, the limit is {LAYERS_MAX}", manifest.layers.len())));
    }
    if manifest.config.size > CONFIG_BYTES_MAX {
        return Err(bad(format!(
            "its configuration has {} bytes, the limit is {CONFIG_BYTES_MAX}",
            manifest.config.size
        )));
    }
    Ok(())
}

impl Index {
    /// The entry that runs best on `platform`; of equals the first, which is the one its author prefers.
    pub(crate) fn choose(&self, subject: &str, platform: &Platform) -> Result<&Descriptor> {
        let images = || self.manifests.iter().filter(|d| d.artifact_type.is_none());
        let ranked = images().filter_map(|d| Some((platform.rank(d.platform.as_ref()?)?, d)));
        if let Some((_, best)) = ranked.reduce(|best, next| if next.0 > best.0 { next } else { best }) {
            return Ok(best);
        }
        // An index that names no platform at all has one image, and whoever made it left the rest out.
        if let [only] = self.manifests.as_slice()
            && only.platform.is_none()
        {
            return Ok(only);
        }
        let mut names: Vec<_> = images().filter_map(|d| Some(d.platform.as_ref()?.to_string())).collect();
        names.truncate(PLATFORMS_SHOWN_MAX);
        let available = if names.is_empty() { "none".into() } else { names.join(", ") };
        Err(ImageError::Platform { subject: subject.into(), wanted: platform.to_string(), available })
    }
}

/// An image configuration whose layers fit the manifest's.
#[derive(Debug)]
pub(crate) struct CheckedConfig {
    pub(crate) config: ImageConfiguration,
    pub(crate) diff_ids: Vec<DiffId>,
}

/// Reads an image configuration. `layers`: how many the manifest has, where there is one.
pub(crate) fn parse_config(subject: &str, bytes: &[u8], layers: Option<usize>) -> Result<CheckedConfig> {
    let bad = |reason: String| ImageError::Document { subject: subject.into(), reason };
    // Those in texts are counted, too: nothing has to be parsed for that.
    let values = bytes.iter().filter(|byte| matches!(byte, b',' | b'[' | b'{')).count();
    if values > CONFIG_VALUES_MAX {
        return Err(bad(format!("it holds {values} values, the limit is {CONFIG_VALUES_MAX}")));
    }
    let config: ImageConfiguration =
        serde_json::from_slice(bytes).map_err(|e| bad(format!("not an image configuration: {e}")))?;
    let diff_ids = config.rootfs().diff_ids();
    if diff_ids.len() > LAYERS_MAX {
        return Err(bad(format!("it has {} layers, the limit is {LAYERS_MAX}", diff_ids.len())));
    }
    if let Some(layers) = layers.filter(|n| *n != diff_ids.len()) {
        return Err(bad(format!("it lists {} layers, its manifest {layers}", diff_ids.len())));
    }
    let parsed = diff_ids.iter().map(|text| {
        let digest: Digest = text.parse().map_err(|e| bad(format!("a layer's diff id: {e}")))?;
        digest.as_str().parse::<DiffId>().map_err(|e| bad(format!("a layer's diff id: {e}")))
    });
    let diff_ids = parsed.collect::<Result<Vec<_>>>()?;
    Ok(CheckedConfig { config, diff_ids })
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
