//! What is wrong with the command line, on one line.

use std::ffi::OsStr;

use clap::error::{ContextKind, ContextValue};

/// Names the environment variable if the value comes from there.
pub(super) fn complaint(command: &clap::Command, error: &clap::Error) -> String {
    let line = one_line(&error.to_string());
    let (Some(ContextValue::String(argument)), Some(ContextValue::String(value))) =
        (error.get(ContextKind::InvalidArg), error.get(ContextKind::InvalidValue))
    else {
        return line;
    };
    let flag = argument.split(' ').next().unwrap_or_default();
    let given = std::env::args().any(|word| word.split('=').next() == Some(flag));
    let variable = command
        .get_subcommands()
        .flat_map(clap::Command::get_arguments)
        .filter(|argument| argument.get_long() == Some(flag.trim_start_matches('-')))
        .find_map(|argument| argument.get_env())
        .filter(|variable| !given && std::env::var_os(variable).is_some_and(|set| holds(&set, value)));
    match variable {
        Some(variable) => format!("{}: {line}", variable.to_string_lossy()),
        None => line,
    }
}

/// Whether a variable's value is this one, or has it in its list.
fn holds(set: &OsStr, value: &str) -> bool {
    set == value || set.to_str().is_some_and(|set| set.split(',').any(|one| one == value))
}

/// A complaint about the command line without the usage that clap adds. Its hints are set apart.
fn one_line(complaint: &str) -> String {
    let complaint = complaint.strip_prefix("error: ").unwrap_or(complaint);
    let end = ["\n\nUsage:", "\n\nFor more information"].iter().filter_map(|tail| complaint.find(tail)).min();
    let words: Vec<&str> = complaint[..end.unwrap_or(complaint.len())].split_whitespace().collect();
    words.join(" ").replace(" tip: ", "; tip: ")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::{super::CommandLine, *};

    #[test]
    fn a_value_in_a_variables_list_is_the_variables() {
        for (set, value, of_it) in [
            ("foo", "foo", true),
            ("127.0.0.1:9465,foo", "foo", true),
            ("127.0.0.1:9465,foo", "127.0.0.1:9465,foo", true),
            ("food", "foo", false),
            ("", "", true),
        ] {
            assert_eq!(holds(OsStr::new(set), value), of_it, "{set} {value}");
        }
    }

    #[test]
    fn complaints_are_one_line() {
        for (arguments, line) in [
            (&["agent", "--colour"][..], "unexpected argument '--colour' found"),
            (
                &["agent", "--workers", "0"],
                "invalid value '0' for '--workers <N>': allowed are whole numbers from 1 to 64",
            ),
            (
                &["top", "--times", "ten"],
                "invalid value 'ten' for '--times <N>': allowed are whole numbers from 1 to 4294967295",
            ),
            (&["statu"], "unrecognized subcommand 'statu'; tip: a similar subcommand exists: 'status'"),
        ] {
            let error = CommandLine::try_parse_from(["sluice"].iter().chain(arguments)).err();
            assert_eq!(error.map(|error| one_line(&error.to_string())).as_deref(), Some(line));
        }
    }
}
