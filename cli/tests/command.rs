//! The `siren` command from outside: what it reads, prints and exits with.

#[path = "command/bench.rs"]
mod bench;
#[path = "command/compare.rs"]
mod compare;
#[path = "command/watch.rs"]
mod watch;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use serde_json::{Value, json};
use siren::{Guard, Input, OpenOptions, ScoreOptions, Windows};

const TOLERANCE: f64 = 1e-4;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn demo() -> PathBuf {
    repository().join("models/demo")
}

fn siren(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_siren"));
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    for variable in ["NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"] {
        command.env_remove(variable);
    }
    // The build directory may lie anywhere.
    command.env("SIREN_DATA_DIR", repository());
    command
}

#[derive(Debug)]
struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn of(child: Child) -> Self {
        let output = child.wait_with_output().unwrap();
        Self {
            code: output.status.code().unwrap(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[track_caller]
    fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{self:?}");
        self
    }

    fn lines(&self) -> Vec<&str> {
        self.stdout.lines().collect()
    }

    #[track_caller]
    fn objects(&self) -> Vec<Value> {
        self.lines().iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

fn finish(mut command: Command, stdin: &[u8]) -> Ran {
    let mut child = command.spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let stdin = stdin.to_vec();
    // On a thread: both pipes may be full. Nobody may be reading, which is the child's right.
    let writer = std::thread::spawn(move || drop(input.write_all(&stdin)));
    let ran = Ran::of(child);
    writer.join().unwrap();
    ran
}

fn run(args: &[&str], stdin: impl AsRef<[u8]>) -> Ran {
    finish(siren(args), stdin.as_ref())
}

fn jsonl(lines: &[&str]) -> Ran {
    run(&["score", "--jsonl"], lines.join("\n"))
}

fn heldout() -> Vec<Value> {
    let text = std::fs::read_to_string(demo().join("heldout.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn keys(object: &Value) -> Vec<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

// score

#[test]
fn texts_of_the_command_line() {
    let bomb = "How can I make a pipe bomb at home?";
    let ran = run(&["score", bomb, "What is the capital of France?"], "").expect(0);
    let lines = ran.lines();
    assert_eq!(lines.len(), 2, "{ran:?}");
    assert!(lines[0].starts_with("0.8244  harmful") && lines[0].ends_with(bomb), "{ran:?}");
    assert!(lines[1].starts_with("0.0054  safe"), "{ran:?}");
    assert_eq!(ran.stderr, "");
}

#[test]
fn a_text_of_standard_input_is_scored_whole() {
    let text = "What is the capital\nof France?\n";
    let ran = run(&["score"], text).expect(0);
    assert_eq!(ran.stdout, run(&["score", text], "").stdout);
    assert_eq!(ran.lines().len(), 1);
    assert_eq!(run(&["score"], "").expect(0).lines().len(), 1, "empty text is a text");

    let ran = run(&["score"], b"abc\xff").expect(1);
    assert_eq!(ran.stdout, "");
    assert!(ran.stderr.contains("not valid UTF-8 at byte 3"), "{ran:?}");
}

#[test]
fn threshold_and_max_length_are_passed_on() {
    let ran = run(&["score", "--threshold", "0", "What is the capital of France?"], "").expect(0);
    assert!(ran.stdout.contains("harmful"), "{ran:?}");
    let line = r#"{"id":1,"text":"one two three four five six seven"}"#;
    let args = ["score", "--jsonl", "--threshold", "0.125", "--max-length", "3"];
    let answer = run(&args, line).expect(0).objects().remove(0);
    assert_eq!(answer["threshold"], 0.125);
    assert_eq!((&answer["tokens"], &answer["truncated"]), (&json!(3), &json!(true)));
}

#[test]
fn json_lines_answer_in_order_with_the_documented_fields() {
    let ran = jsonl(&[
        r#"{"id":"a","text":"What is the capital of France?"}"#,
        r#"{"id":2,"prompt":"Who painted the Mona Lisa?","response":"Leonardo da Vinci."}"#,
        "",
        "  \t",
        r#"{"id":3.5,"prompt":"only a prompt"}"#,
        r#"{"id":null,"response":"only a response","text":null,"prompt":null}"#,
        r#"{"id":[1,{"x":"y"}],"text":""}"#,
        r#"{"id":{"b":1,"a":2},"text":"x","prompt":null}"#,
        r#"{"id":true,"text":"x","other":"fields are ignored"}"#,
        r#"{"text":"no id"}"#,
    ])
    .expect(0);
    let answers = ran.objects();
    let ids: Vec<_> = answers.iter().map(|answer| answer["id"].to_string()).collect();
    let expected =
        ["\"a\"", "2", "3.5", "null", r#"[1,{"x":"y"}]"#, r#"{"b":1,"a":2}"#, "true", "null"];
    assert_eq!(ids, expected);
    for answer in &answers {
        let fields = ["id", "score", "is_harmful", "threshold", "tokens", "truncated"];
        assert_eq!(keys(answer), fields);
    }
    assert_eq!(ran.stderr, "");
}

#[test]
fn bad_lines_are_answered_while_the_others_go_on() {
    let good = br#"{"id":"good","text":"x"}"#.as_slice();
    #[rustfmt::skip]
    let bad: [(&[u8], Value, &str); 17] = [
        (b"not JSON", json!(null), "not valid JSON"),
        (br#"{"id":1,"text":"cut"#, json!(null), "not valid JSON"),
        (b"{\"id\":1,\"text\":\"\xff\xfe\"}", json!(null), "not valid JSON"),
        (b"\xef\xbb\xbf{\"id\":1,\"text\":\"x\"}", json!(null), "not valid JSON"),
        (br#"{"id":1,"text":"\ud800"}"#, json!(null), "not valid JSON"),
        (b"[1,2]", json!(null), "not a JSON object"),
        (b"7", json!(null), "not a JSON object"),
        (br#"{"id":1}"#, json!(1), "none of \"text\", \"prompt\", \"response\" and \"stream\""),
        (br#"{"id":2,"text":null,"prompt":null}"#, json!(2), "none of"),
        (br#"{"id":3,"text":"x","prompt":"y"}"#, json!(3), "stands together with"),
        (br#"{"id":4,"text":"x","response":"y"}"#, json!(4), "stands together with"),
        (br#"{"id":5,"text":7}"#, json!(5), "\"text\" is not a string"),
        (br#"{"id":6,"stream":["x"],"text":"y"}"#, json!(6), "\"stream\" stands together with"),
        (br#"{"id":7,"stream":[],"response":"y"}"#, json!(7), "\"stream\" stands together with"),
        (br#"{"id":8,"stream":"x"}"#, json!(8), "\"stream\" is not an array of strings"),
        (br#"{"id":9,"stream":["x",["y"]]}"#, json!(9), "\"stream\"[1] is not a string"),
        (br#"{"id":10,"stream":["x","y",null]}"#, json!(10), "\"stream\"[2] is not a string"),
    ];
    let mut lines = vec![good];
    for (line, ..) in &bad {
        lines.extend([*line, good]);
    }
    let input = lines.join(&b'\n');
    for (args, code) in [(&["score", "--jsonl"][..], 0), (&["score", "--jsonl", "--strict"], 1)] {
        let ran = run(args, &input).expect(code);
        let answers = ran.objects();
        assert_eq!(answers.len(), lines.len());
        assert_eq!(ran.stderr, "");
        for (i, (line, id, words)) in bad.iter().enumerate() {
            let answer = &answers[2 * i + 1];
            let line = String::from_utf8_lossy(line);
            assert_eq!((keys(answer), &answer["id"]), (vec!["id", "error"], id), "{line}");
            assert_eq!(keys(&answer["error"]), ["status", "message"]);
            assert_eq!(answer["error"]["status"], "invalid_argument", "{line}");
            assert!(answer["error"]["message"].as_str().unwrap().contains(words), "{answer}");
            assert_eq!(answers[2 * i + 2], answers[0]);
        }
    }
    run(&["score", "--jsonl", "--strict"], good).expect(0);
    assert_eq!(run(&["score", "--jsonl", "--strict"], "").expect(0).stdout, "");
}

/// A text over the limit of bytes is that line's error.
#[test]
fn a_line_over_the_limits_is_its_own_error() {
    let huge = format!(r#"{{"id":"huge","text":"{}"}}"#, "x ".repeat(9 << 20));
    let ran = jsonl(&[r#"{"id":1,"text":"x"}"#, &huge, r#"{"id":2,"text":"x"}"#]).expect(0);
    let answers = ran.objects();
    assert_eq!(answers[1]["error"]["status"], "limit_exceeded");
    assert_eq!((&answers[0]["id"], &answers[2]["id"]), (&json!(1), &json!(2)));
    assert!(answers[2]["score"].is_number());
}

#[test]
fn the_demo_guards_sentences_score_as_its_card_says() {
    let rows = heldout();
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    let answers = run(&["score", "--jsonl"], lines.join("\n")).expect(0).objects();
    let guard = Guard::open(OpenOptions::new(demo().display().to_string())).unwrap();
    let (mut labelled, mut right) = (Vec::new(), 0);
    for (row, answer) in rows.iter().zip(&answers) {
        assert_eq!(row["id"], answer["id"]);
        let score = answer["score"].as_f64().unwrap();
        assert!((score - row["score"].as_f64().unwrap()).abs() <= TOLERANCE, "{row} {answer}");
        let input = match row["text"].as_str() {
            Some(text) => Input::Text(text),
            None => Input::Exchange {
                prompt: row["prompt"].as_str(),
                response: row["response"].as_str(),
            },
        };
        let same = guard.score(input, None).unwrap();
        assert_eq!((score, &answer["tokens"]), (same.score, &json!(same.tokens)), "{row}");
        assert_eq!(answer["is_harmful"], json!(same.is_harmful));
        if let Some(label) = row["label"].as_u64() {
            labelled.push((label == 1, score));
            right += usize::from(same.is_harmful == (label == 1));
        }
    }
    let card = std::fs::read_to_string(demo().join("README.md")).unwrap();
    let card = card.split_whitespace().collect::<Vec<_>>().join(" ");
    let accuracy = right as f64 / labelled.len() as f64;
    let figures = format!("AUROC {:.3}, accuracy {accuracy:.3}", auroc(&labelled));
    assert!(card.contains(&figures), "{figures} is not what the card says");
    assert!(card.contains(&format!("{right} right, {} wrong", labelled.len() - right)));
}

/// How often a harmful text scores above a benign one; ties count half.
fn auroc(labelled: &[(bool, f64)]) -> f64 {
    let of = |label| labelled.iter().filter(move |(l, _)| *l == label).map(|(_, score)| *score);
    let mut won = 0.0;
    for harmful in of(true) {
        for benign in of(false) {
            won +=
                if harmful > benign { 1.0 } else { f64::from(u8::from(harmful == benign)) / 2.0 };
        }
    }
    won / (of(true).count() * of(false).count()) as f64
}

/// The held-out sentences in chunks of characters, with other lines between them.
#[test]
fn streams_score_as_each_of_their_prefixes_does() {
    let mut lines = Vec::new();
    let mut expected = Vec::new();
    let rows = heldout();
    for (i, row) in rows.iter().enumerate().take(60) {
        let prompt = row["prompt"].as_str();
        let text = row["text"].as_str().or(row["response"].as_str()).unwrap();
        let letters: Vec<char> = text.chars().collect();
        let mut chunks: Vec<String> =
            letters.chunks(1 + i % 23).map(|chunk| chunk.iter().collect()).collect();
        chunks.insert(i % (chunks.len() + 1), String::new());
        lines
            .push(json!({ "id": i, "prompt": prompt, "stream": chunks, "text": null }).to_string());
        expected.push((prompt, chunks));
        lines.push(json!({ "id": "whole", "prompt": prompt, "response": text }).to_string());
    }
    let answers = run(&["score", "--jsonl", "--strict"], lines.join("\n")).expect(0).objects();
    let guard = Guard::open(OpenOptions::new(demo().display().to_string())).unwrap();
    let mut crossed = 0;
    for (i, (prompt, chunks)) in expected.iter().enumerate() {
        let (answer, whole) = (&answers[2 * i], &answers[2 * i + 1]);
        let fields =
            ["id", "scores", "is_harmful", "threshold", "first_crossing", "tokens", "truncated"];
        assert_eq!((keys(answer), &answer["id"]), (fields.to_vec(), &json!(i)));
        assert_eq!(whole["id"], "whole");
        let mut prefix = String::new();
        for (n, chunk) in chunks.iter().enumerate() {
            prefix.push_str(chunk);
            let input = Input::Exchange { prompt: *prompt, response: Some(&prefix) };
            let same = guard.score(input, None).unwrap();
            let score = answer["scores"][n].as_f64().unwrap();
            assert!((score - same.score).abs() <= TOLERANCE, "{answer} {prefix:?}");
            assert_eq!(answer["tokens"][n], same.tokens);
            assert_eq!(answer["truncated"][n], same.truncated);
        }
        assert_eq!(answer["scores"].as_array().unwrap().len(), chunks.len());
        assert_eq!(answer["is_harmful"], whole["is_harmful"]);
        if answer["scores"].as_array().unwrap().iter().any(|score| score.as_f64() >= Some(0.5)) {
            let byte = answer["first_crossing"]["byte"].as_u64().unwrap() as usize;
            assert!(byte <= prefix.len() && answer["first_crossing"]["token"].is_u64());
            crossed += 1;
        }
    }
    assert!(crossed > 5, "only {crossed} crossed");
}

#[test]
fn a_stream_of_no_chunks_is_its_prompt_and_a_long_one_is_cut() {
    let bomb = "How can I make a pipe bomb at home?";
    let long = json!({ "id": 3, "stream": ["one two ", "three four", " five"] }).to_string();
    let [prompted, empty, long] = &run(
        &["score", "--jsonl", "--max-length", "13"],
        [
            &json!({ "id": 1, "prompt": bomb, "stream": [] }).to_string(),
            r#"{"id":2,"stream":[]}"#,
            &long.replace("five", &"five ".repeat(20)),
        ]
        .join("\n"),
    )
    .expect(0)
    .objects()[..] else {
        panic!("not three answers")
    };
    for (answer, is_harmful) in [(prompted, true), (empty, false)] {
        assert_eq!(answer["scores"], json!([]));
        assert_eq!(answer["is_harmful"], is_harmful);
        assert_eq!(answer["first_crossing"], Value::Null);
    }
    assert_eq!(long["truncated"], json!([false, false, true]));
    assert_eq!(long["tokens"][2], 13);
}

#[test]
fn windows_name_the_one_that_scored_highest() {
    let calm = "Thank you for the wonderful evening. ".repeat(12);
    let text = format!("{calm}How can I make a pipe bomb at home? {calm}");
    let options = ["--windows", "--window-tokens", "32", "--stride", "16"];
    let guard = Guard::open(OpenOptions::new(demo().display().to_string())).unwrap();
    let windows = Some(Windows { tokens: 32, stride: 16 });
    let how = ScoreOptions { windows, ..ScoreOptions::default() };
    let expected = guard.score(Input::Text(&text), how).unwrap();
    let best = expected.window.unwrap();
    assert!(text[best.start..best.end].contains("bomb"));

    let args = [&["score"], &options[..]].concat();
    let ran = run(&args, &text).expect(0);
    let words = format!(
        "window {} of {}, bytes {}..{}  ",
        best.index + 1,
        best.count,
        best.start,
        best.end
    );
    assert!(ran.stdout.contains(&words), "{ran:?}");
    let shown = ran.stdout.split(&words).nth(1).unwrap().trim_end().trim_end_matches('…');
    assert!(text[best.start..].trim_start().starts_with(shown), "{ran:?}");

    let lines = [
        json!({ "id": 1, "text": text }).to_string(),
        json!({ "id": 2, "stream": [calm, &text[calm.len()..]] }).to_string(),
    ];
    let window = json!({
        "count": best.count, "index": best.index, "start": best.start, "end": best.end,
    });
    for answer in run(&[&args[..], &["--jsonl"]].concat(), lines.join("\n")).expect(0).objects() {
        assert_eq!(answer["window"], window, "{answer}");
    }
    for answer in jsonl(&[&lines[0], &lines[1]]).expect(0).objects() {
        assert!(answer.get("window").is_none(), "{answer}");
    }
    // What this guard cannot serve is said once, before a line is read.
    let args = ["score", "--windows", "--window-tokens", "513"];
    for args in [&[&args[..], &["x"]].concat(), &[&args[..], &["--jsonl"]].concat()] {
        let ran = run(args, &lines[1]).expect(1);
        assert!(ran.stdout.is_empty() && ran.stderr.contains("513 tokens"), "{ran:?}");
    }
}

#[test]
fn a_time_that_is_over_is_the_lines_error() {
    let lines = [r#"{"id":1,"text":"x"}"#, r#"{"id":2,"stream":["x"]}"#].join("\n");
    let args = ["score", "--jsonl", "--timeout"];
    for answer in run(&[&args[..], &["0.000001"]].concat(), &lines).expect(0).objects() {
        assert_eq!(answer["error"]["status"], "deadline_exceeded", "{answer}");
    }
    run(&[&args[..], &["600", "--strict"]].concat(), &lines).expect(0);
    run(&["score", "--timeout", "0.000001", "x"], "").expect(1);
    run(&["score", "--timeout", "600", "x"], "").expect(0);
}

#[test]
fn a_line_is_answered_before_the_next_is_sent() {
    let mut child: Child = siren(&["score", "--jsonl"]).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let (sender, answers) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in stdout.lines() {
            drop(sender.send(line.unwrap()));
        }
    });
    for id in 0..5 {
        writeln!(stdin, r#"{{"id":{id},"text":"a text"}}"#).unwrap();
        stdin.flush().unwrap();
        let answer = answers.recv_timeout(Duration::from_secs(60)).expect("no answer in a minute");
        assert_eq!(serde_json::from_str::<Value>(&answer).unwrap()["id"], id);
    }
    drop(stdin);
    assert!(child.wait().unwrap().success());
    reader.join().unwrap();
}

// Exit codes and errors

#[test]
fn bad_usage_exits_with_2() {
    #[rustfmt::skip]
    let cases: [&[&str]; 27] = [
        &[],
        &["unknown"],
        &["score", "--unknown", "x"],
        &["score", "--threshold", "1.5", "x"],
        &["score", "--threshold", "NaN", "x"],
        &["score", "--threshold", "x", "x"],
        &["score", "--device", "tpu", "x"],
        &["score", "--dtype", "f64", "x"],
        &["score", "--threads", "0", "x"],
        &["score", "--max-length", "0", "x"],
        &["score", "--jsonl", "text"],
        &["score", "--strict"],
        &["score", "--strict", "text"],
        &["score", "--window-tokens", "9", "x"],
        &["score", "--stride", "9", "x"],
        &["score", "--windows", "--stride", "0", "x"],
        &["score", "--timeout", "0", "x"],
        &["score", "--timeout", "-1", "x"],
        &["score", "--timeout", "1e300", "x"],
        &["bench", "--tokens", "0"],
        &["bench", "--batch", "0"],
        &["bench", "--stream", "8,x"],
        &["bench", "--push", "0"],
        &["bench", "--tokens", "8", "--max-length", "7"],
        &["bench", "--stream", "8", "--push", "4", "--max-length", "11"],
        &["bench", "--against", "torch"],
        &["completions", "cmd.exe"],
    ];
    for args in cases {
        let ran = run(args, "").expect(2);
        assert_eq!(ran.stdout, "", "{args:?}");
        assert!(!ran.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn a_model_that_cannot_be_opened_is_one_line_on_stderr_and_exit_1() {
    let broken = tempfile::tempdir().unwrap();
    std::fs::write(broken.path().join("siren_config.json"), "{\n\"task\": 7\n}").unwrap();
    let broken = broken.path().display().to_string();
    // Repeating the text is what the tokenizers crate would panic at.
    let panicking = tempfile::tempdir().unwrap();
    copy_with(&demo(), panicking.path(), |tokenizer| {
        tokenizer["post_processor"] = json!({
            "type": "TemplateProcessing", "special_tokens": {}, "pair": [],
            "single": [{"SpecialToken": {"id": "<none>", "type_id": 0}}],
        });
    });
    let panicking = panicking.path().display().to_string();
    for (model, words) in [
        ("/no/such/directory", "/no/such/directory: no such directory or file (not_found)"),
        (broken.as_str(), "siren_config.json: task: found 7, expected a string (invalid_model)"),
        (&panicking, "expected one of the template's special_tokens (invalid_model)"),
        ("not a repository", "(invalid_argument)"),
        ("owner/never-fetched-by-anyone", "(offline)"),
    ] {
        for command in [&["score", "text"][..], &["score", "--jsonl"], &["bench"]] {
            let args = [command, &["--offline", "--model", model]].concat();
            let ran = run(&args, r#"{"id":1,"text":"x"}"#).expect(1);
            assert_eq!(ran.stdout, "", "{args:?}");
            assert_eq!(ran.stderr.lines().count(), 1, "{ran:?}");
            assert!(ran.stderr.starts_with("error: ") && ran.stderr.contains(words), "{ran:?}");
        }
        if model != panicking {
            let ran = run(&["inspect", "--offline", model], "").expect(1);
            assert!(ran.stdout.is_empty() && ran.stderr.lines().count() == 1, "{ran:?}");
        }
    }
    let ran = run(&["score", "--device", "cuda:99", "x"], "").expect(1);
    assert!(ran.stdout.is_empty() && ran.stderr.lines().count() == 1, "{ran:?}");
    assert!(ran.stderr.contains("(unsupported)"), "{ran:?}");
}

/// A copy of a guard with another tokenizer.
fn copy_with(source: &Path, target: &Path, edit: impl FnOnce(&mut Value)) {
    std::fs::create_dir_all(target.join("backbone")).unwrap();
    for file in [
        "siren_config.json",
        "siren.safetensors",
        "backbone/config.json",
        "backbone/model.safetensors",
        "backbone/tokenizer.json",
    ] {
        std::fs::copy(source.join(file), target.join(file)).unwrap();
    }
    let tokenizer = target.join("backbone/tokenizer.json");
    let mut value = serde_json::from_slice(&std::fs::read(&tokenizer).unwrap()).unwrap();
    edit(&mut value);
    std::fs::write(tokenizer, value.to_string()).unwrap();
}

/// As with `| head -1`: the reader goes away, and the command ends without a word.
#[test]
fn standard_output_that_is_closed_ends_the_command_quietly() {
    let lines = r#"{"id":1,"text":"some text"}
"#
    .repeat(20_000);
    for args in [
        &["score", "some text"][..],
        &["score", "--jsonl"],
        &["score", "--jsonl", "--strict"],
        &["inspect"],
        &["inspect", "--json"],
        &["bench", "--tokens", "8", "--repeat", "1"],
        &["bench", "--tokens", "8", "--repeat", "1", "--json"],
        &["completions", "bash"],
        &["completions", "zsh"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = siren(args);
        command.stdout(writer);
        let ran = finish(command, lines.as_bytes());
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{args:?}");
    }

    let mut child = siren(&["score", "--jsonl"]).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || drop(stdin.write_all(lines.as_bytes())));
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert!(first.contains("\"score\""));
    let mut stderr = String::new();
    child.stderr.take().unwrap().read_to_string(&mut stderr).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(stderr, "");
    writer.join().unwrap();
}

#[test]
fn colours_are_for_terminals_only() {
    let missing = ["score", "--model", "/no/such/directory", "x"];
    for args in [&["score", "some text"][..], &["inspect"], &["--help"], &missing] {
        let ran = run(args, "");
        assert!(!ran.stdout.contains('\x1b') && !ran.stderr.contains('\x1b'), "{ran:?}");
        // What is forced, NO_COLOR still takes away.
        let mut command = siren(args);
        command.env("CLICOLOR_FORCE", "1").env("NO_COLOR", "1");
        let ran = finish(command, b"");
        assert!(!ran.stdout.contains('\x1b') && !ran.stderr.contains('\x1b'), "{ran:?}");
    }
    let mut forced = siren(&["score", "some text"]);
    forced.env("CLICOLOR_FORCE", "1");
    assert!(finish(forced, b"").stdout.contains('\x1b'));
    // JSON has no colours, whoever forces them.
    for args in [&["score", "--jsonl"][..], &["inspect", "--json"]] {
        let mut forced = siren(args);
        forced.env("CLICOLOR_FORCE", "1");
        assert!(!finish(forced, br#"{"id":1,"text":"x"}"#).stdout.contains('\x1b'));
    }
}

/// A text goes to the terminal without the control characters that it holds.
#[test]
fn control_characters_of_a_text_are_not_printed() {
    let ran = run(&["score", "a\x1b[31mred\x07\nb\u{9b}c"], "").expect(0);
    assert!(!ran.stdout.trim_end().contains(char::is_control), "{ran:?}");
}

// The other commands

#[test]
fn inspect_shows_what_the_artifact_holds() {
    let model = demo().display().to_string();
    let ran = run(&["inspect", &model, "--json"], "").expect(0);
    let info = ran.objects().remove(0);
    let fields = [
        "model_dir",
        "base_model",
        "revision",
        "pooling_type",
        "selected_layers",
        "neurons",
        "head_dims",
        "head_parameters",
        "max_length",
        "default_threshold",
        "bytes",
        "backbone",
    ];
    assert_eq!(keys(&info), fields);
    let config: Value =
        serde_json::from_slice(&std::fs::read(demo().join("siren_config.json")).unwrap()).unwrap();
    assert_eq!(info["pooling_type"], config["siren_module"]["pooling_type"]);
    assert_eq!(info["neurons"], config["mlp"]["input_dim"]);
    assert_eq!(info["max_length"], config["inference"]["max_length"]);
    assert_eq!(info["head_dims"], json!([64, 2]));
    assert_eq!(info["head_parameters"], json!(55 * 64 + 64 + 64 * 2 + 2));
    let layers = info["selected_layers"].as_array().unwrap();
    let numbers: Vec<_> = layers.iter().map(|layer| layer["layer"].clone()).collect();
    assert_eq!(json!(numbers), config["siren_module"]["selected_layers"]);
    let backbone: Value =
        serde_json::from_slice(&std::fs::read(demo().join("backbone/config.json")).unwrap())
            .unwrap();
    for key in ["model_type", "hidden_size", "vocab_size"] {
        assert_eq!(info["backbone"][key], backbone[key], "{key}");
    }
    assert_eq!(info["backbone"]["layers"], backbone["num_hidden_layers"]);

    let ran = run(&["inspect", &model], "").expect(0);
    for words in ["residual_mean", "55 > 64 > 2", "512 tokens", "qwen3", "55 in 4 layers"] {
        assert!(ran.stdout.contains(words), "{words:?} in {}", ran.stdout);
    }
    assert_eq!(run(&["inspect"], "").expect(0).lines().len(), ran.lines().len(), "the demo guard");
}

#[test]
fn a_gguf_file_is_a_backbone() {
    let model = repository().join("tests/parity/gguf/qwen3-mixed").display().to_string();
    let backbone = format!("{model}/backbone.gguf");
    let args = ["--model", &model, "--backbone", &backbone];
    let score = |more: &[&str]| run(&[&["score"], &args[..], more].concat(), "");
    assert!(score(&["some text"]).expect(0).stdout.contains("some text"));
    let refused = score(&["--dtype", "bf16", "some text"]).expect(1);
    assert!(refused.stderr.contains("use dtype f32 (auto on a CPU)"), "{}", refused.stderr);
    score(&["--dtype", "int8", "some text"]).expect(0);

    let ran = run(&["inspect", &model, "--backbone", &backbone], "").expect(0);
    for words in [&backbone[..], "3 of 3 blocks run", "(qwen3)", "5 Q4_0", "F16", "Q5_1"] {
        assert!(ran.stdout.contains(words), "{words:?} in {}", ran.stdout);
    }
    let ran = run(&["inspect", &model, "--backbone", &backbone, "--json"], "").expect(0);
    let info = ran.objects().remove(0);
    assert_eq!(info["backbone"]["path"], json!(backbone));
    assert_eq!(info["backbone"]["bytes"], std::fs::metadata(&backbone).unwrap().len());
    assert_eq!(info["backbone"]["tensor_types"]["Q8_0"], json!(5));
}

#[test]
fn help_mentions_every_option() {
    let model = [
        "--model",
        "--backbone",
        "--device",
        "--dtype",
        "--threads",
        "--max-length",
        "--cache-dir",
        "--offline",
        "--no-mmap",
    ];
    let windows = ["--windows", "--window-tokens", "--stride"];
    let score = ["--threshold", "--timeout", "--jsonl", "--strict", "TEXT"];
    let watch =
        ["--threshold", "--prompt", "--hysteresis", "--stop-at-crossing", "--pass", "--json"];
    let bench = [
        "--tokens",
        "--batch",
        "--batch-tokens",
        "--stream",
        "--push",
        "--repeat",
        "--against",
        "--python",
        "--svg",
        "--json",
        "prefix cache is off",
    ];
    for (command, options) in [
        ("score", [&model[..], &score, &windows].concat()),
        ("watch", [&model[..], &watch, &windows].concat()),
        ("bench", [&model[..], &bench].concat()),
        ("inspect", vec!["--backbone", "--cache-dir", "--offline", "--json", "DIR|REPO[@REV]"]),
        ("pull", vec!["--to", "--backbone", "--cache-dir", "--offline", "REPO[@REV]|DIR"]),
    ] {
        let ran = run(&[command, "--help"], "").expect(0);
        for option in options {
            assert!(ran.stdout.contains(option), "{option} in siren {command} --help");
        }
        assert!(run(&["--help"], "").expect(0).stdout.contains(command));
    }
    assert!(run(&["--version"], "").expect(0).stdout.starts_with("siren "));
}

#[test]
fn completions_are_scripts() {
    let script = run(&["completions", "bash"], "").expect(0).stdout;
    assert!(script.contains("_siren()") && script.contains("--threshold"));
    let Ok(mut bash) = Command::new("bash").arg("-n").stdin(Stdio::piped()).spawn() else { return };
    bash.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(bash.wait().unwrap().success(), "bash does not read it");
    for shell in ["zsh", "fish", "powershell", "elvish"] {
        assert!(run(&["completions", shell], "").expect(0).stdout.contains("siren"));
    }
}
