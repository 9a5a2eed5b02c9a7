use std::io;
use std::path::PathBuf;

use crisp_domain::ErrorKind;

/// Why a container cannot have what it asks of a security module.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LsmError {
    /// A profile is asked for where nothing would enforce it.
    #[error("AppArmor profile {profile:?} is asked for, but AppArmor is not enabled in this kernel")]
    NoAppArmor {
        /// As requested, cut.
        profile: String,
    },
    /// The kernel does not know the profile.
    #[error(
        "AppArmor profile {profile:?} is not loaded in the kernel (apparmor_parser loads it from its file)"
    )]
    NotLoaded {
        /// As requested, cut.
        profile: String,
    },
    /// The runtime's default is asked for where the operator wants none.
    #[error("AppArmor's default profile is asked for, but it is turned off ([security] apparmor = \"off\")")]
    DefaultOff,
    /// Our own profile cannot be loaded.
    #[error("load AppArmor profile {profile}: {reason}")]
    Load {
        /// Its name.
        profile: &'static str,
        /// What happened and what helps.
        reason: String,
    },
    /// A file of the kernel or the policy cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A part of an SELinux label cannot be one.
    #[error("selinux_options.{field} {value:?}: {reason}")]
    Label {
        /// Which part.
        field: &'static str,
        /// Its content, cut.
        value: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The policy does not have this label.
    #[error("SELinux label {0:?} is not valid in this machine's policy")]
    UnknownLabel(String),
    /// A label is asked for where labels are turned off.
    #[error(
        "SELinux options are asked for, but labels are turned off ([security] selinux = true turns them on)"
    )]
    LabelsOff,
    /// Every pair of categories belongs to a pod.
    #[error("all {0} pairs of SELinux categories are in use")]
    NoCategories(usize),
    /// The policy has no label for containers.
    #[error("the SELinux policy names no label for containers: {0}")]
    Policy(String),
    /// A directory of the machine itself is not a volume.
    #[error("{} belongs to the system and gets no container's SELinux label", .0.display())]
    SystemDirectory(PathBuf),
    /// Files cannot be given a label.
    #[error("set the SELinux label of {}", path.display())]
    Relabel {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A volume's tree is deeper than is walked.
    #[error("{} has more than {max} levels of directories", path.display())]
    TooDeep {
        /// The volume.
        path: PathBuf,
        /// The limit.
        max: usize,
    },
    /// The work was called off.
    #[error("relabelling {} was called off", .0.display())]
    Cancelled(PathBuf),
}

impl LsmError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoAppArmor { .. }
            | Self::NotLoaded { .. }
            | Self::Label { .. }
            | Self::UnknownLabel(_)
            | Self::SystemDirectory(_)
            | Self::TooDeep { .. } => ErrorKind::Invalid,
            Self::DefaultOff | Self::LabelsOff => ErrorKind::Unsupported,
            Self::NoCategories(_) => ErrorKind::Exhausted,
            Self::Cancelled(_) => ErrorKind::WrongState,
            Self::Load { .. } | Self::Read { .. } | Self::Policy(_) | Self::Relabel { .. } => {
                ErrorKind::Internal
            }
        }
    }
}

/// Characters of a foreign text that an error repeats.
const QUOTE_CHARS_MAX: usize = 128;

/// A foreign text, cut to what a message can hold.
pub(crate) fn quote(text: &str) -> String {
    text.chars().take(QUOTE_CHARS_MAX).collect()
}
