//! What the Linux security modules are told of a container: the AppArmor profile and the SELinux labels.
//!
//! ```text
//! request (CRI) ──▶ what it means (pure) ──▶ what this machine has ──▶ a name for the specification, or a clear error
//!                                              loaded profiles, our own default profile
//!                                              categories in use, types of the policy
//! ```
//! Rules:
//! - What is asked for by name is given or refused, never ignored. What nobody asked for is given where it can be.
//! - The two modules do not meet: a kernel enforces one of them at a time, and each answers only where it is on.
//! - Nothing here enters a container or touches a process: the shim sets the names on the process that it starts.
#![forbid(unsafe_code)]

pub mod apparmor;
mod error;
mod read;
pub mod selinux;

pub use error::LsmError;

/// Result of this crate.
pub(crate) type Result<T, E = LsmError> = std::result::Result<T, E>;
