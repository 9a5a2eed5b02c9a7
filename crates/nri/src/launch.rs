//! Plugins that the operator installed: found, configured, started with a socket as their descriptor 3.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crisp_sys::clone::Spawn;

use crate::plugin::Identity;

/// Plugins in one directory.
const PLUGINS_MAX: usize = 128;
/// Bytes of a plugin's configuration file.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// Bytes of a script's first line, as the kernel reads it (execve(2)).
const INTERPRETER_BYTES_MAX: u64 = 255;

/// An installed plugin.
#[derive(Debug)]
pub(crate) struct Installed {
    pub(crate) identity: Identity,
    pub(crate) program: PathBuf,
    /// Empty where there is none.
    pub(crate) config: String,
}

/// The executable files `NN-name` in `dir`, in order. A directory that is not there has none; what is no plugin is logged and left.
///
/// # Errors
/// When the directory cannot be read.
pub(crate) fn installed(dir: &Path, config_dir: &Path) -> io::Result<Vec<Installed>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut plugins = Vec::new();
    for entry in entries.take(PLUGINS_MAX) {
        let program = entry?.path();
        // A link may lead nowhere.
        let runs = |found: std::fs::Metadata| found.is_file() && found.permissions().mode() & 0o111 != 0;
        if !std::fs::metadata(&program).is_ok_and(runs) {
            continue;
        }
        let file = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let read = Identity::of_file(&file)
            .and_then(|identity| Ok((config(config_dir, &identity).map_err(|e| e.to_string())?, identity)));
        match read {
            Ok((config, identity)) => plugins.push(Installed { identity, program, config }),
            Err(problem) => {
                tracing::error!(program = %program.display(), problem, "not a plugin; it is left alone");
            }
        }
    }
    plugins.sort_by(|a, b| a.identity.cmp(&b.identity));
    Ok(plugins)
}

/// `NN-name.conf`, else `name.conf`, else nothing.
pub(crate) fn config(dir: &Path, identity: &Identity) -> io::Result<String> {
    for name in [format!("{identity}.conf"), format!("{}.conf", identity.name)] {
        let file = match File::open(dir.join(&name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file?,
        };
        let mut text = String::new();
        file.take(CONFIG_BYTES_MAX + 1).read_to_string(&mut text)?;
        if text.len() as u64 > CONFIG_BYTES_MAX {
            return Err(io::Error::other(format!("{name} has more than {CONFIG_BYTES_MAX} bytes")));
        }
        return Ok(text);
    }
    Ok(String::new())
}

/// A plugin's process, ended when it is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    pidfd: OwnedFd,
    ended: AtomicBool,
}

impl Process {
    /// Kills it and takes its status. May be repeated. Blocks for as long as the kernel needs to kill it.
    pub(crate) fn end(&self) {
        if self.ended.swap(true, Ordering::AcqRel) {
            return;
        }
        let ended = crisp_sys::pidfd::kill(&self.pidfd).and_then(|()| crisp_sys::pidfd::wait(&self.pidfd));
        tracing::debug!(?ended, "plugin process ended");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// Starts the program in a session of its own, with our end of its socket as the result. It inherits nothing else, and no
/// environment but what the protocol names.
///
/// # Errors
/// The kernel's.
pub(crate) fn start(plugin: &Installed) -> io::Result<(Process, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    let text = |text: String| CString::new(text).map_err(|_nul| io::Error::from(io::ErrorKind::InvalidInput));
    let env = [
        text(format!("NRI_PLUGIN_NAME={}", plugin.identity.name))?,
        text(format!("NRI_PLUGIN_IDX={}", plugin.identity.index))?,
        CString::from(c"NRI_PLUGIN_SOCKET=3"),
    ];
    let (program, args) = command(&plugin.program)?;
    let program = File::open(program)?;
    let spawn = Spawn {
        program: program.as_fd(),
        args: &args,
        env: &env,
        fds: &[null.as_fd(), null.as_fd(), null.as_fd(), theirs.as_fd()],
        tasks: &[],
        cgroup: None,
    };
    let child = spawn.start()?;
    Ok((Process { pidfd: child.pidfd, ended: AtomicBool::new(false) }, ours))
}

/// What to execute: the file, or a script's interpreter. The kernel finds a script's interpreter itself, but then hands it a
/// descriptor of the script that is closed by then.
fn command(path: &Path) -> io::Result<(PathBuf, Vec<CString>)> {
    let text =
        |bytes: &[u8]| CString::new(bytes).map_err(|_nul| io::Error::from(io::ErrorKind::InvalidInput));
    let mut start = Vec::new();
    File::open(path)?.take(INTERPRETER_BYTES_MAX).read_to_end(&mut start)?;
    let own = text(path.as_os_str().as_bytes())?;
    let Some(line) = start.strip_prefix(b"#!") else { return Ok((path.to_owned(), vec![own])) };
    let line = line.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line).trim().to_owned();
    let (interpreter, argument) = line.split_once([' ', '\t']).unwrap_or((&line, ""));
    let mut args = vec![text(interpreter.as_bytes())?];
    if !argument.trim().is_empty() {
        args.push(text(argument.trim().as_bytes())?);
    }
    args.push(own);
    Ok((PathBuf::from(interpreter), args))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn program(path: &Path, text: &str) {
        fs::write(path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn plugins_are_found_in_order_with_their_configuration() {
        let (dir, conf) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        program(&dir.path().join("20-b"), "");
        program(&dir.path().join("10-a"), "");
        program(&dir.path().join("README"), "");
        fs::write(dir.path().join("30-not-executable"), "").unwrap();
        fs::write(conf.path().join("b.conf"), "for b").unwrap();
        fs::write(conf.path().join("20-b.conf"), "for 20-b").unwrap();
        let plugins = installed(dir.path(), conf.path()).unwrap();
        let found: Vec<_> = plugins.iter().map(|p| (p.identity.to_string(), p.config.as_str())).collect();
        assert_eq!(found, [("10-a".to_owned(), ""), ("20-b".to_owned(), "for 20-b")]);
        assert!(installed(Path::new("/nowhere"), conf.path()).unwrap().is_empty());
    }

    #[test]
    fn what_is_broken_leaves_the_others() {
        let (dir, conf) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink("/nowhere", dir.path().join("10-link")).unwrap();
        program(&dir.path().join("20-unconfigurable"), "");
        fs::create_dir(conf.path().join("20-unconfigurable.conf")).unwrap();
        program(&dir.path().join("30-sound"), "");
        let plugins = installed(dir.path(), conf.path()).unwrap();
        let found: Vec<_> = plugins.iter().map(|p| p.identity.to_string()).collect();
        assert_eq!(found, ["30-sound"]);
    }

    #[test]
    fn a_script_gets_its_socket_and_environment() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("07-script");
        program(&path, "#!/bin/sh -e\necho \"$NRI_PLUGIN_IDX $NRI_PLUGIN_NAME $NRI_PLUGIN_SOCKET\" >&3\n");
        let identity = Identity::of_file("07-script").unwrap();
        let (process, mut socket) =
            start(&Installed { identity, program: path, config: String::new() }).unwrap();
        let mut said = String::new();
        socket.read_to_string(&mut said).unwrap();
        assert_eq!(said, "07 script 3\n");
        process.end();
    }
}
