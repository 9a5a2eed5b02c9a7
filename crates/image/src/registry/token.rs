//! From a `WWW-Authenticate` header to an `Authorization` header.
//!
//! Source: the distribution project's token and OAuth2 specifications; RFC 7235 for challenges.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use serde::Deserialize;
use url::Url;

use super::exchange::{body_bounded, status_text};
use super::hosts::{Endpoint, Scheme, authority, is_loopback};
use super::meter::Meter;
use super::tls::Clients;
use crate::auth::{Auth, basic};
use crate::digest::Digest;
use crate::error::{Failure, chain};

const TOKENS_MAX: usize = 256;
/// Largest answer of a token server, in bytes.
const TOKEN_BYTES_MAX: u64 = 1 << 20;
/// Validity of a token whose server does not say.
const TOKEN_LIFE: Duration = Duration::from_secs(60);
/// A token is not used in the last moments of its life.
const TOKEN_MARGIN: Duration = Duration::from_secs(10);
const CLIENT_ID: &str = "crisp";
/// Challenges of one answer that are looked at.
const CHALLENGES_MAX: usize = 16;

/// One way in which a registry wants to know us.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer { realm: String, service: String, scope: String },
}

/// Tokens by what they were given for.
#[derive(Debug, Default)]
pub(crate) struct Tokens(Mutex<HashMap<TokenKey, Token>>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct TokenKey {
    realm: String,
    service: String,
    scope: String,
    credentials: Digest,
}

#[derive(Debug, Clone)]
struct Token {
    /// Marked as sensitive, so that no debug output shows it.
    value: HeaderValue,
    until: Instant,
}

/// Why there is no authorization; the reason goes to the attempt.
#[derive(Debug)]
pub(crate) struct NoAuth {
    pub(crate) reason: String,
    pub(crate) failure: Failure,
}

fn denied(reason: impl Into<String>) -> NoAuth {
    NoAuth { reason: reason.into(), failure: Failure::Denied }
}

/// All that a request for a token needs.
pub(crate) struct Asker<'a> {
    pub(crate) clients: &'a Clients,
    pub(crate) endpoint: &'a Endpoint,
    pub(crate) repository: &'a str,
    /// Already restricted to what this endpoint may see.
    pub(crate) auth: &'a Auth,
    pub(crate) meter: &'a Meter,
    pub(crate) silence_max: Duration,
}

impl Tokens {
    /// The header that answers the challenges in `headers`. `refused`: the one that was just refused, so it is not given again.
    pub(crate) async fn authorize(
        &self,
        asker: &Asker<'_>,
        headers: &HeaderMap,
        refused: Option<&HeaderValue>,
    ) -> Result<HeaderValue, NoAuth> {
        let challenges = challenges(headers);
        let bearer = challenges.iter().find(|c| matches!(c, Challenge::Bearer { .. }));
        match bearer.or(challenges.first()) {
            None => Err(denied("401 Unauthorized without a challenge that we know")),
            Some(Challenge::Basic) => basic_header(asker.auth),
            Some(Challenge::Bearer { realm, service, scope }) => {
                if let Auth::RegistryToken { token, .. } = asker.auth {
                    return sensitive(&format!("Bearer {token}"));
                }
                let scope = match scope.as_str() {
                    "" => format!("repository:{}:pull", asker.repository),
                    given => given.to_owned(),
                };
                let key = TokenKey {
                    realm: realm.clone(),
                    service: service.clone(),
                    scope,
                    credentials: asker.auth.key(),
                };
                self.bearer(asker, key, refused).await
            }
        }
    }

    async fn bearer(
        &self,
        asker: &Asker<'_>,
        key: TokenKey,
        refused: Option<&HeaderValue>,
    ) -> Result<HeaderValue, NoAuth> {
        if let Some(value) = self.kept(&key).filter(|value| Some(value) != refused) {
            return Ok(value);
        }
        let token = ask(asker, &key).await?;
        let value = token.value.clone();
        self.keep(key, token);
        Ok(value)
    }

    fn kept(&self, key: &TokenKey) -> Option<HeaderValue> {
        let tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.get(key).filter(|t| t.until > Instant::now()).map(|t| t.value.clone())
    }

    fn keep(&self, key: TokenKey, token: Token) {
        let mut tokens = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        tokens.retain(|_, t| t.until > now);
        if tokens.len() >= TOKENS_MAX {
            tokens.clear();
        }
        tokens.insert(key, token);
    }
}

fn sensitive(text: &str) -> Result<HeaderValue, NoAuth> {
    let mut value =
        HeaderValue::try_from(text).map_err(|_error| denied("the credentials do not fit a header"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn basic_header(auth: &Auth) -> Result<HeaderValue, NoAuth> {
    match auth {
        Auth::Basic { username, password, .. } => sensitive(&basic(username, password)),
        Auth::IdentityToken { token, .. } => sensitive(&basic("", token)),
        Auth::RegistryToken { token, .. } => sensitive(&format!("Bearer {token}")),
        Auth::Anonymous => Err(denied("401 Unauthorized, and no credentials were given")),
    }
}

/// What a token server answers; the two names are of the two specifications.
#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    expires_in: Option<f64>,
}

async fn ask(asker: &Asker<'_>, key: &TokenKey) -> Result<Token, NoAuth> {
    let realm = realm(asker.endpoint, &key.realm)?;
    if let Auth::IdentityToken { token, .. } = asker.auth {
        let form = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "refresh_token")
            .append_pair("service", &key.service)
            .append_pair("scope", &key.scope)
            .append_pair("client_id", CLIENT_ID)
            .append_pair("refresh_token", token)
            .finish();
        match send(asker, &realm, Some(form)).await? {
            // A server that does not know the POST form may still take the token as a password.
            (StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED, _) => {}
            (status, body) => return token_of(&realm, status, &body),
        }
    }
    let mut url = realm.clone();
    if !key.service.is_empty() {
        url.query_pairs_mut().append_pair("service", &key.service);
    }
    for scope in key.scope.split_whitespace() {
        url.query_pairs_mut().append_pair("scope", scope);
    }
    let (status, body) = send(asker, &url, None).await?;
    token_of(&realm, status, &body)
}

/// The token server's URL; credentials never leave a TLS registry for a plain one.
fn realm(endpoint: &Endpoint, text: &str) -> Result<Url, NoAuth> {
    let url = Url::parse(text).map_err(|_error| denied("the challenge names no valid token server"))?;
    let host = authority(&url).ok_or_else(|| denied("the challenge names no valid token server"))?;
    let plain_is_fine = endpoint.scheme == Scheme::Http || is_loopback(&host);
    match url.scheme() {
        "https" => Ok(url),
        "http" if plain_is_fine => Ok(url),
        _ => Err(denied(format!("the token server {host} is not reached by https"))),
    }
}

async fn send(asker: &Asker<'_>, url: &Url, form: Option<String>) -> Result<(StatusCode, Vec<u8>), NoAuth> {
    let host = authority(url).unwrap_or_default();
    let away = |reason: String| NoAuth {
        reason: format!("token server {host}: {reason}"),
        failure: Failure::Unavailable,
    };
    let client = asker.clients.for_other(asker.endpoint, Scheme::of(url), &host).map_err(away)?;
    let mut request = match &form {
        Some(_) => client.request(Method::POST, url.clone()),
        None => client.request(Method::GET, url.clone()),
    };
    request = request.header(ACCEPT, "application/json");
    if let Some(form) = form {
        request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form);
    } else if asker.auth != &Auth::Anonymous {
        request = request.header(AUTHORIZATION, basic_header(asker.auth)?);
    }
    let exchange = async {
        let response = request.send().await.map_err(|e| chain(&e.without_url()))?;
        let status = response.status();
        Ok((status, body_bounded(response, TOKEN_BYTES_MAX).await?))
    };
    let answer = asker.meter.wait(tokio::time::timeout(asker.silence_max, exchange)).await;
    let answer = answer.map_err(|_error| away("no answer in time".into()))?.map_err(away)?;
    asker.meter.answered();
    Ok(answer)
}

fn token_of(realm: &Url, status: StatusCode, body: &[u8]) -> Result<Token, NoAuth> {
    let host = authority(realm).unwrap_or_default();
    if !status.is_success() {
        let failure = if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
            Failure::Unavailable
        } else {
            Failure::Denied
        };
        return Err(NoAuth {
            reason: format!("token server {host}: {}", status_text(status, body)),
            failure,
        });
    }
    let answer: Answer = serde_json::from_slice(body)
        .map_err(|_error| denied(format!("token server {host}: its answer is no token")))?;
    let text = if answer.token.is_empty() { answer.access_token } else { answer.token };
    if text.is_empty() {
        return Err(denied(format!("token server {host}: its answer has no token")));
    }
    let life = answer.expires_in.and_then(|s| Duration::try_from_secs_f64(s).ok()).unwrap_or(TOKEN_LIFE);
    let life = life.min(Duration::from_secs(86400)).saturating_sub(TOKEN_MARGIN);
    Ok(Token { value: sensitive(&format!("Bearer {text}"))?, until: Instant::now() + life })
}

/// The challenges of an answer, in order; of unknown schemes nothing is kept.
fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let texts = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok());
    texts
        .flat_map(split)
        .filter_map(|(scheme, parameters)| known(&scheme, parameters))
        .take(CHALLENGES_MAX)
        .collect()
}

fn known(scheme: &str, mut parameters: HashMap<String, String>) -> Option<Challenge> {
    let mut take = |name: &str| parameters.remove(name).unwrap_or_default();
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    let bearer = Challenge::Bearer { realm: take("realm"), service: take("service"), scope: take("scope") };
    scheme.eq_ignore_ascii_case("bearer").then_some(bearer)
}

/// Splits `Scheme a="b", c=d, Other e="f"` into schemes with their parameters.
fn split(text: &str) -> Vec<(String, HashMap<String, String>)> {
    let mut found: Vec<(String, HashMap<String, String>)> = Vec::new();
    let mut rest = text.trim_start_matches([' ', ',']);
    while !rest.is_empty() && found.len() <= CHALLENGES_MAX {
        let word_len = rest.find([' ', ',', '=']).unwrap_or(rest.len());
        let (word, tail) = rest.split_at(word_len);
        if let Some(value) = tail.strip_prefix('=') {
            let (value, tail) = parameter(value);
            if let Some((_, parameters)) = found.last_mut() {
                parameters.insert(word.to_ascii_lowercase(), value);
            }
            rest = tail;
        } else {
            found.push((word.into(), HashMap::new()));
            rest = tail;
        }
        rest = rest.trim_start_matches([' ', ',']);
    }
    found
}

/// A quoted string or a token, and what follows it.
fn parameter(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([' ', ',']).unwrap_or(text.len());
        return (text[..end].into(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(values: &[&str]) -> Vec<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_str(value).unwrap());
        }
        challenges(&headers)
    }

    fn bearer(realm: &str, service: &str, scope: &str) -> Challenge {
        Challenge::Bearer { realm: realm.into(), service: service.into(), scope: scope.into() }
    }

    #[test]
    fn challenges_are_read_as_registries_write_them() {
        let hub = r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull""#;
        let expected = bearer("https://auth.docker.io/token", "registry.docker.io", "repository:a/b:pull");
        assert_eq!(parsed(&[hub]), [expected]);
        assert_eq!(parsed(&[r#"Basic realm="x, y""#]), [Challenge::Basic]);
        assert_eq!(parsed(&["Basic"]), [Challenge::Basic]);
        assert_eq!(
            parsed(&[r#"Negotiate, Basic realm="a", bearer Realm=http://t , scope="a \"b\"""#]),
            [Challenge::Basic, bearer("http://t", "", r#"a "b""#)]
        );
        assert_eq!(parsed(&["Digest x=y", r#"Bearer realm="r"#]), [bearer("r", "", "")]);
        assert_eq!(parsed(&["", ",,,", "=", "a=b", "=\""]), []);
    }

    #[test]
    fn credentials_do_not_go_to_a_plain_token_server() {
        let mut endpoint = super::super::hosts::endpoints(&[], "q.io").remove(0);
        assert!(realm(&endpoint, "https://t.io/token").is_ok());
        assert!(realm(&endpoint, "http://t.io/token").is_err());
        assert!(realm(&endpoint, "file:///etc/passwd").is_err());
        assert!(realm(&endpoint, "").is_err());
        endpoint.scheme = Scheme::Http;
        assert!(realm(&endpoint, "http://t.io/token").is_ok());
    }
}
