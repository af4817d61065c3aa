//! A fuzz target about manifests.

use std::sync::Arc;

use super::file;

/// A file reads the same each time, in time that its length allows; what is wrong in it is said with its place, in one line.
pub(crate) fn manifests(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let name: Arc<str> = "fuzz.yaml".into();
    let lines = text.split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']).count() as u32;
    let read = file::read(&name, text);
    assert_eq!(format!("{read:?}"), format!("{:?}", file::read(&name, text)));
    let content = match read {
        Ok(content) => content,
        Err(problem) => {
            assert_eq!(problem.file.as_deref(), Some(&*name));
            return;
        }
    };
    let of_entries = content.entries.iter().flat_map(|entry| &entry.sighting.problems);
    for problem in content.problems.iter().chain(of_entries) {
        assert_eq!(problem.file.as_deref(), Some(&*name));
        assert!(problem.line.is_none_or(|line| (1..=lines).contains(&line)), "{problem} of {lines} lines");
    }
    for entry in &content.entries {
        assert_eq!(entry.key, entry.sighting.object.key());
        assert!((1..=lines).contains(&entry.line), "line {} of {lines}", entry.line);
    }
}
