//! Versioned records that are replaced atomically.
//!
//! A record is one JSON file, `{"version": N, "record": …}`. Writing makes a temporary file beside it, then renames: a reader
//! sees the old record or the new one, whenever the writer is killed. [`Durability::Durable`] also syncs the file before the
//! rename and the directory after it, so that the record survives a power cut; records below the state directory do not need
//! that, since a reboot ends what they describe.
#![forbid(unsafe_code)]

mod record;

pub use record::{
    Durability, RECORD_BYTES_MAX, StoreError, ensure_dir, read, remove, replace, sweep, sync_dir, write,
};
