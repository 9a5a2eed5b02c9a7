//! Exec, attach and port-forward sessions over HTTP upgrades: SPDY/3.1 and WebSocket.
//!
//! ```text
//!  gRPC call ──▶ Server::exec_url: the request waits under a token ──▶ URL
//!  client ──GET /exec/<token>, Upgrade──▶ http (routes, sub-protocols) ──▶ a session on the bare connection
//!
//!    socket ─▶ Input ─▶ ws::Decoder ─▶ spdy::Decoder ─▶ Inlet (bounded) ─▶ stdin, or the pod's socket
//!    socket ◀─ Link (one frame at a time, control first) ◀─ Batch ◀─ stdout, stderr, or the pod's socket
//! ```
//!
//! - Frame codecs are pure ([`spdy::frame`], [`ws::frame`]): bytes in, frames out, nothing is gathered but what a named limit bounds.
//! - SPDY's windows are neither kept nor sent: the clients in use know none. TCP alone holds a sender back.
//! - **The connection is always read**, until one stream's target has taken nothing for so long that its
//!   buffer is full; then the connection waits for that stream (and looks out for its client's end meanwhile).
//! - A session is one future and the tasks it owns: dropping it ends tasks, descriptors and the process's hold.
//!
//! Sources: SPDY protocol draft 3.1; RFC 6455; the Kubernetes remote command and port-forward sub-protocols.
#![forbid(unsafe_code)]

mod backend;
mod config;
mod error;
mod exec;
mod fd;
mod forward;
mod http;
mod inlet;
mod input;
mod link;
mod output;
mod resize;
mod server;
mod session;
pub mod spdy;
mod status;
mod tls;
mod token;
pub mod ws;

pub use backend::{
    AttachRequest, Backend, End, Ends, ExecRequest, Exit, Failure, InputEnd, PortForwardRequest, Process,
    Resize, Size,
};
pub use config::{Config, Tls};
pub use error::StreamingError;
pub use server::Server;
