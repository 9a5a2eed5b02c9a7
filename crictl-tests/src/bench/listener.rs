//! Somebody who listens to the daemon's events, as a kubelet does.
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use crisp_proto::cri;

use crate::cri::Cri;

/// A subscription that counts.
pub(super) struct Listener {
    /// Drives the connection; the subscription ends with it.
    _cri: Cri,
    heard: Arc<AtomicU64>,
}

impl Listener {
    /// Subscribes; the daemon has answered when this returns.
    pub(super) fn start(socket: &Path) -> Result<Self> {
        let cri = Cri::new(socket)?;
        let heard = Arc::new(AtomicU64::new(0));
        let mut events =
            cri.runtime(
                |mut client| async move { client.get_container_events(cri::GetEventsRequest {}).await },
            )?;
        let count = Arc::clone(&heard);
        cri.together(async move {
            tokio::spawn(async move {
                while let Ok(Some(_)) = events.message().await {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        });
        Ok(Self { _cri: cri, heard })
    }

    /// Events up to now.
    pub(super) fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }
}
