//! Commands in running containers.
use anyhow::{Context as _, Result, ensure};
use crisp_proto::cri;
use tonic::Code;

use super::tests;
use crate::eventually::{SOON, eventually};
use crate::node::{Node, same};
use crate::registry::Registry;

tests![
    gives_code_and_both_streams,
    takes_the_identity_of_the_container,
    a_timeout_kills_everything_it_started,
    does_not_wait_for_what_stays_in_the_background,
    bounds_its_output,
    many_at_once,
];

fn gives_code_and_both_streams(node: &mut Node, _: &mut Registry) -> Result<()> {
    let (_, id) = node.one("exec", &["sleep", "1000"])?;
    let script = "echo out; echo err >&2; exit 42";
    same("answer", &node.cri.exec(&id, &["sh", "-c", script])?, &(42, "out\n".into(), "err\n".into()))?;
    let (code, _, _) = node.cri.exec(&id, &["sh", "-c", "kill -9 $$"])?;
    same("killed", &code, &137)?;
    let missing = node.cri.exec(&id, &["no-such-program"]).err().context("a program that is not there")?;
    ensure!(missing.message().contains("no-such-program"), "{missing}");
    Ok(())
}

fn takes_the_identity_of_the_container(node: &mut Node, _: &mut Registry) -> Result<()> {
    let pod = node.run(node.pod("identity"))?;
    let mut config = node.container("c", &["sleep", "1000"]);
    config.envs = vec![cri::KeyValue { key: "A".into(), value: "b".into() }];
    config.working_dir = "/tmp".into();
    let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    security.run_as_user = Some(cri::Int64Value { value: 1001 });
    security.run_as_group = Some(cri::Int64Value { value: 1002 });
    security.supplemental_groups = vec![1234];
    security.no_new_privs = true;
    security.capabilities =
        Some(cri::Capability { drop_capabilities: vec!["ALL".into()], ..Default::default() });
    security.seccomp = Some(cri::SecurityProfile::default());
    let id = node.launch(&pod, &config)?;
    same(
        "id",
        &node.exec(&id, &["sh", "-c", "echo $(id -u) $(id -G) $A $PWD"])?.trim(),
        &"1001 1002 1234 b /tmp",
    )?;
    let of = |file: &str| node.exec(&id, &["grep", "-E", "^(Cap|NoNewPrivs|Seccomp:|Uid|Gid|Groups)", file]);
    same("status", &of("/proc/self/status")?, &of("/proc/1/status")?)?;
    let namespaces = "for n in net pid ipc uts mnt cgroup; do readlink /proc/self/ns/$n; done";
    let theirs = namespaces.replace("self", "1");
    same(
        "namespaces",
        &node.exec(&id, &["sh", "-c", namespaces])?,
        &node.exec(&id, &["sh", "-c", &theirs])?,
    )?;
    let (own, first) =
        (node.exec(&id, &["cat", "/proc/self/cgroup"])?, node.exec(&id, &["cat", "/proc/1/cgroup"])?);
    for (own, first) in own.lines().zip(first.lines()) {
        // A session may have a cgroup of its own below the container's.
        ensure!(own.starts_with(first), "cgroup {own}, not below {first}");
    }
    Ok(())
}

fn exec_with_timeout(
    node: &Node,
    id: &str,
    command: &[&str],
    timeout: i64,
) -> Result<cri::ExecSyncResponse, tonic::Status> {
    let request = cri::ExecSyncRequest {
        container_id: id.to_owned(),
        cmd: command.iter().map(|part| (*part).to_owned()).collect(),
        timeout,
    };
    node.cri.runtime(|mut c| async move { c.exec_sync(request).await })
}

fn a_timeout_kills_everything_it_started(node: &mut Node, _: &mut Registry) -> Result<()> {
    let (_, id) = node.one("timeout", &["top", "-b", "-d", "100"])?;
    let began = std::time::Instant::now();
    let error =
        exec_with_timeout(node, &id, &["sh", "-c", "sleep 777 & sleep 778"], 1).err().context("a timeout")?;
    same("code", &error.code(), &Code::DeadlineExceeded)?;
    ensure!(began.elapsed().as_secs() < 60, "took {:?}", began.elapsed());
    eventually(SOON, || {
        let seen = node.exec(&id, &["ps", "-o", "args"])?;
        ensure!(!seen.contains("sleep 77"), "left: {seen}");
        Ok(())
    })
}

fn does_not_wait_for_what_stays_in_the_background(node: &mut Node, _: &mut Registry) -> Result<()> {
    let (_, id) = node.one("background", &["sleep", "1000"])?;
    let began = std::time::Instant::now();
    let answer = exec_with_timeout(node, &id, &["sh", "-c", "sleep 1000 & echo done"], 120)?;
    same("stdout", &String::from_utf8_lossy(&answer.stdout).as_ref(), &"done\n")?;
    ensure!(began.elapsed().as_secs() < 60, "took {:?}", began.elapsed());
    Ok(())
}

fn bounds_its_output(node: &mut Node, _: &mut Registry) -> Result<()> {
    const ANSWER_BYTES_MAX: usize = 16 << 20;
    let (_, id) = node.one("output", &["sleep", "1000"])?;
    let all = exec_with_timeout(node, &id, &["head", "-c", "1000000", "/dev/zero"], 90)?;
    same("a megabyte", &all.stdout.len(), &1_000_000)?;
    match exec_with_timeout(node, &id, &["head", "-c", "64000000", "/dev/zero"], 90) {
        Ok(answer) => ensure!(answer.stdout.len() <= ANSWER_BYTES_MAX, "{} bytes", answer.stdout.len()),
        Err(status) => ensure!(status.code() == Code::ResourceExhausted, "{status}"),
    }
    same("still there", &node.exec(&id, &["echo", "yes"])?.as_str(), &"yes\n")
}

fn many_at_once(node: &mut Node, _: &mut Registry) -> Result<()> {
    const AT_ONCE: usize = 40;
    let (_, id) = node.one("many", &["sleep", "1000"])?;
    let answers = node.cri.together(async {
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..AT_ONCE {
            let mut client = node.cri.client();
            let cmd = vec!["echo".to_owned(), number.to_string()];
            let request = cri::ExecSyncRequest { container_id: id.clone(), cmd, timeout: 90 };
            tasks.spawn(async move {
                client.exec_sync(request).await.map(|answer| (number, answer.into_inner().stdout))
            });
        }
        tasks.join_all().await
    });
    for answer in answers {
        let (number, stdout) = answer?;
        same("stdout", &String::from_utf8_lossy(&stdout).into_owned(), &format!("{number}\n"))?;
    }
    Ok(())
}
