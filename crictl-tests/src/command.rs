//! Programs that the tests call.
use std::process::{Command, Output};

use anyhow::{Context as _, Result, bail};

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

/// What the program printed on stdout.
///
/// # Errors
/// As [`run`].
pub fn output(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&run(command)?.stdout).into_owned())
}
