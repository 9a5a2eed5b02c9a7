//! The one place that maps errors to gRPC, and that logs them.

use crisp_domain::ErrorKind;
use tonic::{Code, Status};

use crate::error::Error;

/// The gRPC answer for an error. It is logged here, once: whoever returns an error leaves logging to this function.
pub(crate) fn status(error: &Error) -> Status {
    let message = message(error);
    match code(error) {
        Code::Internal | Code::Unknown => tracing::warn!(error = %message, "request failed"),
        code => tracing::debug!(error = %message, ?code, "request refused"),
    }
    Status::new(code(error), message)
}

fn code(error: &Error) -> Code {
    // The kubelet strips the code of UNKNOWN only, and then reads the token that the message begins with.
    if let Error::Pull { registry_away: true, .. } = error {
        return Code::Unknown;
    }
    match error.kind() {
        ErrorKind::NotFound => Code::NotFound,
        ErrorKind::Invalid => Code::InvalidArgument,
        ErrorKind::Exists => Code::AlreadyExists,
        ErrorKind::WrongState => Code::FailedPrecondition,
        ErrorKind::Exhausted => Code::ResourceExhausted,
        ErrorKind::NotReady => Code::Unavailable,
        ErrorKind::Timeout => Code::DeadlineExceeded,
        ErrorKind::Unsupported => Code::Unimplemented,
        ErrorKind::Internal => Code::Internal,
    }
}

fn message(error: &Error) -> String {
    match error {
        Error::Pull { registry_away: true, .. } => format!("RegistryUnavailable: {error}"),
        other => other.to_string(),
    }
}
