//! The text of the default profile.
//!
//! It includes nothing, so that no change on the machine changes it. Policy features are pinned to AppArmor 3.0 where the parser can
//! pin them: a parser or kernel that learns to mediate more must not take away what containers could do before.
//!
//! Source: apparmor.d(5).

use std::path::Path;

use super::{DEFAULT_PROFILE, WORD_BYTES_MAX};
use crate::read;

/// The features that the profile was written for, below AppArmor's directory.
const ABI: &str = "abi/3.0";
/// The daemon's own label.
const OWN_LABEL: [&str; 2] = ["/proc/self/attr/apparmor/current", "/proc/self/attr/current"];
/// Labels under which distributions confine the programs that signal containers for us.
const RUNTIMES: &str = "{,/usr}{,/local}{,/bin/,/sbin/}{crun,runc}";

/// What the text depends on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Machine {
    pub(super) pins_features: bool,
    /// The profile that confines the daemon; its processes signal containers.
    pub(super) daemon: Option<String>,
}

impl Machine {
    pub(super) fn look(config: &Path) -> Self {
        let own = OWN_LABEL.iter().find_map(|path| read::text(Path::new(path), WORD_BYTES_MAX).ok());
        Self { pins_features: config.join(ABI).exists(), daemon: own.as_deref().and_then(confined_by) }
    }
}

/// The profile in a label like `name (enforce)`; none for `unconfined`. A name that would not be one word of a rule is left out.
fn confined_by(label: &str) -> Option<String> {
    let name = label.trim_end_matches(['\0', '\n']).rsplit_once(" (").map(|(name, _)| name)?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    (name != "unconfined" && !name.is_empty() && name.chars().all(plain)).then(|| name.to_owned())
}

/// The profile. Lines in the order: what a container may do, who may signal and trace whom, what stays closed.
pub(super) fn text(machine: &Machine) -> String {
    let abi = if machine.pins_features { format!("abi <{ABI}>,\n\n") } else { String::new() };
    let daemon = machine.daemon.as_ref().map_or_else(String::new, |name| {
        format!("  signal (receive) peer=\"{name}\",\n  ptrace (readby, tracedby) peer=\"{name}\",\n")
    });
    format!(
        "{abi}profile {DEFAULT_PROFILE} flags=(attach_disconnected,mediate_deleted) {{\n\
         \x20 file,\n  network,\n  capability,\n  umount,\n\
         \x20 # From the node, from OCI runtimes that have a profile, and among the processes of containers.\n\
         \x20 signal (receive) peer=unconfined,\n\
         \x20 signal (receive) peer=\"{RUNTIMES}\",\n{daemon}\
         \x20 signal (send, receive) peer={DEFAULT_PROFILE},\n\
         \x20 ptrace (trace, read, tracedby, readby) peer={DEFAULT_PROFILE},\n\
         \x20 # Mounts would show what is closed below under other names.\n\
         \x20 deny mount,\n\
         {CLOSED}}}\n"
    )
}

/// What a container could harm or watch the node with, even as root and with nothing masked.
const CLOSED: &str = "  \
  # Files of /proc that belong to no process: sysrq-trigger, kcore and the like.
  deny /proc/* wkl,
  deny /proc/{kcore,kpagecgroup,kpagecount,kpageflags} r,
  deny /proc/{acpi,asound,bus,driver,dynamic_debug,fs,irq,scsi,sys,tty}/** wkl,
  # All of /sys but the control groups.
  deny /sys/[^f]*/** wkl,
  deny /sys/f[^s]*/** wkl,
  deny /sys/fs/[^c]*/** wkl,
  deny /sys/fs/c[^g]*/** wkl,
  deny /sys/firmware/** r,
  deny /sys/kernel/security/** r,
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_stable_and_balanced() {
        let plain = text(&Machine::default());
        assert!(plain.starts_with("profile crisp-default flags="), "{plain}");
        assert_eq!(plain.matches('{').count(), plain.matches('}').count());
        for line in ["  deny mount,\n", "  file,\n", "  deny /proc/* wkl,\n", "  umount,\n", "  # Files of"] {
            assert!(plain.contains(line), "{line:?} in {plain}");
        }
        assert!(plain.ends_with(",\n}\n"));
        assert!((plain.len() as u64) < WORD_BYTES_MAX * 4);
    }

    #[test]
    fn features_are_pinned_where_the_parser_can() {
        let pinned = text(&Machine { pins_features: true, daemon: None });
        assert!(pinned.starts_with("abi <abi/3.0>,\n\nprofile "));
    }

    #[test]
    fn a_confined_daemon_may_signal() {
        let daemon = confined_by("/usr/bin/crisp (enforce)\n");
        assert_eq!(daemon.as_deref(), Some("/usr/bin/crisp"));
        let text = text(&Machine { pins_features: false, daemon });
        assert!(text.contains("  signal (receive) peer=\"/usr/bin/crisp\",\n"));
        for label in
            ["unconfined\n", "unconfined (unconfined)", "a\", b (enforce)", "", "system_u:system_r:x:s0"]
        {
            assert_eq!(confined_by(label), None, "{label}");
        }
    }
}
