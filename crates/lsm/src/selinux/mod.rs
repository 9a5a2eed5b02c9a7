//! SELinux: labels of a pod's processes and files.
//!
//! ```text
//! system_u:system_r:container_t:s0:c17,c503        process
//! system_u:object_r:container_file_t:s0:c17,c503   root filesystem, tmpfs mounts, relabelled volumes
//! ```
//! The pair of categories is a pod's own: no other pod of this node has it, so that processes of one pod cannot touch files of
//! another. A request may replace each part of the process's label; its user and level replace those of the files, too.
//!
//! | this machine | `[security] selinux` | request | answer |
//! |---|---|---|---|
//! | without SELinux | any | any | no labels: a request means nothing there, as Kubernetes has it |
//! | with SELinux | false | none | no labels |
//! | with SELinux | false | options | error: a label that is asked for is not ignored |
//! | with SELinux | true | any | labels, which the policy must know |

mod categories;
mod label;
mod policy;
mod relabel;

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crisp_spec::{Privilege, SelinuxRequest};
use serde::{Deserialize, Serialize};

use crate::error::quote;
use crate::{LsmError, Result, read};
use categories::{Pair, Pool};
use label::Label;
pub use label::request;
use policy::Policy;
pub use relabel::{relabel, set};

/// Where the kernel shows SELinux; not mounted where it is off.
const FILE_SYSTEM: &str = "/sys/fs/selinux";
/// Type of a privileged container's processes: the policy lets it do what the node does.
const PRIVILEGED_TYPE: &str = "spc_t";
/// Level of a privileged container's processes.
const PRIVILEGED_LEVEL: &str = "s0";
/// Bytes of `enforce`.
const ENFORCE_BYTES_MAX: u64 = 16;

/// What this machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// No SELinux in the kernel, or turned off.
    Absent,
    /// It reports what it would refuse.
    Permissive,
    /// It refuses.
    Enforcing,
}

/// Looks at the kernel.
#[must_use]
pub fn state() -> State {
    match read::text(&Path::new(FILE_SYSTEM).join("enforce"), ENFORCE_BYTES_MAX).as_deref().map(str::trim) {
        Ok("1") => State::Enforcing,
        Ok(_) => State::Permissive,
        Err(_) => State::Absent,
    }
}

/// Whether containers get labels where the kernel has SELinux.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Use {
    /// They do.
    Labels,
    /// They do not.
    Nothing,
}

/// The labels of a pod or a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Labels {
    /// Of processes.
    pub process: String,
    /// Of files.
    pub mount: String,
}

/// SELinux, as pods and containers use it.
#[derive(Debug)]
pub struct Selinux {
    mode: Mode,
}

#[derive(Debug)]
enum Mode {
    /// No SELinux here.
    Absent,
    /// The operator wants no labels.
    Off,
    On(Box<On>),
}

#[derive(Debug)]
struct On {
    policy: Policy,
    pool: Mutex<Pool>,
    /// Asked whether a label exists; none asks nobody.
    file_system: Option<PathBuf>,
}

impl Selinux {
    /// Looks at the kernel and, where labels are wanted, at the policy.
    ///
    /// # Errors
    /// [`LsmError::Policy`], [`LsmError::Read`] for a policy whose labels for containers cannot be read.
    pub fn open(wanted: Use) -> Result<Self> {
        let mode = match (state(), wanted) {
            (State::Absent, _) => Mode::Absent,
            (State::Permissive | State::Enforcing, Use::Nothing) => Mode::Off,
            (State::Permissive | State::Enforcing, Use::Labels) => Mode::On(Box::new(On::new(
                Policy::read(Path::new(policy::CONFIG))?,
                Some(FILE_SYSTEM.into()),
            ))),
        };
        Ok(Self { mode })
    }

    /// The labels of a new pod, with categories of its own unless the request names a level. [`Selinux::release`] gives them back.
    ///
    /// # Errors
    /// [`LsmError::Label`], [`LsmError::UnknownLabel`], [`LsmError::LabelsOff`], [`LsmError::NoCategories`].
    pub fn pod(&self, request: Option<&SelinuxRequest>) -> Result<Option<Labels>> {
        self.labels(request, |on| {
            let pair = on.lock().take()?;
            let level = format!("s0:{pair}");
            let own = (on.policy.process.with_level(&level), on.policy.file.with_level(&level));
            let labels = on.finish(own, request);
            // The request may have named another level, or what the policy does not know.
            if !labels.as_ref().is_ok_and(|labels| labels.pair() == Some(pair)) {
                on.lock().give_back(pair);
            }
            labels.inspect(|labels| {
                if let Some(named) = labels.pair().filter(|named| *named != pair) {
                    on.lock().reserve(named);
                }
            })
        })
    }

    /// The labels of a container: those of its pod, but for what its own request replaces. A privileged one runs as `spc_t`.
    ///
    /// `pod`: what [`Selinux::pod`] gave; none for a pod that was made while labels were off.
    ///
    /// # Errors
    /// [`LsmError::Label`], [`LsmError::UnknownLabel`], [`LsmError::LabelsOff`].
    pub fn container(
        &self,
        pod: Option<&Labels>,
        request: Option<&SelinuxRequest>,
        privilege: Privilege,
    ) -> Result<Option<Labels>> {
        let Some(pod) = pod else { return self.without_pod(request) };
        self.labels(request, |on| {
            let (process, mount) = (Label::parse(&pod.process)?, Label::parse(&pod.mount)?);
            let process = match privilege {
                Privilege::Ordinary => process,
                Privilege::Privileged => {
                    on.policy.process.with_type(PRIVILEGED_TYPE).with_level(PRIVILEGED_LEVEL)
                }
            };
            on.finish((process, mount), request)
        })
    }

    /// What was given out before the daemon ended.
    pub fn reserve(&self, labels: &Labels) {
        if let (Mode::On(on), Some(pair)) = (&self.mode, labels.pair()) {
            on.lock().reserve(pair);
        }
    }

    /// The pod is gone: its categories may go to another one.
    pub fn release(&self, labels: &Labels) {
        if let (Mode::On(on), Some(pair)) = (&self.mode, labels.pair()) {
            on.lock().give_back(pair);
        }
    }

    fn labels(
        &self,
        request: Option<&SelinuxRequest>,
        make: impl FnOnce(&On) -> Result<Labels>,
    ) -> Result<Option<Labels>> {
        match &self.mode {
            Mode::Absent => Ok(None),
            Mode::Off if request.is_some_and(|request| *request != SelinuxRequest::default()) => {
                Err(LsmError::LabelsOff)
            }
            Mode::Off => Ok(None),
            Mode::On(on) => make(on).map(Some),
        }
    }

    fn without_pod(&self, request: Option<&SelinuxRequest>) -> Result<Option<Labels>> {
        match &self.mode {
            Mode::On(_) if request.is_none() => Ok(None),
            Mode::On(_) => Err(LsmError::LabelsOff),
            Mode::Absent | Mode::Off => self.labels(request, |_| Err(LsmError::LabelsOff)),
        }
    }
}

impl On {
    fn new(policy: Policy, file_system: Option<PathBuf>) -> Self {
        Self { policy, pool: Mutex::new(Pool::default()), file_system }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces what the request names, and asks the policy.
    fn finish(&self, own: (Label, Label), request: Option<&SelinuxRequest>) -> Result<Labels> {
        let (mut process, mut mount) = own;
        if let Some(request) = request {
            process.replace(request);
            // Role and type of processes are none of files.
            let files = SelinuxRequest { role: String::new(), typ: String::new(), ..request.clone() };
            mount.replace(&files);
        }
        Ok(Labels { process: self.known(&process)?, mount: self.known(&mount)? })
    }

    /// The label as a text, when the policy has it. Source: `security_check_context(3)`: who writes it to `context` is told.
    fn known(&self, label: &Label) -> Result<String> {
        let text = label.to_string();
        let Some(dir) = &self.file_system else { return Ok(text) };
        match std::fs::write(dir.join("context"), &text) {
            Ok(()) => Ok(text),
            Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => {
                Err(LsmError::UnknownLabel(quote(&text)))
            }
            Err(source) => Err(LsmError::Read { path: dir.join("context"), source }),
        }
    }
}

impl Labels {
    /// The pair of categories that keeps the files to one pod; none for other levels.
    fn pair(&self) -> Option<Pair> {
        Label::parse(&self.mount).ok().and_then(|label| Pair::of_level(&label.level))
    }
}

#[cfg(test)]
mod tests;
