//! Speaking with registries: which hosts, how they are verified, who we say we are, and what comes back.
//!
//! ```text
//! Session (one pull)  ── endpoints from hosts.rs, tried in order
//!   └─ exchange.rs    one request to one endpoint: redirects, retries, 401 → token.rs
//!        └─ tls.rs    the HTTP client for a set of TLS settings
//! ```

mod download;
mod exchange;
mod hosts;
mod meter;
mod session;
mod tls;
mod token;

pub(crate) use download::{Download, Failed, Piece};
pub(crate) use meter::Meter;
pub(crate) use session::{Fetched, Registry, Session};
