use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::digest::{Digest, Hasher};
use crate::error::ImageError;

/// Hosts that are the same registry to whoever wrote credentials down.
const DOCKER_HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// Credentials for a registry. They are kept in memory only, and no output shows them.
#[derive(Clone, PartialEq, Eq, Default)]
pub enum Auth {
    /// None.
    #[default]
    Anonymous,
    /// User and password, for the registry or its token server.
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: String,
        /// The only host that may see them; any host of the pull when `None`.
        server: Option<String>,
    },
    /// An OAuth refresh token for the registry's token server.
    IdentityToken {
        /// The token.
        token: String,
        /// As for `Basic`.
        server: Option<String>,
    },
    /// A bearer token, sent as it is.
    RegistryToken {
        /// The token.
        token: String,
        /// As for `Basic`.
        server: Option<String>,
    },
}

/// The fields of CRI's `AuthConfig`, each empty when it is not given.
#[derive(Clone, Copy, Default)]
pub struct AuthFields<'a> {
    /// User for the registry.
    pub username: &'a str,
    /// Password for the registry.
    pub password: &'a str,
    /// Base64 of `user:password`; may end in NUL bytes.
    pub auth: &'a str,
    /// A host or URL.
    pub server_address: &'a str,
    /// An OAuth refresh token.
    pub identity_token: &'a str,
    /// A bearer token.
    pub registry_token: &'a str,
}

impl fmt::Debug for AuthFields<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthFields").field("server_address", &self.server_address).finish_non_exhaustive()
    }
}

impl Auth {
    /// Chooses among the fields: registry token, user and password, identity token, `auth`, anonymous.
    ///
    /// # Errors
    /// [`ImageError::Credentials`] when `auth` is not base64 of `user:password`.
    pub fn from_fields(fields: &AuthFields<'_>) -> Result<Self, ImageError> {
        let server = host_of(fields.server_address);
        if !fields.registry_token.is_empty() {
            return Ok(Self::RegistryToken { token: fields.registry_token.into(), server });
        }
        if !fields.username.is_empty() {
            let (username, password) = (fields.username.into(), fields.password.into());
            return Ok(Self::Basic { username, password, server });
        }
        if !fields.identity_token.is_empty() {
            return Ok(Self::IdentityToken { token: fields.identity_token.into(), server });
        }
        if fields.auth.is_empty() {
            return Ok(Self::Anonymous);
        }
        let (username, password) = decode(fields.auth)?;
        Ok(Self::Basic { username, password, server })
    }

    /// These credentials as far as `host` may see them: [`Auth::Anonymous`] when they were given for another one.
    pub(crate) fn for_host(&self, host: &str) -> &Self {
        match self {
            Self::Anonymous => self,
            Self::Basic { server, .. }
            | Self::IdentityToken { server, .. }
            | Self::RegistryToken { server, .. } => {
                let allowed = server.as_deref().is_none_or(|server| same_registry(server, host));
                if allowed { self } else { &Self::Anonymous }
            }
        }
    }

    /// A key that is equal for equal credentials and tells nothing about them.
    pub(crate) fn key(&self) -> Digest {
        let (tag, fields): (&[u8], [&str; 3]) = match self {
            Self::Anonymous => (b"a", ["", "", ""]),
            Self::Basic { username, password, server } => {
                (b"b", [username, password, server.as_deref().unwrap_or("")])
            }
            Self::IdentityToken { token, server } => (b"i", [token, "", server.as_deref().unwrap_or("")]),
            Self::RegistryToken { token, server } => (b"r", [token, "", server.as_deref().unwrap_or("")]),
        };
        let mut hasher = Hasher::default();
        hasher.update(tag);
        for field in fields {
            hasher.update(&(field.len() as u64).to_be_bytes());
            hasher.update(field.as_bytes());
        }
        hasher.finish()
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Anonymous => "Anonymous",
            Self::Basic { .. } => "Basic(redacted)",
            Self::IdentityToken { .. } => "IdentityToken(redacted)",
            Self::RegistryToken { .. } => "RegistryToken(redacted)",
        })
    }
}

/// `https://host:port/v1/` and `host:port` both mean that host.
fn host_of(address: &str) -> Option<String> {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    let host = rest.split('/').next().unwrap_or("");
    (!host.is_empty()).then(|| host.to_ascii_lowercase())
}

fn same_registry(a: &str, b: &str) -> bool {
    let hub = |host: &str| DOCKER_HUB.contains(&host);
    a.eq_ignore_ascii_case(b) || (hub(a) && hub(b))
}

fn decode(text: &str) -> Result<(String, String), ImageError> {
    let bad = |reason| ImageError::Credentials { reason };
    let bytes = STANDARD.decode(text.trim()).map_err(|_error| bad("auth is not base64"))?;
    let text = String::from_utf8(bytes).map_err(|_error| bad("auth is not UTF-8"))?;
    let (user, password) = text.split_once(':').ok_or(bad("auth has no colon"))?;
    Ok((user.into(), password.trim_end_matches('\0').into()))
}

/// The value of a header for basic authentication.
pub(crate) fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_have_an_order() {
        let auth = STANDARD.encode("u:p\0\0");
        let mut fields = AuthFields { auth: &auth, ..AuthFields::default() };
        let basic = |u: &str, p: &str| Auth::Basic { username: u.into(), password: p.into(), server: None };
        assert_eq!(Auth::from_fields(&AuthFields::default()).unwrap(), Auth::Anonymous);
        assert_eq!(Auth::from_fields(&fields).unwrap(), basic("u", "p"));
        fields.identity_token = "id";
        assert_eq!(
            Auth::from_fields(&fields).unwrap(),
            Auth::IdentityToken { token: "id".into(), server: None }
        );
        (fields.username, fields.password) = ("user", "pass");
        assert_eq!(Auth::from_fields(&fields).unwrap(), basic("user", "pass"));
        fields.registry_token = "reg";
        assert_eq!(
            Auth::from_fields(&fields).unwrap(),
            Auth::RegistryToken { token: "reg".into(), server: None }
        );
    }

    #[test]
    fn malformed_auth_is_an_error_without_the_secret() {
        for auth in ["!!", &STANDARD.encode("hunter2"), &STANDARD.encode(b"\xff\xfe:x")] {
            let error = Auth::from_fields(&AuthFields { auth, ..AuthFields::default() }).unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn credentials_stay_with_their_server() {
        for (address, host, sent) in [
            ("", "mirror:5000", true),
            ("reg.io", "reg.io", true),
            ("https://reg.io/v2/", "REG.io", true),
            ("reg.io", "mirror:5000", false),
            ("reg.io:5000", "reg.io", false),
            ("https://index.docker.io/v1/", "registry-1.docker.io", true),
            ("docker.io", "docker.io.evil", false),
        ] {
            let fields = AuthFields { username: "u", server_address: address, ..AuthFields::default() };
            let auth = Auth::from_fields(&fields).unwrap();
            assert_eq!(auth.for_host(host) != &Auth::Anonymous, sent, "{address} {host}");
        }
    }

    #[test]
    fn nothing_shows_a_secret() {
        let fields = AuthFields { username: "root", password: "hunter2", ..AuthFields::default() };
        let shown = format!("{:?} {fields:?}", Auth::from_fields(&fields).unwrap());
        assert!(!shown.contains("hunter2") && !shown.contains("root"), "{shown}");
    }

    #[test]
    fn keys_tell_credentials_apart() {
        let basic = |u: &str, p: &str| Auth::Basic { username: u.into(), password: p.into(), server: None };
        assert_eq!(basic("a", "b").key(), basic("a", "b").key());
        assert_ne!(basic("ab", "").key(), basic("a", "b").key());
        assert_ne!(basic("", "").key(), Auth::Anonymous.key());
    }
}
