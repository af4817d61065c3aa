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
    let namespace = Namespace {
        name: name.into(),
        capture,
        access_log: None,
        reclaim: None,
        endpoints: None,
        propagation: None,
    };
    Sighting { object: Object::Namespace(namespace), problems: Vec::new() }
}

fn pod(namespace: &str, name: &str) -> Sighting {
    let pod = Pod {
        name: Name { namespace: namespace.into(), name: name.into() },
        uid: None,
        ips: smallvec::SmallVec::new(),
        tag: None,
        labels: Labels::default(),
        workload: None,
        capture: None,
        propagation: None,
        node: None,
        zone: None,
        host_network: false,
        ready_since: None,
        warm_gate: None,
        started: None,
        first_request: None,
        service_account: "default".into(),
        terminating: false,
        finished: false,
        for_node: None,
    };
    Sighting { object: Object::Pod(Arc::new(pod)), problems: Vec::new() }
}

/// The watches of a namespace's own.
fn scopes(namespace: &str) -> [Scope; 3] {
    Picture::KINDS.map(|kind| scope(kind, namespace))
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
    assert_eq!(*namespaces(&mut picture, &[("shop", Some(true))]).begin, scopes("shop"));
    assert_eq!(list(&mut picture, Kind::Service, "shop", &[]), [""; 0]);
    assert_eq!(list(&mut picture, Kind::Pod, "shop", &["a", "b"]), [""; 0]);
    let first = [
        "=Namespace shop",
        "=Service ",
        "=Pod shop/a,shop/b",
        "=EndpointSlice ",
        "=TrafficPolicy ",
        "=TrafficLane ",
        "=AccessPolicy ",
        "=HTTPRoute ",
        "=GRPCRoute ",
        "=ReferenceGrant ",
        "=XMesh ",
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
            "=Pod ",
            "=EndpointSlice ",
            "=TrafficPolicy ",
            "=TrafficLane ",
            "=AccessPolicy ",
            "=HTTPRoute ",
            "=GRPCRoute ",
            "=ReferenceGrant ",
            "=XMesh "
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
    assert_eq!(*outcome.end, scopes("shop"));
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
            "=Pod ",
            "=EndpointSlice ",
            "=TrafficPolicy ",
            "=TrafficLane ",
            "=AccessPolicy ",
            "=HTTPRoute ",
            "=GRPCRoute ",
            "=ReferenceGrant ",
            "=XMesh "
        ]
    );
    assert_eq!(*outcome.end, scopes("shop"));
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
        "=Pod ",
        "=EndpointSlice ",
        "=TrafficPolicy ",
        "=TrafficLane ",
        "=AccessPolicy ",
        "=HTTPRoute ",
        "=GRPCRoute ",
        "=ReferenceGrant ",
        "=XMesh ",
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
            "=Pod ",
            "=EndpointSlice ",
            "=TrafficPolicy ",
            "=TrafficLane ",
            "=AccessPolicy ",
            "=HTTPRoute ",
            "=GRPCRoute ",
            "=ReferenceGrant ",
            "=XMesh "
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
    for kind in Picture::OPTIONAL.into_iter().filter(|kind| *kind != Kind::TrafficLane) {
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
    assert_eq!(*namespaces(&mut picture, &[("shop", Some(true)), ("bank", None)]).begin, scopes("shop"));
    assert_eq!(told(&picture.hear(&own, News::Applied(pod("shop", "q")))), ["+Pod shop/q"]);
    let outcome = namespaces(&mut picture, &[("shop", None), ("bank", None)]);
    assert_eq!(told(&outcome), ["+Namespace shop"]);
    let gone = told(&picture.hear(&own, News::Listed(vec![pod("shop", "q")])));
    assert_eq!(gone, ["-TrafficPolicy bank/p", "-TrafficPolicy shop/p", "+Pod shop/q"]);
}

/// So many namespaces `a`, `b` ..., all of them opted in.
fn many(count: u8) -> Vec<String> {
    (0..count).map(|number| char::from(b'a' + number).to_string()).collect()
}

fn enrolled(names: &[String]) -> Vec<(&str, Option<bool>)> {
    names.iter().map(|name| (name.as_str(), Some(true))).collect()
}

/// Five namespaces, each with a pod, of which the cluster's watches tell.
fn wide() -> Picture {
    let mut picture = fresh();
    let names = many(5);
    assert_eq!(*namespaces(&mut picture, &enrolled(&names)).begin, scopes(""));
    assert_eq!(picture.covered(Kind::Pod).len(), 5);
    let pods = names.iter().map(|namespace| pod(namespace, "p")).collect();
    let listed = picture.hear(&scope(Kind::Pod, ""), News::Listed(pods));
    assert_eq!(told(&listed), [""; 0]);
    list(&mut picture, Kind::Service, "", &[]);
    let first = list(&mut picture, Kind::EndpointSlice, "", &[]);
    assert!(first.contains(&"=Pod a/p,b/p,c/p,d/p,e/p".to_owned()), "{first:?}");
    picture
}

#[test]
fn what_is_watched_in_the_whole_cluster_depends_on_how_many_namespaces_want_it() {
    let kinds = |enrolled_count, all| {
        let (mut picture, names) = (fresh(), many(all));
        let all: Vec<_> = names
            .iter()
            .enumerate()
            .map(|(number, name)| (name.as_str(), (number < enrolled_count).then_some(true)))
            .collect();
        let begin = namespaces(&mut picture, &all).begin;
        begin
            .into_iter()
            .filter(|scope| scope.namespace.is_empty())
            .map(|scope| scope.kind)
            .collect::<Vec<_>>()
    };
    assert_eq!(kinds(4, 4), []);
    assert_eq!(kinds(5, 10), Picture::KINDS);
    assert_eq!(kinds(5, 11), [Kind::Service, Kind::EndpointSlice], "most pods would be others'");
}

#[test]
fn the_clusters_watch_tells_of_each_namespace() {
    let mut picture = wide();
    let pods = || scope(Kind::Pod, "");
    assert_eq!(told(&picture.hear(&pods(), News::Applied(pod("a", "q")))), ["+Pod a/q"]);
    assert_eq!(told(&picture.hear(&pods(), News::Applied(pod("other", "q")))), [""; 0]);
    let key = Key { kind: Kind::Pod, name: Name { namespace: "b".into(), name: "p".into() } };
    assert_eq!(told(&picture.hear(&pods(), News::Deleted(key))), ["-Pod b/p"]);
    // A resync that a namespace is missing in says that nothing is in it.
    let left = ["a", "b", "c", "d"].map(|namespace| pod(namespace, "p")).into();
    let outcome = picture.hear(&pods(), News::Listed(left));
    assert_eq!(told(&outcome), ["-Pod a/q", "+Pod a/p", "+Pod b/p", "+Pod c/p", "+Pod d/p", "-Pod e/p"]);
}

#[test]
fn a_namespace_that_is_opted_in_later_has_watches_of_its_own() {
    let mut picture = wide();
    let outcome = picture.hear(&scope(Kind::Namespace, ""), News::Applied(namespace("f", Some(true))));
    assert_eq!(*outcome.begin, scopes("f"));
    assert!(!picture.covered(Kind::Pod).contains("f"));
    // What the cluster's watch says of it is not all that there is.
    assert_eq!(told(&picture.hear(&scope(Kind::Pod, ""), News::Applied(pod("f", "x")))), [""; 0]);
    // One that opts out and in again has missed something.
    let out = picture.hear(&scope(Kind::Namespace, ""), News::Applied(namespace("a", None)));
    assert_eq!(told(&out), ["-Pod a/p", "+Namespace a"]);
    assert!(out.end.is_empty(), "{:?}", out.end);
    let again = picture.hear(&scope(Kind::Namespace, ""), News::Applied(namespace("a", Some(true))));
    assert_eq!(*again.begin, scopes("a"));
    assert_eq!(told(&picture.hear(&scope(Kind::Pod, ""), News::Applied(pod("a", "x")))), [""; 0]);
}

#[test]
fn where_the_cluster_may_not_be_read_each_namespace_is() {
    let mut picture = fresh();
    let names = many(5);
    namespaces(&mut picture, &enrolled(&names));
    let outcome = picture.unreadable(&scope(Kind::Pod, ""));
    assert_eq!(*outcome.end, [scope(Kind::Pod, "")]);
    assert_eq!(*outcome.begin, names.iter().map(|name| scope(Kind::Pod, name)).collect::<Vec<_>>());
    assert_eq!(unread(&picture).iter().filter(|(_, lasts)| *lasts).count(), 0, "that may pass");
    for kind in [Kind::Service, Kind::EndpointSlice] {
        list(&mut picture, kind, "", &[]);
    }
    for name in &names[..4] {
        assert_eq!(list(&mut picture, Kind::Pod, name, &["p"]), [""; 0]);
    }
    let first = list(&mut picture, Kind::Pod, "e", &["p"]);
    assert!(first.contains(&"=Pod a/p,b/p,c/p,d/p,e/p".to_owned()), "{first:?}");
}
