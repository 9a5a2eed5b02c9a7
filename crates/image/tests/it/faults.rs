use std::time::{Duration, Instant};

use crisp_domain::ErrorKind;
use crisp_image::{Auth, ImageError};

use crate::content::{
    Layer, Node, OCI_GZIP, TestImage, chain, config, eventually, gzip, layer, noise, tar, zstd,
};
use crate::fake::{Fake, Reply};

async fn published(layers: &[Layer]) -> (Fake, TestImage, String) {
    let (fake, image) = (Fake::start().await, TestImage::new(layers));
    image.publish(&fake, "app", "v1");
    let name = format!("{}/app:v1", fake.host());
    (fake, image, name)
}

fn is_blob(path: &str, layer: &Layer) -> bool {
    path.ends_with(layer.digest().as_str())
}

#[tokio::test]
async fn a_broken_download_goes_on_where_it_stopped() {
    let one = layer("a", 500_000);
    let (fake, _, name) = published(std::slice::from_ref(&one)).await;
    let broken = one.clone();
    fake.hook(move |request, seen, good| {
        if is_blob(&request.path, &broken) && seen < 3 {
            return Reply { cut: Some(100_000), ..good };
        }
        good
    });
    let node = Node::new();
    let image = node.pull(&name).await.unwrap();
    assert_eq!(node.file(&image, "a").unwrap(), noise("a", 500_000));
    let ranges: Vec<_> = fake.log().iter().filter_map(|r| r.header("range").map(str::to_owned)).collect();
    assert_eq!(ranges, ["bytes=100000-", "bytes=200000-", "bytes=300000-"]);
    node.assert_clean().await;
}

#[tokio::test]
async fn a_registry_without_ranges_is_read_again_and_not_fed_twice() {
    let one = layer("a", 500_000);
    let (fake, _, name) = published(std::slice::from_ref(&one)).await;
    let blob = one.blob.clone();
    fake.hook(move |request, seen, good| match (is_blob(&request.path, &one), seen) {
        (true, 0) => Reply { cut: Some(123_456), ..good },
        (true, _) => Reply::status(200).body(blob.clone()),
        _ => good,
    });
    let node = Node::new();
    let image = node.pull(&name).await.unwrap();
    assert_eq!(node.file(&image, "a").unwrap(), noise("a", 500_000));
}

#[tokio::test]
async fn a_connection_that_breaks_after_the_last_byte_is_no_harm() {
    let one = layer("a", 500_000);
    let (fake, _, name) = published(std::slice::from_ref(&one)).await;
    fake.hook(move |request, _, good| match is_blob(&request.path, &one) {
        true => good.with("Content-Length", "999999"),
        false => good,
    });
    Node::new().pull(&name).await.unwrap();
    assert_eq!(fake.log().len(), 3);
}

#[tokio::test]
async fn layers_that_wait_for_the_bottom_one_come_with_it() {
    let layers: Vec<_> = (0..12).map(|n| layer(&format!("l{n}"), 1000)).collect();
    let (fake, _, name) = published(&layers).await;
    let bottom = layers[0].clone();
    fake.hook(move |request, seen, good| match is_blob(&request.path, &bottom) && seen == 0 {
        true => Reply { stall: Some(10), ..good },
        false => good,
    });
    let node = Node::new();
    let (images, moved) = (node.images.clone(), name.clone());
    let pull = tokio::spawn(async move { images.pull(&moved, Auth::Anonymous, &|_| ()).await });
    // The limit of layers at a time lets the last one begin when the first of the others are done, and wait.
    eventually("all layers are asked for", || fake.count("blobs/") == 1 + layers.len()).await;
    assert!(node.layers.list().is_empty());
    fake.end_silence();
    let image = pull.await.unwrap().unwrap();
    assert_eq!(image.chain.len(), 12);
    assert!((0..12).all(|n| node.file(&image, &format!("l{n}")).is_some()));
    node.assert_clean().await;
}

#[tokio::test]
async fn silence_on_a_connection_leads_to_another_one() {
    let one = layer("a", 500_000);
    let (fake, _, name) = published(std::slice::from_ref(&one)).await;
    // From its beginning the layer never comes whole.
    fake.hook(move |request, _, good| {
        match is_blob(&request.path, &one) && request.header("range").is_none() {
            true => Reply { stall: Some(1000), ..good },
            false => good,
        }
    });
    let mut config = config();
    config.silence_max = Duration::from_secs(2);
    let node = Node::with(config);
    node.pull(&name).await.unwrap();
    // The first of them: a machine that stands still for so long is silent as well.
    assert_eq!(fake.log().iter().find_map(|r| r.header("range")), Some("bytes=1000-"));
}

#[tokio::test]
async fn a_pull_that_makes_no_progress_is_given_up() {
    let one = layer("a", 500_000);
    let (fake, _, name) = published(std::slice::from_ref(&one)).await;
    fake.hook(move |request, _, good| match is_blob(&request.path, &one) {
        true => Reply { stall: Some(1000), ..good },
        false => good,
    });
    let mut config = config();
    config.progress_timeout = Duration::from_millis(300);
    let node = Node::with(config);
    let error = node.pull(&name).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
    node.assert_clean().await;
}

#[tokio::test]
async fn a_layer_that_breaks_for_good_leaves_nothing() {
    let (small, big) = (layer("small", 10), layer("big", 500_000));
    let (fake, _, name) = published(&[small, big.clone()]).await;
    fake.hook(move |request, _, good| match is_blob(&request.path, &big) {
        // Each connection brings the same beginning.
        true => {
            Reply { stall: Some(1000), ..Reply::status(200).body(good.body) }.with("Content-Length", "500000")
        }
        false => good,
    });
    let node = Node::new();
    let (images, moved) = (node.images.clone(), name.clone());
    let pull = tokio::spawn(async move { images.pull(&moved, Auth::Anonymous, &|_| ()).await });
    eventually("the small layer is here", || node.layers.list().len() == 1).await;
    fake.end_silence();
    let error = pull.await.unwrap().unwrap_err();
    assert!(error.is_registry_unavailable(), "{error}");
    assert_eq!(error.kind(), ErrorKind::NotReady);
    assert!(node.images.list().is_empty() && node.images.resolve(&name).unwrap().is_none());
    node.assert_clean().await;
    assert_eq!(node.images.collect().unwrap().layers, 1);
    assert!(node.layers.list().is_empty());
}

#[tokio::test]
async fn what_does_not_match_its_digest_is_not_kept() {
    let one = layer("a", 50_000);
    for kind in ["manifests", "config", "layer", "longer", "shorter"] {
        let (fake, image, name) = published(std::slice::from_ref(&one)).await;
        let (layer, config) = (one.digest(), image.id());
        fake.hook(move |request, _, mut good| {
            let hit = match kind {
                "manifests" => request.path.contains(kind),
                "config" => request.path.ends_with(config.as_str()),
                _ => request.path.ends_with(layer.as_str()),
            };
            match kind {
                _ if !hit => {}
                "longer" => good.body.push(0),
                "shorter" => drop(good.body.pop()),
                // Such that it stays a valid document and a valid gzip header.
                _ => *good.body.last_mut().unwrap() ^= 1,
            }
            good
        });
        let node = Node::new();
        let error = node.pull(&name).await.unwrap_err();
        let text = chain(&error);
        assert!(["digest", "more than", "ended at"].iter().any(|w| text.contains(w)), "{kind}: {text}");
        assert!(node.images.list().is_empty() && node.layers.list().is_empty(), "{kind}");
        node.assert_clean().await;
    }
}

#[tokio::test]
async fn a_layer_whose_content_is_another_than_its_configuration_says_is_not_kept() {
    let (a, b) = (layer("a", 10), layer("b", 10));
    let (_fake, _, name) = published(&[Layer { diff_id: b.diff_id, ..a }]).await;
    let node = Node::new();
    let error = node.pull(&name).await.unwrap_err();
    assert!(error.to_string().contains("unpacked layer"), "{error}");
    assert!(node.layers.list().is_empty());
    node.assert_clean().await;
}

/// Layers that are exactly what their digests say, and still no good.
fn hostile() -> Vec<(&'static str, Layer)> {
    let of = |blob: Vec<u8>, plain: &[u8]| Layer {
        media_type: OCI_GZIP,
        blob,
        diff_id: crisp_image::Digest::of(plain),
    };
    let plain = tar(&[("a", &noise("a", 100_000))]);
    let packed = gzip(&plain);
    let mut garbage = packed.clone();
    garbage.extend(b"garbage after the end");
    let mut flipped = packed.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 0xff;
    let bomb = vec![0u8; 300 << 20];
    vec![
        ("cut gzip", of(packed[..packed.len() / 2].to_vec(), &plain)),
        ("cut zstd", of(zstd(&plain)[..1000].to_vec(), &plain)),
        ("garbage after gzip", of(garbage, &plain)),
        ("flipped bit", of(flipped, &plain)),
        ("cut tar", of(gzip(&plain[..50_000]), &plain[..50_000])),
        ("no tar", of(gzip(b"hello"), b"hello")),
        ("zstd bomb", of(zstd(&bomb), &bomb)),
    ]
}

#[tokio::test]
async fn malformed_layers_end_in_an_error_and_leave_nothing() {
    for (what, bad) in hostile() {
        let (_fake, _, name) = published(&[bad]).await;
        let (node, start) = (Node::new(), Instant::now());
        let error = node.pull(&name).await.unwrap_err();
        assert!(matches!(error.root(), ImageError::Layer { .. }), "{what}: {error:?}");
        assert!(start.elapsed() < Duration::from_secs(60), "{what}");
        assert!(node.layers.list().is_empty() && node.images.list().is_empty(), "{what}");
        node.assert_clean().await;
    }
}

#[tokio::test]
async fn short_troubles_are_waited_out() {
    let (fake, _, name) = published(&[layer("a", 10)]).await;
    fake.hook(|_, seen, good| match seen {
        0 => Reply::status(503),
        1 => Reply::status(429).with("Retry-After", "0"),
        _ => good,
    });
    Node::new().pull(&name).await.unwrap();
    assert_eq!(fake.log().len(), 9, "{:?}", fake.asked());
}

#[tokio::test]
async fn a_registry_that_is_away_is_said_to_be() {
    let down = Fake::start().await;
    down.hook(|_, _, _| Reply::status(500));
    // Held for as long as the test runs, and never listened at.
    let silent = tokio::net::TcpSocket::new_v4().unwrap();
    silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let closed = silent.local_addr().unwrap();
    for host in [closed.to_string(), down.host(), "no-such-host.invalid".into()] {
        let error = Node::new().pull(&format!("{host}/app:v1")).await.unwrap_err();
        assert!(error.is_registry_unavailable(), "{error}");
        assert!(error.to_string().starts_with(&format!("{host}/app:v1: ")), "{error}");
    }
    assert_eq!(down.count("GET app/manifests/v1"), 3);
}

#[tokio::test]
async fn redirects_have_an_end() {
    let (fake, _, name) = published(&[layer("a", 10)]).await;
    fake.hook(|request, _, _| Reply::status(302).with("Location", &request.path));
    let error = Node::new().pull(&name).await.unwrap_err();
    assert!(error.to_string().contains("redirects"), "{error}");
    for location in ["file:///etc/passwd", "ftp://x/y", "http://", "::"] {
        fake.hook(move |_, _, _| Reply::status(302).with("Location", location));
        assert!(Node::new().pull(&name).await.is_err(), "{location}");
    }
}
