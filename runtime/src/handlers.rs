//! What each handler can do, found out once at the start: by what it says of itself, never by its name alone.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crisp_snapshot::{LayerStore, MappedIds, Rootfs};
use crisp_sys::userns::{IdMap, with_mapping};
use serde::Deserialize;

use crate::config::Handler;
use crate::container::views;

/// How long a program may take to tell its features.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Longest answer.
const ANSWER_BYTES_MAX: u64 = 1 << 20;
/// The first crun that binds devices in a user namespace it joins; it tells its features only since 1.9.
const CRUN_SINCE: (u32, u32) = (1, 0);

/// By handler name.
#[derive(Debug, Default)]
pub(crate) struct Features(BTreeMap<String, bool>);

impl Features {
    /// Asks the handlers. Blocks; a program that hangs is given up after [`ANSWER_MAX`].
    pub(crate) fn probe(handlers: &BTreeMap<String, Handler>, layers: &LayerStore, scratch: &Path) -> Self {
        let machine = maps_root_filesystems(layers, scratch);
        let of = |handler: &Handler| {
            machine
                && match handler {
                    Handler::Builtin => true,
                    Handler::Oci(program) => enters_user_namespaces(&program.path),
                }
        };
        Self(handlers.iter().map(|(name, handler)| (name.clone(), of(handler))).collect())
    }

    /// Whether pods of this handler may have a user namespace.
    pub(crate) fn user_namespaces(&self, name: &str) -> bool {
        self.0.get(name).copied().unwrap_or(false)
    }
}

/// Makes a root filesystem as one in a user namespace has it, on the very file systems: kernels before 5.19 and some file systems
/// cannot.
fn maps_root_filesystems(layers: &LayerStore, scratch: &Path) -> bool {
    let dir = scratch.join("probe");
    let attempt = || -> Result<(), Box<dyn std::error::Error>> {
        let userns = with_mapping(&IdMap::shifted(65_536, 65_536))?;
        // As a daemon that was killed here left it.
        views::release(&dir)?;
        crisp_store::ensure_dir(&dir)?;
        let ids = MappedIds { userns: userns.as_fd(), scratch: &dir };
        Rootfs::mount_read_only_for(layers, &[], &dir.join("rootfs"), Some(ids))?;
        Ok(views::release(&dir)?)
    };
    attempt()
        .inspect_err(|error| tracing::info!(error = %crate::error::chain(error.as_ref()), "no user namespaces for pods"))
        .is_ok()
}

/// `features` prints what the OCI runtime specification calls the features structure.
#[derive(Debug, Deserialize)]
struct Answer {
    linux: Option<LinuxAnswer>,
}

#[derive(Debug, Deserialize)]
struct LinuxAnswer {
    #[serde(default)]
    namespaces: Vec<String>,
}

fn enters_user_namespaces(program: &Path) -> bool {
    if let Some(text) = ask(program, "features", ANSWER_MAX) {
        return says_user(&text);
    }
    ask(program, "--version", ANSWER_MAX).is_some_and(|text| crun_version(&text) >= Some(CRUN_SINCE))
}

fn says_user(text: &str) -> bool {
    let answer = serde_json::from_str::<Answer>(text).ok().and_then(|answer| answer.linux);
    answer.is_some_and(|linux| linux.namespaces.iter().any(|name| name == "user"))
}

/// The first line of crun's `--version`: `crun version 1.8.1`.
fn crun_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.lines().next()?.strip_prefix("crun version ")?.split(['.', '-', '+']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// What the program prints when it ends well; one that says nothing for `limit` is killed.
fn ask(program: &Path, argument: &str, limit: Duration) -> Option<String> {
    let mut child = Command::new(program)
        .arg(argument)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    let stdout = child.stdout.take()?;
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut text = String::new();
        let read = stdout.take(ANSWER_BYTES_MAX).read_to_string(&mut text);
        let _nobody_waits = tell.send(read.map(|_bytes| text));
    });
    let text = told.recv_timeout(limit);
    if text.is_err() {
        tracing::warn!(program = %program.display(), argument, "the program does not answer");
        let _gone = child.kill();
    }
    // It has closed its output or was killed: it ends.
    let ended_well = child.wait().is_ok_and(|status| status.success());
    text.ok()?.ok().filter(|_| ended_well)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_programs_say_is_understood() {
        assert!(says_user(r#"{"linux": {"namespaces": ["pid", "user"]}}"#));
        for text in ["", "{}", r#"{"linux": {}}"#, r#"{"linux": {"namespaces": ["pid"]}}"#] {
            assert!(!says_user(text), "{text}");
        }
        assert_eq!(crun_version("crun version 1.8.1\ncommit: x\n"), Some((1, 8)));
        assert_eq!(crun_version("crun version UNKNOWN"), None);
        assert_eq!(crun_version("runc version 1.1.5+ds1"), None);
    }

    #[test]
    fn a_program_is_asked_and_may_fail() {
        let patience = Duration::from_secs(60);
        assert_eq!(ask(Path::new("/bin/echo"), "hello", patience).as_deref(), Some("hello\n"));
        assert_eq!(ask(Path::new("/bin/false"), "features", patience), None);
        assert_eq!(ask(Path::new("/no/such/program"), "features", patience), None);
        assert_eq!(ask(Path::new("/bin/sleep"), "1000", Duration::from_millis(1)), None);
    }
}
