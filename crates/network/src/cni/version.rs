//! Which version of the specification a configuration's plugins are spoken to in.
//!
//! A configuration that names one version means that one. Of several, the newest that we and every plugin speak is
//! taken; plugins are asked with VERSION, once for each program file.
//!
//! Source: CNI specification 1.1, section "Version considerations" and the VERSION command.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use super::conf::{PluginList, Source, Version, plugin_type};
use super::invoke::Runner;
use crate::Result;

/// How long one plugin may take to tell its versions.
const VERSION_TIME_MAX: Duration = Duration::from_secs(10);

/// What plugins said that they speak, by program file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Spoken {
    known: Arc<Mutex<Known>>,
}

type Known = HashMap<PathBuf, (Stamp, Vec<Version>)>;

/// Tells one program file from another of the same name: device, inode, size in bytes, modification in nanoseconds.
type Stamp = (u64, u64, u64, i64);

impl Spoken {
    /// The configuration with its version chosen.
    ///
    /// # Errors
    /// [`crate::NetworkError::CniConfig`] when there is none that all speak. A plugin that does not answer is not counted: its
    /// ADD will tell.
    pub(crate) fn settle(&self, source: &Source, runner: &Runner) -> Result<Source> {
        let mut list = source.list.clone();
        if list.offered.len() > 1 {
            list.version = self.newest(&list, runner).map_err(|reason| source.wrong(reason))?;
        }
        Ok(Source { path: source.path.clone(), list })
    }

    fn newest(&self, list: &PluginList, runner: &Runner) -> Result<Version, String> {
        let mut left = list.offered.clone();
        for plugin in list.plugins.iter().map(plugin_type) {
            let Some(spoken) = self.of(plugin, runner) else { continue };
            left.retain(|version| spoken.contains(version));
            if left.is_empty() {
                let names = |all: &[Version]| all.iter().map(|v| v.as_str()).collect::<Vec<_>>().join(", ");
                return Err(format!(
                    "it offers versions {}, but plugin {plugin:?} speaks {} and the ones before it need others",
                    names(&list.offered),
                    names(&spoken)
                ));
            }
        }
        left.pop().ok_or_else(|| "no version is left".to_owned())
    }

    fn of(&self, plugin: &str, runner: &Runner) -> Option<Vec<Version>> {
        let program = runner.find(plugin)?;
        let stamp = stamp(&program)?;
        let known = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, versions)) = known().get(&program)
            && *of == stamp
        {
            return Some(versions.clone());
        }
        let request = json!({"cniVersion": Version::NEWEST.as_str()});
        let answer = match runner.within(VERSION_TIME_MAX).call(plugin, "VERSION", &request, Vec::new()) {
            Ok(answer) => answer,
            Err(error) => {
                tracing::warn!(plugin, %error, "a CNI plugin does not tell its versions");
                return None;
            }
        };
        let versions = supported(&answer);
        if versions.is_empty() {
            tracing::warn!(plugin, %answer, "a CNI plugin speaks no version that is spoken here, or does not tell");
            return None;
        }
        known().insert(program, (stamp, versions.clone()));
        Some(versions)
    }
}

fn supported(answer: &Value) -> Vec<Version> {
    let listed = answer.get("supportedVersions").and_then(Value::as_array);
    listed.into_iter().flatten().filter_map(Value::as_str).filter_map(Version::parse).collect()
}

fn stamp(program: &Path) -> Option<Stamp> {
    let found = std::fs::metadata(program).ok()?;
    Some((found.dev(), found.ino(), found.size(), found.mtime() * 1_000_000_000 + found.mtime_nsec()))
}
