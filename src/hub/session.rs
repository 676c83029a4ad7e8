//! One repository at one commit: its files, from the cache or from the hub.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;

use ureq::http::{HeaderMap, header};

use super::cache::{Cache, is_commit};
use super::files::Files;
use super::http::{ATTEMPTS, Failure, Head, Http, Meta, retrying};
use super::settings::Settings;
use super::{Progress, ProgressFn, Repo};
use crate::error::{Error, Result, Status};

const DEFAULT_REVISION: &str = "main";
/// An attempt that brought this much has shown that the connection works.
const PROGRESS: u64 = 1 << 20;
/// How many bytes are between two progress reports.
const REPORT_EVERY: u64 = 1 << 20;
const CHUNK: usize = 256 << 10;

/// What one call does with one repository.
pub(super) struct Session<'a> {
    repo: &'a Repo,
    settings: &'a Settings,
    /// `None` when the network is switched off.
    http: Option<&'a Http<'a>>,
    cache: Cache,
    progress: Option<ProgressFn>,
    /// Set from the first answer on, so that all files are of one commit.
    commit: Option<String>,
    /// Why the hub is not asked any more: the cached commit of a branch is in use.
    unreachable: Option<Error>,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        repo: &'a Repo,
        settings: &'a Settings,
        http: Option<&'a Http<'a>>,
        progress: Option<ProgressFn>,
    ) -> Self {
        let cache = Cache::new(&settings.cache_dir, repo.id());
        let revision = repo.revision().unwrap_or(DEFAULT_REVISION);
        let commit = match is_commit(revision) {
            true => Some(revision.to_owned()),
            false => cache.read_ref(revision).filter(|_| http.is_none()),
        };
        Self { repo, settings, http, cache, progress, commit, unreachable: None }
    }

    /// The hub, unless it is not to be asked.
    fn hub(&self) -> Option<&'a Http<'a>> {
        self.http.filter(|_| self.unreachable.is_none())
    }

    /// The file in messages.
    fn what(&self, name: &str) -> String {
        format!("{name} of {}", self.repo)
    }

    /// Where the hub has the file, at the commit if it is known.
    fn url(&self, name: &str) -> String {
        let revision = self.commit.as_deref().or(self.repo.revision()).unwrap_or(DEFAULT_REVISION);
        let revision = revision.replace('+', "%2B").replace('/', "%2F");
        format!("{}/{}/resolve/{revision}/{name}", self.settings.endpoint, self.repo.id())
    }

    /// Looks up the branch or tag by asking for the file `name` of it.
    ///
    /// When the hub does not answer, the commit that the name meant last time is taken.
    fn resolve(&mut self, http: &Http<'_>, name: &str) -> Result<Option<Head>> {
        let revision = self.repo.revision().unwrap_or(DEFAULT_REVISION);
        let what = self.what(name);
        let cached = self.cache.read_ref(revision);
        let enough = cached.as_deref().and_then(|commit| self.cache.file(commit, name)).is_some();
        let attempts = if enough { 1 } else { ATTEMPTS };
        match retrying(attempts, || http.head(&self.url(name), &what)) {
            Ok(head) => {
                let commit = head.commit().map(str::to_owned);
                if let Some(commit) = &commit {
                    self.cache.write_ref(revision, commit)?;
                } else if let Head::Present(_) = head {
                    let endpoint = &self.settings.endpoint;
                    let problem = "does not answer as a hub does (no X-Repo-Commit)";
                    return Err(Error::new(
                        Status::Network,
                        format!("{what}: {endpoint} {problem}"),
                    ));
                }
                self.commit = commit;
                Ok(Some(head))
            }
            Err(error) if error.status() == Status::Network && cached.is_some() => {
                log::warn!("{error}; going on with what is in the cache");
                self.commit = cached;
                self.unreachable = Some(error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Looks the file up on the hub, and has it downloaded or remembered as absent.
    fn ask(&mut self, http: &Http<'_>, name: &str) -> Result<Option<PathBuf>> {
        let head = match &self.commit {
            Some(_) => Some(retrying(ATTEMPTS, || http.head(&self.url(name), &self.what(name)))?),
            None => self.resolve(http, name)?,
        };
        let Some(commit) = &self.commit else { return Ok(None) };
        match (self.cache.file(commit, name), head) {
            (None, Some(Head::Present(meta))) => self.download(http, commit, name, &meta).map(Some),
            (None, Some(Head::Absent { .. })) => {
                self.cache.mark_absent(commit, name).map(|()| None)
            }
            (cached, _) => Ok(cached),
        }
    }

    fn download(&self, http: &Http<'_>, commit: &str, name: &str, meta: &Meta) -> Result<PathBuf> {
        let blob = self.cache.blob(&meta.etag);
        let is_there = || {
            let found = fs::metadata(&blob).ok().filter(fs::Metadata::is_file);
            found.is_some_and(|found| meta.size.is_none_or(|size| size == found.len()))
        };
        if !is_there() {
            let lock = self.cache.lock(&meta.etag)?;
            // Another process may have been quicker.
            if !is_there() {
                let mut transfer = self.transfer(name, meta, lock.is_some());
                retrying(ATTEMPTS, || transfer.attempt(http))?;
                fs::rename(&transfer.path, &blob)
                    .map_err(|error| Error::io(blob.display(), &error))?;
            }
        }
        self.cache.link(commit, name, &meta.etag)
    }

    fn transfer<'t>(&'t self, name: &'t str, meta: &'t Meta, locked: bool) -> Transfer<'t> {
        Transfer {
            path: self.cache.partial_blob(&meta.etag, locked),
            url: self.url(name),
            what: self.what(name),
            name,
            meta,
            progress: self.progress.as_ref(),
            reported: None,
        }
    }
}

impl Files for Session<'_> {
    fn find(&mut self, name: &str) -> Result<Option<PathBuf>> {
        if let Some(commit) = &self.commit {
            if let Some(path) = self.cache.file(commit, name) {
                return Ok(Some(path));
            }
            if self.cache.is_absent(commit, name) {
                return Ok(None);
            }
        }
        self.hub().map_or(Ok(None), |http| self.ask(http, name))
    }

    fn missing(&self, name: &str) -> Error {
        let what = self.what(name);
        let known = self.commit.as_ref().is_some_and(|commit| self.cache.is_absent(commit, name));
        if let Some(error) = self.unreachable.as_ref().filter(|_| !known) {
            return error.clone();
        }
        if let Some(switch) = self.settings.offline.as_ref().filter(|_| !known) {
            let cache = self.cache.path().display();
            let message =
                format!("{what}: not in the cache ({cache}), and {switch} keeps off the network");
            return Error::new(Status::Offline, message);
        }
        let endpoint = &self.settings.endpoint;
        Error::new(Status::NotFound, format!("{what}: no such file on the hub at {endpoint}"))
    }
}

/// One file on its way into the cache. It grows under a name that nothing opens, the one that the
/// Python tools use too, and can be gone on with at any time.
struct Transfer<'a> {
    path: PathBuf,
    url: String,
    what: String,
    name: &'a str,
    meta: &'a Meta,
    progress: Option<&'a ProgressFn>,
    reported: Option<u64>,
}

impl Transfer<'_> {
    /// Gets what is missing of the file, and checks it all.
    fn attempt(&mut self, http: &Http<'_>) -> Result<(), Failure> {
        let options =
            File::options().create(true).truncate(false).read(true).write(true).to_owned();
        let mut file = options.open(&self.path).map_err(|error| self.io(&error))?;
        let mut at = file.metadata().map_err(|error| self.io(&error))?.len();
        if self.meta.size.is_none_or(|size| at > size) {
            at = 0;
        }
        if at == 0 || self.meta.size != Some(at) {
            self.fill(http, &mut file, at)?;
        }
        self.verify(&mut file)?;
        // On the disk before it has its name: a crash must not leave a whole file of zeros.
        file.sync_all().map_err(|error| self.io(&error).into())
    }

    /// Downloads from byte `at` to the end.
    fn fill(&mut self, http: &Http<'_>, file: &mut File, at: u64) -> Result<(), Failure> {
        let response = http.get(&self.url, at, &self.what)?;
        let resumed = match response.status().as_u16() {
            206 => is_rest(response.headers(), at, self.meta.size),
            status => status == 200 && at == 0,
        };
        let mut at = match (resumed, response.status().as_u16()) {
            (true, _) => at,
            (false, 200) => 0,
            (false, status) => {
                self.clear(file)?;
                let message = format!("{}: a request to go on was answered {status}", self.what);
                return Err(Failure::passing(message, false));
            }
        };
        let start = at;
        file.set_len(at).map_err(|error| self.io(&error))?;
        file.seek(SeekFrom::Start(at)).map_err(|error| self.io(&error))?;
        let mut body = response.into_body().into_reader();
        let mut chunk = vec![0; CHUNK];
        loop {
            let end = match body.read(&mut chunk) {
                Ok(end) => end,
                Err(error) => return Err(self.cut(at, start, &error.to_string())),
            };
            if end == 0 {
                break;
            }
            at += end as u64;
            if self.meta.size.is_some_and(|size| at > size) {
                self.clear(file)?;
                let message = format!("{}: the hub sends more than it announced", self.what);
                return Err(Error::new(Status::Network, message).into());
            }
            file.write_all(&chunk[..end]).map_err(|error| self.io(&error))?;
            self.report(at);
        }
        if self.meta.size.is_some_and(|size| at != size) {
            return Err(self.cut(at, start, "the connection was closed"));
        }
        Ok(())
    }

    /// The error for a download that stopped at byte `at`.
    fn cut(&self, at: u64, start: u64, why: &str) -> Failure {
        let of = self.meta.size.map(|size| format!(" of {size}")).unwrap_or_default();
        let message = format!("{}: stopped after {at}{of} bytes: {why}", self.what);
        Failure::passing(message, at - start >= PROGRESS)
    }

    /// Compares the content with the announced SHA-256, if there is one; begins anew on mismatch.
    fn verify(&self, file: &mut File) -> Result<(), Failure> {
        let Some(expected) = &self.meta.sha256 else { return Ok(()) };
        let found = sha256(file).map_err(|error| self.io(&error))?;
        if found == *expected {
            return Ok(());
        }
        self.clear(file)?;
        let problem = format!("the content has SHA-256 {found}, the hub announced {expected}");
        Err(Failure::passing(format!("{}: {problem}", self.what), false))
    }

    fn clear(&self, file: &File) -> Result<()> {
        file.set_len(0).map_err(|error| self.io(&error))
    }

    fn io(&self, error: &std::io::Error) -> Error {
        Error::io(self.path.display(), error)
    }

    /// Reports now and then, and at the end; an attempt that begins anew is silent until it has
    /// caught up.
    fn report(&mut self, done: u64) {
        let Some(progress) = self.progress else { return };
        let due = self.reported.is_none_or(|reported| done >= reported + REPORT_EVERY);
        let last = self.meta.size == Some(done) && self.reported != Some(done);
        if due || last {
            self.reported = Some(done);
            progress(Progress { file: self.name.to_owned(), done, total: self.meta.size });
        }
    }
}

/// Whether a partial answer is what is missing of the file: `bytes START-END/SIZE`.
fn is_rest(headers: &HeaderMap, at: u64, size: Option<u64>) -> bool {
    let range = headers.get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
    let Some((bytes, total)) =
        range.and_then(|range| range.strip_prefix("bytes ")?.split_once('/'))
    else {
        return false;
    };
    let start = bytes.split('-').next().and_then(|start| start.parse().ok());
    start == Some(at) && (total == "*" || total.parse().ok() == size)
}

fn sha256(file: &mut File) -> std::io::Result<String> {
    file.seek(SeekFrom::Start(0))?;
    let mut context = ring::digest::Context::new(&ring::digest::SHA256);
    let mut chunk = vec![0; CHUNK];
    loop {
        match file.read(&mut chunk)? {
            0 => break,
            end => context.update(&chunk[..end]),
        }
    }
    Ok(context.finish().as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}
