//! Which pods belong to a lane: a selector on labels, as Kubernetes has it.
//!
//! <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/>

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use regex::Regex;
use schemars::{Schema, SchemaGenerator, json_schema};

use super::field::{At, quoted};
use crate::govern::policy;

pub(super) const LABEL_KEY: &str = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$";
pub(super) const LABEL_VALUE: &str = "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$";
/// 253 for the prefix, 63 for the name.
const LONGEST_KEY: usize = 317;

/// Labels with their values.
pub(super) fn labels(_: &mut SchemaGenerator) -> Schema {
    let value = json_schema!({"type": "string", "maxLength": 63, "pattern": LABEL_VALUE});
    json_schema!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": value,
    })
}

/// Refuses keys that no label has. The map's error, not the field's: the field's value may be wrong too, and both are to be told.
pub(super) fn check_keys<'k>(keys: impl Iterator<Item = &'k String>, at: &At<'_>) {
    for key in keys.filter(|key| !is_label_key(key)) {
        at.refuse(format!("{} is no label key such as \"app.kubernetes.io/name\"", quoted(key)));
    }
}

/// As that of every selector, but with bounds and with what the API server checks of selectors in its own kinds. All but the
/// keys of matchLabels: as they have no bound, a rule about them is too expensive for it.
pub(super) fn schema(_: &mut SchemaGenerator) -> Schema {
    let value = json_schema!({"type": "string", "maxLength": 63, "pattern": LABEL_VALUE});
    json_schema!({
        "type": "object",
        "properties": {
            "matchLabels": {
                "description": "Labels that a pod has to have, with their values.",
                "type": "object",
                "maxProperties": 32,
                "additionalProperties": value,
            },
            "matchExpressions": {
                "description": "Conditions on labels that a pod has to meet.",
                "type": "array",
                "maxItems": 32,
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "properties": {
                        "key": {
                            "description": "The label.",
                            "type": "string",
                            "minLength": 1,
                            "maxLength": LONGEST_KEY,
                            "pattern": LABEL_KEY,
                        },
                        "operator": {
                            "description": "In, NotIn: the label's value is, or is not, one of values. Exists, \
                                            DoesNotExist: the label is there, or is not.",
                            "type": "string",
                            "enum": ["In", "NotIn", "Exists", "DoesNotExist"],
                        },
                        "values": {
                            "description": "Values for In and NotIn.",
                            "type": "array",
                            "maxItems": 64,
                            "items": value,
                        },
                    },
                    "x-kubernetes-validations": [{
                        "rule": "(self.operator in ['In', 'NotIn']) == (has(self.values) && self.values.size() > 0)",
                        "message": "operators In and NotIn need values, the others go without",
                        "fieldPath": ".values",
                    }],
                },
            },
        },
        "x-kubernetes-validations": [{
            "rule": "has(self.matchLabels) && self.matchLabels.size() > 0 || \
                     has(self.matchExpressions) && self.matchExpressions.size() > 0",
            "message": "an empty selector selects every pod of the namespace: set matchLabels or matchExpressions",
        }],
    })
}

pub(super) fn check(selector: &LabelSelector, at: &At<'_>) -> policy::Selector {
    use policy::Requirement::{DoesNotExist, Exists, In, NotIn};
    let mut requirements = Vec::new();
    let labels = at.field("matchLabels");
    let matched = selector.match_labels.iter().flatten();
    check_keys(matched.clone().map(|(key, _)| key), &labels);
    for (key, value) in matched.clone() {
        requirements.push(In(key.as_str().into(), vec![value.as_str().into()]));
    }
    let expressions = selector.match_expressions.as_deref().unwrap_or_default();
    let expressions_at = at.field("matchExpressions");
    for (i, expression) in expressions.iter().enumerate() {
        let at = expressions_at.index(i);
        let key = expression.key.as_str().into();
        let values = expression.values.as_deref().unwrap_or_default();
        let texts = || values.iter().map(|value| value.as_str().into()).collect();
        let (wants_values, requirement) = match &*expression.operator {
            "In" => (true, In(key, texts())),
            "NotIn" => (true, NotIn(key, texts())),
            "Exists" => (false, Exists(key)),
            "DoesNotExist" => (false, DoesNotExist(key)),
            other => {
                let known = ["In", "NotIn", "Exists", "DoesNotExist"];
                at.field("operator").refuse(super::hint::not_one_of(other, known.into_iter()));
                continue;
            }
        };
        if wants_values == values.is_empty() {
            let operator = &expression.operator;
            at.field("values").refuse(if wants_values {
                format!("not set: operator {operator} needs values")
            } else {
                format!("operator {operator} goes without values")
            });
        }
        requirements.push(requirement);
    }
    if matched.count() == 0 && expressions.is_empty() {
        at.refuse("it selects every pod of the namespace: set matchLabels or matchExpressions");
    }
    policy::Selector { requirements }
}

fn is_label_key(key: &str) -> bool {
    static PATTERN: std::sync::LazyLock<Regex> = std::sync::LazyLock::new(|| {
        Regex::new(LABEL_KEY).expect("the schema's pattern is a regular expression")
    });
    key.len() <= LONGEST_KEY && PATTERN.is_match(key)
}
