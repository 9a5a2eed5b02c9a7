//! The one wait of the shim: descriptors with the meaning that each has.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

/// Events taken per wait; others come with the next one.
const EVENTS_MAX: usize = 32;

/// What a descriptor is to the shim; the number is the key of the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    Listener,
    Signals,
    Connection(u32),
    /// Control socket of a container that is being made or started.
    Control(u32),
    Stdout(u32),
    Stderr(u32),
    ExecControl(u32),
    /// A container's stdin that was full.
    Stdin(u32),
    AttachedStdin(u32),
    AttachedStdout(u32),
    AttachedStderr(u32),
    PodInitControl,
}

impl Token {
    fn pack(self) -> EventData {
        let (kind, key): (u64, u32) = match self {
            Self::Listener => (0, 0),
            Self::Signals => (1, 0),
            Self::Connection(key) => (2, key),
            Self::Control(key) => (3, key),
            Self::Stdout(key) => (4, key),
            Self::Stderr(key) => (5, key),
            Self::ExecControl(key) => (6, key),
            Self::Stdin(key) => (7, key),
            Self::AttachedStdin(key) => (8, key),
            Self::AttachedStdout(key) => (9, key),
            Self::AttachedStderr(key) => (10, key),
            Self::PodInitControl => (11, 0),
        };
        EventData::new_u64(kind << 32 | u64::from(key))
    }

    fn unpack(data: EventData) -> Option<Self> {
        let data = data.u64();
        let key = u32::try_from(data & u64::from(u32::MAX)).ok()?;
        Some(match data >> 32 {
            0 => Self::Listener,
            1 => Self::Signals,
            2 => Self::Connection(key),
            3 => Self::Control(key),
            4 => Self::Stdout(key),
            5 => Self::Stderr(key),
            6 => Self::ExecControl(key),
            7 => Self::Stdin(key),
            8 => Self::AttachedStdin(key),
            9 => Self::AttachedStdout(key),
            10 => Self::AttachedStderr(key),
            11 => Self::PodInitControl,
            _ => return None,
        })
    }
}

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interest {
    Read,
    Write,
    ReadWrite,
    /// Only that the other end is gone, which is always told.
    Hangup,
}

impl Interest {
    fn flags(self) -> EventFlags {
        match self {
            Self::Read => EventFlags::IN,
            Self::Write => EventFlags::OUT,
            Self::Hangup => EventFlags::empty(),
            Self::ReadWrite => EventFlags::IN | EventFlags::OUT,
        }
    }
}

#[derive(Debug)]
pub(crate) struct Epoll(OwnedFd);

impl Epoll {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(epoll::create(CreateFlags::CLOEXEC)?))
    }

    pub(crate) fn add(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        self.add_for(fd, token, Interest::Read)
    }

    pub(crate) fn add_for(&self, fd: impl AsFd, token: Token, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.0, fd, token.pack(), interest.flags())?)
    }

    pub(crate) fn change(&self, fd: impl AsFd, token: Token, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(&self.0, fd, token.pack(), interest.flags())?)
    }

    /// To be called before the descriptor is closed, when a duplicate of it may live on elsewhere.
    pub(crate) fn remove(&self, fd: impl AsFd) {
        let _not_there = epoll::delete(&self.0, fd);
    }

    /// Waits until something happens or the time is up.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> io::Result<Vec<Token>> {
        let timeout = timeout.map(|time| Timespec {
            tv_sec: time.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: time.subsec_nanos().into(),
        });
        let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; EVENTS_MAX];
        match epoll::wait(&self.0, &mut events, timeout.as_ref()) {
            Ok(count) => Ok(events[..count].iter().filter_map(|event| Token::unpack(event.data)).collect()),
            Err(rustix::io::Errno::INTR) => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }
}
