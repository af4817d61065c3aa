//! What the API server does with an object of a kind: see [`sluice_tests::api_server::Schema`].

use sluice_tests::api_server::Schema;

use super::*;

pub(super) struct ApiServer(Schema);

impl ApiServer {
    pub(super) fn of<K: Kind>() -> Self {
        Self(Schema::of(&definition::<K>()).expect("a definition with a schema"))
    }

    /// What is stored.
    pub(super) fn defaulted(&self, object: &Value) -> Value {
        self.0.defaulted(object)
    }

    /// Why an object is refused; empty if it is not.
    pub(super) fn refusals(&self, object: &Value) -> Vec<String> {
        self.0.refusals(object)
    }
}
