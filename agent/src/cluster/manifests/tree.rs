//! A YAML (or JSON) file as a tree whose every value knows its line.
//!
//! Kubernetes's types are read from the tree rather than from the text, so that a problem found much later (a port
//! out of range, two Services of one name) can still say where it stands.

use std::{panic::resume_unwind, thread};

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_json::{Number, Value as Json};
use serde_saphyr::Spanned;

use crate::api;

/// A value and the line on which it begins, from 1.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) line: u32,
    pub(crate) value: Value,
}

#[derive(Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Number(Number),
    /// A number that begins with 0, as it is written: octal for kubectl (YAML 1.1), decimal for YAML 1.2.
    LeadingZero(String),
    String(String),
    Sequence(Vec<Node>),
    Mapping(Vec<(String, Node)>),
}

/// Levels of mappings and sequences in each other. Objects of Kubernetes have a dozen.
const DEEPEST: usize = 100;

/// More than these levels take, also in a build without optimization, which needs about 4 MiB.
const STACK_BYTES: usize = 16 * 1024 * 1024;

const TAB: &str = "YAML does not allow tabs for indentation: write spaces";

/// Why a text is no YAML.
#[derive(Debug)]
pub(crate) struct SyntaxError {
    pub(crate) line: Option<u32>,
    pub(crate) message: String,
}

/// All documents of a file. Empty ones are left out.
pub(crate) fn parse(text: &str) -> Result<Vec<Node>, SyntaxError> {
    // On a thread of its own, because the parser recurses: a file must not end the process that reads it.
    thread::scope(|scope| {
        let reading = thread::Builder::new().name("manifest".to_owned()).stack_size(STACK_BYTES);
        match reading.spawn_scoped(scope, || read(text)) {
            Ok(reading) => reading.join().unwrap_or_else(|panic| resume_unwind(panic)),
            Err(e) => Err(SyntaxError { line: None, message: format!("no thread to read it: {e}") }),
        }
    })
}

fn read(text: &str) -> Result<Vec<Node>, SyntaxError> {
    // A dump of a large cluster is one document of a million lines; what must stay bounded is what aliases make of
    // a small text, and that is what the limits on replayed and recorded events (left as they are) are for.
    let budget = serde_saphyr::budget! {
        max_events: usize::MAX,
        max_nodes: usize::MAX,
        max_documents: usize::MAX,
        max_total_scalar_bytes: usize::MAX,
        max_depth: DEEPEST,
    };
    let options =
        serde_saphyr::options! { budget: budget, with_snippet: false, leading_zero_numbers_as_strings: true };
    serde_saphyr::from_multiple_with_options::<Node>(text, options).map_err(|e| {
        let line = e.location().map(|at| at.line()).filter(|line| *line > 0);
        let line = line.and_then(|line| u32::try_from(line).ok());
        if let Some(line) = line.and_then(|line| tab(text, line)) {
            return SyntaxError { line: Some(line), message: TAB.to_owned() };
        }
        SyntaxError { line, message: plain(&e.to_string()) }
    })
}

/// The parser's message without the words that are for its own callers.
fn plain(message: &str) -> String {
    if let Some((_, rest)) = message.split_once("duplicate mapping key: ") {
        let key = rest.split(", set ").next().unwrap_or(rest);
        return format!("the key {key} is there twice");
    }
    if message.contains("Depth {") || message.contains("recursion limit exceeded") {
        return format!("it is nested deeper than {DEEPEST} levels");
    }
    if message.contains("budget breached") || message.contains("alias replay limit") {
        return "its aliases (*name) stand for more than a manifest may be".to_owned();
    }
    if let Some((_, rest)) = message.split_once("non-finite float ") {
        let number = rest.split(" rejected").next().unwrap_or(rest);
        return format!("{number} is no number that an object can have");
    }
    message.to_owned()
}

/// The line at or beside this one that begins with a tab, where that is a mistake: JSON may be indented by what it likes.
fn tab(text: &str, line: u32) -> Option<u32> {
    let is_json = text.trim_start().starts_with(['{', '[']);
    let is_indented = |line: &str| {
        let indentation = &line[..line.len() - line.trim_start_matches([' ', '\t']).len()];
        indentation.contains('\t') && !line.trim().is_empty()
    };
    let near = (1..).zip(text.lines()).skip(line.saturating_sub(2) as usize).take(3);
    near.filter(|(_, text)| !is_json && is_indented(text)).map(|(number, _)| number).next()
}

/// `010`, with a sign or without.
fn has_leading_zero(text: &str) -> bool {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// What kubectl makes of a number with a leading 0: octal if it can be, else decimal.
fn as_kubectl(text: &str) -> Option<Number> {
    let octal = i64::from_str_radix(text, 8).ok().map(Number::from);
    octal.or_else(|| number(text.parse().ok()?))
}

/// A number as kubectl sends it: `1e3` and `5.0` are whole.
fn number(value: f64) -> Option<Number> {
    // Above this not every whole number has a value of its own.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() <= EXACT {
        return Some(Number::from(value as i64));
    }
    Number::from_f64(value)
}

impl Node {
    pub(crate) fn get(&self, key: &str) -> Option<&Node> {
        match &self.value {
            Value::Mapping(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, node)| node),
            _ => None,
        }
    }

    pub(crate) fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    pub(crate) fn is_null(&self) -> bool {
        matches!(self.value, Value::Null)
    }

    pub(crate) fn is_mapping(&self) -> bool {
        matches!(self.value, Value::Mapping(_))
    }

    /// `the string "hello"`
    pub(crate) fn described(&self) -> String {
        match &self.value {
            Value::LeadingZero(text) => text.clone(),
            Value::String(text) => format!("the string {:?}", text.chars().take(80).collect::<String>()),
            Value::Sequence(_) => "a list".to_owned(),
            Value::Mapping(_) => "a mapping".to_owned(),
            Value::Null | Value::Bool(_) | Value::Number(_) => self.to_json().to_string(),
        }
    }

    /// Numbers that are not the same to all readers: their fields, and what is wrong with them.
    pub(crate) fn ambiguous_numbers(&self) -> Vec<(String, String)> {
        fn look(node: &Node, field: &str, found: &mut Vec<(String, String)>) {
            match &node.value {
                Value::LeadingZero(text) => {
                    let (octal, decimal) = (as_kubectl(text), text.parse::<i64>().ok().map(Number::from));
                    if let Some((octal, decimal)) = octal.zip(decimal).filter(|(one, other)| one != other) {
                        let message = format!(
                            "{text} is {octal} for kubectl, since a leading 0 means octal: write {octal} or {decimal}"
                        );
                        found.push((field.to_owned(), message));
                    }
                }
                Value::Sequence(nodes) => {
                    for (i, node) in nodes.iter().enumerate() {
                        look(node, &format!("{field}[{i}]"), found);
                    }
                }
                Value::Mapping(entries) => {
                    for (name, node) in entries {
                        let field = if field.is_empty() { name.clone() } else { api::field_of(field, name) };
                        look(node, &field, found);
                    }
                }
                _ => {}
            }
        }
        let mut found = Vec::new();
        look(self, "", &mut found);
        found
    }

    pub(crate) fn as_sequence(&self) -> Option<&[Node]> {
        match &self.value {
            Value::Sequence(nodes) => Some(nodes),
            _ => None,
        }
    }

    /// The line of a field such as `spec.ports[0].port` or `metadata.labels["a.b/c"]`; of the innermost part of
    /// that path that exists, where the field itself does not.
    pub(crate) fn line_of(&self, field: &str) -> u32 {
        let mut node = self;
        let mut rest = field;
        while !rest.is_empty() {
            let next;
            if let Some(quoted) = rest.strip_prefix("[\"") {
                let Some((key, after)) = quoted.split_once("\"]") else { break };
                (next, rest) = (node.get(key), after);
            } else if let Some(indexed) = rest.strip_prefix('[') {
                let Some((index, after)) = indexed.split_once(']') else { break };
                let index = index.parse::<usize>().ok();
                next = index.zip(node.as_sequence()).and_then(|(index, nodes)| nodes.get(index));
                rest = after;
            } else {
                let key = rest.strip_prefix('.').unwrap_or(rest);
                let end = key.find(['.', '[']).unwrap_or(key.len());
                (next, rest) = (node.get(&key[..end]), &key[end..]);
            }
            match next {
                Some(next) => node = next,
                None => break,
            }
        }
        node.line
    }

    /// Reads a Kubernetes type. The error is the path of the field, as [`Node::line_of`] takes it, and what is wrong.
    pub(crate) fn read<T: serde::de::DeserializeOwned>(&self) -> Result<T, (String, String)> {
        serde_path_to_error::deserialize(self.to_json())
            .map_err(|e| (api::path_of(e.path()), api::plain::words(e.inner())))
    }

    pub(crate) fn to_json(&self) -> Json {
        match &self.value {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::Bool(*value),
            Value::Number(value) => Json::Number(value.clone()),
            Value::LeadingZero(text) => as_kubectl(text).map_or(Json::Null, Json::Number),
            Value::String(value) => Json::String(value.clone()),
            Value::Sequence(nodes) => Json::Array(nodes.iter().map(Self::to_json).collect()),
            Value::Mapping(entries) => {
                Json::Object(entries.iter().map(|(key, node)| (key.clone(), node.to_json())).collect())
            }
        }
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Spanned { value, referenced, defined } = Spanned::<Value>::deserialize(deserializer)?;
        let value = match value {
            // In quotes it would take more room.
            Value::String(text) if has_leading_zero(&text) && defined.span().len() == text.len() as u64 => {
                Value::LeadingZero(text)
            }
            value => value,
        };
        Ok(Self { line: u32::try_from(referenced.line()).unwrap_or(u32::MAX), value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Number(value.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        number(value)
            .map(Value::Number)
            .ok_or_else(|| E::custom(format!("{value} is no number that JSON knows")))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut nodes = Vec::new();
        while let Some(node) = items.next_element()? {
            nodes.push(node);
        }
        Ok(Value::Sequence(nodes))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry::<String, Node>()? {
            entries.push(entry);
        }
        Ok(Value::Mapping(entries))
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    const TEXT: &str = "\
# a comment
metadata:
  labels:
    a.b/c: 'x'
spec:
  ports:
  - port: 80
  - {name: web,
     port: 81}
---
---
- 1
- true
- ~
- 1.5
";

    #[test]
    fn what_cannot_be_read_has_plain_words() {
        let bomb = (0..9).fold("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned(), |text, n| {
            text + &format!("a{0}: &a{0} [{1}]\n", n + 1, vec![format!("*a{n}"); 10].join(", "))
        });
        let table = [
            ("a: 1\nb: 2\na: 3\n".to_owned(), "the key a is there twice"),
            ("[".repeat(200) + &"]".repeat(200), "it is nested deeper than 100 levels"),
            (bomb, "its aliases (*name) stand for more than a manifest may be"),
            ("a: .inf\n".to_owned(), "`.inf` is no number that an object can have"),
        ];
        for (text, expected) in table {
            assert_eq!(parse(&text).unwrap_err().message, expected);
        }
    }

    #[test]
    fn every_value_knows_its_line() {
        let documents = parse(TEXT).unwrap();
        assert_eq!(documents.len(), 2, "empty documents do not count");
        let lines = [
            ("metadata.labels[\"a.b/c\"]", 4),
            ("spec.ports[0].port", 7),
            ("spec.ports[1].name", 8),
            ("spec.ports[1].port", 9),
            // What is not there: the innermost part that is.
            ("spec.ports[1].protocol", 8),
            ("spec.ports[7].port", 7),
            ("metadata.annotations[\"x\"]", 3),
            ("", 2),
            ("spec.ports[oops", 7),
        ];
        for (field, line) in lines {
            assert_eq!(documents[0].line_of(field), line, "{field}");
        }
        assert_eq!(documents[1].line_of("[3]"), 15);
    }

    #[test]
    fn numbers_are_what_kubectl_makes_of_them() {
        let text = "a: [010, '010', 1e3, 5.0, -010, 08, 007, 0, 0.5, 1_000, 0x10, 1e300]\nb: {c: 0644}\nd: |-\n  010\n";
        let documents = parse(text).unwrap();
        assert_eq!(
            documents[0].to_json(),
            serde_json::json!({
                "a": [8, "010", 1000, 5, -8, 8, 7, 0, 0.5, 1000, 16, 1e300], "b": {"c": 420}, "d": "010"
            })
        );
        let ambiguous: Vec<_> = documents[0].ambiguous_numbers();
        let fields: Vec<_> = ambiguous.iter().map(|(field, _)| &**field).collect();
        assert_eq!(fields, ["a[0]", "a[4]", "b.c"]);
        assert_eq!(ambiguous[0].1, "010 is 8 for kubectl, since a leading 0 means octal: write 8 or 10");
    }

    #[test]
    fn tabs_are_named_where_they_are_the_mistake() {
        for (text, line) in [
            ("a:\n\tb: 1\n", 2),
            ("a:\n  b: 1\n\tc: 2\n", 3),
            ("kind: Pod\nspec:\n  ports:\n  - port: 80\n\t  name: x\n", 5),
            ("a:\n\t- 1\n", 2),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!((error.line, &*error.message), (Some(line), TAB), "{text:?}");
        }
        for text in ["{\n\t\"a\": 1\n\t\"b\": 2\n}\n", "a: 1\nb: [1, 2\n"] {
            let error = parse(text).unwrap_err();
            assert!(!error.message.contains("tabs"), "{text:?}: {error:?}");
        }
        // In a text a tab is a tab.
        assert_eq!(parse("a: |\n  \tb\nc: 1\n").unwrap().len(), 1);
    }

    #[test]
    fn json_is_yaml_too_also_with_tabs() {
        let documents = parse("{\n\t\"kind\": \"Pod\",\n\t\"spec\": {\"a\": [1, \"2\"]}\n}\n").unwrap();
        assert_eq!(documents[0].get("kind").and_then(Node::as_str), Some("Pod"));
        assert_eq!(documents[0].line_of("spec.a[1]"), 3);
    }

    #[test]
    fn aliases_and_merge_keys_are_followed() {
        let documents = parse("base: &b {x: 1}\nmore:\n  <<: *b\n  y: *b\n").unwrap();
        let more = documents[0].get("more").unwrap();
        assert_eq!(more.to_json(), serde_json::json!({"x": 1, "y": {"x": 1}}));
    }

    #[test]
    fn syntax_errors_say_where() {
        for (text, line) in [
            ("a: 1\nb: [1, 2\n", 3),
            ("a: 1\n  b: 2\n", 2),
            ("a: 1\na: 2\n", 2),
            ("kind: {{ .Values.kind }}\n", 1),
            ("a: \"open\nb: 1\n", 1),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.line.is_some_and(|found| found.abs_diff(line) <= 1), "{text:?}: {error:?}");
            assert!(!error.message.is_empty() && !error.message.contains('\n'), "{text:?}: {error:?}");
        }
    }

    #[test]
    fn a_small_text_cannot_become_a_large_tree() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for i in 1..12 {
            let before = format!("*a{}", i - 1);
            let _ = writeln!(text, "a{i}: &a{i} [{}]", vec![before; 10].join(", "));
        }
        assert!(parse(&text).is_err());
    }

    #[test]
    fn type_errors_carry_the_path() {
        let documents = parse("spec:\n  ports:\n  - port: eighty\n").unwrap();
        let (field, message) = documents[0].read::<k8s_openapi::api::core::v1::Service>().unwrap_err();
        assert_eq!(field, "spec.ports[0].port");
        assert_eq!(message, "a whole number is needed, not the string \"eighty\"");
    }
}
