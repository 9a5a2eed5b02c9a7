//! A shim's containers, over its socket: from creation to the exit record.

#![allow(clippy::panic, reason = "helpers of tests")]

mod pod;

use pod::{CONFINEMENT, Pod, as_root, status_fields};

#[test]
fn a_container_runs_logs_and_ends() {
    as_root(|| {
        let mut pod = Pod::new();
        let setup = pod.container(&["sh", "-c", "echo out; echo err >&2; printf partial; exit 7"]);
        let started = pod.daemon.create(&setup).unwrap();
        assert!(started.pid > 0 && started.start_time_ticks > 0);
        let state = pod.daemon.hello();
        assert_eq!((state.containers.len(), state.containers[0].phase), (1, 0));
        assert!(!setup.log_path().exists());
        pod.daemon.start(&setup.id).unwrap();
        assert!(setup.log_path().exists());
        let exit = pod.daemon.exit(&setup.id);
        assert_eq!((exit.code, exit.signal, exit.oom_killed), (7, 0, false));
        let mut log = setup.log();
        log.sort();
        assert_eq!(log, ["stderr F err", "stdout F out", "stdout P partial"]);
        assert_eq!(setup.exit_record().unwrap()["code"], 7);
        assert_eq!(pod.daemon.hello().containers[0].exit, Some(exit));
        pod.daemon.delete(&setup.id).unwrap();
        assert!(pod.daemon.hello().containers.is_empty());
        assert_eq!(pod.shim_log(), "");
    });
}

#[test]
fn a_program_that_cannot_run_is_an_error_of_the_start() {
    as_root(|| {
        let mut pod = Pod::new();
        for (args, wanted) in [
            (["/bin/missing"], "No such file"),
            (["missing"], "No such file"),
            (["/etc/passwd"], "Permission denied"),
            (["/etc"], "Permission denied"),
        ] {
            let setup = pod.container(&args);
            pod.daemon.create(&setup).unwrap();
            let failure = pod.daemon.start(&setup.id).unwrap_err();
            assert!(failure.message.contains(wanted) && failure.message.contains(args[0]), "{failure:?}");
            assert_eq!(pod.daemon.exit(&setup.id).code, 128);
            assert_eq!(setup.exit_record().unwrap()["code"], 128);
            pod.daemon.delete(&setup.id).unwrap();
        }
        let setup = pod.container(&["/bin/garbage"]);
        pod::write_program(&setup.dir.join("rootfs/bin/garbage"), "\x7f\x01\x02\x03");
        pod.daemon.create(&setup).unwrap();
        let failure = pod.daemon.start(&setup.id).unwrap_err();
        assert!(failure.message.contains("Exec format error"), "{failure:?}");
    });
}

#[test]
fn a_creation_that_fails_says_why_and_leaves_nothing() {
    as_root(|| {
        let mut pod = Pod::new();
        let mut setup = pod.container(&["true"]);
        setup.spec["mounts"].as_array_mut().unwrap().push(serde_json::json!(
            {"destination": "/data", "type": "bind", "source": "/does/not/exist", "options": ["rbind"]}
        ));
        let failure = pod.daemon.create(&setup).unwrap_err();
        assert!(failure.message.contains("/does/not/exist"), "{failure:?}");
        assert!(pod.daemon.hello().containers.is_empty());
        assert!(pod.cgroups.processes().is_empty());
        // The same id can be used again.
        setup.spec["mounts"].as_array_mut().unwrap().pop();
        pod.run(&setup);
        assert_eq!(pod.daemon.exit(&setup.id).code, 0);
    });
}

/// Makes a specification one that is refused.
type Change = fn(&mut serde_json::Value);

#[test]
fn what_the_handler_cannot_do_is_refused_before_anything_is_made() {
    as_root(|| {
        let mut pod = Pod::new();
        let cases: [(&str, Change); 7] = [
            ("user namespace", |spec| {
                spec["linux"]["namespaces"].as_array_mut().unwrap().push(serde_json::json!({"type": "user"}));
            }),
            ("personality", |spec| {
                spec["linux"]["personality"] =
                    serde_json::json!({"domain": "LINUX", "flags": ["ADDR_NO_RANDOMIZE"]});
            }),
            ("rdma", |spec| {
                spec["linux"]["resources"] = serde_json::json!({"rdma": {"mlx5_1": {"hcaHandles": 3}}});
            }),
            ("tmpcopyup", |spec| spec["mounts"][1]["options"] = serde_json::json!(["tmpcopyup"])),
            ("id-mapped", |spec| spec["mounts"][1]["options"] = serde_json::json!(["idmap"])),
            ("SELinux", |spec| {
                spec["process"]["selinuxLabel"] = serde_json::json!("system_u:system_r:x_t:s0")
            }),
            ("AppArmor", |spec| spec["process"]["apparmorProfile"] = serde_json::json!("profile")),
        ];
        let apparmor = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled")
            .is_ok_and(|text| text.starts_with('Y'));
        for (wanted, change) in cases {
            if wanted == "AppArmor" && apparmor {
                continue;
            }
            let mut setup = pod.container(&["true"]);
            change(&mut setup.spec);
            let failure = pod.daemon.create(&setup).unwrap_err();
            assert!(failure.message.contains(wanted), "{wanted}: {failure:?}");
        }
        let setup = pod.container(&["true"]);
        std::fs::remove_dir_all(setup.dir.join("rootfs/dev")).unwrap();
        std::os::unix::fs::symlink("/etc", setup.dir.join("rootfs/dev")).unwrap();
        assert!(pod.daemon.create(&setup).unwrap_err().message.contains("/dev"));
    });
}

#[test]
fn init_and_exec_have_the_same_confinement_and_root_and_user_get_what_was_asked() {
    as_root(|| {
        let mut pod = Pod::new();
        for (uid, no_new_privs, ambient) in
            [(0, false, false), (0, true, false), (1000, false, false), (1000, true, true)]
        {
            let mut setup = pod.container(&["sh", "-c", "cat /proc/self/status; exec sleep 1000"]);
            let process = setup.process();
            process["user"] = serde_json::json!({"uid": uid, "gid": uid, "additionalGids": [5, 7]});
            if no_new_privs {
                process["noNewPrivileges"] = true.into();
            }
            if ambient {
                for set in ["inheritable", "ambient", "permitted", "effective", "bounding"] {
                    process["capabilities"][set] = serde_json::json!(["CAP_NET_BIND_SERVICE"]);
                }
            }
            setup.with_seccomp();
            pod.run(&setup);
            pod::eventually("the status", || setup.output().contains("Seccomp_filters").then_some(()));
            let exec =
                pod.daemon.exec(&setup, &setup.exec_process(&["cat", "/proc/self/status"]), 0).unwrap();
            let init = status_fields(&setup.output(), &CONFINEMENT);
            assert_eq!(init, status_fields(&exec.stdout, &CONFINEMENT));
            assert!(init.contains(&"Seccomp: 2".to_owned()));
            assert!(init.contains(&format!("Uid: {uid} {uid} {uid} {uid}")));
            assert!(init.contains(&"Groups: 5 7".to_owned()), "{init:?}");
            assert!(init.contains(&format!("NoNewPrivs: {}", u8::from(no_new_privs))));
            let caps = if ambient { "0000000000000400" } else { "00000000a80425fb" };
            assert!(init.contains(&format!("CapBnd: {caps}")), "{init:?}");
            let effective = if uid == 0 || ambient { caps } else { "0000000000000000" };
            assert!(init.contains(&format!("CapEff: {effective}")), "{init:?}");
            pod.daemon.signal(&setup.id, 9);
            assert_eq!(pod.daemon.exit(&setup.id).signal, 9);
            pod.daemon.delete(&setup.id).unwrap();
        }
    });
}

#[test]
fn the_filter_of_the_container_counts_in_an_exec() {
    as_root(|| {
        let mut pod = Pod::new();
        let mut setup = pod.container(&["sleep", "1000"]);
        setup.with_seccomp();
        pod.run(&setup);
        // The test's filter answers mkdir with EPERM.
        let exec = pod.daemon.exec(&setup, &setup.exec_process(&["mkdir", "/tmp/x"]), 0).unwrap();
        assert!(exec.stderr.contains("Operation not permitted"), "{exec:?}");
        assert_eq!(exec.code, 1);
        // Without it nothing runs.
        std::fs::remove_file(setup.dir.join("seccomp.bpf")).unwrap();
        let failure = pod.daemon.exec(&setup, &setup.exec_process(&["true"]), 0).unwrap_err();
        assert!(failure.message.contains("seccomp.bpf"), "{failure:?}");
    });
}

#[test]
fn an_exec_reports_output_code_and_what_cannot_be_executed() {
    as_root(|| {
        let mut pod = Pod::new();
        let setup = pod.container(&["sleep", "1000"]);
        pod.run(&setup);
        let process = setup.exec_process(&[
            "sh",
            "-c",
            "echo $NAME; hostname; echo e >&2; ls /proc/self/fd | wc -l; exit 5",
        ]);
        let exec = pod.daemon.exec(&setup, &process, 0).unwrap();
        assert_eq!((exec.code, exec.stdout.as_str(), exec.stderr.as_str()), (5, "value\ntest\n4\n", "e\n"));
        let failure = pod.daemon.exec(&setup, &setup.exec_process(&["missing"]), 0).unwrap_err();
        assert!(
            failure.message.contains("missing") && failure.message.contains("No such file"),
            "{failure:?}"
        );
        // It is in the container's PID namespace and cgroup, and nothing of it is left.
        let exec = pod
            .daemon
            .exec(&setup, &setup.exec_process(&["sh", "-c", "ps | grep -c sleep; cat /proc/self/cgroup"]), 0)
            .unwrap();
        assert!(exec.stdout.contains("crisp-shim-test-"), "{exec:?}");
        // The helper that began it may end after it.
        pod::eventually("no cgroup of an exec", || {
            let mut entries = std::fs::read_dir(pod.cgroups.dir("freezer")).unwrap().flatten();
            (!entries.any(|entry| entry.file_name().to_string_lossy().starts_with("exec-"))).then_some(())
        });
        pod.daemon.signal(&setup.id, 9);
        pod.daemon.exit(&setup.id);
        let failure = pod.daemon.exec(&setup, &setup.exec_process(&["true"]), 0).unwrap_err();
        assert_eq!(failure.code(), crisp_proto::supervisor::Code::WrongState);
    });
}

#[test]
fn an_exec_whose_time_is_up_dies_with_all_that_it_started() {
    as_root(|| {
        let mut pod = Pod::new();
        let setup = pod.container(&["sleep", "1000"]);
        pod.run(&setup);
        let script = "setsid sleep 1001 & (sleep 1002 &) ; sleep 1003";
        let exec = pod.daemon.exec(&setup, &setup.exec_process(&["sh", "-c", script]), 300).unwrap();
        assert!(exec.timed_out, "{exec:?}");
        assert_eq!(exec.signal, 9);
        let exec = pod.daemon.exec(&setup, &setup.exec_process(&["ps"]), 0).unwrap();
        assert!(
            !exec.stdout.contains("sleep 100") || exec.stdout.matches("sleep 100").count() == 1,
            "{}",
            exec.stdout
        );
        assert!(!exec.stdout.contains("1001") && !exec.stdout.contains("1002"), "{}", exec.stdout);
    });
}

#[test]
fn an_oom_kill_is_told_apart() {
    as_root(|| {
        let mut pod = Pod::new();
        pod.cgroups.limit_memory(15 << 20);
        let setup = pod.container(&["dd", "if=/dev/zero", "of=/dev/null", "bs=20M"]);
        pod.run(&setup);
        let exit = pod.daemon.exit(&setup.id);
        assert_eq!((exit.signal, exit.oom_killed), (9, true));
        assert_eq!(setup.exit_record().unwrap()["oom_killed"], true);
    });
}

#[test]
fn a_log_is_rotated_without_losing_a_line() {
    as_root(|| {
        let mut pod = Pod::new();
        // It writes until it is told, however long the rotation takes.
        let script = "i=0; until [ -e /tmp/enough ]; do echo line $i; i=$((i+1)); done; echo $i >/tmp/count";
        let setup = pod.container(&["sh", "-c", script]);
        let failure = pod.daemon.reopen(&setup.id).unwrap_err();
        assert_eq!(failure.code(), crisp_proto::supervisor::Code::NotFound);
        pod.run(&setup);
        let rotated = setup.dir.join("logs/0.log.1");
        pod::eventually("lines", || (setup.log().len() > 100).then_some(()));
        std::fs::rename(setup.log_path(), &rotated).unwrap();
        pod.daemon.reopen(&setup.id).unwrap();
        assert!(setup.log_path().exists());
        let len = std::fs::metadata(&rotated).unwrap().len();
        pod::eventually("more lines", || (setup.log().len() > 100).then_some(()));
        std::fs::write(setup.dir.join("rootfs/tmp/enough"), "").unwrap();
        assert_eq!(pod.daemon.exit(&setup.id).code, 0);
        assert_eq!(std::fs::metadata(&rotated).unwrap().len(), len);
        let old = std::fs::read_to_string(rotated).unwrap();
        let old: String =
            old.lines().map(|line| format!("{}\n", line.splitn(4, ' ').nth(3).unwrap())).collect();
        let count = std::fs::read_to_string(setup.dir.join("rootfs/tmp/count")).unwrap();
        let count: u64 = count.trim_end().parse().unwrap();
        let wanted: String = (0..count).map(|i| format!("line {i}\n")).collect();
        assert!(old + &setup.output() == wanted);
        assert!(pod.daemon.reopen(&setup.id).is_err());
    });
}

#[test]
fn a_new_daemon_finds_everything_and_the_old_ones_death_changes_nothing() {
    as_root(|| {
        let mut pod = Pod::new();
        let (running, ended, created) = (
            pod.container(&["sh", "-c", "read x; exit 9"]),
            pod.container(&["sh", "-c", "exit 3"]),
            pod.container(&["true"]),
        );
        let mut running = running;
        running.stdio().stdin = true;
        pod.run(&running);
        pod.run(&ended);
        pod.daemon.exit(&ended.id);
        pod.daemon.create(&created).unwrap();
        pod.daemon = pod::Daemon::connect(&pod.path().join("shim.sock"));
        let state = pod.daemon.hello();
        let phases: Vec<_> = state
            .containers
            .iter()
            .map(|container| (container.container_id.as_str(), container.phase))
            .collect();
        assert_eq!(phases, [(running.id.as_str(), 1), (ended.id.as_str(), 2), (created.id.as_str(), 0)]);
        assert_eq!(state.containers[1].exit.unwrap().code, 3);
        pod.daemon.start(&created.id).unwrap();
        assert_eq!(pod.daemon.exit(&created.id).code, 0);
        pod.daemon.signal(&running.id, 15);
        pod.daemon.signal(&running.id, 9);
        assert_eq!(pod.daemon.exit(&running.id).signal, 9);
    });
}

#[test]
fn an_init_that_waits_dies_with_the_shim() {
    as_root(|| {
        let mut pod = Pod::new();
        let setup = pod.container(&["touch", "/tmp/ran"]);
        pod.daemon.create(&setup).unwrap();
        assert_eq!(pod.cgroups.processes().len(), 1);
        crisp_sys::pidfd::kill(&pod.shim.pidfd).unwrap();
        pod::eventually("the end of init", || pod.cgroups.processes().is_empty().then_some(()));
        assert!(!setup.dir.join("rootfs/tmp/ran").exists());
    });
}

#[test]
fn deleting_a_created_container_kills_its_init() {
    as_root(|| {
        let mut pod = Pod::new();
        let setup = pod.container(&["sleep", "1000"]);
        pod.daemon.create(&setup).unwrap();
        pod.daemon.delete(&setup.id).unwrap();
        assert!(pod.cgroups.processes().is_empty());
        pod.run(&setup);
        let failure = pod.daemon.delete(&setup.id).unwrap_err();
        assert_eq!(failure.code(), crisp_proto::supervisor::Code::WrongState);
        pod.daemon.delete("unknown").unwrap();
    });
}

#[test]
fn a_terminal_is_logged_as_stdout() {
    as_root(|| {
        let mut pod = Pod::new();
        let mut setup = pod.container(&["sh", "-c", "tty; echo err >&2; exit 4"]);
        setup.stdio().terminal = true;
        setup.process()["terminal"] = true.into();
        pod.run(&setup);
        assert_eq!(pod.daemon.exit(&setup.id).code, 4);
        assert_eq!(setup.log(), ["stdout F /dev/pts/0", "stdout F err"]);
    });
}

#[test]
fn neither_the_shim_nor_the_host_can_be_reached_through_proc_self_exe() {
    as_root(|| {
        let mut pod = Pod::new();
        // What runs is the launcher's own memory file, which is sealed, and says how it is used.
        let setup = pod.container(&["/proc/self/exe"]);
        pod.daemon.create(&setup).unwrap();
        match pod.daemon.start(&setup.id) {
            Ok(()) => {
                assert_eq!(pod.daemon.exit(&setup.id).code, 2);
                assert!(setup.output().contains("usage"), "{}", setup.output());
            }
            Err(failure) => assert!(failure.message.contains("/proc/self/exe"), "{failure:?}"),
        }
        let setup = pod.container(&[
            "sh",
            "-c",
            "sleep 0.2; for p in /proc/[0-9]*; do echo x > $p/exe; done; exit 0",
        ]);
        pod.run(&setup);
        pod.daemon.exec(&setup, &setup.exec_process(&["/proc/self/exe"]), 2000).ok();
        assert_eq!(pod.daemon.exit(&setup.id).code, 0);
    });
}

#[test]
fn missing_directories_no_path_and_mount_propagation_work() {
    as_root(|| {
        let mut pod = Pod::new();
        let script = "/bin/busybox pwd; /bin/busybox stat -c %u:%a /made/up; /bin/busybox cat /proc/self/mountinfo; \
            /bin/busybox touch /sys/fs/cgroup/memory/x || /bin/busybox echo read-only; /bin/busybox ls /sys/fs/cgroup";
        let mut setup = pod.container(&["/bin/sh", "-c", script]);
        setup.process()["env"] = serde_json::json!([]);
        setup.process()["cwd"] = "/made/up".into();
        setup.process()["user"] = serde_json::json!({"uid": 1000, "gid": 1000});
        let shared = setup.dir.join("shared");
        std::fs::create_dir(&shared).unwrap();
        rustix::mount::mount("none", &shared, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
        rustix::mount::mount_change(&shared, rustix::mount::MountPropagationFlags::SHARED).unwrap();
        let bind = |destination: &str, propagation: &str| {
            serde_json::json!(
                {"destination": destination, "type": "bind", "source": shared, "options": ["rbind", propagation]}
            )
        };
        let mounts = setup.spec["mounts"].as_array_mut().unwrap();
        mounts.extend([bind("/p", "rprivate"), bind("/s", "rslave"), bind("/b", "rshared")]);
        setup.spec["linux"]["rootfsPropagation"] = "rshared".into();
        pod.run(&setup);
        assert_eq!(pod.daemon.exit(&setup.id).code, 0);
        let output = setup.output();
        assert!(output.starts_with("/made/up\n0:755\n"), "{output}");
        assert!(output.contains("read-only") && !output.contains("systemd"), "{output}");
        let line = |target: &str| {
            output.lines().find(|line| line.contains(&format!(" {target} "))).unwrap().to_owned()
        };
        assert!(!line("/p").contains("shared:") && !line("/p").contains("master:"), "{}", line("/p"));
        assert!(line("/s").contains("master:"), "{}", line("/s"));
        assert!(line("/b").contains("shared:"), "{}", line("/b"));
        rustix::mount::unmount(&shared, rustix::mount::UnmountFlags::DETACH).unwrap();
    });
}

#[test]
fn a_pods_init_reaps_and_is_confined() {
    as_root(|| {
        let mut pod = Pod::new();
        let pid = pod.start_init();
        assert_eq!(pod.daemon.hello().pod_init_pid, pid);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let wanted = ["CapPrm: 0000000000000000", "CapBnd: 0000000000000000", "NoNewPrivs: 1", "Seccomp: 2"];
        assert_eq!(status_fields(&status, &["CapPrm:", "CapBnd:", "NoNewPrivs:", "Seccomp:"]), wanted);
        // Two containers in its PID namespace; what one leaves behind is reaped.
        let mut setup = pod.container(&["sh", "-c", "(sleep 0.1 &) ; exit 0"]);
        setup.spec["linux"]["namespaces"][0]["path"] = format!("/proc/{pid}/ns/pid").into();
        pod.run(&setup);
        assert_eq!(pod.daemon.exit(&setup.id).code, 0);
        pod::eventually("only the pod's init", || (pod.cgroups.processes() == [pid]).then_some(()));
    });
}

#[test]
fn hooks_run_where_and_when_they_belong() {
    as_root(|| {
        let mut pod = Pod::new();
        let mut setup = pod.container(&["cat", "/tmp/created", "/tmp/started"]);
        let out = setup.dir.join("runtime-hook");
        let hook = |script: String| serde_json::json!({"path": "/bin/sh", "args": ["sh", "-c", script]});
        setup.spec["hooks"] = serde_json::json!({
            "createRuntime": [hook(format!("cat > {}", out.display()))],
            "createContainer": [hook(format!("echo created > {}/rootfs/tmp/created", setup.dir.display()))],
            "startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", "echo started > /tmp/started"]}],
        });
        let started = pod.daemon.create(&setup).unwrap();
        let state: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(&out).unwrap()).unwrap();
        assert_eq!(
            (state["id"].as_str(), state["pid"].as_i64()),
            (Some(setup.id.as_str()), Some(started.pid.into()))
        );
        assert!(!setup.dir.join("rootfs/tmp/started").exists());
        pod.daemon.start(&setup.id).unwrap();
        assert_eq!(pod.daemon.exit(&setup.id).code, 0);
        assert_eq!(setup.output(), "created\nstarted\n");
        pod.daemon.delete(&setup.id).unwrap();

        let mut setup = pod.container(&["true"]);
        setup.spec["hooks"] = serde_json::json!({"createRuntime": [hook("exit 3".into())]});
        let failure = pod.daemon.create(&setup).unwrap_err();
        assert!(failure.message.contains("hook") && failure.message.contains('3'), "{failure:?}");
        assert!(pod.daemon.hello().containers.is_empty());
        assert!(pod.cgroups.processes().is_empty());
    });
}

#[test]
fn a_hundred_short_containers_and_execs_leave_no_process_and_no_descriptor() {
    as_root(|| {
        let mut pod = Pod::new();
        let open = |pod: &Pod| std::fs::read_dir(format!("/proc/{}/fd", pod.shim.pid)).unwrap().count();
        let only_init_is_left = |pod: &Pod| {
            pod::eventually("only init of the shim's children", || {
                let path = format!("/proc/{0}/task/{0}/children", pod.shim.pid);
                (std::fs::read_to_string(path).unwrap().split_whitespace().count() == 1).then_some(())
            });
        };
        let long = pod.container(&["sleep", "1000"]);
        pod.run(&long);
        // What makes a container and what begins an exec may end after that, and is waited for.
        only_init_is_left(&pod);
        let before = open(&pod);
        for round in 0..100 {
            let process = long.exec_process(&[["true", "false", "missing"][round % 3]]);
            let result = pod.daemon.exec(&long, &process, 5000);
            assert_eq!(result.map(|exec| exec.code).ok(), [Some(0), Some(1), None][round % 3]);
            if round % 10 == 0 {
                let setup = pod.container(&["true"]);
                pod.run(&setup);
                assert_eq!(pod.daemon.exit(&setup.id).code, 0);
                pod.daemon.delete(&setup.id).unwrap();
            }
        }
        only_init_is_left(&pod);
        pod::eventually("no descriptor more than before", || (open(&pod) == before).then_some(()));
        assert_eq!(pod.cgroups.processes().len(), 1);
        assert_eq!(pod.shim_log(), "");
    });
}

#[test]
fn shutting_down_kills_everything_and_ends_the_shim() {
    as_root(|| {
        let mut pod = Pod::new();
        let setup = pod.container(&["sleep", "1000"]);
        pod.run(&setup);
        let waiting = pod.container(&["sleep", "1000"]);
        pod.daemon.create(&waiting).unwrap();
        pod.daemon
            .call(crisp_proto::supervisor::request::Call::Shutdown(crisp_proto::supervisor::Shutdown {}))
            .unwrap();
        assert_eq!(crisp_sys::pidfd::wait(&pod.shim.pidfd).unwrap(), crisp_sys::pidfd::Ended::Code(0));
        assert!(pod.cgroups.processes().is_empty());
    });
}

#[test]
fn an_apparmor_profile_that_is_not_there_stops_the_start_and_the_exec() {
    as_root(|| {
        let enabled = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled");
        if !enabled.is_ok_and(|text| text.starts_with('Y')) {
            return;
        }
        let mut pod = Pod::new();
        let mut setup = pod.container(&["true"]);
        setup.process()["apparmorProfile"] = "crisp-missing".into();
        pod.daemon.create(&setup).unwrap();
        let failure = pod.daemon.start(&setup.id).unwrap_err();
        assert!(failure.message.contains("crisp-missing"), "{failure:?}");
        let mut setup = pod.container(&["sleep", "1000"]);
        setup.process()["apparmorProfile"] = "unconfined".into();
        pod.run(&setup);
        let mut process = setup.exec_process(&["cat", "/proc/self/attr/current"]);
        let exec = pod.daemon.exec(&setup, &process, 0).unwrap();
        assert!(exec.stdout.starts_with("unconfined"), "{exec:?}");
        process["apparmorProfile"] = "crisp-missing".into();
        let failure = pod.daemon.exec(&setup, &process, 0).unwrap_err();
        assert!(failure.message.contains("crisp-missing"), "{failure:?}");
    });
}

/// Numbers of the descriptors that a process of the shim may have open.
const NUMBERS: std::ops::Range<i32> = 3..40;

#[test]
fn a_program_is_not_found_through_descriptors_of_the_host() {
    as_root(|| {
        let mut pod = Pod::new();
        // Needs no library, which would not be found.
        let program = |number: i32| format!("/proc/self/fd/{number}/../bin/busybox");
        let scripts = |setup: &pod::Setup| {
            for number in NUMBERS {
                let path = setup.dir.join(format!("rootfs/bin/script{number}"));
                std::fs::write(&path, format!("#!{} true\n", program(number))).unwrap();
                let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
                std::fs::set_permissions(&path, mode).unwrap();
            }
        };
        let running = pod.container(&["sleep", "1000"]);
        scripts(&running);
        pod.run(&running);
        let mut setup = pod.container(&[]);
        scripts(&setup);
        for number in NUMBERS {
            for args in [program(number), format!("/bin/script{number}")] {
                let exec = pod.daemon.exec(&running, &running.exec_process(&[&args]), 0);
                assert!(exec.is_err(), "exec of {args}: {exec:?}");
                setup.process()["args"] = serde_json::json!([args]);
                pod.daemon.create(&setup).unwrap();
                let started = pod.daemon.start(&setup.id);
                assert!(started.is_err(), "start of {args}: {started:?}");
                pod.daemon.exit(&setup.id);
                pod.daemon.delete(&setup.id).unwrap();
            }
        }
    });
}

#[test]
fn only_the_shim_is_spared_by_the_oom_killer() {
    as_root(|| {
        let own = std::fs::read_to_string("/proc/self/oom_score_adj").unwrap();
        let mut pod = Pod::new();
        for requested in [None, Some(500)] {
            let mut setup = pod.container(&["sh", "-c", "cat /proc/self/oom_score_adj; exec sleep 1000"]);
            if let Some(requested) = requested {
                setup.process()["oomScoreAdj"] = requested.into();
            }
            pod.run(&setup);
            let wanted = requested.map_or_else(|| own.clone(), |requested: i32| format!("{requested}\n"));
            pod::eventually("the value of init", || (setup.output() == wanted).then_some(()));
            let process = setup.exec_process(&["cat", "/proc/self/oom_score_adj"]);
            assert_eq!(pod.daemon.exec(&setup, &process, 0).unwrap().stdout, wanted);
        }
    });
}

#[test]
fn an_exec_whose_time_is_up_on_the_way_is_timed_out_not_failed() {
    as_root(|| {
        let mut pod = Pod::new();
        let setup = pod.container(&["sleep", "1000"]);
        pod.run(&setup);
        for _ in 0..20 {
            let exec = pod.daemon.exec(&setup, &setup.exec_process(&["sleep", "1001"]), 1).unwrap();
            assert_eq!((exec.timed_out, exec.signal), (true, 9), "{exec:?}");
        }
        pod::eventually("only init", || (pod.cgroups.processes().len() == 1).then_some(()));
    });
}
