//! The command line.

use std::{io, path::PathBuf, process::ExitCode};

use clap::{
    Args as _, CommandFactory as _, FromArgMatches as _, Parser, Subcommand,
    error::{ContextKind, ContextValue, ErrorKind},
};
use sluice::{
    admin::client::{self, Answer, ClientError},
    ask::{self, Failed, Running, inert::inert},
    config::{Config, Settings, settings},
    observe::log::LogFilter,
    offline, run,
};

/// musl's own allocator takes one lock for all threads.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    /// Print a page of this node's agent; fails unless the agent says that all is well
    Get {
        /// /healthz, /readyz, /metrics or /config
        #[arg(value_name = "PATH")]
        path: String,
        #[command(flatten)]
        agent: Running,
    },
    /// Print what this node's agent logs, or change it until the agent ends
    LogLevel {
        /// A level, or per module as in `info,sluice::proxy=debug`
        filter: Option<String>,
        #[command(flatten)]
        agent: Running,
    },
    /// Say why a request goes where it goes: one that is described, or one that has ended
    Explain(Box<ask::ExplainArgs>),
    /// Say how things stand on this node, what is wrong, and what to do; exits with 1 if something is wrong
    Status(ask::StatusArgs),
    /// Show the services of this node live
    Top(ask::TopArgs),
    /// Send a test request as a pod, and show what was decided and answered
    Call(Box<ask::CallArgs>),
    /// Print everything that this node's agent knows, as JSON; no header, body or token is among it
    Dump {
        #[command(flatten)]
        agent: Running,
    },
    /// Print what makes a shell complete this command line
    Completions { shell: clap_complete::Shell },
    /// Say whether policies make sense and what they come to, without a cluster; exits with 1 if something is wrong
    Check(offline::check::Args),
    /// Print the CustomResourceDefinitions of Sluice's kinds, or write them to a directory
    Crds {
        #[arg(value_name = "DIR")]
        directory: Option<PathBuf>,
    },
    /// Print what metrics an agent serves, as a table in Markdown
    Metrics,
    /// Print the version, what it is built for, and whether it carries the eBPF programs
    Version,
}

fn main() -> ExitCode {
    let mut command = CommandLine::command().mut_subcommands(settings::without_empty_variables);
    let parsed = command.try_get_matches_from_mut(std::env::args_os()).and_then(|matches| {
        let line = CommandLine::from_arg_matches(&matches)?;
        Ok((line.command, matches))
    });
    let (chosen, matches) = match parsed {
        Ok(parsed) => parsed,
        // Help and version, which are no errors.
        Err(error)
            if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand =>
        {
            error.exit()
        }
        Err(error) => {
            let example = std::env::args().nth(1).and_then(|command| ask::example(&command));
            let example = example.map_or_else(String::new, |example| format!(", as in `{example}`"));
            eprintln!("sluice: {}{example}", inert(&complaint(&error)));
            return ExitCode::from(2);
        }
    };
    match chosen {
        Command::Agent(config) => {
            let flags = Config::augment_args(clap::Command::new("agent"));
            let chosen = matches.subcommand_matches("agent");
            let settings = chosen.map(|chosen| Settings::read(&flags, chosen)).unwrap_or_default();
            run_agent(*config, settings)
        }
        Command::Get { path, agent } => tell(client::get(&agent.admin_socket, &path)),
        Command::LogLevel { filter: None, agent } => tell(client::get(&agent.admin_socket, "/log-filter")),
        Command::LogLevel { filter: Some(filter), agent } => {
            tell(client::put(&agent.admin_socket, "/log-filter", &filter))
        }
        Command::Explain(args) => done(ask::explain(&args).map(|()| true)),
        Command::Status(args) => done(ask::status(&args)),
        Command::Top(args) => done(ask::top(&args).map(|()| true)),
        Command::Call(args) => done(ask::call(&args).map(|()| true)),
        Command::Dump { agent } => done(ask::dump(&agent).map(|()| true)),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut CommandLine::command(), "sluice", &mut io::stdout());
            ExitCode::SUCCESS
        }
        Command::Check(args) => check(&args),
        Command::Crds { directory } => {
            told(offline::crds::run(directory.as_deref(), &mut io::stdout().lock()))
        }
        Command::Metrics => told(offline::metrics::run(&mut io::stdout().lock())),
        Command::Version => told(offline::version::run(&mut io::stdout().lock())),
    }
}

fn told<E: std::fmt::Display>(outcome: Result<(), E>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sluice: {error}");
            ExitCode::FAILURE
        }
    }
}

/// 0: all is well, 1: something is wrong with a policy, 2: nothing could be checked.
fn check(args: &offline::check::Args) -> ExitCode {
    let (mut input, mut out, mut complaints) = (io::stdin().lock(), io::stdout().lock(), io::stderr().lock());
    match offline::check::run(args, &mut input, &mut out, &mut complaints) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            drop(complaints);
            eprintln!("sluice: {error}");
            ExitCode::from(2)
        }
    }
}

/// False: something is wrong.
fn done(outcome: Result<bool, Failed>) -> ExitCode {
    match outcome {
        Ok(good) => ExitCode::from(u8::from(!good)),
        Err(error) => {
            eprintln!("sluice: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Prints what the agent says.
fn tell(answer: Result<Answer, ClientError>) -> ExitCode {
    match answer {
        Ok(answer) if answer.is_good() => {
            print!("{}", answer.body);
            ExitCode::SUCCESS
        }
        Ok(answer) => {
            eprint!("{}", answer.body);
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("sluice: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run_agent(config: Config, settings: Settings) -> ExitCode {
    let log = match LogFilter::install(&config.log) {
        Ok(log) => log,
        Err(error) => {
            eprintln!("sluice: --log {error}");
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("sluice: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(run::run(config, settings, log));
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

/// What is wrong with the command line, on one line; names the environment variable if the value comes from there.
fn complaint(error: &clap::Error) -> String {
    let line = one_line(&error.to_string());
    let (Some(ContextValue::String(argument)), Some(ContextValue::String(value))) =
        (error.get(ContextKind::InvalidArg), error.get(ContextKind::InvalidValue))
    else {
        return line;
    };
    let flag = argument.split(' ').next().unwrap_or_default();
    let given = std::env::args().any(|word| word.split('=').next() == Some(flag));
    let command = CommandLine::command();
    let variable = command
        .get_subcommands()
        .flat_map(clap::Command::get_arguments)
        .filter(|argument| argument.get_long() == Some(flag.trim_start_matches('-')))
        .find_map(|argument| argument.get_env())
        .filter(|variable| !given && std::env::var_os(variable).is_some_and(|set| &*set == value.as_str()));
    match variable {
        Some(variable) => format!("{}: {line}", variable.to_string_lossy()),
        None => line,
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
