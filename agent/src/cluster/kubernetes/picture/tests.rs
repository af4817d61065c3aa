//! What is told when, whatever the order in which the watches speak.

use super::*;
use crate::{
    cluster::object::{Namespace, Pod},
    govern::caller::Labels,
};

fn scope(kind: Kind, namespace: &str) -> Scope {
    Scope { kind, namespace: namespace.into() }
}

fn namespace(name: &str, capture: Option<bool>) -> Sighting {
    let namespace = Namespace { name: name.into(), capture, access_log: None };
    Sighting { object: Object::Namespace(namespace), problems: Vec::new() }
}

fn pod(namespace: &str, name: &str) -> Sighting {
    let pod = Pod {
        name: Name { namespace: namespace.into(), name: name.into() },
        uid: None,
        cgroup_uid: None,
        ips: Vec::new(),
        tag: None,
        labels: Labels::default(),
        workload: None,
        capture: None,
        node: None,
        zone: None,
        host_network: false,
        ready_since: None,
        started: None,
        own_proxy: None,
        terminating: false,
        finished: false,
    };
    Sighting { object: Object::Pod(Arc::new(pod)), problems: Vec::new() }
}

/// `+Pod shop/a`, `-Pod shop/a`, `=Pod shop/a,shop/b`.
fn told(outcome: &Outcome) -> Vec<String> {
    let change = |change: &Change| match change {
        Change::Applied(sighting) => format!("+{}", sighting.object.key()),
        Change::Deleted(key) => format!("-{key}"),
        Change::Restarted(kind, all) => {
            let names: Vec<_> = all.iter().map(|sighting| sighting.object.key().name.to_string()).collect();
            format!("={kind} {}", names.join(","))
        }
    };
    outcome.batch.iter().map(change).collect()
}

fn namespaces(picture: &mut Picture, all: &[(&str, Option<bool>)]) -> Outcome {
    let all = all.iter().map(|(name, capture)| namespace(name, *capture)).collect();
    picture.hear(&scope(Kind::Namespace, ""), News::Listed(all))
}

/// The kinds that a cluster may go without are there, and nothing is of them.
fn fresh() -> Picture {
    let mut picture = Picture::default();
    for kind in Picture::OPTIONAL {
        assert_eq!(list(&mut picture, kind, "", &[]), [""; 0]);
    }
    picture
}

fn list(picture: &mut Picture, kind: Kind, namespace: &str, pods: &[&str]) -> Vec<String> {
    let pods = pods.iter().map(|name| pod(namespace, name)).collect();
    told(&picture.hear(&scope(kind, namespace), News::Listed(pods)))
}

/// The first picture of one namespace with pods `a` and `b`.
fn shop() -> Picture {
    let mut picture = fresh();
    assert_eq!(*namespaces(&mut picture, &[("shop", Some(true))]).begin, ["shop".into()]);
    assert_eq!(list(&mut picture, Kind::Service, "shop", &[]), [""; 0]);
    assert_eq!(list(&mut picture, Kind::Pod, "shop", &["a", "b"]), [""; 0]);
    let first = [
        "=Namespace shop",
        "=Service ",
        "=EndpointSlice ",
        "=Pod shop/a,shop/b",
        "=TrafficPolicy ",
        "=TrafficLane ",
        "=HTTPRoute ",
        "=GRPCRoute ",
        "=ReferenceGrant ",
    ];
    assert_eq!(list(&mut picture, Kind::EndpointSlice, "shop", &[]), first);
    picture
}

fn unread(picture: &Picture) -> Vec<(&str, bool)> {
    picture.unread().map(|(name, lasts)| (&**name, lasts)).collect()
}

#[test]
fn a_cluster_without_opted_in_namespaces_is_told_at_once() {
    let mut picture = fresh();
    let outcome = namespaces(&mut picture, &[("bank", None), ("pub", Some(false))]);
    assert_eq!(
        told(&outcome),
        [
            "=Namespace bank,pub",
            "=Service ",
            "=EndpointSlice ",
            "=Pod ",
            "=TrafficPolicy ",
            "=TrafficLane ",
            "=HTTPRoute ",
            "=GRPCRoute ",
            "=ReferenceGrant "
        ]
    );
    assert!(outcome.begin.is_empty());
}

#[test]
fn a_resync_tells_the_difference() {
    let mut picture = shop();
    assert_eq!(
        list(&mut picture, Kind::Pod, "shop", &["b", "c"]),
        ["-Pod shop/a", "+Pod shop/b", "+Pod shop/c"]
    );
    assert_eq!(told(&namespaces(&mut picture, &[("shop", Some(true))])), [""; 0]);
    let outcome = namespaces(&mut picture, &[]);
    assert_eq!(told(&outcome), ["-Pod shop/b", "-Pod shop/c", "-Namespace shop"]);
    assert_eq!(*outcome.end, ["shop".into()]);
}

#[test]
fn what_changes_before_a_namespace_is_whole_comes_with_it() {
    let mut picture = shop();
    assert_eq!(told(&namespaces(&mut picture, &[("shop", Some(true)), ("bank", Some(true))])), [""; 0]);
    assert_eq!(list(&mut picture, Kind::Pod, "bank", &["a", "b"]), [""; 0]);
    let pods = scope(Kind::Pod, "bank");
    assert_eq!(told(&picture.hear(&pods, News::Applied(pod("bank", "c")))), [""; 0]);
    assert_eq!(told(&picture.hear(&pods, News::Deleted(pod("bank", "a").object.key()))), [""; 0]);
    assert_eq!(list(&mut picture, Kind::Service, "bank", &[]), [""; 0]);
    let whole = ["+Pod bank/b", "+Pod bank/c", "+Namespace bank"];
    assert_eq!(list(&mut picture, Kind::EndpointSlice, "bank", &[]), whole);
}

#[test]
fn a_namespace_that_goes_no_longer_holds_up_the_first_picture() {
    let mut picture = fresh();
    namespaces(&mut picture, &[("shop", Some(true)), ("bank", None)]);
    let gone = News::Deleted(namespace("shop", None).object.key());
    let outcome = picture.hear(&scope(Kind::Namespace, ""), gone);
    assert_eq!(
        told(&outcome),
        [
            "=Namespace bank",
            "=Service ",
            "=EndpointSlice ",
            "=Pod ",
            "=TrafficPolicy ",
            "=TrafficLane ",
            "=HTTPRoute ",
            "=GRPCRoute ",
            "=ReferenceGrant "
        ]
    );
    assert_eq!(*outcome.end, ["shop".into()]);
}

#[test]
fn the_first_picture_does_not_wait_for_ever_unless_there_is_nothing() {
    let mut picture = fresh();
    assert_eq!(told(&picture.speak_of_what_is_whole()), [""; 0], "the namespaces are not known");
    namespaces(&mut picture, &[("shop", Some(true)), ("bank", Some(true))]);
    assert_eq!(told(&picture.speak_of_what_is_whole()), [""; 0], "none can be read");
    for kind in Picture::KINDS {
        assert_eq!(list(&mut picture, kind, "shop", &[]), [""; 0]);
    }
    let first = [
        "=Namespace shop",
        "=Service ",
        "=EndpointSlice ",
        "=Pod ",
        "=TrafficPolicy ",
        "=TrafficLane ",
        "=HTTPRoute ",
        "=GRPCRoute ",
        "=ReferenceGrant ",
    ];
    assert_eq!(told(&picture.speak_of_what_is_whole()), first);
    assert_eq!(told(&picture.speak_of_what_is_whole()), [""; 0], "once");
    for kind in [Kind::Service, Kind::EndpointSlice] {
        assert_eq!(list(&mut picture, kind, "bank", &[]), [""; 0]);
    }
    assert_eq!(list(&mut picture, Kind::Pod, "bank", &["a"]), ["+Pod bank/a", "+Namespace bank"]);
}

#[test]
fn a_forbidden_namespace_stays_out_until_it_is_whole() {
    let mut picture = fresh();
    namespaces(&mut picture, &[("shop", Some(true)), ("bank", Some(true))]);
    for kind in Picture::KINDS {
        assert_eq!(list(&mut picture, kind, "shop", &[]), [""; 0]);
    }
    let first = picture.unreadable(&scope(Kind::Pod, "bank"));
    assert_eq!(
        told(&first),
        [
            "=Namespace shop",
            "=Service ",
            "=EndpointSlice ",
            "=Pod ",
            "=TrafficPolicy ",
            "=TrafficLane ",
            "=HTTPRoute ",
            "=GRPCRoute ",
            "=ReferenceGrant "
        ]
    );
    for kind in [Kind::Service, Kind::EndpointSlice] {
        assert_eq!(list(&mut picture, kind, "bank", &[]), [""; 0]);
    }
    assert_eq!(list(&mut picture, Kind::Pod, "bank", &["a"]), ["+Pod bank/a", "+Namespace bank"]);
    // Forbidden from now on: what is known stays.
    assert_eq!(told(&picture.unreadable(&scope(Kind::Pod, "bank"))), [""; 0]);
    assert_eq!(unread(&picture), []);
}

#[test]
fn what_has_never_been_read_is_named() {
    let mut picture = fresh();
    assert_eq!(unread(&picture), []);
    namespaces(&mut picture, &[("shop", Some(true)), ("bank", Some(true)), ("pub", None)]);
    assert_eq!(unread(&picture), [("bank", false), ("shop", false)]);
    for kind in Picture::KINDS {
        list(&mut picture, kind, "shop", &[]);
    }
    assert_eq!(unread(&picture), [("bank", false), ("shop", false)], "the first picture is not whole");
    picture.unreadable(&scope(Kind::Pod, "bank"));
    assert_eq!(unread(&picture), [("bank", true)]);
    namespaces(&mut picture, &[("shop", Some(true)), ("bank", None)]);
    assert_eq!(unread(&picture), []);
}

#[test]
fn a_cluster_without_own_kinds_is_governed_without_policies() {
    let mut picture = Picture::default();
    namespaces(&mut picture, &[("shop", Some(true))]);
    for kind in Picture::KINDS {
        assert_eq!(list(&mut picture, kind, "shop", &[]), [""; 0]);
    }
    assert_eq!(told(&picture.speak_of_what_is_whole()), [""; 0], "policies may yet come");
    for kind in [Kind::TrafficPolicy, Kind::HttpRoute, Kind::GrpcRoute, Kind::ReferenceGrant] {
        assert_eq!(told(&picture.unreadable(&scope(kind, ""))), [""; 0]);
    }
    let first = told(&picture.unreadable(&scope(Kind::TrafficLane, "")));
    assert_eq!(first[0], "=Namespace shop");
    // They are installed. (A pod stands for what is of the kind.)
    assert_eq!(list(&mut picture, Kind::TrafficLane, "", &["gray"]), ["+Pod gray"]);
    // They cannot be read any more: what is known stays.
    assert_eq!(told(&picture.unreadable(&scope(Kind::TrafficLane, ""))), [""; 0]);
    assert_eq!(list(&mut picture, Kind::TrafficLane, "", &[]), ["-TrafficLane gray"]);
}

#[test]
fn own_kinds_are_told_of_wherever_they_are() {
    let mut picture = Picture::default();
    let own = scope(Kind::TrafficPolicy, "");
    let all = vec![pod("shop", "p"), pod("bank", "p"), pod("bank", "gone")];
    assert_eq!(told(&picture.hear(&own, News::Listed(all))), [""; 0]);
    assert_eq!(told(&picture.hear(&own, News::Deleted(pod("bank", "gone").object.key()))), [""; 0]);
    for kind in Picture::OPTIONAL.into_iter().filter(|kind| *kind != Kind::TrafficPolicy) {
        assert_eq!(list(&mut picture, kind, "", &[]), [""; 0]);
    }
    let outcome = namespaces(&mut picture, &[("shop", None), ("bank", None)]);
    assert_eq!(told(&outcome)[4], "=TrafficPolicy bank/p,shop/p");
    // They outlive the watches on their namespace, and come before it is whole.
    assert_eq!(*namespaces(&mut picture, &[("shop", Some(true)), ("bank", None)]).begin, ["shop".into()]);
    assert_eq!(told(&picture.hear(&own, News::Applied(pod("shop", "q")))), ["+Pod shop/q"]);
    let outcome = namespaces(&mut picture, &[("shop", None), ("bank", None)]);
    assert_eq!(told(&outcome), ["+Namespace shop"]);
    let gone = told(&picture.hear(&own, News::Listed(vec![pod("shop", "q")])));
    assert_eq!(gone, ["-TrafficPolicy bank/p", "-TrafficPolicy shop/p", "+Pod shop/q"]);
}
