//! The storage folder of a `docker-registry`, written directly.
//!
//! ```text
//! docker/registry/v2/blobs/sha256/ab/<hex>/data
//! docker/registry/v2/repositories/<name>/_layers/sha256/<hex>/link
//!                                       /_manifests/revisions/sha256/<hex>/link
//!                                       /_manifests/tags/<tag>/current/link
//! ```
//! A link file holds a digest. The registry reads the folder at each request, so a running one serves new images at
//! once. Source: the storage path specification of distribution 2.8.
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::layer::{Layer, digest};

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// What a container of the image is by default.
#[derive(Clone, Debug, Default)]
pub struct ImageConfig {
    /// `User` of the image, empty for root.
    pub user: String,
    /// `Entrypoint` of the image.
    pub entrypoint: Vec<String>,
    /// `Cmd` of the image.
    pub cmd: Vec<String>,
    /// `WorkingDir` of the image.
    pub working_dir: String,
    /// `StopSignal` of the image, empty for the default.
    pub stop_signal: String,
    /// Added to the environment beside `PATH`.
    pub env: Vec<String>,
}

/// Which family of media types a manifest uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Docker schema 2.
    Docker,
    /// OCI image specification.
    Oci,
}

/// Media types and architecture of one manifest.
#[derive(Clone, Copy, Debug)]
pub struct Form<'a> {
    /// Family of its media types.
    pub family: Family,
    /// In the words of an index: `amd64`, `arm64`.
    pub arch: &'a str,
}

/// What a manifest is called and how long it is.
#[derive(Clone, Debug)]
pub struct Descriptor {
    /// `sha256:…`
    pub digest: String,
    /// Media type of the manifest or index.
    pub media_type: &'static str,
    /// Length in bytes.
    pub size: usize,
}

/// A storage folder.
#[derive(Clone, Debug)]
pub struct RegistryStore {
    root: PathBuf,
}

impl RegistryStore {
    /// The store in this folder, which the registry's configuration names as its root.
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self { root: root.join("docker/registry/v2") }
    }

    /// Where the bytes of a blob lie.
    #[must_use]
    pub fn blob_path(&self, digest: &str) -> PathBuf {
        let hex = hex(digest);
        self.root.join("blobs/sha256").join(&hex[..2]).join(hex).join("data")
    }

    /// Stores bytes that the repository offers.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn put_blob(&self, repository: &str, bytes: &[u8]) -> Result<String> {
        let digest = digest(bytes);
        self.put_blob_as(repository, bytes, &digest)?;
        Ok(digest)
    }

    /// Stores bytes under a digest that may not be theirs.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn put_blob_as(&self, repository: &str, bytes: &[u8], digest: &str) -> Result<()> {
        write(&self.blob_path(digest), bytes)?;
        self.link(repository, "_layers", digest)
    }

    /// Stores a manifest for one platform and its blobs.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn put_image(
        &self,
        repository: &str,
        form: Form<'_>,
        config: &ImageConfig,
        layers: &[Layer],
    ) -> Result<Descriptor> {
        let described: Vec<Value> = layers
            .iter()
            .map(|layer| {
                let digest = self.put_blob(repository, &layer.bytes)?;
                Ok(json!({"mediaType": layer.media_type, "digest": digest, "size": layer.bytes.len()}))
            })
            .collect::<Result<_>>()?;
        let config = serde_json::to_vec(&config_json(form.arch, config, layers))?;
        let (manifest_type, config_type) = match form.family {
            Family::Docker => (DOCKER_MANIFEST, DOCKER_CONFIG),
            Family::Oci => (OCI_MANIFEST, OCI_CONFIG),
        };
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": {"mediaType": config_type, "digest": self.put_blob(repository, &config)?, "size": config.len()},
            "layers": described,
        });
        self.put_manifest(repository, manifest_type, &manifest)
    }

    /// Stores an index over manifests of several platforms, given as (architecture, manifest).
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn put_index(
        &self,
        repository: &str,
        family: Family,
        manifests: &[(&str, Descriptor)],
    ) -> Result<Descriptor> {
        let media_type = if family == Family::Docker { DOCKER_LIST } else { OCI_INDEX };
        let entries: Vec<Value> = manifests
            .iter()
            .map(|(arch, manifest)| {
                json!({
                    "mediaType": manifest.media_type, "digest": manifest.digest, "size": manifest.size,
                    "platform": {"os": "linux", "architecture": arch},
                })
            })
            .collect();
        let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": entries});
        self.put_manifest(repository, media_type, &index)
    }

    /// Stores a manifest or an index.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn put_manifest(
        &self,
        repository: &str,
        media_type: &'static str,
        manifest: &Value,
    ) -> Result<Descriptor> {
        let bytes = serde_json::to_vec(manifest)?;
        let digest = digest(&bytes);
        write(&self.blob_path(&digest), &bytes)?;
        self.link(repository, "_manifests/revisions", &digest)?;
        Ok(Descriptor { digest, media_type, size: bytes.len() })
    }

    /// Makes the tag name this manifest.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn tag(&self, repository: &str, tag: &str, digest: &str) -> Result<()> {
        let tags = self.repository(repository).join("_manifests/tags").join(tag);
        write(&tags.join("current/link"), digest.as_bytes())?;
        write(&tags.join("index/sha256").join(hex(digest)).join("link"), digest.as_bytes())
    }

    fn repository(&self, name: &str) -> PathBuf {
        self.root.join("repositories").join(name)
    }

    fn link(&self, repository: &str, kind: &str, digest: &str) -> Result<()> {
        let path = self.repository(repository).join(kind).join("sha256").join(hex(digest)).join("link");
        write(&path, digest.as_bytes())
    }
}

fn config_json(arch: &str, config: &ImageConfig, layers: &[Layer]) -> Value {
    let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
    let mut env = vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()];
    env.extend(config.env.iter().cloned());
    json!({
        "architecture": arch,
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "User": config.user, "Env": env, "Entrypoint": config.entrypoint, "Cmd": config.cmd,
            "WorkingDir": config.working_dir, "StopSignal": config.stop_signal,
        },
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [],
    })
}

fn hex(digest: &str) -> &str {
    digest.trim_start_matches("sha256:")
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}
