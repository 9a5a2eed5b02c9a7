//! A plugin by the Node Resource Interface, as its other side sees it: mux and ttrpc by hand, and only the fields that the tests
//! look at. Nothing of it is shared with the daemon.
use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use prost::Message as _;

use crate::eventually::{SOON, eventually};

/// The mux's stream on which the runtime calls.
const CALLED: u32 = 1;
/// The mux's stream on which the plugin calls.
const CALLING: u32 = 2;
const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;
/// gRPC's code for an error without a better one.
const UNKNOWN: i32 = 2;
const RUNTIME: &str = "nri.pkg.api.v1alpha1.Runtime";

#[derive(Clone, PartialEq, prost::Message)]
struct Request {
    #[prost(string, tag = "1")]
    service: String,
    #[prost(string, tag = "2")]
    method: String,
    #[prost(bytes = "vec", tag = "3")]
    payload: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Response {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
    #[prost(bytes = "vec", tag = "2")]
    payload: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Status {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Register {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    index: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Synchronize {
    #[prost(message, repeated, tag = "1")]
    pods: Vec<Thing>,
    #[prost(message, repeated, tag = "2")]
    containers: Vec<Thing>,
}

/// What pods and containers have in common.
#[derive(Clone, PartialEq, prost::Message)]
struct Thing {
    #[prost(string, tag = "1")]
    id: String,
}

/// Requests about pods and containers begin alike.
#[derive(Clone, PartialEq, prost::Message)]
struct About {
    #[prost(message, optional, tag = "1")]
    pod: Option<Thing>,
    #[prost(message, optional, tag = "2")]
    container: Option<Thing>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Created {
    #[prost(message, optional, tag = "1")]
    adjust: Option<Adjustment>,
    #[prost(message, repeated, tag = "2")]
    update: Vec<Update>,
}

/// What a plugin wants of a new container.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Adjustment {
    /// Bind mounts and their removals.
    #[prost(message, repeated, tag = "3")]
    pub mounts: Vec<Mount>,
    /// Variables and their removals.
    #[prost(message, repeated, tag = "4")]
    pub env: Vec<Variable>,
    /// Limits.
    #[prost(message, optional, tag = "6")]
    pub linux: Option<Linux>,
}

/// A mount.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Mount {
    /// In the container.
    #[prost(string, tag = "1")]
    pub destination: String,
    /// `bind`.
    #[prost(string, tag = "2")]
    pub kind: String,
    /// On the host.
    #[prost(string, tag = "3")]
    pub source: String,
    /// As of mount(8).
    #[prost(string, repeated, tag = "4")]
    pub options: Vec<String>,
}

/// An environment variable.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Variable {
    /// With a leading `-` it is removed.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Its value.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// The part of an adjustment for Linux.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Linux {
    /// Limits.
    #[prost(message, optional, tag = "2")]
    pub resources: Option<Resources>,
}

/// Limits.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Resources {
    /// Of memory.
    #[prost(message, optional, tag = "1")]
    pub memory: Option<Memory>,
}

/// Limits of memory.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Memory {
    /// In bytes.
    #[prost(message, optional, tag = "1")]
    pub limit: Option<Number>,
}

/// A number that is there.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Number {
    /// The number.
    #[prost(int64, tag = "1")]
    pub value: i64,
}

impl Resources {
    /// A memory limit.
    #[must_use]
    pub fn memory(bytes: i64) -> Self {
        Self { memory: Some(Memory { limit: Some(Number { value: bytes }) }) }
    }
}

#[derive(Clone, PartialEq, prost::Message)]
struct Update {
    #[prost(string, tag = "1")]
    container: String,
    #[prost(message, optional, tag = "2")]
    linux: Option<UpdateLinux>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct UpdateLinux {
    #[prost(message, optional, tag = "1")]
    resources: Option<Resources>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Eviction {
    #[prost(string, tag = "1")]
    container: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Updates {
    #[prost(message, repeated, tag = "1")]
    update: Vec<Update>,
    #[prost(message, repeated, tag = "2")]
    evict: Vec<Eviction>,
}

/// A call of the runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its name.
    pub method: String,
    /// Id of the pod; empty where there is none.
    pub pod: String,
    /// Id of the container; empty where there is none.
    pub container: String,
}

/// What a plugin does with a call.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Agrees.
    Fine,
    /// Wants a new container otherwise.
    Adjust(Box<Adjustment>),
    /// Says no.
    Refuse(&'static str),
    /// Says nothing, to this and all that follow.
    Hang,
    /// Ends.
    Die,
}

/// A plugin that has joined.
#[derive(Debug)]
pub struct Plugin {
    socket: UnixStream,
    heard: Arc<Mutex<Heard>>,
}

#[derive(Debug, Default)]
struct Heard {
    calls: Vec<Call>,
    synchronized: Option<(Vec<String>, Vec<String>)>,
    answers: usize,
}

impl Plugin {
    /// Joins the daemon that listens on `socket`, under a two-digit index, and answers by `script` from then on.
    ///
    /// # Errors
    /// When it is not synchronised soon.
    pub fn join(
        socket: &Path,
        index: &str,
        script: impl Fn(&Call) -> Reply + Send + 'static,
    ) -> Result<Self> {
        let stream = UnixStream::connect(socket).context("connect to the plugin socket")?;
        stream.set_write_timeout(Some(Duration::from_secs(60)))?;
        let heard = Arc::default();
        let plugin = Self { socket: stream.try_clone()?, heard: Arc::clone(&heard) };
        let mut me = Register { name: "test".to_owned(), index: index.to_owned() }.encode_to_vec();
        send(&mut &plugin.socket, CALLING, 1, &request("RegisterPlugin", &mut me))?;
        let mut wire = Wire { stream, streams: HashMap::new() };
        std::thread::spawn(move || {
            // The end of the connection ends it, whoever made it.
            drop(serve(&mut wire, &heard, &script));
        });
        eventually(SOON, || {
            ensure!(plugin.heard().synchronized.is_some(), "the plugin is synchronised");
            Ok(())
        })?;
        Ok(plugin)
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was called so far.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.heard().calls.clone()
    }

    /// Names of the calls about a pod or container.
    #[must_use]
    pub fn about(&self, id: &str) -> Vec<String> {
        let calls = self.calls().into_iter();
        let about = calls
            .filter(|call| if call.container.is_empty() { call.pod == id } else { call.container == id });
        about.map(|call| call.method).collect()
    }

    /// The pods and containers that it was told of when it joined.
    #[must_use]
    pub fn synchronized(&self) -> (Vec<String>, Vec<String>) {
        self.heard().synchronized.clone().unwrap_or_default()
    }

    /// Asks for a memory limit, and for evictions, and waits for the answer.
    ///
    /// # Errors
    /// When there is none.
    pub fn ask(&self, limit: Option<(&str, i64)>, evict: &[&str]) -> Result<()> {
        let update = limit.map(|(container, bytes)| Update {
            container: container.to_owned(),
            linux: Some(UpdateLinux { resources: Some(Resources::memory(bytes)) }),
        });
        let evict = evict.iter().map(|container| Eviction { container: (*container).to_owned() }).collect();
        let mut updates = Updates { update: update.into_iter().collect(), evict }.encode_to_vec();
        let before = self.heard().answers;
        send(&mut &self.socket, CALLING, 3, &request("UpdateContainers", &mut updates))?;
        eventually(SOON, || {
            ensure!(self.heard().answers > before, "UpdateContainers is answered");
            Ok(())
        })
    }

    /// Whether the daemon has hung up.
    ///
    /// # Errors
    /// When it has not soon.
    pub fn wait_closed(&self) -> Result<()> {
        eventually(SOON, || match (&self.socket).write(&[]) {
            Err(_) => Ok(()),
            Ok(_) => match rustix::net::send(&self.socket, &[0; 8], rustix::net::SendFlags::NOSIGNAL) {
                Err(_) => Ok(()),
                Ok(_) => bail!("the connection is open"),
            },
        })
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        drop(self.socket.shutdown(Shutdown::Both));
    }
}

fn request(method: &str, payload: &mut Vec<u8>) -> (u8, Vec<u8>) {
    let request =
        Request { service: RUNTIME.to_owned(), method: method.to_owned(), payload: std::mem::take(payload) };
    (REQUEST, request.encode_to_vec())
}

/// One message in one frame.
fn send(to: &mut impl std::io::Write, stream: u32, call: u32, (kind, message): &(u8, Vec<u8>)) -> Result<()> {
    let length = u32::try_from(message.len())?;
    let mut bytes = Vec::new();
    bytes.extend(stream.to_be_bytes());
    bytes.extend((length + 10).to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes.extend(call.to_be_bytes());
    bytes.extend([*kind, 0]);
    bytes.extend(message);
    Ok(to.write_all(&bytes)?)
}

/// A connection, with what is not a whole message yet, by stream.
struct Wire {
    stream: UnixStream,
    streams: HashMap<u32, Vec<u8>>,
}

/// Stream, call, type and message.
type Packet = (u32, u32, u8, Vec<u8>);

impl Wire {
    fn receive(&mut self) -> Result<Packet> {
        loop {
            for (stream, bytes) in &mut self.streams {
                if let Some(&[a, b, c, d, e, f, g, h, kind, _]) = bytes.first_chunk::<10>() {
                    let end = 10 + usize::try_from(u32::from_be_bytes([a, b, c, d]))?;
                    if bytes.len() >= end {
                        let message = bytes.drain(..end).skip(10).collect();
                        return Ok((*stream, u32::from_be_bytes([e, f, g, h]), kind, message));
                    }
                }
            }
            let mut header = [0; 8];
            self.stream.read_exact(&mut header)?;
            let [a, b, c, d, e, f, g, h] = header;
            let mut payload = vec![0; usize::try_from(u32::from_be_bytes([e, f, g, h]))?];
            self.stream.read_exact(&mut payload)?;
            self.streams.entry(u32::from_be_bytes([a, b, c, d])).or_default().extend(payload);
        }
    }
}

fn serve(wire: &mut Wire, heard: &Mutex<Heard>, script: &dyn Fn(&Call) -> Reply) -> Result<()> {
    let lock = || heard.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        let (stream, number, kind, message) = wire.receive()?;
        match (stream, kind) {
            (CALLED, REQUEST) => {
                let Request { method, payload, .. } = Request::decode(message.as_slice())?;
                let answer = match method.as_str() {
                    // Everything, and no configuration of its own.
                    "Configure" | "Shutdown" => Reply::Fine,
                    "Synchronize" => {
                        let known = Synchronize::decode(payload.as_slice())?;
                        let ids = |things: Vec<Thing>| things.into_iter().map(|thing| thing.id).collect();
                        lock().synchronized = Some((ids(known.pods), ids(known.containers)));
                        Reply::Fine
                    }
                    _ => {
                        let about = About::decode(payload.as_slice())?;
                        let id = |thing: Option<Thing>| thing.map(|thing| thing.id).unwrap_or_default();
                        let call = Call { method, pod: id(about.pod), container: id(about.container) };
                        lock().calls.push(call.clone());
                        script(&call)
                    }
                };
                let Some(response) = response(answer) else {
                    wire.stream.shutdown(Shutdown::Both)?;
                    return Ok(());
                };
                if let Some(response) = response {
                    send(&mut wire.stream, CALLED, number, &(RESPONSE, response.encode_to_vec()))?;
                }
            }
            (CALLING, RESPONSE) => {
                let response = Response::decode(message.as_slice())?;
                if let Some(status) = response.status.filter(|status| status.code != 0) {
                    bail!("{}", status.message);
                }
                lock().answers += 1;
            }
            other => bail!("a message of {other:?}"),
        }
    }
}

/// What is sent: nothing for a plugin that hangs; `None` ends it.
fn response(reply: Reply) -> Option<Option<Response>> {
    let payload = |payload| Some(Some(Response { status: None, payload }));
    match reply {
        Reply::Fine => payload(Vec::new()),
        Reply::Adjust(adjust) => {
            payload(Created { adjust: Some(*adjust), update: Vec::new() }.encode_to_vec())
        }
        Reply::Refuse(message) => {
            let status = Some(Status { code: UNKNOWN, message: message.to_owned() });
            Some(Some(Response { status, payload: Vec::new() }))
        }
        Reply::Hang => Some(None),
        Reply::Die => None,
    }
}
