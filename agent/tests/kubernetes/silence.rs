//! A server that takes requests and says nothing, or that begins to say something.

use std::time::Duration;

use sluice::cluster::{kubernetes::Patience, object::Kind, source::WatchEnd};
use sluice_tests::api_server::{Break, Fault};

use crate::rig::{PATIENCE, Reader, Server, eventually, fill};

#[tokio::test]
async fn a_watch_that_falls_silent_is_opened_again() {
    for how in [Break::Stall, Break::StallInEvent] {
        let server = Server::start();
        fill(&server, "shop", Some("enabled"), 1);
        let mut reader = Reader::synced(&server).await;
        server.watched().await;
        server.interrupt(how);
        reader.hears_of(&server, "users", 2).await;
        eventually("the metric", || reader.ends("services", WatchEnd::Silent) == 1).await;
        assert_eq!(reader.problems(None).await, [""; 0]);
    }
}

#[tokio::test]
async fn bookmarks_are_enough_to_be_believed() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    let reader = Reader::synced(&server).await;
    server.watched().await;
    let heard = reader.heard();
    // Nothing changes, for longer than a watch may be silent.
    tokio::time::sleep(PATIENCE.quiet * 2).await;
    assert!(reader.heard() > heard, "the state is as young as the last bookmark");
    assert_eq!(server.count("watch", "services", "shop"), 1, "no watch was opened again");
}

#[tokio::test]
async fn a_server_that_never_answers_is_away() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    server.fault("watch", "namespaces", Some(Fault::Hang));
    let mut reader = Reader::new(&server).await;
    let problems = reader.problems(Some("no response within")).await;
    assert_eq!(problems.len(), 1, "{problems:?}");
    server.fault("watch", "namespaces", None);
    reader.until("the first whole picture", Reader::is_synced).await;
    assert!(reader.has(Kind::Service, "shop", "orders"));
}

#[tokio::test]
async fn a_streaming_list_that_does_not_end_becomes_one_in_pages() {
    for fault in [Fault::Stall, Fault::Empty, Fault::ErrorEvent(500)] {
        let server = Server::start();
        fill(&server, "shop", Some("enabled"), 1);
        server.fault("watch", "services", Some(fault));
        let reader = Reader::synced(&server).await;
        assert!(reader.has(Kind::Service, "shop", "orders"), "{fault:?}");
        assert_eq!(server.count("list", "services", "shop"), 1, "{fault:?}");
        assert_eq!(server.count("list", "pods", "shop"), 0, "the others stream");
    }
}

/// A watch may be silent for as long as there are no events. A list has all of them at hand.
#[tokio::test]
async fn a_streaming_list_is_not_waited_for_as_a_watch_is() {
    let server = Server::start();
    fill(&server, "shop", Some("enabled"), 1);
    server.fault("watch", "services", Some(Fault::Stall));
    let patience = Patience { quiet: Duration::from_secs(600), ..PATIENCE };
    let mut reader = Reader::patient(&server, patience).await;
    reader.until("the first whole picture", Reader::is_synced).await;
    assert!(reader.has(Kind::Service, "shop", "orders"));
}

#[tokio::test]
async fn a_server_without_streaming_lists_is_asked_for_one_once() {
    let server = Server::start();
    server.set_streaming(false);
    fill(&server, "shop", Some("enabled"), 1);
    let mut reader = Reader::synced(&server).await;
    server.watched().await;
    let asked = server.requests();
    fill(&server, "bank", Some("enabled"), 2);
    reader.until("bank", |reader| reader.has(Kind::Service, "bank", "orders")).await;
    eventually("its watches", || server.open().len() == 14).await;
    assert_eq!(server.requests(), asked + 6, "a list and a watch each");
}
