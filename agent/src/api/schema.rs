//! The schema of a kind, and what it says about an object.
//!
//! The API server refuses what the schema does not allow. Manifests have no API server, so the very same schema is
//! read here: types, fields that do not exist, bounds, lengths and patterns have one home, the types of this module's
//! siblings. What only a rule in CEL can say is said again as code in their `check`, and a test compares the two.

use std::{collections::BTreeMap, time::Duration};

use regex::Regex;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{
    address,
    field::{At, quoted},
    hint, matching, selector, span,
};
use crate::observe::reason::GRPC_NAMES;

/// What may stand in a place: the part of OpenAPI v3 that a structural schema is made of.
#[derive(Debug)]
pub struct Schema {
    kind: Type,
    enumeration: Vec<String>,
    minimum: Option<f64>,
    maximum: Option<f64>,
    /// Of a text in characters, of a list in items.
    shortest: usize,
    longest: usize,
    pattern: Option<Regex>,
}

#[derive(Debug)]
enum Type {
    Object { properties: BTreeMap<String, Schema>, required: Vec<String> },
    Map(Box<Schema>),
    Array(Box<Schema>),
    String,
    Integer,
    Number,
    Boolean,
}

/// An object that lost a field which was not as it should be. What is found wrong in it afterwards may only be wrong because
/// of that.
pub(super) struct Loss {
    of: String,
    /// The field exists: its value was no good.
    known: bool,
}

impl Loss {
    /// Whether it may be why a field, with this path, looks wrong.
    pub(super) fn explains(&self, field: &str) -> bool {
        if self.known { field.starts_with(&self.of) } else { field == self.of }
    }
}

impl Schema {
    /// Reads a structural schema. `None` if it is none: only what is generated here is ever read.
    pub(super) fn new(json: &Value) -> Option<Self> {
        let length = |least: &str, most: &str| {
            let number = |name: &str| json[name].as_u64().and_then(|number| usize::try_from(number).ok());
            (number(least).unwrap_or(0), number(most).unwrap_or(usize::MAX))
        };
        let strings = |name: &str| -> Vec<String> {
            json[name]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|text| Some(text.as_str()?.to_owned()))
                .collect()
        };
        let ((shortest, longest), kind) = match json["type"].as_str()? {
            "object" => {
                let kind = if let Some(properties) = json["properties"].as_object() {
                    let properties =
                        properties.iter().map(|(name, json)| Some((name.clone(), Self::new(json)?)));
                    Type::Object {
                        properties: properties.collect::<Option<_>>()?,
                        required: strings("required"),
                    }
                } else {
                    Type::Map(Box::new(Self::new(&json["additionalProperties"])?))
                };
                (length("minProperties", "maxProperties"), kind)
            }
            "array" => (length("minItems", "maxItems"), Type::Array(Box::new(Self::new(&json["items"])?))),
            "string" => (length("minLength", "maxLength"), Type::String),
            "integer" => ((0, usize::MAX), Type::Integer),
            "number" => ((0, usize::MAX), Type::Number),
            "boolean" => ((0, usize::MAX), Type::Boolean),
            _ => return None,
        };
        let pattern = match &json["pattern"] {
            Value::String(pattern) => Some(Regex::new(pattern).ok()?),
            _ => None,
        };
        Some(Self {
            kind,
            enumeration: strings("enum"),
            minimum: json["minimum"].as_f64(),
            maximum: json["maximum"].as_f64(),
            shortest,
            longest,
            pattern,
        })
    }

    /// Whether the object is built as it should be: known fields, the right types, all that is needed. What is not is
    /// refused and left out of what is returned; `None` if what is left is nothing whole. Nulls are not there, as with the
    /// API server. `losses` tells of what was left out.
    pub(super) fn shape(&self, value: &Value, at: &At<'_>, losses: &mut Vec<Loss>) -> Option<Value> {
        match (&self.kind, value) {
            (Type::Object { properties, required }, Value::Object(fields)) => {
                let mut kept = Map::new();
                let here = || at.to_string();
                for (name, value) in fields {
                    let at = at.field(name);
                    let Some(schema) = properties.get(name) else {
                        at.refuse(hint::unknown_field(name, properties.keys().map(String::as_str)));
                        losses.push(Loss { of: here(), known: false });
                        continue;
                    };
                    if value.is_null() {
                        continue;
                    }
                    if let Some(value) = schema.shape(value, &at, losses) {
                        kept.insert(name.clone(), value);
                    }
                }
                let wrong = |name: &&String| fields.get(*name).is_some_and(|value| !value.is_null());
                let mut missing = required.iter().filter(|name| !kept.contains_key(*name)).peekable();
                let whole = missing.peek().is_none();
                for name in missing.filter(|name| !wrong(name)) {
                    at.field(name).refuse("not set: it is needed");
                }
                let known = |name: &String, value: &Value| properties.contains_key(name) && !value.is_null();
                if kept.len() < fields.iter().filter(|(name, value)| known(name, value)).count() {
                    losses.push(Loss { of: at.to_string(), known: true });
                }
                whole.then_some(Value::Object(kept))
            }
            (Type::Map(schema), Value::Object(fields)) => {
                let mut kept = Map::new();
                for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
                    kept.insert(name.clone(), schema.shape(value, &at.field(name), losses)?);
                }
                Some(Value::Object(kept))
            }
            (Type::Array(schema), Value::Array(items)) => {
                // All of them are looked at, though the list is lost with the first that is no good.
                let items: Vec<_> = items
                    .iter()
                    .enumerate()
                    .map(|(i, item)| schema.shape(item, &at.index(i), losses))
                    .collect();
                items.into_iter().collect::<Option<_>>().map(Value::Array)
            }
            (Type::String, Value::String(text)) => {
                if self.enumeration.is_empty() || self.enumeration.contains(text) {
                    return Some(value.clone());
                }
                at.refuse(hint::not_one_of(text, self.enumeration.iter().map(String::as_str)));
                None
            }
            (Type::Integer, Value::Number(number)) => {
                if number.is_i64() {
                    return Some(value.clone());
                }
                // As the API server has it, 5.0 is an integer.
                if let Some(whole) = number.as_f64().filter(|n| n.fract() == 0.0 && n.abs() <= 9e15) {
                    return Some((whole as i64).into());
                }
                // A whole number that is too large is one out of bounds, not one of the wrong type.
                let what = if number.is_u64() || number.as_f64().is_some_and(|n| n.fract() == 0.0) {
                    self.allowed()
                } else {
                    "an integer is needed".to_owned()
                };
                at.refuse(format!("{number} is not allowed: {what}"));
                None
            }
            (Type::Number, Value::Number(_)) | (Type::Boolean, Value::Bool(_)) => Some(value.clone()),
            (Type::String, Value::Number(_) | Value::Bool(_)) => {
                let hint = self.as_text(value);
                at.refuse(format!("a string is needed, not {}: {hint}", described(value)));
                None
            }
            _ => {
                at.refuse(format!("{} is needed, not {}", self.kind.name(), described(value)));
                None
            }
        }
    }

    /// Refuses what is out of bounds in an object that is built as it should be.
    pub(super) fn bounds(&self, value: &Value, at: &At<'_>) {
        match (&self.kind, value) {
            (Type::Object { properties, .. }, Value::Object(fields)) => {
                for (name, value) in fields {
                    if let Some(schema) = properties.get(name) {
                        schema.bounds(value, &at.field(name));
                    }
                }
            }
            (Type::Map(schema), Value::Object(fields)) => {
                fields.iter().for_each(|(name, value)| schema.bounds(value, &at.field(name)));
                self.length(fields.len(), "fields", at);
            }
            (Type::Array(schema), Value::Array(items)) => {
                // A list that is far too long gives one error, not one for each of its items.
                for (i, item) in items.iter().enumerate().take(self.longest) {
                    schema.bounds(item, &at.index(i));
                }
                self.length(items.len(), "items", at);
            }
            (Type::String, Value::String(text)) => {
                let length = text.chars().count();
                if (self.shortest..=self.longest).contains(&length) {
                    if self.pattern.as_ref().is_some_and(|pattern| !pattern.is_match(text)) {
                        at.refuse(format!("{} is not allowed: {}", quoted(text), self.pattern_allows()));
                    }
                } else if text.is_empty() {
                    at.refuse("\"\" is not allowed: it must not be empty");
                } else {
                    self.length(length, "characters", at);
                }
            }
            (Type::Integer | Type::Number, Value::Number(number)) => {
                let value = number.as_f64().unwrap_or(f64::NAN);
                let (min, max) = (self.minimum.unwrap_or(f64::MIN), self.maximum.unwrap_or(f64::MAX));
                if !(min..=max).contains(&value) {
                    // 200 was read as 200.0; but nobody wants to read the 300 digits of 1e300.
                    let short = number.is_f64() && value.abs() < 1e15;
                    let number = if short { value.to_string() } else { number.to_string() };
                    at.refuse(format!("{number} is out of range: {}", self.allowed()));
                }
            }
            _ => {}
        }
    }

    /// How a number, or true, that is meant as text is written.
    fn as_text(&self, value: &Value) -> String {
        if !self.enumeration.is_empty() {
            let meant = value.as_u64().and_then(|number| GRPC_NAMES.get(usize::try_from(number).ok()?));
            let meant = meant.filter(|meant| self.enumeration.iter().any(|known| known == **meant));
            let meant = meant.map(|meant| format!("did you mean {meant:?}? ")).unwrap_or_default();
            let known: Vec<_> = self.enumeration.iter().map(|known| format!("{known:?}")).collect();
            return format!("{meant}allowed are {}", known.join(", "));
        }
        let is_duration = self.pattern.as_ref().is_some_and(|pattern| pattern.as_str() == span::PATTERN);
        let seconds = value.as_f64().filter(|seconds| (0.0..1e8).contains(seconds));
        match seconds.filter(|_| is_duration) {
            Some(seconds) => {
                let example = span::text(Duration::from_millis((seconds * 1000.0).round() as u64));
                format!("a duration has a unit, as in {example:?}")
            }
            None if is_duration => "a duration is written as in \"1m30s\"".to_owned(),
            None => format!("write it in quotes, {:?}", value.to_string()),
        }
    }

    fn length(&self, length: usize, what: &str, at: &At<'_>) {
        let Self { shortest, longest, .. } = *self;
        if !(shortest..=longest).contains(&length) {
            let allowed = match (shortest, longest) {
                (0, longest) => format!("at most {longest}"),
                (shortest, usize::MAX) => format!("at least {shortest}"),
                (shortest, longest) => format!("{shortest} to {longest}"),
            };
            at.refuse(format!("{length} {what}: allowed are {allowed}"));
        }
    }

    /// `allowed are 1 to 100`
    fn allowed(&self) -> String {
        match (self.minimum, self.maximum) {
            (Some(min), Some(max)) => format!("allowed are {min} to {max}"),
            (Some(min), None) => format!("allowed is {min} and above"),
            (None, Some(max)) => format!("allowed is {max} and below"),
            (None, None) => format!("allowed are {} to {}", i64::MIN, i64::MAX),
        }
    }

    fn pattern_allows(&self) -> String {
        match self.pattern.as_ref().map_or("", Regex::as_str) {
            matching::METHOD => {
                "allowed are upper-case letters, digits and !#$%&'*+-.^_`|~, as in \"GET\"".to_owned()
            }
            matching::TOKEN => "allowed are letters, digits and !#$%&'*+-.^_`|~".to_owned(),
            super::NAME => {
                "allowed are a-z, 0-9 and '-', beginning and ending with a letter or digit".to_owned()
            }
            super::SUBDOMAIN => {
                "allowed are a-z, 0-9, '-' and '.', beginning and ending with a letter or digit".to_owned()
            }
            super::TAG => {
                "allowed are letters, digits, '-', '_' and '.', beginning and ending with a letter or digit"
                    .to_owned()
            }
            address::PATTERN => format!("allowed is {}", address::ALLOWED),
            super::HEALTH_CHECK_PATH => "a path begins with '/', and may end with '*'".to_owned(),
            selector::LABEL_KEY => "a label key looks like app.kubernetes.io/name".to_owned(),
            selector::LABEL_VALUE => {
                "allowed are up to 63 letters, digits, '-', '_' and '.', beginning and ending with a letter or digit"
                    .to_owned()
            }
            pattern => format!("it has to match {pattern}"),
        }
    }
}

impl Type {
    fn name(&self) -> &'static str {
        match self {
            Self::Object { .. } | Self::Map(_) => "an object",
            Self::Array(_) => "a list",
            Self::String => "a string",
            Self::Integer => "an integer",
            Self::Number => "a number",
            Self::Boolean => "true or false",
        }
    }
}

fn described(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => format!("the string {}", quoted(text)),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

/// Refuses what is out of bounds in a spec.
pub(super) fn check(schema: &Schema, spec: &impl Serialize, at: &At<'_>) {
    match serde_json::to_value(spec) {
        Ok(value) => schema.bounds(&value, at),
        // A number that JSON does not know.
        Err(error) => at.refuse(format!("it cannot be written as JSON: {error}")),
    }
}
