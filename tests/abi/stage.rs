//! The built library in a prefix of its own, and C programs compiled against it.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::LazyLock;

use tempfile::TempDir;

/// Words that are in the library exactly when it was built with `planted-panics`.
const PLANTED: &[u8] = b"siren: planted panic while preparing";
/// A program that runs for longer hangs.
const SECONDS: &str = "600";

pub const C: &str = "c99";
pub const CPP: &str = "c++11";

/// The repository.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The guard that the programs open.
pub fn demo() -> PathBuf {
    root().join("models/demo")
}

/// The shared library that cargo built for this test, which lies beside it.
pub fn library() -> &'static Path {
    static LIBRARY: LazyLock<PathBuf> = LazyLock::new(|| {
        let path = env::current_exe().unwrap().with_file_name("libsiren.so");
        let bytes = fs::read(&path)
            .unwrap_or_else(|e| panic!("{}: {e}: is crate-type cdylib built?", path.display()));
        let planted = bytes.windows(PLANTED.len()).any(|window| window == PLANTED);
        // All feature sets share the one file name.
        assert_eq!(
            planted,
            cfg!(feature = "planted-panics"),
            "{} is of another build: touch src/lib.rs and test again",
            path.display()
        );
        path
    });
    &LIBRARY
}

/// A prefix with `lib/libsiren.so.0` and `lib/libsiren.so`, gone when it is dropped.
pub struct Stage(TempDir);

impl Stage {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let lib = dir.path().join("lib");
        fs::create_dir(&lib).unwrap();
        symlink(library(), lib.join("libsiren.so.0")).unwrap();
        symlink("libsiren.so.0", lib.join("libsiren.so")).unwrap();
        Self(dir)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Compiles `source`, strictly, as the `standard` that its language is.
    pub fn compile(&self, source: &Path, standard: &str) -> PathBuf {
        let program = self.path().join(source.file_name().unwrap()).with_added_extension("out");
        let (variable, default) = if standard == CPP { ("CXX", "c++") } else { ("CC", "cc") };
        let compiler = env::var_os(variable).unwrap_or_else(|| default.into());
        let mut command = Command::new(compiler);
        command
            .arg(format!("-std={standard}"))
            .args(["-Wall", "-Wextra", "-Werror", "-pedantic", "-g", "-O1"])
            .arg(format!("-I{}", root().join("include").display()))
            .arg(format!("-I{}", root().join("tests/abi").display()))
            .arg(source)
            .arg("-o")
            .arg(&program)
            .arg(format!("-L{}", self.path().join("lib").display()))
            .arg(format!("-Wl,-rpath,{}", self.path().join("lib").display()))
            .args(["-Wl,--as-needed", "-lsiren", "-lpthread", "-lm", "-ldl"]);
        succeed(&mut command);
        program
    }

    /// Compiles one of `tests/abi/*.c`.
    pub fn compile_test(&self, name: &str) -> PathBuf {
        self.compile(&root().join("tests/abi").join(name), C)
    }
}

/// `program`, ended when it hangs; `wrapper` is a command to run it under.
pub fn command(wrapper: &[&str], program: &Path) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", SECONDS]).args(wrapper).arg(program);
    command.env("SIREN_DATA_DIR", root());
    command
}

/// Runs `program`, which must end well.
pub fn run<A: AsRef<OsStr>>(wrapper: &[&str], program: &Path, args: &[A]) -> Output {
    succeed(command(wrapper, program).args(args))
}

/// Runs `command` and shows all of it when it fails.
pub fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// What a command wrote to stdout, as text.
pub fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}
