//! Columns for people: as wide as what is in them. Every cell is made inert.

use std::fmt::Write as _;

use super::inert::inert;

/// Lines of columns, aligned; the last column is not padded.
pub(crate) fn table<const N: usize>(indent: usize, rows: &[[String; N]]) -> String {
    let rows: Vec<[String; N]> = rows.iter().map(|row| row.each_ref().map(|cell| inert(cell))).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; N] = std::array::from_fn(width);
    let mut out = String::new();
    for row in &rows {
        let mut line = " ".repeat(indent);
        for (cell, width) in row.iter().zip(widths) {
            // Writing to a string cannot fail.
            let _ = write!(line, "{cell:width$}  ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let rows = [["a", "long one", "x"], ["bbb", "", "\u{1b}"]].map(|row| row.map(str::to_owned));
        assert_eq!(table(2, &rows), "  a    long one  x\n  bbb            \\u{1b}\n");
        assert_eq!(table::<2>(0, &[]), "");
    }
}
