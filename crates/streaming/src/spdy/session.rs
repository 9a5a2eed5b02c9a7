//! A connection's SPDY half that reads: stream rules, replies, echoes.

use std::time::Duration;

use super::frame::{self, Decoder, Event, Fin};
use super::headers::{HeaderWriter, Headers};
use crate::input::{Hangup, Input};
use crate::link::Link;
use crate::output::Framing;
use crate::session::Broken;
use crate::ws::frame as ws;

/// A client opens every stream it needs by then.
pub(crate) const STREAM_CREATION_TIMEOUT: Duration = Duration::from_secs(30);

/// What a session makes of its client's streams.
pub(crate) trait Streams: Send {
    /// A stream is opened; it is answered at once.
    fn opened(&mut self, stream: u32, headers: &Headers) -> Answer;

    /// Takes what came on a stream, of whatever kind, known or not; waiting holds the whole connection up.
    fn data(&mut self, stream: u32, chunk: &[u8], fin: Fin) -> impl Future<Output = ()> + Send;

    /// The client broke a stream off.
    fn reset(&mut self, stream: u32);
}

/// The answer to a new stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Accept,
    /// With this number.
    Refuse(u32),
}

/// Reads until the client ends the connection.
pub(crate) async fn read(input: &mut Input, link: &Link, streams: &mut impl Streams) -> Result<(), Broken> {
    let mut session =
        Session { link, streams, decoder: Decoder::default(), replies: HeaderWriter::default(), last: 0 };
    let mut tunnel = (link.framing() == Framing::Tunnel).then(|| ws::Decoder::new(ws::Sender::Client));
    loop {
        let (mut bytes, hangup) = input.fill(link).await?;
        if bytes.is_empty() {
            return Ok(());
        }
        let Some(messages) = &mut tunnel else {
            session.feed(bytes, hangup).await?;
            continue;
        };
        while let Some(event) = messages.next(&mut bytes)? {
            match event {
                ws::Event::Data { chunk, .. } => session.feed(chunk, hangup).await?,
                ws::Event::Ping(payload) => link.control(&ws::frame(ws::Operation::Pong, &[&payload]))?,
                ws::Event::Pong => {}
                ws::Event::Close => return Ok(()),
            }
        }
    }
}

/// The last frames of a session that ends as it should.
pub(crate) fn farewell(framing: Framing) -> Vec<u8> {
    // Whatever the client opened was dealt with.
    let mut bytes = framing.control(&frame::goaway(u32::MAX >> 1, frame::GOAWAY_OK));
    if framing == Framing::Tunnel {
        bytes.extend(ws::close(ws::CLOSE_NORMAL));
    }
    bytes
}

struct Session<'a, S> {
    link: &'a Link,
    streams: &'a mut S,
    decoder: Decoder,
    replies: HeaderWriter,
    /// The last stream that was opened.
    last: u32,
}

impl<S: Streams> Session<'_, S> {
    async fn feed(&mut self, mut bytes: &[u8], hangup: &Hangup) -> Result<(), Broken> {
        while let Some(event) = self.decoder.next(&mut bytes)? {
            match event {
                Event::Data { stream, fin, chunk } => {
                    if !hangup.or(self.streams.data(stream, chunk, fin)).await {
                        return Err(Broken::Gone);
                    }
                }
                Event::SynStream { stream, fin, headers } => self.open(stream, fin, &headers).await?,
                Event::Headers { stream, fin: Fin::Yes } => self.streams.data(stream, &[], Fin::Yes).await,
                Event::Reset { stream, .. } => self.streams.reset(stream),
                Event::Ping { id } if id % 2 == 1 => self.say(&frame::ping(id))?,
                // Echoes of what we never ask, replies to what we never open, and a client that says it will close.
                Event::Ping { .. } | Event::Headers { .. } | Event::SynReply { .. } | Event::GoAway => {}
            }
        }
        Ok(())
    }

    async fn open(&mut self, stream: u32, fin: Fin, headers: &Headers) -> Result<(), Broken> {
        let answer = if stream % 2 == 1 && stream > self.last {
            self.last = stream;
            self.streams.opened(stream, headers)
        } else {
            Answer::Refuse(frame::RESET_PROTOCOL_ERROR)
        };
        match answer {
            Answer::Refuse(status) => self.say(&frame::rst_stream(stream, status)),
            Answer::Accept => {
                let reply = frame::syn_reply(stream, &mut self.replies);
                self.say(&reply)?;
                if fin == Fin::Yes {
                    self.streams.data(stream, &[], Fin::Yes).await;
                }
                Ok(())
            }
        }
    }

    fn say(&self, control: &[u8]) -> Result<(), Broken> {
        Ok(self.link.control(&self.link.framing().control(control))?)
    }
}
