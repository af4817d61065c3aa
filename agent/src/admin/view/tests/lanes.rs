//! What is shown of a lane.

use super::*;
use crate::{
    cluster::{
        object::{Key, Kind, Name as ObjectName},
        verdict::{Condition, Extent, Judged, OfLane, Reason, Verdict},
    },
    govern::{
        policy::{Detour, EntryRule, Lane, LaneFallback, Percentage, PercentageKey, RequestMatch, Target},
        tag::Tag,
    },
    observe::metrics::PodTags,
};

fn tag(tag: &str) -> Tag {
    tag.parse().unwrap()
}

/// A Service with endpoints of these lanes, all ready: `(number, tag)`.
fn service(
    namespace: &str,
    name: &str,
    endpoints: &[(u8, Option<&str>)],
    detours: &[(&str, Detour)],
) -> Service {
    let endpoint = |&(number, of): &(u8, Option<&str>)| {
        let mut endpoint = Endpoint::new(address(number));
        endpoint.pod = Some(format!("{name}-{number}").into());
        endpoint.tag = of.map(tag);
        Arc::new(endpoint)
    };
    let mut service =
        Service::new(namespace, name, 80).with_endpoints(endpoints.iter().map(endpoint).collect());
    let detours = detours.iter().map(|(of, detour)| (tag(of), detour.clone()));
    service.detours = Arc::new(detours.collect());
    service
}

fn verdict(namespace: &str, name: &str, said: &str, active: Option<Lane>) -> (Key, Judged) {
    let key =
        Key { kind: Kind::TrafficLane, name: ObjectName { namespace: namespace.into(), name: name.into() } };
    let condition =
        || Condition { holds: active.is_some(), reason: Reason::Accepted, message: String::new() };
    let extent = if active.is_some() { Extent::All } else { Extent::Nothing };
    let verdict = Verdict { extent, accepted: condition(), programmed: condition() };
    let judged = Judged {
        uid: None,
        generation: None,
        verdict: Arc::new(verdict),
        told: Arc::default(),
        targets: None,
        shown: None,
        lane: Some(OfLane { tag: said.into(), active: active.map(Arc::new) }),
    };
    (key, judged)
}

fn gray() -> Lane {
    let percentage = Percentage { percent: 10.0, key: PercentageKey::Cookie("user".into()) };
    Lane {
        name: "shop/gray".into(),
        tag: tag("gray"),
        selector: None,
        fallback: Detour { lanes: vec![tag("staging")], then: LaneFallback::Baseline },
        service_fallbacks: BTreeMap::new(),
        priority: 7,
        trusts_incoming_tag: true,
        endpoints: vec![],
        targets: vec![
            Target { service: "web".into(), port: None },
            Target { service: "stock".into(), port: Some("http".into()) },
        ],
        entry: vec![EntryRule { matches: RequestMatch::default(), percentage: Some(percentage) }],
    }
}

fn look(services: Vec<Service>) -> Look {
    let mut snapshot = snapshot(1, services);
    let pod = |name: &str, workload: &str, of: Option<&str>| {
        let mut pod = Workload::new(name, "shop", name);
        pod.workload = workload.into();
        pod.tag = of.map(tag);
        pod
    };
    let mut done = pod("done", "batch", Some("gray"));
    done.finished = true;
    for pod in [
        pod("web-4", "web-gray", Some("gray")),
        pod("batch-gray", "batch", Some("gray")),
        pod("front-1", "front", None),
        pod("front-2", "front", None),
        pod("red-1", "red", Some("red")),
        done,
    ] {
        snapshot.pods.insert(pod.uid.clone(), Arc::new(pod));
    }
    let lost = |name: &str, lost: u64, is_losing: bool| PodTags {
        namespace: "shop".into(),
        name: name.into(),
        carriers: vec![],
        lost,
        is_losing,
    };
    Look {
        snapshot: Arc::new(snapshot),
        verdicts: Arc::new(
            [verdict("shop", "gray", "gray", Some(gray())), verdict("away", "gray", "gray", None)].into(),
        ),
        tags: vec![
            lost("front-1", 3, false),
            lost("front-2", 4, true),
            lost("web-1", 0, false),
            lost("red-1", 9, true),
        ],
        ..Look::default()
    }
}

fn of(view: &View, tag: &str, namespace: Option<&str>) -> Option<Value> {
    let name = LaneName { tag: tag.to_owned(), namespace: namespace.map(str::to_owned) };
    view.lane(&name).map(|detail| json(&detail))
}

/// A Service is listed with those who get requests of the lane now, as routing has it.
#[test]
fn a_lane_says_where_its_requests_go() {
    let baseline = Detour::default();
    let staging = Detour { lanes: vec![tag("staging")], then: LaneFallback::Baseline };
    let fail = Detour { lanes: vec![], then: LaneFallback::Fail };
    let mut broken =
        service("shop", "broken", &[(1, None), (2, Some("gray"))], &[("gray", baseline.clone())]);
    let unready = broken.endpoints.iter().map(|endpoint| {
        let mut endpoint = Endpoint { load: Arc::default(), ..Endpoint::new(endpoint.address) };
        endpoint.tag = (endpoint.address == address(2)).then(|| tag("gray"));
        endpoint.ready = endpoint.tag.is_none();
        Arc::new(endpoint)
    });
    let unready = unready.collect();
    broken = broken.with_endpoints(unready);
    let view = view_of(look(vec![
        broken,
        // Of one family only there is somebody in the lane.
        service("shop", "dual", &[(1, None), (2, Some("gray"))], &[("gray", baseline.clone())]),
        service("shop", "dual", &[(1, None)], &[("gray", baseline)]),
        service("shop", "empty", &[], &[]),
        service("shop", "ledger", &[(1, None)], &[("gray", fail)]),
        service("shop", "mail", &[(1, None), (3, Some("staging"))], &[("gray", staging.clone())]),
        service("shop", "stock", &[(1, None), (2, Some("red"))], &[("gray", staging)]),
        web(),
        service("other", "far", &[(1, None)], &[]),
    ]));
    tick(&view, 1);
    let lane = of(&view, "gray", Some("shop")).unwrap();
    let services = lane["services"].as_array().unwrap();
    let line = |line: &Value| {
        let members = line["members"].as_array().unwrap().len();
        let words = ["name", "answered_by", "fallback"].map(|field| line[field].as_str().unwrap().to_owned());
        (
            words,
            line["other_lane"].as_str().map(str::to_owned),
            members,
            line["usable_members"].as_u64().unwrap(),
        )
    };
    let lines: Vec<_> = services.iter().map(line).collect();
    let words = |name: &str, answered: &str, fallback: &str| [name, answered, fallback].map(str::to_owned);
    assert_eq!(
        lines,
        [
            (words("broken", "baseline", "Baseline"), None, 1, 0),
            (words("dual", "baseline", "Baseline"), None, 1, 1),
            (words("empty", "nobody", "Baseline"), None, 0, 0),
            (words("ledger", "rejected", "Fail"), None, 0, 0),
            (words("mail", "other_lane", "staging, Baseline"), Some("staging".to_owned()), 0, 0),
            (words("stock", "baseline", "staging, Baseline"), None, 0, 0),
            (words("web", "lane", "Baseline"), None, 1, 1),
        ]
    );
    let member = &services[6]["members"][0];
    assert_eq!((&member["pod"], &member["state"]), (&"web-4".into(), &"ready".into()));
    assert_eq!(services[0]["members"][0]["state"], "not_ready");
    assert_eq!(lane["other_pods"], serde_json::json!([{"namespace": "shop", "name": "batch-gray"}]));
}

#[test]
fn a_lane_is_seen_beside_the_baseline_of_its_own_services() {
    let view = view_of(look(vec![web(), service("shop", "quiet", &[(1, None)], &[])]));
    let mut client = series(&pod(&view, "client"));
    for second in 1..=10 {
        ask(&view, &mut client, 1, 30, 200);
        ask(&view, &mut client, 2, 10, 500);
        ask(&view, &mut client, 4, 20, 503);
        tick(&view, second);
    }
    let lane = of(&view, "gray", None).unwrap();
    let share = |rate: f64, errors: f64| serde_json::json!({"rate": rate, "error_ratio": errors});
    assert_eq!((&lane["lane"], &lane["baseline"]), (&share(20.0, 1.0), &share(40.0, 0.25)));
    let services = lane["services"].as_array().unwrap();
    let web = services.iter().find(|line| line["name"] == "web").unwrap();
    assert_eq!((&web["lane"]["rate"], &web["baseline"]["error_ratio"]), (&20.0.into(), &0.25.into()));

    let overview = json(&view.overview());
    let lanes = overview["lanes"].as_array().unwrap();
    let line = |line: &Value| {
        let text = |field: &str| line[field].as_str().unwrap().to_owned();
        (text("tag"), text("namespace"), line["programmed"].as_bool(), line["pods"].as_u64().unwrap())
    };
    let names = |tag: &str, namespace: &str| (tag.to_owned(), namespace.to_owned());
    let row = |(tag, namespace), programmed, pods| (tag, namespace, programmed, pods);
    assert_eq!(
        lanes.iter().map(line).collect::<Vec<_>>(),
        [
            row(names("gray", "away"), Some(false), 0),
            row(names("gray", "shop"), Some(true), 2),
            row(names("red", "shop"), None, 1),
        ]
    );
    assert_eq!((&lanes[1]["services"], &lanes[1]["rate"]), (&1.into(), &20.0.into()));
    assert_eq!(lanes[1]["traffic_lanes"], serde_json::json!(["gray"]));
}

#[test]
fn a_lane_says_who_enters_what_is_active_and_who_loses_tags() {
    let view = view_of(look(vec![web()]));
    tick(&view, 1);
    let lane = of(&view, "gray", None).unwrap();
    assert_eq!(lane["namespaces"], serde_json::json!(["away", "shop"]));
    assert_eq!(
        lane["entry"],
        serde_json::json!([{
            "traffic_lane": "shop/gray", "rule": 0, "priority": 7, "services": ["web", "stock:http"],
            "requests": "10 % by cookie user of all requests",
        }])
    );
    let objects = lane["traffic_lanes"].as_array().unwrap();
    let line = |line: &Value| {
        let conditions = line["conditions"].as_array().unwrap().iter();
        let hold = conditions.map(|one| one["status"].as_bool().unwrap()).collect::<Vec<_>>();
        (line["namespace"].as_str().unwrap().to_owned(), hold, line["fallback"].as_str().map(str::to_owned))
    };
    assert_eq!(
        objects.iter().map(line).collect::<Vec<_>>(),
        [
            ("away".to_owned(), vec![false, false], None),
            ("shop".to_owned(), vec![true, true], Some("staging, Baseline".to_owned())),
        ]
    );
    // Pods of another lane lose none of this one.
    assert_eq!(
        lane["losses"],
        serde_json::json!([{"namespace": "shop", "workload": "front", "pods": 2, "tags_lost": 7, "is_losing": true}])
    );
    // Where there is nothing of it there is no lane.
    for (tag, namespace) in [("blue", None), ("gray", Some("elsewhere")), ("", None), ("gr ay", None)] {
        assert!(of(&view, tag, namespace).is_none(), "{tag} {namespace:?}");
    }
    assert!(of(&view, "gray", Some("away")).is_some());
}

#[tokio::test]
async fn a_lane_is_told_each_second() {
    let view = view_of(look(vec![web()]));
    tick(&view, 1);
    let lane =
        |tag: &str| Watched::Lane(LaneName { tag: tag.to_owned(), namespace: Some("shop".to_owned()) });
    let mut stream = view.events(Some(lane("gray"))).unwrap();
    assert_eq!(data(&next(&mut stream).await.unwrap(), "lane")["second"], 1);
    tick(&view, 2);
    let then = next(&mut stream).await.unwrap();
    assert_eq!((&data(&then, "lane")["second"], &data(&then, "overview")["second"]), (&2.into(), &2.into()));
    let mut stream = view.events(Some(lane("blue"))).unwrap();
    assert_eq!(data(&next(&mut stream).await.unwrap(), "lane"), Value::Null);
}

/// There is a bound to what is told, and it leaves out what says least.
#[test]
fn services_with_endpoints_of_the_lane_are_never_left_out_for_others() {
    let name = |number: u32| format!("s-{number:03}");
    let mut services: Vec<_> = (0..600).map(|number| Service::new("shop", &name(number), 80)).collect();
    services[599] = service("shop", &name(599), &[(1, Some("gray"))], &[]);
    let view = view_of(Look { snapshot: Arc::new(many(services)), ..Look::default() });
    tick(&view, 1);
    let lane = of(&view, "gray", None).unwrap();
    let listed = lane["services"].as_array().unwrap();
    assert_eq!((listed.len(), &lane["services_omitted"]), (500, &100.into()));
    assert_eq!((&listed[0]["name"], &listed[499]["name"]), (&"s-000".into(), &"s-599".into()));
}

/// As [`snapshot`], of more Services than a byte counts.
fn many(services: Vec<Service>) -> Snapshot {
    let at = |(number, service): (usize, Service)| {
        let address = SocketAddr::from(([10, 96, (number >> 8) as u8, number as u8], service.port));
        (address, Destination { service: Arc::new(service), pinned: None })
    };
    Snapshot {
        generation: 1,
        destinations: services.into_iter().enumerate().map(at).collect(),
        ..Snapshot::default()
    }
}
