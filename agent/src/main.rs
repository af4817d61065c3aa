//! The command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand, error::ErrorKind};
use sluice::{config::Config, run};
use tracing_subscriber::EnvFilter;

/// Governs the HTTP and gRPC calls between Kubernetes services, from the node.
#[derive(Parser)]
#[command(name = "sluice", version, arg_required_else_help = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent of this node
    Agent(Box<Config>),
}

/// What libraries say of every attempt the agent says once itself. `--log` may name them again.
const QUIET: &str = "error,kube_client=off,kube_runtime=off";

fn main() -> ExitCode {
    let CommandLine { command: Command::Agent(config) } = match CommandLine::try_parse() {
        Ok(command_line) => command_line,
        // Help and version, which are no errors.
        Err(error)
            if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand =>
        {
            error.exit()
        }
        Err(error) => {
            eprintln!("sluice: {}", one_line(&error.to_string()));
            return ExitCode::from(2);
        }
    };
    let filter = match EnvFilter::builder().parse(format!("{QUIET},{}", config.log)) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!(
                "sluice: --log {:?}: {error}: a level (error, warn, info, debug), or per module as in `info,sluice::proxy=debug`",
                config.log
            );
            return ExitCode::from(2);
        }
    };
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false).init();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("sluice: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(run::run(*config));
    // Whatever still runs (a log line that nobody reads) must not hold up the end.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluice: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// A complaint about the command line without the usage that clap adds.
fn one_line(complaint: &str) -> String {
    let complaint = complaint.strip_prefix("error: ").unwrap_or(complaint);
    let end = ["\n\nUsage:", "\n\nFor more information"].iter().filter_map(|tail| complaint.find(tail)).min();
    let words: Vec<&str> = complaint[..end.unwrap_or(complaint.len())].split_whitespace().collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_one_line() {
        for (arguments, line) in [
            (&["agent", "--colour"][..], "unexpected argument '--colour' found"),
            (&["agent", "--workers", "0"], "invalid value '0' for '--workers <N>': 0 is not in 1..=64"),
        ] {
            let error = CommandLine::try_parse_from(["sluice"].iter().chain(arguments)).err();
            assert_eq!(error.map(|error| one_line(&error.to_string())).as_deref(), Some(line));
        }
    }
}
