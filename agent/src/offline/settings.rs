//! `sluice settings`: the flags of `sluice agent` with their environment variables, as JSON. The schema of the Helm
//! chart's values is made from it.

use std::io;

use clap::{Args as _, Command};
use serde::Serialize;

use crate::config::Config;

/// One flag.
#[derive(Serialize)]
struct Described {
    /// As in `--admin`.
    flag: String,
    /// The environment variable that sets the same.
    variable: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    default: Option<String>,
    /// The only values, where there is a list of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    values: Vec<String>,
    help: String,
}

/// Writes them to `out`, in the order of the help.
pub fn run(out: &mut impl io::Write) -> io::Result<()> {
    let command = Config::augment_args(Command::new("agent"));
    let flags: Vec<Described> = command
        .get_arguments()
        .filter_map(|argument| {
            let defaults: Vec<_> =
                argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
            let help = argument.get_long_help().or(argument.get_help());
            Some(Described {
                flag: format!("--{}", argument.get_long()?),
                variable: argument.get_env()?.to_string_lossy().into_owned(),
                default: (!defaults.is_empty()).then(|| defaults.join(",")),
                values: argument
                    .get_possible_values()
                    .iter()
                    .map(|value| value.get_name().to_owned())
                    .collect(),
                help: help.map(ToString::to_string).unwrap_or_default(),
            })
        })
        .collect();
    serde_json::to_writer_pretty(&mut *out, &flags)?;
    writeln!(out)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    #[test]
    fn every_flag_is_there_with_its_variable() {
        let mut out = Vec::new();
        super::run(&mut out).unwrap();
        let flags: Vec<Value> = serde_json::from_slice(&out).unwrap();
        let of = |flag: &str| flags.iter().find(|one| one["flag"] == flag).unwrap();
        assert_eq!(of("--admin")["variable"], "SLUICE_ADMIN");
        assert_eq!(of("--admin")["default"], "127.0.0.1:9465");
        assert_eq!(of("--access-log")["values"], serde_json::json!(["none", "text", "json"]));
        assert!(of("--zone").get("default").is_none());
        assert!(flags.iter().all(|flag| flag["help"].as_str().is_some_and(|help| !help.is_empty())));
    }
}
