//! YAML as `kubectl` reads it, which is not as YAML 1.2 has it: words such as `on` and `no` are booleans, and keys too.
//!
//! kubectl turns YAML into JSON with `sigs.k8s.io/yaml`, whose reader is go-yaml v2: YAML 1.1 but for its numbers with
//! colons. The rules are those of its `resolve.go`. What two readers understand differently is an error here, and so is
//! a key that stands twice in a map, which the API server refuses under strict field validation.
//!
//! <https://github.com/kubernetes-sigs/yaml>

use std::collections::HashMap;

use anyhow::{Result, bail, ensure};
use granit_parser::{Event, Parser, ScalarStyle};
use serde_json::{Map, Number, Value};

/// All documents of a text, as the JSON that kubectl sends. Empty documents are left out, as kubectl does.
pub fn read(text: &str) -> Result<Vec<Value>> {
    let mut events = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, span) = event?;
        // Not comments.
        let is_structure = matches!(event, Event::DocumentStart(..) | Event::SequenceEnd | Event::MappingEnd);
        if is_structure || event.is_node() {
            events.push((event, span.start.line()));
        }
    }
    let mut reader = Reader { events: events.into_iter(), anchors: HashMap::new() };
    let mut documents = Vec::new();
    while let Some((event, line)) = reader.events.next() {
        match event {
            Event::DocumentStart(..) => reader.anchors.clear(),
            node => {
                let value = reader.node(node, line)?;
                if !value.is_null() {
                    documents.push(value);
                }
            }
        }
    }
    Ok(documents)
}

/// Whether a plain scalar of these characters is anything but text for a reader of YAML 1.1: a boolean, a null, a
/// number (those with colons too, which Python and Ruby read as base 60), a date or a merge key.
pub fn is_not_text(plain: &str) -> bool {
    let date = plain.len() >= 10
        && plain
            .bytes()
            .take(10)
            .enumerate()
            .all(|(at, byte)| if at == 4 || at == 7 { byte == b'-' } else { byte.is_ascii_digit() });
    plain == "<<" || plain == "=" || is_base_60(plain) || date || !resolve(plain).is_string()
}

/// `[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?`: <https://yaml.org/type/int.html>, <https://yaml.org/type/float.html>.
fn is_base_60(plain: &str) -> bool {
    let unsigned = plain.strip_prefix(['+', '-']).unwrap_or(plain);
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_');
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let mut parts = whole.split(':');
    let first = parts.next().unwrap_or_default();
    let mut more = 0;
    let sixtieths = parts.all(|part| {
        more += 1;
        part.parse::<u8>().is_ok_and(|number| number < 60) && part.len() <= 2
    });
    first.starts_with(|first: char| first.is_ascii_digit())
        && digits(first)
        && digits(fraction)
        && more > 0
        && sixtieths
}

struct Reader<'t> {
    events: std::vec::IntoIter<(Event<'t>, usize)>,
    anchors: HashMap<usize, Value>,
}

impl<'t> Reader<'t> {
    fn next(&mut self) -> Result<(Event<'t>, usize)> {
        match self.events.next() {
            Some(event) => Ok(event),
            None => bail!("the text ends within a value"),
        }
    }

    fn node(&mut self, event: Event<'t>, line: usize) -> Result<Value> {
        let (anchor, value) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                ensure!(tag.is_none(), "line {line}: a tag: kubectl's users do not expect any");
                let value = if style == ScalarStyle::Plain { resolve(&text) } else { text.into() };
                (anchor, value)
            }
            Event::SequenceStart(_, anchor, _) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => break,
                        (item, line) => items.push(self.node(item, line)?),
                    }
                }
                (anchor, items.into())
            }
            Event::MappingStart(_, anchor, _) => {
                let mut fields = Map::new();
                loop {
                    let (key, line) = match self.next()? {
                        (Event::MappingEnd, _) => break,
                        (key, line) => (self.node(key, line)?, line),
                    };
                    let (value, at) = self.next()?;
                    let value = self.node(value, at)?;
                    let Value::String(key) = key else {
                        bail!("line {line}: the key {key} is no text for kubectl: put it in quotes");
                    };
                    ensure!(key != "<<", "line {line}: a merge key: readers differ about it");
                    ensure!(
                        fields.insert(key.clone(), value).is_none(),
                        "line {line}: the key {key:?} is there already"
                    );
                }
                (anchor, fields.into())
            }
            Event::Alias(anchor) => match self.anchors.get(&anchor) {
                Some(value) => (0, value.clone()),
                None => bail!("line {line}: an alias without an anchor"),
            },
            other => bail!("line {line}: {other:?} is no value"),
        };
        if anchor != 0 {
            self.anchors.insert(anchor, value.clone());
        }
        Ok(value)
    }
}

/// What go-yaml v2 makes of a plain scalar.
fn resolve(plain: &str) -> Value {
    match plain {
        "y" | "Y" | "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => {
            return true.into();
        }
        "n" | "N" | "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => {
            return false.into();
        }
        // The last are not numbers of JSON, but no text either.
        "" | "~" | "null" | "Null" | "NULL" | ".nan" | ".NaN" | ".NAN" | ".inf" | ".Inf" | ".INF"
        | "+.inf" | "+.Inf" | "+.INF" | "-.inf" | "-.Inf" | "-.INF" => return Value::Null,
        _ => {}
    }
    if !plain.starts_with(|first: char| first.is_ascii_digit() || matches!(first, '+' | '-' | '.')) {
        return plain.into();
    }
    number(&plain.replace('_', "")).unwrap_or_else(|| plain.into())
}

fn number(text: &str) -> Option<Value> {
    if let Some(whole) = whole(text) {
        return Some(whole);
    }
    // [-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?
    let digits = text.trim_start_matches(['+', '-']);
    let looks_like_one = text.len() - digits.len() <= 1
        && digits.bytes().any(|byte| byte.is_ascii_digit())
        && digits
            .bytes()
            .all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-'));
    let float: f64 = looks_like_one.then(|| text.parse().ok())??;
    Number::from_f64(float).map(Value::Number)
}

/// As Go's `ParseInt` with base 0.
fn whole(text: &str) -> Option<Value> {
    let (negative, digits) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let (radix, digits) = match digits.get(..2) {
        Some("0x" | "0X") => (16, &digits[2..]),
        Some("0b" | "0B") => (2, &digits[2..]),
        Some("0o" | "0O") => (8, &digits[2..]),
        _ if digits.len() > 1 && digits.starts_with('0') => (8, &digits[1..]),
        _ => (10, digits),
    };
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let size = i128::from_str_radix(digits, radix).ok()?;
    let signed = if negative { -size } else { size };
    i64::try_from(signed).map(Value::from).or_else(|_| u64::try_from(signed).map(Value::from)).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn words_of_yaml_1_1_are_what_kubectl_makes_of_them() {
        for (text, value) in [
            ("on", json!(true)),
            ("off", json!(false)),
            ("NO", json!(false)),
            ("y", json!(true)),
            ("'on'", json!("on")),
            ("\"no\"", json!("no")),
            ("~x", json!("~x")),
            ("12", json!(12)),
            ("0o17", json!(15)),
            ("017", json!(15)),
            ("0x1F", json!(31)),
            ("-0b11", json!(-3)),
            ("1_000", json!(1000)),
            ("1.5", json!(1.5)),
            ("1e3", json!(1000.0)),
            ("18446744073709551615", json!(u64::MAX)),
            // What is none of these is text.
            ("12:30", json!("12:30")),
            ("1m", json!("1m")),
            ("100Mi", json!("100Mi")),
            ("089", json!(89.0)),
            ("1.2.3", json!("1.2.3")),
            ("10.96.7.3", json!("10.96.7.3")),
            ("2026-01-01", json!("2026-01-01")),
            ("None", json!("None")),
            ("disabled", json!("disabled")),
            ("nope", json!("nope")),
        ] {
            assert_eq!(read(&format!("a: {text}\n")).unwrap(), [json!({"a": value})], "{text}");
        }
        for text in [
            "on",
            "Off",
            "y",
            "N",
            "null",
            "~",
            "",
            "1",
            "1:30",
            "20:30:40.5",
            "2026-01-01",
            "<<",
            ".inf",
            "0x1",
        ] {
            assert!(is_not_text(text), "{text:?}");
        }
        for text in [
            "none",
            "enabled",
            "Enforce",
            "w3c",
            "b3",
            "static",
            "key",
            "10.0.0.1",
            "127.0.0.1:80",
            "1:70",
            "conditions",
            "1m",
        ] {
            assert!(!is_not_text(text), "{text:?}");
        }
    }

    #[test]
    fn documents_anchors_and_flow_collections_are_read() {
        let text = "# first\na: &x [1, {b: c}]\nd: *x\n---\n---\n- e\n...\n";
        let first = json!([1, {"b": "c"}]);
        assert_eq!(read(text).unwrap(), [json!({"a": first, "d": first}), json!(["e"])]);
        assert!(read("# nothing\n").unwrap().is_empty());
    }

    #[test]
    fn what_readers_differ_about_is_an_error() {
        for (text, wrong) in [
            ("a:\n  on: [x]\n", "line 2: the key true is no text"),
            ("1: x\n", "line 1: the key 1 is no text"),
            ("a: 1\nb: 2\na: 3\n", "line 3: the key \"a\" is there already"),
            ("a: &x {b: 1}\nc:\n  <<: *x\n", "line 3: a merge key"),
            ("a: !!str 1\n", "line 1: a tag"),
            ("a: [1\n", "unclosed bracket"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(wrong), "{text:?}: {error}");
        }
    }
}
