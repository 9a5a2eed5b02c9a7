//! What is written down about attachments.
//!
//! ```text
//! <cache_dir>/
//!   lock                             held by the daemon
//!   attachments/<sandbox id>.json    one record per sandbox that may hold anything of the network
//!   attachments/<sandbox id>.json.unreadable
//! ```
//! A record is written before the first effect and removed after the last one is undone. That of a CNI attachment
//! survives a power cut, because plugins keep their own durable state; what the bridge makes ends with the kernel, so its
//! record needs no sync.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use crisp_domain::SandboxId;
use crisp_store::Durability;
use rustix::fs::{FlockOperation, Mode, OFlags};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{Attachment, NetworkError, Provider, Result};

const RECORD_VERSION: u32 = 1;

/// One sandbox's place in a network, or the intent to have one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// `namespace/name`, for messages.
    pub(crate) pod: String,
    /// Where the namespace is pinned.
    pub(crate) netns: PathBuf,
    /// Whether the attach went through; the sandbox may hold something either way.
    pub(crate) complete: bool,
    pub(crate) attachment: Attachment,
    /// One per network, in the order of their interfaces; none for the bridge. Written as one object by the first daemons.
    #[serde(default, deserialize_with = "one_or_many")]
    pub(crate) cni: Vec<CniRecord>,
    pub(crate) bridge: Option<BridgeRecord>,
}

/// One network of a sandbox: all that a DEL needs, whatever the node's configuration says by then.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct CniRecord {
    /// The plugin list as it was used.
    pub(crate) config: Value,
    /// Capability arguments by capability.
    pub(crate) capabilities: Value,
    /// `CNI_ARGS`.
    pub(crate) args: String,
    /// Name of the interface in the pod.
    #[serde(default = "first_interface")]
    pub(crate) interface: String,
    /// Result of the ADD; null until it came to one.
    #[serde(default)]
    pub(crate) result: Value,
}

impl CniRecord {
    /// Of its network.
    pub(crate) fn name(&self) -> &str {
        self.config.get("name").and_then(serde_json::Value::as_str).unwrap_or_default()
    }
}

fn first_interface() -> String {
    crate::cni::INTERFACE.to_owned()
}

fn one_or_many<'de, D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Vec<CniRecord>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Many(Vec<CniRecord>),
        One(CniRecord),
        Nothing(()),
    }
    Ok(match Written::deserialize(from)? {
        Written::Many(list) => list,
        Written::One(one) => vec![one],
        Written::Nothing(()) => Vec::new(),
    })
}

/// What the bridge made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BridgeRecord {
    /// Name of the host's end of the veth pair.
    pub(crate) host_interface: String,
}

/// All records, in memory and on disk.
#[derive(Debug)]
pub(crate) struct Records {
    dir: PathBuf,
    loaded: RwLock<HashMap<SandboxId, Arc<Record>>>,
    /// Of records that could not be read, now or by an earlier daemon.
    aside: Vec<SandboxId>,
    lock: OwnedFd,
}

impl Drop for Records {
    fn drop(&mut self) {
        // Closing is not enough: a program that is just being started has a copy of the descriptor until it runs.
        let _closed_anyway = rustix::fs::flock(&self.lock, FlockOperation::Unlock);
    }
}

impl Records {
    /// Loads what is there. A record that cannot be read is set aside, with a warning.
    pub(crate) fn open(cache_dir: &Path) -> Result<Self> {
        let dir = cache_dir.join("attachments");
        crisp_store::ensure_dir(&dir).map_err(NetworkError::Record)?;
        let lock = lock(cache_dir)?;
        crisp_store::sweep(&dir).map_err(NetworkError::Record)?;
        let loaded = RwLock::new(load(&dir)?);
        let aside = set_aside_in(&dir)?;
        Ok(Self { dir, loaded, aside, lock })
    }

    /// Sandboxes of which nobody can tell what they hold.
    pub(crate) fn unknown(&self) -> &[SandboxId] {
        &self.aside
    }

    pub(crate) fn get(&self, id: &SandboxId) -> Option<Arc<Record>> {
        self.loaded.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// Whether any sandbox but `except` has a record that satisfies.
    pub(crate) fn find(
        &self,
        except: &SandboxId,
        wanted: impl Fn(&Record) -> bool,
    ) -> Option<(SandboxId, Arc<Record>)> {
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        let mut others = loaded.iter().filter(|(id, _)| *id != except);
        others.find(|(_, record)| wanted(record)).map(|(id, record)| (id.clone(), Arc::clone(record)))
    }

    pub(crate) fn all(&self) -> Vec<(SandboxId, Arc<Record>)> {
        let loaded = self.loaded.read().unwrap_or_else(PoisonError::into_inner);
        loaded.iter().map(|(id, record)| (id.clone(), Arc::clone(record))).collect()
    }

    pub(crate) fn put(&self, id: &SandboxId, record: Record) -> Result<Arc<Record>> {
        let durability = durability(&record);
        crisp_store::write(&self.path(id), RECORD_VERSION, &record, durability)
            .map_err(NetworkError::Record)?;
        let record = Arc::new(record);
        self.loaded.write().unwrap_or_else(PoisonError::into_inner).insert(id.clone(), Arc::clone(&record));
        Ok(record)
    }

    pub(crate) fn remove(&self, id: &SandboxId) -> Result<()> {
        let durability = self.get(id).map_or(Durability::Volatile, |record| durability(&record));
        crisp_store::remove(&self.path(id), durability).map_err(NetworkError::Record)?;
        self.loaded.write().unwrap_or_else(PoisonError::into_inner).remove(id);
        Ok(())
    }

    fn path(&self, id: &SandboxId) -> PathBuf {
        self.dir.join(format!("{id}.json"))
    }
}

fn durability(record: &Record) -> Durability {
    match record.attachment.provider {
        Provider::Bridge => Durability::Volatile,
        Provider::Cni => Durability::Durable,
    }
}

fn file_error(operation: &'static str, path: &Path, source: std::io::Error) -> NetworkError {
    NetworkError::File { operation, path: path.to_owned(), source }
}

fn lock(cache_dir: &Path) -> Result<OwnedFd> {
    let path = cache_dir.join("lock");
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|e| file_error("open", &path, e.into()))?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(NetworkError::Locked { path: cache_dir.to_owned() }),
        Err(e) => Err(file_error("lock", &path, e.into())),
    }
}

fn load(dir: &Path) -> Result<HashMap<SandboxId, Arc<Record>>> {
    let listing = |source| file_error("list", dir, source);
    let mut loaded = HashMap::new();
    for entry in std::fs::read_dir(dir).map_err(listing)? {
        let path = entry.map_err(listing)?.path();
        let Some(id) = sandbox_of(&path) else { continue };
        match crisp_store::read::<Record>(&path, RECORD_VERSION) {
            Ok(Some(record)) => drop(loaded.insert(id, Arc::new(record))),
            Ok(None) => {}
            Err(error) => {
                // An empty or torn file is what a power cut makes of an unsynced bridge record; nothing is lost then.
                tracing::warn!(pod_id = %id, %error, "a network record is unreadable and set aside");
                set_aside(&path)?;
            }
        }
    }
    Ok(loaded)
}

/// End of the name of a record that cannot be read.
const ASIDE: &str = ".json.unreadable";

fn set_aside(path: &Path) -> Result<()> {
    let aside = path.with_extension(ASIDE.trim_start_matches('.'));
    std::fs::rename(path, aside).map_err(|source| file_error("set aside", path, source))
}

fn set_aside_in(dir: &Path) -> Result<Vec<SandboxId>> {
    let entries = std::fs::read_dir(dir).map_err(|source| file_error("list", dir, source))?;
    Ok(entries.flatten().filter_map(|entry| id_before(&entry.path(), ASIDE)).collect())
}

fn sandbox_of(path: &Path) -> Option<SandboxId> {
    id_before(path, ".json")
}

fn id_before(path: &Path, end: &str) -> Option<SandboxId> {
    path.file_name()?.to_str()?.strip_suffix(end)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(provider: Provider) -> Record {
        Record {
            pod: "default/web".into(),
            netns: "/run/ns/net".into(),
            complete: true,
            attachment: Attachment {
                provider,
                network: "net".into(),
                ips: vec!["10.88.0.2".parse().unwrap()],
                result: json!({"ips": []}),
                port_mappings: Vec::new(),
            },
            cni: Vec::new(),
            bridge: None,
        }
    }

    #[test]
    fn records_are_found_again_until_removed() {
        let dir = tempfile::tempdir().unwrap();
        let ids = [SandboxId::random().unwrap(), SandboxId::random().unwrap()];
        let records = Records::open(dir.path()).unwrap();
        records.put(&ids[0], record(Provider::Bridge)).unwrap();
        records.put(&ids[1], record(Provider::Cni)).unwrap();
        records.remove(&ids[1]).unwrap();
        records.remove(&ids[1]).unwrap();
        drop(records);
        let again = Records::open(dir.path()).unwrap();
        assert_eq!(again.all().len(), 1);
        assert_eq!(*again.get(&ids[0]).unwrap(), record(Provider::Bridge));
    }

    #[test]
    fn the_first_form_of_a_record_is_read() {
        let written = json!({
            "pod": "default/web", "netns": "/run/ns/net", "complete": true, "bridge": null,
            "attachment": {"provider": "cni", "network": "n", "ips": [], "result": {"ips": []}, "port_mappings": []},
            "cni": {"config": {"name": "n"}, "capabilities": {}, "args": "A=1"},
        });
        let read: Record = serde_json::from_value(written.clone()).unwrap();
        assert_eq!((read.cni.len(), read.cni[0].interface.as_str()), (1, "eth0"));
        let mut none = written;
        none["cni"] = Value::Null;
        assert!(serde_json::from_value::<Record>(none).unwrap().cni.is_empty());
        let many = serde_json::to_value(&read).unwrap();
        assert_eq!(serde_json::from_value::<Record>(many).unwrap(), read);
    }

    #[test]
    fn a_second_daemon_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let first = Records::open(dir.path()).unwrap();
        assert!(matches!(Records::open(dir.path()), Err(NetworkError::Locked { .. })));
        drop(first);
        drop(Records::open(dir.path()).unwrap());
    }

    #[test]
    fn a_torn_record_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let id = SandboxId::random().unwrap();
        drop(Records::open(dir.path()).unwrap());
        let path = dir.path().join("attachments").join(format!("{id}.json"));
        std::fs::write(&path, "").unwrap();
        let records = Records::open(dir.path()).unwrap();
        assert!(records.get(&id).is_none() && !path.exists());
        assert!(path.with_extension("json.unreadable").exists());
        assert_eq!(records.unknown(), std::slice::from_ref(&id));
    }
}
