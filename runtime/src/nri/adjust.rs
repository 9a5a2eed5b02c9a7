//! A specification as the plugins want it. Pure.
//!
//! Limits are not here ([`super::resources`]): they go through the record. Removals come before what is set anew.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crisp_nri::api::{
    ContainerAdjustment, Hook, Hooks, KeyValue, LinuxContainerAdjustment, LinuxDevice, LinuxDeviceCgroup,
    LinuxIoPriority, LinuxMemoryPolicy, LinuxNamespace, LinuxNetDevice, LinuxRdt, LinuxScheduler,
    LinuxSchedulerFlag, LinuxSeccomp, Mount, MpolFlag, MpolMode, PosixRlimit,
};
use crisp_nri::removal;
use oci_spec::runtime as oci;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// What is wrong with an adjustment, in words.
type Problem = String;

/// Applies everything but limits and CDI devices.
///
/// # Errors
/// The first thing that cannot be done.
pub(super) fn apply(spec: &mut oci::Spec, adjust: &ContainerAdjustment) -> Result<(), Problem> {
    annotations(spec, adjust);
    mounts(spec, &adjust.mounts)?;
    if let Some(more) = &adjust.hooks {
        add_hooks(spec, more)?;
    }
    let process = spec.process_mut().as_mut().ok_or("the specification has no process")?;
    environment(process, &adjust.env)?;
    if !adjust.args.is_empty() {
        process.set_args(Some(adjust.args.clone()));
    }
    rlimits(process, &adjust.rlimits)?;
    let Some(linux) = &adjust.linux else { return Ok(()) };
    of_process(process, linux)?;
    let target = spec.linux_mut().as_mut().ok_or("the specification has no linux section")?;
    of_linux(target, linux)
}

/// A value of the specification, from its JSON form. `what` is for the message.
fn parse<T: DeserializeOwned>(what: &str, value: Value) -> Result<T, Problem> {
    serde_json::from_value(value).map_err(|error| format!("{what}: {error}"))
}

/// `None` for what protobuf says when there is nothing.
fn filled(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn absolute(what: &str, path: &str) -> Result<PathBuf, Problem> {
    let path = Path::new(path);
    let up = path.components().any(|part| part == std::path::Component::ParentDir);
    match path.is_absolute() && !up {
        true => Ok(path.to_owned()),
        false => Err(format!("{what} {path:?} is not an absolute path")),
    }
}

fn annotations(spec: &mut oci::Spec, adjust: &ContainerAdjustment) {
    if adjust.annotations.is_empty() {
        return;
    }
    let mut annotations = spec.annotations().clone().unwrap_or_default();
    edit_map(&mut annotations, &adjust.annotations, |value| Ok(value.clone())).unwrap_or_default();
    spec.set_annotations((!annotations.is_empty()).then_some(annotations));
}

/// Removes the marked keys, then sets the others.
fn edit_map<A, T>(
    onto: &mut HashMap<String, T>,
    changes: &std::collections::BTreeMap<String, A>,
    convert: impl Fn(&A) -> Result<T, Problem>,
) -> Result<(), Problem> {
    for removed in changes.keys().filter_map(|key| removal(key)) {
        onto.remove(removed);
    }
    for (key, value) in changes.iter().filter(|(key, _)| removal(key).is_none()) {
        onto.insert(key.clone(), convert(value)?);
    }
    Ok(())
}

/// A mount goes before those below it, so that it hides none of them; one at the same place is replaced.
fn mounts(spec: &mut oci::Spec, changes: &[Mount]) -> Result<(), Problem> {
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for change in changes {
        let at = removal(&change.destination).unwrap_or(&change.destination);
        let at = absolute("mount", at)?;
        mounts.retain(|mount| *mount.destination() != at);
        if removal(&change.destination).is_some() {
            continue;
        }
        let mount = parse(
            "mount",
            json!({ "destination": at, "type": filled(&change.r#type), "source": filled(&change.source), "options": change.options }),
        )?;
        let before = mounts.iter().position(|mount| mount.destination().starts_with(&at));
        mounts.insert(before.unwrap_or(mounts.len()), mount);
    }
    spec.set_mounts(Some(mounts));
    Ok(())
}

fn add_hooks(spec: &mut oci::Spec, more: &Hooks) -> Result<(), Problem> {
    let mut hooks = spec.hooks().clone().unwrap_or_default();
    let list = |known: &Option<Vec<oci::Hook>>, more: &[Hook]| -> Result<Option<Vec<oci::Hook>>, Problem> {
        let mut all = known.clone().unwrap_or_default();
        all.extend(more.iter().map(hook).collect::<Result<Vec<_>, _>>()?);
        Ok((!all.is_empty()).then_some(all))
    };
    let prestart = list(hooks.prestart(), &more.prestart)?;
    let create_runtime = list(hooks.create_runtime(), &more.create_runtime)?;
    let create_container = list(hooks.create_container(), &more.create_container)?;
    let start_container = list(hooks.start_container(), &more.start_container)?;
    let poststart = list(hooks.poststart(), &more.poststart)?;
    let poststop = list(hooks.poststop(), &more.poststop)?;
    hooks
        .set_prestart(prestart)
        .set_create_runtime(create_runtime)
        .set_create_container(create_container)
        .set_start_container(start_container)
        .set_poststart(poststart)
        .set_poststop(poststop);
    spec.set_hooks(Some(hooks));
    Ok(())
}

fn hook(hook: &Hook) -> Result<oci::Hook, Problem> {
    let path = absolute("hook", &hook.path)?;
    let timeout = hook.timeout.map(|timeout| timeout.value);
    let args = (!hook.args.is_empty()).then_some(&hook.args);
    let env = (!hook.env.is_empty()).then_some(&hook.env);
    parse("hook", json!({ "path": path, "args": args, "env": env, "timeout": timeout }))
}

fn environment(process: &mut oci::Process, changes: &[KeyValue]) -> Result<(), Problem> {
    if changes.is_empty() {
        return Ok(());
    }
    let mut env = process.env().clone().unwrap_or_default();
    for KeyValue { key, value } in changes {
        let name = removal(key).unwrap_or(key);
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(format!("environment variable {name:?} cannot be"));
        }
        env.retain(|variable| variable.split('=').next() != Some(name));
        if removal(key).is_none() {
            env.push(format!("{key}={value}"));
        }
    }
    process.set_env(Some(env));
    Ok(())
}

fn rlimits(process: &mut oci::Process, changes: &[PosixRlimit]) -> Result<(), Problem> {
    let mut limits = process.rlimits().clone().unwrap_or_default();
    for change in changes {
        let limit: oci::PosixRlimit = parse(
            &format!("rlimit {}", change.r#type),
            json!({ "type": change.r#type, "hard": change.hard, "soft": change.soft }),
        )?;
        limits.retain(|known| known.typ() != limit.typ());
        limits.push(limit);
    }
    process.set_rlimits(Some(limits));
    Ok(())
}

fn of_process(process: &mut oci::Process, adjust: &LinuxContainerAdjustment) -> Result<(), Problem> {
    if let Some(score) = adjust.oom_score_adj {
        let score = i32::try_from(score.value).ok().filter(|score| (-1000..=1000).contains(score));
        process.set_oom_score_adj(Some(score.ok_or("oom_score_adj is outside of -1000 to 1000")?));
    }
    if let Some(priority) = &adjust.io_priority {
        process.set_io_priority(Some(io_priority(priority)?));
    }
    if let Some(wanted) = &adjust.scheduler {
        process.set_scheduler(Some(scheduler(wanted)?));
    }
    Ok(())
}

fn io_priority(priority: &LinuxIoPriority) -> Result<oci::LinuxIOPriority, Problem> {
    let class = priority.class().as_str_name();
    parse("io_priority", json!({ "class": class, "priority": priority.priority }))
}

/// The word for a flag: `oci-spec` 0.10 has two that differ from the specification's.
fn flag_word(flag: LinuxSchedulerFlag) -> &'static str {
    match flag {
        LinuxSchedulerFlag::SchedFlagResetOnFork => "SCHED_RESET_ON_FORK",
        LinuxSchedulerFlag::SchedFlagDlOverrun => "SCHED_FLAG_D_L_OVERRUN",
        other => other.as_str_name(),
    }
}

/// Zero is "not set", as protobuf has it; the kernel's own zeros are the same.
fn scheduler(scheduler: &LinuxScheduler) -> Result<oci::Scheduler, Problem> {
    let flags: Vec<_> = scheduler.flags().map(flag_word).collect();
    let number = |number: u64| (number != 0).then_some(number);
    parse(
        "scheduler",
        json!({
            "policy": scheduler.policy().as_str_name(),
            "nice": scheduler.nice,
            "priority": scheduler.priority,
            "flags": (!flags.is_empty()).then_some(flags),
            "runtime": number(scheduler.runtime),
            "deadline": number(scheduler.deadline),
            "period": number(scheduler.period),
        }),
    )
}

fn of_linux(linux: &mut oci::Linux, adjust: &LinuxContainerAdjustment) -> Result<(), Problem> {
    if !adjust.cgroups_path.is_empty() {
        return Err("the cgroups path cannot be changed: the kubelet accounts by it".to_owned());
    }
    devices(linux, &adjust.devices)?;
    namespaces(linux, &adjust.namespaces)?;
    if !adjust.sysctl.is_empty() {
        let mut sysctl = linux.sysctl().clone().unwrap_or_default();
        edit_map(&mut sysctl, &adjust.sysctl, |value| Ok(value.clone()))?;
        linux.set_sysctl(Some(sysctl));
    }
    if !adjust.net_devices.is_empty() {
        let mut devices = linux.net_devices().clone().unwrap_or_default();
        edit_map(&mut devices, &adjust.net_devices, net_device)?;
        linux.set_net_devices(Some(devices));
    }
    if let Some(wanted) = &adjust.rdt {
        rdt(linux, wanted)?;
    }
    if let Some(policy) = &adjust.memory_policy {
        linux.set_memory_policy(Some(memory_policy(policy)?));
    }
    let rules = adjust.resources.iter().flat_map(|limits| &limits.devices);
    let rules = rules.map(rule).collect::<Result<Vec<_>, _>>()?;
    add_rules(linux, rules);
    Ok(())
}

fn net_device(device: &LinuxNetDevice) -> Result<oci::LinuxNetDevice, Problem> {
    parse("network device", json!({ "name": device.name }))
}

/// Nodes. Like a requested device, one that is added may be used, and the rule of one that is removed goes.
fn devices(linux: &mut oci::Linux, changes: &[LinuxDevice]) -> Result<(), Problem> {
    let mut devices = linux.devices().clone().unwrap_or_default();
    let mut rules = Vec::new();
    for change in changes {
        let at = absolute("device", removal(&change.path).unwrap_or(&change.path))?;
        let removed = devices.iter().position(|device| *device.path() == at).map(|at| devices.remove(at));
        if removal(&change.path).is_some() {
            if let Some(removed) = removed {
                drop_rule(linux, &removed);
            }
            continue;
        }
        let node: oci::LinuxDevice = parse(
            &format!("device {}", at.display()),
            json!({
                "path": at, "type": change.r#type, "major": change.major, "minor": change.minor,
                "fileMode": change.file_mode.map(|mode| mode.value),
                "uid": change.uid.map(|uid| uid.value), "gid": change.gid.map(|gid| gid.value),
            }),
        )?;
        rules.extend(device_rule(&node)?);
        devices.push(node);
    }
    linux.set_devices((!devices.is_empty()).then_some(devices));
    add_rules(linux, rules);
    Ok(())
}

/// A FIFO needs none.
fn device_rule(node: &oci::LinuxDevice) -> Result<Option<oci::LinuxDeviceCgroup>, Problem> {
    match node.typ() {
        oci::LinuxDeviceType::P => Ok(None),
        oci::LinuxDeviceType::A => Err(format!("device {}: no type", node.path().display())),
        typ => {
            let rule = json!({ "allow": true, "type": typ, "major": node.major(), "minor": node.minor(), "access": "rwm" });
            parse("device rule", rule).map(Some)
        }
    }
}

fn add_rules(linux: &mut oci::Linux, more: Vec<oci::LinuxDeviceCgroup>) {
    if more.is_empty() {
        return;
    }
    let mut limits = linux.resources().clone().unwrap_or_default();
    let mut rules = limits.devices().clone().unwrap_or_default();
    rules.extend(more);
    limits.set_devices(Some(rules));
    linux.set_resources(Some(limits));
}

fn drop_rule(linux: &mut oci::Linux, node: &oci::LinuxDevice) {
    let Some(mut limits) = linux.resources().clone() else { return };
    let numbers = (Some(node.major()), Some(node.minor()));
    let mut rules = limits.devices().clone().unwrap_or_default();
    rules.retain(|rule| rule.typ() != Some(node.typ()) || (rule.major(), rule.minor()) != numbers);
    limits.set_devices(Some(rules));
    linux.set_resources(Some(limits));
}

fn rule(rule: &LinuxDeviceCgroup) -> Result<oci::LinuxDeviceCgroup, Problem> {
    parse(
        "device rule",
        json!({
            "allow": rule.allow, "type": filled(&rule.r#type),
            "major": rule.major.map(|major| major.value), "minor": rule.minor.map(|minor| minor.value),
            "access": filled(&rule.access),
        }),
    )
}

fn namespaces(linux: &mut oci::Linux, changes: &[LinuxNamespace]) -> Result<(), Problem> {
    let mut namespaces = linux.namespaces().clone().unwrap_or_default();
    for change in changes {
        let name = removal(&change.r#type).unwrap_or(&change.r#type);
        let path = filled(&change.path).map(|path| absolute("namespace", path)).transpose()?;
        let namespace: oci::LinuxNamespace =
            parse(&format!("namespace {name}"), json!({ "type": name, "path": path }))?;
        namespaces.retain(|known| known.typ() != namespace.typ());
        if removal(&change.r#type).is_none() {
            namespaces.push(namespace);
        }
    }
    linux.set_namespaces(Some(namespaces));
    Ok(())
}

fn rdt(linux: &mut oci::Linux, wanted: &LinuxRdt) -> Result<(), Problem> {
    let mut value = match linux.intel_rdt() {
        Some(known) if !wanted.remove => serde_json::to_value(known).map_err(|error| error.to_string())?,
        Some(_) | None => json!({}),
    };
    let set = wanted.clos_id.is_some() || wanted.schemata.is_some() || wanted.enable_monitoring.is_some();
    if let Some(id) = &wanted.clos_id {
        value["closID"] = json!(id.value);
    }
    if let Some(schemata) = &wanted.schemata {
        value["schemata"] = json!(schemata.value);
    }
    if let Some(monitoring) = wanted.enable_monitoring {
        value["enableMonitoring"] = json!(monitoring.value);
    }
    let kept = set || !wanted.remove;
    linux.set_intel_rdt(kept.then(|| parse("rdt", value)).transpose()?);
    Ok(())
}

fn memory_policy(policy: &LinuxMemoryPolicy) -> Result<oci::LinuxMemoryPolicy, Problem> {
    let mode = MpolMode::try_from(policy.mode).map_err(|unknown| unknown.to_string())?;
    let flag = |flag: &i32| MpolFlag::try_from(*flag).map(|flag| flag.as_str_name());
    let flags: Vec<_> =
        policy.flags.iter().map(flag).collect::<Result<_, _>>().map_err(|unknown| unknown.to_string())?;
    parse(
        "memory policy",
        json!({ "mode": mode.as_str_name(), "nodes": filled(&policy.nodes), "flags": (!flags.is_empty()).then_some(flags) }),
    )
}

/// A filter of a plugin's own.
///
/// # Errors
/// A word that is none of the specification's.
pub(super) fn seccomp(policy: &LinuxSeccomp) -> Result<oci::LinuxSeccomp, Problem> {
    let errno = |errno: Option<crisp_nri::api::OptionalUInt32>| errno.map(|errno| errno.value);
    let syscalls = policy.syscalls.iter().map(|call| {
        let args = call.args.iter().map(
            |arg| json!({ "index": arg.index, "value": arg.value, "valueTwo": arg.value_two, "op": arg.op }),
        );
        let args: Vec<Value> = args.collect();
        json!({
            "names": call.names, "action": call.action, "errnoRet": errno(call.errno_ret),
            "args": (!args.is_empty()).then_some(args),
        })
    });
    let syscalls: Vec<Value> = syscalls.collect();
    parse(
        "seccomp policy",
        json!({
            "defaultAction": policy.default_action,
            "defaultErrnoRet": errno(policy.default_errno),
            "architectures": (!policy.architectures.is_empty()).then_some(&policy.architectures),
            "flags": (!policy.flags.is_empty()).then_some(&policy.flags),
            "listenerPath": filled(&policy.listener_path),
            "listenerMetadata": filled(&policy.listener_metadata),
            "syscalls": (!syscalls.is_empty()).then_some(syscalls),
        }),
    )
}

#[cfg(test)]
#[path = "adjust_tests.rs"]
mod tests;
