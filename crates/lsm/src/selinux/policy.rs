//! What the machine's policy calls the labels of containers.
//!
//! Source: `selinux_config(5)`, and `lxc_contexts(5)`, which all container runtimes read.

use std::io;
use std::path::Path;

use super::label::Label;
use crate::{LsmError, Result, read};

/// Names the policy in use; the policies lie beside it.
pub(super) const CONFIG: &str = "/etc/selinux/config";
/// What the reference policy has, for one without the file.
const PROCESS: &str = "system_u:system_r:container_t:s0";
const FILE: &str = "system_u:object_r:container_file_t:s0";
const FILE_BYTES_MAX: u64 = 64 << 10;

/// The labels of containers, without categories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Policy {
    pub(super) process: Label,
    pub(super) file: Label,
}

impl Policy {
    /// # Errors
    /// [`LsmError::Read`]; [`LsmError::Policy`] for a text that is no label. A file that is not there is no error.
    pub(super) fn read(config: &Path) -> Result<Self> {
        let name = value(&optional(config)?, "SELINUXTYPE").unwrap_or_else(|| "targeted".to_owned());
        let contexts = config.with_file_name(name).join("contexts/lxc_contexts");
        Self::parse(&optional(&contexts)?)
    }

    fn parse(contexts: &str) -> Result<Self> {
        let label = |key, usual: &str| Label::parse(value(contexts, key).as_deref().unwrap_or(usual));
        Ok(Self { process: label("process", PROCESS)?, file: label("file", FILE)? })
    }
}

fn optional(path: &Path) -> Result<String> {
    match read::text(path, FILE_BYTES_MAX) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        read => read.map_err(|source| LsmError::Read { path: path.to_owned(), source }),
    }
}

/// The value in a line `key = "value"`, with or without spaces and quotes.
fn value(text: &str, key: &str) -> Option<String> {
    let lines = text.lines().filter_map(|line| line.split_once('='));
    let mut values =
        lines.filter(|(name, _)| name.trim() == key).map(|(_, value)| value.trim().trim_matches('"'));
    values.next().filter(|value| !value.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_in_use_names_the_labels() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config");
        let usual = Policy::read(&config).unwrap();
        assert_eq!(usual.process.to_string(), PROCESS);
        std::fs::write(&config, "# SELINUXTYPE=none\nSELINUX=permissive\nSELINUXTYPE=site\n").unwrap();
        let contexts = dir.path().join("site/contexts");
        std::fs::create_dir_all(&contexts).unwrap();
        std::fs::write(contexts.join("lxc_contexts"), "process = \"u:r:mine_t:s0\"\nro_file = \"x\"\n")
            .unwrap();
        let site = Policy::read(&config).unwrap();
        assert_eq!((site.process.typ.as_str(), site.file), ("mine_t", usual.file));
        std::fs::write(contexts.join("lxc_contexts"), "file=broken\n").unwrap();
        assert!(matches!(Policy::read(&config), Err(LsmError::Policy(_))));
    }
}
