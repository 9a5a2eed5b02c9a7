//! Rules of the repository that the compiler does not know: the edges between crates that stay absent.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

/// The part of `cargo metadata` that the rules read.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    /// Absolute path of its Cargo.toml.
    manifest_path: String,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
}

/// Fails, naming each edge, when a crate of the workspace depends on what it must not.
pub(crate) fn check(root: &Path) -> Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let arguments = ["metadata", "--format-version", "1", "--no-deps", "--offline"];
    let output =
        Command::new(cargo).args(arguments).current_dir(root).output().context("run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let metadata: Metadata =
        serde_json::from_slice(&output.stdout).context("read what cargo metadata says")?;
    let forbidden = forbidden_edges(&metadata.packages);
    if !forbidden.is_empty() {
        bail!("forbidden dependencies:\n  {}", forbidden.join("\n  "));
    }
    Ok(())
}

/// Every edge that breaks a rule, with the rule. Normal, build and test dependencies count alike.
fn forbidden_edges(packages: &[Package]) -> Vec<String> {
    let edges =
        packages.iter().flat_map(|from| from.dependencies.iter().map(move |to| (from, to.name.as_str())));
    edges
        .filter_map(|(from, to)| broken_rule(from, to).map(|why| format!("{} -> {to}: {why}", from.name)))
        .collect()
}

fn broken_rule(from: &Package, to: &str) -> Option<&'static str> {
    let is_library =
        Path::new(&from.manifest_path).ancestors().nth(2).is_some_and(|dir| dir.ends_with("crates"));
    match (from.name.as_str(), to) {
        ("crisp-runtime", "crisp-shim") | ("crisp-shim", "crisp-runtime") => Some(
            "daemon and shim know each other only through the protocol, so that either can be replaced alone",
        ),
        (_, "crisp-proto") if is_library => Some("wire types stop at runtime/src/cri and the shim's service"),
        (name, "libcontainer") if name != "crisp-shim" => {
            Some("only the shim links libcontainer; the daemon never clones itself")
        }
        ("crictl-tests", name) if name.starts_with("crisp-") && name != "crisp-proto" => {
            Some("the outside tests see what a kubelet sees")
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, dir: &str, dependencies: &[&str]) -> Package {
        let dependencies = dependencies.iter().map(|name| Dependency { name: (*name).to_owned() }).collect();
        Package { name: name.to_owned(), manifest_path: format!("/repo/{dir}/Cargo.toml"), dependencies }
    }

    #[test]
    fn the_four_edges_are_found_and_others_pass() {
        let packages = [
            package(
                "crisp-runtime",
                "runtime",
                &["crisp-proto", "crisp-shim", "libcontainer", "crisp-image"],
            ),
            package("crisp-shim", "shim", &["crisp-proto", "libcontainer", "crisp-sys", "crisp-runtime"]),
            package("crisp-image", "crates/image", &["crisp-store", "crisp-proto"]),
            package("crictl-tests", "crictl-tests", &["crisp-proto", "crisp-domain", "anyhow"]),
        ];
        let found: Vec<String> = forbidden_edges(&packages)
            .into_iter()
            .map(|edge| edge.split(':').next().unwrap_or_default().to_owned())
            .collect();
        assert_eq!(
            found,
            [
                "crisp-runtime -> crisp-shim",
                "crisp-runtime -> libcontainer",
                "crisp-shim -> crisp-runtime",
                "crisp-image -> crisp-proto",
                "crictl-tests -> crisp-domain",
            ]
        );
    }

    #[test]
    fn this_repository_is_tidy() {
        check(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()).unwrap();
    }
}
