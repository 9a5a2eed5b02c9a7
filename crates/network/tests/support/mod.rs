//! A host of its own for each test: the test runs itself again in new network and mount namespaces.
#![allow(dead_code, reason = "each test program uses a part")]
#![allow(clippy::print_stderr, clippy::print_stdout, reason = "a test says when it is not run")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "helpers of tests")]

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use crisp_domain::SandboxId;
use crisp_network::{AttachRequest, Network, NetworkConfig, PortMapping, Protocol};
use crisp_sys::netns::{PodNamespaces, PodNamespacesRequest, create_pod_namespaces, in_netns, unpin};

const INSIDE: &str = "CRISP_NETWORK_TEST_INSIDE";
/// Longer than any loaded machine needs, shorter than anybody's patience.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Runs `body` with a private host, or says that it is not run.
pub(crate) fn on_private_host(test: &str, body: impl FnOnce(&Path)) {
    if std::env::var_os(INSIDE).is_some() {
        if let Some(dir) = victim() {
            return body(&dir);
        }
        let dir = PathBuf::from(std::env::var_os(INSIDE).unwrap());
        sh("ip link set lo up");
        sh(&format!("mount -t tmpfs tmpfs {}", dir.display()));
        body(&dir);
        return;
    }
    if !rustix::process::geteuid().is_root() {
        eprintln!("{test}: not run: needs root");
        return;
    }
    // All that is put there lies on a file system that ends with the mount namespace.
    let dir = tempfile::tempdir().unwrap();
    let ended = Command::new("unshare")
        .args(["--net", "--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, dir.path())
        .output()
        .expect("unshare of util-linux");
    print!("{}", String::from_utf8_lossy(&ended.stdout));
    eprint!("{}", String::from_utf8_lossy(&ended.stderr));
    assert!(ended.status.success(), "{test} failed inside of its private host");
    assert!(
        String::from_utf8_lossy(&ended.stdout).contains("1 passed"),
        "{test} is not the name of the test"
    );
}

const VICTIM: &str = "CRISP_NETWORK_TEST_VICTIM";

/// In a process of [`spawn_victim`]: the directory it works in.
pub(crate) fn victim() -> Option<PathBuf> {
    std::env::var_os(VICTIM).map(PathBuf::from)
}

/// Runs a test of this program in another process of the same private host, to be killed there.
pub(crate) fn spawn_victim(test: &str, dir: &Path) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env(INSIDE, "1")
        .env(VICTIM, dir)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

/// Runs a command line that must succeed; gives its output.
pub(crate) fn sh(line: &str) -> String {
    let out = Command::new("sh").args(["-c", line]).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{line}: {said}");
    said
}

/// Where the reference plugins lie: newer ones than the distribution's can be named.
pub(crate) fn reference_plugins() -> PathBuf {
    std::env::var_os("CRISP_CNI_BIN_DIR").map_or_else(|| "/usr/lib/cni".into(), PathBuf::from)
}

/// Do the reference plugins speak this version? A test that needs it says that it is not run.
pub(crate) fn reference_plugins_speak(version: &str) -> bool {
    let bridge = reference_plugins().join("bridge");
    if !bridge.exists() {
        println!("the reference plugins are not installed: not run");
        return false;
    }
    let said = sh(&format!("echo '{{\"cniVersion\":\"1.0.0\"}}' | CNI_COMMAND=VERSION {}", bridge.display()));
    let speak = said.contains(&format!("\"{version}\""));
    if !speak {
        println!("the reference plugins do not speak {version}: not run with it");
    }
    speak
}

/// Settings with everything below `dir` and no CNI.
pub(crate) fn config(dir: &Path) -> NetworkConfig {
    let mut config = NetworkConfig::new(dir.join("network"));
    config.cni_conf_dir = dir.join("net.d");
    config.cni_bin_dirs = vec![dir.join("bin"), reference_plugins()];
    config.plugin_timeout = Duration::from_secs(30);
    config
}

/// A pod's namespaces; gone when dropped.
pub(crate) struct Pod {
    pub(crate) id: SandboxId,
    pub(crate) netns: PathBuf,
    pub(crate) request: AttachRequest,
}

impl Pod {
    pub(crate) fn new(dir: &Path, name: &str) -> Self {
        let id = SandboxId::random().unwrap();
        let ns = dir.join("ns").join(id.as_str());
        std::fs::create_dir_all(&ns).unwrap();
        let request =
            PodNamespacesRequest { dir: ns, net: true, ipc: false, hostname: None, sysctls: Vec::new() };
        let PodNamespaces { net, netlink, .. } = create_pod_namespaces(&request).unwrap();
        let netns = net.unwrap();
        let mut request = AttachRequest::new(id.clone(), netns.clone());
        request.netlink = netlink.map(Arc::new);
        (request.pod_name, request.pod_namespace) = (name.into(), "default".into());
        Self { id, netns, request }
    }

    pub(crate) fn publish(
        &mut self,
        protocol: Protocol,
        host_port: u16,
        container_port: u16,
        host_ip: Option<&str>,
    ) {
        let host_ip = host_ip.map(|ip| ip.parse().unwrap());
        self.request.port_mappings.push(PortMapping { protocol, container_port, host_port, host_ip });
    }

    /// Ends the pod's namespace.
    pub(crate) fn end(&mut self) {
        self.request.netlink = None;
        unpin(&self.netns).unwrap();
    }

    /// Runs `work` inside.
    pub(crate) fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        in_netns(&self.netns, work).unwrap()
    }

    pub(crate) fn ip_output(&self, arguments: &str) -> String {
        self.within(|| sh(&format!("ip {arguments}")))
    }

    /// Serves TCP on `port`: each client is told its own address as seen from here.
    pub(crate) fn serve_tcp(&self, port: u16) {
        self.within(|| serve_tcp(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port)));
    }

    pub(crate) fn serve_tcp6(&self, port: u16) {
        self.within(|| serve_tcp(SocketAddr::new(IpAddr::from([0; 16]), port)));
    }

    pub(crate) fn serve_udp(&self, port: u16, answer: &'static str) {
        self.within(|| serve_udp(port, answer));
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.end();
    }
}

pub(crate) fn attach(network: &Network, pod: &Pod) -> IpAddr {
    network.attach(&pod.request).unwrap_or_else(|e| panic!("{}", chain(&e))).ips[0]
}

pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {}", chain(source)))
}

/// Serves in the namespace of the calling thread, for as long as the process lives.
pub(crate) fn serve_tcp(address: SocketAddr) {
    let listener = TcpListener::bind(address).unwrap();
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(mut client) = client else { continue };
            let peer = client.peer_addr().unwrap().ip().to_canonical();
            drop(write!(client, "{peer}"));
        }
    });
}

pub(crate) fn serve_udp(port: u16, answer: &'static str) {
    // Of both families.
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, client)) = socket.recv_from(&mut buffer) {
            drop(socket.send_to(answer.as_bytes(), client));
        }
    });
}

/// What a server of [`serve_tcp`] tells: our address as it sees it.
pub(crate) fn ask_tcp(to: &str) -> std::io::Result<String> {
    ask_tcp_within(to, PATIENCE)
}

pub(crate) fn ask_tcp_within(to: &str, patience: Duration) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to.parse().unwrap(), patience)?;
    stream.set_read_timeout(Some(patience))?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}

pub(crate) fn ask_udp(from_port: u16, to: &str, patience: Duration) -> std::io::Result<String> {
    let to: SocketAddr = to.parse().unwrap();
    let any = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { IpAddr::from(Ipv6Addr::UNSPECIFIED) };
    let socket = UdpSocket::bind((any, from_port))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(patience))?;
    socket.send(b"?")?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}
