//! A real registry (`docker-registry`) on loopback.
use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::command::run;
use crate::eventually::{SOON, eventually};
use crate::images::RegistryStore;
use crate::paths;

/// The password `secret` as htpasswd files have it.
const SECRET_BCRYPT: &str = "$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a";

/// A running registry; it ends when this is dropped.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    port: u16,
    dir: PathBuf,
}

impl Registry {
    /// Starts a registry on a copy of the images below `dir`.
    ///
    /// # Errors
    /// When the images are not made yet, or the registry does not answer.
    pub fn start(dir: &Path, port: u16) -> Result<Self> {
        Self::copy(dir)?;
        Self::serve(dir, port)
    }

    /// The same for a registry that serves only the user `user` with the password `secret`.
    ///
    /// # Errors
    /// As [`Registry::start`].
    pub fn start_with_password(dir: &Path, port: u16) -> Result<Self> {
        Self::copy(dir)?;
        fs::write(dir.join("htpasswd"), format!("user:{SECRET_BCRYPT}\n"))?;
        Self::serve(dir, port)
    }

    fn copy(dir: &Path) -> Result<()> {
        fs::create_dir_all(dir)?;
        let storage = dir.join("storage");
        let built = paths::images().join("store");
        ensure!(built.exists(), "no images at {}: run `crictl-tests prepare` first", built.display());
        run(Command::new("cp").arg("-a").arg(&built).arg(&storage)).map(drop)
    }

    fn serve(dir: &Path, port: u16) -> Result<Self> {
        let storage = dir.join("storage");
        let config = dir.join("config.yml");
        let passwords = dir.join("htpasswd");
        let auth = if passwords.exists() {
            format!("auth:\n  htpasswd:\n    realm: test\n    path: {}\n", passwords.display())
        } else {
            String::new()
        };
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog:\n  level: warn\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    \
                 rootdirectory: {}\n  delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:{port}\n{auth}",
                storage.display()
            ),
        )?;
        let log = fs::File::create(dir.join("registry.log"))?;
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start docker-registry")?;
        let registry = Self { child, port, dir: dir.to_owned() };
        eventually(SOON, || Ok(TcpStream::connect(("127.0.0.1", port)).map(drop)?))
            .context("the registry")?;
        Ok(registry)
    }

    /// `127.0.0.1:<port>`
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its storage folder; what is written there is served at once.
    #[must_use]
    pub fn store(&self) -> RegistryStore {
        RegistryStore::new(&self.dir.join("storage"))
    }

    /// Ends the process; connections are refused from then on.
    ///
    /// # Errors
    /// When it cannot be signalled.
    pub fn stop(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts it again on the same storage.
    ///
    /// # Errors
    /// As [`Registry::start`].
    pub fn restart(&mut self) -> Result<()> {
        let next = Self::serve(&self.dir, self.port)?;
        *self = next;
        Ok(())
    }

    /// Writes a `hosts.toml` tree that sends every registry here.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write_hosts(&self, tree: &Path) -> Result<()> {
        let folder = tree.join("_default");
        fs::create_dir_all(&folder)?;
        let host = format!("http://{}", self.address());
        fs::write(
            folder.join("hosts.toml"),
            format!("server = \"{host}\"\n\n[host.\"{host}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"),
        )?;
        Ok(())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        drop(self.stop());
    }
}
