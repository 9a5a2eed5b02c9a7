//! `crisp check`: can this machine run pods? One line per thing, and what to do where it cannot.
//!
//! Reading is apart from judging: each judge is a function over values, tested with those of other machines.

mod kernel;
mod network;
mod node;

use std::path::Path;
use std::process::ExitCode;

use crate::cli::error::Result;
use crate::cli::output;
use crate::config::{Config, Overrides};

/// What a line says of a thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Ok,
    /// It works, with less.
    Warn,
    /// Pods cannot run.
    Fail,
}

/// A line.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Finding {
    level: Level,
    /// The thing, in a word or two.
    thing: &'static str,
    /// What was found, and what to do.
    says: String,
}

impl Finding {
    fn ok(thing: &'static str, says: impl Into<String>) -> Self {
        Self { level: Level::Ok, thing, says: says.into() }
    }

    fn warn(thing: &'static str, says: impl Into<String>) -> Self {
        Self { level: Level::Warn, thing, says: says.into() }
    }

    fn fail(thing: &'static str, says: impl Into<String>) -> Self {
        Self { level: Level::Fail, thing, says: says.into() }
    }

    fn line(&self) -> String {
        let level = match self.level {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "FAIL",
        };
        format!("{level:4}  {:18}  {}", self.thing, self.says)
    }
}

/// Looks, prints, and fails when something required is missing.
///
/// # Errors
/// When the lines cannot be printed.
pub(crate) fn check(config_file: Option<&Path>, address: &Path) -> Result<ExitCode> {
    let mut findings = Vec::new();
    let mut tell = |finding: Finding| {
        let printed = output::line(&finding.line());
        findings.push(finding.level);
        printed
    };
    let config = match Config::load(config_file, &Overrides::default()) {
        Ok(config) => {
            tell(Finding::ok("configuration", node::config_source(config_file)))?;
            config
        }
        Err(error) => {
            tell(Finding::fail("configuration", crate::error::chain(&error)))?;
            built_in()?
        }
    };
    kernel::look().into_iter().try_for_each(&mut tell)?;
    network::look(&config).into_iter().try_for_each(&mut tell)?;
    node::look(&config, address).into_iter().try_for_each(&mut tell)?;
    let failed = findings.iter().filter(|level| **level == Level::Fail).count();
    if failed == 0 {
        output::err_line("crisp: this machine can run pods")?;
        return Ok(ExitCode::SUCCESS);
    }
    let plural = if failed == 1 { "thing keeps" } else { "things keep" };
    output::err_line(&format!("crisp: {failed} {plural} this machine from running pods"))?;
    Ok(ExitCode::FAILURE)
}

/// The defaults, so that the other lines are told although the file is wrong.
fn built_in() -> Result<Config> {
    Ok(Config::parse(Path::new("defaults"), "", &Overrides::default(), &|path| path.is_file())?)
}
