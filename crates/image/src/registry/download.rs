//! A layer from a registry: a stream that survives broken connections and hosts.
//!
//! What was received is hashed and handed on at once, and never again: a connection that breaks is followed by a request for
//! the rest. A host that ignores the range has its beginning thrown away.

use std::collections::BTreeSet;

use bytes::Bytes;
use http::header::CONTENT_RANGE;
use http::{Method, StatusCode};
use reqwest::Response;
use tokio::sync::mpsc;

use super::exchange::Ask;
use super::meter::Meter;
use super::session::{EndpointState, Session};
use crate::digest::Hasher;
use crate::error::{Attempt, Attempts, Failure, ImageError, Result, chain};
use crate::manifest::Descriptor;

/// Connections to one host in a row that bring nothing.
const BARREN_MAX: u32 = 3;

/// A part of a stream, in order; the stream is whole only when `End` came.
#[derive(Debug)]
pub(crate) enum Piece {
    Bytes(Bytes),
    /// All came, and it has the right digest.
    End,
}

/// Why a blob did not come.
#[derive(Debug)]
pub(crate) enum Failed {
    /// Whoever takes the pieces has stopped, and knows why.
    Receiver,
    /// What came is not what was asked for; other hosts may do better.
    Wrong(ImageError),
    /// No host is left.
    Final(ImageError),
}

/// A blob on its way.
pub(crate) struct Download<'a> {
    pub(crate) session: &'a Session,
    pub(crate) descriptor: &'a Descriptor,
    pub(crate) meter: &'a Meter,
    pub(crate) sink: &'a mpsc::Sender<Piece>,
    /// Told how many bytes there are so far.
    pub(crate) progress: &'a (dyn Fn(u64) + Send + Sync),
}

struct State {
    hasher: Hasher,
    /// Bytes that were hashed and handed on.
    offset: u64,
    attempts: Attempts,
}

impl Download<'_> {
    /// Streams the blob from the hosts that are not in `avoid`; those to blame when it is not what it should be are added.
    pub(crate) async fn run(&self, avoid: &mut BTreeSet<usize>) -> Result<(), Failed> {
        let mut state = State { hasher: Hasher::default(), offset: 0, attempts: Attempts::default() };
        let mut gave = Vec::new();
        let done = self.take_from_hosts(avoid, &mut state, &mut gave).await;
        // Of several that gave a part the last may be innocent, and is asked again for the whole.
        if gave.len() > 1 {
            gave.pop();
        }
        avoid.extend(gave);
        if done? {
            return self.finish(state).await;
        }
        let subject = format!("{}@{}", self.session.name, self.descriptor.digest);
        Err(Failed::Final(state.attempts.into_error(subject)))
    }

    async fn take_from_hosts(
        &self,
        avoid: &BTreeSet<usize>,
        state: &mut State,
        gave: &mut Vec<usize>,
    ) -> Result<bool, Failed> {
        let path = format!("/{}/blobs/{}", self.session.repository, self.descriptor.digest);
        for (n, host) in self.session.endpoints.iter().enumerate().filter(|(_, s)| s.endpoint.serves.pulls())
        {
            if avoid.contains(&n) || (host.endpoint.instead && state.attempts.is_settled()) {
                continue;
            }
            let before = state.offset;
            let whole = self.take_from(host, &path, state).await;
            if state.offset > before || matches!(whole, Ok(true)) {
                gave.push(n);
            }
            if whole? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Takes what it can from one host; `false` when that is not all.
    async fn take_from(&self, host: &EndpointState, path: &str, state: &mut State) -> Result<bool, Failed> {
        let mut barren = 0;
        while barren < BARREN_MAX {
            let ask = Ask { method: Method::GET, path, accept: &[], offset: state.offset, meter: self.meter };
            let response = match self.session.ask(host, &ask).await {
                Ok(response) => response,
                Err(attempt) => {
                    state.attempts.0.push(attempt);
                    return Ok(false);
                }
            };
            let before = state.offset;
            match self.read(host, response, state).await? {
                None => return Ok(true),
                Some(attempt) => state.attempts.0.push(attempt),
            }
            barren = if state.offset > before { 0 } else { barren + 1 };
            // A stream that breaks again and again is told in one line.
            state.attempts.0.dedup_by(|a, b| a.host == b.host && a.reason == b.reason);
        }
        Ok(false)
    }

    /// Reads one answer to its end: `None` when the blob is whole, else what went wrong.
    async fn read(
        &self,
        host: &EndpointState,
        mut response: Response,
        state: &mut State,
    ) -> Result<Option<Attempt>, Failed> {
        let unavailable = |reason: String| Ok(Some(host.attempt(Failure::Unavailable, reason)));
        let mut skip = match begins_at(&response) {
            Some(at) if at <= state.offset => state.offset - at,
            _ => {
                return Ok(Some(
                    host.attempt(Failure::Other, "it sends another range than was asked for".into()),
                ));
            }
        };
        let silence = self.session.registry.config.silence_max;
        loop {
            let chunk = match self.meter.wait(tokio::time::timeout(silence, response.chunk())).await {
                Ok(Ok(Some(chunk))) => chunk,
                // All is here, however the connection ended.
                Ok(Ok(None) | Err(_)) | Err(_) if state.offset == self.descriptor.size => return Ok(None),
                Ok(Ok(None)) => return unavailable(format!("the blob ended at byte {}", state.offset)),
                Ok(Err(error)) => return unavailable(chain(&error.without_url())),
                Err(_) => return unavailable(format!("nothing came for {} s", silence.as_secs())),
            };
            self.meter.add(chunk.len());
            let skipped = skip.min(chunk.len() as u64);
            skip -= skipped;
            let fresh = chunk.slice(usize::try_from(skipped).unwrap_or(chunk.len())..);
            if !fresh.is_empty() {
                self.hand_on(fresh, state).await?;
            }
        }
    }

    async fn hand_on(&self, bytes: Bytes, state: &mut State) -> Result<(), Failed> {
        state.offset += bytes.len() as u64;
        if state.offset > self.descriptor.size {
            return Err(Failed::Wrong(self.mismatch(format!("more than {} bytes", self.descriptor.size))));
        }
        state.hasher.update(&bytes);
        self.sink.send(Piece::Bytes(bytes)).await.map_err(|_error| Failed::Receiver)?;
        (self.progress)(state.offset);
        Ok(())
    }

    async fn finish(&self, state: State) -> Result<(), Failed> {
        let found = state.hasher.finish();
        if found != self.descriptor.digest {
            return Err(Failed::Wrong(self.mismatch(found.to_string())));
        }
        self.sink.send(Piece::End).await.map_err(|_error| Failed::Receiver)
    }

    fn mismatch(&self, found: String) -> ImageError {
        let digest = &self.descriptor.digest;
        ImageError::Mismatch {
            subject: format!("{}@{digest}", self.session.name),
            expected: digest.clone(),
            found,
        }
    }
}

/// Where an answer's body begins in the blob.
fn begins_at(response: &Response) -> Option<u64> {
    if response.status() != StatusCode::PARTIAL_CONTENT {
        return Some(0);
    }
    let range = response.headers().get(CONTENT_RANGE)?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}
