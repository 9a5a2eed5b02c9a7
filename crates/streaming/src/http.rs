//! From an HTTP request to a session: routes, tokens, upgrades, sub-protocols.

use std::sync::PoisonError;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hyper::body::Body;
use hyper::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{Method, Request, Response, StatusCode};
use sha1::{Digest, Sha1};

use crate::backend::PortForwardRequest;
use crate::exec;
use crate::output::Framing;
use crate::server::Shared;
use crate::status::Version;

const SPDY: &str = "SPDY/3.1";
const SPDY_VERSION: HeaderName = HeaderName::from_static("x-stream-protocol-version");
const SPDY_ACCEPTED: HeaderName = HeaderName::from_static("x-accepted-stream-protocol-versions");
/// What a server appends to a client's key. Source: RFC 6455, section 1.3.
const WEBSOCKET_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// What a token opens.
#[derive(Debug, Clone)]
pub(crate) enum Waiting {
    Process(exec::Request),
    PortForward(PortForwardRequest),
}

impl Waiting {
    /// The path's first part.
    pub(crate) fn route(&self) -> &'static str {
        match self {
            Self::Process(exec::Request::Exec(_)) => "exec",
            Self::Process(exec::Request::Attach(_)) => "attach",
            Self::PortForward(_) => "portforward",
        }
    }
}

/// A session that begins after its upgrade.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) request: Waiting,
    pub(crate) protocol: Protocol,
}

/// What was agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Protocol {
    pub(crate) framing: Framing,
    /// Of no meaning to port-forward.
    pub(crate) version: Version,
}

const fn protocol(framing: Framing, version: Version) -> Protocol {
    Protocol { framing, version }
}

/// Sub-protocols by name. A missing name over WebSocket is the empty one.
type Names = &'static [(&'static str, Protocol)];

const PROCESS_SPDY: Names = &[
    ("v4.channel.k8s.io", protocol(Framing::Spdy, Version::V4)),
    ("v3.channel.k8s.io", protocol(Framing::Spdy, Version::V3)),
    ("v2.channel.k8s.io", protocol(Framing::Spdy, Version::V2)),
    ("channel.k8s.io", protocol(Framing::Spdy, Version::V1)),
];
const PROCESS_WEBSOCKET: Names = &[
    ("", protocol(Framing::Channels, Version::V1)),
    ("channel.k8s.io", protocol(Framing::Channels, Version::V1)),
    ("base64.channel.k8s.io", protocol(Framing::Base64Channels, Version::V1)),
    ("v4.channel.k8s.io", protocol(Framing::Channels, Version::V4)),
    ("v4.base64.channel.k8s.io", protocol(Framing::Base64Channels, Version::V4)),
    ("v5.channel.k8s.io", protocol(Framing::Channels, Version::V5)),
];
const FORWARD_SPDY: Names = &[("portforward.k8s.io", protocol(Framing::Spdy, Version::V1))];
const FORWARD_WEBSOCKET: Names = &[
    ("", protocol(Framing::Channels, Version::V4)),
    ("v4.channel.k8s.io", protocol(Framing::Channels, Version::V4)),
    ("v4.base64.channel.k8s.io", protocol(Framing::Base64Channels, Version::V4)),
    ("SPDY/3.1+portforward.k8s.io", protocol(Framing::Tunnel, Version::V1)),
];

/// Answers a request; an upgrade comes with the session that follows it.
pub(crate) fn answer<B: Body>(shared: &Shared, request: &Request<B>) -> (Response<String>, Option<Session>) {
    match begin(shared, request) {
        Ok((response, session)) => (response, Some(session)),
        Err(refusal) => (*refusal, None),
    }
}

type Refusal = Box<Response<String>>;

fn begin<B: Body>(shared: &Shared, request: &Request<B>) -> Result<(Response<String>, Session), Refusal> {
    let (route, token) = request
        .uri()
        .path()
        .strip_prefix('/')
        .and_then(|path| path.split_once('/'))
        .filter(|(route, _)| matches!(*route, "exec" | "attach" | "portforward"))
        .ok_or_else(|| refuse(StatusCode::NOT_FOUND, "no such path"))?;
    if !matches!(*request.method(), Method::GET | Method::POST) {
        return Err(refuse(StatusCode::METHOD_NOT_ALLOWED, "GET or POST"));
    }
    let waiting = shared
        .tokens
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .take(token, Instant::now(), |waiting| waiting.route() == route)
        .ok_or_else(|| {
            refuse(StatusCode::NOT_FOUND, "no such request waits here: unknown, used or too late")
        })?;
    if !request.body().is_end_stream() {
        return Err(refuse(StatusCode::BAD_REQUEST, "a body where the session begins"));
    }
    let (response, protocol) = upgrade(request.headers(), &waiting)?;
    Ok((response, Session { request: waiting, protocol }))
}

fn upgrade(headers: &HeaderMap, waiting: &Waiting) -> Result<(Response<String>, Protocol), Refusal> {
    let upgrades = entries(headers, &CONNECTION).any(|entry| entry.eq_ignore_ascii_case("upgrade"));
    let to =
        |what: &str| upgrades && entries(headers, &UPGRADE).any(|entry| entry.eq_ignore_ascii_case(what));
    if to("websocket") {
        upgrade_to_websocket(headers, waiting)
    } else if to(SPDY) {
        upgrade_to_spdy(headers, waiting)
    } else {
        Err(refuse(StatusCode::BAD_REQUEST, "neither an upgrade to SPDY/3.1 nor to WebSocket"))
    }
}

fn upgrade_to_spdy(headers: &HeaderMap, waiting: &Waiting) -> Result<(Response<String>, Protocol), Refusal> {
    let names = match waiting {
        Waiting::Process(_) => PROCESS_SPDY,
        Waiting::PortForward(_) => FORWARD_SPDY,
    };
    let mut offers = entries(headers, &SPDY_VERSION).peekable();
    if offers.peek().is_none() {
        return Err(refuse(StatusCode::BAD_REQUEST, "no X-Stream-Protocol-Version"));
    }
    let Some((name, protocol)) = choose(offers, names) else {
        let mut refusal = refuse(StatusCode::FORBIDDEN, "no sub-protocol in common");
        for (name, _) in names {
            refusal.headers_mut().append(SPDY_ACCEPTED, HeaderValue::from_static(name));
        }
        return Err(refusal);
    };
    let mut response = switching(SPDY);
    response.headers_mut().insert(SPDY_VERSION, HeaderValue::from_static(name));
    Ok((response, protocol))
}

fn upgrade_to_websocket(
    headers: &HeaderMap,
    waiting: &Waiting,
) -> Result<(Response<String>, Protocol), Refusal> {
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        let mut refusal = refuse(StatusCode::UPGRADE_REQUIRED, "WebSocket version 13 is spoken here");
        refusal.headers_mut().insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        return Err(refusal);
    }
    let accept = headers.get(SEC_WEBSOCKET_KEY).and_then(|key| accept(key.as_bytes()));
    let accept = accept.ok_or_else(|| refuse(StatusCode::BAD_REQUEST, "no Sec-WebSocket-Key"))?;
    let names = match waiting {
        Waiting::Process(_) => PROCESS_WEBSOCKET,
        Waiting::PortForward(_) => FORWARD_WEBSOCKET,
    };
    let mut offers = entries(headers, &SEC_WEBSOCKET_PROTOCOL).peekable();
    let chosen =
        if offers.peek().is_none() { choose([""].into_iter(), names) } else { choose(offers, names) };
    let (name, protocol) =
        chosen.ok_or_else(|| refuse(StatusCode::FORBIDDEN, "no sub-protocol in common"))?;
    if matches!(waiting, Waiting::PortForward(forward) if forward.ports.is_empty())
        && protocol.framing != Framing::Tunnel
    {
        return Err(refuse(StatusCode::BAD_REQUEST, "fixed channels without ports"));
    }
    let mut response = switching("websocket");
    response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    if !name.is_empty() {
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(name));
    }
    Ok((response, protocol))
}

/// The proof that a server understood the client's key. Source: RFC 6455, section 4.2.2.
fn accept(key: &[u8]) -> Option<HeaderValue> {
    let digest = Sha1::new().chain_update(key).chain_update(WEBSOCKET_GUID).finalize();
    HeaderValue::from_str(&BASE64.encode(digest)).ok()
}

/// The client's first entry that is ours too.
fn choose<'a>(mut offers: impl Iterator<Item = &'a str>, names: Names) -> Option<(&'static str, Protocol)> {
    offers.find_map(|offer| names.iter().find(|(name, _)| *name == offer)).copied()
}

/// A header's entries: repeated, or separated by commas.
fn entries<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> + use<'a> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|entry| !entry.is_empty())
}

fn switching(to: &'static str) -> Response<String> {
    let mut response = respond(StatusCode::SWITCHING_PROTOCOLS, String::new());
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static(to));
    response
}

fn refuse(status: StatusCode, reason: &str) -> Refusal {
    Box::new(respond(status, format!("{reason}\n")))
}

fn respond(status: StatusCode, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(k, v)| (HeaderName::from_static(k), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn the_clients_order_decides() {
        let headers = HeaderMap::from_iter([(
            SPDY_VERSION,
            HeaderValue::from_static("v9, v3.channel.k8s.io,v4.channel.k8s.io"),
        )]);
        let (name, _) = choose(entries(&headers, &SPDY_VERSION), PROCESS_SPDY).unwrap();
        assert_eq!(name, "v3.channel.k8s.io");
        let unknown = ["v5.channel.k8s.io"];
        assert_eq!(choose(unknown.into_iter(), PROCESS_SPDY), None);
    }

    #[test]
    fn the_proof_is_the_one_of_the_standard() {
        assert_eq!(accept(b"dGhlIHNhbXBsZSBub25jZQ==").unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn entries_may_be_repeated_or_in_one_line() {
        let mut headers = headers(&[("upgrade", "a, b")]);
        headers.append(UPGRADE, HeaderValue::from_static("c"));
        assert_eq!(entries(&headers, &UPGRADE).collect::<Vec<_>>(), ["a", "b", "c"]);
    }
}
