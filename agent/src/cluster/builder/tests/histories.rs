//! Objects made at random: what they add up to does not depend on the way there.

use proptest::prelude::*;

use super::*;
use crate::cluster::object::{EndpointSlice, SliceEndpoint, SlicePort};

/// Everything of a snapshot that readers can tell, in a stable order.
fn contents(snapshot: &Snapshot) -> Vec<String> {
    let show = |endpoint: &crate::govern::endpoint::Endpoint| {
        let crate::govern::endpoint::Endpoint {
            address,
            other_family,
            tag,
            ready,
            serving,
            terminating,
            // Where no pod tells it is when it was seen, which is history.
            ready_since_nanos: _,
            zone,
            node,
            pod,
            load: _,
        } = endpoint;
        format!(
            "{address} {other_family:?} {tag:?} {ready} {serving} {terminating} {zone:?} {node:?} {pod:?}"
        )
    };
    let mut lines: Vec<_> = snapshot
        .destinations
        .iter()
        .map(|(address, Destination { service, pinned })| {
            let list = |list: &[Arc<_>]| list.iter().map(|endpoint| show(endpoint)).collect::<Vec<_>>();
            let lanes: Vec<_> = service.lanes.iter().map(|(tag, subset)| (tag, list(subset))).collect();
            let pinned = pinned.as_deref().map(show);
            let (all, baseline) = (list(&service.endpoints), list(&service.baseline));
            format!("{address} {service} {:?} {all:?} {baseline:?} {lanes:?} {pinned:?}", service.protocol)
        })
        .chain(snapshot.pods.iter().map(|(uid, pod)| format!("{uid} {pod:?}")))
        .collect();
    lines.sort();
    lines
}

/// Changes among few names, so that they meet often.
fn any_change() -> impl Strategy<Value = Change> {
    let small = 0..3_u8;
    let namespace = (any::<bool>(), any::<bool>()).prop_map(|(other, on)| {
        let text = if on {
            SHOP.to_owned()
        } else {
            "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}".to_owned()
        };
        (if other { text.replace("name: shop", "name: other") } else { text }, false)
    });
    let service = (small.clone(), small.clone(), any::<bool>(), any::<bool>()).prop_map(
        |(name, ip, headless, gone)| {
            let ip = if headless { "None".to_owned() } else { format!("10.96.0.{ip}") };
            (svc(&format!("s{name}"), &ip, ""), gone)
        },
    );
    let slices = (
        small.clone(),
        small.clone(),
        proptest::collection::vec((0..4_u8, 0..5_u8, any::<bool>()), 0..4),
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(name, of, endpoints, ipv6, gone)| {
            let (family, network) = if ipv6 { ("IPv6", "fd00::") } else { ("IPv4", "10.0.0.") };
            let endpoints: Vec<_> = endpoints
                .into_iter()
                .map(|(ip, pod, ready)| {
                    let ip = format!("'{network}{ip}'");
                    let one = if pod == 4 {
                        format!("{{addresses: [{ip}]}}")
                    } else {
                        endpoint(&ip, &format!("p{pod}"))
                    };
                    one.replace("{addresses", &format!("{{conditions: {{ready: {ready}}}, addresses"))
                })
                .collect();
            let slice =
                slice(&format!("{}{name}", family.to_lowercase()), &format!("s{of}"), &endpoints.join(", "));
            (slice.replace("IPv4", family), gone)
        });
    let pods = (0..4_u8, 0..4_u8, 0..4_u8, any::<bool>()).prop_map(|(name, ip, what, gone)| {
        let extra = [
            "",
            GRAY,
            ", deletionTimestamp: '2026-01-01T00:00:00Z'",
            ", annotations: {sluice.dev/capture: disabled}",
        ];
        (pod(&format!("p{name}"), &format!("10.0.0.{ip}"), extra[usize::from(what)]), gone)
    });
    prop_oneof![namespace, service, slices, pods].prop_map(|(text, gone)| {
        let sighting = sightings(&text).remove(0);
        if gone { Change::Deleted(sighting.object.key()) } else { Change::Applied(sighting) }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    /// However the cluster came to be what it is, step by step or all at once, it looks the same.
    #[test]
    fn history_makes_no_difference(changes in proptest::collection::vec(any_change(), 1..30), builds in any::<u32>()) {
        let now = Instant::now();
        let mut stepwise = start(Options::default(), "");
        let mut newest = stepwise.build(now).unwrap();
        let mut last: BTreeMap<Key, Sighting> = BTreeMap::new();
        for (i, change) in changes.iter().enumerate() {
            match change {
                Change::Applied(sighting) => { last.insert(sighting.object.key(), sighting.clone()); }
                Change::Deleted(key) => { last.remove(key); }
                Change::Restarted(..) => {}
            }
            stepwise.apply(change.clone());
            if builds & (1 << i) != 0 {
                newest = stepwise.build(now).unwrap_or(newest);
            }
        }
        newest = stepwise.build(now).unwrap_or(newest);

        let mut at_once = Builder::new(Options::default());
        for kind in Kind::ALL.into_iter().rev() {
            let of = last.values().filter(|sighting| sighting.object.key().kind == kind);
            at_once.apply(Change::Restarted(kind, of.rev().cloned().collect()));
        }
        let expected = at_once.build(now).unwrap();
        prop_assert_eq!(contents(&newest), contents(&expected));
        let later = Instant::now() + std::time::Duration::from_secs(60);
        prop_assert_eq!(stepwise.problems(later), at_once.problems(later));
        prop_assert_eq!(stepwise.counts(), at_once.counts());
        prop_assert_eq!(stepwise.by_pod.len(), at_once.by_pod.len());
        prop_assert_eq!(stepwise.by_address.len(), at_once.by_address.len());
    }

    /// How endpoints are spread over slices makes no difference, nor that some are in several.
    #[test]
    fn slicing_makes_no_difference(where_to in proptest::collection::vec((0..4_usize, 0..4_usize), 1..20)) {
        let sliced = |place: &dyn Fn(usize, (usize, usize)) -> Vec<usize>| {
            let mut builder = start(Options::default(), &format!("{SHOP}{}", svc("orders", "10.96.0.1", "")));
            let mut slices = vec![Vec::new(); 4];
            for (i, spread) in where_to.iter().enumerate() {
                for slice in place(i, *spread) {
                    slices[slice].push(SliceEndpoint {
                        ip: IpAddr::from([10, 0, 0, u8::try_from(i).unwrap()]),
                        ready: i % 3 != 0,
                        serving: true,
                        terminating: i % 5 == 0,
                        zone: Some(if i % 2 == 0 { "a" } else { "b" }.into()),
                        node: None,
                        pod: None,
                        hints: None,
                    });
                }
            }
            for (i, endpoints) in slices.into_iter().enumerate() {
                let object = Object::EndpointSlice(Arc::new(EndpointSlice {
                    name: Name { namespace: "shop".into(), name: format!("s{i}").into() },
                    service: Some("orders".into()),
                    ipv6: false,
                    endpoints,
                    ports: vec![SlicePort { name: Some("http".into()), port: 8080 }],
                }));
                builder.apply(Change::Applied(Sighting { object, problems: Vec::new() }));
            }
            contents(&builder.build(Instant::now()).unwrap())
        };
        let together = sliced(&|_, _| vec![0]);
        prop_assert_eq!(&together, &sliced(&|_, (one, _)| vec![one]));
        prop_assert_eq!(&together, &sliced(&|_, (one, other)| vec![one, other]));
    }
}
