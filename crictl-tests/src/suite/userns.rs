//! Pods with a user namespace, as a container and as the node see them.
use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use crisp_proto::cri;
use rustix::process::Signal;

use super::tests;
use crate::command::run;
use crate::eventually::{SOON, eventually};
use crate::node::{Node, same};
use crate::objects::Pod;
use crate::registry::Registry;

tests![
    a_container_is_root_of_its_ids_alone,
    volumes_have_the_same_owners_on_both_sides,
    a_source_that_is_read_only_stays_so,
    what_is_mounted_below_a_shared_volume_stays,
    what_a_killed_daemon_left_mounted_is_not_emptied,
    what_cannot_be_mapped_is_an_error_by_its_path,
    containers_of_the_pod_share_what_it_owns,
    on_the_network_of_the_host,
    devices_and_images_come_along,
    a_container_asks_for_the_ids_of_its_pod_or_none,
    the_daemon_may_restart,
    execs_have_the_rights_of_the_container,
    runc_enters_user_namespaces,
    crun_enters_user_namespaces,
    another_container_s_processes_are_joined_while_it_runs,
];

const HOST_ID: u32 = 200_000;
const LENGTH: u32 = 65_536;

fn mapping() -> Vec<cri::IdMapping> {
    vec![cri::IdMapping { host_id: HOST_ID, container_id: 0, length: LENGTH }]
}

fn own_ids() -> cri::UserNamespace {
    cri::UserNamespace { mode: cri::NamespaceMode::Pod.into(), uids: mapping(), gids: mapping() }
}

fn pod_options(pod: &mut cri::PodSandboxConfig) -> &mut cri::NamespaceOption {
    let security = pod.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.namespace_options.get_or_insert_default()
}

fn container_options(container: &mut cri::ContainerConfig) -> &mut cri::NamespaceOption {
    let security = container.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.namespace_options.get_or_insert_default()
}

/// A pod with a user namespace.
fn pod(node: &Node, name: &str) -> cri::PodSandboxConfig {
    let mut config = node.pod(name);
    pod_options(&mut config).userns_options = Some(own_ids());
    config
}

/// A container as a kubelet asks for it there.
fn container(node: &Node, name: &str, script: &str) -> cri::ContainerConfig {
    let mut config = node.container(name, &["sh", "-c", script]);
    container_options(&mut config).userns_options = Some(own_ids());
    config
}

fn mount(host: &Path, inside: &str) -> cri::Mount {
    cri::Mount {
        host_path: host.display().to_string(),
        container_path: inside.to_owned(),
        uid_mappings: mapping(),
        gid_mappings: mapping(),
        ..Default::default()
    }
}

fn volume(node: &Node, name: &str) -> Result<PathBuf> {
    let path = node.dir().join(name);
    fs::create_dir(&path)?;
    Ok(path)
}

fn owner(path: &Path) -> Result<(u32, u32)> {
    let stat = fs::symlink_metadata(path).with_context(|| format!("{}", path.display()))?;
    Ok((stat.uid(), stat.gid()))
}

/// The pid of a running container, as verbose information tells it.
fn pid(node: &Node, id: &str) -> Result<u64> {
    let info = node.crictl_json(&["inspect", id])?;
    info["info"]["pid"].as_u64().context("pid")
}

const LOOK: &str = "cat /proc/self/uid_map; id -u; echo x >/written; stat -c '%u %g %a' /written /bin /etc/hostname /dev/shm; \
    cat /etc/hostname; echo data >/dev/shm/note; echo y >>/etc/hosts; echo 1 >/proc/sys/net/ipv4/ip_forward; \
    cat /proc/sys/net/ipv4/ip_forward; echo z >/dev/null; head -c 2 /dev/zero | wc -c; ls /sys/class/net; \
    chown 1000:1000 /written; stat -c '%u %g' /written; mkdir /m; mount -t tmpfs none /m 2>/dev/null && echo mounted; \
    chroot / true && echo chrooted; sh -c 'echo inner >/dev/stdout'";

fn look(node: &mut Node, handler: &str) -> Result<()> {
    let pod = node.run_with(pod(node, "ids"), handler)?;
    let mut config = container(node, "look", LOOK);
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    // Of its own network, which belongs to its user namespace.
    security.capabilities =
        Some(cri::Capability { add_capabilities: vec!["NET_ADMIN".into()], ..Default::default() });
    let text = node.printed(&pod, &config)?;
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let map: Vec<&str> = lines[0].split_whitespace().collect();
    same("map", &map, &vec!["0", "200000", "65536"])?;
    let rest = [
        "0",
        "0 0 644",
        "0 0 755",
        "0 0 644",
        "0 0 1777",
        "ids",
        "1",
        "2",
        "eth0",
        "lo",
        "1000 1000",
        "chrooted",
        "inner",
    ];
    same("seen", &lines[1..].to_vec(), &rest.to_vec())
}

fn a_container_is_root_of_its_ids_alone(node: &mut Node, _: &mut Registry) -> Result<()> {
    look(node, "")?;
    let config = pod(node, "host");
    let pod = node.run(config)?;
    let id = node.launch(&pod, &container(node, "sleep", "echo x >/file; exec sleep 1000"))?;
    let process = pid(node, &id)?;
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    ensure!(status.contains("Uid:\t200000\t200000\t200000\t200000"), "{status}");
    let views = node.dir().join("state/mounts").join(&id);
    same("who may pass", &(fs::metadata(&views)?.mode() & 0o7777, owner(&views)?), &(0o710, (0, HOST_ID)))?;
    // It sees nothing of the node's root, and the node's own files are nobody's.
    let outside = fs::read_link(format!("/proc/{process}/ns/user"))?;
    ensure!(outside != fs::read_link("/proc/self/ns/user")?, "a user namespace of its own");
    let mounts = fs::read_to_string("/proc/self/mounts")?;
    let mut points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let view = |point: &str| point.contains("/state/mounts/") && !point.ends_with("/rootfs");
    ensure!(!points.any(view), "views are gone once it runs: {mounts}");
    Ok(())
}

fn volumes_have_the_same_owners_on_both_sides(node: &mut Node, _: &mut Registry) -> Result<()> {
    let data = volume(node, "data")?;
    fs::write(data.join("roots"), "x")?;
    fs::write(data.join("users"), "x")?;
    chown(data.join("users"), Some(1000), Some(1001))?;
    let single = node.dir().join("single");
    fs::write(&single, "one file")?;
    let pod = node.run(pod(node, "volumes"))?;
    let script = "stat -c '%u %g' /data/roots /data/users /single /plain/roots; echo new >/data/new; chown 5:6 /data/new; \
        (echo y >/ro/x) 2>/dev/null || echo readonly; cat /ro/roots /single; echo; mount -o remount,rw,bind /ro 2>/dev/null || echo locked";
    let mut config = container(node, "c", script);
    config.mounts = vec![
        mount(&data, "/data"),
        mount(&single, "/single"),
        cri::Mount { readonly: true, recursive_read_only: true, ..mount(&data, "/ro") },
        // Without ids of its own it gets the pod's.
        cri::Mount { uid_mappings: Vec::new(), gid_mappings: Vec::new(), ..mount(&data, "/plain") },
    ];
    let text = node.printed(&pod, &config)?;
    let expected = ["0 0", "1000 1001", "0 0", "0 0", "readonly", "xone file", "locked"];
    same("seen inside", &text.lines().collect::<Vec<_>>(), &expected.to_vec())?;
    same("made inside", &owner(&data.join("new"))?, &(5, 6))?;
    same("untouched", &owner(&data.join("users"))?, &(1000, 1001))?;
    same("untouched", &owner(&data)?, &(0, 0))
}

/// What is read-only on the node stays so, whoever asks for it.
fn a_source_that_is_read_only_stays_so(node: &mut Node, _: &mut Registry) -> Result<()> {
    let data = volume(node, "sealed")?;
    let path = data.display().to_string();
    for arguments in [["--bind", path.as_str(), path.as_str()], ["-o", "remount,bind,ro", path.as_str()]] {
        let status = std::process::Command::new("mount").args(arguments).status()?;
        ensure!(status.success(), "mount {arguments:?}");
    }
    let seen = (|| {
        let pod = node.run(pod(node, "sealed"))?;
        let mut config = container(node, "c", "(echo x >/data/x) 2>/dev/null || echo refused");
        config.mounts = vec![mount(&data, "/data")];
        node.printed(&pod, &config)
    })();
    let status = std::process::Command::new("umount").arg(&data).status()?;
    ensure!(status.success(), "umount {path}");
    same("seen", &seen?.as_str(), &"refused")
}

/// As on a node with systemd, where all mounts are shared.
fn what_is_mounted_below_a_shared_volume_stays(node: &mut Node, _: &mut Registry) -> Result<()> {
    let data = volume(node, "shared")?;
    let (path, below) = (data.display().to_string(), data.join("below"));
    let run = |program: &str, arguments: &[&str]| {
        let status = std::process::Command::new(program).args(arguments).status()?;
        ensure!(status.success(), "{program} {arguments:?}");
        Ok(())
    };
    run("mount", &["-t", "tmpfs", "shared", &path])?;
    run("mount", &["--make-shared", &path])?;
    fs::create_dir(&below)?;
    run("mount", &["-t", "tmpfs", "below", &below.display().to_string()])?;
    fs::write(below.join("file"), "kept")?;
    let seen = (|| {
        let pod = node.run(pod(node, "shared"))?;
        let mut config = container(node, "c", "ls /data/below; exec sleep 1000");
        config.mounts = vec![mount(&data, "/data")];
        let id = node.launch(&pod, &config)?;
        let running = fs::read_dir(&below)?.count();
        node.crictl(&["rm", "--force", &id])?;
        anyhow::Ok((running, fs::read_dir(&below)?.count()))
    })();
    run("umount", &["--recursive", &path])?;
    same("files on the node, beside the container and after it", &seen?, &(1, 1))
}

/// While an image is mounted for a pod, all layers hang in its directory for an instant.
fn what_a_killed_daemon_left_mounted_is_not_emptied(node: &mut Node, _: &mut Registry) -> Result<()> {
    let pod = node.run(pod(node, "left"))?;
    let layers = volume(node, "layers")?;
    fs::write(layers.join("file"), "kept")?;
    let view = node.dir().join("state/pods").join(&pod.id).join("views/layers");
    fs::create_dir_all(&view)?;
    let status = std::process::Command::new("mount").arg("--bind").args([&layers, &view]).status()?;
    ensure!(status.success(), "mount {}", view.display());
    node.cri.stop_pod(&pod.id)?;
    node.cri.remove_pod(&pod.id)?;
    ensure!(!view.exists(), "the view is left");
    same("what it showed", &fs::read_to_string(layers.join("file"))?.as_str(), &"kept")
}

fn what_cannot_be_mapped_is_an_error_by_its_path(node: &mut Node, _: &mut Registry) -> Result<()> {
    let pod = node.run(pod(node, "unmapped"))?;
    let mut config = container(node, "c", "true");
    config.mounts = vec![mount(Path::new("/proc/sys"), "/data")];
    let error = node.cri.create(&pod.id, &config, &pod.config).err().context("a volume on procfs")?;
    ensure!(error.message().contains("/proc/sys"), "{error}");
    ensure!(error.message().contains("cannot be mapped"), "{error}");
    same("code", &error.code(), &tonic::Code::Unimplemented)?;
    node.remove_all()?;
    node.check_leaks()
}

fn containers_of_the_pod_share_what_it_owns(node: &mut Node, _: &mut Registry) -> Result<()> {
    let mut config = pod(node, "shared");
    pod_options(&mut config).pid = cri::NamespaceMode::Pod.into();
    let linux = config.linux.get_or_insert_default();
    linux.sysctls =
        [("kernel.shm_rmid_forced", "1"), ("net.core.somaxconn", "77"), ("fs.mqueue.msg_max", "99")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
    let pod = node.run(config)?;
    let with = |name: &str, script: &str| {
        let mut config = container(node, name, script);
        container_options(&mut config).pid = cri::NamespaceMode::Pod.into();
        config
    };
    node.launch(&pod, &with("first", "echo hello >/dev/shm/note; exec sleep 4321"))?;
    let script = "until [ -s /dev/shm/note ] && pidof sleep >/dev/null; do usleep 10000; done; cat /dev/shm/note; ps -o args | grep -c '[s]leep 4321'; \
        cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/core/somaxconn /proc/sys/fs/mqueue/msg_max; \
        kill -0 $(pidof sleep) && echo reachable; grep -c mqueue /proc/mounts";
    let text = node.printed(&pod, &with("second", script))?;
    same("seen", &text.lines().collect::<Vec<_>>(), &vec!["hello", "1", "1", "77", "99", "reachable", "1"])
}

fn on_the_network_of_the_host(node: &mut Node, _: &mut Registry) -> Result<()> {
    let mut config = pod(node, "hostnet");
    config.hostname.clear();
    pod_options(&mut config).network = cri::NamespaceMode::Node.into();
    let pod = node.run(config)?;
    let script = "ls -d /sys/class/net/of-the-host; mkdir /sys/x 2>/dev/null || echo readonly; \
        (echo 1 >/sys/kernel/mm/ksm/run) 2>/dev/null || echo refused; ip link set lo down 2>/dev/null || echo powerless";
    let mut config = container(node, "c", script);
    container_options(&mut config).network = cri::NamespaceMode::Node.into();
    // The links that are there by themselves come and go with other pods, some a moment after their pod.
    run(Command::new("ip").args(["link", "add", "of-the-host", "type", "bridge"]))?;
    let text = node.printed(&pod, &config);
    run(Command::new("ip").args(["link", "del", "of-the-host"]))?;
    let expected = ["/sys/class/net/of-the-host", "readonly", "refused", "powerless"];
    same("seen", &text?.lines().collect::<Vec<_>>(), &expected.to_vec())
}

fn devices_and_images_come_along(node: &mut Node, _: &mut Registry) -> Result<()> {
    let pod = node.run(pod(node, "devices"))?;
    let script = "head -c 3 /dev/other | wc -c; stat -c %F /dev/other; stat -c '%u' /image/bin; cat /image/bin/busybox | head -c 4 | tail -c 3; \
        echo; (echo x >/image/y) 2>/dev/null || echo readonly";
    let mut config = container(node, "c", script);
    config.devices = vec![cri::Device {
        host_path: "/dev/zero".into(),
        container_path: "/dev/other".into(),
        permissions: "r".into(),
    }];
    let image = config.image.clone();
    config.mounts = vec![cri::Mount {
        image,
        host_path: String::new(),
        readonly: true,
        ..mount(Path::new(""), "/image")
    }];
    let text = node.printed(&pod, &config)?;
    let expected = ["3", "character special file", "0", "ELF", "readonly"];
    same("seen", &text.lines().collect::<Vec<_>>(), &expected.to_vec())
}

fn a_container_asks_for_the_ids_of_its_pod_or_none(node: &mut Node, _: &mut Registry) -> Result<()> {
    let mapped = node.run(pod(node, "mapped"))?;
    let mut silent = container(node, "silent", "cat /proc/self/uid_map");
    container_options(&mut silent).userns_options = None;
    ensure!(node.printed(&mapped, &silent)?.contains("200000"), "the pod's ids");
    let other = vec![cri::IdMapping { host_id: HOST_ID + LENGTH, container_id: 0, length: LENGTH }];
    let host = cri::UserNamespace { mode: cri::NamespaceMode::Node.into(), ..Default::default() };
    let wrong = [cri::UserNamespace { uids: other.clone(), gids: other, ..own_ids() }, host];
    for options in wrong {
        let mut config = container(node, "wrong", "true");
        container_options(&mut config).userns_options = Some(options);
        let error = node.cri.create(&mapped.id, &config, &mapped.config).err().context("other ids")?;
        same("code", &error.code(), &tonic::Code::InvalidArgument)?;
    }
    let plain = node.run(node.pod("plain"))?;
    let refused = node.cri.create(&plain.id, &container(node, "c", "true"), &plain.config);
    same(
        "code",
        &refused.err().context("ids in a pod of the host's")?.code(),
        &tonic::Code::InvalidArgument,
    )?;
    for options in [
        cri::NamespaceOption { pid: cri::NamespaceMode::Node.into(), ..Default::default() },
        cri::NamespaceOption { ipc: cri::NamespaceMode::Node.into(), ..Default::default() },
    ] {
        let mut config = node.pod("hosts");
        *pod_options(&mut config) = cri::NamespaceOption { userns_options: Some(own_ids()), ..options };
        let error = node.cri.run_pod(&config, "").err().context("the host's processes or queues")?;
        same("code", &error.code(), &tonic::Code::InvalidArgument)?;
    }
    Ok(())
}

fn the_daemon_may_restart(node: &mut Node, _: &mut Registry) -> Result<()> {
    let data = volume(node, "restarted")?;
    let pod = node.run(pod(node, "restart"))?;
    let running = node.launch(&pod, &container(node, "running", "exec sleep 1000"))?;
    let mut config = container(node, "created", "echo made >/data/made; stat -c %u /data/made");
    config.mounts = vec![mount(&data, "/data")];
    let created = node.cri.create(&pod.id, &config, &pod.config)?;
    node.signal_daemon(Signal::KILL)?;
    node.start_daemon()?;
    same("state", &node.cri.container_status(&running)?.state(), &cri::ContainerState::ContainerRunning)?;
    node.cri.start(&created)?;
    same("exit code", &node.wait_exit(&created)?.exit_code, &0)?;
    same("owner", &owner(&data.join("made"))?, &(0, 0))?;
    let never = node.cri.create(&pod.id, &container(node, "never", "true"), &pod.config)?;
    node.cri.remove(&never)?;
    node.remove_all()?;
    ensure!(data.join("made").exists(), "a volume keeps its content");
    node.check_leaks()
}

fn execs_have_the_rights_of_the_container(node: &mut Node, _: &mut Registry) -> Result<()> {
    let pod = node.run(pod(node, "exec"))?;
    let id = node.launch(&pod, &container(node, "c", "exec sleep 1000"))?;
    check_exec(node, &id)
}

fn check_exec(node: &Node, id: &str) -> Result<()> {
    let seen =
        node.exec(id, &["sh", "-c", "cat /proc/self/uid_map; id -u; echo x >/by-exec; stat -c %u /by-exec"])?;
    let words: Vec<&str> = seen.split_whitespace().collect();
    same("seen", &words, &vec!["0", "200000", "65536", "0", "0"])?;
    let caps = node.exec(id, &["grep", "CapEff", "/proc/self/status"])?;
    let init = fs::read_to_string(format!("/proc/{}/status", pid(node, id)?))?;
    ensure!(init.contains(caps.trim()), "{caps} as in {init}");
    Ok(())
}

/// The folder of a program's own state is made once.
fn by_program(node: &mut Node, handler: &str) -> Result<()> {
    let pod = node.run_with(node.pod("warm-up"), handler)?;
    let id = node.launch(&pod, &node.container("c", &["sleep", "1000"]))?;
    node.exec(&id, &["true"])?;
    node.remove_all()?;
    node.rebase()?;
    look(node, handler)?;
    let data = volume(node, "data")?;
    let mut config = self::pod(node, "program");
    pod_options(&mut config).pid = cri::NamespaceMode::Pod.into();
    let pod = node.run_with(config, handler)?;
    let mut config = container(node, "c", "echo x >/data/x; echo y >/ro/y || exec sleep 1000");
    container_options(&mut config).pid = cri::NamespaceMode::Pod.into();
    config.mounts = vec![
        mount(&data, "/data"),
        cri::Mount { readonly: true, recursive_read_only: true, ..mount(&data, "/ro") },
    ];
    let id = node.launch(&pod, &config)?;
    check_exec(node, &id)?;
    eventually(SOON, || same("owner", &owner(&data.join("x"))?, &(0, 0)))
}

fn runc_enters_user_namespaces(node: &mut Node, _: &mut Registry) -> Result<()> {
    by_program(node, "runc")
}

fn crun_enters_user_namespaces(node: &mut Node, _: &mut Registry) -> Result<()> {
    by_program(node, "crun")
}

fn target(node: &Node, pod: &Pod, of: &str, name: &str) -> Result<String> {
    let mut config = node.container(name, &["sh", "-c", "ps -o args | grep -c '[s]leep 4321'"]);
    let options = container_options(&mut config);
    (options.pid, options.target_id) = (cri::NamespaceMode::Target.into(), of.to_owned());
    Ok(node.cri.create(&pod.id, &config, &pod.config)?)
}

fn another_container_s_processes_are_joined_while_it_runs(node: &mut Node, _: &mut Registry) -> Result<()> {
    let pod = node.run(node.pod("target"))?;
    let first = node.launch(&pod, &node.container("first", &["sleep", "4321"]))?;
    let joins = target(node, &pod, &first, "joins")?;
    let late = target(node, &pod, &first, "late")?;
    node.cri.start(&joins)?;
    same("exit code", &node.wait_exit(&joins)?.exit_code, &0)?;
    node.cri.stop(&first, 0)?;
    let error = node.cri.start(&late).err().context("a target that has ended")?;
    ensure!(error.message().contains(&first), "{error}");
    same("state", &node.cri.container_status(&late)?.state(), &cri::ContainerState::ContainerExited)?;
    node.remove_all()?;
    node.check_leaks()
}
