//! Records to CRI messages. Pure.

use crisp_image::{Image, ImageUser};
use crisp_proto::cri::{
    self, ContainerState as CriState, ContainerStatus, HugepageLimit, ImageSpec, Int64Value,
    LinuxContainerResources, LinuxContainerUser, LinuxPodSandboxStatus, Namespace, PodIp,
    PodSandboxNetworkStatus, PodSandboxState, PodSandboxStatus,
};
use crisp_spec::Resources;

use crate::container::state::ContainerState;
use crate::container::{self, ContainerRecord};
use crate::pod::state::PodState;
use crate::pod::{self, PodRecord};

pub(crate) fn sandbox_state(state: PodState) -> PodSandboxState {
    match state {
        PodState::Ready => PodSandboxState::SandboxReady,
        PodState::Creating | PodState::Stopping | PodState::NotReady => PodSandboxState::SandboxNotready,
    }
}

/// One item of ListPodSandbox.
pub(crate) fn sandbox(record: &PodRecord) -> cri::PodSandbox {
    cri::PodSandbox {
        id: record.id.to_string(),
        metadata: Some(pod::metadata(&record.config)),
        state: sandbox_state(record.state).into(),
        created_at: record.created_at.0,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.handler.clone(),
    }
}

/// PodSandboxStatus.
pub(crate) fn sandbox_status(record: &PodRecord) -> PodSandboxStatus {
    let mut ips = record.ips.iter().map(ToString::to_string);
    // Nobody has an address any more once the network is gone.
    let network = (record.state == PodState::Ready).then(|| PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| PodIp { ip }).collect(),
    });
    PodSandboxStatus {
        id: record.id.to_string(),
        metadata: Some(pod::metadata(&record.config)),
        state: sandbox_state(record.state).into(),
        created_at: record.created_at.0,
        network: Some(network.unwrap_or_default()),
        linux: Some(LinuxPodSandboxStatus {
            namespaces: Some(Namespace { options: Some(pod::namespaces(&record.config)) }),
        }),
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.handler.clone(),
    }
}

/// CRI's state of a container. A start that is under way has not happened yet.
pub(crate) fn container_state(state: &ContainerState) -> CriState {
    match state {
        ContainerState::Creating | ContainerState::Created | ContainerState::Starting => {
            CriState::ContainerCreated
        }
        ContainerState::Running { .. } => CriState::ContainerRunning,
        ContainerState::Exited { .. } => CriState::ContainerExited,
    }
}

/// One item of ListContainers.
pub(crate) fn container(record: &ContainerRecord) -> cri::Container {
    cri::Container {
        id: record.id.to_string(),
        pod_sandbox_id: record.pod_id.to_string(),
        metadata: Some(container::metadata(&record.config)),
        image: record.config.image.clone(),
        image_ref: record.image.reference.clone(),
        state: container_state(&record.state).into(),
        created_at: record.created_at.0,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        image_id: record.image.id.clone(),
    }
}

/// ContainerStatus.
pub(crate) fn container_status(record: &ContainerRecord) -> ContainerStatus {
    let account = record.state.account();
    ContainerStatus {
        id: record.id.to_string(),
        metadata: Some(container::metadata(&record.config)),
        state: container_state(&record.state).into(),
        created_at: record.created_at.0,
        started_at: account.started_at,
        finished_at: account.finished_at,
        exit_code: account.exit_code,
        image: Some(image_spec(record)),
        image_ref: record.image.reference.clone(),
        reason: account.reason.to_owned(),
        message: account.message,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        mounts: mounts(record),
        log_path: record.log_path.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        resources: Some(cri::ContainerResources { linux: Some(resources(&record.resources)), windows: None }),
        image_id: record.image.id.clone(),
        user: record.made.as_ref().map(|made| user(&made.user)),
        stop_signal: stop_signal(record),
    }
}

fn image_spec(record: &ContainerRecord) -> ImageSpec {
    let requested = record.config.image.clone().unwrap_or_default();
    ImageSpec { image: record.image.name.clone(), ..requested }
}

/// The mounts as requested; those of images with the id of the image.
fn mounts(record: &ContainerRecord) -> Vec<cri::Mount> {
    let mut mounts = record.config.mounts.clone();
    let images = record.made.iter().flat_map(|made| &made.image_mounts);
    for (mount, id) in mounts.iter_mut().zip(images) {
        if let (Some(image), Some(id)) = (&mut mount.image, id) {
            image.image_ref.clone_from(id);
        }
    }
    mounts
}

fn user(user: &container::User) -> cri::ContainerUser {
    cri::ContainerUser {
        linux: Some(LinuxContainerUser {
            uid: user.uid.into(),
            gid: user.gid.into(),
            supplemental_groups: user.groups.iter().map(|group| i64::from(*group)).collect(),
        }),
    }
}

fn stop_signal(record: &ContainerRecord) -> i32 {
    record.made.as_ref().map_or(0, |made| super::config::cri_signal(made.stop_signal).into())
}

/// Limits in force.
pub(crate) fn resources(limits: &Resources) -> LinuxContainerResources {
    let signed = |number: Option<u64>| number.and_then(|number| i64::try_from(number).ok()).unwrap_or(0);
    LinuxContainerResources {
        cpu_period: signed(limits.cpu_period_us),
        cpu_quota: limits.cpu_quota_us.unwrap_or(0),
        cpu_shares: signed(limits.cpu_shares),
        memory_limit_in_bytes: limits.memory_limit_bytes.unwrap_or(0),
        oom_score_adj: limits.oom_score_adj.unwrap_or(0).into(),
        cpuset_cpus: limits.cpuset_cpus.clone(),
        cpuset_mems: limits.cpuset_mems.clone(),
        hugepage_limits: limits
            .hugepage_limits
            .iter()
            .map(|(size, bytes)| HugepageLimit { page_size: size.clone(), limit: *bytes })
            .collect(),
        unified: limits.unified.clone().into_iter().collect(),
        memory_swap_limit_in_bytes: limits.memory_swap_limit_bytes.unwrap_or(0),
    }
}

/// An image, the same by whatever name it was asked for.
pub(crate) fn image(image: &Image) -> cri::Image {
    let (uid, username) = match &image.user {
        ImageUser::None => (None, String::new()),
        ImageUser::Uid(uid) => (Some(Int64Value { value: *uid }), String::new()),
        ImageUser::Name(name) => (None, name.clone()),
    };
    cri::Image {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size_bytes,
        uid,
        username,
        spec: Some(ImageSpec {
            image: image.id.to_string(),
            annotations: image.annotations.clone().into_iter().collect(),
            ..ImageSpec::default()
        }),
        pinned: image.pinned,
    }
}
