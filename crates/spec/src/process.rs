//! The process: command, directory, environment, and processes beside it.

use oci_spec::runtime::{PosixRlimit, PosixRlimitBuilder, Process, Spec, User};

use crate::error::SpecError;
use crate::input::{ContainerConfig, ContainerInput, ExecRequest, ImageConfig, NewPrivileges, Terminal};
use crate::{capability, resources};

/// Where programs are looked for when nobody says so.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Bytes of one argument or variable with its terminator, the kernel's `MAX_ARG_STRLEN`.
const STRING_BYTES_MAX: usize = 131_072;
/// Bytes of all arguments and variables, the kernel's limit of three quarters of `_STK_LIM`.
const STRINGS_BYTES_MAX: usize = 6 << 20;

pub(crate) fn build(input: &ContainerInput) -> Result<Process, SpecError> {
    let args = effective_command(&input.config, &input.image)?;
    let env = environment(input)?;
    check_strings(&args, &env)?;
    let new_privileges = input.config.security.new_privileges;
    let mut process = Process::default();
    process
        .set_terminal(terminal(input.config.terminal))
        .set_user(user(input))
        .set_args(Some(args))
        .set_env(Some(env))
        .set_cwd(working_dir(&input.config, &input.image)?.into())
        .set_capabilities(Some(capability::sets(input)))
        .set_rlimits(rlimits(input)?)
        // Left out when false: a handler may take "false" for "was set" and load the filter too late.
        .set_no_new_privileges((new_privileges == NewPrivileges::Forbidden).then_some(true))
        .set_apparmor_profile(input.labels.apparmor.clone())
        .set_selinux_label(input.labels.process.clone())
        .set_oom_score_adj(resources::oom_score_adj(&input.config.resources, &input.host)?);
    Ok(process)
}

/// The program and its arguments: of request and image as CRI has it.
///
/// # Errors
/// [`SpecError::NoCommand`] when neither names one.
pub fn effective_command(config: &ContainerConfig, image: &ImageConfig) -> Result<Vec<String>, SpecError> {
    let entrypoint: &[String] = match image.entrypoint.as_slice() {
        [one] if one.is_empty() => &[],
        entrypoint => entrypoint,
    };
    let parts: [&[String]; 2] = match (config.command.is_empty(), config.args.is_empty()) {
        (false, _) => [&config.command, &config.args],
        (true, false) => [entrypoint, &config.args],
        (true, true) => [entrypoint, &image.cmd],
    };
    let command = parts.concat();
    if command.is_empty() { Err(SpecError::NoCommand) } else { Ok(command) }
}

/// Where the process starts: of the request, else of the image, else `/`. Absolute, without `.` and `//`; whoever makes
/// the container creates it inside the root when it is missing.
///
/// # Errors
/// [`SpecError::Field`] for a path with `..` or a control character, and one that goes through a process's
/// descriptors (CVE-2024-21626).
pub fn working_dir(config: &ContainerConfig, image: &ImageConfig) -> Result<String, SpecError> {
    let text = if config.working_dir.is_empty() { &image.working_dir } else { &config.working_dir };
    let refused = |reason| Err(SpecError::field("working directory", text, reason));
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if text.len() >= 4096 || text.chars().any(char::is_control) {
        return refused("too long, or a control character in it");
    }
    if parts.contains(&"..") {
        return refused("`..` in it");
    }
    if matches!(
        parts.as_slice(),
        ["proc", _, "fd" | "fdinfo" | "cwd" | "root" | "task" | "map_files", ..] | ["dev", "fd", ..]
    ) {
        return refused("it goes through the descriptors of a process");
    }
    Ok(format!("/{}", parts.join("/")))
}

/// Names and values in order, each name once: the sandbox's host name, the image's, the request's; later ones win.
fn environment(input: &ContainerInput) -> Result<Vec<String>, SpecError> {
    let mut env = Environment::default();
    if !input.sandbox.hostname.is_empty() {
        env.set("HOSTNAME", &input.sandbox.hostname);
    }
    // The image's entries are content: one that cannot be a variable is not one.
    let entries = input.image.env.iter().filter_map(|entry| entry.split_once('='));
    for (name, value) in entries.filter(|(name, value)| valid_name(name) && !value.contains('\0')) {
        env.set(name, value);
    }
    for (name, value) in &input.config.envs {
        env.set(checked_name(name)?, checked_value(name, value)?);
    }
    env.set_default("PATH", DEFAULT_PATH);
    env.set_default("HOME", &input.user.home);
    if input.config.terminal == Terminal::Allocated {
        env.set_default("TERM", "xterm");
    }
    Ok(env.into_entries())
}

fn valid_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

fn checked_name(name: &str) -> Result<&str, SpecError> {
    if valid_name(name) {
        Ok(name)
    } else {
        Err(SpecError::field("environment variable", name, "not a name"))
    }
}

/// The specification is JSON, which holds UTF-8 only: other bytes cannot reach a process by it.
fn checked_value<'a>(name: &str, value: &'a [u8]) -> Result<&'a str, SpecError> {
    let refused = |reason| SpecError::field("environment variable", name, reason);
    let text = std::str::from_utf8(value).map_err(|_invalid| refused("its value is not UTF-8"))?;
    if text.contains('\0') { Err(refused("its value holds a NUL byte")) } else { Ok(text) }
}

/// Variables in the order in which they were first set.
#[derive(Default)]
struct Environment {
    entries: Vec<(String, String)>,
    at: std::collections::HashMap<String, usize>,
}

impl Environment {
    fn set(&mut self, name: &str, value: &str) {
        match self.at.get(name) {
            Some(at) => self.entries[*at].1 = value.to_string(),
            None => {
                self.at.insert(name.to_string(), self.entries.len());
                self.entries.push((name.to_string(), value.to_string()));
            }
        }
    }

    fn set_default(&mut self, name: &str, value: &str) {
        if !self.at.contains_key(name) {
            self.set(name, value);
        }
    }

    fn into_entries(self) -> Vec<String> {
        self.entries.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
    }
}

/// What execve(2) would refuse with E2BIG, said clearly and early.
fn check_strings(args: &[String], env: &[String]) -> Result<(), SpecError> {
    let all = || {
        args.iter()
            .map(|text| ("argument", text))
            .chain(env.iter().map(|text| ("environment variable", text)))
    };
    if let Some((field, text)) = all().find(|(_, text)| text.contains('\0')) {
        return Err(SpecError::field(field, text, "it holds a NUL byte"));
    }
    if let Some((field, text)) = all().find(|(_, text)| text.len() >= STRING_BYTES_MAX) {
        return Err(SpecError::field(field, text, "longer than the kernel takes (128 KiB)"));
    }
    let total: usize = all().map(|(_, text)| text.len() + 1).sum();
    if total > STRINGS_BYTES_MAX {
        return Err(SpecError::TooMany {
            what: "bytes of arguments and environment",
            max: STRINGS_BYTES_MAX,
        });
    }
    Ok(())
}

fn user(input: &ContainerInput) -> User {
    let mut user = User::default();
    user.set_uid(input.user.uid).set_gid(input.user.gid).set_additional_gids(
        (!input.user.additional_gids.is_empty()).then(|| input.user.additional_gids.clone()),
    );
    user
}

fn rlimits(input: &ContainerInput) -> Result<Option<Vec<PosixRlimit>>, SpecError> {
    let limits = input.rlimits.iter().map(|limit| {
        let built = PosixRlimitBuilder::default().typ(limit.kind).soft(limit.soft).hard(limit.hard).build();
        built.map_err(|_incomplete| SpecError::Unsupported("this resource limit"))
    });
    if input.rlimits.is_empty() { Ok(None) } else { limits.collect::<Result<_, _>>().map(Some) }
}

fn terminal(terminal: Terminal) -> Option<bool> {
    Some(terminal == Terminal::Allocated)
}

/// The process to run beside a container's init: user, groups, capabilities, environment, directory and confinement of the
/// container, another command.
///
/// # Errors
/// [`SpecError::NoCommand`] for an empty command, [`SpecError::Field`] for one that execve would refuse.
pub fn exec_process(container: &Spec, request: &ExecRequest) -> Result<Process, SpecError> {
    if request.command.is_empty() {
        return Err(SpecError::NoCommand);
    }
    let mut process = container.process().clone().unwrap_or_default();
    let mut env = process.env().clone().unwrap_or_default();
    if request.terminal == Terminal::Allocated && !env.iter().any(|entry| entry.starts_with("TERM=")) {
        env.push("TERM=xterm".into());
    }
    check_strings(&request.command, &env)?;
    process
        .set_args(Some(request.command.clone()))
        .set_env(Some(env))
        .set_terminal(terminal(request.terminal));
    Ok(process)
}
