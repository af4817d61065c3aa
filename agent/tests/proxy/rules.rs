//! `rules`, `headers` and `stripTags` of a policy: what holds for some requests, and what of a request's head is changed.

use std::{sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue};
use sluice::{
    cluster::model::Workload,
    govern::policy::{
        Behaviour, CallerMatch, CircuitBreaker, Concurrency, Edits, EntryRule, HeaderEdits, LimitKey, Mode,
        Part, Parts, PathMatch, Policy, RateLimit, RequestMatch, Rule, Scope, StripTags, Timeouts,
        ValueMatch, ValueTest,
    },
    proxy::explain::{Asked, Explanation, Stage, explain},
};

use crate::{
    breaking::Moody,
    origin::Origin,
    peer::{Answer, Peer},
    rig::{Rig, tag_names},
};

fn under(path: &str) -> RequestMatch {
    RequestMatch { path: Some(PathMatch::Prefix(path.to_owned())), ..RequestMatch::default() }
}

fn rule(name: &str, matches: RequestMatch, policy: Policy, own: Parts) -> Arc<Rule> {
    Arc::new(Rule { name: name.into(), matches, policy: Arc::new(policy), own })
}

fn with_rules(rules: Vec<Arc<Rule>>) -> Policy {
    Policy { name: Some("shop/orders".into()), rules, ..Policy::default() }
}

fn named(policy: Policy) -> Policy {
    Policy { name: Some("shop/orders".into()), ..policy }
}

/// One request an hour.
fn rare(name: &str) -> RateLimit {
    RateLimit {
        name: name.into(),
        requests: 1.0,
        interval: Duration::from_secs(3600),
        burst: 1.0,
        behaviour: Behaviour::Reject,
        key: LimitKey::None,
        scope: Scope::Node,
        matches: RequestMatch::default(),
        mode: Mode::Enforce,
    }
}

fn ask(caller: &mut Peer, path: &str) -> Answer {
    caller.get(path);
    caller.answer()
}

fn explained(rig: &Rig, head: &str) -> Explanation {
    let asked = Asked {
        caller: Arc::new(Workload::new("uid-1", "shop", "gateway-1")),
        not_captured: None,
        dialled: "10.96.0.1:80".parse().unwrap(),
        head: head.as_bytes().to_vec(),
        remembered: None,
        links: false,
    };
    explain(&rig.snapshot(), &tag_names(), &asked)
}

#[test]
fn the_first_rule_that_matches_holds_and_is_named() {
    let origin = Origin::fixed("ok");
    let limited = Policy { rate_limits: vec![Arc::new(rare("reports/few"))], ..named(Policy::default()) };
    let own = [Part::RateLimits].into_iter().collect();
    let policy = Policy {
        rate_limits: vec![Arc::new(rare("all"))],
        ..with_rules(vec![
            rule("reports", under("/reports"), limited, own),
            rule("free", under("/"), named(Policy::default()), own),
        ])
    };
    let rig = Rig::builder().endpoint(origin.address).policy(policy).start();
    let mut caller = rig.dial();
    assert_eq!(ask(&mut caller, "/reports/1").body, "ok");
    let refused = ask(&mut caller, "/reports/2");
    refused.made_up(429, "rate_limited");
    assert!(refused.body.contains("\"rule\":\"reports/few\""), "{refused:?}");
    // The rule behind it has no limits at all, and the policy's own is not asked.
    for _ in 0..5 {
        assert_eq!(ask(&mut caller, "/orders").body, "ok");
    }
    rig.await_metric("sluice_rule_requests_total", &["policy_rule=\"reports\"", "code=\"2xx\""], 1.0);
    rig.await_metric("sluice_rule_requests_total", &["policy_rule=\"reports\"", "code=\"4xx\""], 1.0);
    rig.await_metric("sluice_rule_requests_total", &["policy_rule=\"free\"", "code=\"2xx\""], 5.0);
    rig.await_metric("sluice_rule_request_duration_seconds_count", &["policy_rule=\"free\""], 5.0);
    rig.await_metric("sluice_rate_limit_requests_total", &["rule=\"all\""], 0.0);

    let said = explained(&rig, "GET /reports/3 HTTP/1.1\r\nhost: a\r\n\r\n");
    let step = said.steps.iter().find(|step| step.stage == Stage::Rule).expect("a step");
    assert_eq!(step.source.as_deref(), Some("rule reports of TrafficPolicy shop/orders"), "{said:#?}");
    assert_eq!(said.outcome.reason.as_deref(), Some("rate_limited"));
    let said = explained(&rig, "GET /x HTTP/1.1\r\nhost: a\r\n\r\n");
    assert!(said.outcome.endpoint.is_some(), "{said:#?}");
}

/// No server's reading of a path takes a request past the limits of the rule that is about it, and none changes its rule.
#[test]
fn the_limits_of_a_rule_cannot_be_evaded_by_another_rule() {
    let origin = Origin::fixed("ok");
    let own = [Part::RateLimits].into_iter().collect();
    let limited = Policy { rate_limits: vec![Arc::new(rare("secret/few"))], ..named(Policy::default()) };
    let policy = with_rules(vec![
        rule("open", under("/open"), named(Policy::default()), own),
        rule("secret", under("/secret"), limited, own),
    ]);
    let rig = Rig::builder().endpoint(origin.address).policy(policy).start();
    let mut caller = rig.dial();
    assert_eq!(ask(&mut caller, "/secret").body, "ok");
    for path in ["/open/..%2fsecret/x", "/secret%2fx", "//h/secret", "/open?/../secret", "/open\\..\\secret"]
    {
        let refused = ask(&mut caller, path);
        refused.made_up(429, "rate_limited");
        assert!(refused.body.contains("\"rule\":\"secret/few\""), "{path} {refused:?}");
    }
    for path in ["/open", "/open/a%2fb", "/open?next=/x/../secret", "/other"] {
        assert_eq!(ask(&mut caller, path).body, "ok", "{path}");
    }
    rig.await_metric("sluice_rule_requests_total", &["policy_rule=\"open\"", "code=\"4xx\""], 2.0);
    rig.await_metric("sluice_rule_requests_total", &["policy_rule=\"open\"", "code=\"2xx\""], 3.0);

    let said = explained(&rig, "GET /open/..%2fsecret/x HTTP/1.1\r\nhost: a\r\n\r\n");
    let steps: Vec<_> = said.steps.iter().filter(|step| step.stage == Stage::Rule).collect();
    assert_eq!(steps[0].source.as_deref(), Some("rule open of TrafficPolicy shop/orders"), "{said:#?}");
    assert!(steps[1].message.contains("the limits of rule secret count it, too"), "{said:#?}");
    let limit = said.steps.iter().find(|step| step.stage == Stage::RateLimit).expect("a step");
    assert_eq!(limit.source.as_deref(), Some("rule secret/few of TrafficPolicy shop/orders"));
    assert_eq!(said.outcome.reason.as_deref(), Some("rate_limited"));
    let said = explained(&rig, "GET /open/a%2fb HTTP/1.1\r\nhost: a\r\n\r\n");
    assert!(
        said.outcome.endpoint.is_some() && said.steps.iter().all(|step| !step.message.contains("count it"))
    );
}

#[test]
fn requests_in_flight_count_for_each_rule_that_may_be_about_them() {
    let slow = Origin::new(|_, peer, note| {
        while let Some(head) = peer.request() {
            note(head);
            peer.until("go");
            peer.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        }
    });
    let one = Some(Concurrency { max_requests: 1, adaptive: None, scope: Scope::Node, mode: Mode::Enforce });
    let own = [Part::Concurrency].into_iter().collect();
    let policy = with_rules(vec![
        rule("open", under("/open"), named(Policy::default()), own),
        rule("secret", under("/secret"), named(Policy { concurrency: one, ..Policy::default() }), own),
    ]);
    let rig = Rig::builder().endpoint(slow.address).policy(policy).start();
    let (mut first, mut second) = (rig.dial(), rig.dial());
    first.send("POST /open/..%2fsecret HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\n");
    slow.await_notes(1);
    second.get("/secret");
    second.answer().made_up(429, "concurrency_limited");
    let said = explained(&rig, "GET /open/..%2fsecret HTTP/1.1\r\nhost: a\r\n\r\n");
    assert_eq!(said.outcome.reason.as_deref(), Some("concurrency_limited"), "{said:#?}");
    first.send("go");
    assert_eq!(first.answer().body, "ok");
    second.send("POST /secret HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\ngo");
    assert_eq!(second.answer().body, "ok", "its place is free");
}

#[test]
fn a_rule_has_timeouts_and_a_breaker_of_its_own() {
    let moody = Moody::new("HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n");
    let quick = Timeouts { request: Some(Duration::from_millis(50)), ..Timeouts::default() };
    let breaker =
        CircuitBreaker { minimum_requests: 1, error_percent: Some(1.0), ..CircuitBreaker::default() };
    let of_rule = Policy { timeouts: quick, circuit_breaker: Some(breaker), ..named(Policy::default()) };
    let own = [Part::CircuitBreaker].into_iter().collect();
    let policy = with_rules(vec![rule("fragile", under("/fragile"), of_rule, own)]);
    let rig = Rig::builder().endpoint(moody.origin.address).policy(policy).start();
    let mut caller = rig.dial();
    assert_eq!(ask(&mut caller, "/fragile").status(), 500);
    ask(&mut caller, "/fragile").made_up(503, "circuit_open");
    assert_eq!(ask(&mut caller, "/other").status(), 500, "the others have no breaker");
    let labels = ["policy_rule=\"fragile\"", "state=\"open\""];
    rig.await_metric("sluice_circuit_breaker_state", &labels, 1.0);
}

#[test]
fn headers_are_changed_on_the_way_and_limits_see_what_came() {
    let origin = Origin::raw(
        "HTTP/1.1 200 OK\r\nserver-timing: secret\r\nx-kept: 1\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok",
    );
    let pair = |name: &'static str, value: &'static str| {
        (HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    let headers = HeaderEdits {
        request: Edits {
            remove: vec![HeaderName::from_static("x-user"), HeaderName::from_static("x-mse-tag")],
            set: vec![pair("x-env", "test")],
            add: vec![pair("x-via", "sluice")],
        },
        response: Edits {
            remove: vec![HeaderName::from_static("server-timing")],
            set: vec![pair("cache-control", "no-store")],
            add: Vec::new(),
        },
    };
    let by_user = RateLimit { key: LimitKey::Header(HeaderName::from_static("x-user")), ..rare("by-user") };
    let policy = named(Policy { headers, rate_limits: vec![Arc::new(by_user)], ..Policy::default() });
    let rig = Rig::builder().endpoint(origin.address).policy(policy).start();
    let request = |user: &str| {
        format!(
            "POST /a HTTP/1.1\r\nhost: a\r\nx-env: prod\r\nX-User: {user}\r\nx-mse-tag: gray\r\nx-via: me\r\ncontent-length: 4\r\n\r\nbody"
        )
    };
    let mut caller = rig.dial();
    caller.send(request("ann"));
    let answer = caller.answer();
    assert_eq!((answer.status(), &*answer.body), (200, "ok"));
    assert!(answer.has("x-kept: 1") && answer.has("cache-control: no-store"), "{answer:?}");
    assert!(!answer.head.contains("server-timing"), "{answer:?}");
    let came = origin.noted()[0].clone();
    for line in [
        "x-via: me\r\n",
        "x-env: test\r\n",
        "x-via: sluice\r\n",
        "x-mse-tag: gray\r\n",
        "baggage: x-mse-tag=gray\r\n",
    ] {
        assert!(came.contains(line), "no {line:?} in {came}");
    }
    assert!(!came.to_lowercase().contains("x-user") && !came.contains("prod"), "{came}");
    let mut caller = rig.dial();
    caller.send(request("ann"));
    caller.answer().made_up(429, "rate_limited");
    let mut caller = rig.dial();
    caller.send(request("bob"));
    assert_eq!(caller.answer().status(), 200, "the limit knows its key, though it is not forwarded");
}

#[test]
fn a_tag_from_outside_opens_no_lane() {
    let (base, gray) = (Origin::fixed("base"), Origin::fixed("gray"));
    let strip = |from| named(Policy { strip_tags: Some(StripTags { from }), ..Policy::default() });
    let mut rig = Rig::builder()
        .endpoint(base.address)
        .lane("gray", gray.address)
        .entry("gray", vec![EntryRule { matches: beta(), percentage: None }])
        .policy(strip(Vec::new()))
        .start();
    let mut caller = rig.dial();
    caller.send("GET / HTTP/1.1\r\nhost: a\r\nx-mse-tag: gray\r\nbaggage: a=1,x-mse-tag=gray\r\n\r\n");
    assert_eq!(caller.answer().body, "base");
    let came = base.noted()[0].clone();
    assert!(!came.contains("gray") && came.contains("baggage: a=1\r\n"), "{came}");
    // Whom an entry rule takes is in all the same.
    caller.send("GET / HTTP/1.1\r\nhost: a\r\nx-mse-tag: blue\r\nx-beta: 1\r\n\r\n");
    assert_eq!(caller.answer().body, "gray");
    assert!(!gray.noted()[0].contains("blue"), "{:?}", gray.noted());
    // Somebody else's tags are believed.
    let other = CallerMatch { workload: Some("ingress".into()), ..CallerMatch::default() };
    rig.change(|service| service.policy(strip(vec![other])));
    caller.send("GET / HTTP/1.1\r\nhost: a\r\nx-mse-tag: gray\r\n\r\n");
    assert_eq!(caller.answer().body, "gray");
}

fn beta() -> RequestMatch {
    let one = ValueTest::Is(ValueMatch::Exact("1".to_owned()));
    RequestMatch { headers: vec![(HeaderName::from_static("x-beta"), one)], ..RequestMatch::default() }
}
