//! HTTP clients by TLS settings. They are kept while the settings and the files behind them stay the same, so that pulls share
//! connections; a client is renewed now and then because the system's authorities change too.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tracing::warn;

use super::hosts::{Endpoint, Scheme, TlsSettings, is_loopback};
use crate::config::ProxySource;
use crate::digest::{Digest, Hasher};
use crate::error::chain;

/// Largest PEM file, in bytes.
const PEM_BYTES_MAX: u64 = 4 << 20;
/// Clients kept; more settings than these only cost connections.
const CLIENTS_MAX: usize = 16;
const CLIENT_AGE_MAX: Duration = Duration::from_secs(600);
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);
/// Idle connections cost memory on either side, and pulls come in bursts.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const IDLE_PER_HOST_MAX: usize = 8;
const USER_AGENT: &str = concat!("crisp/", env!("CARGO_PKG_VERSION"));

/// What a client depends on.
#[derive(PartialEq, Clone)]
struct Key {
    tls: Option<(TlsSettings, Digest)>,
    dial_timeout: Duration,
    direct: bool,
}

/// The clients in use.
#[derive(Debug)]
pub(crate) struct Clients {
    proxy: ProxySource,
    kept: Mutex<Vec<Kept>>,
}

struct Kept {
    key: Key,
    since: Instant,
    client: reqwest::Client,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").field("tls", &self.key.tls).finish_non_exhaustive()
    }
}

impl Clients {
    pub(crate) fn new(proxy: ProxySource) -> Self {
        Self { proxy, kept: Mutex::default() }
    }

    /// The client for an endpoint. Blocking: reads certificate files.
    ///
    /// The error is a text for the attempt's reason.
    pub(crate) fn for_endpoint(&self, endpoint: &Endpoint) -> Result<reqwest::Client, String> {
        self.get(endpoint.scheme.tls(&endpoint.tls), endpoint.dial_timeout, &endpoint.host)
    }

    /// The client for another host that the endpoint sends us to. It trusts the same authorities, since storage often stands
    /// beside its registry, but never shows our certificate. Blocking.
    pub(crate) fn for_other(
        &self,
        endpoint: &Endpoint,
        scheme: Scheme,
        host: &str,
    ) -> Result<reqwest::Client, String> {
        let tls = TlsSettings { client: Vec::new(), ..endpoint.tls.clone() };
        self.get(scheme.tls(&tls), endpoint.dial_timeout, host)
    }

    fn get(
        &self,
        tls: Option<&TlsSettings>,
        dial: Option<Duration>,
        host: &str,
    ) -> Result<reqwest::Client, String> {
        let files = tls.map(Files::read).transpose()?;
        let settings = tls.zip(files.as_ref()).map(|(tls, files)| (tls.clone(), files.digest()));
        let key = Key {
            tls: settings,
            dial_timeout: dial.unwrap_or(DIAL_TIMEOUT),
            direct: self.proxy == ProxySource::Off || is_loopback(host),
        };
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.retain(|k| k.since.elapsed() < CLIENT_AGE_MAX);
        if let Some(found) = kept.iter().find(|k| k.key == key) {
            return Ok(found.client.clone());
        }
        drop(kept);
        let client = build(&key, tls, files.as_ref())?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= CLIENTS_MAX {
            kept.remove(0);
        }
        kept.push(Kept { key, since: Instant::now(), client: client.clone() });
        Ok(client)
    }
}

fn build(key: &Key, tls: Option<&TlsSettings>, files: Option<&Files>) -> Result<reqwest::Client, String> {
    let config = match tls.zip(files) {
        Some((tls, files)) => tls_config(tls, files)?,
        // A plain client is never asked to speak TLS.
        None => with_roots(RootCertStore::empty())?.with_no_client_auth(),
    };
    let builder = reqwest::Client::builder()
        .tls_backend_preconfigured(config)
        .user_agent(USER_AGENT)
        // Ours to follow: credentials must not go along.
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .retry(reqwest::retry::never())
        // One connection a layer: layers must not share a flow-control window, or a slow one stops the rest.
        .http1_only()
        .connect_timeout(key.dial_timeout)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(IDLE_PER_HOST_MAX);
    let builder = if key.direct { builder.no_proxy() } else { builder };
    builder.build().map_err(|e| chain(&e))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn with_roots(
    roots: RootCertStore,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, String> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    Ok(builder.map_err(|e| e.to_string())?.with_root_certificates(roots))
}

fn tls_config(tls: &TlsSettings, files: &Files) -> Result<ClientConfig, String> {
    let builder = if tls.skip_verify {
        let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
        let builder = builder.map_err(|e| e.to_string())?.dangerous();
        builder.with_custom_certificate_verifier(Arc::new(AnyCertificate(provider())))
    } else {
        with_roots(roots(files)?)?
    };
    let Some((cert, key)) = files.client.first() else { return Ok(builder.with_no_client_auth()) };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&cert.1).collect();
    let chain = chain.map_err(|e| format!("certificate {}: {e}", cert.0))?;
    let key = PrivateKeyDer::from_pem_slice(&key.1).map_err(|e| format!("key {}: {e}", key.0))?;
    builder.with_client_auth_cert(chain, key).map_err(|e| format!("certificate {}: {e}", cert.0))
}

fn roots(files: &Files) -> Result<RootCertStore, String> {
    let system = rustls_native_certs::load_native_certs();
    if let Some(error) = system.errors.first() {
        warn!(%error, "some of the system's certificate authorities cannot be read");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(system.certs);
    for (name, bytes) in &files.ca {
        for cert in CertificateDer::pem_slice_iter(bytes) {
            let cert = cert.map_err(|e| format!("ca {name}: {e}"))?;
            roots.add(cert).map_err(|e| format!("ca {name}: {e}"))?;
        }
    }
    Ok(roots)
}

/// A file's name and content.
type Named = (String, Vec<u8>);

/// The content of the files that the settings name.
struct Files {
    ca: Vec<Named>,
    client: Vec<(Named, Named)>,
}

impl Files {
    fn read(tls: &TlsSettings) -> Result<Self, String> {
        let ca = tls.ca.iter().map(|path| pem(path)).collect::<Result<_, _>>()?;
        let pair =
            |(cert, key): &(PathBuf, Option<PathBuf>)| Ok((pem(cert)?, pem(key.as_ref().unwrap_or(cert))?));
        let client = tls.client.iter().map(pair).collect::<Result<_, String>>()?;
        Ok(Self { ca, client })
    }

    fn digest(&self) -> Digest {
        let mut hasher = Hasher::default();
        for (_, bytes) in self.ca.iter().chain(self.client.iter().flat_map(|(cert, key)| [cert, key])) {
            hasher.update(&(bytes.len() as u64).to_be_bytes());
            hasher.update(bytes);
        }
        hasher.finish()
    }
}

fn pem(path: &Path) -> Result<Named, String> {
    let name = path.display().to_string();
    let read = || {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(PEM_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(bytes)
    };
    read().map(|bytes| (name.clone(), bytes)).map_err(|e| format!("read {name}: {e}"))
}

/// `skip_verify`: any certificate will do, as long as the peer holds its key.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            signature,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
