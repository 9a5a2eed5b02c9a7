//! CheckpointContainer, and the restore of what it wrote.
//!
//! A checkpoint is CRIU's: it stops the container's processes, writes their memory, and while they still stand the changes of the root
//! filesystem are copied, so that both are of one moment. Then they go on; so they do when CRIU or the daemon dies on the way.
//!
//! A container that is created from a checkpoint is made as any other from its request and from the image that the checkpoint names,
//! which must be here; of the checkpoint it gets the changes of the root filesystem. Its start lets CRIU bring the processes back,
//! *stopped*. What the kernel then says of them (namespaces, users, capabilities, filters, labels, mounts) is compared with the
//! request's specification, and only then they run: nothing in a checkpoint is policy.

mod archive;
mod dump;
mod host;
pub(crate) mod restore;
mod verify;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crisp_checkpoint::CheckpointError;
use crisp_domain::{ErrorKind, Timestamp};
use crisp_proto::cri::CheckpointContainerRequest;
use oci_spec::runtime::Spec;
use serde::{Deserialize, Serialize};

use crate::blocking::{self, Kind};
use crate::container::Container;
use crate::container::state::ContainerState;
use crate::daemon::Daemon;
use crate::error::{Doing as _, Error, Kinded, Result};

/// How long a checkpoint may take that does not say.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// The longest that a request may ask for.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3600);
/// Below a container's durable directory, while one is written or until it is restored.
const WORK: &str = "checkpoint";

/// What a container has to do with checkpoints; in its record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// When it was checkpointed last; of a restored one when that was which it came from.
    pub(crate) checkpointed_at: Option<Timestamp>,
    /// What its processes are made from.
    pub(crate) origin: Origin,
}

/// What a container's processes are made from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Origin {
    /// The program of its specification.
    #[default]
    Program,
    Checkpoint,
}

impl Kinded for CheckpointError {
    fn error_kind(&self) -> ErrorKind {
        self.kind()
    }
}

/// Writes a running container's state to an archive; the container goes on.
///
/// # Errors
/// [`Error::Unimplemented`] without `criu`, and for containers that it cannot bring back; [`Error::WrongState`]; [`Error::Invalid`] for
/// a bad location; [`Error::Timeout`]; what CRIU says.
pub(crate) async fn container(daemon: &Arc<Daemon>, request: CheckpointContainerRequest) -> Result<()> {
    let container = daemon.containers.get(&request.container_id)?;
    container.require_running()?;
    let location = location(&request.location)?;
    let limit = match u64::try_from(request.timeout) {
        Ok(0) => TIMEOUT_DEFAULT,
        Ok(seconds) => Duration::from_secs(seconds).min(TIMEOUT_MAX),
        Err(_) => return Err(Error::Invalid("timeout is negative".to_owned())),
    };
    host::require_criu(daemon)?;
    let key = format!("checkpoint {} {}", container.id, location.display());
    let job = || {
        let daemon = Arc::clone(daemon);
        async move { steps(&daemon, &container, &location, limit).await }
    };
    daemon.step_jobs.join_or_start(key, job).await
}

/// Where the archive goes: an absolute path, not taken, in a directory that is there.
fn location(text: &str) -> Result<PathBuf> {
    let path = Path::new(text);
    let directory = path.parent().filter(|directory| directory.is_dir());
    if !path.is_absolute() || path.file_name().is_none() || crisp_sys::path::has_parent_component(path) {
        return Err(Error::Invalid(format!("location {text:?} is not an absolute path of a file")));
    }
    if directory.is_none() {
        return Err(Error::Invalid(format!("the directory of location {text:?} does not exist")));
    }
    if path.symlink_metadata().is_ok() {
        return Err(CheckpointError::Exists(text.to_owned())).doing("write the checkpoint");
    }
    Ok(path.to_owned())
}

async fn steps(
    daemon: &Arc<Daemon>,
    container: &Arc<Container>,
    location: &Path,
    limit: Duration,
) -> Result<()> {
    let _ops = container.ops.lock().await;
    let ContainerState::Running { pid, .. } = container.state() else {
        return Err(container.wrong_state("running"));
    };
    let work = work_dir(container);
    let fresh = work.clone();
    blocking::run_as(Kind::Disk, move || {
        remove_tree(&fresh)?;
        crisp_store::ensure_dir(&fresh.join(crisp_checkpoint::IMAGES))
            .doing("make the checkpoint's directory")
    })
    .await?;
    let written = write(daemon, container, pid, (location, &work, limit)).await;
    // Within `ops`: the next checkpoint has the same directory. After a crash it goes with the container.
    if let Err(error) = blocking::run_as(Kind::Disk, move || remove_tree(&work)).await {
        tracing::warn!(container_id = %container.id, %error, "delete a checkpoint's files");
    }
    written
}

/// Dumps into the empty directory `work`, and writes the archive. Called with `ops` held.
async fn write(
    daemon: &Arc<Daemon>,
    container: &Arc<Container>,
    pid: i32,
    (location, work, limit): (&Path, &Path, Duration),
) -> Result<()> {
    let (owner, checkpointed) = (Arc::clone(daemon), Arc::clone(container));
    let spec = blocking::run(move || {
        let spec = spec_of(&checkpointed)?;
        host::require_supported(&owner, &checkpointed, &spec)?;
        Ok(spec)
    })
    .await?;
    let at = Timestamp::now();
    let dumped = tokio::time::timeout(limit, dump::run(daemon, container, (pid, &spec), (work, limit)));
    let Ok(deleted) = dumped.await else {
        let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        return Err(Error::Timeout { what: "the checkpoint", limit_ms });
    };
    let contents = archive::Contents { spec, at, deleted: deleted?, work: work.to_owned() };
    let (owner, checkpointed, target) = (Arc::clone(daemon), Arc::clone(container), location.to_owned());
    blocking::run_as(Kind::Disk, move || {
        archive::write(&owner, &checkpointed, &contents, &target)?;
        checkpointed.update(|record| record.checkpoint.checkpointed_at = Some(contents.at))
    })
    .await?;
    tracing::info!(container_id = %container.id, location = %location.display(), "container checkpointed");
    Ok(())
}

fn work_dir(container: &Container) -> PathBuf {
    container.dir.writable().join(WORK)
}

fn remove_tree(path: &Path) -> Result<()> {
    crisp_snapshot::Rootfs::remove_writable(path).doing("delete a checkpoint's files")
}

/// The specification that a container was made by.
fn spec_of(container: &Container) -> Result<Spec> {
    Spec::load(container.dir.config()).map_err(|error| Error::Internal {
        what: "read the container's specification",
        cause: error.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_a_new_file_in_a_directory_that_is_there() {
        let home = tempfile::tempdir().unwrap();
        let there = home.path().join("there.tar");
        std::fs::write(&there, "").unwrap();
        let text = |path: PathBuf| path.to_str().unwrap().to_owned();
        let new = text(home.path().join("new.tar"));
        assert_eq!(location(&new).unwrap(), Path::new(&new));
        let table = [
            ("c.tar".to_owned(), ErrorKind::Invalid),
            (String::new(), ErrorKind::Invalid),
            ("/".to_owned(), ErrorKind::Invalid),
            (text(home.path().join("none/c.tar")), ErrorKind::Invalid),
            (text(home.path().join("../c.tar")), ErrorKind::Invalid),
            (text(there), ErrorKind::Exists),
        ];
        for (path, kind) in table {
            assert_eq!(location(&path).unwrap_err().kind(), kind, "{path}");
        }
    }
}
