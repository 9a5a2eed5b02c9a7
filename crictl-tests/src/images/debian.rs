//! Debian packages with all they depend on, unpacked into one folder that is never run as a system.
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::command::{fetch, output, run};

/// What the images are made of.
const PACKAGES: [&str; 5] = ["busybox-static", "dash", "nginx", "procps", "util-linux"];

/// Unpacked packages.
#[derive(Debug)]
pub struct Debian {
    root: PathBuf,
}

impl Debian {
    /// Fetches and unpacks the packages below `dir`, which is emptied first.
    ///
    /// # Errors
    /// When apt has no lists or no network, or a package does not unpack.
    pub fn unpack(dir: &Path) -> Result<Self> {
        if dir.exists() {
            fs::remove_dir_all(dir)?;
        }
        let archives = dir.join("archives");
        let root = dir.join("root");
        fs::create_dir_all(archives.join("partial"))?;
        fs::create_dir_all(&root)?;
        // An empty status makes apt fetch every dependency, whatever this machine has installed.
        let status = dir.join("status");
        fs::write(&status, "")?;
        let mut download = Command::new("apt-get");
        download
            .args(["-qq", "-y", "--download-only", "--no-install-recommends"])
            .arg(format!("-oDir::State::status={}", status.display()))
            .arg(format!("-oDir::Cache::archives={}", archives.display()))
            .args(["-oAPT::Sandbox::User=root", "-oAcquire::Retries=3", "install"])
            .args(PACKAGES);
        if let Err(error) = run(&mut download) {
            // The lists of this machine may be older than what the archive still has.
            crate::say!("apt-get update, since {error:#}");
            fetch(Command::new("apt-get").args(["-qq", "update"]))?;
            fetch(&mut download)?;
        }
        for entry in fs::read_dir(&archives)? {
            let path = entry?.path();
            if path.extension().is_some_and(|ext| ext == "deb") {
                run(Command::new("dpkg-deb").arg("-x").arg(&path).arg(&root))?;
            }
        }
        fs::remove_dir_all(&archives)?;
        Ok(Self { root })
    }

    /// The bytes of a file by its path in the system, symbolic links of the packages followed.
    ///
    /// # Errors
    /// When no package holds it.
    pub fn read(&self, path: &str) -> Result<Vec<u8>> {
        let real = self.resolve(path)?;
        fs::read(&real).with_context(|| format!("read {}", real.display()))
    }

    /// A program with its loader and libraries, each under the path by which it is found at run time.
    ///
    /// # Errors
    /// When the program is absent or a library of it is.
    pub fn program(&self, path: &str) -> Result<BTreeMap<String, Vec<u8>>> {
        let mut files = BTreeMap::from([(path.trim_start_matches('/').to_owned(), self.read(path)?)]);
        let loader = loader();
        let folders = self.library_folders();
        let listing = output(
            Command::new(self.resolve(loader)?)
                .arg("--list")
                .arg("--library-path")
                .arg(folders.join(":"))
                .arg(self.resolve(path)?),
        )?;
        files.insert(loader.trim_start_matches('/').to_owned(), self.read(loader)?);
        for line in listing.lines() {
            let Some((name, found)) = line.split_once(" => ") else { continue };
            let name = name.trim();
            ensure!(!found.contains("not found"), "{path} needs {name}, which no package holds");
            let file = found.split(" (").next().unwrap_or(found).trim();
            if name.starts_with('/') {
                continue;
            }
            files.insert(format!("usr/lib/{name}"), fs::read(file).with_context(|| format!("read {file}"))?);
        }
        Ok(files)
    }

    fn library_folders(&self) -> Vec<String> {
        ["lib", "usr/lib"]
            .iter()
            .map(|dir| self.root.join(dir).join(triplet()).display().to_string())
            .collect()
    }

    /// Follows links inside the unpacked tree; packages may link absolutely, which means "below the root".
    fn resolve(&self, path: &str) -> Result<PathBuf> {
        const LINKS_MAX: usize = 16;
        let mut at = self.root.join(path.trim_start_matches('/'));
        for _ in 0..LINKS_MAX {
            let Ok(target) = fs::read_link(&at) else { return Ok(at) };
            at = match target.strip_prefix("/") {
                Ok(below) => self.root.join(below),
                Err(_) => at.parent().unwrap_or(&self.root).join(target),
            };
        }
        bail!("{path}: too many links")
    }
}

fn triplet() -> &'static str {
    if cfg!(target_arch = "aarch64") { "aarch64-linux-gnu" } else { "x86_64-linux-gnu" }
}

fn loader() -> &'static str {
    if cfg!(target_arch = "aarch64") { "/lib/ld-linux-aarch64.so.1" } else { "/lib64/ld-linux-x86-64.so.2" }
}
