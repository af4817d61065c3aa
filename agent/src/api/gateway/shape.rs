//! Routes whose fields are not of the kinds that they should be: all that is wrong, not only the first.
//!
//! The API server knows the shapes of its objects, and tells of each field that is not as it should be. serde stops at the first
//! one. So what it stops at is taken out, and the rest is read once more, until nothing is left to say.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use serde_path_to_error::Segment;

use super::super::{
    field::{self, FieldError},
    hint, plain,
};

/// More than anybody wants to hear of at once.
const MOST: usize = 32;
/// Fields of the experimental channel, and what does in their place what they are for.
const EXPERIMENTAL: [(&str, &str); 2] = [
    (
        "retry",
        "not supported: it is experimental; the retry of a TrafficPolicy that targets the rule does that",
    ),
    (
        "sessionPersistence",
        "not supported: it is experimental; sessionAffinity of the Service keeps clients with an endpoint",
    ),
];
/// For each error there may be more that are not worth a word.
const ROUNDS: usize = 4 * MOST;

/// A value as its fields say, and what was wrong with these.
pub(super) struct Read<T> {
    /// With something else in the place of what was wrong; `None`: nothing sensible is left.
    pub(super) value: Option<T>,
    pub(super) errors: Vec<FieldError>,
    /// What was replaced or taken out.
    losses: Vec<String>,
}

impl<T> Read<T> {
    /// Whether a field may look wrong only because of what was replaced or taken out.
    pub(super) fn explains(&self, field: &str) -> bool {
        let is_within = |one: &str, other: &str| {
            one.strip_prefix(other).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
        };
        self.losses.iter().any(|loss| is_within(field, loss) || is_within(loss, field))
    }
}

/// Reads the `spec` of an object.
pub(super) fn read<T: DeserializeOwned>(spec: &Value) -> Read<T> {
    let mut found = Read { value: None, errors: Vec::new(), losses: Vec::new() };
    let mut left = spec.clone();
    for _ in 0..ROUNDS {
        let error = match serde_path_to_error::deserialize::<_, T>(&left) {
            Ok(value) => {
                found.value = Some(value);
                break;
            }
            Err(error) => error,
        };
        let (place, fault) = fault(&left, error.path(), error.inner());
        let field = shown(&place);
        if !found.explains(&field) {
            found.errors.push(FieldError::new(&*field, fault.words()));
        }
        found.losses.push(field);
        let changed = match fault.instead() {
            Some(instead) => put(&mut left, &place, instead),
            None => take_out(&mut left, &place),
        };
        if !changed || found.errors.len() == MOST {
            break;
        }
    }
    found
}

/// A step on the way to a field.
#[derive(Clone)]
enum Step {
    Field(String),
    Item(usize),
}

/// What reading stopped at.
enum Fault {
    /// A field that there is not, and which there are.
    Unknown {
        name: String,
        known: Vec<String>,
    },
    Missing,
    /// What is needed, in words, and what there is.
    Other {
        said: String,
        found: Option<Value>,
    },
}

/// Where reading stopped, and why. A field that is unknown or missing is where it stopped, not the object.
fn fault(spec: &Value, path: &serde_path_to_error::Path, error: &serde_json::Error) -> (Vec<Step>, Fault) {
    let steps = path.iter().filter_map(|segment| match segment {
        Segment::Seq { index } => Some(Step::Item(*index)),
        Segment::Map { key } | Segment::Enum { variant: key } => Some(Step::Field(key.clone())),
        Segment::Unknown => None,
    });
    let mut steps: Vec<_> = steps.collect();
    let said = error.to_string();
    let mut names = said.split('`').skip(1).step_by(2).map(str::to_owned);
    if said.starts_with("unknown field ") {
        let name = names.next().unwrap_or_default();
        if !matches!(steps.last(), Some(Step::Field(last)) if *last == name) {
            steps.push(Step::Field(name.clone()));
        }
        return (steps, Fault::Unknown { name, known: names.collect() });
    }
    if said.starts_with("missing field ") {
        steps.extend(names.next().map(Step::Field));
        return (steps, Fault::Missing);
    }
    let found = at(spec, &steps).cloned();
    (steps, Fault::Other { said: plain::words(error), found })
}

impl Fault {
    fn words(&self) -> String {
        match self {
            Self::Unknown { name, known } => {
                EXPERIMENTAL.iter().find(|(experimental, _)| experimental == name).map_or_else(
                    || hint::unknown_field(name, known.iter().map(String::as_str)),
                    |(_, why)| (*why).to_owned(),
                )
            }
            Self::Missing => "not set: it is needed".to_owned(),
            Self::Other { said, found: Some(found @ (Value::Bool(_) | Value::Number(_))) }
                if said.starts_with("a string is needed") =>
            {
                let also =
                    if found.is_boolean() { " (yes, no, on and off are true or false without)" } else { "" };
                format!("{said}: write it in quotes, {:?}{also}", found.to_string())
            }
            Self::Other { said, .. } => said.clone(),
        }
    }

    /// What the rest can be read with. `None`: the field has to go.
    fn instead(&self) -> Option<Value> {
        let text = || Value::from("x");
        match self {
            Self::Unknown { .. } => None,
            Self::Missing => Some(text()),
            Self::Other { said, .. } => {
                let needed = said.split(" is needed").next().unwrap_or_default();
                Some(match needed {
                    "a string" => text(),
                    "a whole number" => Value::from(1),
                    "true or false" => Value::from(false),
                    "a list" => Value::Array(Vec::new()),
                    "an object" => Value::Object(Map::new()),
                    _ => return None,
                })
            }
        }
    }
}

fn shown(place: &[Step]) -> String {
    place.iter().fold("spec".to_owned(), |path, step| match step {
        Step::Field(name) => field::field_of(&path, name),
        Step::Item(index) => format!("{path}[{index}]"),
    })
}

fn at<'v>(value: &'v Value, place: &[Step]) -> Option<&'v Value> {
    place.iter().try_fold(value, |value, step| match step {
        Step::Field(name) => value.get(name),
        Step::Item(index) => value.get(index),
    })
}

fn holder<'v>(value: &'v mut Value, place: &[Step]) -> Option<&'v mut Value> {
    let (_, holders) = place.split_last()?;
    holders.iter().try_fold(value, |value, step| match step {
        Step::Field(name) => value.get_mut(name),
        Step::Item(index) => value.get_mut(index),
    })
}

/// False: that changes nothing.
fn put(value: &mut Value, place: &[Step], instead: Value) -> bool {
    if at(value, place) == Some(&instead) {
        return false;
    }
    let Some(last) = place.last() else {
        *value = instead;
        return true;
    };
    let Some(holder) = holder(value, place) else { return false };
    match (last, holder) {
        (Step::Field(name), Value::Object(fields)) => {
            fields.insert(name.clone(), instead);
            true
        }
        (Step::Item(index), Value::Array(items)) => items.get_mut(*index).is_some_and(|item| {
            *item = instead;
            true
        }),
        _ => false,
    }
}

/// False: it is not there, or is no field of an object. Items of a list stay, lest others get their numbers.
fn take_out(value: &mut Value, place: &[Step]) -> bool {
    let Some(Step::Field(name)) = place.last() else { return false };
    holder(value, place).and_then(Value::as_object_mut).is_some_and(|fields| fields.remove(name).is_some())
}
