//! Layers that are broken or hostile: refused or harmless, and nothing stays behind.
use std::fs;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use crisp_proto::cri;

use super::tests;
use crate::images::catalog::architecture;
use crate::images::store::{Family, Form};
use crate::images::{Compression, ImageConfig, Layer, RegistryStore, Tree};
use crate::node::{Node, Options, Warm, same};
use crate::registry::Registry;

tests![
    #[options(bare)]
    a_digest_that_does_not_match_is_refused,
    #[options(bare)]
    a_truncated_layer_is_refused,
    #[options(bare)]
    a_layer_that_is_not_what_the_image_says_is_refused,
    hostile_archives_stay_inside,
    #[options(small)]
    bombs_are_refused,
    #[options(small)]
    a_full_disk_is_an_error_and_nothing_stays,
];

const OUTSIDE: &str = "/run/t/escaped";

fn bare() -> Options {
    Options { warm: Warm::Pod, ..Options::default() }
}

fn small() -> Options {
    Options { root_bytes: Some(96 << 20), ..Options::default() }
}

/// Puts an image of these layers into the registry and gives its name.
fn publish(store: &RegistryStore, name: &str, layers: &[Layer]) -> Result<String> {
    let repository = format!("hostile/{name}");
    let config = ImageConfig { cmd: vec!["true".into()], ..ImageConfig::default() };
    let manifest =
        store.put_image(&repository, Form { family: Family::Oci, arch: architecture() }, &config, layers)?;
    store.tag(&repository, "latest", &manifest.digest)?;
    Ok(format!("docker.io/{repository}:latest"))
}

fn good_layer(text: &str) -> Result<Layer> {
    Tree::default().file("good", text, 0o644).layer(Compression::OciGzip)
}

/// How many files lie below the folders of images and layers.
fn stored(node: &Node) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for folder in ["images", "layers"] {
        let text = crate::command::output(
            std::process::Command::new("find").arg(node.dir().join("root").join(folder)),
        )?;
        found.extend(text.lines().map(str::to_owned));
    }
    found.sort();
    Ok(found)
}

/// The pull fails and neither an image nor a file stays.
fn refused(node: &Node, image: &str) -> Result<tonic::Status> {
    let images = node.cri.images()?.len();
    let before = stored(node)?;
    let status = node.cri.pull(image).err().with_context(|| format!("{image} was pulled"))?;
    same("images", &node.cri.images()?.len(), &images)?;
    crate::eventually::eventually(crate::eventually::SOON, || same("files", &stored(node)?, &before))?;
    ensure!(!Path::new(OUTSIDE).exists(), "{OUTSIDE} was written");
    Ok(status)
}

fn a_digest_that_does_not_match_is_refused(node: &mut Node, registry: &mut Registry) -> Result<()> {
    let store = registry.store();
    let layer = good_layer("mismatch")?;
    let image = publish(&store, "mismatch", std::slice::from_ref(&layer))?;
    let path = store.blob_path(&crate::images::layer::digest(&layer.bytes));
    let mut bytes = layer.bytes.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x40;
    fs::write(path, bytes)?;
    let status = refused(node, &image)?;
    ensure!(status.message().contains("sha256:"), "the error names the digest: {status}");
    Ok(())
}

fn a_truncated_layer_is_refused(node: &mut Node, registry: &mut Registry) -> Result<()> {
    let store = registry.store();
    let mut random = vec![0_u8; 1 << 20];
    fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    let layer = Tree::default().file("random", random, 0o644).layer(Compression::OciGzip)?;
    let image = publish(&store, "truncated", std::slice::from_ref(&layer))?;
    fs::write(
        store.blob_path(&crate::images::layer::digest(&layer.bytes)),
        &layer.bytes[..layer.bytes.len() / 2],
    )?;
    refused(node, &image).map(drop)
}

fn a_layer_that_is_not_what_the_image_says_is_refused(
    node: &mut Node,
    registry: &mut Registry,
) -> Result<()> {
    let mut layer = good_layer("other")?;
    layer.diff_id = crate::images::layer::digest(b"something else");
    let image = publish(&registry.store(), "diff-id", &[layer])?;
    refused(node, &image).map(drop)
}

/// An archive entry whose header is written as given, without the checks of a well-meaning library.
struct Raw<'a> {
    name: &'a str,
    kind: tar::EntryType,
    target: &'a str,
    data: &'a [u8],
}

impl Raw<'_> {
    fn append(&self, archive: &mut tar::Builder<Vec<u8>>) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(self.kind);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(self.data.len() as u64);
        let fields = header.as_old_mut();
        fields.name[..self.name.len()].copy_from_slice(self.name.as_bytes());
        fields.linkname[..self.target.len()].copy_from_slice(self.target.as_bytes());
        header.set_cksum();
        Ok(archive.append(&header, self.data)?)
    }
}

fn file<'a>(name: &'a str, data: &'a [u8]) -> Raw<'a> {
    Raw { name, kind: tar::EntryType::Regular, target: "", data }
}

fn symlink<'a>(name: &'a str, target: &'a str) -> Raw<'a> {
    Raw { name, kind: tar::EntryType::Symlink, target, data: b"" }
}

fn hardlink<'a>(name: &'a str, target: &'a str) -> Raw<'a> {
    Raw { name, kind: tar::EntryType::Link, target, data: b"" }
}

const SECRET: &str = "/run/t/secret";

/// Each archive is refused, or what it holds stays inside the image: nothing outside is written, and nothing from
/// outside is seen in a container.
fn hostile_archives_stay_inside(node: &mut Node, registry: &mut Registry) -> Result<()> {
    fs::write(SECRET, "secret of the node\n")?;
    let up = "../../../../../../../../../..";
    let dots = format!("{up}{OUTSIDE}");
    let stolen = format!("{up}{SECRET}");
    let relative = format!("{up}/run/t");
    let archives: Vec<(&str, Vec<Raw<'_>>)> = vec![
        ("dot-dot", vec![file(&dots, b"x")]),
        ("absolute", vec![file(OUTSIDE, b"x")]),
        ("through-symlink", vec![symlink("out", "/run/t"), file("out/escaped", b"x")]),
        ("through-relative-symlink", vec![symlink("out", &relative), file("out/escaped", b"x")]),
        ("symlink-chain", vec![symlink("a", "b"), symlink("b", "/run/t"), file("a/escaped", b"x")]),
        ("replaced-parent", vec![file("d/x", b"x"), symlink("d", "/run/t"), file("d/escaped", b"x")]),
        ("hardlink-out", vec![hardlink("stolen", SECRET)]),
        ("hardlink-dot-dot", vec![hardlink("stolen", &stolen)]),
        ("hardlink-through-symlink", vec![symlink("out", "/run/t"), hardlink("stolen", "out/secret")]),
        ("hardlink-to-symlink", vec![symlink("s", SECRET), hardlink("stolen", "s")]),
        ("whiteout-dot-dot", vec![file(".wh...", b"")]),
        ("whiteout-through-symlink", vec![symlink("out", "/run/t"), file("out/.wh.secret", b"")]),
        ("opaque-through-symlink", vec![symlink("out", "/run/t"), file("out/.wh..wh..opq", b"")]),
    ];
    for (name, entries) in archives {
        let mut archive = tar::Builder::new(Vec::new());
        entries.iter().try_for_each(|entry| entry.append(&mut archive))?;
        let layer = Layer::of_tar(&archive.into_inner()?, Compression::OciGzip)?;
        let base = Tree::default()
            .file("bin/busybox", fs::read("/bin/busybox")?, 0o755)
            .layer(Compression::OciGzip)?;
        let image = publish(&registry.store(), name, &[base, layer])?;
        stays_inside(node, &image).with_context(|| format!("archive {name}"))?;
    }
    Ok(())
}

fn stays_inside(node: &Node, image: &str) -> Result<()> {
    let pulled = node.cri.pull(image);
    ensure!(!Path::new(OUTSIDE).exists(), "{OUTSIDE} was written");
    same("the node's secret", &fs::read_to_string(SECRET)?.as_str(), &"secret of the node\n")?;
    if pulled.is_err() {
        return Ok(());
    }
    let pod = node.run(node.pod("hostile"))?;
    let mut config = node.container("c", &["/bin/busybox", "cat", "/stolen"]);
    config.image = Some(cri::ImageSpec { image: image.to_owned(), ..Default::default() });
    let (_, log) = node.run_to_end(&pod, &config)?;
    ensure!(
        !log.iter().any(|line| line.text.contains("secret of the node")),
        "the container read the node's file"
    );
    ensure!(!Path::new(OUTSIDE).exists(), "{OUTSIDE} was written");
    node.cri.remove_pod(&pod.id)?;
    node.cri.remove_image(image)?;
    Ok(())
}

/// A valid archive of one file of zeros, compressed while it is made.
fn bomb(bytes: u64, compression: Compression) -> Result<Layer> {
    let mut header = tar::Header::new_gnu();
    header.set_path("zeros")?;
    header.set_mode(0o644);
    header.set_size(bytes);
    header.set_cksum();
    let tar = header.as_bytes().chain(std::io::repeat(0).take(bytes + 1024));
    let mut hashed = Hashed { inner: tar, hash: <sha2::Sha256 as sha2::Digest>::new() };
    let mut packed = Vec::new();
    match compression {
        Compression::OciZstd => zstd::stream::copy_encode(&mut hashed, &mut packed, 1)?,
        _ => {
            let mut gzip = flate2::write::GzEncoder::new(&mut packed, flate2::Compression::new(6));
            std::io::copy(&mut hashed, &mut gzip)?;
            gzip.finish()?;
        }
    }
    let digest = <sha2::Sha256 as sha2::Digest>::finalize(hashed.hash);
    let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Layer { diff_id: format!("sha256:{hex}"), media_type: compression.media_type(), bytes: packed })
}

/// Hashes what is read.
struct Hashed<R> {
    inner: R,
    hash: sha2::Sha256,
}

impl<R: std::io::Read> std::io::Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.inner.read(buffer)?;
        sha2::Digest::update(&mut self.hash, &buffer[..count]);
        Ok(count)
    }
}

fn bombs_are_refused(node: &mut Node, registry: &mut Registry) -> Result<()> {
    const BYTES: u64 = 1 << 30;
    for (name, compression) in [("bomb-gzip", Compression::OciGzip), ("bomb-zstd", Compression::OciZstd)] {
        let layer = bomb(BYTES, compression)?;
        ensure!((layer.bytes.len() as u64) < BYTES / 200, "{} bytes", layer.bytes.len());
        let image = publish(&registry.store(), name, &[layer])?;
        refused(node, &image)?;
    }
    let (_, id) = node.one("after", &["sleep", "1000"])?;
    node.exec(&id, &["true"]).map(drop)
}

fn a_full_disk_is_an_error_and_nothing_stays(node: &mut Node, registry: &mut Registry) -> Result<()> {
    let mut random = vec![0_u8; 120 << 20];
    fs::File::open("/dev/urandom")?.read_exact(&mut random)?;
    let layer = Tree::default().file("random", random, 0o644).layer(Compression::OciPlain)?;
    let image = publish(&registry.store(), "large", &[layer])?;
    let status = refused(node, &image)?;
    let text = status.message().to_lowercase();
    ensure!(text.contains("no space") || text.contains("enospc"), "the error says why: {status}");
    // A container that fills the disk harms itself only.
    let (pod, id) = node.one("filler", &["sleep", "1000"])?;
    let (code, _, stderr) = node.cri.exec(&id, &["dd", "if=/dev/zero", "of=/big", "bs=1M", "count=200"])?;
    ensure!(code != 0 && stderr.contains("No space"), "{code} {stderr}");
    let listed = node.cri.pods()?;
    same("pods", &listed.len(), &1)?;
    node.cri.stop_pod(&pod.id)?;
    node.cri.remove_pod(&pod.id)?;
    let (_, again) = node.one("again", &["sleep", "1000"])?;
    node.exec(&again, &["true"]).map(drop)
}
