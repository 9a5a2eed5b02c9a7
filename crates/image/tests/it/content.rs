//! Images to be pulled, and stores to pull them into.

use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use crisp_image::{Auth, Digest, ImageStore, Platform, ProxySource, RegistryConfig};
use crisp_snapshot::{LayerStore, SnapshotError};
use serde_json::{Value, json};

use crate::fake::Fake;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const OCI_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
pub(crate) const OCI_TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// Longest wait for what must come: more than a loaded machine needs.
const PATIENCE: Duration = Duration::from_secs(60);

/// A layer: what travels and what it is.
#[derive(Clone)]
pub(crate) struct Layer {
    pub(crate) media_type: &'static str,
    pub(crate) blob: Vec<u8>,
    pub(crate) diff_id: Digest,
}

impl Layer {
    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.blob)
    }

    pub(crate) fn descriptor(&self) -> Value {
        descriptor(self.media_type, &self.blob)
    }
}

/// A tar with the files given.
pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        header.set_cksum();
        builder.append_data(&mut header, path, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub(crate) fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).unwrap()
}

/// A gzip layer with one file of content that does not compress.
pub(crate) fn layer(name: &str, bytes: usize) -> Layer {
    let plain = tar(&[(name, &noise(name, bytes))]);
    Layer { media_type: OCI_GZIP, blob: gzip(&plain), diff_id: Digest::of(&plain) }
}

/// Bytes that look random and are the same each time.
pub(crate) fn noise(seed: &str, bytes: usize) -> Vec<u8> {
    let mut state =
        seed.bytes().fold(0x9e37_79b9_7f4a_7c15u64, |s, b| (s ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(bytes).collect()
}

pub(crate) fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({"mediaType": media_type, "digest": Digest::of(content).as_str(), "size": content.len()})
}

/// An image as a registry has it.
#[derive(Clone)]
pub(crate) struct TestImage {
    pub(crate) layers: Vec<Layer>,
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Vec<u8>,
    pub(crate) manifest_type: &'static str,
}

impl TestImage {
    pub(crate) fn new(layers: &[Layer]) -> Self {
        Self::with_user(layers, "")
    }

    pub(crate) fn with_user(layers: &[Layer], user: &str) -> Self {
        let ids: Vec<_> = layers.iter().map(|l| l.diff_id.as_str()).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux",
            "config": {"User": user, "Cmd": ["/bin/true"], "Env": ["A=1"]},
            "rootfs": {"type": "layers", "diff_ids": ids},
        });
        let config = config.to_string().into_bytes();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": descriptor(OCI_CONFIG, &config),
            "layers": layers.iter().map(Layer::descriptor).collect::<Vec<_>>(),
            "annotations": {"org.example.note": "hello"},
        });
        let manifest = manifest.to_string().into_bytes();
        Self { layers: layers.into(), config, manifest, manifest_type: OCI_MANIFEST }
    }

    pub(crate) fn id(&self) -> Digest {
        Digest::of(&self.config)
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// Puts it into a registry's repository under a tag and its digest.
    pub(crate) fn publish(&self, fake: &Fake, repository: &str, tag: &str) {
        fake.put(&format!("/v2/{repository}/manifests/{tag}"), self.manifest_type, self.manifest.clone());
        fake.put(
            &format!("/v2/{repository}/manifests/{}", self.digest()),
            self.manifest_type,
            self.manifest.clone(),
        );
        self.publish_blobs(fake, repository);
    }

    pub(crate) fn publish_blobs(&self, fake: &Fake, repository: &str) {
        let blobs = self.layers.iter().map(|l| &l.blob).chain([&self.config]);
        for blob in blobs {
            fake.put(
                &format!("/v2/{repository}/blobs/{}", Digest::of(blob)),
                "application/octet-stream",
                blob.clone(),
            );
        }
    }
}

/// A store in a directory of its own.
pub(crate) struct Node {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) layers: LayerStore,
    pub(crate) images: ImageStore,
}

/// A configuration for tests: quick to try again, patient with a slow machine, no files of the machine.
pub(crate) fn config() -> RegistryConfig {
    let mut config = RegistryConfig::default();
    config.config_roots = Vec::new();
    config.proxy = ProxySource::Off;
    config.retry_pause = Duration::from_millis(5);
    config.silence_max = Duration::from_secs(600);
    config.platform =
        Some(Platform { os: "linux".into(), architecture: "amd64".into(), variant: "v2".into() });
    config
}

impl Node {
    pub(crate) fn new() -> Self {
        Self::with(config())
    }

    pub(crate) fn with(config: RegistryConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (layers, images) = open(dir.path(), config);
        Self { dir, layers, images }
    }

    /// As after a restart.
    pub(crate) fn reopen(self) -> Self {
        let Self { dir, layers, images } = self;
        drop((layers, images));
        // The old store is closed once its cleaner has ended.
        let deadline = std::time::Instant::now() + PATIENCE;
        let layers = loop {
            match LayerStore::open(dir.path()) {
                Err(SnapshotError::InUse { .. }) if std::time::Instant::now() < deadline => {
                    std::thread::yield_now()
                }
                opened => break opened.unwrap(),
            }
        };
        let images = ImageStore::open(dir.path(), layers.clone(), config()).unwrap();
        Self { dir, layers, images }
    }

    pub(crate) async fn pull(
        &self,
        reference: &str,
    ) -> crisp_image::Result<std::sync::Arc<crisp_image::Image>> {
        self.images.pull(reference, Auth::Anonymous, &|_| ()).await
    }

    /// Nothing half-made is left in the layer store. What was stopped may still be at its last system call.
    pub(crate) async fn assert_clean(&self) {
        let staging = self.dir.path().join("layers/.staging");
        let left = || std::fs::read_dir(&staging).map_or(0, Iterator::count);
        eventually("nothing is left in staging", || left() == 0).await;
    }

    /// The content of a file in one of the image's layers.
    pub(crate) fn file(&self, image: &crisp_image::Image, path: &str) -> Option<Vec<u8>> {
        image
            .chain
            .iter()
            .rev()
            .find_map(|chain| std::fs::read(self.layers.layer_path(chain).join(path)).ok())
    }
}

fn open(root: &Path, config: RegistryConfig) -> (LayerStore, ImageStore) {
    let layers = LayerStore::open(root).unwrap();
    let images = ImageStore::open(root, layers.clone(), config).unwrap();
    (layers, images)
}

/// Waits until it is so, and says what was not when it takes too long.
pub(crate) async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

/// A whole error, as a log would have it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(&format!(": {inner}"));
        source = inner.source();
    }
    text
}
