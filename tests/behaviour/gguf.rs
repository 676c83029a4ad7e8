//! Damaged GGUF files, as `damage` has it for the others.

use siren::{Input, Status};

use crate::guard_files::{CONFIG, GGUF, GuardFiles};
use crate::own_process;

/// A Llama of two blocks in F16, with biases.
const LLAMA: &str = "llama-half";
/// A Qwen3 of three blocks in many types.
const QWEN3: &str = "qwen3-mixed";

// Types of metadata.
const U32: u32 = 4;
const F32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// A GGUF file in parts, which nothing keeps consistent.
#[derive(Clone)]
struct File {
    magic: [u8; 4],
    version: u32,
    /// Instead of the real counts.
    tensor_count: Option<u64>,
    metadata_count: Option<u64>,
    /// Keys, types and the bytes of values.
    metadata: Vec<(Vec<u8>, u32, Vec<u8>)>,
    tensors: Vec<Tensor>,
    data: Vec<u8>,
}

#[derive(Clone)]
struct Tensor {
    name: Vec<u8>,
    /// The first is of neighbours.
    dimensions: Vec<u64>,
    kind: u32,
    offset: u64,
}

/// What is left to read of a good file.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        taken
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take(8).try_into().unwrap())
    }

    fn string(&mut self) -> &'a [u8] {
        let length = self.u64() as usize;
        self.take(length)
    }

    fn value(&mut self, kind: u32) -> &'a [u8] {
        let whole = self.0;
        match kind {
            STRING => drop(self.string()),
            ARRAY => {
                let kind = self.u32();
                for _ in 0..self.u64() {
                    self.value(kind);
                }
            }
            _ => drop(self.take([1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8][kind as usize])),
        }
        &whole[..whole.len() - self.0.len()]
    }
}

impl File {
    fn read(bytes: &[u8]) -> Self {
        let mut rest = Rest(bytes);
        let magic = rest.take(4).try_into().unwrap();
        let (version, tensor_count, metadata_count) = (rest.u32(), rest.u64(), rest.u64());
        let metadata = (0..metadata_count).map(|_| {
            let (key, kind) = (rest.string().to_vec(), rest.u32());
            (key, kind, rest.value(kind).to_vec())
        });
        let metadata = metadata.collect();
        let tensors = (0..tensor_count).map(|_| {
            let (name, dimensions) = (rest.string().to_vec(), rest.u32());
            let dimensions = (0..dimensions).map(|_| rest.u64()).collect();
            Tensor { name, dimensions, kind: rest.u32(), offset: rest.u64() }
        });
        let tensors = tensors.collect();
        let data = (bytes.len() - rest.0.len()).next_multiple_of(32);
        let data = bytes[data..].to_vec();
        let (tensor_count, metadata_count) = (None, None);
        Self { magic, version, tensor_count, metadata_count, metadata, tensors, data }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = self.magic.to_vec();
        let string = |out: &mut Vec<u8>, text: &[u8]| {
            out.extend((text.len() as u64).to_le_bytes());
            out.extend(text);
        };
        out.extend(self.version.to_le_bytes());
        let count = |count: Option<u64>, real: usize| count.unwrap_or(real as u64).to_le_bytes();
        out.extend(count(self.tensor_count, self.tensors.len()));
        out.extend(count(self.metadata_count, self.metadata.len()));
        for (key, kind, value) in &self.metadata {
            string(&mut out, key);
            out.extend(kind.to_le_bytes());
            out.extend(value);
        }
        for tensor in &self.tensors {
            string(&mut out, &tensor.name);
            out.extend((tensor.dimensions.len() as u32).to_le_bytes());
            tensor.dimensions.iter().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend(tensor.offset.to_le_bytes());
        }
        out.resize(out.len().next_multiple_of(32), 0);
        out.extend(&self.data);
        out
    }

    fn set(&mut self, key: &str, kind: u32, value: impl AsRef<[u8]>) {
        let entry = (key.into(), kind, value.as_ref().to_vec());
        match self.metadata.iter_mut().find(|(other, ..)| other == key.as_bytes()) {
            Some(other) => *other = entry,
            None => self.metadata.push(entry),
        }
    }

    fn number(&mut self, key: &str, value: u32) {
        self.set(key, U32, value.to_le_bytes());
    }

    fn text(&mut self, key: &str, value: &str) {
        self.set(key, STRING, [&(value.len() as u64).to_le_bytes(), value.as_bytes()].concat());
    }

    fn remove(&mut self, key: &str) {
        self.metadata.retain(|(other, ..)| other != key.as_bytes());
    }

    fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.iter_mut().find(|tensor| tensor.name == name.as_bytes()).unwrap()
    }

    fn add_tensor(&mut self, name: &str, dimensions: &[u64], kind: u32) {
        let offset = self.data.len().next_multiple_of(32);
        self.data.resize(offset + 4 * dimensions.iter().product::<u64>() as usize, 0);
        let (name, dimensions) = (name.into(), dimensions.to_vec());
        self.tensors.push(Tensor { name, dimensions, kind, offset: offset as u64 });
    }
}

/// An array's bytes: of items of `kind`, `count` of them.
fn array(kind: u32, count: u64, items: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &count.to_le_bytes(), items].concat()
}

#[track_caller]
fn refused(files: &GuardFiles, words: &str) {
    let error = files.open().map(|_| ()).expect_err(words);
    let message = error.message();
    assert_eq!(error.status(), Status::InvalidModel, "{message}");
    assert!(message.contains(&files.path(GGUF).display().to_string()), "{message}");
    assert!(message.contains(words), "{words:?} in {message}");
    assert!(message.contains(": found ") && message.contains(", expected "), "{message}");
    assert!(message.len() < 600, "{} bytes: {message}", message.len());
}

type Damage = fn(&mut File);

#[track_caller]
fn refuses(fixture: &str, cases: &[(Damage, &str)]) {
    let files = GuardFiles::gguf(fixture);
    let good = File::read(&files.read(GGUF));
    assert!(good.bytes() == files.read(GGUF), "the parts make the whole");
    files.open().unwrap();
    for (damage, words) in cases {
        let mut file = good.clone();
        damage(&mut file);
        files.write(GGUF, file.bytes());
        refused(&files, words);
    }
}

#[test]
#[rustfmt::skip]
fn headers() {
    refuses(LLAMA, &[
        (|f| f.magic = *b"GGML", r#"magic: found "GGML", expected "GGUF""#),
        (|f| f.version = 1, "version: found 1, expected 2 or 3"),
        (|f| f.version = 3 << 24, "version: found 50331648, expected 2 or 3, little-endian"),
        (|f| f.tensor_count = Some(1 << 17), "tensor_count: found 131072, expected at most 65536"),
        (|f| f.metadata_count = Some(u64::MAX), "metadata_kv_count: found 18446744073709551615"),
        (|f| f.tensor_count = Some(65_536), "expected"),
        (|f| f.metadata_count = Some(65_536), "expected"),
        (|f| f.set("x", STRING, u64::MAX.to_le_bytes()), "GGUF header: found 18446744073709551615 bytes at byte"),
        (|f| f.set("x", ARRAY, array(0, u64::MAX, &[])), "GGUF header: found 18446744073709551615 bytes"),
        (|f| f.set("x", ARRAY, array(10, u64::MAX / 4, &[])), "GGUF header: found 18446744073709551615 bytes"),
        (|f| f.set("x", ARRAY, array(STRING, u64::MAX, &[])), "GGUF header: found"),
        (|f| f.set("x", ARRAY, array(ARRAY, 1, &array(0, 0, &[]))), "x: found items of type 9, expected a number"),
        (|f| f.set("x", ARRAY, array(99, 0, &[])), "x: found items of type 99"),
        (|f| f.set("x", 13, [0; 8]), "x: found type 13, expected a number"),
        (|f| f.set("x", BOOL, [2]), "x: found 2, expected a truth value"),
        (|f| f.metadata.push(f.metadata[3].clone()), "found the key twice, expected every key once"),
        (|f| f.metadata.push((vec![], U32, vec![0; 4])), "found a key of 0 bytes"),
        (|f| f.metadata.push((vec![b'a'; 257], U32, vec![0; 4])), "found a key of 257 bytes"),
        (|f| f.metadata.push((vec![0xff], U32, vec![0; 4])), "found a key of 1 bytes"),
        (|f| f.number("general.alignment", 0), "general.alignment: found 0, expected a power of two"),
        (|f| f.number("general.alignment", 48), "general.alignment: found 48, expected a power of two"),
        (|f| f.number("general.alignment", 1 << 31), "general.alignment: found 2147483648"),
        (|f| f.set("general.alignment", F32, 32f32.to_le_bytes()), "general.alignment: found no whole number"),
        (|f| f.data.truncate(f.data.len() - 1), "expected a tensor inside the file's"),
        (|f| f.data.clear(), "expected a tensor inside the file's 0 bytes of data"),
    ]);
}

#[test]
#[rustfmt::skip]
fn tensors() {
    refuses(LLAMA, &[
        (|f| f.tensor("output_norm.weight").kind = 99, r#"tensor "output_norm.weight": found type 99, expected F32, F16"#),
        (|f| f.tensor("output_norm.weight").kind = 20, r#"tensor "output_norm.weight": found type IQ4_NL"#),
        (|f| f.tensor("token_embd.weight").dimensions.clear(), "found 0 dimensions, expected 1 to 4"),
        (|f| f.tensor("token_embd.weight").dimensions = vec![1; 5], "found 5 dimensions, expected 1 to 4"),
        (|f| f.tensor("token_embd.weight").dimensions[1] = 0, "expected dimensions above 0"),
        (|f| f.tensor("token_embd.weight").dimensions = vec![1 << 32; 3], "whose product can be counted"),
        (|f| f.tensor("token_embd.weight").dimensions[1] = 1 << 60, "expected dimensions above 0 whose product"),
        (|f| f.tensor("token_embd.weight").dimensions[1] = 1 << 40, "expected a tensor inside the file's"),
        (|f| f.tensor("token_embd.weight").offset += 1, "expected a multiple of the alignment, 32"),
        (|f| f.tensor("token_embd.weight").offset = u64::MAX - 31, "expected dimensions above 0 whose product"),
        (|f| f.tensor("token_embd.weight").offset = 1 << 40, "expected a tensor inside the file's"),
        (|f| f.tensor("blk.0.attn_k.weight").offset = f.tensor("blk.0.attn_q.weight").offset, "expected tensors that lie behind each other"),
        (|f| f.tensors.push(f.tensors[2].clone()), "found the name twice, expected every tensor once"),
        (|f| f.tensor("blk.0.attn_q.weight").kind = 12, "expected rows of whole blocks of 256, since its type is Q4_K"),
        // Wrong for the metadata.
        (|f| f.tensor("blk.1.ffn_up.weight").dimensions.reverse(), r#"tensor "blk.1.ffn_up.weight": found shape [32, 48], expected shape [48, 32]"#),
        (|f| f.tensor("blk.1.attn_k.weight").dimensions[1] = 16, r#"tensor "blk.1.attn_k.weight": found shape [16, 32], expected shape [32, 32]"#),
        (|f| f.tensor("blk.0.attn_norm.weight").dimensions[0] = 31, r#"tensor "blk.0.attn_norm.weight": found shape [31], expected shape [32]"#),
        (|f| f.tensor("blk.0.attn_q.bias").dimensions[0] = 31, r#"tensor "blk.0.attn_q.bias": found shape [31], expected shape [32]"#),
        (|f| f.tensor("token_embd.weight").dimensions[0] = 16, r#"tensor "token_embd.weight": found shape [600, 16], expected shape [600, 32]"#),
        (|f| f.tensor("token_embd.weight").dimensions = vec![32], r#"tensor "token_embd.weight": found shape [32], expected shape"#),
        // Missing, and too many.
        (|f| f.tensors.retain(|t| t.name != b"token_embd.weight"), r#"tensor "token_embd.weight": found nothing"#),
        (|f| f.tensors.retain(|t| t.name != b"blk.1.ffn_down.weight"), r#"tensor "blk.1.ffn_down.weight": found nothing, expected shape [32, 48]"#),
        (|f| f.tensors.retain(|t| t.name != b"blk.1.attn_output.bias"), r#"tensor "blk.1.attn_output.bias": found nothing"#),
        (|f| f.tensors.retain(|t| t.name != b"output_norm.weight"), r#"tensor "output_norm.weight": found nothing"#),
        (|f| f.tensors.retain(|t| t.name != b"blk.0.ffn_gate.bias"), r#"tensor "blk.0.ffn_down.bias": found a tensor that this architecture has not"#),
        (|f| f.add_tensor("blk.0.ffn_gate_inp.weight", &[32, 4], 0), r#"tensor "blk.0.ffn_gate_inp.weight": found a tensor that this architecture has not, expected the tensors of 2 blocks of a llama model"#),
        (|f| f.add_tensor("blk.2.attn_norm.weight", &[32], 0), r#"tensor "blk.2.attn_norm.weight": found a tensor that"#),
        (|f| f.add_tensor("blk.0.attn_q_norm.weight", &[8], 0), r#"tensor "blk.0.attn_q_norm.weight": found a tensor that"#),
        (|f| f.add_tensor("rope_freqs.weight", &[5], 0), r#"tensor "rope_freqs.weight": found shape [5], expected shape [4]"#),
        (|f| f.add_tensor("rope_freqs.weight", &[4], 1), r#"tensor "rope_freqs.weight": found F16, expected F32"#),
        (|f| f.add_tensor("rope_freqs.weight", &[4], 0), r#"tensor "rope_freqs.weight": found 0, expected factors from 1"#),
    ]);
}

#[test]
#[rustfmt::skip]
fn settings() {
    refuses(LLAMA, &[
        (|f| f.remove("general.architecture"), "general.architecture: found nothing, expected the key to be present"),
        (|f| f.text("general.architecture", "qwen2"), r#"general.architecture: found "qwen2", expected "qwen3" or "llama""#),
        (|f| f.number("general.architecture", 1), "general.architecture: found 1, expected a string"),
        (|f| f.number("split.count", 2), "split.count: found 2, expected 1"),
        (|f| f.remove("llama.block_count"), "llama.block_count: found nothing"),
        (|f| f.number("llama.block_count", 0), "llama.block_count: found 0, expected a whole number from 1"),
        (|f| f.number("llama.block_count", u32::MAX), "llama.block_count: found 4294967295"),
        (|f| f.set("llama.block_count", F32, 2f32.to_le_bytes()), "llama.block_count: found 2, expected a whole number"),
        (|f| f.set("llama.feed_forward_length", ARRAY, array(U32, 2, &[0; 8])), "llama.feed_forward_length: found an array of 2 numbers"),
        (|f| f.number("llama.embedding_length", 64), r#"tensor "token_embd.weight": found shape [600, 32], expected shape [600, 64]"#),
        (|f| f.number("llama.attention.head_count_kv", 3), "llama.attention.head_count_kv: found 3, expected a divisor of llama.attention.head_count (4)"),
        (|f| f.number("llama.attention.key_length", 7), "llama.attention.key_length: found 7, expected an even number"),
        (|f| f.number("llama.attention.key_length", 16), "llama.attention.value_length: found 8, expected 16, the length of a head"),
        (|f| f.number("llama.rope.dimension_count", 4), "llama.rope.dimension_count: found 4, expected 8"),
        (|f| f.remove("llama.attention.layer_norm_rms_epsilon"), "llama.attention.layer_norm_rms_epsilon: found nothing"),
        (|f| f.set("llama.attention.layer_norm_rms_epsilon", F32, f32::NAN.to_le_bytes()), "llama.attention.layer_norm_rms_epsilon: found NaN, expected a number"),
        (|f| f.set("llama.rope.freq_base", F32, (-1f32).to_le_bytes()), "llama.rope.freq_base: found -1, expected a number"),
        (|f| f.text("llama.rope.scaling.type", "yarn"), r#"llama.rope.scaling.type: found "yarn", expected "none""#),
        (|f| f.number("llama.rope.scaling.factor", 2), "llama.rope.scaling.factor: found 2, expected no key but those"),
        (|f| f.number("llama.attention.sliding_window", 512), "llama.attention.sliding_window: found 512, expected 0"),
        (|f| f.number("llama.expert_count", 8), "llama.expert_count: found 8, expected 0"),
        (|f| f.set("llama.attention.scale", F32, 1f32.to_le_bytes()), "llama.attention.scale: found 1, expected no key"),
        (|f| f.number("llama.vocab_size", 599), "llama.vocab_size: found 599, expected 600, the rows of token_embd.weight"),
        (|f| f.text("tokenizer.ggml.pre", "superbpe"), "put the tokenizer.json beside the file"),
        (|f| f.remove("tokenizer.ggml.tokens"), "tokenizer.ggml.tokens: found nothing"),
        (|f| f.set("tokenizer.ggml.tokens", ARRAY, array(STRING, 1, &[1, 0, 0, 0, 0, 0, 0, 0, 0xff])), "tokenizer.ggml.tokens: found item 0: invalid utf-8"),
    ]);
    refuses(QWEN3, &[
        (|f| f.tensors.retain(|t| t.name != b"blk.1.attn_q_norm.weight"), r#"tensor "blk.1.attn_q_norm.weight": found nothing, expected shape [32]"#),
        (|f| f.tensor("token_embd.weight").dimensions[1] = 580, "largest token id: found 5"),
        (|f| f.text("general.architecture", "llama"), "llama.embedding_length: found nothing"),
    ]);
}

/// Cut anywhere, and with any few bytes of the header changed: an error or a guard that scores,
/// never a panic.
#[test]
fn cut_and_changed_files_open_or_are_refused_in_silence() {
    own_process::run("gguf::cut_and_changed_files_open_or_are_refused_in_silence", || {
        let files = GuardFiles::gguf(LLAMA);
        let good = files.read(GGUF);
        let header = good.len() - File::read(&good).data.len();
        for length in (0..200).chain((200..good.len()).step_by(1501)) {
            files.write(GGUF, &good[..length]);
            let error = files.open().map(|_| ()).expect_err("it is not whole");
            assert_eq!(error.status(), Status::InvalidModel, "{error}");
        }
        let mut seed = 3_u64;
        let mut random = |bound: usize| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as usize % bound
        };
        let mut opened = 0;
        for _ in 0..300 {
            let mut bytes = good.clone();
            for _ in 0..1 + random(4) {
                bytes[random(header)] = [0, 1, 2, 8, 9, 0x7f, 0x80, 0xff][random(8)];
            }
            files.write(GGUF, bytes);
            match files.open() {
                Ok(guard) => {
                    opened += 1;
                    let _ = guard.score(Input::Text("some text"), None);
                }
                Err(error) => assert_eq!(error.status(), Status::InvalidModel, "{error}"),
            }
        }
        own_process::measured(format_args!("{opened} of 300 changed files opened"));
    });
}

/// Nothing is reserved for what a header claims.
#[test]
fn claims_take_no_memory() {
    own_process::run("gguf::claims_take_no_memory", || {
        let files = GuardFiles::gguf(LLAMA);
        let good = File::read(&files.read(GGUF));
        let cost = own_process::cost(|| {
            for claim in [1 << 33, 1 << 40, 1 << 62] {
                for kind in [0, U32, 12, STRING] {
                    let mut file = good.clone();
                    file.set("tokenizer.ggml.tokens", ARRAY, array(kind, claim, &[]));
                    files.write(GGUF, file.bytes());
                    refused(&files, "GGUF header: found");
                }
            }
        });
        own_process::measured(format_args!("claims: {cost}"));
        assert!(cost.mib < 64, "{cost}");
    });
}

#[test]
fn an_artifact_for_another_shape_is_refused() {
    let files = GuardFiles::gguf(LLAMA);
    let mut file = File::read(&files.read(GGUF));
    file.number("llama.block_count", 1);
    file.tensors.retain(|tensor| !tensor.name.starts_with(b"blk.1."));
    files.write(GGUF, file.bytes());
    let error = files.open().map(|_| ()).unwrap_err();
    let config = files.path(CONFIG).display().to_string();
    assert!(error.message().contains(&config), "{error}");
    assert!(error.message().contains("layer 1, expected less than 1"), "{error}");
}

#[test]
fn of_several_faults_always_the_same_is_told() {
    let files = GuardFiles::gguf(LLAMA);
    let mut file = File::read(&files.read(GGUF));
    file.data.clear();
    files.write(GGUF, file.bytes());
    let message = || files.open().map(|_| ()).unwrap_err().to_string();
    let first = message();
    assert!((0..20).all(|_| message() == first), "{first}");
}
