//! Certificates of `testdata/tls` (made by `make.sh` there): an authority, a server for 127.0.0.1 and `localhost`, a client.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use crate::content::{Node, TestImage, config, layer};
use crate::fake::Fake;

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/tls").join(name)
}

/// Whether the server asks for a certificate.
#[derive(Clone, Copy, PartialEq)]
enum Client {
    Asked,
    Unasked,
}

fn server(client: Client) -> Arc<ServerConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = if client == Client::Asked {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(testdata("ca.crt")).unwrap()).unwrap();
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        builder.with_client_cert_verifier(verifier)
    } else {
        builder.with_no_client_auth()
    };
    let chain = vec![CertificateDer::from_pem_file(testdata("server.crt")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(testdata("server.key")).unwrap();
    Arc::new(builder.with_single_cert(chain, key).unwrap())
}

async fn registry(client: Client) -> Fake {
    let fake = Fake::start_tls(server(client)).await;
    TestImage::new(&[layer("a", 100_000)]).publish(&fake, "app", "v1");
    fake
}

/// A node whose registry `reg.test` is `fake` with these lines in its host file.
fn node_for(fake: &Fake, lines: &str) -> (tempfile::TempDir, Node) {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("reg.test");
    fs::create_dir(&dir).unwrap();
    for file in ["ca.crt", "client.crt", "client.key"] {
        fs::copy(testdata(file), dir.join(file)).unwrap();
    }
    let both =
        [fs::read(testdata("client.crt")).unwrap(), fs::read(testdata("client.key")).unwrap()].concat();
    fs::write(dir.join("both.pem"), both).unwrap();
    fs::write(dir.join("hosts.toml"), format!("server = \"https://{}\"\n{lines}\n", fake.host())).unwrap();
    let mut config = config();
    config.config_roots = vec![root.path().into()];
    (root, Node::with(config))
}

#[tokio::test]
async fn an_authority_of_its_own_is_trusted_where_it_is_named() {
    let fake = registry(Client::Unasked).await;
    for (lines, works) in [
        ("ca = \"ca.crt\"", true),
        ("ca = [\"ca.crt\"]", true),
        ("skip_verify = true", true),
        ("", false),
        ("ca = \"client.crt\"", false),
        ("ca = \"absent.crt\"", false),
    ] {
        let (_root, node) = node_for(&fake, lines);
        let pulled = node.pull("reg.test/app:v1").await;
        assert_eq!(pulled.is_ok(), works, "{lines}: {pulled:?}");
    }
}

#[tokio::test]
async fn a_client_certificate_is_shown_where_it_is_asked_for() {
    let fake = registry(Client::Asked).await;
    for (lines, works) in [
        ("client = [[\"client.crt\", \"client.key\"]]", true),
        ("client = \"both.pem\"", true),
        ("client = [\"both.pem\"]", true),
        ("", false),
    ] {
        let (_root, node) = node_for(&fake, &format!("ca = \"ca.crt\"\n{lines}"));
        let pulled = node.pull("reg.test/app:v1").await;
        assert_eq!(pulled.is_ok(), works, "{lines}: {pulled:?}");
    }
}

#[tokio::test]
async fn a_certificate_directory_without_a_file_is_enough() {
    let fake = registry(Client::Asked).await;
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join(fake.host());
    fs::create_dir(&dir).unwrap();
    for (from, to) in [("ca.crt", "ca.crt"), ("client.crt", "client.cert"), ("client.key", "client.key")] {
        fs::copy(testdata(from), dir.join(to)).unwrap();
    }
    let mut config = config();
    config.config_roots = vec![root.path().into()];
    Node::with(config).pull(&format!("{}/app:v1", fake.host())).await.unwrap();
}

#[tokio::test]
async fn a_loopback_registry_may_speak_tls_without_configuration() {
    let fake = registry(Client::Unasked).await;
    Node::new().pull(&format!("{}/app:v1", fake.host())).await.unwrap();
}
