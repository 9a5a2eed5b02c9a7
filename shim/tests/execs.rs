//! Execs with terminals, with long processes, whose client or whose container is gone.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod pod;

use std::fs::File;
use std::io::{Read as _, Write as _};

use crisp_proto::supervisor as pb;
use pod::{Pod, Setup, as_root, eventually};
use serde_json::{Value, json};

/// Reads a terminal until it has shown this.
fn read_until(master: &mut File, wanted: &str) -> String {
    let mut seen = String::new();
    let mut byte = [0];
    while !seen.contains(wanted) {
        match master.read(&mut byte) {
            Ok(1) => seen.push(char::from(byte[0])),
            other => panic!("{other:?} after {seen:?}"),
        }
    }
    seen
}

fn terminal_process(setup: &Setup, args: &[&str]) -> Value {
    let mut process = setup.exec_process(args);
    process["terminal"] = true.into();
    process["consoleSize"] = json!({"width": 111, "height": 33});
    process
}

#[test]
fn a_terminal_has_its_size_before_the_program_runs_and_is_the_clients() {
    as_root(|| {
        let mut pod = Pod::new();
        let setup = pod.container(&["sleep", "1000"]);
        pod.run(&setup);
        let script = "tty; stty size; read x; echo got $x; exit 4";
        let process = terminal_process(&setup, &["sh", "-c", script]);
        let (mut master, id) = pod.daemon.exec_terminal(&setup, &process).unwrap();
        assert_eq!(read_until(&mut master, "33 111\r\n"), "/dev/pts/0\r\n33 111\r\n");
        master.write_all(b"it\n").unwrap();
        read_until(&mut master, "got it\r\n");
        assert_eq!(pod.daemon.exec_exit(&id).0.code, 4);
        // The client goes: the terminal hangs up.
        let process = terminal_process(&setup, &["sh", "-c", "echo ready; exec sleep 1000"]);
        let (mut master, id) = pod.daemon.exec_terminal(&setup, &process).unwrap();
        read_until(&mut master, "ready");
        drop(master);
        assert_eq!(pod.daemon.exec_exit(&id).0.signal, 1);
    });
}

#[test]
fn what_does_not_end_with_its_daemon_is_killed_after_the_grace() {
    as_root(|| {
        let mut pod = Pod::new();
        let setup = pod.container(&["sleep", "1000"]);
        pod.run(&setup);
        let process = setup.exec_process(&["sh", "-c", "trap '' HUP; (sleep 1001 &); exec sleep 1002"]);
        let (id, began) = pod.daemon.exec_from_file(&setup, &process);
        began.unwrap();
        let mut next = pod::Daemon::connect(&pod.path().join("shim.sock"));
        let (other, began) = next.exec_from_file(&setup, &setup.exec_process(&["sleep", "1003"]));
        began.unwrap();
        pod.daemon = next;
        assert_eq!(pod.daemon.exec_exit(&id).0.signal, 9);
        // The container, and what the new daemon has begun, are not touched.
        assert_eq!(pod.daemon.hello().containers[0].phase, 1);
        pod.daemon.signal(&setup.id, 9);
        pod.daemon.exec_exit(&other);
        eventually("nothing left", || pod.cgroups.processes().is_empty().then_some(()));
    });
}

#[test]
fn what_does_not_end_with_its_client_is_killed_after_the_grace() {
    as_root(|| {
        let mut pod = Pod::new();
        let setup = pod.container(&["sleep", "1000"]);
        pod.run(&setup);
        let script = "trap '' HUP TERM; (setsid sleep 1001 &); echo ready; while :; do sleep 0.05; done";
        let process = terminal_process(&setup, &["sh", "-c", script]);
        let (mut master, id) = pod.daemon.exec_terminal(&setup, &process).unwrap();
        read_until(&mut master, "ready");
        drop(master);
        let begin = std::time::Instant::now();
        pod.daemon.kill_exec(&setup.id, &id, 300);
        let (exit, timed_out) = pod.daemon.exec_exit(&id);
        assert_eq!((exit.signal, timed_out), (9, false));
        assert!(begin.elapsed().as_millis() >= 300);
        eventually("only init", || (pod.cgroups.processes().len() == 1).then_some(()));
    });
}

#[test]
fn a_process_that_is_too_long_for_a_packet_comes_in_a_file() {
    as_root(|| {
        let mut pod = Pod::new();
        let setup = pod.container(&["sleep", "1000"]);
        pod.run(&setup);
        let mut args = vec!["sh".to_owned(), "-c".to_owned(), "exit $(($# - 90))".to_owned()];
        args.extend((0..100).map(|_| "x".repeat(10_000)));
        let mut process = setup.exec_process(&[]);
        process["args"] = json!(args);
        let (id, answer) = pod.daemon.exec_from_file(&setup, &process);
        answer.unwrap();
        assert_eq!(pod.daemon.exec_exit(&id).0.code, 9);
        let (_, answer) = pod.daemon.exec_from_file(&setup, &json!("no process"));
        assert!(answer.unwrap_err().message.contains("process"));
    });
}

#[test]
fn execs_die_with_their_container_also_in_a_shared_pid_namespace() {
    as_root(|| {
        let mut pod = Pod::new();
        let pid = pod.start_init();
        let mut setup = pod.container(&["sleep", "1000"]);
        setup.spec["linux"]["namespaces"][0]["path"] = format!("/proc/{pid}/ns/pid").into();
        pod.run(&setup);
        let process = terminal_process(&setup, &["sh", "-c", "trap '' HUP; echo ready; sleep 1001"]);
        let (mut master, id) = pod.daemon.exec_terminal(&setup, &process).unwrap();
        read_until(&mut master, "ready");
        pod.daemon.signal(&setup.id, 9);
        pod.daemon.exit(&setup.id);
        assert_eq!(pod.daemon.exec_exit(&id).0.signal, 9);
        eventually("only the pod's init", || (pod.cgroups.processes() == [pid]).then_some(()));
    });
}

#[test]
fn the_end_of_the_pods_init_is_told() {
    as_root(|| {
        let mut pod = Pod::new();
        let pid = pod.start_init();
        crisp_sys::pidfd::kill(crisp_sys::pidfd::open(pid).unwrap()).unwrap();
        let told = pod.daemon.event(|event| match event {
            pb::message::Kind::PodInitExited(exited) => Some(exited.pid),
            _ => None,
        });
        assert_eq!(told, pid);
        assert_eq!(pod.daemon.hello().pod_init_pid, 0);
        let order =
            pb::StartPodInit { namespace_paths: vec!["/missing".into()], cgroup: None, ..Default::default() };
        let failure = pod.daemon.call(pb::request::Call::StartPodInit(order)).unwrap_err();
        assert!(failure.message.contains("/missing"), "{failure:?}");
        assert_ne!(pod.start_init(), pid);
    });
}

/// A user namespace that lives as long as this: root is 100000 outside.
struct UserNamespace(std::process::Child);

impl UserNamespace {
    fn new() -> Self {
        let child = std::process::Command::new("unshare").args(["-U", "sleep", "1000"]).spawn().unwrap();
        let proc = std::path::PathBuf::from(format!("/proc/{}", child.id()));
        let own = std::fs::read_link("/proc/self/ns/user").unwrap();
        eventually("the user namespace", || {
            (std::fs::read_link(proc.join("ns/user")).ok()? != own).then_some(())
        });
        for map in ["uid_map", "gid_map"] {
            let mut file = File::options().write(true).open(proc.join(map)).unwrap();
            file.write_all(b"0 100000 65536\n").unwrap();
        }
        Self(child)
    }

    fn path(&self) -> String {
        format!("/proc/{}/ns/user", self.0.id())
    }
}

impl Drop for UserNamespace {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn an_exec_enters_the_containers_user_namespace_and_has_no_right_outside() {
    as_root(|| {
        let namespace = UserNamespace::new();
        let mut pod = Pod::new();
        for uid in [0, 1000] {
            let mut setup = pod.container(&["sh", "-c", "cat /proc/self/status; exec sleep 1000"]);
            // What the daemon gives the mapped root.
            for dir in ["", "rootfs", "rootfs/dev", "rootfs/proc", "rootfs/sys", "rootfs/tmp"] {
                std::os::unix::fs::chown(setup.dir.join(dir), Some(100_000), Some(100_000)).unwrap();
            }
            let everybodys = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
            std::fs::set_permissions(setup.dir.join("rootfs/tmp"), everybodys).unwrap();
            let namespaces = setup.spec["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.push(json!({"type": "user", "path": namespace.path()}));
            let map = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
            (setup.spec["linux"]["uidMappings"], setup.spec["linux"]["gidMappings"]) = (map.clone(), map);
            setup.process()["user"] = json!({"uid": uid, "gid": uid, "additionalGids": [5, 7]});
            pod.run(&setup);
            eventually("the status", || setup.output().contains("Seccomp_filters").then_some(()));
            let seen = |text: &str| -> Vec<String> {
                let kept = |line: &&str| {
                    ["Cap", "Uid:", "Gid:", "Groups:", "NoNewPrivs:"]
                        .iter()
                        .any(|name| line.starts_with(name))
                };
                text.lines().filter(kept).map(str::to_owned).collect()
            };
            let status = setup.exec_process(&["cat", "/proc/self/status"]);
            let exec = pod.daemon.exec(&setup, &status, 0).unwrap();
            assert_eq!(seen(&exec.stdout), seen(&setup.output()), "uid {uid}");
            let script =
                "cat /proc/self/uid_map; touch /tmp/made; stat -c %u /tmp/made; mount -t tmpfs none /mnt";
            let exec = pod.daemon.exec(&setup, &setup.exec_process(&["sh", "-c", script]), 0).unwrap();
            assert!(exec.stdout.contains("100000") && !exec.stderr.contains("touch"), "{exec:?}");
            assert_ne!(exec.code, 0);
            let process = terminal_process(&setup, &["sh", "-c", "stat -c %u $(tty); exit 3"]);
            let (mut master, id) = pod.daemon.exec_terminal(&setup, &process).unwrap();
            read_until(&mut master, &format!("{uid}\r\n"));
            assert_eq!(pod.daemon.exec_exit(&id).0.code, 3);
            pod.daemon.signal(&setup.id, 9);
            pod.daemon.exit(&setup.id);
            pod.daemon.delete(&setup.id).unwrap();
        }
    });
}
