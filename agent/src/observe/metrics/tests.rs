use super::*;
use crate::{govern::lane::TagSource, observe::reason::Reason};

mod bounds;

fn arc(text: &str) -> Arc<str> {
    Arc::from(text)
}

fn pod(metrics: &Metrics, name: &str) -> Arc<PodMetrics> {
    metrics.pod(&arc("shop"), &arc(name))
}

fn evict(metrics: &Metrics, name: &str) {
    metrics.evict_pod(&arc("shop"), &arc(name));
}

fn orders(pod: &Arc<PodMetrics>) -> ServiceSeries {
    pod.service(&arc("shop"), &arc("orders"), 8080)
}

/// The value of the one line that has this name and all these labels.
fn value(metrics: &Metrics, name: &str, labels: &[&str]) -> Option<f64> {
    let text = metrics.render().expect("it can be rendered");
    let mut found = text.lines().filter(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|label| line.contains(label))
    });
    let line = found.next()?;
    assert_eq!(found.next(), None, "more than one {name} {labels:?}");
    Some(line.rsplit_once(' ').expect("a value").1.parse().expect("a number"))
}

#[test]
fn a_request_is_in_flight_then_counted_by_class_and_bucket() {
    let metrics = Metrics::new();
    let gateway = pod(&metrics, "gateway");
    let mut series = orders(&gateway);
    let request = series.lane(Some(&"gray".parse().expect("a tag"))).begin();
    let from = ["source_namespace=\"shop\"", "source_pod=\"gateway\"", "destination_lane=\"gray\""];
    assert_eq!(value(&metrics, "sluice_requests_in_flight", &from), Some(1.0));
    request.finish(204, None, Duration::from_millis(1), 10, 20);

    assert_eq!(value(&metrics, "sluice_requests_in_flight", &from), Some(0.0));
    assert_eq!(value(&metrics, "sluice_requests_total", &["code=\"2xx\"", "reason=\"\""]), Some(1.0));
    let bucket = |bound: &str| value(&metrics, "sluice_request_duration_seconds_bucket", &[bound]);
    assert_eq!(bucket("le=\"0.0005\""), Some(0.0));
    assert_eq!(bucket("le=\"0.001\""), Some(1.0), "a bound is inclusive");
    assert_eq!(bucket("le=\"60\""), Some(1.0));
    assert_eq!(bucket("le=\"+Inf\""), Some(1.0));
    assert_eq!(value(&metrics, "sluice_request_duration_seconds_sum", &[]), Some(0.001));
    assert_eq!(value(&metrics, "sluice_request_duration_seconds_count", &[]), Some(1.0));
    assert_eq!(value(&metrics, "sluice_bytes_total", &["direction=\"request\""]), Some(10.0));
    assert_eq!(value(&metrics, "sluice_bytes_total", &["direction=\"response\""]), Some(20.0));
}

#[test]
fn exemplars_are_told_of_the_pod_service_and_lane_that_they_are_of() {
    let metrics = Metrics::new();
    let trace = |id| crate::observe::trace::context::TraceId::new(id).expect("an id");
    let second = |second| std::time::UNIX_EPOCH + Duration::from_secs(second);
    // Of two in one series the newer one counts.
    for (name, lane, id, time) in
        [("gateway", None, 1, 5), ("gateway", None, 2, 7), ("web", Some("gray"), 3, 6)]
    {
        let mut series = orders(&pod(&metrics, name));
        let tag: Option<Tag> = lane.map(|lane: &str| lane.parse().expect("a tag"));
        let request = series.lane(tag.as_ref()).begin();
        request.sampled(trace(id), Duration::from_millis(20), second(time));
        request.finish(200, None, Duration::from_millis(20), 0, 0);
        series.lane(tag.as_ref()).begin().finish(200, None, Duration::from_secs(61), 0, 0);
    }
    let text = metrics.render_as(Format::OpenMetrics).expect("it can be rendered");
    let with: Vec<_> = text.lines().filter(|line| line.contains('#') && !line.starts_with('#')).collect();
    let [gateway, web] = &with[..] else { panic!("{with:#?}") };
    for (line, labels, id, time) in [
        (gateway, ["source_pod=\"gateway\"", "destination_lane=\"baseline\""], 2, 7),
        (web, ["source_pod=\"web\"", "destination_lane=\"gray\""], 3, 6),
    ] {
        assert!(line.starts_with("sluice_request_duration_seconds_bucket{"), "{line}");
        assert!(labels.iter().chain(&["le=\"0.025\""]).all(|label| line.contains(label)), "{line}");
        assert!(line.ends_with(&format!(" # {{trace_id=\"{id:032x}\"}} 0.02 {time}.000")), "{line}");
    }
    assert!(text.ends_with("\n# EOF\n"));
    assert!(!metrics.render().expect("it can be rendered").contains("trace_id"));
}

#[test]
fn counters_are_called_as_openmetrics_wants_it() {
    for Description { name, kind, .. } in Metrics::new().descriptions() {
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
    }
}

#[test]
fn answers_that_are_made_up_say_why_and_have_no_lane() {
    let metrics = Metrics::new();
    let mut series = orders(&pod(&metrics, "gateway"));
    let reason = Reason::NoEndpoint;
    series.none().begin().finish(reason.status(), Some(reason), Duration::ZERO, 0, 0);
    let labels = ["code=\"5xx\"", "reason=\"no_endpoint\"", "destination_lane=\"\""];
    assert_eq!(value(&metrics, "sluice_requests_total", &labels), Some(1.0));
    // An answer that broke off has the status that the caller saw, and the reason.
    series.lane(None).begin().finish(200, Some(Reason::UpstreamReset), Duration::from_secs(61), 0, 0);
    let labels = ["code=\"2xx\"", "reason=\"upstream_reset\"", "destination_lane=\"baseline\""];
    assert_eq!(value(&metrics, "sluice_requests_total", &labels), Some(1.0));
    let slow = ["destination_lane=\"baseline\"", "le=\"60\""];
    assert_eq!(value(&metrics, "sluice_request_duration_seconds_bucket", &slow), Some(0.0));
}

#[test]
fn a_request_that_is_dropped_was_left_by_its_caller() {
    let metrics = Metrics::new();
    let mut series = orders(&pod(&metrics, "gateway"));
    drop(series.lane(None).begin());
    assert_eq!(value(&metrics, "sluice_requests_in_flight", &[]), Some(0.0));
    let labels = ["code=\"none\"", "reason=\"client_closed\""];
    assert_eq!(value(&metrics, "sluice_requests_total", &labels), Some(1.0));
}

#[test]
fn statuses_out_of_range_have_no_class() {
    let metrics = Metrics::new();
    let mut series = orders(&pod(&metrics, "gateway"));
    for status in [0, 99, 600, 999, u16::MAX] {
        series.lane(None).begin().finish(status, None, Duration::ZERO, 0, 0);
    }
    assert_eq!(value(&metrics, "sluice_requests_total", &["code=\"none\""]), Some(5.0));
}

#[test]
fn tunnels_tags_and_retries_are_counted() {
    let metrics = Metrics::new();
    let mut series = orders(&pod(&metrics, "gateway"));
    let series = series.lane(None);
    let tunnel = series.begin_tunnel();
    tunnel.series().add_request_bytes(7);
    assert_eq!(value(&metrics, "sluice_tunnels_in_flight", &[]), Some(1.0));
    tunnel.finish(None);
    series.begin_tunnel().finish(Some(Reason::UpstreamConnect));
    assert_eq!(value(&metrics, "sluice_tunnels_in_flight", &[]), Some(0.0));
    assert_eq!(value(&metrics, "sluice_tunnels_total", &["reason=\"\""]), Some(1.0));
    assert_eq!(value(&metrics, "sluice_tunnels_total", &["reason=\"upstream_connect\""]), Some(1.0));
    assert_eq!(value(&metrics, "sluice_bytes_total", &["direction=\"request\""]), Some(7.0));
    assert_eq!(value(&metrics, "sluice_requests_total", &[]), None, "no request, no line");
}

#[test]
fn what_rules_decide_is_counted_by_service_and_goes_with_it() {
    let metrics = Metrics::new();
    let mut orders = orders(&pod(&metrics, "gateway"));
    let rule = Arc::from("burst");
    orders.service().tag(TagOutcome::FellBack);
    orders.service().retried(RetryCause::StreamRefused);
    orders.rate_limited(&rule, LimitDecision::Queued);
    orders.service().concurrency_limited(LimitDecision::Rejected);
    orders.service().broken(LimitDecision::WouldReject);
    orders.service().ejected(EjectionCause::SuccessRate, false);
    orders.service().budget_exhausted();
    orders.service().panicked();
    orders.service().warm_up_yielded();
    orders.service().fell_back(&rule, FallbackAction::Stale);
    let service = "destination_service=\"orders\"";
    for (name, labels, wanted) in [
        ("sluice_tags_total", &["outcome=\"fell_back\""][..], 1.0),
        ("sluice_tags_total", &["outcome=\"routed\""], 0.0),
        ("sluice_retries_total", &["cause=\"stream_refused\""], 1.0),
        ("sluice_rate_limit_requests_total", &["rule=\"burst\"", "decision=\"queued\""], 1.0),
        ("sluice_rate_limit_requests_total", &["rule=\"burst\"", "decision=\"rejected\""], 0.0),
        ("sluice_concurrency_limit_requests_total", &["decision=\"rejected\""], 1.0),
        ("sluice_circuit_breaker_requests_total", &["decision=\"would_reject\""], 1.0),
        ("sluice_ejections_total", &["cause=\"success_rate\"", "mode=\"observe\""], 1.0),
        ("sluice_retry_budget_exhausted_total", &[], 1.0),
        ("sluice_panic_requests_total", &[], 1.0),
        ("sluice_warm_up_yields_total", &[], 1.0),
        ("sluice_fallbacks_total", &["fallback=\"burst\"", "action=\"stale\""], 1.0),
    ] {
        let labels: Vec<_> = labels.iter().copied().chain([service]).collect();
        assert_eq!(value(&metrics, name, &labels), Some(wanted), "{name} {labels:?}");
    }
    // A rule that is no longer there, a service that is, and one that was gone for long enough.
    orders.service().retain(|_| false, |_| true, |_| true, |_| true, |_| true);
    assert_eq!(value(&metrics, "sluice_rate_limit_requests_total", &[]), None);
    let now = Instant::now();
    metrics.services.retain(|_, service, _| service == "orders", now);
    metrics.services.retain(|_, _, _| false, now);
    assert_eq!(value(&metrics, "sluice_panic_requests_total", &[]), Some(1.0));
    metrics.services.retain(|_, _, _| false, now + EVICTION_GRACE);
    assert_eq!(value(&metrics, "sluice_panic_requests_total", &[]), None);
}

#[test]
fn what_endpoints_took_and_what_was_added_are_told_apart() {
    let metrics = Metrics::new();
    let orders = orders(&pod(&metrics, "gateway"));
    orders.service().took(3_000_000);
    orders.service().took(20_000_000_000);
    orders.service().added(25_000);
    let bucket =
        |name: &str, bound: &str| value(&metrics, &format!("{name}_bucket"), &[&format!("le=\"{bound}\"")]);
    let (upstream, added) = ("sluice_upstream_duration_seconds", "sluice_added_duration_seconds");
    assert_eq!(bucket(upstream, "0.0025"), Some(0.0));
    assert_eq!(bucket(upstream, "0.005"), Some(1.0));
    assert_eq!(bucket(upstream, "10"), Some(1.0));
    assert_eq!(bucket(upstream, "+Inf"), Some(2.0));
    assert_eq!(bucket(added, "0.00001"), Some(0.0));
    assert_eq!(bucket(added, "0.000025"), Some(1.0));
    assert_eq!(value(&metrics, "sluice_added_duration_seconds_sum", &[]), Some(0.000_025));
}

#[test]
fn outcomes_have_the_labels_of_their_names() {
    let metrics = Metrics::new();
    for (index, (outcome, name, _)) in Detection::ALL.into_iter().enumerate() {
        for _ in 0..=index {
            metrics.detected(outcome);
        }
        let label = format!("outcome=\"{name}\"");
        assert_eq!(value(&metrics, "sluice_connections_total", &[&label]), Some(index as f64 + 1.0));
    }
    for (index, (outcome, name, _)) in Connect::ALL.into_iter().enumerate() {
        for _ in 0..=index {
            metrics.connected(outcome);
        }
        let label = format!("outcome=\"{name}\"");
        assert_eq!(value(&metrics, "sluice_upstream_connects_total", &[&label]), Some(index as f64 + 1.0));
    }
}

#[test]
fn a_pod_that_is_gone_is_scraped_once_more_and_then_forgotten_for_good() {
    let metrics = Metrics::new();
    let gateway = pod(&metrics, "gateway");
    let mut series = orders(&gateway);
    series.lane(None).begin().finish(200, None, Duration::ZERO, 0, 0);
    let late = series.lane(None).begin();
    evict(&metrics, "gateway");
    let later = Instant::now() + EVICTION_GRACE;

    let last = metrics.render_at(Format::Text, later).expect("it can be rendered");
    assert!(
        last.contains("source_pod=\"gateway\""),
        "the first scrape after the grace sees the last numbers"
    );
    // Whoever still holds on to the pod brings nothing back: neither in known series nor in new ones.
    late.finish(200, None, Duration::ZERO, 0, 0);
    gateway.service(&arc("shop"), &arc("stock"), 80).lane(None).begin().finish(
        500,
        None,
        Duration::ZERO,
        0,
        0,
    );
    let text = metrics.render().expect("it can be rendered");
    assert!(!text.contains("gateway"), "{text}");
}

#[test]
fn without_scrapes_the_next_eviction_forgets() {
    let metrics = Metrics::new();
    let first = Arc::downgrade(&pod(&metrics, "one"));
    metrics.pods.evict(&arc("shop"), &arc("one"), Instant::now());
    assert!(first.upgrade().is_some());
    metrics.pods.evict(&arc("shop"), &arc("nobody"), Instant::now() + EVICTION_GRACE);
    assert!(first.upgrade().is_none());
}

#[test]
fn a_pod_that_comes_back_within_the_grace_keeps_its_numbers() {
    let metrics = Metrics::new();
    orders(&pod(&metrics, "gateway")).lane(None).begin().finish(200, None, Duration::ZERO, 0, 0);
    evict(&metrics, "gateway");
    orders(&pod(&metrics, "gateway")).lane(None).begin().finish(200, None, Duration::ZERO, 0, 0);
    metrics.render_at(Format::Text, Instant::now() + 2 * EVICTION_GRACE).expect("it can be rendered");
    assert_eq!(value(&metrics, "sluice_requests_total", &["gateway", "code=\"2xx\""]), Some(2.0));
}

#[test]
fn a_pod_that_takes_the_place_of_another_goes_on_with_its_numbers() {
    let metrics = Metrics::new();
    let ask = || {
        let pod = pod(&metrics, "db-0");
        pod.tagged(TagSource::Header, Nanos(1));
        orders(&pod).lane(None).begin().finish(200, None, Duration::ZERO, 0, 0);
    };
    ask();
    ask();
    // The first one ends, and is forgotten by nobody.
    evict(&metrics, "db-0");
    metrics.render_at(Format::Text, Instant::now() + 2 * EVICTION_GRACE).expect("it can be rendered");
    assert_eq!(value(&metrics, "sluice_tag_carriers_total", &["db-0"]), Some(2.0));
    assert_eq!(value(&metrics, "sluice_requests_total", &["db-0", "code=\"2xx\""]), Some(2.0));
    assert_eq!(value(&metrics, "sluice_request_duration_seconds_count", &["db-0"]), Some(2.0));
}

#[test]
fn pulled_metrics_are_read_at_each_scrape() {
    use std::sync::atomic::{AtomicU64, Ordering};
    let metrics = Metrics::new();
    let counter = Arc::new(AtomicU64::new(3));
    let read = Arc::clone(&counter);
    let pulled = |read: Arc<AtomicU64>| Pulled {
        name: "sluice_kernel_connects_total",
        help: "Connects seen by the programs.",
        kind: Kind::Counter,
        labels: &["reason"],
        read: Box::new(move |write| write(&["passed"], read.load(Ordering::Relaxed) as f64)),
    };
    metrics.pull(pulled(read)).expect("a valid metric");
    assert_eq!(value(&metrics, "sluice_kernel_connects_total", &["reason=\"passed\""]), Some(3.0));
    counter.store(4, Ordering::Relaxed);
    assert_eq!(value(&metrics, "sluice_kernel_connects_total", &["reason=\"passed\""]), Some(4.0));
    assert!(metrics.pull(pulled(counter)).is_err(), "a name is registered once");
}

#[test]
fn many_workers_count_every_request() {
    let metrics = Metrics::new();
    let gateway = pod(&metrics, "gateway");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut series = orders(&gateway);
                for _ in 0..1000 {
                    series.lane(None).begin().finish(200, None, Duration::from_millis(3), 1, 1);
                    series.none().begin().finish(503, Some(Reason::NoEndpoint), Duration::ZERO, 0, 0);
                }
            });
        }
    });
    assert_eq!(value(&metrics, "sluice_requests_total", &["code=\"2xx\"", "baseline"]), Some(4000.0));
    assert_eq!(value(&metrics, "sluice_requests_total", &["reason=\"no_endpoint\""]), Some(4000.0));
    assert_eq!(value(&metrics, "sluice_requests_in_flight", &["baseline"]), Some(0.0));
}

#[test]
fn the_end_of_an_enrolment_does_not_take_the_numbers_of_the_one_that_replaced_it() {
    let metrics = Metrics::new();
    let _replaced = pod(&metrics, "gateway");
    orders(&pod(&metrics, "gateway")).lane(None).begin().finish(200, None, Duration::ZERO, 0, 0);
    evict(&metrics, "gateway");
    metrics.render_at(Format::Text, Instant::now() + 2 * EVICTION_GRACE).expect("it can be rendered");
    assert_eq!(value(&metrics, "sluice_requests_total", &["gateway", "code=\"2xx\""]), Some(1.0));
    evict(&metrics, "gateway");
    let later = Instant::now() + EVICTION_GRACE;
    // The first scrape after the grace still sees them.
    metrics.render_at(Format::Text, later).expect("it can be rendered");
    assert_eq!(value(&metrics, "sluice_requests_total", &["gateway", "code=\"2xx\""]), None);
}

#[test]
fn rules_of_routes_are_counted_until_they_are_gone() {
    let metrics = Metrics::new();
    let orders = metrics.service(&"shop".into(), &"orders".into(), 80);
    let rule = |name: &str| RouteRule { kind: "HTTPRoute", route: "shop/orders".into(), rule: name.into() };
    for status in [200, 204, 503] {
        orders.route(rule("slow")).count(status);
    }
    orders.route(rule("rest")).count(0);
    metrics.service(&"shop".into(), &"canary".into(), 80).route(rule("slow")).count(200);
    let totals = || {
        let all = metrics.route_totals();
        ["slow", "rest"].map(|name| all.get(&rule(name)).copied().unwrap_or_default())
    };
    assert_eq!(totals(), [4, 1]);
    for (name, code, wanted) in
        [("slow", "2xx", 2.0), ("slow", "5xx", 1.0), ("rest", "2xx", 0.0), ("rest", "none", 1.0)]
    {
        let labels = [format!("route_rule=\"{name}\""), format!("code=\"{code}\"")];
        let labels = [
            &*labels[0],
            &labels[1],
            "destination_service=\"orders\"",
            "route=\"shop/orders\"",
            "route_kind=\"HTTPRoute\"",
        ];
        assert_eq!(value(&metrics, "sluice_route_requests_total", &labels), Some(wanted), "{labels:?}");
    }
    orders.retain(|_| true, |_| true, |_| true, |route| &*route.rule == "rest", |_| true);
    assert_eq!(totals(), [1, 1]);
}
