//! How far a pull is: what the job writes and each waiter reads at its own pace.

use crate::digest::Digest;
use crate::image::Progress;

/// The state of a pull; a waiter that looks later sees the newest, and misses nothing but steps in between.
#[derive(Debug, Default, Clone)]
pub(crate) struct Board {
    pub(crate) images: Vec<Part>,
}

/// One image of it; an import may have several.
#[derive(Debug, Clone)]
pub(crate) struct Part {
    pub(crate) digest: Digest,
    /// Layers of the image, the ones that were here included.
    pub(crate) layers_all: usize,
    pub(crate) layers: Vec<LayerState>,
}

/// A layer that was not here.
#[derive(Debug, Clone)]
pub(crate) struct LayerState {
    /// Its position in the image.
    pub(crate) position: usize,
    pub(crate) digest: Digest,
    pub(crate) done: u64,
    pub(crate) total: u64,
    pub(crate) finished: bool,
}

impl Board {
    /// Notes what happened to a layer of the newest image: bytes so far, or `None` for the end.
    pub(crate) fn note(&mut self, position: usize, done: Option<u64>) {
        let layers = self.images.last_mut().map(|part| &mut part.layers);
        if let Some(layer) = layers.and_then(|l| l.iter_mut().find(|l| l.position == position)) {
            layer.finished |= done.is_none();
            layer.done = done.unwrap_or(layer.total);
        }
    }

    /// What happened since `seen`, which becomes this.
    pub(crate) fn since(&self, seen: &mut Self) -> Vec<Progress> {
        let mut events = Vec::new();
        for (n, part) in self.images.iter().enumerate() {
            let old = seen.images.get(n);
            if old.is_none() {
                events.push(part.resolved());
            }
            for (m, layer) in part.layers.iter().enumerate() {
                layer.since(old.and_then(|old| old.layers.get(m)), &mut events);
            }
        }
        seen.clone_from(self);
        events
    }
}

impl Part {
    fn resolved(&self) -> Progress {
        Progress::Resolved {
            digest: self.digest.clone(),
            layers: self.layers_all,
            layers_missing: self.layers.len(),
            bytes: self.layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.total)),
        }
    }
}

impl LayerState {
    fn since(&self, old: Option<&Self>, events: &mut Vec<Progress>) {
        let (done, finished) = old.map_or((0, false), |old| (old.done, old.finished));
        let digest = || self.digest.clone();
        if self.done != done {
            events.push(Progress::LayerBytes { digest: digest(), done: self.done, total: self.total });
        }
        if self.finished && !finished {
            events.push(Progress::LayerDone { digest: digest() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_reader_gets_the_sum() {
        let digest = Digest::of(b"");
        let layer = LayerState { position: 1, digest: digest.clone(), done: 0, total: 10, finished: false };
        let part = Part { digest: digest.clone(), layers_all: 2, layers: vec![layer] };
        let mut board = Board { images: vec![part] };
        let (mut early, mut late) = (Board::default(), Board::default());
        let resolved = Progress::Resolved { digest: digest.clone(), layers: 2, layers_missing: 1, bytes: 10 };
        assert_eq!(board.since(&mut early), std::slice::from_ref(&resolved));
        board.note(1, Some(4));
        board.note(0, Some(4));
        let bytes = |done| Progress::LayerBytes { digest: digest.clone(), done, total: 10 };
        assert_eq!(board.since(&mut early), [bytes(4)]);
        board.note(1, None);
        let done = Progress::LayerDone { digest: digest.clone() };
        assert_eq!(board.since(&mut early), [bytes(10), done.clone()]);
        assert_eq!(board.since(&mut early), []);
        assert_eq!(board.since(&mut late), [resolved, bytes(10), done]);
    }
}
