//! Records that are on disk and in memory: a change is written first, then published, and none comes after the files are gone.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use crisp_store::Durability;
use serde::Serialize;
use tokio::sync::watch as channel;

use crate::error::{Doing as _, Error, Result};

/// What a record is of, and how it is written.
pub(crate) trait Record: Clone + Serialize {
    /// For messages: `"sandbox"`.
    const WHAT: &'static str;
    /// Of the format on disk.
    const VERSION: u32;
    fn id(&self) -> &str;
}

/// What a change did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Made,
    /// There was nothing to do, so nothing is written.
    Needless,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writable {
    Yes,
    /// Its files are being deleted: whoever waited for the removal finds nothing to work on.
    Removed,
}

#[derive(Debug)]
pub(crate) struct Published<R> {
    file: PathBuf,
    record: channel::Sender<Arc<R>>,
    /// Serialises changes of the record.
    writer: Mutex<Writable>,
}

impl<R: Record> Published<R> {
    /// A record that is in `file`, or comes there with its first change.
    pub(crate) fn new(file: PathBuf, record: R) -> Self {
        Self { file, record: channel::Sender::new(Arc::new(record)), writer: Mutex::new(Writable::Yes) }
    }

    pub(crate) fn get(&self) -> Arc<R> {
        Arc::clone(&self.record.borrow())
    }

    /// For a look at single fields. No change is published meanwhile.
    pub(crate) fn borrow(&self) -> channel::Ref<'_, Arc<R>> {
        self.record.borrow()
    }

    /// Tells of every change.
    pub(crate) fn subscribe(&self) -> channel::Receiver<Arc<R>> {
        self.record.subscribe()
    }

    /// Changes the record on disk, then the published one. Blocks: a file on tmpfs is written.
    ///
    /// # Errors
    /// That of `change`; [`Error::WrongState`] for a change after [`Published::close`]; when it cannot be written. Nothing has
    /// changed then.
    pub(crate) fn update(&self, change: impl FnOnce(&mut R) -> Result<Change>) -> Result<()> {
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut record = R::clone(&self.get());
        if change(&mut record)? == Change::Needless {
            return Ok(());
        }
        if *writer == Writable::Removed {
            return Err(Error::WrongState {
                what: R::WHAT,
                id: record.id().to_owned(),
                state: "being removed".to_owned(),
                needed: "there to be changed",
            });
        }
        crisp_store::write(&self.file, R::VERSION, &record, Durability::Volatile).doing("write a record")?;
        self.record.send_replace(Arc::new(record));
        Ok(())
    }

    /// Its files go now: from here on the record stays as it is, in memory, too.
    pub(crate) fn close(&self) {
        *self.writer.lock().unwrap_or_else(PoisonError::into_inner) = Writable::Removed;
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
    struct Counter {
        value: u32,
    }

    impl Record for Counter {
        const WHAT: &'static str = "counter";
        const VERSION: u32 = 7;
        fn id(&self) -> &str {
            "abc"
        }
    }

    fn counter() -> (tempfile::TempDir, Published<Counter>) {
        let dir = tempfile::tempdir().unwrap();
        let published = Published::new(dir.path().join("counter.json"), Counter { value: 1 });
        (dir, published)
    }

    fn set(value: u32) -> impl FnOnce(&mut Counter) -> Result<Change> {
        move |counter| {
            counter.value = value;
            Ok(Change::Made)
        }
    }

    #[test]
    fn a_change_is_on_disk_and_told() {
        let (dir, published) = counter();
        let told = published.subscribe();
        published.update(set(2)).unwrap();
        assert!(told.has_changed().unwrap());
        assert_eq!(published.get().value, 2);
        let text = std::fs::read_to_string(dir.path().join("counter.json")).unwrap();
        assert!(text.contains("\"value\":2"), "{text}");
    }

    #[test]
    fn what_fails_or_is_needless_changes_nothing() {
        let (dir, published) = counter();
        let told = published.subscribe();
        let needless = published.update(|counter| {
            counter.value = 3;
            Ok(Change::Needless)
        });
        needless.unwrap();
        let refused = published.update(|counter| {
            counter.value = 4;
            Err(Error::Invalid("no".to_owned()))
        });
        assert!(matches!(refused, Err(Error::Invalid(_))));
        drop(dir);
        published.update(set(5)).unwrap_err();
        assert!(!told.has_changed().unwrap());
        assert_eq!(published.get().value, 1);
    }

    #[test]
    fn a_closed_record_stays_as_it_is() {
        let (dir, published) = counter();
        published.close();
        published.update(|_| Ok(Change::Needless)).unwrap();
        let refused = published.update(set(2)).unwrap_err();
        assert_eq!(refused.to_string(), "counter abc is being removed, not there to be changed");
        assert_eq!(published.get().value, 1);
        assert!(!dir.path().join("counter.json").exists());
    }
}
