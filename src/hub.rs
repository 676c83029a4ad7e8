//! stub
#![allow(missing_docs)]
use crate::error::*;
use std::path::PathBuf;
#[derive(Clone, Default)]
pub struct HubOptions {
    pub cache_dir: Option<PathBuf>,
    pub endpoint: Option<String>,
    pub token: Option<String>,
    pub offline: bool,
    pub progress: Option<P>,
}
impl std::fmt::Debug for HubOptions { fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.write_str("") } }
type P = std::sync::Arc<dyn Fn(Progress) + Send + Sync>;
pub struct Progress { pub file: String, pub done: u64, pub total: Option<u64> }

pub struct Repo {}
impl Repo {
    pub fn new(id: &str, _r: Option<&str>) -> Result<Self> {
        Err(Error::argument(id))
    }
}
impl std::str::FromStr for Repo {
    type Err = Error;
    fn from_str(s: &str) -> Result<Self> {
        Err(Error::argument(s))
    }
}
pub fn fetch_artifact(_: &Repo, _: &HubOptions) -> Result<PathBuf> {
    Err(Error::argument("x"))
}
pub fn fetch_backbone(_: &Repo, _: &HubOptions) -> Result<PathBuf> {
    Err(Error::argument("x"))
}
