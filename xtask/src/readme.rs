//! What README.md tells people to type, so that CI runs exactly that.

use anyhow::{Context as _, Result, bail};

/// The `cargo xtask` lines in README.md's code blocks, without comments.
pub(crate) fn xtask_lines(readme: &str) -> Vec<&str> {
    let mut in_block = false;
    let mut lines = Vec::new();
    for line in readme.lines() {
        if line.starts_with("```") {
            in_block = !in_block;
            continue;
        }
        let line = line.split(" #").next().unwrap_or(line).trim();
        if in_block && line.starts_with("cargo xtask ") {
            lines.push(line);
        }
    }
    lines
}

/// The command that README.md gives for running all the tests: the first below the heading `Test`.
pub(crate) fn test_command(readme: &str) -> Result<&str> {
    let heading = readme.lines().find(|line| {
        line.strip_prefix('#').is_some_and(|rest| rest.trim_start_matches('#').trim() == "Test")
    });
    let heading = heading.context("README.md has no heading `Test`")?;
    let start = readme.find(&format!("\n{heading}\n")).context("README.md has no heading `Test`")? + 1;
    let section = &readme[start + heading.len()..];
    let section = &section[..section.find("\n#").unwrap_or(section.len())];
    match xtask_lines(section).first() {
        Some(command) => Ok(command),
        None => bail!("README.md gives no `cargo xtask` command below its heading `Test`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const README: &str = "# S\n\n```sh\ncargo xtask demo\n```\n\n## Test\n\nRun `cargo xtask ci`:\n\n```sh\n\
                          cargo xtask test   # all of them\ncargo xtask test unit\n```\n\n## Bench\n\n```sh\n\
                          cargo xtask bench\n```\n";

    #[test]
    fn lines_come_from_code_blocks_only() {
        let expected = ["cargo xtask demo", "cargo xtask test", "cargo xtask test unit", "cargo xtask bench"];
        assert_eq!(xtask_lines(README), expected);
    }

    #[test]
    fn the_test_command_is_the_first_below_its_heading() {
        assert_eq!(test_command(README).expect("a command"), "cargo xtask test");
        assert!(test_command("# S\n").is_err());
        assert!(test_command("# S\n## Test\nnothing\n## Bench\n```\ncargo xtask bench\n```\n").is_err());
    }
}
