//! Nodes of a YAML file by their path, as lines of its text: so that a file becomes a template with its comments and its
//! order. It reads block mappings and lists as the files in `deploy/` are written, and nothing else.

use std::ops::Range;

use anyhow::{Context as _, Result};

/// A YAML document that is being edited.
#[derive(Debug, Clone)]
pub(super) struct Document {
    lines: Vec<String>,
}

impl Document {
    pub(super) fn new(text: &str) -> Self {
        Self { lines: text.trim_end().lines().map(str::to_owned).collect() }
    }

    pub(super) fn text(&self) -> String {
        self.lines.iter().flat_map(|line| [line.as_str(), "\n"]).collect()
    }

    /// The lines of the node with this path (`spec.containers.0.image`), its key among them, and its indentation.
    fn find(&self, path: &str) -> Option<(Range<usize>, usize)> {
        let (mut range, mut indent) = (0..self.lines.len(), 0);
        for (depth, part) in path.split('.').enumerate() {
            if depth > 0 {
                // The children: what is indented more, from the line after the key on. An item's first line is its own.
                let is_item = self.lines[range.start].trim_start().starts_with("- ");
                let first = if is_item { range.start } else { range.start + 1 };
                let next = (first..range.end).find(|&line| !is_blank(&self.lines[line]))?;
                indent = if is_item { indent } else { indent_of(&self.lines[next]) };
                range = first..range.end;
            }
            range = match part.parse::<usize>() {
                Ok(index) => {
                    let (found, inner) = self.item(&range, indent, index)?;
                    indent = inner;
                    found
                }
                Err(_) => self.key(&range, indent, part)?,
            };
        }
        Some((range, indent))
    }

    /// The node of a key at this indentation.
    fn key(&self, within: &Range<usize>, indent: usize, key: &str) -> Option<Range<usize>> {
        let is_it = |line: &usize| {
            // `- name: x` is the first key of an item.
            let text = self.lines[*line].replacen("- ", "  ", 1);
            let text = if *line == within.start { &text } else { &self.lines[*line] };
            let rest = text.trim_start();
            indent_of(text) == indent
                && rest.strip_prefix(key).is_some_and(|rest| rest == ":" || rest.starts_with(": "))
        };
        let start = within.clone().find(is_it)?;
        let end = (start + 1..within.end)
            .find(|&line| !is_blank(&self.lines[line]) && indent_of(&self.lines[line]) <= indent)
            .unwrap_or(within.end);
        Some(start..self.without_trailing_comments(start, end))
    }

    /// An item of a list whose dashes are at this indentation, and the indentation of what is in it.
    fn item(&self, within: &Range<usize>, indent: usize, index: usize) -> Option<(Range<usize>, usize)> {
        let starts: Vec<usize> = within
            .clone()
            .filter(|&line| {
                indent_of(&self.lines[line]) == indent && self.lines[line].trim_start().starts_with("- ")
            })
            .collect();
        let start = *starts.get(index)?;
        let end = starts.get(index + 1).copied().unwrap_or(within.end);
        Some((start..self.without_trailing_comments(start, end), indent + 2))
    }

    /// Comments and blank lines at the end belong to what follows.
    fn without_trailing_comments(&self, start: usize, end: usize) -> usize {
        let last = (start..end).rev().find(|&line| !is_blank(&self.lines[line]));
        last.map_or(end, |last| last + 1)
    }

    fn node(&self, path: &str) -> Result<(Range<usize>, usize)> {
        self.find(path).with_context(|| format!("no `{path}` in: {}", self.lines.join("\n")))
    }

    pub(super) fn has(&self, path: &str) -> bool {
        self.find(path).is_some()
    }

    /// Puts lines in a node's place, indented as it was.
    pub(super) fn replace(&mut self, path: &str, with: &str) -> Result<()> {
        let (range, indent) = self.node(path)?;
        self.lines.splice(range, indented(with, indent));
        Ok(())
    }

    /// The same, and in that of the comment above it.
    pub(super) fn replace_with_comment(&mut self, path: &str, with: &str) -> Result<()> {
        let (mut range, indent) = self.node(path)?;
        while range.start > 0 && self.lines[range.start - 1].trim_start().starts_with('#') {
            range.start -= 1;
        }
        self.lines.splice(range, indented(with, indent));
        Ok(())
    }

    /// Adds lines after a node, indented as it is.
    pub(super) fn add_after(&mut self, path: &str, what: &str) -> Result<()> {
        let (range, indent) = self.node(path)?;
        self.lines.splice(range.end..range.end, indented(what, indent));
        Ok(())
    }

    /// Adds lines at the end of a node, indented as its children are.
    pub(super) fn add_in(&mut self, path: &str, what: &str) -> Result<()> {
        let (range, _) = self.node(path)?;
        let first = (range.start + 1..range.end).find(|&line| !is_blank(&self.lines[line]));
        let indent = first.map(|line| indent_of(&self.lines[line]));
        let indent = indent.with_context(|| format!("nothing is in `{path}`"))?;
        self.lines.splice(range.end..range.end, indented(what, indent));
        Ok(())
    }

    /// Takes lines away that say this and nothing else.
    pub(super) fn remove(&mut self, text: &str) {
        self.lines.retain(|line| line.trim_start() != text);
    }

    /// Puts text in the place of other text, wherever it is.
    pub(super) fn substitute(&mut self, text: &str, with: &str) {
        for line in &mut self.lines {
            *line = line.replace(text, with);
        }
    }
}

fn is_blank(line: &str) -> bool {
    let line = line.trim_start();
    line.is_empty() || line.starts_with('#') || line.starts_with("{{")
}

fn indent_of(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

fn indented(text: &str, indent: usize) -> Vec<String> {
    text.lines().map(|line| format!("{}{line}", " ".repeat(indent))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
kind: A
metadata:
  name: a
spec:
  # About b.
  b:
    c: 1
  list:
    - name: x
      d: 2
      # About e.
      e:
        f: 3
    - name: y
  # About z.
  z: 4
";

    fn edited(edit: impl FnOnce(&mut Document) -> Result<()>) -> String {
        let mut document = Document::new(TEXT);
        edit(&mut document).expect("the node is there");
        document.text()
    }

    #[test]
    fn nodes_are_replaced_with_what_is_in_them() {
        let replaced = |path: &str| edited(|document| document.replace(path, "new: 1"));
        assert_eq!(replaced("kind"), TEXT.replace("kind: A", "new: 1"));
        assert_eq!(replaced("spec.b"), TEXT.replace("  b:\n    c: 1", "  new: 1"));
        assert_eq!(replaced("spec.list.0.d"), TEXT.replace("d: 2", "new: 1"));
        assert_eq!(replaced("spec.list.0.e"), TEXT.replace("      e:\n        f: 3", "      new: 1"));
        assert_eq!(replaced("spec.list.0.e.f"), TEXT.replace("f: 3", "new: 1"));
        assert_eq!(replaced("spec.z"), TEXT.replace("z: 4", "new: 1"));
        let without = edited(|document| document.replace_with_comment("spec.list.0.e", "new: 1"));
        assert_eq!(without, TEXT.replace("      # About e.\n      e:\n        f: 3", "      new: 1"));
    }

    #[test]
    fn lines_are_added_where_the_node_ends() {
        assert_eq!(
            edited(|document| document.add_in("spec.list", "- name: z")),
            TEXT.replace("    - name: y\n", "    - name: y\n    - name: z\n")
        );
        assert_eq!(
            edited(|document| document.add_after("spec.b", "n: 1\nm: 2")),
            TEXT.replace("    c: 1\n", "    c: 1\n  n: 1\n  m: 2\n")
        );
        assert_eq!(
            edited(|document| document.add_in("spec.list.0.e", "g: 4")),
            TEXT.replace("        f: 3\n", "        f: 3\n        g: 4\n")
        );
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        let document = Document::new(TEXT);
        for path in ["x", "spec.c", "spec.list.2", "spec.list.1.d", "metadata.name.x", "spec.b.c.d", "e"] {
            assert!(!document.has(path), "{path}");
            assert!(document.clone().replace(path, "a: 1").is_err(), "{path}");
        }
        for path in ["spec.list.1", "spec.list.1.name", "spec.list.0.e.f"] {
            assert!(document.has(path), "{path}");
        }
    }
}
