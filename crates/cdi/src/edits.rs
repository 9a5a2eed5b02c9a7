//! Edits of a specification.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime as oci;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::file::{DeviceNode, Edits, Hook, HookName, IntelRdt, Mount, NetDevice};

/// What is wrong with an edit, in words.
type Problem = String;

/// Mode of a device node that neither the file nor the host gives one.
const NODE_MODE: u32 = 0o666;

/// Applies all edits.
///
/// # Errors
/// The first that cannot be; the specification may have changed then.
pub(crate) fn apply(spec: &mut oci::Spec, edits: &Edits) -> Result<(), Problem> {
    environment(spec, &edits.env)?;
    groups(spec, &edits.additional_gids)?;
    mounts(spec, &edits.mounts)?;
    hooks(spec, &edits.hooks)?;
    let owner = spec.process().as_ref().map(|process| (process.user().uid(), process.user().gid()));
    let linux = spec.linux_mut().get_or_insert_default();
    for node in &edits.device_nodes {
        device(linux, node, owner.unwrap_or_default())?;
    }
    net_devices(linux, &edits.net_devices)?;
    edits.intel_rdt.as_ref().map_or(Ok(()), |wanted| rdt(linux, wanted))
}

/// A value of the specification, from its JSON form. `what` is for the message.
fn parse<T: DeserializeOwned>(what: &str, value: Value) -> Result<T, Problem> {
    serde_json::from_value(value).map_err(|error| format!("{what}: {error}"))
}

fn absolute(what: &str, path: &str) -> Result<PathBuf, Problem> {
    let path = Path::new(path);
    match path.is_absolute() && !path.components().any(|part| part == Component::ParentDir) {
        true => Ok(path.to_owned()),
        false => Err(format!("{what} {path:?} is not an absolute path")),
    }
}

fn process(spec: &mut oci::Spec) -> Result<&mut oci::Process, Problem> {
    spec.process_mut().as_mut().ok_or_else(|| "the specification has no process".to_owned())
}

fn environment(spec: &mut oci::Spec, more: &[String]) -> Result<(), Problem> {
    if more.is_empty() {
        return Ok(());
    }
    let process = process(spec)?;
    let mut env = process.env().clone().unwrap_or_default();
    for variable in more {
        let name = variable.split_once('=').map(|(name, _)| name).filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| format!("environment {variable:?} is not NAME=value"))?;
        env.retain(|known| known.split('=').next() != Some(name));
        env.push(variable.clone());
    }
    process.set_env(Some(env));
    Ok(())
}

/// 0 is no group that anybody needs to be given.
fn groups(spec: &mut oci::Spec, more: &[u32]) -> Result<(), Problem> {
    if more.is_empty() {
        return Ok(());
    }
    let process = process(spec)?;
    let mut user = process.user().clone();
    let mut groups = user.additional_gids().clone().unwrap_or_default();
    for gid in more.iter().filter(|gid| **gid != 0) {
        if !groups.contains(gid) {
            groups.push(*gid);
        }
    }
    user.set_additional_gids(Some(groups));
    process.set_user(user);
    Ok(())
}

/// A mount goes before those below it, so that it hides none of them; one at the same place is replaced.
fn mounts(spec: &mut oci::Spec, more: &[Mount]) -> Result<(), Problem> {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for mount in more {
        let at = absolute("mount", &mount.container_path)?;
        let mut options = mount.options.clone();
        let typ = mount.r#type.clone().filter(|typ| !typ.is_empty());
        if typ.is_none() && !options.iter().any(|option| option == "bind" || option == "rbind") {
            options.push("rbind".to_owned());
        }
        let typ = typ.unwrap_or_else(|| "bind".to_owned());
        let made = parse(
            "mount",
            json!({ "destination": at, "source": mount.host_path, "type": typ, "options": options }),
        )?;
        mounts.retain(|known| *known.destination() != at);
        let before = mounts.iter().position(|known| known.destination().starts_with(&at));
        mounts.insert(before.unwrap_or(mounts.len()), made);
    }
    spec.set_mounts(Some(mounts));
    Ok(())
}

fn hooks(spec: &mut oci::Spec, more: &[Hook]) -> Result<(), Problem> {
    for hook in more {
        let path = absolute("hook", &hook.path)?;
        let list = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
        let made: oci::Hook = parse(
            "hook",
            json!({ "path": path, "args": list(&hook.args), "env": list(&hook.env), "timeout": hook.timeout }),
        )?;
        let hooks = spec.hooks_mut().get_or_insert_default();
        let with = |known: &Option<Vec<oci::Hook>>| {
            let known = known.iter().flatten().cloned();
            Some(known.chain([made]).collect::<Vec<_>>())
        };
        match hook.hook_name {
            HookName::Prestart => hooks.set_prestart(with(hooks.prestart())),
            HookName::CreateRuntime => hooks.set_create_runtime(with(hooks.create_runtime())),
            HookName::CreateContainer => hooks.set_create_container(with(hooks.create_container())),
            HookName::StartContainer => hooks.set_start_container(with(hooks.start_container())),
            HookName::Poststart => hooks.set_poststart(with(hooks.poststart())),
            HookName::Poststop => hooks.set_poststop(with(hooks.poststop())),
        };
    }
    Ok(())
}

/// A node, and the right to use it. Without an owner in the file it is the process's, as the process must be able to open it.
fn device(linux: &mut oci::Linux, node: &DeviceNode, (uid, gid): (u32, u32)) -> Result<(), Problem> {
    let path = absolute("device", &node.path)?;
    let facts = facts(node)?;
    let made: oci::LinuxDevice = parse(
        &format!("device {}", node.path),
        json!({
            "path": path, "type": facts.kind, "major": facts.major, "minor": facts.minor,
            "fileMode": node.file_mode.or(facts.mode).unwrap_or(NODE_MODE),
            "uid": node.uid.or((uid != 0).then_some(uid)),
            "gid": node.gid.or((gid != 0).then_some(gid)),
        }),
    )?;
    let mut devices = linux.devices().clone().unwrap_or_default();
    devices.retain(|known| *known.path() != path);
    devices.push(made);
    linux.set_devices(Some(devices));
    if facts.kind != 'p' {
        allow(linux, &facts, node.permissions.as_deref())?;
    }
    Ok(())
}

fn allow(linux: &mut oci::Linux, facts: &Facts, permissions: Option<&str>) -> Result<(), Problem> {
    let access = permissions.filter(|access| !access.is_empty()).unwrap_or("rwm");
    if access.chars().any(|c| !"rwm".contains(c)) {
        return Err(format!("permissions {access:?} are not of rwm"));
    }
    let rule = json!({
        "allow": true, "type": facts.kind, "major": facts.major, "minor": facts.minor, "access": access,
    });
    let mut limits = linux.resources().clone().unwrap_or_default();
    let mut rules = limits.devices().clone().unwrap_or_default();
    rules.push(parse("device rule", rule)?);
    limits.set_devices(Some(rules));
    linux.set_resources(Some(limits));
    Ok(())
}

/// What a node is.
struct Facts {
    /// `b`, `c`, `u` or `p`.
    kind: char,
    major: i64,
    minor: i64,
    mode: Option<u32>,
}

/// What the file says of a node, completed by the host's.
fn facts(node: &DeviceNode) -> Result<Facts, Problem> {
    let said = node.r#type.as_deref().filter(|kind| !kind.is_empty());
    let said = said.map(|kind| match kind {
        "b" | "c" | "u" | "p" => Ok(kind.chars().next().unwrap_or('c')),
        other => Err(format!("device type {other:?} is none of b, c, u, p")),
    });
    match (said.transpose()?, node.major) {
        (Some('p'), _) => Ok(Facts { kind: 'p', major: 0, minor: 0, mode: None }),
        (Some(kind), Some(major)) => Ok(Facts { kind, major, minor: node.minor.unwrap_or(0), mode: None }),
        (said, _) => of_host(node, said),
    }
}

fn of_host(node: &DeviceNode, said: Option<char>) -> Result<Facts, Problem> {
    let path = node.host_path.as_deref().filter(|path| !path.is_empty()).unwrap_or(&node.path);
    let metadata = std::fs::metadata(path).map_err(|error| format!("device {path}: {error}"))?;
    let file_type = metadata.file_type();
    let kind = if file_type.is_block_device() {
        'b'
    } else if file_type.is_char_device() {
        'c'
    } else if file_type.is_fifo() {
        'p'
    } else {
        return Err(format!("{path} is not a device"));
    };
    if said.is_some_and(|said| said != kind && !(said == 'u' && kind == 'c')) {
        return Err(format!("{path} is a device of another type"));
    }
    let number = metadata.rdev();
    Ok(Facts {
        kind,
        major: node.major.unwrap_or_else(|| rustix::fs::major(number).into()),
        minor: node.minor.unwrap_or_else(|| rustix::fs::minor(number).into()),
        mode: Some(metadata.mode() & 0o777),
    })
}

fn net_devices(linux: &mut oci::Linux, more: &[NetDevice]) -> Result<(), Problem> {
    if more.is_empty() {
        return Ok(());
    }
    let mut devices = linux.net_devices().clone().unwrap_or_default();
    for device in more {
        let made = parse("network device", json!({ "name": device.name }))?;
        devices.insert(device.host_interface_name.clone(), made);
    }
    linux.set_net_devices(Some(devices));
    Ok(())
}

fn rdt(linux: &mut oci::Linux, wanted: &IntelRdt) -> Result<(), Problem> {
    let value = serde_json::to_value(wanted).map_err(|error| error.to_string())?;
    linux.set_intel_rdt(Some(parse("intelRdt", value)?));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> oci::Spec {
        let mut spec = oci::Spec::default();
        spec.set_mounts(None).set_linux(Some(oci::Linux::default()));
        let mut process = oci::Process::default();
        let mut user = oci::User::default();
        user.set_uid(1000).set_gid(0).set_additional_gids(Some(vec![7]));
        process.set_env(Some(vec!["A=1".to_owned(), "AB=2".to_owned()])).set_user(user);
        spec.set_process(Some(process));
        spec
    }

    fn edits(json: Value) -> Edits {
        serde_json::from_value(json).unwrap()
    }

    fn applied(json: Value) -> oci::Spec {
        let mut spec = spec();
        apply(&mut spec, &edits(json)).unwrap();
        spec
    }

    #[test]
    fn environment_and_groups_are_added() {
        let spec = applied(json!({ "env": ["A=x=y", "C=3"], "additionalGids": [7, 9, 0] }));
        let process = spec.process().clone().unwrap();
        assert_eq!(*process.env(), Some(vec!["AB=2".to_owned(), "A=x=y".to_owned(), "C=3".to_owned()]));
        assert_eq!(*process.user().additional_gids(), Some(vec![7, 9]));
    }

    #[test]
    fn a_node_is_completed_from_the_host_and_may_be_used() {
        let spec = applied(json!({ "deviceNodes": [
            { "path": "/dev/mine", "hostPath": "/dev/zero", "permissions": "rw" },
            { "path": "/dev/said", "type": "b", "major": 8, "minor": 1, "fileMode": 384, "uid": 5 },
        ] }));
        let linux = spec.linux().clone().unwrap();
        let devices = linux.devices().clone().unwrap();
        let mine = (devices[0].typ(), devices[0].major(), devices[0].minor(), devices[0].uid());
        assert_eq!(mine, (oci::LinuxDeviceType::C, 1, 5, Some(1000)));
        assert_eq!(
            (devices[1].file_mode(), devices[1].uid(), devices[1].gid()),
            (Some(0o600), Some(5), None)
        );
        let rules = linux.resources().clone().unwrap().devices().clone().unwrap();
        let rules: Vec<_> = rules.iter().map(|rule| (rule.major(), rule.access().clone().unwrap())).collect();
        assert_eq!(rules, [(Some(1), "rw".to_owned()), (Some(8), "rwm".to_owned())]);
    }

    #[test]
    fn mounts_stand_before_what_they_would_hide() {
        let spec = applied(json!({ "mounts": [
            { "hostPath": "/a", "containerPath": "/opt/lib/sub", "options": ["ro", "bind"] },
            { "hostPath": "/b", "containerPath": "/opt/lib" },
            { "hostPath": "/c", "containerPath": "/opt/lib/sub" },
        ] }));
        let mounts = spec.mounts().clone().unwrap();
        let at: Vec<_> = mounts.iter().map(|mount| mount.destination().display().to_string()).collect();
        assert_eq!(at, ["/opt/lib", "/opt/lib/sub"]);
        assert_eq!(mounts[1].source().as_deref(), Some(Path::new("/c")));
        assert_eq!(*mounts[0].options(), Some(vec!["rbind".to_owned()]));
    }

    #[test]
    fn hooks_interfaces_and_rdt_arrive() {
        let spec = applied(json!({
            "hooks": [{ "hookName": "createContainer", "path": "/bin/h", "args": ["h"], "timeout": 3 }],
            "netDevices": [{ "hostInterfaceName": "eth7", "name": "fast0" }],
            "intelRdt": { "closID": "gold" },
        }));
        let hooks = spec.hooks().clone().unwrap().create_container().clone().unwrap();
        assert_eq!((hooks[0].path().to_str(), hooks[0].timeout()), (Some("/bin/h"), Some(3)));
        let linux = spec.linux().clone().unwrap();
        assert_eq!(*linux.net_devices().clone().unwrap()["eth7"].name(), Some("fast0".to_owned()));
        assert_eq!(*linux.intel_rdt().clone().unwrap().clos_id(), Some("gold".to_owned()));
    }

    #[test]
    fn nonsense_is_refused() {
        let bad = [
            json!({ "env": ["=x"] }),
            json!({ "deviceNodes": [{ "path": "dev/x", "hostPath": "/dev/null" }] }),
            json!({ "deviceNodes": [{ "path": "/dev/not-there-at-all" }] }),
            json!({ "deviceNodes": [{ "path": "/dev/x", "hostPath": "/etc/passwd" }] }),
            json!({ "deviceNodes": [{ "path": "/dev/null", "type": "b" }] }),
            json!({ "deviceNodes": [{ "path": "/dev/null", "type": "x", "major": 1 }] }),
            json!({ "deviceNodes": [{ "path": "/dev/null", "permissions": "rx" }] }),
            json!({ "mounts": [{ "hostPath": "/a", "containerPath": "/a/../b" }] }),
            json!({ "hooks": [{ "hookName": "poststop", "path": "h" }] }),
        ];
        for json in bad {
            assert!(apply(&mut spec(), &edits(json.clone())).is_err(), "{json}");
        }
    }
}
