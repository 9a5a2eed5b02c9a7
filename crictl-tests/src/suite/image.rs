//! Images from the registry and from archives.
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use crisp_proto::cri;

use super::tests;
use crate::command::run;
use crate::eventually::{SOON, eventually};
use crate::node::{BUSYBOX, Node, Options, Warm, same};
use crate::registry::Registry;

tests![
    #[options(bare)]
    pulls_by_tag_and_by_digest,
    #[options(bare)]
    chooses_the_platform_and_every_compression,
    whiteouts_hide_what_is_below,
    #[options(bare)]
    one_identity_under_several_names,
    #[options(bare)]
    users_of_images,
    #[options(bare)]
    pulls_the_same_image_once,
    an_image_in_use_can_be_removed,
    #[options(bare)]
    imports_a_docker_archive_and_an_oci_layout,
    #[options(bare)]
    images_survive_a_restart,
    #[options(bare)]
    credentials_open_a_registry,
];

fn bare() -> Options {
    Options { warm: Warm::Pod, ..Options::default() }
}

fn status(node: &Node, image: &str) -> Result<Option<cri::Image>> {
    let spec = cri::ImageSpec { image: image.to_owned(), ..Default::default() };
    let request = cri::ImageStatusRequest { image: Some(spec), verbose: false };
    Ok(node.cri.image(|mut c| async move { c.image_status(request).await })?.image)
}

fn pulls_by_tag_and_by_digest(node: &mut Node, _: &mut Registry) -> Result<()> {
    let id = node.cri.pull(BUSYBOX)?;
    let image = status(node, BUSYBOX)?.context("the image")?;
    same("id", &image.id, &id)?;
    same("tags", &image.repo_tags, &vec![BUSYBOX.to_owned()])?;
    same("digests", &image.repo_digests.len(), &1)?;
    ensure!(image.size > 1 << 20, "size {}", image.size);
    let by_digest = image.repo_digests[0].clone();
    ensure!(by_digest.starts_with("registry.k8s.io/e2e-test-images/busybox@sha256:"), "{by_digest}");
    node.cri.remove_image(&id)?;
    same("gone", &status(node, &id)?, &None)?;
    same("by digest", &node.cri.pull(&by_digest)?, &id)?;
    let image = status(node, &by_digest)?.context("the image")?;
    same("tags", &image.repo_tags.len(), &0)?;
    same("digests", &image.repo_digests, &vec![by_digest])?;
    node.cri.remove_image(&id)?;
    node.cri.remove_image(&id)?;
    same("images", &node.cri.images()?.len(), &0)
}

fn chooses_the_platform_and_every_compression(node: &mut Node, _: &mut Registry) -> Result<()> {
    // gzip + zstd layers in an OCI index, docker gzip in a manifest list, zstd + plain.
    for image in [BUSYBOX, "docker.io/library/busybox", "public.ecr.aws/docker/library/busybox:1-musl"] {
        node.cri.pull(image)?;
        let pod = node.run(node.pod("platform"))?;
        let mut config = node.container("c", &["sh", "-c", "ls / | tr '\\n' ' '"]);
        config.image = Some(cri::ImageSpec { image: image.to_owned(), ..Default::default() });
        let files = node.printed(&pod, &config)?;
        ensure!(files.contains("bin") && !files.contains("wrong-architecture"), "{image} holds {files}");
        node.cri.remove_pod(&pod.id)?;
    }
    node.cri.images()?.iter().try_for_each(|image| Ok(node.cri.remove_image(&image.id)?))
}

fn whiteouts_hide_what_is_below(node: &mut Node, _: &mut Registry) -> Result<()> {
    let image = "gcr.io/k8s-staging-cri-tools/test-image-whiteout";
    node.cri.pull(image)?;
    let pod = node.run(node.pod("whiteout"))?;
    let mut config = node.container("c", &["sh", "-c", "ls /marker; ls /etc; ls -a / | grep wh; exit 0"]);
    config.image = Some(cri::ImageSpec { image: image.to_owned(), ..Default::default() });
    let seen = node.printed(&pod, &config)?;
    ensure!(seen.contains("/marker: No such file"), "{seen}");
    ensure!(seen.contains("only") && !seen.contains("passwd") && !seen.contains(".wh."), "{seen}");
    Ok(())
}

fn one_identity_under_several_names(node: &mut Node, _: &mut Registry) -> Result<()> {
    let tags = ["1", "2", "3"].map(|tag| format!("gcr.io/k8s-staging-cri-tools/test-image-tags:{tag}"));
    let ids: Vec<String> = tags.iter().map(|tag| Ok(node.cri.pull(tag)?)).collect::<Result<_>>()?;
    ensure!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let image = status(node, &ids[0])?.context("the image")?;
    same("tags", &image.repo_tags, &tags.to_vec())?;
    node.cri.remove_image(&tags[1])?;
    same("images", &node.cri.images()?.len(), &0)?;
    let first = node.cri.pull("registry.k8s.io/pause:3.9")?;
    let second = node.cri.pull("k8s.gcr.io/pause:3.9")?;
    same("across registries", &first, &second)?;
    same("digests", &status(node, &first)?.context("pause")?.repo_digests.len(), &2)?;
    node.cri.remove_image("k8s.gcr.io/pause:3.9")?;
    same("images", &node.cri.images()?.len(), &0)
}

fn users_of_images(node: &mut Node, _: &mut Registry) -> Result<()> {
    let cases = [
        ("test-image-user-uid", Some(1002), ""),
        ("test-image-user-username", None, "www-data"),
        ("test-image-user-uid-group", Some(1003), ""),
        ("test-image-user-username-group", None, "www-data"),
    ];
    for (name, uid, username) in cases {
        let image = format!("gcr.io/k8s-staging-cri-tools/{name}");
        node.cri.pull(&image)?;
        let seen = status(node, &image)?.context("the image")?;
        same(name, &(seen.uid.map(|uid| uid.value), seen.username.as_str()), &(uid, username))?;
    }
    Ok(())
}

fn pulls_the_same_image_once(node: &mut Node, _: &mut Registry) -> Result<()> {
    const AT_ONCE: usize = 20;
    let socket = node.socket();
    let ids: Vec<Result<String>> = std::thread::scope(|scope| {
        let tasks: Vec<_> = (0..AT_ONCE)
            .map(|_| scope.spawn(|| -> Result<String> { Ok(crate::cri::Cri::new(&socket)?.pull("nginx")?) }))
            .collect();
        tasks
            .into_iter()
            .map(|task| task.join().unwrap_or_else(|_| anyhow::bail!("a thread ended")))
            .collect()
    });
    let ids: Vec<String> = ids.into_iter().collect::<Result<_>>()?;
    ensure!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    same("images", &node.cri.images()?.len(), &1)
}

fn an_image_in_use_can_be_removed(node: &mut Node, _: &mut Registry) -> Result<()> {
    let (pod, id) = node.one("use", &["sleep", "1000"])?;
    node.cri.remove_image(BUSYBOX)?;
    same("images", &node.cri.images()?.len(), &0)?;
    node.exec(&id, &["ls", "/bin/busybox"])?;
    let mut late = node.container("late", &["true"]);
    late.metadata.get_or_insert_default().attempt = 1;
    let refused = node.cri.create(&pod.id, &late, &pod.config);
    same("code", &refused.err().map(|status| status.code()), &Some(tonic::Code::NotFound))?;
    node.remove_all()?;
    // With the last container the layers go, too.
    eventually(SOON, || {
        let layers = node.dir().join("root/layers");
        let left: Vec<_> = fs::read_dir(&layers)?.flatten().map(|entry| entry.file_name()).collect();
        let left: Vec<_> = left.iter().filter(|name| name.len() >= 64).collect();
        ensure!(left.is_empty(), "layers {left:?}");
        Ok(())
    })
}

/// A busybox of this machine in the form that `docker save` writes; the path of the archive.
fn docker_archive(node: &Node) -> Result<String> {
    let dir = node.dir().join("save");
    fs::create_dir_all(dir.join("layer/bin"))?;
    fs::copy("/bin/busybox", dir.join("layer/bin/busybox"))?;
    std::os::unix::fs::symlink("busybox", dir.join("layer/bin/sh"))?;
    run(Command::new("tar")
        .args(["-C"])
        .arg(dir.join("layer"))
        .arg("-cf")
        .arg(dir.join("layer.tar"))
        .arg("."))?;
    let diff_id = crate::images::layer::digest(&fs::read(dir.join("layer.tar"))?);
    let config = serde_json::json!({
        "architecture": crate::images::catalog::architecture(), "os": "linux",
        "config": {"Cmd": ["sh"], "Env": ["PATH=/bin"]}, "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    });
    fs::write(dir.join("config.json"), serde_json::to_vec(&config)?)?;
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": ["example.org/saved:1"], "Layers": ["layer.tar"]}]);
    fs::write(dir.join("manifest.json"), serde_json::to_vec(&manifest)?)?;
    let archive = node.dir().join("saved.tar");
    run(Command::new("tar").arg("-C").arg(&dir).arg("-cf").arg(&archive).args([
        "manifest.json",
        "config.json",
        "layer.tar",
    ]))?;
    Ok(archive.display().to_string())
}

fn imports_a_docker_archive_and_an_oci_layout(node: &mut Node, _: &mut Registry) -> Result<()> {
    let archive = docker_archive(node)?;
    node.crisp(&["image", "import", &archive])?;
    let saved = status(node, "example.org/saved:1")?.context("the imported image")?;
    let pod = node.run(node.pod("imported"))?;
    let mut config = node.container("c", &["/bin/busybox", "echo", "from an archive"]);
    config.image = Some(cri::ImageSpec { image: saved.id.clone(), ..Default::default() });
    same("printed", &node.printed(&pod, &config)?.as_str(), &"from an archive")?;
    node.cri.remove_pod(&pod.id)?;

    let layout = oci_layout(node)?;
    node.crisp(&["image", "import", &layout, "--name", "example.org/layout:2"])?;
    let imported = status(node, "example.org/layout:2")?.context("the image of the layout")?;
    ensure!(imported.id != saved.id, "two images");
    let pod = node.run(node.pod("layout"))?;
    config.image = Some(cri::ImageSpec { image: "example.org/layout:2".into(), ..Default::default() });
    same("printed", &node.printed(&pod, &config)?.as_str(), &"from an archive")
}

/// The same files as an OCI layout folder.
fn oci_layout(node: &Node) -> Result<String> {
    let dir = node.dir().join("layout");
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    let put = |bytes: &[u8]| -> Result<(String, usize)> {
        let digest = crate::images::layer::digest(bytes);
        fs::write(blobs.join(digest.trim_start_matches("sha256:")), bytes)?;
        Ok((digest, bytes.len()))
    };
    let tar = fs::read(node.dir().join("save/layer.tar"))?;
    let layer = crate::images::Layer::of_tar(&tar, crate::images::Compression::OciZstd)?;
    let (layer_digest, layer_size) = put(&layer.bytes)?;
    let config = serde_json::json!({
        "architecture": crate::images::catalog::architecture(), "os": "linux",
        "config": {"Cmd": ["sh"], "Env": ["PATH=/bin", "LAYOUT=yes"]},
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id]},
    });
    let (config_digest, config_size) = put(&serde_json::to_vec(&config)?)?;
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": config_size},
        "layers": [{"mediaType": layer.media_type, "digest": layer_digest, "size": layer_size}],
    });
    let (digest, size) = put(&serde_json::to_vec(&manifest)?)?;
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": size}],
    });
    fs::write(dir.join("index.json"), serde_json::to_vec(&index)?)?;
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    Ok(dir.display().to_string())
}

fn images_survive_a_restart(node: &mut Node, _: &mut Registry) -> Result<()> {
    node.cri.pull(BUSYBOX)?;
    node.cri.pull("gcr.io/k8s-staging-cri-tools/test-image-tags:1")?;
    let by_id = |mut images: Vec<cri::Image>| {
        images.sort_by(|a, b| a.id.cmp(&b.id));
        images
    };
    let before = by_id(node.cri.images()?);
    node.signal_daemon(rustix::process::Signal::KILL)?;
    node.start_daemon()?;
    same("images", &by_id(node.cri.images()?), &before)?;
    node.rebase()
}

fn pull_with(node: &Node, image: &str, auth: Option<cri::AuthConfig>) -> Result<String, tonic::Status> {
    let spec = cri::ImageSpec { image: image.to_owned(), ..Default::default() };
    let request = cri::PullImageRequest { image: Some(spec), auth, ..Default::default() };
    Ok(node.cri.image(|mut c| async move { c.pull_image(request).await })?.image_ref)
}

fn credentials_open_a_registry(node: &mut Node, _: &mut Registry) -> Result<()> {
    const PORT: u16 = 5001;
    let registry = Registry::start_with_password(Path::new("/run/registry-auth"), PORT)?;
    node.allow_process(registry.pid());
    // Its own folder in the tree of hosts files: the usual one sends everything to the other registry.
    let hosts = node.dir().join(format!("certs.d/127.0.0.1:{PORT}"));
    fs::create_dir_all(&hosts)?;
    fs::write(hosts.join("hosts.toml"), format!("server = \"http://127.0.0.1:{PORT}\"\n"))?;
    let image = format!("127.0.0.1:{PORT}/library/busybox:1");
    let basic = |password: &str| {
        Some(cri::AuthConfig { username: "user".into(), password: password.into(), ..Default::default() })
    };
    for auth in [None, basic("wrong")] {
        let status = pull_with(node, &image, auth).err().context("without the right password")?;
        ensure!(status.message().contains("401"), "the error says why: {status}");
        ensure!(!status.message().contains("wrong"), "the error shows the password: {status}");
    }
    let id = pull_with(node, &image, basic("secret"))?;
    node.cri.remove_image(&id)?;
    let together = cri::AuthConfig { auth: "dXNlcjpzZWNyZXQ=".into(), ..Default::default() };
    same("by the joined form", &pull_with(node, &image, Some(together))?, &id)?;
    let log = fs::read_to_string(node.log_path())?;
    ensure!(!log.contains("dXNlcjpzZWNyZXQ") && !log.contains("secret"), "the log shows the password");
    drop(registry);
    Ok(())
}
