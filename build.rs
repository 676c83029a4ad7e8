//! Makes the C header from `src/ffi` and names the shared library's ABI.

#[cfg(feature = "cuda")]
#[path = "build/cuda.rs"]
mod cuda;

use std::env;
use std::path::PathBuf;

/// The ABI's major version, as in `SIREN_ABI_MAJOR`.
const ABI_MAJOR: u32 = 0;

fn main() {
    println!("cargo:rerun-if-changed=src/ffi");
    println!("cargo:rerun-if-changed=cbindgen.toml");
    if env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libsiren.so.{ABI_MAJOR}");
        // Threads of an open guard run code of the library: it must not be unloaded under them.
        println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    }
    let directory = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    let out_dir = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it"));
    #[cfg(feature = "cuda")]
    cuda::build(&out_dir);
    let out = out_dir.join("siren.h");
    let config = cbindgen::Config::from_file("cbindgen.toml").expect("cbindgen.toml is valid");
    cbindgen::Builder::new()
        .with_crate(directory)
        .with_config(config)
        .generate()
        .expect("src/ffi gives a header")
        .write_to_file(&out);
    println!("cargo:rustc-env=SIREN_GENERATED_HEADER={}", out.display());
}
