//! Tests from outside: they see what a kubelet sees.
//!
//! ```text
//! enter ─▶ suite ─▶ node (a daemon in a private root) ─▶ cri, crictl      leaks: what is left
//!          conformance (critest)      bench               vm              registry ◀─ images
//! ```
#![forbid(unsafe_code)]

pub mod bench;
pub mod command;
pub mod conformance;
pub mod cri;
pub mod enter;
pub mod eventually;
pub mod images;
pub mod kubelet;
pub mod leaks;
pub mod node;
pub mod objects;
pub mod paths;
pub mod peer;
pub mod plugin;
pub mod prepare;
pub mod registry;
pub mod suite;
pub mod vm;
pub mod web;

/// Prints a line on stdout at once.
#[macro_export]
macro_rules! say {
    ($($part:tt)*) => {{
        use std::io::Write as _;
        // A reader that went away ends nothing here.
        drop(writeln!(std::io::stdout().lock(), $($part)*));
    }};
}
