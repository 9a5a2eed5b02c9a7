//! The pod's part of the plan.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;

use crisp_proto::cri;

use super::ManifestError;
use super::container::{PlannedContainer, plan_container};
use super::dns::{HostDns, dns_config};
use super::types::{
    Container, GroupsPolicy, Pod, PodSecurityContext, PortProtocol, Profile, ProfileKind, PullPolicy,
    RestartPolicy, SeLinux, Spec,
};
use super::volumes::{PlannedVolume, plan_volumes};

/// Seconds between the stop signal and the kill when the manifest does not say (as in Kubernetes).
const GRACE_SECONDS_DEFAULT: u32 = 30;
/// Where Kubernetes keeps seccomp profiles that a manifest names by a relative path.
const SECCOMP_DIR: &str = "/var/lib/kubelet/seccomp";
/// A label of RFC 1123, and a name of several.
pub(super) const NAME_BYTES_MAX: usize = 63;
const POD_NAME_BYTES_MAX: usize = 253;
/// HOST_NAME_MAX of Linux is 64; Kubernetes cuts a pod's name at 63 for its host name.
const HOSTNAME_BYTES_MAX: usize = 63;

/// What the plan needs to know of the machine and of this run.
#[derive(Debug, Clone)]
pub(crate) struct Host {
    /// A fresh UUID.
    pub(crate) uid: String,
    /// The node's name.
    pub(crate) hostname: String,
    /// Directory for this pod's logs and volumes, absolute.
    pub(crate) data: PathBuf,
    /// The machine's `/etc/resolv.conf`.
    pub(crate) resolv_conf: String,
}

/// What to do for a pod, in order: images, volumes, sandbox, init containers, containers.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) name: String,
    pub(crate) namespace: String,
    pub(crate) uid: String,
    /// Of RunPodSandbox; empty is the daemon's default.
    pub(crate) handler: String,
    pub(crate) sandbox: cri::PodSandboxConfig,
    /// Each once, in the order of first use.
    pub(crate) images: Vec<PlannedImage>,
    pub(crate) volumes: Vec<PlannedVolume>,
    /// In order; those with `restart` Always keep running beside the containers (sidecars).
    pub(crate) init: Vec<PlannedContainer>,
    pub(crate) containers: Vec<PlannedContainer>,
    /// Seconds between the stop signal and the kill.
    pub(crate) grace_seconds: u32,
    /// Whether the manifest itself says when containers are started again.
    pub(crate) restarts: bool,
    /// What the user should know, one sentence each.
    pub(crate) warnings: Vec<String>,
}

/// An image that must be here before a container is made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlannedImage {
    pub(crate) reference: String,
    pub(crate) policy: PullPolicy,
}

/// What containers inherit from the pod.
pub(super) struct PodContext<'a> {
    pub(super) spec: &'a Spec,
    pub(super) pod: &'a Pod,
    pub(super) namespace: &'a str,
    pub(super) host: &'a Host,
    pub(super) security: PodSecurityContext,
    pub(super) volumes: &'a [PlannedVolume],
}

pub(super) fn plan(pod: &Pod, host: &Host) -> Result<Plan, ManifestError> {
    check_pod(pod)?;
    let spec = &pod.spec;
    let mut warnings: Vec<String> = pod
        .unsupported()
        .iter()
        .map(|path| format!("{path} is not supported by `crisp run`; it is ignored"))
        .collect();
    let security = spec.security_context.clone().unwrap_or_default();
    let mut volumes = plan_volumes(spec, &host.data, &security, &mut warnings)?;
    super::volumes::collect_sub_paths(spec, &mut volumes)?;
    let namespace = pod.metadata.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let context = PodContext { spec, pod, namespace: &namespace, host, security, volumes: &volumes };
    let containers = plan_list(&context, "containers", &spec.containers, &mut warnings)?;
    let init = plan_list(&context, "initContainers", &spec.init_containers, &mut warnings)?;
    Ok(Plan {
        name: pod.metadata.name.clone(),
        uid: host.uid.clone(),
        handler: spec.runtime_class_name.clone().unwrap_or_default(),
        sandbox: sandbox(&context)?,
        images: images(spec),
        init,
        containers,
        grace_seconds: spec.termination_grace_period_seconds.unwrap_or(GRACE_SECONDS_DEFAULT),
        restarts: spec.restart_policy.is_some_and(|policy| policy != RestartPolicy::Never),
        warnings,
        namespace: namespace.clone(),
        volumes: volumes.clone(),
    })
}

fn plan_list(
    context: &PodContext<'_>,
    list: &str,
    containers: &[Container],
    warnings: &mut Vec<String>,
) -> Result<Vec<PlannedContainer>, ManifestError> {
    let field = |container: &Container| format!("spec.{list}[{}]", container.name);
    containers
        .iter()
        .map(|container| plan_container(context, container, &field(container), warnings))
        .collect()
}

fn check_pod(pod: &Pod) -> Result<(), ManifestError> {
    check_pod_name(&pod.metadata.name)?;
    if let Some(namespace) = &pod.metadata.namespace {
        check_name("metadata.namespace", namespace, NAME_BYTES_MAX)?;
    }
    if pod.spec.containers.is_empty() {
        return Err(ManifestError::field("spec.containers", "at least one container is needed"));
    }
    let mut names = BTreeSet::new();
    for container in pod.spec.init_containers.iter().chain(&pod.spec.containers) {
        check_name("container name", &container.name, NAME_BYTES_MAX)?;
        if !names.insert(&container.name) {
            let problem = format!("the name {:?} is used twice", container.name);
            return Err(ManifestError::field("spec.containers", problem));
        }
    }
    if pod.spec.host_users == Some(false) {
        return Err(ManifestError::field(
            "spec.hostUsers",
            "user namespaces of pods take a kubelet, which shares out the ids",
        ));
    }
    if pod.spec.share_process_namespace && pod.spec.host_pid {
        return Err(ManifestError::field("spec.shareProcessNamespace", "cannot be combined with hostPID"));
    }
    Ok(())
}

/// A label of RFC 1123.
pub(super) fn check_name(field: &str, name: &str, bytes_max: usize) -> Result<(), ManifestError> {
    if name.len() <= bytes_max && is_label(name) {
        return Ok(());
    }
    let problem = format!(
        "{name:?} is not a name: lower-case letters, digits and '-', beginning and ending with a letter or digit, at most \
         {bytes_max} bytes"
    );
    Err(ManifestError::field(field, problem))
}

/// Labels with dots between.
fn check_pod_name(name: &str) -> Result<(), ManifestError> {
    if name.len() <= POD_NAME_BYTES_MAX && name.split('.').all(is_label) {
        return Ok(());
    }
    let problem = format!(
        "{name:?} is not a name: lower-case letters, digits, '-' and '.', beginning and ending with a letter or digit, at \
         most {POD_NAME_BYTES_MAX} bytes"
    );
    Err(ManifestError::field("metadata.name", problem))
}

fn is_label(label: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    !label.is_empty() && label.bytes().all(allowed) && !label.starts_with('-') && !label.ends_with('-')
}

fn images(spec: &Spec) -> Vec<PlannedImage> {
    let mut images: Vec<PlannedImage> = Vec::new();
    for container in spec.init_containers.iter().chain(&spec.containers) {
        let policy = container.image_pull_policy.unwrap_or_else(|| default_policy(&container.image));
        match images.iter_mut().find(|image| image.reference == container.image) {
            Some(image) if image.policy != PullPolicy::Always && policy != PullPolicy::Never => {
                image.policy = policy
            }
            Some(_) => {}
            None => images.push(PlannedImage { reference: container.image.clone(), policy }),
        }
    }
    images
}

/// As Kubernetes: `latest`, said or meant, may move; anything else stays.
fn default_policy(reference: &str) -> PullPolicy {
    let last = reference.rsplit('/').next().unwrap_or(reference);
    let tag = last.split_once(':').map(|(_, tag)| tag);
    if reference.contains('@') || tag.is_some_and(|tag| tag != "latest") {
        PullPolicy::IfNotPresent
    } else {
        PullPolicy::Always
    }
}

fn sandbox(context: &PodContext<'_>) -> Result<cri::PodSandboxConfig, ManifestError> {
    let (pod, spec, host) = (context.pod, context.spec, context.host);
    let metadata = cri::PodSandboxMetadata {
        name: pod.metadata.name.clone(),
        namespace: context.namespace.to_owned(),
        uid: host.uid.clone(),
        attempt: 0,
    };
    Ok(cri::PodSandboxConfig {
        metadata: Some(metadata),
        hostname: if spec.host_network { String::new() } else { hostname(pod)? },
        log_directory: host.data.join("logs").to_string_lossy().into_owned(),
        dns_config: dns_config(spec, &HostDns::parse(&host.resolv_conf)),
        port_mappings: if spec.host_network { check_host_ports(spec)? } else { port_mappings(spec)? },
        labels: labels(context),
        annotations: annotations(context),
        linux: Some(cri::LinuxPodSandboxConfig {
            security_context: Some(sandbox_security(context)?),
            sysctls: context.security.sysctls.iter().map(|s| (s.name.clone(), s.value.clone())).collect(),
            ..Default::default()
        }),
        windows: None,
    })
}

fn hostname(pod: &Pod) -> Result<String, ManifestError> {
    if let Some(hostname) = &pod.spec.hostname {
        check_name("spec.hostname", hostname, HOSTNAME_BYTES_MAX)?;
        return Ok(hostname.clone());
    }
    let cut: String = pod.metadata.name.chars().take(HOSTNAME_BYTES_MAX).collect();
    Ok(cut.trim_end_matches(['-', '.']).to_owned())
}

/// The manifest's labels and those by which clients know a pod.
fn labels(context: &PodContext<'_>) -> HashMap<String, String> {
    let mut labels: HashMap<String, String> = context.pod.metadata.labels.clone().into_iter().collect();
    labels.insert(crate::cli::labels::POD_NAME.to_owned(), context.pod.metadata.name.clone());
    labels.insert(crate::cli::labels::POD_NAMESPACE.to_owned(), context.namespace.to_owned());
    labels.insert(crate::cli::labels::POD_UID.to_owned(), context.host.uid.clone());
    labels.insert(crate::cli::labels::MANAGED_BY.to_owned(), crate::cli::labels::MANAGED_BY_RUN.to_owned());
    labels
}

fn annotations(context: &PodContext<'_>) -> HashMap<String, String> {
    let mut annotations: HashMap<String, String> =
        context.pod.metadata.annotations.clone().into_iter().collect();
    let grace = context.spec.termination_grace_period_seconds.unwrap_or(GRACE_SECONDS_DEFAULT);
    annotations.insert(crate::cli::labels::GRACE_SECONDS.to_owned(), grace.to_string());
    annotations
}

fn port_mappings(spec: &Spec) -> Result<Vec<cri::PortMapping>, ManifestError> {
    let mut mappings = Vec::new();
    for container in spec.init_containers.iter().chain(&spec.containers) {
        for port in &container.ports {
            let Some(host_port) = port.host_port.filter(|port| *port != 0) else { continue };
            let field = format!("spec.containers[{}].ports", container.name);
            let host_ip = port.host_ip.clone().unwrap_or_default();
            if !host_ip.is_empty() && host_ip.parse::<std::net::IpAddr>().is_err() {
                return Err(ManifestError::field(field, format!("hostIP {host_ip:?} is not an IP address")));
            }
            if port.container_port == 0 {
                return Err(ManifestError::field(field, "containerPort is from 1 to 65535"));
            }
            mappings.push(cri::PortMapping {
                protocol: match port.protocol.unwrap_or(PortProtocol::Tcp) {
                    PortProtocol::Tcp => cri::Protocol::Tcp,
                    PortProtocol::Udp => cri::Protocol::Udp,
                    PortProtocol::Sctp => cri::Protocol::Sctp,
                }
                .into(),
                container_port: port.container_port.into(),
                host_port: host_port.into(),
                host_ip,
            });
        }
    }
    Ok(mappings)
}

/// In the host's network a port is its own host port; nothing is mapped.
fn check_host_ports(spec: &Spec) -> Result<Vec<cri::PortMapping>, ManifestError> {
    for container in spec.init_containers.iter().chain(&spec.containers) {
        for port in &container.ports {
            if port.host_port.is_some_and(|host| host != 0 && host != port.container_port) {
                let field = format!("spec.containers[{}].ports", container.name);
                return Err(ManifestError::field(
                    field,
                    "with hostNetwork, hostPort must equal containerPort",
                ));
            }
        }
    }
    Ok(Vec::new())
}

/// Which namespaces the containers share, with the pod or with the machine.
pub(super) fn namespaces(spec: &Spec) -> cri::NamespaceOption {
    let node_or_pod = |node: bool| if node { cri::NamespaceMode::Node } else { cri::NamespaceMode::Pod };
    let pid = match (spec.host_pid, spec.share_process_namespace) {
        (true, _) => cri::NamespaceMode::Node,
        (false, true) => cri::NamespaceMode::Pod,
        (false, false) => cri::NamespaceMode::Container,
    };
    cri::NamespaceOption {
        network: node_or_pod(spec.host_network).into(),
        ipc: node_or_pod(spec.host_ipc).into(),
        pid: pid.into(),
        ..Default::default()
    }
}

fn sandbox_security(context: &PodContext<'_>) -> Result<cri::LinuxSandboxSecurityContext, ManifestError> {
    let security = &context.security;
    let privileged = |container: &Container| {
        container.security_context.as_ref().and_then(|context| context.privileged).unwrap_or(false)
    };
    Ok(cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(context.spec)),
        selinux_options: security.se_linux_options.as_ref().map(selinux),
        run_as_user: security.run_as_user.map(|value| cri::Int64Value { value }),
        run_as_group: security.run_as_group.map(|value| cri::Int64Value { value }),
        supplemental_groups: groups(security),
        supplemental_groups_policy: groups_policy(security).into(),
        privileged: context.spec.init_containers.iter().chain(&context.spec.containers).any(privileged),
        seccomp: Some(profile(
            "spec.securityContext.seccompProfile",
            security.seccomp_profile.as_ref(),
            SECCOMP_DIR,
        )?),
        apparmor: None,
        ..Default::default()
    })
}

pub(super) fn selinux(options: &SeLinux) -> cri::SeLinuxOption {
    cri::SeLinuxOption {
        user: options.user.clone(),
        role: options.role.clone(),
        r#type: options.kind.clone(),
        level: options.level.clone(),
    }
}

/// The supplemental groups with the one that owns the volumes.
pub(super) fn groups(security: &PodSecurityContext) -> Vec<i64> {
    security.supplemental_groups.iter().copied().chain(security.fs_group).collect()
}

pub(super) fn groups_policy(security: &PodSecurityContext) -> cri::SupplementalGroupsPolicy {
    match security.supplemental_groups_policy {
        Some(GroupsPolicy::Strict) => cri::SupplementalGroupsPolicy::Strict,
        Some(GroupsPolicy::Merge) | None => cri::SupplementalGroupsPolicy::Merge,
    }
}

/// A seccomp or AppArmor profile. Where the manifest names none it is the runtime's default: stricter than a cluster that does
/// not default it, and what users of other tools on a single machine get.
pub(super) fn profile(
    field: &str,
    profile: Option<&Profile>,
    local_dir: &str,
) -> Result<cri::SecurityProfile, ManifestError> {
    use cri::security_profile::ProfileType;
    let of = |kind: ProfileType, name: String| cri::SecurityProfile {
        profile_type: kind.into(),
        localhost_ref: name,
    };
    let Some(profile) = profile else { return Ok(of(ProfileType::RuntimeDefault, String::new())) };
    match (profile.kind, &profile.localhost_profile) {
        (ProfileKind::RuntimeDefault, None) => Ok(of(ProfileType::RuntimeDefault, String::new())),
        (ProfileKind::Unconfined, None) => Ok(of(ProfileType::Unconfined, String::new())),
        (ProfileKind::Localhost, Some(name)) if local_dir.is_empty() => {
            Ok(of(ProfileType::Localhost, name.clone()))
        }
        (ProfileKind::Localhost, Some(name)) => {
            let path = std::path::Path::new(name);
            let plain = path.components().all(|part| matches!(part, std::path::Component::Normal(_)));
            if !plain || name.is_empty() {
                return Err(ManifestError::field(
                    field,
                    format!("localhostProfile is a path below {local_dir}"),
                ));
            }
            Ok(of(ProfileType::Localhost, format!("{local_dir}/{name}")))
        }
        (ProfileKind::Localhost, None) => {
            Err(ManifestError::field(field, "type Localhost needs localhostProfile"))
        }
        (_, Some(_)) => Err(ManifestError::field(field, "localhostProfile needs type Localhost")),
    }
}
