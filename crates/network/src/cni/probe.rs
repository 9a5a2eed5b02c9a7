//! Asks plugins for their STATUS without keeping a caller waiting: `Network::status` answers a kubelet that polls.
//!
//! Answers are kept for a while and renewed in the background. A question about a configuration that was never asked about
//! is answered "not yet", unless the one before it was fine: a configuration that is only touched up must not make the node
//! unready.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::conf::{Source, Verb, Version, plugin_type};
use super::execution_config;
use super::invoke::Runner;
use super::version::Spoken;
use crate::Result;

/// How long a good answer holds: a chain of three programs takes some 7 ms of a processor, and 0.1 % of it is the limit.
const FRESH_FOR: Duration = Duration::from_secs(10);
/// How long a bad answer holds: a plugin that comes back is noticed within 2 s.
const STALE_AFTER: Duration = Duration::from_secs(1);
/// How long one plugin may take to tell its state.
const STATUS_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a configuration that replaces a good one is trusted unasked.
const TRUSTED_FOR: Duration = Duration::from_secs(2);

type Answer = std::result::Result<(), String>;

#[derive(Debug)]
pub(crate) struct Probe {
    runner: Runner,
    spoken: Spoken,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// The configuration that is asked about.
    sources: Vec<Source>,
    running: bool,
    answer: Option<(Instant, Answer)>,
    /// Until when no answer is a good one.
    trusted_until: Option<Instant>,
}

impl State {
    fn of(sources: &[Source], before: &Self) -> Self {
        let trusted_until = match &before.answer {
            Some((_, Ok(()))) => Some(Instant::now() + TRUSTED_FOR),
            Some((_, Err(_))) => None,
            None => before.trusted_until,
        };
        Self { sources: sources.to_vec(), trusted_until, ..Self::default() }
    }

    fn stale(&self) -> bool {
        match &self.answer {
            None => true,
            Some((at, Ok(()))) => at.elapsed() > FRESH_FOR,
            Some((at, Err(_))) => at.elapsed() > STALE_AFTER,
        }
    }
}

impl Probe {
    pub(crate) fn new(runner: &Runner, spoken: Spoken) -> Self {
        Self { runner: runner.within(STATUS_TIME_MAX), spoken, state: Arc::default() }
    }

    /// What the plugins last said; asks them again when that is long ago.
    ///
    /// # Errors
    /// The plugin's reason, or that it has not answered yet.
    pub(crate) fn status(&self, sources: &[Source]) -> Answer {
        let has_status = |source: &Source| source.list.version >= Version::V1_1_0;
        if !sources.iter().any(|source| has_status(source) || source.list.offered.len() > 1) {
            return Ok(());
        }
        let mut state = lock(&self.state);
        if state.sources != sources {
            // An answer about the former configuration that is still under way will not be taken.
            *state = State::of(sources, &state);
        }
        if state.stale() && !state.running {
            self.ask(sources.to_vec()).map_err(|e| format!("STATUS cannot be asked: {e}"))?;
            state.running = true;
        }
        match &state.answer {
            Some((_, answer)) => answer.clone(),
            None if state.trusted_until.is_some_and(|until| Instant::now() < until) => Ok(()),
            None => Err("the CNI plugins are being asked for their STATUS and have not answered yet".into()),
        }
    }

    fn ask(&self, sources: Vec<Source>) -> std::io::Result<()> {
        let (shared, runner, spoken) = (Arc::clone(&self.state), self.runner.clone(), self.spoken.clone());
        let work = move || {
            let asked = sources.iter().try_for_each(|source| ask(source, &runner, &spoken));
            let answer = asked.map_err(|e| crate::error::chain(&e));
            let mut state = lock(&shared);
            if state.sources == sources {
                state.running = false;
                state.answer = Some((Instant::now(), answer));
            }
        };
        std::thread::Builder::new().name("cni-status".into()).spawn(work).map(drop)
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn ask(source: &Source, runner: &Runner, spoken: &Spoken) -> Result<()> {
    let list = spoken.settle(source, runner)?.list;
    if !list.allows(Verb::Status) {
        return Ok(());
    }
    list.plugins.iter().try_for_each(|plugin| {
        let config = execution_config(&list, plugin, &serde_json::Value::Null, None);
        let asked = runner.call(plugin_type(plugin), "STATUS", &config, Vec::new());
        asked.map(drop).map_err(|e| source.wrong(crate::error::chain(&e)))
    })
}
