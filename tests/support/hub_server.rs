//! A small hub on loopback: repositories with files, refusals, redirects, and faults on order.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// One request as it came in.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// Path and query.
    pub path: String,
    headers: HashMap<String, String>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The file that a `resolve` address ends in.
    pub fn file(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    pub fn is_get(&self, file: &str) -> bool {
        self.method == "GET" && self.file() == file
    }

    fn range_start(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// One answer.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    pub status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// The connection is closed after this many bytes of the body.
    cut: Option<usize>,
    /// A pause before each piece of the body.
    slow: Option<Duration>,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.retain(|(old, _)| old != name);
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub fn cut_after(mut self, bytes: usize) -> Self {
        self.cut = Some(bytes);
        self
    }

    pub fn slowly(mut self, pause: Duration) -> Self {
        self.slow = Some(pause);
        self
    }

    /// The content, or the part of it that the request asks for.
    pub fn content(request: &Request, content: &[u8]) -> Self {
        match request.range_start() {
            Some(start) if start < content.len() => Self::status(206)
                .header(
                    "Content-Range",
                    format!("bytes {start}-{}/{}", content.len() - 1, content.len()),
                )
                .body(&content[start..]),
            Some(_) => Self::status(416),
            None => Self::status(200).body(content),
        }
    }

    fn send(&self, stream: &mut TcpStream, is_head: bool) -> std::io::Result<()> {
        let mut head = format!("HTTP/1.1 {} Answer\r\nConnection: close\r\n", self.status);
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        if !self.headers.iter().any(|(name, _)| name == "Content-Length") {
            head += &format!("Content-Length: {}\r\n", self.body.len());
        }
        stream.write_all(format!("{head}\r\n").as_bytes())?;
        if is_head {
            return Ok(());
        }
        let end = self.cut.unwrap_or(self.body.len()).min(self.body.len());
        for piece in self.body[..end].chunks(64 << 10) {
            thread::sleep(self.slow.unwrap_or_default());
            stream.write_all(piece)?;
        }
        stream.flush()
    }
}

type Handler = dyn Fn(&Request) -> Reply + Send + Sync;

/// A listening server; it stops when it is dropped.
pub struct Server {
    address: SocketAddr,
    log: Arc<Mutex<Vec<Request>>>,
    stopping: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts a server that answers with `handler`, one thread a connection.
    pub fn start(handler: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").expect("loopback");
        let address = socket.local_addr().expect("address");
        let log = Arc::new(Mutex::new(Vec::new()));
        let stopping = Arc::new(AtomicBool::new(false));
        let handler: Arc<Handler> = Arc::new(handler);
        let (log_in, stop) = (Arc::clone(&log), Arc::clone(&stopping));
        let listener = thread::spawn(move || {
            for stream in socket.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                let (handler, log) = (Arc::clone(&handler), Arc::clone(&log_in));
                thread::spawn(move || serve(stream, &*handler, &log));
            }
        });
        Self { address, log, stopping, listener: Some(listener) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// What was asked so far.
    pub fn requests(&self) -> Vec<Request> {
        self.log.lock().expect("log").clone()
    }

    /// How often a file's content was asked for.
    pub fn gets(&self, file: &str) -> usize {
        self.requests().iter().filter(|request| request.is_get(file)).count()
    }

    /// Stops listening: connections are refused from now on.
    pub fn stop(&mut self) {
        self.stopping.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn serve(mut stream: TcpStream, handler: &Handler, log: &Mutex<Vec<Request>>) {
    let Some(request) = read_request(&stream) else { return };
    log.lock().expect("log").push(request.clone());
    if request.method == "CONNECT" {
        return tunnel(stream, &request.path);
    }
    let _ = handler(&request).send(&mut stream, request.method == "HEAD");
}

fn read_request(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next()?, words.next()?);
    let mut headers = HashMap::new();
    for line in lines {
        let line = line.ok()?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    Some(Request { method, path, headers })
}

/// Plays a proxy: whatever host is asked for, the port is looked up on loopback.
fn tunnel(mut client: TcpStream, target: &str) {
    let port = target.rsplit(':').next().unwrap_or_default();
    let Ok(mut server) = TcpStream::connect(format!("127.0.0.1:{port}")) else { return };
    let _ = client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n");
    let (mut from, mut to) =
        (client.try_clone().expect("clone"), server.try_clone().expect("clone"));
    thread::spawn(move || std::io::copy(&mut from, &mut to));
    let mut answer = Vec::new();
    let _ = server.read_to_end(&mut answer);
    let _ = client.write_all(&answer);
}

/// The commit that every branch of a [`Hub`] means.
pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What a hub holds: repositories with files.
#[derive(Clone, Default)]
pub struct Hub {
    repos: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    /// Only this token may read.
    pub token: Option<String>,
    /// Where the content of `.safetensors` files is redirected to.
    pub content_at: Option<String>,
}

impl Hub {
    pub fn file(mut self, repo: &str, name: &str, content: impl Into<Vec<u8>>) -> Self {
        self.repos.entry(repo.to_owned()).or_default().insert(name.to_owned(), content.into());
        self
    }

    pub fn get(&self, repo: &str, name: &str) -> &[u8] {
        &self.repos[repo][name]
    }

    /// Answers as a hub does: `/REPO/resolve/REVISION/FILE`.
    pub fn answer(&self, request: &Request) -> Reply {
        let bearer = self.token.as_ref().map(|token| format!("Bearer {token}"));
        if bearer.is_some() && request.header("authorization") != bearer.as_deref() {
            return Reply::status(401).header("X-Error-Code", "GatedRepo");
        }
        let path = request.path.trim_start_matches('/');
        let Some((repo, rest)) = path.split_once("/resolve/") else { return Reply::status(400) };
        let Some(files) = self.repos.get(repo) else {
            return Reply::status(404).header("X-Error-Code", "RepoNotFound");
        };
        let Some((revision, name)) = rest.split_once('/') else { return Reply::status(400) };
        if revision == "gone" {
            return Reply::status(404).header("X-Error-Code", "RevisionNotFound");
        }
        let Some(content) = files.get(name) else {
            return Reply::status(404)
                .header("X-Error-Code", "EntryNotFound")
                .header("X-Repo-Commit", COMMIT);
        };
        let reply = match &self.content_at {
            Some(base) if name.ends_with(".safetensors") => Reply::status(302)
                .header("Location", format!("{base}/{repo}/resolve/{revision}/{name}"))
                .header("X-Linked-Size", content.len())
                .header("X-Linked-ETag", format!("\"{}\"", sha256(content)))
                .header("ETag", "\"not-the-content\""),
            _ => Reply::content(request, content)
                .header("ETag", format!("W/\"{}\"", &sha256(content)[..40])),
        };
        reply.header("X-Repo-Commit", COMMIT)
    }

    /// Answers as a store of content does: no headers of the hub, no commit.
    pub fn content(&self, request: &Request) -> Reply {
        let path = request.path.trim_start_matches('/');
        let Some((repo, rest)) = path.split_once("/resolve/") else { return Reply::status(400) };
        let name = rest.rsplit('/').next().unwrap_or_default();
        Reply::content(request, self.get(repo, name)).header("ETag", "\"the-store's-own\"")
    }
}

pub fn sha256(content: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, content);
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
