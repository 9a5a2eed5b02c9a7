//! Why a subcommand ended without success.

use std::path::PathBuf;
use std::process::ExitCode;

use super::manifest::ManifestError;
use crate::config::ConfigError;

pub(crate) type Result<T, E = CliError> = std::result::Result<T, E>;

/// Exit code of a subcommand that failed.
pub(crate) const EXIT_FAILED: u8 = 1;
/// Exit code of `crisp run` and `crisp exec` when Crisp itself failed, so that it is not taken for the command's.
pub(crate) const EXIT_NOT_RUN: u8 = 125;
/// Exit code of `crisp exec --timeout` when the time was up, as that of timeout(1).
pub(crate) const EXIT_TIMED_OUT: u8 = 124;
/// Exit code after Ctrl-C: 128 + SIGINT.
pub(crate) const EXIT_INTERRUPTED: u8 = 130;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum CliError {
    #[error("cannot reach the daemon at {}: {source}{}", address.display(), hint(source))]
    Unreachable { address: PathBuf, source: std::io::Error },
    #[error("{}", rpc_text(doing, status))]
    Rpc { doing: String, status: Box<tonic::Status> },
    #[error("{}: {source}", path.display())]
    Manifest { path: PathBuf, source: ManifestError },
    #[error("{}", crate::error::chain(.0))]
    Config(#[from] ConfigError),
    #[error("{doing}: {source}")]
    Io { doing: String, source: std::io::Error },
    #[error("{0}")]
    Invalid(String),
    /// Everything is said; only the exit code remains.
    #[error("exit code {0}")]
    Exit(u8),
}

impl CliError {
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    pub(crate) fn rpc(doing: impl Into<String>) -> impl FnOnce(tonic::Status) -> Self {
        let doing = doing.into();
        move |status| Self::Rpc { doing, status: Box::new(status) }
    }

    /// Whether the daemon does not know the call.
    pub(crate) fn is_unimplemented(&self) -> bool {
        matches!(self, Self::Rpc { status, .. } if status.code() == tonic::Code::Unimplemented)
    }
}

/// Turns the outcome of a subcommand into its exit code and says on stderr what failed.
pub(crate) fn finish(outcome: Result<ExitCode>, code_when_failed: u8) -> ExitCode {
    match outcome {
        Ok(code) => code,
        Err(CliError::Exit(code)) => code.into(),
        Err(error) => {
            // Nobody is left to tell when stderr is gone.
            let _unheard = super::output::err_line(&format!("crisp: {error}"));
            code_when_failed.into()
        }
    }
}

fn hint(source: &std::io::Error) -> &'static str {
    use std::io::ErrorKind;
    match source.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
            "\nIs it running? `crisp serve` starts it; --address names another socket."
        }
        ErrorKind::PermissionDenied => "\nThe socket belongs to root: try with sudo.",
        _ => "",
    }
}

/// What was done and the daemon's message, or its code where the message is empty. The message may quote what an archive or a
/// registry said, so nothing in it reaches the terminal as a control character.
fn rpc_text(doing: &str, status: &tonic::Status) -> String {
    let message = match status.message() {
        "" => status.code().to_string(),
        message => message.chars().flat_map(printable).collect(),
    };
    if message.starts_with(doing) { message } else { format!("{doing}: {message}") }
}

fn printable(c: char) -> impl Iterator<Item = char> {
    let escaped = c.is_control().then(|| c.escape_default());
    let plain = escaped.is_none().then_some(c);
    escaped.into_iter().flatten().chain(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_once_and_without_control_characters() {
        let text = |message: &str| rpc_text("import /a", &tonic::Status::internal(message));
        assert_eq!(text("no \u{1b}[31mlayer\n"), "import /a: no \\u{1b}[31mlayer\\n");
        assert_eq!(text("import /a: bad"), "import /a: bad");
        assert_eq!(text("größer"), "import /a: größer");
        assert_eq!(rpc_text("x", &tonic::Status::unavailable("")), "x: The service is currently unavailable");
    }
}
