//! `cargo xtask metrics`: what `deploy/` says of metrics and is made of something else. The table in `METRICS.md` comes from
//! what the agent registers, the PrometheusRule from the rules that Prometheus itself reads.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};

use crate::{chart, prometheus, shell, workspace};

/// What stands above the rules in their PrometheusRule.
const RULE_HEAD: &str = "\
# Made by `cargo xtask metrics` from rules.yml, for the Prometheus operator.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: sluice
  namespace: sluice-system
  labels:
    app.kubernetes.io/name: sluice
    app.kubernetes.io/part-of: sluice
spec:
";

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Change nothing; fail if what is there differs from what would be written
    #[arg(long)]
    check: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if args.check {
        return check();
    }
    for (file, text) in made()? {
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    // It contains the rules and the dashboard.
    chart::write()
}

/// Fails if a file that is committed is not what it is made of.
pub(crate) fn check() -> Result<()> {
    for (file, text) in made()? {
        if fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))? != text {
            bail!("{} is out of date: run `cargo xtask metrics` and commit what it writes", file.display());
        }
    }
    Ok(())
}

fn made() -> Result<[(PathBuf, String); 2]> {
    let root = workspace::root();
    let table =
        shell::read(workspace::cargo().args(["run", "--quiet", "--package=sluice", "--", "metrics"]))?;
    let rules = root.join(prometheus::RULES).join("rules.yml");
    let rules = fs::read_to_string(&rules).with_context(|| format!("cannot read {}", rules.display()))?;
    Ok([
        (root.join("deploy/METRICS.md"), table),
        (root.join(prometheus::RULES).join("prometheus-rule.yaml"), prometheus_rule(&rules)),
    ])
}

/// The same rules, as the `spec` of an object.
fn prometheus_rule(rules: &str) -> String {
    let lines = rules.lines().skip_while(|line| line.starts_with('#'));
    let indented = lines.map(|line| if line.is_empty() { "\n".to_owned() } else { format!("  {line}\n") });
    RULE_HEAD.to_owned() + &indented.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_become_the_spec() {
        let made = prometheus_rule("# about\n# it\ngroups:\n  - name: a\n\n    rules: []\n");
        assert_eq!(made, format!("{RULE_HEAD}  groups:\n    - name: a\n\n      rules: []\n"));
    }
}
