//! Which endpoint of the other family is the same pod.

use super::*;

const DUAL: &str = ", clusterIPs: [10.96.0.1, 'fd00::1']";

/// The same in IPv6.
fn slice6(name: &str, of: &str, endpoints: &str) -> String {
    slice(name, of, endpoints).replace("IPv4", "IPv6")
}

/// An endpoint that tells its pod's UID, as Kubernetes writes them.
fn endpoint_of(ip: &str, pod: &str, uid: &str) -> String {
    format!("{{addresses: ['{ip}'], targetRef: {{kind: Pod, name: {pod}, namespace: shop, uid: {uid}}}}}")
}

fn join<const N: usize>(endpoints: [(&str, &str); N]) -> String {
    endpoints.map(|(ip, pod)| endpoint_of(ip, pod, &format!("uid-{pod}"))).join(", ")
}

/// Each endpoint's address, and its pod's of the other family.
fn pairs(service: &Service) -> Vec<String> {
    let show = |endpoint: &Arc<crate::govern::endpoint::Endpoint>| {
        let other = endpoint.other_family.as_deref().map_or("-".to_owned(), ToString::to_string);
        format!("{} {other}", endpoint.address)
    };
    service.endpoints.iter().map(show).collect()
}

#[test]
fn each_pod_has_its_own_other_address() {
    let text = format!(
        "{SHOP}{}{}{}",
        svc("orders", "10.96.0.1", DUAL),
        slice("four", "orders", &join([("10.0.0.1", "a"), ("10.0.0.2", "b"), ("10.0.0.3", "c")])),
        // In another order, and not of all.
        slice6("six", "orders", &join([("fd00:1::9", "a"), ("fd00:1::8", "b"), ("fd00:1::7", "d")])),
    );
    let snapshot = snapshot_of(&text);
    assert_eq!(
        pairs(&service(&snapshot, "10.96.0.1:80")),
        ["10.0.0.1:8080 [fd00:1::9]:8080", "10.0.0.2:8080 [fd00:1::8]:8080", "10.0.0.3:8080 -"]
    );
    assert_eq!(
        pairs(&service(&snapshot, "[fd00::1]:80")),
        ["[fd00:1::7]:8080 -", "[fd00:1::8]:8080 10.0.0.2:8080", "[fd00:1::9]:8080 10.0.0.1:8080"]
    );
}

#[test]
fn those_of_a_headless_service_have_one_too() {
    let text = format!(
        "{SHOP}{}{}{}",
        svc("db", "None", ""),
        slice("four", "db", &join([("10.0.0.1", "a")])),
        slice6("six", "db", &join([("fd00:1::1", "a")])),
    );
    let snapshot = snapshot_of(&text);
    for (address, other) in [("10.0.0.1:8080", "[fd00:1::1]:8080"), ("[fd00:1::1]:8080", "10.0.0.1:8080")] {
        let pinned = destination(&snapshot, address).pinned.unwrap();
        assert_eq!(pinned.other_family.as_deref().map(ToString::to_string).as_deref(), Some(other));
    }
}

/// Nothing of another pod, of another port, or of another Service.
#[test]
fn what_is_not_the_same_is_no_other_address() {
    let single = svc("single", "10.96.0.2", "");
    let same_pods = [
        single,
        slice("single-4", "single", &join([("10.0.0.1", "a")])),
        // Written by somebody, though the Service has no address of the family.
        slice6("single-6", "single", &join([("fd00:1::1", "a")])),
    ]
    .concat();
    let with = |four: &str, six: &str| {
        let text = format!("{SHOP}{}{four}{six}{same_pods}", svc("orders", "10.96.0.1", DUAL));
        let snapshot = snapshot_of(&text);
        assert_eq!(pairs(&service(&snapshot, "10.96.0.2:80")), ["10.0.0.1:8080 -"]);
        [pairs(&service(&snapshot, "10.96.0.1:80")), pairs(&service(&snapshot, "[fd00::1]:80"))].concat()
    };
    let four = slice("four", "orders", &join([("10.0.0.1", "a")]));
    let none = ["10.0.0.1:8080 -", "[fd00:1::1]:8080 -"];
    // One of the same name that has come in its place, as a StatefulSet's does.
    let successor = slice6("six", "orders", &endpoint_of("fd00:1::1", "a", "uid-later"));
    assert_eq!(with(&four, &successor), none);
    // Nobody says whose it is.
    assert_eq!(with(&four, &slice6("six", "orders", "{addresses: ['fd00:1::1']}")), none);
    // A slice of the family that has another port number, or another port.
    let six = slice6("six", "orders", &join([("fd00:1::1", "a")]));
    let moved = six.replace("port: 8080", "port: 8081");
    assert_eq!(with(&four, &moved), ["10.0.0.1:8080 -", "[fd00:1::1]:8081 -"]);
    let ports = "name: http, port: 8080}, {name: admin, port: 9090";
    let admin_alone = six.replace("name: http, port: 8080", "name: admin, port: 8080");
    assert_eq!(with(&four, &admin_alone), ["10.0.0.1:8080 -"]);
    // Of two ports each has its own.
    let [four, six] = [&four, &six].map(|slice| slice.replace("name: http, port: 8080", ports));
    assert_eq!(with(&four, &six), ["10.0.0.1:8080 [fd00:1::1]:8080", "[fd00:1::1]:8080 10.0.0.1:8080"]);
    // Its sandbox was made anew, and it has another address: which one is its own cannot be told here.
    let both = slice6("six", "orders", &join([("fd00:1::1", "a"), ("fd00:1::2", "a")]));
    assert_eq!(with(&four, &both)[0], none[0]);
}

#[test]
fn pods_that_are_found_by_their_addresses_have_one_too() {
    let own = pod("a", "10.0.0.1", "")
        .replace("podIP: 10.0.0.1", "podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00:1::1'}]");
    let text = format!(
        "{SHOP}{}{}{}{own}",
        svc("orders", "10.96.0.1", DUAL),
        slice("four", "orders", "{addresses: [10.0.0.1]}"),
        slice6("six", "orders", "{addresses: ['fd00:1::1']}"),
    );
    assert_eq!(pairs(&service(&snapshot_of(&text), "[fd00::1]:80")), ["[fd00:1::1]:8080 10.0.0.1:8080"]);
}

/// A change in one family is one of the endpoints of the other, and of no others.
#[test]
fn it_follows_what_changes_in_the_other_family() {
    let four = |endpoints: &str| slice("four", "orders", endpoints);
    let text = format!(
        "{SHOP}{}{}{}",
        svc("orders", "10.96.0.1", DUAL),
        four(&join([("10.0.0.1", "a")])),
        slice6("six", "orders", &join([("fd00:1::1", "a"), ("fd00:1::2", "b")])),
    );
    let mut builder = start(Options::default(), &text);
    let six = |snapshot: &Snapshot| service(snapshot, "[fd00::1]:80");
    let before = six(&next(&mut builder));
    assert_eq!(pairs(&before), ["[fd00:1::1]:8080 10.0.0.1:8080", "[fd00:1::2]:8080 -"]);
    apply(&mut builder, &four(&join([("10.0.0.1", "a"), ("10.0.0.2", "b")])));
    let after = six(&next(&mut builder));
    assert_eq!(pairs(&after), ["[fd00:1::1]:8080 10.0.0.1:8080", "[fd00:1::2]:8080 10.0.0.2:8080"]);
    assert!(Arc::ptr_eq(&before.endpoints[0], &after.endpoints[0]));
    assert!(Arc::ptr_eq(&before.endpoints[1].load, &after.endpoints[1].load), "it is the same endpoint");
    apply(&mut builder, &four(&join([("10.0.0.2", "b")])));
    assert_eq!(pairs(&six(&next(&mut builder))), ["[fd00:1::1]:8080 -", "[fd00:1::2]:8080 10.0.0.2:8080"]);
}
