//! AccessPolicies: those that allow more than was meant, do nothing, or too much.

use super::check;

#[test]
fn an_expression_that_allows_more_than_whole_paths_is_noted() {
    let access = |action: &str, value: &str| {
        format!(
            "apiVersion: sluice.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: a, namespace: shop}}\nspec:\n  targetRefs: [{{name: x}}]\n  rules: [{{name: r, action: {action}, to: [{{paths: [{{type: RegularExpression, value: '{value}'}}]}}]}}]\n"
        )
    };
    for (action, value, noted) in [
        ("Allow", "/public/.*", true),
        ("Allow", "^/public/", true),
        ("Allow", "^/public/.*$", false),
        ("Deny", "/admin", false),
    ] {
        let (good, said, complaints) = check(&access(action, value), &["-"]);
        assert!(good, "{complaints}");
        let told = format!("{said}{complaints}").contains("allows every path that it matches a part of");
        assert_eq!(told, noted, "{action} {value}: {said}{complaints}");
    }
}

/// What an AccessPolicy asks for that can never hold, or has no effect, is noted; what makes sense is not.
#[test]
fn access_policies_that_do_nothing_or_too_much_are_noted() {
    let base = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, annotations: {sluice.dev/capture: enabled}}
---
apiVersion: v1
kind: Namespace
metadata: {name: outside}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: cache, namespace: shop}
spec: {ports: [{name: redis, port: 6379}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: gateway, namespace: shop}
spec: {template: {spec: {serviceAccountName: gateway}}}
---
";
    let access = |target: &str, spec: &str| {
        format!(
            "{base}apiVersion: sluice.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: a, namespace: shop}}\nspec:\n  targetRefs: [{{{target}}}]\n  {spec}\n"
        )
    };
    let web = "name: web";
    for (target, spec, field, message) in [
        (
            web,
            "rules: [{name: r, from: [{serviceAccount: gatway}]}]",
            "spec.rules[0].from[0].serviceAccount",
            "no pod in shop has the service account gatway in these files: did you mean gateway?",
        ),
        (
            web,
            "rules: [{name: r, from: [{namespace: outside}]}]",
            "spec.rules[0].from[0].namespace",
            "Namespace outside is not enrolled in these files",
        ),
        (
            web,
            "hidden: [{name: r, paths: [{value: /a}], from: [{namespace: shopp}]}]",
            "spec.hidden[0].from[0].namespace",
            "there is no Namespace shopp in these files: did you mean shop?",
        ),
        (
            web,
            "rules: [{name: r, to: [{methods: ['*']}]}]",
            "spec.rules[0].to[0].methods",
            "* is a method by itself",
        ),
        (
            web,
            "hidden: [{name: r, paths: [{value: /}]}]",
            "spec.hidden[0].paths[0].value",
            "every path is hidden",
        ),
        (
            web,
            "rules: [{name: pub}, {name: adm, from: [{workload: gateway}], to: [{paths: [{value: /actuator}]}]}]",
            "spec.rules[1].from",
            "rule adm allows nothing that rule pub does not allow anyway",
        ),
        ("name: cache", "rules: [{name: r, to: [{methods: [GET]}]}]", "spec.targetRefs[0]", "all are reset"),
        (
            "name: cache",
            "hidden: [{name: r, paths: [{value: /a}]}]",
            "spec.targetRefs[0]",
            "hidden has no effect on it",
        ),
        (
            "name: cache",
            "rules: [{name: r, action: Deny, to: [{methods: [GET]}]}]",
            "spec.targetRefs[0]",
            "rules with methods or paths have no effect on it",
        ),
        (
            "kind: Namespace, group: '', name: shop",
            "rules: [{name: r, to: [{methods: [GET]}]}]",
            "spec.targetRefs[0]",
            "all ports of Service cache are declared not to speak HTTP: no rule with methods",
        ),
    ] {
        let (good, _, complaints) = check(&access(target, spec), &["-"]);
        assert!(good, "{spec}: {complaints}");
        let noted = complaints.contains(&format!("{field}: note: ")) && complaints.contains(message);
        assert!(noted && complaints.lines().count() == 1, "{spec}: {complaints}");
    }
    for (target, spec) in [
        (
            web,
            "rules: [{name: r, from: [{serviceAccount: gateway}], to: [{methods: [GET], paths: [{value: /%61/../b/}]}]}]",
        ),
        (web, "hidden: [{name: r, paths: [{value: /actuator}], from: [{namespace: shop}]}]"),
        ("name: cache", "rules: [{name: r, from: [{workload: gateway}]}]"),
        (
            web,
            "rules: [{name: pub}, {name: adm, from: [{workload: gateway}], to: [{paths: [{value: /a}]}]}, {name: rest, action: Deny, to: [{paths: [{value: /a}]}]}]",
        ),
        ("kind: Namespace, group: '', name: shop", "hidden: [{name: r, paths: [{value: /actuator}]}]"),
    ] {
        let (_, _, complaints) = check(&access(target, spec), &["-"]);
        assert_eq!(complaints, "", "{spec}");
    }
    let first = access(web, "rules: [{name: r}]");
    let second = first.rsplit("---\n").next().unwrap_or_default().replace("name: a,", "name: b,");
    let (good, _, complaints) = check(&format!("{first}---\n{second}"), &["-"]);
    assert!(good, "{complaints}");
    for (one, other) in [("shop/a", "shop/b"), ("shop/b", "shop/a")] {
        let said = format!(
            "AccessPolicy {other} is about Service web, too: only the older of them is in force there"
        );
        let line = complaints.lines().find(|line| line.contains(&format!("AccessPolicy {one}: ")));
        assert!(line.is_some_and(|line| line.contains(&said)), "{complaints}");
    }
}

/// Keys that are not used, and keys that tokens without a kid may not reach.
#[test]
fn keys_that_have_no_use_are_noted() {
    use crate::govern::jwt::testing::Signer;
    use serde_json::{Value, json};

    let told = |keys: &[Value]| {
        let jwk = json!({"keys": keys}).to_string();
        let policy = json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "AccessPolicy", "metadata": {"name": "a", "namespace": "shop"},
            "spec": {
                "targetRefs": [{"name": "web"}],
                "jwt": {"providers": [
                    {"name": "login", "issuer": "https://a.example", "audiences": ["a"], "jwks": {"inline": jwk}},
                ]},
                "rules": [{"name": "r", "from": [{"jwt": {}}]}],
            },
        });
        let (good, _, complaints) = check(&policy.to_string(), &["-"]);
        assert!(good, "{complaints}");
        complaints
    };
    let (p256, p384, rsa) = (Signer::p256(), Signer::p384(), Signer::rsa());
    let good = p256.jwk(json!({}));
    for (bad, message) in [
        (p256.jwk(json!({"crv": "P-521"})), "its crv is none of"),
        (p256.jwk(json!({"use": "enc"})), "it is not for signatures"),
        (rsa.jwk(json!({"alg": "HS256"})), "its alg is not accepted"),
        (rsa.jwk(json!({"n": "ab+/"})), "not base64url"),
        (rsa.jwk(json!({"n": "AQAB"})), "an RSA key has 2048"),
        (p256.jwk(json!({"y": p256.jwk(json!({}))["x"]})), "no point of its curve"),
    ] {
        let complaints = told(&[good.clone(), bad]);
        let wanted = "spec.jwt.providers[0].jwks.inline: note: keys[1] is not used: ";
        assert!(complaints.contains(wanted) && complaints.contains(message), "{message}: {complaints}");
        assert_eq!(complaints.lines().count(), 1, "{complaints}");
    }
    let named = |signer: &Signer, kid: &str| signer.jwk(json!({"kid": kid}));
    let untried = |keys: &[Value], what: &str| {
        let complaints = told(keys);
        let is_told =
            complaints.contains("spec.jwt.providers[0].jwks.inline: note: ") && complaints.contains(what);
        assert!(is_told && complaints.lines().count() == 1, "{what}: {complaints}");
    };
    let of = |make: fn() -> Signer, count: usize| -> Vec<_> {
        (0..count).map(|_| make().jwk(json!({}))).collect()
    };
    untried(&of(Signer::p384, 2), "2 keys fit ES384");
    untried(&of(Signer::p256, 5), "5 keys fit ES256");
    untried(&vec![rsa.jwk(json!({})); 5], "5 keys fit RS256");
    untried(&[named(&p384, "a"), Signer::p384().jwk(json!({}))], "2 keys fit ES384");
    for keys in [
        of(Signer::p256, 4),
        of(Signer::p384, 1),
        vec![named(&p384, "a"), named(&Signer::p384(), "b")],
        vec![p384.jwk(json!({})), good],
    ] {
        assert_eq!(told(&keys), "");
    }
}

/// Keys that are in an object are checked with it, if the files have it.
#[test]
fn keys_in_objects_are_checked_where_they_are() {
    use crate::govern::jwt::testing::Signer;
    use serde_json::{Value, json};

    let check_with = |jwks: Value, holder: &Value| {
        let policy = json!({
            "apiVersion": "sluice.dev/v1alpha1", "kind": "AccessPolicy", "metadata": {"name": "a", "namespace": "shop"},
            "spec": {
                "targetRefs": [{"name": "web"}],
                "jwt": {"providers": [
                    {"name": "login", "issuer": "https://a.example", "audiences": ["a"], "jwks": jwks},
                ]},
                "rules": [{"name": "r", "from": [{"jwt": {}}]}],
            },
        });
        check(&format!("{policy}\n---\n{holder}\n"), &["-"])
    };
    let set = |more: Value| json!({"keys": [Signer::p256().jwk(more)]}).to_string();
    let holder = |kind: &str, data: Value| json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": "keys", "namespace": "shop"}, "data": data});
    let at = "spec.jwt.providers[0].jwks.configMap: ";
    let named = || json!({"configMap": {"name": "keys"}});
    let good = holder("ConfigMap", json!({"jwks.json": set(json!({}))}));
    let (is_good, said, complaints) = check_with(named(), &good);
    assert!(is_good && complaints.is_empty(), "{complaints}");
    assert!(said.contains("https://a.example (keys from ConfigMap keys, key jwks.json)"), "{said}");
    for elsewhere in [holder("Secret", json!({})), {
        let mut other = good.clone();
        other["metadata"]["namespace"] = "bank".into();
        other
    }] {
        let (is_good, _, complaints) = check_with(named(), &elsewhere);
        let wanted = format!("{at}note: there is no ConfigMap shop/keys in these files: ");
        assert!(is_good && complaints.contains(&wanted), "{complaints}");
    }
    for (data, message) in [
        (json!({"other": "a"}), "it has no such key in its data: it has other"),
        (json!({}), "it has none at all"),
        (json!({"jwks.json": "a"}), "no set of keys: not JSON"),
        (json!({"jwks.json": set(json!({"d": "AA"}))}), "keys[0] has d, which is secret"),
        (json!({"jwks.json": {"keys": []}}), "it cannot be read: data"),
    ] {
        let (is_good, _, complaints) = check_with(named(), &holder("ConfigMap", data));
        let wanted = format!("{at}ConfigMap shop/keys, key jwks.json: ");
        assert!(!is_good && complaints.contains(&wanted) && complaints.contains(message), "{complaints}");
        assert_eq!(complaints.lines().count(), 1, "{complaints}");
    }
    // As agents say it that read the same files.
    let twice = json!({"apiVersion": "v1", "kind": "List", "items": [good.clone(), good]});
    let (is_good, _, complaints) = check_with(named(), &twice);
    assert!(!is_good && complaints.contains("which one counts is not known"), "{complaints}");
    let mut secret = holder("Secret", json!({}));
    secret["stringData"] = json!({"a": set(json!({}))});
    let (is_good, _, complaints) = check_with(json!({"secret": {"name": "keys", "key": "a"}}), &secret);
    assert!(is_good && complaints.is_empty(), "{complaints}");
}
