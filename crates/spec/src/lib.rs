//! From a container's configuration to its OCI runtime specification.
//!
//! ```text
//! CRI messages ─(daemon)→ ContainerConfig ┐
//! image config ─(image store)→ ImageConfig├─ build ─▶ Spec, the same for every handler
//! sandbox, host, user, mounts, devices ───┘
//! ```
//! [`build`] is pure: no file is read, nothing is asked of the kernel. What needs the machine runs before, one function
//! each: [`users::resolve`] for the image's user files, [`mounts::resolve`], [`devices::resolve`], [`host::probe`].
//! The result is complete and standard, so that any OCI runtime takes it.
#![forbid(unsafe_code)]

pub mod capability;
mod confinement;
pub mod devices;
mod error;
pub mod host;
mod input;
mod linux;
pub mod mounts;
mod process;
pub mod propagation;
pub mod resources;
pub mod signal;
pub mod sysctl;
pub mod users;

pub use confinement::{DEFAULT_MASKED_PATHS, DEFAULT_READONLY_PATHS};
pub use error::SpecError;
pub use input::*;
pub use linux::{build, warnings};
pub use process::{DEFAULT_PATH, effective_command, exec_process, working_dir};
pub use signal::{Signal, stop_signal};
pub use sysctl::{Sysctl, validate_sysctls};
