use std::sync::Mutex;

use crisp_domain::ErrorKind;
use crisp_image::{Auth, Digest, ImageError, ImageUser, Progress};
use serde_json::{Value, json};

use crate::content::{
    Layer, Node, OCI_GZIP, OCI_INDEX, OCI_MANIFEST, OCI_TAR, OCI_ZSTD, TestImage, chain, descriptor, gzip,
    layer, tar, zstd,
};
use crate::fake::{Fake, Reply};

#[tokio::test]
async fn a_tag_is_pulled_once_and_then_only_looked_at() {
    let (fake, node) = (Fake::start().await, Node::new());
    let image = TestImage::with_user(&[layer("a", 100_000), layer("b", 10)], "1002:group");
    image.publish(&fake, "app", "v1");
    let name = format!("{}/app", fake.host());
    let pulled = node.pull(&format!("{name}:v1")).await.unwrap();
    assert_eq!(pulled.id.0, image.id());
    assert_eq!(pulled.repo_tags, [format!("{name}:v1")]);
    assert_eq!(pulled.repo_digests, [format!("{name}@{}", image.digest())]);
    assert_eq!(pulled.user, ImageUser::Uid(1002));
    assert_eq!(pulled.annotations["org.example.note"], "hello");
    assert!(pulled.size_bytes > 100_000 && !pulled.pinned);
    assert_eq!(node.file(&pulled, "a").unwrap().len(), 100_000);
    assert_eq!(node.images.config_json(&pulled).unwrap(), image.config);
    assert_eq!(fake.asked().len(), 4, "{:?}", fake.asked());

    fake.forget_log();
    let again = node.pull(&format!("{name}:v1")).await.unwrap();
    assert_eq!(again, pulled);
    assert_eq!(fake.asked(), ["HEAD app/manifests/v1"]);
    node.assert_clean().await;
}

#[tokio::test]
async fn a_short_name_is_looked_for_where_the_operator_says() {
    let (first, second) = (Fake::start().await, Fake::start().await);
    let mut config = crate::content::config();
    config.search = vec![first.host(), second.host()];
    config.pinned = vec![format!("{}/team/*", second.host())];
    let node = Node::with(config);
    let image = TestImage::new(&[layer("a", 10)]);
    image.publish(&second, "team/app", "v1");
    let pulled = node.pull("team/app:v1").await.unwrap();
    assert_eq!(pulled.repo_tags, [format!("{}/team/app:v1", second.host())]);
    assert!(pulled.pinned);
    assert_eq!(first.count("team/app/manifests"), 1);
    assert_eq!(node.images.resolve("team/app:v1").unwrap().unwrap().id, pulled.id);

    let refused = node.pull("team/other").await.unwrap_err();
    let text = chain(&refused);
    assert_eq!(refused.kind(), ErrorKind::NotFound, "{text}");
    for host in [first.host(), second.host()] {
        assert!(text.contains(&format!("{host}/team/other:latest")), "{text}");
    }
}

#[tokio::test]
async fn a_registry_that_only_knows_get_is_asked_that() {
    let (fake, node) = (Fake::start().await, Node::new());
    let image = TestImage::new(&[layer("a", 10)]);
    image.publish(&fake, "app", "v1");
    let name = format!("{}/app:v1", fake.host());
    node.pull(&name).await.unwrap();
    fake.forget_log();
    for head in [Reply::status(405), Reply::status(200)] {
        fake.hook(move |request, _, good| if request.method == "HEAD" { head.clone() } else { good });
        node.pull(&name).await.unwrap();
    }
    assert_eq!((fake.count("HEAD"), fake.count("GET app/manifests"), fake.count("blobs")), (2, 2, 0));
    // One that is away is not asked twice over.
    fake.hook(|_, _, _| Reply::status(503));
    assert!(node.pull(&name).await.unwrap_err().is_registry_unavailable());
    assert_eq!(fake.count("GET app/manifests"), 2);
}

#[tokio::test]
async fn by_digest_there_is_no_tag_and_later_no_network() {
    let (fake, node) = (Fake::start().await, Node::new());
    let image = TestImage::new(&[layer("a", 10)]);
    image.publish(&fake, "app", "v1");
    let by_digest = format!("{}/app@{}", fake.host(), image.digest());
    let pulled = node.pull(&by_digest).await.unwrap();
    assert_eq!((pulled.repo_tags.len(), &pulled.repo_digests[..]), (0, &[by_digest.clone()][..]));
    fake.forget_log();
    node.pull(&by_digest).await.unwrap();
    node.pull(&format!("{}/app:other@{}", fake.host(), image.digest())).await.unwrap();
    assert_eq!(fake.asked(), Vec::<String>::new());
}

#[tokio::test]
async fn a_tag_without_a_name_is_latest() {
    let (fake, node) = (Fake::start().await, Node::new());
    TestImage::new(&[]).publish(&fake, "app", "latest");
    let pulled = node.pull(&format!("{}/app", fake.host())).await.unwrap();
    assert_eq!(pulled.repo_tags, [format!("{}/app:latest", fake.host())]);
    assert!(pulled.chain.is_empty() && pulled.size_bytes > 0);
}

fn index(entries: &[(&str, &TestImage)]) -> Vec<u8> {
    let entries = entries.iter().map(|(architecture, image)| {
        let mut entry = descriptor(OCI_MANIFEST, &image.manifest);
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entry
    });
    json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries.collect::<Vec<Value>>()})
        .to_string()
        .into_bytes()
}

#[tokio::test]
async fn an_index_gives_the_image_for_this_platform_under_its_own_digest() {
    let (fake, node) = (Fake::start().await, Node::new());
    let (arm, amd) = (TestImage::new(&[layer("arm", 10)]), TestImage::new(&[layer("amd", 10)]));
    let index = index(&[("arm64", &arm), ("amd64", &amd)]);
    arm.publish(&fake, "app", "arm");
    amd.publish(&fake, "app", "amd");
    fake.put("/v2/app/manifests/multi", OCI_INDEX, index.clone());
    let pulled = node.pull(&format!("{}/app:multi", fake.host())).await.unwrap();
    assert_eq!(pulled.id.0, amd.id());
    assert_eq!(pulled.repo_digests, [format!("{}/app@{}", fake.host(), Digest::of(&index))]);
    assert!(node.file(&pulled, "amd").is_some());
}

#[tokio::test]
async fn an_index_may_hold_one_more_index_and_not_two() {
    let (fake, node) = (Fake::start().await, Node::new());
    let image = TestImage::new(&[layer("a", 10)]);
    image.publish(&fake, "app", "v1");
    let mut document = index(&[("amd64", &image)]);
    for tag in ["one", "two", "three"] {
        fake.put(&format!("/v2/app/manifests/{tag}"), OCI_INDEX, document.clone());
        fake.put(&format!("/v2/app/manifests/{}", Digest::of(&document)), OCI_INDEX, document.clone());
        let mut entry = descriptor(OCI_INDEX, &document);
        entry["platform"] = json!({"os": "linux", "architecture": "amd64"});
        document = json!({"schemaVersion": 2, "manifests": [entry]}).to_string().into_bytes();
    }
    assert!(node.pull(&format!("{}/app:two", fake.host())).await.is_ok());
    let error = node.pull(&format!("{}/app:three", fake.host())).await.unwrap_err();
    assert!(chain(&error).contains("indexes below the first"), "{error}");
}

#[tokio::test]
async fn an_image_for_other_machines_is_not_found() {
    let (fake, node) = (Fake::start().await, Node::new());
    let image = TestImage::new(&[]);
    fake.put("/v2/app/manifests/v1", OCI_INDEX, index(&[("s390x", &image)]));
    let error = node.pull(&format!("{}/app:v1", fake.host())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("linux/s390x"), "{error}");
}

fn layer_of(media_type: &'static str, name: &str, compress: impl Fn(&[u8]) -> Vec<u8>) -> Layer {
    let plain = tar(&[(name, name.as_bytes())]);
    Layer { media_type, blob: compress(&plain), diff_id: Digest::of(&plain) }
}

/// Two gzip members are one stream; some tools write many.
fn two_members(plain: &[u8]) -> Vec<u8> {
    let (a, b) = plain.split_at(700);
    [gzip(a), gzip(b)].concat()
}

#[tokio::test]
async fn every_compression_is_unpacked_whatever_it_is_called() {
    let (fake, node) = (Fake::start().await, Node::new());
    let layers = [
        layer_of(OCI_GZIP, "gzip", gzip),
        layer_of(OCI_ZSTD, "zstd", zstd),
        layer_of(OCI_TAR, "plain", <[u8]>::to_vec),
        layer_of(OCI_GZIP, "members", two_members),
        layer_of("application/vnd.docker.image.rootfs.diff.tar.gzip", "misnamed", zstd),
    ];
    TestImage::new(&layers).publish(&fake, "app", "v1");
    let pulled = node.pull(&format!("{}/app:v1", fake.host())).await.unwrap();
    for name in ["gzip", "zstd", "plain", "members", "misnamed"] {
        assert_eq!(node.file(&pulled, name).unwrap(), name.as_bytes());
    }
}

#[tokio::test]
async fn docker_schema_2_is_understood() {
    let (fake, node) = (Fake::start().await, Node::new());
    let mut image = TestImage::new(&[layer("a", 10)]);
    let docker = String::from_utf8(image.manifest.clone()).unwrap();
    let docker = docker
        .replace(OCI_MANIFEST, "application/vnd.docker.distribution.manifest.v2+json")
        .replace("application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json")
        .replace(OCI_GZIP, "application/vnd.docker.image.rootfs.diff.tar.gzip");
    (image.manifest, image.manifest_type) =
        (docker.into_bytes(), "application/vnd.docker.distribution.manifest.v2+json");
    image.publish(&fake, "app", "v1");
    let pulled = node.pull(&format!("{}/app:v1", fake.host())).await.unwrap();
    assert_eq!(node.file(&pulled, "a").unwrap().len(), 10);
}

#[tokio::test]
async fn progress_tells_every_layer_to_its_end() {
    let (fake, node) = (Fake::start().await, Node::new());
    let (old, new) = (layer("old", 1000), layer("new", 2_000_000));
    TestImage::new(std::slice::from_ref(&old)).publish(&fake, "app", "v1");
    let image = TestImage::new(&[old, new.clone()]);
    image.publish(&fake, "app", "v2");
    node.pull(&format!("{}/app:v1", fake.host())).await.unwrap();
    let events = Mutex::new(Vec::new());
    let note = |event| events.lock().unwrap().push(event);
    node.images.pull(&format!("{}/app:v2", fake.host()), Auth::Anonymous, &note).await.unwrap();
    let events = events.into_inner().unwrap();
    let total = new.blob.len() as u64;
    let resolved = Progress::Resolved { digest: image.digest(), layers: 2, layers_missing: 1, bytes: total };
    assert_eq!(events[0], resolved);
    assert_eq!(events.last().unwrap(), &Progress::LayerDone { digest: new.digest() });
    assert!(
        events.contains(&Progress::LayerBytes { digest: new.digest(), done: total, total }),
        "{events:?}"
    );
}

#[tokio::test]
async fn what_is_no_image_is_refused_with_its_reason() {
    let (fake, node) = (Fake::start().await, Node::new());
    let image = TestImage::new(&[layer("a", 10)]);
    let text = String::from_utf8(image.manifest.clone()).unwrap();
    let both = text.replacen('{', r#"{"manifests":[],"#, 1);
    let artifact =
        text.replace("application/vnd.oci.image.config.v1+json", "application/vnd.cncf.helm.config.v1+json");
    for (manifest, kind, words) in [
        (both, ErrorKind::Invalid, "ambiguous"),
        (artifact, ErrorKind::Unsupported, "helm"),
        ("{}".into(), ErrorKind::Invalid, "schema version"),
        ("<html>".into(), ErrorKind::Invalid, "not a manifest"),
    ] {
        fake.put("/v2/app/manifests/v1", OCI_MANIFEST, manifest.clone());
        let error = node.pull(&format!("{}/app:v1", fake.host())).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{manifest}: {error}");
        assert!(chain(&error).contains(words), "{error}");
    }
    let error = node.pull("Not/A:Reference:").await.unwrap_err();
    assert!(matches!(error, ImageError::Reference { .. }));
    assert!(node.images.list().is_empty());
}

#[tokio::test]
async fn a_manifest_that_is_too_large_is_not_read() {
    let (fake, node) = (Fake::start().await, Node::new());
    fake.put("/v2/app/manifests/v1", OCI_MANIFEST, vec![b' '; (4 << 20) + 1]);
    let error = node.pull(&format!("{}/app:v1", fake.host())).await.unwrap_err();
    assert!(error.to_string().contains("larger than"), "{error}");
}

#[tokio::test]
async fn a_layer_is_never_fetched_from_where_its_manifest_says() {
    let (fake, evil, node) = (Fake::start().await, Fake::start().await, Node::new());
    let one = layer("a", 10);
    let image = TestImage::new(std::slice::from_ref(&one));
    let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    manifest["layers"][0]["urls"] = json!([format!("http://{}/layer", evil.host())]);
    manifest["layers"][0]["mediaType"] = json!("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip");
    fake.put("/v2/app/manifests/v1", OCI_MANIFEST, manifest.to_string());
    fake.put(&format!("/v2/app/blobs/{}", image.id()), "", image.config.clone());
    let error = node.pull(&format!("{}/app:v1", fake.host())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(evil.log().is_empty());
}
