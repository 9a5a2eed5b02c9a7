//! How long a container's cgroup takes: made with typical limits, read, removed. `timing [COUNT]`, as root.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a measuring program")]

use std::time::{Duration, Instant};

use crisp_cgroup::{CgroupPath, Cgroups, DeviceAccess, DeviceKind, DeviceRule, Resources};

fn resources() -> Resources {
    let all = DeviceRule {
        allow: false,
        kind: DeviceKind::All,
        major: None,
        minor: None,
        access: DeviceAccess::RWM,
    };
    let node =
        |major, minor| DeviceRule { allow: true, kind: DeviceKind::Char, major: Some(major), minor, ..all };
    let nodes = [
        (1, Some(3)),
        (1, Some(5)),
        (1, Some(7)),
        (1, Some(8)),
        (1, Some(9)),
        (5, Some(0)),
        (5, Some(1)),
        (5, Some(2)),
        (136, None),
    ];
    let devices = std::iter::once(all).chain(nodes.map(|(major, minor)| node(major, minor))).collect();
    Resources {
        cpu_shares: 512,
        cpu_quota_us: 50_000,
        cpu_period_us: 100_000,
        memory_limit_bytes: 64 << 20,
        devices: Some(devices),
        ..Resources::default()
    }
}

fn main() {
    let count: usize = std::env::args().nth(1).map_or(200, |text| text.parse().unwrap());
    let cgroups = Cgroups::detect().unwrap();
    let top = CgroupPath::new(&format!("/crisp-test-{}", std::process::id())).unwrap();
    let (mut make, mut read, mut kill, mut remove) = (vec![], vec![], vec![], vec![]);
    for number in 0..count {
        let path = top.join(&format!("pod{number}")).unwrap().join("container").unwrap();
        let start = Instant::now();
        let cgroup = cgroups.create(&path, &resources()).unwrap();
        make.push(start.elapsed());
        let start = Instant::now();
        cgroup.stats().unwrap();
        read.push(start.elapsed());
        let start = Instant::now();
        cgroup.kill().unwrap();
        kill.push(start.elapsed());
        let start = Instant::now();
        cgroup.remove().unwrap();
        cgroups.open(&path.parent().unwrap()).remove().unwrap();
        remove.push(start.elapsed());
    }
    cgroups.open(&top).remove().unwrap();
    println!("{:?}, {} trees, {count} rounds", cgroups.version(), cgroups.mounts().count());
    for (name, times) in
        [("create pod and container", make), ("stats", read), ("kill (empty)", kill), ("remove both", remove)]
    {
        print(name, times);
    }
}

fn print(name: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    println!("{name:26} p50 {:>9.1?}  p95 {:>9.1?}", times[times.len() / 2], times[times.len() * 95 / 100]);
}
