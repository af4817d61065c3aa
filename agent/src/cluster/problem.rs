//! A problem: something in the cluster's objects that Sluice cannot take as it stands.
//!
//! A problem names the object, the field, the value and what is allowed. It never stops anything else: the part
//! that is wrong is left out (or its last good state stays), the rest is in force. What to do about it follows from its [cause](Cause).

use std::{collections::BTreeMap, fmt, sync::Arc};

use super::{cause::Cause, object::Key};

/// What is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The manifest, relative to the directory that is read; `None` for objects that come from the API server.
    pub file: Option<Arc<str>>,
    /// Line in the file, from 1.
    pub line: Option<u32>,
    pub object: Option<Key>,
    /// Path of the field, such as `spec.ports[0].port`.
    pub field: Option<String>,
    /// The value, what is wrong with it, what is allowed, and what became of it.
    pub message: String,
    /// Why it is so: decides what to do.
    pub cause: Box<Cause>,
}

/// What the agent cannot do at the API server besides reading the cluster, by what that is.
pub type Troubles = BTreeMap<&'static str, Problem>;

impl Problem {
    /// Something about an object as a whole, or (with [`Problem::at`]) a field of it.
    pub fn of(object: Key, message: impl Into<String>) -> Self {
        Self {
            file: None,
            line: None,
            object: Some(object),
            field: None,
            message: message.into(),
            cause: Cause::Object.into(),
        }
    }

    /// Something about a file or a directory.
    pub fn in_file(file: impl Into<Arc<str>>, message: impl Into<String>) -> Self {
        Self {
            file: Some(file.into()),
            line: None,
            object: None,
            field: None,
            message: message.into(),
            cause: Cause::File.into(),
        }
    }

    /// Something about neither: the way to the API server, or what it allows.
    pub fn with_source(message: impl Into<String>, cause: Cause) -> Self {
        Self {
            file: None,
            line: None,
            object: None,
            field: None,
            message: message.into(),
            cause: cause.into(),
        }
    }

    #[must_use]
    pub fn at(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }

    #[must_use]
    pub fn by(self, cause: Cause) -> Self {
        Self { cause: cause.into(), ..self }
    }

    /// Neither an object's nor a file's: the source's own, or what its server does not allow.
    pub fn is_of_source(&self) -> bool {
        self.object.is_none() && self.file.is_none()
    }

    /// With what to do, where the message does not say it by saying what is wrong.
    pub fn told(&self) -> String {
        match *self.cause {
            Cause::Object | Cause::File => self.to_string(),
            _ => format!("{}. {}", self.to_string().trim_end_matches('.'), self.cause.action()),
        }
    }

    /// What makes it this problem, though lines may move above it. Decides what is logged anew.
    pub(super) fn identity(&self) -> impl Ord + use<> {
        (self.file.clone(), self.object.clone(), self.field.clone(), self.message.clone())
    }
}

/// `shop.yaml:12: Service shop/orders: spec.ports[0].port: 70000 is no port: ...`
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.line) {
            (Some(file), Some(line)) => write!(f, "{file}:{line}: ")?,
            (Some(file), None) => write!(f, "{file}: ")?,
            (None, _) => {}
        }
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if let Some(field) = &self.field {
            write!(f, "{field}: ")?;
        }
        f.write_str(&self.message)
    }
}
