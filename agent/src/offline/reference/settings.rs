//! The flags of `sluice agent`, each with its environment variable.

use std::fmt::Write as _;

use clap::{Args as _, Command};

use super::{MADE, cell, code};
use crate::config::Config;

pub(super) fn page() -> String {
    let mut page = format!(
        "{MADE}\
# Settings

`sluice agent` takes these flags. Each has an environment variable: `deploy/base/config.env` sets those of the DaemonSet, and a
flag goes before its variable. An empty variable is the same as none. The active settings, and where each comes from, are on the
first line of the log and on `/config`. A value that is not valid is one line on standard error and exit status 2.

| flag | variable | default | values | meaning |
|---|---|---|---|---|
"
    );
    for flag in Config::augment_args(Command::new("agent")).get_arguments() {
        let (Some(name), Some(variable)) = (flag.get_long(), flag.get_env()) else { continue };
        let default: Vec<_> = flag.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
        let possible = flag.get_possible_values();
        let values = if possible.is_empty() {
            flag.get_value_names().unwrap_or_default().iter().map(|name| code(name)).collect::<Vec<_>>()
        } else {
            possible.iter().map(|value| code(value.get_name())).collect()
        };
        let help = flag.get_long_help().or(flag.get_help()).map(ToString::to_string).unwrap_or_default();
        // Writing to a string does not fail.
        let _ = writeln!(
            page,
            "| {} | {} | {} | {} | {} |",
            code(&format!("--{name}")),
            code(&variable.to_string_lossy()),
            code(&default.join(",")),
            values.join(", "),
            cell(&help)
        );
    }
    page
}
