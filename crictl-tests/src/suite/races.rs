//! Calls that meet each other on one object: whichever comes first, nothing is left of what was removed.
use anyhow::{Result, ensure};
use crisp_proto::cri;
use tonic::Code;

use super::tests;
use crate::node::{Node, same};
use crate::registry::Registry;

tests![a_removal_meets_a_start, removals_and_updates_meet];

/// Rounds of a race: each order of two steps comes up in some.
const ROUNDS: usize = 100;

/// What may be said of a container that is being removed.
const TOO_LATE: [Code; 2] = [Code::NotFound, Code::FailedPrecondition];

fn too_late<T>(what: &str, answer: Result<T, tonic::Status>) -> Result<()> {
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
