//! User namespaces by their mappings, and work under other ids.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::thread;

use rustix::fs::{Mode, OFlags};

use crate::clone::Idle;

/// Flag of `clone3` for a user namespace (`linux/sched.h`).
pub(crate) const CLONE_NEWUSER: u64 = 0x1000_0000;
/// Lines that a map may have (`UID_GID_MAP_MAX_EXTENTS`).
pub const RANGES_MAX: usize = 340;
/// Stack of a thread of [`as_user`].
const THREAD_STACK_BYTES: usize = 512 << 10;

/// A run of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// The first one inside.
    pub inside: u32,
    /// What it is outside.
    pub outside: u32,
    /// How many follow each other.
    pub length: u32,
}

/// The ids of a user namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdMap {
    /// Of users.
    pub uids: Vec<IdRange>,
    /// Of groups.
    pub gids: Vec<IdRange>,
}

impl IdMap {
    /// Ids from 0, users and groups alike.
    #[must_use]
    pub fn shifted(outside: u32, length: u32) -> Self {
        let ranges = vec![IdRange { inside: 0, outside, length }];
        Self { uids: ranges.clone(), gids: ranges }
    }

    /// What the user and the group 0 are outside; none where they are not mapped.
    #[must_use]
    pub fn root(&self) -> Option<(u32, u32)> {
        let zero = |ranges: &[IdRange]| ranges.iter().find(|range| range.inside == 0).map(|r| r.outside);
        Some((zero(&self.uids)?, zero(&self.gids)?))
    }

    /// Writes the maps of a process that is alone in its user namespace.
    pub(crate) fn write(&self, pid: i32) -> io::Result<()> {
        let text = |ranges: &[IdRange]| -> String {
            ranges.iter().map(|r| format!("{} {} {}\n", r.inside, r.outside, r.length)).collect()
        };
        // One call each: the kernel takes the whole map or none of it.
        std::fs::write(format!("/proc/{pid}/uid_map"), text(&self.uids))?;
        std::fs::write(format!("/proc/{pid}/gid_map"), text(&self.gids))
    }
}

/// A user namespace with these ids and no process in it; it lives as long as the descriptor.
///
/// # Errors
/// The kernel's: `InvalidInput` for a map that overlaps or has more than [`RANGES_MAX`] ranges.
pub fn with_mapping(ids: &IdMap) -> io::Result<OwnedFd> {
    let idle = Idle::start(CLONE_NEWUSER)?;
    ids.write(idle.pid)?;
    Ok(open(Path::new(&format!("/proc/{}/ns/user", idle.pid)))?)
}

/// Opens a namespace, pinned or a process's.
///
/// # Errors
/// The kernel's.
pub fn open(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Whether two descriptors mean the same namespace.
///
/// # Errors
/// The kernel's.
pub fn same(a: impl AsFd, b: impl AsFd) -> rustix::io::Result<bool> {
    let (a, b) = (rustix::fs::fstat(a)?, rustix::fs::fstat(b)?);
    Ok((a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}

/// Runs `work` on a thread of its own: what it makes on file systems belongs to this user and group. It keeps all capabilities, so
/// it is not kept from anything.
///
/// # Errors
/// When there is no thread, or the ids cannot be taken.
pub fn as_user<T: Send>(uid: u32, gid: u32, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("as-user".into()).stack_size(THREAD_STACK_BYTES);
        let running = builder.spawn_scoped(scope, move || {
            become_user(uid, gid)?;
            Ok(work())
        })?;
        running.join().map_err(|_panic| io::Error::other("the thread panicked"))?
    })
}

fn become_user(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: an integer; changes the calling thread alone.
    unsafe { libc::syscall(libc::SYS_setfsgid, gid) };
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_setfsuid, uid) };
    // The calls above tell the former id, whether they worked or not; an id that cannot be is answered with the current one.
    // SAFETY: as above.
    let now = unsafe { libc::syscall(libc::SYS_setfsuid, libc::c_long::from(-1)) };
    if u32::try_from(now).ok() != Some(uid) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    raise_permitted()
}

/// Runs `work` with this effective user on the calling thread, which must be a throw-away one: what fails here may leave it so. The
/// kernel asks for the very owner of some settings and lets no capability stand in for it.
pub(crate) fn with_effective_user<T>(uid: u32, gid: u32, work: impl FnOnce() -> T) -> io::Result<T> {
    use rustix::process::{getgid, getuid};
    use rustix::thread::{Gid, Uid, set_thread_res_gid, set_thread_res_uid};
    let (own_uid, own_gid) = (getuid(), getgid());
    set_thread_res_gid(own_gid, Gid::from_raw(gid), own_gid)?;
    set_thread_res_uid(own_uid, Uid::from_raw(uid), own_uid)?;
    raise_permitted()?;
    let done = work();
    set_thread_res_uid(own_uid, own_uid, own_uid)?;
    set_thread_res_gid(own_gid, own_gid, own_gid)?;
    Ok(done)
}

/// Leaving user 0 takes capabilities out of the effective set.
fn raise_permitted() -> io::Result<()> {
    let mut sets = rustix::thread::capabilities(None)?;
    sets.effective = sets.permitted;
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

#[cfg(test)]
#[path = "userns_tests.rs"]
mod tests;
