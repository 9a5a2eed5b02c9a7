//! A file tree and the layers made of it.
use std::collections::BTreeMap;
use std::io::Write as _;

use anyhow::Result;
use sha2::{Digest as _, Sha256};

/// One thing in a tree.
#[derive(Clone, Debug)]
pub enum Entry {
    /// A folder with its mode.
    Dir(u32),
    /// A file of root's: bytes and mode.
    File(Vec<u8>, u32),
    /// A symbolic link to this target.
    Link(String),
    /// A hard link to this path of the same tree.
    Same(String),
}

/// Paths without a leading slash, in the order of their names (a folder precedes what it holds).
#[derive(Clone, Debug, Default)]
pub struct Tree(BTreeMap<String, Entry>);

impl Tree {
    /// Adds a folder.
    #[must_use]
    pub fn dir(mut self, path: &str, mode: u32) -> Self {
        self.put(path, Entry::Dir(mode));
        self
    }

    /// Adds a file.
    #[must_use]
    pub fn file(mut self, path: &str, bytes: impl Into<Vec<u8>>, mode: u32) -> Self {
        self.put(path, Entry::File(bytes.into(), mode));
        self
    }

    /// Adds a symbolic link.
    #[must_use]
    pub fn link(mut self, path: &str, target: &str) -> Self {
        self.put(path, Entry::Link(target.to_owned()));
        self
    }

    /// Adds a hard link.
    #[must_use]
    pub fn same(mut self, path: &str, target: &str) -> Self {
        self.put(path, Entry::Same(target.to_owned()));
        self
    }

    /// Adds programs and libraries, all of mode 0755.
    #[must_use]
    pub fn programs(mut self, files: BTreeMap<String, Vec<u8>>) -> Self {
        for (path, bytes) in files {
            self.put(&path, Entry::File(bytes, 0o755));
        }
        self
    }

    /// Puts the entry there, with the folders above it where they are missing.
    fn put(&mut self, path: &str, entry: Entry) {
        for (at, _) in path.match_indices('/') {
            self.0.entry(path[..at].to_owned()).or_insert(Entry::Dir(0o755));
        }
        self.0.insert(path.to_owned(), entry);
    }

    /// The tree as a tar archive.
    ///
    /// # Errors
    /// When a path does not fit into a header.
    pub fn tar(&self) -> Result<Vec<u8>> {
        let mut archive = tar::Builder::new(Vec::new());
        // Hard links come last, since their targets must be there.
        let (links, others): (Vec<_>, Vec<_>) =
            self.0.iter().partition(|(_, entry)| matches!(entry, Entry::Same(_)));
        for (path, entry) in others.into_iter().chain(links) {
            append(&mut archive, path, entry)?;
        }
        Ok(archive.into_inner()?)
    }

    /// The tree as a layer.
    ///
    /// # Errors
    /// As [`Tree::tar`].
    pub fn layer(&self, compression: Compression) -> Result<Layer> {
        Layer::of_tar(&self.tar()?, compression)
    }
}

fn append(archive: &mut tar::Builder<Vec<u8>>, path: &str, entry: &Entry) -> Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    match entry {
        Entry::Dir(mode) => {
            header.set_entry_type(tar::EntryType::Directory);
            header.set_mode(*mode);
            header.set_size(0);
            archive.append_data(&mut header, format!("{path}/"), std::io::empty())?;
        }
        Entry::File(bytes, mode) => {
            header.set_mode(*mode);
            header.set_size(bytes.len() as u64);
            archive.append_data(&mut header, path, bytes.as_slice())?;
        }
        Entry::Link(target) => {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_mode(0o777);
            header.set_size(0);
            archive.append_link(&mut header, path, target)?;
        }
        Entry::Same(target) => {
            header.set_entry_type(tar::EntryType::Link);
            header.set_mode(0o755);
            header.set_size(0);
            archive.append_link(&mut header, path, target)?;
        }
    }
    Ok(())
}

/// How the bytes of a layer travel.
#[derive(Clone, Copy, Debug)]
pub enum Compression {
    /// `application/vnd.docker.image.rootfs.diff.tar.gzip`
    DockerGzip,
    /// `application/vnd.oci.image.layer.v1.tar+gzip`
    OciGzip,
    /// `application/vnd.oci.image.layer.v1.tar+zstd`
    OciZstd,
    /// `application/vnd.oci.image.layer.v1.tar`
    OciPlain,
}

impl Compression {
    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::DockerGzip => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            Self::OciGzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::OciZstd => "application/vnd.oci.image.layer.v1.tar+zstd",
            Self::OciPlain => "application/vnd.oci.image.layer.v1.tar",
        }
    }

    fn apply(self, tar: &[u8]) -> Result<Vec<u8>> {
        Ok(match self {
            Self::DockerGzip | Self::OciGzip => {
                let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(6));
                gzip.write_all(tar)?;
                gzip.finish()?
            }
            Self::OciZstd => zstd::encode_all(tar, 3)?,
            Self::OciPlain => tar.to_vec(),
        })
    }
}

/// A layer as a registry holds it.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Digest of the plain archive, `sha256:…`.
    pub diff_id: String,
    /// What the manifest says of its form.
    pub media_type: &'static str,
    /// The bytes that travel.
    pub bytes: Vec<u8>,
}

impl Layer {
    /// A layer of this archive, well-formed or not.
    ///
    /// # Errors
    /// When compression fails.
    pub fn of_tar(tar: &[u8], compression: Compression) -> Result<Self> {
        let bytes = compression.apply(tar)?;
        Ok(Self { diff_id: digest(tar), media_type: compression.media_type(), bytes })
    }
}

/// The digest of these bytes, `sha256:` and 64 hexadecimal digits.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        text.push_str(&format!("{byte:02x}"));
    }
    text
}
