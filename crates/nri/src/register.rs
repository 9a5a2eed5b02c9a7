//! How a plugin joins: it registers, is configured, learns what exists, and from then on is asked.
//!
//! ```text
//!  accept or launch ─▶ RegisterPlugin ─▶ Configure ─▶ [no creation, no new request] Synchronize ─▶ in the list ─▶ until it closes
//!                      └── registration_timeout ──┘     └────────── registration_timeout ──────────┘
//! ```

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prost::Message as _;
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, mpsc};

use crate::api::{Empty, RegisterPluginRequest, UpdateContainersRequest, UpdateContainersResponse};
use crate::connection::{Connection, Incoming};
use crate::error::NriError;
use crate::launch::{self, Installed, Process};
use crate::plugin::{Identity, Plugin};
use crate::plugins::Plugins;
use crate::ttrpc::{Request, Response, code};

/// The runtime's service.
const SERVICE: &str = "nri.pkg.api.v1alpha1.Runtime";
/// Connections at once, registered or not.
const CONNECTIONS_MAX: usize = 64;
/// Pause after a failed accept: no descriptors left, say.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// A connection that wants to be a plugin.
struct Candidate {
    connection: Connection,
    requests: mpsc::Receiver<Incoming>,
    /// Of one that we launched, with its process.
    launched: Option<(Installed, Process)>,
}

impl Plugins {
    /// Launches the installed plugins, waits until each has joined or failed, and listens for others. A plugin that fails is logged.
    ///
    /// # Errors
    /// [`NriError::Listen`]; [`NriError::Join`] when the installed plugins cannot be listed.
    pub async fn start(self: &Arc<Self>) -> Result<(), NriError> {
        let (dir, config) = (&self.settings.plugin_dir, &self.settings.plugin_config_dir);
        let installed = launch::installed(dir, config).map_err(|error| NriError::Join {
            plugin: format!("in {}", dir.display()),
            cause: error.to_string(),
        })?;
        for plugin in installed {
            self.launch(plugin).await;
        }
        let path = self.settings.socket.clone();
        let listener = bind(&path).map_err(|source| NriError::Listen { path, source })?;
        tokio::spawn(Arc::clone(self).accept(listener));
        Ok(())
    }

    async fn launch(self: &Arc<Self>, installed: Installed) {
        let name = installed.identity.to_string();
        let started = tokio::task::spawn_blocking(move || {
            launch::start(&installed).map(|(process, socket)| (installed, process, socket))
        });
        let candidate =
            started.await.map_err(io::Error::other).flatten().and_then(|(installed, process, socket)| {
                let (connection, requests) = Connection::new(socket)?;
                Ok(Candidate { connection, requests, launched: Some((installed, process)) })
            });
        let joined = match candidate {
            Ok(candidate) => self.join(candidate).await,
            Err(error) => Err(NriError::Join { plugin: name, cause: format!("launch it: {error}") }),
        };
        match joined {
            Ok((plugin, served)) => drop(tokio::spawn(Arc::clone(self).until_closed(plugin, served))),
            Err(error) => tracing::error!(%error, "installed plugin left out"),
        }
    }

    async fn accept(self: Arc<Self>, listener: UnixListener) {
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        while !self.ending.load(Ordering::Acquire) {
            // The semaphore is never closed.
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            match listener.accept().await.and_then(|(socket, _)| socket.into_std()) {
                Ok(socket) => {
                    let plugins = Arc::clone(&self);
                    tokio::spawn(async move {
                        plugins.connected(socket).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accept a plugin");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn connected(self: Arc<Self>, socket: StdUnixStream) {
        let joined = match Connection::new(socket) {
            Ok((connection, requests)) => self.join(Candidate { connection, requests, launched: None }).await,
            Err(error) => Err(NriError::Join { plugin: "?".to_owned(), cause: error.to_string() }),
        };
        match joined {
            Ok((plugin, served)) => self.until_closed(plugin, served).await,
            Err(error) => tracing::warn!(%error, "plugin left out"),
        }
    }

    async fn join(self: &Arc<Self>, candidate: Candidate) -> Result<(Arc<Plugin>, Served), NriError> {
        let Candidate { connection, mut requests, launched } = candidate;
        let patience = self.settings.registration_timeout;
        let registered = tokio::time::timeout(patience, registration(&mut requests, launched.as_ref()));
        let unnamed = || match &launched {
            Some((installed, _)) => installed.identity.to_string(),
            None => format!("of process {}", connection.peer_pid().unwrap_or_default()),
        };
        let (call, identity) = match registered.await {
            Ok(Ok(registered)) => registered,
            Ok(Err(Refused { call, problem })) => {
                let response = Response::refusal(code::INVALID_ARGUMENT, problem.clone());
                connection.respond(call, response, self.settings.request_timeout).await;
                return Err(NriError::Join { plugin: unnamed(), cause: problem });
            }
            Err(_elapsed) => {
                let cause = format!("it did not register within {} ms", patience.as_millis());
                return Err(NriError::Join { plugin: unnamed(), cause });
            }
        };
        connection.respond(call, answer(&Empty {}), self.settings.request_timeout).await;
        let (config, process) = match launched {
            Some((installed, process)) => (installed.config, Some(process)),
            None => (self.config_of(&identity).await?, None),
        };
        let plugin = Plugin::configure(identity, connection, config, &self.settings, process).await?;
        let plugin = Arc::new(plugin);
        let served = Served(tokio::spawn(Arc::clone(self).serve(Arc::clone(&plugin), requests)));
        self.synchronize(&plugin).await.inspect_err(|error| plugin.connection.close(&error.to_string()))?;
        Ok((plugin, served))
    }

    /// The configuration of one that was not launched, if there is one.
    async fn config_of(&self, identity: &Identity) -> Result<String, NriError> {
        let (dir, identity) = (self.settings.plugin_config_dir.clone(), identity.clone());
        let name = identity.to_string();
        let read = tokio::task::spawn_blocking(move || launch::config(&dir, &identity)).await;
        read.map_err(io::Error::other).flatten().map_err(|error| NriError::Join {
            plugin: name,
            cause: format!("read its configuration: {error}"),
        })
    }

    /// Tells the plugin what exists and puts it into the list, while no creation or removal is under way and no request begins, so that
    /// it hears of everything once. A request that is under way has recorded what it tells of, or tells of its end later.
    async fn synchronize(&self, plugin: &Arc<Plugin>) -> Result<(), NriError> {
        let patience = self.settings.registration_timeout;
        let busy = |_elapsed| NriError::Join {
            plugin: plugin.identity.to_string(),
            cause: format!("creations were under way for {} ms", patience.as_millis()),
        };
        let updates = {
            let _no_creation = tokio::time::timeout(patience, self.creations.write()).await.map_err(busy)?;
            let mut plugins = self.plugins.write().await;
            let updates = plugin.synchronize(self.runtime.state().await, patience).await?;
            self.insert(&mut plugins, Arc::clone(plugin));
            updates
        };
        tracing::info!(plugin = %plugin.identity, pid = plugin.connection.peer_pid(), "plugin joined");
        // The runtime says what it cannot do.
        let _failed = self.runtime.update(updates).await;
        Ok(())
    }

    /// Answers what the plugin asks, one after the other, until it closes.
    async fn serve(self: Arc<Self>, plugin: Arc<Plugin>, mut requests: mpsc::Receiver<Incoming>) {
        while let Some(Incoming { call, request }) = requests.recv().await {
            let response = self.answer(&plugin, request).await;
            plugin.connection.respond(call, response, self.settings.request_timeout).await;
        }
    }

    async fn answer(&self, plugin: &Plugin, request: Request) -> Response {
        match (request.service.as_str(), request.method.as_str()) {
            (SERVICE, "UpdateContainers") => {
                match UpdateContainersRequest::decode(request.payload.as_slice()) {
                    Ok(UpdateContainersRequest { update, evict }) => {
                        tracing::info!(plugin = %plugin.identity, updates = update.len(), evictions = evict.len(), "a plugin asks for changes");
                        let failed = self.runtime.update(update).await;
                        self.runtime.evict(evict).await;
                        answer(&UpdateContainersResponse { failed })
                    }
                    Err(error) => Response::refusal(code::INVALID_ARGUMENT, error.to_string()),
                }
            }
            (SERVICE, "RegisterPlugin") => Response::refusal(code::UNKNOWN, "it is registered already"),
            (service, method) => Response::refusal(code::UNIMPLEMENTED, format!("{service}.{method}")),
        }
    }

    async fn until_closed(self: Arc<Self>, plugin: Arc<Plugin>, served: Served) {
        let why = plugin.connection.closed().await;
        self.remove(&plugin).await;
        drop(served);
        tracing::info!(plugin = %plugin.identity, why, "plugin left");
        let ended = tokio::task::spawn_blocking(move || plugin.end_process());
        let _panicked = ended.await;
    }
}

/// The task that serves a plugin; it ends with this.
struct Served(tokio::task::JoinHandle<()>);

impl Drop for Served {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Refused {
    call: u32,
    problem: String,
}

/// Waits for RegisterPlugin. One that we launched has its name already.
async fn registration(
    requests: &mut mpsc::Receiver<Incoming>,
    launched: Option<&(Installed, Process)>,
) -> Result<(u32, Identity), Refused> {
    let Some(Incoming { call, request }) = requests.recv().await else {
        return Err(Refused { call: 0, problem: "it closed before it registered".to_owned() });
    };
    let refused = |problem| Refused { call, problem };
    if (request.service.as_str(), request.method.as_str()) != (SERVICE, "RegisterPlugin") {
        return Err(refused(format!("{}.{} before RegisterPlugin", request.service, request.method)));
    }
    let told = RegisterPluginRequest::decode(request.payload.as_slice())
        .map_err(|error| refused(error.to_string()))?;
    let identity = match launched {
        Some((installed, _)) => installed.identity.clone(),
        None => Identity::new(&told.plugin_idx, &told.plugin_name).map_err(refused)?,
    };
    tracing::debug!(plugin = %identity, version = told.nri_version, "plugin registers");
    Ok((call, identity))
}

fn answer(message: &impl prost::Message) -> Response {
    Response { status: None, payload: message.encode_to_vec() }
}

/// Only root may be a plugin: it decides what containers get.
fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let making = path.with_extension("new");
    for stale in [&making, path] {
        match std::fs::remove_file(stale) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    let listener = UnixListener::bind(&making)?;
    std::fs::set_permissions(&making, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&making, path)?;
    Ok(listener)
}
