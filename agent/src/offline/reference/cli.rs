//! The command line.

use std::fmt::Write as _;

use super::{MADE, cell, code};

pub(super) fn page(command: &clap::Command) -> String {
    let mut command = command.clone();
    command.build();
    let mut page = format!(
        "{MADE}\
# Command line

The commands that ask an agent need root on its node: `kubectl -n sluice-system exec POD -- /sluice COMMAND`, where POD is the
agent of the node in question.

| command | |
|---|---|
"
    );
    let shown: Vec<_> = command.get_subcommands().filter(|one| !one.is_hide_set()).collect();
    // Writing to a string does not fail.
    for one in &shown {
        let name = one.get_name();
        let _ = writeln!(page, "| [`sluice {name}`](#sluice-{name}) | {} |", cell(&about(one)));
    }
    for one in shown {
        let name = one.get_name();
        let _ = writeln!(page, "\n## sluice {name}\n\n{}.", about(one));
        if name == "agent" {
            page.push_str("\nThe flags are on the page [settings](settings.md).\n");
        } else {
            arguments(one, &mut page);
        }
        if let Some(after) = one.get_after_help() {
            for paragraph in after.to_string().split('\n') {
                let line = paragraph.trim_end();
                let _ = match line.strip_prefix("  ") {
                    // A list.
                    Some(item) => writeln!(page, "    {item}"),
                    None if line.is_empty() => writeln!(page),
                    None => writeln!(page, "\n{}\n", line.replace('<', "&lt;")),
                };
            }
        }
    }
    while page.contains("\n\n\n") {
        page = page.replace("\n\n\n", "\n\n");
    }
    page.trim_end().to_owned() + "\n"
}

fn about(command: &clap::Command) -> String {
    command.get_about().map(ToString::to_string).unwrap_or_default()
}

fn arguments(command: &clap::Command, page: &mut String) {
    let arguments: Vec<_> =
        command.get_arguments().filter(|one| one.get_id() != "help" && !one.is_hide_set()).collect();
    if arguments.is_empty() {
        return;
    }
    page.push_str("\n| argument | default | meaning |\n|---|---|---|\n");
    for one in arguments {
        let value = one.get_value_names().unwrap_or_default().join(" ");
        let takes_value = one.get_action().takes_values();
        let name = match (one.get_long(), one.get_short()) {
            (Some(long), Some(short)) => format!("-{short}, --{long}"),
            (Some(long), None) => format!("--{long}"),
            (None, Some(short)) => format!("-{short}"),
            (None, None) => String::new(),
        };
        let shown = if takes_value { format!("{name} {value}") } else { name };
        let default: Vec<_> = one.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        let mut help = one.get_long_help().or(one.get_help()).map(ToString::to_string).unwrap_or_default();
        let possible = one.get_possible_values();
        if takes_value && !possible.is_empty() {
            let values: Vec<_> = possible.iter().map(clap::builder::PossibleValue::get_name).collect();
            let _ = write!(help, " [{}]", values.join(", "));
        }
        if let Some(variable) = one.get_env() {
            let _ = write!(help, " [{}]", variable.to_string_lossy());
        }
        let default = code(&default.join(","));
        // Writing to a string does not fail.
        let _ = writeln!(page, "| {} | {default} | {} |", code(shown.trim()), cell(&help));
    }
}
