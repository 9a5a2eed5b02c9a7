//! systemd as the owner of the cgroup tree: its names, what it is told of limits, and the calls that tell it.
//!
//! A container is a transient *scope* in the slice that the kubelet named, `Delegate=yes`. Limits are properties of that unit, because
//! systemd writes those again whenever it likes (`daemon-reload`, a changed neighbour); what has no property is written into the
//! cgroup directly, and systemd leaves it alone.
//!
//! ```text
//! Systemd ──connect, EXTERNAL, one call, its answer, close──▶ /run/systemd/private      (no bus between; root only)
//!    └─ then the kernel is asked: is the process in the scope's cgroup?                  no signal is listened for
//! ```
//!
//! The client is our own, 300 lines: it needs four methods, no signals, no objects, no bus. A connection is kept by nobody, so none can
//! break between two calls, and PID 1 never queues signals for a reader that sleeps. A general client was measured: see the
//! crate's entry in `ARCHITECTURE.md`.
#![forbid(unsafe_code)]

mod client;
mod error;
mod name;
mod property;
mod wire;

pub use client::{CALL_MAX, CONNECTIONS_MAX, SCOPE_WAIT_MAX, ScopeRequest, Systemd, is_pid_1};
pub use error::{Result, SystemdError};
pub use name::{Slice, UNIT_NAME_BYTES_MAX};
pub use property::{Stage, of_resources, undo};
pub use wire::{MESSAGE_BYTES_MAX, Property, Value};
