//! A container's part of the plan.

use std::collections::{BTreeMap, HashMap};

use crisp_proto::cri;
use crisp_spec::{DEFAULT_MASKED_PATHS, DEFAULT_READONLY_PATHS};

use super::ManifestError;
use super::expand::expand;
use super::plan::{PodContext, groups, groups_policy, namespaces, profile, selinux};
use super::types::{Container, ContainerSecurityContext, EnvVar, ProcMount, Resources, RestartPolicy};
use super::volumes::plan_mounts;
use crate::quantity::Quantity;

/// Length of a CPU scheduling period, in microseconds, to which a quota refers.
const CPU_PERIOD_US: i64 = 100_000;
/// The kernel takes no smaller quota (`min_cfs_quota_period` in kernel/sched/core.c: 1 ms).
const CPU_QUOTA_US_MIN: i64 = 1_000;
/// The kernel's bounds of `cpu.shares`.
const CPU_SHARES_RANGE: (i64, i64) = (2, 262_144);

/// What is known of a pod only once it runs.
#[derive(Debug, Clone, Default)]
pub(crate) struct PodFacts {
    /// The preferred family first; empty in the host's network.
    pub(crate) ips: Vec<String>,
}

/// A container to be made, possibly several times.
#[derive(Debug, Clone)]
pub(crate) struct PlannedContainer {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) restart: RestartPolicy,
    /// The manifest asks that its user is not root; the image may have to tell who that is.
    pub(crate) must_not_be_root: bool,
    config: cri::ContainerConfig,
    env: Vec<(String, EnvValue)>,
}

/// A variable's value; what depends on the running pod comes later.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EnvValue {
    /// May hold `$(NAME)`.
    Text(String),
    /// Taken as it is.
    Fixed(String),
    PodIp,
    PodIps,
}

impl PlannedContainer {
    /// The CRI's form: variables filled in, for the given attempt (0 is the first).
    pub(crate) fn config(&self, facts: &PodFacts, attempt: u32) -> cri::ContainerConfig {
        let mut known: BTreeMap<&str, String> = BTreeMap::new();
        let mut config = self.config.clone();
        for (name, value) in &self.env {
            let value = match value {
                EnvValue::Text(text) => expand(text, &known),
                EnvValue::Fixed(text) => text.clone(),
                EnvValue::PodIp => facts.ips.first().cloned().unwrap_or_default(),
                EnvValue::PodIps => facts.ips.join(","),
            };
            config.envs.push(cri::KeyValue { key: name.clone(), value: value.clone().into_bytes() });
            known.insert(name, value);
        }
        for word in config.command.iter_mut().chain(&mut config.args) {
            *word = expand(word, &known);
        }
        config.metadata = Some(cri::ContainerMetadata { name: self.name.clone(), attempt });
        config.log_path = format!("{}/{attempt}.log", self.name);
        config
    }
}

pub(super) fn plan_container(
    context: &PodContext<'_>,
    container: &Container,
    field: &str,
    warnings: &mut Vec<String>,
) -> Result<PlannedContainer, ManifestError> {
    check(container, field)?;
    if container.stdin {
        warnings.push(format!("{field}.stdin: `crisp` connects nothing to it; `crictl attach -i` does"));
    }
    let security = container.security_context.clone().unwrap_or_default();
    let config = cri::ContainerConfig {
        image: Some(cri::ImageSpec {
            image: container.image.clone(),
            user_specified_image: container.image.clone(),
            ..Default::default()
        }),
        command: container.command.clone(),
        args: container.args.clone(),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        mounts: plan_mounts(container, context.volumes, field)?,
        labels: labels(context, container),
        stdin: container.stdin,
        stdin_once: container.stdin_once,
        tty: container.tty,
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(resources(&container.resources, field, warnings)?),
            security_context: Some(security_context(context, &security, field)?),
        }),
        ..Default::default()
    };
    let user = security.run_as_user.or(context.security.run_as_user);
    let must_not_be_root = security.run_as_non_root.or(context.security.run_as_non_root).unwrap_or(false);
    if must_not_be_root && user == Some(0) {
        return Err(ManifestError::field(
            format!("{field}.securityContext"),
            "runAsNonRoot contradicts runAsUser 0",
        ));
    }
    // For an init container the pod's policy only says whether it is tried again; its own makes it a sidecar.
    let inherited = if is_init(field) { None } else { context.spec.restart_policy };
    Ok(PlannedContainer {
        name: container.name.clone(),
        image: container.image.clone(),
        restart: container.restart_policy.or(inherited).unwrap_or(RestartPolicy::Never),
        must_not_be_root: must_not_be_root && user.is_none(),
        config,
        env: container.env.iter().map(|var| env(context, var, field)).collect::<Result<_, _>>()?,
    })
}

fn is_init(field: &str) -> bool {
    field.starts_with("spec.initContainers")
}

fn check(container: &Container, field: &str) -> Result<(), ManifestError> {
    if container.image.is_empty() {
        return Err(ManifestError::field(format!("{field}.image"), "is empty"));
    }
    if container.env_from.as_ref().is_some_and(|list| !list.is_empty()) {
        return Err(ManifestError::field(
            format!("{field}.envFrom"),
            "ConfigMaps and Secrets need a cluster",
        ));
    }
    if container.volume_devices.as_ref().is_some_and(|list| !list.is_empty()) {
        return Err(ManifestError::field(format!("{field}.volumeDevices"), "block volumes need a cluster"));
    }
    if is_init(field) && container.restart_policy.is_some_and(|policy| policy != RestartPolicy::Always) {
        let problem = "an init container's own policy is Always (a sidecar) or absent";
        return Err(ManifestError::field(format!("{field}.restartPolicy"), problem));
    }
    Ok(())
}

fn labels(context: &PodContext<'_>, container: &Container) -> HashMap<String, String> {
    use crate::cli::labels;
    HashMap::from([
        (labels::POD_NAME.to_owned(), context.pod.metadata.name.clone()),
        (labels::POD_NAMESPACE.to_owned(), context.namespace.to_owned()),
        (labels::POD_UID.to_owned(), context.host.uid.clone()),
        (labels::CONTAINER_NAME.to_owned(), container.name.clone()),
    ])
}

fn env(context: &PodContext<'_>, var: &EnvVar, field: &str) -> Result<(String, EnvValue), ManifestError> {
    let field = format!("{field}.env[{}]", var.name);
    if var.name.is_empty() || var.name.contains(['=', '\0']) {
        return Err(ManifestError::field(field, "a variable's name is not empty and has no '='"));
    }
    let value = match (&var.value, &var.value_from) {
        (Some(_), Some(_)) => return Err(ManifestError::field(field, "has both value and valueFrom")),
        (value, None) => EnvValue::Text(value.clone().unwrap_or_default()),
        (None, Some(source)) => match &source.field_ref {
            Some(reference) => field_value(context, &reference.field_path).ok_or_else(|| {
                ManifestError::field(field, format!("fieldPath {:?}", reference.field_path) + " is unknown")
            })?,
            None => {
                let problem =
                    "only fieldRef is supported; ConfigMaps, Secrets and resource fields need a cluster";
                return Err(ManifestError::field(field, problem));
            }
        },
    };
    Ok((var.name.clone(), value))
}

fn field_value(context: &PodContext<'_>, path: &str) -> Option<EnvValue> {
    let metadata = &context.pod.metadata;
    let entry = |map: &BTreeMap<String, String>, name: &str| {
        let key = path.strip_prefix(name)?.strip_prefix("['")?.strip_suffix("']")?;
        Some(EnvValue::Fixed(map.get(key).cloned().unwrap_or_default()))
    };
    match path {
        "metadata.name" => Some(EnvValue::Fixed(metadata.name.clone())),
        "metadata.namespace" => Some(EnvValue::Fixed(context.namespace.to_owned())),
        "metadata.uid" => Some(EnvValue::Fixed(context.host.uid.clone())),
        "spec.nodeName" => Some(EnvValue::Fixed(context.host.hostname.clone())),
        "spec.serviceAccountName" => Some(EnvValue::Fixed("default".to_owned())),
        "status.podIP" => Some(EnvValue::PodIp),
        "status.podIPs" => Some(EnvValue::PodIps),
        _ => entry(&metadata.labels, "metadata.labels")
            .or_else(|| entry(&metadata.annotations, "metadata.annotations")),
    }
}

/// Requests and limits as the kernel takes them, by the rules of Kubernetes.
fn resources(
    resources: &Resources,
    field: &str,
    warnings: &mut Vec<String>,
) -> Result<cri::LinuxContainerResources, ManifestError> {
    check_resources(resources, field, warnings)?;
    let limit = |name: &str| resources.limits.get(name).copied();
    let request = |name: &str| resources.requests.get(name).copied().or_else(|| limit(name));
    let hugepages =
        resources.limits.iter().filter_map(|(name, quantity)| hugepage_limit(name, *quantity)).collect();
    Ok(cri::LinuxContainerResources {
        cpu_period: CPU_PERIOD_US,
        cpu_quota: limit("cpu").map_or(0, quota),
        cpu_shares: shares(request("cpu")),
        memory_limit_in_bytes: limit("memory").map_or(0, Quantity::units),
        hugepage_limits: hugepages,
        ..Default::default()
    })
}

fn check_resources(
    resources: &Resources,
    field: &str,
    warnings: &mut Vec<String>,
) -> Result<(), ManifestError> {
    for name in resources.limits.keys().chain(resources.requests.keys()) {
        match name.as_str() {
            "cpu" | "memory" => {}
            "ephemeral-storage" => {
                warnings.push(format!("{field}.resources: ephemeral-storage is not limited by `crisp run`"));
            }
            name if name.starts_with("hugepages-") => {}
            name => {
                let problem = format!("{name:?} needs a device plugin, and so a cluster");
                return Err(ManifestError::field(format!("{field}.resources"), problem));
            }
        }
    }
    for (name, request) in &resources.requests {
        if resources.limits.get(name).is_some_and(|limit| limit < request) {
            let problem = format!("the request for {name} is larger than its limit");
            return Err(ManifestError::field(format!("{field}.resources"), problem));
        }
    }
    Ok(())
}

/// Microseconds per period; 0 CPUs is no limit.
fn quota(cpus: Quantity) -> i64 {
    match cpus.milli() {
        0 => 0,
        milli => (milli.saturating_mul(CPU_PERIOD_US) / 1000).max(CPU_QUOTA_US_MIN),
    }
}

fn shares(cpus: Option<Quantity>) -> i64 {
    let (min, max) = CPU_SHARES_RANGE;
    cpus.map_or(min, |cpus| (cpus.milli().saturating_mul(1024) / 1000).clamp(min, max))
}

/// `hugepages-2Mi` is the CRI's page size `2MB`: the names of the kernel's cgroup files.
fn hugepage_limit(name: &str, quantity: Quantity) -> Option<cri::HugepageLimit> {
    let size = name.strip_prefix("hugepages-")?;
    let page_size = format!("{}B", size.trim_end_matches('i'));
    Some(cri::HugepageLimit { page_size, limit: quantity.units().unsigned_abs() })
}

fn security_context(
    context: &PodContext<'_>,
    security: &ContainerSecurityContext,
    field: &str,
) -> Result<cri::LinuxContainerSecurityContext, ManifestError> {
    let pod = &context.security;
    let field = format!("{field}.securityContext");
    let privileged = security.privileged.unwrap_or(false);
    if security.windows_options.is_some() || pod.windows_options.is_some() {
        return Err(ManifestError::field(format!("{field}.windowsOptions"), "this is not Windows"));
    }
    if privileged && security.allow_privilege_escalation == Some(false) {
        return Err(ManifestError::field(field, "privileged contradicts allowPrivilegeEscalation: false"));
    }
    let unmasked = privileged || security.proc_mount == Some(ProcMount::Unmasked);
    let paths =
        |paths: &[&str]| if unmasked { Vec::new() } else { paths.iter().map(ToString::to_string).collect() };
    let seccomp = security.seccomp_profile.as_ref().or(pod.seccomp_profile.as_ref());
    let apparmor = security.app_armor_profile.as_ref().or(pod.app_armor_profile.as_ref());
    let int64 = |value| cri::Int64Value { value };
    Ok(cri::LinuxContainerSecurityContext {
        capabilities: security.capabilities.as_ref().map(|capabilities| cri::Capability {
            add_capabilities: capabilities.add.clone(),
            drop_capabilities: capabilities.drop.clone(),
            ..Default::default()
        }),
        privileged,
        namespace_options: Some(namespaces(context.spec)),
        selinux_options: security.se_linux_options.as_ref().or(pod.se_linux_options.as_ref()).map(selinux),
        run_as_user: security.run_as_user.or(pod.run_as_user).map(int64),
        run_as_group: security.run_as_group.or(pod.run_as_group).map(int64),
        readonly_rootfs: security.read_only_root_filesystem.unwrap_or(false),
        supplemental_groups: groups(pod),
        supplemental_groups_policy: groups_policy(pod).into(),
        no_new_privs: security.allow_privilege_escalation == Some(false),
        masked_paths: paths(&DEFAULT_MASKED_PATHS),
        readonly_paths: paths(&DEFAULT_READONLY_PATHS),
        seccomp: Some(profile(&format!("{field}.seccompProfile"), seccomp, "/var/lib/kubelet/seccomp")?),
        // Unset: the runtime's default where the machine has AppArmor, nothing elsewhere.
        apparmor: apparmor
            .map(|wanted| profile(&format!("{field}.appArmorProfile"), Some(wanted), ""))
            .transpose()?,
        ..Default::default()
    })
}
