//! From the text of a Kubernetes Pod manifest to a [`Plan`]: what to pull, what to prepare and what to ask of the daemon, in
//! order. Pure: nothing here looks at the machine.

mod container;
mod dns;
mod expand;
mod plan;
#[cfg(test)]
mod tests;
mod types;
mod volumes;

pub(crate) use container::{PlannedContainer, PodFacts};
pub(crate) use plan::{Host, Plan, PlannedImage};
pub(crate) use types::{HostPathKind, PullPolicy, RestartPolicy};
pub(crate) use volumes::{PlannedVolume, VolumeKind};

/// Bytes of a manifest.
pub(crate) const MANIFEST_BYTES_MAX: u64 = 1 << 20;

/// A manifest that cannot be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ManifestError {
    /// Not YAML, an unknown field, a wrong type; the message shows the line.
    #[error("{0}")]
    Syntax(String),
    /// A field whose value cannot be used, by its path.
    #[error("{field}: {problem}")]
    Field { field: String, problem: String },
}

impl ManifestError {
    fn field(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Field { field: field.into(), problem: problem.into() }
    }
}

/// What a document says it is.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Head {
    api_version: String,
    kind: String,
}

/// Reads one Pod manifest. YAML, and so JSON. What is no Pod is told so before its fields are looked at.
///
/// # Errors
/// [`ManifestError::Syntax`]; [`ManifestError::Field`] for another kind.
fn parse(text: &str) -> Result<types::Pod, ManifestError> {
    let Head { api_version, kind } = serde_saphyr::from_str(text).map_err(syntax)?;
    match (api_version.as_str(), kind.as_str()) {
        ("v1", "Pod") => serde_saphyr::from_str(text).map_err(syntax),
        ("", _) | (_, "") => Err(ManifestError::Syntax("apiVersion and kind are missing".to_owned())),
        _ => {
            let found = format!("this is {api_version} {kind}; `crisp run` runs a Pod of apiVersion v1");
            Err(ManifestError::field("kind", found))
        }
    }
}

fn syntax(error: serde_saphyr::Error) -> ManifestError {
    // The part of the text that the parser would show repeats its message.
    match error.without_snippet() {
        serde_saphyr::Error::MultipleDocuments { .. } => {
            ManifestError::Syntax("there are multiple documents (---): give them one by one".to_owned())
        }
        error => ManifestError::Syntax(error.to_string()),
    }
}

impl Plan {
    /// Plans the pod of a manifest.
    ///
    /// # Errors
    /// When the text is not a Pod manifest, or asks for what a single machine cannot give.
    pub(crate) fn from_text(text: &str, host: &Host) -> Result<Self, ManifestError> {
        plan::plan(&parse(text)?, host)
    }
}
