//! A connection's WebSocket half that reads: messages of channels.

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::frame::{self, Decoder, Event, Operation, Place, Sender};
use crate::input::{Hangup, Input};
use crate::link::Link;
use crate::output::Framing;
use crate::session::Broken;

/// The channel on which a client of v5 closes others.
const CLOSE_CHANNEL: u8 = 255;

/// What a session makes of its client's channels.
pub(crate) trait Channels: Send {
    /// Takes what came on a channel, known or not; waiting holds the whole connection up.
    fn data(&mut self, channel: u8, chunk: &[u8]) -> impl Future<Output = ()> + Send;

    /// The client says no more on `channel`; `false` where there can be no such channel.
    fn closed(&mut self, channel: u8) -> bool;
}

/// Whether a client can close a channel alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HalfClose {
    /// By a message on channel 255.
    Signalled,
    /// Only with the connection.
    None,
}

/// Reads until the client ends the connection.
pub(crate) async fn read(
    input: &mut Input,
    link: &Link,
    half_close: HalfClose,
    channels: &mut impl Channels,
) -> Result<(), Broken> {
    let mut decoder = Decoder::new(Sender::Client);
    let coding = if link.framing() == Framing::Base64Channels { Coding::Base64 } else { Coding::Plain };
    let mut session = Session { coding, half_close, channels, message: Message::Empty, carry: Vec::new() };
    loop {
        let (mut bytes, hangup) = input.fill(link).await?;
        if bytes.is_empty() {
            return Ok(());
        }
        while let Some(event) = decoder.next(&mut bytes)? {
            match event {
                Event::Data { place, chunk } => session.piece(place, chunk, hangup).await?,
                Event::Ping(payload) => link.control(&frame::frame(Operation::Pong, &[&payload]))?,
                Event::Pong => {}
                Event::Close => return Ok(()),
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    Plain,
    Base64,
}

/// The message under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Message {
    /// Its channel has not come.
    Empty,
    Data(u8),
    /// A signal, and the channel it names when that has come.
    Close(Option<u8>),
}

struct Session<'a, C> {
    coding: Coding,
    half_close: HalfClose,
    channels: &'a mut C,
    message: Message,
    /// Base64 that is no whole group yet: at most three bytes.
    carry: Vec<u8>,
}

impl<C: Channels> Session<'_, C> {
    async fn piece(&mut self, place: Place, mut chunk: &[u8], hangup: &Hangup) -> Result<(), Broken> {
        if place.begins() {
            self.message = Message::Empty;
            self.carry.clear();
        }
        if let (Message::Empty, Some((first, rest))) = (self.message, chunk.split_first()) {
            self.message = self.begin(*first)?;
            chunk = rest;
        }
        match self.message {
            Message::Empty => Ok(()),
            Message::Data(channel) => self.data(channel, place, chunk, hangup).await,
            Message::Close(named) => self.close(named, place, chunk),
        }
    }

    fn begin(&self, first: u8) -> Result<Message, Broken> {
        match (self.coding, self.half_close) {
            (Coding::Plain, HalfClose::Signalled) if first == CLOSE_CHANNEL => Ok(Message::Close(None)),
            (Coding::Plain, _) => Ok(Message::Data(first)),
            (Coding::Base64, _) => {
                first.checked_sub(b'0').map(Message::Data).ok_or(Broken::Message("the channel is no digit"))
            }
        }
    }

    async fn data(&mut self, channel: u8, place: Place, chunk: &[u8], hangup: &Hangup) -> Result<(), Broken> {
        let plain;
        let chunk = match self.coding {
            Coding::Plain => chunk,
            Coding::Base64 => {
                plain = self.decode(place, chunk)?;
                plain.as_slice()
            }
        };
        if chunk.is_empty() || hangup.or(self.channels.data(channel, chunk)).await {
            Ok(())
        } else {
            Err(Broken::Gone)
        }
    }

    /// Decodes whole groups; what is left waits for the next piece.
    fn decode(&mut self, place: Place, chunk: &[u8]) -> Result<Vec<u8>, Broken> {
        self.carry.extend_from_slice(chunk);
        let whole = self.carry.len() / 4 * 4;
        if place.ends() && whole < self.carry.len() {
            return Err(Broken::Message("base64 ends within a group"));
        }
        let (groups, rest) = self.carry.split_at(whole);
        let plain = BASE64.decode(groups).map_err(|_malformed| Broken::Message("not base64"))?;
        self.carry = rest.to_vec();
        Ok(plain)
    }

    fn close(&mut self, named: Option<u8>, place: Place, chunk: &[u8]) -> Result<(), Broken> {
        const MALFORMED: Broken = Broken::Message("malformed close of a channel");
        let named = match (named, chunk) {
            (named, []) => named,
            (None, [channel]) => Some(*channel),
            _ => return Err(MALFORMED),
        };
        self.message = Message::Close(named);
        match named {
            _ if !place.ends() => Ok(()),
            Some(channel) if self.channels.closed(channel) => Ok(()),
            _ => Err(MALFORMED),
        }
    }
}
