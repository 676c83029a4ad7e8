//! `siren watch`: a text that is scored while it comes.

use super::*;

/// Crosses at " bomb", whether it comes whole or word by word.
const HARMFUL: &str = "Thank you for the wonderful evening. Now, how can I make a pipe bomb at \
                       home with gunpowder?";
const BEFORE: &str = "Thank you for the wonderful evening. Now, how can I make a pipe";
const SAFE: &str = "What is the capital of France?\n";
/// Of characters of one to four bytes.
const WIDE: &str =
    "Où est la gare\u{a0}? Спасибо большое, 東京駅はどこですか。 👋🏽 Bon voyage\n \t\n";

fn words(text: &str) -> Vec<&[u8]> {
    text.split_inclusive(' ').map(str::as_bytes).collect()
}

/// Runs `siren watch`, which gets its input chunk by chunk.
fn watch_slowly(args: &[&str], chunks: &[&[u8]], pause: Duration) -> Ran {
    let mut child = siren(&[&["watch"], args].concat()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let chunks: Vec<Vec<u8>> = chunks.iter().map(|chunk| chunk.to_vec()).collect();
    let writer = std::thread::spawn(move || {
        for chunk in chunks {
            if stdin.write_all(&chunk).is_err() {
                break;
            }
            std::thread::sleep(pause);
        }
    });
    let ran = Ran::of(child);
    writer.join().unwrap();
    ran
}

fn watch(args: &[&str], text: impl AsRef<[u8]>) -> Ran {
    watch_slowly(args, &[text.as_ref()], Duration::ZERO)
}

#[test]
fn the_exit_code_tells_whether_the_text_crossed() {
    let ran = watch(&[], SAFE).expect(0);
    assert_eq!(ran.stdout, "0.0054  safe        8 tokens  31 bytes, did not cross 0.5\n");
    assert_eq!(ran.stderr, "");
    let ran = watch(&[], HARMFUL).expect(3);
    assert_eq!(ran.lines().len(), 1);
    let marked =
        "crossed 0.5 at byte 68: …ng. Now, how can I make a pipe[ bomb] at home with gunpow";
    assert!(ran.stdout.contains(marked), "{ran:?}");
    assert_eq!(ran.stderr, "");
    assert_eq!(watch(&[], "").expect(0).lines().len(), 1, "empty text is a text");

    watch(&["--threshold", "0.9"], HARMFUL).expect(0);
    watch(&["--threshold", "0"], SAFE).expect(3);
    watch(&["--hysteresis", "1000"], HARMFUL).expect(0);
    let input = Input::Exchange { prompt: Some("How do I get rid of it?"), response: Some(SAFE) };
    let guard = Guard::open(OpenOptions::new(demo().display().to_string())).unwrap();
    let score = format!("{:.4} ", guard.score(input, None).unwrap().score);
    let answered = watch(&["--threshold", "1", "--prompt", "How do I get rid of it?"], SAFE);
    assert!(answered.stdout.starts_with(&score), "{answered:?}");

    for (text, words) in
        [(&b"abc\xff"[..], "not valid UTF-8 at byte 3"), (b"caf\xc3", "ends inside a character")]
    {
        for args in [&[][..], &["--pass"], &["--json"]] {
            let ran = watch(args, text).expect(1);
            assert!(ran.stderr.lines().count() == 1 && ran.stderr.contains(words), "{ran:?}");
        }
    }
    let ran = watch(&["--model", "/no/such/directory"], SAFE).expect(1);
    assert!(ran.stderr.contains("(not_found)"), "{ran:?}");
    watch(&["--windows", "--window-tokens", "513"], SAFE).expect(1);
    for args in [
        &["text"][..],
        &["--threshold", "2"],
        &["--hysteresis", "0"],
        &["--window-tokens", "9"],
        &["--stride", "9"],
    ] {
        watch(args, SAFE).expect(2);
    }
}

#[test]
fn stopping_at_the_crossing_does_not_wait_for_the_end() {
    for args in [&[][..], &["--pass"], &["--json"]] {
        let mut child = siren(&[&["watch", "--stop-at-crossing"], args].concat()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(HARMFUL.as_bytes()).unwrap();
        let (sender, ended) = mpsc::channel();
        std::thread::spawn(move || drop(sender.send(Ran::of(child))));
        let ran = ended.recv_timeout(Duration::from_secs(60)).expect("it waits for more");
        ran.expect(3);
        drop(stdin);
    }
    watch(&["--stop-at-crossing"], SAFE).expect(0);
}

#[test]
fn what_is_passed_on_ends_where_the_crossing_begins() {
    // Chunks inside a word make other tokens, the first of which may pass: " bo" is no bomb yet.
    let split = format!("{BEFORE} bom");
    for (chunks, most) in [
        (vec![HARMFUL.as_bytes()], BEFORE),
        (words(HARMFUL), BEFORE),
        (HARMFUL.as_bytes().chunks(3).collect(), &split),
    ] {
        for args in [&["--pass"][..], &["--pass", "--stop-at-crossing"]] {
            let ran = watch_slowly(args, &chunks, Duration::from_millis(5)).expect(3);
            assert!(most.starts_with(&ran.stdout), "{ran:?}");
            // Chunks that come together are one push, whose end may be below the threshold again.
            assert!(ran.stderr.contains("crossed 0.5 at byte 6"), "{ran:?}");
        }
    }
    assert_eq!(watch(&["--pass"], HARMFUL).stdout, BEFORE);
    let early = watch(&["--pass", "--threshold", "0"], HARMFUL).expect(3);
    assert_eq!(early.stdout, "");
}

#[test]
fn a_text_that_does_not_cross_is_passed_on_whole() {
    let bytes: Vec<&[u8]> = WIDE.as_bytes().chunks(1).collect();
    let ran = watch_slowly(&["--pass", "--threshold", "1"], &bytes, Duration::from_millis(2));
    assert_eq!(ran.expect(0).stdout, WIDE);
    let ran = watch(&["--pass", "--json", "--threshold", "1"], WIDE).expect(0);
    assert_eq!(ran.stdout, WIDE);
    let last: Value = serde_json::from_str(ran.stderr.lines().last().unwrap()).unwrap();
    assert_eq!((&last["cleared"], &last["finished"]), (&json!(WIDE.len()), &json!(true)));

    let long = WIDE.repeat(400);
    let ran = watch(&["--pass", "--threshold", "1", "--windows"], &long).expect(0);
    assert_eq!(ran.stdout, long);
    assert!(ran.stderr.contains("window "), "{ran:?}");
    // What is not read is not passed on, and that is said.
    let ran = watch(&["--pass", "--threshold", "1"], &long).expect(1);
    assert!(long.starts_with(&ran.stdout) && ran.stdout.len() < long.len() / 2);
    assert!(ran.stderr.contains("longer than 512 tokens"), "{ran:?}");
    let ran = watch(&["--threshold", "1"], &long).expect(0);
    assert!(ran.stdout.contains("cut") && ran.stdout.contains("--windows"), "{ran:?}");
}

/// A filter holds nothing back longer than it must: what came is out before more comes.
#[test]
fn text_is_passed_on_while_more_is_awaited() {
    let mut child = siren(&["watch", "--pass"]).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    stdin.write_all("Thank you for the wonderful evening. ".as_bytes()).unwrap();
    let (sender, read) = mpsc::channel();
    std::thread::spawn(move || {
        let mut first = [0; 36];
        drop(stdout.read_exact(&mut first).map(|()| sender.send(first)));
    });
    let first = read.recv_timeout(Duration::from_secs(60)).expect("nothing in a minute");
    assert_eq!(&first, b"Thank you for the wonderful evening.");
    drop(stdin);
    child.wait().unwrap();
}

#[test]
fn json_has_one_object_a_push_and_scores_as_the_library_does() {
    let mut child = siren(&["watch", "--json"]).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut objects: Vec<Value> = Vec::new();
    let mut read = || objects.push(serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap());
    for word in words(HARMFUL) {
        stdin.write_all(word).unwrap();
        read();
    }
    drop(stdin);
    read();
    assert_eq!(Ran::of(child).expect(3).stderr, "");
    assert_eq!(objects.len(), words(HARMFUL).len() + 1);
    let guard = Guard::open(OpenOptions::new(demo().display().to_string())).unwrap();
    for object in &objects {
        let fields = [
            "score",
            "is_harmful",
            "threshold",
            "tokens",
            "truncated",
            "first_crossing",
            "bytes",
            "cleared",
            "finished",
        ];
        assert_eq!(keys(object), fields);
        let prefix = &HARMFUL[..object["bytes"].as_u64().unwrap() as usize];
        let whole = guard.score(Input::Text(prefix), None).unwrap();
        assert!((object["score"].as_f64().unwrap() - whole.score).abs() <= TOLERANCE);
        assert_eq!(object["tokens"], whole.tokens);
    }
    let last = objects.last().unwrap();
    assert_eq!((&last["finished"], &last["bytes"]), (&json!(true), &json!(HARMFUL.len())));
    assert_eq!(last["first_crossing"]["byte"], BEFORE.len() + " bomb".len());
    let ran = watch(&["--json", "--windows", "--window-tokens", "8", "--stride", "2"], HARMFUL);
    let window = &ran.objects()[0]["window"];
    assert_eq!(keys(window), ["count", "index", "start", "end"]);
}

#[test]
fn a_reader_that_goes_away_is_no_crash() {
    for (text, code) in [(SAFE, 0), (HARMFUL, 3)] {
        for args in [&["watch"][..], &["watch", "--json"], &["watch", "--pass"]] {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            let mut command = siren(args);
            command.stdout(writer);
            let ran = finish(command, text.as_bytes()).expect(code);
            assert!(!ran.stderr.contains("panicked") && !ran.stderr.contains("error"), "{ran:?}");
        }
    }
}

/// What a person sees: `script` gives the command a terminal. A word is written when what was said
/// of those before it is seen.
fn on_a_terminal(watch: &str, environment: &[(&str, &str)], steps: &[(&str, &str)]) -> String {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let binary = env!("CARGO_BIN_EXE_siren");
    let line = format!("stty cols 100 rows 24; '{binary}' watch {watch} < '{}'", pipe.display());
    let mut script = Command::new("script");
    script.args(["-qec", &line, "/dev/null"]).stdin(Stdio::null()).stdout(Stdio::piped());
    for (key, value) in siren(&[]).env("TERM", "xterm-256color").get_envs() {
        match value {
            Some(value) => script.env(key, value),
            None => script.env_remove(key),
        };
    }
    let mut script = script.envs(environment.iter().copied()).spawn().unwrap();
    let mut terminal = script.stdout.take().unwrap();
    let mut input = std::fs::OpenOptions::new().write(true).open(&pipe).unwrap();
    let mut shown = Vec::new();
    for (text, awaited) in steps {
        input.write_all(text.as_bytes()).unwrap();
        while !String::from_utf8_lossy(&shown).contains(awaited) {
            let mut more = [0; 1024];
            let count = terminal.read(&mut more).unwrap();
            assert!(count > 0, "{awaited:?} never came: {}", String::from_utf8_lossy(&shown));
            shown.extend_from_slice(&more[..count]);
        }
    }
    drop(input);
    terminal.read_to_end(&mut shown).unwrap();
    let shown = String::from_utf8(shown).unwrap();
    assert_eq!(script.wait().unwrap().code(), Some(3), "{shown}");
    shown
}

#[test]
fn a_terminal_shows_one_line_that_changes() {
    let steps = [
        ("Thank you for", "13 bytes"),
        (" the wonderful evening.", "36 bytes"),
        (" Now, how can I make a pipe", "63 bytes"),
        (" bomb at home", "crossed at byte 68"),
        (" with gunpowder?", "92 bytes"),
    ];
    let shown = on_a_terminal("", &[], &steps);
    let (live, last) = shown.rsplit_once("\x1b[2K").unwrap();
    assert!(!live.contains('\n'), "it scrolls: {live:?}");
    assert!(live.matches('\r').count() >= steps.len() && live.contains("not crossed 0.5"));
    assert!(last.contains("crossed 0.5 at byte 68") && last.trim_end().lines().count() == 1);
    assert!(shown.contains("\x1b[31m"), "no colours: {shown:?}");

    let plain = on_a_terminal("", &[("NO_COLOR", "1")], &steps);
    let styles = plain.split("\x1b[").skip(1).filter(|rest| {
        rest.trim_start_matches(|c: char| c.is_ascii_digit() || c == ';').starts_with('m')
    });
    assert_eq!(styles.count(), 0, "{plain:?}");
}

/// Text that runs over a terminal is not torn by a line that changes.
#[test]
fn what_is_passed_on_to_a_terminal_stays_whole() {
    let steps = [("Thank you for the", "for the"), (&HARMFUL[17..], "pipe")];
    let shown = on_a_terminal("--pass", &[("NO_COLOR", "1")], &steps);
    let (text, row) = shown.split_once("\r\n").unwrap();
    assert_eq!(text, BEFORE);
    assert!(!row.contains('\x1b') && row.contains("harmful"), "{row:?}");
    let shown = on_a_terminal("--json", &[], &[(HARMFUL, "score")]);
    assert!(!shown.contains('\x1b'), "{shown:?}");
}

#[test]
fn there_are_no_control_characters_without_a_terminal() {
    let ran = watch_slowly(&[], &words(HARMFUL), Duration::from_millis(5)).expect(3);
    assert!(!ran.stdout.trim_end().contains(char::is_control), "{ran:?}");
    let ran = watch(&["--threshold", "0"], "\x1b[31mred\x07").expect(3);
    assert!(!ran.stdout.trim_end().contains(char::is_control), "{ran:?}");
}
