//! Attaching to a running container: the session's ends of its stdin and output, why it ended, the size of its terminal.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use crisp_domain::ContainerId;
use crisp_proto::supervisor as pb;
use crisp_proto::supervisor::reply::Result as Answer;
use crisp_proto::supervisor::request::Call;
use tokio::sync::oneshot;

use super::{AttachEnd, Error, SupervisorClient, pipe};

/// What a pipe towards a client holds: the shim drops clients that are further behind for too long.
const OUTPUT_PIPE_BYTES: usize = 1 << 20;
/// What a pipe towards the container holds.
const INPUT_PIPE_BYTES: usize = 64 << 10;

/// What of a container is attached to.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "one for each stream, as in the protocol")]
pub(crate) struct AttachStream<'a> {
    pub(crate) container: &'a ContainerId,
    pub(crate) stdin: bool,
    pub(crate) stdout: bool,
    pub(crate) stderr: bool,
}

/// An attachment: descriptors that do not block. Closing all of them detaches.
#[derive(Debug)]
pub(crate) struct AttachSession {
    /// To be closed at the end of the client's input: where the container was made with `stdin_once` and has no terminal, that ends its
    /// stdin for good, else this client's alone.
    pub(crate) stdin: Option<OwnedFd>,
    /// Ends after the last byte. A terminal's whole output.
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
    pub(crate) attachment: Attachment,
}

/// What is heard of an attachment.
#[derive(Debug)]
pub(crate) struct Attachment {
    client: SupervisorClient,
    container: ContainerId,
    id: String,
    end: oneshot::Receiver<AttachEnd>,
}

impl Attachment {
    /// Waits until the shim lets the client go; may be cancelled and called again, but not once it has answered. What the outputs
    /// hold by then stays readable.
    ///
    /// # Errors
    /// [`Error::Closed`] when the connection to the shim broke: the end is not known.
    pub(crate) async fn end(&mut self) -> Result<AttachEnd, Error> {
        (&mut self.end).await.map_err(|_dropped| Error::Closed)
    }

    /// Sets the size of the container's terminal; does nothing where it has none.
    pub(crate) fn resizer(&self) -> Resizer {
        Resizer(Target::Container { client: self.client.clone(), id: self.container.clone() })
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.client.connection.forget_attachment(&self.id);
    }
}

/// Sets a terminal's size without waiting.
#[derive(Debug, Clone)]
pub(crate) struct Resizer(Target);

#[derive(Debug, Clone)]
enum Target {
    /// The shim holds the master.
    Container {
        client: SupervisorClient,
        id: ContainerId,
    },
    Master(Arc<OwnedFd>),
}

impl Resizer {
    pub(super) fn of_master(master: Arc<OwnedFd>) -> Self {
        Self(Target::Master(master))
    }

    /// Columns and rows; a size of 0 is ignored.
    pub(crate) fn resize(&self, width: u16, height: u16) {
        if width == 0 || height == 0 {
            return;
        }
        match &self.0 {
            Target::Container { client, id } => {
                // A shim that does not keep up gets the next size.
                let _not_taken = client.connection.send_now(resize_call(id, width, height));
            }
            Target::Master(master) => {
                let size =
                    rustix::termios::Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
                if let Err(error) = rustix::termios::tcsetwinsize(master, size) {
                    tracing::debug!(%error, "set the size of an exec's terminal");
                }
            }
        }
    }
}

fn resize_call(id: &ContainerId, width: u16, height: u16) -> Call {
    Call::ResizeTerminal(pb::ResizeTerminal {
        container_id: id.to_string(),
        width: width.into(),
        height: height.into(),
    })
}

impl SupervisorClient {
    /// Attaches to a running container.
    ///
    /// # Errors
    /// [`Error::Refused`]: not running, made without stdin, too many clients; of kind `Unsupported` by the shim of an older daemon.
    pub(crate) async fn attach(&self, attach: AttachStream<'_>) -> Result<AttachSession, Error> {
        let input = attach.stdin.then(|| pipe::input(INPUT_PIPE_BYTES)).transpose()?;
        let stdout = attach.stdout.then(|| pipe::output(OUTPUT_PIPE_BYTES)).transpose()?;
        let stderr = attach.stderr.then(|| pipe::output(OUTPUT_PIPE_BYTES)).transpose()?;
        let id = super::exec::unique_id();
        let end = self.connection.expect_attach_end(&id);
        let attachment =
            Attachment { client: self.clone(), container: attach.container.clone(), id: id.clone(), end };
        let call = pb::Attach {
            container_id: attach.container.to_string(),
            attach_id: id,
            stdin: attach.stdin,
            stdout: attach.stdout,
            stderr: attach.stderr,
        };
        let given = [&input, &stdout, &stderr].into_iter().flatten();
        let fds: Vec<_> = given.map(|pipe| pipe.theirs.as_fd()).collect();
        match self.connection.ask("Attach", Call::Attach(call), &fds).await? {
            (Answer::Done(pb::Done {}), _) => {}
            _ => return Err(Error::Answer { what: "Attach" }),
        }
        drop(fds);
        let ours = |pipe: Option<pipe::Pipe>| pipe.map(|pipe| pipe.ours);
        Ok(AttachSession { stdin: ours(input), stdout: ours(stdout), stderr: ours(stderr), attachment })
    }
}
