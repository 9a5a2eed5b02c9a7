//! Devices by the Container Device Interface (CDI): vendors describe in files what a container needs for a device of theirs, and a
//! request names the device, `vendor.com/class=name`.
//!
//! ```text
//! /etc/cdi/*.{json,yaml} ─┐ read again when a file changed
//! /var/run/cdi/…  ────────┴─▶ Catalog ─ names ─▶ edits of the file, then of the device ─▶ OCI specification
//!   (rising precedence)
//! ```
//! * A device in a directory of higher precedence hides the one of the same name in a lower one. In two files of one directory it is
//!   a conflict, and can be used from neither.
//! * A file that is broken is left out whole, named by [`Registry::problems`], and logged when it is first seen so.
//! * Nothing is half-applied: the specification is changed when every name was found and every edit made sense.
//!
//! Source: CDI specification 1.1.0 (`cncf-tags/container-device-interface`, `SPEC.md`). The crate `container-device-interface` would
//! bring a second YAML parser, a JSON schema engine and command line parsing.
#![forbid(unsafe_code)]

mod catalog;
mod edits;
mod error;
mod file;
mod name;

pub use catalog::{Problem, Registry};
pub use error::CdiError;
pub use name::DeviceName;
