//! Linux security modules: what AppArmor and SELinux say of a container.

use crate::config;

/// What this machine has.
#[derive(Debug)]
pub(crate) struct Lsm {}

impl Lsm {
    pub(crate) fn open(_config: &config::Security) -> Self {
        Self {}
    }
}
