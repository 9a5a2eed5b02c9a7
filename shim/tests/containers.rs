//! A shim's containers, over its socket: from creation to the exit record.

mod pod;

use pod::{Pod, as_root};

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
