//! Every subcommand of the real `crictl`, with names, tags, digests and prefixes of ids.
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::tests;
use crate::eventually::{SOON, eventually};
use crate::node::{BUSYBOX, Node, same};
use crate::registry::Registry;

tests![
    walks_a_pod_through_its_life,
    finds_images_by_every_kind_of_reference,
    lists_and_filters,
    updates_resources,
    answers_unknown_and_ambiguous_ids,
    commands_that_need_no_pod,
    every_list_has_every_form,
    every_inspection_has_every_form,
    logs_in_every_way,
    runs_a_container_in_one_go,
    follows_events,
    stops_and_removes_all,
    writes_a_checkpoint_or_says_what_it_needs,
];

const PREFIX: usize = 10;

/// Writes pod and container files as a user of crictl has them.
fn files(node: &Node, name: &str, command: &[&str]) -> Result<(String, String)> {
    let logs = node.dir().join("logs").join(name);
    let pod = json!({
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "attempt": 1},
        "log_directory": logs, "linux": {}, "labels": {"app": name},
    });
    let container = json!({
        "metadata": {"name": "main", "attempt": 2}, "image": {"image": BUSYBOX}, "command": command,
        "log_path": "main.log", "linux": {}, "labels": {"part": "main"},
    });
    Ok((node.write_json("pod.json", &pod)?, node.write_json("container.json", &container)?))
}

fn walks_a_pod_through_its_life(node: &mut Node, _: &mut Registry) -> Result<()> {
    node.crictl(&["pull", BUSYBOX])?;
    let script = "trap 'exit 7' TERM; echo to stdout; echo to stderr >&2; while :; do sleep 0.05; done";
    let (pod_file, container_file) = files(node, "life", &["sh", "-c", script])?;

    let pod = node.crictl(&["runp", &pod_file])?.trim().to_owned();
    ensure!(pod.len() == 64 && pod.bytes().all(|b| b.is_ascii_hexdigit()), "pod id {pod:?}");
    let container = node.crictl(&["create", &pod[..PREFIX], &container_file, &pod_file])?.trim().to_owned();
    ensure!(container.len() == 64, "container id {container:?}");
    node.crictl(&["start", &container[..PREFIX]])?;

    let listed = node.crictl_json(&["ps", "-o", "json"])?;
    same("containers", &listed["containers"][0]["id"], &json!(container))?;
    same("state", &listed["containers"][0]["state"], &json!("CONTAINER_RUNNING"))?;
    let pods = node.crictl_json(&["pods", "--name", "life", "-o", "json"])?;
    same("pod state", &pods["items"][0]["state"], &json!("SANDBOX_READY"))?;

    // crictl ends what it shows with lines of its own.
    same("exec", &node.crictl(&["exec", "-s", &container[..PREFIX], "echo", "hi"])?.trim_end(), &"hi")?;
    let logs = eventually(SOON, || {
        let text = node.crictl(&["logs", &container[..PREFIX]])?;
        ensure!(text.contains("to stdout"), "logs {text:?}");
        Ok(text)
    })?;
    ensure!(!logs.contains(" F "), "crictl understood the log format: {logs}");

    inspects(node, &pod, &container)?;
    statistics(node, &pod, &container)?;
    ends(node, &pod, &container)
}

fn inspects(node: &Node, pod: &str, container: &str) -> Result<()> {
    let inspected = node.crictl_json(&["inspect", &container[..PREFIX]])?;
    same("inspect", &inspected["status"]["metadata"]["name"], &json!("main"))?;
    let info = &inspected["info"];
    ensure!(info["pid"].as_u64().is_some_and(|pid| pid > 1), "pid in {info}");
    same("sandbox", &info["sandboxID"], &json!(pod))?;
    same("removing", &info["removing"], &json!(false))?;
    same("arguments", &info["runtimeSpec"]["process"]["args"][0], &json!("sh"))?;
    tells(info, &["snapshotKey", "snapshotter", "runtimeType", "runtimeOptions", "config", "privileged"])?;
    let inspected = node.crictl_json(&["inspectp", &pod[..PREFIX]])?;
    let info = &inspected["info"];
    tells(info, &["pid", "processStatus", "netNamespaceClosed", "image", "snapshotKey", "snapshotter"])?;
    tells(info, &["runtimeHandler", "runtimeType", "runtimeOptions", "config", "cniResult", "overhead"])?;
    tells(info, &["resources", "sandboxMetadata"])?;
    let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().context("namespaces")?;
    let network = namespaces.iter().find(|namespace| namespace["type"] == "network").context("network")?;
    ensure!(network["path"].as_str().is_some_and(|path| path.starts_with('/')), "path of {network}");
    let address = inspected["status"]["network"]["ip"].as_str().context("address of the pod")?;
    ensure!(address.starts_with("10.77.1."), "address {address}");
    let inspected = node.crictl_json(&["inspecti", BUSYBOX])?;
    same("inspecti", &inspected["status"]["repoTags"], &json!([BUSYBOX]))?;
    tells(&inspected["info"], &["chainID", "imageSpec", "labels"])?;
    let info = node.crictl_json(&["info"])?;
    let conditions = info["status"]["conditions"].as_array().context("conditions")?.clone();
    for name in ["RuntimeReady", "NetworkReady"] {
        ensure!(
            conditions.iter().any(|c| c["type"] == name && c["status"] == true),
            "{name} in {conditions:?}"
        );
    }
    Ok(())
}

/// The keys that tools look for are there, whatever they say.
fn tells(info: &Value, keys: &[&str]) -> Result<()> {
    for key in keys {
        ensure!(info.get(key).is_some(), "no {key} in {info}");
    }
    Ok(())
}

fn statistics(node: &Node, pod: &str, container: &str) -> Result<()> {
    let stats = node.crictl_json(&["stats", "-o", "json", &container[..PREFIX]])?;
    same("stats", &stats["stats"][0]["attributes"]["id"], &json!(container))?;
    ensure!(number(&stats["stats"][0]["memory"]["workingSetBytes"]["value"]) > 0, "memory in {stats}");
    let stats = node.crictl_json(&["statsp", "-o", "json", &pod[..PREFIX]])?;
    same("statsp", &stats["stats"][0]["attributes"]["id"], &json!(pod))?;
    let used = node.crictl_json(&["imagefsinfo"])?;
    ensure!(number(&used["status"]["imageFilesystems"][0]["usedBytes"]["value"]) > 0, "imagefsinfo {used}");
    Ok(())
}

fn ends(node: &Node, pod: &str, container: &str) -> Result<()> {
    node.crictl(&["stop", "--timeout", "60", &container[..PREFIX]])?;
    let inspected = node.crictl_json(&["inspect", container])?;
    same("exit code", &inspected["status"]["exitCode"], &json!(7))?;
    same("reason", &inspected["status"]["reason"], &json!("Error"))?;
    node.crictl(&["rm", &container[..PREFIX]])?;
    same("containers", &node.crictl(&["ps", "-a", "-q"])?.as_str(), &"")?;
    node.crictl(&["stopp", &pod[..PREFIX]])?;
    let pods = node.crictl_json(&["pods", "-o", "json"])?;
    same("pod state", &pods["items"][0]["state"], &json!("SANDBOX_NOTREADY"))?;
    node.crictl(&["rmp", &pod[..PREFIX]])?;
    same("pods", &node.crictl(&["pods", "-q"])?.as_str(), &"")?;
    node.crictl(&["rmi", BUSYBOX])?;
    same("images", &node.crictl(&["images", "-q"])?.as_str(), &"")
}

/// A 64-bit number in protobuf's JSON is a text.
fn number(value: &Value) -> u64 {
    value.as_str().and_then(|text| text.parse().ok()).or_else(|| value.as_u64()).unwrap_or(0)
}

fn finds_images_by_every_kind_of_reference(node: &mut Node, _: &mut Registry) -> Result<()> {
    node.crictl(&["pull", "busybox"])?;
    let image = node.crictl_json(&["inspecti", "docker.io/library/busybox:latest"])?["status"].clone();
    let id = image["id"].as_str().context("id")?.to_owned();
    let digest = image["repoDigests"][0].as_str().context("digest")?.to_owned();
    let hex = id.trim_start_matches("sha256:");
    for reference in ["busybox", "busybox:latest", "library/busybox", &id, hex, &hex[..12], &digest] {
        let found = node.crictl_json(&["inspecti", reference]).with_context(|| format!("by {reference}"))?;
        same(reference, &found["status"]["id"], &json!(id))?;
    }
    node.crictl(&["pull", &digest])?;
    for (reference, again) in
        [(hex[..12].to_owned(), "busybox"), (digest.clone(), "busybox"), ("busybox".to_owned(), &digest)]
    {
        node.crictl(&["rmi", &reference]).with_context(|| format!("rmi {reference}"))?;
        let left = node.crictl(&["images", "-q"])?;
        ensure!(!left.contains(&hex[..12]), "after rmi {reference}: {left}");
        node.crictl(&["pull", again])?;
    }
    Ok(())
}

fn lists_and_filters(node: &mut Node, _: &mut Registry) -> Result<()> {
    let (first, one) = node.one("first", &["sleep", "1000"])?;
    let second = node.run(node.pod("second"))?;
    let exited = node.launch(&second, &node.container("main", &["true"]))?;
    node.wait_exit(&exited)?;
    let ids = |arguments: &[&str]| -> Result<Vec<String>> {
        let mut ids: Vec<String> = node.crictl(arguments)?.lines().map(str::to_owned).collect();
        ids.sort();
        Ok(ids)
    };
    let mut both = vec![one.clone(), exited.clone()];
    both.sort();
    same("ps", &ids(&["ps", "-q", "--no-trunc"])?, &vec![one.clone()])?;
    same("ps -a", &ids(&["ps", "-a", "-q", "--no-trunc"])?, &both)?;
    same("ps by state", &ids(&["ps", "-q", "--no-trunc", "--state", "Exited"])?, &vec![exited])?;
    same("ps by pod", &ids(&["ps", "-q", "--no-trunc", "--pod", &first.id[..PREFIX]])?, &vec![one])?;
    same("ps by name", &ids(&["ps", "-a", "-q", "--no-trunc", "--name", "^main$"])?, &both)?;
    same(
        "pods by label",
        &ids(&["pods", "-q", "--no-trunc", "--label", "app=second"])?,
        &vec![second.id.clone()],
    )?;
    node.cri.stop_pod(&second.id)?;
    same("ready pods", &ids(&["pods", "-q", "--no-trunc", "--state", "ready"])?, &vec![first.id])
}

fn updates_resources(node: &mut Node, _: &mut Registry) -> Result<()> {
    let (_, id) = node.one("update", &["sleep", "1000"])?;
    node.crictl(&[
        "update",
        "--memory",
        "67108864",
        "--cpu-quota",
        "20000",
        "--cpu-period",
        "100000",
        &id[..PREFIX],
    ])?;
    let status = node.crictl_json(&["inspect", &id])?;
    let resources = &status["status"]["resources"]["linux"];
    same("memory limit", &number(&resources["memoryLimitInBytes"]), &67_108_864)?;
    same("quota", &number(&resources["cpuQuota"]), &20_000)?;
    let pid = status["info"]["pid"].as_u64().context("pid")?;
    same("limit in the kernel", &kernel_memory_limit(pid)?, &67_108_864)
}

/// The memory limit of the cgroup that holds this process, in bytes.
fn kernel_memory_limit(pid: u64) -> Result<u64> {
    let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    for line in cgroups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        if controllers.split(',').any(|name| name == "memory") {
            let file = format!("/sys/fs/cgroup/memory{path}/memory.limit_in_bytes");
            return Ok(std::fs::read_to_string(file)?.trim().parse()?);
        }
    }
    let path = cgroups.lines().find_map(|line| line.strip_prefix("0::")).context("cgroup of the process")?;
    Ok(std::fs::read_to_string(format!("/sys/fs/cgroup{path}/memory.max"))?.trim().parse()?)
}

fn answers_unknown_and_ambiguous_ids(node: &mut Node, _: &mut Registry) -> Result<()> {
    for arguments in [&["inspect", "feed"], &["inspectp", "feed"], &["start", "feed"]] {
        let error = node.crictl_fails(arguments)?;
        ensure!(error.contains("NotFound"), "crictl {arguments:?}: {error}");
    }
    // 17 pods: two of them begin with the same digit.
    let mut ids = Vec::new();
    for number in 0..17 {
        ids.push(node.run(node.pod(&format!("p{number}")))?.id);
    }
    let digit = ids
        .iter()
        .map(|id| &id[..1])
        .find(|digit| ids.iter().filter(|id| id.starts_with(*digit)).count() > 1)
        .context("two ids with one first digit")?;
    let error = node.crictl_fails(&["inspectp", digit])?;
    ensure!(error.contains("ambiguous"), "{error}");
    Ok(())
}

/// Standard output of a command that must not be silent.
fn says(node: &Node, arguments: &[&str]) -> Result<String> {
    let text = node.crictl(arguments)?;
    ensure!(!text.trim().is_empty(), "crictl {arguments:?} says nothing");
    Ok(text)
}

fn commands_that_need_no_pod(node: &mut Node, _: &mut Registry) -> Result<()> {
    let version = says(node, &["version"])?;
    ensure!(
        version.contains("RuntimeName:  crisp") && version.contains("RuntimeApiVersion:  v1"),
        "{version}"
    );
    for shell in ["bash", "zsh", "fish"] {
        ensure!(says(node, &["completion", shell])?.contains("crictl"), "completion for {shell}");
    }
    let driver = says(node, &["runtime-config"])?;
    ensure!(driver.contains("CGROUPFS") || driver.contains("SYSTEMD"), "{driver}");
    node.crictl(&["update-runtime-config", "--pod-cidr", "10.9.0.0/24"])?;
    // It is remembered, also over a reboot.
    node.rebase()?;
    for form in ["json", "yaml"] {
        ensure!(says(node, &["info", "-o", form])?.contains("RuntimeReady"), "info -o {form}");
    }
    let ready = node.crictl(&[
        "info",
        "-o",
        "go-template",
        "--template",
        "{{range .status.conditions}}{{.status}} {{end}}",
    ])?;
    ensure!(ready.contains("true"), "{ready}");
    configures(node)?;
    for command in ["", "exec", "port-forward", "checkpoint", "metricsp"] {
        let arguments: &[&str] = if command.is_empty() { &["help"] } else { &["help", command] };
        ensure!(says(node, arguments)?.contains("USAGE"), "help {command}");
    }
    Ok(())
}

/// The configuration is a file of crictl's own; the daemon is found by it.
fn configures(node: &Node) -> Result<()> {
    let file = node.dir().join("crictl.yaml").display().to_string();
    std::fs::write(&file, "")?;
    let crictl = |arguments: &[&str]| {
        let mut command = std::process::Command::new(crate::paths::tools().join("crictl"));
        crate::command::output(command.args(["--config", &file, "--timeout", "180s"]).args(arguments))
    };
    let endpoint = format!("unix://{}", node.socket().display());
    crictl(&["config", "--set", &format!("runtime-endpoint={endpoint},image-endpoint={endpoint}")])?;
    same("config --get", &crictl(&["config", "--get", "runtime-endpoint"])?.trim(), &endpoint.as_str())?;
    ensure!(crictl(&["config", "--list"])?.contains(&endpoint), "config --list");
    ensure!(crictl(&["version"])?.contains("crisp"), "by the configured endpoint");
    Ok(())
}

fn every_list_has_every_form(node: &mut Node, _: &mut Registry) -> Result<()> {
    let (pod, id) = node.one("forms", &["sleep", "1000"])?;
    for (list, name, shown) in [
        ("ps", id.as_str(), &id[..13]),
        ("pods", pod.id.as_str(), &pod.id[..13]),
        ("images", BUSYBOX, "e2e-test-images/busybox"),
        ("stats", id.as_str(), &id[..13]),
        ("statsp", pod.id.as_str(), &pod.id[..13]),
    ] {
        for form in ["json", "yaml"] {
            ensure!(says(node, &[list, "-o", form])?.contains(name), "{list} -o {form} without {name}");
        }
        let table = says(node, &[list, "-o", "table"])?;
        ensure!(table.contains(shown), "{list} as a table without {shown}: {table}");
    }
    for list in ["ps", "pods", "images"] {
        ensure!(says(node, &[list, "-v"])?.contains("ID: "), "{list} -v");
    }
    ensure!(says(node, &["images", "--digests", "--pinned"])?.contains("DIGEST"), "images --digests");
    for form in ["json", "yaml"] {
        ensure!(
            says(node, &["metricdescs", "-o", form])?.contains("container_cpu_usage_seconds_total"),
            "metricdescs"
        );
        ensure!(says(node, &["metricsp", "-o", form])?.contains(&pod.id), "metricsp -o {form}");
        ensure!(says(node, &["imagefsinfo", "-o", form])?.contains("usedBytes"), "imagefsinfo -o {form}");
    }
    ensure!(says(node, &["imagefsinfo", "-o", "table"])?.contains("Mountpoint"), "imagefsinfo as a table");
    Ok(())
}

fn every_inspection_has_every_form(node: &mut Node, _: &mut Registry) -> Result<()> {
    let (pod, id) = node.one("forms", &["sleep", "1000"])?;
    let image = node.cri.images()?.first().context("an image")?.id.clone();
    for (command, name) in [("inspect", &id), ("inspectp", &pod.id), ("inspecti", &image)] {
        for form in ["json", "yaml", "table"] {
            let text = says(node, &[command, "-o", form, name])?;
            ensure!(text.contains(name.as_str()), "{command} -o {form}: {text}");
        }
        let template = ["-o", "go-template", "--template", "{{.status.id}}"];
        let text = node.crictl(&[&[command], &template[..], &[name]].concat())?;
        same(command, &text.trim(), &name.as_str())?;
        let quiet = node.crictl_json(&[command, "-q", name])?;
        ensure!(
            quiet.get("info").is_none_or(|info| info.as_object().is_none_or(|info| info.is_empty())),
            "{command} -q: {quiet}"
        );
    }
    Ok(())
}

fn logs_in_every_way(node: &mut Node, _: &mut Registry) -> Result<()> {
    let script = "echo one; echo two >&2; echo three; sleep 0.5; echo four";
    let (_, id) = node.one("logs", &["sh", "-c", script])?;
    // Follows until the container ends.
    same("followed", &node.crictl(&["logs", "-f", &id])?.lines().count().min(4), &3)?;
    node.wait_exit(&id)?;
    let texts = |arguments: &[&str]| node.crictl(&[&["logs"], arguments, &[id.as_str()]].concat());
    same("stdout", &texts(&["-s", "stdout"])?.as_str(), &"one\nthree\nfour\n")?;
    same("the last", &texts(&["--tail", "1"])?.as_str(), &"four\n")?;
    same("stamped", &texts(&["-t", "--tail", "1"])?.ends_with("Z four\n"), &true)?;
    same("of the last hour", &texts(&["--since", "1h", "-s", "stdout"])?.lines().count(), &3)?;
    Ok(())
}

fn runs_a_container_in_one_go(node: &mut Node, _: &mut Registry) -> Result<()> {
    let (pod_file, container_file) = files(node, "once", &["sleep", "1000"])?;
    let id = node.crictl(&["run", "--no-pull", &container_file, &pod_file])?.trim().to_owned();
    same("state", &node.crictl_json(&["inspect", &id])?["status"]["state"], &json!("CONTAINER_RUNNING"))?;
    same("exec", &node.crictl(&["exec", &id, "echo", "hi"])?.as_str(), &"hi\n")
}

fn follows_events(node: &mut Node, _: &mut Registry) -> Result<()> {
    let log = node.dir().join("events.json");
    for (form, expected) in [("json", "CONTAINER_STOPPED_EVENT"), ("yaml", "CONTAINER_STOPPED_EVENT")] {
        let (_, id) = node.one(&format!("events-{form}"), &["sleep", "1000"])?;
        let mut command = node.crictl_command(&["events", "-o", form]);
        let file = std::fs::File::create(&log)?;
        let mut client = command.stdout(file).stderr(std::process::Stdio::null()).spawn()?;
        // Nothing tells when the client listens: containers are started until one is seen.
        let other = node.run(node.pod(&format!("other-{form}")))?;
        let mut number = 0;
        let seen = eventually(SOON, || {
            number += 1;
            node.launch(&other, &node.container(&format!("c{number}"), &["true"]))?;
            ensure!(std::fs::read_to_string(&log)?.contains("CONTAINER_STARTED_EVENT"), "no start is told");
            Ok(())
        });
        let stopped = seen.and_then(|()| node.cri.stop(&id, 0).map_err(Into::into)).and_then(|()| {
            eventually(SOON, || {
                let text = std::fs::read_to_string(&log)?;
                ensure!(text.contains(expected) && text.contains(&id), "{expected} of {id} in {text}");
                Ok(())
            })
        });
        client.kill()?;
        client.wait()?;
        stopped.with_context(|| format!("events -o {form}"))?;
    }
    Ok(())
}

fn stops_and_removes_all(node: &mut Node, _: &mut Registry) -> Result<()> {
    for number in 0..3 {
        node.one(&format!("all-{number}"), &["sleep", "1000"])?;
    }
    node.crictl(&["stop", "-a"])?;
    same("running", &node.crictl(&["ps", "-q"])?.as_str(), &"")?;
    same("exited", &node.crictl(&["ps", "-a", "-q"])?.lines().count(), &3)?;
    node.crictl(&["rm", "-a"])?;
    same("left", &node.crictl(&["ps", "-a", "-q"])?.as_str(), &"")?;
    let (pod, _) = node.one("running", &["sleep", "1000"])?;
    let error = node.crictl_fails(&["rmp", &pod.id])?;
    ensure!(error.contains("running"), "{error}");
    node.crictl(&["rmp", "-a", "-f"])?;
    same("pods", &node.crictl(&["pods", "-q"])?.as_str(), &"")?;
    node.crictl(&["rmi", "--prune"])?;
    same("images", &node.crictl(&["images", "-q"])?.as_str(), &"")
}

fn writes_a_checkpoint_or_says_what_it_needs(node: &mut Node, _: &mut Registry) -> Result<()> {
    let (_, id) = node.one("checkpoint", &["sleep", "1000"])?;
    let archive = node.dir().join("checkpoint.tar");
    let done =
        node.crictl_command(&["checkpoint", "--export", &archive.display().to_string(), &id]).output()?;
    if done.status.success() {
        let bytes = archive.metadata()?.len();
        ensure!(bytes > 0, "the archive is empty");
        crate::say!("  an archive of {bytes} bytes");
    } else {
        let error = String::from_utf8_lossy(&done.stderr).into_owned();
        ensure!(error.to_lowercase().contains("criu"), "what is missing is not named: {error}");
        ensure!(!archive.exists(), "a part of an archive is left");
        crate::say!("  none: {}", error.trim());
    }
    same("state", &node.crictl_json(&["inspect", &id])?["status"]["state"], &json!("CONTAINER_RUNNING"))
}
