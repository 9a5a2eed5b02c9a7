//! Containers as scopes of systemd.
//!
//! ```text
//! kubepods-burstable-pod….slice       the kubelet's
//! └── crisp-<container id>.scope      ours, delegated: limits are its properties; init and execs are born here
//!     └── hold                        one holder, so that the scope stays until we have read its counters
//! system.slice
//! ├── crisp-shims.scope               all shims, away from every pod and from the daemon's own service
//! └── system-crisp.slice
//!     └── system-crisp-<sandbox id>.slice   of a pod whose request named no parent
//! ```
//!
//! systemd is asked when a container is created, beside the making of its files; a start finds the scope ready. A stop asks nobody: when
//! everything in the scope is killed, systemd forgets it by itself.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crisp_cgroup::{Cgroup, CgroupPath, Cgroups, Resources};
use crisp_domain::ErrorKind;
use crisp_systemd::{ScopeRequest, Slice, Stage, Systemd};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::holder::{Holder, Holders, Stay};
use crate::blocking::{self, Kind};
use crate::error::{Doing as _, Error, Result};

/// The cgroup of the holder, in a scope. Processes in the scope itself would keep a container from handing controllers down.
const HOLD: &str = "hold";
/// Where all shims are.
const SHIMS: &str = "crisp-shims.scope";

/// How long systemd may take to notice that a scope is empty.
const GONE_WAIT_MAX: Duration = Duration::from_secs(5);
/// Pause between two looks; it doubles.
const GONE_PAUSE_MIN: Duration = Duration::from_millis(1);
const GONE_PAUSE_MAX: Duration = Duration::from_millis(50);

/// The systemd driver.
#[derive(Debug)]
pub(crate) struct Scopes {
    pub(super) systemd: Systemd,
    cgroups: Cgroups,
    holders: Holders,
    /// By unit name: scopes that were asked for and that nobody has needed yet.
    prepared: Mutex<HashMap<String, Prepared>>,
    /// Whether a holder of this daemon is in the shims' scope.
    shims_held: tokio::sync::Mutex<bool>,
}

/// A scope that is being made.
#[derive(Debug)]
struct Prepared {
    limits: Resources,
    made: JoinHandle<Result<()>>,
}

/// Where a scope lies.
#[derive(Debug, Clone)]
pub(crate) struct Scope {
    pub(crate) unit: String,
    pub(crate) slice: Slice,
    pub(crate) path: CgroupPath,
}

impl Scope {
    /// The scope of a container or pod with this id.
    ///
    /// # Errors
    /// When the path is too long.
    pub(crate) fn of(slice: Slice, id: &str) -> Result<Self> {
        Self::named(slice, format!("crisp-{id}.scope"))
    }

    fn named(slice: Slice, unit: String) -> Result<Self> {
        let parent = CgroupPath::new(&slice.cgroup()).doing("name the slice's cgroup")?;
        Ok(Self { path: parent.join(&unit).doing("name the scope's cgroup")?, unit, slice })
    }

    /// As OCI runtime programs want it for their `--systemd-cgroup`.
    pub(crate) fn oci_path(&self, id: &str) -> String {
        format!("{}:crisp:{id}", self.slice)
    }

    fn hold(&self) -> Result<CgroupPath> {
        self.path.join(HOLD).doing("name the holder's cgroup")
    }
}

impl Scopes {
    pub(super) fn new(cgroups: &Cgroups) -> Result<Self> {
        Ok(Self {
            systemd: Systemd::system(),
            cgroups: cgroups.clone(),
            holders: Holders::new()?,
            prepared: Mutex::default(),
            shims_held: tokio::sync::Mutex::default(),
        })
    }

    /// Begins to make a scope with these limits; [`Scopes::take`] waits for it.
    pub(super) fn prepare(self: &Arc<Self>, scope: Scope, limits: Resources) {
        let (owner, unit, wanted) = (Arc::clone(self), scope.unit.clone(), limits.clone());
        let made = async move { owner.make(&scope, &wanted).await };
        let made = tokio::spawn(tracing::Instrument::instrument(made, tracing::Span::current()));
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        prepared.insert(unit, Prepared { limits, made });
    }

    /// Returns when the scope is there, with these limits as its properties.
    ///
    /// # Errors
    /// What systemd says; then there is no scope.
    pub(super) async fn take(self: &Arc<Self>, scope: &Scope, limits: &Resources) -> Result<()> {
        let Some(prepared) = self.forget(&scope.unit) else { return self.make(scope, limits).await };
        joined(prepared.made).await?;
        if !self.cgroups.open(&scope.path).exists() {
            // Somebody stopped it meanwhile: nothing of the container was in it.
            return self.make(scope, limits).await;
        }
        if prepared.limits == *limits {
            return Ok(());
        }
        let properties = properties(limits, Stage::Fresh)?;
        self.systemd.set_properties(&scope.unit, &properties).await.doing("limit the scope")
    }

    /// Waits for a scope that is being made and that nobody needs any more.
    pub(super) async fn settle(&self, unit: &str) {
        if let Some(prepared) = self.forget(unit)
            && let Err(error) = joined(prepared.made).await
        {
            tracing::debug!(unit, %error, "a scope that is not needed any more");
        }
    }

    /// Returns when the scope is gone in which everything was killed.
    ///
    /// systemd takes an empty scope away by itself. Its directory is systemd's to remove: when it goes before systemd has looked,
    /// the unit stays for ever.
    ///
    /// # Errors
    /// When it does not go.
    pub(super) async fn gone(&self, scope: &Scope) -> Result<()> {
        let cgroup = self.cgroups.open(&scope.path);
        let deadline = Instant::now() + GONE_WAIT_MAX;
        let mut pause = GONE_PAUSE_MIN;
        while cgroup.exists() {
            if Instant::now() >= deadline {
                tracing::debug!(unit = scope.unit, "an empty scope stays; stopping it");
                return self.stop(scope, cgroup).await;
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(GONE_PAUSE_MAX);
        }
        Ok(())
    }

    async fn stop(&self, scope: &Scope, cgroup: Cgroup) -> Result<()> {
        self.systemd.stop(&scope.unit).await.doing("stop the scope")?;
        // One that systemd does not know any more.
        blocking::run_as(Kind::Cgroup, move || cgroup.remove().doing("remove the scope's cgroup")).await
    }

    fn forget(&self, unit: &str) -> Option<Prepared> {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner).remove(unit)
    }

    async fn make(self: &Arc<Self>, scope: &Scope, limits: &Resources) -> Result<()> {
        let made = self.try_make(scope, limits).await;
        let left = match &made {
            Err(error) if error.kind() == ErrorKind::Exists => "by an earlier try",
            Err(_) => "by a failed try",
            Ok(()) => return made,
        };
        tracing::debug!(unit = scope.unit, left, "stop a leftover scope");
        self.systemd.stop(&scope.unit).await.doing("stop a leftover scope")?;
        match made {
            Err(error) if error.kind() == ErrorKind::Exists => self.try_make(scope, limits).await,
            other => other,
        }
    }

    async fn try_make(self: &Arc<Self>, scope: &Scope, limits: &Resources) -> Result<()> {
        // Should the daemon be killed before the second one is there, nothing keeps a scope that nobody knows.
        let first = self.start_holder(None, Stay::WithDaemon).await?;
        let request = ScopeRequest {
            unit: &scope.unit,
            slice: &scope.slice,
            description: "Container of crisp",
            pid: first.pid(),
            properties: properties(limits, Stage::Fresh)?,
        };
        self.systemd.start_scope(&request).await.doing("make the scope")?;
        // The first one leaves when the second one is there: systemd would end an empty scope.
        self.hold(scope).await
    }

    /// Puts a holder into a scope that is there, whoever made it.
    ///
    /// # Errors
    /// When the scope is gone.
    pub(super) async fn hold(self: &Arc<Self>, scope: &Scope) -> Result<()> {
        let (owner, hold) = (Arc::clone(self), scope.hold()?);
        let dir = blocking::run(move || owner.cgroups.nest(&hold).doing("make the holder's cgroup")).await?;
        self.start_holder(dir.v2_dir(), Stay::ForGood).await?.release()
    }

    async fn start_holder(self: &Arc<Self>, cgroup: Option<PathBuf>, stay: Stay) -> Result<Holder> {
        let owner = Arc::clone(self);
        blocking::run(move || owner.holders.start(cgroup.as_deref(), stay).doing("start a scope's holder"))
            .await
    }

    /// The scope of all shims, in the slice of pods without a parent.
    ///
    /// # Errors
    /// When its name is too long.
    pub(super) fn shims(parent: &Slice) -> Result<Scope> {
        Scope::named(parent.clone(), SHIMS.to_owned())
    }

    /// Makes the scope of all shims, unless it is there. A holder keeps it while this daemon lives, the shims afterwards.
    ///
    /// # Errors
    /// What systemd says.
    pub(super) async fn keep_shims(self: &Arc<Self>, scope: &Scope) -> Result<()> {
        let mut held = self.shims_held.lock().await;
        let cgroup = self.cgroups.open(&scope.path);
        if *held && cgroup.exists() {
            return Ok(());
        }
        *held = self.join_shims(scope, &cgroup).await?;
        if *held {
            return Ok(());
        }
        let holder = self.start_holder(None, Stay::WithDaemon).await?;
        let request = ScopeRequest {
            unit: &scope.unit,
            slice: &scope.slice,
            description: "Supervisors of crisp's pods",
            pid: holder.pid(),
            properties: properties(&Resources::default(), Stage::Fresh)?,
        };
        self.systemd.start_scope(&request).await.doing("make the shims' scope")?;
        holder.release()?;
        *held = true;
        Ok(())
    }

    /// Puts a holder beside the shims of an earlier daemon, which keep their scope; `false` when there is none, or it went away.
    async fn join_shims(self: &Arc<Self>, scope: &Scope, cgroup: &Cgroup) -> Result<bool> {
        let Ok(holder) = self.start_holder(cgroup.v2_dir(), Stay::WithDaemon).await else { return Ok(false) };
        if self.systemd.is_loaded(&scope.unit).await.doing("look for the shims' scope")? {
            holder.release()?;
            return Ok(true);
        }
        Ok(false)
    }
}

fn properties(limits: &Resources, stage: Stage) -> Result<Vec<crisp_systemd::Property>> {
    crisp_systemd::of_resources(limits, stage).doing("tell systemd the limits")
}

async fn joined(made: JoinHandle<Result<()>>) -> Result<()> {
    made.await.unwrap_or_else(|join| {
        Err(Error::Internal { what: "the making of a scope ended abnormally", cause: join.to_string() })
    })
}
