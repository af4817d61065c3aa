//! Why a request goes where it goes: asked without effect, and told of those that have ended.

use std::{sync::Arc, time::Duration};

use sluice::{
    cluster::model::{Destination, Service, Snapshot, Workload},
    govern::{
        access::{Access, Action, Hidden, Party, Rule},
        endpoint::Endpoint,
        policy::{
            Algorithm, Behaviour, CircuitBreaker, Concurrency, LimitKey, LoadBalancer, Mode, PathMatch,
            Policy, RateLimit, RequestMatch, Scope, ValueMatch, ValueTest,
        },
    },
    proxy::explain::{Asked, Explanation, Stage, Step, Verdict, explain},
};

use crate::{
    origin::Origin,
    rig::{Rig, tag_names},
};

/// One request an hour, one in flight, and a breaker that opens with the second error.
fn policy() -> Policy {
    let rule = RateLimit {
        name: "rare".into(),
        requests: 1.0,
        interval: Duration::from_secs(3600),
        burst: 1.0,
        behaviour: Behaviour::Reject,
        key: LimitKey::None,
        scope: Scope::Node,
        matches: RequestMatch::default(),
        mode: Mode::Enforce,
    };
    Policy {
        name: Some("shop/orders".into()),
        rate_limits: vec![Arc::new(rule)],
        concurrency: Some(Concurrency {
            max_requests: 1,
            adaptive: None,
            scope: Scope::Node,
            mode: Mode::Enforce,
        }),
        circuit_breaker: Some(CircuitBreaker::default()),
        load_balancer: LoadBalancer { algorithm: Algorithm::RoundRobin, ..LoadBalancer::default() },
        ..Policy::default()
    }
}

fn ask(rig: &Rig, headers: &str) -> Explanation {
    let caller =
        Workload { ips: vec!["10.244.0.1".parse().unwrap()], ..Workload::new("uid-1", "shop", "gateway-1") };
    let asked = Asked {
        caller: Arc::new(caller),
        not_captured: None,
        dialled: "10.96.0.1:80".parse().unwrap(),
        head: format!("GET /a?b HTTP/1.1\r\nhost: a\r\n{headers}\r\n").into_bytes(),
        remembered: None,
        links: false,
    };
    explain(&rig.snapshot(), &tag_names(), &asked)
}

fn step(explanation: &Explanation, stage: Stage) -> &Step {
    let found = explanation.steps.iter().find(|step| step.stage == stage);
    found.unwrap_or_else(|| panic!("no {stage:?} in {explanation:#?}"))
}

pub(crate) fn past(rig: &Rig, id: &str) -> Vec<Explanation> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(rig.proxy.past(Some(id), None, 10))
}

#[test]
fn asking_changes_nothing_and_foretells_what_happens() {
    let origin = Origin::fixed("ok");
    let rig = Rig::builder().endpoint(origin.address).policy(policy()).start();
    for _ in 0..10 {
        let said = ask(&rig, "");
        assert_eq!(said.outcome.endpoint, Some(origin.address.to_string()), "{said:#?}");
        assert_eq!(step(&said, Stage::RateLimit).verdict, Verdict::Passes);
        assert_eq!(step(&said, Stage::Concurrency).message, "0 requests are in flight, 1 may be");
        assert_eq!(step(&said, Stage::CircuitBreaker).verdict, Verdict::Passes);
    }
    rig.await_metric("sluice_rate_limit_requests_total", &[], 0.0);
    let mut caller = rig.dial();
    caller.get("/");
    assert_eq!(caller.answer().body, "ok");
    for _ in 0..10 {
        let said = ask(&rig, "");
        assert_eq!((said.outcome.status, said.outcome.reason.as_deref()), (Some(429), Some("rate_limited")));
        let refused = step(&said, Stage::RateLimit);
        assert_eq!(refused.verdict, Verdict::Stops);
        assert_eq!(refused.source.as_deref(), Some("rule rare of TrafficPolicy shop/orders"));
        assert!(said.steps.iter().all(|step| step.stage != Stage::Endpoint), "{said:#?}");
    }
    caller.get("/");
    caller.answer().made_up(429, "rate_limited");
}

/// Rules are asked about the head with its tag, whoever gave it: here the calling pod.
#[test]
fn a_limit_on_the_tag_header_is_foretold_for_a_pod_with_a_tag_of_its_own() {
    let origin = Origin::fixed("ok");
    let mut policy = policy();
    let tagged = ValueTest::Is(ValueMatch::Exact("gray".to_owned()));
    let matches =
        RequestMatch { headers: vec![("x-mse-tag".parse().unwrap(), tagged)], ..RequestMatch::default() };
    policy.rate_limits = vec![Arc::new(RateLimit { matches, ..(*policy.rate_limits[0]).clone() })];
    let rig = Rig::builder().endpoint(origin.address).caller("gray").policy(policy).start();
    let ask = || {
        let caller = Workload {
            ips: vec!["10.244.0.1".parse().unwrap()],
            tag: Some("gray".parse().unwrap()),
            ..Workload::new("uid-1", "shop", "gateway-1")
        };
        let asked = Asked {
            caller: Arc::new(caller),
            not_captured: None,
            dialled: "10.96.0.1:80".parse().unwrap(),
            head: b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(),
            remembered: None,
            links: false,
        };
        explain(&rig.snapshot(), &tag_names(), &asked)
    };
    assert_eq!(step(&ask(), Stage::RateLimit).verdict, Verdict::Passes);
    let mut caller = rig.dial();
    caller.get("/");
    assert_eq!(caller.answer().body, "ok");
    assert_eq!(step(&ask(), Stage::RateLimit).verdict, Verdict::Stops);
    caller.get("/");
    caller.answer().made_up(429, "rate_limited");
}

/// Such an endpoint is asked again by one request now and then; all others go elsewhere, and these are what is asked about.
#[test]
fn an_endpoint_that_does_not_answer_connection_requests_gets_no_share() {
    let (silent, origin) = (Origin::fixed("silent"), Origin::fixed("ok"));
    let rig = Rig::builder().endpoint(silent.address).endpoint(origin.address).start();
    let snapshot = rig.snapshot();
    let endpoints = snapshot.destinations.values().flat_map(|destination| &destination.service.endpoints);
    let doubted = endpoints.into_iter().find(|one| one.address == silent.address).unwrap();
    // So long ago that it is asked again by now.
    doubted.load.missed(1, 1);
    for _ in 0..20 {
        let said = ask(&rig, "");
        assert_eq!(said.outcome.endpoint, Some(origin.address.to_string()), "{said:#?}");
        let shares: Vec<_> =
            said.candidates.iter().map(|one| (&*one.endpoint, &*one.state, one.percent)).collect();
        let (silent, origin) = (silent.address.to_string(), origin.address.to_string());
        let mut wanted = [(&*silent, "not answering", 0), (&*origin, "usable", 100)];
        wanted.sort_unstable();
        let mut shares = shares;
        shares.sort_unstable();
        assert_eq!(shares, wanted);
        let endpoint = &step(&said, Stage::Endpoint).message;
        assert!(endpoint.contains("does not answer connection requests"), "{endpoint}");
    }
    // Asking has asked nobody.
    assert!(silent.noted().is_empty() && origin.noted().is_empty());
}

#[test]
fn a_service_of_lanes_alone_says_where_its_endpoints_are() {
    let (blue, gray) = (Origin::fixed("blue"), Origin::fixed("gray"));
    let rig = Rig::builder().lane("blue", blue.address).lane("gray", gray.address).start();
    let said = ask(&rig, "");
    assert_eq!((said.outcome.status, said.outcome.reason.as_deref()), (Some(503), Some("no_endpoint")));
    let why = "those that are ready are of lanes blue, gray alone, and the request has no tag";
    assert!(said.outcome.message.ends_with(why), "{said:#?}");
    let lane = &step(&said, Stage::Lane).message;
    assert!(lane.ends_with("in lane blue: 1; in lane gray: 1"), "{lane}");
}

#[test]
fn a_request_that_falls_back_names_its_lane_and_who_may_answer() {
    let origin = Origin::fixed("ok");
    let rig = Rig::builder().endpoint(origin.address).start();
    let said = ask(&rig, "x-mse-tag: gray\r\n");
    let lane = step(&said, Stage::Lane);
    assert_eq!(lane.verdict, Verdict::Changes);
    assert!(lane.message.contains("no endpoint in lane gray: falls back to the baseline"), "{lane:?}");
    assert!(said.outcome.message.ends_with("of the baseline, the fallback of lane gray"), "{said:#?}");
    assert_eq!((said.candidates.len(), said.candidates[0].percent), (1, 100));
    assert!(step(&said, Stage::Tag).source.as_ref().is_some_and(|because| because.contains("x-mse-tag")));
}

#[test]
fn what_cannot_be_forwarded_is_refused_as_the_proxy_does() {
    let origin = Origin::fixed("ok");
    let rig = Rig::builder().endpoint(origin.address).start();
    let said = ask(&rig, "host: b\r\n");
    assert_eq!((said.outcome.status, said.outcome.reason.as_deref()), (Some(400), Some("bad_request")));
    assert_eq!(step(&said, Stage::Request).verdict, Verdict::Stops);
}

#[test]
fn what_was_refused_is_found_by_its_ids_and_tells_the_rule() {
    let origin = Origin::fixed("ok");
    let rig = Rig::builder().endpoint(origin.address).policy(policy()).start();
    let mut caller = rig.dial();
    let trace = "0af7651916cd43dd8448eb211c80319c";
    for id in ["first", "second"] {
        caller.send(format!(
            "GET /orders/7?secret=1 HTTP/1.1\r\nhost: a\r\nx-request-id: {id}\r\nx-mse-tag: gray\r\n\
             traceparent: 00-{trace}-b7ad6b7169203331-01\r\n\r\n"
        ));
        caller.answer();
    }
    let [first] = &*past(&rig, "first") else { panic!("one") };
    assert_eq!(first.outcome.status, Some(200));
    assert_eq!(first.outcome.endpoint, Some(origin.address.to_string()));
    assert_eq!(step(first, Stage::Lane).verdict, Verdict::Changes);
    assert!(step(first, Stage::Lane).message.contains("fell back to the baseline"), "{first:#?}");
    let [second] = &*past(&rig, "second") else { panic!("one") };
    assert_eq!((&*second.caller, &*second.path), ("shop/gateway-1", "/orders/7"));
    assert_eq!(second.service.as_deref(), Some("orders.shop:80"));
    assert_eq!((second.outcome.status, second.outcome.reason.as_deref()), (Some(429), Some("rate_limited")));
    let refused = step(second, Stage::RateLimit);
    assert_eq!(refused.source.as_deref(), Some("rule rare of TrafficPolicy shop/orders"));
    assert!(past(&rig, "third").is_empty());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let trace = u128::from_str_radix(trace, 16).unwrap();
    assert_eq!(runtime.block_on(rig.proxy.past(None, Some(trace), 10)).len(), 2);
}

#[test]
fn under_load_refusals_are_kept_and_the_rest_is_a_sample() {
    let origin = Origin::fixed("ok");
    let observed = Policy { rate_limits: Vec::new(), ..policy() };
    let mut rig = Rig::builder().endpoint(origin.address).policy(observed).start();
    let mut caller = rig.dial();
    for _ in 0..2000 {
        caller.send("GET /fine HTTP/1.1\r\nhost: a\r\nx-request-id: fine\r\n\r\n");
        caller.answer();
    }
    rig.change(|service| service.policy(policy()));
    for _ in 0..101 {
        caller.send("GET /refused HTTP/1.1\r\nhost: a\r\nx-request-id: refused\r\n\r\n");
        caller.answer();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let kept = |id| runtime.block_on(rig.proxy.past(Some(id), None, 10_000)).len();
    assert!(kept("refused") >= 100, "{}", kept("refused"));
    assert!((1..2000).contains(&kept("fine")), "{}", kept("fine"));
}

/// What the endpoint's agent will say is foretold by that of the client.
#[test]
fn who_may_call_is_told_with_the_rule() {
    let party = |block: &str| Party { blocks: vec![block.parse().unwrap()], ..Party::default() };
    let rule = |from| Rule { name: "ours".into(), action: Action::Allow, from, to: Vec::new() };
    let explained = |access: Access, dialled: &str| {
        let mut snapshot = Snapshot { generation: 1, ..Snapshot::default() };
        let service = Service { access: Some(Arc::new(access)), ..Service::new("shop", "orders", 80) };
        let endpoint = Arc::new(Endpoint::new("10.244.0.9:8080".parse().unwrap()));
        let service = Arc::new(service.with_endpoints(vec![Arc::new(Endpoint {
            ready: true,
            serving: true,
            ..Endpoint::new(endpoint.address)
        })]));
        let destination = Destination { service, pinned: None };
        snapshot.destinations.insert("10.96.0.1:80".parse().unwrap(), destination);
        let caller = Workload {
            ips: vec!["10.244.0.1".parse().unwrap()],
            ..Workload::new("uid-1", "shop", "gateway-1")
        };
        let asked = Asked {
            caller: Arc::new(caller),
            not_captured: None,
            dialled: dialled.parse().unwrap(),
            head: b"GET /actuator/env HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(),
            remembered: None,
            links: false,
        };
        explain(&snapshot, &tag_names(), &asked)
    };
    let told = |access: Access| {
        let said = explained(access, "10.96.0.1:80");
        let Step { verdict, message, source, .. } = step(&said, Stage::Access).clone();
        (verdict, message, source.unwrap(), said.outcome.status, said.outcome.reason)
    };
    let named = |access| Access { name: "shop/orders".into(), ..access };
    let who = "the client is known by its address alone, 10.244.0.1";

    let (verdict, message, source, status, _) =
        told(named(Access { rules: vec![rule(vec![party("10.244.0.0/16")])], ..Access::default() }));
    assert_eq!((verdict, status), (Verdict::Passes, None));
    assert_eq!(message, format!("the agent at the endpoint allows it: {who}"));
    assert_eq!(source, "rule ours of AccessPolicy shop/orders");

    let others = || vec![rule(vec![party("10.0.0.0/16")])];
    let (verdict, message, source, status, reason) =
        told(named(Access { rules: others(), ..Access::default() }));
    assert_eq!((verdict, status, reason.as_deref()), (Verdict::Stops, Some(403), Some("access_denied")));
    assert_eq!(message, format!("no rule matches; the agent at the endpoint denies it: {who}"));
    assert_eq!(source, "AccessPolicy shop/orders");

    let (verdict, message, _, status, _) =
        told(named(Access { mode: Mode::Observe, rules: others(), ..Access::default() }));
    assert_eq!((verdict, status), (Verdict::WouldStop, None));
    assert!(message.contains("mode Observe: it would deny it"), "{message}");

    let hidden = Hidden {
        name: "management".into(),
        paths: vec![PathMatch::Prefix("/actuator".into())],
        from: Vec::new(),
    };
    let (verdict, _, source, status, reason) =
        told(named(Access { hidden: vec![hidden], ..Access::default() }));
    assert_eq!((verdict, status, reason.as_deref()), (Verdict::Stops, Some(404), Some("not_found")));
    assert_eq!(source, "hidden management of AccessPolicy shop/orders");

    let (verdict, message, ..) = told(named(Access { closed: true, ..Access::default() }));
    assert_eq!(verdict, Verdict::Stops);
    assert!(message.starts_with("the policy is invalid and has onInvalid: Deny"), "{message}");

    // Past the Service the client's agent has no say, and that of the endpoint has.
    let said = explained(named(Access { rules: others(), ..Access::default() }), "10.244.0.9:8080");
    let access = step(&said, Stage::Access);
    assert_eq!(access.source.as_deref(), Some("AccessPolicy shop/orders"));
    assert!(said.outcome.message.contains("whose AccessPolicies may deny it"), "{:?}", said.outcome);
    let said = explained(named(Access::default()), "10.244.0.7:8080");
    assert!(said.outcome.message.contains("as if Sluice were not there"), "{:?}", said.outcome);
}
