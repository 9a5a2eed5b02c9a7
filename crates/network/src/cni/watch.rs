//! Looks at the node's CNI configuration once a second: tells the log what changed, and has plugins asked for their
//! STATUS before a kubelet asks us.
//!
//! A look reads a directory and a file or two. inotify would spare that, but a directory that is replaced, a symlink that is
//! turned elsewhere and a parent that is made later each need watches of their own.

use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::Duration;

use super::Cni;
use crate::error::chain;

/// Between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// The thread that looks; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Watch {
    ended: Arc<(Mutex<bool>, Condvar)>,
}

/// What is in use, as far as it is worth a line in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Nothing,
    Ready(Vec<String>),
    Unready(String),
}

impl Watch {
    pub(crate) fn start(cni: &Arc<Cni>) -> Self {
        let ended = Arc::<(Mutex<bool>, Condvar)>::default();
        let (cni, signal) = (Arc::downgrade(cni), Arc::clone(&ended));
        let thread = std::thread::Builder::new().name("cni-watch".into());
        if let Err(error) = thread.spawn(move || look_until_ended(&cni, &signal)) {
            tracing::warn!(%error, "changes of the CNI configuration are seen only when somebody asks");
        }
        Self { ended }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        *self.ended.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.ended.1.notify_all();
    }
}

fn look_until_ended(cni: &Weak<Cni>, (ended, signal): &(Mutex<bool>, Condvar)) {
    let (mut before, mut told) = (Seen::Nothing, Seen::Nothing);
    while let Some(cni) = cni.upgrade() {
        let now = look(&cni);
        // Twice the same: an instant in the middle of a replacement is not worth a line.
        if now == before && now != told {
            tell(&now);
            told = now.clone();
        }
        before = now;
        drop(cni);
        let ended = ended.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = signal
            .wait_timeout_while(ended, INTERVAL, |ended| !*ended)
            .unwrap_or_else(PoisonError::into_inner);
        if *waited.0 {
            return;
        }
    }
}

fn look(cni: &Cni) -> Seen {
    let state = cni.load().and_then(|sources| cni.status(&sources).map(|()| sources));
    match state {
        Ok(sources) if sources.is_empty() => Seen::Nothing,
        Ok(sources) => Seen::Ready(sources.iter().map(|s| s.path.display().to_string()).collect()),
        Err(error) => Seen::Unready(chain(&error)),
    }
}

fn tell(now: &Seen) {
    match now {
        Seen::Nothing => tracing::info!("there is no CNI configuration any more"),
        Seen::Ready(files) => tracing::info!(?files, "pods are attached by CNI plugins"),
        Seen::Unready(reason) => tracing::warn!(reason, "the CNI configuration cannot be used"),
    }
}
