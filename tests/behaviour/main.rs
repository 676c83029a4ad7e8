//! What a guard does with damaged files, huge inputs, plain texts, and streams of them, through the
//! public Rust API.

mod cache;
mod calls;
mod damage;
mod differential;
mod gguf;
mod guard_files;
mod limits;
mod oracle;
mod own_process;
#[cfg(unix)]
mod packed_cache;
#[path = "../parity/rule.rs"]
mod rule;
mod streams;
mod text;
mod windows;
