//! Pods and containers by the names that people use.

use std::collections::BTreeMap;

use crisp_proto::cri;

use super::client::Client;
use super::error::{CliError, Result};

/// `name`, `namespace/name`, or the beginning of an id.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PodName<'a> {
    namespace: Option<&'a str>,
    name: &'a str,
}

impl<'a> PodName<'a> {
    pub(crate) fn parse(text: &'a str) -> Self {
        match text.split_once('/') {
            Some((namespace, name)) => Self { namespace: Some(namespace), name },
            None => Self { namespace: None, name: text },
        }
    }

    fn names(&self, pod: &cri::PodSandbox) -> bool {
        pod.metadata.as_ref().is_some_and(|metadata| {
            metadata.name == self.name
                && self.namespace.is_none_or(|namespace| metadata.namespace == namespace)
        })
    }
}

/// `namespace/name` for messages.
pub(crate) fn full_name(pod: &cri::PodSandbox) -> String {
    pod.metadata.as_ref().map_or_else(|| pod.id.clone(), |meta| format!("{}/{}", meta.namespace, meta.name))
}

/// The one pod of that name; where several have it, the one that is ready.
///
/// # Errors
/// When there is none, or no single one.
pub(crate) fn choose<'p>(pods: &'p [cri::PodSandbox], text: &str) -> Result<&'p cri::PodSandbox> {
    let name = PodName::parse(text);
    let mut found: Vec<&cri::PodSandbox> = pods.iter().filter(|pod| name.names(pod)).collect();
    if found.is_empty() && !text.is_empty() {
        found = pods.iter().filter(|pod| pod.id.starts_with(text)).collect();
    }
    let ready: Vec<_> =
        found.iter().copied().filter(|pod| pod.state() == cri::PodSandboxState::SandboxReady).collect();
    match (found.as_slice(), ready.as_slice()) {
        ([], _) => Err(CliError::Invalid(format!("there is no pod {text:?} (`crisp ps -a` lists all)"))),
        ([pod], _) | (_, [pod]) => Ok(pod),
        (several, _) => {
            let list: Vec<String> = several
                .iter()
                .map(|pod| format!("{} (id {})", full_name(pod), &pod.id[..pod.id.len().min(12)]))
                .collect();
            Err(CliError::Invalid(format!(
                "{text:?} is several pods: {}; name one by its id",
                list.join(", ")
            )))
        }
    }
}

/// The pod of that name or id.
///
/// # Errors
/// As [`choose`], and of the daemon.
pub(crate) async fn find(client: &mut Client, text: &str) -> Result<cri::PodSandbox> {
    let pods = client.pods(cri::PodSandboxFilter::default()).await?;
    choose(&pods, text).cloned()
}

/// The containers of a pod, for each name the newest, in the order in which they were made.
///
/// # Errors
/// Of the daemon.
pub(crate) async fn containers(client: &mut Client, pod_id: &str) -> Result<Vec<cri::Container>> {
    let filter = cri::ContainerFilter { pod_sandbox_id: pod_id.to_owned(), ..Default::default() };
    Ok(newest(client.containers(filter).await?))
}

fn newest(containers: Vec<cri::Container>) -> Vec<cri::Container> {
    let mut by_name: BTreeMap<String, cri::Container> = BTreeMap::new();
    for container in containers {
        let name = name(&container).to_owned();
        if by_name.get(&name).is_none_or(|known| known.created_at < container.created_at) {
            by_name.insert(name, container);
        }
    }
    let mut list: Vec<cri::Container> = by_name.into_values().collect();
    list.sort_by_key(|container| container.created_at);
    list
}

/// A container's name in its pod.
pub(crate) fn name(container: &cri::Container) -> &str {
    container.metadata.as_ref().map_or("", |metadata| metadata.name.as_str())
}

/// The named one of a pod's containers; without a name the only one, or the only one that runs.
///
/// # Errors
/// When there is none, or no single one.
pub(crate) fn choose_container<'c>(
    containers: &'c [cri::Container],
    wanted: Option<&str>,
) -> Result<&'c cri::Container> {
    let names = || containers.iter().map(name).collect::<Vec<_>>().join(", ");
    if let Some(wanted) = wanted {
        let found = containers.iter().find(|container| name(container) == wanted);
        return found.ok_or_else(|| {
            CliError::Invalid(format!("the pod has no container {wanted:?}; it has {}", names()))
        });
    }
    let is_running = |container: &&cri::Container| container.state() == cri::ContainerState::ContainerRunning;
    let running: Vec<&cri::Container> = containers.iter().filter(is_running).collect();
    match (containers, running.as_slice()) {
        ([], _) => Err(CliError::Invalid("the pod has no container".to_owned())),
        ([container], _) => Ok(container),
        (_, [container]) => Ok(container),
        (_, []) => Err(CliError::Invalid(format!("none of the pod's containers runs: {}", names()))),
        (_, several) => {
            let running = several.iter().map(|container| name(container)).collect::<Vec<_>>().join(", ");
            Err(CliError::Invalid(format!("several containers run, name one with -c: {running}")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(id: &str, name: &str, state: cri::PodSandboxState) -> cri::PodSandbox {
        let (namespace, name) = name.split_once('/').unwrap();
        let metadata =
            cri::PodSandboxMetadata { name: name.into(), namespace: namespace.into(), ..Default::default() };
        cri::PodSandbox { id: id.into(), metadata: Some(metadata), state: state.into(), ..Default::default() }
    }

    #[test]
    fn pods_are_found_by_name_namespace_and_id() {
        let pods = [
            pod("aa11", "default/web", cri::PodSandboxState::SandboxNotready),
            pod("aa22", "default/web", cri::PodSandboxState::SandboxReady),
            pod("bb11", "other/db", cri::PodSandboxState::SandboxReady),
            pod("cc11", "one/twin", cri::PodSandboxState::SandboxReady),
            pod("cc22", "two/twin", cri::PodSandboxState::SandboxReady),
        ];
        for (text, id) in
            [("web", "aa22"), ("default/web", "aa22"), ("aa1", "aa11"), ("db", "bb11"), ("two/twin", "cc22")]
        {
            assert_eq!(choose(&pods, text).unwrap().id, id, "{text}");
        }
        for (text, says) in [
            ("none", "there is no pod"),
            ("", "there is no pod"),
            ("default/db", "there is no pod"),
            ("twin", "one/twin (id cc11), two/twin (id cc22)"),
            ("cc", "is several pods"),
        ] {
            let message = choose(&pods, text).unwrap_err().to_string();
            assert!(message.contains(says), "{text}: {message}");
        }
    }

    const RUNNING: cri::ContainerState = cri::ContainerState::ContainerRunning;
    const EXITED: cri::ContainerState = cri::ContainerState::ContainerExited;

    fn container(name: &str, created_at: i64, state: cri::ContainerState) -> cri::Container {
        cri::Container {
            id: format!("{name}{created_at}"),
            metadata: Some(cri::ContainerMetadata { name: name.into(), attempt: 0 }),
            created_at,
            state: state.into(),
            ..Default::default()
        }
    }

    #[test]
    fn the_newest_container_of_a_name_counts() {
        let list =
            newest(vec![container("b", 2, RUNNING), container("a", 3, EXITED), container("a", 5, RUNNING)]);
        assert_eq!(list.iter().map(|c| c.id.as_str()).collect::<Vec<_>>(), ["b2", "a5"]);
    }

    #[test]
    fn a_container_without_a_name_must_be_the_only_one() {
        let two = [container("a", 1, EXITED), container("b", 2, RUNNING)];
        assert_eq!(choose_container(&two, None).unwrap().id, "b2", "the one that runs");
        assert_eq!(choose_container(&two, Some("a")).unwrap().id, "a1");
        assert!(choose_container(&two, Some("c")).unwrap_err().to_string().contains("it has a, b"));
        let more = [container("a", 1, RUNNING), container("b", 2, RUNNING), container("c", 3, EXITED)];
        assert!(choose_container(&more, None).unwrap_err().to_string().ends_with("-c: a, b"));
        let ended = [container("a", 1, EXITED), container("b", 2, EXITED)];
        assert!(choose_container(&ended, None).unwrap_err().to_string().ends_with("runs: a, b"));
        assert!(choose_container(&[], None).is_err());
    }
}
