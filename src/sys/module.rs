//! Where the file lies that this code was loaded from: the shared library, or the program that it
//! is linked into.
#![allow(unsafe_code)] // One call of the dynamic loader.

use std::path::PathBuf;

/// The absolute path of this module's file, if the loader knows it.
#[cfg(unix)]
pub(crate) fn path() -> Option<PathBuf> {
    use std::ffi::{CStr, OsStr};
    use std::os::unix::ffi::OsStrExt;

    let mut info = std::mem::MaybeUninit::<libc::Dl_info>::zeroed();
    let own_code = path as *const () as *const libc::c_void;
    // SAFETY: dladdr only looks the address up, and fills `info`, which is ours, when it finds it.
    let found = unsafe { libc::dladdr(own_code, info.as_mut_ptr()) };
    // SAFETY: zeroed memory is a valid Dl_info, whether or not it was filled.
    let info = unsafe { info.assume_init() };
    if found == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: the loader's name of a loaded module is a C string that lives as long as the module.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    std::fs::canonicalize(OsStr::from_bytes(name.to_bytes())).ok()
}

#[cfg(not(unix))]
pub(crate) fn path() -> Option<PathBuf> {
    std::env::current_exe().ok()
}
