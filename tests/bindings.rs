//! What the bindings in `bindings/` say of themselves, against the library's description.
//!
//! Every language has a `coverage.json`: for each function of the ABI the name in that language that
//! stands for it, or the reason why there is none, and for each status its name.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn json(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The folders of the languages.
fn languages() -> Vec<PathBuf> {
    let mut folders: Vec<_> = fs::read_dir(root().join("bindings"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_dir() && !path.ends_with("vectors"))
        .collect();
    folders.sort();
    folders
}

/// What a user of the binding gets: its sources without tests, examples and what was installed.
fn source(folder: &Path) -> String {
    const CODE: [&str; 12] =
        ["go", "cs", "js", "cjs", "mjs", "ts", "py", "hpp", "h", "c", "rs", "cpp"];
    const LEFT_OUT: [&str; 8] =
        ["test", "tests", "example", "examples", "node_modules", "bin", "obj", "build"];
    let mut text = String::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.starts_with('.') || LEFT_OUT.contains(&name) || name.contains("_test.") {
            continue;
        }
        if path.is_dir() {
            text += &source(&path);
        } else if path.extension().is_some_and(|e| CODE.contains(&e.to_str().unwrap())) {
            text += &fs::read_to_string(&path).unwrap();
            text += "\n";
        }
    }
    text
}

/// All names in a source, in its comments too.
fn words(source: &str) -> BTreeSet<&str> {
    source.split(|c: char| !c.is_alphanumeric() && c != '_').collect()
}

#[test]
fn every_function_and_status_is_bound_or_left_out_for_a_reason() {
    let abi = json(&root().join("include/siren-abi.json"));
    let functions: BTreeSet<&str> =
        abi["functions"].as_array().unwrap().iter().map(|name| name.as_str().unwrap()).collect();
    let statuses: BTreeSet<&str> =
        abi["statuses"].as_object().unwrap().keys().map(String::as_str).collect();
    assert!(!languages().is_empty());
    let mut wrong = Vec::new();
    for folder in languages() {
        let language = folder.file_name().unwrap().to_str().unwrap();
        let coverage = json(&folder.join("coverage.json"));
        let source = source(&folder);
        let words = words(&source);
        for (part, expected) in [("functions", &functions), ("statuses", &statuses)] {
            let stated = coverage[part].as_object().unwrap();
            for name in expected.iter().filter(|name| !stated.contains_key(**name)) {
                wrong.push(format!("{language}: {name} has no binding and no reason"));
            }
            for name in stated.keys().filter(|name| !expected.contains(name.as_str())) {
                wrong.push(format!("{language}: {name} is not in the ABI"));
            }
            for (name, bound) in stated {
                let called = words.contains(name.as_str());
                match (bound.as_str(), bound["reason"].as_str()) {
                    (Some(symbol), _) => {
                        let last = symbol.rsplit(['.', ':', ' ']).next().unwrap();
                        if !words.contains(last) {
                            wrong.push(format!(
                                "{language}: {name} is bound to {symbol}, which the source lacks"
                            ));
                        }
                        if part == "functions" && !called {
                            wrong.push(format!(
                                "{language}: {name} is bound to {symbol}, and never called"
                            ));
                        }
                    }
                    (None, Some(reason)) if part == "functions" && reason.len() >= 20 => {
                        if called {
                            wrong.push(format!(
                                "{language}: {name} is left out, and named in the source"
                            ));
                        }
                    }
                    _ => wrong.push(format!("{language}: {name} has neither a name nor a reason")),
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_readmes_table_has_a_column_for_every_language() {
    let table = fs::read_to_string(root().join("bindings/README.md")).unwrap();
    for folder in languages() {
        let language = folder.file_name().unwrap().to_str().unwrap();
        assert!(folder.join("README.md").is_file(), "{language} has no README.md");
        assert!(
            table.contains(&format!("]({language}/README.md)")),
            "{language} is not in the table"
        );
    }
}
