//! `crisp serve`: recovery, then the socket and what of recovery can wait, then a clean end on SIGTERM. Pods run on.

use std::fs::Permissions;
use std::io::{IsTerminal as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::UnixListenerStream;

use crate::admin;
use crate::blocking;
use crate::config::Config;
use crate::cri;
use crate::daemon::{Daemon, startup};
use crate::error::{Error, Result};
use crate::recovery;

/// Largest request and answer, bytes: what a kubelet takes.
pub(crate) const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// Threads that only parse, publish and wait; everything else goes to the blocking pool.
const WORKER_THREADS: usize = 2;
/// How long calls that are under way may still take after SIGTERM. Their work goes on in the records either way.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// `crisp serve`: what goes wrong is logged, and is the exit code.
pub(crate) fn main(config: Config) -> ExitCode {
    log_to_stderr(&config.log);
    match serve(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the daemon cannot serve");
            ExitCode::FAILURE
        }
    }
}

/// The directives were checked with the configuration.
fn log_to_stderr(directives: &str) {
    let filter = tracing_subscriber::EnvFilter::new(directives);
    let terminal = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(terminal).init();
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// What keeps it from serving.
pub(crate) fn serve(config: Config) -> Result<()> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .max_blocking_threads(blocking::allow(config.limits.blocking_threads))
        .enable_all()
        .build()
        .map_err(|error| startup("start the runtime's threads", error))?;
    let served = runtime.block_on(run(config));
    // Work that blocks for ever, a hung mount say, does not keep the daemon from ending.
    runtime.shutdown_timeout(SHUTDOWN_GRACE);
    served
}

async fn run(config: Config) -> Result<()> {
    let listen = config.listen.clone();
    refuse_second_daemon(&listen)?;
    let daemon = Arc::new(blocking::run(move || Daemon::open(config)).await?);
    let rest = recovery::run(&daemon).await?;
    daemon.warm_up();
    crate::streaming::serve(&daemon).await?;
    crate::nri::serve(&daemon).await?;
    let listener = bind(&listen)?;
    announce(&listen).map_err(|error| startup("say that the daemon is ready", error))?;
    recovery::afterwards(&daemon, rest);
    let stop = stop_signal().map_err(|error| startup("listen for signals", error))?;
    let served = serve_until(&daemon, listener, stop).await;
    crate::nri::shut_down(&daemon).await;
    // The next daemon finds no stale socket, and clients see at once that nobody is there.
    let _gone = std::fs::remove_file(&listen);
    tracing::info!("daemon ended; pods run on");
    served
}

async fn serve_until(
    daemon: &Arc<Daemon>,
    listener: UnixListener,
    stop: impl Future<Output = ()>,
) -> Result<()> {
    let (started, ended) = tokio::sync::oneshot::channel();
    let server = tonic::transport::Server::builder()
        .trace_fn(|request| tracing::info_span!("rpc", path = request.uri().path()))
        .layer(crate::deadline::Deadline)
        .add_service(cri::runtime_service(daemon))
        .add_service(cri::image_service(daemon))
        .add_service(admin::service(daemon))
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async move {
            stop.await;
            // Streams without an end would keep the server until its grace is over.
            daemon.events.close();
            let _server_is_waiting = started.send(());
        });
    let patience = async {
        let _stopping = ended.await;
        tokio::time::sleep(SHUTDOWN_GRACE).await;
    };
    tokio::select! {
        served = server => served.map_err(|error| {
            Error::Internal { what: "serve the socket", cause: crate::error::chain(&error) }
        }),
        () = patience => Ok(()),
    }
}

/// Binds the socket with mode 0660. It is made under another name, so that nobody connects before its mode is right.
fn bind(listen: &Path) -> Result<UnixListener> {
    let failed = |error| startup("bind the daemon's socket", error);
    if let Some(parent) = listen.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    let making = listen.with_extension("new");
    match std::fs::remove_file(&making) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&making).map_err(failed)?;
    std::fs::set_permissions(&making, Permissions::from_mode(0o660)).map_err(failed)?;
    std::fs::rename(&making, listen).map_err(failed)?;
    Ok(listener)
}

/// Two daemons on one state would tear each other's pods apart.
fn refuse_second_daemon(listen: &Path) -> Result<()> {
    match std::fs::symlink_metadata(listen) {
        Ok(found) if !found.file_type().is_socket() => {
            Err(Error::Invalid(format!("{} exists and is no socket", listen.display())))
        }
        Ok(_) if StdUnixStream::connect(listen).is_ok() => {
            Err(Error::Invalid(format!("another daemon serves {}", listen.display())))
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

fn announce(listen: &Path) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "crisp: serving on unix://{}", listen.display())?;
    stdout.flush()
}

fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    Ok(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    })
}
