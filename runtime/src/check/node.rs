//! What is installed and what is configured.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::Finding;
use crate::cgroups::{Chosen, Init, choose};
use crate::cli::client::Client;
use crate::cli::output;
use crate::config::{Config, DEFAULT_FILE, Handler};

/// Below this the next image may not fit.
const DISK_BYTES_MIN: u64 = 2 << 30;
const DISK_INODES_MIN: u64 = 100_000;
/// Superblock magics of statfs(2).
const TMPFS_MAGIC: i64 = 0x0102_1994;
const OVERLAYFS_MAGIC: i64 = 0x794c_7630;

pub(super) fn look(config: &Config, address: &Path) -> Vec<Finding> {
    let mut findings: Vec<Finding> =
        config.handlers.iter().map(|(name, handler)| handler_finding(name, handler)).collect();
    let version = crisp_cgroup::Cgroups::detect().map(|cgroups| cgroups.version());
    // Without a hierarchy another line says so.
    findings.extend(version.ok().map(|version| driver(config, Init::here(), version)));
    findings.push(checkpoint(&config.checkpoint.criu));
    findings.push(registries(&config.registry.config_path));
    findings.push(disk(&config.root));
    findings.push(state(&config.state));
    findings.push(daemon(address));
    findings
}

/// Who makes the cgroups of containers: what a kubelet is told.
fn driver(config: &Config, init: Init, version: crisp_cgroup::Version) -> Finding {
    const THING: &str = "cgroup driver";
    match choose(config.cgroup_driver, init, version) {
        Ok(Chosen::Systemd) => Finding::ok(THING, "systemd: containers are scopes in the kubelet's slices"),
        Ok(Chosen::Cgroupfs) if init == Init::Systemd && version == crisp_cgroup::Version::V2 => {
            Finding::warn(THING, "cgroupfs, while systemd runs this machine: two managers of one tree")
        }
        Ok(Chosen::Cgroupfs) => Finding::ok(THING, "cgroupfs: the daemon makes them"),
        Err(error) => Finding::fail(THING, error.to_string()),
    }
}

pub(super) fn config_source(file: Option<&Path>) -> String {
    let path = file.unwrap_or(Path::new(DEFAULT_FILE));
    if path.exists() { path.display().to_string() } else { "built-in defaults".to_owned() }
}

/// On a hybrid machine (v1 with a v2 hierarchy beside it) crun insists that the latter has no controllers of its own.
fn is_refused_by_crun(program: &Path, unified_controllers: &str) -> bool {
    program.file_name().is_some_and(|name| name == "crun") && !unified_controllers.trim().is_empty()
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

fn checkpoint(criu: &Path) -> Finding {
    let path = criu.display();
    if is_program(criu) {
        return Finding::ok("checkpoints", format!("by {path}"));
    }
    let says = format!("none: {path} is no program; install the package criu or change checkpoint.criu");
    Finding::warn("checkpoints", says)
}

fn handler_finding(name: &str, handler: &Handler) -> Finding {
    match handler {
        Handler::Builtin => Finding::ok("handler", format!("{name}: built in")),
        Handler::Oci(oci) => {
            let runs = is_program(&oci.path);
            let path = oci.path.display();
            let unified = fs::read_to_string("/sys/fs/cgroup/unified/cgroup.controllers").unwrap_or_default();
            if runs && is_refused_by_crun(&oci.path, &unified) {
                let says = format!(
                    "{name}: crun refuses the hybrid cgroups of this machine; use crisp or runc here"
                );
                Finding::warn("handler", says)
            } else if runs {
                Finding::ok("handler", format!("{name}: {path}"))
            } else {
                Finding::warn(
                    "handler",
                    format!("{name}: {path} is no program: install it or change handlers.{name}.path"),
                )
            }
        }
    }
}

fn registries(trees: &[PathBuf]) -> Finding {
    let hosts: Vec<String> = trees.iter().flat_map(|tree| hosts(tree)).collect();
    match hosts.as_slice() {
        [] => Finding::ok("registries", "no hosts.toml; every registry is asked directly, by https"),
        hosts => Finding::ok("registries", format!("hosts.toml for {}", hosts.join(", "))),
    }
}

fn hosts(tree: &Path) -> Vec<String> {
    let entries = fs::read_dir(tree).into_iter().flatten().filter_map(Result::ok);
    let configured = entries.filter(|entry| entry.path().join("hosts.toml").is_file());
    let mut names: Vec<String> =
        configured.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The nearest directory that exists.
fn existing(path: &Path) -> &Path {
    path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"))
}

#[allow(
    clippy::unnecessary_cast,
    clippy::cast_lossless,
    reason = "the type of f_type differs by architecture"
)]
fn filesystem(path: &Path) -> Option<i64> {
    rustix::fs::statfs(existing(path)).ok().map(|stat| stat.f_type as i64)
}

fn disk(root: &Path) -> Finding {
    if filesystem(root) == Some(OVERLAYFS_MAGIC) {
        let says = format!(
            "{} is on overlayfs, which cannot carry another: mount a disk or a tmpfs there",
            root.display()
        );
        return Finding::fail("disk", says);
    }
    match rustix::fs::statvfs(existing(root)) {
        Ok(stat) => space(root, stat.f_bavail.saturating_mul(stat.f_frsize), stat.f_favail, stat.f_files),
        Err(error) => Finding::fail("disk", format!("{}: {error}", root.display())),
    }
}

/// `inodes_total` 0: the filesystem does not count them.
fn space(root: &Path, bytes: u64, inodes: u64, inodes_total: u64) -> Finding {
    let root = root.display();
    let free = output::size(bytes);
    if bytes < DISK_BYTES_MIN {
        return Finding::warn("disk", format!("{free} free for {root}: images may not fit"));
    }
    if inodes_total > 0 && inodes < DISK_INODES_MIN {
        return Finding::warn("disk", format!("{inodes} inodes free for {root}: images may not fit"));
    }
    Finding::ok("disk", format!("{free} free for {root}"))
}

fn state(state: &Path) -> Finding {
    if filesystem(state) == Some(TMPFS_MAGIC) {
        return Finding::ok("state", format!("{} is on a tmpfs", state.display()));
    }
    let says = format!("{} is not on a tmpfs: mount one there, so that a reboot clears it", state.display());
    Finding::warn("state", says)
}

fn daemon(address: &Path) -> Finding {
    let answer = async {
        let mut client = Client::connect(address).await?;
        client.version().await
    };
    match crate::cli::block_on(answer) {
        Ok(version) => Finding::ok("daemon", format!("{version} answers at {}", address.display())),
        Err(_) => Finding::warn("daemon", format!("none at {}: `crisp serve` starts it", address.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;
    use crate::config::OciHandler;

    #[test]
    fn little_space_is_told() {
        let root = Path::new("/var/lib/crisp");
        assert_eq!(space(root, 10 << 30, 1 << 20, 1 << 21).level, Level::Ok);
        assert_eq!(space(root, 10 << 30, 0, 0).level, Level::Ok, "a filesystem without inode counts");
        assert!(space(root, 1 << 30, 1 << 20, 1 << 21).says.starts_with("1.0 GB free"));
        assert_eq!(space(root, 10 << 30, 10, 1 << 21).level, Level::Warn);
    }

    #[test]
    fn handlers_must_be_programs() {
        let oci = |path: &str| {
            let path = PathBuf::from(path);
            Handler::Oci(OciHandler { path, root: "/r".into(), systemd_cgroup: None, args: Vec::new() })
        };
        assert_eq!(handler_finding("sh", &oci("/bin/sh")).level, Level::Ok);
        for path in ["/nonexistent", "/etc/passwd", "/"] {
            assert_eq!(handler_finding("x", &oci(path)).level, Level::Warn, "{path}");
            assert_eq!(checkpoint(Path::new(path)).level, Level::Warn, "{path}");
        }
        assert_eq!(checkpoint(Path::new("/bin/sh")).level, Level::Ok);
    }

    #[test]
    fn the_cgroup_driver_is_told() {
        use crisp_cgroup::Version::{V1, V2};
        let config = |text| Config::parse(Path::new("x"), text, &Default::default(), &|_| false).unwrap();
        let (auto, cgroupfs) = (config(""), config("cgroup_driver = \"cgroupfs\""));
        assert!(driver(&auto, Init::Systemd, V2).says.starts_with("systemd"));
        assert_eq!(driver(&auto, Init::Other, V2).level, Level::Ok);
        assert_eq!(driver(&cgroupfs, Init::Systemd, V2).level, Level::Warn);
        let systemd = config("cgroup_driver = \"systemd\"");
        assert_eq!(driver(&systemd, Init::Systemd, V1).level, Level::Fail);
    }

    #[test]
    fn crun_wants_no_controllers_beside_v1() {
        assert!(is_refused_by_crun(Path::new("/usr/bin/crun"), "hugetlb\n"));
        assert!(!is_refused_by_crun(Path::new("/usr/bin/crun"), ""));
        assert!(!is_refused_by_crun(Path::new("/usr/sbin/runc"), "hugetlb\n"));
    }

    #[test]
    fn registries_with_hosts_files_are_listed() {
        let dir = tempfile::tempdir().unwrap();
        for host in ["docker.io", "a.example_5000_"] {
            fs::create_dir_all(dir.path().join(host)).unwrap();
            fs::write(dir.path().join(host).join("hosts.toml"), "").unwrap();
        }
        fs::create_dir_all(dir.path().join("empty")).unwrap();
        assert_eq!(hosts(dir.path()), ["a.example_5000_", "docker.io"]);
        assert!(hosts(&dir.path().join("none")).is_empty());
    }
}
