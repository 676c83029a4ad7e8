//! Versions and the names of statuses.

use std::ffi::c_char;

use crate::error::Status;

/// Changes with every incompatible change of the ABI, as the library's SONAME does.
pub const SIREN_ABI_MAJOR: u32 = 0;
/// Grows with every addition to the ABI.
pub const SIREN_ABI_MINOR: u32 = 3;

/// The call succeeded.
pub const SIREN_OK: i32 = 0;
/// An argument is missing, contradictory or out of its range.
pub const SIREN_INVALID_ARGUMENT: i32 = 1;
/// The handle was freed, is foreign, or names another kind of object.
pub const SIREN_INVALID_HANDLE: i32 = 2;
/// Text is not valid UTF-8.
pub const SIREN_INVALID_UTF8: i32 = 3;
/// A file, directory, repository or revision does not exist.
pub const SIREN_NOT_FOUND: i32 = 4;
/// The operating system refused to read or write something that exists.
pub const SIREN_IO: i32 = 5;
/// A model's files are damaged, contradictory or outside what is accepted.
pub const SIREN_INVALID_MODEL: i32 = 6;
/// A valid request that this build, device or artifact kind cannot serve.
pub const SIREN_UNSUPPORTED: i32 = 7;
/// The hub could not be reached, or answered with a failure.
pub const SIREN_NETWORK: i32 = 8;
/// The hub refused access: a token is missing or lacks rights.
pub const SIREN_UNAUTHORIZED: i32 = 9;
/// A download would be needed, and the network was switched off by option.
pub const SIREN_OFFLINE: i32 = 10;
/// A text, batch or file is larger than the limit that was set for it.
pub const SIREN_LIMIT_EXCEEDED: i32 = 11;
/// Memory for the request could not be had.
pub const SIREN_OUT_OF_MEMORY: i32 = 12;
/// The queue is full: try again later.
pub const SIREN_BUSY: i32 = 13;
/// The call was cancelled by its caller.
pub const SIREN_CANCELLED: i32 = 14;
/// The deadline passed before the result was there.
pub const SIREN_DEADLINE_EXCEEDED: i32 = 15;
/// An earlier panic broke this guard; open a new one.
pub const SIREN_POISONED: i32 = 16;
/// The process was forked after the guard was opened, or while one was being opened.
pub const SIREN_FORKED: i32 = 17;
/// The model computed a value that is not a finite score.
pub const SIREN_NON_FINITE: i32 = 18;
/// A bug inside the library, caught at its boundary.
pub const SIREN_INTERNAL: i32 = 19;
/// Another thread is using this stream: it belongs to one thread at a time.
pub const SIREN_IN_USE: i32 = 20;

/// `SIREN_ABI_MAJOR << 16 | SIREN_ABI_MINOR` of the loaded library.
#[unsafe(no_mangle)]
pub extern "C" fn siren_abi_version() -> u32 {
    SIREN_ABI_MAJOR << 16 | SIREN_ABI_MINOR
}

/// The library's version, such as `0.1.0`. Static; not to be freed.
#[unsafe(no_mangle)]
pub extern "C" fn siren_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// The name of a status, such as `invalid_argument`; `ok` for 0, `unknown` for a number that is
/// none. Static; not to be freed.
#[unsafe(no_mangle)]
pub extern "C" fn siren_status_name(status: i32) -> *const c_char {
    let name = usize::try_from(status).ok().and_then(|status| NAMES.get(status));
    name.unwrap_or(&c"unknown").as_ptr()
}

/// The names of the statuses by their numbers, as C strings.
const NAMES: [&std::ffi::CStr; 1 + Status::ALL.len()] = [
    c"ok",
    c"invalid_argument",
    c"invalid_handle",
    c"invalid_utf8",
    c"not_found",
    c"io",
    c"invalid_model",
    c"unsupported",
    c"network",
    c"unauthorized",
    c"offline",
    c"limit_exceeded",
    c"out_of_memory",
    c"busy",
    c"cancelled",
    c"deadline_exceeded",
    c"poisoned",
    c"forked",
    c"non_finite",
    c"internal",
    c"in_use",
];

// The constants are written out for the header's readers; they cannot drift from the enum.
const _: () = {
    assert!(SIREN_INVALID_ARGUMENT == Status::InvalidArgument as i32);
    assert!(SIREN_INVALID_HANDLE == Status::InvalidHandle as i32);
    assert!(SIREN_INVALID_UTF8 == Status::InvalidUtf8 as i32);
    assert!(SIREN_NOT_FOUND == Status::NotFound as i32);
    assert!(SIREN_IO == Status::Io as i32);
    assert!(SIREN_INVALID_MODEL == Status::InvalidModel as i32);
    assert!(SIREN_UNSUPPORTED == Status::Unsupported as i32);
    assert!(SIREN_NETWORK == Status::Network as i32);
    assert!(SIREN_UNAUTHORIZED == Status::Unauthorized as i32);
    assert!(SIREN_OFFLINE == Status::Offline as i32);
    assert!(SIREN_LIMIT_EXCEEDED == Status::LimitExceeded as i32);
    assert!(SIREN_OUT_OF_MEMORY == Status::OutOfMemory as i32);
    assert!(SIREN_BUSY == Status::Busy as i32);
    assert!(SIREN_CANCELLED == Status::Cancelled as i32);
    assert!(SIREN_DEADLINE_EXCEEDED == Status::DeadlineExceeded as i32);
    assert!(SIREN_POISONED == Status::Poisoned as i32);
    assert!(SIREN_FORKED == Status::Forked as i32);
    assert!(SIREN_NON_FINITE == Status::NonFinite as i32);
    assert!(SIREN_INTERNAL == Status::Internal as i32);
    assert!(SIREN_IN_USE == Status::InUse as i32);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_rust_statuses() {
        for (i, status) in Status::ALL.into_iter().enumerate() {
            assert_eq!(status as usize, i + 1);
            assert_eq!(status.name(), NAMES[i + 1].to_str().unwrap());
        }
    }
}
