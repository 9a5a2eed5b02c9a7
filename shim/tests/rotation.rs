//! Log rotation under full load: nothing is lost, nothing comes twice, partial lines stay partial lines.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod pod;

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::time::Instant;

use pod::{Pod, Setup, as_root};

/// Rotates as the kubelet does: renames the file, has the log opened anew. Each file has at least so many bytes by then:
/// rotations alone may be faster than what a container says.
fn rotate(pod: &mut Pod, setup: &Setup, count: usize, at_least: u64) {
    for round in 0..count {
        let log = setup.log_path();
        wait_for_bytes(&log, at_least);
        std::fs::rename(&log, log.with_extension(format!("{round:05}"))).unwrap();
        pod.daemon.reopen(&setup.id).unwrap();
        assert!(log.exists());
    }
}

/// Looks without a pause: while a test sleeps, such containers write gigabytes.
fn wait_for_bytes(log: &Path, at_least: u64) {
    let end = Instant::now() + pod::LIMIT;
    while std::fs::metadata(log).unwrap().len() < at_least {
        assert!(Instant::now() < end, "{} stays small", log.display());
        std::thread::yield_now();
    }
}

/// All entries of all files in order: tag and content.
fn each_entry(setup: &Setup, mut entry: impl FnMut(char, &str)) {
    let mut files: Vec<_> =
        std::fs::read_dir(setup.dir.join("logs")).unwrap().map(|file| file.unwrap().path()).collect();
    // 0.00000, 0.00001, …, 0.log
    files.sort();
    for file in files {
        for line in BufReader::new(std::fs::File::open(file).unwrap()).lines() {
            let line = line.unwrap();
            let mut fields = line.splitn(4, ' ');
            let (stream, tag) = (fields.nth(1).unwrap(), fields.next().unwrap());
            assert_eq!(stream, "stdout", "{line:?}");
            entry(tag.chars().next().unwrap(), fields.next().unwrap());
        }
    }
}

fn say(text: &str) {
    let _nobody_reads = writeln!(std::io::stderr(), "{text}");
}

#[test]
fn a_thousand_rotations_lose_no_line() {
    as_root(|| {
        let mut pod = Pod::new();
        let setup = pod.container(&["seq", "1", "10000000000"]);
        pod.run(&setup);
        rotate(&mut pod, &setup, 1000, 0);
        wait_for_bytes(&setup.log_path(), 1 << 20);
        pod.daemon.signal(&setup.id, 9);
        pod.daemon.exit(&setup.id);
        let (mut count, mut last_is_partial) = (0u64, false);
        each_entry(&setup, |tag, content| {
            assert!(!last_is_partial);
            // Killed in the middle of a line.
            last_is_partial = tag == 'P';
            if tag == 'F' {
                count += 1;
                assert_eq!(content, count.to_string());
            }
        });
        say(&format!("{count} lines over 1000 rotations, none lost, none twice"));
        assert!(count > 10_000, "{count}");
        let failure = pod.daemon.reopen(&setup.id).unwrap_err();
        assert_eq!(failure.code(), crisp_proto::supervisor::Code::WrongState);
    });
}

#[test]
fn a_line_in_pieces_goes_on_in_the_next_file() {
    as_root(|| {
        let mut pod = Pod::new();
        // Three pieces each: a file holds half a line or more, so that rotations come between the pieces.
        let script = "i=1; while :; do printf '%040000d\n' $i; i=$((i+1)); done";
        let setup = pod.container(&["sh", "-c", script]);
        pod.run(&setup);
        rotate(&mut pod, &setup, 300, 16 * 1024);
        pod.daemon.signal(&setup.id, 9);
        pod.daemon.exit(&setup.id);
        let (mut line, mut pieces, mut count) = (String::new(), 0, 0u64);
        each_entry(&setup, |tag, content| {
            line.push_str(content);
            pieces += 1;
            if tag == 'P' {
                assert!(content.len() == 16 * 1024 || line.len() < 40_000);
                return;
            }
            count += 1;
            assert_eq!((pieces, line.len()), (3, 40_000));
            assert_eq!(line.trim_start_matches('0'), count.to_string());
            (line, pieces) = (String::new(), 0);
        });
        say(&format!("{count} lines of three pieces over 300 rotations"));
        assert!(count > 100, "{count}");
    });
}

#[test]
fn the_log_of_a_container_that_does_not_run_is_not_opened() {
    as_root(|| {
        let mut pod = Pod::new();
        let setup = pod.container(&["true"]);
        pod.daemon.create(&setup).unwrap();
        let failure = pod.daemon.reopen(&setup.id).unwrap_err();
        assert_eq!(failure.code(), crisp_proto::supervisor::Code::WrongState);
        assert!(!setup.log_path().exists());
        pod.daemon.start(&setup.id).unwrap();
        pod.daemon.exit(&setup.id);
        std::fs::remove_file(setup.log_path()).unwrap();
        pod.daemon.reopen(&setup.id).unwrap_err();
        assert!(!setup.log_path().exists());
    });
}
