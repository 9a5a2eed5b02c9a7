//! Plugins: what they hear, what they change, and that none of them can hold up the node.
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use crisp_proto::cri::ContainerState;

use super::tests;
use crate::eventually::{SOON, eventually};
use crate::node::{Node, Options, same};
use crate::plugin::{Adjustment, Linux, Mount, Plugin, Reply, Resources, Variable};
use crate::registry::Registry;

tests![
    #[options(plugins)]
    a_life_is_told_in_order,
    #[options(plugins)]
    a_container_is_made_as_a_plugin_wants_it,
    #[options(plugins)]
    two_plugins_that_want_the_same_are_named,
    #[options(plugins)]
    a_refusal_leaves_nothing,
    #[options(plugins)]
    what_failed_before_plugins_were_asked_is_not_told,
    #[options(plugins)]
    a_plugin_that_hangs_is_disconnected,
    #[options(plugins)]
    a_dead_plugin_holds_up_nothing,
    #[options(plugins)]
    a_late_plugin_learns_what_exists_and_may_change_it,
    #[options(plugins)]
    installed_plugins_are_started_and_bounded,
];

/// Where plugins register: a node's folder is known before it starts.
const DIR: &str = "/run/t/1";
/// What a request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(6);

fn plugins() -> Options {
    let more = format!(
        "[nri]\nenabled = true\nsocket = \"{DIR}/nri.sock\"\nplugin_dir = \"{DIR}/plugins\"\n\
         plugin_config_dir = \"{DIR}/conf.d\"\nrequest_timeout = \"6s\"\nregistration_timeout = \"5s\"\n"
    );
    Options { more, ..Options::default() }
}

fn socket(node: &Node) -> PathBuf {
    node.dir().join("nri.sock")
}

fn agrees(node: &Node, index: &str) -> Result<Plugin> {
    Plugin::join(&socket(node), index, |_| Reply::Fine)
}

fn a_life_is_told_in_order(node: &mut Node, _: &mut Registry) -> Result<()> {
    let plugin = agrees(node, "10")?;
    let pod = node.run(node.pod("told"))?;
    let asked = node.launch(&pod, &node.container("asked", &["sleep", "1000"]))?;
    node.cri.stop(&asked, 0)?;
    node.cri.remove(&asked)?;
    let by_itself = node.launch(&pod, &node.container("by-itself", &["sh", "-c", "exit 3"]))?;
    node.wait_exit(&by_itself)?;
    // A plugin that asks for everything validates as well.
    let life = [
        "CreateContainer",
        "ValidateContainerAdjustment",
        "PostCreateContainer",
        "StartContainer",
        "PostStartContainer",
        "StopContainer",
    ];
    let life = life.map(str::to_owned).to_vec();
    eventually(SOON, || same("told of its end", &plugin.about(&by_itself), &life))?;
    let whole: Vec<String> = life.into_iter().chain(["RemoveContainer".to_owned()]).collect();
    same("told of the other one", &plugin.about(&asked), &whole)?;
    node.cri.stop_pod(&pod.id)?;
    node.cri.stop_pod(&pod.id)?;
    node.cri.remove_pod(&pod.id)?;
    let pod_life = ["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"].map(str::to_owned).to_vec();
    same("told of the pod", &plugin.about(&pod.id), &pod_life)
}

fn a_container_is_made_as_a_plugin_wants_it(node: &mut Node, _: &mut Registry) -> Result<()> {
    const LIMIT: i64 = 48 << 20;
    fs::write(node.dir().join("given"), "by a plugin\n")?;
    let source = node.dir().join("given").display().to_string();
    let wants = Adjustment {
        env: vec![
            Variable { key: "-GONE".to_owned(), value: String::new() },
            Variable { key: "ADDED".to_owned(), value: "by=plugin".to_owned() },
        ],
        mounts: vec![Mount {
            destination: "/given".to_owned(),
            kind: "bind".to_owned(),
            source,
            options: vec!["bind".to_owned(), "ro".to_owned()],
        }],
        linux: Some(Linux { resources: Some(Resources::memory(LIMIT)) }),
    };
    let _plugin = Plugin::join(&socket(node), "10", move |call| match call.method.as_str() {
        "CreateContainer" => Reply::Adjust(Box::new(wants.clone())),
        _ => Reply::Fine,
    })?;
    let pod = node.run(node.pod("adjusted"))?;
    let mut config = node.container("c", &["sleep", "1000"]);
    config.envs.push(crisp_proto::cri::KeyValue { key: "GONE".to_owned(), value: b"1".to_vec() });
    let id = node.launch(&pod, &config)?;
    let env = node.exec(&id, &["env"])?;
    ensure!(env.contains("ADDED=by=plugin") && !env.contains("GONE"), "{env}");
    same("mount", &node.exec(&id, &["cat", "/given"])?, &"by a plugin\n".to_owned())?;
    let (code, ..) = node.cri.exec(&id, &["sh", "-c", "echo x >> /given"])?;
    ensure!(code != 0, "the mount can be written");
    let file = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null";
    same(
        "limit in force",
        &node.exec(&id, &["sh", "-c", &format!("{file} || true")])?.trim().to_owned(),
        &LIMIT.to_string(),
    )?;
    let status = node.cri.container_status(&id)?;
    let limits = status.resources.and_then(|resources| resources.linux).context("no resources")?;
    same("limit told", &limits.memory_limit_in_bytes, &LIMIT)
}

fn two_plugins_that_want_the_same_are_named(node: &mut Node, _: &mut Registry) -> Result<()> {
    let wants = |value: &'static str| {
        move |call: &crate::plugin::Call| match call.method.as_str() {
            "CreateContainer" => Reply::Adjust(Box::new(Adjustment {
                env: vec![Variable { key: "MINE".to_owned(), value: value.to_owned() }],
                ..Adjustment::default()
            })),
            _ => Reply::Fine,
        }
    };
    let _first = Plugin::join(&socket(node), "10", wants("1"))?;
    let second = Plugin::join(&socket(node), "20", wants("2"))?;
    let pod = node.run(node.pod("conflict"))?;
    let refused = node.cri.create(&pod.id, &node.container("c", &["true"]), &pod.config);
    let error = refused.err().context("both got their way")?;
    ensure!(error.message().contains("plugins 10-test and 20-test both set Env MINE"), "{error}");
    drop(second);
    eventually(SOON, || {
        node.cri
            .create(&pod.id, &node.container("c", &["true"]), &pod.config)
            .context("after one of them left")
    })?;
    Ok(())
}

fn what_failed_before_plugins_were_asked_is_not_told(node: &mut Node, _: &mut Registry) -> Result<()> {
    let plugin = Plugin::join(&socket(node), "10", |_| Reply::Fine)?;
    let mut config = node.pod("unlucky");
    let linux = config.linux.get_or_insert_default();
    linux.sysctls = [("net.ipv4.there_is_none".to_owned(), "1".to_owned())].into();
    node.cri.run_pod(&config, "").err().context("a pod with a sysctl that is none runs")?;
    let methods: Vec<String> = plugin.calls().into_iter().map(|call| call.method).collect();
    same("told", &methods, &Vec::<String>::new())
}

fn a_refusal_leaves_nothing(node: &mut Node, _: &mut Registry) -> Result<()> {
    let refuses = Plugin::join(&socket(node), "10", |call| match call.method.as_str() {
        "RunPodSandbox" | "CreateContainer" | "StartContainer" => Reply::Refuse("not on my node"),
        _ => Reply::Fine,
    })?;
    let config = node.pod("refused");
    let error = node.cri.run_pod(&config, "").err().context("a refused pod runs")?;
    ensure!(error.message().contains("plugin 10-test refused RunPodSandbox: not on my node"), "{error}");
    ensure!(node.cri.pods()?.is_empty(), "the pod is listed");
    let told = ["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"].map(str::to_owned).to_vec();
    let methods: Vec<String> = refuses.calls().into_iter().map(|call| call.method).collect();
    same("told that it is gone", &methods, &told)?;
    node.check_leaks()?;
    drop(refuses);

    let pod = node.run(config)?;
    let refuses = Plugin::join(&socket(node), "10", |call| match call.method.as_str() {
        "CreateContainer" => Reply::Refuse("no"),
        _ => Reply::Fine,
    })?;
    let container = node.container("c", &["sleep", "1000"]);
    let error =
        node.cri.create(&pod.id, &container, &pod.config).err().context("a refused container is made")?;
    ensure!(error.message().contains("refused CreateContainer: no"), "{error}");
    ensure!(node.cri.containers()?.is_empty(), "the container is listed");
    drop(refuses);
    let refuses = Plugin::join(&socket(node), "10", |call| match call.method.as_str() {
        "StartContainer" => Reply::Refuse("not now"),
        _ => Reply::Fine,
    })?;
    let id = node.cri.create(&pod.id, &container, &pod.config)?;
    let error = node.cri.start(&id).err().context("a refused container starts")?;
    ensure!(error.message().contains("refused StartContainer: not now"), "{error}");
    same("state", &node.cri.container_status(&id)?.state(), &ContainerState::ContainerExited)?;
    drop(refuses);
    Ok(())
}

fn a_plugin_that_hangs_is_disconnected(node: &mut Node, _: &mut Registry) -> Result<()> {
    let hangs = Plugin::join(&socket(node), "10", |_| Reply::Hang)?;
    let good = agrees(node, "20")?;
    let began = Instant::now();
    let listed = std::thread::scope(|scope| {
        let listing = scope.spawn(|| -> Result<Duration> {
            eventually(SOON, || {
                ensure!(!hangs.calls().is_empty(), "it is asked");
                Ok(())
            })?;
            let asked = Instant::now();
            node.cri.pods()?;
            node.cri.containers()?;
            Ok(asked.elapsed())
        });
        node.run(node.pod("goes-on"))?;
        listing.join().map_err(|_panic| anyhow::anyhow!("the listing panicked"))?
    })?;
    let took = began.elapsed();
    ensure!(took >= REQUEST_TIMEOUT && took < 3 * REQUEST_TIMEOUT, "RunPodSandbox took {took:?}");
    ensure!(listed < REQUEST_TIMEOUT / 2, "the lists took {listed:?} meanwhile");
    hangs.wait_closed()?;
    ensure!(good.calls().iter().any(|call| call.method == "RunPodSandbox"), "the other one heard of it");
    let log = fs::read_to_string(node.log_path())?;
    ensure!(log.contains("10-test") && log.contains("no answer within 6000 ms"), "{}", node.log_tail());
    let late = late_answers(node)?;
    node.run(node.pod("undisturbed"))?;
    same("late answers", &late_answers(node)?, &late)
}

/// What the daemon's log says of plugins that were waited for until their time was up.
fn late_answers(node: &Node) -> Result<usize> {
    Ok(fs::read_to_string(node.log_path())?.matches("no answer within").count())
}

fn a_dead_plugin_holds_up_nothing(node: &mut Node, _: &mut Registry) -> Result<()> {
    let dies = Plugin::join(&socket(node), "10", |call| match call.method.as_str() {
        "CreateContainer" => Reply::Die,
        _ => Reply::Fine,
    })?;
    let pod = node.run(node.pod("survives"))?;
    node.launch(&pod, &node.container("c", &["sleep", "1000"]))?;
    same("late answers", &late_answers(node)?, &0)?;
    let calls: Vec<String> = dies.calls().into_iter().map(|call| call.method).collect();
    same("calls", &calls, &["RunPodSandbox", "CreateContainer"].map(str::to_owned).to_vec())?;
    for round in 0..20 {
        drop(agrees(node, &format!("{round:02}"))?);
    }
    let last = agrees(node, "99")?;
    same("known", &last.synchronized().1.len(), &1)?;
    eventually(SOON, || {
        let info = node.crictl_json(&["info"])?;
        ensure!(info["nri"].to_string().contains("99-test"), "{info}");
        ensure!(!info["nri"].to_string().contains("10-test"), "{info}");
        Ok(())
    })
}

fn a_late_plugin_learns_what_exists_and_may_change_it(node: &mut Node, _: &mut Registry) -> Result<()> {
    const LIMIT: i64 = 64 << 20;
    let pod = node.run(node.pod("early"))?;
    let id = node.launch(&pod, &node.container("c", &["sleep", "1000"]))?;
    let late = agrees(node, "10")?;
    same("told", &late.synchronized(), &(vec![pod.id.clone()], vec![id.clone()]))?;
    late.ask(Some((&id, LIMIT)), &[])?;
    let limit = || -> Result<i64> {
        let resources = node.cri.container_status(&id)?.resources.and_then(|resources| resources.linux);
        Ok(resources.context("no resources")?.memory_limit_in_bytes)
    };
    same("limit", &limit()?, &LIMIT)?;
    ensure!(
        !late.about(&id).iter().any(|method| method == "UpdateContainer"),
        "it is asked about its own update"
    );
    node.crictl(&["update", "--cpu-share", "512", &id])?;
    let told = late.about(&id);
    same("told of an update", &told, &vec!["UpdateContainer".to_owned(), "PostUpdateContainer".to_owned()])?;
    same("limit after it", &limit()?, &LIMIT)?;
    late.ask(None, &[&id])?;
    // It has no handler for the stop signal, so the grace would be waited for: somebody shortens it.
    node.cri.stop(&id, 0)?;
    same("state", &node.cri.container_status(&id)?.state(), &ContainerState::ContainerExited)?;
    eventually(SOON, || {
        ensure!(
            late.about(&id).last().is_some_and(|method| method == "StopContainer"),
            "{:?}",
            late.about(&id)
        );
        Ok(())
    })
}

fn installed_plugins_are_started_and_bounded(node: &mut Node, _: &mut Registry) -> Result<()> {
    let dir = node.dir().join("plugins");
    fs::create_dir_all(&dir)?;
    let script = dir.join("05-mute");
    let said = node.dir().join("said").display().to_string();
    fs::write(
        &script,
        format!(
            "#!/bin/sh\necho $NRI_PLUGIN_IDX $NRI_PLUGIN_NAME $NRI_PLUGIN_SOCKET > {said}\nexec /bin/sleep 1000\n"
        ),
    )?;
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
    node.signal_daemon(rustix::process::Signal::TERM)?;
    let began = Instant::now();
    node.start_daemon()?;
    ensure!(
        began.elapsed() < Duration::from_secs(60),
        "a mute plugin held up the start for {:?}",
        began.elapsed()
    );
    same("what it was given", &fs::read_to_string(&said)?, &"05 mute 3\n".to_owned())?;
    let log = fs::read_to_string(node.log_path())?;
    ensure!(
        log.contains("05-mute") && log.contains("did not register within 5000 ms"),
        "{}",
        node.log_tail()
    );
    agrees(node, "10")?;
    node.run(node.pod("after"))?;
    Ok(())
}
