use std::sync::{Arc, Mutex, PoisonError};

use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue, Method};
use url::Url;

use super::exchange::{Ask, body_bounded};
use super::hosts::{Endpoint, Scheme, authority, endpoints};
use super::meter::Meter;
use super::tls::Clients;
use super::token::Tokens;
use crate::auth::Auth;
use crate::config::RegistryConfig;
use crate::digest::Digest;
use crate::error::{Attempt, Attempts, Failure, ImageError, Result};
use crate::manifest::{
    CONFIG_BYTES_MAX, DOCKER_INDEX, DOCKER_MANIFEST, Descriptor, MANIFEST_BYTES_MAX, OCI_INDEX, OCI_MANIFEST,
};
use crate::reference::{ImageRef, Target};

const MANIFEST_TYPES: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST];
const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// What pulls share: settings, connections, tokens.
#[derive(Debug)]
pub(crate) struct Registry {
    pub(crate) config: RegistryConfig,
    pub(super) clients: Clients,
    pub(super) tokens: Tokens,
}

impl Registry {
    pub(crate) fn new(config: RegistryConfig) -> Self {
        Self { clients: Clients::new(config.proxy), config, tokens: Tokens::default() }
    }
}

/// One repository, seen with one set of credentials.
#[derive(Debug)]
pub(crate) struct Session {
    pub(super) registry: Arc<Registry>,
    /// `registry/repository`, for errors.
    pub(crate) name: String,
    pub(super) repository: String,
    pub(super) auth: Auth,
    pub(super) endpoints: Vec<EndpointState>,
}

/// An endpoint with what was learned about it.
#[derive(Debug)]
pub(crate) struct EndpointState {
    pub(super) endpoint: Endpoint,
    /// A client that cannot be made is a failed attempt, not the end: the next host may do.
    client: Result<reqwest::Client, String>,
    authorization: Mutex<Option<HeaderValue>>,
}

impl EndpointState {
    pub(super) fn authorization(&self) -> Option<HeaderValue> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn authorize(&self, header: HeaderValue) {
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(header);
    }

    pub(super) fn attempt(&self, failure: Failure, reason: String) -> Attempt {
        Attempt { host: self.endpoint.host.clone(), reason, failure }
    }

    pub(super) fn url(&self, path: &str) -> Result<Url, String> {
        let mut url = Url::parse(&format!("{}{path}", self.endpoint.base)).map_err(|e| e.to_string())?;
        if let Some(namespace) = &self.endpoint.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ok(url)
    }

    pub(super) fn is_same_host(&self, url: &Url) -> bool {
        let scheme = Scheme::of(url);
        // The base went through the same parser, so equal hosts are spelled alike.
        let own = Url::parse(&self.endpoint.base).ok().and_then(|own| authority(&own));
        scheme == self.endpoint.scheme && own.is_some() && own == authority(url)
    }
}

/// A document that a registry gave, verified where its digest was known.
#[derive(Debug)]
pub(crate) struct Fetched {
    pub(crate) bytes: Vec<u8>,
    pub(crate) content_type: String,
    pub(crate) digest: Digest,
}

/// A document to be fetched.
struct Wanted<'a> {
    subject: String,
    path: String,
    accept: &'a [&'a str],
    bytes_max: u64,
    digest: Option<&'a Digest>,
}

impl Session {
    /// Reads the hosts that serve the reference's registry. No connection is made yet.
    pub(crate) async fn open(registry: &Arc<Registry>, reference: &ImageRef, auth: Auth) -> Result<Self> {
        let (shared, host) = (Arc::clone(registry), reference.registry().to_owned());
        let read = move || {
            let found = endpoints(&shared.config.config_roots, &host).into_iter().map(|endpoint| {
                let client = shared.clients.for_endpoint(&endpoint);
                EndpointState { endpoint, client, authorization: Mutex::default() }
            });
            found.collect()
        };
        let endpoints = tokio::task::spawn_blocking(read).await.map_err(|e| cancelled(&e, reference))?;
        let (name, repository) = (reference.name(), reference.repository().to_owned());
        Ok(Self { registry: Arc::clone(registry), name, repository, auth, endpoints })
    }

    /// What the registry says the tag points to, without its document; `None` when it does not say.
    ///
    /// # Errors
    /// [`ImageError::RegistryUnavailable`] when no host could be reached: asking for the document would end alike.
    pub(crate) async fn peek(&self, reference: &ImageRef) -> Result<Option<Digest>> {
        let path = format!("/{}/manifests/{}", self.repository, reference.target_text());
        let (meter, mut attempts) = (Meter::default(), Attempts::default());
        let ask =
            Ask { method: Method::HEAD, path: &path, accept: &MANIFEST_TYPES, offset: 0, meter: &meter };
        for state in self.endpoints.iter().filter(|s| s.endpoint.serves.resolves()) {
            let window = self.registry.config.progress_timeout;
            match meter.guard(window, self.ask(state, &ask)).await {
                Ok(Ok(response)) => return Ok(content_digest(response.headers())),
                Ok(Err(attempt)) => attempts.0.push(attempt),
                Err(_) => return Err(ImageError::Stalled { reference: reference.to_string(), window }),
            }
        }
        let away = !attempts.0.is_empty() && attempts.0.iter().all(|a| a.failure == Failure::Unavailable);
        if away { Err(attempts.into_error(reference.to_string())) } else { Ok(None) }
    }

    /// The document that a reference points to.
    pub(crate) async fn resolve(&self, reference: &ImageRef) -> Result<Fetched> {
        let digest = match reference.target() {
            Target::Tag(_) => None,
            Target::Digest(digest) => Some(digest),
        };
        self.document(Wanted {
            subject: reference.to_string(),
            path: format!("/{}/manifests/{}", self.repository, reference.target_text()),
            accept: &MANIFEST_TYPES,
            bytes_max: MANIFEST_BYTES_MAX,
            digest,
        })
        .await
    }

    /// A manifest that an index names.
    pub(crate) async fn manifest(&self, descriptor: &Descriptor) -> Result<Fetched> {
        let digest = &descriptor.digest;
        self.document(Wanted {
            subject: format!("{}@{digest}", self.name),
            path: format!("/{}/manifests/{digest}", self.repository),
            accept: &MANIFEST_TYPES,
            bytes_max: MANIFEST_BYTES_MAX,
            digest: Some(digest),
        })
        .await
    }

    /// An image configuration.
    pub(crate) async fn config(&self, descriptor: &Descriptor) -> Result<Vec<u8>> {
        let digest = &descriptor.digest;
        let wanted = Wanted {
            subject: format!("{}@{digest}", self.name),
            path: format!("/{}/blobs/{digest}", self.repository),
            accept: &[],
            bytes_max: CONFIG_BYTES_MAX.min(descriptor.size),
            digest: Some(digest),
        };
        self.document(wanted).await.map(|fetched| fetched.bytes)
    }

    async fn document(&self, wanted: Wanted<'_>) -> Result<Fetched> {
        let mut attempts = Attempts::default();
        let meter = Meter::default();
        let window = self.registry.config.progress_timeout;
        // Who may only serve content is not asked what a tag means.
        let able =
            |e: &Endpoint| if wanted.digest.is_some() { e.serves.pulls() } else { e.serves.resolves() };
        for state in self.endpoints.iter().filter(|s| able(&s.endpoint)) {
            if state.endpoint.instead && attempts.is_settled() {
                continue;
            }
            match meter.guard(window, self.document_from(state, &wanted, &meter)).await {
                Ok(Ok(fetched)) => return Ok(fetched),
                Ok(Err(attempt)) => attempts.0.push(attempt),
                Err(_) => return Err(ImageError::Stalled { reference: wanted.subject, window }),
            }
        }
        Err(attempts.into_error(wanted.subject))
    }

    async fn document_from(
        &self,
        state: &EndpointState,
        wanted: &Wanted<'_>,
        meter: &Meter,
    ) -> Result<Fetched, Attempt> {
        let ask = Ask { method: Method::GET, path: &wanted.path, accept: wanted.accept, offset: 0, meter };
        let response = self.ask(state, &ask).await?;
        let announced = content_digest(response.headers());
        let content_type =
            response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("").into();
        let silence = self.registry.config.silence_max;
        let body = meter.wait(tokio::time::timeout(silence, body_bounded(response, wanted.bytes_max))).await;
        let unavailable = |reason: String| state.attempt(Failure::Unavailable, reason);
        let bytes =
            body.map_err(|_error| unavailable("the answer broke off".into()))?.map_err(unavailable)?;
        let digest = Digest::of(&bytes);
        // By tag, the registry's own word is all there is to compare with.
        match wanted.digest.or(announced.as_ref()) {
            Some(expected) if *expected != digest => {
                Err(state.attempt(Failure::Other, format!("digest is {digest}, should be {expected}")))
            }
            Some(_) | None => Ok(Fetched { bytes, content_type, digest }),
        }
    }

    /// The client for a URL that the endpoint gave.
    pub(super) async fn client(&self, state: &EndpointState, url: &Url) -> Result<reqwest::Client, String> {
        if state.is_same_host(url) {
            return state.client.clone();
        }
        let (registry, endpoint) = (Arc::clone(&self.registry), state.endpoint.clone());
        let (scheme, host) = (Scheme::of(url), authority(url).unwrap_or_default());
        let made = tokio::task::spawn_blocking(move || registry.clients.for_other(&endpoint, scheme, &host));
        made.await.map_err(|e| e.to_string())?
    }
}

fn content_digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get(CONTENT_DIGEST)?.to_str().ok()?.parse().ok()
}

fn cancelled(_: &tokio::task::JoinError, reference: &ImageRef) -> ImageError {
    ImageError::Cancelled { subject: reference.to_string() }
}
