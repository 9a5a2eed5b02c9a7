use std::fs;

use crisp_domain::ErrorKind;
use crisp_image::ImageError;

use crate::content::{Node, TestImage, config, layer};
use crate::fake::Fake;

#[tokio::test]
async fn an_image_is_found_by_everything_that_names_it() {
    let (fake, node) = (Fake::start().await, Node::new());
    let image = TestImage::new(&[layer("a", 10)]);
    image.publish(&fake, "library/app", "v1");
    let name = format!("{}/library/app", fake.host());
    let pulled = node.pull(&format!("{name}:v1")).await.unwrap();
    let hex = pulled.id.0.hex();
    for text in [
        pulled.id.as_str(),
        hex,
        &hex[..12],
        &hex[..3],
        &format!("sha256:{}", &hex[..8]),
        &format!("{name}:v1"),
        &format!("{name}@{}", image.digest()),
        &format!("{name}:ignored@{}", image.digest()),
    ] {
        assert_eq!(node.images.resolve(text).unwrap().as_ref(), Some(&pulled), "{text}");
    }
    for text in [&name, "abc", "busybox", &format!("{name}:v2"), &hex[..2], &"f".repeat(64)] {
        assert_eq!(node.images.resolve(text).unwrap(), None, "{text}");
    }
    assert!(matches!(node.images.resolve("no:such:thing"), Err(ImageError::Reference { .. })));
}

#[tokio::test]
async fn an_ambiguous_beginning_is_an_error() {
    let (fake, node) = (Fake::start().await, Node::new());
    // Two configurations whose digests begin alike.
    let images: Vec<_> = (0..4096).map(|n| TestImage::with_user(&[], &n.to_string())).collect();
    let find = || {
        for (n, a) in images.iter().enumerate() {
            if let Some(b) = images[n + 1..].iter().find(|b| b.id().hex()[..4] == a.id().hex()[..4]) {
                return (a, b);
            }
        }
        panic!("4096 digests have no two with the same 4 digits")
    };
    let (a, b) = find();
    a.publish(&fake, "a", "v1");
    b.publish(&fake, "b", "v1");
    node.pull(&format!("{}/a:v1", fake.host())).await.unwrap();
    node.pull(&format!("{}/b:v1", fake.host())).await.unwrap();
    let error = node.images.resolve(&a.id().hex()[..4]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(node.images.remove(&a.id().hex()[..4]).await.is_err());
    assert_eq!(node.images.list().len(), 2);
}

#[tokio::test]
async fn tags_of_one_image_are_merged_and_removed_together() {
    let (one, two, node) = (Fake::start().await, Fake::start().await, Node::new());
    let image = TestImage::new(&[layer("a", 10)]);
    let mut tags = Vec::new();
    for (fake, tag) in [(&one, "v1"), (&one, "v2"), (&two, "v3")] {
        image.publish(fake, "app", tag);
        tags.push(format!("{}/app:{tag}", fake.host()));
        node.pull(tags.last().unwrap()).await.unwrap();
    }
    tags.sort();
    let list = node.images.list();
    assert_eq!((list.len(), &list[0].repo_tags), (1, &tags));
    assert_eq!(list[0].repo_digests.len(), 2);
    assert_eq!(one.count("blobs"), 2, "the second tag and the second registry bring nothing new");
    assert_eq!(two.count("blobs"), 0);
    let removals = (0..5).map(|_| async {
        node.images.remove(list[0].id.as_str()).await.unwrap();
        assert!(node.images.list().is_empty());
    });
    futures_util::future::join_all(removals).await;
    assert!(tags.iter().all(|tag| node.images.resolve(tag).unwrap().is_none()));
    node.images.remove("never-was-here:v1").await.unwrap();
}

#[tokio::test]
async fn a_tag_that_moves_leaves_the_old_image_its_digest() {
    let (fake, node) = (Fake::start().await, Node::new());
    let (old, new) = (TestImage::new(&[layer("old", 10)]), TestImage::new(&[layer("new", 10)]));
    let name = format!("{}/app:v1", fake.host());
    old.publish(&fake, "app", "v1");
    node.pull(&name).await.unwrap();
    new.publish(&fake, "app", "v1");
    node.pull(&name).await.unwrap();
    check_moved(&node, &name, &old, &new);
    let node = node.reopen();
    check_moved(&node, &name, &old, &new);
    // And back, without a download.
    old.publish(&fake, "app", "v1");
    fake.forget_log();
    let back = node.pull(&name).await.unwrap();
    assert_eq!((&back.id.0, fake.count("blobs")), (&old.id(), 0));
}

fn check_moved(node: &Node, name: &str, old: &TestImage, new: &TestImage) {
    let (old, new) = (node.images.resolve(old.id().as_str()), node.images.resolve(new.id().as_str()));
    let (old, new) = (old.unwrap().unwrap(), new.unwrap().unwrap());
    assert_eq!((old.repo_tags.len(), old.repo_digests.len()), (0, 1));
    assert_eq!(new.repo_tags, [name]);
    assert_eq!(node.images.resolve(name).unwrap().unwrap().id, new.id);
}

#[tokio::test]
async fn images_survive_a_restart_byte_for_byte() {
    let (fake, node) = (Fake::start().await, Node::new());
    let image = TestImage::with_user(&[layer("a", 100_000), layer("b", 10)], "www-data:group");
    image.publish(&fake, "app", "v1");
    let before = node.pull(&format!("{}/app:v1", fake.host())).await.unwrap();
    let usage = node.images.fs_usage();
    assert!(usage.bytes > 100_000 && usage.inodes > 2);
    let node = node.reopen();
    assert_eq!(node.images.list()[..], [before]);
    assert_eq!(node.images.fs_usage(), usage);
    node.images.collect().unwrap();
    assert_eq!(node.layers.list().len(), 2, "nothing of a known image is collected");
}

#[tokio::test]
async fn an_image_that_lost_a_part_is_dropped_at_start_and_can_be_pulled_again() {
    for damage in ["layer", "config", "record", "record gone", "config changed"] {
        let (fake, node) = (Fake::start().await, Node::new());
        let image = TestImage::new(&[layer("a", 10), layer("b", 10)]);
        image.publish(&fake, "app", "v1");
        let name = format!("{}/app:v1", fake.host());
        let pulled = node.pull(&name).await.unwrap();
        let file = |suffix: &str| node.dir.path().join(format!("images/{}.{suffix}", pulled.id.0.hex()));
        match damage {
            "layer" => node.layers.remove(pulled.chain.last().unwrap()).unwrap(),
            "config" => fs::remove_file(file("config")).unwrap(),
            "record" => fs::write(file("json"), "{").unwrap(),
            "record gone" => fs::remove_file(file("json")).unwrap(),
            _ => fs::write(file("config"), "{}").unwrap(),
        }
        let node = node.reopen();
        assert!(node.images.list().is_empty(), "{damage}");
        assert_eq!(fs::read_dir(node.dir.path().join("images")).unwrap().count(), 0, "{damage}");
        let again = node.pull(&name).await.unwrap();
        assert_eq!(again.repo_tags, [name]);
        node.assert_clean().await;
    }
}

#[tokio::test]
async fn a_record_of_a_newer_version_is_left_alone() {
    let node = Node::new();
    let path = node.dir.path().join(format!("images/{}.json", "a".repeat(64)));
    fs::write(&path, r#"{"version":99,"record":{}}"#).unwrap();
    let node = node.reopen();
    assert!(node.images.list().is_empty() && path.exists());
}

#[tokio::test]
async fn layers_in_use_outlive_their_image() {
    let (fake, node) = (Fake::start().await, Node::new());
    let base = layer("base", 10);
    TestImage::new(&[base.clone(), layer("a", 10)]).publish(&fake, "a", "v1");
    TestImage::new(&[base, layer("b", 10)]).publish(&fake, "b", "v1");
    let a = node.pull(&format!("{}/a:v1", fake.host())).await.unwrap();
    let b = node.pull(&format!("{}/b:v1", fake.host())).await.unwrap();
    let pin = node.images.pin(&a);
    node.images.remove(a.id.as_str()).await.unwrap();
    assert_eq!(node.images.collect().unwrap().layers, 0);
    drop(pin);
    assert_eq!(node.images.collect().unwrap().layers, 1, "the base is the other image's too");
    // A container of an earlier run: its record has the chain.
    let pin = node.images.pin_chain(&b.chain);
    node.images.remove(b.id.as_str()).await.unwrap();
    assert_eq!(node.images.collect().unwrap().layers, 0);
    drop(pin);
    let collected = node.images.collect().unwrap();
    assert_eq!((collected.layers, node.layers.list().len()), (2, 0));
    assert_eq!(node.images.fs_usage(), crisp_snapshot::Usage::default());
}

#[tokio::test]
async fn pins_follow_the_configuration() {
    let (fake, mut settings) = (Fake::start().await, config());
    TestImage::new(&[]).publish(&fake, "infra/pause", "v1");
    TestImage::new(&[layer("a", 1)]).publish(&fake, "app", "v1");
    settings.pinned = vec![format!("{}/infra/*", fake.host())];
    let node = Node::with(settings);
    let pause = node.pull(&format!("{}/infra/pause:v1", fake.host())).await.unwrap();
    let app = node.pull(&format!("{}/app:v1", fake.host())).await.unwrap();
    assert!(pause.pinned && !app.pinned);
    node.images.remove(app.id.as_str()).await.unwrap();
    let node = node.reopen();
    assert!(!node.images.list()[0].pinned, "the new configuration pins nothing");
    node.images.remove(pause.id.as_str()).await.unwrap();
    assert!(node.images.list().is_empty(), "a pin is advice");
}
