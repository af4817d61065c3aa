//! What is in force, and where it comes from: printed at the start, served as `/config`.
//!
//! It is read from the command line's parser, so no flag can be missing in it.

use std::{
    ffi::{OsStr, OsString},
    fmt,
};

use clap::{Arg, ArgMatches, Command, builder::Resettable, parser::ValueSource};
use schemars::JsonSchema;
use serde::Serialize;

/// All environment variables of the agent begin so.
const PREFIX: &str = "SLUICE_";

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    Flag,
    Environment,
    Default,
    /// Changed while the agent runs.
    Live,
}

/// One flag.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Setting {
    /// As in `--admin`.
    pub flag: String,
    /// The environment variable that says the same.
    pub variable: String,
    /// In force; several are separated by commas. `None`: nobody chose, and the agent finds out by itself.
    pub value: Option<String>,
    pub origin: Origin,
}

/// What is in force.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Settings {
    /// All flags, in the order of the help.
    pub settings: Vec<Setting>,
    /// Environment variables that look like ours, and are ignored.
    pub unknown_variables: Vec<String>,
}

impl Settings {
    /// From what was parsed with the flags of `command`.
    pub fn read(command: &Command, matches: &ArgMatches) -> Self {
        let set = std::env::vars_os().map(|(name, _)| name);
        Self {
            settings: command.get_arguments().filter_map(|argument| setting(argument, matches)).collect(),
            unknown_variables: unknown_variables(command, set),
        }
    }

    /// The same, with another value of one flag that was changed while the agent runs.
    #[must_use]
    pub fn with_live(mut self, flag: &str, value: &str) -> Self {
        for setting in self.settings.iter_mut().filter(|setting| setting.flag == flag) {
            if setting.value.as_deref() != Some(value) {
                setting.value = Some(value.to_owned());
                setting.origin = Origin::Live;
            }
        }
        self
    }
}

/// On one line, as the start of the agent prints it.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for Setting { flag, variable, value, origin } in &self.settings {
            let Some(value) = value else { continue };
            write!(f, "{separator}{flag} {value}")?;
            match origin {
                Origin::Flag => {}
                Origin::Environment => write!(f, " ({variable})")?,
                Origin::Default => f.write_str(" (default)")?,
                Origin::Live => f.write_str(" (changed live)")?,
            }
            separator = ", ";
        }
        Ok(())
    }
}

fn setting(argument: &Arg, matches: &ArgMatches) -> Option<Setting> {
    let id = argument.get_id().as_str();
    let flag = format!("--{}", argument.get_long()?);
    let variable = argument.get_env()?.to_string_lossy().into_owned();
    let values = matches.get_raw(id);
    let value = values.map(|values| {
        let values: Vec<_> = values.map(|value| value.to_string_lossy()).collect();
        values.join(",")
    });
    let origin = match matches.value_source(id) {
        Some(ValueSource::CommandLine) => Origin::Flag,
        Some(ValueSource::EnvVariable) => Origin::Environment,
        _ => Origin::Default,
    };
    Some(Setting { flag, variable, value, origin })
}

/// Makes variables that are set to nothing the same as variables that are not set: a ConfigMap cannot leave a variable
/// out, nor can a pod's field that is empty.
#[must_use]
pub fn without_empty_variables(command: Command) -> Command {
    command.mut_args(|argument| {
        let empty = argument.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
        if empty { argument.env(Resettable::Reset) } else { argument }
    })
}

/// Those of the variables `set` that look like the agent's and are none: spelled wrong, probably.
fn unknown_variables(command: &Command, set: impl Iterator<Item = OsString>) -> Vec<String> {
    let known: Vec<&OsStr> = command.get_arguments().filter_map(Arg::get_env).collect();
    let mut unknown: Vec<String> = set
        .filter(|name| !known.contains(&name.as_os_str()))
        .filter_map(|name| name.into_string().ok())
        .filter(|name| name.starts_with(PREFIX))
        .collect();
    unknown.sort();
    unknown
}

#[cfg(test)]
mod tests {
    use clap::{Args as _, FromArgMatches as _};

    use super::*;
    use crate::config::Config;

    fn read(arguments: &[&str]) -> (Settings, Config) {
        let command = Config::augment_args(Command::new("agent").no_binary_name(true));
        let matches = command.clone().try_get_matches_from(arguments).unwrap();
        (Settings::read(&command, &matches), Config::from_arg_matches(&matches).unwrap())
    }

    #[test]
    fn every_flag_is_told_with_its_variable_and_where_it_comes_from() {
        let (settings, _) = read(&["--workers", "3", "--tag-header", "x-a,x-b"]);
        let of = |flag: &str| settings.settings.iter().find(|setting| setting.flag == flag).unwrap();
        assert_eq!(of("--workers").value.as_deref(), Some("3"));
        assert_eq!(of("--workers").origin, Origin::Flag);
        assert_eq!(of("--tag-header").value.as_deref(), Some("x-a,x-b"));
        assert_eq!(
            (of("--admin").value.as_deref(), of("--admin").origin),
            (Some("127.0.0.1:9465"), Origin::Default)
        );
        assert_eq!((of("--zone").value.as_deref(), of("--zone").variable.as_str()), (None, "SLUICE_ZONE"));
        let command = Config::augment_args(Command::new("agent"));
        assert_eq!(settings.settings.len(), command.get_arguments().count(), "a flag without a variable");
        for setting in &settings.settings {
            let derived =
                format!("SLUICE_{}", setting.flag.trim_start_matches('-').to_uppercase().replace('-', "_"));
            assert_eq!(setting.variable, derived);
        }
    }

    #[test]
    fn the_start_prints_them_on_one_line() {
        let (settings, _) = read(&["--workers", "3"]);
        let line = settings.with_live("--log", "debug").to_string();
        assert!(line.contains("--workers 3, ") && line.contains("--log debug (changed live)"), "{line}");
        assert!(line.starts_with("--admin 127.0.0.1:9465 (default), "), "{line}");
        assert!(!line.contains("--zone") && !line.contains('\n'), "{line}");
    }

    #[test]
    fn the_value_in_force_is_live_only_if_it_was_changed() {
        let (settings, _) = read(&[]);
        assert_eq!(settings.clone().with_live("--log", "info"), settings);
        assert_ne!(settings.clone().with_live("--log", "warn"), settings);
    }

    #[test]
    fn misspelled_variables_are_found() {
        let command = Config::augment_args(Command::new("agent"));
        let set = ["PATH", "SLUICE_ZONE", "SLUICE_ZOEN", "SLUICE_LOGS"].map(OsString::from);
        assert_eq!(unknown_variables(&command, set.into_iter()), ["SLUICE_LOGS", "SLUICE_ZOEN"]);
    }
}
