//! One pod of `crisp run` while this command accompanies it.

use std::path::Path;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crisp_proto::cri;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;

use crate::cli::client::Client;
use crate::cli::error::{CliError, Result};
use crate::cli::interrupt::Interrupts;
use crate::cli::log_file::LogReader;
use crate::cli::logs::{LOG_POLL, STATE_POLL};
use crate::cli::manifest::{Plan, PlannedContainer, PodFacts, RestartPolicy};
use crate::cli::output;
use crate::cli::pods;
use crate::cli::printer::{Printer, Style, prefixes};
use crate::cli::stop;
use crate::cli::ui::Ui;

/// Wait before a container is started again: this after the first end, twice as long after each further one.
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// A container that ran this long is not in a crash loop.
const BACKOFF_RESET: Duration = Duration::from_secs(60);

/// How the accompanied part of a pod's life ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Every container ended for good; the code of the first that failed, else 0.
    Done(u8),
    /// The user asked to end.
    Interrupted,
    /// All containers are started, and the user wants to go.
    Detached,
}

/// What a container is to the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Runs to completion before what follows.
    Init,
    /// Runs beside the main containers, and ends with them.
    Sidecar,
    Main,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Running,
    /// Ended; to be started again at the time.
    Waiting {
        until: Instant,
    },
    /// Ended for good.
    Ended {
        code: i32,
    },
}

#[derive(Debug)]
struct Live<'p> {
    planned: &'p PlannedContainer,
    role: Role,
    restart: RestartPolicy,
    id: String,
    attempt: u32,
    phase: Phase,
    backoff: Duration,
    reader: LogReader,
    printer: Printer,
}

impl Live<'_> {
    fn poll(&mut self) -> Result<()> {
        let Self { reader, printer, .. } = self;
        reader.poll(&mut |entry| printer.print(entry))
    }
}

/// The pod, its containers, and what was seen of them.
#[derive(Debug)]
pub(super) struct Session<'p> {
    client: Client,
    plan: &'p Plan,
    interrupts: &'p Interrupts,
    ui: Ui,
    pod: Option<cri::PodSandbox>,
    facts: PodFacts,
    containers: Vec<Live<'p>>,
    /// When the first failure was, Unix time in ns, and its code.
    failure: Option<(i64, i32)>,
}

impl<'p> Session<'p> {
    pub(super) fn new(client: Client, plan: &'p Plan, interrupts: &'p Interrupts, ui: Ui) -> Self {
        let (containers, facts) = (Vec::new(), PodFacts::default());
        Self { client, plan, interrupts, ui, pod: None, facts, containers, failure: None }
    }

    /// Id and metadata of the pod, once it was made.
    pub(super) fn pod(&self) -> Option<&cri::PodSandbox> {
        self.pod.as_ref()
    }

    pub(super) fn ui(&self) -> Ui {
        self.ui
    }

    /// Stops the containers with their grace and shows what they say meanwhile. A further Ctrl-C takes the grace away.
    pub(super) async fn stop_containers(&mut self) -> Result<()> {
        let mut grace = self.plan.grace_seconds;
        self.ui.step("stop", &format!("{grace} s of grace; Ctrl-C again takes it away"))?;
        let pod_id = self.pod_id();
        let containers = pods::containers(&mut self.client, &pod_id).await?;
        let (client, interrupts) = (self.client.clone(), self.interrupts.clone());
        let mut read = tokio::time::interval(LOG_POLL);
        let mut stopping = Box::pin(stop::stop_containers(&client, &containers, grace));
        loop {
            tokio::select! {
                stopped = &mut stopping => break stopped?,
                // The daemon goes on with the first stop; the second shortens its wait.
                () = interrupts.reach(interrupts.count() + 1), if grace > 0 => {
                    grace = 0;
                    stopping = Box::pin(stop::stop_containers(&client, &containers, grace));
                }
                _ = read.tick() => self.poll_logs()?,
            }
        }
        self.refresh().await
    }

    fn pod_id(&self) -> String {
        self.pod.as_ref().map(|pod| pod.id.clone()).unwrap_or_default()
    }

    /// Awaits a short call that must not be abandoned half-way; a second Ctrl-C does so nevertheless.
    async fn unless_hurried<T>(&self, call: BoxFuture<'_, Result<T>>) -> Result<T> {
        tokio::select! {
            done = call => done,
            () = self.interrupts.reach(2) => Err(CliError::Invalid(format!(
                "interrupted in the middle of a step; `crisp stop {}/{}` removes what is left",
                self.plan.namespace, self.plan.name
            ))),
        }
    }

    pub(super) async fn start_pod(&mut self) -> Result<()> {
        let started = Instant::now();
        let name = format!("{}/{}", self.plan.namespace, self.plan.name);
        let request = cri::RunPodSandboxRequest {
            config: Some(self.plan.sandbox.clone()),
            runtime_handler: self.plan.handler.clone(),
        };
        let mut client = self.client.clone();
        let doing = format!("start pod {name}");
        let call =
            async { client.runtime.run_pod_sandbox(request).await.map_err(CliError::rpc(doing)) }.boxed();
        let id = self.unless_hurried(call).await?.into_inner().pod_sandbox_id;
        let metadata = self.plan.sandbox.metadata.clone();
        self.pod = Some(cri::PodSandbox { id: id.clone(), metadata, ..Default::default() });
        let network = self.client.pod_status(&id).await?.network.unwrap_or_default();
        let more = network.additional_ips.into_iter().map(|more| more.ip);
        self.facts.ips = std::iter::once(network.ip).chain(more).filter(|ip| !ip.is_empty()).collect();
        let ips =
            if self.facts.ips.is_empty() { "host network".to_owned() } else { self.facts.ips.join(" ") };
        self.ui.step("pod", &format!("{name}  {ips}  in {}", output::took(started.elapsed())))
    }

    /// Runs the init containers in order; those that are sidecars are started and left running.
    pub(super) async fn run_init_containers(&mut self) -> Result<Option<End>> {
        let plan = self.plan;
        for planned in &plan.init {
            if planned.restart == RestartPolicy::Always {
                self.start(planned, Role::Sidecar).await?;
                continue;
            }
            self.start(planned, Role::Init).await?;
            let index = self.containers.len() - 1;
            let ended =
                self.watch(|session| matches!(session.containers[index].phase, Phase::Ended { .. })).await?;
            match self.containers[index].phase {
                _ if !ended => return Ok(Some(End::Interrupted)),
                Phase::Ended { code: 0 } => {}
                _ => return Ok(Some(End::Done(self.code()))),
            }
        }
        Ok(None)
    }

    pub(super) async fn start_containers(&mut self) -> Result<()> {
        let plan = self.plan;
        for planned in &plan.containers {
            self.start(planned, Role::Main).await?;
        }
        Ok(())
    }

    /// Shows the output and the ends until the main containers have ended for good.
    pub(super) async fn follow(&mut self) -> Result<End> {
        let is_over = |session: &Self| {
            let mut main = session.containers.iter().filter(|container| container.role == Role::Main);
            main.all(|container| matches!(container.phase, Phase::Ended { .. }))
        };
        Ok(if self.watch(is_over).await? { End::Done(self.code()) } else { End::Interrupted })
    }

    fn code(&self) -> u8 {
        self.failure.map_or(0, |(_, code)| u8::try_from(code).unwrap_or(u8::MAX))
    }

    /// Keeps output, states and restarts going until `done`; false when the user asked to end.
    async fn watch(&mut self, done: impl Fn(&Self) -> bool) -> Result<bool> {
        let mut read = tokio::time::interval(LOG_POLL);
        let mut ask = tokio::time::interval(STATE_POLL);
        let interrupts = self.interrupts.clone();
        while !done(self) {
            tokio::select! {
                () = interrupts.reach(1) => return Ok(false),
                _ = read.tick() => self.poll_logs()?,
                _ = ask.tick() => {
                    self.refresh().await?;
                    self.restart_due().await?;
                }
            }
        }
        Ok(true)
    }

    fn poll_logs(&mut self) -> Result<()> {
        self.containers.iter_mut().try_for_each(Live::poll)
    }

    async fn start(&mut self, planned: &'p PlannedContainer, role: Role) -> Result<()> {
        let started = Instant::now();
        let id = self.create(planned, 0).await?;
        let names: Vec<&str> = self
            .plan
            .init
            .iter()
            .chain(&self.plan.containers)
            .map(|container| container.name.as_str())
            .collect();
        let index = names.iter().position(|name| *name == planned.name).unwrap_or(0);
        let prefix = prefixes(&names).swap_remove(index);
        let restart = match role {
            Role::Init if self.plan.restarts => RestartPolicy::OnFailure,
            Role::Init => RestartPolicy::Never,
            Role::Sidecar | Role::Main => planned.restart,
        };
        self.containers.push(Live {
            planned,
            role,
            restart,
            reader: self.log_reader(planned, 0),
            id: id.clone(),
            attempt: 0,
            phase: Phase::Running,
            backoff: BACKOFF_FIRST,
            printer: Printer::new(Style { prefix, timestamps: false }),
        });
        self.start_created(&planned.name, &id).await?;
        let what = if role == Role::Init { "init" } else { "start" };
        self.ui.step(what, &format!("{}  in {}", planned.name, output::took(started.elapsed())))
    }

    fn log_reader(&self, planned: &PlannedContainer, attempt: u32) -> LogReader {
        LogReader::new(
            &Path::new(&self.plan.sandbox.log_directory).join(format!("{}/{attempt}.log", planned.name)),
        )
    }

    async fn create(&self, planned: &PlannedContainer, attempt: u32) -> Result<String> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: self.pod_id(),
            config: Some(planned.config(&self.facts, attempt)),
            sandbox_config: Some(self.plan.sandbox.clone()),
        };
        let mut client = self.client.clone();
        let doing = format!("create container {}", planned.name);
        let call =
            async { client.runtime.create_container(request).await.map_err(CliError::rpc(doing)) }.boxed();
        Ok(self.unless_hurried(call).await?.into_inner().container_id)
    }

    async fn start_created(&self, name: &str, id: &str) -> Result<()> {
        let request = cri::StartContainerRequest { container_id: id.to_owned() };
        let mut client = self.client.clone();
        let doing = format!("start container {name}");
        let call =
            async { client.runtime.start_container(request).await.map_err(CliError::rpc(doing)) }.boxed();
        self.unless_hurried(call).await.map(drop)
    }

    /// Notices who ended.
    async fn refresh(&mut self) -> Result<()> {
        let filter = cri::ContainerFilter { pod_sandbox_id: self.pod_id(), ..Default::default() };
        let known = self.client.containers(filter).await?;
        let mut ends = Vec::new();
        for (index, live) in
            self.containers.iter().enumerate().filter(|(_, live)| live.phase == Phase::Running)
        {
            match known.iter().find(|container| container.id == live.id).map(cri::Container::state) {
                Some(cri::ContainerState::ContainerExited) => {
                    ends.push((index, self.client.clone().container_status(&live.id).await?));
                }
                Some(_) => {}
                None => {
                    let name = &live.planned.name;
                    return Err(CliError::Invalid(format!("container {name} was removed by somebody else")));
                }
            }
        }
        ends.sort_by_key(|(_, status)| status.finished_at);
        ends.iter().try_for_each(|(index, status)| self.ended(*index, status))
    }

    fn ended(&mut self, index: usize, status: &cri::ContainerStatus) -> Result<()> {
        let live = &mut self.containers[index];
        live.poll()?;
        live.printer.finish()?;
        let ran = Duration::from_nanos((status.finished_at - status.started_at).try_into().unwrap_or(0));
        self.ui.step("exit", &describe_end(&live.planned.name, status, ran))?;
        live.phase = phase_after(live.restart, status.exit_code, live.backoff, Instant::now());
        live.backoff = if ran >= BACKOFF_RESET { BACKOFF_FIRST } else { (live.backoff * 2).min(BACKOFF_MAX) };
        let counts = live.role != Role::Sidecar && matches!(live.phase, Phase::Ended { .. });
        if counts && status.exit_code != 0 && self.failure.is_none_or(|(at, _)| status.finished_at < at) {
            self.failure = Some((status.finished_at, status.exit_code));
        }
        Ok(())
    }

    async fn restart_due(&mut self) -> Result<()> {
        for index in 0..self.containers.len() {
            let live = &self.containers[index];
            match live.phase {
                Phase::Waiting { until } if until <= Instant::now() => self.restart(index).await?,
                _ => {}
            }
        }
        Ok(())
    }

    /// The old container is removed only once the new one is there, so that a failure leaves something to look at.
    async fn restart(&mut self, index: usize) -> Result<()> {
        let live = &self.containers[index];
        let (planned, old, attempt) = (live.planned, live.id.clone(), live.attempt + 1);
        let id = self.create(planned, attempt).await?;
        let request = cri::RemoveContainerRequest { container_id: old };
        let removed = self.client.runtime.remove_container(request).await;
        removed.map_err(CliError::rpc(format!("remove the ended container {}", planned.name)))?;
        let reader = self.log_reader(planned, attempt);
        let live = &mut self.containers[index];
        (live.id, live.attempt, live.reader, live.phase) = (id.clone(), attempt, reader, Phase::Running);
        // A start that fails leaves an exited container, which is seen as an end and tried again like one.
        match self.start_created(&planned.name, &id).await {
            Ok(()) => self.ui.step("start", &format!("{}, again ({attempt})", planned.name)),
            Err(error @ CliError::Rpc { .. }) => self.ui.warn(&error.to_string()),
            Err(error) => Err(error),
        }
    }
}

fn phase_after(restart: RestartPolicy, code: i32, backoff: Duration, now: Instant) -> Phase {
    match restart {
        RestartPolicy::Always => Phase::Waiting { until: now + backoff },
        RestartPolicy::OnFailure if code != 0 => Phase::Waiting { until: now + backoff },
        RestartPolicy::OnFailure | RestartPolicy::Never => Phase::Ended { code },
    }
}

/// `client  code 1 after 3.2 s: out of memory`.
fn describe_end(name: &str, status: &cri::ContainerStatus, ran: Duration) -> String {
    let code = status.exit_code;
    let reason = match (status.reason.as_str(), status.message.as_str()) {
        ("" | "Completed" | "Error", "") => String::new(),
        ("" | "Completed" | "Error", message) => format!(": {message}"),
        (reason, "") => format!(": {reason}"),
        (reason, message) => format!(": {reason}: {message}"),
    };
    let started = UNIX_EPOCH + Duration::from_nanos(status.started_at.try_into().unwrap_or(0));
    let after = if started > UNIX_EPOCH && started <= SystemTime::now() {
        format!(" after {}", output::took(ran))
    } else {
        String::new()
    };
    format!("{name}  code {code}{after}{reason}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_says_what_follows_an_end() {
        let now = Instant::now();
        let waiting = Phase::Waiting { until: now + BACKOFF_FIRST };
        let table = [
            (RestartPolicy::Never, 0, Phase::Ended { code: 0 }),
            (RestartPolicy::Never, 3, Phase::Ended { code: 3 }),
            (RestartPolicy::OnFailure, 0, Phase::Ended { code: 0 }),
            (RestartPolicy::OnFailure, 3, waiting),
            (RestartPolicy::Always, 0, waiting),
            (RestartPolicy::Always, 3, waiting),
        ];
        for (policy, code, phase) in table {
            assert_eq!(phase_after(policy, code, BACKOFF_FIRST, now), phase, "{policy:?} {code}");
        }
    }

    #[test]
    fn an_end_is_told_with_its_reason() {
        let status = |code, reason: &str, message: &str| cri::ContainerStatus {
            exit_code: code,
            started_at: 1,
            reason: reason.into(),
            message: message.into(),
            ..Default::default()
        };
        let ran = Duration::from_millis(3200);
        assert_eq!(describe_end("c", &status(0, "Completed", ""), ran), "c  code 0 after 3.2 s");
        assert_eq!(
            describe_end("c", &status(137, "OOMKilled", ""), ran),
            "c  code 137 after 3.2 s: OOMKilled"
        );
        let failed = cri::ContainerStatus { started_at: 0, ..status(128, "StartError", "no such file") };
        assert_eq!(describe_end("c", &failed, ran), "c  code 128: StartError: no such file");
    }
}
