//! The one error type. Its [`Status`] maps one to one onto the codes of the C ABI.

use std::fmt;

/// What went wrong, as a stable number: the status codes of `siren.h`.
///
/// The values are part of the ABI: none is ever reused or renumbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Status {
    /// An argument is missing, contradictory or out of its range.
    InvalidArgument = 1,
    /// The handle was freed, is foreign, or names another kind of object.
    InvalidHandle = 2,
    /// Text is not valid UTF-8.
    InvalidUtf8 = 3,
    /// A file, directory, repository or revision does not exist.
    NotFound = 4,
    /// The operating system refused to read or write something that exists.
    Io = 5,
    /// A model's files are damaged, contradictory or outside what is accepted.
    InvalidModel = 6,
    /// A valid request that this build, device or artifact kind cannot serve.
    Unsupported = 7,
    /// The hub could not be reached, or answered with a failure.
    Network = 8,
    /// The hub refused access (401 or 403): a token is missing or lacks rights.
    Unauthorized = 9,
    /// A download would be needed, and the network was switched off by option.
    Offline = 10,
    /// A text, batch or file is larger than the limit that was set for it.
    LimitExceeded = 11,
    /// Memory for the request could not be had.
    OutOfMemory = 12,
    /// The queue is full: try again later.
    Busy = 13,
    /// The call was cancelled by its caller.
    Cancelled = 14,
    /// The deadline passed before the result was there.
    DeadlineExceeded = 15,
    /// An earlier panic broke this guard; open a new one.
    Poisoned = 16,
    /// The process was forked after the guard was opened, or while one was being opened.
    Forked = 17,
    /// The model computed a value that is not a finite score.
    NonFinite = 18,
    /// A bug inside the library, caught at its boundary.
    Internal = 19,
    /// Another thread is using this stream: it belongs to one thread at a time.
    InUse = 20,
}

impl Status {
    /// Every status, in the order of their numbers.
    pub(crate) const ALL: [Status; 20] = [
        Status::InvalidArgument,
        Status::InvalidHandle,
        Status::InvalidUtf8,
        Status::NotFound,
        Status::Io,
        Status::InvalidModel,
        Status::Unsupported,
        Status::Network,
        Status::Unauthorized,
        Status::Offline,
        Status::LimitExceeded,
        Status::OutOfMemory,
        Status::Busy,
        Status::Cancelled,
        Status::DeadlineExceeded,
        Status::Poisoned,
        Status::Forked,
        Status::NonFinite,
        Status::Internal,
        Status::InUse,
    ];

    /// The constant's name in `siren.h`, without its prefix, in lower case.
    pub fn name(self) -> &'static str {
        match self {
            Status::InvalidArgument => "invalid_argument",
            Status::InvalidHandle => "invalid_handle",
            Status::InvalidUtf8 => "invalid_utf8",
            Status::NotFound => "not_found",
            Status::Io => "io",
            Status::InvalidModel => "invalid_model",
            Status::Unsupported => "unsupported",
            Status::Network => "network",
            Status::Unauthorized => "unauthorized",
            Status::Offline => "offline",
            Status::LimitExceeded => "limit_exceeded",
            Status::OutOfMemory => "out_of_memory",
            Status::Busy => "busy",
            Status::Cancelled => "cancelled",
            Status::DeadlineExceeded => "deadline_exceeded",
            Status::Poisoned => "poisoned",
            Status::Forked => "forked",
            Status::NonFinite => "non_finite",
            Status::Internal => "internal",
            Status::InUse => "in_use",
        }
    }
}

/// A failed call: a stable [`Status`] and a message written for the person who reads it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    status: Status,
    message: String,
}

/// `Result` with the library's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `status` that says `message`.
    pub fn new(status: Status, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// [`Status::InvalidArgument`].
    pub fn argument(message: impl Into<String>) -> Self {
        Self::new(Status::InvalidArgument, message)
    }

    /// [`Status::Internal`].
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Status::Internal, message)
    }

    /// [`Status::InvalidModel`], in the one form that all model errors have:
    /// file, field, what was found, what was expected.
    pub fn model(
        file: impl fmt::Display,
        field: impl fmt::Display,
        found: impl fmt::Display,
        expected: impl fmt::Display,
    ) -> Self {
        Self::new(
            Status::InvalidModel,
            format!("{file}: {field}: found {found}, expected {expected}"),
        )
    }

    /// An error of the operating system while it touched `path`.
    pub fn io(path: impl fmt::Display, error: &std::io::Error) -> Self {
        let status = match error.kind() {
            std::io::ErrorKind::NotFound => Status::NotFound,
            std::io::ErrorKind::OutOfMemory => Status::OutOfMemory,
            _ => Status::Io,
        };
        Self::new(status, format!("{path}: {error}"))
    }

    /// The stable code.
    pub fn status(&self) -> Status {
        self.status
    }

    /// What happened, in words: names what was wrong and what was expected.
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

/// What the engine's own files were asked for has been checked before, so an error of candle's
/// is a bug, or a device that failed or has no memory left.
impl From<candle_core::Error> for Error {
    fn from(mut error: candle_core::Error) -> Self {
        // No reader of a message knows what to do with a backtrace.
        while let candle_core::Error::WithBacktrace { inner, .. } = error {
            error = *inner;
        }
        #[cfg(feature = "cuda")]
        if is_out_of_memory(&error) {
            return Self::new(Status::OutOfMemory, format!("the device's memory is full: {error}"));
        }
        Self::internal(format!("the engine failed: {error}"))
    }
}

#[cfg(feature = "cuda")]
fn is_out_of_memory(error: &candle_core::Error) -> bool {
    use candle_core::Error::{Context, Cuda, WithBacktrace, WithPath};
    use candle_core::cuda_backend::{CudaError, cudarc};
    match error {
        Context { inner, .. } | WithBacktrace { inner, .. } | WithPath { inner, .. } => {
            is_out_of_memory(inner)
        }
        Cuda(error) => match error.downcast_ref() {
            Some(CudaError::Cuda(error) | CudaError::Load { cuda: error, .. }) => {
                error.0 == cudarc::driver::sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY
            }
            Some(CudaError::Cublas(error)) => {
                error.0 == cudarc::cublas::sys::cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED
            }
            _ => false,
        },
        _ => false,
    }
}

/// The words of a caught panic.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()))
        .unwrap_or_else(|| "a panic without a message".into())
}
