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
pub(crate) fn tokenizer_json(gguf: &Gguf) -> Result<Value> {
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

#[cfg(test)]
mod tests {
    use candle_core::quantized::gguf_file::{self, Value as GgufValue};

    use super::*;
    use crate::text::Tokenizer;
    use crate::text::testing::{
        Random, fixture, fixture_names, fixtures, text, tokenizer_json, vocab_size,
    };

    type Metadata = Vec<(&'static str, GgufValue)>;

    /// What llama.cpp's converter makes of a `tokenizer.json` (`get_vocab_base`).
    fn converted(file: &Value, pre: &str, vocab_size: usize) -> Metadata {
        let mut tokens: Vec<String> = (0..vocab_size).map(|id| format!("[PAD{id}]")).collect();
        let mut types = vec![UNUSED as i32; vocab_size];
        let id = |value: &Value| value.as_u64().unwrap() as usize;
        for (token, at) in file["model"]["vocab"].as_object().unwrap() {
            tokens[id(at)] = token.clone();
            types[id(at)] = NORMAL as i32;
        }
        for token in file["added_tokens"].as_array().unwrap() {
            let at = id(&token["id"]);
            tokens[at] = token["content"].as_str().unwrap().into();
            types[at] = if token["special"] == true { CONTROL } else { USER_DEFINED } as i32;
        }
        let merge = |merge: &Value| match merge {
            Value::String(merge) => merge.clone(),
            pair => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
        };
        let merges = file["model"]["merges"].as_array().unwrap().iter().map(merge);
        let bos = tokens.iter().position(|token| token == "<|begin_of_text|>").unwrap_or(0);
        let strings = |values: Vec<String>| {
            GgufValue::Array(values.into_iter().map(GgufValue::String).collect())
        };
        vec![
            ("tokenizer.ggml.merges", strings(merges.collect())),
            ("tokenizer.ggml.model", GgufValue::String("gpt2".into())),
            ("tokenizer.ggml.pre", GgufValue::String(pre.into())),
            (TOKENS, strings(tokens)),
            (TOKEN_TYPES, GgufValue::Array(types.into_iter().map(GgufValue::I32).collect())),
            ("tokenizer.ggml.bos_token_id", GgufValue::U32(bos as u32)),
        ]
    }

    /// The tokenizer of a file that candle wrote.
    fn opened(metadata: &Metadata, vocab_size: usize) -> Result<Tokenizer> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        let metadata: Vec<_> = metadata.iter().map(|(key, value)| (*key, value)).collect();
        let mut file = std::fs::File::create(&path).unwrap();
        gguf_file::write(&mut file, &metadata, &[]).unwrap();
        Tokenizer::beside(&path, &Gguf::open(&path, true)?, vocab_size)
    }

    fn converted_fixture(name: &str) -> Metadata {
        let json = serde_json::from_slice(&tokenizer_json(name)).unwrap();
        let pre = if name.starts_with("qwen") { "qwen2" } else { "llama-bpe" };
        converted(&json, pre, vocab_size(name))
    }

    fn parity_texts(name: &str) -> Vec<String> {
        let vectors = std::fs::read(fixtures().join(name).join("vectors.json")).unwrap();
        let vectors: Value = serde_json::from_slice(&vectors).unwrap();
        let vectors = vectors["vectors"].as_array().unwrap().iter();
        let fields = vectors.flat_map(|vector| ["text", "prompt", "response"].map(|f| &vector[f]));
        let texts = fields.filter_map(|field| match field {
            Value::String(text) => Some(text.clone()),
            Value::Object(repeated) => {
                let times = repeated["times"].as_u64().unwrap() as usize;
                Some(repeated["repeat"].as_str().unwrap().repeat(times))
            }
            _ => None,
        });
        texts.collect()
    }

    #[test]
    fn tokens_are_those_of_the_original() {
        for name in fixture_names() {
            let original = fixture(&name);
            let converted = opened(&converted_fixture(&name), vocab_size(&name)).unwrap();
            let mut random = Random(21);
            let random = (0..300).map(|_| text(&mut random));
            for text in random.chain(parity_texts(&name)) {
                let short: String = text.chars().take(60).collect();
                let ids = |tokenizer: &Tokenizer| tokenizer.encode(&text, 1 << 20);
                assert_eq!(ids(&converted), ids(&original), "{name}: {short:?}");
                let located = |tokenizer: &Tokenizer| {
                    tokenizer.locate(&text, usize::MAX, &Default::default()).unwrap()
                };
                assert_eq!(located(&converted), located(&original), "{name}: {short:?}");
            }
        }
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let set = |key: &'static str, value: GgufValue| {
            let mut metadata = converted_fixture("llama-short");
            metadata.retain(|(other, _)| *other != key);
            metadata.push((key, value));
            metadata
        };
        let text = |text: &str| GgufValue::String(text.into());
        let texts = |texts: &[&str]| GgufValue::Array(texts.iter().map(|t| text(t)).collect());
        for (key, value, words) in [
            ("tokenizer.ggml.model", text("llama"), "tokenizer.json beside the file"),
            ("tokenizer.ggml.pre", text("tekken"), "tokenizer.json beside the file"),
            ("tokenizer.ggml.pre", GgufValue::U32(1), "found 1, expected a string"),
            (
                TOKENS,
                texts(&["a", "b"]),
                "found an array of 600 numbers, expected one type for each of 2",
            ),
            (TOKEN_TYPES, GgufValue::Array(vec![GgufValue::I32(6); 600]), "found 6 for token 0"),
            (TOKENS, texts(&["a"; 600]), r#"found "a" twice"#),
            ("tokenizer.ggml.merges", texts(&["ab"]), r#"found "ab", expected two tokens"#),
            ("tokenizer.ggml.merges", texts(&["a nothing"]), "what does not load"),
            (
                "tokenizer.ggml.bos_token_id",
                GgufValue::U32(600),
                "found 600, expected a whole number",
            ),
            ("tokenizer.ggml.add_bos_token", GgufValue::U32(1), "expected true or false"),
        ] {
            let error = opened(&set(key, value), 600).map(|_| ()).unwrap_err();
            let message = error.message();
            assert!(message.contains("m.gguf") && message.contains(words), "{key}: {message}");
        }
        let plain = set("tokenizer.ggml.add_bos_token", GgufValue::Bool(false));
        assert_eq!(opened(&plain, 600).unwrap().special_count(), 0);
    }
}
