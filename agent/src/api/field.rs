//! Where in an object something is wrong, and what.
//!
//! A check walks through an object with a [`At`] in its hand, refuses what makes no sense, and goes on: whoever wrote
//! the object learns everything that is wrong with it at once.

use std::{
    cell::RefCell,
    collections::HashSet,
    fmt::{self, Write as _},
};

use serde::Serialize;

/// Something wrong with a field of an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{field}: {message}")]
pub struct FieldError {
    /// Path of the field, such as `spec.rateLimits[0].burst`.
    pub field: String,
    /// The value, what is wrong with it, and what is allowed.
    pub message: String,
}

impl FieldError {
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

/// The errors of one object, while they are being found.
#[derive(Debug, Default)]
pub(super) struct Errors(RefCell<Vec<FieldError>>);

impl Errors {
    /// A place at the root of the object: `spec`.
    pub(super) fn at<'a>(&'a self, field: &'a str) -> At<'a> {
        At { parent: None, part: Part::Field(field), errors: self }
    }

    /// The value, if nothing was refused. A field is refused for one reason at a time: the first.
    pub(super) fn end<T>(self, value: T) -> Result<T, Vec<FieldError>> {
        let mut seen = HashSet::new();
        let mut errors = self.0.into_inner();
        errors.retain(|error| seen.insert(error.field.clone()));
        if errors.is_empty() { Ok(value) } else { Err(errors) }
    }
}

/// A place in an object. It is a path only if somebody asks.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    parent: Option<&'a At<'a>>,
    part: Part<'a>,
    errors: &'a Errors,
}

#[derive(Clone, Copy)]
enum Part<'a> {
    Field(&'a str),
    Index(usize),
}

impl<'a> At<'a> {
    pub(super) fn field<'b>(&'b self, name: &'b str) -> At<'b>
    where
        'a: 'b,
    {
        At { parent: Some(self), part: Part::Field(name), errors: self.errors }
    }

    pub(super) fn index<'b>(&'b self, index: usize) -> At<'b>
    where
        'a: 'b,
    {
        At { parent: Some(self), part: Part::Index(index), errors: self.errors }
    }

    /// What stands here makes no sense: the value, what is wrong with it, and what is allowed.
    pub(super) fn refuse(&self, message: impl Into<String>) {
        self.errors.0.borrow_mut().push(FieldError::new(self.to_string(), message));
    }

    /// Whether this very place was refused, so that what depends on its value is not worth a word.
    pub(super) fn is_refused(&self) -> bool {
        let field = self.to_string();
        self.errors.0.borrow().iter().any(|error| error.field == field)
    }

    /// What is made of a text that may not be one; refused if it is none.
    pub(super) fn parse<T>(
        &self,
        text: &str,
        what: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let parsed = parse(text);
        if parsed.is_none() {
            self.refuse(format!("{} is no {what}", quoted(text)));
        }
        parsed
    }
}

/// Refuses what an earlier item of the list says already.
pub(super) fn refuse_repeated<T: Serialize>(items: &[T], at: &At<'_>) {
    let mut seen = HashSet::new();
    for (i, item) in items.iter().enumerate() {
        let item = serde_json::to_string(item).unwrap_or_default();
        if seen.contains(&item) {
            at.index(i).refuse(format!("{item} is there already"));
        } else {
            seen.insert(item);
        }
    }
}

/// `spec.rateLimits[0].burst`, and `matchLabels["app.kubernetes.io/name"]`
impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.part {
            Part::Index(index) => write!(f, "[{index}]"),
            Part::Field(name) if name.contains(['.', '[', '/']) => write!(f, "[\"{name}\"]"),
            Part::Field(name) if self.parent.is_some() => write!(f, ".{name}"),
            Part::Field(name) => f.write_str(name),
        }
    }
}

/// The path of a field of a map: `metadata.labels["a.b/c"]`.
pub fn field_of(map: &str, name: &str) -> String {
    if name.contains(['.', '[', '/']) { format!("{map}[\"{name}\"]") } else { format!("{map}.{name}") }
}

/// The path of a field where reading stopped.
pub fn path_of(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let mut field = String::new();
    for segment in path {
        let _ = match segment {
            Segment::Seq { index } => write!(field, "[{index}]"),
            Segment::Map { key } if key.contains(['.', '[', '/']) => write!(field, "[\"{key}\"]"),
            Segment::Map { key } | Segment::Enum { variant: key } if field.is_empty() => {
                write!(field, "{key}")
            }
            Segment::Map { key } | Segment::Enum { variant: key } => write!(field, ".{key}"),
            Segment::Unknown => Ok(()),
        };
    }
    field
}

/// A text in a message: in quotes, and not endless.
pub(super) fn quoted(text: &str) -> String {
    const LONGEST: usize = 80;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}...", &text[..end]),
        None => format!("{text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_written_as_a_path() {
        let errors = Errors::default();
        let spec = errors.at("spec");
        let (limits, selector) = (spec.field("rateLimits"), spec.field("matchLabels"));
        let limit = limits.index(3);
        assert_eq!(limit.field("burst").to_string(), "spec.rateLimits[3].burst");
        assert_eq!(selector.field("a.b/c").to_string(), "spec.matchLabels[\"a.b/c\"]");
    }

    #[test]
    fn all_errors_are_kept_but_one_of_a_field() {
        let errors = Errors::default();
        errors.at("a").refuse("first");
        errors.at("a").refuse("second");
        errors.at("b").refuse("third");
        let found = errors.end(()).unwrap_err();
        assert_eq!(found, [FieldError::new("a", "first"), FieldError::new("b", "third")]);
        assert_eq!(Errors::default().end(7), Ok(7));
    }

    #[test]
    fn long_values_are_cut_between_characters() {
        assert_eq!(quoted("a\nb"), "\"a\\nb\"");
        assert_eq!(quoted(&"ä".repeat(200)), format!("{:?}...", "ä".repeat(80)));
    }
}
