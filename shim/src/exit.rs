//! Exit records: how a container ended, on disk before anybody is told.
//!
//! ```text
//! <state_dir>/exit.json   {"version":1,"code":0,"signal":0,"finished_at":1475713029669794202,"oom_killed":false}
//! ```
//! `code` counts when `signal` is 0. Written to a temporary file and renamed; no fsync, since the state directory is a tmpfs and a
//! reboot ends what the record describes.

use std::path::Path;

use crisp_domain::Timestamp;
use crisp_proto::supervisor as pb;
use crisp_sys::pidfd::Ended;

use crate::error::{Result, Step as _};

/// Name of the record in a container's state directory.
const FILE: &str = "exit.json";
/// Number of SIGKILL, with which the kernel ends a process for lack of memory.
pub(crate) const SIGKILL: u8 = 9;
/// What a shell makes of a child that SIGKILL ended.
const CODE_KILLED: u8 = 128 + SIGKILL;

/// Puts together how a process ended. `oom_kills`: what its cgroup counted while it ran.
pub(crate) fn exit(ended: Ended, oom_kills: u64) -> pb::Exit {
    let (code, signal) = match ended {
        Ended::Code(code) => (code, 0),
        Ended::Signal(signal) => (0, signal),
    };
    let killed = signal == SIGKILL || code == CODE_KILLED;
    pb::Exit {
        code: code.into(),
        signal: signal.into(),
        finished_at: Timestamp::now().0,
        oom_killed: oom_kills > 0 && killed,
    }
}

/// Writes the record.
pub(crate) fn write(state_dir: &Path, exit: &pb::Exit) -> Result<()> {
    let text = format!(
        "{{\"version\":1,\"code\":{},\"signal\":{},\"finished_at\":{},\"oom_killed\":{}}}\n",
        exit.code, exit.signal, exit.finished_at, exit.oom_killed
    );
    let (path, temporary) = (state_dir.join(FILE), state_dir.join(".exit.json.new"));
    let step = || format!("write {}", path.display());
    std::fs::write(&temporary, text).step(step)?;
    std::fs::rename(&temporary, &path).step(step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oom_counts_only_for_a_process_that_was_killed() {
        assert!(exit(Ended::Signal(9), 1).oom_killed);
        assert!(exit(Ended::Code(137), 1).oom_killed);
        assert!(!exit(Ended::Code(0), 1).oom_killed);
        assert!(!exit(Ended::Signal(15), 1).oom_killed);
        assert!(!exit(Ended::Signal(9), 0).oom_killed);
    }

    #[test]
    fn a_record_is_one_line_of_json() {
        let dir = tempfile::tempdir().unwrap();
        let exit = pb::Exit { code: 3, signal: 0, finished_at: 17, oom_killed: false };
        write(dir.path(), &exit).unwrap();
        let text = std::fs::read_to_string(dir.path().join("exit.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!((json["version"].as_u64(), json["code"].as_u64()), (Some(1), Some(3)));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
