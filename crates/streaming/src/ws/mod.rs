//! WebSocket: framing, and sessions of channels.

pub mod frame;
pub(crate) mod session;
