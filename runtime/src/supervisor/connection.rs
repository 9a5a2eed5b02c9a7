//! One connection to a shim: packets out, packets in, answers matched by id.

use std::collections::HashMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crisp_proto::supervisor as pb;
use crisp_sys::fdpass::{self, Packet, Wait};
use prost::Message as _;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use super::Error;
use super::wire::{self, AttachEnd, Event, Exit};

/// Largest message of a shim, bytes.
const MESSAGE_BYTES_MAX: usize = 256 * 1024;
/// Largest request, bytes; what is larger travels in a memory file.
pub(super) const REQUEST_BYTES_MAX: usize = 128 * 1024;
/// Events that may wait for the pod's task. When it is further behind, the connection is made anew.
const EVENTS_MAX: usize = 256;
/// How long a shim may take to answer: longer than it lets a creation take, so that it can say what took so long.
const ANSWER_MAX: Duration = Duration::from_secs(110);

/// An answer, with what came beside it.
type Answer = (pb::reply::Result, Vec<OwnedFd>);
/// How an exec ended, and whether its time was up.
pub(super) type ExecEnd = (Exit, bool);

/// A connection; shared by all clones of a client.
#[derive(Debug)]
pub(super) struct Connection {
    socket: AsyncFd<OwnedFd>,
    next_id: AtomicU64,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// No answer will come any more.
    closed: bool,
    answers: HashMap<u64, oneshot::Sender<Answer>>,
    execs: HashMap<String, oneshot::Sender<ExecEnd>>,
    attachments: HashMap<String, oneshot::Sender<AttachEnd>>,
}

impl Connection {
    /// Connects to the socket at `path` and starts hearing.
    pub(super) fn open(path: &Path) -> Result<(Arc<Self>, mpsc::Receiver<Event>), Error> {
        let failed = |source| Error::Connect { path: path.to_owned(), source };
        let socket = connect(path).map_err(|errno| failed(errno.into()))?;
        let connection = Arc::new(Self {
            socket: super::registered(socket, Interest::READABLE | Interest::WRITABLE).map_err(failed)?,
            next_id: AtomicU64::new(1),
            waiting: Mutex::default(),
        });
        let (events, heard) = mpsc::channel(EVENTS_MAX);
        tokio::spawn(hear(Arc::clone(&connection), events));
        Ok((connection, heard))
    }

    /// Asks and waits for the answer; the descriptors travel beside the request.
    pub(super) async fn ask(
        &self,
        what: &'static str,
        call: pb::request::Call,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Answer, Error> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let request = pb::Request { id, call: Some(call) }.encode_to_vec();
        if request.len() > REQUEST_BYTES_MAX {
            return Err(Error::TooLarge { size: request.len(), max: REQUEST_BYTES_MAX });
        }
        let answer = self.expect_answer(id)?;
        let _forget = Forget { connection: self, id };
        self.send(&request, fds).await?;
        let answer = tokio::time::timeout(ANSWER_MAX, answer).await;
        let answer = answer.map_err(|_elapsed| Error::Timeout { what, limit: ANSWER_MAX })?;
        match answer.map_err(|_dropped| Error::Closed)? {
            (pb::reply::Result::Failure(failure), _) => Err(wire::refused(failure)),
            answer => Ok(answer),
        }
    }

    fn expect_answer(&self, id: u64) -> Result<oneshot::Receiver<Answer>, Error> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.waiting();
        if waiting.closed {
            return Err(Error::Closed);
        }
        waiting.answers.insert(id, sender);
        Ok(receiver)
    }

    /// Waits for the end of an exec. To be called before it is asked for, since it may end at once.
    pub(super) fn expect_exec(&self, exec_id: &str) -> oneshot::Receiver<ExecEnd> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.waiting();
        if !waiting.closed {
            waiting.execs.insert(exec_id.to_owned(), sender);
        }
        receiver
    }

    /// Nobody waits for this exec any more.
    pub(super) fn forget_exec(&self, exec_id: &str) {
        self.waiting().execs.remove(exec_id);
    }

    /// Waits for the end of an attachment; to be called before it is asked for.
    pub(super) fn expect_attach_end(&self, attach_id: &str) -> oneshot::Receiver<AttachEnd> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.waiting();
        if !waiting.closed {
            waiting.attachments.insert(attach_id.to_owned(), sender);
        }
        receiver
    }

    /// Nobody waits for this attachment any more.
    pub(super) fn forget_attachment(&self, attach_id: &str) {
        self.waiting().attachments.remove(attach_id);
    }

    /// Sends a request whose answer nobody needs, if the socket takes it now; what it did not take.
    pub(super) fn send_now(&self, call: pb::request::Call) -> Option<Vec<u8>> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let request = pb::Request { id, call: Some(call) }.encode_to_vec();
        let error = fdpass::send(self.socket.get_ref(), &request, &[], Wait::Never).err()?;
        tracing::debug!(%error, "send to the shim without an answer");
        (error.kind() == std::io::ErrorKind::WouldBlock).then_some(request)
    }

    /// Sends a request whose answer nobody needs as soon as the shim takes it, without waiting for that.
    pub(super) fn send_soon(self: &Arc<Self>, call: pb::request::Call) {
        let Some(request) = self.send_now(call) else { return };
        // Without a runtime the daemon ends, and with it the connection.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let connection = Arc::clone(self);
        runtime.spawn(async move {
            if let Err(error) = connection.send(&request, &[]).await {
                tracing::debug!(%error, "send to the shim late");
            }
        });
    }

    async fn send(&self, data: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        loop {
            let mut ready = self.socket.writable().await.map_err(Error::Send)?;
            match ready.try_io(|socket| fdpass::send(socket.get_ref(), data, fds, Wait::Never)) {
                Ok(Err(error))
                    if matches!(
                        error.kind(),
                        std::io::ErrorKind::BrokenPipe | std::io::ErrorKind::ConnectionReset
                    ) =>
                {
                    return Err(Error::Closed);
                }
                Ok(sent) => return sent.map_err(Error::Send),
                Err(_would_block) => {}
            }
        }
    }

    async fn receive(&self) -> std::io::Result<Option<Packet>> {
        loop {
            let mut ready = self.socket.readable().await?;
            match ready.try_io(|socket| fdpass::receive(socket.get_ref(), MESSAGE_BYTES_MAX, Wait::Never)) {
                Ok(received) => return received,
                Err(_would_block) => {}
            }
        }
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nobody gets an answer any more: whoever waits hears that the connection is closed.
    fn close(&self) {
        let mut waiting = self.waiting();
        *waiting = Waiting { closed: true, ..Waiting::default() };
    }
}

/// Takes a question back when its asker is gone or has its answer.
struct Forget<'a> {
    connection: &'a Connection,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.connection.waiting().answers.remove(&self.id);
    }
}

fn connect(path: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::connect(socket.as_fd(), &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// Reads until the shim closes the connection.
async fn hear(connection: Arc<Connection>, events: mpsc::Sender<Event>) {
    loop {
        match connection.receive().await {
            Ok(Some(packet)) => {
                if dispatch(&connection, packet, &events).is_err() {
                    tracing::warn!("the pod's task is behind; connecting again");
                    break;
                }
            }
            Ok(None) => break,
            Err(error) => {
                tracing::warn!(%error, "read from the shim");
                break;
            }
        }
    }
    connection.close();
}

/// The pod's task does not keep up; what it missed it learns from the shim's account, on the next connection.
struct Behind;

fn dispatch(connection: &Connection, packet: Packet, events: &mpsc::Sender<Event>) -> Result<(), Behind> {
    let message = match pb::Message::decode(packet.data.as_slice()) {
        Ok(message) => message,
        Err(error) => {
            tracing::warn!(%error, "a message of the shim cannot be read");
            return Ok(());
        }
    };
    match message.kind {
        Some(pb::message::Kind::Reply(pb::Reply { id, result: Some(result) })) => {
            if let Some(asker) = connection.waiting().answers.remove(&id) {
                let _asker_left = asker.send((result, packet.fds));
            }
        }
        Some(pb::message::Kind::ContainerExited(exited)) => {
            if let Some(event) = wire::container_exited(exited) {
                return tell(events, event);
            }
        }
        Some(pb::message::Kind::ExecExited(exited)) => {
            if let Some(waiter) = connection.waiting().execs.remove(&exited.exec_id) {
                let _waiter_left =
                    waiter.send((wire::exit(exited.exit.unwrap_or_default()), exited.timed_out));
            }
        }
        Some(pb::message::Kind::AttachEnded(ended)) => {
            if let Some(waiter) = connection.waiting().attachments.remove(&ended.attach_id) {
                let _waiter_left = waiter.send(wire::attach_end(&ended));
            }
        }
        Some(pb::message::Kind::PodInitExited(_)) => return tell(events, Event::PodInitExited),
        // Of a newer shim.
        Some(pb::message::Kind::Reply(pb::Reply { result: None, .. })) | None => {}
    }
    Ok(())
}

/// Waiting here would hold up answers that the pod's task itself may wait for.
fn tell(events: &mpsc::Sender<Event>, event: Event) -> Result<(), Behind> {
    match events.try_send(event) {
        Err(mpsc::error::TrySendError::Full(_)) => Err(Behind),
        // Nobody watches this pod: it is being taken apart.
        Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => Ok(()),
    }
}
