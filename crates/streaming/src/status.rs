//! The last word of a session: how its process ended.

use serde_json::{Value, json};

use crate::backend::Exit;

/// The sub-protocol's number: what may be said, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Version {
    /// Failures in words; over SPDY the error stream is reset and so says nothing.
    V1,
    /// Failures in words.
    V2,
    /// And terminals are resized.
    V3,
    /// And the status is JSON, with the exit code.
    V4,
    /// And a client can end a channel.
    V5,
}

/// What is said about `exit` on the error stream; nothing where silence means success.
pub(crate) fn status(version: Version, exit: &Exit) -> Option<Vec<u8>> {
    if version >= Version::V4 {
        return Some(object(exit).to_string().into_bytes());
    }
    match exit {
        Exit::Code(0) | Exit::Detached => None,
        Exit::Code(code) => Some(exited(*code).into_bytes()),
        Exit::Failed(reason) => Some(reason.clone().into_bytes()),
    }
}

fn object(exit: &Exit) -> Value {
    match exit {
        Exit::Code(0) | Exit::Detached => json!({ "metadata": {}, "status": "Success" }),
        Exit::Code(code) => json!({
            "metadata": {},
            "status": "Failure",
            "reason": "NonZeroExitCode",
            "message": exited(*code),
            "details": { "causes": [{ "reason": "ExitCode", "message": code.to_string() }] },
        }),
        Exit::Failed(reason) => json!({
            "metadata": {},
            "status": "Failure",
            "reason": "InternalError",
            "message": format!("Internal error occurred: {reason}"),
            "details": { "causes": [{ "message": reason }] },
            "code": 500,
        }),
    }
}

fn exited(code: i32) -> String {
    format!("command terminated with non-zero exit code: exit status {code}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(version: Version, exit: &Exit) -> Value {
        serde_json::from_slice(&status(version, exit).unwrap()).unwrap()
    }

    #[test]
    fn success_is_an_object_since_v4_and_silence_before() {
        for exit in [Exit::Code(0), Exit::Detached] {
            assert_eq!(said(Version::V4, &exit), json!({ "metadata": {}, "status": "Success" }));
            assert_eq!(status(Version::V3, &exit), None);
        }
    }

    #[test]
    fn the_code_is_the_bare_number() {
        let status = said(Version::V5, &Exit::Code(137));
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"][0], json!({ "reason": "ExitCode", "message": "137" }));
    }

    #[test]
    fn failures_are_internal_errors() {
        let exit = Exit::Failed("no such program".to_owned());
        let object = said(Version::V4, &exit);
        assert_eq!((&object["reason"], &object["code"]), (&json!("InternalError"), &json!(500)));
        assert_eq!(object["message"], "Internal error occurred: no such program");
        assert_eq!(status(Version::V1, &exit).unwrap(), b"no such program");
    }
}
