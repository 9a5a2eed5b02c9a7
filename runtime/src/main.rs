//! Crisp: the Kubernetes container runtime's daemon and its command line.
//!
//! ```text
//! cli ─▶ server ─▶ recovery ─▶ cri (RuntimeService, ImageService), admin
//!                                │ parse              │ convert
//!                                ▼                    ▲ published records
//!                  pod/ container/: jobs, states, records
//!                                │
//!          supervisor (the pod's shim) · network · images · cgroups · stats
//! ```
#![forbid(unsafe_code)]

mod admin;
mod blocking;
mod cdi;
mod cgroups;
mod check;
mod checkpoint;
mod cli;
mod config;
mod container;
mod cri;
mod daemon;
mod deadline;
mod dirs;
mod error;
mod events;
mod handlers;
mod index;
mod jobs;
mod lsm;
mod metrics;
mod nri;
mod pod;
mod published;
mod quantity;
mod recovery;
mod server;
mod stats;
mod streaming;
mod supervisor;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main(server::main)
}
