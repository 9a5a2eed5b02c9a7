//! Directories of pods that are no more: a reboot ends pods, and a command that is killed forgets its own.
//!
//! ```text
//! <root>/local          shared while a directory is born; whole while a search looks
//!              /<uid>   the command that made it, until its pod exists
//! ```
//! Both are locks of flock(2), which end with their holder. So a directory that a search can lock belongs to a pod that the daemon
//! lists by then, or to nobody.

use std::fs::{DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use crisp_proto::cri;

use super::client::Client;
use super::error::{CliError, Result};
use super::volumes;

/// While it lives no search takes the directory.
#[derive(Debug)]
pub(super) struct Claim {
    _locked: File,
}

/// Makes a pod's directory.
///
/// # Errors
/// Of the file system.
pub(super) fn claim(data: &Path) -> Result<Claim> {
    claim_new(data).map_err(CliError::io(format!("make {}", data.display())))
}

fn claim_new(data: &Path) -> io::Result<Claim> {
    let local = data.parent().unwrap_or(data);
    DirBuilder::new().recursive(true).mode(0o700).create(local)?;
    let birth = File::open(local)?;
    birth.lock_shared()?;
    DirBuilder::new().mode(0o700).create(data)?;
    let locked = File::open(data)?;
    locked.lock()?;
    Ok(Claim { _locked: locked })
}

/// Removes the directories whose pod the daemon does not know.
///
/// # Errors
/// Of the daemon and of the file system.
pub(super) async fn remove(client: &mut Client, root: &Path) -> Result<()> {
    let local = root.join("local");
    let found =
        unclaimed(&local).map_err(CliError::io(format!("look for left pods in {}", local.display())))?;
    if found.is_empty() {
        return Ok(());
    }
    // Asked for after the locks were taken: a directory without a lock got its pod before.
    let pods = client.pods(cri::PodSandboxFilter::default()).await?;
    let uid = |pod: &cri::PodSandbox| pod.metadata.as_ref().map(|metadata| metadata.uid.clone());
    for (data, _claim) in found {
        let is_of = |pod| uid(pod).is_some_and(|uid| data.ends_with(uid));
        if !pods.iter().any(is_of) {
            volumes::remove(&data)?;
        }
    }
    Ok(())
}

/// The directories of pods that nobody is making. None while another search, or a birth, is under way: there is a next time.
fn unclaimed(local: &Path) -> io::Result<Vec<(PathBuf, Claim)>> {
    let whole = match File::open(local) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        opened => opened?,
    };
    if !try_lock(&whole)? {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(local)? {
        let entry = entry?;
        let name = entry.file_name();
        if !volumes::is_uid(&name.to_string_lossy()) || !entry.file_type()?.is_dir() {
            continue;
        }
        let locked = File::open(entry.path())?;
        if try_lock(&locked)? {
            found.push((entry.path(), Claim { _locked: locked }));
        }
    }
    Ok(found)
}

fn try_lock(file: &File) -> io::Result<bool> {
    match file.try_lock() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    fn search(local: &Path) -> (Vec<PathBuf>, Vec<Claim>) {
        let mut found = unclaimed(local).unwrap();
        found.sort_by(|(one, _), (other, _)| one.cmp(other));
        found.into_iter().unzip()
    }

    /// Searches until just these are found. A child that another test starts has a copy of every descriptor, and so of the locks,
    /// until it executes its program.
    fn search_finds(local: &Path, want: &[&Path]) -> Vec<Claim> {
        let deadline = Instant::now() + LIMIT;
        loop {
            let (found, claims) = search(local);
            if found == want {
                return claims;
            }
            assert!(Instant::now() < deadline, "{found:?} are found, not {want:?}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn only_what_nobody_makes_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let local = dir.path().join("local");
        let nothing_is_found = || search(&local).0.is_empty();
        assert!(nothing_is_found(), "no pod was ever made");
        let [one, two] =
            ["1", "2"].map(|end| local.join(format!("11111111-2222-4333-8444-55555555555{end}")));
        let (first, second) = (claim(&one).unwrap(), claim(&two).unwrap());
        std::fs::create_dir(local.join("not of ours")).unwrap();
        assert!(nothing_is_found());
        drop(first);
        drop(search_finds(&local, &[&one]));
        assert!(claim(&one).is_err(), "a uid is used once");
        let another_search = search_finds(&local, &[&one]);
        assert!(nothing_is_found(), "the other one has it");
        drop((another_search, second));
        search_finds(&local, &[&one, &two]);
    }
}
