//! Images: resolve, pull, verify, keep, import, remove.
#![forbid(unsafe_code)]

mod auth;
mod config;
mod digest;
mod error;
mod image;
mod manifest;
mod platform;
mod reference;
mod registry;
mod store;

pub use auth::{Auth, AuthFields};
pub use config::{PROGRESS_BYTES_MIN, ProxySource, RegistryConfig};
pub use digest::{Digest, DigestError, ImageId};
pub use error::{Attempts, ImageError, Result};
pub use image::{Image, ImageUser, Progress};
pub use platform::Platform;
pub use reference::{ImageRef, REFERENCE_BYTES_MAX, Target};
pub use store::{Collected, ImageStore, LayerPin};
