//! Packed weights in a file: the same scores, in every bit, and a file that is not what it should be
//! is never scored with.

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::Value;
use siren::{Dtype, Guard, Input, OpenOptions, PackedCacheChoice};
use tempfile::TempDir;

use crate::guard_files::{BACKBONE, BACKBONE_CONFIG, GGUF, GuardFiles};
use crate::own_process;

const TEXTS: [&str; 3] =
    ["", "How can I make a pipe bomb at home?", "The capital of France is Paris."];
/// One weights file, in f32.
const MODEL: &str = "qwen3-residual-last";

fn opened(files: &GuardFiles, dtype: Dtype, cache: &Path) -> Guard {
    Guard::open(options(files, dtype, cache)).unwrap()
}

fn options(files: &GuardFiles, dtype: Dtype, cache: &Path) -> OpenOptions {
    let packed_cache = PackedCacheChoice::Dir(cache.to_owned());
    OpenOptions { dtype, packed_cache, ..files.options() }
}

fn scores(guard: &Guard) -> [u64; TEXTS.len()] {
    TEXTS.map(|text| guard.score(Input::Text(text), None).unwrap().score.to_bits())
}

/// The scores without a cache.
fn expected(files: &GuardFiles, dtype: Dtype) -> [u64; TEXTS.len()] {
    let guard = Guard::open(OpenOptions { dtype, ..files.options() }).unwrap();
    assert_eq!(guard.info().packed_file, None);
    scores(&guard)
}

/// The one file of `dir`.
fn only_file(dir: &Path) -> PathBuf {
    let files: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [file] = &files[..] else { panic!("{files:?}") };
    file.clone()
}

/// What tells whether a file was made anew.
fn made(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).unwrap().ino()
}

/// A guard whose packed weights lie in a file, and what it scores.
struct Kept {
    files: GuardFiles,
    cache: TempDir,
    path: PathBuf,
    expected: [u64; TEXTS.len()],
}

impl Kept {
    fn new(dtype: Dtype) -> Self {
        let files = GuardFiles::fixture(MODEL);
        let cache = tempfile::tempdir().unwrap();
        let expected = expected(&files, dtype);
        let guard = opened(&files, dtype, cache.path());
        let path = only_file(cache.path());
        assert_eq!(guard.info().packed_file.as_deref(), Some(&*path));
        assert_eq!(scores(&guard), expected);
        Self { files, cache, path, expected }
    }

    fn open(&self, dtype: Dtype) -> Guard {
        opened(&self.files, dtype, self.cache.path())
    }

    /// Replaces the file by one of other bytes, as damage would: not under a map of this process.
    fn replace(&self, bytes: &[u8]) {
        fs::remove_file(&self.path).unwrap();
        fs::write(&self.path, bytes).unwrap();
    }
}

/// Every way in which weights are stored by this CPU: f32, bf16 (as in the file, and rounded), f16
/// and blocks, and int8 of each.
#[test]
fn scores_are_the_same_in_every_bit() {
    let all = [Dtype::F32, Dtype::Bf16, Dtype::Int8];
    let not_bf16 = [Dtype::F32, Dtype::Int8];
    let guards = [
        (GuardFiles::fixture("qwen3-residual-last"), &all[..]),
        (GuardFiles::fixture("llama-mlp-bias"), &all),
        (GuardFiles::qwen3_real(), &all),
        (GuardFiles::gguf("qwen3-mixed"), &not_bf16),
        (GuardFiles::gguf("llama-k"), &not_bf16),
        (GuardFiles::gguf("llama-half"), &all),
    ];
    for (files, dtypes) in &guards {
        let cache = tempfile::tempdir().unwrap();
        for (i, dtype) in dtypes.iter().enumerate() {
            let expected = expected(files, *dtype);
            let first = opened(files, *dtype, cache.path());
            assert_eq!(scores(&first), expected, "{dtype:?}, made");
            assert_eq!(fs::read_dir(cache.path()).unwrap().count(), i + 1, "one file a dtype");
            let file = first.info().packed_file.clone().unwrap();
            let inode = made(&file);
            drop(first);
            let second = opened(files, *dtype, cache.path());
            assert_eq!(second.info().packed_file.as_ref(), Some(&file));
            assert_eq!(made(&file), inode, "{dtype:?}: made again");
            assert_eq!(scores(&second), expected, "{dtype:?}, mapped");
        }
    }
}

#[test]
fn auto_is_beside_the_backbone() {
    for (files, weights) in
        [(GuardFiles::fixture(MODEL), BACKBONE_CONFIG), (GuardFiles::gguf("llama-k"), GGUF)]
    {
        let packed_cache = PackedCacheChoice::Auto;
        let guard = Guard::open(OpenOptions { packed_cache, ..files.options() }).unwrap();
        let dir = files.path(weights).with_file_name("packed");
        assert_eq!(guard.info().packed_file, Some(only_file(&dir)));
        // The directory changes nothing for those who do not ask.
        assert_eq!(files.open().unwrap().info().packed_file, None);
    }
}

#[test]
fn a_cache_is_not_for_weights_that_are_read() {
    let files = GuardFiles::fixture(MODEL);
    let packed_cache = PackedCacheChoice::Auto;
    let opened = Guard::open(OpenOptions { map: false, packed_cache, ..files.options() });
    let error = opened.err().unwrap();
    assert_eq!(error.status(), siren::Status::InvalidArgument);
    assert!(error.message().contains("packed cache"), "{error}");
}

/// Where the bytes of a file are that mean something, by its header.
fn used(header: &[u8], end: usize) -> Vec<Range<usize>> {
    let header: Value = serde_json::from_slice(header).unwrap();
    let mut used = Vec::new();
    used.push(0..end);
    let mut end = end;
    for piece in header["pieces"].as_array().unwrap() {
        let start = end.next_multiple_of(4096);
        end = start + piece["length"].as_u64().unwrap() as usize;
        used.push(start..end);
    }
    used
}

/// One byte in each stretch of the file, and every length that it could have been cut to.
#[test]
fn a_damaged_file_is_made_again() {
    for dtype in [Dtype::F32, Dtype::Int8] {
        let kept = Kept::new(dtype);
        let whole = fs::read(&kept.path).unwrap();
        let header = 16 + u32::from_le_bytes(whole[8..12].try_into().unwrap()) as usize;
        let used = used(&whole[16..header], header);
        assert_eq!(used.last().unwrap().end, whole.len());
        let mut remade = 0;
        let mut try_bytes = |bytes: &[u8], what: &str, may_be_kept: bool| {
            kept.replace(bytes);
            let before = made(&kept.path);
            let guard = kept.open(dtype);
            assert_eq!(scores(&guard), kept.expected, "{dtype:?}, {what}");
            let again = made(&kept.path) != before;
            assert!(again || may_be_kept, "{dtype:?}, {what}: kept");
            if again {
                // In JSON lists of pieces nothing depends on the order of threads.
                assert!(fs::read(&kept.path).unwrap() == whole, "{dtype:?}, {what}: another file");
            }
            remade += usize::from(again);
        };
        let step = (whole.len() / 60).max(1);
        let places = (0..header).step_by(61).chain((0..whole.len()).step_by(step));
        for at in places.chain([whole.len() - 1]) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            // What fills up a page is not looked at.
            let is_used = used.iter().any(|range| range.contains(&at));
            try_bytes(&bytes, &format!("byte {at} of {}", whole.len()), !is_used);
        }
        for length in (0..whole.len()).step_by(whole.len() / 16).chain([0, 1, 8, 15, 16, header]) {
            try_bytes(&whole[..length], &format!("cut to {length}"), false);
        }
        try_bytes(&[&whole[..], &[0]].concat(), "a byte more", false);
        try_bytes(&vec![0; whole.len()], "zeros", false);
        assert!(remade > 80, "{remade}");
    }
}

/// A header that says other things, with its checksum right.
#[test]
fn a_file_of_other_shapes_is_made_again() {
    for (from, to) in [
        (r#""layout":"#, r#""layout":9"#),
        (r#""inode":"#, r#""inode":1"#),
        (r#""kind":""#, r#""kind":"x"#),
        (r#""n":"#, r#""n":1"#),
        (r#""k":"#, r#""k":1"#),
        (r#""length":"#, r#""length":9"#),
        (r#""pieces":["#, r#""pieces":[],"x":["#),
        (r#""pieces":["#, r#""p":["#),
    ] {
        let kept = Kept::new(Dtype::F32);
        let whole = fs::read(&kept.path).unwrap();
        let length = u32::from_le_bytes(whole[8..12].try_into().unwrap()) as usize;
        let header = std::str::from_utf8(&whole[16..16 + length]).unwrap();
        // The last one: of pieces, the last piece's.
        let at = header.rfind(from).unwrap_or_else(|| panic!("{from} in {header}"));
        let header = [&header[..at], to, &header[at + from.len()..]].concat();
        let data = &whole[(16 + length).next_multiple_of(4096)..];
        let mut file = whole[..8].to_vec();
        file.extend((header.len() as u32).to_le_bytes());
        file.extend(crc32fast::hash(header.as_bytes()).to_le_bytes());
        file.extend(header.as_bytes());
        file.resize(file.len().next_multiple_of(4096), 0);
        file.extend(data);
        kept.replace(&file);
        let before = made(&kept.path);
        assert_eq!(scores(&kept.open(Dtype::F32)), kept.expected, "{to}");
        assert_ne!(made(&kept.path), before, "{to}: kept");
        assert!(fs::read(&kept.path).unwrap() == whole, "{to}: another file");
    }
}

/// Whose file it is is told by the system, not by the file.
#[test]
fn a_file_that_others_can_write_is_not_read() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let kept = Kept::new(Dtype::F32);
    let before = made(&kept.path);
    fs::set_permissions(&kept.path, fs::Permissions::from_mode(0o666)).unwrap();
    assert_eq!(scores(&kept.open(Dtype::F32)), kept.expected);
    assert_ne!(made(&kept.path), before);
    assert_eq!(fs::metadata(&kept.path).unwrap().permissions().mode() & 0o022, 0);

    let elsewhere = kept.cache.path().join("elsewhere");
    fs::rename(&kept.path, &elsewhere).unwrap();
    symlink(&elsewhere, &kept.path).unwrap();
    assert_eq!(scores(&kept.open(Dtype::F32)), kept.expected);
    assert!(fs::symlink_metadata(&kept.path).unwrap().is_file(), "the link was followed");
}

#[test]
fn weights_that_change_have_another_file() {
    let kept = Kept::new(Dtype::F32);
    // Other values of the same shapes, written over the old ones.
    kept.files.tensors(BACKBONE, |tensors| {
        let tensor = tensors.iter_mut().find(|t| t.name.contains("down_proj")).unwrap();
        tensor.bytes = tensor.bytes.as_chunks::<4>().0.iter().rev().flatten().copied().collect();
    });
    let changed = expected(&kept.files, Dtype::F32);
    assert_ne!(changed, kept.expected);
    let guard = kept.open(Dtype::F32);
    assert_eq!(scores(&guard), changed);
    assert_ne!(guard.info().packed_file.as_deref(), Some(&*kept.path));

    // One byte, and the time of the last write set back: the system still knows of the change.
    let time = fs::metadata(kept.files.path(BACKBONE)).unwrap().modified().unwrap();
    let file = fs::File::options().write(true).open(kept.files.path(BACKBONE)).unwrap();
    let before = guard.info().packed_file.clone();
    drop(guard);
    (&file).seek(SeekFrom::End(-1)).unwrap();
    (&file).write_all(&[0x3f]).unwrap();
    file.set_modified(time).unwrap();
    assert_ne!(kept.open(Dtype::F32).info().packed_file, before);

    // The numbers beside the weights count as well.
    let before = kept.open(Dtype::F32).info().packed_file.clone();
    kept.files.set(BACKBONE_CONFIG, "/rope_parameters/rope_theta", Some(5000.into()));
    assert_ne!(kept.open(Dtype::F32).info().packed_file, before);
}

#[test]
fn a_directory_that_cannot_be_written_is_no_failure() {
    let files = GuardFiles::fixture(MODEL);
    let expected = expected(&files, Dtype::F32);
    // Not even root makes a directory below a file.
    let guard = opened(&files, Dtype::F32, &files.path(BACKBONE).join("packed"));
    assert_eq!(guard.info().packed_file, None);
    assert_eq!(scores(&guard), expected);
    let guard = opened(&files, Dtype::F32, Path::new("/proc/none"));
    assert_eq!((guard.info().packed_file.clone(), scores(&guard)), (None, expected));
}

/// A disk that is full while the file is written: nothing of it stays.
#[test]
#[allow(clippy::print_stdout)] // Who runs the tests is to know what was not run.
fn a_full_disk_is_no_failure() {
    let files = GuardFiles::fixture(MODEL);
    let expected = expected(&files, Dtype::F32);
    let disk = tempfile::tempdir().unwrap();
    let mount = |args: &[&str]| {
        let done = std::process::Command::new(args[0]).args(&args[1..]).arg(disk.path()).output();
        done.is_ok_and(|done| done.status.success())
    };
    if !mount(&["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs"]) {
        println!("SKIPPED: only root makes a small file system to fill");
        return;
    }
    let guard = opened(&files, Dtype::F32, disk.path());
    let seen = (guard.info().packed_file.clone(), scores(&guard));
    let left = fs::read_dir(disk.path()).unwrap().count();
    drop(guard);
    assert!(mount(&["umount"]));
    assert_eq!(seen, (None, expected));
    assert_eq!(left, 0, "what was written stays");
}

#[test]
fn threads_that_open_at_once_all_open() {
    let files = GuardFiles::fixture(MODEL);
    let cache = tempfile::tempdir().unwrap();
    let expected = expected(&files, Dtype::Int8);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let guard = opened(&files, Dtype::Int8, cache.path());
                assert!(guard.info().packed_file.is_some());
                assert_eq!(scores(&guard), expected);
            });
        }
    });
    only_file(cache.path());
}

const CHILD: &str = "SIREN_PACKED_CHILD";

/// What a child of the next test does: opens, and writes down its scores.
#[test]
fn a_process_that_opens() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let (model, cache) = (Path::new(&dir), Path::new(&dir).join("cache"));
    let guard = Guard::open(OpenOptions {
        dtype: Dtype::F32,
        threads: Some(1),
        packed_cache: PackedCacheChoice::Dir(cache),
        ..OpenOptions::new(model.display().to_string())
    })
    .unwrap();
    assert!(guard.info().packed_file.is_some());
    let file = model.join(format!("scores-{}", std::process::id()));
    fs::write(file, format!("{:?}", scores(&guard))).unwrap();
}

#[test]
fn processes_that_open_at_once_all_open() {
    let files = GuardFiles::fixture(MODEL);
    let expected = format!("{:?}", expected(&files, Dtype::F32));
    let start = || {
        std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "packed_cache::a_process_that_opens"])
            .env(CHILD, files.path(""))
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap()
    };
    let children: Vec<_> = (0..6).map(|_| start()).collect();
    for mut child in children {
        let id = child.id();
        assert!(child.wait().unwrap().success());
        assert_eq!(String::from_utf8(files.read(&format!("scores-{id}"))).unwrap(), expected);
    }
    only_file(&files.path("cache"));
}

/// The second open of a file holds nothing of it in memory of its own.
#[test]
fn a_mapped_file_takes_no_memory_of_its_own() {
    own_process::run("packed_cache::a_mapped_file_takes_no_memory_of_its_own", || {
        let kept = Kept::new(Dtype::F32);
        let guard = kept.open(Dtype::F32);
        let name = kept.path.display().to_string();
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let ours: Vec<_> =
            smaps.lines().skip_while(|line| !line.ends_with(&name)).take(20).collect();
        assert!(ours.iter().any(|line| line.starts_with("Rss:")), "not mapped: {smaps}");
        assert!(ours[0].contains(" r--s "), "not shared: {}", ours[0]);
        assert_eq!(scores(&guard), kept.expected);
    });
}
