//! Archives of checkpointed containers.
//!
//! ```text
//! config.dump        JSON: id, name, image, times
//! spec.dump          JSON: the OCI specification it ran with
//! status.dump        JSON: its state
//! network.status     JSON: what the network plugins had answered
//! checkpoint/        CRIU's images, and descriptors.json: what its stdin, stdout and stderr were
//! rootfs-diff.tar    its changes of the root filesystem, as an OCI layer
//! deleted.files      JSON: paths that it deleted
//! dump.log stats-dump container.log
//! ```
//! That is the layout other runtimes use. An archive that is read is an enemy's input: nothing in it is policy, only plain files with
//! these names are taken from it, into a directory of our own, and all is bounded. What CRIU makes of its images is checked afterwards,
//! by what the kernel says ([`mounts`], [`tasks`], [`images`]).
#![forbid(unsafe_code)]

mod error;
pub mod images;
mod metadata;
pub mod mounts;
mod names;
mod read;
pub mod tasks;
mod write;

pub use error::CheckpointError;
pub use metadata::{Config, DESCRIPTORS, Descriptors};
pub use names::{CONFIG, IMAGES, ROOTFS_DIFF};
pub use read::{Limits, config_in, config_of, copy_images, extract};
pub use write::Writer;
