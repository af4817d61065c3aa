use std::net::IpAddr;

use http::Method;
use proptest::prelude::*;

use super::*;
use crate::govern::{
    path::disguise::{EVASIONS, Of, disguised},
    request::tests::Plain,
};

fn identity(namespace: &str, service_account: &str, labels: &[(&str, &str)]) -> Identity {
    Identity {
        namespace: namespace.into(),
        pod: "pod-1".into(),
        workload: "web".into(),
        service_account: service_account.into(),
        labels: labels.iter().copied().collect(),
    }
}

const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 2, 3));

fn known(pod: &Identity) -> Client<'_> {
    Client::new(ADDRESS, Some(pod))
}

const UNKNOWN: Client<'static> = Client { address: ADDRESS, pod: None, token: Token::None };

fn of(namespace: &str, service_account: &str) -> Party {
    Party {
        namespace: Some(namespace.into()),
        service_account: (!service_account.is_empty()).then(|| service_account.into()),
        ..Party::default()
    }
}

fn rule(name: &str, action: Action, from: Vec<Party>, to: Vec<To>) -> Rule {
    Rule { name: name.into(), action, from, to }
}

fn prefix(path: &str) -> To {
    To { paths: vec![PathMatch::Prefix(path.to_owned())], ..To::default() }
}

fn exact(path: &str) -> To {
    To { paths: vec![PathMatch::Exact(path.to_owned())], ..To::default() }
}

fn by<'a>(access: &'a Access, client: Client<'_>, target: &'static str) -> (bool, Option<&'a str>) {
    let decision = access.decide(client, &Plain::get(target));
    (decision.is_allowed(), decision.rule().map(|name| &**name))
}

#[test]
fn what_allows_only_some_denies_the_others() {
    let rules = vec![rule("gateway", Action::Allow, vec![of("shop", "gateway")], Vec::new())];
    let access = Access { rules, ..Access::default() };
    let gateway = identity("shop", "gateway", &[]);
    assert_eq!(by(&access, known(&gateway), "/a"), (true, Some("gateway")));
    for other in [identity("shop", "web", &[]), identity("other", "gateway", &[])] {
        assert_eq!(by(&access, known(&other), "/a"), (false, None));
    }
    assert_eq!(by(&access, UNKNOWN, "/a"), (false, None), "who is not known is none of them");
    assert_eq!(access.decide_connection(known(&gateway)).rule().map(|name| &**name), Some("gateway"));
    assert!(!access.decide_connection(UNKNOWN).is_allowed());
}

#[test]
fn what_only_denies_some_allows_the_others() {
    let rules = vec![rule("no-web", Action::Deny, vec![of("shop", "web")], Vec::new())];
    let access = Access { rules, ..Access::default() };
    let (web, other) = (identity("shop", "web", &[]), identity("shop", "other", &[]));
    assert_eq!(by(&access, known(&web), "/"), (false, Some("no-web")));
    assert_eq!(by(&access, known(&other), "/"), (true, None));
    assert_eq!(by(&access, UNKNOWN, "/"), (true, None));
    assert!(Access::default().decide(UNKNOWN, &Plain::get("/")).is_allowed());
}

#[test]
fn the_most_specific_rule_decides() {
    let all = |name: &str, action, to: Vec<To>| rule(name, action, Vec::new(), to);
    let get = To { methods: vec![Method::GET], ..prefix("/a") };
    let regex = To {
        paths: vec![PathMatch::Regex(crate::govern::policy::Pattern(
            regex::bytes::Regex::new("^/a").expect("one"),
        ))],
        ..To::default()
    };
    let access = Access {
        rules: vec![
            all("all", Action::Allow, Vec::new()),
            all("regex", Action::Deny, vec![regex]),
            all("a", Action::Allow, vec![prefix("/a")]),
            all("get-a", Action::Deny, vec![get]),
            all("ab", Action::Allow, vec![prefix("/a/b")]),
            rule("ab-web", Action::Deny, vec![of("shop", "web")], vec![prefix("/a/b")]),
            all("abc", Action::Allow, vec![exact("/a/b/c")]),
            all("twice", Action::Allow, vec![exact("/t")]),
            all("twice-no", Action::Deny, vec![exact("/t")]),
        ],
        ..Access::default()
    };
    let web = identity("shop", "web", &[]);
    for (client, target, wanted) in [
        (UNKNOWN, "/", (true, Some("all"))),
        (UNKNOWN, "/ab", (false, Some("regex"))),
        (UNKNOWN, "/a/x", (false, Some("get-a"))),
        (UNKNOWN, "/a/b/x", (true, Some("ab"))),
        (known(&web), "/a/b/x", (false, Some("ab-web"))),
        (known(&web), "/a/b/c", (true, Some("abc"))),
        (UNKNOWN, "/t", (false, Some("twice-no"))),
    ] {
        assert_eq!(by(&access, client, target), wanted, "{target}");
    }
    let post = Plain { method: "POST", ..Plain::get("/a/x") };
    assert_eq!(access.decide(UNKNOWN, &post).rule().map(|name| &**name), Some("a"));
}

#[test]
fn all_parts_of_a_party_must_hold() {
    let pod = identity("shop", "web", &[("app", "web"), ("tier", "front")]);
    let labels = |labels: &[(&str, &str)]| {
        labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect::<Vec<_>>()
    };
    let blocks = |text: &str| vec![text.parse().expect("a block")];
    for (party, wanted) in [
        (of("shop", "web"), true),
        (of("shop", ""), true),
        (of("shop", "other"), false),
        (Party { labels: labels(&[("tier", "front")]), ..of("shop", "") }, true),
        (Party { labels: labels(&[("tier", "back")]), ..of("shop", "") }, false),
        (Party { workload: Some("web".into()), ..of("shop", "") }, true),
        (Party { workload: Some("w".into()), ..of("shop", "") }, false),
        (Party { blocks: blocks("10.1.0.0/16"), ..of("shop", "") }, true),
        (Party { blocks: blocks("10.2.0.0/16"), ..of("shop", "") }, false),
        (Party { blocks: blocks("10.1.0.0/16"), ..Party::default() }, true),
    ] {
        assert_eq!(party.is(known(&pod)), wanted, "{party:?}");
    }
    assert!(Party { blocks: blocks("10.1.0.0/16"), ..Party::default() }.is(UNKNOWN), "an address is enough");
    assert!(!Party { blocks: blocks("10.1.0.0/16"), ..of("shop", "") }.is(UNKNOWN));
}

#[test]
fn a_connection_that_is_no_http_is_decided_by_its_client_alone() {
    let rules = vec![
        rule("read", Action::Allow, vec![of("shop", "web")], vec![prefix("/public")]),
        rule("no-admin", Action::Deny, Vec::new(), vec![prefix("/admin")]),
    ];
    let access = Access { rules, ..Access::default() };
    let web = identity("shop", "web", &[]);
    assert_eq!(access.decide_connection(known(&web)), Decision::Denied(None), "it is not allowed all");
    let rules = vec![rule("no-admin", Action::Deny, Vec::new(), vec![prefix("/admin")])];
    let access = Access { rules, ..Access::default() };
    assert_eq!(access.decide_connection(known(&web)), Decision::Allowed(None));
    // So it has to be known what is one.
    assert!(access.depends_on_requests() && management().depends_on_requests());
    assert!(!Access { mode: Mode::Observe, ..access }.depends_on_requests());
    let all = vec![rule("all", Action::Allow, vec![of("shop", "web")], Vec::new())];
    assert!(!Access { rules: all, ..Access::default() }.depends_on_requests());
}

#[test]
fn a_policy_that_cannot_be_read_may_deny_everything() {
    let access = Access { closed: true, ..Access::default() };
    assert_eq!(access.decide(UNKNOWN, &Plain::get("/")), Decision::Denied(None));
    assert_eq!(access.decide_connection(UNKNOWN), Decision::Denied(None));
}

fn management() -> Access {
    let hidden = Hidden {
        name: "management".into(),
        paths: vec![PathMatch::Prefix("/actuator".to_owned()), PathMatch::Exact("/metrics".to_owned())],
        from: vec![of("monitoring", "")],
    };
    Access { hidden: vec![hidden], ..Access::default() }
}

#[test]
fn hidden_paths_are_not_there_however_they_are_written() {
    let access = management();
    let prometheus = identity("monitoring", "prometheus", &[]);
    for target in EVASIONS {
        assert_eq!(by(&access, UNKNOWN, target), (false, Some("management")), "{target}");
        assert!(by(&access, known(&prometheus), target).0, "{target}");
    }
    for target in [
        "/",
        "/actuators",
        "/public/actuator",
        "/x/../orders",
        "/metrics2",
        "/a?x=/actuator",
        "/a?x=/b/../actuator",
        "/a?x=1..5",
    ] {
        assert_eq!(by(&access, UNKNOWN, target), (true, None), "{target}");
    }
}

/// As the recipe says: prefixes go by elements, and not all servers' do.
#[test]
fn an_expression_hides_what_only_begins_as_a_path_does() {
    let regex = |pattern: &str| {
        PathMatch::Regex(crate::govern::policy::Pattern(regex::bytes::Regex::new(pattern).expect("one")))
    };
    let hidden = |paths: PathMatch| {
        let hidden = Hidden { name: "management".into(), paths: vec![paths], from: Vec::new() };
        Access { hidden: vec![hidden], ..Access::default() }
    };
    let (expression, elements) =
        (hidden(regex("(?i)^/actuator")), hidden(PathMatch::Prefix("/actuator".into())));
    for target in
        ["/actuator.json", "/actuators", "/actuator%20", "/Actuator-x", "/%61ctuator.json", "//x/actuators"]
    {
        assert!(!by(&expression, UNKNOWN, target).0, "{target}");
        assert!(by(&elements, UNKNOWN, target).0, "{target}");
    }
    for target in ["/actuator", "/actuator/env", "x:/actuator/env"] {
        assert!(!by(&expression, UNKNOWN, target).0 && !by(&elements, UNKNOWN, target).0, "{target}");
    }
    assert!(by(&expression, UNKNOWN, "/x/actuator").0);
}

#[test]
fn what_is_allowed_is_allowed_in_each_form_or_not_at_all() {
    let rules = vec![rule("public", Action::Allow, Vec::new(), vec![prefix("/public")])];
    let access = Access { rules, ..Access::default() };
    for target in [
        "/public",
        "/public/a",
        "/%70ublic",
        "/public/a%2fb",
        "/public/100%25",
        "/public?next=/a/../b",
        "/public/a?range=1..5&a=%2e%2e",
    ] {
        assert!(by(&access, UNKNOWN, target).0, "{target}");
    }
    for target in [
        // An authority, to some.
        "//public/a",
        "/\\public/a",
        "http:/public/a",
        "/public/..%u002fadmin",
        "/public/../admin",
        "/public/..%2fadmin",
        "/public%2f..%2fadmin",
        "/public/..\\admin",
        "/public/..%00/x",
        "/secret/../public",
        "/secret/..;/public",
        "/secret%2fx/../public",
        "/secret//../public",
        "/public/..%2fsecret/%252e%252e%252fpublic",
        "/PUBLIC",
        "/public?/../secret",
        "/public?/%2e%2e/secret",
        "/public/a?x=%2f..%2f..%2fsecret",
    ] {
        assert!(!by(&access, UNKNOWN, target).0, "{target}");
    }
}

proptest! {
    #[test]
    fn no_disguise_shows_what_is_hidden(target in disguised()) {
        let access = management();
        let request = Of(target);
        let decision = access.decide(UNKNOWN, &request);
        prop_assert!(matches!(decision, Decision::Hidden(_)), "{}", request.0);
    }

    #[test]
    fn no_disguise_walks_around_a_rule(target in disguised()) {
        let rules = vec![
            rule("all", Action::Allow, Vec::new(), Vec::new()),
            rule("no", Action::Deny, Vec::new(), vec![prefix("/actuator")]),
        ];
        let access = Access { rules, ..Access::default() };
        let request = Of(target);
        prop_assert_eq!(access.decide(UNKNOWN, &request).rule().map(|name| &**name), Some("no"), "{}", request.0);
    }

    #[test]
    fn who_may_less_is_never_allowed_more(path in "(/[a-c]{0,2}){1,3}", depth in 1_usize..3) {
        // A rule more that denies never allows anything; one more that allows never denies what is allowed by a rule.
        let parent = path.split('/').take(depth + 1).collect::<Vec<_>>().join("/");
        let parent = String::from_utf8(crate::govern::path::normal(parent.as_bytes()).into_owned()).expect("text");
        let to = if parent.len() > 1 { vec![prefix(&parent)] } else { Vec::new() };
        let allow = rule("allow", Action::Allow, Vec::new(), Vec::new());
        let deny = rule("deny", Action::Deny, Vec::new(), to);
        let before = Access { rules: vec![allow.clone()], ..Access::default() };
        let after = Access { rules: vec![allow, deny], ..Access::default() };
        let request = Of(path);
        prop_assert!(before.decide(UNKNOWN, &request).is_allowed());
        prop_assert!(!after.decide(UNKNOWN, &request).is_allowed());
    }
}

#[test]
fn what_is_said_of_get_holds_for_head() {
    let get = To { methods: vec![Method::GET], ..To::default() };
    for action in [Action::Allow, Action::Deny] {
        let access =
            Access { rules: vec![rule("r", action, Vec::new(), vec![get.clone()])], ..Access::default() };
        // Some servers take `get` for GET, so what denies one denies the other.
        let denies = action == Action::Deny;
        for (method, held) in [
            ("GET", true),
            ("HEAD", true),
            ("POST", false),
            ("get", denies),
            ("Head", denies),
            ("post", false),
        ] {
            let request = Plain { method, ..Plain::get("/a") };
            let decision = access.decide(UNKNOWN, &request);
            assert_eq!(decision.rule().is_some(), held, "{action:?} {method}");
        }
    }
}

/// It is never said of a client that it may ask for nothing that may ask for something.
#[test]
fn who_may_ask_for_nothing_is_known() {
    let (shop, other) = (identity("shop", "web", &[]), identity("other", "web", &[]));
    let (ours, all) = (vec![of("shop", "")], Vec::new());
    let some = || vec![prefix("/a")];
    let allow = |from: &Vec<Party>, to| rule("a", Action::Allow, from.clone(), to);
    let deny = |from: &Vec<Party>, to| rule("d", Action::Deny, from.clone(), to);
    for (rules, [may_shop, may_other]) in [
        (vec![], [true, true]),
        (vec![allow(&ours, vec![])], [true, false]),
        (vec![allow(&ours, some())], [true, false]),
        (vec![allow(&all, some())], [true, true]),
        (vec![deny(&ours, vec![])], [false, true]),
        (vec![deny(&all, vec![])], [false, false]),
        (vec![deny(&all, some())], [true, true]),
        (vec![allow(&all, vec![]), deny(&ours, vec![])], [false, true]),
        (vec![allow(&all, some()), deny(&ours, vec![])], [true, true]),
        (vec![allow(&ours, vec![]), deny(&ours, some())], [true, false]),
    ] {
        let access = Access { rules, ..Access::default() };
        for (pod, may) in [(&shop, may_shop), (&other, may_other)] {
            assert_eq!(access.may_allow(known(pod)), may, "{access:?} {pod:?}");
            // Nothing else can be known of one that may.
            let asked = ["/a", "/b"].map(|path| access.decide(known(pod), &Plain::get(path)).is_allowed());
            assert_eq!(asked.contains(&true), may, "{access:?}");
        }
    }
    let closed = Access { closed: true, ..Access::default() };
    assert!(!closed.may_allow(known(&shop)));
}

mod tokens {
    use serde_json::{Value, json};

    use super::*;
    use crate::govern::jwt::{
        ClaimPath, ClaimTest, Found, Jwt, OnNoKeys, Provider,
        testing::{NOW, Signer, jwt, of, provider, set},
        token::check,
    };

    /// A client that has a token which says this.
    fn token(provider: Option<&str>, scope: Option<&str>) -> Party {
        let claim =
            |scope: &str| ClaimTest { path: ClaimPath(vec!["scope".into()]), values: vec![scope.into()] };
        let test =
            TokenTest { provider: provider.map(Into::into), claims: scope.map(claim).into_iter().collect() };
        Party { token: Some(test), ..Party::default() }
    }

    fn policy(jwt: Jwt, rules: Vec<Rule>) -> Access {
        Access { rules, jwt: Some(jwt), ..Access::default() }
    }

    #[derive(Debug, PartialEq)]
    enum Is {
        Allowed,
        Denied,
        Unauthenticated,
        Hidden,
    }

    fn is(access: &Access, client: Client<'_>, target: &'static str) -> Is {
        match access.decide(client, &Plain::get(target)) {
            Decision::Allowed(_) => Is::Allowed,
            Decision::Denied(_) => Is::Denied,
            Decision::Unauthenticated(_) => Is::Unauthenticated,
            Decision::Hidden(_) => Is::Hidden,
        }
    }

    /// What is said of a request whose token says this; null: it has none.
    fn said(access: &Access, signer: &Signer, more: &Value, target: &'static str) -> Is {
        let jwt = access.jwt.as_ref().expect("it asks for tokens");
        let found = match more {
            Value::Null => Found::Invalid(Failure::Missing),
            more => check(jwt, signer.good(more.clone()).as_bytes(), NOW),
        };
        is(access, UNKNOWN.with((&found).into()), target)
    }

    #[test]
    fn without_a_token_nobody_is_known_and_with_another_one_somebody_else() {
        let signer = Signer::ed25519();
        let access = policy(
            jwt(&[signer.jwk(json!({}))]),
            vec![
                rule("health", Action::Allow, Vec::new(), vec![exact("/health")]),
                rule("read", Action::Allow, vec![token(None, Some("read"))], Vec::new()),
                rule(
                    "admin",
                    Action::Allow,
                    vec![token(Some("login"), Some("admin"))],
                    vec![prefix("/admin")],
                ),
                rule("no-guests", Action::Deny, vec![token(None, Some("guest"))], vec![prefix("/a")]),
            ],
        );
        for (more, target, wanted) in [
            (json!(null), "/health", Is::Allowed),
            (json!({"exp": 0}), "/health", Is::Allowed),
            (json!(null), "/", Is::Unauthenticated),
            (json!({"exp": 0}), "/", Is::Unauthenticated),
            (json!({"scope": "read"}), "/", Is::Allowed),
            (json!({"scope": "write"}), "/", Is::Denied),
            (json!({}), "/", Is::Denied),
            (json!({"scope": "read"}), "/admin", Is::Allowed),
            (json!({"scope": "admin"}), "/admin/x", Is::Allowed),
            (json!({"scope": "admin"}), "/", Is::Denied),
            (json!({"scope": "read guest"}), "/a/b", Is::Denied),
            (json!({"scope": "read guest"}), "/b", Is::Allowed),
        ] {
            assert_eq!(said(&access, &signer, &more, target), wanted, "{more} {target}");
        }
        assert!(access.may_allow(UNKNOWN) && access.depends_on_requests());
        assert!(!access.decide_connection(UNKNOWN).is_allowed(), "what is no HTTP has no token");
    }

    #[test]
    fn all_conditions_on_a_client_hold_and_a_token_is_one_of_them() {
        let signer = Signer::ed25519();
        let both = Party { token: Some(TokenTest::default()), ..of_shop() };
        let access =
            policy(jwt(&[signer.jwk(json!({}))]), vec![rule("both", Action::Allow, vec![both], Vec::new())]);
        let (shop, other) = (identity("shop", "web", &[]), identity("other", "web", &[]));
        let found = check(access.jwt.as_ref().unwrap(), signer.good(json!({})).as_bytes(), NOW);
        assert_eq!(is(&access, known(&shop).with((&found).into()), "/"), Is::Allowed);
        assert_eq!(is(&access, known(&other).with((&found).into()), "/"), Is::Denied);
        assert_eq!(is(&access, known(&shop), "/"), Is::Unauthenticated);
        assert_eq!(is(&access, known(&other), "/"), Is::Denied, "a token would not help");
        assert!(access.may_allow(known(&shop)) && !access.may_allow(known(&other)));
    }

    fn of_shop() -> Party {
        super::of("shop", "")
    }

    #[test]
    fn hidden_paths_are_there_for_those_with_a_token() {
        let signer = Signer::ed25519();
        let hidden = Hidden {
            name: "management".into(),
            paths: vec![PathMatch::Prefix("/actuator".into())],
            from: vec![token(None, Some("ops"))],
        };
        let access = Access { hidden: vec![hidden], ..policy(jwt(&[signer.jwk(json!({}))]), Vec::new()) };
        assert_eq!(said(&access, &signer, &json!(null), "/actuator/env"), Is::Hidden);
        assert_eq!(said(&access, &signer, &json!({"scope": "read"}), "/actuator"), Is::Hidden);
        assert_eq!(said(&access, &signer, &json!({"scope": "ops"}), "/actuator"), Is::Allowed);
    }

    #[test]
    fn without_keys_what_needs_them_is_denied_unless_the_policy_says_otherwise() {
        let signer = Signer::ed25519();
        let keyless = |on_no_keys| {
            let provider = Provider {
                on_no_keys,
                ..provider("login", "https://login.example.com/", set(&[signer.jwk(json!({}))]))
            };
            provider.keys.known().put(None);
            let rules = vec![
                rule("users", Action::Allow, vec![token(None, None)], Vec::new()),
                rule(
                    "no-guests",
                    Action::Deny,
                    vec![token(Some("login"), Some("guest"))],
                    vec![prefix("/a")],
                ),
                rule("health", Action::Allow, Vec::new(), vec![exact("/health")]),
            ];
            policy(of(vec![provider]), rules)
        };
        let (deny, allow) = (keyless(OnNoKeys::Deny), keyless(OnNoKeys::Allow));
        for (access, target, wanted) in [
            (&deny, "/", Is::Unauthenticated),
            (&deny, "/a", Is::Unauthenticated),
            (&deny, "/health", Is::Allowed),
            (&allow, "/", Is::Allowed),
            (&allow, "/a", Is::Allowed),
        ] {
            assert_eq!(said(access, &signer, &json!({}), target), wanted, "{target}");
            assert_eq!(said(access, &signer, &json!(null), "/"), Is::Unauthenticated);
        }
    }
}
