//! What a client sends on one stream, on its way to its target.
//!
//! The connection's reader pushes; while the target takes everything at once, nothing is copied. What it
//! does not take waits here, written by [`Inlet::drain`], at most [`WAITING_BYTES_MAX`] twice: what is being
//! written, and what comes meanwhile. A reader with more waits for room.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::fd::Fd;

/// Bytes that wait behind those being written.
pub(crate) const WAITING_BYTES_MAX: usize = 128 * 1024;

/// One stream's input.
#[derive(Debug, Default)]
pub(crate) struct Inlet {
    state: Mutex<State>,
    /// There is something for the drain to do.
    work: Notify,
    /// There is room for the reader.
    room: Notify,
}

#[derive(Debug, Default)]
struct State {
    target: Target,
    waiting: Vec<u8>,
    writing: Writing,
    input: Side,
}

#[derive(Debug, Default)]
enum Target {
    /// The process is not started, the connection not made.
    #[default]
    Awaited,
    Open(Arc<Fd>),
    /// It takes no more; what comes is dropped.
    Closed,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Writing {
    #[default]
    Idle,
    /// The drain holds bytes that come before `waiting`.
    Busy,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Side {
    #[default]
    Open,
    /// The client says no more.
    Ended,
}

/// Why nothing more is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Drained {
    /// The client said everything, and the target has it.
    Everything,
    /// There is no target, or it took no more.
    Refused,
}

enum Step {
    Write(Arc<Fd>, Vec<u8>),
    Wait,
    Done(Drained),
}

impl Inlet {
    /// Opens the target.
    pub(crate) fn open(&self, target: Arc<Fd>) {
        self.lock().target = Target::Open(target);
        self.work.notify_one();
    }

    /// There is no target, or it is gone: drops what waits and what will come.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.target = Target::Closed;
        state.waiting = Vec::new();
        drop(state);
        self.room.notify_one();
        self.work.notify_one();
    }

    /// The client says no more: the target is closed when it has taken everything.
    pub(crate) fn end(&self) {
        self.lock().input = Side::Ended;
        self.work.notify_one();
    }

    /// Hands `chunk` over, waiting for room where there is none.
    pub(crate) async fn push(&self, mut chunk: &[u8]) {
        loop {
            chunk = self.lock().accept(chunk);
            self.work.notify_one();
            if chunk.is_empty() {
                return;
            }
            self.room.notified().await;
        }
    }

    /// Writes what waits, until the client has said everything or the target takes no more.
    pub(crate) async fn drain(&self) -> Drained {
        let mut spare = Vec::new();
        loop {
            let step = self.lock().step(&mut spare);
            match step {
                Step::Done(drained) => {
                    self.room.notify_one();
                    return drained;
                }
                Step::Wait => self.work.notified().await,
                Step::Write(target, bytes) => {
                    self.room.notify_one();
                    if let Err(error) = target.write_all(&bytes).await {
                        tracing::debug!(%error, "a session's input ends early");
                        self.close();
                    }
                    self.lock().writing = Writing::Idle;
                    spare = bytes;
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Takes what there is room for and gives back the rest.
    fn accept<'a>(&mut self, mut chunk: &'a [u8]) -> &'a [u8] {
        if self.input == Side::Ended || matches!(self.target, Target::Closed) {
            return &[];
        }
        if let (Target::Open(target), true, Writing::Idle) =
            (&self.target, self.waiting.is_empty(), self.writing)
        {
            match target.try_write(chunk) {
                Ok(written) => chunk = chunk.get(written..).unwrap_or_default(),
                Err(_closed) => {
                    self.target = Target::Closed;
                    return &[];
                }
            }
        }
        let room = WAITING_BYTES_MAX - self.waiting.len();
        let (taken, rest) = chunk.split_at(room.min(chunk.len()));
        self.waiting.extend_from_slice(taken);
        rest
    }

    /// What the drain does next; `spare` is an empty buffer's memory, kept while bytes keep waiting.
    fn step(&mut self, spare: &mut Vec<u8>) -> Step {
        match &self.target {
            Target::Closed => Step::Done(Drained::Refused),
            Target::Awaited => Step::Wait,
            Target::Open(target) if !self.waiting.is_empty() => {
                spare.clear();
                self.writing = Writing::Busy;
                Step::Write(Arc::clone(target), std::mem::replace(&mut self.waiting, std::mem::take(spare)))
            }
            Target::Open(target) if self.input == Side::Ended => {
                target.end_writing();
                self.target = Target::Closed;
                Step::Done(Drained::Everything)
            }
            Target::Open(_) => {
                *spare = Vec::new();
                self.waiting = Vec::new();
                Step::Wait
            }
        }
    }
}
