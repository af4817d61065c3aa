//! Whether what the project refers to is there: links of its pages, and files and sections that pages, comments and manifests
//! name. Whoever reads one has the project and nothing else.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::workspace;

/// Where a file that is named may be, besides the root and next to who names it.
const PLACES: [&str; 2] = ["agent/src", "deploy"];

/// What must not be named at all: notes that never were a part of the project.
const ELSEWHERE: &str = concat!("DES", "IGN");

/// What a release makes, and is named where that is told.
const MADE: [&str; 1] = ["NOTES.md"];

/// Something that is named, and the line that names it.
#[derive(Debug, PartialEq, Eq)]
struct Named<'a> {
    line: usize,
    /// A path, or nothing for the page itself.
    file: &'a str,
    section: Option<&'a str>,
}

/// Fails with every reference that leads nowhere.
pub(crate) fn check() -> Result<()> {
    let dangling = dangling(workspace::root())?;
    if !dangling.is_empty() {
        bail!("references that lead nowhere:\n{}", dangling.join("\n"));
    }
    Ok(())
}

fn dangling(root: &Path) -> Result<Vec<String>> {
    let mut files = Vec::new();
    walk(root, &mut files)?;
    let mut dangling = Vec::new();
    for path in files {
        let name = path.strip_prefix(root).unwrap_or(&path);
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
        let (says, links) = match extension {
            // It tells of what is no longer there.
            "md" if name == Path::new("CHANGELOG.md") => (String::new(), links(&text)),
            "md" => (text.clone(), links(&text)),
            "rs" => (comments(&text, "//"), Vec::new()),
            "yaml" | "env" | "toml" => (comments(&text, "#"), Vec::new()),
            _ => continue,
        };
        for Named { line, file, section } in &links {
            if !leads_somewhere(&[path.parent().unwrap_or(root).join(file)], &path, file, *section) {
                dangling.push(describe(name, *line, file, *section));
            }
        }
        for Named { line, file, section } in &prose(&says) {
            let mut candidates = vec![root.join(file), path.parent().unwrap_or(root).join(file)];
            candidates.extend(PLACES.iter().map(|place| root.join(place).join(file)));
            let is_there = MADE.contains(file) || leads_somewhere(&candidates, &path, file, *section);
            if *file == ELSEWHERE || !is_there {
                dangling.push(describe(name, *line, file, *section));
            }
        }
    }
    // The target of a link is also named by the page.
    let mut seen = BTreeSet::new();
    dangling.retain(|one| seen.insert(one.clone()));
    Ok(dangling)
}

fn describe(name: &Path, line: usize, file: &str, section: Option<&str>) -> String {
    let section = section.map(|section| format!("#{section}")).unwrap_or_default();
    format!("{}:{line}: {file}{section}", name.display())
}

/// All files below a directory, without what is built or hidden.
fn walk(directory: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let entries =
        std::fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
    let mut paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.sort();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                walk(&path, found)?;
            }
        } else {
            found.push(path);
        }
    }
    Ok(())
}

fn leads_somewhere(candidates: &[PathBuf], page: &Path, file: &str, section: Option<&str>) -> bool {
    let has = |found: &Path| match section {
        None => true,
        Some(section) => std::fs::read_to_string(found).is_ok_and(|text| sections(&text).contains(section)),
    };
    if file.is_empty() {
        return has(page);
    }
    // Pages of one name are in several folders.
    candidates.iter().any(|candidate| candidate.exists() && has(candidate))
}

/// The anchors of a page's headings, as GitHub makes them.
fn sections(page: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let headings = without_blocks(page).filter(|(_, line)| line.starts_with('#'));
    for (_, heading) in headings {
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        // The second of a name is numbered.
        let free = (0_u32..).map(|n| if n == 0 { anchor.clone() } else { format!("{anchor}-{n}") });
        found.extend(free.into_iter().find(|anchor| !found.contains(anchor)));
    }
    found
}

/// The lines of a page that are not in code blocks, with their numbers.
fn without_blocks(page: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut in_block = false;
    page.lines().enumerate().filter_map(move |(at, line)| {
        // A block may be all of a list's item.
        let item = line.trim_start().trim_start_matches(|c: char| c.is_ascii_digit() || ". -".contains(c));
        if item.starts_with("```") {
            in_block = !in_block;
            return None;
        }
        (!in_block).then_some((at + 1, line))
    })
}

/// The links of a page to files and sections of the project.
fn links(page: &str) -> Vec<Named<'_>> {
    let mut found = Vec::new();
    for (line, text) in without_blocks(page) {
        // What is code is no link.
        for part in text.split('`').step_by(2) {
            for (_, rest) in part.match_indices("](").map(|(at, opening)| part.split_at(at + opening.len())) {
                let target = rest.split([')', ' ']).next().unwrap_or_default();
                if !target.contains("://") && !target.starts_with("mailto:") {
                    found.push(named(line, target));
                }
            }
        }
    }
    found
}

fn named(line: usize, target: &str) -> Named<'_> {
    match target.split_once('#') {
        Some((file, section)) => Named { line, file, section: Some(section) },
        None => Named { line, file: target, section: None },
    }
}

/// The comments of a text, each line at its place.
fn comments(text: &str, mark: &str) -> String {
    let comment = |line: &str| match line.trim_start().strip_prefix(mark) {
        Some(comment) => format!("{comment}\n"),
        None => "\n".to_owned(),
    };
    text.lines().map(comment).collect()
}

/// Files that a text names: pages, with a section or without, and paths that begin with one of the project's folders.
fn prose(text: &str) -> Vec<Named<'_>> {
    let part = |c: char| c.is_alphanumeric() || "_-./#:".contains(c);
    let mut found = Vec::new();
    for (line, text) in without_blocks(text) {
        for word in text.split(|c| !part(c)).map(|word| word.trim_end_matches(['.', ':', '/', '-'])) {
            let named = named(line, word);
            let is_page = Path::new(named.file).extension().is_some_and(|extension| extension == "md");
            let folder = ["agent", "deploy", "ebpf", "tests", "xtask"].iter();
            let is_path =
                folder.clone().any(|top| word.strip_prefix(top).is_some_and(|rest| rest.starts_with('/')));
            if !word.contains(':') && !word.starts_with('/') && (is_page || is_path) || word == ELSEWHERE {
                found.push(named);
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_is_named_is_there() {
        assert_eq!(dangling(workspace::root()).expect("a tree of files"), Vec::<String>::new());
    }

    #[test]
    fn links_are_those_outside_of_code() {
        let page = "[a](b.md#c) and `[no](x.md)`, [d](https://e.example/f.md)\n```\n[no](y.md)\n```\n![g](h/i.png) [j](#k)\n";
        let named = |line, file, section| Named { line, file, section };
        assert_eq!(
            links(page),
            [named(1, "b.md", Some("c")), named(5, "h/i.png", None), named(5, "", Some("k"))]
        );
    }

    #[test]
    fn pages_and_paths_are_found_in_prose() {
        let text =
            "See README.md, `deploy/x/y.yaml`, and A.md#b-c. Not https://h.example/a/Z.md or agent/.\n";
        let found: Vec<_> = prose(text).into_iter().map(|named| (named.file, named.section)).collect();
        assert_eq!(found, [("README.md", None), ("deploy/x/y.yaml", None), ("A.md", Some("b-c"))]);
        let words = format!("as {ELSEWHERE} 6.4 says");
        assert_eq!(prose(&words).len(), 1);
        assert_eq!(comments("a // b\n  // c.md\nd\n", "//"), "\n c.md\n\n");
    }

    #[test]
    fn sections_are_named_as_github_names_them() {
        let page = "# A b\n## `x-y`: What, why?\n```\n# no\n```\n## A b\n";
        let expected = ["a-b", "x-y-what-why", "a-b-1"].map(str::to_owned);
        assert_eq!(sections(page), BTreeSet::from(expected));
    }

    #[test]
    fn what_leads_nowhere_is_named_with_its_line() {
        let directory = std::env::temp_dir().join(format!("sluice-references-{}", std::process::id()));
        std::fs::create_dir_all(directory.join("deploy")).expect("a directory");
        let write = |name: &str, text: &str| std::fs::write(directory.join(name), text).expect("a file");
        write("a.md", "# One\n[x](b.md#two) [y](b.md#three) [z](gone.md)\nand `deploy/c.yaml`\n");
        write("b.md", "## Two\n");
        write("deploy/c.yaml", "# d.md says why\na: e.md\n");
        write("f.rs", "let g = \"h.md\"; // not the comment of a line\n//! b.md#four\n");
        let found = dangling(&directory).expect("a tree of files");
        std::fs::remove_dir_all(&directory).expect("to clean up");
        assert_eq!(
            found,
            ["a.md:2: b.md#three", "a.md:2: gone.md", "deploy/c.yaml:1: d.md", "f.rs:2: b.md#four"]
        );
    }
}
