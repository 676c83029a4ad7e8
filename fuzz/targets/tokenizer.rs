//! A `tokenizer.json` that was edited anywhere in its tree, or is any bytes at all, and texts short
//! and long: an error, or ids; never a crash, a hang, or an allocation without bounds.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use libsiren_fuzz::{Script, fixture};
use serde_json::{Value, json};
use siren::Status;
use siren::fuzzing::Tokenizer;
use tempfile::TempDir;

static GOOD: LazyLock<[Value; 2]> = LazyLock::new(|| {
    // libFuzzer's hook ends the process at every panic. The tokenizers crate and the expression
    // engine below it may panic: the library is to make an error of that.
    let abort = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let file = info.location().map_or("", |location| location.file());
        if !["/tokenizers-", "/onig-"].iter().any(|name| file.contains(name)) {
            abort(info);
        }
    }));
    ["qwen3-short", "llama-short"].map(|name| {
        let file = std::fs::read(fixture(name).join("backbone/tokenizer.json")).expect("a fixture");
        serde_json::from_slice(&file).expect("JSON")
    })
});

static DIR: LazyLock<TempDir> =
    LazyLock::new(|| tempfile::tempdir().expect("a temporary directory"));

/// Expressions that backtrack, match nothing, or are not what a pre-tokeniser has. What takes hours
/// on a text is known, and not here: `scripts/README.md`.
const PATTERNS: [&str; 10] = [
    "(a+)+b",
    "(?:a|aa){0,40}b",
    r"(\s*)*x",
    r"(?:\p{L}+)*$|.",
    "",
    "(?=a)",
    ".",
    r"(a)\1",
    "(?<=a)b",
    "((((((((((a{1,9}){1,9}){1,9}){1,9}){1,9}){1,9}){1,9}){1,9}){1,9}){1,9})",
];

/// Parts that a tokenizer may have, and these do not.
fn part(choice: u8) -> Value {
    match choice % 12 {
        0 => json!({"type": "WordPiece", "unk_token": "a", "continuing_subword_prefix": "##",
                    "max_input_chars_per_word": 100, "vocab": {"a": 0, "##a": 1}}),
        1 => json!({"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0], ["aa", -1.0]]}),
        2 => json!({"type": "WordLevel", "unk_token": "a", "vocab": {"a": 0}}),
        3 => json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}),
        4 => json!({"type": "Replace", "pattern": {"Regex": "a"}, "content": "aa"}),
        5 => json!({"type": "Split", "pattern": {"String": "a"}, "behavior": "Removed",
                    "invert": true}),
        6 => json!({"type": "Digits", "individual_digits": true}),
        7 => json!({"type": "NFKC"}),
        8 => json!({"type": "Prepend", "prepend": "▁"}),
        9 => json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                    "strip_accents": null, "lowercase": true}),
        // A merge that is longer than any token.
        10 => json!(["aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"]),
        _ => json!([]),
    }
}

/// The children of a node, in the order of the file.
fn children(node: &mut Value) -> Vec<&mut Value> {
    match node {
        Value::Object(fields) => fields.values_mut().collect(),
        Value::Array(items) => items.iter_mut().collect(),
        _ => vec![],
    }
}

/// A node that the script walks to.
fn walk<'a>(script: &mut Script<'_>, root: &'a mut Value) -> &'a mut Value {
    let mut node = root;
    loop {
        let count = children(node).len();
        let choice = usize::from(script.byte());
        let (true, Some(choice)) = (count > 0, choice.checked_sub(32)) else { return node };
        node = children(node).swap_remove(choice % count);
    }
}

fn edit(script: &mut Script<'_>, root: &mut Value) {
    let kind = script.byte() % 10;
    let source = if kind == 5 { walk(script, root).take() } else { Value::Null };
    let node = walk(script, root);
    match (kind, &mut *node) {
        (0, _) => *node = Value::Null,
        (1, _) => *node = script.number().into(),
        (2, _) => *node = String::from_utf8_lossy(script.bytes()).into(),
        (3, Value::Object(fields)) => {
            let at = usize::from(script.byte()) % fields.len().max(1);
            fields.retain({
                let mut index = 0..;
                move |_, _| index.next() != Some(at)
            });
        }
        (3, Value::Array(items)) => drop(items.pop()),
        (4, _) => {
            *node = PATTERNS[usize::from(script.byte()) % PATTERNS.len()].into();
        }
        (5, _) => *node = source,
        (6, Value::Bool(flag)) => *flag = !*flag,
        (7, Value::Array(items)) => items.push(part(script.byte())),
        (8, Value::Object(fields)) => {
            let name = String::from_utf8_lossy(script.bytes()).into_owned();
            fields.insert(name, part(script.byte()));
        }
        (_, _) => *node = part(script.byte()),
    }
}

/// A text of some unit again and again. A million characters of each class are a test's
/// (`tests/behaviour/limits.rs`): with these sanitizers they take up to ten seconds.
fn text(script: &mut Script<'_>) -> String {
    let unit = String::from_utf8_lossy(script.chunk()).into_owned();
    let times = match script.byte() % 64 {
        n @ 0..=15 => 1 << n,
        n => n.into(),
    };
    unit.repeat(times)
}

fuzz_target!(|data: &[u8]| {
    let mut script = Script::new(data);
    let choice = script.byte();
    let file = match GOOD.get(usize::from(choice % 3)) {
        Some(good) => {
            let mut root = good.clone();
            for _ in 0..choice / 3 % 8 {
                edit(&mut script, &mut root);
            }
            root.to_string().into_bytes()
        }
        None => script.bytes().to_vec(),
    };
    std::fs::write(DIR.path().join("tokenizer.json"), file).expect("written");
    let tokenizer = match Tokenizer::open(DIR.path()) {
        Ok(tokenizer) => tokenizer,
        Err(e) => return assert_eq!(e.status(), Status::InvalidModel, "{e}"),
    };
    for text in ["How do I bake bread? In an oven.", &text(&mut script), " "] {
        // What is cut costs as much where nothing is known of the boundaries.
        for max_length in if text.len() < 100 { &[7, usize::MAX][..] } else { &[usize::MAX] } {
            match tokenizer.encode(text, *max_length) {
                Ok((ids, is_cut)) => {
                    assert!(!ids.is_empty());
                    assert!(ids.len() <= tokenizer.special_count().max(*max_length));
                    assert!(!is_cut || *max_length == 7);
                }
                Err(e) => assert_eq!(e.status(), Status::Internal, "{e}"),
            }
        }
    }
});
