//! The program. What it does with its arguments is [`sluice::cli`].

#![warn(clippy::print_stdout, clippy::print_stderr)]

use std::process::ExitCode;

/// musl's own allocator takes one lock for all threads.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    sluice::cli::main()
}
