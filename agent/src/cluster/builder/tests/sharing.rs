//! What a change costs grows with what changed, not with the cluster. Work is counted, not timed.

use std::fmt::Write as _;

use super::*;

/// So many Services of three endpoints each.
fn shop(services: usize) -> Builder {
    let mut text = SHOP.to_owned();
    for number in 0..services {
        let (high, low) = (number / 200, number % 200);
        let name = format!("s{number}");
        text += &svc(&name, &format!("10.96.{high}.{low}"), "");
        let mut endpoints = Vec::new();
        for pod_number in 1..=3 {
            let (ip, pod_name) = (format!("10.{pod_number}.{high}.{low}"), format!("{name}-{pod_number}"));
            text += &pod(&pod_name, &ip, "");
            endpoints.push(endpoint(&ip, &pod_name));
        }
        let _ = writeln!(text, "{}", slice(&name, &name, &endpoints.join(",")));
    }
    start(Options::default(), &text)
}

#[test]
fn an_endpoint_that_flips_leaves_everything_else_as_it_is() {
    for services in [10, 1000] {
        let mut builder = shop(services);
        let before = next(&mut builder);
        assert_eq!(before.destinations.len(), services);
        assert_eq!(builder.counts().endpoints, services * 3);
        let flipped = endpoint("10.1.0.7", "s7-1").replacen('{', "{conditions: {ready: false}, ", 1);
        let others = [endpoint("10.2.0.7", "s7-2"), endpoint("10.3.0.7", "s7-3")];
        apply(&mut builder, &slice("s7", "s7", &format!("{flipped},{}", others.join(","))));
        assert_eq!(builder.dirty.len(), 1, "one Service is built");
        let after = next(&mut builder);
        assert_eq!(after.pods.unshared_parts(&before.pods), 0);
        assert_eq!(after.destinations.unshared_parts(&before.destinations), 1);
        let same = |one: Option<&Destination>, other: Option<&Destination>| {
            one.zip(other).is_some_and(|(one, other)| one.is_same(other))
        };
        let changed: Vec<_> = after
            .destinations
            .differences(&before.destinations)
            .filter(|(_, before, now)| !same(*before, *now))
            .map(|(address, ..)| address.to_string())
            .collect();
        assert_eq!(changed, ["10.96.0.7:80"]);
        let (old, new) = (service(&before, "10.96.0.7:80"), service(&after, "10.96.0.7:80"));
        let shared = old.endpoints.iter().zip(&new.endpoints).filter(|(one, other)| Arc::ptr_eq(one, other));
        assert_eq!((old.endpoints.len(), shared.count()), (3, 2));
        assert!(builder.troubled.is_empty() && messages(&builder).is_empty());
    }
}

#[test]
fn counts_are_those_of_what_is_there() {
    let mut builder = shop(5);
    next(&mut builder);
    let of = |builder: &Builder| {
        let Counts { services, endpoints, destinations, .. } = builder.counts();
        (services, endpoints, destinations)
    };
    assert_eq!(of(&builder), (5, 15, 5));
    delete(&mut builder, &svc("s3", "10.96.0.3", ""));
    apply(&mut builder, &slice("s4", "s4", &endpoint("10.1.0.4", "s4-1")));
    next(&mut builder);
    assert_eq!(of(&builder), (4, 10, 4));
    apply(&mut builder, "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}");
    next(&mut builder);
    assert_eq!(of(&builder), (0, 0, 0));
}

#[test]
fn a_service_in_trouble_is_told_for_as_long_as_it_is() {
    let mut builder = shop(2);
    next(&mut builder);
    let wrong = svc("s1", "10.96.0.1", "").replace("name: http", "name: web");
    apply(&mut builder, &wrong);
    next(&mut builder);
    assert_eq!((builder.troubled.len(), messages(&builder).len()), (1, 1), "{:?}", messages(&builder));
    delete(&mut builder, &wrong);
    next(&mut builder);
    assert_eq!((builder.troubled.len(), messages(&builder).len()), (0, 0));
}
