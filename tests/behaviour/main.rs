//! What a guard does with damaged files, huge inputs and plain texts, through the public Rust API.

mod damage;
mod differential;
mod guard_files;
mod limits;
mod own_process;
#[path = "../parity/rule.rs"]
mod rule;
mod streams;
mod text;
