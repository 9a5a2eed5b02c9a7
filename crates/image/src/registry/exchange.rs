//! One request to one endpoint, until it is answered for good.

use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, LOCATION, RANGE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::Response;
use serde::Deserialize;
use url::Url;

use super::hosts::{Scheme, authority};
use super::meter::Meter;
use super::session::{EndpointState, Session};
use super::token::Asker;
use crate::error::{Attempt, Failure, chain};

/// Tries of one request to one endpoint.
const TRIES_MAX: u32 = 3;
const REDIRECTS_MAX: u32 = 10;
/// Longest pause that a registry can ask for with `Retry-After`.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(30);
/// Answers to one request that may be 401: one without a token, one with a token that has expired.
const CHALLENGES_MAX: u32 = 2;
/// Bytes of an error's body that are looked at.
const ERROR_BYTES_MAX: u64 = 16 << 10;
/// Characters of a registry's own words in our error.
const ERROR_TEXT_MAX: usize = 200;

/// A request without what depends on the endpoint.
pub(crate) struct Ask<'a> {
    pub(crate) method: Method,
    /// Below the API's root, with a slash at its beginning.
    pub(crate) path: &'a str,
    pub(crate) accept: &'a [&'a str],
    /// Where the content should begin, in bytes.
    pub(crate) offset: u64,
    pub(crate) meter: &'a Meter,
}

/// A failure, and whether the same request may do better soon.
struct Refusal {
    reason: String,
    failure: Failure,
    pause: Option<Option<Duration>>,
}

impl Refusal {
    fn last(failure: Failure, reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), failure, pause: None }
    }
}

impl Session {
    /// Asks until there is a success or a failure that will stay one. The answer's status is 200 or 206.
    pub(crate) async fn ask(&self, state: &EndpointState, ask: &Ask<'_>) -> Result<Response, Attempt> {
        let mut pause = self.registry.config.retry_pause;
        for last in (0..TRIES_MAX).rev() {
            let refusal = match self.authorized(state, ask).await {
                Ok(response) if response.status().is_success() => {
                    ask.meter.answered();
                    return Ok(response);
                }
                Ok(response) => refused(response, self.registry.config.silence_max).await,
                Err(refusal) => refusal,
            };
            match refusal.pause {
                Some(wanted) if last > 0 => tokio::time::sleep(wanted.unwrap_or(pause)).await,
                Some(_) | None => return Err(state.attempt(refusal.failure, refusal.reason)),
            }
            pause *= 2;
        }
        Err(state.attempt(Failure::Other, "no try is allowed".into()))
    }

    /// Answers challenges.
    async fn authorized(&self, state: &EndpointState, ask: &Ask<'_>) -> Result<Response, Refusal> {
        for _ in 0..CHALLENGES_MAX {
            let used = state.authorization();
            let (response, ours) = self.follow(state, ask, used.as_ref()).await?;
            if response.status() != StatusCode::UNAUTHORIZED || !ours {
                return Ok(response);
            }
            let asker = Asker {
                clients: &self.registry.clients,
                endpoint: &state.endpoint,
                repository: &self.repository,
                auth: self.auth.for_host(&state.endpoint.host),
                meter: ask.meter,
                silence_max: self.registry.config.silence_max,
            };
            let header = self.registry.tokens.authorize(&asker, response.headers(), used.as_ref()).await;
            let header = header.map_err(|no| Refusal::last(no.failure, no.reason))?;
            if used.as_ref() == Some(&header) {
                return Ok(response);
            }
            state.authorize(header);
        }
        let used = state.authorization();
        self.follow(state, ask, used.as_ref()).await.map(|(response, _)| response)
    }

    /// Follows redirects. The second value tells whether the answer is the endpoint's own.
    async fn follow(
        &self,
        state: &EndpointState,
        ask: &Ask<'_>,
        authorization: Option<&HeaderValue>,
    ) -> Result<(Response, bool), Refusal> {
        let mut url = state.url(ask.path).map_err(|reason| Refusal::last(Failure::Other, reason))?;
        for _ in 0..=REDIRECTS_MAX {
            let ours = state.is_same_host(&url);
            let response = self.send(state, ask, &url, authorization.filter(|_| ours)).await?;
            let Some(next) = redirect(&response, &url)? else { return Ok((response, ours)) };
            if state.endpoint.scheme == Scheme::Https && Scheme::of(&next) == Scheme::Http {
                return Err(Refusal::last(Failure::Other, "it redirects from https to something else"));
            }
            url = next;
        }
        Err(Refusal::last(Failure::Other, format!("more than {REDIRECTS_MAX} redirects")))
    }

    async fn send(
        &self,
        state: &EndpointState,
        ask: &Ask<'_>,
        url: &Url,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, Refusal> {
        let client = self.client(state, url).await.map_err(|reason| Refusal::last(Failure::Other, reason))?;
        let mut headers = HeaderMap::new();
        if state.is_same_host(url) {
            headers.extend(state.endpoint.headers.iter().cloned());
        }
        for accept in ask.accept {
            headers.append(
                ACCEPT,
                HeaderValue::try_from(*accept).map_err(|e| Refusal::last(Failure::Other, e.to_string()))?,
            );
        }
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization.clone());
        }
        let mut request = client.request(ask.method.clone(), url.clone()).headers(headers);
        if ask.offset > 0 {
            request = request.header(RANGE, format!("bytes={}-", ask.offset));
        }
        let silence = self.registry.config.silence_max;
        match ask.meter.wait(tokio::time::timeout(silence, request.send())).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(broken(error)),
            Err(_) => Err(Refusal {
                reason: format!("no answer within {} s", silence.as_secs()),
                failure: Failure::Unavailable,
                pause: Some(None),
            }),
        }
    }
}

/// A host that is not there is left for the next one at once; a connection that broke is made again.
fn broken(error: reqwest::Error) -> Refusal {
    let again = !error.is_connect() && !error.is_builder();
    let error = error.without_url();
    Refusal { reason: chain(&error), failure: Failure::Unavailable, pause: again.then_some(None) }
}

fn redirect(response: &Response, from: &Url) -> Result<Option<Url>, Refusal> {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let location = response.headers().get(LOCATION).and_then(|l| l.to_str().ok());
    let url = location.and_then(|l| from.join(l).ok()).filter(|url| matches!(url.scheme(), "http" | "https"));
    match url {
        Some(url) if authority(&url).is_some() => Ok(Some(url)),
        Some(_) | None => Err(Refusal::last(Failure::Other, "it redirects to no valid place")),
    }
}

async fn refused(response: Response, silence: Duration) -> Refusal {
    let status = response.status();
    let again = status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS;
    let failure = match status {
        StatusCode::NOT_FOUND => Failure::NotFound,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Failure::Denied,
        _ if again => Failure::Unavailable,
        _ => Failure::Other,
    };
    let wanted = response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.trim().parse().ok());
    let wanted = wanted.map(|seconds| Duration::from_secs(seconds).min(RETRY_AFTER_MAX));
    let body = tokio::time::timeout(silence, body_bounded(response, ERROR_BYTES_MAX)).await;
    let body = body.ok().and_then(Result::ok).unwrap_or_default();
    Refusal { reason: status_text(status, &body), failure, pause: again.then_some(wanted) }
}

/// Reads a body of at most `bytes_max` bytes; the error is a text for an attempt's reason.
pub(crate) async fn body_bounded(mut response: Response, bytes_max: u64) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| chain(&e.without_url()))? {
        if (body.len() + chunk.len()) as u64 > bytes_max {
            return Err(format!("the answer is larger than {bytes_max} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

#[derive(Deserialize)]
struct Errors {
    errors: Vec<RegistryError>,
}

#[derive(Deserialize)]
struct RegistryError {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

/// A status with the registry's own words, `404 Not Found (MANIFEST_UNKNOWN: manifest unknown)`.
pub(crate) fn status_text(status: StatusCode, body: &[u8]) -> String {
    let first = serde_json::from_slice::<Errors>(body).ok().and_then(|e| e.errors.into_iter().next());
    let Some(error) = first else { return status.to_string() };
    let words =
        if error.message.is_empty() { error.code } else { format!("{}: {}", error.code, error.message) };
    let clean = words.chars().map(|c| if c.is_control() { ' ' } else { c }).take(ERROR_TEXT_MAX);
    format!("{status} ({})", clean.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registrys_words_are_bounded_and_clean() {
        let status = StatusCode::NOT_FOUND;
        let text = |body: &str| status_text(status, body.as_bytes());
        assert_eq!(text("<html>"), "404 Not Found");
        assert_eq!(text(r#"{"errors":[]}"#), "404 Not Found");
        assert_eq!(text(r#"{"errors":[{"code":"X","message":"a\nb"}]}"#), "404 Not Found (X: a b)");
        assert_eq!(text(r#"{"errors":[{"code":"X","detail":{}}]}"#), "404 Not Found (X)");
        let long = format!(r#"{{"errors":[{{"code":"X","message":"{}"}}]}}"#, "y".repeat(9999));
        assert!(text(&long).len() < 2 * ERROR_TEXT_MAX);
    }
}
