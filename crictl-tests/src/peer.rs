//! Servers that port-forward leads to, in the network of a pod.
use std::fs::File;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A TCP server on the loopback; dropping it ends it.
#[derive(Debug)]
pub struct Peer {
    listener: Arc<TcpListener>,
    port: u16,
}

impl Peer {
    /// Listens in a network namespace, or in our own; each connection is served on a thread of its own.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn start(netns: Option<&Path>, serve: fn(TcpStream)) -> Result<Self> {
        let listener = Arc::new(match netns {
            Some(path) => listen_in(path)?,
            None => TcpListener::bind(("127.0.0.1", 0))?,
        });
        let port = listener.local_addr()?.port();
        let accepting = Arc::clone(&listener);
        std::thread::spawn(move || {
            while let Ok((socket, _)) = accepting.accept() {
                std::thread::spawn(move || serve(socket));
            }
        });
        Ok(Self { listener, port })
    }

    /// The port it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Wakes the thread that accepts, which then ends.
        rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both).ok();
    }
}

/// Sockets belong to the namespace in which they are made: a thread that then ends makes this one.
fn listen_in(netns: &Path) -> Result<TcpListener> {
    let namespace = File::open(netns).with_context(|| format!("open {}", netns.display()))?;
    let listen = move || -> Result<TcpListener> {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(TcpListener::bind(("127.0.0.1", 0))?)
    };
    std::thread::spawn(listen).join().map_err(|_panic| anyhow!("the thread in the pod's network panicked"))?
}

/// Sends back what comes; after the client's end says how many bytes that were.
pub fn echo(mut socket: TcpStream) {
    let Ok(mut reader) = socket.try_clone() else { return };
    if let Ok(bytes) = std::io::copy(&mut reader, &mut socket) {
        drop(std::io::Write::write_all(&mut socket, format!("<{bytes} bytes>").as_bytes()));
    }
    drop(socket.shutdown(Shutdown::Write));
}
