//! Damaged files: each kind is an error that names the file, the field, what was found and what
//! was expected. Nothing panics, prints, or reserves memory because a file claims a size.

use serde_json::{Value, json};
use siren::{Input, Status};

use crate::guard_files::{
    BACKBONE, BACKBONE_CONFIG, CONFIG, GuardFiles, HEAD, INDEX, RawTensor, TOKENIZER,
    TOKENIZER_CONFIG, entry, safetensors_file,
};
use crate::own_process;

/// Every file small and whole: Qwen3, f32, three blocks of which all are read.
const WHOLE: &str = "qwen3-residual-last";
/// Two shards and more; layers 0 and 2 of 4 are read.
const SHARDED: &str = "qwen3-residual-inner";
/// Layer 0 of 2 is read; there is an `lm_head`.
const SHALLOW: &str = "llama-short";

/// Opens and expects `status` and a message that names `file`, in the one form that model errors
/// have, and says `words`.
#[track_caller]
fn refused(files: &GuardFiles, status: Status, file: &str, words: &str) {
    let error = match files.open() {
        Ok(_) => panic!("opened, expected {file}: {words}"),
        Err(error) => error,
    };
    let message = error.message();
    assert_eq!(error.status(), status, "{message}");
    assert!(message.contains(&files.path(file).display().to_string()), "{file} in {message}");
    assert!(message.contains(words), "{words:?} in {message}");
    assert!(message.len() < 600, "{} bytes: {message}", message.len());
    if status == Status::InvalidModel {
        assert!(message.contains(": found ") && message.contains(", expected "), "{message}");
    }
}

/// A fixture with one file changed is refused as an invalid model.
#[track_caller]
fn invalid(fixture: &str, file: &str, words: &str, damage: impl FnOnce(&GuardFiles)) {
    let files = GuardFiles::fixture(fixture);
    damage(&files);
    refused(&files, Status::InvalidModel, file, words);
}

/// A JSON value at a pointer (`None`: taken out), and what the error says.
type Setting<'a> = (&'a str, Option<&'a str>, &'a str);

fn refuses_settings(fixture: &str, file: &str, settings: &[Setting<'_>]) {
    for (pointer, value, words) in settings {
        let value = value.map(|text| serde_json::from_str(text).unwrap());
        invalid(fixture, file, words, |files| files.set(file, pointer, value));
    }
}

#[test]
fn the_whole_fixtures_open() {
    for fixture in [WHOLE, SHARDED, SHALLOW] {
        GuardFiles::fixture(fixture).open().unwrap();
    }
}

// siren_config.json

#[rustfmt::skip]
const ARTIFACT: &[Setting<'static>] = &[
    ("/task", Some("null"), "task: found null, expected a string"),
    ("/task", Some(r#""classify""#), r#"task: found "classify", expected "content" or "trajectory""#),
    ("/base_model", None, "base_model: found nothing, expected the field to be present"),
    ("/base_model", Some(r#""x/y""#), r#"base_model: found "x/y", expected an object"#),
    ("/base_model/model_id", None, "base_model.model_id: found nothing"),
    ("/base_model/model_id", Some(r#""""#), r#"base_model.model_id: found "", expected a repository or a directory"#),
    ("/base_model/model_id", Some("7"), "base_model.model_id: found 7, expected a string"),
    ("/base_model/revision", Some("7"), "base_model.revision: found 7, expected a string"),
    ("/siren_module", None, "siren_module: found nothing"),
    ("/siren_module/pooling_type", None, "siren_module.pooling_type: found nothing"),
    ("/siren_module/pooling_type", Some(r#""max""#), r#"siren_module.pooling_type: found "max", expected "residual_mean" or "mlp_mean""#),
    ("/siren_module/pooling_type", Some("null"), "siren_module.pooling_type: found null"),
    ("/siren_module/selected_layers", None, "siren_module.selected_layers: found nothing"),
    ("/siren_module/selected_layers", Some("[]"), "siren_module.selected_layers: found an array of 0 items, expected at least one layer"),
    ("/siren_module/selected_layers", Some("{}"), "siren_module.selected_layers: found an object of 0 members, expected an array"),
    ("/siren_module/selected_layers", Some("[0,1,2,1]"), "siren_module.selected_layers[3]: found 1 again, expected every layer once"),
    ("/siren_module/selected_layers/1", Some("-1"), "siren_module.selected_layers[1]: found -1, expected a whole number"),
    ("/siren_module/selected_layers/1", Some("1.0"), "siren_module.selected_layers[1]: found 1.0, expected a whole number"),
    ("/siren_module/selected_layers/1", Some(r#""1""#), r#"siren_module.selected_layers[1]: found "1", expected a whole number"#),
    ("/siren_module/selected_layers/1", Some("4294967297"), "siren_module.selected_layers[1]: found 4294967297"),
    ("/siren_module/selected_layers/2", Some("5"), r#"siren_module.selected_neurons_dict: found nothing for layer 5, expected the key "layer5_residual_mean""#),
    ("/siren_module/layer_weights", None, "siren_module.layer_weights: found nothing"),
    ("/siren_module/layer_weights", Some("null"), "siren_module.layer_weights: found null, expected an object"),
    ("/siren_module/layer_weights/07", Some("1"), r#"siren_module.layer_weights: found key "07", expected a layer's number"#),
    ("/siren_module/layer_weights/+1", Some("1"), r#"siren_module.layer_weights: found key "+1""#),
    ("/siren_module/layer_weights/x", Some("1"), r#"siren_module.layer_weights: found key "x""#),
    ("/siren_module/layer_weights/0", Some("null"), "siren_module.layer_weights.0: found null, expected a number"),
    ("/siren_module/layer_weights/0", Some(r#""NaN""#), r#"siren_module.layer_weights.0: found "NaN", expected a number"#),
    ("/siren_module/layer_weights/0", Some("1e39"), "siren_module.layer_weights.0: found 1e+39, expected a number"),
    ("/siren_module/selected_neurons_dict", None, "siren_module.selected_neurons_dict: found nothing"),
    ("/siren_module/selected_neurons_dict/layer1_residual_mean", None, r#"siren_module.selected_neurons_dict: found nothing for layer 1, expected the key "layer1_residual_mean""#),
    ("/siren_module/selected_neurons_dict/layer3_mlp_mean", Some("[0]"), r#"siren_module.selected_neurons_dict: found key "layer3_mlp_mean", expected "layer{N}_residual_mean""#),
    ("/siren_module/selected_neurons_dict/layer01_residual_mean", Some("[0]"), r#"siren_module.selected_neurons_dict: found key "layer01_residual_mean""#),
    ("/siren_module/selected_neurons_dict/3", Some("[0]"), r#"siren_module.selected_neurons_dict: found key "3""#),
    ("/siren_module/selected_neurons_dict/layer1_residual_mean", Some("7"), "siren_module.selected_neurons_dict.layer1_residual_mean: found 7, expected an array"),
    ("/siren_module/selected_neurons_dict/layer1_residual_mean/2", Some("-8"), "siren_module.selected_neurons_dict.layer1_residual_mean[2]: found -8, expected a whole number"),
    ("/siren_module/selected_neurons_dict/layer1_residual_mean/2", Some("8.5"), "siren_module.selected_neurons_dict.layer1_residual_mean[2]: found 8.5, expected a whole number"),
    ("/siren_module/selected_neurons_dict/layer1_residual_mean/2", Some("32"), "siren_module.selected_neurons_dict.layer1_residual_mean: found neuron 32, expected less than 32, the backbone's hidden_size"),
    ("/siren_module/selected_neurons_dict/layer1_residual_mean/2", Some("18446744073709551615"), "siren_module.selected_neurons_dict.layer1_residual_mean[2]: found 18446744073709551615"),
    ("/mlp", None, "mlp: found nothing"),
    ("/mlp/input_dim", None, "mlp.input_dim: found nothing"),
    ("/mlp/input_dim", Some("31"), "mlp.input_dim: found 31, expected 30, the number of neurons of the selected layers"),
    ("/mlp/input_dim", Some("0"), "mlp.input_dim: found 0, expected a whole number from 1"),
    ("/mlp/layer_dims", None, "mlp.layer_dims: found nothing"),
    ("/mlp/layer_dims", Some("[16]"), "mlp.dropout_rates: found an array of 2 items, expected as many items as layer_dims has (1)"),
    ("/mlp/layer_dims/0", Some("0"), "mlp.layer_dims[0]: found 0, expected a whole number from 1"),
    ("/mlp/layer_dims/0", Some("1e15"), "mlp.layer_dims[0]: found 1000000000000000.0, expected a whole number from 1"),
    ("/mlp/layer_dims/0", Some("1000000000000000"), "mlp.layer_dims[0]: found 1000000000000000, expected a whole number from 1"),
    ("/mlp/layer_dims/0", Some("17"), r#"tensor "network.0.weight": found shape [16, 30], expected shape [17, 30]"#),
    ("/mlp/dropout_rates", None, "mlp.dropout_rates: found nothing"),
    ("/mlp/dropout_rates", Some("[0.3,0.0,0.0]"), "mlp.dropout_rates: found an array of 3 items"),
    ("/mlp/dropout_rates/0", Some("1.5"), "mlp.dropout_rates[0]: found 1.5, expected a number from 0 to 1"),
    ("/mlp/dropout_rates/0", Some("-0.1"), "mlp.dropout_rates[0]: found -0.1, expected a number from 0 to 1"),
    ("/mlp/num_classes", Some("3"), "mlp.num_classes: found 3, expected a whole number from 2 to 2"),
    ("/mlp/num_classes", Some("null"), "mlp.num_classes: found null"),
    ("/inference", None, "inference: found nothing"),
    ("/inference/max_length", None, "inference.max_length: found nothing"),
    ("/inference/max_length", Some("0"), "inference.max_length: found 0, expected a whole number from 1"),
    ("/inference/max_length", Some("-1"), "inference.max_length: found -1"),
    ("/inference/max_length", Some("99999999999"), "inference.max_length: found 99999999999"),
    ("/inference/default_threshold", None, "inference.default_threshold: found nothing"),
    ("/inference/default_threshold", Some("1.5"), "inference.default_threshold: found 1.5, expected a number from 0 to 1"),
    ("/inference/default_threshold", Some("-0.1"), "inference.default_threshold: found -0.1"),
    ("/inference/default_threshold", Some(r#""0.5""#), r#"inference.default_threshold: found "0.5""#),
];

#[test]
fn settings_of_the_artifact() {
    let (of_the_head, of_the_config): (Vec<_>, Vec<_>) =
        ARTIFACT.iter().copied().partition(|(.., words)| words.starts_with("tensor"));
    refuses_settings(WHOLE, CONFIG, &of_the_config);
    for (pointer, value, words) in of_the_head {
        let value = value.map(|text| serde_json::from_str(text).unwrap());
        invalid(WHOLE, HEAD, words, |files| files.set(CONFIG, pointer, value));
    }
}

#[test]
fn a_layer_that_the_backbone_does_not_have() {
    let words = "siren_module.selected_layers: found layer 3, expected less than 3, the backbone's \
                 num_hidden_layers";
    invalid(WHOLE, CONFIG, words, |files| {
        files.json(CONFIG, |config| {
            let module = &mut config["siren_module"];
            module["selected_layers"][2] = json!(3);
            let neurons = module["selected_neurons_dict"].as_object_mut().unwrap();
            let moved = neurons.shift_remove("layer2_residual_mean").unwrap();
            neurons.insert("layer3_residual_mean".into(), moved);
        });
    });
}

#[test]
fn a_trajectory_artifact_is_unsupported_and_says_so() {
    let files = GuardFiles::fixture(WHOLE);
    files.set(CONFIG, "/task", Some(json!("trajectory")));
    refused(&files, Status::Unsupported, CONFIG, "task: trajectory artifacts");
}

#[test]
fn special_tokens_need_room_in_max_length() {
    let files = GuardFiles::fixture("llama-short");
    files.set(CONFIG, "/inference/max_length", Some(json!(1)));
    let guard = files.open().unwrap();
    // BOS alone fits; nothing of the text does.
    let score = guard.score(Input::Text("text"), None).unwrap();
    assert_eq!((score.tokens, score.truncated), (1, true));
}

/// Text that takes the place of another, in a JSON file, and what the error says.
type Spelling<'a> = (&'a str, &'a str, &'a str);

fn refuses_spellings(file: &str, spellings: &[Spelling<'_>]) {
    for (from, to, words) in spellings {
        invalid(WHOLE, file, words, |files| {
            let text = String::from_utf8(files.read(file)).unwrap();
            assert!(text.contains(from), "{from}");
            files.write(file, text.replacen(from, to, 1));
        });
    }
}

#[test]
fn json_that_is_not_sound() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for file in [CONFIG, BACKBONE_CONFIG, TOKENIZER, TOKENIZER_CONFIG] {
        for (contents, words) in [
            (&b""[..], "contents: found EOF"),
            (b"not JSON", "contents: found expected"),
            (b"{}{}", "contents: found trailing characters"),
            (b"\xff\xfe{}", "contents: found expected value"),
            (b"{\"a\":\"\xff\"}", "contents: found invalid unicode"),
            (b"{\"a\":NaN}", "contents: found expected"),
            (b"{\"a\":1e400}", "contents: found number out of range"),
            (b"{\"x\":1,\"x\":1}", "contents: found key \"x\" occurs twice"),
            (b"{\"x\":{\"y\":[{\"z\":1,\"z\":2}]}}", "contents: found key \"z\" occurs twice"),
            (deep.as_bytes(), "contents: found recursion limit exceeded"),
        ] {
            invalid(WHOLE, file, words, |files| files.write(file, contents));
        }
        // Cut off: in the middle, and just before the last brace.
        let whole = GuardFiles::fixture(WHOLE).read(file);
        let end = whole.iter().rposition(|&b| b == b'}').unwrap();
        for length in [1, whole.len() / 2, end] {
            invalid(WHOLE, file, "contents: found ", |f| f.write(file, &whole[..length]));
        }
    }
    for (contents, words) in [("[]", "found an array of 0 items"), ("null", "found null")] {
        for file in [CONFIG, BACKBONE_CONFIG, TOKENIZER_CONFIG] {
            invalid(WHOLE, file, words, |files| files.write(file, contents));
        }
    }
}

#[test]
fn keys_that_are_repeated_in_the_files_themselves() {
    refuses_spellings(
        CONFIG,
        &[
            (
                "\"max_length\"",
                "\"max_length\": 9, \"max_length\"",
                "key \"max_length\" occurs twice",
            ),
            ("\"layer0_", "\"layer0_residual_mean\": [], \"layer0_", "occurs twice"),
            ("\"0\":", "\"0\": 1.0, \"0\":", "key \"0\" occurs twice"),
            // Two spellings of one key are one key.
            ("\"mlp\"", "\"\\u006dlp\": {}, \"mlp\"", "key \"mlp\" occurs twice"),
            ("0.75", "NaN", "contents: found expected value"),
            ("0.75", "1e999", "contents: found number out of range"),
        ],
    );
}

// Files that are not there, or are no files.

#[test]
fn files_that_are_missing() {
    for file in [CONFIG, HEAD, BACKBONE_CONFIG, TOKENIZER] {
        let files = GuardFiles::fixture(WHOLE);
        files.remove(file);
        refused(&files, Status::NotFound, file, "");
    }
    let files = GuardFiles::fixture(WHOLE);
    files.remove(BACKBONE);
    let words = "holds neither model.safetensors nor model.safetensors.index.json";
    refused(&files, Status::NotFound, "backbone", words);

    let files = GuardFiles::fixture(SHARDED);
    files.remove("backbone/model-00002-of-00005.safetensors");
    let shard = "backbone/model-00002-of-00005.safetensors";
    refused(&files, Status::NotFound, shard, "No such file");

    // Only what may be absent: tokenizer_config.json.
    let files = GuardFiles::fixture(WHOLE);
    files.remove(TOKENIZER_CONFIG);
    files.open().unwrap();
}

#[test]
fn a_directory_where_a_file_should_be() {
    for file in [CONFIG, HEAD, BACKBONE_CONFIG, TOKENIZER, TOKENIZER_CONFIG] {
        invalid(WHOLE, file, "kind: found a directory, expected a regular file", |files| {
            files.remove(file);
            std::fs::create_dir(files.path(file)).unwrap();
        });
    }
}

/// Opening a pipe would wait for a writer that never comes; a device has no end.
#[cfg(unix)]
#[test]
fn a_pipe_or_a_device_where_a_file_should_be() {
    for file in [CONFIG, HEAD, BACKBONE_CONFIG, BACKBONE, TOKENIZER, TOKENIZER_CONFIG] {
        let words = match file {
            BACKBONE => continue, // Not a regular file: looked over, as if it were not there.
            _ => "kind: found a pipe, socket or device, expected a regular file",
        };
        invalid(WHOLE, file, words, |files| {
            files.remove(file);
            let made = std::process::Command::new("mkfifo").arg(files.path(file)).status();
            assert!(made.unwrap().success());
        });
        invalid(WHOLE, file, words, |files| {
            files.remove(file);
            std::os::unix::fs::symlink("/dev/zero", files.path(file)).unwrap();
        });
    }
}

#[cfg(unix)]
#[test]
fn a_file_that_may_not_be_read() {
    use std::os::unix::fs::PermissionsExt;
    for file in [CONFIG, HEAD, BACKBONE_CONFIG, BACKBONE, TOKENIZER, TOKENIZER_CONFIG] {
        let files = GuardFiles::fixture(WHOLE);
        let path = files.path(file);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
        if std::fs::read(&path).is_ok() {
            own_process::measured("skipped: this user (root?) reads every file");
            return;
        }
        refused(&files, Status::Io, file, "ermission");
    }
}

// safetensors files

const HEAD_DATA: u64 = 2600;

fn head_file(entries: &[String]) -> Vec<u8> {
    safetensors_file(&format!("{{{}}}", entries.join(",")), &[1; HEAD_DATA as usize])
}

#[test]
fn safetensors_that_are_not_whole() {
    for (fixture, file) in [(WHOLE, HEAD), (WHOLE, BACKBONE)] {
        let whole = GuardFiles::fixture(fixture).read(file);
        let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        // Empty, in the length, after it, in the header, after it, in the data, at the last byte.
        for length in [0, 3, 8, 9, header - 1, header, header + 1, whole.len() - 1] {
            let words = format!("a complete safetensors file ({length} bytes are there)");
            invalid(fixture, file, &words, |files| files.write(file, &whole[..length]));
        }
        for garbage in [&b"\0"[..], b"garbage"] {
            let words = "a complete safetensors file";
            invalid(fixture, file, words, |f| f.write(file, [&whole[..], garbage].concat()));
        }
        for (contents, words) in [
            (
                &b"PK\x03\x04 this is a zip archive"[..],
                "safetensors header: found header too large",
            ),
            (b"\x80\x02}q\x00(X\x06\x00\x00\x00weight", "a complete safetensors file"),
            (b"\x04\0\0\0\0\0\0\0nope", "contents: found expected"),
            (b"\x04\0\0\0\0\0\0\0\xff\xff\xff\xff", "contents: found expected"),
            (b"\x02\0\0\0\0\0\0\0[]", "contents: found an array of 0 items, expected an object"),
        ] {
            invalid(fixture, file, words, |files| files.write(file, contents));
        }
    }
}

#[test]
fn headers_that_lie() {
    let huge = u64::MAX;
    let weight = |shape: &[u64], offsets| entry("network.0.weight", "F32", shape, offsets);
    #[rustfmt::skip]
    let cases = [
        // A name that comes twice; the crate would keep the last.
        (vec![weight(&[325], [0, 1300]), weight(&[325], [1300, 2600])], "key \"network.0.weight\" occurs twice"),
        // Overlapping, holed, turned round, and past the end.
        (vec![weight(&[325], [0, 1300]), entry("b", "F32", &[326], [1296, 2600])], "safetensors header: found invalid offset for tensor `b`"),
        (vec![weight(&[325], [0, 1300]), entry("b", "F32", &[324], [1304, 2600])], "safetensors header: found invalid offset for tensor `b`"),
        (vec![weight(&[325], [1300, 0])], "safetensors header: found"),
        (vec![weight(&[651], [0, 2604])], "safetensors header: found tensor \"network.0.weight\" up to byte 2604 of the data"),
        (vec![weight(&[1], [0, huge])], "safetensors header: found tensor \"network.0.weight\" up to byte 18446744073709551615"),
        (vec![entry("x", "U8", &[huge], [0, huge])], "safetensors header: found tensor \"x\" up to byte 18446744073709551615 of the data"),
        // Shapes whose sizes overflow, or that say less or more than the offsets do.
        (vec![weight(&[huge, huge], [0, 2600])], "safetensors header: found"),
        (vec![weight(&[huge, 0, huge], [0, 2600])], "safetensors header: found"),
        (vec![weight(&[1 << 62], [0, 2600])], "safetensors header: found"),
        (vec![weight(&[649], [0, 2600])], "safetensors header: found invalid shape"),
        (vec![weight(&[], [0, 2600])], "safetensors header: found invalid shape"),
        // Entries without their members.
        (vec![r#""x":{"dtype":"F32","shape":[650]}"#.into()], "safetensors header: found"),
        (vec![r#""x":7"#.into()], "safetensors header: found"),
        (vec![r#""x":{"dtype":"F31","shape":[650],"data_offsets":[0,2600]}"#.into()], "safetensors header: found"),
        (vec![r#""x":{"dtype":"F32","shape":[-650],"data_offsets":[0,2600]}"#.into()], "safetensors header: found"),
        (vec![r#""x":{"dtype":"F32","shape":[650],"data_offsets":[0,2600,0]}"#.into()], "safetensors header: found"),
        (vec![r#""__metadata__":{"a":7}"#.into()], "safetensors header: found"),
        (vec![], "safetensors header: found"),
    ];
    for (entries, words) in cases {
        for file in [HEAD, BACKBONE] {
            invalid(WHOLE, file, words, |files| files.write(file, head_file(&entries)));
        }
    }
}

#[test]
fn a_header_that_claims_ten_gigabytes_takes_no_memory() {
    own_process::run("damage::a_header_that_claims_ten_gigabytes_takes_no_memory", || {
        let cost = own_process::cost(|| {
            for claim in [99_000_000, 10_u64 << 30, u64::MAX - 7, u64::MAX] {
                let lie = [&claim.to_le_bytes()[..], b"{}"].concat();
                for (file, map) in
                    [(HEAD, true), (HEAD, false), (BACKBONE, true), (BACKBONE, false)]
                {
                    let files = GuardFiles::fixture(WHOLE);
                    files.write(file, &lie);
                    let options = siren::OpenOptions { map, ..files.options() };
                    let error = siren::Guard::open(options).err().unwrap();
                    assert_eq!(error.status(), Status::InvalidModel);
                    assert!(error.message().contains("(10 bytes are there)"), "{error}");
                }
            }
        });
        own_process::measured(format_args!("10 GB header: {cost}"));
        assert!(cost.mib < 32, "{cost}");
    });
}

/// A tensor and how it is damaged, in a list of all.
type TensorDamage = (&'static str, fn(&mut Vec<RawTensor>));

fn tensor<'a>(all: &'a mut [RawTensor], name: &str) -> &'a mut RawTensor {
    all.iter_mut().find(|tensor| tensor.name == name).unwrap()
}

fn fill(tensor: &mut RawTensor, value: f32) {
    tensor.bytes = tensor.bytes.chunks(4).flat_map(|_| value.to_le_bytes()).collect();
}

#[test]
fn tensors_of_the_head() {
    #[rustfmt::skip]
    let cases: &[TensorDamage] = &[
        (r#"tensor "network.3.bias": found nothing, expected shape [8]"#, |all| all.retain(|t| t.name != "network.3.bias")),
        (r#"tensor "network.5.weight": found nothing, expected shape [2, 8]"#, |all| tensor(all, "network.5.weight").name = "network.6.weight".into()),
        (r#"tensor "extra": found a tensor that the configuration has no place for, expected only network.0.weight"#, |all| all.push(RawTensor::f32("extra", &[1], &[1.0]))),
        (r#"tensor "network.0.weight": found shape [30, 16], expected shape [16, 30]"#, |all| tensor(all, "network.0.weight").shape.reverse()),
        (r#"tensor "network.0.weight": found shape [480], expected shape [16, 30]"#, |all| tensor(all, "network.0.weight").shape = vec![480]),
        (r#"tensor "network.5.bias": found dtype I32, expected dtype F32, F16 or BF16"#, |all| tensor(all, "network.5.bias").dtype = "I32".into()),
        (r#"tensor "network.0.bias": found dtype I64, expected dtype F32, F16 or BF16"#, |all| {
            let bias = tensor(all, "network.0.bias");
            bias.dtype = "I64".into();
            bias.bytes.resize(16 * 8, 0);
        }),
        (r#"tensor "network.5.bias": found dtype F64"#, |all| {
            let bias = tensor(all, "network.5.bias");
            bias.dtype = "F64".into();
            bias.bytes.resize(2 * 8, 0);
        }),
        (r#"tensor "network.3.weight": found NaN at index 5, expected finite numbers"#, |all| {
            tensor(all, "network.3.weight").bytes[20..24].copy_from_slice(&f32::NAN.to_le_bytes());
        }),
        (r#"tensor "network.3.bias": found inf at index 0, expected finite numbers"#, |all| fill(tensor(all, "network.3.bias"), f32::INFINITY)),
        (r#"tensor "network.3.bias": found -inf at index 0"#, |all| fill(tensor(all, "network.3.bias"), f32::NEG_INFINITY)),
        (r#"tensor "network.0.weight": found zeros only, expected trained weights"#, |all| fill(tensor(all, "network.0.weight"), 0.0)),
        (r#"tensor "network.5.weight": found zeros only, expected trained weights"#, |all| fill(tensor(all, "network.5.weight"), -0.0)),
    ];
    for (words, damage) in cases {
        invalid(WHOLE, HEAD, words, |files| files.tensors(HEAD, damage));
    }
}

// The backbone

#[rustfmt::skip]
const DECODER: &[Setting<'static>] = &[
    ("/model_type", None, "model_type: found nothing"),
    ("/model_type", Some(r#""qwen2""#), r#"model_type: found "qwen2", expected "qwen3" or "llama""#),
    ("/hidden_act", Some(r#""gelu""#), r#"hidden_act: found "gelu", expected "silu""#),
    ("/rope_parameters", Some(r#"{"rope_type":"yarn","factor":4.0,"rope_theta":1e6}"#), r#"rope_parameters.rope_type: found "yarn", expected "default" or "llama3""#),
    ("/layer_types/1", Some(r#""sliding_attention""#), r#"layer_types[1]: found "sliding_attention", expected "full_attention""#),
    ("/quantization_config", Some(r#"{"bits":4}"#), "quantization_config: found an object of 1 members, expected no quantised weights"),
    ("/hidden_size", None, "hidden_size: found nothing"),
    ("/hidden_size", Some("1000000000"), "hidden_size: found 1000000000, expected a whole number from 1"),
    ("/intermediate_size", None, "intermediate_size: found nothing"),
    ("/intermediate_size", Some("1000000000"), "intermediate_size: found 1000000000"),
    ("/num_hidden_layers", None, "num_hidden_layers: found nothing"),
    ("/num_hidden_layers", Some("0"), "num_hidden_layers: found 0"),
    ("/num_attention_heads", None, "num_attention_heads: found nothing"),
    ("/num_attention_heads", Some("1000000"), "num_attention_heads: found 1000000"),
    ("/num_key_value_heads", None, "num_key_value_heads: found nothing"),
    ("/num_key_value_heads", Some("3"), "num_key_value_heads: found 3, expected a divisor"),
    ("/head_dim", Some("15"), "head_dim: found 15, expected an even number"),
    ("/vocab_size", None, "vocab_size: found nothing"),
    ("/vocab_size", Some("1000000000000"), "vocab_size: found 1000000000000"),
    ("/rms_norm_eps", Some("-1"), "rms_norm_eps: found -1"),
];

#[test]
fn settings_of_the_backbone() {
    refuses_settings(WHOLE, BACKBONE_CONFIG, DECODER);
    invalid(WHOLE, BACKBONE_CONFIG, "use_sliding_window: found true, expected false", |files| {
        files.set(BACKBONE_CONFIG, "/use_sliding_window", Some(json!(true)));
        files.set(BACKBONE_CONFIG, "/sliding_window", Some(json!(4096)));
    });
}

const Q_PROJ: &str = "model.layers.1.self_attn.q_proj.weight";

#[test]
fn tensors_of_the_backbone() {
    #[rustfmt::skip]
    let cases: &[TensorDamage] = &[
        (r#"tensor "model.layers.1.self_attn.q_proj.weight": found nothing, expected shape [64, 32]"#, |all| all.retain(|t| t.name != Q_PROJ)),
        (r#"tensor "model.layers.1.self_attn.q_proj.weight": found shape [32, 64], expected shape [64, 32]"#, |all| tensor(all, Q_PROJ).shape.reverse()),
        (r#"tensor "model.layers.1.self_attn.q_proj.weight": found dtype I32"#, |all| tensor(all, Q_PROJ).dtype = "I32".into()),
        (r#"tensor "model.layers.2.self_attn.k_norm.weight": found nothing, expected shape [16]"#, |all| all.retain(|t| t.name != "model.layers.2.self_attn.k_norm.weight")),
        (r#"tensor "model.layers.0.input_layernorm.weight": found nothing, expected shape [32]"#, |all| all.retain(|t| t.name != "model.layers.0.input_layernorm.weight")),
        (r#"tensor "model.layers.2.mlp.down_proj.weight": found nothing, expected shape [32, 48]"#, |all| all.retain(|t| t.name != "model.layers.2.mlp.down_proj.weight")),
        (r#"tensor "model.norm.weight": found nothing, expected shape [32]"#, |all| all.retain(|t| t.name != "model.norm.weight")),
        (r#"embed_tokens.weight": found nothing, expected shape [600, 32]"#, |all| all.retain(|t| t.name != "model.embed_tokens.weight")),
        (r#"tensor "model.embed_tokens.weight": found shape [599, 32], expected shape [600, 32]"#, |all| {
            let table = tensor(all, "model.embed_tokens.weight");
            table.shape[0] -= 1;
            table.bytes.truncate(599 * 32 * 4);
        }),
    ];
    for (words, damage) in cases {
        invalid(WHOLE, BACKBONE, words, |files| files.tensors(BACKBONE, damage));
    }
}

/// Values of a backbone are not looked through at open; a NaN there is an error of the score.
#[test]
fn a_nan_in_the_backbone_never_becomes_a_score() {
    let files = GuardFiles::fixture(WHOLE);
    files.tensors(BACKBONE, |all| fill(tensor(all, Q_PROJ), f32::NAN));
    let error = files.open().unwrap().score(Input::Text("some text"), None).unwrap_err();
    assert_eq!(error.status(), Status::NonFinite, "{error}");
}

#[test]
fn what_is_never_run_may_be_missing_or_damaged() {
    let score = |files: &GuardFiles| {
        files.open().unwrap().score(Input::Text("The same text."), None).unwrap()
    };
    let whole = score(&GuardFiles::fixture(SHALLOW));
    let damages: [fn(&mut Vec<RawTensor>); 4] = [
        |all| all.retain(|t| !t.name.starts_with("model.layers.1.")),
        |all| all.retain(|t| t.name != "lm_head.weight"),
        |all| all.retain(|t| t.name != "model.norm.weight"),
        |all| {
            for tensor in all.iter_mut().filter(|t| t.name.starts_with("model.layers.1.")) {
                tensor.shape = vec![tensor.bytes.len() as u64];
                tensor.dtype = "I8".into();
            }
        },
    ];
    for damage in damages {
        let files = GuardFiles::fixture(SHALLOW);
        files.tensors(BACKBONE, damage);
        assert_eq!(score(&files), whole);
    }
}

const SHARD: &str = "backbone/model-00002-of-00005.safetensors";

#[test]
fn the_index_of_shards() {
    let name = |files: &GuardFiles, at: usize| -> String {
        let index: Value = serde_json::from_slice(&files.read(INDEX)).unwrap();
        index["weight_map"].as_object().unwrap().keys().nth(at).unwrap().clone()
    };
    for shard in ["../x", "/abs", "a/b", "a\\b", ".hidden", "", ".", "..", "x\0y"] {
        let words = format!("found {}, expected a plain file name", json!(shard));
        invalid(SHARDED, INDEX, &words, |files| {
            let tensor = name(files, 3);
            files.json(INDEX, |index| index["weight_map"][&tensor] = json!(shard));
        });
    }
    invalid(SHARDED, INDEX, "found 7, expected a string", |files| {
        let tensor = name(files, 3);
        files.json(INDEX, |index| index["weight_map"][&tensor] = json!(7));
    });
    invalid(SHARDED, INDEX, "weight_map: found nothing", |files| {
        files.json(INDEX, |index| drop(index.as_object_mut().unwrap().shift_remove("weight_map")));
    });
    let words = "expected every tensor to be in the shard that is named for it";
    invalid(SHARDED, INDEX, words, |files| {
        files.json(INDEX, |index| {
            let map = index["weight_map"].as_object_mut().unwrap();
            let other = map.values().next_back().unwrap().clone();
            *map.values_mut().next().unwrap() = other;
        });
    });
    invalid(SHARDED, INDEX, words, |files| {
        files.json(INDEX, |index| {
            index["weight_map"]["ghost"] = json!("model-00001-of-00005.safetensors")
        });
    });
    invalid(SHARDED, SHARD, "expected every tensor once", |files| {
        let first = RawTensor::read_all(&files.read("backbone/model-00001-of-00005.safetensors"));
        files.tensors(SHARD, |all| all.push(first[0].clone()));
    });
    invalid(SHARDED, SHARD, "a complete safetensors file", |files| {
        let whole = files.read(SHARD);
        files.write(SHARD, &whole[..whole.len() - 1]);
    });
    invalid(SHARDED, INDEX, "at most 1024", |files| {
        files.json(INDEX, |index| {
            let map = (0..1025).map(|i| (format!("t{i}"), json!(format!("s{i}"))));
            index["weight_map"] = Value::Object(map.collect());
        });
    });
}

// The tokenizer

/// A change of `tokenizer.json`, and what the error says.
type TokenizerDamage = (&'static str, fn(&mut Value));

#[test]
fn tokenizers_that_cannot_be_used() {
    #[rustfmt::skip]
    let cases: &[TokenizerDamage] = &[
        ("contents: found what does not load", |t| *t = json!({})),
        ("contents: found what does not load", |t| t["model"] = json!(null)),
        ("contents: found what does not load", |t| t["model"]["type"] = json!("Markov")),
        ("contents: found what does not load", |t| t["model"]["vocab"] = json!([1, 2])),
        ("contents: found what does not load", |t| t["model"]["vocab"]["a"] = json!(-1)),
        ("contents: found what does not load: Token `nowhere` out of vocabulary", |t| t["model"]["merges"][0] = json!(["nowhere", "a"])),
        ("contents: found what does not load: Token `nowhere` out of vocabulary", |t| t["model"]["merges"][0] = json!(["a", "nowhere"])),
        ("contents: found what does not load", |t| t["model"]["merges"][0] = json!(["a", "zzz"])),
        ("contents: found what does not load", |t| t["model"]["merges"][0] = json!("one word of three")),
        ("pre_tokenizer.pretokenizers[0].pattern.Regex: found \"(unclosed\"", |t| t["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("(unclosed")),
        ("contents: found what does not load", |t| t["normalizer"] = json!({"type": "Magic"})),
        ("contents: found what does not load", |t| t["version"] = json!("9.0")),
        ("largest token id: found 600, expected less than the backbone's vocab_size (600)", |t| t["model"]["vocab"]["a"] = json!(600)),
        ("largest token id: found 4294967295", |t| t["model"]["vocab"]["a"] = json!(u32::MAX)),
        ("largest token id: found 99999", |t| t["post_processor"] = template(&["<|im_end|>", "A"], "<|im_end|>", 99_999)),
        (r#"post_processor.single[0].SpecialToken.id: found "<nowhere>", expected one of the template's special_tokens"#, |t| t["post_processor"] = template(&["<nowhere>", "A"], "<|im_end|>", 580)),
        (r#"post_processor.processors[1].single[1].SpecialToken.id: found "<nowhere>""#, |t| {
            let own = t["post_processor"].take();
            t["post_processor"] = json!({"type": "Sequence", "processors": [own, template(&["A", "<nowhere>"], "<|im_end|>", 580)]});
        }),
        ("contents: found what does not load", |t| t["unknown_field"] = json!(1)),
        ("contents: found no token for \"a\"", |t| t["post_processor"] = template(&["<|im_end|>"], "<|im_end|>", 580)),
        (r#"post_processor.single[1].Sequence.id: found "A", expected the text "A", once"#, |t| t["post_processor"] = template(&["A", "A"], "<|im_end|>", 580)),
        (r#"post_processor.single[0].Sequence.id: found "B", expected the text "A", once"#, |t| {
            t["post_processor"] = template(&["A"], "<|im_end|>", 580);
            t["post_processor"]["single"][0]["Sequence"]["id"] = json!("B");
        }),
        // What stands before every text cannot be told from the text.
        ("a post-processor that changes the text's own ids", |t| {
            let a = t["model"]["vocab"]["a"].as_u64().unwrap() as u32;
            t["post_processor"] = template(&["<|im_end|>", "A"], "<|im_end|>", a);
        }),
        ("contents: found no token for \"a\", expected a usable tokenizer", |t| {
            t["model"]["vocab"] = json!({});
            t["model"]["merges"] = json!([]);
        }),
        (r#"truncation.direction: found "Left", expected "Right""#, |t| {
            t["truncation"] = json!({"direction": "Left", "max_length": 7, "strategy": "LongestFirst", "stride": 0});
        }),
    ];
    for (words, damage) in cases {
        invalid(WHOLE, TOKENIZER, words, |files| files.json(TOKENIZER, damage));
    }
}

/// A post-processor that puts special tokens around the text `A`.
fn template(order: &[&str], special: &str, id: u32) -> Value {
    let part = |name: &&str| match *name {
        "A" => json!({"Sequence": {"id": "A", "type_id": 0}}),
        name => json!({"SpecialToken": {"id": name, "type_id": 0}}),
    };
    let single: Vec<Value> = order.iter().map(part).collect();
    json!({
        "type": "TemplateProcessing",
        "single": single,
        "pair": [part(&"A"), {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {special: {"id": special, "ids": [id], "tokens": [special]}},
    })
}

#[test]
fn tokenizers_whose_settings_are_ignored_open() {
    let cases: [fn(&mut Value); 2] = [
        |t| {
            t["padding"] = json!({"strategy": {"Fixed": 1_000_000_000_000_u64}, "direction": "Left",
            "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"})
        },
        |t| {
            t["truncation"] = json!({"direction": "Right", "max_length": 3,
            "strategy": "LongestFirst", "stride": 0})
        },
    ];
    let text = Input::Text("a text of more than three tokens");
    let whole = GuardFiles::fixture(WHOLE).open().unwrap().score(text, None).unwrap();
    for change in cases {
        let files = GuardFiles::fixture(WHOLE);
        files.json(TOKENIZER, change);
        assert_eq!(files.open().unwrap().score(text, None).unwrap(), whole);
    }
}

#[test]
fn truncation_at_the_left() {
    let words = r#"truncation_side: found "left", expected "right""#;
    let side = |value: Value| {
        move |files: &GuardFiles| {
            files.set(TOKENIZER_CONFIG, "/truncation_side", Some(value));
        }
    };
    invalid(WHOLE, TOKENIZER_CONFIG, words, side(json!("left")));
    invalid(WHOLE, TOKENIZER_CONFIG, "truncation_side: found 7", side(json!(7)));
    for allowed in [json!("right"), json!(null)] {
        let files = GuardFiles::fixture(WHOLE);
        side(allowed)(&files);
        files.open().unwrap();
    }
}

/// Bytes of every file, changed at random: an error or a guard, never a panic or an abort, and
/// not a word on standard error.
#[test]
fn files_with_random_bytes_open_or_are_refused_in_silence() {
    own_process::run("damage::files_with_random_bytes_open_or_are_refused_in_silence", || {
        let mut seed = 1_u64;
        let mut random = |bound: usize| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as usize % bound
        };
        let mut opened = 0;
        for file in [CONFIG, HEAD, BACKBONE_CONFIG, TOKENIZER, TOKENIZER_CONFIG, BACKBONE] {
            for _ in 0..40 {
                let files = GuardFiles::fixture(WHOLE);
                let mut bytes = files.read(file);
                // Most of a weights file is numbers: damage its header.
                let end = if file == BACKBONE || file == HEAD { 600 } else { bytes.len() };
                for _ in 0..1 + random(4) {
                    bytes[random(end)] = b"\0\xff09-\"{}[],:e"[random(13)];
                }
                files.write(file, bytes);
                match files.open() {
                    Ok(guard) => {
                        opened += 1;
                        let _ = guard.score(Input::Text("some text"), None);
                    }
                    Err(error) => assert!(
                        matches!(error.status(), Status::InvalidModel | Status::Unsupported),
                        "{error}"
                    ),
                }
            }
        }
        own_process::measured(format_args!("{opened} of 240 damaged guards opened"));
    });
}
