//! What a container is between its creation and its start.

#![allow(clippy::panic, clippy::unwrap_used, reason = "helpers of tests")]

mod pod;

use pod::{Pod, as_root};

/// A field of a process's status, e.g. `CapBnd:`.
fn field(pid: i32, name: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap_or_else(|| panic!("{name} in {text}")).trim().to_owned()
}

/// However long the wait is, the process has no right that its program will not have. A filter that may be loaded without rights (with
/// `no_new_privs`) comes last, so that it need not allow the wait.
#[test]
fn an_init_that_waits_has_the_rights_of_its_program() {
    as_root(|| {
        let mut pod = Pod::new();
        for (no_new_privs, uid, seccomp) in [(false, 0, "2"), (false, 1000, "2"), (true, 0, "0")] {
            let mut setup = pod.container(&["sleep", "1000"]);
            let process = setup.process();
            process["user"] = serde_json::json!({"uid": uid, "gid": uid});
            if no_new_privs {
                process["noNewPrivileges"] = true.into();
            }
            setup.with_seccomp();
            let pid = pod.daemon.create(&setup).unwrap().pid;
            // What a user loses by execve(2) alone is still effective here.
            let caps = "00000000a80425fb".to_owned();
            assert_eq!((field(pid, "CapEff:"), field(pid, "CapBnd:")), (caps.clone(), caps));
            assert_eq!(field(pid, "Seccomp:"), seccomp, "no_new_privs {no_new_privs}");
            assert_eq!(field(pid, "NoNewPrivs:"), u8::from(no_new_privs).to_string());
            pod.daemon.start(&setup.id).unwrap();
            pod::eventually("the filter", || (field(pid, "Seccomp:") == "2").then_some(()));
            pod.daemon.signal(&setup.id, 9);
            assert_eq!(pod.daemon.exit(&setup.id).signal, 9);
            pod.daemon.delete(&setup.id).unwrap();
        }
    });
}

/// As the usual runtimes have it: programs that log to `/dev/stdout` run as users.
#[test]
fn a_user_may_open_its_standard_streams_anew() {
    as_root(|| {
        let mut pod = Pod::new();
        let mut setup = pod.container(&["sh", "-c", "echo again >/dev/stdout; echo wrong >/dev/stderr"]);
        setup.process()["user"] = serde_json::json!({"uid": 1000, "gid": 1000});
        pod.run(&setup);
        assert_eq!(pod.daemon.exit(&setup.id).code, 0);
        let mut log = setup.log();
        log.sort();
        assert_eq!(log, ["stderr F wrong", "stdout F again"]);
    });
}

/// What stands in for `/dev` may be the host's: nothing is made in it but mount points of what is mounted below.
#[test]
fn a_mount_on_dev_gets_no_nodes() {
    as_root(|| {
        let mut pod = Pod::new();
        let script = "ls /dev; echo into >/dev/note; cat /dev/message; ls -l /proc/self/fd/0 | grep -c null";
        let mut setup = pod.container(&["sh", "-c", script]);
        let (dev, message) = (setup.dir.join("other-dev"), setup.dir.join("message"));
        std::fs::create_dir(&dev).unwrap();
        std::fs::write(dev.join("known"), "").unwrap();
        std::fs::write(&message, "hello\n").unwrap();
        let mounts = setup.spec["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
        let bind = |source: &std::path::Path, destination: &str| serde_json::json!({"source": source, "destination": destination, "type": "bind", "options": ["rbind", "rprivate"]});
        mounts.extend([bind(&dev, "/dev"), bind(&message, "/dev/message")]);
        pod.run(&setup);
        assert_eq!(pod.daemon.exit(&setup.id).code, 0);
        assert_eq!(setup.output(), "known\nmessage\nhello\n1\n");
        let mut names: Vec<_> = std::fs::read_dir(&dev).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["known", "message", "note"]);
    });
}
