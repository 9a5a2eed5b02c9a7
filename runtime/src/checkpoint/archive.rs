//! The archive, from what the dump has left.

use std::fs::File;
use std::path::{Path, PathBuf};

use crisp_checkpoint::{CONFIG, Config, IMAGES, ROOTFS_DIFF, Writer};
use crisp_domain::Timestamp;
use oci_spec::runtime::Spec;
use serde::Serialize;

use super::{Origin, dump};
use crate::container::{Container, metadata};
use crate::daemon::Daemon;
use crate::error::{Doing as _, Result};

/// CRIU's statistics of a dump.
const STATS: &str = "stats-dump";

/// What goes into an archive beside what the container's record tells.
pub(super) struct Contents {
    pub(super) spec: Spec,
    pub(super) at: Timestamp,
    pub(super) deleted: Vec<PathBuf>,
    pub(super) work: PathBuf,
}

/// Writes the archive. Blocks.
pub(super) fn write(
    daemon: &Daemon,
    container: &Container,
    contents: &Contents,
    target: &Path,
) -> Result<()> {
    let record = container.record();
    let attachment = daemon.network.attachment(&container.pod.id);
    let mut writer = Writer::create(target).doing("create the archive")?;
    let texts = [
        (CONFIG, json(&config(container, contents.at))?),
        ("spec.dump", json(&contents.spec)?),
        ("status.dump", json(&record.state)?),
        ("network.status", json(&attachment.map(|attachment| attachment.result))?),
        ("deleted.files", json(&contents.deleted)?),
    ];
    for (name, text) in &texts {
        writer.text(name, text).doing("write the archive")?;
    }
    writer.directory(IMAGES, &contents.work.join(IMAGES)).doing("write the archive")?;
    let from = |name: &str| (contents.work.join(name), true);
    let log = record.log_path.clone().map(|path| ("container.log", (path, false)));
    let files = [ROOTFS_DIFF, dump::LOG, STATS].map(|name| (name, from(name)));
    for (name, (path, needed)) in files.into_iter().chain(log) {
        match File::open(&path) {
            Ok(file) => writer.file(name, &file).doing("write the archive")?,
            // A log that was rotated away, or statistics of another version of CRIU elsewhere.
            Err(_) if !needed || name == STATS => {}
            Err(error) => return Err(error).doing("open a file of the checkpoint"),
        }
    }
    writer.finish().doing("write the archive")
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(crate::cri::encoding)
}

fn config(container: &Container, at: Timestamp) -> Config {
    let record = container.record();
    let restored = record.checkpoint.origin == Origin::Checkpoint;
    Config {
        id: record.id.to_string(),
        name: metadata(&record.config).name,
        rootfs_image: record.image.id.clone(),
        rootfs_image_ref: record.image.reference.clone(),
        rootfs_image_name: record.image.name.clone(),
        runtime: "crisp".to_owned(),
        created_time: time(record.created_at),
        checkpointed_time: time(at),
        restored_time: if restored { time(record.created_at) } else { NEVER.to_owned() },
        restored,
    }
}

/// The time that readers take as none.
const NEVER: &str = "0001-01-01T00:00:00Z";

fn time(at: Timestamp) -> String {
    jiff::Timestamp::from_nanosecond(at.0.into())
        .map_or_else(|_out_of_range| NEVER.to_owned(), |at| at.to_string())
}
