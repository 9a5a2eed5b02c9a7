use std::fs;
use std::path::Path;

use crisp_domain::ErrorKind;

use crate::content::{Node, OCI_MANIFEST, TestImage, config, layer};
use crate::fake::{Fake, Reply};

/// A node whose registry `reg.test` is configured so; each host of `hosts` is `(key, extra lines)`.
fn node_with(server: &Fake, hosts: &[(&Fake, &str)]) -> (tempfile::TempDir, Node) {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), server, hosts);
    let mut config = config();
    config.config_roots = vec![root.path().into()];
    (root, Node::with(config))
}

fn write(root: &Path, server: &Fake, hosts: &[(&Fake, &str)]) {
    let mut text = format!("server = \"http://{}\"\n", server.host());
    for (fake, lines) in hosts {
        text.push_str(&format!("[host.\"http://{}\"]\n{lines}\n", fake.host()));
    }
    fs::create_dir_all(root.join("reg.test")).unwrap();
    fs::write(root.join("reg.test/hosts.toml"), text).unwrap();
}

#[tokio::test]
async fn a_mirror_serves_in_the_name_of_its_registry() {
    let (mirror, server) = (Fake::start().await, Fake::start().await);
    let image = TestImage::new(&[layer("a", 10)]);
    image.publish(&mirror, "app", "v1");
    let lines = "[host.\"MIRROR\".header]\nX-Tenant = \"blue\""
        .replace("MIRROR", &format!("http://{}", mirror.host()));
    let (_root, node) = node_with(&server, &[(&mirror, &lines)]);
    let pulled = node.pull("reg.test/app:v1").await.unwrap();
    assert_eq!(pulled.repo_tags, ["reg.test/app:v1"]);
    assert!(server.log().is_empty());
    assert!(mirror.log().iter().all(|r| r.query == "ns=reg.test" && r.header("x-tenant") == Some("blue")));
}

#[tokio::test]
async fn hosts_are_tried_in_order_and_every_reason_is_told() {
    let (broken, empty, server) = (Fake::start().await, Fake::start().await, Fake::start().await);
    broken.hook(|_, _, _| Reply::status(502));
    let image = TestImage::new(&[layer("a", 10)]);
    image.publish(&server, "app", "v1");
    let (_root, node) = node_with(&server, &[(&broken, ""), (&empty, "")]);
    node.pull("reg.test/app:v1").await.unwrap();
    let error = node.pull("reg.test/other:v1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "the last host decides: {error}");
    let text = error.to_string();
    for part in [broken.host(), "502".into(), empty.host(), "NAME_UNKNOWN".into(), server.host()] {
        assert!(text.contains(&part), "{part} in {text}");
    }
    server.hook(|_, _, _| Reply::status(503));
    assert!(node.pull("reg.test/other:v1").await.unwrap_err().is_registry_unavailable());
}

#[tokio::test]
async fn who_may_not_resolve_serves_content_only() {
    let (mirror, server) = (Fake::start().await, Fake::start().await);
    let image = TestImage::new(&[layer("a", 10)]);
    image.publish(&server, "app", "v1");
    image.publish_blobs(&mirror, "app");
    // It would say something else about the tag, if it were asked.
    mirror.put("/v2/app/manifests/v1", OCI_MANIFEST, TestImage::new(&[]).manifest);
    let (_root, node) = node_with(&server, &[(&mirror, "capabilities = [\"pull\"]")]);
    let pulled = node.pull("reg.test/app:v1").await.unwrap();
    assert_eq!(pulled.id.0, image.id());
    assert_eq!(mirror.count("manifests"), 0);
    assert_eq!(mirror.count("blobs"), 2);
    assert_eq!(server.asked(), ["GET app/manifests/v1"]);
}

#[tokio::test]
async fn a_mirror_that_lies_is_left_for_the_next_host() {
    let (mirror, server) = (Fake::start().await, Fake::start().await);
    let image = TestImage::new(&[layer("a", 100_000)]);
    image.publish(&server, "app", "v1");
    image.publish(&mirror, "app", "v1");
    for bad in [
        // Another stream; the right beginning; something else altogether.
        |mut good: Reply| {
            *good.body.last_mut().unwrap() ^= 1;
            good
        },
        |good: Reply| Reply { cut: Some(50_000), ..good },
        |good: Reply| good.body("<html>login</html>"),
        |_: Reply| Reply::status(404),
    ] {
        mirror.hook(move |request, seen, good| {
            match request.path.contains("/blobs/") && good.body.len() > 10_000 {
                true if seen > 0 => Reply::status(500),
                true => bad(good),
                false => good,
            }
        });
        mirror.forget_log();
        let (_root, node) = node_with(&server, &[(&mirror, "")]);
        let pulled = node.pull("reg.test/app:v1").await.unwrap();
        assert_eq!(node.file(&pulled, "a").unwrap().len(), 100_000);
        node.assert_clean().await;
    }
}

#[tokio::test]
async fn the_file_is_read_for_every_pull() {
    let (first, second) = (Fake::start().await, Fake::start().await);
    TestImage::new(&[]).publish(&second, "app", "v1");
    let (root, node) = node_with(&first, &[]);
    assert!(node.pull("reg.test/app:v1").await.is_err());
    write(root.path(), &second, &[]);
    node.pull("reg.test/app:v1").await.unwrap();
}

#[tokio::test]
async fn override_path_means_the_path_as_it_is() {
    let (mirror, server) = (Fake::start().await, Fake::start().await);
    let image = TestImage::new(&[]);
    mirror.put("/some/root/app/manifests/v1", OCI_MANIFEST, image.manifest.clone());
    mirror.put(&format!("/some/root/app/blobs/{}", image.id()), "", image.config.clone());
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("reg.test")).unwrap();
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}/some/root\"]\noverride_path = true\n",
        server.host(),
        mirror.host()
    );
    fs::write(root.path().join("reg.test/hosts.toml"), text).unwrap();
    let mut config = config();
    config.config_roots = vec![root.path().into()];
    Node::with(config).pull("reg.test/app:v1").await.unwrap();
}
