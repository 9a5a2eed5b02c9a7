//! Sessions inside TLS.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use crisp_domain::ErrorKind;
use crisp_streaming::{Config, Server, Tls};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use support::{Processes, exec, server, soon};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

fn pem(label: &str, der: &[u8]) -> String {
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", BASE64.encode(der))
}

/// The command's output and status over WebSocket, frames and all.
async fn session(url: &str, roots: RootCertStore) -> std::io::Result<String> {
    let (address, path) = url.strip_prefix("https://").unwrap().split_once('/').unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let socket = TcpStream::connect(address).await?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut socket = TlsConnector::from(Arc::new(config)).connect(name, socket).await?;
    let head = format!(
        "GET /{path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: AAAA\r\nSec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
    );
    socket.write_all(head.as_bytes()).await?;
    let mut all = Vec::new();
    socket.read_to_end(&mut all).await?;
    Ok(String::from_utf8_lossy(&all).into_owned())
}

#[tokio::test]
async fn a_certificate_from_files_serves() {
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(&cert, pem("CERTIFICATE", made.cert.der())).unwrap();
    std::fs::write(&key, pem("PRIVATE KEY", &made.signing_key.serialize_der())).unwrap();
    let (server, _) = server(Config { tls: Tls::Files { cert, key }, ..Config::default() }).await;
    let mut roots = RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let url = server.exec_url(exec(&["sh", "-c", "echo secret; head -c 1000000 /dev/zero"], "o")).unwrap();
    let said = soon(session(&url, roots)).await.unwrap();
    assert!(said.starts_with("HTTP/1.1 101"), "{said:.200}");
    assert!(said.len() > 1_000_000 && said.contains("secret") && said.contains(r#""status":"Success""#));
}

#[tokio::test]
async fn a_certificate_of_our_own_is_trusted_by_nobody_else() {
    let (server, _) = server(Config { tls: Tls::SelfSigned, ..Config::default() }).await;
    let url = server.exec_url(exec(&["true"], "o")).unwrap();
    let refused = soon(session(&url, RootCertStore::empty())).await.unwrap_err();
    assert!(refused.to_string().contains("UnknownIssuer"), "{refused}");
}

#[tokio::test]
async fn files_that_do_not_serve_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let absent = dir.path().join("absent.pem");
    let config = Config { tls: Tls::Files { cert: absent.clone(), key: absent }, ..Config::default() };
    let error = Server::bind(&config, Arc::new(Processes::default())).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Internal);
    assert!(error.to_string().contains("absent.pem"), "{error}");
}
