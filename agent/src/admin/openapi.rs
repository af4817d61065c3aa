//! The admin interface as an OpenAPI 3.1 document, made from the [table of routes](super::routes).
//! <https://spec.openapis.org/oas/v3.1.1.html>

use http::StatusCode;
use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{
    pages::{Answer, JSON, text},
    routes::{self, Content, Route, Who},
};

/// `/openapi.json`
pub(super) fn answer() -> Answer {
    text(StatusCode::OK, JSON, format!("{:#}\n", document()))
}

/// The whole document.
pub fn document() -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut schemas = settings.into_generator();
    let mut paths = Map::new();
    for route in routes::all() {
        let methods = paths.entry(route.path).or_insert_with(|| json!({}));
        methods[route.verb.as_str().to_lowercase()] = operation(route, &mut schemas);
    }
    let schemas = schemas.take_definitions(true);
    json!({
        "openapi": "3.1.1",
        "info": {
            "title": "Sluice",
            "summary": "The admin interface of a node's agent",
            "description": "Over TCP (--admin) there is what anybody may read; over the Unix socket (--admin-socket), for root, there is everything. HEAD is answered wherever GET is.",
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [
            {"name": "anybody", "description": "Over TCP and over the socket."},
            {"name": "root", "description": "Over the Unix socket only: elsewhere it is not found."},
        ],
        "paths": paths,
        "components": {"schemas": schemas},
    })
}

fn operation(route: &Route, schemas: &mut SchemaGenerator) -> Value {
    let name = route.path.trim_matches('/').replace(['/', '.', '-'], "_");
    let name = if name.is_empty() { "page" } else { &name };
    let mut operation = json!({
        "operationId": format!("{}_{name}", route.verb.as_str().to_lowercase()),
        "summary": route.summary,
        "tags": [if route.who == Who::Anybody { "anybody" } else { "root" }],
    });
    if !route.parameters.is_empty() {
        let parameters = route.parameters.iter().map(|parameter| {
            json!({
                "name": parameter.name,
                "in": "query",
                "description": parameter.about,
                "required": parameter.required,
                "example": parameter.example,
                "schema": {"type": "string"},
            })
        });
        operation["parameters"] = parameters.collect();
    }
    if let Some(taken) = &route.takes {
        let mut content = content(&taken.content, schemas);
        content[taken.content.media_type]["example"] = taken.example.into();
        operation["requestBody"] = json!({"required": true, "content": content});
    }
    let mut responses = Map::new();
    for said in &route.says {
        let mut response = json!({"description": said.about});
        let mut contents = Map::new();
        for said in &said.content {
            if let Value::Object(one) = content(said, schemas) {
                contents.extend(one);
            }
        }
        if !contents.is_empty() {
            response["content"] = contents.into();
        }
        responses.insert(said.status.to_string(), response);
    }
    operation["responses"] = responses.into();
    operation
}

fn content(content: &Content, schemas: &mut SchemaGenerator) -> Value {
    let schema =
        content.schema.map_or_else(|| json!({"type": "string"}), |schema| schema(schemas).to_value());
    json!({content.media_type: {"schema": schema}})
}
