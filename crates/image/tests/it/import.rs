use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crisp_domain::ErrorKind;
use crisp_image::{Digest, ImageError};
use serde_json::{Value, json};

use crate::content::{Layer, Node, OCI_MANIFEST, TestImage, descriptor, gzip, layer, tar, zstd};

/// The files of an image layout.
fn layout(images: &[(&TestImage, Option<&str>)]) -> Vec<(String, Vec<u8>)> {
    let mut files = vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
    let mut manifests = Vec::new();
    for (image, name) in images {
        let mut entry = descriptor(OCI_MANIFEST, &image.manifest);
        if let Some(name) = name {
            entry["annotations"] =
                json!({"io.containerd.image.name": name, "org.opencontainers.image.ref.name": "v1"});
        }
        manifests.push(entry);
        for blob in image.layers.iter().map(|l| &l.blob).chain([&image.config, &image.manifest]) {
            files.push((format!("blobs/sha256/{}", Digest::of(blob).hex()), blob.clone()));
        }
    }
    let index = json!({"schemaVersion": 2, "manifests": manifests}).to_string();
    files.push(("index.json".into(), index.into_bytes()));
    files
}

fn pack(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    tar(&files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect::<Vec<_>>())
}

fn file(dir: &Path, bytes: &[u8]) -> PathBuf {
    let path = dir.join("archive");
    fs::write(&path, bytes).unwrap();
    path
}

async fn import(
    node: &Node,
    path: &Path,
    name: Option<&str>,
) -> crisp_image::Result<Vec<std::sync::Arc<crisp_image::Image>>> {
    node.images.import(path, name, &|_| ()).await
}

#[tokio::test]
async fn a_layout_is_imported_in_every_form() {
    let image = TestImage::new(&[layer("a", 100_000), layer("b", 10)]);
    let files = layout(&[(&image, Some("example.io/app:v1"))]);
    let plain = pack(&files);
    for form in ["directory", "plain", "gzip", "zstd"] {
        let (node, dir) = (Node::new(), tempfile::tempdir().unwrap());
        let path = match form {
            "directory" => {
                fs::create_dir_all(dir.path().join("blobs/sha256")).unwrap();
                files.iter().for_each(|(name, bytes)| fs::write(dir.path().join(name), bytes).unwrap());
                dir.path().to_owned()
            }
            "plain" => file(dir.path(), &plain),
            "gzip" => file(dir.path(), &gzip(&plain)),
            _ => file(dir.path(), &zstd(&plain)),
        };
        let imported = import(&node, &path, None).await.unwrap();
        assert_eq!(imported[0].id.0, image.id(), "{form}");
        assert_eq!(imported[0].repo_tags, ["example.io/app:v1"]);
        assert_eq!(imported[0].repo_digests, [format!("example.io/app@{}", image.digest())]);
        assert_eq!(node.file(&imported[0], "a").unwrap().len(), 100_000);
        assert_eq!(node.images.list().len(), 1);
        node.assert_clean().await;
    }
}

#[tokio::test]
async fn a_name_replaces_those_inside() {
    let (node, dir) = (Node::new(), tempfile::tempdir().unwrap());
    let (one, two) = (TestImage::new(&[layer("a", 10)]), TestImage::new(&[layer("b", 10)]));
    let path = file(dir.path(), &pack(&layout(&[(&one, Some("example.io/app:v1"))])));
    let imported = import(&node, &path, Some("mine:v2")).await.unwrap();
    assert_eq!(imported[0].repo_tags, ["docker.io/library/mine:v2"]);
    let path = file(dir.path(), &pack(&layout(&[(&one, None), (&two, Some("a.io/two:v1"))])));
    assert!(import(&node, &path, Some("mine:v3")).await.is_err(), "two images cannot have one name");
    let imported = import(&node, &path, None).await.unwrap();
    assert_eq!(imported[1].repo_tags, ["a.io/two:v1"]);
    assert_eq!(imported[0].repo_tags, ["docker.io/library/mine:v2"], "it has the name from before");
}

/// As `docker save` writes it: plain layers, a link where two images have the same one.
fn saved(images: &[(&TestImage, &[&str])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, bytes).unwrap();
    };
    let mut manifest = Vec::new();
    for (image, tags) in images {
        let config = format!("{}.json", image.id().hex());
        add(&config, &image.config);
        let names: Vec<_> = image.layers.iter().map(|l| format!("{}/layer.tar", l.diff_id.hex())).collect();
        for (layer, name) in image.layers.iter().zip(&names) {
            add(name, &plain(layer));
        }
        manifest.push(json!({"Config": config, "RepoTags": tags, "Layers": names}));
    }
    add("manifest.json", Value::Array(manifest).to_string().as_bytes());
    builder.into_inner().unwrap()
}

fn plain(layer: &Layer) -> Vec<u8> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    flate2::read::GzDecoder::new(layer.blob.as_slice()).read_to_end(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn what_docker_saved_is_imported() {
    let (node, dir) = (Node::new(), tempfile::tempdir().unwrap());
    let base = layer("base", 1000);
    let (one, two) =
        (TestImage::new(&[base.clone(), layer("a", 10)]), TestImage::new(&[base, layer("b", 10)]));
    let path = file(dir.path(), &gzip(&saved(&[(&one, &["app:v1", "app:v2"]), (&two, &[])])));
    let imported = import(&node, &path, None).await.unwrap();
    assert_eq!(imported[0].repo_tags, ["docker.io/library/app:v1", "docker.io/library/app:v2"]);
    assert_eq!((imported[1].repo_tags.len(), imported[1].repo_digests.len()), (0, 0));
    assert!(node.file(&imported[1], "b").is_some());
    assert_eq!(node.images.resolve("app:v2").unwrap().unwrap().id.0, one.id());
    assert_eq!(node.layers.list().len(), 3);
}

#[tokio::test]
async fn a_layer_that_is_a_link_to_another_is_found() {
    let (node, dir) = (Node::new(), tempfile::tempdir().unwrap());
    let one = layer("a", 10);
    let image = TestImage::new(&[one.clone(), one.clone()]);
    let mut builder = tar::Builder::new(Vec::new());
    let mut add = |kind, name: &str, link: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(bytes.len() as u64);
        if link.is_empty() {
            builder.append_data(&mut header, name, bytes).unwrap();
        } else {
            builder.append_link(&mut header, name, link).unwrap();
        }
    };
    let manifest =
        json!([{"Config": "c.json", "RepoTags": ["l:v1"], "Layers": ["1/layer.tar", "2/layer.tar"]}]);
    add(tar::EntryType::Regular, "manifest.json", "", manifest.to_string().as_bytes());
    add(tar::EntryType::Symlink, "1/layer.tar", "../2/layer.tar", b"");
    add(tar::EntryType::Regular, "./2/layer.tar", "", &plain(&one));
    add(tar::EntryType::Regular, "c.json", "", &image.config);
    add(tar::EntryType::Symlink, "loop", "loop", b"");
    let path = file(dir.path(), &builder.into_inner().unwrap());
    assert_eq!(import(&node, &path, None).await.unwrap()[0].chain.len(), 2);
}

#[tokio::test]
async fn archives_that_lie_are_refused_and_leave_nothing() {
    let image = TestImage::new(&[layer("a", 100_000)]);
    let good = layout(&[(&image, Some("example.io/app:v1"))]);
    let without =
        |part: &str| good.iter().filter(|(name, _)| !name.contains(part)).cloned().collect::<Vec<_>>();
    let config = image.id();
    let mut changed = good.clone();
    changed.iter_mut().find(|(name, _)| name.contains(config.hex())).unwrap().1.push(b' ');
    let big =
        vec![("oci-layout".to_owned(), b"{}".to_vec()), ("index.json".to_owned(), vec![b' '; (4 << 20) + 1])];
    let outside = json!([{"Config": "../../etc/passwd", "Layers": []}]).to_string();
    let cut = pack(&good)[..50_000].to_vec();
    let whole = pack(&good);
    for (what, bytes) in [
        ("no archive", b"hello".to_vec()),
        ("empty", Vec::new()),
        ("nothing known in it", pack(&[("a".to_owned(), b"b".to_vec())])),
        ("a blob is missing", pack(&without(config.hex()))),
        ("a blob is changed", pack(&changed)),
        ("the index is too large", pack(&big)),
        ("a path leads out", pack(&[("manifest.json".to_owned(), outside.into_bytes())])),
        ("it is cut", cut),
        ("it is cut and compressed", gzip(&whole)[..20_000].to_vec()),
    ] {
        let (node, dir) = (Node::new(), tempfile::tempdir().unwrap());
        let error = import(&node, &file(dir.path(), &bytes), None).await.unwrap_err();
        assert!(node.images.list().is_empty() && node.layers.list().is_empty(), "{what}: {error}");
        assert_eq!(fs::read_dir(node.dir.path().join("images")).unwrap().count(), 0, "{what}");
        node.assert_clean().await;
    }
}

/// CVE-2023-25153: a file that claims to be huge must not be read.
#[tokio::test]
async fn a_huge_hole_is_not_read() {
    let (node, dir) = (Node::new(), tempfile::tempdir().unwrap());
    let mut bytes = tar(&[("oci-layout", b"{}")]);
    bytes.truncate(bytes.len() - 1024);
    let path = file(dir.path(), &bytes);
    let mut header = tar::Header::new_gnu();
    header.set_path("index.json").unwrap();
    header.set_size(100 << 30);
    header.set_cksum();
    bytes.extend(header.as_bytes());
    fs::write(&path, &bytes).unwrap();
    let sparse = File::options().write(true).open(&path).unwrap();
    sparse.set_len(bytes.len() as u64 + (100 << 30) + 1024).unwrap();
    let start = std::time::Instant::now();
    let error = import(&node, &path, None).await.unwrap_err();
    assert!(error.to_string().contains("the limit is"), "{error}");
    assert!(start.elapsed().as_secs() < 10);
}

#[tokio::test]
async fn a_directory_with_links_is_refused() {
    let (node, dir) = (Node::new(), tempfile::tempdir().unwrap());
    fs::write(dir.path().join("oci-layout"), "{}").unwrap();
    std::os::unix::fs::symlink("/etc/hostname", dir.path().join("index.json")).unwrap();
    let error = import(&node, dir.path(), None).await.unwrap_err();
    assert!(matches!(error, ImageError::Archive { .. }), "{error}");
    let error = import(&node, &dir.path().join("absent"), None).await.unwrap_err();
    assert!(matches!(error, ImageError::Io { .. }), "{error}");
    let error = import(&node, Path::new("/dev/null"), None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}
