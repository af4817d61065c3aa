//! How the demo tells what it shows: chapters, claims that are checked, tables.

use sluice_tests::LoadReport;

/// What is told, and which claims did not hold.
#[derive(Default)]
pub(crate) struct Story {
    chapters: usize,
    pub(crate) broken: Vec<String>,
}

impl Story {
    pub(crate) fn chapter(&mut self, title: &str) {
        self.chapters += 1;
        println!("\n{}. {title}", self.chapters);
    }

    pub(crate) fn claim(&mut self, holds: bool, text: &str) {
        println!("   {} {text}", if holds { "[ok]" } else { "[FAILED]" });
        if !holds {
            self.broken.push(format!("chapter {}: {text}", self.chapters));
        }
    }
}

pub(crate) fn say(text: &str) {
    println!("   {text}");
}

/// Rows with a heading each, in columns as wide as they need to be.
pub(crate) fn table(columns: &[&str], rows: impl Iterator<Item = (String, Vec<String>)>) {
    let rows: Vec<_> = rows.collect();
    let heading = rows.iter().map(|(heading, _)| heading.len()).max().unwrap_or_default();
    let width = |index: usize| {
        let cells = rows.iter().filter_map(|(_, cells)| cells.get(index)).map(String::len);
        cells.chain([columns[index].len()]).max().unwrap_or_default()
    };
    let line = |heading_text: &str, cells: Vec<&str>| {
        let mut text = format!("     {heading_text:heading$}");
        for (index, cell) in cells.into_iter().enumerate().take(columns.len()) {
            text.push_str("  ");
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', width(index).saturating_sub(cell.len())));
        }
        println!("{}", text.trim_end());
    };
    line("", columns.to_vec());
    for (heading_text, cells) in &rows {
        line(heading_text, cells.iter().map(String::as_str).collect());
    }
}

/// What a load saw.
pub(crate) fn loads(report: &LoadReport) {
    let direct = report.ok - report.marked;
    let cells = [report.sent, report.failed, report.marked, direct].map(|number| number.to_string());
    table(
        &["sent", "failed", "through Sluice", "direct"],
        [("requests".to_owned(), cells.to_vec())].into_iter(),
    );
    for (kind, count) in &report.failures {
        say(&format!("  {count} failed: {kind}"));
    }
}
