//! Records and specifications as the plugins' messages. Pure.

use std::collections::BTreeMap;
use std::path::Path;

use crisp_nri::api::{
    self, Container, ContainerState as State, Hook, Hooks, LinuxContainer, LinuxDevice, LinuxDeviceCgroup,
    LinuxIoPriority, LinuxNamespace, LinuxNetDevice, LinuxPodSandbox, LinuxResources, LinuxScheduler, Mount,
    OptionalFileMode, OptionalInt, OptionalInt64, OptionalUInt32, PodSandbox, PosixRlimit, SecurityProfile,
    User, security_profile::ProfileType as NriProfile,
};
use crisp_proto::cri::{LinuxContainerResources, security_profile::ProfileType};
use oci_spec::runtime as oci;
use serde::Serialize;

use super::resources;
use crate::container::state::ContainerState;
use crate::container::{self, ContainerRecord};
use crate::pod::{self, PodRecord};

/// A pod. No process stands for it, so its pid is 0.
pub(super) fn pod(record: &PodRecord) -> PodSandbox {
    let metadata = pod::metadata(&record.config);
    let linux = record.config.linux.as_ref();
    let overhead = record.overhead.as_ref().or_else(|| linux.and_then(|linux| linux.overhead.as_ref()));
    let limits = record.resources.as_ref().or_else(|| linux.and_then(|linux| linux.resources.as_ref()));
    PodSandbox {
        id: record.id.to_string(),
        name: metadata.name,
        uid: metadata.uid,
        namespace: metadata.namespace,
        labels: record.config.labels.clone().into_iter().collect(),
        annotations: record.config.annotations.clone().into_iter().collect(),
        runtime_handler: record.handler.clone(),
        linux: Some(LinuxPodSandbox {
            pod_overhead: overhead.and_then(of_cri),
            pod_resources: limits.and_then(of_cri),
            cgroup_parent: linux.map(|linux| linux.cgroup_parent.clone()).unwrap_or_default(),
            cgroups_path: record.cgroup.path().to_owned(),
            ..LinuxPodSandbox::default()
        }),
        pid: 0,
        ips: record.ips.iter().map(ToString::to_string).collect(),
    }
}

/// Limits of a pod; `None` where they cannot be, which the kubelet does not send.
pub(super) fn of_cri(limits: &LinuxContainerResources) -> Option<LinuxResources> {
    crate::cri::config::resources(Some(limits)).ok().map(|limits| resources::to_nri(&limits))
}

/// A container, with what its specification says.
pub(super) fn container(record: &ContainerRecord, spec: &oci::Spec) -> Container {
    let process = spec.process().clone().unwrap_or_default();
    let account = record.state.account();
    Container {
        id: record.id.to_string(),
        pod_sandbox_id: record.pod_id.to_string(),
        name: container::metadata(&record.config).name,
        state: state(&record.state).into(),
        labels: record.config.labels.clone().into_iter().collect(),
        annotations: record.config.annotations.clone().into_iter().collect(),
        args: process.args().clone().unwrap_or_default(),
        env: process.env().clone().unwrap_or_default(),
        mounts: spec.mounts().iter().flatten().map(mount).collect(),
        hooks: spec.hooks().as_ref().map(hooks),
        linux: Some(linux(record, spec, &process)),
        pid: u32::try_from(account.pid).unwrap_or(0),
        rlimits: process.rlimits().iter().flatten().map(rlimit).collect(),
        created_at: record.created_at.0,
        started_at: account.started_at,
        finished_at: account.finished_at,
        exit_code: account.exit_code,
        status_reason: account.reason.to_owned(),
        status_message: account.message,
        cdi_devices: record.config.cdi_devices.iter().map(cdi_device).collect(),
        user: Some(User {
            uid: process.user().uid(),
            gid: process.user().gid(),
            additional_gids: process.user().additional_gids().clone().unwrap_or_default(),
        }),
    }
}

fn state(state: &ContainerState) -> State {
    match state {
        ContainerState::Creating | ContainerState::Created | ContainerState::Starting => {
            State::ContainerCreated
        }
        ContainerState::Running { .. } => State::ContainerRunning,
        ContainerState::Exited { .. } => State::ContainerStopped,
    }
}

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// The specification's own word for a value of an enumeration.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

fn mount(mount: &oci::Mount) -> Mount {
    Mount {
        destination: text(mount.destination()),
        r#type: mount.typ().clone().unwrap_or_default(),
        source: mount.source().as_deref().map(text).unwrap_or_default(),
        options: mount.options().clone().unwrap_or_default(),
    }
}

fn hooks(hooks: &oci::Hooks) -> Hooks {
    let list = |hooks: &Option<Vec<oci::Hook>>| hooks.iter().flatten().map(hook).collect();
    Hooks {
        prestart: list(hooks.prestart()),
        create_runtime: list(hooks.create_runtime()),
        create_container: list(hooks.create_container()),
        start_container: list(hooks.start_container()),
        poststart: list(hooks.poststart()),
        poststop: list(hooks.poststop()),
    }
}

fn hook(hook: &oci::Hook) -> Hook {
    Hook {
        path: text(hook.path()),
        args: hook.args().clone().unwrap_or_default(),
        env: hook.env().clone().unwrap_or_default(),
        timeout: hook.timeout().map(|value| OptionalInt { value }),
    }
}

fn rlimit(limit: &oci::PosixRlimit) -> PosixRlimit {
    PosixRlimit { r#type: word(&limit.typ()), hard: limit.hard(), soft: limit.soft() }
}

fn linux(record: &ContainerRecord, spec: &oci::Spec, process: &oci::Process) -> LinuxContainer {
    let linux = spec.linux().clone().unwrap_or_default();
    let rules = linux.resources().as_ref().and_then(|limits| limits.devices().clone()).unwrap_or_default();
    LinuxContainer {
        namespaces: linux.namespaces().iter().flatten().map(namespace).collect(),
        devices: linux.devices().iter().flatten().map(device).collect(),
        resources: Some(LinuxResources {
            devices: rules.iter().map(rule).collect(),
            ..resources::to_nri(&record.resources)
        }),
        oom_score_adj: process.oom_score_adj().map(|value| OptionalInt { value: value.into() }),
        cgroups_path: linux.cgroups_path().as_deref().map(text).unwrap_or_default(),
        io_priority: process.io_priority().as_ref().map(io_priority),
        seccomp_profile: seccomp_profile(record),
        seccomp_policy: linux.seccomp().as_ref().map(seccomp),
        sysctl: linux.sysctl().clone().unwrap_or_default().into_iter().collect(),
        net_devices: net_devices(&linux),
        scheduler: process.scheduler().as_ref().map(scheduler),
        rdt: linux.intel_rdt().as_ref().map(rdt),
    }
}

fn namespace(namespace: &oci::LinuxNamespace) -> LinuxNamespace {
    LinuxNamespace {
        r#type: word(&namespace.typ()),
        path: namespace.path().as_deref().map(text).unwrap_or_default(),
    }
}

fn device(device: &oci::LinuxDevice) -> LinuxDevice {
    LinuxDevice {
        path: text(device.path()),
        r#type: word(&device.typ()),
        major: device.major(),
        minor: device.minor(),
        file_mode: device.file_mode().map(|value| OptionalFileMode { value }),
        uid: device.uid().map(|value| OptionalUInt32 { value }),
        gid: device.gid().map(|value| OptionalUInt32 { value }),
    }
}

fn rule(rule: &oci::LinuxDeviceCgroup) -> LinuxDeviceCgroup {
    LinuxDeviceCgroup {
        allow: rule.allow(),
        r#type: rule.typ().as_ref().map(word).unwrap_or_default(),
        major: rule.major().map(|value| OptionalInt64 { value }),
        minor: rule.minor().map(|value| OptionalInt64 { value }),
        access: rule.access().clone().unwrap_or_default(),
    }
}

fn io_priority(priority: &oci::LinuxIOPriority) -> LinuxIoPriority {
    let class = api::IoPrioClass::from_str_name(&word(&priority.class())).unwrap_or_default();
    LinuxIoPriority { class: class.into(), priority: i32::try_from(priority.priority()).unwrap_or(0) }
}

fn scheduler(scheduler: &oci::Scheduler) -> LinuxScheduler {
    let policy = api::LinuxSchedulerPolicy::from_str_name(&word(scheduler.policy())).unwrap_or_default();
    let flags = scheduler.flags().iter().flatten();
    LinuxScheduler {
        policy: policy.into(),
        nice: scheduler.nice().unwrap_or(0),
        priority: scheduler.priority().unwrap_or(0),
        flags: flags
            .filter_map(|flag| api::LinuxSchedulerFlag::from_str_name(&word(flag)))
            .map(Into::into)
            .collect(),
        runtime: scheduler.runtime().unwrap_or(0),
        deadline: scheduler.deadline().unwrap_or(0),
        period: scheduler.period().unwrap_or(0),
    }
}

fn net_devices(linux: &oci::Linux) -> BTreeMap<String, LinuxNetDevice> {
    let devices = linux.net_devices().iter().flatten();
    devices
        .map(|(host, device)| {
            (host.clone(), LinuxNetDevice { name: device.name().clone().unwrap_or_default() })
        })
        .collect()
}

/// As requested; those that annotations name are in the annotations.
fn cdi_device(device: &crisp_proto::cri::CdiDevice) -> api::CdiDevice {
    api::CdiDevice { name: device.name.clone() }
}

fn rdt(rdt: &oci::LinuxIntelRdt) -> api::LinuxRdt {
    let schemata = rdt.schemata().clone();
    api::LinuxRdt {
        clos_id: rdt.clos_id().clone().map(|value| api::OptionalString { value }),
        schemata: schemata.map(|value| api::OptionalRepeatedString { value }),
        enable_monitoring: rdt.enable_monitoring().map(|value| api::OptionalBool { value }),
        remove: false,
    }
}

/// Which profile was asked for.
fn seccomp_profile(record: &ContainerRecord) -> Option<SecurityProfile> {
    let security = record.config.linux.as_ref()?.security_context.as_ref()?;
    let profile = security.seccomp.as_ref()?;
    let profile_type = match profile.profile_type() {
        ProfileType::RuntimeDefault => NriProfile::RuntimeDefault,
        ProfileType::Unconfined => NriProfile::Unconfined,
        ProfileType::Localhost => NriProfile::Localhost,
    };
    Some(SecurityProfile { profile_type: profile_type.into(), localhost_ref: profile.localhost_ref.clone() })
}

/// The filter that the container gets.
fn seccomp(filter: &oci::LinuxSeccomp) -> api::LinuxSeccomp {
    api::LinuxSeccomp {
        default_action: word(&filter.default_action()),
        default_errno: filter.default_errno_ret().map(|value| OptionalUInt32 { value }),
        architectures: filter.architectures().iter().flatten().map(word).collect(),
        flags: filter.flags().iter().flatten().map(word).collect(),
        listener_path: filter.listener_path().as_deref().map(text).unwrap_or_default(),
        listener_metadata: filter.listener_metadata().clone().unwrap_or_default(),
        syscalls: filter.syscalls().iter().flatten().map(syscall).collect(),
    }
}

fn syscall(call: &oci::LinuxSyscall) -> api::LinuxSyscall {
    let argument = |argument: &oci::LinuxSeccompArg| api::LinuxSeccompArg {
        index: u32::try_from(argument.index()).unwrap_or(u32::MAX),
        value: argument.value(),
        value_two: argument.value_two().unwrap_or(0),
        op: word(&argument.op()),
    };
    api::LinuxSyscall {
        names: call.names().clone(),
        action: word(&call.action()),
        errno_ret: call.errno_ret().map(|value| OptionalUInt32 { value }),
        args: call.args().iter().flatten().map(argument).collect(),
    }
}
