//! Images: resolve, pull, verify, keep, import, remove.
//!
//! ```text
//! ImageStore ── index.rs    which images are here: records on disk, a published snapshot in memory
//!            ├─ pull.rs     reference → manifest → configuration → layers → record    (import.rs: from an archive)
//!            ├─ layer.rs    one job a layer: fetch, verify, decompress, unpack, commit
//!            ├─ registry/   hosts.toml, TLS, tokens, requests, downloads that resume
//!            └─ pins.rs     which layers containers and pulls hold
//! ```
//!
//! Invariants: an image that is listed is complete and verified; content (manifests, configurations, archives) never decides
//! where we connect, what we execute or where we write; credentials reach only the hosts they are for, and no output.
#![forbid(unsafe_code)]

mod archive;
mod auth;
mod board;
mod config;
mod digest;
mod error;
mod image;
mod import;
mod index;
mod job;
mod layer;
mod manifest;
mod pins;
mod platform;
mod pull;
mod reference;
mod registry;
mod store;
mod threads;

pub use auth::{Auth, AuthFields};
pub use config::{PROGRESS_BYTES_MIN, ProxySource, RegistryConfig};
pub use digest::{Digest, DigestError, ImageId};
pub use error::{Attempts, ImageError, Result};
pub use image::{Image, ImageUser, Progress};
pub use pins::LayerPin;
pub use platform::Platform;
pub use reference::{ImageRef, REFERENCE_BYTES_MAX, Target};
pub use store::{Collected, ImageStore, OnProgress};
