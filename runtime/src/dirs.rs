//! Where everything lies (see ARCHITECTURE.md, "On disk").

use std::path::{Path, PathBuf};

/// The two roots: state until reboot, and durable state.
#[derive(Debug, Clone)]
pub(crate) struct Dirs {
    state: PathBuf,
    root: PathBuf,
}

impl Dirs {
    pub(crate) fn new(state: &Path, root: &Path) -> Self {
        Self { state: state.to_owned(), root: root.to_owned() }
    }

    pub(crate) fn state(&self) -> &Path {
        &self.state
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn pods(&self) -> PathBuf {
        self.state.join("pods")
    }

    pub(crate) fn pod(&self, id: &str) -> PodDir {
        PodDir(self.pods().join(id))
    }

    pub(crate) fn containers(&self) -> PathBuf {
        self.state.join("containers")
    }

    pub(crate) fn container(&self, id: &str) -> ContainerDir {
        ContainerDir {
            state: self.containers().join(id),
            writable: self.writable_layers().join(id),
            views: self.views().join(id),
        }
    }

    /// What containers' mounts show, by container id (`container/views.rs`).
    pub(crate) fn views(&self) -> PathBuf {
        self.state.join("mounts")
    }

    /// Writable layers and anonymous volumes, by container id.
    pub(crate) fn writable_layers(&self) -> PathBuf {
        self.root.join("containers")
    }

    pub(crate) fn network(&self) -> PathBuf {
        self.root.join("network")
    }

    pub(crate) fn seccomp(&self) -> PathBuf {
        self.root.join("seccomp")
    }
}

/// A pod's directory.
#[derive(Debug, Clone)]
pub(crate) struct PodDir(PathBuf);

impl PodDir {
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
    pub(crate) fn record(&self) -> PathBuf {
        self.0.join("sandbox.json")
    }
    pub(crate) fn socket(&self) -> PathBuf {
        self.0.join("shim.sock")
    }
    /// Pinned namespaces: `user`, `net`, `ipc`, `uts`, `pid`.
    pub(crate) fn namespaces(&self) -> PathBuf {
        self.0.join("ns")
    }
    pub(crate) fn user(&self) -> PathBuf {
        self.namespaces().join("user")
    }
    /// Of the pod's PID 1.
    pub(crate) fn pid(&self) -> PathBuf {
        self.namespaces().join("pid")
    }
    pub(crate) fn net(&self) -> PathBuf {
        self.namespaces().join("net")
    }
    pub(crate) fn ipc(&self) -> PathBuf {
        self.namespaces().join("ipc")
    }
    pub(crate) fn uts(&self) -> PathBuf {
        self.namespaces().join("uts")
    }
    pub(crate) fn hostname(&self) -> PathBuf {
        self.0.join("hostname")
    }
    pub(crate) fn hosts(&self) -> PathBuf {
        self.0.join("hosts")
    }
    pub(crate) fn resolv_conf(&self) -> PathBuf {
        self.0.join("resolv.conf")
    }
    pub(crate) fn shm(&self) -> PathBuf {
        self.0.join("shm")
    }
    /// Read-only views of images that containers mount as volumes.
    pub(crate) fn image_volumes(&self) -> PathBuf {
        self.0.join("images")
    }
    /// Where views of the layers hang while an image is mounted.
    pub(crate) fn views(&self) -> PathBuf {
        self.0.join("views")
    }
}

/// A container's two directories.
#[derive(Debug, Clone)]
pub(crate) struct ContainerDir {
    state: PathBuf,
    writable: PathBuf,
    views: PathBuf,
}

impl ContainerDir {
    /// Record, bundle and exit record.
    pub(crate) fn state(&self) -> &Path {
        &self.state
    }
    pub(crate) fn record(&self) -> PathBuf {
        self.state.join("container.json")
    }
    pub(crate) fn config(&self) -> PathBuf {
        self.state.join("config.json")
    }
    pub(crate) fn seccomp(&self) -> PathBuf {
        self.state.join("seccomp.bpf")
    }
    pub(crate) fn rootfs(&self) -> PathBuf {
        self.state.join("rootfs")
    }
    /// Upper and work directory.
    pub(crate) fn writable(&self) -> &Path {
        &self.writable
    }
    /// What its mounts show, until its init has them; see `container/views.rs`.
    pub(crate) fn views(&self) -> &Path {
        &self.views
    }
    /// The `number`th anonymous volume, for a `VOLUME` of the image.
    pub(crate) fn volume(&self, number: usize) -> PathBuf {
        self.writable.join("volumes").join(number.to_string())
    }
}
