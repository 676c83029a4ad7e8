//! stub
#![allow(missing_docs)]
use crate::error::*;
use std::path::PathBuf;
#[derive(Clone, Debug, Default)]
pub struct HubOptions {}
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
