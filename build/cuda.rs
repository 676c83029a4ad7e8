//! The CUDA parts of a build with the feature `cuda`: kernels ahead of time, and a library that
//! needs no CUDA file to be loaded.

use std::env;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

const KERNELS: &str = "src/kernels/cuda";
/// Machine code for these; newer devices compile the PTX when they load it.
const TARGETS: [&str; 3] = [
    "-gencode=arch=compute_80,code=sm_80",
    "-gencode=arch=compute_90,code=sm_90",
    "-gencode=arch=compute_90,code=compute_90",
];
/// Where a toolkit is said to be.
const ROOTS: [&str; 4] = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR"];
const LIBRARY_FOLDERS: [&str; 3] = ["lib64", "lib", "targets/x86_64-linux/lib"];

const LAZY: &str = "src/sys/cuda/lazy.c";
const LAZY_SYMBOLS: &str = "src/sys/cuda/symbols.h";
/// Libraries that candle asks the linker for, and that `LAZY` stands in for.
const LAZY_LIBRARIES: [&str; 4] = ["cublas", "cublasLt", "curand", "nvrtc"];

/// Does all of it, into `out`.
pub fn build(out: &Path) {
    for name in ROOTS.iter().chain(&["NVCC"]) {
        println!("cargo:rerun-if-env-changed={name}");
    }
    println!("cargo:rustc-env=SIREN_CUDA_VERSION={}", version());
    kernels(out);
    stand_ins(out);
}

/// Compiles each `NAME.cu` of the kernels to `cuda/NAME.fatbin`, and lists them for
/// `src/kernels/cuda/driver.rs` in `cuda/images.rs`.
fn kernels(out: &Path) {
    // A new file has a kernel that is named there.
    println!("cargo:rerun-if-changed={KERNELS}/names.rs");
    let out = out.join("cuda");
    std::fs::create_dir_all(&out).expect("OUT_DIR can be written to");
    let files = std::fs::read_dir(KERNELS).expect("the kernels' directory can be read");
    let files = files.map(|file| file.expect("a directory can be read").path());
    let of_kind = |path: &PathBuf, kind: &str| path.extension().is_some_and(|e| e == kind);
    let mut sources: Vec<_> =
        files.filter(|path| of_kind(path, "cu") || of_kind(path, "cuh")).collect();
    for source in &sources {
        println!("cargo:rerun-if-changed={}", source.display());
    }
    sources.retain(|path| of_kind(path, "cu"));
    sources.sort();
    let mut images = String::new();
    for source in sources {
        let name = source.file_stem().expect("a .cu file has a name");
        let fatbin = out.join(name).with_extension("fatbin");
        let mut nvcc = Command::new(nvcc());
        nvcc.args(["-fatbin", "-O3", "-std=c++17"]).args(TARGETS);
        let status = nvcc.arg("-o").arg(&fatbin).arg(&source).status();
        let status = status.unwrap_or_else(|e| panic!("nvcc ({nvcc:?}): {e}"));
        assert!(status.success(), "nvcc could not compile {}", source.display());
        images += &format!("    ({name:?}, &Aligned(*include_bytes!({fatbin:?}))),\n");
    }
    let list = format!("&[\n{images}]\n");
    std::fs::write(out.join("images.rs"), list).expect("OUT_DIR can be written to");
}

/// Fills a folder that the linker looks into first: under the names of the CUDA libraries static
/// ones that load them at their first call, and the static CUDA runtime and C++ library.
fn stand_ins(out: &Path) {
    let out = out.join("cuda-link");
    // What an earlier build left may be links to a toolkit that has moved.
    let _ = std::fs::remove_dir_all(&out);
    std::fs::create_dir_all(&out).expect("OUT_DIR can be written to");
    println!("cargo:rerun-if-changed={LAZY}");
    println!("cargo:rerun-if-changed={LAZY_SYMBOLS}");
    let mut c = cc::Build::new();
    // All of them in one library; the others' names must be there too.
    c.file(LAZY).std("gnu11").opt_level(2).cargo_metadata(false).out_dir(&out).compile("cuda");
    for name in LAZY_LIBRARIES {
        std::fs::write(out.join(format!("lib{name}.a")), "!<arch>\n").expect("as above");
    }
    let mut runtime = folders().map(|folder| folder.join("libcudart_static.a"));
    let runtime = runtime.find(|file| file.is_file());
    let runtime = runtime.expect("libcudart_static.a is in the toolkit that CUDA_HOME names");
    symlink(runtime, out.join("libcudart.a")).expect("OUT_DIR can be written to");
    let compiler = cc::Build::new().cpp(true).get_compiler();
    let asked = compiler.to_command().arg("-print-file-name=libstdc++.a").output();
    let file = String::from_utf8(asked.expect("a C++ compiler").stdout).expect("a path");
    let file = Path::new(file.trim());
    assert!(file.is_file(), "the static C++ library, libstdc++.a, is installed");
    symlink(file, out.join("libstdc++.a")).expect("OUT_DIR can be written to");
    println!("cargo:rustc-link-search=native={}", out.display());
    // A function that has no stand-in fails here and not where the library is loaded.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,defs");
}

/// Folders of the toolkit's libraries.
fn folders() -> impl Iterator<Item = PathBuf> {
    roots().flat_map(|root| LIBRARY_FOLDERS.map(|folder| root.join(folder)))
}

fn roots() -> impl Iterator<Item = PathBuf> {
    let said = ROOTS.iter().filter_map(env::var_os).map(PathBuf::from);
    said.chain(["/usr/local/cuda".into()])
}

/// The compiler that `NVCC` names, or the toolkit's, or the one in `PATH`.
fn nvcc() -> PathBuf {
    let inside = || roots().map(|root| root.join("bin/nvcc")).find(|nvcc| nvcc.is_file());
    env::var_os("NVCC").map(PathBuf::from).or_else(inside).unwrap_or_else(|| "nvcc".into())
}

/// The toolkit's version, as 1000 major + 10 minor.
fn version() -> u32 {
    let nvcc = nvcc();
    let asked = Command::new(&nvcc).arg("--version").output();
    let asked = asked.unwrap_or_else(|e| panic!("{} --version: {e}", nvcc.display()));
    let text = String::from_utf8_lossy(&asked.stdout);
    let words = text.split("release ").nth(1).and_then(|rest| rest.split(',').next());
    let (major, minor) = words.and_then(|v| v.split_once('.')).expect("nvcc says its release");
    let number = |digits: &str| digits.parse::<u32>().expect("a release is two numbers");
    1000 * number(major) + 10 * number(minor)
}
