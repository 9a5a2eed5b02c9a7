//! Attachers: who listens to a container's output and writes into its stdin, besides the log.
//!
//! ```text
//! container ─ pipe or terminal ─▶ shim ─▶ log
//!                                  ├────▶ attacher's pipe (1 MiB, does not block) ─▶ daemon ─▶ client
//! container ◀─ stdin ───────────── shim ◀─ attachers' stdin, merged
//! ```
//! An attacher that is behind (its pipe is full) makes the shim leave that stream of the container unread, so that a client as fast as
//! its container loses nothing. One that has been behind for [`BEHIND_MAX`] and has taken less than [`TAKEN_BYTES_MIN`] in all that time
//! is dropped. That is all that a client can hold a container up.

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crisp_proto::supervisor as pb;
use rustix::io::Errno;

use crate::container::{Container, Phase};
use crate::epoll::{Epoll, Interest, Token};
use crate::error::{Error, Result, Step as _};
use crate::log::Stream;
use crate::output::{Pumped, READ_BYTES, Reading};
use crate::server::Server;

/// Attachers at a time in one pod.
const ATTACHERS_MAX: usize = 256;
/// Longest id of an attacher.
const ID_BYTES_MAX: usize = 64;
/// What the container's own pipes hold once somebody is attached: fewer changes between writer, shim and client.
const OUTPUT_PIPE_BYTES: usize = 256 * 1024;
/// How long an attacher may be behind, in all its waits together, before it is judged.
const BEHIND_MAX: Duration = Duration::from_secs(1);
/// What it must have taken by then.
const TAKEN_BYTES_MIN: usize = 4 * 1024 * 1024;
/// What is kept at most for an attacher whose pipe is full: one read, or at the container's end what its pipes held.
const PENDING_BYTES_MAX: usize = 1024 * 1024;
/// Between two looks at a terminal that nobody has open; longer than the shim takes to become idle.
const HUNG_UP_PAUSE: Duration = Duration::from_secs(1);
/// How long the last output of a container that has exited waits for an attacher to take it.
const LEAVING_MAX: Duration = Duration::from_secs(30);

/// One attacher's end of an output stream.
#[derive(Debug)]
struct Sink {
    fd: OwnedFd,
    pending: Vec<u8>,
    /// How much of `pending` was written.
    written: usize,
    /// Nothing follows: to be closed when nothing is pending.
    last: bool,
}

/// How a write to a [`Sink`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sent {
    All,
    Behind,
    /// The other end is closed, or its pending output has grown too long.
    Gone,
}

impl Sink {
    fn new(fd: OwnedFd) -> Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true).step(|| "make an attacher's pipe not block")?;
        Ok(Self { fd, pending: Vec::new(), written: 0, last: false })
    }

    fn is_behind(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Writes what the pipe takes and keeps the rest; also how much was written.
    fn push(&mut self, bytes: &[u8]) -> (Sent, usize) {
        let mut done = 0;
        if !self.is_behind() {
            match write_all(&self.fd, bytes) {
                Written::Some(count) => done = count,
                Written::Closed => return (Sent::Gone, 0),
            }
        }
        self.pending.extend_from_slice(&bytes[done..]);
        match self.pending.len() {
            0 => (Sent::All, done),
            len if len - self.written > PENDING_BYTES_MAX => (Sent::Gone, done),
            _ => (Sent::Behind, done),
        }
    }

    /// Writes what is pending.
    fn flush(&mut self) -> (Sent, usize) {
        let Written::Some(count) = write_all(&self.fd, &self.pending[self.written..]) else {
            return (Sent::Gone, 0);
        };
        self.written += count;
        if self.written < self.pending.len() {
            return (Sent::Behind, count);
        }
        (self.pending, self.written) = (Vec::new(), 0);
        (Sent::All, count)
    }
}

enum Written {
    /// This many bytes; the descriptor takes no more now when it is not all.
    Some(usize),
    Closed,
}

fn write_all(fd: &OwnedFd, bytes: &[u8]) -> Written {
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::retry_on_intr(|| rustix::io::write(fd, &bytes[done..])) {
            Ok(count) => done += count,
            Err(Errno::AGAIN) => break,
            Err(_) => return Written::Closed,
        }
    }
    Written::Some(done)
}

/// How well an attacher keeps up.
#[derive(Debug, Default)]
struct Pace {
    /// While it is behind.
    since: Option<Instant>,
    /// Earlier times of being behind, since the last judgement.
    before: Duration,
    /// Bytes taken since the last judgement.
    taken: usize,
}

impl Pace {
    fn fell_behind(&mut self, now: Instant) {
        self.since.get_or_insert(now);
    }

    fn caught_up(&mut self, now: Instant) {
        if let Some(since) = self.since.take() {
            self.before += now.saturating_duration_since(since);
        }
    }

    /// When it is to be judged, unless it catches up.
    fn deadline(&self) -> Option<Instant> {
        self.since.map(|since| since + BEHIND_MAX.saturating_sub(self.before))
    }

    /// It took too little; or its next measurement has begun.
    fn is_too_slow(&mut self, now: Instant) -> bool {
        if self.deadline().is_none_or(|deadline| now < deadline) {
            return false;
        }
        let too_slow = self.taken < TAKEN_BYTES_MIN;
        *self = Self { since: Some(now), ..Self::default() };
        too_slow
    }
}

/// Somebody who is attached.
#[derive(Debug)]
struct Attacher {
    container: u32,
    id: String,
    stdin: Option<OwnedFd>,
    stdout: Option<Sink>,
    stderr: Option<Sink>,
    pace: Pace,
    /// The container has closed a stream of it, or it has none: when it has nothing left it is told, since it may wait for an end.
    streams_ended: bool,
    /// Set when its container has exited: then it is let go at the latest.
    leaves: Option<Instant>,
}

impl Attacher {
    /// Takes the descriptors that the order asks for.
    fn new(container: u32, order: &pb::Attach, fds: Vec<OwnedFd>) -> Result<Self> {
        let mut fds = fds.into_iter();
        let mut next = |wanted: bool, what: &str| match wanted {
            true => fds
                .next()
                .map(Some)
                .ok_or_else(|| Error::Invalid(format!("no descriptor for the attacher's {what}"))),
            false => Ok(None),
        };
        let (stdin, stdout, stderr) =
            (next(order.stdin, "stdin")?, next(order.stdout, "stdout")?, next(order.stderr, "stderr")?);
        if let Some(stdin) = &stdin {
            rustix::io::ioctl_fionbio(stdin, true).step(|| "make an attacher's stdin not block")?;
        }
        Ok(Self {
            container,
            id: order.attach_id.clone(),
            stdin,
            stdout: stdout.map(Sink::new).transpose()?,
            stderr: stderr.map(Sink::new).transpose()?,
            pace: Pace::default(),
            streams_ended: !order.stdout && !order.stderr,
            leaves: None,
        })
    }

    fn sink(&mut self, stream: Stream) -> &mut Option<Sink> {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }

    fn is_behind(&self) -> bool {
        [&self.stdout, &self.stderr].into_iter().flatten().any(Sink::is_behind)
    }

    fn has_left(&self) -> bool {
        self.stdin.is_none() && self.stdout.is_none() && self.stderr.is_none()
    }

    /// All that is left of it is a stdin whose other end is closed.
    fn left_input(&self) -> bool {
        use rustix::event::{PollFd, PollFlags, Timespec, poll};
        let Some(stdin) = self.stdin.as_ref().filter(|_| self.stdout.is_none() && self.stderr.is_none())
        else {
            return false;
        };
        let mut watched = [PollFd::new(stdin, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut watched, Some(&now)).is_ok() && watched[0].revents().contains(PollFlags::HUP)
    }

    /// What a write came to: a sink that is gone is closed, one that is behind is watched until it takes more.
    fn settle(&mut self, key: u32, stream: Stream, sent: Sent, epoll: &Epoll) {
        let slot = self.sink(stream);
        let Some(sink) = slot else { return };
        let token = output_token(key, stream);
        if sent == Sent::Gone || (sink.last && !sink.is_behind()) {
            epoll.remove(&sink.fd);
            *slot = None;
            return;
        }
        let interest = if sink.is_behind() { Interest::Write } else { Interest::Hangup };
        let _closed = epoll.change(&sink.fd, token, interest);
        if self.is_behind() {
            self.pace.fell_behind(Instant::now());
        } else {
            self.pace.caught_up(Instant::now());
        }
    }
}

fn output_token(key: u32, stream: Stream) -> Token {
    match stream {
        Stream::Stdout => Token::AttachedStdout(key),
        Stream::Stderr => Token::AttachedStderr(key),
    }
}

/// All attachers of a pod.
#[derive(Debug, Default)]
pub(crate) struct Attachers(BTreeMap<u32, Attacher>);

impl Attachers {
    fn of(&mut self, container: u32) -> impl Iterator<Item = (u32, &mut Attacher)> {
        self.0.iter_mut().filter(move |(_, a)| a.container == container).map(|(&key, a)| (key, a))
    }

    /// Passes output on. Afterwards whoever is behind has the rest pending.
    pub(crate) fn give(&mut self, container: u32, stream: Stream, bytes: &[u8], epoll: &Epoll) {
        for (key, attacher) in self.of(container) {
            let Some(sink) = attacher.sink(stream).as_mut().filter(|sink| !sink.last) else { continue };
            let (sent, taken) = sink.push(bytes);
            attacher.pace.taken += taken;
            if sent != Sent::All {
                attacher.settle(key, stream, sent, epoll);
            }
        }
    }

    /// The container's stream has ended.
    pub(crate) fn end(&mut self, container: u32, stream: Stream, epoll: &Epoll) {
        for (key, attacher) in self.of(container) {
            if let Some(sink) = attacher.sink(stream) {
                sink.last = true;
                attacher.streams_ended = true;
                attacher.settle(key, stream, Sent::All, epoll);
            }
        }
    }

    /// Somebody has not taken yet what this stream brought.
    pub(crate) fn hold(&mut self, container: u32, stream: Stream) -> bool {
        let behind = |sink: &Sink| sink.is_behind() && !sink.last;
        self.of(container).any(|(_, attacher)| attacher.sink(stream).as_ref().is_some_and(behind))
    }

    /// Forgets who has no descriptor left; those among them whose streams the container has ended, by container and id.
    fn forget_gone(&mut self) -> Vec<(u32, String)> {
        let mut ended = Vec::new();
        self.0.retain(|_, attacher| {
            let gone = attacher.has_left();
            if gone && attacher.streams_ended && attacher.leaves.is_none() {
                ended.push((attacher.container, std::mem::take(&mut attacher.id)));
            }
            !gone
        });
        ended
    }

    /// Forgets who is gone but for input that its container, which is behind, does not take.
    fn forget_untaken(&mut self, behind: impl Fn(u32) -> bool) {
        self.0.retain(|_, attacher| !(attacher.left_input() && behind(attacher.container)));
    }

    fn remove(&mut self, key: u32, epoll: &Epoll) -> Option<Attacher> {
        let attacher = self.0.remove(&key)?;
        let outputs = [&attacher.stdout, &attacher.stderr].into_iter().flatten().map(|sink| &sink.fd);
        outputs.chain(&attacher.stdin).for_each(|fd| epoll.remove(fd));
        Some(attacher)
    }
}

/// Why the shim lets an attacher go.
enum End {
    Exited(pb::Exit),
    StreamsEnded,
    TooSlow,
}

impl Server {
    fn forget_gone_attachers(&mut self) {
        for (container, id) in self.attachers.forget_gone() {
            self.announce_attach_end(container, id, End::StreamsEnded);
        }
    }

    pub(crate) fn attach(&mut self, order: &pb::Attach, fds: Vec<OwnedFd>) -> Result<()> {
        let container_key = self.find(&order.container_id)?;
        if self.attachers.0.len() >= ATTACHERS_MAX {
            // A stdin is not looked at while its container takes nothing, so its end is not noticed either.
            let behind = |key| self.containers.get(&key).is_some_and(|container| container.input.is_behind());
            self.attachers.forget_untaken(behind);
        }
        self.check_attach(container_key, order)?;
        let mut attacher = Attacher::new(container_key, order, fds)?;
        let key = self.new_key();
        let Some(container) = self.containers.get(&container_key) else { return Ok(()) };
        for stream in [Stream::Stdout, Stream::Stderr] {
            match container.output.fd(stream) {
                Some(fd) => {
                    // A terminal is no pipe, and the machine may allow no more.
                    let _as_it_was = rustix::pipe::fcntl_setpipe_size(fd, OUTPUT_PIPE_BYTES);
                }
                None => {
                    // Ended already; of a terminal there is no stderr.
                    *attacher.sink(stream) = None;
                    attacher.streams_ended = true;
                }
            }
        }
        if container.input.fd().is_none() {
            attacher.stdin = None;
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            if let Some(sink) = attacher.sink(stream) {
                self.epoll
                    .add_for(&sink.fd, output_token(key, stream), Interest::Hangup)
                    .step(|| "watch an attacher")?;
            }
        }
        if let Some(stdin) = attacher.stdin.as_ref().filter(|_| !container.input.is_behind()) {
            self.epoll.add(stdin, Token::AttachedStdin(key)).step(|| "watch an attacher's stdin")?;
        }
        self.attachers.0.insert(key, attacher);
        self.forget_gone_attachers();
        Ok(())
    }

    fn check_attach(&self, key: u32, order: &pb::Attach) -> Result<()> {
        let Some(container) = self.containers.get(&key) else { return Ok(()) };
        if !matches!(container.phase, Phase::Running) {
            return Err(Error::WrongState { id: order.container_id.clone(), state: container.phase.name() });
        }
        let id = &order.attach_id;
        if id.is_empty() || id.len() > ID_BYTES_MAX {
            return Err(Error::Invalid(format!("{id:?} is no id of an attacher")));
        }
        if order.stdin && !container.order.stdio.as_ref().is_some_and(|stdio| stdio.stdin) {
            return Err(Error::Invalid(format!("container {} was made without stdin", order.container_id)));
        }
        if self.attachers.0.values().any(|other| other.container == key && other.id == *id) {
            return Err(Error::Exists { what: "attacher", id: id.clone() });
        }
        if self.attachers.0.len() >= ATTACHERS_MAX {
            return Err(Error::Limit(format!("{ATTACHERS_MAX} clients are attached in this pod")));
        }
        Ok(())
    }

    /// Sets the size of a container's terminal.
    pub(crate) fn resize_terminal(&mut self, order: &pb::ResizeTerminal) -> Result<()> {
        let key = self.find(&order.container_id)?;
        let container = self.containers.get(&key);
        let terminal = container.filter(|c| c.order.stdio.as_ref().is_some_and(|stdio| stdio.terminal));
        let Some(master) = terminal.and_then(|container| container.input.fd()) else {
            return Err(Error::Invalid(format!("container {} has no terminal", order.container_id)));
        };
        let cells = |count: u32| u16::try_from(count).ok().filter(|&count| count > 0);
        let (Some(ws_col), Some(ws_row)) = (cells(order.width), cells(order.height)) else {
            return Err(Error::Invalid(format!("{} × {} is no terminal's size", order.width, order.height)));
        };
        let size = rustix::termios::Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(master, size).step(|| "set the terminal's size")
    }

    /// An attacher takes more, or has closed its end.
    pub(crate) fn attached_output_ready(&mut self, key: u32, stream: Stream) {
        let Some(attacher) = self.attachers.0.get_mut(&key) else { return };
        let container = attacher.container;
        let Some(sink) = attacher.sink(stream) else { return };
        // Watched for nothing but its end when it is not behind.
        let (sent, taken) = if sink.is_behind() { sink.flush() } else { (Sent::Gone, 0) };
        attacher.pace.taken += taken;
        attacher.settle(key, stream, sent, &self.epoll);
        self.forget_gone_attachers();
        self.resume(container, stream);
    }

    /// Reads once from a container's output.
    pub(crate) fn pump(&mut self, key: u32, stream: Stream) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        if container.output.is_paused(stream) {
            return;
        }
        let (attachers, epoll) = (&mut self.attachers, &self.epoll);
        // Before the last descriptor goes: a process elsewhere may hold a duplicate, which would keep it in the epoll.
        let leave = |fd: BorrowedFd<'_>| epoll.remove(fd);
        let give = |bytes: &[u8]| attachers.give(key, stream, bytes, epoll);
        match container.output.pump(stream, &mut self.scratch, give, leave) {
            Pumped::End => self.attachers.end(key, stream, &self.epoll),
            Pumped::Bytes(_) if self.attachers.hold(key, stream) => {
                container.output.pause(stream, Reading::Held, leave);
            }
            Pumped::HungUp => {
                // A hang-up is told as long as it lasts, so it cannot be waited for.
                let until = Instant::now() + HUNG_UP_PAUSE;
                container.output.pause(stream, Reading::HungUp(until), leave);
            }
            Pumped::Bytes(_) | Pumped::Empty => {}
        }
        self.forget_gone_attachers();
    }

    /// Reads a stream again once nobody is behind with it.
    fn resume(&mut self, key: u32, stream: Stream) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        if !container.output.is_paused(stream) {
            return;
        }
        if self.attachers.hold(key, stream) {
            return container.output.pause(stream, Reading::Held, |_not_waited_for| ());
        }
        let token = match stream {
            Stream::Stdout => Token::Stdout(key),
            Stream::Stderr => Token::Stderr(key),
        };
        if let Some(fd) = container.output.resume(stream)
            && let Err(error) = self.epoll.add(fd, token)
        {
            self.note(&format!("watch the output of a container again: {error}"));
        }
    }

    pub(crate) fn terminal_deadlines(&self) -> impl Iterator<Item = Instant> + '_ {
        self.containers.values().filter_map(|container| container.output.look_again_at())
    }

    /// Looks again at terminals that nobody had open: what a program writes that opens its console anew must not wait for ever.
    pub(crate) fn terminal_tick(&mut self, now: Instant) {
        let due = |container: &Container| container.output.look_again_at().is_some_and(|at| now >= at);
        let due: Vec<_> = self.containers.iter().filter(|(_, c)| due(c)).map(|(&key, _)| key).collect();
        for key in due {
            self.resume(key, Stream::Stdout);
        }
    }

    /// An attacher has written, or closed its stdin.
    pub(crate) fn attached_input_ready(&mut self, key: u32) {
        let Some(attacher) = self.attachers.0.get_mut(&key) else { return };
        let (container_key, Some(stdin)) = (attacher.container, &attacher.stdin) else { return };
        let Some(container) = self.containers.get_mut(&container_key) else { return };
        if container.input.is_behind() {
            return;
        }
        let buffer = self.scratch.input(READ_BYTES);
        match rustix::io::retry_on_intr(|| rustix::io::read(stdin, &mut *buffer)) {
            Ok(count) if count > 0 => {
                let fed = container.input.feed(&buffer[..count]);
                self.input_fed(container_key, fed);
            }
            Err(Errno::AGAIN) => {}
            Ok(_) | Err(_) => {
                self.epoll.remove(stdin);
                attacher.stdin = None;
                if container.closes_stdin_with_the_first() {
                    self.close_input(container_key);
                }
                self.forget_gone_attachers();
            }
        }
    }

    /// The container's stdin takes more.
    pub(crate) fn input_ready(&mut self, key: u32) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let fed = container.input.flush();
        self.input_fed(key, fed);
    }

    /// While something is pending, attachers are not read and the container's stdin is watched.
    fn input_fed(&mut self, key: u32, fed: Fed) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        match fed {
            Fed::Closed => self.close_input(key),
            Fed::All if container.input.watched => {
                container.input.unwatch(&self.epoll);
                for (attacher, stdin) in stdins(&mut self.attachers, key) {
                    let _closed = self.epoll.add(stdin, Token::AttachedStdin(attacher));
                }
            }
            Fed::Behind if !container.input.watched => {
                container.input.watch(&self.epoll, Token::Stdin(key));
                for (_, stdin) in stdins(&mut self.attachers, key) {
                    self.epoll.remove(stdin);
                }
            }
            Fed::All | Fed::Behind => {}
        }
    }

    /// Closes the container's stdin for good, and with it that of all attachers.
    fn close_input(&mut self, key: u32) {
        if let Some(container) = self.containers.get_mut(&key) {
            container.input.close(&self.epoll);
        }
        for (_, attacher) in self.attachers.of(key) {
            if let Some(stdin) = attacher.stdin.take() {
                self.epoll.remove(&stdin);
            }
        }
        self.forget_gone_attachers();
    }

    /// The container has exited and its pipes are drained: attachers are let go after the last byte.
    pub(crate) fn end_attachers(&mut self, key: u32, exit: pb::Exit) {
        let leaves = Instant::now() + LEAVING_MAX;
        let mut ended = Vec::new();
        for (_, attacher) in self.attachers.of(key) {
            attacher.leaves = Some(leaves);
            attacher.pace = Pace::default();
            ended.push(attacher.id.clone());
        }
        for id in ended {
            self.announce_attach_end(key, id, End::Exited(exit));
        }
        self.close_input(key);
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.attachers.end(key, stream, &self.epoll);
            self.resume(key, stream);
        }
        self.forget_gone_attachers();
    }

    fn announce_attach_end(&mut self, container: u32, attach_id: String, end: End) {
        let (exit, streams_ended) = match end {
            End::Exited(exit) => (Some(exit), false),
            End::StreamsEnded => (None, true),
            End::TooSlow => (None, false),
        };
        let container_id = self.containers.get(&container).map(|container| container.id().to_owned());
        self.announce(pb::message::Kind::AttachEnded(pb::AttachEnded {
            container_id: container_id.unwrap_or_default(),
            attach_id,
            exit,
            streams_ended,
        }));
    }

    pub(crate) fn attach_deadlines(&self) -> impl Iterator<Item = Instant> + '_ {
        let deadline = |attacher: &Attacher| attacher.leaves.or_else(|| attacher.pace.deadline());
        self.attachers.0.values().filter_map(deadline)
    }

    /// Drops who takes too little.
    pub(crate) fn attach_tick(&mut self, now: Instant) {
        let mut dropped = Vec::new();
        for (&key, attacher) in &mut self.attachers.0 {
            let late = match attacher.leaves {
                Some(leaves) => now >= leaves,
                None => attacher.pace.is_too_slow(now),
            };
            if late {
                dropped.push(key);
            }
        }
        for key in dropped {
            let Some(attacher) = self.attachers.remove(key, &self.epoll) else { continue };
            if attacher.leaves.is_none() {
                self.announce_attach_end(attacher.container, attacher.id, End::TooSlow);
            }
            for stream in [Stream::Stdout, Stream::Stderr] {
                self.resume(attacher.container, stream);
            }
        }
    }
}

fn stdins(attachers: &mut Attachers, container: u32) -> impl Iterator<Item = (u32, &OwnedFd)> {
    attachers.of(container).filter_map(|(key, attacher)| Some((key, attacher.stdin.as_ref()?)))
}

impl Container {
    /// The end of the first attacher's stdin is the end of the container's.
    fn closes_stdin_with_the_first(&self) -> bool {
        self.order.stdio.as_ref().is_some_and(|stdio| stdio.stdin_once && !stdio.terminal)
    }
}

/// How feeding a container's stdin ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fed {
    All,
    /// The rest is pending.
    Behind,
    /// The container has closed it.
    Closed,
}

/// The writing end of a container's stdin, or its terminal's master.
#[derive(Debug, Default)]
pub(crate) struct Input {
    fd: Option<OwnedFd>,
    /// What the container has not taken yet, one read at most.
    pending: Vec<u8>,
    watched: bool,
}

impl Input {
    /// `fd` must not block.
    pub(crate) fn new(fd: Option<OwnedFd>) -> Self {
        Self { fd, ..Self::default() }
    }

    pub(crate) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(OwnedFd::as_fd)
    }

    fn is_behind(&self) -> bool {
        !self.pending.is_empty()
    }

    fn feed(&mut self, bytes: &[u8]) -> Fed {
        let Some(fd) = &self.fd else { return Fed::Closed };
        match write_all(fd, bytes) {
            Written::Closed => Fed::Closed,
            Written::Some(count) if count == bytes.len() => Fed::All,
            Written::Some(count) => {
                self.pending = bytes[count..].to_vec();
                Fed::Behind
            }
        }
    }

    fn flush(&mut self) -> Fed {
        let pending = std::mem::take(&mut self.pending);
        self.feed(&pending)
    }

    fn watch(&mut self, epoll: &Epoll, token: Token) {
        if let Some(fd) = &self.fd {
            self.watched = epoll.add_for(fd, token, Interest::Write).is_ok();
        }
    }

    fn unwatch(&mut self, epoll: &Epoll) {
        if let Some(fd) = self.fd.as_ref().filter(|_| self.watched) {
            epoll.remove(fd);
        }
        self.watched = false;
    }

    /// Lets the container read the end of its input. What it has not taken by now is lost with its reader.
    pub(crate) fn close(&mut self, epoll: &Epoll) {
        self.unwatch(epoll);
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOMENT: Duration = Duration::from_millis(100);

    #[test]
    fn who_takes_nothing_is_too_slow_after_all_its_waits_together() {
        let (mut pace, mut now) = (Pace::default(), Instant::now());
        for _ in 0..9 {
            pace.fell_behind(now);
            now += MOMENT;
            assert!(!pace.is_too_slow(now));
            pace.caught_up(now);
            // Time in which it waits for the container does not count.
            now += 100 * MOMENT;
            assert_eq!(pace.deadline(), None);
        }
        pace.fell_behind(now);
        assert_eq!(pace.deadline(), Some(now + MOMENT));
        assert!(pace.is_too_slow(now + MOMENT));
    }

    #[test]
    fn who_takes_enough_is_measured_anew() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        pace.fell_behind(now);
        pace.taken = TAKEN_BYTES_MIN;
        assert!(!pace.is_too_slow(now + BEHIND_MAX));
        assert_eq!(pace.deadline(), Some(now + 2 * BEHIND_MAX));
        assert!(pace.is_too_slow(now + 2 * BEHIND_MAX));
    }

    #[test]
    fn what_a_pipe_does_not_take_follows_in_order_and_is_bounded() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        rustix::io::ioctl_fionbio(&reader, true).unwrap();
        let mut sink = Sink::new(writer).unwrap();
        let block: Vec<u8> = (0..100_000u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
        let (mut given, mut read) = (Vec::new(), Vec::new());
        while sink.push(&block).0 != Sent::Gone {
            given.extend_from_slice(&block);
            assert!(given.len() < 4 * PENDING_BYTES_MAX);
        }
        given.extend_from_slice(&block);
        let mut buffer = vec![0; 1 << 16];
        while sink.is_behind() {
            let count = rustix::io::read(&reader, &mut buffer[..]).unwrap();
            read.extend_from_slice(&buffer[..count]);
            assert_ne!(sink.flush().0, Sent::Gone);
        }
        drop(sink);
        while let Ok(count @ 1..) = rustix::io::read(&reader, &mut buffer[..]) {
            read.extend_from_slice(&buffer[..count]);
        }
        assert!(read == given);
    }
}
