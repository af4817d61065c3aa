//! Who may call.

use super::*;
use crate::govern::{access::Access, policy::Mode};

#[test]
fn about_access() {
    let rule = |rule: Value| {
        let mut whole = json!({"name": "a"});
        for (field, value) in rule.as_object().into_iter().flatten() {
            whole[field] = value.clone();
        }
        access(&json!({"rules": [whole]}))
    };
    let from = |from: Value| rule(json!({"from": [from]}));
    let to = |to: Value| rule(json!({"to": [to]}));
    let hidden = |hidden: Value| access(&json!({"hidden": [hidden]}));
    agree::<AccessPolicy>(
        vec![
            rule(json!({})),
            rule(json!({"action": "Deny"})),
            from(json!({"namespace": "shop"})),
            from(json!({"serviceAccount": "gateway", "podLabels": {"app.kubernetes.io/name": "gateway"}})),
            from(json!({"workload": "gateway", "ipBlocks": ["10.0.0.0/8", "fd00::/8", "0.0.0.0/0"]})),
            to(json!({"methods": ["GET", "HEAD"]})),
            to(json!({"paths": [{"value": "/a"}, {"type": "RegularExpression", "value": "^/[0-9]+$"}]})),
            hidden(json!({"name": "management", "paths": [{"value": "/actuator"}]})),
            access(&json!({"mode": "Observe", "onInvalid": "Deny", "rules": [{"name": "a"}]})),
            access(&json!({"whenUnattended": "Allow", "rules": [{"name": "a"}]})),
            access(&json!({"whenUnattended": "Refuse", "rules": [{"name": "a"}]})),
            access(&json!({"whenUnattended": "Refuse", "unattendedFor": "24h", "rules": [{"name": "a"}]})),
            access(&json!({"targetRefs": [{"kind": "Namespace", "name": "shop"}], "rules": [{"name": "a"}]})),
        ],
        vec![
            (access(&json!({})), "spec", "rules or hidden is needed", Everywhere),
            (access(&json!({"rules": []})), "spec", "rules or hidden is needed", Everywhere),
            (rule(json!({"name": "A"})), "spec.rules[0].name", "", Everywhere),
            (rule(json!({"action": "Drop"})), "spec.rules[0].action", "\"Allow\", \"Deny\"", Everywhere),
            (from(json!({})), "spec.rules[0].from[0]", "empty", Everywhere),
            (from(json!({"ipBlocks": ["10.0.0.0"]})), "spec.rules[0].from[0].ipBlocks[0]", "", Everywhere),
            (
                from(json!({"ipBlocks": ["10.1.2.3/8"]})),
                "spec.rules[0].from[0].ipBlocks[0]",
                "write 10.0.0.0/8",
                ToSluice,
            ),
            (
                from(json!({"ipBlocks": ["10.0.0.0/33"]})),
                "spec.rules[0].from[0].ipBlocks[0]",
                "the length is 0 to 32",
                ToSluice,
            ),
            (to(json!({})), "spec.rules[0].to[0]", "empty", Everywhere),
            (to(json!({"methods": ["get"]})), "spec.rules[0].to[0].methods[0]", "upper case", Everywhere),
            (
                to(json!({"paths": [{"value": "a"}]})),
                "spec.rules[0].to[0].paths[0].value",
                "begins with",
                Everywhere,
            ),
            (hidden(json!({"name": "m", "paths": []})), "spec.hidden[0].paths", "", Everywhere),
            (
                access(&json!({"rules": [{"name": "a"}, {"name": "a"}]})),
                "spec.rules[1].name",
                "already",
                Everywhere,
            ),
            (
                access(&json!({
                    "targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": "orders"}],
                    "rules": [{"name": "a"}],
                })),
                "spec.targetRefs",
                "an AccessPolicy targets Services",
                Everywhere,
            ),
            (
                access(&json!({"rules": [{"name": "a"}], "whenUnattended": "Deny"})),
                "spec.whenUnattended",
                "\"Allow\", \"Refuse\"",
                Everywhere,
            ),
            (
                access(&json!({"rules": [{"name": "a"}], "unattendedFor": "1m"})),
                "spec",
                "has no effect without whenUnattended: Refuse",
                Everywhere,
            ),
            (
                access(&json!({"rules": [{"name": "a"}], "whenUnattended": "Refuse", "unattendedFor": "9s"})),
                "spec.unattendedFor",
                "allowed are 10s to 24h",
                Everywhere,
            ),
            (
                access(&json!({"rules": [{"name": "a"}], "onInvalid": "Close"})),
                "spec.onInvalid",
                "\"Allow\", \"Deny\"",
                Everywhere,
            ),
        ],
    );
}

#[test]
fn about_tokens() {
    use crate::govern::jwt::testing::Signer;
    let set = |more: Value| json!({"keys": [Signer::p256().jwk(more)]}).to_string();
    let good = set(json!({"kid": "a", "use": "sig"}));
    let provider = |more: Value| {
        let mut whole = json!({
            "name": "login",
            "issuer": "https://login.example.com/",
            "audiences": ["orders"],
            "jwks": {"inline": good},
        });
        for (field, value) in more.as_object().into_iter().flatten() {
            whole[field] = value.clone();
        }
        whole
    };
    let jwt = |more: Value| {
        let mut whole = json!({"providers": [provider(json!({}))]});
        for (field, value) in more.as_object().into_iter().flatten() {
            whole[field] = value.clone();
        }
        access(&json!({"jwt": whole, "rules": [{"name": "a", "from": [{"jwt": {}}]}]}))
    };
    let one = |more: Value| jwt(json!({"providers": [provider(more)]}));
    let token = |token: Value| {
        access(&json!({
            "jwt": {"providers": [provider(json!({}))]},
            "rules": [{"name": "a", "from": [{"jwt": token}]}],
        }))
    };
    let at = "spec.jwt.providers[0]";
    let field = |name: &str| -> &'static str { Box::leak(format!("{at}.{name}").into_boxed_str()) };
    agree::<AccessPolicy>(
        vec![
            jwt(json!({})),
            jwt(json!({"forwardToken": false, "tokenFrom": [{"header": {"name": "x-token", "prefix": ""}}]})),
            jwt(json!({"tokenFrom": [{"cookie": "session"}, {"queryParameter": "access_token"}]})),
            one(json!({"clockSkew": "0s"})),
            one(json!({"jwks": {"uri": "https://login.example.com/keys"}})),
            one(
                json!({"jwks": {"uri": "https://[fd00::1]:8443?p=a", "cacheDuration": "30s"}, "onNoKeys": "Allow"}),
            ),
            one(json!({"claimsToHeaders": [{"header": "x-user", "claim": ["sub"]}]})),
            one(json!({"jwks": {"configMap": {"name": "login.keys"}}, "onNoKeys": "Allow"})),
            one(json!({"jwks": {"secret": {"name": "a", "key": "Keys_1.json"}}, "onNoKeys": "Deny"})),
            jwt(json!({"tokenFrom": [
                {"header": {"name": "Authorization"}},
                {"header": {"name": "authorization", "prefix": "Token "}},
                {"header": {"name": "x-token"}},
            ]})),
            token(json!({"provider": "login", "claims": [{"claim": ["a", "b"], "values": ["c"]}]})),
        ],
        vec![
            (jwt(json!({"providers": []})), "spec.jwt.providers", "", Everywhere),
            (
                jwt(json!({"providers": [provider(json!({})), provider(json!({"issuer": "b"}))]})),
                "spec.jwt.providers[1].name",
                "already",
                Everywhere,
            ),
            (
                jwt(json!({"providers": [provider(json!({})), provider(json!({"name": "b"}))]})),
                "spec.jwt.providers[1].issuer",
                "the same issuer",
                Everywhere,
            ),
            (one(json!({"audiences": []})), field("audiences"), "", Everywhere),
            (one(json!({"audiences": [""]})), field("audiences[0]"), "", Everywhere),
            (one(json!({"issuer": ""})), field("issuer"), "", Everywhere),
            (one(json!({"clockSkew": "6m"})), field("clockSkew"), "0s to 5m", Everywhere),
            (
                one(json!({"jwks": {}})),
                field("jwks"),
                "exactly one of inline, uri, configMap and secret",
                Everywhere,
            ),
            (
                one(json!({"jwks": {"inline": good, "uri": "https://login.example.com/keys"}})),
                field("jwks"),
                "exactly one of inline, uri, configMap and secret",
                Everywhere,
            ),
            (
                one(json!({"jwks": {"inline": good, "cacheDuration": "5m"}})),
                field("jwks"),
                "no effect without uri",
                Everywhere,
            ),
            (
                one(json!({"jwks": {"uri": "https://login.example.com/keys", "cacheDuration": "29s"}})),
                field("jwks.cacheDuration"),
                "30s to 1h",
                Everywhere,
            ),
            (
                one(json!({"jwks": {"configMap": {"name": "a"}, "secret": {"name": "a"}}})),
                field("jwks"),
                "exactly one of inline, uri, configMap and secret",
                Everywhere,
            ),
            (
                one(json!({"jwks": {"configMap": {"name": "a"}, "cacheDuration": "5m"}})),
                field("jwks"),
                "no effect without uri",
                Everywhere,
            ),
            (
                one(json!({"jwks": {"configMap": {"name": "A"}}})),
                field("jwks.configMap.name"),
                "",
                Everywhere,
            ),
            (one(json!({"jwks": {"secret": {"name": "shop/a"}}})), field("jwks.secret.name"), "", Everywhere),
            (
                one(json!({"jwks": {"secret": {"name": "a", "key": "a/b"}}})),
                field("jwks.secret.key"),
                "",
                Everywhere,
            ),
            (
                one(json!({"jwks": {"configMap": {"key": "a"}}})),
                field("jwks.configMap.name"),
                "it is needed",
                Everywhere,
            ),
            (
                jwt(json!({"tokenFrom": [{"header": {"name": "x-token"}}, {"header": {"name": "X_Token"}}]})),
                "spec.jwt.tokenFrom[1].header.name",
                "are one header to servers",
                ToSluice,
            ),
            (
                one(json!({"claimsToHeaders": [
                    {"header": "x-user", "claim": ["sub"]},
                    {"header": "x_user", "claim": ["name"]},
                ]})),
                field("claimsToHeaders[1].header"),
                "are one header to servers",
                ToSluice,
            ),
            (
                jwt(json!({
                    "tokenFrom": [{"header": {"name": "x-token"}}],
                    "providers": [provider(json!({"claimsToHeaders": [{"header": "x_token", "claim": ["sub"]}]}))],
                })),
                field("claimsToHeaders[0].header"),
                "\"x_token\" and \"x-token\" (spec.jwt.tokenFrom[0].header.name)",
                ToSluice,
            ),
            (one(json!({"onNoKeys": "Allow"})), at, "no effect with jwks.inline", Everywhere),
            (
                one(json!({"jwks": {"uri": "https://login.example.com/keys"}, "onNoKeys": "Maybe"})),
                field("onNoKeys"),
                "\"Deny\", \"Allow\"",
                Everywhere,
            ),
            (
                one(json!({"jwks": {"uri": "http://login.example.com/keys"}})),
                field("jwks.uri"),
                "https:// is needed",
                Everywhere,
            ),
            (
                one(json!({"jwks": {"uri": "https://me:secret@login.example.com/keys"}})),
                field("jwks.uri"),
                "a name and a password are not allowed",
                Everywhere,
            ),
            (
                one(json!({"jwks": {"uri": "https://login..example.com/keys"}})),
                field("jwks.uri"),
                "no URI with a host",
                ToSluice,
            ),
            (
                one(json!({"jwks": {"inline": "none"}})),
                field("jwks.inline"),
                "no set of keys: not JSON",
                ToSluice,
            ),
            (one(json!({"jwks": {"inline": "{}"}})), field("jwks.inline"), "\"keys\" with a list", ToSluice),
            (
                one(json!({"jwks": {"inline": set(json!({"use": "enc"}))}})),
                field("jwks.inline"),
                "it is not for signatures",
                ToSluice,
            ),
            (
                one(json!({"jwks": {"inline": set(json!({"alg": "none"}))}})),
                field("jwks.inline"),
                "its alg is not accepted",
                ToSluice,
            ),
            (
                one(json!({"jwks": {"inline": json!({"keys": [{"kty": "oct", "kid": "a"}]}).to_string()}})),
                field("jwks.inline"),
                "symmetric",
                ToSluice,
            ),
            (
                one(json!({"jwks": {"inline": set(json!({"d": "c2VjcmV0"}))}})),
                field("jwks.inline"),
                "keys[0] has d, which is secret",
                ToSluice,
            ),
            (
                one(json!({"claimsToHeaders": [{"header": "Authorization", "claim": ["sub"]}]})),
                field("claimsToHeaders[0].header"),
                "a meaning of its own",
                Everywhere,
            ),
            (
                one(json!({"claimsToHeaders": [{"header": "x-user", "claim": []}]})),
                field("claimsToHeaders[0].claim"),
                "",
                Everywhere,
            ),
            (
                one(json!({"claimsToHeaders": [
                    {"header": "x-user", "claim": ["sub"]}, {"header": "X-User", "claim": ["name"]},
                ]})),
                field("claimsToHeaders[1].header"),
                "already",
                ToSluice,
            ),
            (jwt(json!({"tokenFrom": [{}]})), "spec.jwt.tokenFrom[0]", "one of header", Everywhere),
            (
                jwt(json!({"tokenFrom": [{"cookie": "a", "queryParameter": "b"}]})),
                "spec.jwt.tokenFrom[0]",
                "one of header",
                Everywhere,
            ),
            (
                jwt(json!({"forwardToken": false, "tokenFrom": [{"cookie": "a"}]})),
                "spec.jwt.forwardToken",
                "only a token in a header",
                Everywhere,
            ),
            (
                token(json!({"provider": "other"})),
                "spec.rules[0].from[0].jwt.provider",
                "these are \"login\"",
                ToSluice,
            ),
            (
                token(json!({"claims": [{"claim": ["a"], "values": []}]})),
                "spec.rules[0].from[0].jwt.claims[0].values",
                "",
                Everywhere,
            ),
            (
                access(&json!({"rules": [{"name": "a", "from": [{"jwt": {}}]}]})),
                "spec.rules[0].from[0].jwt",
                "spec.jwt is not set",
                ToSluice,
            ),
        ],
    );
}

#[test]
fn a_client_without_a_namespace_is_of_the_policys_own() {
    let object = access(&json!({
        "mode": "Observe",
        "rules": [{"name": "a", "from": [{"serviceAccount": "gateway"}, {"ipBlocks": ["10.0.0.0/8"]}]}],
    }));
    let (_, checked) = read::<AccessPolicy>(&object).expect("it is good");
    assert_eq!((&*checked.name, checked.mode), ("shop/main", Mode::Observe));
    let namespaces: Vec<_> = checked.rules[0].from.iter().map(|party| party.namespace.as_deref()).collect();
    assert_eq!(namespaces, [Some("shop"), None]);
}

#[test]
fn what_becomes_of_connections_without_an_agent_is_said_explicitly() {
    let time = |spec: &Value| {
        let mut whole = json!({"rules": [{"name": "a"}]});
        for (field, value) in spec.as_object().into_iter().flatten() {
            whole[field] = value.clone();
        }
        let (_, checked) = read::<AccessPolicy>(&access(&whole)).expect("it is good");
        checked.closed_unattended().map(|time| time.as_secs())
    };
    assert_eq!(time(&json!({})), None, "they go direct");
    assert_eq!(time(&json!({"whenUnattended": "Allow"})), None);
    assert_eq!(time(&json!({"whenUnattended": "Refuse"})), Some(600));
    assert_eq!(time(&json!({"whenUnattended": "Refuse", "unattendedFor": "90s"})), Some(90));
    assert_eq!(time(&json!({"whenUnattended": "Refuse", "mode": "Observe"})), None, "nothing is denied then");
}

#[test]
fn what_cannot_be_read_denies_everything_only_if_it_says_so() {
    let bad = |on_invalid: &str| access(&json!({"onInvalid": on_invalid, "rules": "none"}));
    assert!(read::<AccessPolicy>(&bad("Deny")).is_err());
    let closed = access_policy::closed(&bad("Deny")).expect("it says so");
    assert_eq!((closed.0[0].service.as_ref(), closed.1), ("orders", false));
    assert_eq!(closed.2, Access { name: "shop/main".into(), closed: true, ..Access::default() });
    assert!(access_policy::closed(&bad("Allow")).is_none());
    assert!(access_policy::closed(&access(&json!({"rules": "none"}))).is_none());
    let nobody = json!({"metadata": {"name": "a"}, "spec": {"onInvalid": "Deny", "targetRefs": "orders"}});
    assert!(access_policy::closed(&nobody).is_none(), "of whom is not known");
}
