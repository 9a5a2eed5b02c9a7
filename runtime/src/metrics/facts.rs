//! What is known of a pod or container when its metrics are told.

use crisp_cgroup::{DeviceIo, Stats};
use crisp_domain::Timestamp;
use crisp_network::InterfaceStats;
use crisp_spec::Resources;

use super::Kept;
use super::devices::Disk;
use super::processes::Processes;
use crate::container::state::ContainerState;

/// Whom the facts are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    Pod,
    Container,
}

/// All that the table reads. What is not known has its default.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) level: Level,
    /// Of its cgroup.
    pub(super) stats: Stats,
    /// I/O by block device, with the names of the devices; that of the writable layers is always among them.
    pub(super) io: Vec<(String, DeviceIo)>,
    /// Of a pod with a network of its own.
    pub(super) links: Vec<InterfaceStats>,
    /// Of a container.
    pub(super) processes: Processes,
    /// Bytes of a container's writable layer.
    pub(super) layer_bytes: u64,
    /// In force for a container.
    pub(super) limits: Resources,
    /// The file system of the writable layers.
    pub(super) disk: Disk,
    pub(super) started_at: Timestamp,
    pub(super) now: Timestamp,
}

impl Facts {
    pub(super) fn new(level: Level, stats: Stats, kept: &Kept, disk: &Disk) -> Self {
        let named = |io: &DeviceIo| (kept.devices.name((io.major, io.minor)), io.clone());
        let mut io: Vec<_> = stats.io.iter().map(named).collect();
        let (major, minor) = disk.number;
        if !stats.io.iter().any(|io| (io.major, io.minor) == disk.number) {
            io.push((disk.device.clone(), DeviceIo { major, minor, ..DeviceIo::default() }));
        }
        Self {
            level,
            stats,
            io,
            links: Vec::new(),
            processes: Processes::default(),
            layer_bytes: 0,
            limits: Resources::default(),
            disk: disk.clone(),
            started_at: Timestamp(0),
            now: Timestamp::now(),
        }
    }
}

/// When a container that runs was started.
pub(super) fn started_at(state: &ContainerState) -> Timestamp {
    match state {
        ContainerState::Running { started_at, .. } => *started_at,
        ContainerState::Creating
        | ContainerState::Created
        | ContainerState::Starting
        | ContainerState::Exited { .. } => Timestamp(0),
    }
}
