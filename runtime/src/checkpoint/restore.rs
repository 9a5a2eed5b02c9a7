//! Creating a container from a checkpoint, and bringing its processes back.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crisp_checkpoint::{Config, DESCRIPTORS, Descriptors, IMAGES, Limits, ROOTFS_DIFF};
use crisp_domain::Timestamp;
use crisp_image::Image;
use crisp_proto::cri::ContainerConfig;
use crisp_sys::path::RootedDir;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::fs::{Mode, OFlags};

use super::{Facts, Origin, host, remove_tree, spec_of, verify, work_dir};
use crate::blocking::{self, Kind};
use crate::container::Container;
use crate::daemon::Daemon;
use crate::error::{Doing as _, Error, Result};
use crate::supervisor::HandlerKind;

/// Annotation of an image that holds a checkpoint: the name of the container (as other runtimes and tools write it).
const ANNOTATION: &str = "io.kubernetes.cri-o.annotations.checkpoint.name";
/// Bytes of `descriptors.json`.
const DESCRIPTORS_BYTES_MAX: u64 = 64 << 10;
/// Descriptors from here on are the container's stdin, stdout and stderr (`Restore` of the supervisor protocol).
const STDIO_FD: usize = 3;
/// From here on are those that are handed over by path.
const INHERITED_FD: usize = 6;

/// A checkpoint that a container is to be created from.
#[derive(Debug)]
pub(crate) struct Source {
    content: Content,
    /// What it was an image of.
    pub(crate) image: Arc<Image>,
    pub(crate) facts: Facts,
    /// The image stays while it is read.
    _pins: Vec<crisp_image::LayerPin>,
}

#[derive(Debug)]
enum Content {
    Archive(File),
    Layer(RootedDir),
}

/// Whether a request names a checkpoint as its image. Looks at memory only, since every creation asks.
pub(crate) fn is_named(daemon: &Daemon, config: &ContainerConfig) -> bool {
    let name = config.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
    let image = || daemon.images.resolve(name).ok().flatten();
    name.starts_with('/') || image().is_some_and(|image| image.annotations.contains_key(ANNOTATION))
}

/// The checkpoint that a request names as its image: an archive by its absolute path, or an image that says it holds one; `None` for any
/// other image. Blocks.
///
/// # Errors
/// [`Error::Unimplemented`] without `criu`; [`Error::NotFound`] for a path where nothing is, and for the image that the checkpoint is
/// of; [`Error::Invalid`] for what is no checkpoint.
pub(crate) fn source(daemon: &Daemon, config: &ContainerConfig) -> Result<Option<Source>> {
    let name = config.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
    let (content, pin) = if name.starts_with('/') {
        (Content::Archive(open(name)?), None)
    } else {
        let Ok(Some(image)) = daemon.images.resolve(name) else { return Ok(None) };
        if !image.annotations.contains_key(ANNOTATION) {
            return Ok(None);
        }
        (layer(daemon, &image)?, Some(daemon.images.pin(&image)))
    };
    host::require_criu(daemon)?;
    let config = match &content {
        Content::Archive(file) => crisp_checkpoint::config_of(file, &Limits::default()),
        Content::Layer(dir) => crisp_checkpoint::config_in(dir, &Limits::default()),
    };
    let config = config.doing("read the checkpoint")?;
    let image = base_image(daemon, &config)?;
    let checkpointed_at = config.checkpointed_time.parse::<jiff::Timestamp>().ok();
    let nanos = checkpointed_at.and_then(|at| i64::try_from(at.as_nanosecond()).ok());
    let facts =
        Facts { checkpointed_at: nanos.filter(|&at| at > 0).map(Timestamp), origin: Origin::Checkpoint };
    let pins = pin.into_iter().chain([daemon.images.pin(&image)]).collect();
    Ok(Some(Source { content, image, facts, _pins: pins }))
}

fn open(path: &str) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {
            return Err(Error::NotFound { what: "checkpoint", id: path.to_owned() });
        }
        Err(error) => {
            return Err(Error::Invalid(format!("the checkpoint {path:?} cannot be opened: {error}")));
        }
    };
    match file.metadata() {
        Ok(meta) if meta.is_file() => Ok(file),
        Ok(_) | Err(_) => Err(Error::Invalid(format!("the checkpoint {path:?} is not a plain file"))),
    }
}

/// The one layer of an image that holds a checkpoint.
fn layer(daemon: &Daemon, image: &Image) -> Result<Content> {
    let [layer] = image.chain.as_slice() else {
        return Err(Error::Invalid("an image that holds a checkpoint has one layer".to_owned()));
    };
    RootedDir::open(&daemon.layers.layer_path(layer)).map(Content::Layer).doing("open the checkpoint")
}

/// The image that was checkpointed. The names are content: they only choose among the images that are here, and no name is made of them.
fn base_image(daemon: &Daemon, config: &Config) -> Result<Arc<Image>> {
    let found = config.images().find_map(|name| daemon.images.resolve(name).ok().flatten());
    found.ok_or_else(|| Error::NotFound {
        what: "image of the checkpoint",
        id: config.images().last().unwrap_or_default().to_owned(),
    })
}

impl Source {
    /// Puts the checkpoint's files into the directories of a container that has nothing there yet. Blocks.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what the checkpoint did; what is there then is the container's to delete.
    pub(crate) fn place(&self, daemon: &Daemon, container: &Container) -> Result<()> {
        let work = work_dir(container);
        crisp_store::ensure_dir(&work).doing("make the checkpoint's directory")?;
        match &self.content {
            Content::Archive(file) => crisp_checkpoint::extract(file, &work, &Limits::default()),
            Content::Layer(dir) => crisp_checkpoint::copy_images(dir, &work, &Limits::default()),
        }
        .doing("read the checkpoint")?;
        let diff = match File::open(work.join(ROOTFS_DIFF)) {
            Ok(diff) => diff,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).doing("open the checkpoint's changes"),
        };
        let (chain, limits) = (&self.image.chain, crisp_snapshot::Limits::default());
        crisp_snapshot::Rootfs::read_changes(&daemon.layers, chain, diff, container.dir.writable(), &limits)
            .map_err(|error| match error.kind() {
                crisp_domain::ErrorKind::Invalid | crisp_domain::ErrorKind::Exhausted => {
                    Error::Invalid(format!("the checkpoint's {ROOTFS_DIFF}: {}", crate::error::chain(&error)))
                }
                _ => Error::step("unpack the checkpoint's changes", error.kind(), error),
            })?;
        std::fs::remove_file(work.join(ROOTFS_DIFF)).doing("delete the checkpoint's changes")
    }
}

/// Whether what was made of the request can be restored: asked when its specification is complete.
///
/// # Errors
/// [`Error::Unimplemented`]; [`Error::Invalid`] for images that do not fit the request.
pub(crate) fn check(daemon: &Daemon, container: &Container, spec: &Spec) -> Result<()> {
    host::require_supported(daemon, container, spec)?;
    if spec.hooks().as_ref().is_some_and(|hooks| *hooks != oci_spec::runtime::Hooks::default()) {
        return Err(Error::Unimplemented("a restore of a container with hooks"));
    }
    verify::filters(container, spec, &work_dir(container).join(IMAGES))
}

/// Who brings the processes of a container back that came from a checkpoint; `None` for any other.
///
/// # Errors
/// When its files cannot be read.
pub(crate) async fn handler(daemon: &Arc<Daemon>, container: &Arc<Container>) -> Result<Option<HandlerKind>> {
    if container.record().checkpoint.origin == Origin::Program {
        return Ok(None);
    }
    let (daemon, container) = (Arc::clone(daemon), Arc::clone(container));
    blocking::run(move || {
        let spec = spec_of(&container)?;
        let work = RootedDir::open(&work_dir(&container)).doing("open the checkpoint")?;
        let path = Path::new(IMAGES).join(DESCRIPTORS);
        let text = work.read_file(&path, DESCRIPTORS_BYTES_MAX).doing("read the checkpoint's descriptors")?;
        let descriptors = Descriptors::parse(&text).doing("read the checkpoint's descriptors")?;
        let inherited: Vec<PathBuf> = host::namespace(&spec, LinuxNamespaceType::Network)
            .flatten()
            .map(Path::to_owned)
            .into_iter()
            .collect();
        let root = RootedDir::open(&container.dir.rootfs()).doing("open the root filesystem")?;
        let mut args = args(&container, &spec, &root, (&descriptors, &inherited));
        let cgroup = crate::cgroups::container_entry(&daemon, &container)?;
        for (name, dir) in host::v1_cgroups(&cgroup) {
            args.extend(["--external".to_owned(), format!("mnt[/sys/fs/cgroup/{name}]:{}", dir.display())]);
        }
        let program = daemon.config.checkpoint.criu.clone();
        let cgroup_namespace = host::namespace(&spec, LinuxNamespaceType::Cgroup).is_some();
        Ok(Some(HandlerKind::Restore { program, args, inherited, cgroup_namespace }))
    })
    .await
}

fn args(
    container: &Container,
    spec: &Spec,
    root: &RootedDir,
    (descriptors, inherited): (&Descriptors, &[PathBuf]),
) -> Vec<String> {
    let state = container.dir.state();
    let text = |path: PathBuf| path.display().to_string();
    let mut args: Vec<String> = [
        "restore",
        "--no-default-config",
        "--log-file",
        "restore.log",
        "-v3",
        "--restore-detached",
        "--restore-sibling",
        "--leave-stopped",
        "--manage-cgroups=ignore",
        "--tcp-close",
        "--file-locks",
        "--link-remap",
        "--ext-unix-sk",
    ]
    .map(str::to_owned)
    .to_vec();
    let mut add = |name: &str, value: String| args.extend([name.to_owned(), value]);
    add("--images-dir", text(work_dir(container).join(IMAGES)));
    add("--work-dir", text(state.to_owned()));
    add("--pidfile", text(state.join("init.pid")));
    add("--root", text(container.dir.rootfs()));
    for (number, pipe) in descriptors.pipes() {
        add("--inherit-fd", format!("fd[{}]:{pipe}", STDIO_FD + number));
    }
    for number in 0..inherited.len() {
        add("--inherit-fd", format!("fd[{}]:{}", INHERITED_FD + number, host::NETWORK));
    }
    for (kind, name) in [(LinuxNamespaceType::Ipc, "ipc"), (LinuxNamespaceType::Uts, "uts")] {
        if let Some(Some(path)) = host::namespace(spec, kind) {
            add("--join-ns", format!("{name}:{}", path.display()));
        }
    }
    for mount in host::binds(spec) {
        let source = mount.source().clone().unwrap_or_default();
        let at = host::real(root, mount.destination());
        add("--external", format!("mnt[{}]:{}", at.display(), source.display()));
    }
    add("--external", format!("mnt[{0}]:{0}", host::NULL));
    if let Some(label) = verify::label(spec) {
        add("--lsm-profile", label.for_criu());
    }
    args
}

/// Compares the processes that were brought back, and still stand, with the request; `pid` is their init.
///
/// # Errors
/// [`Error::Invalid`] that says what the checkpoint has too much.
pub(crate) async fn verify(daemon: &Arc<Daemon>, container: &Arc<Container>, pid: i32) -> Result<()> {
    let (daemon, container) = (Arc::clone(daemon), Arc::clone(container));
    blocking::run(move || {
        let path = crate::cgroups::container_path(&container)?;
        let pids = daemon.cgroups.open(&path).processes().doing("list the restored processes")?;
        let pids: Vec<i32> = pids.into_iter().map(|pid| pid.as_raw_nonzero().get()).collect();
        verify::all(&spec_of(&container)?, pid, &pids).doing("check the restored container")
    })
    .await
}

/// Adds what CRIU logged to the failure of a restore.
pub(crate) fn explain(container: &Container, error: &Error) -> Error {
    let cause = format!("{error}: {}", host::last_errors(&container.dir.state().join("restore.log")));
    Error::Internal { what: "criu cannot restore the container", cause }
}

/// The images are of no use once the processes are there.
pub(crate) async fn forget_images(container: &Arc<Container>) {
    let path = work_dir(container);
    if let Err(error) = blocking::run_as(Kind::Disk, move || remove_tree(&path)).await {
        tracing::warn!(container_id = %container.id, %error, "delete a restored checkpoint");
    }
}

/// Which file something is.
pub(super) fn identity(meta: &std::fs::Metadata) -> (u64, u64) {
    (meta.dev(), meta.ino())
}
