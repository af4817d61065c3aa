//! What `--help` and `sluice help` say beyond what the flags themselves say.

use std::io::IsTerminal as _;

use clap::{CommandFactory as _, error::ErrorKind};

use super::CommandLine;
use crate::{admin, config::settings};

pub(super) const AGENT: &str = "\
Exit status: 0, the agent was told to stop (SIGTERM, SIGINT) and has drained; 1, the machine or the cluster lacks something; \
2, a flag or variable cannot be used.";

pub(super) const ANSWER: &str = "\
Exit status: 0, the agent answered; 1, it cannot be reached, or there is no answer to the question; 2, the command line \
cannot be used.";

pub(super) const STATUS: &str = "\
Exit status: 0, nothing is wrong; 1, something is wrong, or the agent cannot be reached; 2, the command line cannot be used.";

pub(super) const RELEASE: &str = "\
Exit status: 0, nothing is left; 1, something is, or the agent does not answer; 2, the command line cannot be used.";

pub(super) const CHECK: &str = "\
Exit status: 0, all policies are valid; 1, something is wrong with one, or with --strict there is a note; 2, the command line \
cannot be used, or nothing can be read.";

const GET: &str = "\
Exit status: 0, the agent answered with a 2xx status; 1, it answered with another one (the response is on standard error), or \
cannot be reached; 2, the command line cannot be used, or the response is 400.";

/// The command line's parser.
pub(super) fn command() -> clap::Command {
    CommandLine::command().mut_subcommands(|one| {
        let one = settings::without_empty_variables(one);
        if one.get_name() == "get" { one.after_help(format!("{}\n{GET}", pages())) } else { one }
    })
}

/// The pages that can be read, as the table of routes has them.
fn pages() -> String {
    let pages: Vec<_> = admin::readable().collect();
    let width = pages.iter().map(|(path, _)| path.len()).max().unwrap_or_default();
    let lines = pages.iter().map(|(path, summary)| format!("  {path:width$}  {summary}\n"));
    format!("Pages:\n{}", lines.collect::<String>())
}

/// Whether somebody asked for help or the version, or said nothing at all.
pub(super) fn is_wanted(error: &clap::Error) -> bool {
    !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
}

/// The help of the whole program, or of one of its commands.
///
/// # Errors
/// There is no such command: one line.
pub(super) fn of(mut command: clap::Command, name: Option<&str>) -> Result<String, String> {
    if let Some(unknown) = name.filter(|name| command.find_subcommand(name).is_none()) {
        let shown = command.get_subcommands().filter(|one| !one.is_hide_set());
        let names: Vec<_> = shown.map(clap::Command::get_name).collect();
        return Err(format!("there is no command '{unknown}': there are {}", names.join(", ")));
    }
    // As `sluice NAME --help` has it: a short one where nothing needs a paragraph.
    let program = command.get_name().to_owned();
    let asked = [Some(&*program), name, Some("--help")];
    let Err(help) = command.try_get_matches_from_mut(asked.into_iter().flatten()) else {
        return Err("there is no help".to_owned());
    };
    let text = help.render();
    let coloured =
        std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
    Ok(if coloured { text.ansi().to_string() } else { text.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_can_be_given_says_what_it_is() {
        let mut command = command();
        command.build();
        assert!(command.get_subcommands().count() > 10);
        for one in command.get_subcommands() {
            let name = one.get_name();
            assert!(one.get_about().is_some_and(|about| !about.to_string().ends_with('.')), "{name}");
            for argument in one.get_arguments() {
                assert!(argument.get_help().is_some(), "{name} {}", argument.get_id());
            }
        }
    }
}
