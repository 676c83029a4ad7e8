//! What `siren::hub` does with a hub that answers, fails, lies or is not there.
#![cfg(feature = "hub")]

#[path = "support/hub_server.rs"]
mod hub_server;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hub_server::{COMMIT, Hub, Reply, Request, Server, sha256};
use siren::hub::{self, HubOptions, Repo, Source};
use siren::{Error, Status};
use tempfile::TempDir;

const ARTIFACT: &str = "owner/artifact";
const BACKBONE: &str = "owner/backbone";
const TOKEN: &str = "hf_verySecretToken";

/// Bytes that differ everywhere, so that a wrong splice shows.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}

/// A hub with an artifact and its backbone in two shards.
fn a_hub() -> Hub {
    let config = format!(r#"{{"base_model": {{"model_id": "{BACKBONE}", "revision": null}}}}"#);
    let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors",
        "c": "model-1.safetensors"}}"#;
    Hub::default()
        .file(ARTIFACT, "siren_config.json", config)
        .file(ARTIFACT, "siren.safetensors", noise(300_000))
        .file(BACKBONE, "config.json", "{}")
        .file(BACKBONE, "tokenizer.json", "{\"model\": 1}")
        .file(BACKBONE, "tokenizer_config.json", "{\"t\": 1}")
        .file(BACKBONE, "model.safetensors.index.json", index)
        .file(BACKBONE, "model-1.safetensors", noise(5_000))
        .file(BACKBONE, "model-2.safetensors", noise(7_000))
        .file(BACKBONE, "pytorch_model.bin", "not wanted")
}

fn serve(hub: Hub) -> Server {
    Server::start(move |request| hub.answer(request))
}

/// Serves `hub`, but answers with what `fault` gives for the n-th request that it sees (from 0).
fn serve_with(
    hub: Hub,
    fault: impl Fn(&Request, &Hub, usize) -> Option<Reply> + Send + Sync + 'static,
) -> Server {
    let seen = AtomicUsize::new(0);
    Server::start(move |request| {
        let is_content = request.is_get("siren.safetensors");
        let n = if is_content { seen.fetch_add(1, Ordering::SeqCst) } else { 0 };
        fault(request, &hub, n).unwrap_or_else(|| hub.answer(request))
    })
}

struct Client {
    cache: TempDir,
    options: HubOptions,
}

impl Client {
    fn of(server: &Server) -> Self {
        let cache = TempDir::new().unwrap();
        let options = HubOptions {
            cache_dir: Some(cache.path().into()),
            endpoint: Some(server.url()),
            ..HubOptions::default()
        };
        Self { cache, options }
    }

    fn artifact(&self) -> Result<PathBuf, Error> {
        self.artifact_at(ARTIFACT)
    }

    fn artifact_at(&self, repo: &str) -> Result<PathBuf, Error> {
        hub::fetch_artifact(&repo.parse().unwrap(), &self.options)
    }

    fn backbone(&self) -> Result<PathBuf, Error> {
        hub::fetch_backbone(&BACKBONE.parse().unwrap(), &self.options)
    }

    fn offline(&self) -> HubOptions {
        HubOptions { offline: true, ..self.options.clone() }
    }

    /// Every file below the cache that something could open as a model's file.
    fn visible(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        walk(self.cache.path(), &mut found);
        found.retain(|path| {
            let name = path.to_string_lossy();
            !name.contains("/.locks/") && !name.contains("/refs/") && !name.ends_with(".incomplete")
        });
        found
    }
}

fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() { walk(&path, found) } else { found.push(path) }
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Error>, status: Status, words: &[&str]) -> Error {
    let error = result.expect_err("an error");
    assert_eq!(error.status(), status, "{error}");
    for word in words {
        assert!(error.message().contains(word), "{word:?} not in {error}");
    }
    assert!(!error.message().contains(TOKEN), "{error}");
    error
}

#[track_caller]
fn holds(dir: &Path, hub: &Hub, repo: &str, names: &[&str]) {
    for name in names {
        assert_eq!(fs::read(dir.join(name)).unwrap(), hub.get(repo, name), "{name}");
    }
    assert_eq!(fs::read_dir(dir).unwrap().count(), names.len(), "nothing else in {dir:?}");
}

const ARTIFACT_FILES: &[&str] = &["siren_config.json", "siren.safetensors"];

// ---- names ----

#[test]
fn repositories_are_parsed_and_printed() {
    for (text, id, revision) in [
        ("gpt2", "gpt2", None),
        ("owner/name", "owner/name", None),
        ("owner/na.me_1@refs/pr/1", "owner/na.me_1", Some("refs/pr/1")),
        ("owner/name@v1.0+x", "owner/name", Some("v1.0+x")),
    ] {
        let repo: Repo = text.parse().unwrap();
        assert_eq!((repo.id(), repo.revision()), (id, revision));
        assert_eq!(repo.to_string(), text);
    }
    assert_eq!(Repo::new("a/b", Some("")).unwrap().revision(), None);
}

#[test]
fn names_that_no_hub_has_are_refused() {
    for text in [
        "",
        "/",
        "a/",
        "/a",
        "a/b/c",
        "a//b",
        "..",
        "../a",
        "a/..",
        "a/.",
        ".a",
        "a-",
        "a--b/c",
        "a/b.git",
        "a b",
        "a\\b",
        "a/b@",
        "a/b@..",
        "a/b@x/../y",
        "a/b@/x",
        "a/b@x//y",
        "a/b@x y",
        "a/b@.x",
        "a/b@x@y",
        "a/b\0",
        "ä/b",
    ] {
        refused(text.parse::<Repo>(), Status::InvalidArgument, &[]);
    }
    refused("a".repeat(97).parse::<Repo>(), Status::InvalidArgument, &[]);
}

#[test]
fn an_existing_directory_wins_over_a_repository() {
    let dir = TempDir::new().unwrap();
    let text = dir.path().to_str().unwrap();
    assert_eq!(Source::parse(text).unwrap(), Source::Dir(text.into()));
    assert_eq!(Source::parse("a/b").unwrap(), Source::Repo("a/b".parse().unwrap()));
    for missing in ["/no/such/dir", "./none", "../none", "~/none"] {
        refused(Source::parse(missing), Status::NotFound, &[missing]);
    }
}

#[test]
fn a_gguf_file_is_named_by_its_path_or_behind_its_repository() {
    let dir = TempDir::new().unwrap();
    let file = |name: &str| {
        let path = dir.path().join(name);
        fs::write(&path, "").unwrap();
        path.display().to_string()
    };
    let path = file("m.gguf");
    assert_eq!(Source::parse(&path).unwrap(), Source::Gguf(path.into()));
    let path = file("m.bin");
    refused(Source::parse(&path), Status::InvalidArgument, &[&path, ".gguf file"]);
    for (text, repo) in [("a/b/c.gguf", "a/b"), ("a/b/c.gguf@refs/pr/1", "a/b@refs/pr/1")] {
        let source = Source::parse(text).unwrap();
        assert_eq!(source, Source::RepoGguf(repo.parse().unwrap(), "c.gguf".into()));
        assert_eq!(source.to_string(), text);
    }
    for text in ["a/b/c/d.gguf", "a/b/c d.gguf", "a/b/.gguf", "a/b/c.gguf@", "a/../c.gguf"] {
        refused(Source::parse(text), Status::InvalidArgument, &[]);
    }
    assert_eq!(Source::parse("a/b.gguf").unwrap(), Source::Repo("a/b.gguf".parse().unwrap()));
}

// ---- the cache ----

#[test]
fn a_download_leaves_the_layout_of_the_python_tools() {
    let hub = a_hub();
    let server = serve(hub.clone());
    let client = Client::of(&server);
    let dir = client.artifact().unwrap();

    let repo = client.cache.path().join("models--owner--artifact");
    assert_eq!(dir, repo.join("snapshots").join(COMMIT));
    holds(&dir, &hub, ARTIFACT, ARTIFACT_FILES);
    assert_eq!(fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    let etag = &sha256(hub.get(ARTIFACT, "siren.safetensors"))[..40];
    let link = fs::read_link(dir.join("siren.safetensors")).unwrap();
    assert_eq!(link, Path::new("../../blobs").join(etag));
    assert!(!repo.join("blobs").join(etag).is_symlink());
    let locks = client.cache.path().join(".locks/models--owner--artifact");
    assert!(locks.join(format!("{etag}.lock")).is_file());
    let mut top: Vec<_> = fs::read_dir(&repo).unwrap().map(|e| e.unwrap().file_name()).collect();
    top.sort();
    assert_eq!(top, ["blobs", "refs", "snapshots"]);
}

#[test]
fn a_cache_laid_out_by_the_python_tools_opens_offline() {
    let cache = TempDir::new().unwrap();
    let repo = cache.path().join("models--owner--artifact");
    let snapshot = repo.join("snapshots").join(COMMIT);
    for dir in [&snapshot, &repo.join("blobs"), &repo.join("refs")] {
        fs::create_dir_all(dir).unwrap();
    }
    fs::write(repo.join("refs/main"), COMMIT).unwrap();
    for (name, etag) in ARTIFACT_FILES.iter().zip(["aa11", "bb22"]) {
        fs::write(repo.join("blobs").join(etag), name).unwrap();
        let target = Path::new("../../blobs").join(etag);
        std::os::unix::fs::symlink(target, snapshot.join(name)).unwrap();
    }
    let options =
        HubOptions { cache_dir: Some(cache.path().into()), offline: true, ..HubOptions::default() };
    for repo in [ARTIFACT.to_owned(), format!("{ARTIFACT}@main"), format!("{ARTIFACT}@{COMMIT}")] {
        let dir = hub::fetch_artifact(&repo.parse().unwrap(), &options).unwrap();
        assert_eq!(dir, snapshot);
    }
    let other = format!("{ARTIFACT}@v2").parse().unwrap();
    refused(hub::fetch_artifact(&other, &options), Status::Offline, &["v2", "siren_config.json"]);
}

#[test]
fn a_backbone_is_exactly_its_files() {
    let hub = a_hub();
    let server = serve(hub.clone());
    let client = Client::of(&server);
    let dir = client.backbone().unwrap();
    let files = [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors.index.json",
        "model-1.safetensors",
        "model-2.safetensors",
    ];
    holds(&dir, &hub, BACKBONE, &files);
    assert_eq!(server.gets("model-1.safetensors"), 1);
}

#[test]
fn one_weights_file_needs_no_index() {
    let hub = a_hub().file(BACKBONE, "model.safetensors", noise(100));
    let hub = hub.file(BACKBONE, "chat_template.jinja", "{{ x }}");
    let server = serve(hub.clone());
    let client = Client::of(&server);
    let dir = client.backbone().unwrap();
    let files = [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "model.safetensors",
    ];
    holds(&dir, &hub, BACKBONE, &files);
}

#[test]
fn a_second_open_works_with_the_hub_switched_off() {
    let mut server = serve(a_hub());
    let client = Client::of(&server);
    let dir = client.artifact().unwrap();
    let backbone = client.backbone().unwrap();
    server.stop();
    assert_eq!(client.artifact().unwrap(), dir);
    assert_eq!(client.backbone().unwrap(), backbone);
    assert_eq!(client.artifact_at(&format!("{ARTIFACT}@{COMMIT}")).unwrap(), dir);
    assert_eq!(hub::fetch_artifact(&ARTIFACT.parse().unwrap(), &client.offline()).unwrap(), dir);
}

#[test]
fn a_cached_commit_asks_nothing_and_a_cached_branch_one_thing() {
    let server = serve(a_hub());
    let client = Client::of(&server);
    client.backbone().unwrap();
    let before = server.requests().len();
    let at_commit = format!("{BACKBONE}@{COMMIT}").parse().unwrap();
    hub::fetch_backbone(&at_commit, &client.options).unwrap();
    assert_eq!(server.requests().len(), before);
    client.backbone().unwrap();
    let new = &server.requests()[before..];
    assert_eq!(new.iter().map(|r| r.method.as_str()).collect::<Vec<_>>(), ["HEAD"], "{new:?}");
}

#[test]
fn a_failing_hub_does_not_take_away_what_is_cached() {
    let failing = Arc::new(AtomicUsize::new(0));
    let (hub, fails) = (a_hub(), Arc::clone(&failing));
    let server = Server::start(move |request| match fails.load(Ordering::SeqCst) {
        0 => hub.answer(request),
        _ => Reply::status(503),
    });
    let client = Client::of(&server);
    let dir = client.artifact().unwrap();
    failing.store(1, Ordering::SeqCst);
    assert_eq!(client.artifact().unwrap(), dir);
    fs::remove_file(dir.join("siren.safetensors")).unwrap();
    refused(client.artifact(), Status::Network, &["503"]);
}

#[test]
fn offline_touches_no_network_and_says_what_is_missing() {
    let server = serve(a_hub());
    let client = Client::of(&server);
    let repo = ARTIFACT.parse().unwrap();
    let words = ["siren_config.json", ARTIFACT, "the offline option"];
    refused(hub::fetch_artifact(&repo, &client.offline()), Status::Offline, &words);
    assert!(server.requests().is_empty());

    let dir = client.artifact().unwrap();
    fs::remove_file(dir.join("siren.safetensors")).unwrap();
    let before = server.requests().len();
    let words = ["siren.safetensors", ARTIFACT, "the offline option"];
    refused(hub::fetch_artifact(&repo, &client.offline()), Status::Offline, &words);
    assert_eq!(server.requests().len(), before);
}

// ---- redirects and tokens ----

#[test]
fn the_token_goes_to_the_hub_alone() {
    let mut hub = a_hub();
    let store_hub = hub.clone();
    let store = Server::start(move |request| store_hub.content(request));
    hub.content_at = Some(store.url());
    hub.token = Some(TOKEN.to_owned());
    let server = serve(hub.clone());
    let mut client = Client::of(&server);
    client.options.token = Some(TOKEN.to_owned());
    let dir = client.artifact().unwrap();
    holds(&dir, &hub, ARTIFACT, ARTIFACT_FILES);

    // The announced name of the content, not that of the store.
    let link = fs::read_link(dir.join("siren.safetensors")).unwrap();
    assert!(link.ends_with(sha256(hub.get(ARTIFACT, "siren.safetensors"))));
    let asked = store.requests();
    assert_eq!(asked.len(), 1, "one GET, no HEAD: {asked:?}");
    assert_eq!(asked[0].header("authorization"), None);
    assert!(server.requests().iter().all(|r| r.header("authorization").is_some()));
}

#[test]
fn a_moved_repository_is_followed_with_the_token() {
    let mut hub = a_hub();
    hub.token = Some(TOKEN.to_owned());
    let inner = hub.clone();
    let server = Server::start(move |request| match request.path.strip_prefix("/old/name/") {
        Some(rest) => Reply::status(307).header("Location", format!("/{ARTIFACT}/{rest}")),
        None => inner.answer(request),
    });
    let mut client = Client::of(&server);
    client.options.token = Some(TOKEN.to_owned());
    holds(&client.artifact_at("old/name").unwrap(), &hub, ARTIFACT, ARTIFACT_FILES);
}

#[test]
fn redirects_end() {
    let server = Server::start(|r: &Request| Reply::status(302).header("Location", &r.path));
    refused(Client::of(&server).artifact(), Status::Network, &["too many redirects"]);
    let server = Server::start(|_: &Request| Reply::status(302).header("Location", "ftp://x/y"));
    refused(Client::of(&server).artifact(), Status::Network, &["no valid address"]);
}

/// Collects what all crates log, to look for the token in it.
struct Log(Mutex<String>);

impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        *self.0.lock().unwrap() += &format!("{} {}\n", record.target(), record.args());
    }

    fn flush(&self) {}
}

static LOG: Log = Log(Mutex::new(String::new()));

#[test]
fn the_token_is_in_no_message_and_no_log() {
    log::set_logger(&LOG).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    let mut hub = a_hub();
    hub.token = Some("another".to_owned());
    let server = serve(hub);
    let mut client = Client::of(&server);
    client.options.token = Some(TOKEN.to_owned());
    refused(client.artifact(), Status::Unauthorized, &["HF_TOKEN"]);
    assert!(!format!("{:?}", client.options).contains(TOKEN));
    client.options.token = Some(format!("{TOKEN}\r\nX-Evil: 1"));
    refused(client.artifact(), Status::InvalidArgument, &["token"]);
    let log = LOG.0.lock().unwrap();
    assert!(log.contains("ureq"), "the log was heard");
    assert!(!log.contains(TOKEN));
}

// ---- refusals ----

#[test]
fn refusals_say_what_is_wrong() {
    let mut gated = a_hub();
    gated.token = Some("t".to_owned());
    let server = serve(gated);
    let words = [ARTIFACT, "401", "HF_TOKEN", "gated"];
    refused(Client::of(&server).artifact(), Status::Unauthorized, &words);

    let server = Server::start(|_: &Request| Reply::status(403));
    let mut client = Client::of(&server);
    client.options.token = Some(TOKEN.to_owned());
    let words = ["403", "HF_TOKEN", "lacks rights", "gated"];
    refused(client.artifact(), Status::Unauthorized, &words);

    let server = serve(a_hub());
    let client = Client::of(&server);
    let words = ["owner/none", "no such repository"];
    refused(client.artifact_at("owner/none"), Status::NotFound, &words);
    let gone = format!("{ARTIFACT}@gone");
    refused(client.artifact_at(&gone), Status::NotFound, &["@gone", "no such revision"]);
    let words = ["siren_config.json", BACKBONE, "no such file"];
    refused(client.artifact_at(BACKBONE), Status::NotFound, &words);
    refused(client.artifact_at(BACKBONE), Status::NotFound, &words);

    let server = serve(Hub::default().file(ARTIFACT, "siren_config.json", "{}"));
    let client = Client::of(&server);
    refused(client.artifact(), Status::NotFound, &["siren.safetensors of owner/artifact"]);

    let server = Server::start(|_: &Request| Reply::status(418));
    refused(Client::of(&server).artifact(), Status::Network, &["418"]);
    assert_eq!(server.requests().len(), 1, "not tried again");
}

#[test]
fn a_backbone_without_weights_is_not_found() {
    let hub =
        Hub::default().file(BACKBONE, "config.json", "{}").file(BACKBONE, "tokenizer.json", "");
    let server = serve(hub);
    refused(Client::of(&server).backbone(), Status::NotFound, &["model.safetensors of"]);
}

#[test]
fn too_many_requests_passes_after_the_time_asked_for() {
    let first = AtomicUsize::new(0);
    let hub = a_hub();
    let server = Server::start(move |request| match first.fetch_add(1, Ordering::SeqCst) {
        0 => Reply::status(429).header("Retry-After", 1),
        1 => Reply::status(503),
        _ => hub.answer(request),
    });
    let start = Instant::now();
    Client::of(&server).artifact().unwrap();
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
}

#[test]
fn too_many_requests_for_ever_ends() {
    let server = Server::start(|_: &Request| Reply::status(429));
    let words = ["429", "too many requests", "try again"];
    refused(Client::of(&server).artifact(), Status::Network, &words);
    assert_eq!(server.requests().len(), 4);

    let server = Server::start(|_: &Request| Reply::status(429).header("Retry-After", 3600));
    refused(Client::of(&server).artifact(), Status::Network, &["after 3600 s"]);
    assert_eq!(server.requests().len(), 1, "an hour is not waited for");
}

#[test]
fn a_hub_that_is_not_there_is_named() {
    let mut server = serve(a_hub());
    server.stop();
    let url = server.url();
    refused(Client::of(&server).artifact(), Status::Network, &[url.as_str(), "cannot reach"]);
}

#[test]
fn answers_that_are_no_hubs_are_refused() {
    let server = Server::start(|_: &Request| Reply::status(200).body("<html>log in</html>"));
    refused(Client::of(&server).artifact(), Status::Network, &["does not answer as a hub"]);
    for (etag, commit) in [("x", "../../up"), ("../../up", COMMIT), (".", COMMIT), ("a/b", COMMIT)]
    {
        let server = Server::start(move |_: &Request| {
            Reply::status(200).body("{}").header("ETag", etag).header("X-Repo-Commit", commit)
        });
        let client = Client::of(&server);
        refused(client.artifact(), Status::Network, &["does not answer as a hub"]);
        assert_eq!(client.visible(), [] as [PathBuf; 0]);
    }
    for endpoint in ["hub", "ftp://hub", "http://user:pass@hub", "http://"] {
        let options = HubOptions { endpoint: Some(endpoint.into()), ..HubOptions::default() };
        let repo = ARTIFACT.parse().unwrap();
        let error = refused(
            hub::fetch_artifact(&repo, &options),
            Status::InvalidArgument,
            &["the endpoint option"],
        );
        assert!(!error.message().contains("user:pass"));
    }
}

// ---- broken downloads ----

const SIZE: usize = 300_000;

#[test]
fn a_cut_download_goes_on_where_it_stopped() {
    let server = serve_with(a_hub(), |request, hub, n| {
        let cut = request.is_get("siren.safetensors") && n == 0;
        cut.then(|| hub.answer(request).cut_after(SIZE / 2))
    });
    let client = Client::of(&server);
    let dir = client.artifact().unwrap();
    holds(&dir, &a_hub(), ARTIFACT, ARTIFACT_FILES);
    let gets: Vec<_> =
        server.requests().into_iter().filter(|r| r.is_get("siren.safetensors")).collect();
    assert_eq!(gets.len(), 2);
    assert_eq!(gets[1].header("range"), Some(format!("bytes={}-", SIZE / 2).as_str()));
}

#[test]
fn a_server_without_ranges_begins_anew() {
    let server = serve_with(a_hub(), |request, hub, n| {
        let whole = Reply::status(200).body(hub.get(ARTIFACT, "siren.safetensors"));
        request.is_get("siren.safetensors").then(|| match n {
            0 => whole.cut_after(SIZE / 2),
            _ => whole,
        })
    });
    holds(&Client::of(&server).artifact().unwrap(), &a_hub(), ARTIFACT, ARTIFACT_FILES);
}

#[test]
fn a_wrong_range_is_not_spliced() {
    let server = serve_with(a_hub(), |request, hub, n| {
        let content = hub.get(ARTIFACT, "siren.safetensors");
        request.is_get("siren.safetensors").then(|| match n {
            0 => Reply::content(request, content).cut_after(SIZE / 2),
            1 => Reply::content(request, content)
                .header("Content-Range", format!("bytes 0-{}/{SIZE}", SIZE / 2)),
            _ => Reply::content(request, content),
        })
    });
    holds(&Client::of(&server).artifact().unwrap(), &a_hub(), ARTIFACT, ARTIFACT_FILES);
}

#[test]
fn a_download_that_is_always_cut_leaves_nothing_that_opens() {
    let server = serve_with(a_hub(), |request, hub, _| {
        let whole = || Reply::status(200).body(hub.get(ARTIFACT, "siren.safetensors"));
        request.is_get("siren.safetensors").then(|| whole().cut_after(SIZE / 2))
    });
    let client = Client::of(&server);
    refused(client.artifact(), Status::Network, &["siren.safetensors", "150000 of 300000"]);
    assert_eq!(server.gets("siren.safetensors"), 4);
    nothing_opens(&client);
}

#[test]
fn fewer_bytes_than_announced_are_no_file() {
    let server = serve_with(a_hub(), |request, hub, _| {
        let short = &hub.get(ARTIFACT, "siren.safetensors")[..SIZE - 1];
        // A well-formed answer: only the size that HEAD gave tells that it is short.
        request.is_get("siren.safetensors").then(|| Reply::status(200).body(short))
    });
    let client = Client::of(&server);
    refused(client.artifact(), Status::Network, &["299999 of 300000"]);
    nothing_opens(&client);
}

#[test]
fn more_bytes_than_announced_are_no_file() {
    let server = serve_with(a_hub(), |request, _, _| {
        request.is_get("siren.safetensors").then(|| Reply::status(200).body(noise(SIZE + 1)))
    });
    let client = Client::of(&server);
    refused(client.artifact(), Status::Network, &["more than it announced"]);
    nothing_opens(&client);
}

#[test]
fn an_error_page_is_no_file() {
    for status in [403, 404, 500] {
        let mut hub = a_hub();
        let store = Server::start(move |_: &Request| Reply::status(status).body("<html>"));
        hub.content_at = Some(store.url());
        let server = serve(hub);
        let client = Client::of(&server);
        refused(client.artifact(), Status::Network, &[&status.to_string()]);
        assert_eq!(store.requests().len(), 4, "a fresh address each time");
        nothing_opens(&client);
    }
}

#[test]
fn other_content_than_announced_is_no_file() {
    let mut hub = a_hub();
    let store = Server::start(|_: &Request| Reply::status(200).body(vec![0; SIZE]));
    hub.content_at = Some(store.url());
    let server = serve(hub);
    let client = Client::of(&server);
    refused(client.artifact(), Status::Network, &["SHA-256"]);
    nothing_opens(&client);
}

#[track_caller]
fn nothing_opens(client: &Client) {
    for path in client.visible() {
        assert!(fs::read(&path).unwrap().len() < 1000, "{path:?} looks like the weights");
        assert!(!path.ends_with("siren.safetensors"), "{path:?}");
    }
    let offline = hub::fetch_artifact(&ARTIFACT.parse().unwrap(), &client.offline());
    refused(offline, Status::Offline, &["siren.safetensors"]);
}

#[test]
fn a_partial_file_of_an_earlier_process_is_gone_on_with() {
    let mut hub = a_hub();
    let store_hub = hub.clone();
    let store = Server::start(move |request| store_hub.content(request));
    hub.content_at = Some(store.url());
    let server = serve(hub.clone());
    let content = hub.get(ARTIFACT, "siren.safetensors");
    let mut spoiled = content[..1000].to_vec();
    spoiled[0] ^= 1;
    for (partial, gets) in [(content[..1000].to_vec(), 1), (spoiled, 2), (noise(SIZE * 2), 1)] {
        let client = Client::of(&server);
        let blobs = client.cache.path().join("models--owner--artifact/blobs");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(format!("{}.incomplete", sha256(content))), partial).unwrap();
        let before = store.requests().len();
        holds(&client.artifact().unwrap(), &hub, ARTIFACT, ARTIFACT_FILES);
        assert_eq!(store.requests().len() - before, gets);
    }
}

#[test]
fn progress_grows_to_the_whole() {
    let size = 3 << 20;
    let hub = a_hub().file(ARTIFACT, "siren.safetensors", noise(size));
    let server = serve_with(hub, move |request, hub, n| {
        let whole = Reply::status(200).body(hub.get(ARTIFACT, "siren.safetensors"));
        request.is_get("siren.safetensors").then(|| match n {
            0 => whole.cut_after(size - 10),
            _ => whole,
        })
    });
    let mut client = Client::of(&server);
    let reports = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&reports);
    client.options.progress = Some(Arc::new(move |p| heard.lock().unwrap().push(p)));
    client.artifact().unwrap();
    let all = reports.lock().unwrap().clone();
    for (file, total) in [("siren_config.json", None), ("siren.safetensors", Some(size as u64))] {
        let reports: Vec<_> = all.iter().filter(|p| p.file == file).collect();
        assert!(reports.windows(2).all(|p| p[0].done < p[1].done), "{reports:?}");
        let last = reports.last().unwrap();
        assert_eq!(Some(last.done), last.total);
        assert!(total.is_none_or(|total| last.done == total));
    }
    client.artifact().unwrap();
    assert_eq!(reports.lock().unwrap().len(), all.len(), "nothing is downloaded twice");
}

// ---- hostile indices ----

#[test]
fn shards_stay_inside_the_directory() {
    for name in [
        "../x",
        "/etc/passwd",
        "a/b.safetensors",
        "..",
        "",
        ".safetensors",
        "x.bin",
        "a\\\\b.safetensors",
        "..safetensors",
        "a\\u0000.safetensors",
    ] {
        let index = format!(r#"{{"weight_map": {{"w": "{name}"}}}}"#);
        let server = serve(a_hub().file(BACKBONE, "model.safetensors.index.json", index));
        let words = ["model.safetensors.index.json", "weight_map", "plain file name"];
        refused(Client::of(&server).backbone(), Status::InvalidModel, &words);
        assert!(server.requests().iter().all(|r| !r.path.contains("passwd")));
    }
    for index in ["", "[]", "{}", r#"{"weight_map": {}}"#, r#"{"weight_map": {"w": 1}}"#] {
        let server = serve(a_hub().file(BACKBONE, "model.safetensors.index.json", index));
        refused(Client::of(&server).backbone(), Status::InvalidModel, &["index.json"]);
    }
}

// ---- pull ----

const PULLED: &[&str] = &[
    ".siren-pull.json",
    "backbone/config.json",
    "backbone/model-1.safetensors",
    "backbone/model-2.safetensors",
    "backbone/model.safetensors.index.json",
    "backbone/tokenizer.json",
    "backbone/tokenizer_config.json",
    "siren.safetensors",
    "siren_config.json",
];

fn files_in(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    walk(dir, &mut found);
    assert!(found.iter().all(|path| !path.is_symlink()), "links into the cache: {found:?}");
    let name = |path: &PathBuf| path.strip_prefix(dir).unwrap().to_string_lossy().into_owned();
    let mut names: Vec<_> = found.iter().map(name).collect();
    names.sort();
    names
}

#[test]
fn pull_makes_one_directory_with_everything() {
    let hub = a_hub();
    let server = serve(hub.clone());
    let client = Client::of(&server);
    let place = TempDir::new().unwrap();
    let to = place.path().join("new/guard");
    let artifact = Source::Repo(ARTIFACT.parse().unwrap());
    assert_eq!(hub::pull(&artifact, None, &to, &client.options).unwrap(), to);
    assert_eq!(files_in(&to), PULLED);
    for name in ARTIFACT_FILES {
        assert_eq!(fs::read(to.join(name)).unwrap(), hub.get(ARTIFACT, name));
    }
    let shard = fs::read(to.join("backbone/model-2.safetensors")).unwrap();
    assert_eq!(shard, hub.get(BACKBONE, "model-2.safetensors"));

    // What was pulled can be pulled on: its backbone is the one beside it.
    let offline = HubOptions { offline: true, ..HubOptions::default() };
    let elsewhere = TempDir::new().unwrap();
    let third = elsewhere.path().join("third");
    hub::pull(&Source::Dir(to.clone()), None, &third, &offline).unwrap();
    assert_eq!(files_in(&third), PULLED);

    // From directories, and over an earlier pull.
    let (from, backbone) = (Source::Dir(to.clone()), Source::Dir(to.join("backbone")));
    let second = place.path().join("second");
    fs::create_dir(&second).unwrap();
    hub::pull(&from, Some(&backbone), &second, &HubOptions::default()).unwrap();
    fs::remove_file(second.join("siren.safetensors")).unwrap();
    hub::pull(&from, Some(&backbone), &second, &HubOptions::default()).unwrap();
    assert_eq!(files_in(&second), PULLED);
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 2, "nothing is left beside");
}

#[test]
fn a_gguf_file_comes_with_the_tokenizer_beside_it() {
    const BARE: &str = "owner/bare-gguf";
    let hub = a_hub()
        .file(BACKBONE, "model-Q4_K.gguf", noise(9_000))
        .file(BACKBONE, "model-Q8_0.gguf", noise(9_000))
        .file(BARE, "m.gguf", noise(8_000));
    let server = serve(hub.clone());
    let client = Client::of(&server);
    let path = hub::fetch_gguf(&BACKBONE.parse().unwrap(), "model-Q4_K.gguf", &client.options);
    let path = path.unwrap();
    assert_eq!(fs::read(&path).unwrap(), hub.get(BACKBONE, "model-Q4_K.gguf"));
    let beside = |path: &Path| {
        let entries = fs::read_dir(path.parent().unwrap()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    };
    assert_eq!(beside(&path), ["model-Q4_K.gguf", "tokenizer.json", "tokenizer_config.json"]);
    let bare = BARE.parse().unwrap();
    let path = hub::fetch_gguf(&bare, "m.gguf", &client.options).unwrap();
    assert_eq!(beside(&path), ["m.gguf"]);
    assert_eq!(hub::fetch_gguf(&bare, "m.gguf", &client.offline()).unwrap(), path);
    let none = hub::fetch_gguf(&bare, "n.gguf", &client.options);
    refused(none, Status::NotFound, &["n.gguf", BARE]);
    let other = hub::fetch_gguf(&bare, "../m.gguf", &client.options);
    refused(other, Status::InvalidArgument, &["../m.gguf"]);

    // Pulled, it lies where a guard looks first, and can be pulled on.
    let place = TempDir::new().unwrap();
    let artifact = Source::Repo(ARTIFACT.parse().unwrap());
    let backbone = Source::parse(&format!("{BARE}/m.gguf")).unwrap();
    let (first, second) = (place.path().join("first"), place.path().join("second"));
    hub::pull(&artifact, Some(&backbone), &first, &client.options).unwrap();
    hub::pull(&Source::Dir(first.clone()), None, &second, &client.offline()).unwrap();
    for pulled in [first, second] {
        assert_eq!(files_in(&pulled.join("backbone")), ["m.gguf"]);
    }
    refused(
        hub::pull(&backbone, None, place.path(), &client.options),
        Status::InvalidArgument,
        &[],
    );
}

#[test]
fn pull_replaces_only_its_own_work() {
    let server = serve(a_hub());
    let client = Client::of(&server);
    let place = TempDir::new().unwrap();
    let artifact = Source::Repo(ARTIFACT.parse().unwrap());
    let pull = |to: &Path| hub::pull(&artifact, None, to, &client.options);

    let mine = place.path().join("mine");
    fs::create_dir(&mine).unwrap();
    fs::write(mine.join("notes.txt"), "mine").unwrap();
    refused(pull(&mine), Status::InvalidArgument, &["notes.txt", "no earlier pull"]);
    let file = place.path().join("file");
    fs::write(&file, "mine").unwrap();
    refused(pull(&file), Status::InvalidArgument, &["not a directory"]);
    assert!(server.requests().is_empty(), "refused before anything is fetched");

    let to = place.path().join("guard");
    pull(&to).unwrap();
    fs::write(to.join("notes.txt"), "mine").unwrap();
    refused(pull(&to), Status::InvalidArgument, &["notes.txt", "was pulled"]);
    assert_eq!(fs::read_to_string(to.join("notes.txt")).unwrap(), "mine");
}

#[test]
fn a_failed_pull_leaves_the_target_as_it_was() {
    let server = serve(a_hub());
    let client = Client::of(&server);
    let place = TempDir::new().unwrap();
    let to = place.path().join("guard");
    let artifact = Source::Repo(ARTIFACT.parse().unwrap());
    hub::pull(&artifact, None, &to, &client.options).unwrap();
    let none = Source::Repo("owner/none".parse().unwrap());
    let failed = hub::pull(&artifact, Some(&none), &to, &client.options);
    refused(failed, Status::NotFound, &["owner/none"]);
    assert_eq!(files_in(&to), PULLED);

    let base = [
        r#"{}"#,
        r#"{"base_model": {"model_id": 1}}"#,
        r#"{"base_model": {"model_id": "../x"}}"#,
        r#"{"base_model": {"model_id": "a/b", "revision": 1}}"#,
    ];
    for config in base {
        let server = serve(a_hub().file(ARTIFACT, "siren_config.json", config));
        let client = Client::of(&server);
        let words = ["siren_config.json", "base_model"];
        refused(hub::pull(&artifact, None, &to, &client.options), Status::InvalidModel, &words);
    }
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1, "nothing is left beside");
}

// ---- the environment, in child processes ----

/// Not a test of its own: what the tests below run in a process of their own.
#[test]
fn child() {
    let Some(out) = std::env::var_os("HUB_TEST_OUT") else { return };
    let repo = std::env::var("HUB_TEST_REPO").unwrap().parse().unwrap();
    let answer = match hub::fetch_artifact(&repo, &HubOptions::default()) {
        Ok(dir) => format!("ok {}", dir.display()),
        Err(error) => format!("{} {error}", error.status().name()),
    };
    fs::write(out, answer).unwrap();
}

struct Process {
    command: Command,
    out: TempDir,
}

impl Process {
    /// A child whose environment knows of no hub, no cache and no proxy but what `variables` say.
    fn new(repo: &str, variables: &[(&str, &str)]) -> Self {
        let out = TempDir::new().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child"]).env_clear();
        command.env("HUB_TEST_OUT", out.path().join("answer")).env("HUB_TEST_REPO", repo);
        command.env("HOME", out.path()).envs(variables.iter().copied());
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        Self { command, out }
    }

    fn start(mut self) -> (Child, TempDir) {
        (self.command.spawn().unwrap(), self.out)
    }

    fn run(self) -> String {
        let (child, out) = self.start();
        answer(child, &out)
    }
}

fn answer(mut child: Child, out: &TempDir) -> String {
    assert!(child.wait().unwrap().success());
    fs::read_to_string(out.path().join("answer")).unwrap()
}

#[track_caller]
fn env(variables: &[(&str, &str)], starts: &str, contains: &str) {
    let answer = Process::new(ARTIFACT, variables).run();
    assert!(answer.starts_with(starts) && answer.contains(contains), "{answer}");
}

#[test]
fn the_cache_is_where_the_environment_says() {
    let server = serve(a_hub());
    let url = server.url();
    let place = TempDir::new().unwrap();
    let p = place.path().to_str().unwrap();
    let end = "models--owner--artifact";
    let hub = ("HF_ENDPOINT", url.as_str());
    env(&[hub, ("HF_HUB_CACHE", p), ("HF_HOME", "/no")], "ok", &format!("{p}/{end}"));
    env(&[hub, ("HF_HOME", p), ("HF_HUB_CACHE", "")], "ok", &format!("{p}/hub/{end}"));
    let xdg = format!("{p}/huggingface/hub/{end}");
    env(&[hub, ("XDG_CACHE_HOME", p), ("HF_HOME", " ")], "ok", &xdg);
    env(&[hub], "ok", &format!("/.cache/huggingface/hub/{end}"));
    env(&[hub, ("HF_HOME", "~/here")], "ok", &format!("/here/hub/{end}"));
}

#[test]
fn the_network_is_off_when_the_environment_says() {
    let server = serve(a_hub());
    let url = server.url();
    let hub = ("HF_ENDPOINT", url.as_str());
    for on in ["1", "true", "YES", "on"] {
        env(&[hub, ("HF_HUB_OFFLINE", on)], "offline", "HF_HUB_OFFLINE");
    }
    env(&[hub, ("TRANSFORMERS_OFFLINE", "1")], "offline", "TRANSFORMERS_OFFLINE");
    assert!(server.requests().is_empty());
    for off in ["", "0", "false"] {
        env(&[hub, ("HF_HUB_OFFLINE", off)], "ok", "");
    }
}

#[test]
fn the_token_comes_from_the_environment_or_a_file() {
    let mut hub = a_hub();
    hub.token = Some(TOKEN.to_owned());
    let server = serve(hub);
    let url = server.url();
    let hub = ("HF_ENDPOINT", url.as_str());
    let place = TempDir::new().unwrap();
    let home = place.path().to_str().unwrap();
    let file = place.path().join("token");
    fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let file = file.to_str().unwrap();
    env(&[hub], "unauthorized", "HF_TOKEN");
    env(&[hub, ("HF_TOKEN", TOKEN)], "ok", "");
    env(&[hub, ("HF_TOKEN_PATH", file), ("HF_TOKEN", "")], "ok", "");
    env(&[hub, ("HF_HOME", home), ("HF_HUB_CACHE", &format!("{home}/a"))], "ok", "");
    let quiet = ("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1");
    env(&[hub, ("HF_TOKEN", TOKEN), quiet], "unauthorized", "HF_TOKEN");
    env(&[hub, ("HF_TOKEN", "wrong"), ("HF_TOKEN_PATH", file)], "unauthorized", "lacks rights");
}

#[test]
fn proxies_of_the_environment_are_used() {
    let server = serve(a_hub());
    let proxy = Server::start(|_: &Request| Reply::status(500));
    let hub = format!("http://hub.invalid:{}", server.port());
    let hub = ("HF_ENDPOINT", hub.as_str());
    let proxy_url = proxy.url();
    let via = proxy_url.as_str();
    for variable in ["HTTP_PROXY", "http_proxy", "ALL_PROXY"] {
        let before = proxy.requests().len();
        env(&[hub, (variable, via), ("HTTPS_PROXY", "http://127.0.0.1:1")], "ok", "");
        assert!(proxy.requests().len() > before);
    }
    let before = proxy.requests().len();
    for none in
        ["hub.invalid", ".invalid", "a, invalid", "*", &format!("hub.invalid:{}", server.port())]
    {
        env(&[hub, ("HTTP_PROXY", via), ("NO_PROXY", none)], "network", "hub.invalid");
    }
    let url = server.url();
    env(&[("HF_ENDPOINT", &url), ("HTTP_PROXY", via)], "ok", "");
    assert_eq!(proxy.requests().len(), before, "not asked");
    env(&[hub, ("HTTP_PROXY", "ftp://x")], "invalid_argument", "HTTP_PROXY");
}

#[test]
fn a_certificate_file_has_to_be_one() {
    let server = serve(a_hub());
    let url = server.url();
    let hub = ("HF_ENDPOINT", url.as_str());
    let exe = std::env::current_exe().unwrap();
    for variable in ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"] {
        env(&[hub, (variable, "/no/such.pem")], "not_found", variable);
        env(&[hub, (variable, exe.to_str().unwrap())], "invalid_argument", variable);
    }
}

#[test]
fn two_processes_download_one_file_once() {
    let server = serve_with(a_hub(), |request, hub, _| {
        let slow = || hub.answer(request).slowly(Duration::from_millis(200));
        request.is_get("siren.safetensors").then(slow)
    });
    let cache = TempDir::new().unwrap();
    let url = server.url();
    let variables =
        [("HF_ENDPOINT", url.as_str()), ("HF_HUB_CACHE", cache.path().to_str().unwrap())];
    let children: Vec<_> = (0..3).map(|_| Process::new(ARTIFACT, &variables).start()).collect();
    for (child, out) in children {
        let answer = answer(child, &out);
        let dir = answer.strip_prefix("ok ").expect(&answer);
        holds(Path::new(dir), &a_hub(), ARTIFACT, ARTIFACT_FILES);
    }
    assert_eq!(server.gets("siren.safetensors"), 1);
}

#[test]
fn a_killed_process_blocks_nobody() {
    let server = serve_with(a_hub(), |request, hub, n| {
        let slow = || hub.answer(request).slowly(Duration::from_secs(5));
        (request.is_get("siren.safetensors") && n == 0).then(slow)
    });
    let cache = TempDir::new().unwrap();
    let url = server.url();
    let variables =
        [("HF_ENDPOINT", url.as_str()), ("HF_HUB_CACHE", cache.path().to_str().unwrap())];
    let (mut child, _out) = Process::new(ARTIFACT, &variables).start();
    let start = Instant::now();
    while server.gets("siren.safetensors") == 0 {
        assert!(start.elapsed() < Duration::from_secs(30));
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let answer = Process::new(ARTIFACT, &variables).run();
    holds(Path::new(answer.strip_prefix("ok ").unwrap()), &a_hub(), ARTIFACT, ARTIFACT_FILES);
}
