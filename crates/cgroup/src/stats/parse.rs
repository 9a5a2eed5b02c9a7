//! Texts of cgroup files to numbers. Pure.

use super::{DEVICES_MAX, DeviceIo, IoCounts, Psi, PsiLine};

/// The value of `key` in a file of `key value` lines.
pub(crate) fn value_of(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// The values of several keys, `None` for those that are not there: one pass over a long file.
pub(super) fn values_of<const N: usize>(text: &str, keys: [&str; N]) -> [Option<u64>; N] {
    let mut found = [None; N];
    for (key, value) in text.lines().filter_map(|line| line.split_once(' ')) {
        if let Some(place) = keys.iter().position(|wanted| *wanted == key) {
            found[place] = value.trim().parse().ok();
        }
    }
    found
}

/// The counter of OOM kills in the text of [`crate::Cgroup::oom_file`]; `None` when the kernel does not count them.
#[must_use]
pub fn oom_kills_in(text: &str) -> Option<u64> {
    value_of(text, "oom_kill")
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=0` and the same with `full`; total in µs.
pub(super) fn parse_psi(text: &str) -> Option<Psi> {
    let line = |name| text.lines().find_map(|line| line.strip_prefix(name)).map(parse_psi_line);
    // cpu.pressure of older kernels has no line "full".
    Some(Psi { some: line("some ")??, full: line("full ").flatten().unwrap_or_default() })
}

fn parse_psi_line(line: &str) -> Option<PsiLine> {
    let word =
        |key: &str| line.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
    Some(PsiLine {
        avg10: word("avg10")?.parse().ok()?,
        avg60: word("avg60")?.parse().ok()?,
        avg300: word("avg300")?.parse().ok()?,
        total_ns: word("total")?.parse::<u64>().ok()?.checked_mul(1000)?,
    })
}

/// `MAJOR:MINOR`.
fn device_number(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The entry of a device, made when it is new and there is room.
fn device(devices: &mut Vec<DeviceIo>, (major, minor): (u32, u32)) -> Option<&mut DeviceIo> {
    let known = devices.iter().position(|device| (device.major, device.minor) == (major, minor));
    let place = known.unwrap_or(devices.len());
    if place == devices.len() && devices.len() < DEVICES_MAX {
        devices.push(DeviceIo { major, minor, ..DeviceIo::default() });
    }
    devices.get_mut(place)
}

/// Which counters a v1 file holds.
#[derive(Debug, Clone, Copy)]
pub(super) enum Counts {
    Bytes,
    Requests,
}

/// Adds `8:0 Read 4096` lines (v1); the last line, `Total 4096`, has no device.
pub(super) fn add_blkio(devices: &mut Vec<DeviceIo>, text: &str, counts: Counts) {
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let number = words.next().and_then(device_number);
        let (Some(number), Some(operation)) = (number, words.next()) else { continue };
        let Some(value) = words.next().and_then(|value| value.parse().ok()) else { continue };
        let Some(device) = device(devices, number) else { return };
        let counts = match counts {
            Counts::Bytes => &mut device.bytes,
            Counts::Requests => &mut device.requests,
        };
        set_operation(counts, operation, value);
    }
}

fn set_operation(counts: &mut IoCounts, operation: &str, value: u64) {
    match operation {
        "Read" => counts.read = value,
        "Write" => counts.write = value,
        "Discard" => counts.discard = value,
        "Sync" => counts.sync = Some(value),
        "Async" => counts.asynchronous = Some(value),
        // "Total" is the sum.
        _ => {}
    }
}

/// `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6` lines (v2). Controllers add words of their own; a device may have none of ours.
pub(super) fn parse_io_stat(text: &str) -> Vec<DeviceIo> {
    let mut devices = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(number) = words.next().and_then(device_number) else { continue };
        let Some(device) = device(&mut devices, number) else { break };
        for (key, value) in words.filter_map(|word| word.split_once('=')) {
            let place = match key {
                "rbytes" => &mut device.bytes.read,
                "wbytes" => &mut device.bytes.write,
                "dbytes" => &mut device.bytes.discard,
                "rios" => &mut device.requests.read,
                "wios" => &mut device.requests.write,
                "dios" => &mut device.requests.discard,
                _ => continue,
            };
            *place = value.parse().unwrap_or(0);
        }
    }
    devices
}
