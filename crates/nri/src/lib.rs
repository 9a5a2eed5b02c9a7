//! The runtime's side of the Node Resource Interface (NRI v1alpha1): plugins that watch pods and containers, and adjust them.
//!
//! ```text
//!  plugin ═══ Unix stream ═══ Connection      one task reads, one writes; every queue and message is bounded
//!             frames (mux)    │ 1: we call    ttrpc, one request at a time per plugin
//!                             │ 2: they call  RegisterPlugin, UpdateContainers
//!                             ▼
//!                           Plugin ──▶ Plugins: in order of index; answers are merged, a field has one owner
//!                                        │
//!                                        ▼
//!                                     Runtime (the daemon): what exists, changes of running containers
//! ```
//! * **A plugin is bounded.** It has [`Settings::registration_timeout`] to register, configure and synchronise, and
//!   [`Settings::request_timeout`] for each request. Who is late, dead, or breaks the protocol is disconnected and named in the
//!   log, and the others go on. A plugin that says no makes the request fail.
//! * **Nothing is missed.** A creation or removal holds [`Plugins::creation`] shared until its effect shows in [`Runtime::state`]; a
//!   plugin that synchronises takes it whole. So whatever is created around a registration reaches the plugin once, in the set or as a
//!   call, and what it was told of does not vanish without a word.
//! * **No plugin, no cost**: each hook reads one atomic.
//!
//! Facts: the Go module `github.com/containerd/nri` 0.12.1 (`pkg/api`, `pkg/net/multiplex`, `pkg/adaptation`) and
//! `github.com/containerd/ttrpc` 1.2 (`PROTOCOL.md`).
#![forbid(unsafe_code)]

mod connection;
mod error;
mod launch;
mod merge;
mod mux;
mod owners;
mod plugin;
mod plugins;
mod register;
#[cfg(test)]
mod testing;
mod ttrpc;

pub use error::NriError;
pub use merge::overlay;
pub use plugins::{Adjusted, Plugins, Updated};

use std::path::PathBuf;
use std::time::Duration;

use futures_util::future::BoxFuture;

/// The protocol's messages, package `nri.pkg.api.v1alpha1`, from `proto/nri.proto`; written by `cargo xtask codegen`.
#[allow(missing_docs, unreachable_pub, reason = "generated code")]
#[allow(clippy::all, clippy::pedantic, clippy::restriction, reason = "generated code")]
#[rustfmt::skip]
pub mod api {
    include!("gen/nri.pkg.api.v1alpha1.rs");
}

/// What the operator chose.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Told to plugins.
    pub runtime_name: String,
    /// Told to plugins.
    pub runtime_version: String,
    /// Where plugins register themselves.
    pub socket: PathBuf,
    /// Plugins that are started with the runtime: executable files `NN-name`.
    pub plugin_dir: PathBuf,
    /// Their configuration: `NN-name.conf`, else `name.conf`.
    pub plugin_config_dir: PathBuf,
    /// For registering, and again for synchronising.
    pub registration_timeout: Duration,
    /// For each other request.
    pub request_timeout: Duration,
}

/// What exists, for a plugin that synchronises.
#[derive(Debug, Clone, Default)]
pub struct State {
    /// All whose creation has ended.
    pub pods: Vec<api::PodSandbox>,
    /// All whose creation has ended.
    pub containers: Vec<api::Container>,
}

/// What plugins ask of the runtime.
pub trait Runtime: Send + Sync + 'static {
    /// What exists. Called while no creation is under way.
    fn state(&self) -> BoxFuture<'_, State>;
    /// Changes containers; gives back what could not be done.
    fn update(&self, updates: Vec<api::ContainerUpdate>) -> BoxFuture<'_, Vec<api::ContainerUpdate>>;
    /// Stops containers.
    fn evict(&self, evictions: Vec<api::ContainerEviction>) -> BoxFuture<'_, ()>;
}

/// The key of an entry that is marked for removal by a leading `-`.
#[must_use]
pub fn removal(key: &str) -> Option<&str> {
    key.strip_prefix('-')
}
