//! A container's files: root filesystem, volumes, `config.json`, `seccomp.bpf`. All of it blocks.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use crisp_image::Image;
use crisp_proto::cri;
use crisp_seccomp::{Profile, Target};
use crisp_snapshot::Rootfs;
use crisp_spec::{
    BindMount, ContainerConfig, ContainerInput, ImageConfig, MountAccess, MountSource, Namespace,
    NamespaceMode, Namespaces, Privilege, Propagation, SandboxFacts, SandboxFiles, SeccompRequest, Shm,
};
use crisp_sys::path::RootedDir;
use oci_spec::runtime::{LinuxSeccomp, Spec};

use super::{Container, Made, User};
use crate::cgroups;
use crate::config::Handler;
use crate::daemon::Daemon;
use crate::error::{Doing as _, Error, Result};
use crate::pod::{self, Pod, Process};

/// Mode of a working directory that the image lacks.
const WORKING_DIR_MODE: u32 = 0o755;

/// Makes the files but `config.json`, and tells what goes there; `pod_init` is the pod's PID 1 or the target whose PID namespace is joined.
///
/// # Errors
/// What is wrong in the request, or what the file system says. The caller deletes what was made.
pub(crate) fn make(
    daemon: &Daemon,
    container: &Container,
    mut config: ContainerConfig,
    image: &Image,
    pod_init: Option<Process>,
) -> Result<(Spec, Made)> {
    let content = crate::cri::config::image(image);
    let stop_signal =
        crisp_spec::stop_signal(config.stop_signal, &content.stop_signal).doing("read the stop signal")?;
    let namespaces = namespaces(&container.pod, &config, pod_init)?;
    let dir = &container.dir;
    let rootfs = Rootfs::prepare(&daemon.layers, dir.writable(), &image.chain, &dir.rootfs())
        .doing("make the root filesystem")?;
    let root = rootfs.open().doing("open the root filesystem")?;
    let user =
        crisp_spec::users::resolve(&root, &content.user, &config.security.user).doing("find the user")?;
    let working_dir = crisp_spec::working_dir(&config, &content).doing("read the working directory")?;
    root.create_dir_all(Path::new(&working_dir), WORKING_DIR_MODE).doing("make the working directory")?;

    let image_mounts = mount_images(daemon, &container.pod, &mut config)?;
    let mut mounts = crisp_spec::mounts::resolve(&config.mounts, crisp_spec::mounts::MissingSource::Create)
        .doing("find the mounts")?;
    mounts.extend(anonymous_volumes(container, &root, &config, &content)?);
    refuse_dev(daemon, container, &mounts)?;
    let seccomp = seccomp(daemon, container, &config)?;
    let labels = crate::lsm::labels(daemon, container, &config)?;
    crate::lsm::relabel(container, &labels, &mounts)?;
    let made = Made {
        user: User { uid: user.uid, gid: user.gid, groups: user.additional_gids.clone() },
        stop_signal: stop_signal.number(),
        image_mounts,
    };
    let input = ContainerInput {
        id: container.id.clone(),
        sandbox: sandbox(&container.pod, &config, namespaces),
        host: daemon.host.clone(),
        user,
        rootfs: dir.rootfs(),
        cgroups_path: PathBuf::from(cgroups::spec_path(daemon, container)?),
        devices: devices(&config)?,
        mounts,
        seccomp,
        rlimits: vec![daemon.files_max],
        labels,
        allowed_annotations: Default::default(),
        image: content,
        config,
    };
    let mut spec = crisp_spec::build(&input).doing("make the OCI specification")?;
    for warning in crisp_spec::warnings(&input) {
        tracing::warn!(container_id = %container.id, ?warning, "not all of the request can be had on this machine");
    }
    daemon.cdi.inject(&container.record().config, &mut spec)?;
    Ok((spec, made))
}

/// libcontainer would make its device nodes in what is mounted on `/dev`, even when that is the host's.
fn refuse_dev(daemon: &Daemon, container: &Container, mounts: &[BindMount]) -> Result<()> {
    let builtin = matches!(daemon.handler(&container.pod.record().handler)?, Handler::Builtin);
    match builtin && crisp_spec::mounts::replace_dev(mounts) {
        true => Err(Error::Unimplemented(
            "a mount on /dev with this handler; choose runc or crun by a RuntimeClass: it",
        )),
        false => Ok(()),
    }
}

/// Writes `config.json`.
pub(crate) fn write_spec(container: &Container, spec: &Spec) -> Result<()> {
    let text = serde_json::to_vec(spec).map_err(crate::cri::encoding)?;
    std::fs::write(container.dir.config(), text).doing("write config.json")
}

/// Turns the requested modes into namespaces. All containers of a pod share its network, whatever they ask for.
///
/// What the sandbox says decides between the host's and a pinned one: a pinned file that is missing is an error of the start, never
/// a way into the host's namespace.
fn namespaces(pod: &Pod, config: &ContainerConfig, pod_init: Option<Process>) -> Result<Namespaces> {
    let sandbox = pod.namespaces();
    let pinned = |mode: cri::NamespaceMode, path: PathBuf| match mode {
        cri::NamespaceMode::Node => Namespace::Host,
        cri::NamespaceMode::Pod | cri::NamespaceMode::Container | cri::NamespaceMode::Target => {
            Namespace::Join(path)
        }
    };
    let requested = &config.security.namespaces;
    let ipc = match requested.ipc {
        NamespaceMode::Container => Namespace::New,
        NamespaceMode::Node => Namespace::Host,
        NamespaceMode::Pod | NamespaceMode::Target => pinned(sandbox.ipc(), pod.dir.ipc()),
    };
    let pid = match (requested.pid, pod_init) {
        (NamespaceMode::Container, _) => Namespace::New,
        (NamespaceMode::Node, _) => Namespace::Host,
        (NamespaceMode::Pod | NamespaceMode::Target, Some(process)) => {
            Namespace::Join(format!("/proc/{}/ns/pid", process.pid).into())
        }
        (NamespaceMode::Pod | NamespaceMode::Target, None) => {
            return Err(Error::Internal { what: "join a PID namespace", cause: "there is none".to_owned() });
        }
    };
    let network = pinned(sandbox.network(), pod.dir.net());
    // A pod on the host's network keeps the host's name.
    let uts = pinned(sandbox.network(), pod.dir.uts());
    Ok(Namespaces { network, uts, ipc, pid })
}

fn sandbox(pod: &Pod, config: &ContainerConfig, namespaces: Namespaces) -> SandboxFacts {
    let shm = match (&namespaces.ipc, config.security.namespaces.ipc) {
        (Namespace::New, _) => Shm::Private,
        (_, NamespaceMode::Node) | (Namespace::Host, _) => Shm::Bind("/dev/shm".into()),
        (Namespace::Join(_), _) => Shm::Bind(pod.dir.shm()),
    };
    SandboxFacts {
        hostname: pod::start::hostname(&pod.record().config),
        namespaces,
        shm,
        files: SandboxFiles {
            hostname: Some(pod.dir.hostname()),
            hosts: Some(pod.dir.hosts()),
            resolv_conf: Some(pod.dir.resolv_conf()),
        },
    }
}

/// Mounts the images that are requested as volumes and puts their host paths into the request. The ids, by position.
fn mount_images(daemon: &Daemon, pod: &Pod, config: &mut ContainerConfig) -> Result<Vec<Option<String>>> {
    let mut ids = Vec::with_capacity(config.mounts.len());
    for mount in &mut config.mounts {
        let MountSource::Image { image, sub_path } = &mount.source else {
            ids.push(None);
            continue;
        };
        let volume = pod::volumes::mount(daemon, pod, image, sub_path)?;
        mount.source = MountSource::Host(volume.path);
        mount.access = MountAccess::ReadOnly;
        ids.push(Some(volume.image_id));
    }
    Ok(ids)
}

/// Directories for the image's `VOLUME`s, with the image's content in them.
fn anonymous_volumes(
    container: &Container,
    root: &RootedDir,
    config: &ContainerConfig,
    content: &ImageConfig,
) -> Result<Vec<BindMount>> {
    let paths = crisp_spec::mounts::anonymous_volumes(&content.volumes, &config.mounts)
        .doing("read the image's volumes")?;
    let mut mounts = Vec::with_capacity(paths.len());
    for (number, destination) in paths.into_iter().enumerate() {
        let source = container.dir.volume(number);
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(&source)
            .doing("make an anonymous volume")?;
        crisp_snapshot::copy_up_volume(root, Path::new(&destination), &source)
            .doing("fill an anonymous volume")?;
        let (access, propagation) = (MountAccess::ReadWrite, Propagation::Private);
        mounts.push(BindMount { source, destination, access, propagation, options: Vec::new() });
    }
    Ok(mounts)
}

fn devices(config: &ContainerConfig) -> Result<Vec<crisp_spec::DeviceNode>> {
    let mut nodes = crisp_spec::devices::resolve(&config.devices).doing("find the devices")?;
    if config.security.privilege == Privilege::Privileged {
        let host = crisp_spec::devices::host_devices().doing("list the host's devices")?;
        let requested: Vec<PathBuf> = nodes.iter().map(|node| node.path.clone()).collect();
        nodes.extend(host.into_iter().filter(|node| !requested.contains(&node.path)));
    }
    Ok(nodes)
}

/// The filter, with its compiled form in the bundle.
fn seccomp(daemon: &Daemon, container: &Container, config: &ContainerConfig) -> Result<Option<LinuxSeccomp>> {
    if config.security.privilege == Privilege::Privileged {
        return Ok(None);
    }
    let loaded;
    let profile = match &config.security.seccomp {
        SeccompRequest::Unset | SeccompRequest::Unconfined => return Ok(None),
        SeccompRequest::RuntimeDefault => &daemon.seccomp_default,
        SeccompRequest::Localhost(path) => {
            loaded = Profile::load(path).map_err(|error| {
                Error::Invalid(format!("seccomp profile {}: {}", path.display(), crate::error::chain(&error)))
            })?;
            &loaded
        }
    };
    let granted = crisp_spec::capability::granted(&config.security, &daemon.host);
    let filter = profile.to_linux_seccomp(&Target::native(granted.names()));
    let program = daemon.seccomp.program(&filter).doing("compile the seccomp profile")?;
    std::fs::write(container.dir.seccomp(), program).doing("write the compiled seccomp profile")?;
    Ok(Some(filter))
}
