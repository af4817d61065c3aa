//! The configuration: the flags, the ConfigMap, and what deploy/README.md says of privileges.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use clap::{Args as _, Command};
use sluice::config::Config;

use crate::manifests::{base, deploy};

pub(crate) fn flags() -> Command {
    Config::augment_args(Command::new("agent"))
}

/// The environment variables that the agent knows.
pub(crate) fn variables() -> BTreeSet<String> {
    let flags = flags();
    let variables = flags.get_arguments().filter_map(|argument| argument.get_env());
    variables.map(|variable| variable.to_string_lossy().into_owned()).collect()
}

/// What the base gives the agents.
pub(crate) fn config_map() -> BTreeMap<String, String> {
    let text = fs::read_to_string(deploy().join("base/config.env")).unwrap();
    let lines = text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#'));
    lines
        .map(|line| line.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())).unwrap())
        .collect()
}

/// The rows of the first table of README.md below that heading, without its head.
pub(crate) fn table(heading: &str) -> Vec<Vec<String>> {
    let readme = fs::read_to_string(deploy().join("README.md")).unwrap();
    let (_, section) = readme.split_once(&format!("\n## {heading}\n")).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows =
        section.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
    let cells = |row: &str| row.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    rows.skip(2).map(cells).collect()
}

/// What a cell says in code, as in `` `NET_ADMIN` ``.
pub(crate) fn code(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// What the DaemonSet sets itself cannot be set in the ConfigMap, and is said to be so.
#[test]
fn the_readme_says_what_the_daemon_set_sets() {
    let readme = fs::read_to_string(deploy().join("README.md")).unwrap();
    let container = &base("DaemonSet")["spec"]["template"]["spec"]["containers"][0];
    for variable in container["env"].as_array().unwrap() {
        let name = variable["name"].as_str().unwrap();
        assert!(readme.contains(name) && !config_map().contains_key(name), "{name}");
    }
}

/// Which variables the chart's values take: all, but those that the DaemonSet sets itself, and the socket that its probes and the
/// plugin ask at.
#[test]
fn the_chart_takes_every_variable_and_no_other() {
    let text = fs::read_to_string(deploy().join("chart/sluice/values.schema.json")).unwrap();
    let schema: serde_json::Value = serde_json::from_str(&text).unwrap();
    let config = &schema["properties"]["config"];
    assert_eq!(config["additionalProperties"], false);
    let taken: BTreeSet<String> = config["properties"].as_object().unwrap().keys().cloned().collect();
    let container = &base("DaemonSet")["spec"]["template"]["spec"]["containers"][0];
    let set: Vec<&str> =
        container["env"].as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap()).collect();
    let settable: BTreeSet<String> = variables()
        .into_iter()
        .filter(|variable| !set.contains(&&**variable) && variable != "SLUICE_ADMIN_SOCKET")
        .collect();
    assert_eq!(taken, settable, "run `cargo xtask chart` and commit what it writes");
}

#[test]
fn the_readme_explains_every_capability() {
    let told: BTreeSet<String> = table("Privileges").iter().flat_map(|row| code(&row[0])).collect();
    let container = &base("DaemonSet")["spec"]["template"]["spec"]["containers"][0];
    let added = container["securityContext"]["capabilities"]["add"].as_array().unwrap();
    let added: BTreeSet<String> = added.iter().map(|name| name.as_str().unwrap().to_owned()).collect();
    assert_eq!(told, added);
}
