//! Bad input: a clear error with the right code, and nothing changed.
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use crisp_proto::cri;
use tonic::{Code, Status};

use super::tests;
use crate::node::{BUSYBOX, Node, Options, Warm, same};
use crate::registry::Registry;

tests![
    unknown_ids,
    missing_and_malformed_fields,
    names_in_use,
    wrong_states,
    a_missing_seccomp_file,
    #[options(bare)]
    a_registry_that_is_away,
    #[options(bare)]
    images_that_do_not_exist,
    #[options(bare)]
    a_pull_keeps_its_deadline,
    a_failed_start_leaves_nothing,
    what_is_not_built_is_unimplemented,
];

fn bare() -> Options {
    Options { warm: Warm::Pod, ..Options::default() }
}

/// Makes a good configuration a bad one.
type Change<T> = fn(&mut T);

/// The call failed with this code; nothing is left of it.
fn fails<T>(node: &Node, what: &str, result: Result<T, Status>, code: Code) -> Result<Status> {
    let status = result.err().with_context(|| format!("{what} succeeded"))?;
    ensure!(status.code() == code, "{what}: {status:?}, not {code:?}");
    ensure!(!status.message().is_empty(), "{what} says nothing");
    node.check_leaks().with_context(|| format!("after {what}"))?;
    Ok(status)
}

fn unknown_ids(node: &mut Node, _: &mut Registry) -> Result<()> {
    let id = "0123456789abcdef".repeat(4);
    for id in [id.as_str(), "feed", "no-hex", "../../etc/passwd", "sha256:00"] {
        fails(node, "PodSandboxStatus", node.cri.pod_status(id), Code::NotFound)?;
        fails(node, "ContainerStatus", node.cri.container_status(id), Code::NotFound)?;
        fails(node, "StartContainer", node.cri.start(id), Code::NotFound)?;
        fails(node, "ExecSync", node.cri.exec(id, &["true"]), Code::NotFound)?;
        let config = node.pod("x");
        fails(
            node,
            "CreateContainer",
            node.cri.create(id, &node.container("c", &["true"]), &config),
            Code::NotFound,
        )?;
        let update = cri::UpdateContainerResourcesRequest { container_id: id.into(), ..Default::default() };
        let update = node.cri.runtime(|mut c| async move { c.update_container_resources(update).await });
        fails(node, "UpdateContainerResources", update, Code::NotFound)?;
        let reopen = cri::ReopenContainerLogRequest { container_id: id.into() };
        let reopen = node.cri.runtime(|mut c| async move { c.reopen_container_log(reopen).await });
        fails(node, "ReopenContainerLog", reopen, Code::NotFound)?;
        // Gone is what these want.
        node.cri.stop(id, 0)?;
        node.cri.remove(id)?;
        node.cri.stop_pod(id)?;
        node.cri.remove_pod(id)?;
    }
    let filter = cri::PodSandboxFilter { id: id.clone(), ..Default::default() };
    let request = cri::ListPodSandboxRequest { filter: Some(filter) };
    same("list", &node.cri.runtime(|mut c| async move { c.list_pod_sandbox(request).await })?.items.len(), &0)
}

fn missing_and_malformed_fields(node: &mut Node, _: &mut Registry) -> Result<()> {
    let cases: [(&str, Change<cri::PodSandboxConfig>); 6] = [
        ("no metadata", |c| c.metadata = None),
        ("no name", |c| c.metadata.get_or_insert_default().name = String::new()),
        ("no uid", |c| c.metadata.get_or_insert_default().uid = String::new()),
        ("no namespace", |c| c.metadata.get_or_insert_default().namespace = String::new()),
        ("sysctl of the node", |c| {
            drop(c.linux.get_or_insert_default().sysctls.insert("kernel.panic".into(), "1".into()))
        }),
        ("log directory", |c| c.log_directory = "relative/path".into()),
    ];
    for (what, change) in cases {
        let mut config = node.pod("bad");
        change(&mut config);
        fails(node, what, node.cri.run_pod(&config, ""), Code::InvalidArgument)?;
    }
    let nothing = cri::RunPodSandboxRequest::default();
    let nothing = node.cri.runtime(|mut c| async move { c.run_pod_sandbox(nothing).await });
    fails(node, "no config", nothing, Code::InvalidArgument)?;

    let pod = node.run(node.pod("good"))?;
    node.rebase()?;
    let cases: [(&str, Change<cri::ContainerConfig>); 7] = [
        ("no metadata", |c| c.metadata = None),
        ("no name", |c| c.metadata.get_or_insert_default().name = String::new()),
        ("no image", |c| c.image = None),
        ("log path", |c| c.log_path = "../../escape.log".into()),
        ("mount", |c| {
            c.mounts.push(cri::Mount {
                container_path: "/x".into(),
                host_path: "../x".into(),
                ..Default::default()
            })
        }),
        ("environment", |c| c.envs.push(cri::KeyValue { key: String::new(), value: "x".into() })),
        ("stop signal", |c| c.stop_signal = 4711),
    ];
    for (what, change) in cases {
        let mut config = node.container("bad", &["true"]);
        change(&mut config);
        fails(node, what, node.cri.create(&pod.id, &config, &pod.config), Code::InvalidArgument)?;
    }
    let mut config = node.container("absent", &["true"]);
    config.image.get_or_insert_default().image = "example.org/not/pulled:1".into();
    fails(node, "image", node.cri.create(&pod.id, &config, &pod.config), Code::NotFound)?;
    for image in ["example.org/UPPER/case", "a b", "busybox:tag:tag", "busybox@sha256:12", ""] {
        fails(node, image, node.cri.pull(image), Code::InvalidArgument)?;
    }
    node.remove_all()
}

fn names_in_use(node: &mut Node, _: &mut Registry) -> Result<()> {
    let config = node.pod("taken");
    let pod = node.run(config.clone())?;
    let container = node.cri.create(&pod.id, &node.container("c", &["true"]), &config)?;
    // The same request again is a retry: it gets the same pod, or learns that the name is taken.
    match node.cri.run_pod(&config, "") {
        Ok(id) => same("the retry's pod", &id, &pod.id)?,
        Err(status) => same("code", &status.code(), &Code::AlreadyExists)?,
    }
    let mut other = config.clone();
    other.labels.insert("different".into(), "yes".into());
    if let Err(status) = node.cri.run_pod(&other, "") {
        same("code", &status.code(), &Code::AlreadyExists)?;
        ensure!(status.message().contains(&pod.id[..12]), "the holder is named: {status}");
    }
    match node.cri.create(&pod.id, &node.container("c", &["true"]), &config) {
        Ok(id) => same("the retry's container", &id, &container)?,
        Err(status) => same("code", &status.code(), &Code::AlreadyExists)?,
    }
    same("pods", &node.cri.pods()?.len(), &1)?;
    same("containers", &node.cri.containers()?.len(), &1)?;
    let mut next = config;
    next.metadata.get_or_insert_default().attempt = 1;
    node.run(next)?;
    Ok(())
}

fn wrong_states(node: &mut Node, _: &mut Registry) -> Result<()> {
    let (pod, id) = node.one("states", &["sleep", "1000"])?;
    node.rebase()?;
    fails(node, "start of a running container", node.cri.start(&id), Code::FailedPrecondition)?;
    fails(node, "exec of nothing", node.cri.exec(&id, &[]), Code::InvalidArgument)?;
    let created = node.cri.create(&pod.id, &node.container("created", &["true"]), &pod.config)?;
    node.rebase()?;
    fails(node, "exec in a created container", node.cri.exec(&created, &["true"]), Code::FailedPrecondition)?;
    node.cri.stop(&id, 0)?;
    node.rebase()?;
    fails(node, "start of an exited container", node.cri.start(&id), Code::FailedPrecondition)?;
    fails(node, "exec in an exited container", node.cri.exec(&id, &["true"]), Code::FailedPrecondition)?;
    node.remove_all()
}

fn a_missing_seccomp_file(node: &mut Node, _: &mut Registry) -> Result<()> {
    use cri::security_profile::ProfileType;
    let pod = node.run(node.pod("seccomp"))?;
    node.rebase()?;
    let broken = node.dir().join("broken.json");
    std::fs::write(&broken, "{\"defaultAction\": 7}")?;
    for path in ["/no/such/profile.json".to_owned(), broken.display().to_string(), "relative.json".into()] {
        let mut config = node.container("c", &["true"]);
        let linux = config.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default().seccomp = Some(cri::SecurityProfile {
            profile_type: ProfileType::Localhost.into(),
            localhost_ref: path.clone(),
        });
        let status = match node.cri.create(&pod.id, &config, &pod.config) {
            Err(status) => status,
            Ok(id) => {
                let status = node.cri.start(&id).err().with_context(|| format!("{path} was accepted"))?;
                node.cri.remove(&id)?;
                status
            }
        };
        ensure!([Code::NotFound, Code::InvalidArgument].contains(&status.code()), "{path}: {status:?}");
        ensure!(status.message().contains(&path), "the error names the file: {status}");
        node.check_leaks()?;
    }
    node.remove_all()
}

fn a_registry_that_is_away(node: &mut Node, registry: &mut Registry) -> Result<()> {
    registry.stop()?;
    let began = std::time::Instant::now();
    let refused = node.cri.pull(BUSYBOX);
    let took = began.elapsed();
    registry.restart()?;
    node.allow_process(registry.pid());
    let status = refused.err().context("nobody serves it")?;
    // The kubelet reads the name of the error at the beginning of an UNKNOWN message.
    ensure!([Code::Unavailable, Code::Unknown].contains(&status.code()), "{status:?}");
    ensure!(status.message().contains("127.0.0.1:5000"), "the error names the host: {status}");
    ensure!(took < Duration::from_secs(30), "took {took:?}");
    same("images", &node.cri.images()?.len(), &0)?;
    node.cri.pull(BUSYBOX)?;
    Ok(())
}

fn images_that_do_not_exist(node: &mut Node, _: &mut Registry) -> Result<()> {
    for image in ["example.org/no/such/image:1", "registry.k8s.io/e2e-test-images/busybox:no-such-tag"] {
        let status = fails(node, image, node.cri.pull(image), Code::NotFound)?;
        ensure!(status.message().contains(image), "the error names the image: {status}");
    }
    Ok(())
}

fn a_pull_keeps_its_deadline(node: &mut Node, _: &mut Registry) -> Result<()> {
    let spec = cri::ImageSpec { image: "nginx".into(), ..Default::default() };
    let mut request = tonic::Request::new(cri::PullImageRequest { image: Some(spec), ..Default::default() });
    request.set_timeout(Duration::from_millis(1));
    let answer = node.cri.image(|mut c| async move { c.pull_image(request).await });
    let code = answer.err().map(|status| status.code());
    ensure!([Some(Code::DeadlineExceeded), Some(Code::Cancelled)].contains(&code), "{code:?}");
    node.cri.pull("nginx")?;
    Ok(())
}

fn a_failed_start_leaves_nothing(node: &mut Node, _: &mut Registry) -> Result<()> {
    let pod = node.run(node.pod("failing"))?;
    node.rebase()?;
    for (what, command) in
        [("not there", "/no/such/program"), ("a folder", "/etc"), ("not executable", "/etc/passwd")]
    {
        let id = node.cri.create(&pod.id, &node.container("c", &[command]), &pod.config)?;
        let status =
            node.cri.start(&id).err().with_context(|| format!("a program that is {what} was started"))?;
        ensure!(status.message().contains(command), "the error names the program: {status}");
        node.cri.remove(&id)?;
        node.check_leaks().with_context(|| format!("a program that is {what}"))?;
    }
    node.remove_all()
}

fn what_is_not_built_is_unimplemented(node: &mut Node, _: &mut Registry) -> Result<()> {
    let pod = node.run(node.pod("later"))?;
    let checkpoint = cri::CheckpointPodRequest { pod_sandbox_id: pod.id, ..Default::default() };
    let checkpoint = node.cri.runtime(|mut c| async move { c.checkpoint_pod(checkpoint).await });
    same("CheckpointPod", &checkpoint.err().map(|status| status.code()), &Some(Code::Unimplemented))?;
    let restore = cri::RestorePodRequest::default();
    let restore = node.cri.runtime(|mut c| async move { c.restore_pod(restore).await });
    same("RestorePod", &restore.err().map(|status| status.code()), &Some(Code::Unimplemented))
}
