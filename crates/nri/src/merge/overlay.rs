//! Laying an adjustment over another one, and over a container. The later one wins: what may not be is refused by the claims.

use std::collections::BTreeMap;

use crate::api::{
    Container, ContainerAdjustment, Hooks, KeyValue, LinuxContainer, LinuxContainerAdjustment, LinuxCpu,
    LinuxMemory, LinuxRdt, LinuxResources,
};
use crate::removal;

/// Lays `from` over `onto`. Markers of removal stay, so that the runtime removes what the container had before.
pub fn overlay(onto: &mut ContainerAdjustment, from: ContainerAdjustment) {
    let ContainerAdjustment { annotations, mounts, env, hooks, linux, rlimits, cdi_devices, args } = from;
    map(&mut onto.annotations, annotations, Markers::Kept);
    list(&mut onto.mounts, mounts, |mount| &mount.destination, Markers::Kept);
    list(&mut onto.env, env, |variable| &variable.key, Markers::Kept);
    list(&mut onto.rlimits, rlimits, |limit| &limit.r#type, Markers::Kept);
    list(&mut onto.cdi_devices, cdi_devices, |device| &device.name, Markers::Kept);
    set_args(&mut onto.args, args);
    if let Some(more) = hooks {
        add_hooks(onto.hooks.get_or_insert_default(), more);
    }
    if let Some(linux) = linux {
        overlay_linux(onto.linux.get_or_insert_default(), linux);
    }
}

fn overlay_linux(onto: &mut LinuxContainerAdjustment, from: LinuxContainerAdjustment) {
    list(&mut onto.devices, from.devices, |device| &device.path, Markers::Kept);
    list(&mut onto.namespaces, from.namespaces, |namespace| &namespace.r#type, Markers::Kept);
    map(&mut onto.sysctl, from.sysctl, Markers::Kept);
    map(&mut onto.net_devices, from.net_devices, Markers::Kept);
    text(&mut onto.cgroups_path, from.cgroups_path);
    set(&mut onto.oom_score_adj, from.oom_score_adj);
    set(&mut onto.io_priority, from.io_priority);
    set(&mut onto.seccomp_policy, from.seccomp_policy);
    set(&mut onto.scheduler, from.scheduler);
    set(&mut onto.memory_policy, from.memory_policy);
    if let Some(more) = from.rdt {
        rdt(onto.rdt.get_or_insert_default(), more);
    }
    if let Some(more) = from.resources {
        resources(onto.resources.get_or_insert_default(), more);
    }
}

/// Lays an adjustment over the container that it is for. CDI devices are names, which a container does not have.
pub(super) fn container(onto: &mut Container, adjust: &ContainerAdjustment) {
    let adjust = adjust.clone();
    map(&mut onto.annotations, adjust.annotations, Markers::Dropped);
    list(&mut onto.mounts, adjust.mounts, |mount| &mount.destination, Markers::Dropped);
    list(&mut onto.rlimits, adjust.rlimits, |limit| &limit.r#type, Markers::Dropped);
    set_args(&mut onto.args, adjust.args);
    environment(&mut onto.env, adjust.env);
    if let Some(more) = adjust.hooks {
        add_hooks(onto.hooks.get_or_insert_default(), more);
    }
    if let Some(linux) = adjust.linux {
        linux_container(onto.linux.get_or_insert_default(), linux);
    }
}

fn linux_container(onto: &mut LinuxContainer, adjust: LinuxContainerAdjustment) {
    list(&mut onto.devices, adjust.devices, |device| &device.path, Markers::Dropped);
    list(&mut onto.namespaces, adjust.namespaces, |namespace| &namespace.r#type, Markers::Dropped);
    map(&mut onto.sysctl, adjust.sysctl, Markers::Dropped);
    map(&mut onto.net_devices, adjust.net_devices, Markers::Dropped);
    text(&mut onto.cgroups_path, adjust.cgroups_path);
    set(&mut onto.oom_score_adj, adjust.oom_score_adj);
    set(&mut onto.io_priority, adjust.io_priority);
    set(&mut onto.seccomp_policy, adjust.seccomp_policy);
    set(&mut onto.scheduler, adjust.scheduler);
    if let Some(more) = adjust.rdt {
        rdt(onto.rdt.get_or_insert_default(), more);
    }
    if let Some(more) = adjust.resources {
        resources(onto.resources.get_or_insert_default(), more);
    }
}

fn environment(onto: &mut Vec<String>, changes: Vec<KeyValue>) {
    let pairs = onto.drain(..).map(|variable| match variable.split_once('=') {
        Some((key, value)) => KeyValue { key: key.to_owned(), value: value.to_owned() },
        None => KeyValue { key: variable, value: String::new() },
    });
    let mut pairs: Vec<KeyValue> = pairs.collect();
    list(&mut pairs, changes, |variable| &variable.key, Markers::Dropped);
    onto.extend(pairs.into_iter().map(|KeyValue { key, value }| format!("{key}={value}")));
}

/// Lays limits over limits.
pub(super) fn resources(onto: &mut LinuxResources, from: LinuxResources) {
    if let Some(more) = from.memory {
        memory(onto.memory.get_or_insert_default(), more);
    }
    if let Some(more) = from.cpu {
        cpu(onto.cpu.get_or_insert_default(), more);
    }
    list(&mut onto.hugepage_limits, from.hugepage_limits, |limit| &limit.page_size, Markers::Kept);
    set(&mut onto.blockio_class, from.blockio_class);
    set(&mut onto.rdt_class, from.rdt_class);
    set(&mut onto.pids, from.pids);
    onto.unified.extend(from.unified);
    onto.devices.extend(from.devices);
}

fn memory(onto: &mut LinuxMemory, from: LinuxMemory) {
    set(&mut onto.limit, from.limit);
    set(&mut onto.reservation, from.reservation);
    set(&mut onto.swap, from.swap);
    set(&mut onto.kernel, from.kernel);
    set(&mut onto.kernel_tcp, from.kernel_tcp);
    set(&mut onto.swappiness, from.swappiness);
    set(&mut onto.disable_oom_killer, from.disable_oom_killer);
    set(&mut onto.use_hierarchy, from.use_hierarchy);
}

fn cpu(onto: &mut LinuxCpu, from: LinuxCpu) {
    set(&mut onto.shares, from.shares);
    set(&mut onto.quota, from.quota);
    set(&mut onto.period, from.period);
    set(&mut onto.realtime_runtime, from.realtime_runtime);
    set(&mut onto.realtime_period, from.realtime_period);
    text(&mut onto.cpus, from.cpus);
    text(&mut onto.mems, from.mems);
}

fn rdt(onto: &mut LinuxRdt, from: LinuxRdt) {
    if from.remove {
        *onto = LinuxRdt { remove: true, ..LinuxRdt::default() };
    }
    set(&mut onto.clos_id, from.clos_id);
    set(&mut onto.schemata, from.schemata);
    set(&mut onto.enable_monitoring, from.enable_monitoring);
}

fn add_hooks(onto: &mut Hooks, more: Hooks) {
    onto.prestart.extend(more.prestart);
    onto.create_runtime.extend(more.create_runtime);
    onto.create_container.extend(more.create_container);
    onto.start_container.extend(more.start_container);
    onto.poststart.extend(more.poststart);
    onto.poststop.extend(more.poststop);
}

/// An empty first argument says that an earlier plugin's may be replaced; it is no argument.
fn set_args(onto: &mut Vec<String>, mut args: Vec<String>) {
    if args.first().is_some_and(String::is_empty) {
        args.remove(0);
    }
    if !args.is_empty() {
        *onto = args;
    }
}

fn set<T>(onto: &mut Option<T>, from: Option<T>) {
    if from.is_some() {
        *onto = from;
    }
}

fn text(onto: &mut String, from: String) {
    if !from.is_empty() {
        *onto = from;
    }
}

/// What becomes of markers of removal.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Markers {
    /// In an adjustment.
    Kept,
    /// In what is adjusted.
    Dropped,
}

fn list<T>(onto: &mut Vec<T>, changes: Vec<T>, key: fn(&T) -> &String, markers: Markers) {
    let (removals, additions): (Vec<T>, Vec<T>) =
        changes.into_iter().partition(|change| removal(key(change)).is_some());
    for marker in removals {
        onto.retain(|entry| Some(key(entry).as_str()) != removal(key(&marker)) && key(entry) != key(&marker));
        if markers == Markers::Kept {
            onto.push(marker);
        }
    }
    for addition in additions {
        onto.retain(|entry| key(entry) != key(&addition));
        onto.push(addition);
    }
}

fn map<V>(onto: &mut BTreeMap<String, V>, changes: BTreeMap<String, V>, markers: Markers) {
    let (removals, additions): (Vec<_>, Vec<_>) =
        changes.into_iter().partition(|(key, _)| removal(key).is_some());
    for (marker, value) in removals {
        if let Some(key) = removal(&marker) {
            onto.remove(key);
        }
        if markers == Markers::Kept {
            onto.insert(marker, value);
        }
    }
    onto.extend(additions);
}
