//! The first process of a virtual machine in which `cargo xtask test vm` tries a kernel: makes the machine usable, runs
//! the checks, says a line for each, and switches the machine off.
//!
//! What the kernel is told on its command line and does not know itself becomes the environment of this process.

mod boot;
mod checks;

use std::process::ExitCode;

use anyhow::{Result, ensure};

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!(
            "sluice-vm is the first process of a virtual machine; `cargo xtask test vm` starts it there"
        );
        return ExitCode::from(2);
    }
    // Whatever happens, somebody waits for this machine to end.
    let outcome = std::panic::catch_unwind(run);
    match outcome {
        Ok(Ok(())) => say("end"),
        Ok(Err(error)) => say(&format!("failed start: {}", one_line(&error))),
        Err(_) => say("failed start: a panic, see above"),
    }
    boot::power_off()
}

fn run() -> Result<()> {
    boot::prepare()?;
    ensure!(boot::supported().is_some(), "SLUICE_VM_SUPPORTED is neither 0 nor 1");
    match boot::supported() {
        Some(true) => checks::works(),
        _ => checks::is_too_old(),
    }
}

/// Says a line that the other side reads.
fn say(line: &str) {
    println!("sluice-vm: {line}");
}

/// Says what became of a check. Whether it passed.
fn tell(check: &str, outcome: Result<()>) -> bool {
    match outcome {
        Ok(()) => {
            say(&format!("ok {check}"));
            true
        }
        Err(error) => {
            eprintln!("{error:#}");
            say(&format!("failed {check}: {}", one_line(&error)));
            false
        }
    }
}

fn one_line(error: &anyhow::Error) -> String {
    format!("{error:#}").lines().next().unwrap_or_default().to_owned()
}
