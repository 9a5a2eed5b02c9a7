//! The generated API code: written from the `.proto` files and committed, so that a build needs neither protoc nor this tool.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

/// Where the generated code lies, below the repository's root.
const GENERATED: &str = "proto/src/gen";
/// The same for the plugin protocol, whose types only its crate sees.
const GENERATED_NRI: &str = "crates/nri/src/gen";

/// The CRI messages that the daemon keeps in its records and shows in verbose answers, as JSON with the names of the proto file.
const RECORDED: &[&str] = &[
    "PodSandboxConfig",
    "PodSandboxMetadata",
    "DNSConfig",
    "PortMapping",
    "LinuxPodSandboxConfig",
    "LinuxSandboxSecurityContext",
    "NamespaceOption",
    "UserNamespace",
    "IDMapping",
    "SELinuxOption",
    "Int64Value",
    "SecurityProfile",
    "LinuxContainerResources",
    "HugepageLimit",
    "ContainerConfig",
    "ContainerMetadata",
    "ImageSpec",
    "KeyValue",
    "Mount",
    "Device",
    "CDIDevice",
    "LinuxContainerConfig",
    "LinuxContainerSecurityContext",
    "Capability",
    "LinuxContainerUser",
    "ContainerUser",
    "WindowsContainerConfig",
    "WindowsContainerSecurityContext",
    "WindowsContainerResources",
    "WindowsCpuGroupAffinity",
    "WindowsPodSandboxConfig",
    "WindowsSandboxSecurityContext",
    "WindowsNamespaceOption",
];

/// Writes the generated code.
pub(crate) fn write(root: &Path) -> Result<()> {
    generate(root, &root.join(GENERATED))?;
    nri(root, &root.join(GENERATED_NRI))
}

/// Fails, naming the files, when the committed code is not what [`write`] would write.
pub(crate) fn check(root: &Path) -> Result<()> {
    for (committed, generator) in
        [(GENERATED, generate as fn(&Path, &Path) -> Result<()>), (GENERATED_NRI, nri)]
    {
        let fresh = tempfile::tempdir()?;
        generator(root, fresh.path())?;
        let stale = differing(&files(&root.join(committed))?, &files(fresh.path())?);
        if !stale.is_empty() {
            bail!("{committed}: {} not as generated: run `cargo xtask codegen`", stale.join(", "));
        }
    }
    Ok(())
}

/// Names of the files that are in one of the two only, or with other content.
fn differing(committed: &BTreeMap<String, String>, fresh: &BTreeMap<String, String>) -> Vec<String> {
    let names = committed.keys().chain(fresh.keys().filter(|name| !committed.contains_key(*name)));
    names.filter(|name| committed.get(*name) != fresh.get(*name)).cloned().collect()
}

fn files(dir: &Path) -> Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry?.path();
        let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        files.insert(path.file_name().unwrap_or_default().to_string_lossy().into_owned(), text);
    }
    Ok(files)
}

fn generate(root: &Path, out: &Path) -> Result<()> {
    std::fs::create_dir_all(out)?;
    cri(root, out).context("generate the CRI")?;
    admin(root, out).context("generate the admin service")?;
    supervisor(root, out).context("generate the supervisor protocol")
}

fn builder(out: &Path) -> tonic_prost_build::Builder {
    tonic_prost_build::configure().out_dir(out).build_transport(false).emit_rerun_if_changed(false)
}

fn compile(root: &Path, dir: &str, file: &str) -> Result<prost_types::FileDescriptorSet> {
    let dir = root.join(dir);
    Ok(protox::compile([dir.join(file)], [dir])?)
}

fn cri(root: &Path, out: &Path) -> Result<()> {
    let mut builder = builder(out);
    for message in RECORDED {
        let path = format!(".runtime.v1.{message}");
        builder = builder
            .message_attribute(path, "#[derive(serde::Serialize, serde::Deserialize)] #[serde(default)]");
    }
    builder
        .field_attribute(".runtime.v1.KeyValue.value", "#[serde(with = \"crate::text_bytes\")]")
        .compile_fds(compile(root, "proto/cri", "api.proto")?)?;
    Ok(())
}

fn admin(root: &Path, out: &Path) -> Result<()> {
    Ok(builder(out).compile_fds(compile(root, "proto/crisp", "admin.proto")?)?)
}

fn supervisor(root: &Path, out: &Path) -> Result<()> {
    let files = compile(root, "proto/shim", "supervisor.proto")?;
    Ok(builder(out).build_client(false).build_server(false).compile_fds(files)?)
}

/// Maps are ordered, so that the same adjustment gives the same specification.
fn nri(root: &Path, out: &Path) -> Result<()> {
    std::fs::create_dir_all(out)?;
    let files = compile(root, "crates/nri/proto", "nri.proto")?;
    let builder = builder(out).btree_map(".").build_client(false).build_server(false);
    builder.compile_fds(files).context("generate the plugin protocol")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
    }

    #[test]
    fn committed_code_is_fresh() {
        check(root()).unwrap();
    }

    #[test]
    fn stale_missing_and_left_over_files_are_named() {
        let of =
            |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let committed = of(&[("same", "1"), ("stale", "1"), ("left-over", "1")]);
        let fresh = of(&[("same", "1"), ("stale", "2"), ("missing", "1")]);
        assert_eq!(differing(&committed, &fresh), ["left-over", "stale", "missing"]);
    }
}
