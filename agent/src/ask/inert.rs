//! Text from elsewhere, made harmless for a terminal: paths, labels and bodies are whatever somebody sent.

use std::fmt::Write as _;

/// The same with everything that a terminal would obey or be misled by shown as an escape, `\u{1b}`: control characters of
/// both sets, line ends, and those that turn the direction of text around or cannot be seen.
pub fn inert(text: &str) -> String {
    escaped(text, false)
}

/// The same of several lines: their ends, and tabs, are left.
pub fn inert_lines(text: &str) -> String {
    escaped(text, true)
}

fn escaped(text: &str, lines: bool) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if is_obeyed(character) && !(lines && matches!(character, '\n' | '\t')) {
            out.extend(character.escape_unicode());
        } else {
            out.push(character);
        }
    }
    out
}

/// A JSON document in which no character is obeyed: `serde_json` leaves those above ASCII's own as they are.
pub fn inert_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for character in json.chars() {
        if is_obeyed(character) && character != '\n' {
            // All of them are in the first plane, so one unit is enough. Writing to a string cannot fail.
            let _ = write!(out, "\\u{:04x}", u32::from(character));
        } else {
            out.push(character);
        }
    }
    out
}

/// <https://www.unicode.org/reports/tr9/#Directional_Formatting_Characters>
fn is_obeyed(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "a\u{1b}[2Jb\r\n\u{9b}31mc\u{202e}d\u{7f}\u{200b}\u{7}";

    #[test]
    fn nothing_is_left_that_a_terminal_obeys() {
        let shown = inert(HOSTILE);
        assert_eq!(shown, r"a\u{1b}[2Jb\u{d}\u{a}\u{9b}31mc\u{202e}d\u{7f}\u{200b}\u{7}");
        assert!(!shown.chars().any(is_obeyed));
        assert_eq!(inert_lines("a\tb\n\u{1b}c"), "a\tb\n\\u{1b}c");
        assert_eq!(inert("gray, grün, 灰"), "gray, grün, 灰");
    }

    #[test]
    fn json_stays_the_same_json() {
        let value = serde_json::json!({ "key": HOSTILE });
        let shown = inert_json(&serde_json::to_string_pretty(&value).unwrap());
        assert!(!shown.chars().any(|character| is_obeyed(character) && character != '\n'));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }
}
