//! What a process or a pod's port says, on its way to the client.
//!
//! A [`Batch`] is read into in one call and written in one call: room for each frame's header is left before its
//! payload.
//!
//! ```text
//!  [message header ≤ 10][frame header][payload 32 KiB][frame header][payload 32 KiB]…
//! ```

use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use tokio::sync::watch;

use crate::fd::Fd;
use crate::link::Link;
use crate::spdy::frame::{self as spdy, Fin};
use crate::ws::frame::{self as ws, Operation};

/// Payload of a frame: small enough that streams interleave.
const PAYLOAD_BYTES: usize = 32 * 1024;
/// Frames of a batch that is read full.
const FRAMES_MAX: usize = 4;
/// Room for the header of a message around all frames.
const MESSAGE_HEADER_BYTES: usize = ws::FRAME_HEADER_BYTES_MAX;
/// A WebSocket frame's header with a length of two bytes, and the channel.
const CHANNEL_HEADER_BYTES: usize = 5;
/// With so few bytes, channel included, that header is shorter by two bytes.
const SHORT_MESSAGE_BYTES_MAX: usize = 125;

const DISCARD_BYTES: usize = 4096;

/// After a process's end others may hold its output open; they are not waited for longer than this.
const LEFT_OPEN_TIMEOUT: Duration = Duration::from_secs(1);

/// How data is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Frames of streams.
    Spdy,
    /// Frames of streams inside binary messages.
    Tunnel,
    /// Binary messages that begin with a channel's number.
    Channels,
    /// Text messages that begin with a channel's digit; the rest is base64.
    Base64Channels,
}

impl Framing {
    /// `payload` (at most a frame's) on `stream`, framed.
    pub(crate) fn message(self, stream: u32, payload: &[u8], fin: Fin) -> Vec<u8> {
        match self {
            Self::Spdy | Self::Tunnel if payload.is_empty() && fin == Fin::No => Vec::new(),
            Self::Spdy => spdy_frame(stream, payload, fin),
            Self::Tunnel => self.control(&spdy_frame(stream, payload, fin)),
            Self::Channels => ws::frame(Operation::Binary, &[&[channel(stream)], payload]),
            Self::Base64Channels => base64_message(stream, payload),
        }
    }

    /// SPDY control frames, framed; WebSocket's own are complete.
    pub(crate) fn control(self, frames: &[u8]) -> Vec<u8> {
        if self == Self::Tunnel { ws::frame(Operation::Binary, &[frames]) } else { frames.to_vec() }
    }

    /// That nothing follows on `stream`, where it can be said.
    fn end(self, stream: u32) -> Vec<u8> {
        match self {
            Self::Spdy | Self::Tunnel => self.message(stream, &[], Fin::Yes),
            Self::Channels | Self::Base64Channels => Vec::new(),
        }
    }

    fn frame_header_bytes(self) -> usize {
        match self {
            Self::Spdy | Self::Tunnel => spdy::FRAME_HEADER_BYTES,
            Self::Channels | Self::Base64Channels => CHANNEL_HEADER_BYTES,
        }
    }
}

fn spdy_frame(stream: u32, payload: &[u8], fin: Fin) -> Vec<u8> {
    [&spdy::data_header(stream, fin, payload.len())[..], payload].concat()
}

fn base64_message(stream: u32, payload: &[u8]) -> Vec<u8> {
    ws::frame(Operation::Text, &[&[b'0'.wrapping_add(channel(stream))], BASE64.encode(payload).as_bytes()])
}

fn channel(stream: u32) -> u8 {
    let [.., channel] = stream.to_be_bytes();
    channel
}

/// Copies `source` to its end onto `stream`.
///
/// After `left_open` tells that its writer is gone, silence is the end too.
pub(crate) async fn copy(
    source: &Fd,
    link: &Link,
    stream: u32,
    mut left_open: watch::Receiver<bool>,
    mut progress: impl FnMut(),
) -> io::Result<()> {
    let mut batch = Batch::new(link.framing());
    loop {
        let read = tokio::select! {
            biased;
            read = batch.read(source) => read?,
            () = silence(&mut left_open) => 0,
        };
        if read == 0 {
            return end(link, stream).await;
        }
        progress();
        match link.framing() {
            Framing::Base64Channels => link.send(&batch.base64(read, stream)).await?,
            _ => link.send(batch.seal(read, stream)).await?,
        }
        batch.grow(read);
    }
}

/// Reads `source` to its end for nobody: what writes to a terminal must not wait for a client that does not look.
pub(crate) async fn discard(source: &Fd, mut left_open: watch::Receiver<bool>) -> io::Result<()> {
    let mut buffer = [0; DISCARD_BYTES];
    loop {
        let mut room = [IoSliceMut::new(&mut buffer)];
        let read = tokio::select! {
            read = source.read(&mut room) => read?,
            () = silence(&mut left_open) => 0,
        };
        if read == 0 {
            return Ok(());
        }
    }
}

/// Says that nothing follows on `stream`, where it can be said.
pub(crate) async fn end(link: &Link, stream: u32) -> io::Result<()> {
    link.send(&link.framing().end(stream)).await
}

async fn silence(left_open: &mut watch::Receiver<bool>) {
    if left_open.wait_for(|ended| *ended).await.is_err() {
        // Nobody will tell: the source's own end is the only one.
        std::future::pending::<()>().await;
    }
    tokio::time::sleep(LEFT_OPEN_TIMEOUT).await;
}

/// Frames under construction.
struct Batch {
    framing: Framing,
    bytes: Vec<u8>,
    frames: usize,
}

impl Batch {
    fn new(framing: Framing) -> Self {
        let mut batch = Self { framing, bytes: Vec::new(), frames: 1 };
        batch.bytes = vec![0; batch.room()];
        batch
    }

    fn room(&self) -> usize {
        MESSAGE_HEADER_BYTES + self.frames * self.pitch()
    }

    fn pitch(&self) -> usize {
        self.framing.frame_header_bytes() + PAYLOAD_BYTES
    }

    /// Makes room for more where `read` filled it.
    fn grow(&mut self, read: usize) {
        if read == self.frames * PAYLOAD_BYTES && self.frames < FRAMES_MAX {
            self.frames = FRAMES_MAX;
            self.bytes = vec![0; self.room()];
        }
    }

    async fn read(&mut self, source: &Fd) -> io::Result<usize> {
        let (header, pitch) = (self.framing.frame_header_bytes(), self.pitch());
        let mut frames =
            self.bytes.get_mut(MESSAGE_HEADER_BYTES..).unwrap_or_default().chunks_exact_mut(pitch);
        let mut room: [IoSliceMut<'_>; FRAMES_MAX] = std::array::from_fn(|_| {
            IoSliceMut::new(frames.next().and_then(|frame| frame.get_mut(header..)).unwrap_or_default())
        });
        source.read(room.get_mut(..self.frames).unwrap_or_default()).await
    }

    /// The frames of the `read` bytes, contiguous.
    fn seal(&mut self, read: usize, stream: u32) -> &[u8] {
        let mut range = match self.framing {
            Framing::Spdy | Framing::Tunnel => self.seal_spdy(read, stream),
            Framing::Channels | Framing::Base64Channels => self.seal_channel(read, stream),
        };
        if self.framing == Framing::Tunnel {
            range.start -= self.put_message_header(&range);
        }
        self.bytes.get(range).unwrap_or_default()
    }

    fn seal_spdy(&mut self, read: usize, stream: u32) -> Range<usize> {
        let mut at = MESSAGE_HEADER_BYTES;
        for payload in payloads(read) {
            self.put(at, &spdy::data_header(stream, Fin::No, payload));
            at += spdy::FRAME_HEADER_BYTES + payload;
        }
        MESSAGE_HEADER_BYTES..at
    }

    fn seal_channel(&mut self, read: usize, stream: u32) -> Range<usize> {
        let mut at = MESSAGE_HEADER_BYTES;
        let mut begin = at;
        for payload in payloads(read) {
            let message = payload + 1;
            let end = at + CHANNEL_HEADER_BYTES + payload;
            let mut header = [0; ws::FRAME_HEADER_BYTES_MAX];
            let length = ws::write_header(Operation::Binary, message, &mut header);
            let header = header.get(header.len() - length..).unwrap_or_default();
            self.put(at + CHANNEL_HEADER_BYTES - 1, &[channel(stream)]);
            self.put(at + CHANNEL_HEADER_BYTES - 1 - length, header);
            if message <= SHORT_MESSAGE_BYTES_MAX {
                // Only the last is short; what precedes it moves up to it, or it is alone.
                let gap = CHANNEL_HEADER_BYTES - 1 - length;
                self.bytes.copy_within(begin..at, begin + gap);
                begin += gap;
            }
            at = end;
        }
        begin..at
    }

    fn put_message_header(&mut self, range: &Range<usize>) -> usize {
        let mut header = [0; ws::FRAME_HEADER_BYTES_MAX];
        let length = ws::write_header(Operation::Binary, range.len(), &mut header);
        let begin = header.len() - length;
        self.put(range.start - length, header.get(begin..).unwrap_or_default());
        length
    }

    fn base64(&self, read: usize, stream: u32) -> Vec<u8> {
        let header = self.framing.frame_header_bytes();
        let frames = self.bytes.get(MESSAGE_HEADER_BYTES..).unwrap_or_default().chunks_exact(self.pitch());
        payloads(read)
            .zip(frames)
            .flat_map(|(length, frame)| {
                base64_message(stream, frame.get(header..header + length).unwrap_or_default())
            })
            .collect()
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        if let Some(room) = self.bytes.get_mut(at..at + bytes.len()) {
            room.copy_from_slice(bytes);
        }
    }
}

/// The payloads that `read` bytes are split into.
fn payloads(read: usize) -> impl Iterator<Item = usize> {
    (0..read).step_by(PAYLOAD_BYTES).map(move |done| (read - done).min(PAYLOAD_BYTES))
}
