//! What a caller gives -> cleaned text -> token ids.

mod clean;
mod gguf;
mod growing;
#[cfg(test)]
mod testing;
mod tokenizer;

use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};

#[cfg(any(fuzzing, test))]
pub use clean::MARKERS;
pub(crate) use clean::clean;
#[cfg(fuzzing)]
pub(crate) use gguf::tokenizer_json;
pub(crate) use growing::{Growing, Next, View};
pub(crate) use tokenizer::{Special, TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, Tokenizer};

use crate::error::{Error, Result, panic_message};

/// Runs what prepares a text: a panic in there is that text's error.
pub(crate) fn caught<T>(prepare: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(prepare)).unwrap_or_else(|panic| {
        let words = panic_message(&*panic);
        Err(Error::internal(format!("a panic while the text was prepared: {words}")))
    })
}

/// What is scored: a text, or a prompt and the response to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input<'a> {
    /// One text.
    Text(&'a str),
    /// A prompt, a response, or both, joined with one newline. Absent and empty are the same; one
    /// of the two alone scores as the same string given as [`Input::Text`].
    Exchange {
        /// What the model was asked.
        prompt: Option<&'a str>,
        /// What it answered.
        response: Option<&'a str>,
    },
}

impl<'a> Input<'a> {
    /// The size in bytes, as limits count it.
    pub(crate) fn len(self) -> usize {
        match self {
            Input::Text(text) => text.len(),
            Input::Exchange { prompt, response } => {
                prompt.map_or(0, str::len).saturating_add(response.map_or(0, str::len))
            }
        }
    }

    /// The text to clean.
    pub(crate) fn join(self) -> Cow<'a, str> {
        match self {
            Input::Text(text) => Cow::Borrowed(text),
            Input::Exchange { prompt, response } => {
                match (prompt.unwrap_or_default(), response.unwrap_or_default()) {
                    (only, "") | ("", only) => Cow::Borrowed(only),
                    (prompt, response) => Cow::Owned(format!("{prompt}\n{response}")),
                }
            }
        }
    }
}
