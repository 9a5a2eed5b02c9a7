//! SPDY/3.1, the part that exec, attach and port-forward need; the server opens no stream.

pub mod frame;
pub mod headers;
pub(crate) mod session;
