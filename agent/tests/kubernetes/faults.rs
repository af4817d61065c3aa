//! What may happen to an API server, and that none of it empties the model.

use std::time::Duration;

use sluice::cluster::{kubernetes::Patience, object::Kind, source::WatchEnd};
use sluice_tests::api_server::{Break, Fault};

use crate::rig::{PATIENCE, Reader, Server, eventually, fill, key, namespace, service};

#[tokio::test]
async fn a_server_that_is_away_at_the_start_is_waited_for() {
    let mut server = Server::away();
    fill(&server, "shop", Some("enabled"), 1);
    let mut reader = Reader::new(&server).await;
    let problems = reader.problems(Some("until then pods are enrolled by the state file")).await;
    assert_eq!(problems.len(), 1, "{problems:?}");
    // However long it takes: it is the same problem, which is logged once.
    tokio::time::sleep(PATIENCE.hold * 2).await;
    assert_eq!(reader.problems(Some("until then pods are enrolled by the state file")).await, problems);
    reader.drain();
    assert!(reader.told.is_empty() && reader.objects.is_empty());
    server.come().unwrap();
    reader.until("the first whole picture", Reader::is_synced).await;
    assert!(reader.has(Kind::Service, "shop", "orders"));
    assert_eq!(reader.problems(None).await, [""; 0]);
}

#[tokio::test]
async fn a_server_that_goes_away_leaves_everything_in_force() {
    let mut server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    let mut reader = Reader::synced(&server).await;
    server.go().unwrap();
    let problems = reader.problems(Some("the last snapshot stays active")).await;
    assert_eq!(problems.len(), 1, "one problem, however many watches: {problems:?}");
    let heard = reader.heard();
    // It comes back another: one Service more, one less, and nothing to resume from.
    server.apply("services", service("shop", "users", "10.96.1.2"));
    server.apply("services", service("shop", "carts", "10.96.1.3"));
    server.delete("services", "shop", "orders");
    server.compact();
    assert_eq!(reader.heard(), heard, "its age grows");
    server.come().unwrap();
    reader.until("what was missed", |reader| reader.has(Kind::Service, "shop", "users")).await;
    assert!(reader.has(Kind::Service, "shop", "carts"));
    assert_eq!(reader.problems(None).await, [""; 0]);
    reader.hears_after(heard).await;
    reader.drain();
    assert_eq!(reader.lost, [key(Kind::Service, "shop", "orders")]);
}

/// A server that has nothing new to tell, and whose next bookmark is far away.
#[tokio::test]
async fn a_server_that_is_back_is_believed_before_it_tells_anything() {
    let mut server = Server::start();
    server.set_bookmarks(None);
    fill(&server, "shop", Some("enabled"), 1);
    let mut reader = Reader::patient(&server, Patience { quiet: Duration::from_secs(600), ..PATIENCE }).await;
    reader.until("the first whole picture", Reader::is_synced).await;
    server.go().unwrap();
    reader.problems(Some("the last snapshot stays active")).await;
    let heard = reader.heard();
    server.come().unwrap();
    assert_eq!(reader.problems(None).await, [""; 0]);
    reader.hears_after(heard).await;
    assert_eq!(reader.ends("services", WatchEnd::Silent), 0);
}

#[tokio::test]
async fn watches_that_tell_nothing_are_told_of() {
    for (fault, says) in [
        (
            Fault::Empty,
            "its watches end as soon as they have begun, and tell nothing), asked for services in namespace shop",
        ),
        (Fault::Html, "a watch tells what cannot be read"),
    ] {
        let server = Server::start();
        fill(&server, "shop", Some("enabled"), 1);
        let mut reader = Reader::synced(&server).await;
        server.watched().await;
        server.fault("watch", "services", Some(fault));
        server.interrupt(Break::End);
        let problems = reader.problems(Some(says)).await;
        assert_eq!(problems.len(), 1, "{problems:?}");
        server.fault("watch", "services", None);
        reader.hears_of(&server, "users", 2).await;
        assert_eq!(reader.problems(None).await, [""; 0]);
    }
}

#[tokio::test]
async fn a_watch_that_ends_is_resumed_without_a_list() {
    for streaming in [true, false] {
        let server = Server::start();
        server.set_streaming(streaming);
        fill(&server, "shop", Some("enabled"), 1);
        let mut reader = Reader::synced(&server).await;
        let breaks = [Break::End, Break::Cut, Break::CutInEvent];
        for (number, (how, name)) in (2..).zip(breaks.into_iter().zip(["users", "carts", "stock"])) {
            server.watched().await;
            let lists = server.count("list", "services", "shop");
            let watches = server.count("watch", "services", "shop");
            server.interrupt(how);
            reader.hears_of(&server, name, number).await;
            assert_eq!(server.count("list", "services", "shop"), lists, "{how:?}");
            assert_eq!(server.count("watch", "services", "shop"), watches + 1, "{how:?}");
        }
        reader.drain();
        assert_eq!(reader.lost, []);
        // None of that was anything to worry about.
        assert_eq!(reader.problems(None).await, [""; 0]);
    }
}

#[tokio::test]
async fn a_watch_that_stood_is_opened_again_at_once() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    let reader = Reader::synced(&server).await;
    server.watched().await;
    // Long enough for a watch to count as one that stood.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    let before = server.requests();
    server.interrupt(Break::Cut);
    // Kinds that are not installed are asked for now and then besides.
    eventually("new watches", || server.requests() >= before + 4).await;
    assert_eq!(server.count("list", "services", "shop"), 0, "a streaming list came first");
    // Which of the two a closed connection is, is the TLS library's to say.
    let ends = || reader.ends("services", WatchEnd::Broken) + reader.ends("services", WatchEnd::Ended);
    eventually("the metric", || ends() == 1).await;
}

#[tokio::test]
async fn events_in_small_pieces_are_put_together() {
    let server = Server::start();
    server.set_chunks(7, Duration::ZERO);
    fill(&server, "shop", Some("enabled"), 1);
    let mut reader = Reader::synced(&server).await;
    reader.hears_of(&server, "users", 2).await;
}

#[tokio::test]
async fn what_is_gone_is_listed_anew() {
    for (streaming, verb) in [(true, "watch"), (false, "list")] {
        let server = Server::start();
        server.set_streaming(streaming);
        fill(&server, "shop", Some("enabled"), 1);
        let mut reader = Reader::synced(&server).await;
        server.watched().await;
        server.compact();
        server.interrupt(Break::Cut);
        server.delete("services", "shop", "orders");
        server.apply("services", service("shop", "users", "10.96.1.2"));
        reader.until("what was missed", |reader| reader.has(Kind::Service, "shop", "users")).await;
        assert_eq!(server.count(verb, "services", "shop"), 2, "{verb}");
        reader.drain();
        assert_eq!(reader.lost, [key(Kind::Service, "shop", "orders")]);
        // 410 is nothing that is wrong.
        assert_eq!(reader.problems(None).await, [""; 0]);
    }
}

#[tokio::test]
async fn gone_may_also_be_an_event() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    let mut reader = Reader::synced(&server).await;
    server.watched().await;
    server.fault("watch", "services", Some(Fault::ErrorEvent(410)));
    server.interrupt(Break::End);
    eventually("the event", || reader.ends("services", WatchEnd::Gone) >= 2).await;
    server.fault("watch", "services", None);
    reader.hears_of(&server, "users", 2).await;
    assert_eq!(reader.problems(None).await, [""; 0]);
}

#[tokio::test]
async fn a_list_that_grows_too_old_begins_anew() {
    let server = Server::start();
    server.set_streaming(false);
    server.set_page(2);
    fill(&server, "shop", Some("enabled"), 1);
    for number in 2..=9 {
        server.apply("services", service("shop", &format!("s{number}"), &format!("10.96.1.{number}")));
    }
    // Every page but the first comes when its version is gone.
    server.fault("list", "services", Some(Fault::Slow(Duration::from_millis(300))));
    let reading = Reader::synced(&server);
    let compacting = async {
        eventually("the first page", || server.count("list", "services", "shop") > 0).await;
        server.compact();
        server.fault("list", "services", None);
    };
    let (reader, ()) = tokio::join!(reading, compacting);
    assert_eq!(reader.objects.keys().filter(|key| key.kind == Kind::Service).count(), 9);
}

#[tokio::test]
async fn a_server_whose_history_went_back_is_listed_anew() {
    for streaming in [true, false] {
        let mut server = Server::start();
        server.set_streaming(streaming);
        fill(&server, "shop", Some("enabled"), 1);
        for number in 2..=9 {
            server.apply("services", service("shop", &format!("s{number}"), &format!("10.96.1.{number}")));
        }
        let mut reader = Reader::synced(&server).await;
        server.watched().await;
        server.go().unwrap();
        server.restore();
        server.delete("services", "shop", "s9");
        server.come().unwrap();
        // A real server keeps silent towards watches from its future: not even bookmarks come.
        reader.until("the deletion", |reader| !reader.has(Kind::Service, "shop", "s9")).await;
        assert_eq!(reader.lost, [key(Kind::Service, "shop", "s9")]);
        reader.lost.clear();
        reader.hears_of(&server, "users", 20).await;
    }
}

#[tokio::test]
async fn a_server_in_trouble_is_asked_again() {
    for streaming in [true, false] {
        let server = Server::start();
        server.set_streaming(streaming);
        fill(&server, "shop", Some("enabled"), 1);
        let faults = [
            ("services", Fault::Status(500)),
            ("pods", Fault::Overloaded(429, 1)),
            ("endpointslices", Fault::Status(503)),
        ];
        for (resource, fault) in faults {
            server.fault("list", resource, Some(fault));
            server.fault("watch", resource, Some(fault));
        }
        let mut reader = Reader::new(&server).await;
        let problems = reader.problems(Some("does not respond as it should")).await;
        assert_eq!(problems.len(), 1, "{problems:?}");
        reader.drain();
        assert!(reader.told.is_empty(), "a namespace in parts is not told of");
        for (resource, _) in faults {
            server.fault("list", resource, None);
            server.fault("watch", resource, None);
        }
        reader.until("the first whole picture", Reader::is_synced).await;
        assert!(reader.has(Kind::Service, "shop", "orders"));
        eventually("the metric", || reader.ends("services", WatchEnd::Status(500)) > 0).await;
    }
}

#[tokio::test]
async fn a_server_that_asks_for_patience_gets_it() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    let mut reader = Reader::synced(&server).await;
    server.watched().await;
    server.fault("watch", "services", Some(Fault::Overloaded(429, 3)));
    server.interrupt(Break::Cut);
    eventually("the refusal", || reader.ends("services", WatchEnd::Status(429)) == 1).await;
    let asked = server.requests();
    server.fault("watch", "services", None);
    // Two of the three seconds: nobody asks, whatever the watch. A count, not a time: what is late is late on both sides.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(server.requests(), asked);
    reader.hears_of(&server, "users", 2).await;
}

#[tokio::test]
async fn one_namespace_in_trouble_does_not_hold_up_the_others() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    let mut reader = Reader::synced(&server).await;
    // A namespace that opts in later, and cannot be read: the others go on.
    server.fault("list", "pods", Some(Fault::Status(500)));
    server.fault("watch", "pods", Some(Fault::Status(500)));
    fill(&server, "bank", Some("enabled"), 2);
    reader.hears_of(&server, "users", 2).await;
    assert!(!reader.has(Kind::Service, "bank", "orders"));
    server.fault("list", "pods", None);
    server.fault("watch", "pods", None);
    reader.until("bank", |reader| reader.has(Kind::Service, "bank", "orders")).await;
    assert_eq!(reader.lost, []);
    server.apply("namespaces", namespace("bank", None));
    reader.until("bank's end", |reader| !reader.has(Kind::Service, "bank", "orders")).await;
}

#[tokio::test]
async fn what_is_forbidden_is_named_and_the_rest_goes_on() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    for verb in ["list", "watch"] {
        server.fault(verb, "endpointslices", Some(Fault::Status(403)));
    }
    let mut reader = Reader::synced(&server).await;
    // Without its endpoints the Service would be governed into nothing.
    assert_eq!(reader.objects.len(), 0, "{:?}", reader.objects.keys());
    let problems = reader.problems(Some("Grant the agent's service account")).await;
    let says = "the API server does not allow the agent to list endpointslices.discovery.k8s.io in namespace shop (403: ";
    assert!(matches!(&problems[..], [problem] if problem.starts_with(says)), "{problems:?}");
    assert_eq!(reader.unread(), [("shop".to_owned(), true)]);
    // May list, and not watch: the namespace is there as it was at the list, and the problem names the other verb.
    server.fault("list", "endpointslices", None);
    reader.until("the namespace", |reader| reader.has(Kind::Namespace, "", "shop")).await;
    assert_eq!(reader.objects.len(), 4);
    let says = "the API server does not allow the agent to watch endpointslices.discovery.k8s.io in namespace shop (403: ";
    reader.problems(Some(says)).await;
    server.fault("watch", "endpointslices", None);
    assert_eq!(reader.problems(None).await, [""; 0]);
    assert_eq!(reader.unread(), []);
}
