//! A `crictl` that runs for a while, on pipes or on a terminal.
use std::fs::File;
use std::io::{Read, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context as _, Result, ensure};
use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::eventually::{SOON, eventually};

/// A running client; dropping it kills it.
#[derive(Debug)]
pub(crate) struct Session {
    child: Child,
    input: Option<File>,
    output: Arc<Mutex<Vec<u8>>>,
    gatherers: Vec<JoinHandle<()>>,
    /// The side of a terminal that a user sees.
    terminal: Option<OwnedFd>,
}

impl Session {
    /// Starts a client on pipes.
    pub(super) fn start(mut command: Command) -> Result<Self> {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let output = Arc::default();
        let gatherers = vec![
            gather(child.stdout.take().context("stdout")?, &output),
            gather(child.stderr.take().context("stderr")?, &output),
        ];
        let input = child.stdin.take().map(|stdin| File::from(OwnedFd::from(stdin)));
        Ok(Self { child, input, output, gatherers, terminal: None })
    }

    /// Starts a client on a terminal of this size, which controls it.
    pub(super) fn on_terminal(command: &Command, rows: u16, columns: u16) -> Result<Self> {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        unlockpt(&terminal)?;
        let name = ptsname(&terminal, Vec::new())?;
        let other = open(name.as_c_str(), OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
        tcsetwinsize(&terminal, size(rows, columns))?;
        let child = Command::new("setsid")
            .arg("--ctty")
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(other.try_clone()?)
            .stdout(other.try_clone()?)
            .stderr(other)
            .spawn()?;
        let output = Arc::default();
        let gatherers = vec![gather(File::from(terminal.try_clone()?), &output)];
        let input = Some(File::from(terminal.try_clone()?));
        Ok(Self { child, input, output, gatherers, terminal: Some(terminal) })
    }

    /// Gives its terminal another size.
    pub(super) fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        Ok(tcsetwinsize(self.terminal.as_ref().context("a terminal")?, size(rows, columns))?)
    }

    pub(super) fn write(&mut self, text: &str) -> Result<()> {
        Ok(self.input.as_mut().context("its input is closed")?.write_all(text.as_bytes())?)
    }

    pub(super) fn close_input(&mut self) {
        self.input = None;
    }

    /// What it said up to now.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.output.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// Waits until it says something.
    pub(super) fn says(&self, what: &str) -> Result<()> {
        eventually(SOON, || {
            let text = self.text();
            ensure!(text.contains(what), "no {what:?} in {text:?}");
            Ok(())
        })
    }

    /// Waits until it ends by itself, and for the last that it said.
    pub(super) fn end(&mut self) -> Result<(ExitStatus, String)> {
        let status = eventually(SOON, || {
            self.child
                .try_wait()?
                .with_context(|| format!("the client still runs; it said {:?}", self.text()))
        })?;
        eventually(SOON, || {
            ensure!(self.gatherers.iter().all(JoinHandle::is_finished), "what it said has no end");
            Ok(())
        })?;
        Ok((status, self.text()))
    }

    /// Ends it without a farewell.
    pub(super) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

/// Collects what comes, until the end; a terminal ends with an error.
fn gather(mut from: impl Read + Send + 'static, into: &Arc<Mutex<Vec<u8>>>) -> JoinHandle<()> {
    let into = Arc::clone(into);
    std::thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut chunk) {
            into.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(&chunk[..count]);
        }
    })
}
