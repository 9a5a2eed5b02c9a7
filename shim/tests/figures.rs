//! Figures, printed: memory of idle shims, time of a container's start and of an exec, throughput of the log.
//!
//! `cargo test --profile shim --test figures -- --ignored --nocapture`

#![allow(clippy::cast_precision_loss, reason = "figures for people")]

mod pod;

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use pod::{Pod, as_root};

fn say(text: &str) {
    let _nobody_reads = writeln!(std::io::stderr(), "{text}");
}

fn median(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort();
    let ms = |at: usize| times[at].as_secs_f64() * 1e3;
    (ms(times.len() / 2), ms(times.len() * 95 / 100))
}

#[test]
#[ignore = "a measurement, not a test"]
fn memory_of_20_idle_shims() {
    as_root(|| {
        let mut pods: Vec<_> = (0..20).map(|_| Pod::new()).collect();
        for pod in &mut pods {
            let setup = pod.container(&["sh", "-c", "echo hello; exec sleep 1000"]);
            pod.run(&setup);
            pod::eventually("the log", || (!setup.log().is_empty()).then_some(()));
            pod.daemon.exec(&setup, &setup.exec_process(&["true"]), 0).unwrap();
        }
        // Buffers are given back after half a second.
        let end = Instant::now() + Duration::from_secs(1);
        pod::eventually("idle", || (Instant::now() > end).then_some(()));
        let value = |pod: &Pod, name: &str| -> u64 {
            let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", pod.shim.pid)).unwrap();
            let line = text.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        for name in ["Pss:", "Private_Dirty:", "Private_Clean:", "Rss:"] {
            let all: Vec<_> = pods.iter().map(|pod| value(pod, name)).collect();
            let mean = all.iter().sum::<u64>() as f64 / all.len() as f64;
            say(&format!("{name} {mean:.1} KiB mean of {} shims", all.len()));
        }
    });
}

#[test]
#[ignore = "a measurement, not a test"]
fn time_of_create_start_and_exec() {
    as_root(|| {
        let mut pod = Pod::new();
        let (mut create, mut start, mut exec) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..100 {
            let mut setup = pod.container(&["sleep", "1000"]);
            setup.with_seccomp();
            let begin = Instant::now();
            pod.daemon.create(&setup).unwrap();
            create.push(begin.elapsed());
            let begin = Instant::now();
            pod.daemon.start(&setup.id).unwrap();
            start.push(begin.elapsed());
            let process = setup.exec_process(&["true"]);
            for _ in 0..3 {
                let begin = Instant::now();
                pod.daemon.exec(&setup, &process, 0).unwrap();
                exec.push(begin.elapsed());
            }
            pod.daemon.signal(&setup.id, 9);
            pod.daemon.exit(&setup.id);
            pod.daemon.delete(&setup.id).unwrap();
        }
        for (name, times) in [("create", create), ("start", start), ("exec of true", exec)] {
            let (p50, p95) = median(times);
            say(&format!("{name}: {p50:.2} ms p50, {p95:.2} ms p95"));
        }
    });
}

#[test]
#[ignore = "a measurement, not a test"]
fn throughput_of_the_log() {
    as_root(|| {
        let mut pod = Pod::new();
        let mut setup =
            pod.container(&["sh", "-c", "yes $(printf '%0127d' 0) | dd bs=128k count=8000 iflag=fullblock"]);
        setup.stdio().log_path = "/dev/shm/crisp-figures.log".into();
        let cpu = |pid: i32| -> u64 {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            let fields: Vec<_> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
            fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
        };
        let (begin, before) = (Instant::now(), cpu(pod.shim.pid));
        pod.run(&setup);
        pod.daemon.exit(&setup.id);
        let seconds = begin.elapsed().as_secs_f64();
        let used = (cpu(pod.shim.pid) - before) as f64 / 100.0;
        let bytes = 8000.0 * 128.0 * 1024.0;
        say(&format!(
            "{:.0} MB/s of wall time, {:.0} MB/s of the shim's CPU",
            bytes / seconds / 1e6,
            bytes / used / 1e6
        ));
        std::fs::remove_file("/dev/shm/crisp-figures.log").unwrap();
    });
}

/// Bytes that an attached reader gets, while the container writes as fast as it can: with its log discarded, and with its log in memory.
#[test]
#[ignore = "a measurement, not a test"]
fn throughput_of_an_attachment() {
    as_root(|| {
        let blocks: u64 = 32_000;
        let bytes = blocks * 128 * 1024;
        for (log, what) in [("", "log discarded"), ("/dev/shm/crisp-figures-attach.log", "log on tmpfs")] {
            let mut pod = Pod::new();
            let count = if log.is_empty() { blocks } else { blocks / 8 };
            let bytes = if log.is_empty() { bytes } else { bytes / 8 };
            let script = format!(
                "read x; yes $(printf '%0127d' 0) | dd bs=128k count={count} iflag=fullblock 2>/dev/null"
            );
            let zero = format!("read x; dd if=/dev/zero bs=128k count={count} 2>/dev/null");
            for (script, source) in [(script, "lines through a pipe"), (zero, "zeroes")] {
                if source == "zeroes" && !log.is_empty() {
                    continue;
                }
                let mut setup = pod.container(&["sh", "-c", &script]);
                setup.stdio().log_path = log.into();
                setup.stdio().stdin = true;
                pod.run(&setup);
                let mut attached = pod.daemon.attach(&setup.id, [true, true, false]).unwrap();
                let begin = Instant::now();
                attached.write("\n");
                let (mut buffer, mut seen) = (vec![0; 128 * 1024], 0u64);
                while let Ok(count @ 1..) = attached.stdout.as_mut().unwrap().read(&mut buffer) {
                    seen += count as u64;
                }
                let seconds = begin.elapsed().as_secs_f64();
                pod.daemon.exit(&setup.id);
                assert_eq!(seen, bytes, "{what}, {source}");
                say(&format!("attach, {what}, {source}: {:.0} MB/s", bytes as f64 / seconds / 1e6));
                if !log.is_empty() {
                    std::fs::remove_file(log).unwrap();
                }
            }
        }
    });
}
