//! What all sessions share: their connection, and how they end.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::input::Input;
use crate::link::{Flood, Link};
use crate::output::Framing;
use crate::spdy::frame as spdy;
use crate::spdy::session::farewell as spdy_farewell;
use crate::ws::frame as ws;

/// A client that was told the end closes the connection by then.
const LINGER: Duration = Duration::from_secs(5);

/// The bare connection after its upgrade.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) input: Input,
    pub(crate) link: Arc<Link>,
    /// Without traffic for so long it ends.
    pub(crate) idle_timeout: Option<Duration>,
}

/// Why a client's connection cannot be read further.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    #[error("the connection failed")]
    Connection(#[from] io::Error),
    #[error("malformed SPDY")]
    Spdy(#[from] spdy::FrameError),
    #[error("malformed WebSocket")]
    WebSocket(#[from] ws::FrameError),
    #[error("malformed message: {0}")]
    Message(&'static str),
    #[error(transparent)]
    Flood(#[from] Flood),
    #[error("the client went away")]
    Gone,
}

/// How a session ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Everything was said.
    Done,
    /// The client closed the connection.
    Left,
    /// Nothing was said for too long.
    Idle,
    Broken(Broken),
}

impl From<Result<(), Broken>> for Outcome {
    fn from(read: Result<(), Broken>) -> Self {
        read.map_or_else(Self::Broken, |()| Self::Left)
    }
}

impl From<io::Result<()>> for Outcome {
    fn from(written: io::Result<()>) -> Self {
        written.map_or_else(|error| Self::Broken(error.into()), |()| Self::Done)
    }
}

/// Says the last word that fits `outcome` and closes the connection.
pub(crate) async fn close(link: &Link, input: &mut Input, outcome: Outcome) {
    let last = match &outcome {
        Outcome::Done | Outcome::Left | Outcome::Idle => farewell(link.framing()),
        Outcome::Broken(broken) => complaint(link.framing(), broken),
    };
    if let Outcome::Broken(broken) = &outcome {
        tracing::debug!(error = broken as &dyn std::error::Error, "streaming session breaks off");
    }
    if link.finish(&last).await.is_ok() && matches!(outcome, Outcome::Done) && !closed(input).await {
        tracing::debug!("client keeps its connection open after the end");
    }
}

async fn closed(input: &mut Input) -> bool {
    tokio::time::timeout(LINGER, input.discard()).await.is_ok()
}

fn farewell(framing: Framing) -> Vec<u8> {
    match framing {
        Framing::Spdy | Framing::Tunnel => spdy_farewell(framing),
        Framing::Channels | Framing::Base64Channels => ws::close(ws::CLOSE_NORMAL),
    }
}

fn complaint(framing: Framing, broken: &Broken) -> Vec<u8> {
    let code = match broken {
        Broken::WebSocket(error) => error.close_code(),
        _ => ws::CLOSE_PROTOCOL_ERROR,
    };
    match framing {
        Framing::Spdy => spdy::goaway(0, spdy::GOAWAY_PROTOCOL_ERROR),
        Framing::Tunnel | Framing::Channels | Framing::Base64Channels => ws::close(code),
    }
}
