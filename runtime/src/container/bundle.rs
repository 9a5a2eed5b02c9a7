//! A container's files: root filesystem, volumes, `config.json`, `seccomp.bpf`. All of it blocks.

use std::os::fd::AsFd as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use crisp_image::Image;
use crisp_proto::cri;
use crisp_seccomp::{Profile, Target};
use crisp_snapshot::{MappedIds, Rootfs, Shown};
use crisp_spec::{
    BindMount, ContainerConfig, ContainerInput, ImageConfig, MountAccess, MountSource, Namespace,
    NamespaceMode, Namespaces, Privilege, Propagation, SandboxFacts, SandboxFiles, SeccompRequest, Shm,
    UserNamespace, UserNamespaceRequest,
};
use crisp_sys::path::RootedDir;
use crisp_sys::userns;
use oci_spec::runtime::{LinuxSeccomp, Spec};

use super::{Container, Made, User, views};
use crate::cgroups;
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
    let user_namespace = user_namespace(&container.pod, &config)?;
    let namespaces = namespaces(container, &config, pod_init)?;
    let dir = &container.dir;
    let owner = user_namespace.as_ref().and_then(|user| user.ids.root());
    let labels = crate::lsm::labels(daemon, container, &config)?;
    let rootfs = rootfs(daemon, container, image, user_namespace.as_ref(), labels.mount.as_deref())?;
    let root = rootfs.open().doing("open the root filesystem")?;
    let user =
        crisp_spec::users::resolve(&root, &content.user, &config.security.user).doing("find the user")?;
    let working_dir = crisp_spec::working_dir(&config, &content).doing("read the working directory")?;
    make_working_dir(&root, &working_dir, owner)?;

    let image_mounts = mount_images(daemon, &container.pod, &mut config)?;
    let mut mounts = crisp_spec::mounts::resolve(&config.mounts, crisp_spec::mounts::MissingSource::Create)
        .doing("find the mounts")?;
    mounts.extend(anonymous_volumes(container, &root, &config, &content, owner)?);
    let seccomp = seccomp(daemon, container, &config)?;
    crate::lsm::relabel(container, &labels, &mounts)?;
    let made = Made {
        user: User { uid: user.uid, gid: user.gid, groups: user.additional_gids.clone() },
        stop_signal: stop_signal.number(),
        image_mounts,
    };
    let input = ContainerInput {
        id: container.id.clone(),
        sandbox: sandbox(&container.pod, &config, namespaces, user_namespace),
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

/// The mounted root filesystem, with the ids of the pod's user namespace if it has one, and the label of its files where there are labels.
fn rootfs(
    daemon: &Daemon,
    container: &Container,
    image: &Image,
    user: Option<&UserNamespace>,
    label: Option<&str>,
) -> Result<Rootfs> {
    let dir = &container.dir;
    let userns = user
        .map(|user| {
            views::make_dir(container)?;
            userns::open(&user.path).doing("open the pod's user namespace")
        })
        .transpose()?;
    let ids = userns.as_ref().map(|userns| MappedIds { userns: userns.as_fd(), scratch: dir.views() });
    Rootfs::prepare_for(&daemon.layers, dir.writable(), &image.chain, &dir.rootfs(), Shown { ids, label })
        .doing("make the root filesystem")
}

fn make_working_dir(root: &RootedDir, path: &str, owner: Option<(u32, u32)>) -> Result<()> {
    let make = || root.create_dir_all(Path::new(path), WORKING_DIR_MODE);
    let made = match owner {
        Some((uid, gid)) => userns::as_user(uid, gid, make).doing("work as the pod's root")?,
        None => make(),
    };
    made.doing("make the working directory").map(drop)
}

/// Writes `config.json`, after whatever the specification had to be adjusted to.
pub(crate) fn write_spec(daemon: &Daemon, container: &Container, mut spec: Spec) -> Result<()> {
    views::apply(daemon, container, &mut spec)?;
    let text = serde_json::to_vec(&spec).map_err(crate::cri::encoding)?;
    std::fs::write(container.dir.config(), text).doing("write config.json")
}

/// Turns the requested modes into namespaces. All containers of a pod share its network, whatever they ask for.
///
/// What the sandbox says decides between the host's and a pinned one: a pinned file that is missing is an error of the start, never
/// a way into the host's namespace.
fn namespaces(
    container: &Container,
    config: &ContainerConfig,
    pod_init: Option<Process>,
) -> Result<Namespaces> {
    let pod = &container.pod;
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
        (NamespaceMode::Pod, Some(_)) => Namespace::Join(pod.dir.pid()),
        (NamespaceMode::Target, Some(process)) => Namespace::Join(views::pin_pid(container, process)?),
        (NamespaceMode::Pod | NamespaceMode::Target, None) => {
            return Err(Error::Internal { what: "join a PID namespace", cause: "there is none".to_owned() });
        }
    };
    let network = pinned(sandbox.network(), pod.dir.net());
    // A pod on the host's network keeps the host's name.
    let uts = pinned(sandbox.network(), pod.dir.uts());
    Ok(Namespaces { network, uts, ipc, pid })
}

/// The pod's user namespace. A container may name it again, and no other.
fn user_namespace(pod: &Pod, config: &ContainerConfig) -> Result<Option<UserNamespace>> {
    let requested = &config.security.namespaces;
    let own = pod.user_ids();
    let agrees = match &requested.user {
        UserNamespaceRequest::Unset => true,
        UserNamespaceRequest::Node => own.is_none(),
        UserNamespaceRequest::Pod(ids) => own.as_ref() == Some(ids),
    };
    if !agrees {
        return Err(Error::Invalid(
            "userns_options of the container are not those of its sandbox".to_owned(),
        ));
    }
    if own.is_some() && [requested.pid, requested.ipc].contains(&NamespaceMode::Node) {
        return Err(Error::Invalid(
            "a container in a user namespace cannot use the host's PID or IPC namespace".to_owned(),
        ));
    }
    Ok(own.map(|ids| UserNamespace { path: pod.dir.user(), ids }))
}

fn sandbox(
    pod: &Pod,
    config: &ContainerConfig,
    namespaces: Namespaces,
    user: Option<UserNamespace>,
) -> SandboxFacts {
    // A sysfs shows the network namespace that it is mounted in, which must belong to who mounts it.
    let foreign_network = user.is_some() && namespaces.network == Namespace::Host;
    let shm = match (&namespaces.ipc, config.security.namespaces.ipc) {
        (Namespace::New, _) => Shm::Private,
        (_, NamespaceMode::Node) | (Namespace::Host, _) => Shm::Bind("/dev/shm".into()),
        (Namespace::Join(_), _) => Shm::Bind(pod.dir.shm()),
    };
    SandboxFacts {
        hostname: pod::start::hostname(&pod.record().config),
        namespaces,
        user,
        shm,
        files: SandboxFiles {
            hostname: Some(pod.dir.hostname()),
            hosts: Some(pod.dir.hosts()),
            resolv_conf: Some(pod.dir.resolv_conf()),
            sys: foreign_network.then(|| "/sys".into()),
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
        // Its layers are mapped already.
        mount.ids = None;
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
    owner: Option<(u32, u32)>,
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
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::chown(&source, Some(uid), Some(gid))
                .doing("set the owner of an anonymous volume")?;
        }
        crisp_snapshot::copy_up_volume(root, Path::new(&destination), &source)
            .doing("fill an anonymous volume")?;
        let (access, propagation) = (MountAccess::ReadWrite, Propagation::Private);
        mounts.push(BindMount { source, destination, access, propagation, options: Vec::new(), ids: None });
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
