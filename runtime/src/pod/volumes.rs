//! Images mounted as volumes: one read-only mount per pod and image, shared by its containers, taken off when the pod stops.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use crisp_snapshot::{MappedIds, Rootfs, Shown};
use crisp_sys::mount;
use crisp_sys::path::{Missing, RootedDir};
use crisp_sys::userns;

use super::Pod;
use crate::container::views;
use crate::daemon::Daemon;
use crate::error::{Doing as _, Error, Result};

/// A mounted image.
#[derive(Debug)]
pub(crate) struct Volume {
    /// The directory to bind, on this machine.
    pub(crate) path: PathBuf,
    /// CRI's `Image.id`.
    pub(crate) image_id: String,
}

/// Mounts a local image for the pod, unless it is mounted already, and finds `sub_path` in it.
///
/// # Errors
/// An error whose text begins with the token that kubelets know, `ImageVolumeMountFailed`.
pub(crate) fn mount(daemon: &Daemon, pod: &Pod, image: &str, sub_path: &str) -> Result<Volume> {
    try_mount(daemon, pod, image, sub_path).map_err(|error| match error.kind() {
        crisp_domain::ErrorKind::Invalid => Error::Invalid(format!("ImageVolumeMountFailed: {error}")),
        _ => Error::ImageVolume(Box::new(error)),
    })
}

fn try_mount(daemon: &Daemon, pod: &Pod, name: &str, sub_path: &str) -> Result<Volume> {
    let found = daemon.images.resolve(name).doing("look the image up")?;
    let image = found.ok_or_else(|| Error::NotFound { what: "image", id: name.to_owned() })?;
    let target = pod.dir.image_volumes().join(image.id.as_str().replace(':', "-"));
    let _one_at_a_time = pod.volumes.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !mount::is_mountpoint(&target).unwrap_or(false) {
        crisp_store::ensure_dir(&pod.dir.image_volumes()).doing("make the directory of image volumes")?;
        pod.keep_layers(daemon.images.pin(&image));
        pod.update(|record| record.image_volumes.push(image.chain.clone()))?;
        // Nothing, or the mount point of a try that failed.
        Rootfs::unmount(&target).doing("clear the mount point")?;
        // As a daemon that was killed here left it.
        views::release(&pod.dir.views())?;
        crisp_store::ensure_dir(&pod.dir.views()).doing("make the directory of views")?;
        let userns = pod.user_ids().map(|_| userns::open(&pod.dir.user())).transpose();
        let userns = userns.doing("open the pod's user namespace")?;
        let scratch = pod.dir.views();
        let ids = userns.as_ref().map(|userns| MappedIds { userns: userns.as_fd(), scratch: &scratch });
        let record = pod.record();
        let label = record.selinux.as_ref().map(|labels| labels.mount.as_str());
        Rootfs::mount_read_only_for(&daemon.layers, &image.chain, &target, Shown { ids, label })
            .doing("mount the image")?;
    }
    Ok(Volume { path: inside(&target, sub_path)?, image_id: image.id.to_string() })
}

/// The directory `sub_path` of a mounted image; links cannot lead out of it.
fn inside(target: &Path, sub_path: &str) -> Result<PathBuf> {
    if sub_path.is_empty() {
        return Ok(target.to_owned());
    }
    if sub_path.starts_with('/') || sub_path.split('/').any(|part| part == "..") {
        return Err(Error::Invalid(format!(
            "image_sub_path {sub_path:?} is not a relative path without `..`"
        )));
    }
    let root = RootedDir::open(target).doing("open the image")?;
    let walked = root.walk(Path::new(sub_path), Missing::Fail).map_err(|error| {
        Error::Invalid(format!("image_sub_path {sub_path:?}: {}", crate::error::chain(&error)))
    })?;
    let relative = walked.real;
    Ok(target.join(relative))
}

/// Takes the pod's image volumes off; none is fine.
pub(crate) fn unmount_all(pod: &Pod) -> Result<()> {
    views::release(&pod.dir.views())?;
    let entries = match std::fs::read_dir(pod.dir.image_volumes()) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.doing("list the pod's image volumes")?,
    };
    for entry in entries {
        let path = entry.doing("list the pod's image volumes")?.path();
        Rootfs::unmount(&path).doing("unmount an image volume")?;
    }
    pod.drop_layers();
    Ok(())
}
