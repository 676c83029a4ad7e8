//! The C ABI: the only place with `extern "C"` and raw pointers. One file a handle or struct.
//!
//! Every entry point goes through [`boundary::enter`], which keeps panics inside, turns errors
//! into a status and a message, and leaves outputs untouched on failure.
#![allow(unsafe_code)] // C callers hand over raw pointers.
#![allow(non_camel_case_types)] // C names.
#![allow(clippy::missing_safety_doc)] // Each function's docs say what its pointers must be.

mod boundary;
mod error;
mod guard;
mod handle;
mod info;
mod layout;
mod log;
mod options;
mod score;
mod structs;
mod version;

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
pub use version::{siren_abi_version, siren_status_name, siren_version};
