//! Linux security modules: what AppArmor and SELinux are told of pods and containers. The rules are `crisp-lsm`'s.
//!
//! A pod's SELinux labels are made with it, recorded, and given back when its record goes; so its containers and its files have the
//! same categories, and no other pod has them.

use std::path::Path;
use std::sync::Arc;

use crisp_lsm::apparmor::{self, AppArmor};
use crisp_lsm::selinux::{self, Labels, Selinux};
use crisp_proto::cri::{self, PodSandboxConfig};
use crisp_spec::{BindMount, ContainerConfig, SecurityLabels, SecurityRequest};

use crate::config;
use crate::container::Container;
use crate::daemon::Daemon;
use crate::error::{Doing as _, Result};
use crate::pod::Pod;
use crate::pod::state::PodState;

/// What this machine has, and which labels are in use.
#[derive(Debug)]
pub(crate) struct Lsm {
    apparmor: AppArmor,
    selinux: Selinux,
}

impl Lsm {
    /// Looks at the kernel; loads nothing. `state`: a directory that ends with a reboot.
    ///
    /// # Errors
    /// When labels are wanted and the SELinux policy cannot be read.
    pub(crate) fn open(config: &config::Security, state: &Path) -> Result<Self> {
        let default = match &config.apparmor {
            config::AppArmor::Auto => apparmor::Default::Own,
            config::AppArmor::Off => apparmor::Default::Off,
            config::AppArmor::Profile(name) => apparmor::Default::Named(name.clone()),
        };
        let labels = if config.selinux { selinux::Use::Labels } else { selinux::Use::Nothing };
        let dir = state.join("apparmor");
        crisp_store::ensure_dir(&dir).doing("make the directory of AppArmor's profile")?;
        let selinux = Selinux::open(labels).doing("read the SELinux policy")?;
        Ok(Self { apparmor: AppArmor::open(default, &dir), selinux })
    }

    /// Loads the default AppArmor profile; a container that needs it meanwhile waits. Blocks for the parser.
    pub(crate) fn warm_up(&self) {
        self.apparmor.warm_up();
    }

    /// The labels of a pod that recovery found belong to it.
    pub(crate) fn recovered(&self, pod: &Pod) {
        if let Some(labels) = &pod.record().selinux {
            self.selinux.reserve(labels);
        }
    }

    /// The pod is gone.
    pub(crate) fn released(&self, pod: &Pod) {
        if let Some(labels) = &pod.record().selinux {
            self.selinux.release(labels);
        }
    }

    /// The labels of a new pod. [`Lsm::released`] gives its categories back, also when nothing comes of the pod.
    ///
    /// # Errors
    /// For SELinux options that cannot be.
    pub(crate) fn pod(&self, config: &PodSandboxConfig) -> Result<Option<Labels>> {
        let security = config.linux.as_ref().and_then(|linux| linux.security_context.as_ref());
        let options = security.and_then(|security| security.selinux_options.as_ref());
        let request = options
            .map(|o| crisp_lsm::selinux::request(&o.user, &o.role, &o.r#type, &o.level))
            .transpose()
            .doing("read the SELinux options")?;
        self.selinux.pod(request.as_ref()).doing("choose the pod's SELinux labels")
    }

    fn container(&self, pod: &Pod, security: &SecurityRequest) -> Result<SecurityLabels> {
        let record = pod.record();
        let selinux = self
            .selinux
            .container(record.selinux.as_ref(), security.selinux.as_ref(), security.privilege)
            .doing("choose the container's SELinux labels")?;
        let apparmor = self
            .apparmor
            .profile(&security.apparmor, security.privilege)
            .doing("find the AppArmor profile")?;
        let (process, mount) = selinux.map(|labels| (labels.process, labels.mount)).unzip();
        Ok(SecurityLabels { apparmor, process, mount })
    }
}

/// What the container's specification says; loads the default profile where that has not been done. Blocks.
///
/// # Errors
/// For a profile that is not loaded, a label that the policy does not have, and anything asked of a module that is not here.
pub(crate) fn labels(
    daemon: &Daemon,
    container: &Container,
    config: &ContainerConfig,
) -> Result<SecurityLabels> {
    daemon.lsm.container(&container.pod, &config.security)
}

/// Gives the volumes that ask for it the label of the container's files, all that is in them. Blocks for as long as that takes; the
/// stop of the pod calls it off.
///
/// `mounts`: those of the request, in its order, with their sources found; others may follow.
///
/// # Errors
/// For a directory of the machine itself, and what the file system refuses.
pub(crate) fn relabel(container: &Container, labels: &SecurityLabels, mounts: &[BindMount]) -> Result<()> {
    let Some(label) = &labels.mount else { return Ok(()) };
    let cancelled = || container.pod.state() != PodState::Ready;
    let record = container.record();
    for (_, mount) in record.config.mounts.iter().zip(mounts).filter(|(request, _)| is_relabelled(request)) {
        crisp_lsm::selinux::relabel(&mount.source, label, &cancelled).doing("relabel a volume")?;
    }
    Ok(())
}

/// An image has the label by its mount, which is read-only; kubelets ask for it there, too.
fn is_relabelled(mount: &cri::Mount) -> bool {
    mount.selinux_relabel && mount.image.is_none()
}

/// The label of what is mounted for the pod's own PID 1. In a user namespace the kernel takes none from who mounts.
pub(crate) fn root_label(pod: &Pod) -> Option<String> {
    let record = pod.record();
    record.selinux.as_ref().filter(|_| pod.user_ids().is_none()).map(|labels| labels.mount.clone())
}

/// Gives the files that the runtime makes for a pod its label.
///
/// # Errors
/// What the file system says.
pub(crate) fn label_files(pod: &Pod) -> Result<()> {
    let record = pod.record();
    let Some(labels) = &record.selinux else { return Ok(()) };
    for path in [pod.dir.hostname(), pod.dir.hosts(), pod.dir.resolv_conf(), pod.dir.shm()] {
        if path.exists() {
            crisp_lsm::selinux::set(&path, &labels.mount).doing("label a file of the pod")?;
        }
    }
    Ok(())
}

/// Loads the default profile in the background.
pub(crate) fn warm_up(daemon: &Arc<Daemon>) {
    let daemon = Arc::clone(daemon);
    tokio::task::spawn_blocking(move || daemon.lsm.warm_up());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_not_relabelled() {
        let volume = cri::Mount { selinux_relabel: true, ..cri::Mount::default() };
        let image = cri::Mount { image: Some(cri::ImageSpec::default()), ..volume.clone() };
        let other = cri::Mount::default();
        assert_eq!([&volume, &image, &other].map(is_relabelled), [true, false, false]);
    }
}
