//! A sandbox's configuration, checked before anything is done. Pure.

use std::collections::BTreeMap;

use crisp_proto::cri::{NamespaceMode, PodSandboxConfig};
use crisp_spec::validate_sysctls;
use crisp_sys::userns::IdMap;

use super::{metadata, namespaces};
use crate::error::{Doing as _, Error, Result};

/// Longest host name, bytes (`HOST_NAME_MAX` of Linux).
const HOSTNAME_BYTES_MAX: usize = 64;
/// Longest name, namespace or uid, bytes: names of Kubernetes objects are DNS subdomains.
const METADATA_BYTES_MAX: usize = 253;

/// What the request means.
#[derive(Debug)]
pub(crate) struct PodRequest {
    pub(crate) config: PodSandboxConfig,
    /// Checked: names of namespaced sysctls with slashes, and values.
    pub(crate) sysctls: Vec<(String, String)>,
    pub(crate) network: Scope,
    pub(crate) ipc: Scope,
    /// Whether containers may share a PID namespace, so that a PID 1 is needed.
    pub(crate) pid: PidMode,
    /// Of the pod's user namespace; `None` uses the host's.
    pub(crate) user: Option<IdMap>,
}

/// Whose namespace a pod uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// One of its own.
    Pod,
    /// The host's.
    Host,
}

/// The sandbox's PID mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PidMode {
    /// All containers share one namespace.
    Shared,
    /// Each has its own, or the host's.
    Apart,
}

/// Checks the request.
///
/// # Errors
/// [`Error::Invalid`] that names the field.
pub(crate) fn parse(config: Option<PodSandboxConfig>) -> Result<PodRequest> {
    let config = config.ok_or_else(|| Error::Invalid("config is missing".to_owned()))?;
    check_metadata(&config)?;
    check_hostname(&config.hostname)?;
    check_log_directory(&config.log_directory)?;
    if let Some(context) = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref()) {
        crate::cri::config::check_sandbox(context)?;
    }
    let options = namespaces(&config);
    let network = mode("network", options.network, &[NamespaceMode::Pod, NamespaceMode::Node])?;
    let ipc = mode("ipc", options.ipc, &[NamespaceMode::Pod, NamespaceMode::Node, NamespaceMode::Container])?;
    let pid = mode("pid", options.pid, &[NamespaceMode::Pod, NamespaceMode::Container, NamespaceMode::Node])?;
    check_userns(&config)?;
    let user = super::userns::ids(&config);
    refuse_host_namespaces(user.as_ref(), pid, ipc)?;
    let sysctls = sysctls(&config, network, ipc)?;
    let (network, ipc) = (scope(network), scope(ipc));
    let pid = if pid == NamespaceMode::Pod { PidMode::Shared } else { PidMode::Apart };
    Ok(PodRequest { config, sysctls, network, ipc, pid, user })
}

/// What the host's PID and IPC namespaces hold is the host's root's: nothing in a user namespace may mount it.
fn refuse_host_namespaces(user: Option<&IdMap>, pid: NamespaceMode, ipc: NamespaceMode) -> Result<()> {
    if user.is_some() && [pid, ipc].contains(&NamespaceMode::Node) {
        return Err(Error::Invalid(
            "a pod with a user namespace cannot use the host's PID or IPC namespace".to_owned(),
        ));
    }
    Ok(())
}

fn check_metadata(config: &PodSandboxConfig) -> Result<()> {
    if config.metadata.is_none() {
        return Err(Error::Invalid("config.metadata is missing".to_owned()));
    }
    let metadata = metadata(config);
    let fields = [("name", &metadata.name), ("namespace", &metadata.namespace), ("uid", &metadata.uid)];
    for (field, value) in fields {
        if value.is_empty() || value.len() > METADATA_BYTES_MAX {
            let length = value.len();
            return Err(Error::Invalid(format!(
                "config.metadata.{field} has {length} bytes; it must have 1 to {METADATA_BYTES_MAX}"
            )));
        }
        if value.chars().any(|c| c.is_control() || c == '/') {
            return Err(Error::Invalid(format!(
                "config.metadata.{field} {value:?} has a character that no name may have"
            )));
        }
    }
    Ok(())
}

fn check_hostname(hostname: &str) -> Result<()> {
    let fits = hostname.len() <= HOSTNAME_BYTES_MAX;
    let plain = hostname.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    if fits && plain {
        Ok(())
    } else {
        Err(Error::Invalid(format!(
            "config.hostname {hostname:?} is not a host name of at most {HOSTNAME_BYTES_MAX} bytes"
        )))
    }
}

fn check_log_directory(path: &str) -> Result<()> {
    let clean = path.is_empty() || (path.starts_with('/') && !path.split('/').any(|part| part == ".."));
    if clean && !path.contains('\0') {
        Ok(())
    } else {
        Err(Error::Invalid(format!("config.log_directory {path:?} is not an absolute path without `..`")))
    }
}

fn mode(field: &str, number: i32, allowed: &[NamespaceMode]) -> Result<NamespaceMode> {
    let mode = NamespaceMode::try_from(number).map_err(|_unknown| {
        Error::Invalid(format!("namespace_options.{field} {number} is no namespace mode"))
    })?;
    if allowed.contains(&mode) {
        Ok(mode)
    } else {
        Err(Error::Invalid(format!(
            "namespace_options.{field} of a sandbox cannot be {}",
            mode.as_str_name()
        )))
    }
}

fn scope(mode: NamespaceMode) -> Scope {
    if mode == NamespaceMode::Node { Scope::Host } else { Scope::Pod }
}

fn sysctls(
    config: &PodSandboxConfig,
    network: NamespaceMode,
    ipc: NamespaceMode,
) -> Result<Vec<(String, String)>> {
    let requested: BTreeMap<_, _> = config.linux.iter().flat_map(|linux| linux.sysctls.clone()).collect();
    let mode = |mode| {
        if mode == NamespaceMode::Node {
            crisp_spec::NamespaceMode::Node
        } else {
            crisp_spec::NamespaceMode::Pod
        }
    };
    let checked = validate_sysctls(&requested, mode(network), mode(ipc)).doing("check the sysctls")?;
    Ok(checked
        .iter()
        .map(|sysctl| (sysctl.path().display().to_string(), sysctl.value().to_owned()))
        .collect())
}

fn check_userns(config: &PodSandboxConfig) -> Result<()> {
    let Some(userns) = namespaces(config).userns_options else { return Ok(()) };
    match NamespaceMode::try_from(userns.mode) {
        Ok(NamespaceMode::Node) if userns.uids.is_empty() && userns.gids.is_empty() => Ok(()),
        Ok(NamespaceMode::Node) => Err(Error::Invalid("userns_options NODE takes no ID mappings".to_owned())),
        Ok(NamespaceMode::Pod) => check_userns_pod(&userns),
        Ok(other) => {
            Err(Error::Invalid(format!("userns_options of mode {} is not allowed", other.as_str_name())))
        }
        Err(_unknown) => {
            Err(Error::Invalid(format!("userns_options.mode {} is no namespace mode", userns.mode)))
        }
    }
}

fn check_userns_pod(userns: &crisp_proto::cri::UserNamespace) -> Result<()> {
    let ([uid], [gid]) = (userns.uids.as_slice(), userns.gids.as_slice()) else {
        return Err(Error::Invalid("userns_options needs exactly one uid and one gid mapping".to_owned()));
    };
    if uid.container_id != 0 || gid.container_id != 0 || uid.length == 0 || uid != gid {
        return Err(Error::Invalid(
            "userns_options needs equal uid and gid mappings that begin at container id 0".to_owned(),
        ));
    }
    // The highest number means "no id" to the kernel.
    if uid.host_id.checked_add(uid.length).is_none() {
        return Err(Error::Invalid("userns_options maps ids above the highest one".to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crisp_proto::cri::{
        LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceOption, PodSandboxMetadata,
        UserNamespace,
    };

    fn config() -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: "web".into(),
                namespace: "default".into(),
                uid: "u-1".into(),
                attempt: 0,
            }),
            ..PodSandboxConfig::default()
        }
    }

    fn with_options(options: NamespaceOption) -> PodSandboxConfig {
        let security_context = Some(LinuxSandboxSecurityContext {
            namespace_options: Some(options),
            ..LinuxSandboxSecurityContext::default()
        });
        let linux = Some(LinuxPodSandboxConfig { security_context, ..LinuxPodSandboxConfig::default() });
        PodSandboxConfig { linux, ..config() }
    }

    #[test]
    fn a_minimal_request_means_the_api_defaults() {
        let request = parse(Some(config())).unwrap();
        assert_eq!((request.network, request.ipc, request.pid), (Scope::Pod, Scope::Pod, PidMode::Shared));
    }

    #[test]
    fn what_is_missing_or_malformed_is_named() {
        let change = |change: fn(&mut PodSandboxConfig)| {
            let mut config = config();
            change(&mut config);
            Some(config)
        };
        let table = [
            (None, "config is missing"),
            (change(|c| c.metadata = None), "config.metadata is missing"),
            (change(|c| c.metadata.as_mut().unwrap().uid.clear()), "config.metadata.uid"),
            (change(|c| c.metadata.as_mut().unwrap().name = "a/b".into()), "config.metadata.name"),
            (change(|c| c.hostname = "a\nb".into()), "config.hostname"),
            (change(|c| c.log_directory = "/var/log/../etc".into()), "config.log_directory"),
            (Some(with_options(NamespaceOption { network: 1, ..Default::default() })), "network"),
            (Some(with_options(NamespaceOption { pid: 3, ..Default::default() })), "pid"),
            (Some(with_options(NamespaceOption { ipc: 17, ..Default::default() })), "ipc"),
        ];
        for (config, field) in table {
            let Err(Error::Invalid(message)) = parse(config) else { panic!("{field} was accepted") };
            assert!(message.contains(field), "{message} does not name {field}");
        }
    }

    #[test]
    fn what_is_said_of_a_process_must_make_sense() {
        use crisp_proto::cri::{Int64Value, SecurityProfile};
        type Change = fn(&mut LinuxSandboxSecurityContext);
        let with = |change: Change| {
            let mut config = with_options(NamespaceOption::default());
            change(config.linux.as_mut().unwrap().security_context.as_mut().unwrap());
            parse(Some(config))
        };
        let both: Change = |c| {
            c.run_as_user = Some(Int64Value { value: 5 });
            c.run_as_group = Some(Int64Value { value: 7 });
        };
        assert!(with(both).is_ok());
        let table: [(Change, &str); 5] = [
            (|c| c.run_as_group = Some(Int64Value { value: 7 }), "run_as_group"),
            (|c| c.run_as_user = Some(Int64Value { value: -1 }), "run_as_user"),
            (|c| c.supplemental_groups = vec![i64::MAX], "supplemental_groups"),
            (|c| c.supplemental_groups_policy = 9, "supplemental_groups_policy"),
            (|c| c.seccomp = Some(SecurityProfile { profile_type: 9, ..Default::default() }), "seccomp"),
        ];
        for (change, field) in table {
            let Err(Error::Invalid(message)) = with(change) else { panic!("{field} was accepted") };
            assert!(message.contains(field), "{message} does not name {field}");
        }
    }

    #[test]
    fn a_user_namespace_has_one_mapping_and_bad_ones_are_invalid() {
        let userns = |mode, mappings: usize| {
            let mapping = crisp_proto::cri::IdMapping { host_id: 65536, container_id: 0, length: 65536 };
            let mappings = vec![mapping; mappings];
            let options = Some(UserNamespace { mode, uids: mappings.clone(), gids: mappings });
            parse(Some(with_options(NamespaceOption { userns_options: options, ..Default::default() })))
        };
        assert_eq!(userns(0, 1).unwrap().user, Some(IdMap::shifted(65_536, 65_536)));
        for (mode, mappings) in [(0, 2), (0, 0), (1, 1), (3, 1), (2, 1)] {
            assert!(matches!(userns(mode, mappings), Err(Error::Invalid(_))), "{mode} {mappings}");
        }
        assert_eq!(userns(2, 0).unwrap().user, None);
    }

    #[test]
    fn a_user_namespace_keeps_to_what_it_owns() {
        let with = |host_id, pid: i32, ipc: i32| {
            let mapping = crisp_proto::cri::IdMapping { host_id, container_id: 0, length: 65536 };
            let userns_options = Some(UserNamespace { mode: 0, uids: vec![mapping], gids: vec![mapping] });
            parse(Some(with_options(NamespaceOption { pid, ipc, userns_options, ..Default::default() })))
        };
        assert!(with(65_536, 1, 0).is_ok());
        for (host_id, pid, ipc) in [(65_536, 2, 0), (65_536, 1, 2), (u32::MAX - 65_535, 1, 0)] {
            assert!(matches!(with(host_id, pid, ipc), Err(Error::Invalid(_))), "{host_id} {pid} {ipc}");
        }
    }
}
