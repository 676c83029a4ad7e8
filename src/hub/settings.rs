//! Options and environment variables, joined once per call: the one place that knows a default.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use ureq::http::Uri;

use super::HubOptions;
use crate::error::{Error, Result};

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// What a call runs with.
pub(super) struct Settings {
    pub(super) cache_dir: PathBuf,
    /// The option or variable that switched the network off, if one did.
    pub(super) offline: Option<String>,
    /// Without a slash at its end.
    pub(super) endpoint: String,
    pub(super) token: Option<String>,
    /// The certificate files that variables name; all of them are trusted.
    pub(super) ca_files: Vec<(&'static str, PathBuf)>,
    pub(super) proxies: Proxies,
}

impl Settings {
    pub(super) fn new(options: &HubOptions) -> Result<Self> {
        Ok(Self {
            cache_dir: match &options.cache_dir {
                Some(dir) => dir.clone(),
                None => default_cache_dir()?,
            },
            offline: offline(options.offline),
            endpoint: endpoint(options.endpoint.as_deref())?,
            token: token(options.token.as_deref())?,
            ca_files: ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"]
                .into_iter()
                .filter_map(|name| Some((name, var_path(name)?)))
                .collect(),
            proxies: Proxies::from_env(),
        })
    }
}

/// An environment variable that is set to something.
fn var(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// Whether a variable is set to what the Python tools take for yes.
fn is_on(name: &str) -> bool {
    var(name).is_some_and(|value| {
        matches!(value.trim().to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on")
    })
}

/// A directory from a variable, with a leading `~` read as the home directory.
fn var_path(name: &str) -> Option<PathBuf> {
    let value = var(name)?;
    match value.strip_prefix("~/") {
        Some(rest) => Some(PathBuf::from(var("HOME")?).join(rest)),
        None => Some(value.into()),
    }
}

fn hf_home() -> Option<PathBuf> {
    var_path("HF_HOME")
        .or_else(|| var_path("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
        .or_else(|| var("HOME").map(|home| Path::new(&home).join(".cache/huggingface")))
}

fn default_cache_dir() -> Result<PathBuf> {
    var_path("HF_HUB_CACHE")
        .or_else(|| var_path("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| hf_home().map(|home| home.join("hub")))
        .ok_or_else(|| {
            Error::argument("no cache directory: set HF_HUB_CACHE, HF_HOME or HOME, or the option")
        })
}

fn offline(option: bool) -> Option<String> {
    if option {
        return Some("the offline option".to_owned());
    }
    ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]
        .into_iter()
        .find(|name| is_on(name))
        .map(|name| format!("the environment variable {name}"))
}

fn endpoint(option: Option<&str>) -> Result<String> {
    let (origin, text) = match option {
        Some(text) => ("the endpoint option", text.to_owned()),
        None => match var("HF_ENDPOINT") {
            Some(text) => ("HF_ENDPOINT", text),
            None => return Ok(DEFAULT_ENDPOINT.to_owned()),
        },
    };
    let text = text.trim().trim_end_matches('/');
    let usable = text.parse::<Uri>().is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.authority().is_some_and(|host| !host.as_str().contains('@'))
            && uri.query().is_none()
    });
    if usable {
        return Ok(text.to_owned());
    }
    // Not printed: what cannot be used may hold a password.
    Err(Error::argument(format!(
        "{origin}: expected an address such as {DEFAULT_ENDPOINT}, without user, password or query"
    )))
}

fn token(option: Option<&str>) -> Result<Option<String>> {
    let token = option.map(str::to_owned).or_else(implicit_token);
    let Some(token) = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty())
    else {
        return Ok(None);
    };
    if token.chars().all(|c| c.is_ascii_graphic()) {
        return Ok(Some(token));
    }
    Err(Error::argument("the hub token holds a character that no token has (HF_TOKEN, token file)"))
}

fn implicit_token() -> Option<String> {
    if is_on("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
        return None;
    }
    let file = || {
        let path = var_path("HF_TOKEN_PATH").or_else(|| hf_home().map(|home| home.join("token")));
        fs::read_to_string(path?).ok()
    };
    var("HF_TOKEN").or_else(file)
}

/// The proxies of the environment.
pub(super) struct Proxies {
    http: Option<String>,
    https: Option<String>,
    direct: Vec<String>,
}

impl Proxies {
    fn from_env() -> Self {
        let either = |name: &str| var(&name.to_ascii_lowercase()).or_else(|| var(name));
        let all = either("ALL_PROXY");
        Self {
            http: either("HTTP_PROXY").or_else(|| all.clone()),
            https: either("HTTPS_PROXY").or(all),
            direct: either("NO_PROXY")
                .unwrap_or_default()
                .split([',', ' '])
                .map(|entry| entry.trim_start_matches("*.").trim_start_matches('.'))
                .filter(|entry| !entry.is_empty())
                .map(str::to_ascii_lowercase)
                .collect(),
        }
    }

    /// The proxy through which `uri` is reached, if it is through one.
    pub(super) fn for_uri(&self, uri: &Uri) -> Option<&str> {
        let host = uri.host()?.trim_matches(['[', ']']).to_ascii_lowercase();
        let address = host.parse::<std::net::IpAddr>();
        let loopback = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
        if loopback || self.is_direct(&host, uri.port_u16()) {
            return None;
        }
        match uri.scheme_str() {
            Some("https") => self.https.as_deref(),
            _ => self.http.as_deref(),
        }
    }

    /// `NO_PROXY` names a host, a domain with all below it, either with a port, or `*`.
    fn is_direct(&self, host: &str, port: Option<u16>) -> bool {
        let within = |host: &str, entry: &str| {
            host.strip_suffix(entry).is_some_and(|head| head.is_empty() || head.ends_with('.'))
        };
        let with_port = port.map(|port| format!("{host}:{port}"));
        self.direct.iter().any(|entry| {
            entry == "*"
                || within(host, entry)
                || with_port.as_ref().is_some_and(|host| within(host, entry))
        })
    }
}
