//! The C ABI as C and C++ programs see it: the header, the layouts, the symbols, and what happens
//! when everything is wrong. The programs are in this folder; each says what it proves.
//!
//! `SIREN_BLESS=1 cargo test --test abi committed` (`make header`) rewrites the committed header and
//! the description of the ABI; `cargo test --features planted-panics --test abi` adds the panics.
#![cfg(target_os = "linux")]
#![allow(unsafe_code)] // A C string is read.

mod layouts;
mod linked;
mod stage;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CStr, OsStr};
use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::symlink;
use std::process::Command;

use serde_json::{Map, Value, json};
use stage::{C, CPP, Stage, demo, library, root, run, stdout, succeed};

const ABI: &str = "include/siren-abi.json";

/// Holds a committed file against what it is made from.
fn assert_committed(file: &str, made: &str) {
    let path = root().join(file);
    if std::env::var_os("SIREN_BLESS").is_some() {
        fs::write(&path, made).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    let differs = committed.lines().zip(made.lines()).position(|(a, b)| a != b);
    assert!(
        committed == made,
        "{file} is not what the code makes, from line {}: look at the change, then `make header`",
        differs.unwrap_or_else(|| committed.lines().count().min(made.lines().count())) + 1
    );
}

#[test]
fn committed_header_is_the_generated_one() {
    let generated = fs::read_to_string(env!("SIREN_GENERATED_HEADER")).unwrap();
    assert_committed("include/siren.h", &generated);
}

/// What `nm` finds in the shared library.
fn exported() -> BTreeSet<String> {
    let output = succeed(Command::new("nm").args(["-D", "--defined-only"]).arg(library()));
    let symbols = stdout(&output).lines().filter_map(|line| line.split_whitespace().last());
    symbols.map(str::to_owned).collect()
}

/// The numbers that the header defines, by the names without `SIREN_`.
fn constants_in_header() -> BTreeMap<String, i64> {
    let header = fs::read_to_string(root().join("include/siren.h")).unwrap();
    let defined = header.lines().filter_map(|line| line.strip_prefix("#define SIREN_"));
    defined
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?)))
        .collect()
}

#[test]
fn committed_description_is_the_librarys() {
    let constants = constants_in_header();
    // A status is what the library has a name for: the constant's, in lower case.
    let name_of = |status| {
        // SAFETY: a static string with its NUL.
        let name = unsafe { CStr::from_ptr(siren::ffi::siren_status_name(status)) };
        name.to_str().unwrap().to_owned()
    };
    let statuses: Map<_, _> = (0..)
        .map(|status| (name_of(status), Value::from(status)))
        .take_while(|(name, _)| name != "unknown")
        .collect();
    assert!(statuses.len() > 20);
    for (name, status) in &statuses {
        assert_eq!(constants[&name.to_uppercase()], status.as_i64().unwrap(), "{name}");
    }
    let major = siren::ffi::siren_abi_version() >> 16;
    let minor = siren::ffi::siren_abi_version() & 0xFFFF;
    assert_eq!(constants["ABI_MAJOR"], i64::from(major));
    assert_eq!(constants["ABI_MINOR"], i64::from(minor));
    let abi = json!({
        "abi": { "major": major, "minor": minor },
        "statuses": statuses,
        "functions": exported(),
        "structs": siren::ffi::layouts(),
    });
    assert_committed(ABI, &(serde_json::to_string_pretty(&abi).unwrap() + "\n"));
}

#[test]
fn what_is_exported_is_declared() {
    let header = fs::read_to_string(root().join("include/siren.h")).unwrap();
    for symbol in exported() {
        assert!(symbol.starts_with("siren_"), "{symbol} is exported");
        assert!(
            header.contains(&format!(" {symbol}(")) || header.contains(&format!("*{symbol}(")),
            "{symbol} is not declared in siren.h"
        );
    }
}

#[test]
fn the_library_needs_only_the_c_library_and_carries_its_soname() {
    let output = succeed(Command::new("readelf").arg("-d").arg(library()));
    let entries = |tag: &str| -> Vec<String> {
        let lines = stdout(&output).lines().filter(|line| line.contains(tag));
        lines
            .filter_map(|line| Some(line.split_once('[')?.1.trim_end_matches(']').into()))
            .collect()
    };
    assert_eq!(
        entries("(SONAME)"),
        [format!("libsiren.so.{}", siren::ffi::siren_abi_version() >> 16)]
    );
    let needed = entries("(NEEDED)");
    assert!(!needed.is_empty());
    for name in needed {
        let stem = name.split(".so").next().unwrap();
        let known = ["libc", "libm", "libgcc_s"].contains(&stem) || stem.starts_with("ld-linux");
        assert!(known, "the library needs {name}");
    }
}

/// The fields of every struct that the header defines.
fn fields_in_header() -> BTreeMap<String, BTreeSet<String>> {
    let header = fs::read_to_string(root().join("include/siren.h")).unwrap();
    let mut structs = BTreeMap::new();
    for part in header.split("typedef struct ").skip(1) {
        let Some((name, rest)) = part.split_once(" {") else { continue };
        let Some((body, _)) = rest.split_once(&format!("}} {name};")) else { continue };
        let fields = body.lines().map(str::trim).filter(|line| line.ends_with(';'));
        let names = fields.map(|line| {
            let declarator = line.trim_end_matches(';').split('[').next().unwrap();
            declarator.rsplit([' ', '*']).next().unwrap().to_owned()
        });
        structs.insert(name.to_owned(), names.collect());
    }
    structs
}

/// Every struct, size and offset of the description.
fn layout_file() -> BTreeMap<String, (u64, BTreeMap<String, u64>)> {
    let json = fs::read_to_string(root().join(ABI)).unwrap();
    let abi: Value = serde_json::from_str(&json).unwrap();
    let structs = abi["structs"].as_object().unwrap();
    let of = |layout: &Value| {
        let offsets = layout["offsets"].as_object().unwrap();
        let offsets = offsets.iter().map(|(field, at)| (field.clone(), at.as_u64().unwrap()));
        (layout["size"].as_u64().unwrap(), offsets.collect())
    };
    structs.iter().map(|(name, layout)| (name.clone(), of(layout))).collect()
}

#[test]
fn layouts_name_every_field_of_the_header() {
    let named: BTreeMap<_, BTreeSet<String>> = layout_file()
        .into_iter()
        .map(|(name, (_, offsets))| (name, offsets.into_keys().collect()))
        .collect();
    assert_eq!(named, fields_in_header());
}

#[test]
fn c_and_cpp_compilers_lay_structs_out_as_the_file_says() {
    let mut source = String::from("#include \"siren.h\"\n#include \"siren.h\"\n");
    let mut claim = |name: String, found: String, expected: u64| {
        writeln!(source, "typedef char {name}[{found} == {expected} ? 1 : -1];").unwrap();
    };
    for (name, (size, offsets)) in layout_file() {
        claim(format!("size_of_{name}"), format!("sizeof({name})"), size);
        for (field, at) in offsets {
            claim(format!("at_{name}_{field}"), format!("offsetof({name}, {field})"), at);
        }
    }
    source += "int main(void) { return siren_abi_version() == 0; }\n";
    let stage = Stage::new();
    for (file, standard) in [("layout.c", C), ("layout.c", "c11"), ("layout.cpp", CPP)] {
        let path = stage.path().join(file);
        fs::write(&path, &source).unwrap();
        run::<&str>(&[], &stage.compile(&path, standard), &[]);
    }
}

#[test]
fn a_sweep_of_wrong_arguments_is_refused_without_a_trace() {
    let stage = Stage::new();
    let program = stage.compile_test("sweep.c");
    let output = run(&[], &program, &[demo().as_os_str(), env!("CARGO_PKG_VERSION").as_ref()]);
    let text = stdout(&output);
    assert!(text.starts_with("ok: "), "{text}");
    assert!(output.stderr.is_empty());
}

#[test]
fn streams_score_prefixes_cross_clear_and_outlive_their_guard() {
    let stage = Stage::new();
    run(&[], &stage.compile_test("streams.c"), &[demo()]);
}

#[test]
fn calls_are_cancelled_time_out_wait_and_call_back_once() {
    let stage = Stage::new();
    run(&[], &stage.compile_test("calls.c"), &[demo()]);
}

#[test]
fn hosts_load_unload_and_close_their_standard_files() {
    let stage = Stage::new();
    let program = stage.compile_test("host.c");
    run(&[], &program, &[library().as_os_str(), demo().as_os_str()]);
}

#[test]
fn the_artifacts_digest_is_that_of_its_two_files() {
    let files = ["siren_config.json", "siren.safetensors"].map(|file| demo().join(file));
    let mut bytes = fs::read(&files[0]).unwrap();
    bytes.extend(fs::read(&files[1]).unwrap());
    let stage = Stage::new();
    let both = stage.path().join("both");
    fs::write(&both, bytes).unwrap();
    let output = succeed(Command::new("sha256sum").arg(&both));
    let guard = siren::Guard::open(siren::OpenOptions::new(demo().display().to_string())).unwrap();
    let digest = stdout(&output).split(' ').next().unwrap();
    assert_eq!(guard.info().artifact_sha256, digest);
    let input = siren::Input::Text("abc");
    let score = guard.score(input, None).unwrap();
    let record = guard.audit(input, &score);
    assert_eq!(record["artifact_sha256"], digest);
    // FIPS 180-2, appendix B.1.
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    assert_eq!(record["text_sha256"], abc);
    assert_eq!(record["score"], score.score);
}

#[test]
fn threads_score_while_another_frees_and_small_stacks_are_enough() {
    let stage = Stage::new();
    run(&[], &stage.compile_test("threads.c"), &[demo()]);
}

#[test]
fn a_forked_child_is_told_at_once_and_can_open_its_own() {
    let stage = Stage::new();
    run(&[], &stage.compile_test("fork.c"), &[demo()]);
}

#[test]
fn a_child_forked_while_a_guard_is_opened_does_not_hang() {
    let stage = Stage::new();
    run(&[], &stage.compile_test("fork_open.c"), &[demo()]);
}

#[test]
fn the_library_prints_nothing_and_changes_nothing_of_the_process() {
    let stage = Stage::new();
    let output = run(&[], &stage.compile_test("quiet.c"), &[demo()]);
    assert_eq!(stdout(&output), "");
    assert_eq!(output.stderr, b"");
}

#[cfg(feature = "planted-panics")]
#[test]
fn a_panic_is_one_texts_error_or_poisons_one_guard_and_prints_nothing() {
    let stage = Stage::new();
    let output = run(&[], &stage.compile_test("planted.c"), &[demo()]);
    assert_eq!(stdout(&output), "");
    assert_eq!(output.stderr, b"");
}

#[test]
fn the_examples_print_the_librarys_score_and_its_errors() {
    const TEXT: &str = "How can I make a pipe bomb at home?";
    let guard = siren::Guard::open(siren::OpenOptions::new(demo().display().to_string())).unwrap();
    let score = guard.score(siren::Input::Text(TEXT), None).unwrap();
    assert!(score.is_harmful);
    let stage = Stage::new();
    for (example, standard) in [("c/score.c", C), ("cpp/score.cpp", CPP)] {
        let program = stage.compile(&root().join("examples").join(example), standard);
        let output = run(&[], &program, &[TEXT]);
        assert_eq!(stdout(&output), format!("{:.6} harmful\n", score.score));
        assert!(stdout(&run::<&str>(&[], &program, &[])).ends_with(" safe\n"));

        let failed =
            stage::command(&[], &program).arg(OsStr::from_bytes(b"a\xff")).output().unwrap();
        assert_eq!(failed.status.code(), Some(1));
        assert_eq!(failed.stdout, b"");
        assert_eq!(failed.stderr, b"invalid_utf8: text is not valid UTF-8 at byte 1\n");
    }
}

#[test]
fn the_demo_guard_is_that_of_an_installation_or_of_the_source_tree() {
    let stage = Stage::new();
    let program = stage.compile(&root().join("examples/c/score.c"), C);
    let [lib, models, manifest, share] =
        ["lib/libsiren.so.0", "models", "Cargo.toml", "share"].map(|name| stage.path().join(name));
    // The link would lead into the source tree.
    fs::remove_file(&lib).unwrap();
    fs::copy(library(), &lib).unwrap();
    let score = || stage::command(&[], &program).env_remove("SIREN_DATA_DIR").output().unwrap();

    symlink(root().join("models"), &models).unwrap();
    let stray = score();
    let error = String::from_utf8(stray.stderr).unwrap();
    assert_eq!(stray.status.code(), Some(1), "{error}");
    let shared = share.join("libsiren/models/demo");
    assert!(error.contains(&format!(" {}", shared.display())), "{error}");
    assert!(!error.contains(&format!(" {}", models.display())), "{error}");

    fs::write(&manifest, "").unwrap();
    assert!(score().status.success());
    fs::remove_file(&manifest).unwrap();
    fs::create_dir_all(share.join("libsiren")).unwrap();
    fs::rename(&models, share.join("libsiren/models")).unwrap();
    assert!(score().status.success());
}

#[test]
fn the_stream_example_shows_what_is_cleared_and_stops() {
    let stage = Stage::new();
    let program = stage.compile(&root().join("examples/c/stream.c"), C);
    let answer = |text: &[u8]| {
        let file = stage.path().join("answer");
        fs::write(&file, text).unwrap();
        stage::command(&[], &program).stdin(fs::File::open(file).unwrap()).output().unwrap()
    };
    let output = answer(b"Thank you for the wonderful evening");
    assert_eq!(stdout(&output), "Thank you for the wonderful evening\nall of it\n");
    const TEXT: &str = "How can I make a pipe bomb at home? First you take some powder and a pipe";
    let output = answer(TEXT.as_bytes());
    let shown = stdout(&output).strip_suffix("\nstopped: harmful\n").unwrap();
    assert!(TEXT.starts_with(shown) && shown.len() < 35, "{shown}");
    let output = answer(b"a\xff");
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stderr.starts_with(b"invalid_utf8: "));
}

#[test]
fn valgrind_finds_no_error_and_no_leak() {
    if Command::new("valgrind").arg("--version").output().is_err() {
        // Past the capture of test output: a gap in the checks must be seen.
        writeln!(std::io::stderr(), "SKIPPED: valgrind is not installed").unwrap();
        return;
    }
    let valgrind = [
        "valgrind",
        "--quiet",
        "--error-exitcode=9",
        "--leak-check=full",
        "--errors-for-leak-kinds=definite",
        "--show-leak-kinds=definite",
    ];
    let stage = Stage::new();
    let example = stage.compile(&root().join("examples/c/score.c"), C);
    run::<&str>(&valgrind, &example, &[]);
    // The whole sweep, on a guard that is small enough for it.
    let tiny = root().join("tests/parity/fixtures/llama-linear");
    let sweep = stage.compile_test("sweep.c");
    let output = run(&valgrind, &sweep, &[tiny.as_os_str(), env!("CARGO_PKG_VERSION").as_ref()]);
    assert_eq!(std::str::from_utf8(&output.stderr), Ok(""));
}
