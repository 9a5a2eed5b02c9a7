//! Containers made by OCI runtime binaries, through the same protocol.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod pod;

use crisp_proto::supervisor as pb;
use pod::{CONFINEMENT, Pod, Setup, as_root, status_fields};

const RUNTIMES: [&str; 2] = ["/usr/sbin/runc", "/usr/bin/crun"];

/// crun refuses a hybrid host where cgroup2 has controllers; which it has here is of no interest to these tests.
fn hide_unified() {
    let unified = std::path::Path::new("/sys/fs/cgroup/unified");
    if unified.exists() {
        rustix::mount::mount("none", unified, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    }
}

fn by(pod: &Pod, runtime: &str, args: &[&str]) -> Setup {
    let mut setup = pod.container(args);
    let root = pod.path().join("runtime-root").to_string_lossy().into_owned();
    let binary = pb::OciBinary { path: runtime.into(), root, systemd_cgroup: false, global_args: vec![] };
    setup.order.handler = Some(pb::Handler { kind: Some(pb::handler::Kind::OciBinary(binary)) });
    let path = pod.cgroups.dir("memory").strip_prefix("/sys/fs/cgroup").unwrap().to_owned();
    let path =
        path.components().skip(usize::from(path.components().count() > 1)).collect::<std::path::PathBuf>();
    setup.spec["linux"]["cgroupsPath"] = format!("/{}/{}", path.display(), setup.id).into();
    for tasks in &mut setup.order.cgroup.as_mut().unwrap().v1_tasks {
        *tasks = tasks.replace("/tasks", &format!("/{}/tasks", setup.id));
    }
    setup.spec["mounts"].as_array_mut().unwrap().retain(|mount| mount["type"] != "cgroup");
    setup
}

fn installed() -> impl Iterator<Item = &'static str> {
    RUNTIMES.into_iter().filter(|path| std::path::Path::new(path).exists())
}

#[test]
fn an_oci_runtime_makes_runs_execs_and_deletes() {
    as_root(|| {
        hide_unified();
        for runtime in installed() {
            let mut pod = Pod::new();
            let mut setup = by(&pod, runtime, &["sh", "-c", "echo started; read x; exit 6"]);
            setup.stdio().stdin = true;
            let started =
                pod.daemon.create(&setup).unwrap_or_else(|failure| panic!("{runtime}: {failure:?}"));
            assert!(started.pid > 0);
            pod.daemon.start(&setup.id).unwrap();
            pod::eventually("output", || (setup.log() == ["stdout F started"]).then_some(()));
            let exec =
                pod.daemon.exec(&setup, &setup.exec_process(&["sh", "-c", "echo in; exit 3"]), 0).unwrap();
            assert_eq!((exec.code, exec.stdout.as_str()), (3, "in\n"), "{runtime}");
            let failure = pod.daemon.exec(&setup, &setup.exec_process(&["missing"]), 0).unwrap_err();
            assert!(failure.message.contains("missing"), "{runtime}: {failure:?}");
            // Long enough for the runtime to begin it, so that there is something to kill.
            let exec = pod
                .daemon
                .exec(&setup, &setup.exec_process(&["sh", "-c", "setsid sleep 1000 & sleep 1000"]), 5000)
                .unwrap();
            assert!(exec.timed_out, "{runtime}: {exec:?}");
            let exec = pod.daemon.exec(&setup, &setup.exec_process(&["ps"]), 0).unwrap();
            assert!(!exec.stdout.contains("sleep 1000"), "{runtime}: {}", exec.stdout);
            pod.daemon.signal(&setup.id, 9);
            assert_eq!(pod.daemon.exit(&setup.id).signal, 9, "{runtime}");
            pod.daemon.delete(&setup.id).unwrap();
            let root = pod.path().join("runtime-root");
            assert_eq!(std::fs::read_dir(root).map_or(0, Iterator::count), 0, "{runtime}");
        }
    });
}

#[test]
fn an_exec_whose_time_is_up_while_its_runtime_begins_it_is_timed_out_not_failed() {
    as_root(|| {
        hide_unified();
        for runtime in installed() {
            let mut pod = Pod::new();
            let setup = by(&pod, runtime, &["sleep", "1000"]);
            pod.run(&setup);
            for _ in 0..5 {
                let exec = pod.daemon.exec(&setup, &setup.exec_process(&["sleep", "1001"]), 1).unwrap();
                assert_eq!((exec.timed_out, exec.signal), (true, 9), "{runtime}: {exec:?}");
            }
        }
    });
}

#[test]
fn an_oci_runtimes_terminal_is_logged() {
    as_root(|| {
        hide_unified();
        for runtime in installed() {
            let mut pod = Pod::new();
            let mut setup = by(&pod, runtime, &["sh", "-c", "tty; exit 2"]);
            setup.stdio().terminal = true;
            setup.process()["terminal"] = true.into();
            pod.run(&setup);
            assert_eq!(pod.daemon.exit(&setup.id).code, 2, "{runtime}");
            assert_eq!(setup.log(), ["stdout F /dev/pts/0"], "{runtime}");
            pod.daemon.delete(&setup.id).unwrap();
        }
    });
}

#[test]
fn an_oci_runtimes_failure_comes_with_its_words() {
    as_root(|| {
        hide_unified();
        for runtime in installed() {
            let mut pod = Pod::new();
            let setup = by(&pod, runtime, &["/bin/missing"]);
            let made = pod.daemon.create(&setup).and_then(|_| pod.daemon.start(&setup.id));
            let failure = made.unwrap_err();
            assert!(failure.message.contains("missing"), "{runtime}: {failure:?}");
            pod.daemon.delete(&setup.id).unwrap();
        }
    });
}

#[test]
fn confinement_is_the_same_as_runcs() {
    as_root(|| {
        hide_unified();
        for (uid, no_new_privs) in [(0, false), (0, true), (1000, false), (1000, true)] {
            let mut seen = Vec::new();
            for runtime in [None, installed().next()] {
                let mut pod = Pod::new();
                let args = ["cat", "/proc/self/status"];
                let mut setup =
                    runtime.map_or_else(|| pod.container(&args), |runtime| by(&pod, runtime, &args));
                setup.process()["user"] = serde_json::json!({"uid": uid, "gid": uid, "additionalGids": [9]});
                setup.process()["noNewPrivileges"] = no_new_privs.into();
                setup.with_seccomp();
                pod.run(&setup);
                pod.daemon.exit(&setup.id);
                seen.push(status_fields(&setup.output(), &CONFINEMENT));
                pod.daemon.delete(&setup.id).unwrap();
            }
            assert_eq!(seen[0], seen[1]);
        }
    });
}
