//! A terminal's size, as clients tell it: JSON objects back to back.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::Deserialize;
use tokio::sync::watch;

use crate::backend::{Resize, Size};

/// An object that is not complete by then is none.
const UNFINISHED_BYTES_MAX: usize = 1024;
/// A client tells its size right after its streams are open; a program that asks at once should not find none.
const FIRST_SIZE_PATIENCE: Duration = Duration::from_millis(20);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Told {
    width: u16,
    height: u16,
}

/// The last size that was told.
#[derive(Debug)]
pub(crate) struct Sizes {
    unfinished: Mutex<Vec<u8>>,
    last: watch::Sender<Option<Size>>,
}

impl Default for Sizes {
    fn default() -> Self {
        Self { unfinished: Mutex::default(), last: watch::Sender::new(None) }
    }
}

impl Sizes {
    /// Takes what came on the resize stream.
    pub(crate) fn push(&self, chunk: &[u8]) {
        let mut unfinished = self.unfinished.lock().unwrap_or_else(PoisonError::into_inner);
        for part in chunk.chunks(UNFINISHED_BYTES_MAX) {
            unfinished.extend_from_slice(part);
            if let Some(size) = take(&mut unfinished) {
                self.last.send_replace(Some(size));
            }
        }
    }

    /// The size to start with, where it comes in time.
    pub(crate) async fn first(&self) -> Option<Size> {
        let mut last = self.last.subscribe();
        let told = tokio::time::timeout(FIRST_SIZE_PATIENCE, last.wait_for(Option::is_some)).await;
        told.ok()?.ok().and_then(|size| *size)
    }

    /// Sets each new size; sizes told before are not lost.
    pub(crate) async fn apply(&self, resize: &Resize) {
        let mut last = self.last.subscribe();
        last.mark_changed();
        while last.changed().await.is_ok() {
            let size = *last.borrow_and_update();
            if let Some(size) = size {
                resize(size);
            }
        }
    }
}

/// Takes whole objects off `bytes` and gives the last good size; what cannot become an object is dropped.
fn take(bytes: &mut Vec<u8>) -> Option<Size> {
    let mut sizes = serde_json::Deserializer::from_slice(bytes).into_iter::<Told>();
    let (mut last, mut done, mut unfinished) = (None, 0, false);
    while let Some(size) = sizes.next() {
        match size {
            Ok(size) => {
                done = sizes.byte_offset();
                if size.width > 0 && size.height > 0 {
                    last = Some(Size { columns: size.width, rows: size.height });
                }
            }
            Err(error) => unfinished = error.is_eof(),
        }
    }
    if unfinished && bytes.len() - done <= UNFINISHED_BYTES_MAX {
        bytes.drain(..done);
    } else {
        bytes.clear();
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last(parts: &[&str]) -> Option<(u16, u16)> {
        let sizes = Sizes::default();
        parts.iter().for_each(|part| sizes.push(part.as_bytes()));
        assert!(sizes.unfinished.lock().unwrap().len() <= UNFINISHED_BYTES_MAX);
        sizes.last.borrow().map(|size| (size.columns, size.rows))
    }

    #[test]
    fn the_last_good_size_counts() {
        let long = " ".repeat(5000);
        let cases: [(&[&str], _); 7] = [
            (&[r#"{"Width":80,"Height":24}"#], Some((80, 24))),
            (&[r#"{"Width":80,"Height":24}{"Width":81,"#, r#""Height":25}"#, "\n"], Some((81, 25))),
            (&[r#"{"Width":80,"Height":24}{"Width":0,"Height":9}"#], Some((80, 24))),
            (&[r#"{"Width":65536,"Height":24}"#], None),
            (&["nonsense", r#"{"Width":80,"Height":24}"#], Some((80, 24))),
            (&[r#"{"Width":80,"x":""#, &long, r#"{"Width":1,"Height":2}"#], Some((1, 2))),
            (&[], None),
        ];
        for (parts, want) in cases {
            assert_eq!(last(parts), want, "{parts:?}");
        }
    }
}
