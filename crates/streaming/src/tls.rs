//! The server's certificate.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio_rustls::TlsAcceptor;

use crate::config::Tls;
use crate::error::StreamingError;

/// What takes connections to `address`; nothing where they are not encrypted.
pub(crate) fn acceptor(tls: &Tls, address: IpAddr) -> Result<Option<TlsAcceptor>, StreamingError> {
    let (chain, key) = match tls {
        Tls::Off => return Ok(None),
        Tls::SelfSigned => self_signed(address)?,
        Tls::Files { cert, key } => (read_chain(cert)?, read_key(key)?),
    };
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(StreamingError::Tls)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(StreamingError::Tls)?;
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn self_signed(address: IpAddr) -> Result<Identity, StreamingError> {
    let names = vec![address.to_string(), "localhost".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).map_err(StreamingError::Certificate)?;
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    Ok((vec![made.cert.der().clone()], key.into()))
}

fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, StreamingError> {
    let fail = |source| StreamingError::Pem { path: path.to_owned(), source };
    CertificateDer::pem_file_iter(path).map_err(fail)?.collect::<Result<_, _>>().map_err(fail)
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, StreamingError> {
    PrivateKeyDer::from_pem_file(path).map_err(|source| StreamingError::Pem { path: path.to_owned(), source })
}
