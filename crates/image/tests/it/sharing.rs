use std::sync::Arc;

use crisp_image::{Auth, AuthFields};
use tokio::sync::Semaphore;

use crate::content::{Node, TestImage, eventually, layer};
use crate::fake::{Fake, Reply};

#[tokio::test]
async fn equal_pulls_at_the_same_time_are_one() {
    let (fake, node) = (Fake::start().await, Node::new());
    TestImage::new(&[layer("a", 300_000), layer("b", 300_000)]).publish(&fake, "app", "v1");
    let name = format!("{}/app:v1", fake.host());
    let pulls = (0..20).map(|_| node.pull(&name));
    let images = futures_util::future::join_all(pulls).await;
    assert!(images.iter().all(|image| image.as_ref().unwrap().id == images[0].as_ref().unwrap().id));
    assert_eq!(fake.log().len(), 4, "{:?}", fake.asked());
}

#[tokio::test]
async fn other_credentials_are_another_pull() {
    let (fake, node) = (Fake::start().await, Node::new());
    TestImage::new(&[]).publish(&fake, "app", "v1");
    fake.hook(|request, _, good| match request.header("authorization") {
        Some(_) => good,
        None => Reply::status(401).with("WWW-Authenticate", "Basic"),
    });
    let name = format!("{}/app:v1", fake.host());
    let fields = AuthFields { username: "u", password: "p", ..AuthFields::default() };
    let auth = Auth::from_fields(&fields).unwrap();
    let (with, without) = tokio::join!(node.images.pull(&name, auth, &|_| ()), node.pull(&name));
    assert!(with.is_ok() && without.is_err());
}

#[tokio::test]
async fn images_that_share_layers_fetch_them_once() {
    let (fake, node) = (Fake::start().await, Node::new());
    let base = [layer("base", 300_000), layer("libs", 300_000)];
    let mut names = Vec::new();
    for app in ["a", "b", "c"] {
        let layers = [base.as_slice(), &[layer(app, 1000)]].concat();
        TestImage::new(&layers).publish(&fake, app, "v1");
        names.push(format!("{}/{app}:v1", fake.host()));
    }
    let pulled = futures_util::future::join_all(names.iter().map(|name| node.pull(name))).await;
    for (app, image) in ["a", "b", "c"].iter().zip(&pulled) {
        let image = image.as_ref().unwrap();
        assert_eq!(image.chain.len(), 3);
        assert!(node.file(image, app).is_some() && node.file(image, "base").is_some());
    }
    for layer in &base {
        assert_eq!(fake.count(layer.digest().as_str()), 1);
    }
    assert_eq!(node.layers.list().len(), 5);
}

#[tokio::test]
async fn a_layer_that_fails_for_one_pull_is_tried_by_the_other() {
    let fake = Fake::start().await;
    let shared = layer("shared", 300_000);
    TestImage::new(&[shared.clone(), layer("a", 10)]).publish(&fake, "a", "v1");
    TestImage::new(&[shared.clone(), layer("b", 10)]).publish(&fake, "b", "v1");
    let own_of_b = layer("b", 10).digest();
    // The repository "a" loses the layer while both wait for it.
    let digest = shared.digest();
    fake.hook(move |request, seen, good| match request.path == format!("/v2/a/blobs/{digest}") {
        true if seen == 0 => Reply { stall: Some(10), ..good },
        true => Reply::status(404),
        false => good,
    });
    let node = Node::new();
    let pull = |app: &str| {
        let (images, name) = (node.images.clone(), format!("{}/{app}:v1", fake.host()));
        tokio::spawn(async move { images.pull(&name, Auth::Anonymous, &|_| ()).await })
    };
    let a = pull("a");
    eventually("the layer is asked for", || fake.count(shared.digest().as_str()) == 1).await;
    let b = pull("b");
    // Its own layer is asked for once it has joined the other pull for the shared one.
    eventually("the other pull waits, too", || fake.count(own_of_b.as_str()) == 1).await;
    assert_eq!(fake.count(shared.digest().as_str()), 1);
    fake.end_silence();
    b.await.unwrap().unwrap();
    assert!(a.await.unwrap().is_err());
    assert_eq!(fake.count(&format!("b/blobs/{}", shared.digest())), 1);
}

#[tokio::test]
async fn the_last_one_to_leave_stops_the_download() {
    let (fake, node) = (Fake::start().await, Node::new());
    let one = layer("a", 1_000_000);
    TestImage::new(std::slice::from_ref(&one)).publish(&fake, "app", "v1");
    fake.hook(move |request, _, good| match request.path.ends_with(one.digest().as_str()) {
        true => Reply { stall: Some(200_000), ..good },
        false => good,
    });
    let name = format!("{}/app:v1", fake.host());
    let (store, moved) = (node.images.clone(), name.clone());
    let first = tokio::spawn(async move { store.pull(&moved, Auth::Anonymous, &|_| ()).await.map(drop) });
    let (store, moved) = (node.images.clone(), name.clone());
    let second = tokio::spawn(async move { store.pull(&moved, Auth::Anonymous, &|_| ()).await.map(drop) });
    eventually("the layer is asked for", || fake.log().len() == 3 && fake.open() == 1).await;
    first.abort();
    drop(first.await);
    assert_eq!(fake.open(), 1, "one still waits");
    second.abort();
    drop(second.await);
    // Long before the silence would end it.
    eventually("the connection is closed", || fake.open() == 0).await;
    node.assert_clean().await;
    assert!(node.images.list().is_empty());
}

#[tokio::test]
async fn layers_run_in_parallel_up_to_the_limit() {
    let fake = Fake::start().await;
    let layers: Vec<_> = (0..6).map(|n| layer(&format!("l{n}"), 100_000)).collect();
    TestImage::new(&layers).publish(&fake, "app", "v1");
    let digests: Vec<_> = layers.iter().map(crate::content::Layer::digest).collect();
    // The first two layers stay silent: with a limit of two nothing else may be asked for.
    let silent = digests[..2].to_vec();
    fake.hook(move |request, seen, good| {
        let hit = silent.iter().any(|d| request.path.ends_with(d.as_str()));
        if hit && seen == 0 { Reply { stall: Some(10), ..good } } else { good }
    });
    let mut config = crate::content::config();
    config.layers_parallel = 2;
    let node = Arc::new(Node::with(config));
    let (name, images) = (format!("{}/app:v1", fake.host()), node.images.clone());
    let pull = tokio::spawn(async move { images.pull(&name, Auth::Anonymous, &|_| ()).await });
    let asked = || fake.log().iter().filter(|r| digests.iter().any(|d| r.path.ends_with(d.as_str()))).count();
    eventually("two layers are asked for", || asked() == 2).await;
    assert_eq!(asked(), 2);
    assert!(digests[..2].iter().all(|d| fake.count(d.as_str()) == 1), "the bottom ones come first");
    fake.end_silence();
    pull.await.unwrap().unwrap();
    assert_eq!(asked(), 8);
}

/// Pulls, removals and collections at random; in the end everything fits together.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn pulls_and_collections_do_not_tear_images_apart() {
    let (fake, node) = (Fake::start().await, Arc::new(Node::new()));
    let base = layer("base", 1000);
    let names: Vec<_> = (0..4)
        .map(|n| {
            let image = TestImage::new(&[base.clone(), layer(&format!("l{n}"), 1000)]);
            image.publish(&fake, &format!("app{n}"), "v1");
            format!("{}/app{n}:v1", fake.host())
        })
        .collect();
    let (permits, mut tasks) = (Arc::new(Semaphore::new(4)), Vec::new());
    for n in 0..60 {
        let (node, name, permits) = (Arc::clone(&node), names[n % 4].clone(), Arc::clone(&permits));
        tasks.push(tokio::spawn(async move {
            let _permit = permits.acquire_owned().await.unwrap();
            if n % 3 == 2 {
                node.images.remove(&name).await.unwrap();
                let images = node.images.clone();
                tokio::task::spawn_blocking(move || images.collect()).await.unwrap().unwrap();
            } else {
                node.pull(&name).await.unwrap();
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    for image in node.images.list().iter() {
        for chain in &image.chain {
            assert!(node.layers.contains(chain).is_some(), "{} lost {chain}", image.display_name());
        }
    }
    for name in &names {
        node.images.remove(name).await.unwrap();
    }
    node.images.collect().unwrap();
    assert!(node.layers.list().is_empty() && node.images.list().is_empty());
    node.assert_clean().await;
}
