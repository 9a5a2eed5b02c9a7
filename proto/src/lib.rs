//! The wire types: CRI v1 ([`cri`], behind the feature of that name) and the messages between daemon and
//! shim ([`supervisor`]). The code under `gen/` is written by `cargo xtask codegen` and committed.
#![forbid(unsafe_code)]

/// CRI v1, package `runtime.v1`, from `proto/cri/api.proto`.
#[cfg(feature = "cri")]
#[allow(missing_docs, unreachable_pub, elided_lifetimes_in_paths, deprecated, reason = "generated code")]
#[allow(clippy::all, clippy::pedantic, clippy::restriction, reason = "generated code")]
#[rustfmt::skip]
pub mod cri {
    include!("gen/runtime.v1.rs");
}

/// The protocol between daemon and shim, from `proto/shim/supervisor.proto`.
#[allow(missing_docs, unreachable_pub, reason = "generated code")]
#[allow(clippy::all, clippy::pedantic, clippy::restriction, reason = "generated code")]
#[rustfmt::skip]
pub mod supervisor {
    include!("gen/crisp.supervisor.v1.rs");
}
