//! The one type the daemon sees.

use std::path::Path;

use crisp_domain::SandboxId;
use serde_json::Value;

use crate::{AttachRequest, Attachment, NetworkConfig, Result};

/// Why no pod can get a network now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {message}")]
pub struct NotReady {
    /// One CamelCase word for the `NetworkReady` condition, `NetworkPluginNotReady` in general.
    pub reason: &'static str,
    /// What is missing and what to do.
    pub message: String,
}

/// The node's pod network.
#[derive(Debug)]
pub struct Network {}

#[expect(clippy::missing_errors_doc, reason = "signatures first")]
impl Network {
    /// Opens it.
    pub fn open(config: NetworkConfig) -> Result<Self> {
        Err(crate::NetworkError::Unsupported { what: format!("{config:?}"), provider: "network".into() })
    }
    /// Attaches.
    pub fn attach(&self, _request: &AttachRequest) -> Result<Attachment> {
        Err(crate::NetworkError::Unsupported { what: "attach".into(), provider: "network".into() })
    }
    /// Detaches.
    pub fn detach(&self, _sandbox_id: &SandboxId, _netns: Option<&Path>) -> Result<()> {
        Err(crate::NetworkError::Unsupported { what: "detach".into(), provider: "network".into() })
    }
    /// Readiness.
    pub fn status(&self) -> std::result::Result<(), NotReady> {
        Err(NotReady { reason: "NetworkPluginNotReady", message: String::new() })
    }
    /// Garbage.
    pub fn gc(&self, _live: &[SandboxId]) -> Result<()> {
        Err(crate::NetworkError::Unsupported { what: "gc".into(), provider: "network".into() })
    }
    /// Description.
    #[must_use]
    pub fn describe(&self) -> Value {
        Value::Null
    }
    /// What is attached.
    #[must_use]
    pub fn attachment(&self, _sandbox_id: &SandboxId) -> Option<Attachment> {
        None
    }
    /// Removes bridge and tables.
    pub fn teardown(&self) -> Result<()> {
        Err(crate::NetworkError::Unsupported { what: "teardown".into(), provider: "network".into() })
    }
}
