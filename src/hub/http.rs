//! Requests to a hub: redirects, who gets the token, what a refusal means, when to try again.

use std::fs;
use std::thread;
use std::time::Duration;

use ureq::http::{HeaderMap, Response, Uri, header};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, Proxy};

use super::cache::is_commit;
use super::settings::Settings;
use crate::error::{Error, Result, Status};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Without a byte for this long, a connection counts as lost.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);
const MOST_REDIRECTS: usize = 10;
/// How often a request is made that keeps failing for a reason that may pass.
pub(super) const ATTEMPTS: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// A hub that asks for a longer pause is not waited for.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Why an attempt failed, and whether another one makes sense.
pub(super) struct Failure {
    error: Error,
    retry: Option<Duration>,
    /// The attempt brought enough for the next one to be counted as the first.
    progressed: bool,
}

impl Failure {
    /// It will fail again.
    fn lasting(status: Status, message: String) -> Self {
        Error::new(status, message).into()
    }

    /// It may pass: try again after a while.
    pub(super) fn passing(message: String, progressed: bool) -> Self {
        let error = Error::new(Status::Network, message);
        Self { error, retry: Some(Duration::ZERO), progressed }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, retry: None, progressed: false }
    }
}

/// Runs `attempt` until it succeeds, fails for good, or has failed `attempts` times.
pub(super) fn retrying<T>(
    attempts: u32,
    mut attempt: impl FnMut() -> Result<T, Failure>,
) -> Result<T> {
    let mut failed = 0;
    loop {
        let failure = match attempt() {
            Ok(value) => return Ok(value),
            Err(failure) => failure,
        };
        failed = if failure.progressed { 1 } else { failed + 1 };
        match failure.retry {
            Some(asked) if failed < attempts && asked <= LONGEST_PAUSE => {
                let pause = asked.max(FIRST_PAUSE * 2_u32.pow(failed - 1));
                log::info!("{failure}; trying again in {pause:?}", failure = failure.error);
                thread::sleep(pause);
            }
            _ => return Err(failure.error),
        }
    }
}

/// What a hub says of a file before it is downloaded.
pub(super) enum Head {
    /// The commit has the file.
    Present(Meta),
    /// The commit has no such file.
    Absent { commit: Option<String> },
}

impl Head {
    /// The commit that the revision names, if the hub said it.
    pub(super) fn commit(&self) -> Option<&str> {
        match self {
            Self::Present(meta) => meta.commit.as_deref(),
            Self::Absent { commit } => commit.as_deref(),
        }
    }
}

/// A file as the hub announces it.
pub(super) struct Meta {
    commit: Option<String>,
    /// Checked to be a plain file name.
    pub(super) etag: String,
    pub(super) size: Option<u64>,
    /// The SHA-256 of the content, in hexadecimal.
    pub(super) sha256: Option<String>,
}

/// What is asked of an address.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ask {
    Head,
    Get { from: u64 },
}

/// A connection to one hub.
pub(super) struct Http<'a> {
    agent: Agent,
    settings: &'a Settings,
    endpoint: Uri,
}

impl<'a> Http<'a> {
    pub(super) fn new(settings: &'a Settings) -> Result<Self> {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .proxy(None)
            .user_agent(concat!("libsiren/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(STALL_TIMEOUT))
            .timeout_per_read(Some(STALL_TIMEOUT))
            .timeout_per_write(Some(STALL_TIMEOUT))
            .tls_config(TlsConfig::builder().root_certs(roots(settings)?).build());
        let endpoint = settings.endpoint.parse();
        let endpoint = endpoint.map_err(|_| Error::internal("an endpoint that was not checked"))?;
        Ok(Self { agent: config.build().into(), settings, endpoint })
    }

    /// Asks what the hub has at `url`, a `resolve` address; `what` names it in messages.
    pub(super) fn head(&self, url: &str, what: &str) -> Result<Head, Failure> {
        let (uri, response) = self.follow(url, Ask::Head, what)?;
        let status = response.status();
        let headers = response.headers();
        if status.as_u16() == 404 && !names_what_is_missing(headers) {
            return Ok(Head::Absent { commit: commit(headers) });
        }
        if !(status.is_success() || status.is_redirection()) {
            return Err(self.refusal(&uri, &response, what));
        }
        let meta = meta(headers, status.is_success());
        meta.map(Head::Present).ok_or_else(|| {
            let endpoint = &self.settings.endpoint;
            let message = format!("{what}: {endpoint} does not answer as a hub does (no ETag)");
            Failure::lasting(Status::Network, message)
        })
    }

    /// Downloads `url` from byte `from` on. The answer's status is 200 (all of it), 206 or 416.
    pub(super) fn get(&self, url: &str, from: u64, what: &str) -> Result<Response<Body>, Failure> {
        let (uri, response) = self.follow(url, Ask::Get { from }, what)?;
        match response.status().as_u16() {
            200 | 206 | 416 => Ok(response),
            _ => Err(self.refusal(&uri, &response, what)),
        }
    }

    /// Makes a request and follows where it is sent: a GET to anywhere, a HEAD within the hub
    /// alone, since the hub's own answer describes the file.
    fn follow(&self, url: &str, ask: Ask, what: &str) -> Result<(Uri, Response<Body>), Failure> {
        let bad_address = || Failure::lasting(Status::Network, format!("{what}: no valid address"));
        let mut uri: Uri = url.parse().map_err(|_| bad_address())?;
        for _ in 0..=MOST_REDIRECTS {
            let response = self.send(&uri, ask, what)?;
            let location = response.headers().get(header::LOCATION);
            let Some(location) = location.filter(|_| response.status().is_redirection()) else {
                return Ok((uri, response));
            };
            let next = location.to_str().ok().and_then(|location| target(&uri, location));
            let next = next.ok_or_else(bad_address)?;
            if ask == Ask::Head && origin(&next) != origin(&uri) {
                return Ok((uri, response));
            }
            if uri.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                let message = format!("{what}: the hub redirects from https to plain http");
                return Err(Failure::lasting(Status::Network, message));
            }
            uri = next;
        }
        Err(Failure::lasting(Status::Network, format!("{what}: too many redirects")))
    }

    /// One request. The token goes to the endpoint itself and to nobody else.
    fn send(&self, uri: &Uri, ask: Ask, what: &str) -> Result<Response<Body>, Failure> {
        let mut request = match ask {
            Ask::Head => self.agent.head(uri),
            Ask::Get { .. } => self.agent.get(uri),
        };
        if let Ask::Get { from: from @ 1.. } = ask {
            request = request.header(header::RANGE, format!("bytes={from}-"));
        }
        if let Some(token) = &self.settings.token
            && origin(uri) == origin(&self.endpoint)
        {
            request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
        }
        if let Some(proxy) = self.settings.proxies.for_uri(uri) {
            let proxy = Proxy::new(proxy).map_err(|_| {
                Error::argument("HTTP_PROXY, HTTPS_PROXY or ALL_PROXY is not a proxy's address")
            })?;
            request = request.config().proxy(Some(proxy)).build();
        }
        request.call().map_err(|error| {
            let message = format!("{what}: cannot reach {}: {error}", self.place(uri));
            Failure::passing(message, false)
        })
    }

    /// The hub or another host, for messages: no path or query, which may hold a signature.
    fn place(&self, uri: &Uri) -> String {
        if origin(uri) == origin(&self.endpoint) {
            return format!("the hub at {}", self.settings.endpoint);
        }
        let host = uri.host().unwrap_or("an unnamed host");
        format!("{host}, where {} keeps its files", self.settings.endpoint)
    }

    /// What an unwelcome status means.
    fn refusal(&self, uri: &Uri, response: &Response<Body>, what: &str) -> Failure {
        let status = response.status().as_u16();
        let place = self.place(uri);
        if origin(uri) != origin(&self.endpoint) && (400..500).contains(&status) {
            // A signed address ages; the hub gives a fresh one.
            return Failure::passing(format!("{what}: {place} answered {status}"), false);
        }
        match status {
            401 | 403 => {
                Failure::lasting(Status::Unauthorized, self.no_access(&place, status, what))
            }
            404 => {
                let missing = match error_code(response.headers()) {
                    Some("RevisionNotFound") => "no such revision",
                    Some("RepoNotFound") => "no such repository, or one that HF_TOKEN may not see,",
                    _ => "no such file",
                };
                Failure::lasting(Status::NotFound, format!("{what}: {missing} on {place}"))
            }
            408 | 429 | 500.. => {
                let asked = retry_after(response.headers());
                let hint = match asked {
                    Some(pause) => format!("it asks to try again after {} s", pause.as_secs()),
                    None => "try again later".to_owned(),
                };
                let why = if status == 429 { " (too many requests)" } else { "" };
                let message = format!("{what}: {place} answered {status}{why}; {hint}");
                let error = Error::new(Status::Network, message);
                Failure { error, retry: Some(asked.unwrap_or_default()), progressed: false }
            }
            _ => Failure::lasting(Status::Network, format!("{what}: {place} answered {status}")),
        }
    }

    fn no_access(&self, place: &str, status: u16, what: &str) -> String {
        let why = match self.settings.token {
            Some(_) => {
                "the token (HF_TOKEN) is not valid or lacks rights here; a gated repository's \
                 conditions have to be accepted on the hub first"
            }
            None => {
                "the repository is private or gated, or does not exist; set HF_TOKEN to a token \
                 that may read it"
            }
        };
        format!("{what}: {place} refused access ({status}): {why}")
    }
}

/// The certificate authorities that are trusted: those of the system, unless variables name others.
fn roots(settings: &Settings) -> Result<RootCerts> {
    if settings.ca_files.is_empty() {
        return Ok(RootCerts::PlatformVerifier);
    }
    let mut certificates = Vec::new();
    for (variable, path) in &settings.ca_files {
        let name = format!("{variable} ({})", path.display());
        let pem = fs::read(path).map_err(|error| Error::io(&name, &error))?;
        let before = certificates.len();
        certificates.extend(parse_pem(&pem).filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        }));
        if certificates.len() == before {
            return Err(Error::argument(format!("{name}: holds no PEM certificate")));
        }
    }
    Ok(RootCerts::new_with_certs(&certificates))
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok().map(str::trim)
}

fn error_code(headers: &HeaderMap) -> Option<&str> {
    text(headers, "x-error-code")
}

/// Whether a 404 is about more than the file.
fn names_what_is_missing(headers: &HeaderMap) -> bool {
    matches!(error_code(headers), Some("RepoNotFound" | "RevisionNotFound"))
}

fn commit(headers: &HeaderMap) -> Option<String> {
    text(headers, "x-repo-commit").filter(|commit| is_commit(commit)).map(str::to_owned)
}

/// Reads what the hub says of a file. `Content-Length` counts only in an answer about the file
/// itself, not in a redirect.
fn meta(headers: &HeaderMap, is_file: bool) -> Option<Meta> {
    let linked = text(headers, "x-linked-etag");
    let etag = linked.or_else(|| text(headers, "etag"))?;
    let etag = etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"');
    let length = || text(headers, "content-length").filter(|_| is_file);
    let size = text(headers, "x-linked-size").or_else(length);
    let is_sha256 = etag.len() == 64 && etag.bytes().all(|b| b.is_ascii_hexdigit());
    is_blob_name(etag).then(|| Meta {
        commit: commit(headers),
        etag: etag.to_owned(),
        size: size.and_then(|size| size.parse().ok()),
        sha256: linked.filter(|_| is_sha256).map(|_| etag.to_ascii_lowercase()),
    })
}

/// Whether an entity tag can be the name of a file in the `blobs` directory.
fn is_blob_name(etag: &str) -> bool {
    (1..=200).contains(&etag.len())
        && !etag.starts_with('.')
        && etag.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b'\\' | b'"'))
}

/// `Retry-After` in seconds. (The other form, a date, is not used by hubs.)
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    text(headers, "retry-after")?.parse().ok().map(Duration::from_secs)
}

/// Scheme, host and port: who is spoken to.
fn origin(uri: &Uri) -> (Option<&str>, Option<String>, Option<u16>) {
    let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    let host = uri.host().map(str::to_ascii_lowercase);
    (uri.scheme_str(), host, Some(uri.port_u16().unwrap_or(default)))
}

/// The address that a `Location` header means, read at `base`.
fn target(base: &Uri, location: &str) -> Option<Uri> {
    let location = location.split('#').next()?;
    let (scheme, authority) = (base.scheme_str()?, base.authority()?);
    let absolute = if location.contains("://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        return None;
    };
    let uri: Uri = absolute.parse().ok()?;
    let plain = uri.authority().is_some_and(|authority| !authority.as_str().contains('@'));
    (plain && matches!(uri.scheme_str(), Some("http" | "https"))).then_some(uri)
}
