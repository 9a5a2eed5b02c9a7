//! What can go wrong with a pod's network.

use std::io;
use std::path::PathBuf;

pub(crate) use crisp_domain::chain;
use crisp_domain::{ErrorKind, SandboxId};

/// A failed network operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// A setting makes no sense.
    #[error("network setting {setting} = {value:?}: {reason}")]
    Config {
        /// Name of the setting.
        setting: &'static str,
        /// What was given.
        value: String,
        /// Why it is refused.
        reason: String,
    },
    /// A request makes no sense.
    #[error("network of sandbox {sandbox_id}: {reason}")]
    Request {
        /// Who asked.
        sandbox_id: SandboxId,
        /// Why it is refused.
        reason: String,
    },
    /// Asked for something the provider cannot do.
    #[error("{what} is not supported by {provider}")]
    Unsupported {
        /// What was asked for.
        what: String,
        /// By whom.
        provider: String,
    },
    /// Neither a CNI configuration nor the built-in bridge can be used now.
    #[error("{reason}: {message}")]
    NotReady {
        /// One CamelCase word.
        reason: &'static str,
        /// What is missing and what to do.
        message: String,
    },
    /// A host port is taken.
    #[error("host port {port} is held by {holder}")]
    PortTaken {
        /// `address:port/protocol`.
        port: String,
        /// A sandbox, or a process of the host.
        holder: String,
    },
    /// The subnet has no free address.
    #[error("subnet {subnet} has no free address: {used} in use")]
    AddressesExhausted {
        /// The subnet.
        subnet: String,
        /// How many addresses are taken.
        used: usize,
    },
    /// A record cannot be read or written.
    #[error("network record")]
    Record(#[source] crisp_store::StoreError),
    /// Another file or directory of ours cannot be used.
    #[error("{operation} {}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Another daemon uses the same directory.
    #[error("{} is used by another daemon", path.display())]
    Locked {
        /// The directory of the records.
        path: PathBuf,
    },
    /// The kernel refused a netlink request.
    #[error("netlink: {operation}")]
    Netlink {
        /// What was asked, with its subject.
        operation: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A kernel setting cannot be written.
    #[error("write {value} to {}: set it on the host, or give the daemon a writable /proc/sys", path.display())]
    Sysctl {
        /// File below `/proc/sys`.
        path: PathBuf,
        /// The value it needs.
        value: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A namespace cannot be entered.
    #[error("network namespace of sandbox {sandbox_id}")]
    Namespace {
        /// Whose it is.
        sandbox_id: SandboxId,
        /// Why it failed.
        #[source]
        source: crisp_sys::netns::NetnsError,
    },
    /// A CNI configuration cannot be used.
    #[error("CNI configuration {}: {reason}", path.display())]
    CniConfig {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A CNI plugin cannot be run.
    #[error("run CNI plugin {plugin} ({command})")]
    CniRun {
        /// Its `type`.
        plugin: String,
        /// `ADD`, `DEL`, …
        command: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A CNI plugin took too long and was killed.
    #[error("CNI plugin {plugin} ({command}) gave no answer in {after_ms} ms and was killed")]
    CniTimeout {
        /// Its `type`.
        plugin: String,
        /// `ADD`, `DEL`, …
        command: &'static str,
        /// The limit, in milliseconds.
        after_ms: u128,
    },
    /// A CNI plugin answered with an error, or died.
    #[error("CNI plugin {plugin} ({command}) failed{}: {message}", code_text(*code))]
    CniFailed {
        /// Its `type`.
        plugin: String,
        /// `ADD`, `DEL`, …
        command: &'static str,
        /// The `code` of its error object; `None` when it gave none.
        code: Option<u64>,
        /// Message and details of its error object, or the end of what it wrote.
        message: String,
    },
    /// What a CNI plugin printed is not a result.
    #[error("CNI plugin {plugin} ({command}) gave no valid result: {reason}")]
    CniResult {
        /// Its `type`.
        plugin: String,
        /// `ADD`, `DEL`, …
        command: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A sandbox has lost something of what a network gave it.
    #[error("network {network:?} is not as it was made")]
    Changed {
        /// Its name.
        network: String,
        /// What is wrong.
        #[source]
        source: Box<NetworkError>,
    },
    /// A template cannot be rendered.
    #[error("CNI template, line {line}: {reason}")]
    Template {
        /// From 1.
        line: usize,
        /// What is wrong with it.
        reason: String,
    },
    /// The time for cleaning up was over.
    #[error("{left} stale attachments are left for the next time: {after_ms} ms were not enough")]
    Unfinished {
        /// How many.
        left: usize,
        /// The limit, in milliseconds.
        after_ms: u128,
    },
    /// An attach failed and so did its undo; the record is kept, [`crate::Network::detach`] and [`crate::Network::gc`] try
    /// again.
    #[error("attach, whose undo failed as well ({})", chain(undo.as_ref()))]
    Undo {
        /// Why the attach failed.
        #[source]
        attach: Box<NetworkError>,
        /// Why the undo failed.
        undo: Box<NetworkError>,
    },
}

impl NetworkError {
    /// What a caller can do about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Config { .. } | Self::Request { .. } | Self::Template { .. } => ErrorKind::Invalid,
            Self::Unsupported { .. } => ErrorKind::Unsupported,
            Self::NotReady { .. } | Self::CniConfig { .. } => ErrorKind::NotReady,
            Self::PortTaken { .. } => ErrorKind::Exists,
            Self::AddressesExhausted { .. } => ErrorKind::Exhausted,
            Self::Locked { .. } => ErrorKind::WrongState,
            Self::CniTimeout { .. } | Self::Unfinished { .. } => ErrorKind::Timeout,
            // CNI specification 1.1, section "Error": 11 is "try again later", 50 and 51 are "not available".
            Self::CniFailed { code: Some(11 | 50 | 51), .. } => ErrorKind::NotReady,
            Self::Undo { attach, .. } => attach.kind(),
            Self::Changed { source, .. } => source.kind(),
            Self::Record(source) => source.kind(),
            Self::File { .. }
            | Self::Netlink { .. }
            | Self::Sysctl { .. }
            | Self::Namespace { .. }
            | Self::CniRun { .. }
            | Self::CniFailed { .. }
            | Self::CniResult { .. } => ErrorKind::Internal,
        }
    }
}

fn code_text(code: Option<u64>) -> String {
    code.map(|code| format!(" (code {code})")).unwrap_or_default()
}
