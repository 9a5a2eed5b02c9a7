//! A vendor's file. Fields that are not known are refused: an edit that is left out would be found missing much later.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use crate::name;

/// Versions whose files are read. Each only added to the one before.
const VERSIONS: [&str; 10] =
    ["0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];

/// The file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct File {
    cdi_version: String,
    /// `vendor/class` of all its devices.
    pub(crate) kind: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    pub(crate) devices: Vec<Device>,
    /// For every one of its devices.
    #[serde(default)]
    pub(crate) container_edits: Edits,
}

/// A device.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Device {
    pub(crate) name: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub(crate) container_edits: Edits,
}

/// What a container gets.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Edits {
    /// `NAME=value`.
    pub(crate) env: Vec<String>,
    pub(crate) device_nodes: Vec<DeviceNode>,
    pub(crate) net_devices: Vec<NetDevice>,
    pub(crate) hooks: Vec<Hook>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) intel_rdt: Option<IntelRdt>,
    pub(crate) additional_gids: Vec<u32>,
}

/// A device node. What is not said is the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct DeviceNode {
    /// In the container.
    pub(crate) path: String,
    /// On the host, where it is another one.
    pub(crate) host_path: Option<String>,
    /// `b`, `c`, `u` or `p`.
    pub(crate) r#type: Option<String>,
    pub(crate) major: Option<i64>,
    pub(crate) minor: Option<i64>,
    pub(crate) file_mode: Option<u32>,
    /// A subset of `rwm`; all when it is not said.
    pub(crate) permissions: Option<String>,
    pub(crate) uid: Option<u32>,
    pub(crate) gid: Option<u32>,
}

/// A network interface that moves into the container.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct NetDevice {
    pub(crate) host_interface_name: String,
    /// In the container.
    pub(crate) name: String,
}

/// An OCI hook.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Hook {
    pub(crate) hook_name: HookName,
    pub(crate) path: String,
    #[serde(default)]
    pub(crate) args: Vec<String>,
    #[serde(default)]
    pub(crate) env: Vec<String>,
    /// Seconds.
    pub(crate) timeout: Option<i64>,
}

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum HookName {
    Prestart,
    CreateRuntime,
    CreateContainer,
    StartContainer,
    Poststart,
    Poststop,
}

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Mount {
    pub(crate) host_path: String,
    pub(crate) container_path: String,
    pub(crate) r#type: Option<String>,
    #[serde(default)]
    pub(crate) options: Vec<String>,
}

/// Intel's Resource Director Technology.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct IntelRdt {
    #[serde(rename = "closID", skip_serializing_if = "Option::is_none")]
    clos_id: Option<String>,
    #[serde(rename = "l3CacheSchema", skip_serializing_if = "Option::is_none")]
    l3_cache_schema: Option<String>,
    #[serde(rename = "memBwSchema", skip_serializing_if = "Option::is_none")]
    mem_bw_schema: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    schemata: Option<Vec<String>>,
    #[serde(rename = "enableCMT", skip_serializing_if = "Option::is_none")]
    enable_cmt: Option<bool>,
    #[serde(rename = "enableMBM", skip_serializing_if = "Option::is_none")]
    enable_mbm: Option<bool>,
    #[serde(rename = "enableMonitoring", skip_serializing_if = "Option::is_none")]
    enable_monitoring: Option<bool>,
}

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Yaml,
}

impl File {
    /// Reads and checks a file's text.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse(text: &str, format: Format) -> Result<Self, String> {
        let file: Self = match format {
            Format::Json => serde_json::from_str(text).map_err(|error| error.to_string())?,
            Format::Yaml => serde_saphyr::from_str(text).map_err(|error| error.to_string())?,
        };
        file.check()?;
        Ok(file)
    }

    fn check(&self) -> Result<(), String> {
        if !VERSIONS.contains(&self.cdi_version.as_str()) {
            return Err(format!("cdiVersion {:?} is not known", self.cdi_version));
        }
        name::check_kind(&self.kind).map_err(|problem| format!("kind {:?}: {problem}", self.kind))?;
        if self.devices.is_empty() {
            return Err("it has no devices".to_owned());
        }
        let mut names = BTreeSet::new();
        for device in &self.devices {
            name::check_device(&device.name).map_err(|problem| format!("{:?}: {problem}", device.name))?;
            if !names.insert(&device.name) {
                return Err(format!("device {} is there twice", device.name));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const JSON: &str = r#"{"cdiVersion": "0.6.0", "kind": "vendor.com/net", "devices": [
        {"name": "a", "containerEdits": {"deviceNodes": [{"path": "/dev/x", "fileMode": 432}]}}
    ], "containerEdits": {"env": ["A=b"]}}"#;
    const YAML: &str = "cdiVersion: 0.6.0
kind: vendor.com/net
devices:
  - name: a
    containerEdits:
      deviceNodes:
        - path: /dev/x
          fileMode: 432
containerEdits:
  env:
    - A=b
";

    #[test]
    fn both_formats_say_the_same() {
        let json = File::parse(JSON, Format::Json).unwrap();
        assert_eq!(json, File::parse(YAML, Format::Yaml).unwrap());
        assert_eq!(json.devices[0].container_edits.device_nodes[0].file_mode, Some(0o660));
    }

    #[test]
    fn what_is_wrong_is_told() {
        let cases = [
            (JSON.replace("0.6.0", "9.0.0"), "cdiVersion \"9.0.0\" is not known"),
            (JSON.replace("vendor.com/net", "net"), "kind \"net\": no vendor/class"),
            (JSON.replace("\"env\"", "\"environ\""), "unknown field `environ`"),
            (JSON.replace("\"a\"", "\"-\""), "\"-\": the device is not a name"),
            (JSON.replace("{\"name\"", "{\"name\": \"a\"}, {\"name\""), "device a is there twice"),
        ];
        for (text, problem) in cases {
            let error = File::parse(&text, Format::Json).unwrap_err();
            assert!(error.contains(problem), "{error}");
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(text in ".{0,200}") {
            let _refused = File::parse(&text, Format::Json);
            let _refused = File::parse(&text, Format::Yaml);
        }
    }
}
