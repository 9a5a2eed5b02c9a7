//! The image store against registries of the tests' own, on loopback, and against a real one where it is installed.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on says where"
)]

mod auth;
mod content;
mod fake;
mod faults;
mod import;
mod mirrors;
mod pull;
mod real;
mod sharing;
mod store;
mod tls;
