use std::io::{Seek as _, Write as _};

use super::*;

struct Made {
    bytes: tar::Builder<Vec<u8>>,
}

impl Made {
    /// With what every checkpoint has.
    fn good() -> Self {
        Self::empty().file("config.dump", b"{}").file("checkpoint/inventory.img", b"i")
    }

    fn empty() -> Self {
        Self { bytes: tar::Builder::new(Vec::new()) }
    }

    fn file(self, name: &str, content: &[u8]) -> Self {
        self.entry(tar::EntryType::Regular, name, "", content)
    }

    fn entry(mut self, kind: tar::EntryType, name: &str, link: &str, content: &[u8]) -> Self {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        // By hand: the library refuses names that lead upwards.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_cksum();
        self.bytes.append(&header, content).unwrap();
        self
    }

    fn extract(self, limits: &Limits) -> (tempfile::TempDir, Result<()>) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&self.bytes.into_inner().unwrap()).unwrap();
        file.rewind().unwrap();
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join("to")).unwrap();
        let result = extract(&file, &home.path().join("to"), limits);
        (home, result)
    }
}

#[test]
fn what_is_written_is_read() {
    let home = tempfile::tempdir().unwrap();
    let images = home.path().join("images");
    std::fs::create_dir_all(images.join("below")).unwrap();
    for name in ["inventory.img", "pages-1.img"] {
        std::fs::write(images.join(name), name).unwrap();
    }
    let target = home.path().join("c.tar");
    let write = || -> Result<()> {
        let mut writer = crate::Writer::create(&target)?;
        writer.text("config.dump", b"{\"id\":\"x\"}")?;
        writer.directory("checkpoint", &images)?;
        writer.text("rootfs-diff.tar", b"diff")?;
        writer.finish()
    };
    write().unwrap();
    assert!(matches!(write(), Err(CheckpointError::Exists(_))));
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(std::fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o600);
    let to = home.path().join("to");
    std::fs::create_dir(&to).unwrap();
    extract(&File::open(&target).unwrap(), &to, &Limits::default()).unwrap();
    assert_eq!(std::fs::read(to.join("checkpoint/pages-1.img")).unwrap(), b"pages-1.img");
    assert_eq!(std::fs::read(to.join("rootfs-diff.tar")).unwrap(), b"diff");
    // Nothing of a writer that is given up stays.
    drop(crate::Writer::create(&home.path().join("d.tar")).unwrap());
    let names: Vec<_> = std::fs::read_dir(home.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
}

#[test]
fn what_no_honest_archive_has_is_refused() {
    use tar::EntryType as Kind;
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    std::fs::write(&victim, "untouched").unwrap();
    let victim = victim.to_str().unwrap();
    let archives = [
        ("a link as config.dump", Made::good().entry(Kind::Symlink, "config.dump", victim, b"")),
        ("a link as the log", Made::good().entry(Kind::Symlink, "container.log", victim, b"")),
        ("a hard link", Made::good().entry(Kind::Link, "checkpoint/x.img", victim, b"")),
        (
            "a link as directory",
            Made::empty().entry(Kind::Symlink, "checkpoint", outside.path().to_str().unwrap(), b""),
        ),
        ("a device", Made::good().entry(Kind::Block, "checkpoint/x.img", "", b"")),
        ("a FIFO", Made::good().entry(Kind::Fifo, "x", "", b"")),
        ("upwards", Made::good().file("../victim", b"x")),
        ("upwards inside", Made::good().file("checkpoint/../../victim", b"x")),
        ("absolute", Made::good().file(victim, b"x")),
        ("below an image", Made::good().file("checkpoint/a/b.img", b"x")),
        ("twice", Made::good().file("config.dump", b"{}")),
        ("twice, spelled otherwise", Made::good().file("./checkpoint//inventory.img", b"x")),
        ("a directory as file", Made::good().entry(Kind::Directory, "rootfs-diff.tar", "", b"")),
        ("a file as directory", Made::good().file("checkpoint", b"x")),
        ("no config", Made::empty().file("checkpoint/inventory.img", b"x")),
        ("no images", Made::empty().file("config.dump", b"{}")),
        (
            "a huge config",
            Made::empty().file("config.dump", &[b' '; 2 << 20]).file("checkpoint/inventory.img", b"x"),
        ),
    ];
    for (what, archive) in archives {
        let (_home, result) = archive.extract(&Limits::default());
        let error = result.expect_err(what);
        assert_eq!(error.kind(), crisp_domain::ErrorKind::Invalid, "{what}: {error}");
    }
    assert_eq!(std::fs::read_to_string(victim).unwrap(), "untouched");
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[test]
fn sizes_and_counts_are_bounded() {
    let many = (0..20).fold(Made::good(), |made, n| made.file(&format!("x{n}"), b""));
    let (_home, result) = many.extract(&Limits { entries_max: 10, ..Limits::default() });
    assert!(matches!(result, Err(CheckpointError::Limit { limit: "entries_max", .. })), "{result:?}");
    let (_home, result) = Made::good().extract(&Limits { bytes_max: 1024, ..Limits::default() });
    assert!(matches!(result, Err(CheckpointError::Limit { limit: "bytes_max", .. })), "{result:?}");
}

#[test]
fn noise_and_broken_archives_are_refused() {
    let whole = Made::good().bytes.into_inner().unwrap();
    let cases = [b"".to_vec(), b"not a tar".to_vec(), vec![0xff; 4096], whole[..700].to_vec()];
    for bytes in cases {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        file.rewind().unwrap();
        let home = tempfile::tempdir().unwrap();
        assert!(extract(&file, home.path(), &Limits::default()).is_err(), "{} bytes", bytes.len());
    }
}

#[test]
fn a_layer_with_links_in_it_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let (layer, to) = (home.path().join("layer"), home.path().join("to"));
    std::fs::create_dir_all(layer.join("checkpoint")).unwrap();
    std::fs::write(layer.join("config.dump"), "{}").unwrap();
    std::fs::write(layer.join("checkpoint/inventory.img"), "i").unwrap();
    let copy = |to: &Path| {
        std::fs::create_dir(to).unwrap();
        copy_images(&RootedDir::open(&layer).unwrap(), to, &Limits::default())
    };
    copy(&to).unwrap();
    assert_eq!(std::fs::read(to.join("checkpoint/inventory.img")).unwrap(), b"i");
    std::os::unix::fs::symlink("/etc/shadow", layer.join("checkpoint/pages-1.img")).unwrap();
    assert!(copy(&home.path().join("linked")).is_err());
    std::fs::remove_file(layer.join("checkpoint/pages-1.img")).unwrap();
    std::fs::remove_file(layer.join("config.dump")).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", layer.join("config.dump")).unwrap();
    assert!(copy(&home.path().join("linked too")).is_err());
}

#[test]
fn holes_of_a_layer_take_no_disk() {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};
    const SIZE: u64 = 32 << 20;
    let home = tempfile::tempdir().unwrap();
    let (layer, to) = (home.path().join("layer"), home.path().join("to"));
    std::fs::create_dir_all(layer.join("checkpoint")).unwrap();
    std::fs::write(layer.join("config.dump"), "{}").unwrap();
    let image = File::create(layer.join("checkpoint/inventory.img")).unwrap();
    image.set_len(SIZE).unwrap();
    image.write_all_at(b"in the middle", SIZE / 2 + 5).unwrap();
    std::fs::create_dir(&to).unwrap();
    copy_images(&RootedDir::open(&layer).unwrap(), &to, &Limits::default()).unwrap();
    let copied = to.join("checkpoint/inventory.img");
    let meta = std::fs::metadata(&copied).unwrap();
    assert_eq!(meta.len(), SIZE);
    assert!(meta.blocks() * 512 < SIZE / 8, "{} blocks", meta.blocks());
    assert!(
        std::fs::read(&copied).unwrap() == std::fs::read(layer.join("checkpoint/inventory.img")).unwrap()
    );
}

#[test]
fn of_two_writers_one_gets_the_name() {
    let home = tempfile::tempdir().unwrap();
    let target = home.path().join("c.tar");
    let begin = |id: &[u8]| -> Result<crate::Writer> {
        let mut writer = crate::Writer::create(&target)?;
        writer.text("config.dump", id)?;
        Ok(writer)
    };
    let (first, second) = (begin(b"{\"id\":\"first\"}").unwrap(), begin(b"{\"id\":\"second\"}").unwrap());
    first.finish().unwrap();
    assert!(matches!(second.finish(), Err(CheckpointError::Exists(_))));
    let text = std::fs::read(&target).unwrap();
    assert!(text.windows(5).any(|part| part == b"first"));
    assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 1);
}
