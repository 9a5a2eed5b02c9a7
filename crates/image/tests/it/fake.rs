//! A registry of the test's own: content by path, a log of requests, and faults on demand.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::sync::watch;

/// A request as it came.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

/// An answer; what is not said is as a good registry does it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// The connection breaks after so many bytes of the body.
    pub(crate) cut: Option<usize>,
    /// The connection stays open and silent after so many bytes of the body, and breaks at [`Fake::end_silence`].
    pub(crate) stall: Option<usize>,
}

impl Reply {
    pub(crate) fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub(crate) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }
}

/// Looks at a request, and at what a good registry would answer; the number counts requests for the path before this one.
type Hook = Box<dyn Fn(&Request, usize, Reply) -> Reply + Send + Sync>;

#[derive(Default)]
struct Shared {
    content: Mutex<HashMap<String, (String, Vec<u8>)>>,
    log: Mutex<Vec<Request>>,
    hook: Mutex<Option<Hook>>,
    open: Mutex<usize>,
    /// Whether silent connections break.
    silence_over: watch::Sender<bool>,
}

#[derive(Clone)]
pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

impl Fake {
    pub(crate) async fn start() -> Self {
        Self::start_with(None).await
    }

    pub(crate) async fn start_tls(config: Arc<rustls::ServerConfig>) -> Self {
        Self::start_with(Some(tokio_rustls::TlsAcceptor::from(config))).await
    }

    async fn start_with(tls: Option<tokio_rustls::TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let fake = Self { address: listener.local_addr().unwrap(), shared: Arc::default() };
        let shared = Arc::clone(&fake.shared);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (shared, tls) = (Arc::clone(&shared), tls.clone());
                tokio::spawn(async move {
                    *shared.open.lock().unwrap() += 1;
                    match tls {
                        None => drop(serve(stream, &shared).await),
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                drop(serve(stream, &shared).await);
                            }
                        }
                    }
                    *shared.open.lock().unwrap() -= 1;
                });
            }
        });
        fake
    }

    /// `127.0.0.1:port`.
    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn put(&self, path: &str, content_type: &str, body: impl Into<Vec<u8>>) {
        self.shared.content.lock().unwrap().insert(path.into(), (content_type.into(), body.into()));
    }

    pub(crate) fn hook(&self, hook: impl Fn(&Request, usize, Reply) -> Reply + Send + Sync + 'static) {
        *self.shared.hook.lock().unwrap() = Some(Box::new(hook));
    }

    pub(crate) fn log(&self) -> Vec<Request> {
        self.shared.log.lock().unwrap().clone()
    }

    pub(crate) fn forget_log(&self) {
        self.shared.log.lock().unwrap().clear();
    }

    /// Requests as `GET /path`, without the API's root, sorted.
    pub(crate) fn asked(&self) -> Vec<String> {
        let log = self.log();
        let mut asked: Vec<_> =
            log.iter().map(|r| format!("{} {}", r.method, r.path.replace("/v2/", ""))).collect();
        asked.sort();
        asked
    }

    pub(crate) fn count(&self, part: &str) -> usize {
        self.asked().iter().filter(|line| line.contains(part)).count()
    }

    /// Breaks the connections that are silent; those that become so from now on break at once.
    pub(crate) fn end_silence(&self) {
        self.shared.silence_over.send_replace(true);
    }

    /// Connections that are open.
    pub(crate) fn open(&self) -> usize {
        *self.shared.open.lock().unwrap()
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, shared: &Shared) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    let Some(request) = read(&mut stream).await? else { return Ok(()) };
    let seen = {
        let mut log = shared.log.lock().unwrap();
        let seen = log.iter().filter(|r| r.path == request.path && r.method == request.method).count();
        log.push(request.clone());
        seen
    };
    let good = shared.answer(&request);
    let reply = match shared.hook.lock().unwrap().as_ref() {
        Some(hook) => hook(&request, seen, good),
        None => good,
    };
    write(&mut stream, &request, reply, &shared.silence_over).await
}

async fn read(stream: &mut BufReader<impl AsyncRead + Unpin>) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (method, target) = (words.next().unwrap_or("").to_owned(), words.next().unwrap_or("").to_owned());
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let (path, query) = (path.to_owned(), query.to_owned());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        // Repeated headers are joined, as HTTP allows.
        let joined = headers.entry(name.to_ascii_lowercase()).or_insert_with(String::new);
        *joined = if joined.is_empty() { value.trim().into() } else { format!("{joined}, {}", value.trim()) };
    }
    let length = headers.get("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(Some(Request { method, path, query, headers, body: String::from_utf8_lossy(&body).into_owned() }))
}

async fn write(
    stream: &mut BufReader<impl AsyncRead + AsyncWrite + Unpin>,
    request: &Request,
    reply: Reply,
    silence_over: &watch::Sender<bool>,
) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
    if !reply.headers.iter().any(|(name, _)| name == "Content-Length") {
        head.push_str(&format!("Content-Length: {}\r\n", reply.body.len()));
    }
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await?;
    if request.method != "HEAD" {
        let end = reply.cut.or(reply.stall).unwrap_or(reply.body.len()).min(reply.body.len());
        stream.write_all(&reply.body[..end]).await?;
    }
    stream.flush().await?;
    if reply.stall.is_some() {
        // Until the other side gives up, or the test has seen what it waited for.
        let (mut byte, mut over) = ([0], silence_over.subscribe());
        tokio::select! {
            given_up = stream.read(&mut byte) => drop(given_up),
            ended = over.wait_for(|over| *over) => drop(ended),
        }
        return Ok(());
    }
    stream.shutdown().await
}

impl Shared {
    /// What a good registry says.
    fn answer(&self, request: &Request) -> Reply {
        let content = self.content.lock().unwrap();
        let Some((content_type, body)) = content.get(&request.path) else {
            return Reply::status(404)
                .body(r#"{"errors":[{"code":"NAME_UNKNOWN","message":"no such thing"}]}"#);
        };
        let digest = crisp_image::Digest::of(body);
        let reply = Reply::status(200)
            .with("Content-Type", content_type)
            .with("Docker-Content-Digest", digest.as_str())
            .body(body.clone());
        let range =
            request.header("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        match range {
            Some(from) if from < body.len() => {
                let range = format!("bytes {from}-{}/{}", body.len() - 1, body.len());
                Reply { status: 206, body: body[from..].into(), ..reply }.with("Content-Range", &range)
            }
            Some(_) => Reply::status(416),
            None => reply,
        }
    }
}
