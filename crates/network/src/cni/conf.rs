//! The node's CNI configuration: the first files in lexical order, as many as networks are wanted.
//!
//! ```text
//! <conf dir>/10-net.conflist        a list of plugins under one name
//! <conf dir>/<name>/*.conf          more plugins of that list, unless it says `loadOnlyInlinedPlugins`
//! <conf dir>/20-other.conf          a single plugin, the older form
//! ```
//! Readiness is a function of what the directory holds now: it is read at each question, which costs tens of
//! microseconds, so a replaced, removed or symlinked directory needs no watch and no restart.
//!
//! Source: CNI specification 1.1, section 1 "Network configuration format".

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::{NetworkError, Result};

/// A configuration file, in bytes.
pub(crate) const CONFIG_BYTES_MAX: u64 = 1 << 20;
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
    pub(crate) const NEWEST: Self = Self::V1_1_0;
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

/// What a list can switch off, or is too old for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Check,
    Gc,
    Status,
}

/// A chain of plugins under one name.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PluginList {
    /// In which plugins are spoken to: the newest of `offered`, until the plugins were asked.
    pub(crate) version: Version,
    /// What the configuration offers and we speak, old to new; never empty.
    pub(crate) offered: Vec<Version>,
    pub(crate) name: String,
    disabled: Vec<Verb>,
    /// Each has a `type` that is a plain file name.
    pub(crate) plugins: Vec<Map<String, Value>>,
}

impl PluginList {
    /// Takes a list, or a single plugin as a list of one. `folder` gives the plugins that lie in a folder of the list's
    /// name; it is not called when the list does not want them.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn from_value(
        value: Value,
        folder: impl FnOnce(&str) -> Result<Vec<Value>, String>,
    ) -> Result<Self, String> {
        let Value::Object(mut object) = value else { return Err("not a JSON object".into()) };
        let name = object.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        check_name(&name)?;
        let offered = offered(&object)?;
        let version = *offered.last().ok_or("cniVersion is missing")?;
        let disabled = disabled(&object)?;
        let inlined_only = switch(&object, "loadOnlyInlinedPlugins")?;
        let plugins = match object.remove("plugins") {
            None if object.contains_key("type") => vec![Value::Object(object)],
            None if inlined_only => return Err("loadOnlyInlinedPlugins without plugins".into()),
            None => folder(&name)?,
            Some(Value::Array(inlined)) if inlined_only => inlined,
            Some(Value::Array(inlined)) => inlined.into_iter().chain(folder(&name)?).collect(),
            Some(_) => return Err("plugins is not a list".into()),
        };
        if plugins.is_empty() || plugins.len() > PLUGINS_MAX {
            return Err(format!("{} plugins; 1 to {PLUGINS_MAX} are possible", plugins.len()));
        }
        let plugins = plugins.into_iter().map(plugin).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { version, offered, name, disabled, plugins })
    }

    /// Does a plugin declare that it leads host ports to pods?
    pub(crate) fn publishes_ports(&self) -> bool {
        let declares =
            |plugin: &Map<String, Value>| plugin.get("capabilities")?.get("portMappings")?.as_bool();
        self.plugins.iter().any(|plugin| declares(plugin) == Some(true))
    }

    /// Does the version have the verb, and does the configuration not forbid it?
    pub(crate) fn allows(&self, verb: Verb) -> bool {
        let since = match verb {
            Verb::Check => Version::V0_4_0,
            Verb::Gc | Verb::Status => Version::V1_1_0,
        };
        self.version >= since && !self.disabled.contains(&verb)
    }

    /// The list as JSON, for a record: self-contained, and in the version that was chosen.
    pub(crate) fn to_value(&self) -> Value {
        serde_json::json!({
            "cniVersion": self.version.as_str(),
            "name": self.name,
            "disableCheck": self.disabled.contains(&Verb::Check),
            "disableGC": self.disabled.contains(&Verb::Gc),
            "loadOnlyInlinedPlugins": true,
            "plugins": self.plugins,
        })
    }
}

/// A list and the file it comes from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    pub(crate) list: PluginList,
}

impl Source {
    pub(crate) fn wrong(&self, reason: String) -> NetworkError {
        NetworkError::CniConfig { path: self.path.clone(), reason }
    }
}

/// The `type` of a plugin.
pub(crate) fn plugin_type(plugin: &Map<String, Value>) -> &str {
    plugin.get("type").and_then(Value::as_str).unwrap_or_default()
}

fn plugin(value: Value) -> Result<Map<String, Value>, String> {
    let Value::Object(plugin) = value else { return Err("a plugin is not a JSON object".into()) };
    let kind = plugin_type(&plugin);
    if kind.is_empty() || kind.contains(['/', '\0']) || matches!(kind, "." | "..") {
        return Err(format!("plugin type {kind:?} is not a file name"));
    }
    Ok(plugin)
}

fn check_name(name: &str) -> Result<(), String> {
    let sound = name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if sound { Ok(()) } else { Err(format!("network name {name:?} is not of a-z, A-Z, 0-9, '_', '.', '-'")) }
}

/// `cniVersion` and `cniVersions`, as far as they are spoken here, old to new.
fn offered(object: &Map<String, Value>) -> Result<Vec<Version>, String> {
    let listed = object.get("cniVersions").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let names: Vec<&str> = listed.iter().chain(object.get("cniVersion")).filter_map(Value::as_str).collect();
    let mut spoken: Vec<Version> = names.iter().filter_map(|name| Version::parse(name)).collect();
    spoken.sort_unstable();
    spoken.dedup();
    match names.as_slice() {
        [] => Err("cniVersion is missing".to_owned()),
        names if spoken.is_empty() => {
            let all = Version::ALL.map(|(_, name)| name).join(", ");
            Err(format!("cniVersion {} is not supported: {all} are", names.join(", ")))
        }
        _ => Ok(spoken),
    }
}

fn disabled(object: &Map<String, Value>) -> Result<Vec<Verb>, String> {
    let mut disabled = Vec::new();
    for (key, verb) in [("disableCheck", Verb::Check), ("disableGC", Verb::Gc)] {
        if switch(object, key)? {
            disabled.push(verb);
        }
    }
    Ok(disabled)
}

/// A truth value; the specification's own library takes the words as well.
fn switch(object: &Map<String, Value>, key: &str) -> Result<bool, String> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(on)) => Ok(*on),
        Some(Value::String(word)) if word.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(word)) if word.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(format!("{key} is {other}, neither true nor false")),
    }
}

/// The configurations in use, at most `networks_max`: none when the directory holds none or does not exist.
///
/// # Errors
/// [`NetworkError::CniConfig`]: one of the first files is wrong. A later one is not used instead: it would put pods into
/// another network than the one that is meant.
pub(crate) fn load(dir: &Path, networks_max: usize) -> Result<Vec<Source>> {
    let load = |path: PathBuf| match read_list(&path) {
        Ok(list) => Ok(Source { path, list }),
        Err(reason) => Err(NetworkError::CniConfig { path, reason }),
    };
    files(dir)?.into_iter().take(networks_max).map(load).collect()
}

/// Reads the list in one file, with the plugins in its folder.
pub(super) fn read_list(path: &Path) -> Result<PluginList, String> {
    let folder = |name: &str| match path.parent() {
        Some(dir) => folder_plugins(&dir.join(name)),
        None => Ok(Vec::new()),
    };
    PluginList::from_value(read_json(path)?, folder)
}

fn folder_plugins(dir: &Path) -> Result<Vec<Value>, String> {
    let files = sorted_files(dir, &["conf"]).map_err(|e| format!("{}: {e}", dir.display()))?;
    let read = |path: &PathBuf| read_json(path).map_err(|reason| format!("{}: {reason}", path.display()));
    files.iter().map(read).collect()
}

fn read_json(path: &Path) -> Result<Value, String> {
    serde_json::from_str(&read(path)?).map_err(|e| format!("not JSON: {e}"))
}

/// Reads a file of at most [`CONFIG_BYTES_MAX`].
pub(crate) fn read(path: &Path) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|e| e.to_string())?;
    let mut text = String::new();
    file.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text).map_err(|e| e.to_string())?;
    if text.len() as u64 > CONFIG_BYTES_MAX {
        return Err(format!("larger than {CONFIG_BYTES_MAX} bytes"));
    }
    Ok(text)
}

/// All configuration files of a directory in lexical order; a directory that is not there holds none.
pub(crate) fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    sorted_files(dir, &["conflist", "conf", "json"])
        .map_err(|e| NetworkError::CniConfig { path: dir.to_owned(), reason: e.to_string() })
}

fn sorted_files(dir: &Path, extensions: &[&str]) -> std::io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if is_config(&path, extensions) {
            files.push(path);
        }
    }
    files.sort_unstable();
    Ok(files)
}

/// Hidden files are what editors and copying programs leave or are about to rename.
fn is_config(path: &Path, extensions: &[&str]) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    let hidden = path.file_name().and_then(|n| n.to_str()).is_none_or(|name| name.starts_with('.'));
    // A symlink to nothing is a mistake to be told; a directory or a pipe, which would not end, is no file.
    let file = || std::fs::metadata(path).map_or(true, |found| found.is_file());
    extensions.contains(&extension) && !hidden && file()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<PluginList, String> {
        let value = serde_json::from_str(text).map_err(|e| format!("not JSON: {e}"))?;
        PluginList::from_value(value, |_| Ok(Vec::new()))
    }

    #[test]
    fn lists_and_single_plugins_are_read() {
        let list = r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge"},{"type":"portmap"}]}"#;
        let list = parse(list).unwrap();
        assert_eq!((list.version, list.plugins.len()), (Version::V1_0_0, 2));
        assert_eq!(parse(&list.to_value().to_string()).unwrap(), list);
        let single = parse(r#"{"cniVersion":"0.3.1","name":"n","type":"ptp","mtu":9}"#).unwrap();
        assert_eq!((plugin_type(&single.plugins[0]), &single.plugins[0]["mtu"]), ("ptp", &Value::from(9)));
        let several =
            parse(r#"{"cniVersion":"0.4.0","cniVersions":["1.1.0","9.0.0","1.0.0"],"name":"n","type":"x"}"#)
                .unwrap();
        assert_eq!(several.offered, [Version::V0_4_0, Version::V1_0_0, Version::V1_1_0]);
        assert_eq!(several.version, Version::V1_1_0);
    }

    #[test]
    fn verbs_need_their_version_and_may_be_switched_off() {
        let list = |version: &str, more: &str| {
            parse(&format!(r#"{{"cniVersion":"{version}","name":"n",{more}"plugins":[{{"type":"x"}}]}}"#))
                .unwrap()
        };
        let verbs = [Verb::Check, Verb::Gc, Verb::Status];
        let allowed = |list: PluginList| verbs.map(|verb| list.allows(verb));
        assert_eq!(allowed(list("0.3.1", "")), [false; 3]);
        assert_eq!(allowed(list("1.0.0", "")), [true, false, false]);
        assert_eq!(allowed(list("1.1.0", "")), [true; 3]);
        assert_eq!(
            allowed(list("1.1.0", r#""disableGC":true,"disableCheck":"True","#)),
            [false, false, true]
        );
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
            (r#"{"cniVersion":"1.0.0","name":"n"}"#, "0 plugins"),
            (r#"{"cniVersion":"1.0.0","name":"n","loadOnlyInlinedPlugins":true}"#, "without plugins"),
            (r#"{"cniVersion":"1.0.0","name":"n","disableGC":3,"type":"x"}"#, "neither true nor false"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{}]}"#, "not a file name"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":{}}"#, "not a list"),
        ];
        for (text, reason) in cases {
            let said = parse(text).unwrap_err();
            assert!(said.contains(reason), "{text}: {said}");
        }
    }

    #[test]
    fn the_first_files_count_and_a_broken_one_is_not_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let names = |networks_max| -> Vec<String> {
            load(dir.path(), networks_max).unwrap().into_iter().map(|source| source.list.name).collect()
        };
        assert!(names(1).is_empty());
        assert!(load(&dir.path().join("absent"), 1).unwrap().is_empty());
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let network = |name: &str| format!(r#"{{"cniVersion":"1.0.0","name":"{name}","type":"x"}}"#);
        put("99.txt", "no");
        put(".00.conf", "no");
        put("20-b.conf", &network("b"));
        put("10-a.conflist", &network("a"));
        put("30-c.json", &network("c"));
        assert_eq!((names(1), names(2)), (vec!["a".into()], vec!["a".into(), "b".into()]));
        assert_eq!(names(9).len(), 3);
        put("15-broken.conf", "{");
        assert_eq!(names(1), ["a"], "a file beyond those in use may be anything");
        let e = load(dir.path(), 2).unwrap_err().to_string();
        assert!(e.contains("15-broken.conf"), "{e}");
        put("15-broken.conf", &" ".repeat(usize::try_from(CONFIG_BYTES_MAX).unwrap() + 1));
        assert!(load(dir.path(), 2).unwrap_err().to_string().contains("larger"));
    }

    #[test]
    fn what_is_no_file_is_passed_over_and_a_symlink_to_nothing_is_told() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("10-a.conf")).unwrap();
        let pipe = dir.path().join("20-b.conf");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
        assert!(load(dir.path(), 1).unwrap().is_empty());
        std::os::unix::fs::symlink("absent", dir.path().join("30-c.conf")).unwrap();
        assert!(load(dir.path(), 1).unwrap_err().to_string().contains("30-c.conf"));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in r#"[\[\]{}",:0-9a-zV.]{0,60}"#, version in r"[01]\.[0-4]\.[01]") {
            drop(parse(&text));
            let keys = ["plugins", "type", "cniVersions", "disableGC", "name"];
            for key in keys {
                drop(parse(&format!(r#"{{"cniVersion":"{version}","name":"n","type":"x","{key}":{text}}}"#)));
            }
        }
    }

    #[test]
    fn plugins_of_the_folder_are_added_unless_the_list_does_not_want_them() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let types = || -> Vec<String> {
            let plugins = load(dir.path(), 1).unwrap().remove(0).list.plugins;
            plugins.iter().map(|plugin| plugin_type(plugin).to_owned()).collect()
        };
        std::fs::create_dir(dir.path().join("net")).unwrap();
        put("net/20-b.conf", r#"{"type":"b"}"#);
        put("net/10-a.conf", r#"{"type":"a"}"#);
        put("net/note.txt", "no");
        let list = |more: &str| format!(r#"{{"cniVersion":"1.1.0","name":"net"{more}}}"#);
        put("10.conflist", &list(r#","plugins":[{"type":"first"}]"#));
        assert_eq!(types(), ["first", "a", "b"]);
        put("10.conflist", &list(""));
        assert_eq!(types(), ["a", "b"]);
        put("10.conflist", &list(r#","loadOnlyInlinedPlugins":true,"plugins":[{"type":"first"}]"#));
        assert_eq!(types(), ["first"]);
        put("10.conflist", &list(""));
        put("net/10-a.conf", "{");
        assert!(load(dir.path(), 1).unwrap_err().to_string().contains("net/10-a.conf"));
    }
}
