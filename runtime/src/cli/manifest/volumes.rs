//! Volumes and their mounts.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use crisp_proto::cri;

use super::ManifestError;
use super::plan::{NAME_BYTES_MAX, check_name};
use super::types::{
    Container, EmptyDir, HostPathKind, PodSecurityContext, Propagation, RecursiveReadOnly, Spec, Volume,
    VolumeMount,
};

/// A volume to be prepared before the pod starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlannedVolume {
    pub(crate) name: String,
    /// Where it is on this machine, absolute.
    pub(crate) path: PathBuf,
    pub(crate) kind: VolumeKind,
    /// Directories below it that mounts ask for; relative, without `..`.
    pub(crate) sub_paths: BTreeSet<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum VolumeKind {
    /// The user's own path: checked, made where its kind says so, never removed.
    Host(HostPathKind),
    /// A fresh directory, removed with the pod; `group` owns it.
    Directory { group: Option<i64> },
    /// A fresh tmpfs, removed with the pod. `bytes_max` 0 is the kernel's default (half of the memory).
    Memory { bytes_max: u64, group: Option<i64> },
}

pub(super) fn plan_volumes(
    spec: &Spec,
    data: &Path,
    security: &PodSecurityContext,
    warnings: &mut Vec<String>,
) -> Result<Vec<PlannedVolume>, ManifestError> {
    let mut volumes: Vec<PlannedVolume> = Vec::new();
    for volume in &spec.volumes {
        let field = format!("spec.volumes[{}]", volume.name);
        check_name("volume name", &volume.name, NAME_BYTES_MAX)?;
        if volumes.iter().any(|known| known.name == volume.name) {
            return Err(ManifestError::field(field, "the name is used twice"));
        }
        let (path, kind) = match (&volume.host_path, &volume.empty_dir, other_kind(volume)) {
            (Some(host), None, None) => {
                let path = PathBuf::from(&host.path);
                if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
                    return Err(ManifestError::field(field, "hostPath.path is absolute and has no \"..\""));
                }
                (path, VolumeKind::Host(host.kind.unwrap_or(HostPathKind::Unchecked)))
            }
            (None, Some(empty), None) => {
                (data.join("volumes").join(&volume.name), empty_dir(empty, security, &field, warnings)?)
            }
            (None, None, Some(kind)) => {
                return Err(ManifestError::field(
                    field,
                    format!("a {kind} volume needs a cluster; it is not supported"),
                ));
            }
            // Kubernetes makes a volume without a kind an emptyDir.
            (None, None, None) => {
                (data.join("volumes").join(&volume.name), VolumeKind::Directory { group: security.fs_group })
            }
            _ => return Err(ManifestError::field(field, "has more than one kind")),
        };
        volumes.push(PlannedVolume { name: volume.name.clone(), path, kind, sub_paths: BTreeSet::new() });
    }
    Ok(volumes)
}

fn other_kind(volume: &Volume) -> Option<&'static str> {
    let kinds = [
        ("configMap", volume.config_map.is_some()),
        ("csi", volume.csi.is_some()),
        ("downwardAPI", volume.downward_api.is_some()),
        ("ephemeral", volume.ephemeral.is_some()),
        ("image", volume.image.is_some()),
        ("iscsi", volume.iscsi.is_some()),
        ("nfs", volume.nfs.is_some()),
        ("persistentVolumeClaim", volume.persistent_volume_claim.is_some()),
        ("projected", volume.projected.is_some()),
        ("secret", volume.secret.is_some()),
    ];
    kinds.iter().find(|(_, is_set)| *is_set).map(|(kind, _)| *kind)
}

fn empty_dir(
    empty: &EmptyDir,
    security: &PodSecurityContext,
    field: &str,
    warnings: &mut Vec<String>,
) -> Result<VolumeKind, ManifestError> {
    let group = security.fs_group;
    let bytes_max = empty.size_limit.map_or(0, |limit| limit.units().unsigned_abs());
    match empty.medium.as_deref() {
        None | Some("") => {
            if bytes_max > 0 {
                warnings.push(format!("{field}.emptyDir.sizeLimit is enforced for medium Memory only"));
            }
            Ok(VolumeKind::Directory { group })
        }
        Some("Memory") => Ok(VolumeKind::Memory { bytes_max, group }),
        Some(other) => Err(ManifestError::field(field, format!("medium {other:?} is not supported"))),
    }
}

/// Notes for each volume which directories below it are mounted.
pub(super) fn collect_sub_paths(spec: &Spec, volumes: &mut [PlannedVolume]) -> Result<(), ManifestError> {
    for container in spec.init_containers.iter().chain(&spec.containers) {
        for mount in &container.volume_mounts {
            let field = format!("spec.containers[{}].volumeMounts", container.name);
            if let Some(sub_path) = sub_path(mount, &field)?
                && let Some(volume) = volumes.iter_mut().find(|volume| volume.name == mount.name)
            {
                volume.sub_paths.insert(sub_path);
            }
        }
    }
    Ok(())
}

fn sub_path(mount: &VolumeMount, field: &str) -> Result<Option<PathBuf>, ManifestError> {
    if mount.sub_path_expr.is_some() {
        return Err(ManifestError::field(format!("{field}.subPathExpr"), "is not supported"));
    }
    let Some(text) = mount.sub_path.as_deref().filter(|text| !text.is_empty()) else { return Ok(None) };
    let path = PathBuf::from(text);
    if path.components().any(|part| !matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(ManifestError::field(format!("{field}.subPath"), "is relative and has no \"..\""));
    }
    Ok(Some(path))
}

pub(super) fn plan_mounts(
    container: &Container,
    volumes: &[PlannedVolume],
    field: &str,
) -> Result<Vec<cri::Mount>, ManifestError> {
    let field = format!("{field}.volumeMounts");
    let mut mounts: Vec<cri::Mount> = Vec::new();
    for mount in &container.volume_mounts {
        let planned = plan_mount(mount, volumes, &field)?;
        if mounts.iter().any(|known| known.container_path == planned.container_path) {
            return Err(ManifestError::field(field, format!("two volumes at {}", planned.container_path)));
        }
        mounts.push(planned);
    }
    Ok(mounts)
}

fn plan_mount(
    mount: &VolumeMount,
    volumes: &[PlannedVolume],
    field: &str,
) -> Result<cri::Mount, ManifestError> {
    let Some(volume) = volumes.iter().find(|volume| volume.name == mount.name) else {
        return Err(ManifestError::field(field, format!("spec.volumes has no {:?}", mount.name)));
    };
    if !mount.mount_path.starts_with('/') || mount.mount_path.contains(':') {
        let problem = format!("mountPath {:?} is not an absolute path without ':'", mount.mount_path);
        return Err(ManifestError::field(field, problem));
    }
    let recursive = mount.recursive_read_only.unwrap_or(RecursiveReadOnly::Disabled);
    if recursive != RecursiveReadOnly::Disabled && !mount.read_only {
        return Err(ManifestError::field(field, "recursiveReadOnly needs readOnly: true"));
    }
    let host_path = sub_path(mount, field)?.map_or(volume.path.clone(), |below| volume.path.join(below));
    Ok(cri::Mount {
        container_path: mount.mount_path.clone(),
        host_path: host_path.to_string_lossy().into_owned(),
        readonly: mount.read_only,
        propagation: match mount.mount_propagation.unwrap_or(Propagation::None) {
            Propagation::None => cri::MountPropagation::PropagationPrivate,
            Propagation::HostToContainer => cri::MountPropagation::PropagationHostToContainer,
            Propagation::Bidirectional => cri::MountPropagation::PropagationBidirectional,
        }
        .into(),
        // IfPossible asks nothing that an older kernel could not give.
        recursive_read_only: recursive == RecursiveReadOnly::Enabled,
        ..Default::default()
    })
}
