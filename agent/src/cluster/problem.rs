//! A problem: something in the cluster's objects that Sluice cannot take as it stands.
//!
//! A problem names the object, the field, the value and what is allowed. It never stops anything else: the part
//! that is wrong is left out (or its last good state stays), the rest is in force.

use std::{fmt, sync::Arc};

use super::object::Key;

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
}

impl Problem {
    /// Something about an object as a whole, or (with [`Problem::at`]) a field of it.
    pub fn of(object: Key, message: impl Into<String>) -> Self {
        Self { file: None, line: None, object: Some(object), field: None, message: message.into() }
    }

    /// Something about a file or a directory.
    pub fn in_file(file: impl Into<Arc<str>>, message: impl Into<String>) -> Self {
        Self { file: Some(file.into()), line: None, object: None, field: None, message: message.into() }
    }

    #[must_use]
    pub fn at(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
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
