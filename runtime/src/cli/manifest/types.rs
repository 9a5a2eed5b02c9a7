//! The Kubernetes Pod manifest, version v1, as far as `crisp run` knows it.
//!
//! Every field that Kubernetes has is named here or refused: a typing error is an error with its line. Fields that mean nothing
//! on a single machine, or that are not built, are [`Present`]: [`Pod::unsupported`] tells of them.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny};

use crate::quantity::Quantity;

/// A field of Kubernetes that we only notice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Present;

impl<'de> Deserialize<'de> for Present {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        IgnoredAny::deserialize(from).map(|_| Self)
    }
}

type Ignored = Option<Present>;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Pod {
    #[expect(dead_code, reason = "read before the rest")]
    pub(crate) api_version: String,
    #[expect(dead_code, reason = "read before the rest")]
    pub(crate) kind: String,
    pub(crate) metadata: Metadata,
    pub(crate) spec: Spec,
    #[expect(dead_code, reason = "accepted, so that what `kubectl get -o yaml` prints can be run")]
    pub(crate) status: Ignored,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "what a cluster writes into metadata is accepted and without meaning here")]
pub(crate) struct Metadata {
    pub(crate) name: String,
    pub(crate) namespace: Option<String>,
    #[serde(default)]
    pub(crate) labels: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
    uid: Ignored,
    generate_name: Ignored,
    creation_timestamp: Ignored,
    deletion_timestamp: Ignored,
    deletion_grace_period_seconds: Ignored,
    resource_version: Ignored,
    self_link: Ignored,
    generation: Ignored,
    owner_references: Ignored,
    finalizers: Ignored,
    managed_fields: Ignored,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "what concerns scheduling and the cluster is accepted and without meaning here")]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub(crate) struct Spec {
    pub(crate) containers: Vec<Container>,
    #[serde(default)]
    pub(crate) init_containers: Vec<Container>,
    #[serde(default)]
    pub(crate) volumes: Vec<Volume>,
    pub(crate) restart_policy: Option<RestartPolicy>,
    pub(crate) hostname: Option<String>,
    #[serde(default, rename = "hostNetwork")]
    pub(crate) host_network: bool,
    #[serde(default, rename = "hostPID")]
    pub(crate) host_pid: bool,
    #[serde(default, rename = "hostIPC")]
    pub(crate) host_ipc: bool,
    #[serde(default)]
    pub(crate) share_process_namespace: bool,
    pub(crate) host_users: Option<bool>,
    pub(crate) dns_policy: Option<DnsPolicy>,
    pub(crate) dns_config: Option<DnsConfig>,
    pub(crate) termination_grace_period_seconds: Option<u32>,
    pub(crate) security_context: Option<PodSecurityContext>,
    pub(crate) runtime_class_name: Option<String>,
    // Noticed, because the pod behaves otherwise without them.
    pub(crate) active_deadline_seconds: Ignored,
    pub(crate) ephemeral_containers: Ignored,
    pub(crate) host_aliases: Ignored,
    pub(crate) hostname_override: Ignored,
    pub(crate) image_pull_secrets: Ignored,
    pub(crate) overhead: Ignored,
    pub(crate) resources: Ignored,
    pub(crate) resource_claims: Ignored,
    #[serde(rename = "setHostnameAsFQDN")]
    pub(crate) set_hostname_as_fqdn: Ignored,
    // Without meaning on one machine.
    affinity: Ignored,
    automount_service_account_token: Ignored,
    enable_service_links: Ignored,
    node_name: Ignored,
    node_selector: Ignored,
    os: Ignored,
    preemption_policy: Ignored,
    priority: Ignored,
    priority_class_name: Ignored,
    readiness_gates: Ignored,
    scheduler_name: Ignored,
    scheduling_gates: Ignored,
    service_account: Ignored,
    service_account_name: Ignored,
    subdomain: Ignored,
    tolerations: Ignored,
    topology_spread_constraints: Ignored,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "where the message of an end is kept concerns the kubelet's status alone")]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub(crate) struct Container {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) image_pull_policy: Option<PullPolicy>,
    #[serde(default)]
    pub(crate) command: Vec<String>,
    #[serde(default)]
    pub(crate) args: Vec<String>,
    pub(crate) working_dir: Option<String>,
    #[serde(default)]
    pub(crate) env: Vec<EnvVar>,
    pub(crate) env_from: Option<Vec<Present>>,
    #[serde(default)]
    pub(crate) ports: Vec<Port>,
    #[serde(default)]
    pub(crate) volume_mounts: Vec<VolumeMount>,
    pub(crate) volume_devices: Option<Vec<Present>>,
    #[serde(default)]
    pub(crate) resources: Resources,
    pub(crate) security_context: Option<ContainerSecurityContext>,
    pub(crate) restart_policy: Option<RestartPolicy>,
    #[serde(default)]
    pub(crate) stdin: bool,
    #[serde(default)]
    pub(crate) stdin_once: bool,
    #[serde(default)]
    pub(crate) tty: bool,
    pub(crate) lifecycle: Ignored,
    pub(crate) liveness_probe: Ignored,
    pub(crate) readiness_probe: Ignored,
    pub(crate) startup_probe: Ignored,
    pub(crate) resize_policy: Ignored,
    pub(crate) restart_policy_rules: Ignored,
    termination_message_path: Ignored,
    termination_message_policy: Ignored,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum RestartPolicy {
    Always,
    OnFailure,
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum PullPolicy {
    Always,
    IfNotPresent,
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum DnsPolicy {
    ClusterFirst,
    ClusterFirstWithHostNet,
    Default,
    None,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct DnsConfig {
    #[serde(default)]
    pub(crate) nameservers: Vec<String>,
    #[serde(default)]
    pub(crate) searches: Vec<String>,
    #[serde(default)]
    pub(crate) options: Vec<DnsOption>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct DnsOption {
    pub(crate) name: String,
    pub(crate) value: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct EnvVar {
    pub(crate) name: String,
    pub(crate) value: Option<String>,
    pub(crate) value_from: Option<EnvSource>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "whatever is not a fieldRef is refused")]
pub(crate) struct EnvSource {
    pub(crate) field_ref: Option<FieldRef>,
    resource_field_ref: Ignored,
    config_map_key_ref: Ignored,
    secret_key_ref: Ignored,
    file_key_ref: Ignored,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "v1 is the only version of the fields that exists")]
pub(crate) struct FieldRef {
    api_version: Ignored,
    pub(crate) field_path: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[expect(dead_code, reason = "a port's name serves Services, which do not exist here")]
pub(crate) struct Port {
    name: Ignored,
    pub(crate) container_port: u16,
    pub(crate) host_port: Option<u16>,
    #[serde(rename = "hostIP")]
    pub(crate) host_ip: Option<String>,
    pub(crate) protocol: Option<PortProtocol>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub(crate) enum PortProtocol {
    Tcp,
    Udp,
    Sctp,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct VolumeMount {
    pub(crate) name: String,
    pub(crate) mount_path: String,
    #[serde(default)]
    pub(crate) read_only: bool,
    pub(crate) recursive_read_only: Option<RecursiveReadOnly>,
    pub(crate) sub_path: Option<String>,
    pub(crate) sub_path_expr: Ignored,
    pub(crate) mount_propagation: Option<Propagation>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum RecursiveReadOnly {
    Disabled,
    IfPossible,
    Enabled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum Propagation {
    None,
    HostToContainer,
    Bidirectional,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Volume {
    pub(crate) name: String,
    pub(crate) host_path: Option<HostPath>,
    pub(crate) empty_dir: Option<EmptyDir>,
    // Kinds that need a cluster or a storage driver.
    pub(crate) config_map: Ignored,
    pub(crate) csi: Ignored,
    #[serde(rename = "downwardAPI")]
    pub(crate) downward_api: Ignored,
    pub(crate) ephemeral: Ignored,
    pub(crate) image: Ignored,
    pub(crate) iscsi: Ignored,
    pub(crate) nfs: Ignored,
    pub(crate) persistent_volume_claim: Ignored,
    pub(crate) projected: Ignored,
    pub(crate) secret: Ignored,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct HostPath {
    pub(crate) path: String,
    #[serde(rename = "type")]
    pub(crate) kind: Option<HostPathKind>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum HostPathKind {
    #[serde(rename = "")]
    Unchecked,
    DirectoryOrCreate,
    Directory,
    FileOrCreate,
    File,
    Socket,
    CharDevice,
    BlockDevice,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct EmptyDir {
    pub(crate) medium: Option<String>,
    pub(crate) size_limit: Option<Quantity>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Resources {
    pub(crate) limits: BTreeMap<String, Quantity>,
    pub(crate) requests: BTreeMap<String, Quantity>,
    pub(crate) claims: Ignored,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct PodSecurityContext {
    pub(crate) run_as_user: Option<i64>,
    pub(crate) run_as_group: Option<i64>,
    pub(crate) run_as_non_root: Option<bool>,
    pub(crate) supplemental_groups: Vec<i64>,
    pub(crate) supplemental_groups_policy: Option<GroupsPolicy>,
    pub(crate) fs_group: Option<i64>,
    pub(crate) fs_group_change_policy: Option<String>,
    pub(crate) sysctls: Vec<Sysctl>,
    pub(crate) seccomp_profile: Option<Profile>,
    pub(crate) app_armor_profile: Option<Profile>,
    pub(crate) se_linux_options: Option<SeLinux>,
    pub(crate) se_linux_change_policy: Option<String>,
    pub(crate) windows_options: Ignored,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum GroupsPolicy {
    Merge,
    Strict,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Sysctl {
    pub(crate) name: String,
    pub(crate) value: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Profile {
    #[serde(rename = "type")]
    pub(crate) kind: ProfileKind,
    pub(crate) localhost_profile: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum ProfileKind {
    RuntimeDefault,
    Unconfined,
    Localhost,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct SeLinux {
    pub(crate) user: String,
    pub(crate) role: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) level: String,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct ContainerSecurityContext {
    pub(crate) run_as_user: Option<i64>,
    pub(crate) run_as_group: Option<i64>,
    pub(crate) run_as_non_root: Option<bool>,
    pub(crate) privileged: Option<bool>,
    pub(crate) read_only_root_filesystem: Option<bool>,
    pub(crate) allow_privilege_escalation: Option<bool>,
    pub(crate) capabilities: Option<Capabilities>,
    pub(crate) proc_mount: Option<ProcMount>,
    pub(crate) seccomp_profile: Option<Profile>,
    pub(crate) app_armor_profile: Option<Profile>,
    pub(crate) se_linux_options: Option<SeLinux>,
    pub(crate) windows_options: Ignored,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Capabilities {
    pub(crate) add: Vec<String>,
    pub(crate) drop: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(crate) enum ProcMount {
    Default,
    Unmasked,
}

impl Pod {
    /// The paths of the fields that are set and that change nothing here though they would in a cluster.
    pub(crate) fn unsupported(&self) -> Vec<String> {
        let spec = &self.spec;
        let pod = [
            ("activeDeadlineSeconds", spec.active_deadline_seconds.is_some()),
            ("ephemeralContainers", spec.ephemeral_containers.is_some()),
            ("hostAliases", spec.host_aliases.is_some()),
            ("hostnameOverride", spec.hostname_override.is_some()),
            ("imagePullSecrets", spec.image_pull_secrets.is_some()),
            ("overhead", spec.overhead.is_some()),
            ("resources", spec.resources.is_some()),
            ("resourceClaims", spec.resource_claims.is_some()),
            ("setHostnameAsFQDN", spec.set_hostname_as_fqdn.is_some()),
        ];
        let mut paths: Vec<String> = set(&pod).map(|field| format!("spec.{field}")).collect();
        for (list, containers) in
            [("initContainers", &spec.init_containers), ("containers", &spec.containers)]
        {
            for container in containers {
                paths.extend(
                    container.unsupported().map(|field| format!("spec.{list}[{}].{field}", container.name)),
                );
            }
        }
        paths
    }
}

impl Container {
    fn unsupported(&self) -> impl Iterator<Item = &'static str> {
        let fields = [
            ("lifecycle", self.lifecycle.is_some()),
            ("livenessProbe", self.liveness_probe.is_some()),
            ("readinessProbe", self.readiness_probe.is_some()),
            ("startupProbe", self.startup_probe.is_some()),
            ("resizePolicy", self.resize_policy.is_some()),
            ("restartPolicyRules", self.restart_policy_rules.is_some()),
            ("resources.claims", self.resources.claims.is_some()),
        ];
        set(&fields).collect::<Vec<_>>().into_iter()
    }
}

fn set<'a>(fields: &'a [(&'static str, bool)]) -> impl Iterator<Item = &'static str> + 'a {
    fields.iter().filter(|(_, is_set)| *is_set).map(|(field, _)| *field)
}
