//! The vocabulary that every crate shares: ids, exit statuses, error kinds, times. No I/O, no async.
#![forbid(unsafe_code)]

mod error;
mod exit;
mod id;
mod time;

pub use error::{ErrorKind, chain};
pub use exit::ExitStatus;
pub use id::{ContainerId, IdError, SandboxId};
pub use time::Timestamp;
