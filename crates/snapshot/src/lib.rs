//! Image layers to root filesystems.
//!
//! A layer arrives as a plain tar stream, an enemy's input, and is unpacked on its own, in parallel with its neighbours. What
//! depends on the layers below (whiteouts, hard links and directories that the layer only mentions) is settled when it is
//! committed on top of its parent. Committed layers never change; an overlay of them, with a writable directory on top, is a
//! container's root filesystem.
//!
//! ```text
//! <root>/layers/
//!   .lock              held by the one store that is open
//!   .staging/<random>/ a layer in the making; gone when it is dropped or the store is opened again
//!   .removed/<random>/ on its way out
//!   .empty/{top,bottom} what lies below an image without layers
//!   <chain id's hex>/
//!     layer.json       version, chain, diff and parent id, usage
//!     fs/              the content, as overlayfs wants it
//! <root>/containers/<container id>/{upper,work}
//! ```
#![forbid(unsafe_code)]

mod archive;
mod chain;
mod copy;
mod diff;
mod entry;
mod error;
mod limits;
mod records;
mod rootfs;
mod settle;
mod store;
mod tree;
mod unpack;
mod usage;

pub use chain::{ChainId, DiffId};
pub use copy::copy_up_volume;
pub use error::SnapshotError;
pub use limits::{DeviceNodes, Limits};
pub use rootfs::{MappedIds, Rootfs, Shown};
pub use store::{LayerStore, StagedLayer};
pub use usage::Usage;
