//! The command line, as a process: what it prints, where, and with which exit status.

mod agent;
mod help;
mod pipes;
mod plugin;

use std::process::{Command, Output, Stdio};

/// The program, without settings of whoever runs the tests.
fn sluice(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sluice"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SLUICE_")) {
        command.env_remove(name);
    }
    command.args(arguments).env("NO_COLOR", "1").stdin(Stdio::null());
    command
}

/// What it said to the end: exit status, standard output, standard error.
fn said(mut command: Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (status.code().unwrap_or_else(|| panic!("{status}")), text(stdout), text(stderr))
}
