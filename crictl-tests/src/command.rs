//! Programs that the tests call.
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use crate::eventually::pause;

/// Tries of what fetches from the network.
const FETCHES_MAX: u32 = 4;
/// Between two of them.
const FETCH_PAUSE: Duration = Duration::from_secs(15);

/// Runs the program; its output is shown only in the error.
///
/// # Errors
/// When it cannot be started or ends with another code than 0.
pub fn run(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("start {command:?}"))?;
    if !output.status.success() {
        bail!(
            "{command:?}: {}\n{}{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(output)
}

/// Runs a program that fetches from the network: what fails there for a moment, or holds a lock, is asked again.
///
/// # Errors
/// The last error of [`run`], after [`FETCHES_MAX`] tries.
pub fn fetch(command: &mut Command) -> Result<Output> {
    for number in 1..FETCHES_MAX {
        match run(command) {
            Ok(output) => return Ok(output),
            Err(error) => crate::say!("try {number} of {FETCHES_MAX}: {error:#}"),
        }
        pause(FETCH_PAUSE);
    }
    run(command)
}

/// What the program printed on stdout.
///
/// # Errors
/// As [`run`].
pub fn output(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&run(command)?.stdout).into_owned())
}
