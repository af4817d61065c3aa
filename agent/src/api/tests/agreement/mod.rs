//! Good and bad objects, each through the code and through the CustomResourceDefinition.

mod access;
mod failures;
mod lanes;
mod limits;
mod rules;
mod targets;

use super::{api_server::ApiServer, *};

/// Who can know that an object is bad.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Known {
    /// The API server refuses it too.
    Everywhere,
    /// It gets in, and the object's status tells.
    ToSluice,
}
use Known::{Everywhere, ToSluice};

/// What is bad: the spec, the field, a part of what is said about it.
type Bad = (Value, &'static str, &'static str, Known);

fn agree<K: Kind>(good: Vec<Value>, bad: Vec<Bad>) {
    let server = ApiServer::of::<K>();
    for object in good {
        assert_eq!(errors::<K>(&object), [""; 0], "{object:#}");
        assert_eq!(server.refusals(&object), [""; 0], "{object:#}");
    }
    for (object, field, message, known) in bad {
        let found = read::<K>(&object).err().unwrap_or_default();
        assert!(
            found.iter().any(|error| error.field == field && error.message.contains(message)),
            "not {field}: {message}, but {found:#?}\n{object:#}"
        );
        assert_eq!(found.len(), 1, "only {field} is wrong: {found:#?}\n{object:#}");
        let refusals = server.refusals(&object);
        assert_eq!(refusals.is_empty(), known == ToSluice, "{refusals:?}\n{object:#}");
    }
}

fn long(length: usize) -> String {
    "a".repeat(length)
}
