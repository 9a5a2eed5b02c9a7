//! The specification as a whole, and its Linux part.

use std::collections::HashMap;

use crisp_sys::userns::IdRange;
use oci_spec::runtime::{
    Linux, LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespace, LinuxNamespaceType, LinuxResources, Root,
    Spec,
};

use crate::error::SpecError;
use crate::input::{
    CgroupVersion, ContainerInput, Namespace, Privilege, RootAccess, SecurityRequest, Warning,
};
use crate::{capability, devices, mounts, process, resources};

/// Nothing newer than this is used, so that runtimes of any age take it.
const OCI_VERSION: &str = "1.0.2";
/// Masked or read-only paths of one container, and bytes of one of them.
const PATHS_MAX: usize = 1024;
const PATH_BYTES_MAX: usize = 4095;
/// An annotation that sets properties of systemd units: no list lets it through (CVE-2024-3154).
const SYSTEMD_PROPERTY_PREFIX: &str = "org.systemd.property.";

/// Makes the specification.
///
/// # Errors
/// Whatever in the input cannot be put into one; most are of kind `Invalid`. See the variants of [`SpecError`].
pub fn build(input: &ContainerInput) -> Result<Spec, SpecError> {
    let mut root = Root::default();
    root.set_path(input.rootfs.clone())
        .set_readonly(Some(input.config.security.root == RootAccess::ReadOnly));
    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.into())
        .set_root(Some(root))
        .set_process(Some(process::build(input)?))
        // The pod's UTS namespace has its name already; a namespace of its own gets it.
        .set_hostname(
            (input.sandbox.namespaces.uts == Namespace::New).then(|| input.sandbox.hostname.clone()),
        )
        .set_mounts(Some(mounts::list(input)?))
        .set_annotations(annotations(input))
        .set_linux(Some(linux(input)?));
    Ok(spec)
}

/// What the request asks for and the specification leaves out.
#[must_use]
pub fn warnings(input: &ContainerInput) -> Vec<Warning> {
    let mut list = Vec::new();
    let skipped = capability::skipped(&input.config.security, &input.host);
    if !skipped.is_empty() {
        list.push(Warning::CapabilitiesSkipped(skipped));
    }
    let sizes = resources::skipped_hugepages(&input.config.resources, &input.host);
    if !sizes.is_empty() {
        list.push(Warning::HugepageSizesSkipped(sizes));
    }
    let set = resources::oom_score_adj(&input.config.resources, &input.host).ok().flatten();
    if let (Some(requested), Some(set)) = (input.config.resources.oom_score_adj, set)
        && requested != set
    {
        list.push(Warning::OomScoreAdjRaised { requested, set });
    }
    list
}

fn annotations(input: &ContainerInput) -> Option<HashMap<String, String>> {
    let allowed =
        |key: &String| input.allowed_annotations.contains(key) && !key.starts_with(SYSTEMD_PROPERTY_PREFIX);
    let kept: HashMap<String, String> = input
        .config
        .annotations
        .iter()
        .filter(|(key, _)| allowed(key))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    (!kept.is_empty()).then_some(kept)
}

fn linux(input: &ContainerInput) -> Result<Linux, SpecError> {
    let security = &input.config.security;
    let (masked, readonly) = guarded_paths(security)?;
    let mut linux = Linux::default();
    linux
        .set_resources(Some(limits(input)?))
        .set_cgroups_path(Some(input.cgroups_path.clone()))
        .set_namespaces(Some(namespaces(input)))
        // Beside the namespace's path: programs take the owner of what they make from here.
        .set_uid_mappings(input.sandbox.user.as_ref().and_then(|user| mappings(&user.ids.uids)))
        .set_gid_mappings(input.sandbox.user.as_ref().and_then(|user| mappings(&user.ids.gids)))
        .set_devices(devices::nodes(input))
        .set_rootfs_propagation(mounts::root_propagation(input))
        .set_masked_paths(masked)
        .set_readonly_paths(readonly)
        .set_mount_label(input.labels.mount.clone())
        .set_seccomp(input.seccomp.clone().filter(|_| security.privilege == Privilege::Ordinary));
    Ok(linux)
}

fn limits(input: &ContainerInput) -> Result<LinuxResources, SpecError> {
    let mut oci = resources::to_oci(&input.config.resources, &input.host)?;
    oci.set_devices(Some(devices::rules(input)));
    Ok(oci)
}

fn namespaces(input: &ContainerInput) -> Vec<LinuxNamespace> {
    let own = &input.sandbox.namespaces;
    let private = input.config.security.privilege == Privilege::Ordinary;
    // On v1 a private view of a dozen hierarchies buys nothing; a privileged container manages the host's.
    let cgroup =
        if input.host.cgroup == CgroupVersion::V2 && private { Namespace::New } else { Namespace::Host };
    let user = own_user(input);
    let all = [
        (LinuxNamespaceType::User, &user),
        (LinuxNamespaceType::Mount, &Namespace::New),
        (LinuxNamespaceType::Network, &own.network),
        (LinuxNamespaceType::Ipc, &own.ipc),
        (LinuxNamespaceType::Uts, &own.uts),
        (LinuxNamespaceType::Pid, &own.pid),
        (LinuxNamespaceType::Cgroup, &cgroup),
    ];
    all.into_iter().filter_map(|(kind, from)| namespace(kind, from)).collect()
}

fn own_user(input: &ContainerInput) -> Namespace {
    input.sandbox.user.as_ref().map_or(Namespace::Host, |user| Namespace::Join(user.path.clone()))
}

pub(crate) fn mappings(ranges: &[IdRange]) -> Option<Vec<LinuxIdMapping>> {
    let mapping = |range: &IdRange| {
        let builder = LinuxIdMappingBuilder::default().container_id(range.inside).host_id(range.outside);
        // All members are given, so it builds.
        builder.size(range.length).build().ok()
    };
    (!ranges.is_empty()).then(|| ranges.iter().filter_map(mapping).collect())
}

fn namespace(kind: LinuxNamespaceType, from: &Namespace) -> Option<LinuxNamespace> {
    let path = match from {
        Namespace::Host => return None,
        Namespace::New => None,
        Namespace::Join(path) => Some(path.clone()),
    };
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(kind).set_path(path);
    Some(namespace)
}

type Paths = Option<Vec<String>>;

/// Masked and read-only paths; a privileged container has neither.
fn guarded_paths(security: &SecurityRequest) -> Result<(Paths, Paths), SpecError> {
    if security.privilege == Privilege::Privileged {
        return Ok((None, None));
    }
    let checked = |field: &'static str, paths: &[String]| {
        if paths.len() > PATHS_MAX {
            return Err(SpecError::TooMany { what: field, max: PATHS_MAX });
        }
        let bad =
            |path: &&String| !path.starts_with('/') || path.len() > PATH_BYTES_MAX || path.contains('\0');
        match paths.iter().find(bad) {
            Some(path) => Err(SpecError::field(field, path, "not an absolute path")),
            None => Ok((!paths.is_empty()).then(|| paths.to_vec())),
        }
    };
    Ok((
        checked("masked_paths", &security.masked_paths)?,
        checked("readonly_paths", &security.readonly_paths)?,
    ))
}

#[cfg(test)]
#[path = "golden_tests.rs"]
pub(crate) mod tests;
