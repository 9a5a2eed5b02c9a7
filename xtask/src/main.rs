//! Chores of this repository: `cargo xtask codegen` writes the generated API code from the `.proto` files.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

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

/// Writes `proto/src/gen/*.rs`; what is written is committed, so that a build needs neither protoc nor this tool.
fn codegen(out: &Path) -> Result<()> {
    std::fs::create_dir_all(out)?;
    let cri = protox::compile(["proto/cri/api.proto"], ["proto/cri"]).context("compile the CRI")?;
    let mut builder = tonic_prost_build::configure().out_dir(out).build_transport(false).emit_rerun_if_changed(false);
    for message in RECORDED {
        let path = format!(".runtime.v1.{message}");
        builder = builder.message_attribute(path, "#[derive(serde::Serialize, serde::Deserialize)] #[serde(default)]");
    }
    builder
        .field_attribute(".runtime.v1.KeyValue.value", "#[serde(with = \"crate::text_bytes\")]")
        .compile_fds(cri)
        .context("generate the CRI")?;
    let shim = protox::compile(["proto/shim/supervisor.proto"], ["proto/shim"]).context("compile the supervisor")?;
    tonic_prost_build::configure()
        .out_dir(out)
        .build_client(false)
        .build_server(false)
        .emit_rerun_if_changed(false)
        .compile_fds(shim)
        .context("generate the supervisor")?;
    Ok(())
}

fn main() -> Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("codegen") => codegen(Path::new("proto/src/gen")),
        other => bail!("usage: cargo xtask codegen (got {other:?})"),
    }
}
