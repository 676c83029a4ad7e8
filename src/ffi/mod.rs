//! The C ABI: the only place with `extern "C"` and raw pointers. One file a handle or struct.
//!
//! Every entry point goes through [`boundary::enter`], which keeps panics inside, turns errors
//! into a status and a message, and leaves outputs untouched on failure.
#![allow(unsafe_code)] // C callers hand over raw pointers.
#![allow(non_camel_case_types)] // C names.
#![allow(clippy::missing_safety_doc)] // Each function's docs say what its pointers must be.

mod audit;
mod boundary;
mod buffer;
mod callback;
mod cancel;
mod error;
mod guard;
mod handle;
mod info;
mod layout;
mod log;
mod options;
mod score;
mod stats;
mod stream;
mod structs;
mod version;

pub use audit::siren_audit_json;
pub use callback::{
    siren_batch_callback, siren_score_async, siren_score_batch_async, siren_score_callback,
};
pub use cancel::{
    siren_cancel, siren_cancel_token, siren_cancel_token_free, siren_cancel_token_new,
};
pub use error::{siren_error, siren_error_init};
pub use guard::{siren_free, siren_guard, siren_open, siren_warmup};
pub use info::{siren_guard_info, siren_info, siren_info_init, siren_info_json};
pub use layout::layouts;
pub use log::{siren_log_callback, siren_log_set};
pub use options::{
    siren_open_options, siren_open_options_init, siren_progress_callback, siren_text,
};
pub use score::{
    siren_input, siren_input_init, siren_result, siren_result_init, siren_score, siren_score_batch,
    siren_score_options, siren_score_options_init,
};
pub use stats::{
    SIREN_LATENCY_BUCKETS, SIREN_STATUS_LIMIT, siren_guard_stats, siren_stats, siren_stats_init,
    siren_stats_prometheus,
};
pub use stream::{
    siren_push_callback, siren_push_options, siren_push_options_init, siren_push_result,
    siren_push_result_init, siren_stream, siren_stream_finish, siren_stream_finish_async,
    siren_stream_fork, siren_stream_free, siren_stream_new, siren_stream_options,
    siren_stream_options_init, siren_stream_push, siren_stream_push_async, siren_stream_reset,
};
pub use version::{siren_abi_version, siren_status_name, siren_version};
