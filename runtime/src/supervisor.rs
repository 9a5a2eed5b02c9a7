//! The daemon's side of a pod's shim: starting it, asking it, hearing from it.
//!
//! [`Launcher`] holds the shim's program in a sealed memory file and starts one shim per pod. [`connect`] reaches a shim that
//! an earlier daemon started. Both give a [`Supervision`]: a cloneable [`SupervisorClient`] for requests, the receiver of
//! [`Event`]s, and the shim's own account of what it holds. Truth is level-triggered: when the connection breaks (the receiver
//! ends), connect again and read the account; nothing is lost, because the shim keeps exit records.

mod attach;
mod client;
mod connection;
mod error;
mod exec;
mod launcher;
mod pipe;
mod wire;

pub(crate) use attach::{AttachSession, AttachStream, Resizer};
pub(crate) use client::{Supervision, SupervisorClient, connect};
pub(crate) use error::Error;
pub(crate) use exec::{ExecOutput, ExecSession, ExecStream, ExecSync};
pub(crate) use launcher::Launcher;
pub(crate) use wire::{
    AttachEnd, CgroupEntry, ContainerPhase, ContainerSetup, Event, Exit, HandlerKind, ShimState, Started,
    Stdio, exit_record,
};

/// Registers a descriptor that it owns, so the number cannot be closed and given away under the registration.
fn registered(
    fd: std::os::fd::OwnedFd,
    interest: tokio::io::Interest,
) -> std::io::Result<tokio::io::unix::AsyncFd<std::os::fd::OwnedFd>> {
    #[expect(deprecated, reason = "its successor is unsafe for what holds no descriptor; an OwnedFd does")]
    tokio::io::unix::AsyncFd::with_interest(fd, interest)
}
