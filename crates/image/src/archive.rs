//! Images in files: an OCI image layout (a directory, or an archive of one) and what `docker save` writes.
//!
//! Archives are scanned once for the places of their files, and read in place; a compressed one is unpacked into a temporary
//! file first. Content is data here: names are only ever compared, nothing is extracted under a name of the archive's choice.
//!
//! Source: OCI image specification, image-layout.md; the `manifest.json` of `docker save`.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::digest::Digest;
use crate::error::{ImageError, Result};
use crate::manifest::MANIFEST_BYTES_MAX;

/// Most files in an archive.
const ENTRIES_MAX: usize = 100_000;
/// Longest path in an archive, in bytes.
const PATH_BYTES_MAX: usize = 4096;
/// Links from one name to another that are followed: old versions of `docker save` link equal layers.
const LINKS_MAX: usize = 4;
/// Largest archive once it is decompressed, in bytes.
const PLAIN_BYTES_MAX: u64 = 256 << 30;

/// A part of a file.
#[derive(Debug, Clone)]
pub(crate) struct Blob {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Blob {
    /// Bytes that are left to read.
    pub(crate) fn len(&self) -> u64 {
        self.end - self.at
    }

    /// All of it, when it is at most `bytes_max`; the error is a reason.
    pub(crate) fn read_all(&self, bytes_max: u64) -> Result<Vec<u8>, String> {
        if self.len() > bytes_max {
            return Err(format!("it has {} bytes, the limit is {bytes_max}", self.len()));
        }
        let mut bytes = Vec::new();
        self.clone().read_to_end(&mut bytes).map_err(|e| e.to_string())?;
        Ok(bytes)
    }
}

impl Read for Blob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.len()).unwrap_or(usize::MAX).min(buffer.len());
        let n = self.file.read_at(&mut buffer[..most], self.at)?;
        if n == 0 && most > 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the archive is shorter than its headers say",
            ));
        }
        self.at += n as u64;
        Ok(n)
    }
}

/// Where the files of an image are.
#[derive(Debug)]
pub(crate) struct Archive {
    path: PathBuf,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Directory,
    Tar { file: Arc<File>, files: HashMap<String, Place> },
}

#[derive(Debug)]
enum Place {
    Bytes(u64, u64),
    Link(String),
}

impl Archive {
    /// Opens a directory or an archive, plain or compressed by gzip or zstd. `scratch`: a directory for the decompressed one.
    /// Blocking.
    pub(crate) fn open(path: &Path, scratch: &Path) -> Result<Self> {
        let io = |source| ImageError::Io { operation: "open", path: path.into(), source };
        let file = File::open(path).map_err(io)?;
        let kind = file.metadata().map_err(io)?.file_type();
        if kind.is_dir() {
            return Ok(Self { path: path.into(), content: Content::Directory });
        }
        let archive = |content| Self { path: path.into(), content };
        if !kind.is_file() {
            return Err(archive(Content::Directory).bad("it is neither a file nor a directory"));
        }
        let file = Arc::new(plain(file, scratch).map_err(io)?);
        let files = scan(&file).map_err(|reason| archive(Content::Directory).bad(reason))?;
        Ok(archive(Content::Tar { file, files }))
    }

    /// An error about this archive.
    pub(crate) fn bad(&self, reason: impl Into<String>) -> ImageError {
        ImageError::Archive { archive: self.path.clone(), reason: reason.into() }
    }

    /// The file of that name, `None` when there is none.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Blob>> {
        let name = normal(name).ok_or_else(|| self.bad(format!("{name:?} leads out of it")))?;
        match &self.content {
            Content::Directory => self.find_in_directory(&name),
            Content::Tar { file, files } => {
                Ok(follow(files, &name).map(|(at, len)| Blob { file: Arc::clone(file), at, end: at + len }))
            }
        }
    }

    /// The directory was named by whoever asked for the import, but what is in it may come from elsewhere: links are refused.
    fn find_in_directory(&self, name: &str) -> Result<Option<Blob>> {
        let mut path = self.path.clone();
        for component in name.split('/') {
            path.push(component);
            match path.symlink_metadata() {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(source) => return Err(ImageError::Io { operation: "look at", path, source }),
                Ok(found) if found.is_dir() || found.is_file() => {}
                Ok(_) => return Err(self.bad(format!("{name:?} is no regular file"))),
            }
        }
        let io = |source| ImageError::Io { operation: "open", path: path.clone(), source };
        let file = File::open(&path).map_err(io)?;
        let found = file.metadata().map_err(io)?;
        if !found.is_file() {
            return Err(self.bad(format!("{name:?} is no regular file")));
        }
        Ok(Some(Blob { file: Arc::new(file), at: 0, end: found.len() }))
    }

    /// The file of that name, which must be there.
    pub(crate) fn need(&self, name: &str) -> Result<Blob> {
        self.find(name)?.ok_or_else(|| self.bad(format!("{name:?} is missing")))
    }

    /// The content with that digest in an image layout; not verified yet.
    pub(crate) fn blob(&self, digest: &Digest) -> Result<Blob> {
        self.need(&format!("blobs/sha256/{}", digest.hex()))
    }

    /// A verified document from an image layout.
    pub(crate) fn document(&self, digest: &Digest, bytes_max: u64) -> Result<Vec<u8>> {
        let bytes = self.blob(digest)?.read_all(bytes_max).map_err(|e| self.bad(format!("{digest}: {e}")))?;
        let found = Digest::of(&bytes);
        if found == *digest {
            return Ok(bytes);
        }
        let subject = format!("{} in {}", digest, self.path.display());
        Err(ImageError::Mismatch { subject, expected: digest.clone(), found: found.to_string() })
    }

    /// A small file that is JSON.
    pub(crate) fn json<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let bytes =
            self.need(name)?.read_all(MANIFEST_BYTES_MAX).map_err(|e| self.bad(format!("{name}: {e}")))?;
        serde_json::from_slice(&bytes).map_err(|e| self.bad(format!("{name}: {e}")))
    }
}

/// What `docker save` says of one image.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Saved {
    pub(crate) config: String,
    #[serde(default)]
    pub(crate) repo_tags: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) layers: Option<Vec<String>>,
}

/// The file itself, or what it decompresses to.
fn plain(mut file: File, scratch: &Path) -> io::Result<File> {
    let mut head = Vec::new();
    (&mut file).take(4).read_to_end(&mut head)?;
    file.seek(SeekFrom::Start(0))?;
    let reader: Box<dyn Read> = match head.as_slice() {
        [0x1f, 0x8b, ..] => Box::new(flate2::read::MultiGzDecoder::new(file)),
        [0x28, 0xb5, 0x2f, 0xfd] => Box::new(zstd::stream::read::Decoder::new(file)?),
        _ => return Ok(file),
    };
    let mut plain = tempfile::tempfile_in(scratch)?;
    let copied = io::copy(&mut reader.take(PLAIN_BYTES_MAX + 1), &mut plain)?;
    if copied > PLAIN_BYTES_MAX {
        return Err(io::Error::other(format!("it decompresses to more than {PLAIN_BYTES_MAX} bytes")));
    }
    Ok(plain)
}

/// The places of an archive's regular files and links; the last of a name counts. The error is a reason.
fn scan(file: &Arc<File>) -> Result<HashMap<String, Place>, String> {
    let size = file.metadata().map_err(|e| e.to_string())?.len();
    let mut archive = tar::Archive::new(SeekBlob(Blob { file: Arc::clone(file), at: 0, end: size }));
    let mut files = HashMap::new();
    for (n, entry) in archive.entries_with_seek().map_err(|e| e.to_string())?.enumerate() {
        let entry = entry.map_err(|e| e.to_string())?;
        if n >= ENTRIES_MAX {
            return Err(format!("it has more than {ENTRIES_MAX} entries"));
        }
        let kind = entry.header().entry_type();
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let Some(name) = normal(&path) else { continue };
        if kind.is_file() || kind.is_contiguous() {
            let (at, len) = (entry.raw_file_position(), entry.size());
            if at.checked_add(len).is_none_or(|end| end > size) {
                return Err(format!("{name:?} is longer than the archive"));
            }
            files.insert(name, Place::Bytes(at, len));
        } else if let (true, Some(link)) = (kind.is_symlink() || kind.is_hard_link(), entry.link_name_bytes())
        {
            let link = String::from_utf8_lossy(&link).into_owned();
            let base = if kind.is_symlink() { name.rsplit_once('/').map_or("", |(dir, _)| dir) } else { "" };
            if let Some(target) = normal(&format!("{base}/{link}")) {
                files.insert(name, Place::Link(target));
            }
        }
    }
    Ok(files)
}

fn follow(files: &HashMap<String, Place>, name: &str) -> Option<(u64, u64)> {
    let mut name = name;
    for _ in 0..=LINKS_MAX {
        match files.get(name)? {
            Place::Bytes(at, len) => return Some((*at, *len)),
            Place::Link(target) => name = target,
        }
    }
    None
}

/// A path without `.`, `..` and doubled slashes; `None` when it leads out, is empty or too long.
fn normal(path: &str) -> Option<String> {
    if path.len() > PATH_BYTES_MAX {
        return None;
    }
    let mut parts: Vec<&str> = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(part) => parts.push(part.to_str()?),
            Component::ParentDir => drop(parts.pop()?),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    (!parts.is_empty()).then(|| parts.join("/"))
}

/// For the scan, which skips over content.
struct SeekBlob(Blob);

impl Read for SeekBlob {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Seek for SeekBlob {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::Current(by) => self.0.at.checked_add_signed(by),
            SeekFrom::End(by) => self.0.end.checked_add_signed(by),
        };
        let inside = at.filter(|at| *at <= self.0.end);
        self.0.at =
            inside.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is cut short"))?;
        Ok(self.0.at)
    }
}

#[cfg(test)]
#[path = "archive_tests.rs"]
mod tests;
