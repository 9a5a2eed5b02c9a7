//! Calls `apparmor_parser`, which compiles a profile and puts it into the kernel.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::DEFAULT_PROFILE;
use crate::{LsmError, Result};

const PROGRAM: &str = "apparmor_parser";
/// Where the program is looked for; the environment has no say.
pub(super) const DIRS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"];
/// How long the parser may take; some hundred milliseconds are usual.
pub(super) const TIME_MAX: Duration = Duration::from_secs(30);
/// Bytes of its words that an error repeats.
const WORDS_BYTES_MAX: u64 = 1024;

pub(super) fn find(dirs: &[PathBuf]) -> Option<PathBuf> {
    dirs.iter().map(|dir| dir.join(PROGRAM)).find(|path| path.is_file())
}

/// Loads the profile or replaces it, past the parser's cache on disk.
///
/// # Errors
/// [`LsmError::Load`] that tells what to do.
pub(super) fn load(dirs: &[PathBuf], text: &str) -> Result<()> {
    let refused = |reason: String| LsmError::Load { profile: DEFAULT_PROFILE, reason };
    let Some(program) = find(dirs) else {
        return Err(refused(format!(
            "this machine has no {PROGRAM}: install the package apparmor, or set [security] apparmor = \"off\""
        )));
    };
    let failed = |error: io::Error| refused(format!("{}: {error}", program.display()));
    // Files instead of pipes: nobody waits for anybody, however much is said.
    let (mut input, mut words) = (memory_file().map_err(failed)?, memory_file().map_err(failed)?);
    input.write_all(text.as_bytes()).and_then(|()| input.rewind()).map_err(failed)?;
    let mut child = Command::new(&program)
        .args(["--replace", "--skip-cache", "--quiet"])
        .env_clear()
        .current_dir("/")
        .stdin(input)
        .stdout(Stdio::null())
        .stderr(words.try_clone().map_err(failed)?)
        .spawn()
        .map_err(failed)?;
    let ended = ends_in_time(&child);
    if !matches!(ended, Ok(true)) {
        // It may have ended just now.
        child.kill().ok();
    }
    let status = child.wait().map_err(failed)?;
    match ended {
        Ok(true) if status.success() => Ok(()),
        Ok(true) => Err(refused(format!("{}: {status}: {}", program.display(), said(&mut words)))),
        Ok(false) => {
            Err(refused(format!("{} did not end within {} s", program.display(), TIME_MAX.as_secs())))
        }
        Err(error) => Err(failed(error)),
    }
}

fn memory_file() -> io::Result<File> {
    Ok(rustix::fs::memfd_create("crisp-apparmor", MemfdFlags::CLOEXEC)?.into())
}

fn ends_in_time(child: &Child) -> io::Result<bool> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let limit = Timespec { tv_sec: TIME_MAX.as_secs().cast_signed(), tv_nsec: 0 };
    loop {
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The beginning of what the parser said, on one line.
fn said(words: &mut File) -> String {
    let mut text = Vec::new();
    // What cannot be read is only missing from an error's text.
    words.rewind().and_then(|()| words.take(WORDS_BYTES_MAX).read_to_end(&mut text)).ok();
    String::from_utf8_lossy(&text).split_whitespace().collect::<Vec<_>>().join(" ")
}
