//! From CRI's messages about a container to what [`crisp_spec`] takes. Pure; the only place that knows CRI's habits: missing
//! messages, enums as numbers, 0 for "not set", deprecated twins of fields.

use std::path::PathBuf;

use crisp_image::Image;
use crisp_proto::cri::{self, security_profile::ProfileType};
use crisp_spec::capability::CapabilityRequest;
use crisp_spec::users::{GroupPolicy, ID_MAX, UserChoice, UserRequest};
use crisp_spec::{
    AppArmorRequest, ContainerConfig, DeviceAccess, DeviceRequest, ImageConfig, MountAccess, MountOption,
    MountRequest, MountSource, NamespaceMode, NamespaceRequest, NewPrivileges, Privilege, Propagation,
    Resources, RootAccess, SeccompRequest, SecurityRequest, SelinuxRequest, Signal, Terminal,
    UserNamespaceRequest,
};
use crisp_sys::userns::{IdMap, RANGES_MAX};

use crate::error::{Doing as _, Error, Result};
use crate::pod::userns;

/// The kernel that has `mount_setattr`, which recursive read-only mounts need.
const MOUNT_SETATTR_SINCE: (u32, u32) = (5, 12);

/// Whether a kernel of this version can make a mount read-only with those below it.
pub(crate) fn has_recursive_read_only(kernel: Option<(u32, u32)>) -> bool {
    kernel >= Some(MOUNT_SETATTR_SINCE)
}

/// Refuses what a kernel of this version cannot do, by the token that kubelets know.
///
/// # Errors
/// [`Error::Unimplemented`].
pub(crate) fn check_kernel(config: Option<&cri::ContainerConfig>, kernel: Option<(u32, u32)>) -> Result<()> {
    let asked = config.is_some_and(|config| config.mounts.iter().any(|mount| mount.recursive_read_only));
    if asked && !has_recursive_read_only(kernel) {
        return Err(Error::Unimplemented("RROUnsupported: a recursive read-only mount before Linux 5.12"));
    }
    Ok(())
}

/// What a container is to be.
///
/// # Errors
/// [`Error::Invalid`] that names the field; the errors of [`crisp_spec`] for texts that it parses.
pub(crate) fn container(config: &cri::ContainerConfig) -> Result<ContainerConfig> {
    let linux = config.linux.clone().unwrap_or_default();
    Ok(ContainerConfig {
        command: config.command.clone(),
        args: config.args.clone(),
        working_dir: config.working_dir.clone(),
        envs: config.envs.iter().map(|env| (env.key.clone(), env.value.clone())).collect(),
        mounts: config.mounts.iter().map(mount).collect::<Result<_>>()?,
        devices: config.devices.iter().map(device).collect::<Result<_>>()?,
        annotations: config.annotations.clone().into_iter().collect(),
        terminal: if config.tty { Terminal::Allocated } else { Terminal::None },
        security: security(&linux.security_context.unwrap_or_default())?,
        resources: resources(linux.resources.as_ref())?,
        stop_signal: stop_signal(config.stop_signal)?,
    })
}

/// What an image says about its containers.
pub(crate) fn image(image: &Image) -> ImageConfig {
    let Some(config) = image.config.config() else { return ImageConfig::default() };
    ImageConfig {
        env: config.env().clone().unwrap_or_default(),
        entrypoint: config.entrypoint().clone().unwrap_or_default(),
        cmd: config.cmd().clone().unwrap_or_default(),
        working_dir: config.working_dir().clone().unwrap_or_default(),
        user: config.user().clone().unwrap_or_default(),
        volumes: config.volumes().clone().unwrap_or_default(),
        stop_signal: config.stop_signal().clone().unwrap_or_default(),
    }
}

/// Limits; 0 and empty mean "not set", apart from `oom_score_adj`, where 0 is a value.
///
/// # Errors
/// [`Error::Invalid`] for a negative number where only -1 or none may be.
pub(crate) fn resources(resources: Option<&cri::LinuxContainerResources>) -> Result<Resources> {
    let Some(own) = resources else { return Ok(Resources::default()) };
    let set = |number: i64| (number != 0).then_some(number);
    let natural = |field: &str, number: i64| match u64::try_from(number) {
        Ok(0) => Ok(None),
        Ok(number) => Ok(Some(number)),
        Err(_negative) => Err(invalid(format!("resources.{field} {number} is negative"))),
    };
    let score = i32::try_from(own.oom_score_adj).map_err(|_range| {
        invalid(format!("resources.oom_score_adj {} is outside of -1000 to 1000", own.oom_score_adj))
    })?;
    Ok(Resources {
        cpu_shares: natural("cpu_shares", own.cpu_shares)?,
        cpu_quota_us: set(own.cpu_quota),
        cpu_period_us: natural("cpu_period", own.cpu_period)?,
        cpuset_cpus: own.cpuset_cpus.clone(),
        cpuset_mems: own.cpuset_mems.clone(),
        memory_limit_bytes: set(own.memory_limit_in_bytes),
        memory_swap_limit_bytes: set(own.memory_swap_limit_in_bytes),
        hugepage_limits: own
            .hugepage_limits
            .iter()
            .map(|limit| (limit.page_size.clone(), limit.limit))
            .collect(),
        unified: own.unified.clone().into_iter().collect(),
        oom_score_adj: Some(score),
        pids_limit: None,
    })
}

/// CRI's name for a signal of the kernel; "the runtime's default" for a number that has none.
pub(crate) fn cri_signal(number: i32) -> cri::Signal {
    let named = |signal: &cri::Signal| kernel_signal(*signal).is_some_and(|own| own.number() == number);
    // The first of several names is the usual one: ABRT before IOT, CHLD before CLD, IO before POLL.
    let all = (1..).map_while(|value| cri::Signal::try_from(value).ok());
    all.into_iter().find(named).unwrap_or(cri::Signal::RuntimeDefault)
}

/// `SIGNAL_SIGRTMINPLUS3` is `SIGRTMIN+3`: CRI numbers its signals by the alphabet, and only their names mean anything.
fn kernel_signal(signal: cri::Signal) -> Option<Signal> {
    let name = signal.as_str_name().strip_prefix("SIGNAL_")?;
    Signal::parse(&name.replace("PLUS", "+").replace("MINUS", "-")).ok()
}

fn stop_signal(value: i32) -> Result<Option<Signal>> {
    let unknown = || invalid(format!("stop_signal {value} is no signal"));
    match cri::Signal::try_from(value).map_err(|_unknown| unknown())? {
        cri::Signal::RuntimeDefault => Ok(None),
        signal => kernel_signal(signal).map(Some).ok_or_else(unknown),
    }
}

fn invalid(message: String) -> Error {
    Error::Invalid(message)
}

fn mount(mount: &cri::Mount) -> Result<MountRequest> {
    let at = &mount.container_path;
    let propagation = match cri::MountPropagation::try_from(mount.propagation) {
        Ok(cri::MountPropagation::PropagationPrivate) => Propagation::Private,
        Ok(cri::MountPropagation::PropagationHostToContainer) => Propagation::HostToContainer,
        Ok(cri::MountPropagation::PropagationBidirectional) => Propagation::Bidirectional,
        Err(_unknown) => {
            return Err(invalid(format!("mount {at:?}: propagation {} is none", mount.propagation)));
        }
    };
    let access = match (mount.readonly, mount.recursive_read_only) {
        (false, false) => MountAccess::ReadWrite,
        (true, false) => MountAccess::ReadOnly,
        (false, true) => return Err(invalid(format!("mount {at:?}: recursive_read_only needs readonly"))),
        (true, true) if propagation != Propagation::Private => {
            return Err(invalid(format!("mount {at:?}: recursive_read_only needs private propagation")));
        }
        (true, true) => MountAccess::RecursiveReadOnly,
    };
    Ok(MountRequest {
        container_path: at.clone(),
        source: mount_source(mount)?,
        access,
        propagation,
        options: mount.mount_options.iter().map(|option| mount_option(at, option)).collect::<Result<_>>()?,
        ids: mount_ids(mount)?,
    })
}

fn mount_ids(mount: &cri::Mount) -> Result<Option<IdMap>> {
    let ids = IdMap { uids: userns::ranges(&mount.uid_mappings), gids: userns::ranges(&mount.gid_mappings) };
    let at = &mount.container_path;
    match (ids.uids.len(), ids.gids.len()) {
        (0, 0) => Ok(None),
        (0, _) | (_, 0) => {
            Err(invalid(format!("mount {at:?}: uid_mappings and gid_mappings must come together")))
        }
        (uids, gids) if uids.max(gids) > RANGES_MAX => {
            Err(invalid(format!("mount {at:?}: more than {RANGES_MAX} mappings")))
        }
        _ => Ok(Some(ids)),
    }
}

fn mount_source(mount: &cri::Mount) -> Result<MountSource> {
    let at = &mount.container_path;
    let image = mount.image.as_ref().map(|image| image.image.as_str()).unwrap_or_default();
    let wrong = |what: &str| Err(invalid(format!("mount {at:?}: {what}")));
    match (image.is_empty(), mount.host_path.is_empty()) {
        (true, true) => wrong("host_path is missing"),
        (true, false) if !mount.image_sub_path.is_empty() => wrong("image_sub_path without an image"),
        (true, false) => Ok(MountSource::Host(PathBuf::from(&mount.host_path))),
        (false, false) => wrong("image and host_path exclude each other"),
        (false, true) if !mount.readonly => wrong("a mount of an image must be readonly"),
        (false, true) => {
            Ok(MountSource::Image { image: image.to_owned(), sub_path: mount.image_sub_path.clone() })
        }
    }
}

fn mount_option(at: &str, option: &str) -> Result<MountOption> {
    Ok(match option {
        "noexec" => MountOption::NoExec,
        "exec" => MountOption::Exec,
        "nodev" => MountOption::NoDev,
        "dev" => MountOption::Dev,
        "nosuid" => MountOption::NoSuid,
        "suid" => MountOption::Suid,
        other => return Err(invalid(format!("mount {at:?}: unknown option {other:?}"))),
    })
}

fn device(device: &cri::Device) -> Result<DeviceRequest> {
    if device.host_path.is_empty() {
        return Err(invalid(format!("device {:?}: host_path is missing", device.container_path)));
    }
    let inside = if device.container_path.is_empty() { &device.host_path } else { &device.container_path };
    Ok(DeviceRequest {
        host_path: PathBuf::from(&device.host_path),
        container_path: inside.clone(),
        access: DeviceAccess::parse(&device.permissions).doing("read a device")?,
    })
}

fn security(context: &cri::LinuxContainerSecurityContext) -> Result<SecurityRequest> {
    let capabilities = context.capabilities.clone().unwrap_or_default();
    let (add, drop) = (&capabilities.add_capabilities, &capabilities.drop_capabilities);
    let ambient = &capabilities.add_ambient_capabilities;
    Ok(SecurityRequest {
        privilege: if context.privileged { Privilege::Privileged } else { Privilege::Ordinary },
        capabilities: CapabilityRequest::parse(add, drop, ambient).doing("read the capabilities")?,
        namespaces: namespaces(context.namespace_options.as_ref())?,
        user: user(context)?,
        root: if context.readonly_rootfs { RootAccess::ReadOnly } else { RootAccess::ReadWrite },
        new_privileges: if context.no_new_privs { NewPrivileges::Forbidden } else { NewPrivileges::Allowed },
        masked_paths: context.masked_paths.clone(),
        readonly_paths: context.readonly_paths.clone(),
        seccomp: seccomp(context)?,
        apparmor: apparmor(context)?,
        selinux: context.selinux_options.as_ref().map(selinux).transpose()?,
    })
}

/// Checks what a sandbox's security context says of a process. No program of the user's runs in a sandbox: its PID 1, where it has one,
/// is the shim's, with a user and a filter of its own and no capability. So user, groups, filter and profile have no effect.
///
/// # Errors
/// [`Error::Invalid`] that names the field.
pub(crate) fn check_sandbox(context: &cri::LinuxSandboxSecurityContext) -> Result<()> {
    #[expect(deprecated, reason = "older kubelets send nothing else")]
    let of_process = cri::LinuxContainerSecurityContext {
        run_as_user: context.run_as_user,
        run_as_group: context.run_as_group,
        supplemental_groups: context.supplemental_groups.clone(),
        supplemental_groups_policy: context.supplemental_groups_policy,
        seccomp: context.seccomp.clone(),
        seccomp_profile_path: context.seccomp_profile_path.clone(),
        apparmor: context.apparmor.clone(),
        ..cri::LinuxContainerSecurityContext::default()
    };
    user(&of_process)?;
    seccomp(&of_process)?;
    apparmor(&of_process).map(drop)
}

fn namespaces(options: Option<&cri::NamespaceOption>) -> Result<NamespaceRequest> {
    use NamespaceMode as Mode;
    let options = options.cloned().unwrap_or_default();
    let user = user_namespace(options.userns_options.as_ref())?;
    let pid = namespace_mode("pid", options.pid, &[Mode::Pod, Mode::Container, Mode::Node, Mode::Target])?;
    let target_id = (pid == Mode::Target).then_some(options.target_id);
    if target_id.as_ref().is_some_and(String::is_empty) {
        return Err(invalid("namespace_options.target_id is missing".to_owned()));
    }
    Ok(NamespaceRequest {
        network: namespace_mode("network", options.network, &[Mode::Pod, Mode::Node])?,
        pid,
        ipc: namespace_mode("ipc", options.ipc, &[Mode::Pod, Mode::Container, Mode::Node])?,
        user,
        target_id,
    })
}

fn namespace_mode(field: &str, value: i32, allowed: &[NamespaceMode]) -> Result<NamespaceMode> {
    let mode = match cri::NamespaceMode::try_from(value) {
        Ok(cri::NamespaceMode::Pod) => NamespaceMode::Pod,
        Ok(cri::NamespaceMode::Container) => NamespaceMode::Container,
        Ok(cri::NamespaceMode::Node) => NamespaceMode::Node,
        Ok(cri::NamespaceMode::Target) => NamespaceMode::Target,
        Err(_unknown) => {
            return Err(invalid(format!("namespace_options.{field} {value} is no namespace mode")));
        }
    };
    if allowed.contains(&mode) {
        Ok(mode)
    } else {
        Err(invalid(format!("namespace_options.{field} of a container cannot be {mode:?}")))
    }
}

fn user_namespace(options: Option<&cri::UserNamespace>) -> Result<UserNamespaceRequest> {
    let Some(options) = options else { return Ok(UserNamespaceRequest::Unset) };
    let mapped = !options.uids.is_empty() || !options.gids.is_empty();
    match cri::NamespaceMode::try_from(options.mode) {
        Ok(cri::NamespaceMode::Node) if !mapped => Ok(UserNamespaceRequest::Node),
        Ok(cri::NamespaceMode::Node) => Err(invalid("userns_options: NODE has no mappings".to_owned())),
        Ok(cri::NamespaceMode::Pod) => Ok(UserNamespaceRequest::Pod(userns::id_map(options))),
        _ => Err(invalid(format!("userns_options.mode {} is neither POD nor NODE", options.mode))),
    }
}

fn user(context: &cri::LinuxContainerSecurityContext) -> Result<UserRequest> {
    let user = match (&context.run_as_user, context.run_as_username.as_str()) {
        (None, "") => UserChoice::Image,
        (Some(uid), "") => UserChoice::Uid(id("run_as_user", uid.value)?),
        (None, name) => UserChoice::Name(name.to_owned()),
        (Some(_), _) => return Err(invalid("run_as_user and run_as_username exclude each other".to_owned())),
    };
    let group = context.run_as_group.as_ref().map(|group| id("run_as_group", group.value)).transpose()?;
    if group.is_some() && user == UserChoice::Image {
        return Err(invalid("run_as_group needs run_as_user or run_as_username".to_owned()));
    }
    let policy = match cri::SupplementalGroupsPolicy::try_from(context.supplemental_groups_policy) {
        Ok(cri::SupplementalGroupsPolicy::Merge) => GroupPolicy::Merge,
        Ok(cri::SupplementalGroupsPolicy::Strict) => GroupPolicy::Strict,
        Err(_unknown) => {
            let value = context.supplemental_groups_policy;
            return Err(invalid(format!("supplemental_groups_policy {value} is none")));
        }
    };
    let more = context.supplemental_groups.iter().map(|gid| id("supplemental_groups", *gid));
    Ok(UserRequest { user, group, supplemental: more.collect::<Result<_>>()?, policy })
}

fn id(field: &str, value: i64) -> Result<u32> {
    let id = u32::try_from(value).ok().filter(|id| *id <= ID_MAX);
    id.ok_or_else(|| invalid(format!("{field} {value} is outside of 0 to {ID_MAX}")))
}

/// What a structured profile, or its deprecated text, asks for; `T` is a path or a name.
enum Profile<'a> {
    Unset,
    RuntimeDefault,
    Unconfined,
    Localhost(&'a str),
}

/// The structured field wins; an empty message of it is RuntimeDefault.
fn profile<'a>(
    field: &str,
    structured: Option<&'a cri::SecurityProfile>,
    text: &'a str,
) -> Result<Profile<'a>> {
    let Some(profile) = structured else { return profile_text(field, text) };
    let reference = profile.localhost_ref.as_str();
    let kind = ProfileType::try_from(profile.profile_type)
        .map_err(|_unknown| invalid(format!("{field}.profile_type {} is none", profile.profile_type)))?;
    match (kind, reference.is_empty()) {
        (ProfileType::RuntimeDefault, true) => Ok(Profile::RuntimeDefault),
        (ProfileType::Unconfined, true) => Ok(Profile::Unconfined),
        (ProfileType::Localhost, false) => Ok(Profile::Localhost(reference)),
        (ProfileType::Localhost, true) => Err(invalid(format!("{field}.localhost_ref is missing"))),
        (_, false) => Err(invalid(format!("{field}.localhost_ref is set, but the type is not Localhost"))),
    }
}

fn profile_text<'a>(field: &str, text: &'a str) -> Result<Profile<'a>> {
    match (text, text.strip_prefix("localhost/")) {
        ("", _) => Ok(Profile::Unset),
        ("runtime/default" | "docker/default", _) => Ok(Profile::RuntimeDefault),
        ("unconfined", _) => Ok(Profile::Unconfined),
        (_, Some(reference)) if !reference.is_empty() => Ok(Profile::Localhost(reference)),
        _ => Err(invalid(format!("{field} profile {text:?} is none"))),
    }
}

#[expect(deprecated, reason = "older kubelets send nothing else")]
fn seccomp(context: &cri::LinuxContainerSecurityContext) -> Result<SeccompRequest> {
    Ok(match profile("seccomp", context.seccomp.as_ref(), &context.seccomp_profile_path)? {
        Profile::Unset => SeccompRequest::Unset,
        Profile::RuntimeDefault => SeccompRequest::RuntimeDefault,
        Profile::Unconfined => SeccompRequest::Unconfined,
        Profile::Localhost(path) if path.starts_with('/') => SeccompRequest::Localhost(path.into()),
        Profile::Localhost(path) => {
            return Err(invalid(format!("seccomp profile {path:?} is not an absolute path")));
        }
    })
}

#[expect(deprecated, reason = "older kubelets send nothing else")]
fn apparmor(context: &cri::LinuxContainerSecurityContext) -> Result<AppArmorRequest> {
    Ok(match profile("apparmor", context.apparmor.as_ref(), &context.apparmor_profile)? {
        Profile::Unset => AppArmorRequest::Unset,
        Profile::RuntimeDefault => AppArmorRequest::RuntimeDefault,
        Profile::Unconfined => AppArmorRequest::Unconfined,
        Profile::Localhost(name) => {
            AppArmorRequest::Localhost(name.strip_prefix("localhost/").unwrap_or(name).to_owned())
        }
    })
}

fn selinux(options: &cri::SeLinuxOption) -> Result<SelinuxRequest> {
    crisp_lsm::selinux::request(&options.user, &options.role, &options.r#type, &options.level)
        .doing("read the SELinux options")
}

#[cfg(test)]
#[path = "container_config_tests.rs"]
mod tests;
