//! The CUDA parts of a build with the feature `cuda`: kernels ahead of time.

use std::env;
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
const ROOTS: [&str; 3] = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"];

/// Compiles each `NAME.cu` of the kernels to `OUT_DIR/cuda/NAME.fatbin`.
pub fn kernels(out: &Path) {
    println!("cargo:rerun-if-changed={KERNELS}");
    for name in ROOTS.iter().chain(&["NVCC"]) {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let out = out.join("cuda");
    std::fs::create_dir_all(&out).expect("OUT_DIR can be written to");
    let Ok(files) = std::fs::read_dir(KERNELS) else { return };
    let sources = files.map(|file| file.expect("a directory can be read").path());
    for source in sources.filter(|path| path.extension().is_some_and(|e| e == "cu")) {
        let name = source.file_stem().expect("a .cu file has a name");
        let fatbin = out.join(name).with_extension("fatbin");
        let mut nvcc = Command::new(nvcc());
        nvcc.args(["-fatbin", "-O3", "-std=c++17"]).args(TARGETS);
        let status = nvcc.arg("-o").arg(&fatbin).arg(&source).status();
        let status = status.unwrap_or_else(|e| panic!("nvcc ({nvcc:?}): {e}"));
        assert!(status.success(), "nvcc could not compile {}", source.display());
    }
}

/// The compiler that `NVCC` names, or the toolkit's, or the one in `PATH`.
fn nvcc() -> PathBuf {
    if let Some(nvcc) = env::var_os("NVCC") {
        return nvcc.into();
    }
    let roots = ROOTS.iter().filter_map(env::var_os);
    let mut inside = roots.map(|root| Path::new(&root).join("bin/nvcc"));
    inside.find(|nvcc| nvcc.is_file()).unwrap_or_else(|| "nvcc".into())
}
