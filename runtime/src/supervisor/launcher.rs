//! Starting shims from a sealed memory file.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crisp_sys::clone::{Spawn, sealed_program};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::{CgroupEntry, Error, Supervision, connect};
use crate::error::Error as DaemonError;

/// The shim's program, built with the daemon.
const SHIM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/crisp-shim"));
/// Connections that may wait for the shim to accept them.
const BACKLOG: i32 = 16;

/// Starts shims; one per daemon.
#[derive(Debug)]
pub(crate) struct Launcher {
    program: OwnedFd,
    null: OwnedFd,
}

impl Launcher {
    /// Writes the embedded shim into a sealed memory file.
    ///
    /// # Errors
    /// [`Error::Program`].
    pub(crate) fn new() -> Result<Self, Error> {
        let null = OpenOptions::new().read(true).write(true).open("/dev/null").map_err(Error::Program)?;
        Ok(Self { program: sealed_program("crisp-shim", SHIM).map_err(Error::Program)?, null: null.into() })
    }

    /// Binds `<pod_dir>/shim.sock`, starts a shim in the cgroup, connects to it. The shim outlives the daemon.
    ///
    /// # Errors
    /// [`Error::Bind`], [`Error::Spawn`], those of [`connect`]; no shim is left then.
    pub(crate) async fn spawn(&self, pod_dir: &Path, cgroup: &CgroupEntry) -> Result<Supervision, Error> {
        let socket = pod_dir.join("shim.sock");
        let listener = bind(&socket).map_err(|source| Error::Bind { path: socket.clone(), source })?;
        let pidfd = self.start(pod_dir, &listener, cgroup).await?;
        // The shim's alone from here on: while somebody else has it, a connection to a shim that died at once waits for its answer.
        drop(listener);
        let spare =
            pidfd.try_clone().map_err(|source| Error::Spawn { pod_dir: pod_dir.to_owned(), source })?;
        reap(pidfd);
        let connected = connect(&socket).await;
        if connected.is_err()
            && let Err(error) = crisp_sys::pidfd::kill(&spare)
        {
            tracing::warn!(%error, "kill a shim that cannot be reached");
        }
        connected
    }

    async fn start(
        &self,
        pod_dir: &Path,
        listener: &OwnedFd,
        cgroup: &CgroupEntry,
    ) -> Result<OwnedFd, Error> {
        let failed = |source| Error::Spawn { pod_dir: pod_dir.to_owned(), source };
        let (program, null) =
            (self.program.try_clone().map_err(failed)?, self.null.try_clone().map_err(failed)?);
        let (listener, cgroup) = (listener.try_clone().map_err(failed)?, cgroup.clone());
        let dir = pod_dir.to_owned();
        crate::blocking::run(move || {
            start(&program, &null, &listener, &cgroup, &dir)
                .map_err(|error| DaemonError::step("start a shim", crisp_domain::ErrorKind::Internal, error))
        })
        .await
        .map_err(|error| failed(std::io::Error::other(error)))
    }
}

fn start(
    program: &OwnedFd,
    null: &OwnedFd,
    listener: &OwnedFd,
    cgroup: &CgroupEntry,
    pod_dir: &Path,
) -> std::io::Result<OwnedFd> {
    let nul = |_has_nul| std::io::Error::from(std::io::ErrorKind::InvalidInput);
    let args = [
        CString::from(c"crisp-shim"),
        CString::from(c"serve"),
        CString::from(c"--pod-dir"),
        CString::new(pod_dir.as_os_str().as_bytes()).map_err(nul)?,
    ];
    let log = OpenOptions::new().append(true).create(true).open(pod_dir.join("shim.log"))?;
    let tasks = open_all(&cgroup.v1_tasks)?;
    let tasks: Vec<BorrowedFd<'_>> = tasks.iter().map(File::as_fd).collect();
    let born_in = cgroup.v2_dir.as_ref().map(File::open).transpose()?;
    let spawn = Spawn {
        program: program.as_fd(),
        args: &args,
        env: &[],
        fds: &[null.as_fd(), null.as_fd(), log.as_fd(), listener.as_fd()],
        tasks: &tasks,
        cgroup: born_in.as_ref().map(File::as_fd),
    };
    spawn.start().map(|child| child.pidfd)
}

fn open_all(paths: &[std::path::PathBuf]) -> std::io::Result<Vec<File>> {
    paths.iter().map(|path| OpenOptions::new().write(true).open(path)).collect()
}

/// Takes the shim's status when it ends, so that no zombie stays. When the daemon dies first, init does it.
fn reap(pidfd: OwnedFd) {
    tokio::spawn(async move {
        let waited = async {
            let pidfd = super::registered(pidfd, tokio::io::Interest::READABLE)?;
            let _ready = pidfd.readable().await?;
            crisp_sys::pidfd::wait(pidfd.get_ref())
        };
        match waited.await {
            Ok(ended) => tracing::debug!(?ended, "shim ended"),
            Err(error) => tracing::warn!(%error, "wait for a shim"),
        }
    });
}

fn bind(path: &Path) -> std::io::Result<OwnedFd> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[tokio::test]
    async fn a_shim_that_dies_at_once_is_noticed_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let open = |path| OwnedFd::from(File::options().read(true).open(path).unwrap());
        let launcher = Launcher { program: open("/bin/false"), null: open("/dev/null") };
        let began = Instant::now();
        let error = launcher.spawn(dir.path(), &CgroupEntry::default()).await.unwrap_err();
        assert!(matches!(error, Error::Closed | Error::Connect { .. }), "{error}");
        // An answer would be waited for more than five times as long.
        assert!(began.elapsed() < Duration::from_secs(20));
    }
}
