//! The hooks that come after a container's program was executed, and after the container was deleted. Those before are run by the
//! launcher and by init; an OCI runtime binary runs all of its own.
//!
//! Each gets the container's state on stdin, and a limited time.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use crisp_proto::supervisor as pb;
use crisp_sys::clone::SingleThreaded;
use oci_spec::runtime::Hook;
use rustix::fs::MemfdFlags;
use serde_json::{Value, json};

use crate::command::{self, Command};
use crate::container::{Asker, Purpose};
use crate::error::{Error, Result, Step as _, chain};
use crate::server::Server;

/// Longest `config.json`.
const CONFIG_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// How long a hook may take that does not say.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// How long it may take at most: a start is answered within two minutes.
const TIMEOUT_MAX: Duration = Duration::from_secs(60);
/// Version of the state that hooks are told.
const STATE_VERSION: &str = "1.0.2";

/// The late hooks of a container, with what is told to them.
#[derive(Debug, Default)]
pub(crate) struct Hooks {
    pub(crate) poststart: VecDeque<Hook>,
    pub(crate) poststop: VecDeque<Hook>,
    annotations: Value,
}

impl Hooks {
    /// Reads them from the specification in a bundle. Most have none, and are not even parsed.
    pub(crate) fn of(bundle: &Path) -> Result<Self> {
        let path = bundle.join("config.json");
        let step = || format!("read {}", path.display());
        let mut text = Vec::new();
        File::open(&path).step(step)?.take(CONFIG_BYTES_MAX).read_to_end(&mut text).step(step)?;
        if !["\"poststart\"", "\"poststop\""]
            .iter()
            .any(|name| memchr::memmem::find(&text, name.as_bytes()).is_some())
        {
            return Ok(Self::default());
        }
        let invalid = |error: serde_json::Error| Error::Invalid(format!("{}: {error}", path.display()));
        let mut spec: Value = serde_json::from_slice(&text).map_err(invalid)?;
        let mut list = |name: &str| match spec.pointer_mut(name).map(Value::take) {
            None | Some(Value::Null) => Ok(VecDeque::new()),
            Some(list) => serde_json::from_value(list).map_err(invalid),
        };
        let (poststart, poststop) = (list("/hooks/poststart")?, list("/hooks/poststop")?);
        Ok(Self { poststart, poststop, annotations: spec["annotations"].take() })
    }

    /// The state of the specification (section "State"). `pid`: while it runs.
    fn state(&self, order: &pb::CreateContainer, pid: Option<i32>) -> String {
        let status = if pid.is_some() { "running" } else { "stopped" };
        let mut state = json!({
            "ociVersion": STATE_VERSION, "id": order.container_id, "status": status, "bundle": order.bundle,
        });
        if let Some(pid) = pid {
            state["pid"] = pid.into();
        }
        if self.annotations.is_object() {
            state["annotations"] = self.annotations.clone();
        }
        state.to_string()
    }
}

/// Begins one hook.
fn begin(single: SingleThreaded, hook: &Hook, state: &str, state_dir: &Path) -> Result<Command> {
    let path = hook.path().to_string_lossy().into_owned();
    if !hook.path().is_absolute() {
        return Err(Error::Invalid(format!("the hook {path} is no absolute path")));
    }
    let args = hook.args().clone().filter(|args| !args.is_empty()).unwrap_or_else(|| vec![path.clone()]);
    Command::start(
        single,
        command::Order {
            program: Some(path),
            args,
            env: Some(hook.env().clone().unwrap_or_default()),
            stdio: Some([memory_file(state)?, command::null()?, command::null()?]),
            // Not there: a hook has no log, and its output goes nowhere.
            log: state_dir.join("hook.log"),
            pid_file: None,
            console: None,
        },
    )
}

fn memory_file(text: &str) -> Result<OwnedFd> {
    let step = || "write the state for a hook";
    let mut file = File::from(rustix::fs::memfd_create("state", MemfdFlags::CLOEXEC).step(step)?);
    file.write_all(text.as_bytes()).step(step)?;
    file.rewind().step(step)?;
    Ok(file.into())
}

fn timeout(hook: &Hook) -> Duration {
    let seconds =
        hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()).filter(|&seconds| seconds > 0);
    seconds.map_or(TIMEOUT_DEFAULT, Duration::from_secs).min(TIMEOUT_MAX)
}

impl Server {
    /// Runs the next hook after the start; without one left the start is answered.
    pub(crate) fn poststart(&mut self, key: u32, asker: Asker) {
        let container = self.containers.get_mut(&key);
        let next = container.and_then(|container| Some((container.hooks.poststart.pop_front()?, container)));
        let Some((hook, container)) = next else {
            return self.reply(asker, Ok(pb::reply::Result::Done(pb::Done {})), None);
        };
        let pid = container.init.as_ref().map(|init| init.pid);
        let state = container.hooks.state(&container.order, pid);
        match begin(self.single, &hook, &state, container.state_dir()) {
            Ok(command) => self.run_command(command, Purpose::Poststart { key, asker }, timeout(&hook)),
            Err(error) => self.poststart_ended(key, asker, Err(error)),
        }
    }

    /// A hook that fails fails the start, and the container does not go on (runtime specification 1.2, "Lifecycle", step 9).
    pub(crate) fn poststart_ended(&mut self, key: u32, asker: Asker, outcome: Result<()>) {
        match outcome {
            Ok(()) => self.poststart(key, asker),
            Err(error) => {
                self.kill_init(key);
                self.reply(asker, Err(Error::Said(format!("a poststart hook: {}", chain(&error)))), None);
            }
        }
    }

    /// Begins the next hook after the end; `false` when none is left.
    pub(crate) fn poststop(&mut self, key: u32) -> bool {
        loop {
            let Some(container) = self.containers.get_mut(&key) else { return false };
            let Some(hook) = container.hooks.poststop.pop_front() else { return false };
            let state = container.hooks.state(&container.order, None);
            match begin(self.single, &hook, &state, container.state_dir()) {
                Ok(command) => {
                    self.run_command(command, Purpose::Poststop(key), timeout(&hook));
                    return true;
                }
                Err(error) => self.note(&format!("a poststop hook: {}", chain(&error))),
            }
        }
    }

    /// A hook that fails is told, and the others run all the same.
    pub(crate) fn poststop_ended(&mut self, key: u32, outcome: Result<()>) {
        if let Err(error) = outcome {
            self.note(&format!("a poststop hook: {}", chain(&error)));
        }
        self.forget(key);
    }
}
