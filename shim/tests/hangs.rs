//! What hangs: hooks, and what waits for them. Every request is answered, and nothing is left.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]

mod pod;

use std::time::{Duration, Instant};

use crisp_proto::supervisor as pb;
use pb::request::Call;
use pod::{Pod, Setup, as_root, eventually};
use serde_json::{Value, json};

/// Long before the shim ends a creation that hangs by itself, which is after 100 s.
const SOON: Duration = Duration::from_secs(50);

fn hook(script: &str) -> Value {
    json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]})
}

/// A hook of this kind that tells that it runs, and hangs.
fn hanging(setup: &mut Setup, kind: &str) -> std::path::PathBuf {
    let mark = setup.dir.join("mark");
    let mut hooks = json!({});
    hooks[kind] = json!([hook(&format!("echo > {}; sleep 1000; sleep 1000", mark.display()))]);
    setup.spec["hooks"] = hooks;
    mark
}

fn children(pod: &Pod) -> String {
    std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", pod.shim.pid)).unwrap()
}

fn by(pod: &Pod, runtime: &str, setup: &mut Setup) -> std::path::PathBuf {
    let root = pod.path().join("runtime-root");
    let binary = pb::OciBinary {
        path: runtime.into(),
        root: root.to_string_lossy().into_owned(),
        systemd_cgroup: false,
        global_args: vec![],
    };
    setup.order.handler = Some(pb::Handler { kind: Some(pb::handler::Kind::OciBinary(binary)) });
    let path = pod.cgroups.dir("memory").strip_prefix("/sys/fs/cgroup").unwrap().to_owned();
    let path: std::path::PathBuf =
        path.components().skip(usize::from(path.components().count() > 1)).collect();
    setup.spec["linux"]["cgroupsPath"] = format!("/{}/{}", path.display(), setup.id).into();
    for tasks in &mut setup.order.cgroup.as_mut().unwrap().v1_tasks {
        *tasks = tasks.replace("/tasks", &format!("/{}/tasks", setup.id));
    }
    setup.spec["mounts"].as_array_mut().unwrap().retain(|mount| mount["type"] != "cgroup");
    root
}

/// crun refuses a hybrid host where cgroup2 has controllers; which it has here is of no interest to these tests.
fn hide_unified() {
    let unified = std::path::Path::new("/sys/fs/cgroup/unified");
    if unified.exists() {
        rustix::mount::mount("none", unified, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    }
}

fn handlers() -> impl Iterator<Item = Option<&'static str>> {
    let installed = |path: &&str| std::path::Path::new(path).exists();
    std::iter::once(None).chain(["/usr/sbin/runc", "/usr/bin/crun"].into_iter().filter(installed).map(Some))
}

#[test]
fn a_creation_that_hangs_in_a_hook_ends_with_a_delete_or_a_kill() {
    as_root(|| {
        hide_unified();
        for handler in handlers() {
            for kill in [false, true] {
                let mut pod = Pod::new();
                let mut setup = pod.container(&["true"]);
                let mark = hanging(&mut setup, "createRuntime");
                let root = handler.map(|runtime| by(&pod, runtime, &mut setup));
                let begin = Instant::now();
                let create = pod.daemon.begin_create(&setup);
                eventually("the hook", || mark.exists().then_some(()));
                let container_id = setup.id.clone();
                let call = if kill {
                    Call::Signal(pb::Signal { container_id, signal: 9, ..pb::Signal::default() })
                } else {
                    Call::Delete(pb::DeleteContainer { container_id })
                };
                let other = pod.daemon.send(call, &[]);
                let [created, other] = pod.daemon.answers([create, other]);
                assert!(created.is_err() && other.is_ok(), "{handler:?} {created:?} {other:?}");
                assert!(begin.elapsed() < SOON, "{handler:?} {:?}", begin.elapsed());
                assert!(pod.daemon.hello().containers.is_empty());
                eventually("no child", || children(&pod).is_empty().then_some(()));
                if let Some(root) = root {
                    assert_eq!(std::fs::read_dir(root).map_or(0, Iterator::count), 0, "{handler:?}");
                }
                // The same id can be used again.
                setup.spec["hooks"] = json!({});
                pod.run(&setup);
                assert_eq!(pod.daemon.exit(&setup.id).code, 0, "{handler:?}");
                pod.daemon.delete(&setup.id).unwrap();
            }
        }
    });
}

#[test]
fn a_hook_that_hangs_does_not_outlive_the_shim() {
    as_root(|| {
        let mut pod = Pod::new();
        let mut setup = pod.container(&["true"]);
        let mark = setup.dir.join("mark");
        let script = format!("echo $$ > {}; sleep 1000; sleep 1000", mark.display());
        setup.spec["hooks"] = json!({"createRuntime": [hook(&script)]});
        let create = pod.daemon.begin_create(&setup);
        let pid = eventually("the hook", || std::fs::read_to_string(&mark).ok()?.trim_end().parse().ok());
        let hook = crisp_sys::pidfd::open(pid).unwrap();
        let shutdown = pod.daemon.send(Call::Shutdown(pb::Shutdown {}), &[]);
        let [created, ended] = pod.daemon.answers([create, shutdown]);
        assert!(created.is_err() && ended.is_ok(), "{created:?} {ended:?}");
        pod::ended("the hook's end", &hook);
    });
}

#[test]
fn a_start_that_hangs_in_a_hook_ends_with_a_kill() {
    as_root(|| {
        let mut pod = Pod::new();
        let mut setup = pod.container(&["true"]);
        setup.spec["hooks"] = json!({"startContainer": [hook("echo > /tmp/mark; sleep 1000")]});
        pod.daemon.create(&setup).unwrap();
        let start = pod.daemon.send(Call::Start(pb::StartContainer { container_id: setup.id.clone() }), &[]);
        eventually("the hook", || setup.dir.join("rootfs/tmp/mark").exists().then_some(()));
        let signal = pb::Signal { container_id: setup.id.clone(), signal: 9, ..pb::Signal::default() };
        let signal = pod.daemon.send(Call::Signal(signal), &[]);
        let [started, signalled] = pod.daemon.answers([start, signal]);
        assert!(started.is_err() && signalled.is_ok(), "{started:?} {signalled:?}");
        pod.daemon.exit(&setup.id);
        pod.daemon.delete(&setup.id).unwrap();
        eventually("no child", || children(&pod).is_empty().then_some(()));
    });
}

#[test]
fn a_creation_that_a_runtime_failed_leaves_nothing_of_the_runtime() {
    as_root(|| {
        hide_unified();
        for handler in handlers().flatten() {
            let mut pod = Pod::new();
            let mut setup = pod.container(&["true"]);
            setup.spec["hooks"] = json!({"createRuntime": [hook("exit 3")]});
            let root = by(&pod, handler, &mut setup);
            pod.daemon.create(&setup).unwrap_err();
            assert_eq!(std::fs::read_dir(root).map_or(0, Iterator::count), 0, "{handler}");
            eventually("no child", || children(&pod).is_empty().then_some(()));
        }
    });
}

#[test]
fn late_hooks_get_the_state_and_a_limited_time() {
    as_root(|| {
        let mut pod = Pod::new();
        let mut setup = pod.container(&["sleep", "1000"]);
        let file = |name: &str| setup.dir.join(name);
        let (started, stopped) = (file("started"), file("stopped"));
        setup.spec["annotations"] = json!({"a": "b"});
        setup.spec["hooks"] = json!({
            "poststart": [hook("true"), hook(&format!("cat > {}; echo $PATH >> {0}", started.display()))],
            "poststop": [hook("exit 1"), hook(&format!("cat > {}", stopped.display()))],
        });
        let pid = pod.run(&setup).pid;
        // It ran before the start was answered.
        let text = std::fs::read_to_string(&started).unwrap();
        let (state, path) = text.trim_end().rsplit_once('}').unwrap();
        let state: Value = serde_json::from_str(&format!("{state}}}")).unwrap();
        assert_eq!((state["pid"].as_i64(), state["status"].as_str()), (Some(pid.into()), Some("running")));
        assert_eq!((&state["annotations"]["a"], path.trim()), (&json!("b"), "/usr/bin:/bin"));
        pod.daemon.signal(&setup.id, 9);
        pod.daemon.exit(&setup.id);
        assert!(!stopped.exists());
        pod.daemon.delete(&setup.id).unwrap();
        let state: Value = serde_json::from_str(&std::fs::read_to_string(&stopped).unwrap()).unwrap();
        assert_eq!((state["status"].as_str(), state.get("pid")), (Some("stopped"), None));
        assert!(pod.shim_log().contains("poststop"));

        for (script, timeout, wanted) in [("exit 7", 10, "Code(7)"), ("sleep 1000", 1, "Signal(9)")] {
            let mut setup = pod.container(&["sleep", "1000"]);
            let mut poststart = hook(script);
            poststart["timeout"] = timeout.into();
            setup.spec["hooks"] = json!({"poststart": [poststart]});
            pod.daemon.create(&setup).unwrap();
            let failure = pod.daemon.start(&setup.id).unwrap_err();
            assert!(failure.message.contains("poststart") && failure.message.contains(wanted), "{failure:?}");
            assert_eq!(pod.daemon.exit(&setup.id).signal, 9);
            pod.daemon.delete(&setup.id).unwrap();
        }
        eventually("no child", || children(&pod).is_empty().then_some(()));
    });
}

/// Half a minute is what such a command gets. Who waits for the deletion would give up after a minute.
#[test]
#[ignore = "takes half a minute"]
fn a_runtime_that_hangs_in_a_delete_is_given_up() {
    as_root(|| {
        hide_unified();
        let Some(runtime) = handlers().flatten().next() else { return };
        let mut pod = Pod::new();
        let mut setup = pod.container(&["true"]);
        let script = setup.dir.join("runtime");
        let text =
            format!("#!/bin/sh\ncase \"$*\" in *' delete '*) sleep 1000 ;; esac\nexec {runtime} \"$@\"\n");
        pod::write_program(&script, &text);
        by(&pod, &script.to_string_lossy(), &mut setup);
        pod.run(&setup);
        pod.daemon.exit(&setup.id);
        let begin = Instant::now();
        let delete = Call::Delete(pb::DeleteContainer { container_id: setup.id.clone() });
        pod.daemon.send(delete, &[]);
        eventually("nearly the limit", || (begin.elapsed() > Duration::from_secs(25)).then_some(()));
        assert!(pod.daemon.receive().is_some());
        assert!((28..55).contains(&begin.elapsed().as_secs()), "{:?}", begin.elapsed());
        eventually("no child", || children(&pod).is_empty().then_some(()));
        assert!(pod.daemon.hello().containers.is_empty());
    });
}
