//! The command line.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
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

fn main() -> ExitCode {
    let CommandLine { command: Command::Agent(config) } = CommandLine::parse();
    let filter = match EnvFilter::builder().parse(&config.log) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!(
                "sluice: --log {:?}: {error}: a level (error, warn, info, debug, trace), or per module as in `info,sluice::proxy=debug`",
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
    match runtime.block_on(run::run(*config)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluice: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
