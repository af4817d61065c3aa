//! What serde says of a value that it cannot take, in words for whoever wrote the value: neither "invalid type" nor the names of
//! types in this program.

use std::fmt::Display;

/// `a whole number is needed, not the string "eighty"`
pub fn words(error: &impl Display) -> String {
    let error = error.to_string();
    // Of a text, serde_json says where; the field says it better, and a file's line is another one.
    let said = match error.rsplit_once(" at line ") {
        Some((said, place)) if place.contains(" column ") => said,
        _ => &error,
    };
    let known = |(found, needed): (&str, &str)| {
        format!("{} is needed, not {}", needed_in_words(needed), found_in_words(found))
    };
    for prefix in ["invalid type: ", "invalid value: "] {
        if let Some(split) = said.strip_prefix(prefix).and_then(|rest| rest.rsplit_once(", expected ")) {
            return known(split);
        }
    }
    if let Some((length, needed)) =
        said.strip_prefix("invalid length ").and_then(|rest| rest.rsplit_once(", expected "))
    {
        return format!("{length} items: {} is needed", needed_in_words(needed));
    }
    for (prefix, what) in
        [("unknown variant ", "is not allowed"), ("unknown field ", "is no field that there is")]
    {
        if let Some((name, allowed)) = said.strip_prefix(prefix).and_then(|rest| rest.split_once(", ")) {
            let allowed = allowed.trim_start_matches("expected ").trim_start_matches("one of ");
            let allowed = allowed.replace(" or ", ", ");
            return if allowed.starts_with("there are no ") {
                format!("{} {what}", in_quotes(name))
            } else {
                format!("{} {what}: allowed are {}", in_quotes(name), allowed.replace('`', "\""))
            };
        }
    }
    for (prefix, what) in
        [("missing field ", "is not set: it is needed"), ("duplicate field ", "is there twice")]
    {
        if let Some(name) = said.strip_prefix(prefix) {
            return format!("{} {what}", in_quotes(name));
        }
    }
    said.to_owned()
}

fn in_quotes(name: &str) -> String {
    name.replace('`', "\"")
}

fn needed_in_words(needed: &str) -> String {
    let words = match needed {
        "i8" | "i16" | "i32" | "i64" | "u8" | "u16" | "u32" | "u64" | "usize" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" | "bool" => "true or false",
        "a string" | "a borrowed string" | "string" | "str" => "a string",
        "a sequence" | "a tuple" => "a list",
        "a map" => "an object",
        "unit" | "null" => "null",
        other if other.starts_with("a sequence") || other.starts_with("a tuple") => "a list",
        // Only a phrase that was meant to be read is one: the rest are names of types.
        other if other.starts_with("a ") || other.starts_with("an ") => other,
        _ => "an object",
    };
    words.to_owned()
}

fn found_in_words(found: &str) -> String {
    let (kind, value) = found.split_once(' ').unwrap_or((found, ""));
    let value = value.trim_start_matches("point ");
    match kind {
        "integer" | "floating" | "boolean" => value.trim_matches('`').to_owned(),
        "string" => format!("the string {value}"),
        "character" => format!("the string \"{}\"", value.trim_matches('`')),
        "null" | "unit" | "Option" => "null".to_owned(),
        "sequence" | "tuple" | "byte" => "a list".to_owned(),
        _ => "an object".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1 as core;
    use serde::{Deserialize, de::DeserializeOwned};
    use serde_json::{Value, json};

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Strict {
        #[serde(rename = "needed")]
        _needed: u8,
        #[serde(default, rename = "verb")]
        _verb: Option<Verb>,
    }

    #[derive(Debug, Deserialize)]
    enum Verb {
        Get,
        Put,
    }

    fn said<T: DeserializeOwned + std::fmt::Debug>(value: Value) -> String {
        words(&serde_json::from_value::<T>(value).unwrap_err())
    }

    #[test]
    fn nobody_has_to_know_the_types_of_this_program() {
        let service = |value: Value| said::<core::Service>(value);
        let pod = |value: Value| said::<core::Pod>(value);
        let table = [
            (
                service(json!({"spec": {"ports": [{"port": "eighty"}]}})),
                "a whole number is needed, not the string \"eighty\"",
            ),
            (service(json!({"spec": {"ports": [{"port": 1.5}]}})), "a whole number is needed, not 1.5"),
            (service(json!({"spec": {"ports": {}}})), "a list is needed, not an object"),
            (service(json!({"spec": []})), "an object is needed, not a list"),
            (service(json!({"metadata": "x"})), "an object is needed, not the string \"x\""),
            (service(json!({"metadata": {"labels": {"a": 1}}})), "a string is needed, not 1"),
            (service(json!({"metadata": {"labels": {"a": true}}})), "a string is needed, not true"),
            (pod(json!({"spec": {"hostNetwork": 1}})), "true or false is needed, not 1"),
            (said::<Strict>(json!({})), "\"needed\" is not set: it is needed"),
            (said::<Strict>(json!({"needed": null})), "a whole number is needed, not null"),
            (said::<Strict>(json!({"needed": 300})), "a whole number is needed, not 300"),
            (
                said::<Strict>(json!({"need": 1})),
                "\"need\" is no field that there is: allowed are \"needed\", \"verb\"",
            ),
            (said::<Verb>(json!("Delete")), "\"Delete\" is not allowed: allowed are \"Get\", \"Put\""),
            (said::<(u8, u8)>(json!([1])), "1 items: a list is needed"),
        ];
        for (found, wanted) in table {
            assert_eq!(found, wanted);
        }
        let error = serde_json::from_str::<u8>("\n\"a, expected b at line 7 column 9\"").unwrap_err();
        assert_eq!(
            words(&error),
            "a whole number is needed, not the string \"a, expected b at line 7 column 9\""
        );
        assert!(!format!("{:?}", (Verb::Get, Verb::Put)).is_empty());
    }
}
