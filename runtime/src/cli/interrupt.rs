//! Ctrl-C and SIGTERM, counted: the first asks to end, the second not to wait.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::error::{CliError, Result};

/// How often the user asked to end.
#[derive(Debug, Clone)]
pub(crate) struct Interrupts(watch::Receiver<u32>);

impl Interrupts {
    /// From now on the signals are counted instead of killing the process.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub(crate) fn listen() -> Result<Self> {
        let install = |kind| signal(kind).map_err(CliError::io("listen for signals"));
        let (mut interrupt, mut terminate) =
            (install(SignalKind::interrupt())?, install(SignalKind::terminate())?);
        let (count, receiver) = watch::channel(0);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                count.send_modify(|count| *count += 1);
            }
        });
        Ok(Self(receiver))
    }

    pub(crate) fn count(&self) -> u32 {
        *self.0.borrow()
    }

    /// Ends once there were `count` signals. Cancel-safe.
    pub(crate) async fn reach(&self, count: u32) {
        let mut receiver = self.0.clone();
        if receiver.wait_for(|now| *now >= count).await.is_err() {
            // The counting task lives as long as the runtime.
            std::future::pending::<()>().await;
        }
    }
}
