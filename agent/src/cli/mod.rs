//! The command line. The program's `main` is [`main`].
//!
//! Every command prints through [`print`](crate::ask::print): a reader that goes away (`sluice get /metrics | head`) ends the
//! output and is no error. Exit status: 0, all is well; 1, something is wrong, or there is no answer; 2, the command line
//! cannot be used.

mod complaint;
mod help;
mod plugin;

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args as _, FromArgMatches, Parser, Subcommand};

use self::complaint::complaint;
use crate::{
    ask::{
        self, Failed, Running,
        inert::inert,
        print::{complain, print},
    },
    config::{self, Config, Settings},
    observe::log::LogFilter,
    offline, run,
};

/// Route, protect and observe the HTTP and gRPC calls between Kubernetes services, from the node
#[derive(Parser)]
#[command(name = "sluice", version, arg_required_else_help = true, disable_help_subcommand = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent of this node
    #[command(after_help = help::AGENT)]
    Agent(Box<Config>),
    /// Print a page of this node's agent
    Get {
        /// The page, with a query if it takes one
        #[arg(value_name = "PATH")]
        path: String,
        #[command(flatten)]
        agent: Running,
    },
    /// Print the log filter of this node's agent, or change it until the agent ends
    #[command(after_help = help::ANSWER)]
    LogLevel {
        /// A level (off, error, warn, info or debug), or one per module as in `info,sluice::proxy=debug` [default: print it]
        filter: Option<String>,
        #[command(flatten)]
        agent: Running,
    },
    /// Explain where a request goes and why: one that you describe, or one that has ended
    #[command(after_help = help::ANSWER)]
    Explain {
        #[command(flatten)]
        args: Box<ask::ExplainArgs>,
        #[command(flatten)]
        agent: Running,
    },
    /// Show the health of this node's agent: what is wrong, and what to do
    #[command(after_help = help::STATUS)]
    Status {
        #[command(flatten)]
        args: ask::StatusArgs,
        #[command(flatten)]
        agent: Running,
    },
    /// Show the services of this node live
    #[command(after_help = help::ANSWER)]
    Top {
        #[command(flatten)]
        args: ask::TopArgs,
        #[command(flatten)]
        agent: Running,
    },
    /// Send a test request as a pod, and show the decisions and the response
    #[command(after_help = help::ANSWER)]
    Call {
        #[command(flatten)]
        args: Box<ask::CallArgs>,
        #[command(flatten)]
        agent: Running,
    },
    /// Print everything that this node's agent knows, as JSON; it contains no header, body or token
    #[command(after_help = help::ANSWER)]
    Dump {
        #[command(flatten)]
        agent: Running,
    },
    /// Take away what would refuse connections without an agent, before Sluice is uninstalled
    ///
    /// AccessPolicies with whenUnattended: Refuse leave something behind on the node that refuses connections while no agent is there.
    /// This removes all of it from this node. The agent, if there is one, leaves nothing behind any more until it is started anew.
    #[command(after_help = help::RELEASE)]
    Release {
        /// The BPF file system, where no agent is there to ask
        #[arg(
            long,
            value_name = "DIR",
            env = "SLUICE_BPF_FILE_SYSTEM",
            default_value = config::BPF_FILE_SYSTEM,
            value_parser = config::directory
        )]
        bpf_file_system: PathBuf,
        #[command(flatten)]
        agent: Running,
    },
    /// Print the completion script of a shell
    Completions {
        /// The shell that the script is for
        shell: clap_complete::Shell,
    },
    /// Check policies without a cluster, and show the resulting values
    #[command(after_help = help::CHECK)]
    Check(offline::check::Args),
    /// Print the CustomResourceDefinitions of Sluice's kinds, or write them to a directory
    Crds {
        /// The directory, with one file for each kind; it is created if it does not exist [default: standard output]
        #[arg(value_name = "DIR")]
        directory: Option<PathBuf>,
    },
    /// Print the reference in Markdown (policies, settings, metrics, reasons, commands), or write it to a directory
    Reference {
        /// The directory, with one file for each page; it is created if it does not exist [default: standard output]
        #[arg(value_name = "DIR")]
        directory: Option<PathBuf>,
    },
    /// Print the flags of `sluice agent` with their variables, as JSON
    #[command(hide = true)]
    Settings,
    /// Print the version, what it is built for, and whether it carries the eBPF programs
    Version,
    /// Answer questions on standard input: the other end of `kubectl sluice`
    #[command(hide = true)]
    Relay {
        #[command(flatten)]
        agent: Running,
    },
    /// Print this message, or the help of a command
    Help {
        /// The command
        command: Option<String>,
    },
}

/// The parser of the command line, as the reference describes it.
pub fn command() -> clap::Command {
    help::command()
}

/// Runs the command that the arguments name. Under the name `kubectl-sluice` the program is the plugin of kubectl.
pub fn main() -> ExitCode {
    let name = std::env::args_os().next().unwrap_or_default();
    let name = Path::new(&name).file_name().unwrap_or_default();
    if name == plugin::FILE_NAME { plugin::main() } else { sluice() }
}

fn sluice() -> ExitCode {
    let mut command = help::command();
    let (chosen, matches) = match parse::<CommandLine>(&mut command, "sluice", ask::example) {
        Ok((line, matches)) => (line.command, matches),
        Err(status) => return status,
    };
    let done = |outcome| done("sluice", outcome);
    let answered = |outcome: Result<(), Failed>| done(outcome.map(|()| true));
    match chosen {
        Command::Agent(config) => {
            let flags = Config::augment_args(clap::Command::new("agent"));
            let chosen = matches.subcommand_matches("agent");
            let settings = chosen.map(|chosen| Settings::read(&flags, chosen)).unwrap_or_default();
            run_agent(*config, settings)
        }
        Command::Get { path, agent } => answered(ask::get(&agent, &path)),
        Command::LogLevel { filter, agent } => answered(ask::log_level(&agent, filter.as_deref())),
        Command::Explain { args, agent } => answered(ask::explain(&args, &agent)),
        Command::Status { args, agent } => done(ask::status(&args, &agent)),
        Command::Top { args, agent } => answered(ask::top(&args, &agent)),
        Command::Call { args, agent } => answered(ask::call(&args, &agent)),
        Command::Dump { agent } => answered(ask::dump(&agent)),
        Command::Release { bpf_file_system, agent } => answered(ask::release(&agent, &bpf_file_system)),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command, "sluice", &mut script);
            printed(&script)
        }
        Command::Check(args) => check("sluice", &args),
        Command::Crds { directory } => made(|out| offline::crds::run(directory.as_deref(), out)),
        Command::Reference { directory } => {
            made(|out| offline::reference::run(&command, directory.as_deref(), out))
        }
        Command::Settings => made(offline::settings::run),
        Command::Version => made(offline::version::run),
        Command::Relay { agent } => {
            let served = ask::relay::run(&agent, io::stdin(), &mut io::stdout().lock(), ask::relay::IDLE);
            answered(served.map_err(Failed::from))
        }
        Command::Help { command: asked } => helped("sluice", command, asked.as_deref()),
    }
}

/// What the arguments say. Else help or a complaint has been printed, and this is the exit status.
fn parse<L: FromArgMatches>(
    command: &mut clap::Command,
    program: &str,
    example: fn(&str) -> Option<&'static str>,
) -> Result<(L, clap::ArgMatches), ExitCode> {
    let parsed = command.try_get_matches_from_mut(std::env::args_os());
    let parsed = parsed.and_then(|matches| Ok((L::from_arg_matches(&matches)?, matches)));
    parsed.map_err(|error| {
        if help::is_wanted(&error) {
            error.exit();
        }
        let example = std::env::args().nth(1).and_then(|command| example(&command));
        let example = example.map_or_else(String::new, |example| format!(", as in `{program} {example}`"));
        complain(format_args!("{program}: {}{example}", inert(&complaint(command, &error))));
        ExitCode::from(2)
    })
}

fn helped(program: &str, command: clap::Command, asked: Option<&str>) -> ExitCode {
    match help::of(command, asked) {
        Ok(text) => printed(text.as_bytes()),
        Err(unknown) => {
            complain(format_args!("{program}: {}", inert(&unknown)));
            ExitCode::from(2)
        }
    }
}

/// Prints what needs nothing but this program.
fn made<E: std::fmt::Display>(make: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> ExitCode {
    let mut out = Vec::new();
    match make(&mut out) {
        Ok(()) => printed(&out),
        Err(error) => {
            complain(format_args!("sluice: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn printed(out: &[u8]) -> ExitCode {
    done("sluice", print(out).map(|()| true).map_err(Failed::from))
}

/// 0: all is well, 1: something is wrong with a policy, 2: nothing could be checked.
fn check(program: &str, args: &offline::check::Args) -> ExitCode {
    let (mut out, mut complaints) = (Vec::new(), Vec::new());
    let outcome = offline::check::run(args, &mut io::stdin().lock(), &mut out, &mut complaints);
    let complaints = String::from_utf8_lossy(&complaints);
    if !complaints.is_empty() {
        complain(complaints.trim_end());
    }
    match outcome.map(|good| print(&out).map(|()| good)) {
        Ok(printed) => done(program, printed.map_err(Failed::from)),
        Err(error) => {
            complain(format_args!("{program}: {error}"));
            ExitCode::from(2)
        }
    }
}

/// False: something is wrong.
fn done(program: &str, outcome: Result<bool, Failed>) -> ExitCode {
    match outcome {
        Ok(good) => ExitCode::from(u8::from(!good)),
        Err(error) if error.is_unread() => ExitCode::SUCCESS,
        Err(error) => {
            // A page stands for itself: its lines are reasons.
            if matches!(error, Failed::Page { .. }) {
                complain(&error);
            } else {
                complain(format_args!("{program}: {error}"));
            }
            ExitCode::from(error.exit_code())
        }
    }
}

fn run_agent(config: Config, settings: Settings) -> ExitCode {
    // The heap is small and of many threads: huge pages behind it, for which musl's allocator here asks, would add half to
    // what an idle agent takes. A kernel that has none refuses, and all is well.
    let _ = nix::sys::prctl::set_thp_disable(true);
    let log = match LogFilter::install(&config.log) {
        Ok(log) => log,
        Err(error) => {
            complain(format_args!("sluice: --log {error}"));
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(format_args!("sluice: cannot start: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(run::run(config, settings, log));
    // Whatever still runs (a log line that nobody reads) must not hold up the end.
    runtime.shutdown_background();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("sluice: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}
