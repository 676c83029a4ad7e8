//! `siren bench`: what it measures, prints and draws.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::{TOLERANCE, finish, keys, run, siren};

const MEASURED: [&str; 5] = ["median_ms", "min_ms", "max_ms", "first_ms", "repeat"];

fn report(args: &[&str]) -> Value {
    let args = [&["bench", "--json", "--threads", "1"], args].concat();
    run(&args, "").expect(0).objects().remove(0)
}

#[track_caller]
fn number(object: &Value, key: &str) -> f64 {
    object[key].as_f64().unwrap_or_else(|| panic!("{key} in {object}"))
}

#[test]
fn batches_count_the_tokens_that_they_run() {
    let args = ["--batch", "3,1", "--batch-tokens", "17,64", "--repeat", "2"];
    let result = report(&args);
    for key in ["load_ms", "weight_mb", "open_rss_mb", "open_peak_rss_mb", "rss_mb", "peak_rss_mb"]
    {
        assert!(number(&result, key) > 0.0, "{key} in {result}");
    }
    assert_eq!((&result["latency"], &result["stream"]), (&json!([]), &json!([])));
    let batches = result["throughput"].as_array().unwrap();
    assert_eq!(batches.len(), 2);
    for (measured, (batch, tokens)) in batches.iter().zip([(3, 17 + 64 + 17), (1, 17)]) {
        assert_eq!((&measured["batch"], &measured["tokens"]), (&json!(batch), &json!(tokens)));
        assert_eq!(measured["scores"].as_array().unwrap().len(), batch);
        assert_eq!(measured["repeat"], 2);
        let ms = number(measured, "median_ms");
        for (key, of) in [("texts_per_s", batch as f64), ("tokens_per_s", tokens as f64)] {
            let rate = number(measured, key);
            assert!((rate - of / ms * 1e3).abs() < 1e-6 * rate, "{measured}");
        }
        assert!(number(measured, "min_ms") <= ms && ms <= number(measured, "max_ms"));
    }
    let ran = run(&[&["bench"][..], &args].concat(), "").expect(0);
    let rows: Vec<Vec<&str>> =
        ran.lines().iter().map(|line| line.split_whitespace().collect()).collect();
    assert!(rows.iter().any(|row| row.starts_with(&["3", "98"])), "{ran:?}");
    assert!(!ran.stdout.contains("one text") && !ran.stdout.contains("llm-siren"), "{ran:?}");
}

/// The score is that of `siren score`.
#[test]
fn latency_is_of_one_text_a_call() {
    let result = report(&["--tokens", "8,400", "--repeat", "3"]);
    let texts = result["latency"].as_array().unwrap();
    assert_eq!((&texts[0]["tokens"], &texts[1]["tokens"]), (&json!(8), &json!(400)));
    let line = r#"{"id":0,"text":" the people of this town walk along the "}"#;
    let scored = run(&["score", "--jsonl"], line).expect(0).objects().remove(0);
    assert_eq!(scored["tokens"], 8, "{scored}");
    let score = texts[0]["scores"][0].as_f64().unwrap();
    assert!((score - scored["score"].as_f64().unwrap()).abs() <= TOLERANCE, "{result}");
}

#[test]
fn pushes_are_measured_beside_whole_texts() {
    let result = report(&["--stream", "200,20", "--push", "8", "--repeat", "5"]);
    let pushes = result["stream"].as_array().unwrap();
    for (push, prefix) in pushes.iter().zip([200, 20]) {
        assert_eq!((&push["tokens"], &push["prefix_tokens"]), (&json!(8), &json!(prefix)));
        let [median, whole, ratio] =
            ["median_ms", "whole_ms", "ratio"].map(|key| number(push, key));
        assert!((ratio - whole / median).abs() < 1e-6 * ratio);
        let [pushed, scored] = [0, 1].map(|i| push["scores"][i].as_f64().unwrap());
        assert!((pushed - scored).abs() <= TOLERANCE, "{push}");
    }
}

/// What nobody chose is measured as far as the longest text goes.
#[test]
fn all_of_it_within_the_longest_text() {
    let result = report(&["--max-length", "130", "--repeat", "1"]);
    let column = |section: &str, key: &str| -> Vec<u64> {
        let rows = result[section].as_array().unwrap();
        rows.iter().map(|row| row[key].as_u64().unwrap()).collect()
    };
    assert_eq!(column("latency", "tokens"), [16, 32, 64, 128]);
    assert_eq!(column("throughput", "batch"), [1, 4, 8, 16]);
    assert_eq!(column("throughput", "tokens"), [128, 512, 1024, 2048]);
    assert_eq!(column("stream", "prefix_tokens"), [100]);
    let result = report(&["--max-length", "20", "--repeat", "1"]);
    assert_eq!(result["latency"].as_array().unwrap().len(), 1);
    assert_eq!((&result["throughput"], &result["stream"]), (&json!([]), &json!([])));
}

#[test]
fn the_chart_has_a_panel_for_what_was_measured() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("chart.svg");
    let path = file.to_str().unwrap();
    let args = ["bench", "--repeat", "1", "--tokens", "8,16", "--stream", "8", "--svg", path];
    run(&args, "").expect(0);
    let svg = std::fs::read_to_string(&file).unwrap();
    assert!(svg.trim().starts_with("<svg") && svg.trim().ends_with("</svg>"));
    for words in ["demo: f32 on cpu", "One text", "A push of 16 tokens", "all again"] {
        assert!(svg.contains(words), "{words}");
    }
    assert!(!svg.contains("Texts in one call") && !svg.contains("llm-siren"));
    // A line through the points of each series: ours twice, and the whole text again.
    assert_eq!(svg.matches("<circle").count(), 2 + 1 + 1);

    let ran = run(&["bench", "--tokens", "8", "--svg", "/no/such/chart.svg"], "").expect(1);
    assert!(ran.stderr.contains("/no/such/chart.svg"), "{ran:?}");
}

/// A Python module in the place of llm-siren: `guard` is the body of its `score_batch`.
fn stand_in(folder: &tempfile::TempDir, guard: &str) -> PathBuf {
    let module = format!(
        r#"
import json, os, sys, time, types
__version__ = "0.0.1"
class SirenGuard:
    @classmethod
    def from_pretrained(cls, folder, device, dtype):
        print("noise on standard output")
        guard = cls()
        guard.asked = json.load(open(os.path.join(folder, "siren_config.json")))
        assert os.path.getsize(os.path.join(folder, "siren.safetensors")) > 0
        assert (device, dtype) == ("cpu", "the " + os.environ["EXPECTED_DTYPE"]), (device, dtype)
        return guard
    def score_batch(self, texts):
        {guard}
        assert os.path.isfile(os.path.join(self.asked["base_model"]["model_id"], "config.json"))
        assert self.asked["inference"]["max_length"] == 400, self.asked["inference"]
        time.sleep(0.04)
        return [types.SimpleNamespace(score=0.25 + len(texts)) for _ in texts]
"#
    );
    let torch = r#"
__version__ = "0.0.2"
float32, bfloat16 = "the float32", "the bfloat16"
def set_num_threads(n): assert n == 1
def get_num_threads(): return 1
"#;
    let transformers = r#"
import types
__version__ = "0.0.3"
AutoModelForCausalLM = AutoTokenizer = None
logging = types.SimpleNamespace(set_verbosity_error=int, disable_progress_bar=int)
utils = types.SimpleNamespace(logging=logging)
"#;
    let files = [("siren_guard", &module[..]), ("torch", torch), ("transformers", transformers)];
    for (name, text) in files {
        std::fs::write(folder.path().join(format!("{name}.py")), text).unwrap();
    }
    folder.path().into()
}

fn against(modules: &std::path::Path, dtype: &str, args: &[&str]) -> super::Ran {
    let model = [
        "bench",
        "--against",
        "llm-siren",
        "--threads",
        "1",
        "--max-length",
        "400",
        "--device",
        "cpu",
        "--dtype",
        dtype,
    ];
    let mut command = siren(&[&model[..], args].concat());
    command.env("PYTHONPATH", modules);
    command.env("EXPECTED_DTYPE", if dtype == "f32" { "float32" } else { "bfloat16" });
    finish(command, b"")
}

#[test]
fn llm_siren_runs_the_same_texts_in_turns() {
    let folder = tempfile::tempdir().unwrap();
    let modules = stand_in(&folder, "assert all(text.startswith(' the people') for text in texts)");
    for dtype in ["f32", "bf16"] {
        let args = ["--tokens", "8", "--batch", "2", "--stream", "20", "--repeat", "3", "--json"];
        let result = against(&modules, dtype, &args).expect(0).objects().remove(0);
        assert_eq!(result["against"]["version"], "0.0.1");
        assert_eq!(result["against"]["torch"], "0.0.2");
        for (section, texts) in [("latency", 1.0), ("throughput", 2.0), ("stream", 1.0)] {
            let measured = &result[section][0];
            let theirs = &measured["against"];
            let expected = [&MEASURED[..], &["ratio", "apart"]].concat();
            assert_eq!(keys(theirs), expected, "{section}");
            assert_eq!((&theirs["repeat"], &measured["repeat"]), (&json!(3), &json!(3)));
            // The stand-in takes 40 ms for a call.
            assert!((40.0..2000.0).contains(&number(theirs, "min_ms")), "{measured}");
            let ratio = number(theirs, "median_ms") / number(measured, "median_ms");
            assert!((number(theirs, "ratio") - ratio).abs() < 1e-6 * ratio, "{measured}");
            let scores: Vec<f64> = measured["scores"]
                .as_array()
                .unwrap()
                .iter()
                .map(|s| s.as_f64().unwrap())
                .collect();
            let of = if section == "stream" { &scores[..1] } else { &scores };
            let apart = of.iter().map(|s| (s - (0.25 + texts)).abs()).fold(0.0, f64::max);
            assert!((number(theirs, "apart") - apart).abs() < 1e-9, "{measured}");
        }
    }
    let chart = folder.path().join("chart.svg");
    let args = ["--tokens", "8,16", "--repeat", "1", "--svg", chart.to_str().unwrap()];
    let ran = against(&modules, "f32", &args).expect(0);
    assert!(ran.stdout.contains("llm-siren 0.0.1 on torch 0.0.2 in float32"), "{ran:?}");
    let svg = std::fs::read_to_string(chart).unwrap();
    assert!(svg.contains("llm-siren") && svg.matches("<circle").count() == 4);
}

#[test]
fn without_llm_siren_the_error_says_what_to_install() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = ["--tokens", "8", "--repeat", "1"];
    let args = [&tokens[..], &["--python", "/no/such/python"]].concat();
    let ran = against(folder.path(), "f32", &args).expect(1);
    assert!(ran.stderr.contains("\"/no/such/python\" cannot be started"), "{ran:?}");
    assert!(ran.stderr.contains("llm-siren==0.2.0 with --python"), "{ran:?}");

    // Modules that say that they are not there, whatever else is installed.
    let absent = "raise ModuleNotFoundError(\"No module named 'siren_guard'\", name='siren_guard')";
    std::fs::write(folder.path().join("siren_guard.py"), absent).unwrap();
    let ran = against(folder.path(), "f32", &tokens).expect(1);
    assert!(ran.stderr.contains("no module \"siren_guard\""), "{ran:?}");
    assert!(ran.stderr.contains("python3 -m pip install llm-siren==0.2.0"), "{ran:?}");
    assert!(ran.stderr.contains("(not_found)") && ran.stdout.is_empty(), "{ran:?}");
    assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
}

#[test]
fn a_reference_that_fails_is_an_error() {
    for (body, words) in [
        ("raise ValueError('of its own')", "ValueError: of its own"),
        ("os._exit(7)", "exit status: 7"),
        ("return []", "is no answer to 1 texts"),
        ("return [types.SimpleNamespace(score='x')]", "is no answer to 1 texts"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let modules = stand_in(&folder, body);
        let ran = against(&modules, "f32", &["--tokens", "8", "--repeat", "1"]).expect(1);
        assert!(ran.stderr.contains(words) && ran.stdout.is_empty(), "{words}: {ran:?}");
        assert!(ran.stderr.contains("--against llm-siren: "), "{ran:?}");
    }
    let gguf = super::repository().join("tests/parity/gguf/qwen3-mixed");
    let [model, backbone] =
        [gguf.clone(), gguf.join("backbone.gguf")].map(|path| path.display().to_string());
    let folder = tempfile::tempdir().unwrap();
    let args = ["--model", &model, "--backbone", &backbone, "--tokens", "8"];
    let ran = against(&stand_in(&folder, "pass"), "f32", &args).expect(1);
    assert!(ran.stderr.contains("reads no GGUF backbone"), "{ran:?}");
    assert!(ran.stderr.contains("(unsupported)"), "{ran:?}");
}
