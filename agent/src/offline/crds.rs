//! `sluice crds`: the CustomResourceDefinitions that go with this binary.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::api;

/// Why they could not be written.
#[derive(Debug, thiserror::Error)]
pub enum CrdsError {
    #[error("cannot write the definitions as YAML: {0}")]
    Yaml(#[from] serde_saphyr::ser::Error),
    #[error("cannot write {path}: {source}")]
    Write { path: PathBuf, source: io::Error },
}

/// Writes them to a directory, one file each, or to `out`.
pub fn run(directory: Option<&Path>, out: &mut impl io::Write) -> Result<(), CrdsError> {
    for (name, text) in api::manifests()? {
        match directory {
            Some(directory) => {
                let path = directory.join(name);
                fs::create_dir_all(directory)
                    .and_then(|()| fs::write(&path, text))
                    .map_err(|source| CrdsError::Write { path, source })?;
            }
            None => write!(out, "---\n{text}")
                .map_err(|source| CrdsError::Write { path: "standard output".into(), source })?,
        }
    }
    Ok(())
}
