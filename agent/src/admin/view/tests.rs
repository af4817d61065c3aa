use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use ahash::AHashMap;
use http_body_util::BodyExt as _;
use serde_json::Value;
use tokio::time::timeout;

use super::*;
use crate::{
    api::gateway::http_route,
    capture::PodStatus,
    cluster::model::{Destination, Group, Routed, Service, Snapshot, Workload},
    govern::{
        endpoint::Endpoint,
        governor::Governor,
        outcome::{ErrorKind, Outcome},
        per_pod::CallingPod,
        policy::{CircuitBreaker, LoadBalancer, Policy, WarmUp},
        routes::{Age, Route, Routes, backends::ServicePort},
    },
    observe::{
        history::SECONDS,
        metrics::{PodMetrics, ServiceSeries},
        reason::Reason,
    },
};

mod lanes;

const S: u64 = 1_000_000_000;
const MS: Duration = Duration::from_millis(1);
/// What Kubernetes would not let anybody name a thing; an event is to stay one all the same.
const HOSTILE: &str = "<script>alert(1)</script>\n\ndata: {}\n\"'&\u{2028}";

/// What the tests have put together.
struct Fixed(Look);

impl Agent for Fixed {
    fn snapshot(&self) -> Arc<Snapshot> {
        self.0.snapshot.clone()
    }

    fn look(&self) -> Look {
        self.0.clone()
    }
}

fn address(number: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, number], 8080))
}

/// `web.shop:80` with two endpoints that are warm, one that began to warm up at 0, and one in the lane `gray`.
fn web() -> Service {
    let endpoint = |number: u8, ready_since: i64, tag: Option<&str>| {
        let mut endpoint = Endpoint::new(address(number));
        endpoint.ready_since_nanos = Some(ready_since);
        endpoint.pod = Some(format!("web-{number}").into());
        endpoint.tag = tag.map(|tag| tag.parse().unwrap());
        Arc::new(endpoint)
    };
    let long_ago = -1000 * S as i64;
    let endpoints = vec![
        endpoint(1, long_ago, None),
        endpoint(2, long_ago, None),
        endpoint(3, 0, None),
        endpoint(4, long_ago, Some("gray")),
    ];
    let warmup = WarmUp { duration: Duration::from_secs(10), ..WarmUp::default() };
    let policy = Policy {
        name: Some("shop/web".into()),
        load_balancer: LoadBalancer { warmup: Some(warmup), ..LoadBalancer::default() },
        circuit_breaker: Some(CircuitBreaker { minimum_requests: 10, ..CircuitBreaker::default() }),
        ..Policy::default()
    };
    let mut web = Service::new("shop", "web", 80).with_endpoints(endpoints);
    web.governor = Governor::next(None, Arc::new(policy), 0);
    web
}

fn snapshot(generation: u64, services: Vec<Service>) -> Snapshot {
    let at = |(number, service): (usize, Service)| {
        let address = SocketAddr::from(([10, 96, 0, number as u8], service.port));
        (address, Destination { service: Arc::new(service), pinned: None })
    };
    Snapshot {
        generation,
        destinations: services.into_iter().enumerate().map(at).collect(),
        ..Snapshot::default()
    }
}

fn view_of(look: Look) -> Arc<View> {
    View::new(Arc::new(Fixed(look)), Arc::new(Metrics::new()), 100)
}

fn view(snapshot: Snapshot) -> Arc<View> {
    view_of(Look { snapshot: Arc::new(snapshot), ..Look::default() })
}

fn name() -> Name {
    Name { namespace: "shop".into(), name: "web".into(), port: 80 }
}

fn pod(view: &View, name: &str) -> Arc<PodMetrics> {
    view.metrics.pod(&"shop".into(), &name.into())
}

fn series(pod: &Arc<PodMetrics>) -> ServiceSeries {
    pod.service(&"shop".into(), &"web".into(), 80)
}

/// As many requests as that, one after the other, answered by the endpoint with this number.
fn ask(view: &View, series: &mut ServiceSeries, number: u8, count: u64, status: u16) {
    let snapshot = view.agent.snapshot();
    let mut destinations = snapshot.destinations.values();
    let web = destinations.find(|destination| &*destination.service.name == "web").unwrap();
    let endpoint = web.service.endpoints.iter().find(|endpoint| endpoint.address == address(number)).unwrap();
    for _ in 0..count {
        let lane = series.lane(endpoint.tag.as_ref());
        lane.begin().finish(status, None, 2 * MS, 0, 0);
        endpoint.load.tally().answered(1_000_000, status >= 500);
    }
}

fn tick(view: &View, second: u64) {
    view.sample(second, Nanos(second * S));
}

fn json(value: &impl serde::Serialize) -> Value {
    serde_json::to_value(value).unwrap()
}

#[test]
fn a_second_is_what_was_counted_in_it() {
    let view = view(snapshot(1, vec![web()]));
    let mut client = series(&pod(&view, "client"));
    tick(&view, 1);
    ask(&view, &mut client, 1, 30, 200);
    ask(&view, &mut client, 4, 10, 503);
    client.none().begin().finish(429, Some(Reason::RateLimited), MS, 0, 0);
    let running = client.lane(None).begin();
    tick(&view, 2);
    drop(running);
    tick(&view, 3);

    let detail = json(&view.service(&name(), SECONDS).unwrap());
    let seconds = &detail["seconds"];
    // The first second is from before the first request: nothing is known of it.
    assert_eq!(seconds["from"], 1);
    assert_eq!(seconds["requests"], serde_json::json!([null, 41, 1]));
    assert_eq!(seconds["errors"], serde_json::json!([null, 10, 0]));
    assert_eq!(seconds["rejected"], serde_json::json!([null, 1, 0]));
    assert_eq!(seconds["in_flight"], serde_json::json!([null, 1, 0]));
    let p50 = seconds["p50_micros"][1].as_f64().unwrap();
    assert!((p50 - 2000.0).abs() < 250.0, "{p50}");
    assert_eq!(seconds["p50_micros"][2], Value::Null, "a caller that left says nothing of the time");
    let total = &detail["service"]["total"];
    assert_eq!(
        (&total["requests"], &total["errors"], &total["rejected"]),
        (&42.into(), &10.into(), &1.into())
    );

    let lanes = detail["lanes"].as_array().unwrap();
    let of_lane = |lane: &Value| {
        (lane["tag"].clone(), lane["seconds"]["requests"][1].clone(), lane["error_ratio"].clone())
    };
    let lanes: Vec<_> = lanes.iter().map(of_lane).collect();
    assert_eq!(lanes, [(Value::Null, 30.into(), 0.0.into()), ("gray".into(), 10.into(), 1.0.into())]);
    let endpoints: Vec<_> = detail["endpoints"].as_array().unwrap().iter().collect();
    assert_eq!(endpoints.len(), 4);
    let asked = |pod: &str| {
        let endpoint = endpoints.iter().find(|endpoint| endpoint["pod"] == pod).unwrap();
        endpoint["seconds"]["requests"][1].clone()
    };
    assert_eq!((asked("web-1"), asked("web-4"), asked("web-2")), (30.into(), 10.into(), Value::Null));
}

#[test]
fn the_overview_has_the_golden_signals_and_who_calls() {
    let view = view(snapshot(1, vec![web(), Service::new("shop", "quiet", 80)]));
    let (gateway, batch) = (pod(&view, "gateway"), pod(&view, "batch"));
    let (mut fast, mut failing) = (series(&gateway), series(&batch));
    for second in 1..=20 {
        ask(&view, &mut fast, 1, 40, 200);
        ask(&view, &mut failing, 2, 10, 500);
        tick(&view, second);
    }
    let overview = json(&view.overview());
    let lines = overview["services"].as_array().unwrap();
    assert_eq!(lines.iter().map(|line| &line["name"]).collect::<Vec<_>>(), ["quiet", "web"]);
    let web = &lines[1];
    assert_eq!(
        (&web["rate"], &web["error_ratio"], &web["rejected_rate"]),
        (&50.0.into(), &0.2.into(), &0.0.into())
    );
    assert_eq!(
        (&web["endpoints"], &web["usable_endpoints"], &web["lanes"][0]),
        (&4.into(), &4.into(), &"gray".into())
    );
    assert_eq!(web["spark"]["requests"].as_array().unwrap().len(), 20);
    assert_eq!((&lines[0]["rate"], &lines[0]["breaker"]), (&0.0.into(), &Value::Null));
    let calls = overview["calls"].as_array().unwrap();
    let of_call = |call: &Value| {
        (
            call["source"]["name"].as_str().unwrap().to_owned(),
            call["rate"].as_f64().unwrap(),
            call["error_ratio"].as_f64().unwrap(),
        )
    };
    let calls: Vec<_> = calls.iter().map(of_call).collect();
    assert_eq!(calls, [("batch".to_owned(), 10.0, 1.0), ("gateway".to_owned(), 40.0, 0.0)]);
}

/// Nobody is to wonder where the requests are of a Service whose routes send them elsewhere.
#[test]
fn the_overview_says_where_routes_send_requests() {
    let spec = serde_json::json!({
        "parentRefs": [{ "group": "", "kind": "Service", "name": "web" }],
        "rules": [{ "backendRefs": [
            { "name": "web", "port": 80, "weight": 1 }, { "name": "web-canary", "port": 80, "weight": 1 },
            { "name": "web-old", "port": 80, "weight": 0 },
        ] }],
    });
    let asked = http_route(&spec, "shop", "shop/r").expect("it makes sense").expect("it is about a Service");
    let age = Age { created: None, name: "shop/r".into() };
    let routes = Arc::new(Routes::new(vec![Route { age, rules: asked.rules }]));
    let group = Group { routes, backends: BTreeMap::new(), policies: AHashMap::new() };
    let routed = Arc::new(Routed { producer: Some(group), consumers: BTreeMap::new() });
    let mut snapshot = snapshot(1, vec![web()]);
    let key = ServicePort { namespace: "shop".into(), name: "web".into(), port: 80 };
    snapshot.routes = Arc::new([((key, false), routed)].into_iter().collect());
    let view = view(snapshot);
    tick(&view, 1);
    let overview = json(&view.overview());
    assert_eq!(overview["services"][0]["sent_to"], serde_json::json!(["shop/web-canary"]), "{overview}");
}

#[test]
fn a_warm_up_is_told_as_it_was_wanted_and_as_it_went() {
    let view = view(snapshot(1, vec![web()]));
    let mut client = series(&pod(&view, "client"));
    for second in 1..=12 {
        // As much as the curve says: at this second it is at a tenth for each second that has passed.
        ask(&view, &mut client, 1, 100, 200);
        ask(&view, &mut client, 2, 100, 200);
        ask(&view, &mut client, 3, (10 * second).min(100), 200);
        tick(&view, second);
    }
    let detail = json(&view.service(&name(), SECONDS).unwrap());
    let endpoints = detail["endpoints"].as_array().unwrap();
    let warming = endpoints.iter().find(|endpoint| endpoint["pod"] == "web-3").unwrap();
    let numbers = |of: &str| -> Vec<f64> {
        warming["seconds"][of].as_array().unwrap().iter().map(|share| share.as_f64().unwrap()).collect()
    };
    let wanted = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.0, 1.0];
    for (second, (told, wanted)) in numbers("target_shares").iter().zip(wanted).enumerate() {
        assert!((told - wanted).abs() < 0.001, "{second}: {told}");
    }
    // The mean of five seconds is two seconds behind.
    for (second, (got, wanted)) in numbers("actual_shares").iter().skip(4).zip(&wanted[2..8]).enumerate() {
        assert!((got - wanted).abs() < 0.02, "{second}: {got}");
    }
    assert_eq!(detail["warm_up"]["duration_seconds"], 10.0);
}

#[test]
fn a_breaker_that_opens_is_on_the_timeline() {
    let web = web();
    let governor = web.governor.clone();
    let view = view(snapshot(1, vec![web]));
    let mut client = series(&pod(&view, "client"));
    let breaker = governor.breakers().unwrap().of(&CallingPod::new("uid-client", "shop/client"), None);
    for second in 1..=9 {
        ask(&view, &mut client, 1, 10, 500);
        for _ in 0..10 {
            if let Ok(permit) = breaker.try_acquire(second * S - 1) {
                permit.finish(Outcome::Error(ErrorKind::Status(500)), second * S - 1);
            }
        }
        tick(&view, second);
    }
    let detail = json(&view.service(&name(), 9).unwrap());
    // Open from the first second on; after five seconds a probe is let through, and fails.
    let lane = &detail["lanes"][0];
    let timeline: Vec<_> =
        lane["seconds"]["circuit"].as_array().unwrap().iter().map(|state| state.as_u64().unwrap()).collect();
    assert_eq!(timeline, [2, 2, 2, 2, 2, 2, 2, 2, 2]);
    let first = detail["transitions"].as_array().unwrap().last().unwrap();
    assert_eq!((&first["from"], &first["to"]), (&"closed".into(), &"open".into()));
    assert!(first["reason"].as_str().unwrap().contains("10 of 10 requests failed"), "{first}");
    assert!(detail["limits"].as_array().unwrap().iter().any(|limit| limit["rule"] == "circuitBreaker"));
}

/// What is gone is no longer kept, and what comes again under its name begins anew.
#[test]
fn what_is_gone_goes_and_its_counters_are_let_go_of() {
    struct Changing(Mutex<Arc<Snapshot>>);
    impl Agent for Changing {
        fn snapshot(&self) -> Arc<Snapshot> {
            self.0.lock().unwrap().clone()
        }

        fn look(&self) -> Look {
            Look { snapshot: self.snapshot(), ..Look::default() }
        }
    }

    let changing = Arc::new(Changing(Mutex::new(Arc::new(snapshot(1, vec![web()])))));
    let view = View::new(changing.clone(), Arc::new(Metrics::new()), 100);
    let mut client = series(&pod(&view, "client"));
    ask(&view, &mut client, 1, 10, 200);
    ask(&view, &mut client, 2, 10, 200);
    tick(&view, 1);
    // The service, its baseline and two endpoints.
    assert_eq!(view.overview().history.series, 4);
    *changing.0.lock().unwrap() = Arc::new(snapshot(2, vec![]));
    tick(&view, 2);
    assert_eq!(view.overview().history.series, 0);
    assert!(view.service(&name(), 1).is_none());
    *changing.0.lock().unwrap() = Arc::new(snapshot(3, vec![web()]));
    ask(&view, &mut client, 1, 5, 200);
    tick(&view, 3);
    let detail = json(&view.service(&name(), 1).unwrap());
    assert_eq!(detail["seconds"]["requests"][0], 5, "only what is new");
    view.metrics.evict_pod(&"shop".into(), &"client".into());
}

#[test]
fn pods_say_why_they_are_not_enrolled() {
    let workload = |name: &str| Arc::new(Workload::new(name, "shop", name));
    let status = |name: &str, pending: Option<&str>, own_proxy| PodStatus {
        pending: pending.map(str::to_owned),
        own_proxy,
        ..PodStatus::enrolled(workload(name))
    };
    let mut snapshot = snapshot(1, vec![]);
    let mut host = Workload::new("host", "shop", "host");
    (host.host_network, host.capture) = (true, false);
    let mut out = Workload::new("out", "shop", "out");
    out.capture = false;
    let mut done = Workload::new("done", "shop", "done");
    done.finished = true;
    for pod in [host, out, done, Workload::new("in", "shop", "in"), Workload::new("new", "shop", "new")] {
        snapshot.pods.insert(pod.uid.clone(), Arc::new(pod));
    }
    let pods = [
        status("in", None, None),
        status("meshed", None, Some("Istio")),
        status("slow", Some("it has no process"), None),
    ];
    let view = view_of(Look { snapshot: Arc::new(snapshot), pods: pods.into(), ..Look::default() });
    let overview = json(&view.overview());
    let pods: Vec<_> = overview["pods"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pod| {
            (
                pod["name"].as_str().unwrap(),
                pod["state"].as_str().unwrap(),
                pod["reason"].as_str().unwrap_or_default(),
            )
        })
        .collect();
    assert_eq!(
        pods,
        [
            ("new", "pending", "its cgroup is not on this node, or not yet"),
            ("slow", "pending", "it has no process"),
            ("meshed", "other_mesh", "the proxy of Istio redirects its connections already"),
            ("host", "not_enrolled", "it is in the node's own network (hostNetwork)"),
            ("out", "not_enrolled", "its annotation sluice.dev/capture says so"),
            ("in", "enrolled", ""),
        ]
    );
}

/// The next chunk of a stream, as text.
async fn next(stream: &mut EventStream) -> Option<String> {
    let frame = timeout(Duration::from_secs(60), stream.frame()).await.expect("it speaks")?;
    Some(String::from_utf8(frame.unwrap().into_data().unwrap().to_vec()).unwrap())
}

/// The data of the one event of this kind in a chunk.
fn data(chunk: &str, kind: &str) -> Value {
    let events: Vec<_> =
        chunk.split("\n\n").filter(|event| event.starts_with(&format!("event: {kind}\n"))).collect();
    let [event] = events[..] else { panic!("{kind}: {chunk}") };
    serde_json::from_str(event.split_once("data: ").unwrap().1).unwrap()
}

#[tokio::test]
async fn events_begin_with_all_and_go_on_with_what_is_new() {
    let view = view(snapshot(1, vec![web()]));
    let mut client = series(&pod(&view, "client"));
    for second in 1..=70 {
        ask(&view, &mut client, 1, second, 200);
        tick(&view, second);
    }
    let mut stream = view.events(Some(Watched::Service(name()))).unwrap();
    let first = next(&mut stream).await.unwrap();
    assert!(first.starts_with("retry: 1000\n\n"), "{first}");
    assert_eq!(data(&first, "overview")["services"][0]["spark"]["requests"].as_array().unwrap().len(), 60);
    assert_eq!(data(&first, "service")["seconds"]["requests"].as_array().unwrap().len(), 70);
    ask(&view, &mut client, 1, 71, 200);
    tick(&view, 71);
    let then = next(&mut stream).await.unwrap();
    assert_eq!(data(&then, "service")["seconds"]["from"], 71);
    assert_eq!(data(&then, "service")["seconds"]["requests"], serde_json::json!([71]));
    // Who is slow hears of more at once.
    for second in 72..=74 {
        ask(&view, &mut client, 1, second, 200);
        tick(&view, second);
    }
    let late = next(&mut stream).await.unwrap();
    assert_eq!(data(&late, "service")["seconds"]["requests"], serde_json::json!([72, 73, 74]));
    assert_eq!(data(&late, "overview")["services"][0]["spark"]["requests"], serde_json::json!([72, 73, 74]));
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_by_itself_after_a_while() {
    let view = view(snapshot(1, vec![]));
    let mut stream = view.events(Some(Watched::Service(name()))).unwrap();
    let first = next(&mut stream).await.unwrap();
    assert_eq!(data(&first, "service"), Value::Null, "there is no such service");
    let frame = timeout(Duration::from_secs(3600), stream.frame()).await.expect("it ends");
    assert!(frame.is_none());
}

#[tokio::test]
async fn there_are_only_so_many_streams_and_their_places_are_free_again() {
    let view = view(snapshot(1, vec![]));
    let mut streams: Vec<_> = (0..events::MAX_SUBSCRIBERS).map(|_| view.events(None).unwrap()).collect();
    assert!(view.events(None).is_err());
    streams.pop();
    assert!(view.events(None).is_ok());
}

#[tokio::test]
async fn hostile_names_stay_within_their_event() {
    let mut service = Service::new("shop", HOSTILE, 80);
    service.lanes.insert("gray".parse().unwrap(), crate::govern::subset::Subset::default());
    let workload = Arc::new(Workload::new("a", "shop", HOSTILE));
    let pod = PodStatus { pending: Some(HOSTILE.to_owned()), ..PodStatus::enrolled(workload) };
    let look = Look {
        snapshot: Arc::new(snapshot(1, vec![service])),
        pods: [pod].into(),
        missing: vec![Missing { message: HOSTILE.to_owned(), action: "Wait.".into(), elsewhere: false }],
        ..Look::default()
    };
    let view = view_of(look);
    tick(&view, 1);
    let mut stream = view.events(None).unwrap();
    let first = next(&mut stream).await.unwrap();
    let lines: Vec<_> = first.lines().filter(|line| !line.is_empty()).collect();
    let [retry, event, data] = lines[..] else { panic!("{first}") };
    assert_eq!((retry, event), ("retry: 1000", "event: overview"));
    let overview: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
    for told in [&overview["services"][0]["name"], &overview["pods"][0]["reason"], &overview["not_ready"][0]]
    {
        assert_eq!(told, HOSTILE);
    }
}
