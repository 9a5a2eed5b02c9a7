//! Against the distribution project's own registry, where the machine has it (Debian: `docker-registry`).

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use crate::content::{Layer, Node, OCI_MANIFEST, OCI_ZSTD, TestImage, layer, tar, zstd};

const PROGRAM: &str = "/usr/bin/docker-registry";

struct Registry {
    child: Child,
    host: String,
    _dir: tempfile::TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Starts it on a port of loopback that the kernel chooses; its log tells which, and that it listens.
fn start() -> Registry {
    let dir = tempfile::tempdir().unwrap();
    let config = format!(
        "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '127.0.0.1:0'}}\n",
        dir.path().join("data").display()
    );
    let file = dir.path().join("config.yml");
    std::fs::write(&file, config).unwrap();
    let mut child = Command::new(PROGRAM)
        .arg("serve")
        .arg(&file)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let host = lines.find_map(|line| {
        let address = line.unwrap().split_once("listening on ")?.1.to_owned();
        Some(address.split(['"', ',']).next()?.to_owned())
    });
    let host = host.expect("the registry ended");
    // Its log must have somewhere to go.
    std::thread::spawn(move || lines.for_each(drop));
    Registry { child, host, _dir: dir }
}

fn client() -> reqwest::Client {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let tls = tls.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    reqwest::Client::builder().tls_backend_preconfigured(tls).no_proxy().build().unwrap()
}

async fn push(registry: &Registry, image: &TestImage, repository: &str, tag: &str) {
    let (client, base) = (client(), format!("http://{}/v2/{repository}", registry.host));
    for blob in image.layers.iter().map(|l| &l.blob).chain([&image.config]) {
        let begun = client.post(format!("{base}/blobs/uploads/")).send().await.unwrap();
        let place = begun.headers()["location"].to_str().unwrap();
        let place = format!("{place}&digest={}", crisp_image::Digest::of(blob));
        let done = client.put(place).body(blob.clone()).send().await.unwrap();
        assert_eq!(done.status(), 201);
    }
    let put = client.put(format!("{base}/manifests/{tag}")).header("Content-Type", OCI_MANIFEST);
    assert_eq!(put.body(image.manifest.clone()).send().await.unwrap().status(), 201);
}

#[tokio::test]
async fn a_real_registry_serves_by_tag_and_digest() {
    if !Path::new(PROGRAM).exists() {
        use std::io::Write as _;
        writeln!(std::io::stderr(), "not run: {PROGRAM} is not installed").unwrap();
        return;
    }
    let registry = start();
    let plain = tar(&[("z", b"zstd")]);
    let z = Layer { media_type: OCI_ZSTD, blob: zstd(&plain), diff_id: crisp_image::Digest::of(&plain) };
    let image = TestImage::new(&[layer("a", 3_000_000), z]);
    push(&registry, &image, "team/app", "v1").await;
    let node = Node::new();
    let name = format!("{}/team/app", registry.host);
    let pulled = node.pull(&format!("{name}:v1")).await.unwrap();
    assert_eq!(pulled.repo_digests, [format!("{name}@{}", image.digest())]);
    assert_eq!(node.file(&pulled, "a").unwrap().len(), 3_000_000);
    assert_eq!(node.pull(&format!("{name}:v1")).await.unwrap(), pulled);
    let other = Node::new();
    assert!(other.pull(&format!("{name}@{}", image.digest())).await.unwrap().repo_tags.is_empty());
    let error = other.pull(&format!("{name}:absent")).await.unwrap_err();
    assert_eq!(error.kind(), crisp_domain::ErrorKind::NotFound);
    assert!(error.to_string().contains("MANIFEST_UNKNOWN"), "{error}");
}
