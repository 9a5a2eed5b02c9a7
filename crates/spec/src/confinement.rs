//! Which AppArmor profile confines the process. (Seccomp filters are made by their own crate.)

use std::collections::BTreeSet;

use crate::error::{SpecError, quote};
use crate::input::{AppArmor, AppArmorRequest, HostFacts, Privilege, SecurityRequest};

/// Name of the runtime's own profile.
pub const APPARMOR_DEFAULT_PROFILE: &str = "crisp-default";

/// What CRI clients send for a container that does not unmask `/proc`.
pub const DEFAULT_MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// What CRI clients send for a container that does not unmask `/proc`.
pub const DEFAULT_READONLY_PATHS: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The profile to set, `None` for none.
///
/// # Errors
/// [`SpecError::AppArmor`] when a profile is asked for that the kernel has not loaded, or on a machine without AppArmor.
pub(crate) fn apparmor_profile(
    security: &SecurityRequest,
    host: &HostFacts,
) -> Result<Option<String>, SpecError> {
    let AppArmor::Enabled { loaded } = &host.apparmor else {
        return match &security.apparmor {
            AppArmorRequest::Unset | AppArmorRequest::Unconfined => Ok(None),
            AppArmorRequest::RuntimeDefault => {
                Err(refused(APPARMOR_DEFAULT_PROFILE, "this machine has no AppArmor"))
            }
            AppArmorRequest::Localhost(name) => Err(refused(name, "this machine has no AppArmor")),
        };
    };
    match (&security.apparmor, security.privilege) {
        // A privileged container is confined by what it names itself, and by nothing else.
        (AppArmorRequest::Unset | AppArmorRequest::RuntimeDefault, Privilege::Privileged) => Ok(None),
        (AppArmorRequest::Unset, Privilege::Ordinary) => {
            Ok(loaded.contains(APPARMOR_DEFAULT_PROFILE).then(|| APPARMOR_DEFAULT_PROFILE.to_string()))
        }
        (AppArmorRequest::RuntimeDefault, Privilege::Ordinary) => {
            loaded_profile(loaded, APPARMOR_DEFAULT_PROFILE).map_err(|_not_loaded| {
                SpecError::Unsupported("AppArmor's RuntimeDefault without a loaded crisp-default")
            })
        }
        (AppArmorRequest::Unconfined, _) => Ok(None),
        (AppArmorRequest::Localhost(name), _) => loaded_profile(loaded, name),
    }
}

/// Whether a container that asks for nothing runs without a profile on a machine that could confine it.
pub(crate) fn runs_without_default(security: &SecurityRequest, host: &HostFacts) -> bool {
    let AppArmor::Enabled { loaded } = &host.apparmor else { return false };
    security.privilege == Privilege::Ordinary
        && security.apparmor == AppArmorRequest::Unset
        && !loaded.contains(APPARMOR_DEFAULT_PROFILE)
}

fn loaded_profile(loaded: &BTreeSet<String>, name: &str) -> Result<Option<String>, SpecError> {
    if loaded.contains(name) {
        Ok(Some(name.to_string()))
    } else {
        Err(refused(name, "not loaded in the kernel"))
    }
}

fn refused(profile: &str, reason: &'static str) -> SpecError {
    SpecError::AppArmor { profile: quote(profile), reason }
}
