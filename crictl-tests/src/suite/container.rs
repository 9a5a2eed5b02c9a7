//! What a container is given and how it ends.
use std::fs;

use anyhow::{Context as _, Result, ensure};
use crisp_proto::cri;

use super::tests;
use crate::eventually::{SOON, eventually};
use crate::node::{Node, same};
use crate::objects::Pod;
use crate::registry::Registry;

tests![
    exit_codes_and_reasons,
    stop_sends_the_signal_then_kills,
    out_of_memory_is_recognised,
    logs_keep_every_byte,
    logs_reopen_after_rotation,
    environment_and_arguments,
    users_and_groups,
    capabilities_and_privileges,
    seccomp_profiles,
    masked_and_read_only_paths,
    mounts,
    restarts_with_the_next_attempt,
    limits_reach_the_kernel,
];

fn exit_codes_and_reasons(node: &mut Node, _: &mut Registry) -> Result<()> {
    let pod = node.run(node.pod("exit"))?;
    for (name, script, code, reason) in [("zero", "exit 0", 0, "Completed"), ("three", "exit 3", 3, "Error")]
    {
        let id = node.launch(&pod, &node.container(name, &["sh", "-c", script]))?;
        let status = node.wait_exit(&id)?;
        same(name, &(status.exit_code, status.reason.as_str()), &(code, reason))?;
        ensure!(
            status.started_at >= status.created_at && status.finished_at >= status.started_at,
            "{status:?}"
        );
    }
    // PID 1 is ended only by SIGKILL, and only from outside.
    let id = node.launch(&pod, &node.container("killed", &["sleep", "1000"]))?;
    let pid = node.crictl_json(&["inspect", &id])?["info"]["pid"].to_string();
    crate::command::run(std::process::Command::new("kill").args(["-KILL", &pid]))?;
    let status = node.wait_exit(&id)?;
    same("killed", &(status.exit_code, status.reason.as_str()), &(137, "Error"))?;
    let missing = node.cri.create(&pod.id, &node.container("missing", &["/no/such/program"]), &pod.config)?;
    let error = node.cri.start(&missing).err().context("start of a program that is not there")?;
    ensure!(error.message().contains("/no/such/program"), "{error}");
    let status = node.cri.container_status(&missing)?;
    same("reason", &(status.exit_code, status.reason.as_str()), &(128, "StartError"))
}

fn stop_sends_the_signal_then_kills(node: &mut Node, _: &mut Registry) -> Result<()> {
    let pod = node.run(node.pod("stop"))?;
    let polite = node.container(
        "polite",
        &["sh", "-c", "trap 'echo bye; exit 9' TERM; echo on; while :; do sleep 0.05; done"],
    );
    let id = node.launch(&pod, &polite)?;
    eventually(SOON, || {
        ensure!(!node.log(&pod, &polite)?.is_empty(), "the trap is set");
        Ok(())
    })?;
    node.cri.stop(&id, 60)?;
    let status = node.cri.container_status(&id)?;
    same("polite", &(status.state(), status.exit_code), &(cri::ContainerState::ContainerExited, 9))?;
    same(
        "last line",
        &node.log(&pod, &polite)?.last().map(|line| line.text.clone()),
        &Some("bye".to_owned()),
    )?;

    let id = node.launch(&pod, &node.container("deaf", &["sleep", "1000"]))?;
    let began = std::time::Instant::now();
    node.cri.stop(&id, 1)?;
    let took = began.elapsed().as_secs_f64();
    same("deaf", &node.cri.container_status(&id)?.exit_code, &137)?;
    ensure!((1.0..8.0).contains(&took), "a grace of 1 s took {took:.1} s");

    let mut other =
        node.container("usr1", &["sh", "-c", "trap 'exit 5' USR1; echo on; while :; do sleep 0.05; done"]);
    other.stop_signal = cri::Signal::Sigusr1.into();
    let id = node.launch(&pod, &other)?;
    eventually(SOON, || {
        ensure!(!node.log(&pod, &other)?.is_empty(), "the trap is set");
        Ok(())
    })?;
    node.cri.stop(&id, 60)?;
    same("stop signal", &node.cri.container_status(&id)?.exit_code, &5)
}

fn resources(container: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerResources {
    container.linux.get_or_insert_default().resources.get_or_insert_default()
}

fn security(container: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerSecurityContext {
    container.linux.get_or_insert_default().security_context.get_or_insert_default()
}

fn out_of_memory_is_recognised(node: &mut Node, _: &mut Registry) -> Result<()> {
    let pod = node.run(node.pod("oom"))?;
    let mut container = node.container("c", &["dd", "if=/dev/zero", "of=/dev/null", "bs=40M"]);
    resources(&mut container).memory_limit_in_bytes = 15 << 20;
    resources(&mut container).memory_swap_limit_in_bytes = 15 << 20;
    let id = node.launch(&pod, &container)?;
    let status = node.wait_exit(&id)?;
    same("status", &(status.exit_code, status.reason.as_str()), &(137, "OOMKilled"))
}

fn logs_keep_every_byte(node: &mut Node, _: &mut Registry) -> Result<()> {
    const LINE_BYTES: usize = 16384;
    let pod = node.run(node.pod("logs"))?;
    let script = "echo out; echo err >&2; echo; head -c 40000 /dev/zero | tr '\\0' x; echo; printf 'no end'";
    let config = node.container("c", &["sh", "-c", script]);
    let (code, _) = node.run_to_end(&pod, &config)?;
    same("exit code", &code, &0)?;
    let bytes = fs::read(Node::log_file(&pod, &config))?;
    ensure!(bytes.ends_with(b"no end\n"), "the file ends with a line");
    let log = node.log(&pod, &config)?;
    let stdout: Vec<(&str, usize)> = log
        .iter()
        .filter(|line| line.stream == "stdout")
        .map(|line| (line.tag.as_str(), line.text.len()))
        .collect();
    let expected = vec![
        ("F", 3),
        ("F", 0),
        ("P", LINE_BYTES),
        ("P", LINE_BYTES),
        ("F", 40000 - 2 * LINE_BYTES),
        ("P", 6),
    ];
    same("stdout", &stdout, &expected)?;
    let stderr: Vec<&str> =
        log.iter().filter(|line| line.stream == "stderr").map(|line| line.text.as_str()).collect();
    same("stderr", &stderr, &vec!["err"])?;
    let times: Vec<&str> = log.iter().map(|line| line.time.as_str()).collect();
    ensure!(times.is_sorted(), "times {times:?}");
    let mut flood = node.container("flood", &["sh", "-c", "seq 200000"]);
    flood.log_path = "deeper/0.log".into();
    let (_, log) = node.run_to_end(&pod, &flood)?;
    same("lines", &log.len(), &200_000)?;
    let wrong = log.iter().enumerate().find(|(at, line)| line.text != (at + 1).to_string());
    ensure!(wrong.is_none(), "line out of order: {wrong:?}");
    Ok(())
}

fn logs_reopen_after_rotation(node: &mut Node, _: &mut Registry) -> Result<()> {
    let pod = node.run(node.pod("rotate"))?;
    let config =
        node.container("c", &["sh", "-c", "i=0; while :; do echo $i; i=$((i+1)); usleep 2000; done"]);
    let id = node.launch(&pod, &config)?;
    let file = Node::log_file(&pod, &config);
    eventually(SOON, || {
        ensure!(node.log(&pod, &config)?.len() > 20, "the container logs");
        Ok(())
    })?;
    let rotated = file.with_extension("log.1");
    fs::rename(&file, &rotated)?;
    let request = cri::ReopenContainerLogRequest { container_id: id.clone() };
    node.cri.runtime(|mut c| async move { c.reopen_container_log(request).await })?;
    ensure!(file.exists(), "the file is there when the call returns");
    eventually(SOON, || {
        ensure!(node.log(&pod, &config)?.len() > 20, "the new file grows");
        Ok(())
    })?;
    node.cri.stop(&id, 0)?;
    let both = format!("{}{}", fs::read_to_string(&rotated)?, fs::read_to_string(&file)?);
    for (at, line) in crate::objects::parse_log(&both)?.iter().enumerate() {
        same("line", &line.text, &at.to_string())?;
    }
    Ok(())
}

fn environment_and_arguments(node: &mut Node, _: &mut Registry) -> Result<()> {
    let pod = node.run(node.pod("env"))?;
    let mut config = node.container("c", &["sh", "-c", "echo \"$A|$0|$1|$PWD|$HOSTNAME\""]);
    config.args = vec!["zero".into(), "one two".into()];
    config.working_dir = "/made/for/this".into();
    config.envs = vec![cri::KeyValue { key: "A".into(), value: "b c".into() }];
    same("printed", &node.printed(&pod, &config)?.as_str(), &"b c|zero|one two|/made/for/this|env")
}

fn users_and_groups(node: &mut Node, _: &mut Registry) -> Result<()> {
    let pod = node.run(node.pod("users"))?;
    let id =
        |node: &Node, name: &str, set: &dyn Fn(&mut cri::LinuxContainerSecurityContext)| -> Result<String> {
            let mut config = node.container(name, &["sh", "-c", "echo $(id -u) $(id -g) $(id -G)"]);
            set(security(&mut config));
            node.printed(&pod, &config)
        };
    same("root", &id(node, "root", &|_| ())?.as_str(), &"0 0 0")?;
    let user = |value| Some(cri::Int64Value { value });
    same("uid", &id(node, "uid", &|s| s.run_as_user = user(1001))?.as_str(), &"1001 0 0")?;
    same("name", &id(node, "name", &|s| s.run_as_username = "www-data".into())?.as_str(), &"33 33 33")?;
    let both = |s: &mut cri::LinuxContainerSecurityContext| {
        s.run_as_user = user(1001);
        s.run_as_group = user(1002);
        s.supplemental_groups = vec![1234, 5678];
    };
    same("groups", &id(node, "groups", &both)?.as_str(), &"1001 1002 1002 1234 5678")?;
    let mut config = node.container("bad", &["id"]);
    security(&mut config).run_as_group = user(1002);
    let error = node.cri.create(&pod.id, &config, &pod.config).err().context("a group without a user")?;
    same("code", &error.code(), &tonic::Code::InvalidArgument)
}

/// A line of `/proc/self/status` in a container.
fn status_line(node: &Node, pod: &Pod, mut config: cri::ContainerConfig, key: &str) -> Result<String> {
    config.command = vec!["grep".into(), format!("^{key}:"), "/proc/self/status".into()];
    let line = node.printed(pod, &config)?;
    Ok(line.split_whitespace().last().unwrap_or_default().to_owned())
}

fn capabilities_and_privileges(node: &mut Node, _: &mut Registry) -> Result<()> {
    const NET_RAW: u64 = 1 << 13;
    const NET_ADMIN: u64 = 1 << 12;
    let mut config = node.pod("caps");
    config.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
    let pod = node.run(config)?;
    let bits = |name: &str, add: &[&str], drop: &[&str]| -> Result<u64> {
        let mut config = node.container(name, &[]);
        security(&mut config).capabilities = Some(cri::Capability {
            add_capabilities: add.iter().map(|cap| (*cap).to_owned()).collect(),
            drop_capabilities: drop.iter().map(|cap| (*cap).to_owned()).collect(),
            ..Default::default()
        });
        Ok(u64::from_str_radix(&status_line(node, &pod, config, "CapEff")?, 16)?)
    };
    let usual = bits("usual", &[], &[])?;
    ensure!(usual & NET_RAW != 0 && usual & NET_ADMIN == 0, "default set {usual:x}");
    same("dropped", &bits("drop", &[], &["NET_RAW"])?, &(usual & !NET_RAW))?;
    same("added", &bits("add", &["NET_ADMIN"], &[])?, &(usual | NET_ADMIN))?;
    same("all dropped", &bits("none", &[], &["ALL"])?, &0)?;
    same("one of none", &bits("one", &["NET_RAW"], &["ALL"])?, &NET_RAW)?;
    for (name, wanted, expected) in [("nnp", true, "1"), ("no-nnp", false, "0")] {
        let mut config = node.container(name, &[]);
        security(&mut config).no_new_privs = wanted;
        same(name, &status_line(node, &pod, config, "NoNewPrivs")?.as_str(), &expected)?;
    }
    let mut config = node.container("privileged", &["sh", "-c", "mkdir -p /mnt; mount -t tmpfs none /mnt"]);
    security(&mut config).privileged = true;
    node.printed(&pod, &config)?;
    let (code, _) = node.run_to_end(
        &pod,
        &node.container("plain", &["sh", "-c", "mkdir -p /mnt; mount -t tmpfs none /mnt"]),
    )?;
    ensure!(code != 0, "a plain container cannot mount");
    Ok(())
}

fn seccomp_profiles(node: &mut Node, _: &mut Registry) -> Result<()> {
    use cri::security_profile::ProfileType;
    let profile = node.dir().join("no-mkdir.json");
    fs::write(
        &profile,
        r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO"}]}"#,
    )?;
    let pod = node.run(node.pod("seccomp"))?;
    let with = |name: &str, kind: ProfileType, path: &str, command: &[&str]| {
        let mut config = node.container(name, command);
        security(&mut config).seccomp =
            Some(cri::SecurityProfile { profile_type: kind.into(), localhost_ref: path.to_owned() });
        config
    };
    let default = with("default", ProfileType::RuntimeDefault, "", &[]);
    same("default", &status_line(node, &pod, default, "Seccomp")?.as_str(), &"2")?;
    let unconfined = with("unconfined", ProfileType::Unconfined, "", &[]);
    same("unconfined", &status_line(node, &pod, unconfined, "Seccomp")?.as_str(), &"0")?;
    let path = profile.display().to_string();
    let local = with("local", ProfileType::Localhost, &path, &["mkdir", "/x"]);
    ensure!(node.run_to_end(&pod, &local)?.0 != 0, "the profile forbids mkdir");
    let sleeper = with("sleeper", ProfileType::Localhost, &path, &["sleep", "1000"]);
    let id = node.launch(&pod, &sleeper)?;
    let (code, _, _) = node.cri.exec(&id, &["mkdir", "/x"])?;
    ensure!(code != 0, "the profile holds for exec, too");
    node.exec(&id, &["true"])?;
    Ok(())
}

fn masked_and_read_only_paths(node: &mut Node, _: &mut Registry) -> Result<()> {
    let pod = node.run(node.pod("paths"))?;
    let mut config = node.container("c", &["sleep", "1000"]);
    security(&mut config).masked_paths = vec!["/etc/group".into(), "/home".into()];
    security(&mut config).readonly_paths = vec!["/tmp".into()];
    let id = node.launch(&pod, &config)?;
    same("masked file", &node.exec(&id, &["sh", "-c", "wc -c </etc/group"])?.trim(), &"0")?;
    let (code, _, stderr) = node.cri.exec(&id, &["touch", "/tmp/x"])?;
    ensure!(code != 0 && stderr.contains("Read-only"), "{code} {stderr}");
    let mut config = node.container("readonly", &["touch", "/x"]);
    security(&mut config).readonly_rootfs = true;
    ensure!(node.run_to_end(&pod, &config)?.0 != 0, "the root file system is read-only");
    Ok(())
}

fn mounts(node: &mut Node, _: &mut Registry) -> Result<()> {
    let shared = node.dir().join("shared");
    fs::create_dir_all(&shared)?;
    fs::write(shared.join("note"), "from outside\n")?;
    std::os::unix::fs::symlink(&shared, node.dir().join("by-link"))?;
    let pod = node.run(node.pod("mounts"))?;
    let bind = |host: &str, at: &str, readonly| cri::Mount {
        host_path: node.dir().join(host).display().to_string(),
        container_path: at.into(),
        readonly,
        ..Default::default()
    };
    let mut config = node.container("c", &["sleep", "1000"]);
    config.mounts =
        vec![bind("shared", "/rw", false), bind("shared", "/ro", true), bind("by-link", "/deep/link", false)];
    config.mounts.push(bind("shared/note", "/etc/note", true));
    let id = node.launch(&pod, &config)?;
    for path in ["/rw/note", "/ro/note", "/deep/link/note", "/etc/note"] {
        same(path, &node.exec(&id, &["cat", path])?.as_str(), &"from outside\n")?;
    }
    node.exec(&id, &["sh", "-c", "echo inside >/rw/new"])?;
    same("seen outside", &fs::read_to_string(shared.join("new"))?.as_str(), &"inside\n")?;
    let (code, _, stderr) = node.cri.exec(&id, &["touch", "/ro/new"])?;
    ensure!(code != 0 && stderr.contains("Read-only"), "{code} {stderr}");
    let status = node.cri.container_status(&id)?;
    ensure!(
        status.mounts.iter().any(|mount| mount.container_path == "/ro" && mount.readonly),
        "{:?}",
        status.mounts
    );
    let mut missing = node.container("missing", &["true"]);
    missing.mounts = vec![bind("not/there", "/x", false)];
    // Workloads rely on it: a source that is not there becomes a folder.
    node.printed(&pod, &missing)?;
    ensure!(node.dir().join("not/there").is_dir(), "the missing source is made");
    Ok(())
}

fn restarts_with_the_next_attempt(node: &mut Node, _: &mut Registry) -> Result<()> {
    let (pod, first) = node.one("attempts", &["sh", "-c", "exit 1"])?;
    node.wait_exit(&first)?;
    let mut next = node.container("main", &["sleep", "1000"]);
    next.metadata.get_or_insert_default().attempt = 1;
    next.log_path = "main/1.log".into();
    let second = node.launch(&pod, &next)?;
    let states: Vec<_> = node.cri.containers()?.iter().map(cri::Container::state).collect();
    same("containers", &states.len(), &2)?;
    node.cri.remove(&first)?;
    same("second", &node.cri.container_status(&second)?.state(), &cri::ContainerState::ContainerRunning)
}

fn limits_reach_the_kernel(node: &mut Node, _: &mut Registry) -> Result<()> {
    let pod = node.run(node.pod("limits"))?;
    let mut config = node.container("c", &["sleep", "1000"]);
    let wanted = resources(&mut config);
    wanted.memory_limit_in_bytes = 50 << 20;
    wanted.cpu_quota = 30_000;
    wanted.cpu_period = 100_000;
    wanted.cpu_shares = 512;
    wanted.oom_score_adj = 500;
    let id = node.launch(&pod, &config)?;
    same("oom_score_adj", &node.exec(&id, &["cat", "/proc/self/oom_score_adj"])?.trim(), &"500")?;
    let read = |v1: &str, v2: &str| {
        node.exec(
            &id,
            &["sh", "-c", &format!("cat /sys/fs/cgroup/{v1} 2>/dev/null || cat /sys/fs/cgroup/{v2}")],
        )
    };
    same("memory", &read("memory/memory.limit_in_bytes", "memory.max")?.trim(), &"52428800")?;
    let quota = read("cpu/cpu.cfs_quota_us", "cpu.max")?;
    ensure!(quota.starts_with("30000"), "quota {quota}");
    let (code, _, _) = node.cri.exec(
        &id,
        &["sh", "-c", "echo 1 >/sys/fs/cgroup/memory/cgroup.procs || echo 1 >/sys/fs/cgroup/cgroup.procs"],
    )?;
    ensure!(code != 0, "a container cannot write to its cgroups");
    Ok(())
}
