//! A pod's user namespace: how a process is born in it.
//!
//! ```text
//! parent ─ clone ─▶ middle: joins the cgroup, enters the namespaces, is their root
//!   ▲                 └─ clone(CLONE_PARENT) ─▶ child: a child of the middle's parent; a new PID namespace of its own
//!   └── pid, pidfd ───┘                                belongs to the user namespace
//! ```
//! Who has entered a user namespace never comes back, so the parent (the launcher that runs hooks, or the shim) does not go itself.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use crisp_sys::clone::{Child, CloneArgs, Parent, SingleThreaded};
use crisp_sys::fdpass;
use oci_spec::runtime::{Process, Spec};
use rustix::fs::FileType;
use rustix::thread::{Gid, Uid};

use crate::control::{self, Report};
use crate::error::{Error, Result, Step as _, chain};
use crate::handler::ChildStdio;

/// Name of a pod's pinned user namespace.
const FILE_NAME: &str = "user";

/// Namespaces to be entered, opened while their paths can be reached; the user namespace first.
#[derive(Debug)]
pub(crate) struct Entry(Vec<OwnedFd>);

impl Entry {
    /// `user`, and namespaces that belong to it.
    pub(crate) fn open<'a>(user: &'a Path, others: impl IntoIterator<Item = &'a Path>) -> Result<Self> {
        let open = |path: &Path| {
            crisp_sys::userns::open(path).step(|| format!("open the namespace {}", path.display()))
        };
        std::iter::once(user).chain(others).map(open).collect::<Result<_>>().map(Self)
    }

    /// Of pinned files; `None` when no user namespace is among them.
    pub(crate) fn of_pins(paths: &[String]) -> Result<Option<Self>> {
        let (user, others): (Vec<&Path>, Vec<&Path>) =
            paths.iter().map(Path::new).partition(|path| path.ends_with(FILE_NAME));
        user.first().map(|user| Self::open(user, others)).transpose()
    }

    /// Takes the calling process in, as the root of the user namespace. It has all capabilities there, and none outside.
    fn enter(&self) -> Result<()> {
        for namespace in &self.0 {
            // Whatever kind it is.
            rustix::thread::move_into_link_name_space(namespace.as_fd(), None)
                .step(|| "enter the pod's namespaces")?;
        }
        let step = || "become the root of the user namespace";
        rustix::thread::set_thread_groups(&[]).step(step)?;
        rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT).step(step)?;
        rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT).step(step)
    }
}

/// How the process is born.
#[derive(Debug)]
pub(crate) struct Birth<'a> {
    pub(crate) entry: &'a Entry,
    /// The middle process's: its parent becomes the child's.
    pub(crate) middle: CloneArgs<'a>,
    /// `CLONE_NEW…` flags of the child.
    pub(crate) namespaces: u64,
}

/// Makes a child in the user namespace. `before` runs with the rights that are lost there.
///
/// # Errors
/// The first step that failed.
pub(crate) fn fork(
    single: SingleThreaded,
    birth: &Birth<'_>,
    before: impl FnOnce() -> Result<()>,
    child: impl FnOnce() -> u8,
) -> Result<Child> {
    let (ours, theirs) = fdpass::pair().step(|| "make a control socket")?;
    let middle = || match in_between(single, birth, before, child, &theirs) {
        Ok(()) => 0,
        Err(error) => {
            control::send_failed(&theirs, &chain(&error));
            1
        }
    };
    single.fork(&birth.middle, middle).step(|| "clone a process for the user namespace")?;
    drop(theirs);
    // A few system calls away, none of which waits for anybody.
    match control::wait(&ours).step(|| "hear from the process in the user namespace")? {
        Some(Report::Process { pid, pidfd }) => Ok(Child { pid, pidfd }),
        Some(Report::Failed(text)) => Err(Error::Said(text)),
        Some(_) | None => Err(Error::Said("the process in the user namespace ended without a word".into())),
    }
}

/// A container's user as the host knows it; `None` for one that its user namespace does not have.
pub(crate) fn host_user(spec: &Spec, uid: u32) -> Option<u32> {
    let Some(mappings) = spec.linux().as_ref().and_then(|linux| linux.uid_mappings().as_ref()) else {
        return Some(uid);
    };
    mappings.iter().find_map(|mapping| {
        let at = uid.checked_sub(mapping.container_id()).filter(|at| *at < mapping.size())?;
        mapping.host_id().checked_add(at)
    })
}

/// Programs open `/dev/stdout` anew, which takes the right to open what lies behind it: pipes belong to the container's user, as with
/// the usual runtimes. Nothing else does; `/dev/null` is the host's.
pub(crate) fn give_pipes<'a>(fds: impl IntoIterator<Item = BorrowedFd<'a>>, user: Option<u32>) -> Result<()> {
    let step = || "hand the standard streams over";
    for fd in fds {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(fd).step(step)?.st_mode);
        if kind == FileType::Fifo {
            rustix::fs::fchown(fd, user.map(Uid::from_raw), None).step(step)?;
        }
    }
    Ok(())
}

/// The same for a container of a program that enters a user namespace, from where it cannot do so. `process`: of an exec.
pub(crate) fn give_pipes_ahead(bundle: &Path, process: Option<&[u8]>, stdio: &ChildStdio) -> Result<()> {
    let path = bundle.join("config.json");
    let text = std::fs::read(&path).step(|| format!("read {}", path.display()))?;
    let wrong = |error: serde_json::Error| Error::Invalid(format!("{}: {error}", path.display()));
    let spec: Spec = serde_json::from_slice(&text).map_err(wrong)?;
    if spec.linux().as_ref().is_none_or(|linux| linux.uid_mappings().is_none()) {
        return Ok(());
    }
    let process: Option<Process> = process.map(serde_json::from_slice).transpose().map_err(wrong)?;
    let uid = process.as_ref().or(spec.process().as_ref()).map_or(0, |process| process.user().uid());
    let fds = [&stdio.stdin, &stdio.stdout, &stdio.stderr].map(|fd| fd.as_fd());
    give_pipes(fds, host_user(&spec, uid))
}

fn in_between(
    single: SingleThreaded,
    birth: &Birth<'_>,
    before: impl FnOnce() -> Result<()>,
    child: impl FnOnce() -> u8,
    report: &OwnedFd,
) -> Result<()> {
    before()?;
    // Nobody in the user namespace may look into what is still a copy of the shim.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .step(|| "make a process not dumpable")?;
    birth.entry.enter()?;
    let args =
        CloneArgs { namespaces: birth.namespaces, parent: Parent::CallersParent, ..CloneArgs::default() };
    let child = single.fork(&args, child).step(|| "clone the process in the user namespace")?;
    control::send_process(report, child.pid, child.pidfd.as_fd()).step(|| "report the process")
}
