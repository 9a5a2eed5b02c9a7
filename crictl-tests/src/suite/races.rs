//! Calls that meet each other on one object: whichever comes first, nothing is left of what was removed.
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use crisp_proto::cri;
use rustix::process::Signal;
use tonic::{Code, Status};

use super::tests;
use crate::eventually::{SOON, eventually, pause};
use crate::node::{BUSYBOX, Node, Options, Warm, same};
use crate::registry::Registry;

tests![
    a_removal_meets_a_start,
    removals_and_updates_meet,
    a_creation_meets_the_removal_of_its_pod,
    updates_meet_the_removal_of_their_pod,
    a_pull_a_removal_and_a_creation_meet,
    a_daemon_killed_anywhere_leaves_nothing,
    #[options(bare)]
    a_daemon_killed_in_a_pull_leaves_no_half_image,
];

type Client = cri::runtime_service_client::RuntimeServiceClient<tonic::transport::Channel>;

/// Rounds of a race: each order of two steps comes up in some.
const ROUNDS: usize = 100;

/// The same where a round has more to do.
const POD_ROUNDS: usize = 30;

/// What may be said of a container that is being removed.
const TOO_LATE: [Code; 2] = [Code::NotFound, Code::FailedPrecondition];

fn too_late<T>(what: &str, answer: Result<T, Status>) -> Result<()> {
    let late = answer.as_ref().err().is_none_or(|status| TOO_LATE.contains(&status.code()));
    ensure!(late, "{what}: {:?}", answer.err());
    Ok(())
}

fn a_removal_meets_a_start(node: &mut Node, _: &mut Registry) -> Result<()> {
    let pod = node.run(node.pod("races"))?;
    node.rebase()?;
    for round in 0..ROUNDS {
        let id = node.cri.create(&pod.id, &node.container("c", &["sleep", "1000"]), &pod.config)?;
        let (mut starter, mut remover) = (node.cri.client(), node.cri.client());
        let start = cri::StartContainerRequest { container_id: id.clone() };
        let remove = cri::RemoveContainerRequest { container_id: id };
        let (started, removed) = node.cri.together(async {
            let started = tokio::spawn(async move { starter.start_container(start).await });
            // The start comes a little further in each round.
            for _ in 0..round * 4 {
                tokio::task::yield_now().await;
            }
            let removed = remover.remove_container(remove).await;
            (started.await, removed)
        });
        removed?;
        too_late("start", started?)?;
        same("containers", &node.cri.containers()?.len(), &0)?;
    }
    node.check_leaks()?;
    // A removal of what runs would leave an end that nobody can record.
    let log = std::fs::read_to_string(node.log_path())?;
    let left = log.lines().find(|line| line.contains("settle the end"));
    ensure!(left.is_none(), "{left:?}");
    Ok(())
}

fn removals_and_updates_meet(node: &mut Node, _: &mut Registry) -> Result<()> {
    let pod = node.run(node.pod("races"))?;
    node.rebase()?;
    for _ in 0..ROUNDS {
        let id = node.cri.create(&pod.id, &node.container("c", &["sleep", "1000"]), &pod.config)?;
        let limits = cri::LinuxContainerResources { cpu_shares: 512, ..Default::default() };
        let update = cri::UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(limits),
            ..Default::default()
        };
        let remove = cri::RemoveContainerRequest { container_id: id.clone() };
        let mut clients: Vec<_> = (0..4).map(|_| node.cri.client()).collect();
        let [one, two, three, four] = &mut clients[..] else { unreachable!("four were made") };
        let (first, updated, second, again) = node.cri.together(async {
            tokio::join!(
                one.remove_container(remove.clone()),
                two.update_container_resources(update.clone()),
                three.remove_container(remove.clone()),
                four.update_container_resources(update.clone()),
            )
        });
        first?;
        second?;
        too_late("update", updated)?;
        too_late("update", again)?;
        same("containers", &node.cri.containers()?.len(), &0)?;
    }
    node.check_leaks()
}

fn a_creation_meets_the_removal_of_its_pod(node: &mut Node, _: &mut Registry) -> Result<()> {
    for round in 0..POD_ROUNDS {
        let pod = node.run(node.pod("races"))?;
        let create = cri::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(node.container("c", &["sleep", "1000"])),
            sandbox_config: Some(pod.config.clone()),
        };
        let remove = cri::RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
        let (mut creator, mut remover, mut other) = (node.cri.client(), node.cri.client(), node.cri.client());
        let again = remove.clone();
        let (created, removed, again) = node.cri.together(async {
            let created = tokio::spawn(async move { creator.create_container(create).await });
            for _ in 0..round * 40 {
                tokio::task::yield_now().await;
            }
            let (removed, again) =
                tokio::join!(remover.remove_pod_sandbox(remove), other.remove_pod_sandbox(again));
            (created.await, removed, again)
        });
        removed?;
        again?;
        too_late("create", created?)?;
        same("pods", &node.cri.pods()?.len(), &0)?;
        same("containers", &node.cri.containers()?.len(), &0)?;
    }
    node.check_leaks()
}

fn updates_meet_the_removal_of_their_pod(node: &mut Node, _: &mut Registry) -> Result<()> {
    for _ in 0..POD_ROUNDS {
        let pod = node.run(node.pod("races"))?;
        let update = cri::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: pod.id.clone(),
            resources: Some(cri::LinuxContainerResources { cpu_shares: 512, ..Default::default() }),
            ..Default::default()
        };
        let remove = cri::RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
        let (mut updater, mut remover) = (node.cri.client(), node.cri.client());
        let (refused, removed) = node.cri.together(async {
            let removed = tokio::spawn(async move { remover.remove_pod_sandbox(remove).await });
            // One after the other until the pod is gone.
            let refused = loop {
                if let Err(refused) = updater.update_pod_sandbox_resources(update.clone()).await {
                    break refused;
                }
            };
            (refused, removed.await)
        });
        removed??;
        too_late::<()>("update", Err(refused))?;
        same("pods", &node.cri.pods()?.len(), &0)?;
    }
    node.check_leaks()
}

/// Whoever got a container has its image whole.
fn a_pull_a_removal_and_a_creation_meet(node: &mut Node, _: &mut Registry) -> Result<()> {
    let pod = node.run(node.pod("races"))?;
    let image = cri::ImageSpec { image: BUSYBOX.to_owned(), ..Default::default() };
    let mut made = 0;
    for round in 0..POD_ROUNDS {
        let mut config = node.container("c", &["sh", "-c", "exit 9"]);
        config.metadata.get_or_insert_default().attempt = u32::try_from(round)?;
        let create = cri::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let pull = cri::PullImageRequest { image: Some(image.clone()), ..Default::default() };
        let remove = cri::RemoveImageRequest { image: Some(image.clone()) };
        let (mut puller, mut remover) = (node.cri.image_client(), node.cri.image_client());
        let mut creator = node.cri.client();
        let (pulled, removed, created) = node.cri.together(async {
            let pulled = tokio::spawn(async move { puller.pull_image(pull).await });
            let removed = tokio::spawn(async move { remover.remove_image(remove).await });
            for _ in 0..round * 40 {
                tokio::task::yield_now().await;
            }
            let created = creator.create_container(create).await;
            (pulled.await, removed.await, created)
        });
        pulled??;
        removed??;
        match created {
            Ok(created) => {
                let id = created.into_inner().container_id;
                node.cri.start(&id)?;
                same("exit code", &node.wait_exit(&id)?.exit_code, &9)?;
                node.cri.remove(&id)?;
                made += 1;
            }
            Err(status) => same("create", &status.code(), &Code::NotFound)?,
        }
        node.cri.pull(BUSYBOX)?;
    }
    crate::say!("  {made} of {POD_ROUNDS} containers");
    Ok(())
}

/// A pod's whole life; it ends where the daemon does.
async fn live(
    mut client: Client,
    pod: cri::PodSandboxConfig,
    config: cri::ContainerConfig,
) -> Result<(), Status> {
    loop {
        let run = cri::RunPodSandboxRequest { config: Some(pod.clone()), ..Default::default() };
        let pod_sandbox_id = client.run_pod_sandbox(run).await?.into_inner().pod_sandbox_id;
        let create = cri::CreateContainerRequest {
            pod_sandbox_id: pod_sandbox_id.clone(),
            config: Some(config.clone()),
            sandbox_config: Some(pod.clone()),
        };
        let container_id = client.create_container(create).await?.into_inner().container_id;
        client.start_container(cri::StartContainerRequest { container_id: container_id.clone() }).await?;
        client.remove_container(cri::RemoveContainerRequest { container_id }).await?;
        client
            .stop_pod_sandbox(cri::StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() })
            .await?;
        client.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id }).await?;
    }
}

fn a_daemon_killed_anywhere_leaves_nothing(node: &mut Node, _: &mut Registry) -> Result<()> {
    node.rebase()?;
    for round in 0..POD_ROUNDS {
        let lives: Vec<_> = (0..3)
            .map(|number| {
                let (pod, config) =
                    (node.pod(&format!("k{number}")), node.container("c", &["sleep", "1000"]));
                (node.cri.client(), pod, config)
            })
            .collect();
        let running = node.cri.together(async {
            lives
                .into_iter()
                .map(|(client, pod, config)| tokio::spawn(live(client, pod, config)))
                .collect::<Vec<_>>()
        });
        // No two rounds end at the same step.
        pause(Duration::from_millis(20 + u64::try_from(round)? * 7));
        node.signal_daemon(Signal::KILL)?;
        for life in running {
            let ended = node.cri.together(life)?;
            ensure!(ended.is_err(), "it goes on without a daemon");
        }
        node.start_daemon()?;
        // What was half-made is free at once.
        let again = node.run(node.pod("k0")).or_else(|_| {
            node.remove_all()?;
            node.run(node.pod("k0"))
        })?;
        node.launch(&again, &node.container("c", &["sleep", "1000"]))?;
        node.remove_all()?;
        node.check_leaks().with_context(|| format!("round {round}"))?;
    }
    Ok(())
}

fn bare() -> Options {
    Options { warm: Warm::Pod, ..Options::default() }
}

/// What is left of images and layers on the disk.
fn stored(node: &Node) -> Result<Vec<std::path::PathBuf>> {
    let mut found = Vec::new();
    for folder in ["images", "layers", "layers/.staging", "layers/.removed"] {
        for entry in std::fs::read_dir(node.dir().join("root").join(folder))? {
            found.push(entry?.path());
        }
    }
    found.sort();
    Ok(found)
}

fn a_daemon_killed_in_a_pull_leaves_no_half_image(node: &mut Node, _: &mut Registry) -> Result<()> {
    let nothing = stored(node)?;
    for round in 0..POD_ROUNDS {
        let image = Some(cri::ImageSpec { image: BUSYBOX.to_owned(), ..Default::default() });
        let mut client = node.cri.image_client();
        let pull = cri::PullImageRequest { image, ..Default::default() };
        #[expect(clippy::async_yields_async, reason = "it is awaited after the kill")]
        let pulling = node.cri.together(async { tokio::spawn(async move { client.pull_image(pull).await }) });
        // No two rounds end at the same step.
        pause(Duration::from_millis(u64::try_from(round)? * 3));
        node.signal_daemon(Signal::KILL)?;
        let pulled = node.cri.together(pulling)?.is_ok();
        node.start_daemon()?;
        let images = node.cri.images()?.len();
        ensure!(images == 1 || (images == 0 && !pulled), "{images} images, pulled: {pulled}");
        node.cri.pull(BUSYBOX)?;
        let pod = node.run(node.pod("whole"))?;
        same("printed", &node.printed(&pod, &node.container("c", &["echo", "whole"]))?.as_str(), &"whole")?;
        node.remove_all()?;
        node.cri.remove_image(BUSYBOX)?;
        eventually(SOON, || same("stored", &stored(node)?, &nothing))
            .with_context(|| format!("round {round}"))?;
    }
    Ok(())
}
