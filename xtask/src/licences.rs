//! The licences of what the agent is built from: only those that let anyone use Sluice under Apache-2.0.

use anyhow::{Result, bail};

use crate::{shell, workspace};

const ALLOWED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Zlib",
];

/// Fails with the names of the dependencies whose licence is not allowed.
pub(crate) fn check() -> Result<()> {
    let mut cargo = workspace::cargo();
    cargo.args(["tree", "--locked", "--workspace", "--all-features", "--edges=normal,build"]);
    let tree = shell::read(cargo.args(["--prefix=none", "--no-dedupe", "--format={p}|{l}"]))?;
    let mut refused: Vec<&str> = tree
        .lines()
        .filter(|line| line.split_once('|').is_some_and(|(_, licence)| !allowed(licence)))
        .collect();
    refused.sort_unstable();
    refused.dedup();
    if !refused.is_empty() {
        bail!(
            "dependencies with a licence that is not allowed (xtask/src/licences.rs): {}",
            refused.join(", ")
        );
    }
    Ok(())
}

/// Whether an SPDX expression can be met with allowed licences alone.
fn allowed(expression: &str) -> bool {
    // `MIT/Apache-2.0` is how it was written before SPDX.
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    any(&mut words) && words.peek().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any(words: &mut Words<'_>) -> bool {
    let mut allowed = all(words);
    while words.next_if_eq(&"OR").is_some() {
        // Not `||`: the words have to be taken either way.
        allowed |= all(words);
    }
    allowed
}

fn all(words: &mut Words<'_>) -> bool {
    let mut allowed = one(words);
    while words.next_if_eq(&"AND").is_some() {
        allowed &= one(words);
    }
    allowed
}

fn one(words: &mut Words<'_>) -> bool {
    if words.next_if_eq(&"(").is_some() {
        let inner = any(words);
        return words.next() == Some(")") && inner;
    }
    let Some(name) = words.next() else { return false };
    if words.next_if_eq(&"WITH").is_some() {
        let full = format!("{name} WITH {}", words.next().unwrap_or_default());
        return ALLOWED.contains(&full.as_str());
    }
    ALLOWED.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::allowed;

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
            assert!(allowed(expression), "{expression}");
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
            assert!(!allowed(expression), "{expression}");
        }
    }
}
