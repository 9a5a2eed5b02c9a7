//! The states of a container.
//!
//! ```text
//!  Creating ──made──▶ Created ──start──▶ Starting ──started──▶ Running ──exit──▶ Exited
//!                                           └──failed──(128, StartError)───────────▲
//!                     anything alive ──lost──(255, Unknown)────────────────────────▲
//! ```
//! `Creating` is invisible to clients; `Starting` is reported as created. An exit is recorded by the shim before this state
//! changes, and this state is recorded before anybody reads it.
#![warn(clippy::wildcard_enum_match_arm)]

use crisp_domain::{ExitStatus, Timestamp};
use serde::{Deserialize, Serialize};

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum ContainerState {
    /// The name is reserved and recorded; files are being made.
    Creating,
    /// Root filesystem and specification are on disk; nothing runs.
    Created,
    /// The cgroup and the init process are being made.
    Starting,
    /// Init has executed the user's program.
    Running { pid: i32, start_time_ticks: u64, started_at: Timestamp },
    /// It ended, or never began.
    Exited { started_at: Option<Timestamp>, end: End },
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct End {
    pub(crate) reason: EndReason,
    pub(crate) finished_at: Timestamp,
}

/// Why a container ended, with what is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum EndReason {
    /// Init exited.
    Exited(ExitStatus),
    /// The kernel killed it for memory.
    OomKilled(ExitStatus),
    /// It could not be started; the text says why.
    StartError(String),
    /// Nobody saw how: its shim died, or the machine restarted.
    Lost,
}

impl EndReason {
    /// CRI's `exit_code`.
    pub(crate) fn code(&self) -> i32 {
        match self {
            Self::Exited(status) | Self::OomKilled(status) => status.code(),
            Self::StartError(_) => 128,
            Self::Lost => 255,
        }
    }

    /// CRI's `reason`.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Exited(ExitStatus::Code(0)) => "Completed",
            Self::Exited(_) => "Error",
            Self::OomKilled(_) => "OOMKilled",
            Self::StartError(_) => "StartError",
            Self::Lost => "Unknown",
        }
    }

    /// CRI's `message`.
    pub(crate) fn message(&self) -> &str {
        match self {
            Self::StartError(cause) => cause,
            Self::Exited(_) | Self::OomKilled(_) => "",
            Self::Lost => "the exit status was lost",
        }
    }
}

/// A state in the words that CRI and NRI share; times in nanoseconds since the Unix epoch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) pid: i32,
    pub(crate) started_at: i64,
    pub(crate) finished_at: i64,
    pub(crate) exit_code: i32,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// What happens to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ContainerEvent {
    Made,
    Start,
    Started { pid: i32, start_time_ticks: u64, at: Timestamp },
    Ended(End),
}

/// The event does not fit the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refused;

/// The state after an event. The first end counts; later ones are refused.
pub(crate) fn next(state: &ContainerState, event: ContainerEvent) -> Result<ContainerState, Refused> {
    use {ContainerEvent as E, ContainerState as S};
    match (state, event) {
        (S::Creating, E::Made) => Ok(S::Created),
        (S::Created, E::Start) => Ok(S::Starting),
        (S::Starting, E::Started { pid, start_time_ticks, at }) => {
            Ok(S::Running { pid, start_time_ticks, started_at: at })
        }
        (S::Starting | S::Created, E::Ended(end)) => Ok(S::Exited { started_at: None, end }),
        (S::Running { started_at, .. }, E::Ended(end)) => {
            let finished_at = end.finished_at.max(*started_at);
            Ok(S::Exited { started_at: Some(*started_at), end: End { finished_at, ..end } })
        }
        (S::Creating | S::Exited { .. }, E::Ended(_))
        | (S::Created | S::Starting | S::Running { .. } | S::Exited { .. }, E::Made)
        | (S::Creating | S::Starting | S::Running { .. } | S::Exited { .. }, E::Start)
        | (S::Creating | S::Created | S::Running { .. } | S::Exited { .. }, E::Started { .. }) => {
            Err(Refused)
        }
    }
}

impl ContainerState {
    /// One word for messages.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running { .. } => "running",
            Self::Exited { .. } => "exited",
        }
    }

    /// What clients and plugins are told of it; zero and empty where it is not so, or not yet.
    pub(crate) fn account(&self) -> Account {
        match self {
            Self::Creating | Self::Created | Self::Starting => Account::default(),
            Self::Running { pid, started_at, .. } => {
                Account { pid: *pid, started_at: started_at.0, ..Account::default() }
            }
            Self::Exited { started_at, end } => Account {
                pid: 0,
                started_at: started_at.map_or(0, |at| at.0),
                finished_at: end.finished_at.0,
                exit_code: end.reason.code(),
                reason: end.reason.name(),
                message: end.reason.message().to_owned(),
            },
        }
    }

    /// Whether processes of it may exist.
    pub(crate) fn may_run(&self) -> bool {
        match self {
            Self::Starting | Self::Running { .. } => true,
            Self::Creating | Self::Created | Self::Exited { .. } => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ContainerEvent as E;
    use ContainerState as S;

    fn end(at: i64) -> End {
        End { reason: EndReason::Exited(ExitStatus::Code(0)), finished_at: Timestamp(at) }
    }

    fn running() -> S {
        S::Running { pid: 7, start_time_ticks: 1, started_at: Timestamp(50) }
    }

    #[test]
    fn the_first_end_counts() {
        let exited = next(&running(), E::Ended(end(60))).unwrap();
        assert_eq!(next(&exited, E::Ended(end(70))), Err(Refused));
    }

    #[test]
    fn it_never_finishes_before_it_started() {
        let S::Exited { started_at, end } = next(&running(), E::Ended(end(40))).unwrap() else {
            panic!("not exited")
        };
        assert_eq!((started_at, end.finished_at), (Some(Timestamp(50)), Timestamp(50)));
    }

    #[test]
    fn only_one_start_wins() {
        let starting = next(&S::Created, E::Start).unwrap();
        assert_eq!(next(&starting, E::Start), Err(Refused));
        assert_eq!(next(&running(), E::Start), Err(Refused));
    }

    #[test]
    fn reasons_are_the_ones_that_kubelets_show() {
        let killed = ExitStatus::Signal(9);
        let table = [
            (EndReason::Exited(ExitStatus::Code(0)), 0, "Completed"),
            (EndReason::Exited(ExitStatus::Code(3)), 3, "Error"),
            (EndReason::Exited(killed), 137, "Error"),
            (EndReason::OomKilled(killed), 137, "OOMKilled"),
            (EndReason::StartError("no such file".into()), 128, "StartError"),
            (EndReason::Lost, 255, "Unknown"),
        ];
        for (reason, code, name) in table {
            assert_eq!((reason.code(), reason.name()), (code, name));
        }
    }
}
