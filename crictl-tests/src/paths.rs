//! Where things lie: the repository, the built binaries, what is made once and kept.
use std::path::{Path, PathBuf};

/// The folder of this crate.
#[must_use]
pub fn crate_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The folder of the repository.
#[must_use]
pub fn repository() -> PathBuf {
    crate_dir().parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// crictl, critest and ginkgo.
#[must_use]
pub fn tools() -> PathBuf {
    crate_dir().join("bin")
}

/// The binaries under test; `CRISP_BIN_DIR` names another folder than `target/release`.
#[must_use]
pub fn binaries() -> PathBuf {
    std::env::var_os("CRISP_BIN_DIR").map_or_else(|| repository().join("target/release"), PathBuf::from)
}

/// What is made once: images, logs of the last run.
#[must_use]
pub fn cache() -> PathBuf {
    repository().join("target/crictl-tests")
}

/// The storage folder of the registry, as built.
#[must_use]
pub fn images() -> PathBuf {
    cache().join("images")
}

/// Reports and daemon logs of the last run.
#[must_use]
pub fn reports() -> PathBuf {
    cache().join("reports")
}
