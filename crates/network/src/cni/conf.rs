//! The node's CNI configuration: the first file in lexical order.
//!
//! Readiness is a function of what the directory holds now: it is read at each question, which costs tens of
//! microseconds, so a replaced, removed or symlinked directory needs no watch and no restart.
//!
//! Source: CNI specification 1.1, section 1 "Network configuration format".

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::{NetworkError, Result};

/// A configuration file, in bytes.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Plugins of one network.
const PLUGINS_MAX: usize = 64;

/// Versions of the specification spoken here, old to new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    V0_3_0,
    V0_3_1,
    V0_4_0,
    V1_0_0,
    V1_1_0,
}

impl Version {
    const ALL: [(Self, &str); 5] = [
        (Self::V0_3_0, "0.3.0"),
        (Self::V0_3_1, "0.3.1"),
        (Self::V0_4_0, "0.4.0"),
        (Self::V1_0_0, "1.0.0"),
        (Self::V1_1_0, "1.1.0"),
    ];

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, name)| *name == text).map(|(version, _)| *version)
    }

    pub(crate) fn as_str(self) -> &'static str {
        Self::ALL.iter().find(|(version, _)| *version == self).map_or("", |(_, name)| name)
    }
}

/// A chain of plugins under one name.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PluginList {
    pub(crate) version: Version,
    pub(crate) name: String,
    pub(crate) disable_gc: bool,
    /// Each has a `type` that is a plain file name.
    pub(crate) plugins: Vec<Map<String, Value>>,
}

impl PluginList {
    /// Reads a list, or a single plugin as a list of one. `text`: JSON of the file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse(text: &str) -> std::result::Result<Self, String> {
        let value: Value = serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))?;
        Self::from_value(value)
    }

    /// As [`Self::parse`], of JSON that was read already.
    pub(crate) fn from_value(value: Value) -> std::result::Result<Self, String> {
        let Value::Object(mut object) = value else { return Err("not a JSON object".into()) };
        let name = object.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        check_name(&name)?;
        let version = version(&object)?;
        let disable_gc = object.get("disableGC").and_then(Value::as_bool).unwrap_or(false);
        let plugins = match object.remove("plugins") {
            Some(Value::Array(list)) => {
                list.into_iter().map(plugin).collect::<std::result::Result<Vec<_>, _>>()?
            }
            Some(_) => return Err("plugins is not a list".into()),
            None => vec![plugin(Value::Object(object))?],
        };
        if plugins.is_empty() || plugins.len() > PLUGINS_MAX {
            return Err(format!("{} plugins; 1 to {PLUGINS_MAX} are possible", plugins.len()));
        }
        Ok(Self { version, name, disable_gc, plugins })
    }

    /// Does a plugin declare that it leads host ports to pods?
    pub(crate) fn publishes_ports(&self) -> bool {
        let declares =
            |plugin: &Map<String, Value>| plugin.get("capabilities")?.get("portMappings")?.as_bool();
        self.plugins.iter().any(|plugin| declares(plugin) == Some(true))
    }

    /// The list as JSON, for a record.
    pub(crate) fn to_value(&self) -> Value {
        serde_json::json!({
            "cniVersion": self.version.as_str(),
            "name": self.name,
            "disableGC": self.disable_gc,
            "plugins": self.plugins,
        })
    }
}

/// The `type` of a plugin.
pub(crate) fn plugin_type(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn plugin(value: Value) -> std::result::Result<Map<String, Value>, String> {
    let Value::Object(plugin) = value else { return Err("a plugin is not a JSON object".into()) };
    let kind = plugin_type(&plugin);
    if kind.is_empty() || kind.contains(['/', '\0']) || matches!(kind, "." | "..") {
        return Err(format!("plugin type {kind:?} is not a file name"));
    }
    Ok(plugin)
}

fn check_name(name: &str) -> std::result::Result<(), String> {
    let sound = name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if sound { Ok(()) } else { Err(format!("network name {name:?} is not of a-z, A-Z, 0-9, '_', '.', '-'")) }
}

/// `cniVersion`, or the newest of `cniVersions` that is spoken here.
fn version(object: &Map<String, Value>) -> std::result::Result<Version, String> {
    let listed = object.get("cniVersions").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let all = listed.iter().chain(object.get("cniVersion")).filter_map(Value::as_str);
    let names: Vec<&str> = all.collect();
    names.iter().filter_map(|name| Version::parse(name)).max().ok_or_else(|| match names.as_slice() {
        [] => "cniVersion is missing".to_owned(),
        _ => {
            format!("cniVersion {} is not supported: 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0 are", names.join(", "))
        }
    })
}

/// The configuration in use, or `None` when the directory holds none or does not exist.
///
/// # Errors
/// [`NetworkError::CniConfig`]: the first file is wrong. A later one is not used instead: it would put pods into another
/// network than the one that is meant.
pub(crate) fn load(dir: &Path) -> Result<Option<(PathBuf, PluginList)>> {
    let Some(path) = first_file(dir)? else { return Ok(None) };
    let wrong = |reason| NetworkError::CniConfig { path: path.clone(), reason };
    let list = read(&path).and_then(|text| PluginList::parse(&text)).map_err(wrong)?;
    Ok(Some((path, list)))
}

fn read(path: &Path) -> std::result::Result<String, String> {
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    let mut text = String::new();
    file.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text).map_err(|e| e.to_string())?;
    if text.len() as u64 > CONFIG_BYTES_MAX {
        return Err(format!("larger than {CONFIG_BYTES_MAX} bytes"));
    }
    Ok(text)
}

fn first_file(dir: &Path) -> Result<Option<PathBuf>> {
    let wrong = |e: std::io::Error| NetworkError::CniConfig { path: dir.to_owned(), reason: e.to_string() };
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        entries => entries.map_err(wrong)?,
    };
    let mut first: Option<PathBuf> = None;
    for entry in entries {
        let path = entry.map_err(wrong)?.path();
        if is_config(&path) && first.as_ref().is_none_or(|f| path < *f) {
            first = Some(path);
        }
    }
    Ok(first)
}

/// Hidden files are what editors and copying programs leave or are about to rename.
fn is_config(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str());
    let hidden = path.file_name().and_then(|n| n.to_str()).is_none_or(|name| name.starts_with('.'));
    matches!(extension, Some("conflist" | "conf" | "json")) && !hidden && !path.is_dir()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_single_plugins_are_read() {
        let list = r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge"},{"type":"portmap"}]}"#;
        let list = PluginList::parse(list).unwrap();
        assert_eq!((list.version, list.plugins.len()), (Version::V1_0_0, 2));
        assert_eq!(PluginList::from_value(list.to_value()).unwrap(), list);
        let single = PluginList::parse(r#"{"cniVersion":"0.3.1","name":"n","type":"ptp","mtu":9}"#).unwrap();
        assert_eq!((plugin_type(&single.plugins[0]), &single.plugins[0]["mtu"]), ("ptp", &Value::from(9)));
        let newest =
            r#"{"cniVersion":"0.4.0","cniVersions":["1.0.0","9.0.0","1.1.0"],"name":"n","type":"x"}"#;
        assert_eq!(PluginList::parse(newest).unwrap().version, Version::V1_1_0);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let cases = [
            ("{", "not JSON"),
            ("[]", "not a JSON object"),
            (r#"{"name":"n","type":"x"}"#, "cniVersion is missing"),
            (r#"{"cniVersion":"0.2.0","name":"n","type":"x"}"#, "0.2.0 is not supported"),
            (r#"{"cniVersion":"1.0.0","type":"x"}"#, "network name"),
            (r#"{"cniVersion":"1.0.0","name":"../n","type":"x"}"#, "network name"),
            (r#"{"cniVersion":"1.0.0","name":"n","type":"../../bin/sh"}"#, "not a file name"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[]}"#, "0 plugins"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{}]}"#, "not a file name"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":{}}"#, "not a list"),
        ];
        for (text, reason) in cases {
            let said = PluginList::parse(text).unwrap_err();
            assert!(said.contains(reason), "{text}: {said}");
        }
    }

    #[test]
    fn the_first_file_counts_and_a_broken_one_is_not_skipped() {
        let dir = tempfile::tempdir().unwrap();
        assert!(load(dir.path()).unwrap().is_none());
        assert!(load(&dir.path().join("absent")).unwrap().is_none());
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let network = |name: &str| format!(r#"{{"cniVersion":"1.0.0","name":"{name}","type":"x"}}"#);
        put("99.txt", "no");
        put(".00.conf", "no");
        put("20-b.conf", &network("b"));
        put("10-a.conflist", &network("a"));
        put("30-c.json", &network("c"));
        assert_eq!(load(dir.path()).unwrap().unwrap().1.name, "a");
        put("05-broken.conf", "{");
        let e = load(dir.path()).unwrap_err().to_string();
        assert!(e.contains("05-broken.conf"), "{e}");
        put("05-broken.conf", &" ".repeat(usize::try_from(CONFIG_BYTES_MAX).unwrap() + 1));
        assert!(load(dir.path()).unwrap_err().to_string().contains("larger"));
    }
}
