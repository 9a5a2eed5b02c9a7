//! A client for HTTP, TLS whose certificate nobody checks, and WebSocket (RFC 6455): what a test needs of them.
use std::io::{BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

/// No answer takes longer unless the server hangs.
const PATIENCE: Duration = Duration::from_secs(30);
/// Bytes of a head.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// What is read at a time, so that the client is not what a measurement shows.
const READ_BYTES: usize = 128 << 10;

trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// A connection for one request.
#[expect(missing_debug_implementations, reason = "the stream is whatever it is")]
pub struct Client(BufReader<Box<dyn Stream>>);

impl Client {
    /// A connection to a port of the loopback.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn plain(port: u16) -> Result<Self> {
        let stream =
            TcpStream::connect(("127.0.0.1", port)).with_context(|| format!("connect to port {port}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self(BufReader::with_capacity(READ_BYTES, Box::new(stream))))
    }

    /// The same with TLS; any certificate will do.
    ///
    /// # Errors
    /// When nobody listens.
    pub fn tls(port: u16) -> Result<Self> {
        let stream =
            TcpStream::connect(("127.0.0.1", port)).with_context(|| format!("connect to port {port}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody))
            .with_no_client_auth();
        let connection = ClientConnection::new(Arc::new(config), ServerName::try_from("localhost")?)?;
        let stream = Box::new(StreamOwned::new(connection, stream));
        Ok(Self(BufReader::with_capacity(READ_BYTES, stream)))
    }

    /// The body of the answer.
    ///
    /// # Errors
    /// When the answer is no success.
    pub fn request(mut self, method: &str, path: &str) -> Result<Vec<u8>> {
        self.send(
            format!("{method} {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n").as_bytes(),
        )?;
        let (status, _) = self.head()?;
        let mut body = Vec::new();
        match self.0.read_to_end(&mut body) {
            // Without a farewell of TLS, which many servers do not send.
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {}
            other => drop(other?),
        }
        ensure!(status == 200, "{method} {path}: {status}: {}", String::from_utf8_lossy(&body));
        Ok(body)
    }

    /// A connection to the server of an address, and the path to ask it for.
    ///
    /// # Errors
    /// When the address has no port, or nobody listens.
    pub fn of(url: &str) -> Result<(Self, String)> {
        let (scheme, rest) = url.split_once("://").with_context(|| format!("address {url}"))?;
        let (authority, path) = rest.split_once('/').with_context(|| format!("path of {url}"))?;
        let port = authority.rsplit(':').next().and_then(|port| port.parse().ok());
        let port = port.with_context(|| format!("port of {url}"))?;
        let client = if scheme == "https" { Self::tls(port)? } else { Self::plain(port)? };
        Ok((client, format!("/{path}")))
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// When the connection broke.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.get_mut().write_all(bytes)?;
        Ok(self.0.get_mut().flush()?)
    }

    /// Reads until the server ends the connection; how many bytes came.
    ///
    /// # Errors
    /// When it has not after half a minute.
    pub fn ends(&mut self) -> Result<u64> {
        match std::io::copy(&mut self.0, &mut std::io::sink()) {
            // What we sent was not read to its end: an end too.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(0),
            other => other.context("the server does not end the connection"),
        }
    }

    /// Status and text of the answer's head.
    ///
    /// # Errors
    /// When no answer comes.
    pub fn head(&mut self) -> Result<(u16, String)> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            ensure!(head.len() < HEAD_BYTES_MAX, "the head does not end");
            self.0.read_exact(&mut byte).with_context(|| String::from_utf8_lossy(&head).into_owned())?;
            head.extend_from_slice(&byte);
        }
        let text = String::from_utf8(head)?;
        let status = text.split(' ').nth(1).and_then(|code| code.parse().ok());
        Ok((status.with_context(|| text.clone())?, text))
    }

    /// Upgrades to a WebSocket of this sub-protocol.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn websocket(mut self, path: &str, protocol: &str) -> Result<WebSocket> {
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: Y3Jpc3AgdGVzdHMgaGVyZQ==\r\n\
             Sec-WebSocket-Protocol: {protocol}\r\n\r\n"
        );
        self.send(head.as_bytes())?;
        let (status, head) = self.head()?;
        ensure!(status == 101, "{path}: {head}");
        ensure!(head.contains(protocol), "another protocol: {head}");
        Ok(WebSocket(self.0))
    }
}

/// The client's end of a WebSocket.
#[expect(missing_debug_implementations, reason = "the stream is whatever it is")]
pub struct WebSocket(BufReader<Box<dyn Stream>>);

/// What came over a WebSocket.
#[derive(Debug, PartialEq, Eq)]
pub enum Message {
    /// A binary or text message: channel, then data.
    Binary(Vec<u8>),
    /// The other side is done.
    Closed,
}

impl WebSocket {
    /// Sends data on a channel.
    ///
    /// # Errors
    /// When the connection broke.
    pub fn send(&mut self, channel: u8, data: &[u8]) -> Result<()> {
        let mut payload = vec![channel];
        payload.extend_from_slice(data);
        self.frame(2, &payload)
    }

    /// A frame of a client is masked; a mask of zeros is one too.
    fn frame(&mut self, opcode: u8, payload: &[u8]) -> Result<()> {
        let mut frame = vec![0x80 | opcode];
        match payload.len() {
            short @ 0..=125 => frame.push(0x80 | u8::try_from(short)?),
            middle @ 126..=0xffff => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&u16::try_from(middle)?.to_be_bytes());
            }
            long => {
                frame.push(0x80 | 127);
                frame.extend_from_slice(&u64::try_from(long)?.to_be_bytes());
            }
        }
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(payload);
        self.0.get_mut().write_all(&frame)?;
        Ok(self.0.get_mut().flush()?)
    }

    /// The bare connection, to break the protocol on.
    #[must_use]
    pub fn into_inner(self) -> Client {
        Client(self.0)
    }

    /// The next message; pings are answered.
    ///
    /// # Errors
    /// When the connection broke or nothing comes for half a minute.
    pub fn receive(&mut self) -> Result<Message> {
        let mut payload = Vec::new();
        Ok(if self.receive_into(&mut payload)? { Message::Binary(payload) } else { Message::Closed })
    }

    /// The same into memory that is used again; `false` when the other side is done.
    ///
    /// # Errors
    /// As [`WebSocket::receive`].
    pub fn receive_into(&mut self, payload: &mut Vec<u8>) -> Result<bool> {
        loop {
            let mut head = [0; 2];
            if let Err(error) = self.0.read_exact(&mut head) {
                return match error.kind() {
                    std::io::ErrorKind::UnexpectedEof => Ok(false),
                    _ => Err(error.into()),
                };
            }
            self.payload(head[1], payload)?;
            match head[0] & 0x0f {
                1 | 2 if head[0] & 0x80 != 0 => return Ok(true),
                8 => return Ok(false),
                9 => self.frame(10, payload)?,
                10 => {}
                other => bail!("opcode {other} in a frame with the first byte {:#x}", head[0]),
            }
        }
    }

    fn payload(&mut self, second: u8, payload: &mut Vec<u8>) -> Result<()> {
        ensure!(second & 0x80 == 0, "a server's frame is masked");
        let length = match second {
            126 => {
                let mut bytes = [0; 2];
                self.0.read_exact(&mut bytes)?;
                u64::from(u16::from_be_bytes(bytes))
            }
            127 => {
                let mut bytes = [0; 8];
                self.0.read_exact(&mut bytes)?;
                u64::from_be_bytes(bytes)
            }
            short => u64::from(short),
        };
        payload.resize(usize::try_from(length)?, 0);
        Ok(self.0.read_exact(payload)?)
    }
}

/// Takes any certificate: kubelet and daemon make their own.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
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
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
