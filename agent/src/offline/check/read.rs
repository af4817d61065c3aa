//! The files that are checked. One that cannot be read does not keep the others from being checked.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    CheckError,
    objects::{Objects, Problem},
};
use crate::cluster::manifests::tree;

/// Reads files, what is below directories, and standard input.
///
/// # Errors
/// Nothing could be read at all.
pub(super) fn all(
    objects: &mut Objects,
    files: &[PathBuf],
    input: &mut impl io::Read,
) -> Result<(), CheckError> {
    let mut reader = Reader { objects, read: 0, failed: Vec::new() };
    for path in files {
        if path.as_os_str() == "-" {
            let mut text = String::new();
            match input.read_to_string(&mut text) {
                Ok(_) => reader.take("-", &text, true),
                Err(source) => reader.fail("standard input".into(), source),
            }
        } else if fs::metadata(path).is_ok_and(|metadata| metadata.is_dir()) {
            let mut found = Vec::new();
            reader.search(path, &mut found);
            if found.is_empty() {
                reader.failed.push(CheckError::Empty(path.clone()));
            }
            for path in &found {
                reader.read(path, false);
            }
        } else {
            reader.read(path, true);
        }
    }
    let Reader { objects, read, failed } = reader;
    let mut failed = failed.into_iter();
    if read == 0 {
        return failed.next().map_or(Ok(()), Err);
    }
    objects.problems.extend(failed.map(|error| {
        let (file, message) = match error {
            CheckError::Read { path, source } => (path, format!("it cannot be read: {source}")),
            CheckError::Empty(path) => {
                (path, "there is no manifest (*.yaml, *.yml, *.json) in it".to_owned())
            }
            CheckError::Write(error) => (PathBuf::new(), error.to_string()),
        };
        Problem { file: file.display().to_string(), line: None, object: None, field: None, message }
    }));
    Ok(())
}

struct Reader<'o> {
    objects: &'o mut Objects,
    /// How many files were.
    read: usize,
    failed: Vec<CheckError>,
}

impl Reader<'_> {
    fn fail(&mut self, path: PathBuf, source: io::Error) {
        self.failed.push(CheckError::Read { path, source });
    }

    fn read(&mut self, path: &Path, named: bool) {
        match fs::read_to_string(path) {
            Ok(text) => self.take(&path.display().to_string(), &text, named),
            Err(source) => self.fail(path.to_owned(), source),
        }
    }

    /// `named`: by whoever wants to have it checked. In a directory there may be YAML of another kind.
    fn take(&mut self, file: &str, text: &str, named: bool) {
        self.read += 1;
        let problem =
            |line, message| Problem { file: file.to_owned(), line, object: None, field: None, message };
        let documents = match tree::parse(text) {
            Ok(documents) => documents,
            Err(e) => {
                return self.objects.problems.push(problem(e.line, format!("no valid YAML: {}", e.message)));
            }
        };
        for document in &documents {
            if document.is_mapping() {
                self.objects.take(file, document);
                continue;
            }
            let what = format!(
                "{} is no object of Kubernetes: that is a mapping with apiVersion and kind",
                document.described()
            );
            let problem = problem(Some(document.line), what);
            if named { self.objects.problems.push(problem) } else { self.objects.notes.push(problem) }
        }
    }

    /// The manifests in a directory and below it, by name; hidden ones are passed over.
    fn search(&mut self, directory: &Path, found: &mut Vec<PathBuf>) {
        let entries = fs::read_dir(directory).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let mut paths: Vec<PathBuf> = match entries {
            Ok(entries) => entries.iter().map(fs::DirEntry::path).collect(),
            Err(source) => return self.fail(directory.to_owned(), source),
        };
        paths.sort();
        for path in paths {
            let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            // A link to a directory could lead round in a circle.
            let is_directory = fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir());
            if !hidden && is_directory {
                self.search(&path, found);
            } else if !hidden
                && path.extension().is_some_and(|end| ["yaml", "yml", "json"].iter().any(|one| end == *one))
            {
                found.push(path);
            }
        }
    }
}
