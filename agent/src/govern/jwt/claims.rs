//! What a token says, and whether it says what a rule asks for.

use serde_json::{Map, Value};

/// The claims of a token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Claims(pub(super) Map<String, Value>);

/// Where a claim is: the names on the way to it, each as it is. (They may have dots and slashes in them.)
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimPath(pub Vec<Box<str>>);

/// A condition on a claim: one of the values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimTest {
    pub path: ClaimPath,
    pub values: Vec<Box<str>>,
}

/// Claims that are lists in one text, with blanks between (RFC 8693, section 4.2; Microsoft has the shorter name).
const LISTS: [&str; 2] = ["scope", "scp"];

/// The longest value that becomes a header, in bytes.
const MAX_VALUE: usize = 4 * 1024;

impl Claims {
    fn get(&self, path: &ClaimPath) -> Option<&Value> {
        let (first, rest) = path.0.split_first()?;
        rest.iter().try_fold(self.0.get(&**first)?, |value, name| value.as_object()?.get(&**name))
    }

    /// A claim that is a text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name)?.as_str()
    }

    /// A claim as the value of a header: texts, integers, booleans, and lists of them with commas between. What is not printable
    /// ASCII is percent-encoded, as is the percent sign. `None`: it is not there, or cannot be told from another so.
    pub fn header_value(&self, path: &ClaimPath) -> Option<String> {
        let mut value = String::new();
        match self.get(path)? {
            Value::Array(items) => {
                for (i, item) in items.iter().enumerate() {
                    let item = scalar(item)?;
                    if item.contains(',') {
                        return None;
                    }
                    if i > 0 {
                        value.push(',');
                    }
                    value.push_str(&item);
                }
            }
            one => value.push_str(&scalar(one)?),
        }
        let encoded = percent_encoding::utf8_percent_encode(&value, ENCODED).to_string();
        // White space at the ends is none of a header's value.
        (!encoded.is_empty() && encoded.len() <= MAX_VALUE && encoded.trim() == encoded).then_some(encoded)
    }
}

const ENCODED: &percent_encoding::AsciiSet = &percent_encoding::CONTROLS.add(b'%');

impl ClaimTest {
    pub fn holds(&self, claims: &Claims) -> bool {
        let is_list = matches!(&self.path.0[..], [name] if LISTS.contains(&&**name));
        match claims.get(&self.path) {
            Some(Value::Array(items)) => items.iter().any(|item| self.is_one(item)),
            Some(Value::String(text)) if is_list => text.split_ascii_whitespace().any(|part| self.has(part)),
            Some(one) => self.is_one(one),
            None => false,
        }
    }

    fn is_one(&self, value: &Value) -> bool {
        scalar(value).is_some_and(|text| self.has(&text))
    }

    fn has(&self, text: &str) -> bool {
        self.values.iter().any(|value| **value == *text)
    }
}

/// A text, an integer of 64 bits or a boolean, as JSON writes it. Another number is known only as the nearest one that a float can be, so
/// that two that differ could be taken for each other: it is no value.
fn scalar(value: &Value) -> Option<std::borrow::Cow<'_, str>> {
    match value {
        Value::String(text) => Some(text.into()),
        Value::Number(number) if number.is_f64() => None,
        Value::Number(number) => Some(number.to_string().into()),
        Value::Bool(is) => Some(if *is { "true" } else { "false" }.into()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}
