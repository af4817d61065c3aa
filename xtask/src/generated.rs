//! Files that are made from others and committed all the same: written, or compared with what they would be made of.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

use crate::workspace;

/// Arguments of each command that makes some.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Args {
    /// Change nothing; fail if what is there differs from what would be written
    #[arg(long)]
    pub(crate) check: bool,
}

/// What a command makes.
pub(crate) struct Generated {
    /// The command: `cargo xtask reference`.
    pub(crate) command: &'static str,
    /// By their paths in the repository.
    pub(crate) files: Vec<(PathBuf, String)>,
    /// Files that nothing makes any more, by their paths in the repository.
    pub(crate) stale: Vec<PathBuf>,
}

impl Generated {
    pub(crate) fn write(&self) -> Result<()> {
        self.write_below(workspace::root())
    }

    /// Fails if a file that is committed is not what it is made of.
    pub(crate) fn check(&self) -> Result<()> {
        self.check_below(workspace::root())
    }

    fn write_below(&self, root: &Path) -> Result<()> {
        for (path, text) in &self.files {
            let path = root.join(path);
            let folder = path.parent().context("a file without a folder")?;
            fs::create_dir_all(folder)
                .and_then(|()| fs::write(&path, text))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        for path in &self.stale {
            fs::remove_file(root.join(path)).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }

    fn check_below(&self, root: &Path) -> Result<()> {
        let instead = format!("run `{}` and commit what it writes", self.command);
        for (path, text) in &self.files {
            match fs::read_to_string(root.join(path)) {
                Ok(committed) if committed == *text => {}
                Ok(_) => bail!("{} is not what it is made of: {instead}", path.display()),
                Err(error) => bail!("cannot read {}: {error}: {instead}", path.display()),
            }
        }
        if let Some(path) = self.stale.first() {
            bail!("{} is not made from anything: {instead}", path.display());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_passes_the_check_and_nothing_else_does() {
        let root = tempfile::tempdir().unwrap();
        let made = |text: &str, stale: &[&str]| Generated {
            command: "cargo xtask some",
            files: vec![("a/b.md".into(), text.to_owned())],
            stale: stale.iter().map(PathBuf::from).collect(),
        };
        let said = |made: Generated| made.check_below(root.path()).unwrap_err().to_string();
        assert!(said(made("1", &[])).starts_with("cannot read a/b.md: "));
        made("1", &[]).write_below(root.path()).unwrap();
        made("1", &[]).check_below(root.path()).unwrap();
        assert_eq!(
            said(made("2", &[])),
            "a/b.md is not what it is made of: run `cargo xtask some` and commit what it writes"
        );
        fs::write(root.path().join("a/old.md"), "").unwrap();
        assert!(said(made("1", &["a/old.md"])).starts_with("a/old.md is not made from anything: run "));
        made("1", &["a/old.md"]).write_below(root.path()).unwrap();
        assert!(!root.path().join("a/old.md").exists());
    }
}
