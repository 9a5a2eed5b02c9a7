//! The images of the tests: built from Debian packages, written into the storage of a `docker-registry`.
//!
//! ```text
//! Debian packages ──▶ debian::Debian ──▶ layer::Tree ──▶ layer::Layer ──▶ store::RegistryStore
//!                                        (catalog: which image holds what)
//! ```
//! Everything is reproducible: sorted entries, times of 0, fixed compression, so the same packages give the same
//! digests.
pub mod catalog;
pub mod debian;
pub mod layer;
pub mod store;

pub use catalog::build;
pub use layer::{Compression, Entry, Layer, Tree};
pub use store::{ImageConfig, RegistryStore};
