//! Asks plugins for their STATUS without keeping a caller waiting: `Network::status` answers a kubelet that polls.
//!
//! Answers are kept for a while and renewed in the background; only the first question after a change of the
//! configuration waits, and not for long.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::conf::{PluginList, plugin_type};
use super::execution_config;
use super::invoke::Call;
use crate::Result;

/// How long an answer is good.
const FRESH_FOR: Duration = Duration::from_secs(5);
/// How long the first question may wait.
const FIRST_WAIT_MAX: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Probe {
    bin_dirs: Vec<PathBuf>,
    timeout: Duration,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    answered: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The configuration that is asked about.
    list: Option<PluginList>,
    running: bool,
    answer: Option<(Instant, std::result::Result<(), String>)>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Probe {
    pub(crate) fn new(bin_dirs: Vec<PathBuf>, timeout: Duration) -> Self {
        Self { bin_dirs, timeout, shared: Arc::default() }
    }

    /// What the plugins last said.
    ///
    /// # Errors
    /// The plugin's reason, or that it has not answered yet.
    pub(crate) fn status(&self, list: &PluginList) -> std::result::Result<(), String> {
        let mut state = self.shared.state();
        if state.list.as_ref() != Some(list) {
            // An answer about the former configuration that is still under way will not be taken.
            *state = State { list: Some(list.clone()), ..State::default() };
        }
        let stale = state.answer.as_ref().is_none_or(|(at, _)| at.elapsed() > FRESH_FOR);
        if stale && !state.running {
            self.ask(list.clone()).map_err(|e| format!("STATUS cannot be asked: {e}"))?;
            state.running = true;
        }
        let unanswered = |state: &mut State| state.answer.is_none();
        let (state, _) = self
            .shared
            .answered
            .wait_timeout_while(state, FIRST_WAIT_MAX, unanswered)
            .unwrap_or_else(PoisonError::into_inner);
        state
            .answer
            .as_ref()
            .map_or_else(|| Err("STATUS is not answered yet".into()), |(_, answer)| answer.clone())
    }

    fn ask(&self, list: PluginList) -> std::io::Result<()> {
        let (shared, bin_dirs, timeout) = (Arc::clone(&self.shared), self.bin_dirs.clone(), self.timeout);
        let work = move || {
            let answer = ask_all(&list, &bin_dirs, timeout).map_err(|e| crate::error::chain(&e));
            let mut state = shared.state();
            if state.list.as_ref() == Some(&list) {
                state.running = false;
                state.answer = Some((Instant::now(), answer));
                shared.answered.notify_all();
            }
        };
        std::thread::Builder::new().name("cni-status".into()).spawn(work).map(drop)
    }
}

fn ask_all(list: &PluginList, bin_dirs: &[PathBuf], timeout: Duration) -> Result<()> {
    for plugin in &list.plugins {
        let config = execution_config(list, plugin, &serde_json::Value::Null, None);
        let plugin = plugin_type(plugin);
        Call { plugin, command: "STATUS", bin_dirs, environment: Vec::new(), config: &config, timeout }
            .run()?;
    }
    Ok(())
}
