//! The tokenizer in a GGUF file's metadata -> the `tokenizer.json` that it was made from, as far as
//! it says how a text is tokenised.

use serde_json::{Map, Value, json};

use super::tokenizer::WORD_PATTERNS;
use crate::error::Result;
use crate::gguf::{Field, Gguf};

const TOKENS: &str = "tokenizer.ggml.tokens";
const TOKEN_TYPES: &str = "tokenizer.ggml.token_type";

/// Types of a token (`llama_token_type`).
const NORMAL: i128 = 1;
const CONTROL: i128 = 3;
const USER_DEFINED: i128 = 4;
const UNUSED: i128 = 5;

/// What a name in `tokenizer.ggml.pre` stands for.
struct Kind {
    normalizer: Value,
    pre_tokenizer: Value,
    /// Words that are tokens are not put together from their parts.
    ignore_merges: bool,
    /// Unless `tokenizer.ggml.add_bos_token` says something else.
    adds_bos: bool,
}

impl Kind {
    fn of(pre: &Field<'_>) -> Result<Self> {
        let [_, qwen, llama] = WORD_PATTERNS;
        let plain = |pre_tokenizer| Self {
            normalizer: Value::Null,
            pre_tokenizer,
            ignore_merges: false,
            adds_bos: false,
        };
        Ok(match pre.string()? {
            "qwen2" => {
                let normalizer = json!({ "type": "NFC" });
                Self { normalizer, ..plain(both(split(qwen), byte_level(false))) }
            }
            "llama-bpe" | "llama3" | "llama-v3" => Self {
                ignore_merges: true,
                adds_bos: true,
                ..plain(both(split(llama), byte_level(false)))
            },
            "smollm" => {
                let digits = json!({ "type": "Digits", "individual_digits": true });
                plain(both(digits, byte_level(true)))
            }
            "gpt-2" => plain(byte_level(true)),
            _ => {
                return Err(pre.unexpected(
                    "\"qwen2\", \"llama-bpe\", \"smollm\" or \"gpt-2\"; of another model, put the \
                     tokenizer.json beside the file",
                ));
            }
        })
    }
}

fn split(pattern: &str) -> Value {
    let pattern = json!({ "Regex": pattern });
    json!({ "type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": false })
}

/// With GPT-2's own pattern, if `splits`.
fn byte_level(splits: bool) -> Value {
    json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": splits
    })
}

fn both(first: Value, second: Value) -> Value {
    json!({ "type": "Sequence", "pretokenizers": [first, second] })
}

/// The contents of a `tokenizer.json`.
///
/// # Errors
/// `InvalidModel` for a tokenizer of another kind than byte-level BPE behind a known split into
/// words, and for metadata that contradict themselves.
pub(super) fn tokenizer_json(gguf: &Gguf) -> Result<Value> {
    let model = gguf.require("tokenizer.ggml.model")?;
    if model.string()? != "gpt2" {
        return Err(model.unexpected(
            "\"gpt2\" (byte-level BPE); of another model, put the tokenizer.json beside the file",
        ));
    }
    let kind = Kind::of(&gguf.require("tokenizer.ggml.pre")?)?;
    let tokens = gguf.require(TOKENS)?.strings()?;
    let types = gguf.require(TOKEN_TYPES)?;
    if types.integers()?.len() != tokens.len() {
        return Err(types.unexpected(format_args!("one type for each of {} tokens", tokens.len())));
    }
    let mut vocab = Map::new();
    let mut added = Vec::new();
    for (id, (token, of)) in tokens.iter().zip(types.integers()?).enumerate() {
        match of {
            UNUSED => continue,
            NORMAL => {}
            CONTROL | USER_DEFINED => added.push(json!({
                "id": id, "content": token, "special": of == CONTROL, "normalized": false,
                "single_word": false, "lstrip": false, "rstrip": false,
            })),
            _ => {
                return Err(types.invalid(
                    format_args!("{of} for token {id}"),
                    "1 (normal), 3 (control), 4 (user-defined) or 5 (unused)",
                ));
            }
        }
        if vocab.insert((*token).to_owned(), id.into()).is_some() {
            let tokens = gguf.require(TOKENS)?;
            return Err(tokens.invalid(format_args!("{token:?} twice"), "every token once"));
        }
    }
    let merges = gguf.require("tokenizer.ggml.merges")?;
    let pairs = merges.strings()?.into_iter().map(|merge| match merge.split_once(' ') {
        Some((left, right)) => Ok(json!([left, right])),
        None => Err(merges.invalid(format_args!("{merge:?}"), "two tokens with a blank between")),
    });
    let pairs = pairs.collect::<Result<Vec<_>>>()?;
    Ok(json!({
        "version": "1.0",
        "added_tokens": added,
        "normalizer": kind.normalizer,
        "pre_tokenizer": kind.pre_tokenizer,
        "post_processor": template(gguf, &tokens, kind.adds_bos)?,
        "decoder": byte_level(true),
        "model": {
            "type": "BPE", "ignore_merges": kind.ignore_merges, "vocab": vocab, "merges": pairs,
        },
    }))
}

/// The special tokens around every text.
fn template(gguf: &Gguf, tokens: &[&str], adds_bos: bool) -> Result<Value> {
    let flag = |key, default| gguf.get(key).map_or(Ok(default), |field| field.boolean());
    let mut single = vec![json!({ "Sequence": { "id": "A", "type_id": 0 } })];
    let mut known = Map::new();
    let mut token = |key| -> Result<Value> {
        let id = gguf.require(key)?.integer(0, tokens.len().saturating_sub(1))?;
        let token = tokens[id];
        known.insert(token.into(), json!({ "id": token, "ids": [id], "tokens": [token] }));
        Ok(json!({ "SpecialToken": { "id": token, "type_id": 0 } }))
    };
    if flag("tokenizer.ggml.add_bos_token", adds_bos)? {
        single.insert(0, token("tokenizer.ggml.bos_token_id")?);
    }
    if flag("tokenizer.ggml.add_eos_token", false)? {
        single.push(token("tokenizer.ggml.eos_token_id")?);
    }
    Ok(json!({
        "type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": known
    }))
}
