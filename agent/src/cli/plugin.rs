//! The command line of `kubectl sluice`: what a program called `kubectl-sluice` on the PATH is to kubectl.
//! <https://kubernetes.io/docs/tasks/extend-kubectl/kubectl-plugins/>

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use super::{check, done, help, helped, made, parse};
use crate::{
    ask::{CallArgs, ExplainArgs, StatusArgs, TopArgs},
    config::settings,
    kubectl::{self, MaybeNode, Nodes, PROGRAM, Which, access::ClusterArgs},
    offline,
};

/// By this name kubectl finds the program.
pub(super) const FILE_NAME: &str = "kubectl-sluice";

const STATUS: &str = "\
Exit status: 0, all agents answer and nothing is wrong; 1, something is wrong, or an agent does not answer; 2, the command \
line or the kubeconfig cannot be used.";
const ANSWER: &str = "\
Exit status: 0, the agent answered; 1, it does not answer, or there is no answer to the question; 2, the command line or the \
kubeconfig cannot be used.";

/// Ask the agents of Sluice where requests go and why
///
/// The agent of a pod's node is found by itself. Needed are the rights to `get` and `list` pods and to `create` and `get`
/// pods/exec in the namespace of the agents: deploy/overlays/kubectl has the role. Whoever has them can do on the nodes what the
/// agents can.
#[derive(Parser)]
#[command(
    name = FILE_NAME,
    bin_name = PROGRAM,
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true
)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the health of all agents: what is wrong on which nodes, and what to do
    #[command(after_help = STATUS)]
    Status {
        #[command(flatten)]
        args: StatusArgs,
        #[command(flatten)]
        nodes: Nodes,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Explain where a request goes and why: one that you describe, or one that has ended
    #[command(after_help = ANSWER)]
    Explain {
        #[command(flatten)]
        args: Box<ExplainArgs>,
        #[command(flatten)]
        node: MaybeNode,
        #[command(flatten)]
        cluster: Box<ClusterArgs>,
    },
    /// Show the services live, of all nodes together
    #[command(after_help = ANSWER)]
    Top {
        #[command(flatten)]
        args: TopArgs,
        #[command(flatten)]
        nodes: Nodes,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Send a test request as a pod, and show the decisions and the response
    #[command(after_help = ANSWER)]
    Call {
        #[command(flatten)]
        args: Box<CallArgs>,
        #[command(flatten)]
        node: MaybeNode,
        #[command(flatten)]
        cluster: Box<ClusterArgs>,
    },
    /// Print everything that an agent knows, as JSON; it contains no header, body or token
    #[command(after_help = ANSWER)]
    Dump {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        cluster: ClusterArgs,
    },
    /// Check policies without a cluster, and show the resulting values
    #[command(after_help = help::CHECK)]
    Check(offline::check::Args),
    /// Print the version, what it is built for, and whether it carries the eBPF programs
    Version,
    /// Print this message, or the help of a command
    Help {
        /// The command
        command: Option<String>,
    },
}

/// How a command is used, without the program's name, for those who used it wrong.
fn example(command: &str) -> Option<&'static str> {
    Some(match command {
        "dump" => "dump --node node-1 > dump.json",
        "get" | "log-level" | "release" | "completions" => return None,
        other => return crate::ask::example(other),
    })
}

pub(super) fn main() -> ExitCode {
    let mut command = CommandLine::command().mut_subcommands(settings::without_empty_variables);
    let line = match parse::<CommandLine>(&mut command, PROGRAM, example) {
        Ok((line, _)) => line,
        Err(status) => return status,
    };
    let done = |outcome| done(PROGRAM, outcome);
    match line.command {
        Command::Status { args, nodes, cluster } => done(kubectl::status(&args, &nodes, &cluster)),
        Command::Explain { args, node, cluster } => {
            done(kubectl::explain(*args, &node, &cluster).map(|()| true))
        }
        Command::Top { args, nodes, cluster } => done(kubectl::top(&args, &nodes, &cluster).map(|()| true)),
        Command::Call { args, node, cluster } => done(kubectl::call(*args, &node, &cluster).map(|()| true)),
        Command::Dump { which, cluster } => done(kubectl::dump(&which, &cluster)),
        Command::Check(args) => check(PROGRAM, &args),
        Command::Version => made(offline::version::run),
        Command::Help { command: asked } => helped(PROGRAM, command, asked.as_deref()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_can_be_given_says_what_it_is() {
        let mut command = CommandLine::command();
        command.build();
        for one in command.get_subcommands() {
            assert!(one.get_about().is_some(), "{}", one.get_name());
            for argument in one.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", one.get_name(), argument.get_id());
            }
        }
    }
}
