//! The dependencies: their licences, where they come from, and which are not wanted. `deny.toml` says what is allowed.
//!
//! `cargo xtask deny` asks cargo-deny, which also knows the advisories of RustSec. Building it takes minutes, so CI checks
//! the most important of the same file by itself ([`check`]).

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use crate::shell::{self, say};
use crate::{programs, workspace};

const VERSION: &str = "0.20.2";

const FILE: &str = "deny.toml";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Fail if the database of advisories cannot be fetched; otherwise advisories are left out then
    #[arg(long)]
    advisories: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let program = programs::find("cargo-deny", VERSION)?;
    let deny = |words: &[&str]| {
        let mut command = workspace::command(&program);
        command.args(["--workspace", "--all-features", "--locked"]).args(words);
        command
    };
    shell::run(&mut deny(&["check", "licenses", "bans", "sources"]))?;
    if let Err(missing) = shell::run(&mut deny(&["fetch", "db"])) {
        ensure!(!args.advisories, "the database of advisories cannot be fetched: {missing:#}");
        say(
            "left out: advisories, for their database (https://github.com/RustSec/advisory-db) cannot be fetched here",
        );
        return Ok(());
    }
    shell::run(&mut deny(&["check", "--disable-fetch", "advisories"]))
}

/// What this module reads of `deny.toml`.
#[derive(Debug, Deserialize)]
struct Rules {
    licenses: Licences,
    bans: Bans,
    sources: Sources,
}

#[derive(Debug, Deserialize)]
struct Licences {
    allow: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Bans {
    deny: Vec<Banned>,
}

#[derive(Debug, Deserialize)]
struct Banned {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Sources {
    allow_registry: Vec<String>,
}

/// What this module reads of `Cargo.lock`.
#[derive(Debug, Deserialize)]
struct Lock {
    package: Vec<Package>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
    version: String,
    /// Of the project's own packages there is none.
    source: Option<String>,
}

/// What CI checks: licences, bans and sources. Names all that is wrong.
pub(crate) fn check() -> Result<()> {
    let read = |name: &str| {
        std::fs::read_to_string(workspace::root().join(name)).with_context(|| format!("cannot read {name}"))
    };
    let rules: Rules =
        toml::from_str(&read(FILE)?).with_context(|| format!("{FILE} cannot be understood"))?;
    let lock: Lock = toml::from_str(&read("Cargo.lock")?).context("Cargo.lock cannot be understood")?;
    let mut wrong = unwanted(&rules, &lock);
    let mut cargo = workspace::cargo();
    cargo.args(["tree", "--locked", "--workspace", "--all-features", "--edges=normal,build"]);
    let tree = shell::read(cargo.args(["--prefix=none", "--no-dedupe", "--format={p}|{l}"]))?;
    wrong.extend(
        tree.lines()
            .filter(|line| !line.is_empty())
            .filter_map(|line| line.split_once('|'))
            .filter(|(_, licence)| !allowed(licence, &rules.licenses.allow))
            .map(|(package, licence)| format!("{package} has the licence {licence:?}")),
    );
    if !wrong.is_empty() {
        bail!("{FILE} does not allow: {}", wrong.into_iter().collect::<Vec<_>>().join("; "));
    }
    Ok(())
}

/// Packages that are banned, or come from elsewhere.
fn unwanted(rules: &Rules, lock: &Lock) -> BTreeSet<String> {
    let mut wrong = BTreeSet::new();
    for Package { name, version, source } in &lock.package {
        if let Some(banned) = rules.bans.deny.iter().find(|banned| banned.name == *name) {
            wrong.insert(format!("{name} {version}, for {}", banned.reason));
        }
        let Some(source) = source else { continue };
        let registry = source.strip_prefix("registry+").or(source.strip_prefix("sparse+"));
        if registry.is_none_or(|registry| !rules.sources.allow_registry.iter().any(|known| known == registry))
        {
            wrong.insert(format!("{name} {version} comes from {source}"));
        }
    }
    wrong
}

/// Whether an SPDX expression can be met with allowed licences alone.
fn allowed(expression: &str, names: &[String]) -> bool {
    // `MIT/Apache-2.0` is how it was written before SPDX.
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    any(&mut words, names) && words.peek().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any(words: &mut Words<'_>, names: &[String]) -> bool {
    let mut allowed = all(words, names);
    while words.next_if_eq(&"OR").is_some() {
        // Not `||`: the words have to be taken either way.
        allowed |= all(words, names);
    }
    allowed
}

fn all(words: &mut Words<'_>, names: &[String]) -> bool {
    let mut allowed = one(words, names);
    while words.next_if_eq(&"AND").is_some() {
        allowed &= one(words, names);
    }
    allowed
}

fn one(words: &mut Words<'_>, names: &[String]) -> bool {
    if words.next_if_eq(&"(").is_some() {
        let inner = any(words, names);
        return words.next() == Some(")") && inner;
    }
    let Some(name) = words.next() else { return false };
    if words.next_if_eq(&"WITH").is_some() {
        let full = format!("{name} WITH {}", words.next().unwrap_or_default());
        return names.contains(&full);
    }
    names.iter().any(|allowed| allowed == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        ["MIT", "ISC", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "Unicode-3.0"]
            .map(str::to_owned)
            .to_vec()
    }

    #[test]
    fn what_is_banned_or_comes_from_elsewhere_is_named() {
        let rules: Rules = toml::from_str(
            r#"
            [licenses]
            allow = ["MIT"]
            [bans]
            deny = [{ crate = "bad", reason = "it is bad" }]
            [sources]
            allow-registry = ["https://github.com/rust-lang/crates.io-index"]
            "#,
        )
        .expect("rules");
        let lock: Lock = toml::from_str(
            r#"
            version = 4
            [[package]]
            name = "own"
            version = "0.1.0"
            [[package]]
            name = "good"
            version = "1.0.0"
            source = "registry+https://github.com/rust-lang/crates.io-index"
            checksum = "00"
            [[package]]
            name = "bad"
            version = "2.0.0"
            source = "registry+https://github.com/rust-lang/crates.io-index"
            [[package]]
            name = "forked"
            version = "3.0.0"
            source = "git+https://example.com/forked#00"
            [[package]]
            name = "mirrored"
            version = "4.0.0"
            source = "registry+https://example.com/index"
            "#,
        )
        .expect("a lock file");
        let wrong: Vec<_> = unwanted(&rules, &lock).into_iter().collect();
        assert_eq!(
            wrong,
            [
                "bad 2.0.0, for it is bad",
                "forked 3.0.0 comes from git+https://example.com/forked#00",
                "mirrored 4.0.0 comes from registry+https://example.com/index",
            ]
        );
    }

    #[test]
    fn one_way_that_is_allowed_is_enough() {
        for expression in [
            "MIT",
            "MIT OR Apache-2.0",
            "Apache-2.0 / MIT",
            "Unlicense/MIT",
            "GPL-3.0 OR MIT",
            "(MIT OR GPL-3.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR GPL-3.0",
        ] {
            assert!(allowed(expression, &names()), "{expression}");
        }
    }

    #[test]
    fn nothing_else_is() {
        for expression in [
            "",
            "GPL-3.0",
            "MIT AND GPL-3.0",
            "(MIT OR ISC) AND GPL-3.0",
            "MIT WITH strange-exception",
            "(MIT",
            "MIT MIT",
        ] {
            assert!(!allowed(expression, &names()), "{expression}");
        }
    }
}
