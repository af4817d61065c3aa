//! Manifests are written as the API server gives them back. What it spells otherwise is a difference at each
//! `kubectl apply`, which then says "configured" of an object that nobody changed. What it warns of is printed each time.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::manifests::{Manifest, all};

/// How the API server writes a quantity: `None` if it is none.
///
/// The rules are those of `Quantity` in Kubernetes' apimachinery: no fraction, the largest suffix that keeps the number
/// whole, the suffix's family (1000 or 1024) as given, below 1024 always without a suffix of 1024.
/// <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>
fn canonical(quantity: &str) -> Option<String> {
    const DECIMAL: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
    const BINARY: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let end = quantity.find(|c: char| !c.is_ascii_digit() && !".+-".contains(c)).unwrap_or(quantity.len());
    let (number, suffix) = quantity.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let negative = whole.starts_with('-');
    let digits = whole.strip_prefix(['+', '-']).unwrap_or(whole);
    if digits.is_empty() && fraction.is_empty() || !fraction.chars().all(|c| c.is_ascii_digit()) {
        return None;
    }
    // In billionths: what is finer than that the API server rounds up.
    let digit = |sum: i128, c: char| Some(sum.checked_mul(10)? + i128::from(c.to_digit(10)?));
    let padded: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    if fraction.len() > 9 {
        return None;
    }
    let nano = digits.chars().chain(padded.chars()).try_fold(0i128, digit)?;
    let binary = BINARY.iter().position(|&name| name == suffix && !name.is_empty());
    let nano = match (binary, DECIMAL.iter().position(|&name| name == suffix)) {
        (Some(power), _) => nano.checked_mul(1024i128.checked_pow(power as u32)?)?,
        (None, Some(power)) if power >= 3 => nano.checked_mul(1000i128.checked_pow(power as u32 - 3)?)?,
        (None, Some(power)) => nano / 1000i128.pow(3 - power as u32),
        (None, None) => return None,
    };
    let unit = 1_000_000_000;
    let in_binary = binary.is_some() && nano % unit == 0 && nano >= 1024 * unit;
    let (mut value, base, mut power, names) =
        if in_binary { (nano / unit, 1024, 0, &BINARY[..]) } else { (nano, 1000, 0, &DECIMAL[..]) };
    if value == 0 {
        return Some("0".to_owned());
    }
    while value % base == 0 && power + 1 < names.len() {
        value /= base;
        power += 1;
    }
    Some(format!("{}{value}{}", if negative { "-" } else { "" }, names[power]))
}

/// The fields that hold quantities: maps of them, or one.
const QUANTITIES: [&str; 5] = ["requests", "limits", "hard", "sizeLimit", "divisor"];

/// Fields in which an empty object says something.
const MAY_BE_EMPTY: [&str; 3] = ["emptyDir", "status", "podSelector"];

/// What the API server would give back otherwise, below `path`.
fn differences(path: &str, field: &str, value: &Value, found: &mut Vec<String>) {
    if QUANTITIES.contains(&field) {
        let quantities: Vec<&Value> = match value {
            Value::Object(map) => map.values().collect(),
            one => vec![one],
        };
        for quantity in quantities {
            let text = quantity.as_str().map_or_else(|| quantity.to_string(), str::to_owned);
            if canonical(&text).is_none_or(|canonical| *quantity != canonical) {
                let instead = canonical(&text).unwrap_or_else(|| "no quantity".to_owned());
                found.push(format!("{path}: {quantity} instead of {instead}"));
            }
        }
        return;
    }
    match value {
        Value::Null => found.push(format!("{path}: null")),
        Value::Array(items) if items.is_empty() => found.push(format!("{path}: an empty list")),
        Value::Object(fields) if fields.is_empty() && !MAY_BE_EMPTY.contains(&field) => {
            found.push(format!("{path}: an empty object"));
        }
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                differences(&format!("{path}[{index}]"), "", item, found);
            }
        }
        Value::Object(fields) => {
            for (name, value) in fields {
                differences(&format!("{path}.{name}"), name, value, found);
            }
        }
        _ => {}
    }
}

/// The pod's part of what makes pods.
fn pod(object: &Value) -> Option<&Value> {
    match object["kind"].as_str()? {
        "Pod" => Some(object),
        "DaemonSet" | "Deployment" => Some(&object["spec"]["template"]),
        _ => None,
    }
}

/// What the API server answers with a warning, of what a manifest here could have.
/// <https://github.com/kubernetes/kubernetes/blob/v1.36.0/pkg/api/pod/warnings.go>
fn warnings(object: &Value) -> Vec<String> {
    let Some(pod) = pod(object) else { return Vec::new() };
    let annotations = pod["metadata"]["annotations"].as_object().into_iter().flatten();
    let deprecated = ["container.apparmor.security.beta.", "seccomp.security.alpha.", "container.seccomp."];
    let mut warnings: Vec<String> = annotations
        .map(|(name, _)| name)
        .filter(|name| deprecated.iter().any(|prefix| name.starts_with(prefix)))
        .map(|name| format!("{name} is deprecated"))
        .collect();
    let spec = &pod["spec"];
    if spec["nodeSelector"].as_object().is_some_and(|labels| labels.keys().any(|key| key.contains("beta."))) {
        warnings.push("nodeSelector: a label that is deprecated".to_owned());
    }
    if !spec["serviceAccount"].is_null() {
        warnings.push("serviceAccount is deprecated".to_owned());
    }
    let containers = ["initContainers", "containers"].map(|field| spec[field].as_array());
    for container in containers.into_iter().flatten().flatten() {
        let mut seen = BTreeSet::new();
        for variable in container["env"].as_array().into_iter().flatten() {
            if !seen.insert(variable["name"].as_str()) {
                warnings.push(format!("{} hides an earlier definition", variable["name"]));
            }
        }
    }
    warnings
}

/// What is made for servers that are older than the field which replaces the annotation.
fn is_for_old_servers(manifest: &Manifest) -> bool {
    manifest.origin.contains("kubernetes-1.29") || manifest.origin.contains("chart-old")
}

#[test]
fn a_second_apply_changes_nothing() {
    let mut found = Vec::new();
    // Of other kinds the definitions say nothing of quantities, and keep empty objects as they are.
    let plain = |manifest: &&Manifest| {
        let kind = manifest.object["kind"].as_str().unwrap_or_default();
        !["CustomResourceDefinition", "Kustomization"].contains(&kind)
    };
    let manifests = all();
    for manifest in manifests.iter().filter(plain) {
        differences(&manifest.origin, "", &manifest.object, &mut found);
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn the_api_server_warns_of_nothing() {
    let found: Vec<String> = all()
        .iter()
        .filter(|manifest| !is_for_old_servers(manifest))
        .flat_map(|manifest| {
            let of = manifest.origin.clone();
            warnings(&manifest.object).into_iter().map(move |warning| format!("{of}: {warning}"))
        })
        .collect();
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn quantities_are_written_as_the_api_server_does() {
    for (given, canonical_form) in [
        ("100000", "100k"),
        ("100k", "100k"),
        ("1500", "1500"),
        ("0.1", "100m"),
        ("100m", "100m"),
        ("1000m", "1"),
        ("1.5", "1500m"),
        ("-0.5", "-500m"),
        ("+1", "1"),
        ("1024Mi", "1Gi"),
        ("1536Mi", "1536Mi"),
        ("1.5Gi", "1536Mi"),
        ("512Ki", "512Ki"),
        ("0.5Ki", "512"),
        ("0.5Mi", "512Ki"),
        ("1048576Ki", "1Gi"),
        ("0Mi", "0"),
        ("1000Mi", "1000Mi"),
        ("1000M", "1G"),
        (".5", "500m"),
        ("2000000u", "2"),
    ] {
        assert_eq!(canonical(given).as_deref(), Some(canonical_form), "{given}");
    }
    for wrong in ["", "Mi", "x", "1x", "1 Mi", "1.2.3", "--1"] {
        assert_eq!(canonical(wrong), None, "{wrong}");
    }
}

#[test]
fn what_would_change_or_warn_is_found() {
    let object = serde_json::json!({
        "kind": "Pod",
        "metadata": {
            "annotations": { "container.apparmor.security.beta.kubernetes.io/a": "unconfined" },
            "labels": {},
        },
        "spec": {
            "volumes": [{ "emptyDir": {} }, { "emptyDir": { "sizeLimit": "1024Ki" } }],
            "tolerations": [],
            "containers": [{
                "resources": { "requests": { "cpu": 1, "memory": "0.5Gi" } },
                "env": [{ "name": "A" }, { "name": "B" }, { "name": "A" }],
                "command": null,
            }],
        },
    });
    let mut found = Vec::new();
    differences("", "", &object, &mut found);
    found.sort();
    assert_eq!(
        found,
        [
            ".metadata.labels: an empty object",
            ".spec.containers[0].command: null",
            ".spec.containers[0].resources.requests: \"0.5Gi\" instead of 512Mi",
            ".spec.containers[0].resources.requests: 1 instead of 1",
            ".spec.tolerations: an empty list",
            ".spec.volumes[1].emptyDir.sizeLimit: \"1024Ki\" instead of 1Mi",
        ]
    );
    assert_eq!(warnings(&object).len(), 2, "{:?}", warnings(&object));
}
