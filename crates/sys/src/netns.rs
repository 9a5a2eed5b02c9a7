//! Namespaces of pods: made, entered and pinned on throw-away threads.
//!
//! A thread that has changed its namespaces never goes back: it does its work and ends, so a failure leaves no pooled
//! thread of the daemon in a pod's network. Pinning is a bind mount of `/proc/thread-self/ns/<kind>` on a file; it keeps
//! the namespace alive when the thread, and later the daemon, is gone.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use crate::clone::Idle;
use crate::userns::{CLONE_NEWUSER, IdMap};

/// A failed operation on namespaces.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetnsError {
    /// No thread could be made, or it died.
    #[error("run a thread for a namespace")]
    Thread(#[source] io::Error),
    /// The kernel gave no new namespaces.
    #[error("unshare namespaces")]
    Unshare(#[source] io::Error),
    /// The ids of the new user namespace were refused.
    #[error("map the ids of the user namespace")]
    IdMap(#[source] io::Error),
    /// The host name was refused.
    #[error("set the host name to {name:?}")]
    Hostname {
        /// The name.
        name: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The loopback interface of the new namespace stays down, or no netlink socket could be had.
    #[error("{operation} in the network namespace")]
    Netlink {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A sysctl of the new namespaces cannot be set.
    #[error("set sysctl {name} to {value:?}")]
    Sysctl {
        /// Dotted name.
        name: String,
        /// The value.
        value: String,
        /// `NotFound`: the kernel has no such setting, or it is not one of a namespace.
        #[source]
        source: io::Error,
    },
    /// A namespace cannot be pinned to, or opened from, a file.
    #[error("{operation} {}", path.display())]
    Pin {
        /// What was tried.
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// What [`create_pod_namespaces`] makes.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each namespace is wanted or not, by itself")]
pub struct PodNamespacesRequest {
    /// An existing directory; the files `net`, `ipc` and `uts` are made in it and must not exist.
    pub dir: PathBuf,
    /// A network namespace, its loopback interface up.
    pub net: bool,
    /// An IPC namespace.
    pub ipc: bool,
    /// A UTS namespace with this host name; `None` makes none.
    pub hostname: Option<String>,
    /// Dotted or slashed names with values, applied in order. Only settings of the namespaces that are made: the caller
    /// has checked that.
    pub sysctls: Vec<(String, String)>,
}

/// Pinned namespaces of a pod.
#[derive(Debug)]
pub struct PodNamespaces {
    /// `<dir>/user`, if ids were given.
    pub user: Option<PathBuf>,
    /// `<dir>/net`, if one was asked for.
    pub net: Option<PathBuf>,
    /// `<dir>/ipc`, if one was asked for.
    pub ipc: Option<PathBuf>,
    /// `<dir>/uts`, if one was asked for.
    pub uts: Option<PathBuf>,
    /// A route socket in the new network namespace. It keeps that namespace, and so the pod's interfaces, alive.
    pub netlink: Option<OwnedFd>,
}

/// Stack of a throw-away thread: the work is shallow, the closure of [`in_netns`] included.
const THREAD_STACK_BYTES: usize = 512 << 10;

/// Makes the namespaces that a pod shares, and pins them.
///
/// On an error nothing of them is left.
///
/// # Errors
/// [`NetnsError`]; the directory must exist, the kernel must allow `unshare`.
pub fn create_pod_namespaces(request: &PodNamespacesRequest) -> Result<PodNamespaces, NetnsError> {
    on_own_thread(|| create_here(request, None))?
}

/// As [`create_pod_namespaces`], with a user namespace of these ids, which owns the others and is pinned to `<dir>/user`: its root
/// may set what belongs to them.
///
/// # Errors
/// [`NetnsError`]; the kernel must allow the ids.
pub fn create_pod_namespaces_for(
    request: &PodNamespacesRequest,
    ids: &IdMap,
) -> Result<PodNamespaces, NetnsError> {
    on_own_thread(|| create_here(request, Some(ids)))?
}

/// Binds the PID namespace of a process on a new file, so that it is joined by something that no other process takes over. The
/// caller makes sure, after this, that `pid` still is the process it means.
///
/// # Errors
/// When the file exists, or the process is gone.
pub fn pin_pid_namespace(pid: i32, path: &Path) -> Result<(), NetnsError> {
    pin_from(&format!("/proc/{pid}/ns/pid"), path)
}

/// Takes the pin off a namespace: unmounts the file and removes it. What is gone already is fine.
///
/// # Errors
/// When the file can be neither unmounted nor removed.
pub fn unpin(path: &Path) -> Result<(), NetnsError> {
    let failed = |operation| move |e: Errno| pin_error(operation, path, e);
    match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        // EINVAL: a file that nothing is mounted on.
        Ok(()) | Err(Errno::NOENT | Errno::INVAL) => {}
        Err(e) => return Err(failed("unmount namespace")(e)),
    }
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(failed("remove namespace file")(e)),
    }
}

/// Runs `work` inside the network namespace that is pinned at `netns`, on a thread made for it.
///
/// # Errors
/// When the namespace cannot be entered; what `work` returns is handed through.
pub fn in_netns<T: Send>(netns: &Path, work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    on_own_thread(|| enter(netns).map(|()| work()))?
}

/// Opens a route socket (`NETLINK_ROUTE`) inside the network namespace that is pinned at `netns`. It works from any
/// thread, without changing namespaces again, and keeps that namespace alive until it is closed.
///
/// # Errors
/// When the namespace cannot be entered, or gives no socket.
pub fn open_netlink_in(netns: &Path) -> Result<OwnedFd, NetnsError> {
    in_netns(netns, open_route_socket)?
}

/// Opens a route socket in the network namespace of the calling thread.
///
/// # Errors
/// When the kernel gives none.
pub fn open_route_socket() -> Result<OwnedFd, NetnsError> {
    let failed = |e: Errno| NetnsError::Netlink { operation: "open a route socket", source: e.into() };
    let socket =
        rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)
            .map_err(failed)?;
    rustix::net::bind(&socket, &SocketAddrNetlink::new(0, 0)).map_err(failed)?;
    Ok(socket)
}

fn on_own_thread<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("netns".into()).stack_size(THREAD_STACK_BYTES);
        let running = builder.spawn_scoped(scope, work).map_err(NetnsError::Thread)?;
        running.join().map_err(|_panic| NetnsError::Thread(io::Error::other("the thread panicked")))
    })
}

fn enter(netns: &Path) -> Result<(), NetnsError> {
    let file = rustix::fs::open(netns, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| pin_error("open network namespace", netns, e))?;
    rustix::thread::move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|e| pin_error("enter network namespace", netns, e))
}

fn create_here(request: &PodNamespacesRequest, ids: Option<&IdMap>) -> Result<PodNamespaces, NetnsError> {
    let flags = [
        (request.net, UnshareFlags::NEWNET),
        (request.ipc, UnshareFlags::NEWIPC),
        (request.hostname.is_some(), UnshareFlags::NEWUTS),
    ];
    let flags =
        flags.into_iter().filter(|(wanted, _)| *wanted).fold(UnshareFlags::empty(), |a, (_, flag)| a | flag);
    let owner = match ids {
        Some(ids) => Some(enter_owned(flags, ids)?),
        None => {
            // SAFETY: rustix asks that threads keep seeing each other's descriptors. `FILES` is not among the flags, so the
            // descriptor table stays shared; there is no safe wrapper, because rustix cannot see which flags are given.
            unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(|e| NetnsError::Unshare(e.into()))?;
            None
        }
    };
    let user = owner.as_ref().map(|owner| owner.pin(&request.dir)).transpose()?;
    let made = finish_here(request, ids).map(|made| PodNamespaces { user: user.clone(), ..made });
    if let (Err(_), Some(user)) = (&made, &user) {
        // The first failure is the one to report.
        drop(unpin(user));
    }
    made
}

/// A process in a new user namespace.
struct Owner(Idle);

impl Owner {
    fn pin(&self, dir: &Path) -> Result<PathBuf, NetnsError> {
        let path = dir.join("user");
        pin_from(&format!("/proc/{}/ns/user", self.0.pid), &path)?;
        Ok(path)
    }
}

/// Makes namespaces that a new user namespace owns, and takes the calling thread into all of them but that one: a process of many
/// threads can neither make nor enter a user namespace, so another process makes all of them at once.
fn enter_owned(flags: UnshareFlags, ids: &IdMap) -> Result<Owner, NetnsError> {
    let owner = Idle::start(CLONE_NEWUSER | u64::from(flags.bits())).map_err(NetnsError::Unshare)?;
    ids.write(owner.pid).map_err(NetnsError::IdMap)?;
    for (flag, kind) in
        [(UnshareFlags::NEWNET, "net"), (UnshareFlags::NEWIPC, "ipc"), (UnshareFlags::NEWUTS, "uts")]
    {
        if flags.contains(flag) {
            let path = PathBuf::from(format!("/proc/{}/ns/{kind}", owner.pid));
            let file =
                crate::userns::open(&path).map_err(|e| pin_error("open the new namespace", &path, e))?;
            rustix::thread::move_into_link_name_space(file.as_fd(), None)
                .map_err(|e| pin_error("enter the new namespace", &path, e))?;
        }
    }
    Ok(Owner(owner))
}

fn finish_here(request: &PodNamespacesRequest, ids: Option<&IdMap>) -> Result<PodNamespaces, NetnsError> {
    if let Some(name) = &request.hostname {
        rustix::system::sethostname(name.as_bytes())
            .map_err(|e| NetnsError::Hostname { name: name.clone(), source: e.into() })?;
    }
    let netlink = if request.net { Some(open_with_loopback_up()?) } else { None };
    match ids.and_then(IdMap::root) {
        Some((uid, gid)) => {
            crate::userns::with_effective_user(uid, gid, || apply_sysctls(&request.sysctls))
                .map_err(NetnsError::IdMap)??;
        }
        None => apply_sysctls(&request.sysctls)?,
    }
    let (net, ipc, uts) = pin_all(request)?;
    Ok(PodNamespaces { user: None, net, ipc, uts, netlink })
}

type Pins = (Option<PathBuf>, Option<PathBuf>, Option<PathBuf>);

fn pin_all(request: &PodNamespacesRequest) -> Result<Pins, NetnsError> {
    let mut pinned = Vec::with_capacity(3);
    let mut one = |wanted: bool, kind: &str| -> Result<Option<PathBuf>, NetnsError> {
        if !wanted {
            return Ok(None);
        }
        let path = pin(&request.dir, kind)?;
        pinned.push(path.clone());
        Ok(Some(path))
    };
    let made = one(request.net, "net").and_then(|net| {
        one(request.ipc, "ipc")
            .and_then(|ipc| one(request.hostname.is_some(), "uts").map(|uts| (net, ipc, uts)))
    });
    if made.is_err() {
        for path in &pinned {
            // The first failure is the one to report; a pin that stays is found by the next unpin of the directory.
            drop(unpin(path));
        }
    }
    made
}

/// Binds the calling thread's namespace on `<dir>/<kind>`.
fn pin(dir: &Path, kind: &str) -> Result<PathBuf, NetnsError> {
    let path = dir.join(kind);
    pin_from(&format!("/proc/thread-self/ns/{kind}"), &path)?;
    Ok(path)
}

/// Binds a namespace on a new file.
fn pin_from(namespace: &str, path: &Path) -> Result<(), NetnsError> {
    // EXCL: a file that exists belongs to somebody, and a second mount on it would hide the first.
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(CWD, path, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|e| pin_error("create namespace file", path, e))?;
    drop(file);
    rustix::mount::mount_bind(namespace, path).map_err(|e| {
        // The mount error is the one to report.
        let _ = rustix::fs::unlink(path);
        pin_error("bind namespace to", path, e)
    })
}

fn pin_error(operation: &'static str, path: &Path, e: Errno) -> NetnsError {
    NetnsError::Pin { operation, path: path.to_owned(), source: e.into() }
}

/// Writes sysctls of the calling thread's namespaces.
///
/// No fresh procfs is needed: the kernel resolves `/proc/sys/net` by the network namespace of the task that looks a name
/// up, and the handlers of `kernel.*`, `fs.mqueue.*` and `net.*` act on the namespaces of the task that writes. So it is
/// enough that this thread, which has them, does both.
fn apply_sysctls(sysctls: &[(String, String)]) -> Result<(), NetnsError> {
    if sysctls.is_empty() {
        return Ok(());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let failed = |name: &str, value: &str, source: io::Error| NetnsError::Sysctl {
        name: name.to_owned(),
        value: value.to_owned(),
        source,
    };
    let root = rustix::fs::open(c"/proc/sys", flags, Mode::empty())
        .map_err(|e| failed(&sysctls[0].0, &sysctls[0].1, e.into()))?;
    for (name, value) in sysctls {
        write_sysctl(root.as_fd(), name, value).map_err(|source| failed(name, value, source))?;
    }
    Ok(())
}

fn write_sysctl(root: BorrowedFd<'_>, name: &str, value: &str) -> io::Result<()> {
    let path = sysctl_path(name).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let file =
        rustix::fs::openat(root, path, OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?;
    let written = rustix::io::write(&file, value.as_bytes())?;
    if written == value.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// A sysctl's path below `/proc/sys`. The first separator decides, as in sysctl(8): `net.ipv4.conf.eth0/1.forwarding`
/// and `net/ipv4/conf/eth0.1/forwarding` are the same.
fn sysctl_path(name: &str) -> Option<String> {
    let path: String = match name.find(['.', '/']) {
        Some(at) if name.as_bytes()[at] == b'.' => name
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
        _ => name.to_owned(),
    };
    let sound = path.split('/').all(|part| !matches!(part, "" | "." | "..")) && !path.contains('\0');
    sound.then_some(path)
}

/// `struct nlmsghdr` (16 bytes) and `struct ifinfomsg` (16 bytes), from `linux/netlink.h` and `linux/rtnetlink.h`.
const LINK_MESSAGE_BYTES: usize = 32;
/// Loopback is the first interface of every network namespace.
const LOOPBACK_INDEX: u32 = 1;

fn open_with_loopback_up() -> Result<OwnedFd, NetnsError> {
    let socket = open_route_socket()?;
    loopback_up(socket.as_fd())
        .map_err(|source| NetnsError::Netlink { operation: "bring the loopback interface up", source })?;
    Ok(socket)
}

fn loopback_up(socket: BorrowedFd<'_>) -> io::Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST_ACK: u16 = 1 | 4;
    const NLMSG_ERROR: u16 = 2;
    const IFF_UP: u32 = 1;
    let mut message = Vec::with_capacity(LINK_MESSAGE_BYTES);
    message.extend_from_slice(&32u32.to_ne_bytes());
    message.extend_from_slice(&RTM_NEWLINK.to_ne_bytes());
    message.extend_from_slice(&NLM_F_REQUEST_ACK.to_ne_bytes());
    message.extend_from_slice(&[0; 12]); // sequence, port, then family and type
    message.extend_from_slice(&LOOPBACK_INDEX.to_ne_bytes());
    message.extend_from_slice(&IFF_UP.to_ne_bytes());
    message.extend_from_slice(&IFF_UP.to_ne_bytes()); // the flags to change
    rustix::net::send(socket, &message, SendFlags::empty())?;
    let mut answer = [0u8; 256];
    let (_, length) = rustix::net::recv(socket, &mut answer, RecvFlags::empty())?;
    let kind = u16::from_ne_bytes([answer[4], answer[5]]);
    if length < 20 || kind != NLMSG_ERROR {
        return Err(io::ErrorKind::InvalidData.into());
    }
    match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(error.wrapping_neg())),
    }
}

#[cfg(test)]
#[expect(clippy::print_stderr, clippy::print_stdout, reason = "what was not run, and what was measured")]
mod tests {
    use std::ffi::CStr;
    use std::fs;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Instant;

    use super::*;

    /// Runs `body` on a thread with its own mount namespace, with a directory on a tmpfs of its own.
    fn privately(body: impl FnOnce(&Path) + Send) {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !rustix::process::geteuid().is_root() {
            eprintln!("not run: needs root");
            return;
        }
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("crisp-netns-{}-{n}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        thread::scope(|scope| {
            let run = scope.spawn(|| {
                // SAFETY: `FILES` is not among the flags.
                unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
                let private =
                    rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
                rustix::mount::mount_change("/", private).unwrap();
                rustix::mount::mount(
                    "tmpfs",
                    &dir,
                    "tmpfs",
                    rustix::mount::MountFlags::empty(),
                    None::<&CStr>,
                )
                .unwrap();
                body(&dir);
            });
            let ended = run.join();
            fs::remove_dir(&dir).unwrap();
            ended.unwrap();
        });
    }

    fn request(dir: &Path) -> PodNamespacesRequest {
        let sysctls = [("net.ipv4.ip_unprivileged_port_start", "0"), ("kernel.shm_rmid_forced", "1")];
        PodNamespacesRequest {
            dir: dir.into(),
            net: true,
            ipc: true,
            hostname: Some("web-0".into()),
            sysctls: sysctls.map(|(n, v)| (n.to_owned(), v.to_owned())).into(),
        }
    }

    fn read(path: &str) -> String {
        fs::read_to_string(path).unwrap().trim().to_owned()
    }

    #[test]
    fn namespaces_are_new_and_pinned_with_loopback_and_sysctls() {
        privately(|dir| {
            let outside = read("/proc/sys/net/ipv4/ip_unprivileged_port_start");
            let shm = read("/proc/sys/kernel/shm_rmid_forced");
            let made = create_pod_namespaces(&request(dir)).unwrap();
            let net = made.net.unwrap();
            let inside = in_netns(&net, || {
                let port = read("/proc/sys/net/ipv4/ip_unprivileged_port_start");
                (port, std::net::UdpSocket::bind("127.0.0.1:0").unwrap().connect("127.0.0.1:9").is_ok())
            });
            assert_eq!(inside.unwrap(), ("0".to_owned(), true));
            assert_eq!(read("/proc/sys/net/ipv4/ip_unprivileged_port_start"), outside);
            assert_eq!(read("/proc/sys/kernel/shm_rmid_forced"), shm);
            let uts = fs::File::open(made.uts.unwrap()).unwrap();
            let ipc = fs::File::open(made.ipc.unwrap()).unwrap();
            let seen = on_own_thread(|| {
                rustix::thread::move_into_link_name_space(uts.as_fd(), None).unwrap();
                rustix::thread::move_into_link_name_space(ipc.as_fd(), None).unwrap();
                (read("/proc/sys/kernel/hostname"), read("/proc/sys/kernel/shm_rmid_forced"))
            });
            assert_eq!(seen.unwrap(), ("web-0".to_owned(), "1".to_owned()));
            for kind in ["net", "ipc", "uts"] {
                unpin(&dir.join(kind)).unwrap();
                unpin(&dir.join(kind)).unwrap();
            }
            assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
        });
    }

    /// The user namespace that owns another one, by `NS_GET_USERNS` (`linux/nsfs.h`).
    fn owner_of(path: &Path) -> OwnedFd {
        use std::os::fd::{AsRawFd as _, FromRawFd as _};
        let file = fs::File::open(path).unwrap();
        // SAFETY: an ioctl without argument on a descriptor of ours.
        let fd = unsafe { libc::ioctl(file.as_raw_fd(), 0xb701) };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the kernel gave a new descriptor.
        unsafe { OwnedFd::from_raw_fd(fd) }
    }

    #[test]
    fn a_user_namespace_owns_the_others() {
        privately(|dir| {
            let ids = IdMap::shifted(200_000, 65_536);
            let made = create_pod_namespaces_for(&request(dir), &ids).unwrap();
            let user = crate::userns::open(&made.user.clone().unwrap()).unwrap();
            for path in [made.net.clone(), made.ipc.clone(), made.uts.clone()] {
                assert!(crate::userns::same(&user, owner_of(&path.unwrap())).unwrap());
            }
            let port = "/proc/sys/net/ipv4/ip_unprivileged_port_start";
            assert_eq!(in_netns(&made.net.clone().unwrap(), || read(port)).unwrap(), "0");
            // Its root owns the settings.
            let owner = in_netns(&made.net.clone().unwrap(), || {
                std::os::unix::fs::MetadataExt::uid(&fs::metadata(port).unwrap())
            });
            assert_eq!(owner.unwrap(), 200_000);
            for kind in ["user", "net", "ipc", "uts"] {
                unpin(&dir.join(kind)).unwrap();
            }
            let refused = create_pod_namespaces_for(&request(dir), &IdMap::shifted(u32::MAX - 1, 65_536));
            assert!(matches!(refused, Err(NetnsError::IdMap(_))));
            assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
        });
    }

    #[test]
    fn a_failed_creation_leaves_nothing() {
        privately(|dir| {
            fs::write(dir.join("uts"), "taken").unwrap();
            assert!(matches!(create_pod_namespaces(&request(dir)), Err(NetnsError::Pin { .. })));
            assert_eq!(fs::read_to_string(dir.join("uts")).unwrap(), "taken");
            assert_eq!(fs::read_dir(dir).unwrap().count(), 1);

            fs::remove_file(dir.join("uts")).unwrap();
            let mut wrong = request(dir);
            wrong.sysctls.push(("net.ipv4.no_such_setting".into(), "1".into()));
            let e = create_pod_namespaces(&wrong).unwrap_err();
            assert!(e.to_string().contains("no_such_setting"), "{e}");
            assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
        });
    }

    #[test]
    fn entering_what_is_no_namespace_is_an_error() {
        assert!(matches!(in_netns(Path::new("/nowhere/net"), || ()), Err(NetnsError::Pin { .. })));
    }

    #[test]
    fn sysctl_names_become_paths() {
        let cases = [
            ("net.core.somaxconn", Some("net/core/somaxconn")),
            ("net.ipv4.conf.eth0/1.forwarding", Some("net/ipv4/conf/eth0.1/forwarding")),
            ("net/ipv4/conf/eth0.1/forwarding", Some("net/ipv4/conf/eth0.1/forwarding")),
            ("net/../kernel/core_pattern", None),
            ("/etc/passwd", None),
            ("net..x", None),
            ("", None),
        ];
        for (name, path) in cases {
            assert_eq!(sysctl_path(name).as_deref(), path, "{name}");
        }
    }

    /// Prints what a creation takes.
    #[test]
    fn namespaces_come_and_go() {
        privately(|dir| {
            let mut times = Vec::new();
            for n in 0..50 {
                let dir = dir.join(n.to_string());
                fs::create_dir(&dir).unwrap();
                let started = Instant::now();
                let made = create_pod_namespaces(&request(&dir)).unwrap();
                times.push(started.elapsed());
                drop(made);
                for kind in ["net", "ipc", "uts"] {
                    unpin(&dir.join(kind)).unwrap();
                }
            }
            times.sort();
            println!("create_pod_namespaces p50 {:?} p95 {:?}", times[25], times[47]);
            let mut times = Vec::new();
            for n in 50..100 {
                let dir = dir.join(n.to_string());
                fs::create_dir(&dir).unwrap();
                let started = Instant::now();
                let made =
                    create_pod_namespaces_for(&request(&dir), &IdMap::shifted(200_000, 65_536)).unwrap();
                times.push(started.elapsed());
                drop(made);
                for kind in ["user", "net", "ipc", "uts"] {
                    unpin(&dir.join(kind)).unwrap();
                }
            }
            times.sort();
            println!("with a user namespace p50 {:?} p95 {:?}", times[25], times[47]);
            let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap();
            assert!(!mounts.contains(&format!("{}/", dir.display())), "{mounts}");
        });
    }
}
