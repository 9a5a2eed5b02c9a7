//! Layers of an image, from where they are to the layer store.
//!
//! ```text
//! registry ─ download ─▶ bounded channel ─▶ blocking thread: decompress ─▶ LayerStore::unpack ─▶ staged
//!   (hashes what came)                        (hashes the plain stream)                              │
//!                                    parent committed? ──────────────────────────────────────────▶ commit
//! ```
//!
//! All layers of an image run at once, up to a limit; each is a job by its chain id, so that pulls that want the same layer
//! fetch it once. A layer waits for its parent only with its commit, and holds no permit then; the parent's commit takes along
//! what waits on top of it.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf as _, Bytes};
use crisp_snapshot::{ChainId, DiffId, LayerStore, Limits, SnapshotError, StagedLayer};
use tokio::sync::{Semaphore, mpsc, watch};

use crate::archive::Blob;
use crate::config::RegistryConfig;
use crate::digest::{Digest, Hasher};
use crate::error::{ImageError, Result, chain};
use crate::job::{Job, Jobs};
use crate::manifest::Descriptor;
use crate::registry::{Download, Failed, Meter, Piece, Session};
use crate::threads;

/// Pieces between the download and the thread that unpacks, each of a few to some hundred KiB.
const PIECES_MAX: usize = 16;
/// Bytes between two reports of progress.
const REPORT_STEP: u64 = 256 << 10;
/// Largest window of a zstd frame, as the power of two: what its format's own tools accept without being asked.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;
const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];

/// Where a layer comes from.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    Registry(Arc<Session>, Descriptor),
    /// A part of a file; the digest is that of these bytes, where it is known.
    File(Blob, Option<Digest>),
}

/// A layer to be here in the end.
#[derive(Debug, Clone)]
pub(crate) struct Wanted {
    pub(crate) source: Source,
    /// What to call it in errors and progress.
    pub(crate) name: Digest,
    pub(crate) bytes: u64,
    pub(crate) diff_id: DiffId,
}

type LayerJob = Job<(), u64>;

/// Staged layers with the same layer below.
type Siblings = Vec<(ChainId, StagedLayer)>;

/// Makes layers.
#[derive(Debug)]
pub(crate) struct Maker {
    pub(crate) layers: LayerStore,
    jobs: Jobs<ChainId, (), u64>,
    /// Staged layers that wait for the one below, by its id.
    waiting: Mutex<HashMap<Option<ChainId>, Siblings>>,
    /// How many are fetched at a time on the node.
    node: Arc<Semaphore>,
    per_image: usize,
    progress_timeout: std::time::Duration,
}

/// A job that somebody else started failed; with our credentials it may go better.
struct Borrowed(ImageError);

impl Maker {
    pub(crate) fn new(layers: LayerStore, config: &RegistryConfig) -> Self {
        Self {
            layers,
            jobs: Jobs::default(),
            waiting: Mutex::default(),
            node: Arc::new(Semaphore::new(config.node_layers_parallel.max(1))),
            per_image: config.layers_parallel.max(1),
            progress_timeout: config.progress_timeout,
        }
    }

    /// Has all layers of an image here. `wanted` and `chain` are bottom first; `progress` is told the bytes of a layer by its
    /// position, and `None` when it is done.
    pub(crate) async fn ensure(
        self: &Arc<Self>,
        wanted: &[Wanted],
        chain: &[ChainId],
        progress: &(dyn Fn(usize, Option<u64>) + Send + Sync),
    ) -> Result<()> {
        match self.round(wanted, chain, progress).await {
            Ok(()) => Ok(()),
            Err(Ok(Borrowed(_))) => {
                self.round(wanted, chain, progress).await.map_err(|e| e.map_or_else(|e| e, |b| b.0))
            }
            Err(Err(error)) => Err(error),
        }
    }

    async fn round(
        self: &Arc<Self>,
        wanted: &[Wanted],
        chain: &[ChainId],
        progress: &(dyn Fn(usize, Option<u64>) + Send + Sync),
    ) -> Result<(), Result<Borrowed>> {
        let permits = Arc::new(Semaphore::new(self.per_image));
        let mut parent: Option<Arc<LayerJob>> = None;
        let (mut waits, mut borrowed) = (Vec::new(), false);
        for (n, (wanted, id)) in wanted.iter().zip(chain).enumerate() {
            if self.layers.contains(id).is_some() {
                parent = None;
                continue;
            }
            let below = n.checked_sub(1).and_then(|below| chain.get(below)).cloned();
            let (job, ours) = self.jobs.join(id.clone(), wanted.name.as_str(), |report| {
                let work =
                    Work { wanted: wanted.clone(), id: id.clone(), below, parent: parent.take(), report };
                Arc::clone(self).make(work, Arc::clone(&permits))
            });
            borrowed |= !ours;
            parent = Some(Arc::clone(&job));
            waits.push(async move {
                job.wait(|done| progress(n, Some(*done))).await?;
                progress(n, None);
                Ok::<_, ImageError>(())
            });
        }
        let all = futures_util::future::try_join_all(waits).await;
        all.map(|_| ()).map_err(|e| if borrowed { Ok(Borrowed(e)) } else { Err(e) })
    }

    async fn make(self: Arc<Self>, work: Work, permits: Arc<Semaphore>) -> Result<()> {
        if self.layers.contains(&work.id).is_some() {
            return Ok(());
        }
        let subject = || work.wanted.name.to_string();
        let staged = {
            let closed = |_| ImageError::Cancelled { subject: subject() };
            let _image = permits.acquire().await.map_err(closed)?;
            let _node = self.node.acquire().await.map_err(closed)?;
            self.stage(&work).await?
        };
        let parked = self.park(&work, staged);
        if let Some(parent) = &work.parent {
            parent.wait(|_| ()).await?;
        }
        if self.layers.contains(&work.id).is_some() {
            return Ok(());
        }
        // Gone but not here: whoever took it along failed, and its own error reached us above.
        let Some(staged) = parked.take() else { return Err(ImageError::Cancelled { subject: subject() }) };
        let (maker, name, id, below) =
            (Arc::clone(&self), work.wanted.name.clone(), work.id.clone(), work.below.clone());
        let commit = move || maker.layers.commit_all(maker.run_from(id, staged), below.as_ref());
        let committed = threads::run(commit).await;
        let committed = committed.map_err(|_error| ImageError::Cancelled { subject: subject() })?;
        committed.map(|_| ()).map_err(|source| ImageError::Layer { layer: name, source })
    }

    /// Keeps a staged layer where the one below finds it.
    fn park<'a>(&'a self, work: &'a Work, staged: StagedLayer) -> Parked<'a> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.entry(work.below.clone()).or_default().push((work.id.clone(), staged));
        Parked { maker: self, work }
    }

    /// A layer and those that wait on top of it: synced together, since a sync costs as much for one as for all.
    fn run_from(&self, mut id: ChainId, staged: StagedLayer) -> Vec<StagedLayer> {
        let mut run = vec![staged];
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let above = Some(id);
            let Some(layers) = waiting.get_mut(&above) else { return run };
            let Some((next, staged)) = layers.pop() else { return run };
            if layers.is_empty() {
                waiting.remove(&above);
            }
            run.push(staged);
            id = next;
        }
    }

    async fn stage(&self, work: &Work) -> Result<StagedLayer> {
        let staged = match &work.wanted.source {
            Source::Registry(session, descriptor) => {
                self.stage_from_registry(session, descriptor, &work.report).await?
            }
            Source::File(blob, digest) => self.stage_from_file(work, blob.clone(), digest.clone()).await?,
        };
        let (found, expected) = (staged.diff_id(), &work.wanted.diff_id);
        if found == expected {
            return Ok(staged);
        }
        Err(mismatch(format!("unpacked layer {}", work.wanted.name), expected.as_str(), found.as_str()))
    }

    /// Fetches until it is right: a host that gave something else is not asked again.
    async fn stage_from_registry(
        &self,
        session: &Session,
        descriptor: &Descriptor,
        report: &watch::Sender<u64>,
    ) -> Result<StagedLayer> {
        let (mut avoid, mut first_error) = (BTreeSet::new(), None);
        loop {
            let error = match self.stream(session, descriptor, report, &mut avoid).await {
                Ok(staged) => return Ok(staged),
                Err(Failed::Wrong(error)) => error,
                Err(Failed::Final(error)) => return Err(first_error.unwrap_or(error)),
                Err(Failed::Receiver) => ImageError::Cancelled { subject: descriptor.digest.to_string() },
            };
            tracing::warn!(digest = %descriptor.digest, error = chain(&error), "layer is not usable as this host gave it");
            first_error.get_or_insert(error);
        }
    }

    async fn stream(
        &self,
        session: &Session,
        descriptor: &Descriptor,
        report: &watch::Sender<u64>,
        avoid: &mut BTreeSet<usize>,
    ) -> Result<StagedLayer, Failed> {
        let (sink, pieces) = mpsc::channel(PIECES_MAX);
        let layers = self.layers.clone();
        let limits = limits(descriptor.size);
        let unpack = threads::run(move || unpack(PieceReader::new(pieces), &layers, &limits));
        let meter = Meter::default();
        let total = descriptor.size;
        let progress = |done| report_progress(report, done, total);
        let download = async {
            let download = Download { session, descriptor, meter: &meter, sink: &sink, progress: &progress };
            let downloaded = meter.guard(self.progress_timeout, download.run(avoid)).await;
            // The thread must not wait for more.
            drop(sink);
            downloaded
        };
        let (downloaded, unpacked) = tokio::join!(download, unpack);
        let digest = || descriptor.digest.clone();
        let cancelled = |_| Failed::Final(ImageError::Cancelled { subject: digest().to_string() });
        let unpacked = unpacked.map_err(cancelled)?;
        let stalled = |_| ImageError::Stalled {
            reference: format!("{}@{}", session.name, descriptor.digest),
            window: self.progress_timeout,
        };
        let unusable = |source| ImageError::Layer { layer: digest(), source };
        match (downloaded.map_err(|s| Failed::Final(stalled(s)))?, unpacked) {
            (Ok(()), Ok(staged)) => Ok(staged),
            // It is what its digest says, so another host has the same.
            (Ok(()), Err(error)) => Err(Failed::Final(unusable(error))),
            (Err(Failed::Receiver), Err(error)) if is_contents_fault(&error) => {
                Err(Failed::Wrong(unusable(error)))
            }
            (Err(Failed::Receiver), Err(error)) => Err(Failed::Final(unusable(error))),
            (Err(failed), _) => Err(failed),
        }
    }

    async fn stage_from_file(&self, work: &Work, blob: Blob, digest: Option<Digest>) -> Result<StagedLayer> {
        let (layers, report, name) = (self.layers.clone(), work.report.clone(), work.wanted.name.clone());
        let staged = threads::run(move || {
            let total = blob.len();
            let limits = limits(total);
            let hashed =
                HashingReader { inner: blob, hasher: Hasher::default(), done: 0, report: &report, total };
            let mut reader = BufReader::with_capacity(128 << 10, hashed);
            let layer = name.clone();
            let staged = unpack(&mut reader, &layers, &limits)
                .map_err(|source| ImageError::Layer { layer, source })?;
            let found = reader.into_inner().hasher.finish();
            match digest {
                Some(expected) if expected != found => {
                    Err(mismatch(format!("layer {name}"), expected.as_str(), found.as_str()))
                }
                Some(_) | None => Ok(staged),
            }
        });
        let cancelled = |_| ImageError::Cancelled { subject: work.wanted.name.to_string() };
        staged.await.map_err(cancelled)?
    }
}

/// A staged layer that waits for the one below; whoever commits that one may take it along. Dropping this drops it.
struct Parked<'a> {
    maker: &'a Maker,
    work: &'a Work,
}

impl Parked<'_> {
    fn take(&self) -> Option<StagedLayer> {
        let mut waiting = self.maker.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let layers = waiting.get_mut(&self.work.below)?;
        let at = layers.iter().position(|(id, _)| *id == self.work.id)?;
        let (_, staged) = layers.swap_remove(at);
        if layers.is_empty() {
            waiting.remove(&self.work.below);
        }
        Some(staged)
    }
}

impl Drop for Parked<'_> {
    fn drop(&mut self) {
        drop(self.take());
    }
}

/// One layer's job.
struct Work {
    wanted: Wanted,
    id: ChainId,
    below: Option<ChainId>,
    /// Who makes the layer below, when it is in the making.
    parent: Option<Arc<LayerJob>>,
    report: watch::Sender<u64>,
}

fn mismatch(subject: String, expected: &str, found: &str) -> ImageError {
    match expected.parse() {
        Ok(expected) => ImageError::Mismatch { subject, expected, found: found.into() },
        Err(_) => ImageError::Document { subject, reason: format!("{expected:?} is no digest") },
    }
}

fn limits(compressed_bytes: u64) -> Limits {
    Limits { compressed_bytes: Some(compressed_bytes), ..Limits::default() }
}

/// Whether other content might have been unpacked.
fn is_contents_fault(error: &SnapshotError) -> bool {
    use SnapshotError as E;
    matches!(
        error,
        E::Malformed { .. } | E::Refused { .. } | E::Limit { .. } | E::Stream { .. } | E::Entry { .. }
    )
}

/// Reports in steps, so that whoever listens is not woken for every packet.
fn report_progress(report: &watch::Sender<u64>, done: u64, total: u64) {
    report.send_if_modified(|last| {
        let step = done < *last || done - *last >= REPORT_STEP || (done == total && *last != total);
        if step {
            *last = done;
        }
        step
    });
}

/// Decompresses by what the content begins with, not by what it is called: both digests are verified either way.
fn unpack(
    mut reader: impl BufRead,
    layers: &LayerStore,
    limits: &Limits,
) -> Result<StagedLayer, SnapshotError> {
    let stream = |source| SnapshotError::Stream { offset: 0, source };
    let mut head = Vec::with_capacity(ZSTD.len());
    (&mut reader).take(ZSTD.len() as u64).read_to_end(&mut head).map_err(stream)?;
    let (gzip, zstd) = (head.starts_with(GZIP), head.starts_with(ZSTD));
    let whole = Read::chain(Cursor::new(head), reader);
    if gzip {
        layers.unpack(flate2::bufread::MultiGzDecoder::new(whole), limits)
    } else if zstd {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(whole).map_err(stream)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(stream)?;
        layers.unpack(decoder, limits)
    } else {
        layers.unpack(whole, limits)
    }
}

/// The receiving end of a download, for a blocking thread.
struct PieceReader {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
}

impl PieceReader {
    fn new(pieces: mpsc::Receiver<Piece>) -> Self {
        Self { pieces, current: Bytes::new(), ended: false }
    }
}

impl BufRead for PieceReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Bytes(bytes)) => self.current = bytes,
                Some(Piece::End) => self.ended = true,
                // The download gave up: an early end must not look like the end.
                None => {
                    return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the download ended early"));
                }
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        self.current.advance(amount);
    }
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let n = available.len().min(buffer.len());
        buffer[..n].copy_from_slice(&available[..n]);
        self.consume(n);
        Ok(n)
    }
}

struct HashingReader<'a> {
    inner: Blob,
    hasher: Hasher,
    done: u64,
    report: &'a watch::Sender<u64>,
    total: u64,
}

impl Read for HashingReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..n]);
        self.done += n as u64;
        report_progress(self.report, self.done, self.total);
        Ok(n)
    }
}
