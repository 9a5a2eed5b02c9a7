//! Attachers: output and input beside the log, and what they may not do to a container.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod pod;

use std::io::Read as _;
use std::time::{Duration, Instant};

use crisp_proto::supervisor as pb;
use pod::{End, Pod, Setup, as_root, eventually};

const BOTH_WAYS: [bool; 3] = [true, true, true];
const STDOUT: [bool; 3] = [false, true, false];

/// A container whose stdin is open.
fn reader(pod: &Pod, args: &[&str]) -> Setup {
    let mut setup = pod.container(args);
    setup.stdio().stdin = true;
    setup
}

fn open_descriptors(pod: &Pod) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", pod.shim.pid)).unwrap().count()
}

#[test]
fn what_one_writes_all_see_once_and_the_log_too() {
    as_root(|| {
        let mut pod = Pod::new();
        let setup =
            reader(&pod, &["sh", "-c", "echo before; while read x; do echo got $x; echo err $x >&2; done"]);
        pod.run(&setup);
        eventually("the first line", || (setup.log().len() == 1).then_some(()));
        let mut first = pod.daemon.attach(&setup.id, BOTH_WAYS).unwrap();
        let mut second = pod.daemon.attach(&setup.id, BOTH_WAYS).unwrap();
        first.write("one\n");
        assert_eq!((first.read(8), second.read(8)), ("got one\n".into(), "got one\n".into()));
        second.write("two\n");
        assert_eq!((first.read(8), second.read(8)), ("got two\n".into(), "got two\n".into()));
        let mut err = [0; 16];
        first.stderr.as_mut().unwrap().read_exact(&mut err).unwrap();
        assert_eq!(&err, b"err one\nerr two\n");
        // The end of an input is that client's alone.
        first.stdin = None;
        second.write("three\n");
        assert_eq!((first.read(10), second.read(10)), ("got three\n".into(), "got three\n".into()));
        pod.daemon.signal(&setup.id, 9);
        // Which of the two ends is seen first is chance, where no input keeps the client attached.
        assert!(matches!(pod.daemon.attach_end(&first.id), End::Exited(_) | End::StreamsEnded));
        let End::Exited(exit) = pod.daemon.attach_end(&second.id) else { panic!("not its exit") };
        assert_eq!(exit.signal, 9);
        assert_eq!((first.rest(), second.rest()), (String::new(), String::new()));
        let stdout = setup.log().into_iter().filter(|entry| entry.starts_with("stdout")).collect::<Vec<_>>();
        assert_eq!(stdout, ["stdout F before", "stdout F got one", "stdout F got two", "stdout F got three"]);
        let failure = pod.daemon.attach(&setup.id, STDOUT).unwrap_err();
        assert_eq!(failure.code(), pb::Code::WrongState);
    });
}

#[test]
fn the_last_byte_comes_before_the_end() {
    as_root(|| {
        let mut pod = Pod::new();
        let setup = reader(&pod, &["sh", "-c", "read x; seq 1 200000; printf last; exit 3"]);
        pod.run(&setup);
        // Made before there is anything to read: who takes nothing for a second is dropped.
        let wanted: String = (1..=200_000).map(|i| format!("{i}\n")).collect();
        let mut attached = pod.daemon.attach(&setup.id, BOTH_WAYS).unwrap();
        attached.write("\n");
        assert!(attached.rest() == wanted + "last");
        assert!(matches!(pod.daemon.attach_end(&attached.id), End::Exited(exit) if exit.code == 3));
        // Nothing read yet when the container ends: what the pipe holds stays.
        let setup = reader(&pod, &["sh", "-c", "read x; seq 1 20000"]);
        pod.run(&setup);
        let mut attached = pod.daemon.attach(&setup.id, BOTH_WAYS).unwrap();
        attached.write("\n");
        pod.daemon.exit(&setup.id);
        let wanted: String = (1..=20_000).map(|i| format!("{i}\n")).collect();
        assert!(attached.rest() == wanted);
    });
}

#[test]
fn stdin_once_ends_with_the_first_client_and_what_it_wrote_arrives() {
    as_root(|| {
        let mut pod = Pod::new();
        let mut setup = reader(&pod, &["sh", "-c", "sleep 0.2; wc -c; exit 5"]);
        setup.stdio().stdin_once = true;
        pod.run(&setup);
        let mut first = pod.daemon.attach(&setup.id, BOTH_WAYS).unwrap();
        let mut second = pod.daemon.attach(&setup.id, BOTH_WAYS).unwrap();
        // More than all the pipes on the way hold.
        let text = "x".repeat(1 << 20);
        first.write(&text);
        first.stdin = None;
        assert_eq!(first.rest(), "1048576\n");
        assert_eq!(second.rest(), "1048576\n");
        use std::io::Write as _;
        // Closed by the shim; a process that another test begins may hold a copy for a moment.
        eventually("a closed stdin", || {
            second.stdin.as_mut().unwrap().write_all(b"late").is_err().then_some(())
        });
        assert_eq!(pod.daemon.exit(&setup.id).code, 5);
    });
}

#[test]
fn who_only_writes_is_told_that_nothing_is_left_of_it() {
    as_root(|| {
        let mut pod = Pod::new();
        let mut setup = reader(&pod, &["sh", "-c", "wc -c; sleep 1000"]);
        setup.stdio().stdin_once = true;
        pod.run(&setup);
        let mut writer = pod.daemon.attach(&setup.id, [true, false, false]).unwrap();
        writer.write("four");
        writer.stdin = None;
        assert_eq!(pod.daemon.attach_end(&writer.id), End::StreamsEnded);
        eventually("what it wrote", || (setup.log() == ["stdout F 4"]).then_some(()));
    });
}

#[test]
fn attaching_without_a_stdin_to_write_to_is_refused() {
    as_root(|| {
        let mut pod = Pod::new();
        let setup = pod.container(&["sleep", "1000"]);
        pod.daemon.create(&setup).unwrap();
        assert_eq!(pod.daemon.attach(&setup.id, STDOUT).unwrap_err().code(), pb::Code::WrongState);
        pod.daemon.start(&setup.id).unwrap();
        let failure = pod.daemon.attach(&setup.id, BOTH_WAYS).unwrap_err();
        assert_eq!(failure.code(), pb::Code::Invalid);
        assert!(failure.message.contains("stdin"), "{failure:?}");
        assert_eq!(pod.daemon.attach("unknown", STDOUT).unwrap_err().code(), pb::Code::NotFound);
        let failure = pod.daemon.resize(&setup.id, 80, 25).unwrap_err();
        assert_eq!(failure.code(), pb::Code::Invalid);
    });
}

#[test]
fn a_terminal_is_raw_both_ways_and_has_the_size_that_was_set() {
    as_root(|| {
        let mut pod = Pod::new();
        let mut setup = reader(&pod, &["sh", "-c", "while read x; do stty size; done"]);
        setup.stdio().terminal = true;
        setup.process()["terminal"] = true.into();
        pod.daemon.create(&setup).unwrap();
        // Before its program runs.
        pod.daemon.resize(&setup.id, 101, 31).unwrap();
        pod.daemon.start(&setup.id).unwrap();
        let mut attached = pod.daemon.attach(&setup.id, BOTH_WAYS).unwrap();
        attached.write("go\n");
        assert_eq!(attached.read(12), "go\r\n31 101\r\n");
        pod.daemon.resize(&setup.id, 90, 20).unwrap();
        attached.write("go\n");
        let mut seen = String::new();
        while !seen.contains("20 90\r\n") {
            seen += &attached.read(1);
        }
        assert_eq!(pod.daemon.resize(&setup.id, 0, 20).unwrap_err().code(), pb::Code::Invalid);
        // The end of the input is no end of the terminal's; of stderr there is nothing.
        attached.stdin = None;
        let mut err = String::new();
        attached.stderr.as_mut().unwrap().read_to_string(&mut err).unwrap();
        assert_eq!(err, "");
        let mut other = pod.daemon.attach(&setup.id, BOTH_WAYS).unwrap();
        other.write("go\n");
        assert!(other.read(6).starts_with("go\r\n"));
        pod.daemon.signal(&setup.id, 9);
        assert!(matches!(pod.daemon.attach_end(&other.id), End::Exited(_)));
    });
}

#[test]
fn a_terminal_that_is_closed_and_opened_again_is_read_on() {
    as_root(|| {
        let mut pod = Pod::new();
        // More than the terminal holds, so that a writer whom nobody reads waits.
        let script = "tty=$(tty); echo one; exec </dev/null >/dev/null 2>&1; sleep 0.3; \
                      exec >$tty; yes again | head -n 5000; exec >/dev/null; echo > /tmp/done; sleep 1000";
        let mut setup = pod.container(&["sh", "-c", script]);
        setup.stdio().terminal = true;
        setup.process()["terminal"] = true.into();
        pod.run(&setup);
        eventually("its end", || setup.dir.join("rootfs/tmp/done").exists().then_some(()));
        eventually("the log", || (setup.log().len() == 5001).then_some(()));
        pod.daemon.signal(&setup.id, 9);
        assert_eq!(pod.daemon.exit(&setup.id).signal, 9);
        assert_eq!(pod.shim_log(), "");
    });
}

#[test]
fn who_does_not_read_is_dropped_and_holds_nobody_up_for_long() {
    as_root(|| {
        let mut pod = Pod::new();
        let script = "read x; yes 0123456789 | head -c 44000000";
        let setup = reader(&pod, &["sh", "-c", script]);
        pod.run(&setup);
        let begin = Instant::now();
        let mut attached = pod.daemon.attach(&setup.id, BOTH_WAYS).unwrap();
        let mut reading = pod.daemon.attach(&setup.id, STDOUT).unwrap();
        let reader = std::thread::spawn(move || {
            let mut count = 0u64;
            let mut buffer = vec![0; 1 << 16];
            while let Ok(read @ 1..) = reading.stdout.as_mut().unwrap().read(&mut buffer) {
                count += read as u64;
            }
            count
        });
        attached.write("\n");
        assert_eq!(pod.daemon.attach_end(&attached.id), End::TooSlow);
        // One second is what it gets, beside the time that its pipe takes to be full.
        assert!(begin.elapsed() < Duration::from_secs(25), "{:?}", begin.elapsed());
        // What it could have read is there, then the end.
        assert!(attached.rest().len() >= 1 << 19);
        pod.daemon.exit(&setup.id);
        assert_eq!(setup.log().len(), 4_000_000);
        // The other one has seen everything.
        assert_eq!(reader.join().unwrap(), 44_000_000, "{:?}", pod.daemon.events);
    });
}

#[test]
fn clients_whose_input_nobody_takes_do_not_use_up_the_places() {
    as_root(|| {
        let mut pod = Pod::new();
        let setup = reader(&pod, &["sleep", "1000"]);
        pod.run(&setup);
        let mut patient = pod.daemon.attach(&setup.id, BOTH_WAYS).unwrap();
        // More than the container's pipe holds: from here on its stdin is behind.
        patient.write(&"x".repeat(100_000));
        for round in 0..1000 {
            let mut attached = pod
                .daemon
                .attach(&setup.id, BOTH_WAYS)
                .unwrap_or_else(|failure| panic!("{round}: {failure:?}"));
            attached.write("never read");
        }
        pod.daemon.signal(&setup.id, 9);
        // Whoever is still there is told.
        assert_ne!(pod.daemon.attach_end(&patient.id), End::TooSlow);
    });
}

#[test]
fn ten_thousand_clients_that_come_and_go_leave_nothing() {
    as_root(|| {
        let mut pod = Pod::new();
        let setup = reader(&pod, &["sh", "-c", "while sleep 0.01; do echo x; done"]);
        pod.run(&setup);
        let memory = |pod: &Pod| -> u64 {
            let text = std::fs::read_to_string(format!("/proc/{}/status", pod.shim.pid)).unwrap();
            let line = text.lines().find(|line| line.starts_with("RssAnon:")).unwrap().to_owned();
            line.split_whitespace().nth(1).unwrap().parse().unwrap()
        };
        drop(pod.daemon.attach(&setup.id, BOTH_WAYS).unwrap());
        let before = open_descriptors(&pod);
        let memory_before = memory(&pod);
        for round in 0..10_000 {
            let attached = pod.daemon.attach(&setup.id, [round % 2 == 0, true, round % 3 == 0]);
            drop(attached.unwrap_or_else(|failure| panic!("{round}: {failure:?}")));
        }
        eventually("no descriptor more than before", || (open_descriptors(&pod) <= before).then_some(()));
        assert!(memory(&pod) <= memory_before + 256, "{} {}", memory_before, memory(&pod));
        assert_eq!(pod.shim_log(), "");
    });
}
