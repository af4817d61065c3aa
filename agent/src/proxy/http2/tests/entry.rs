//! Entry rules of lanes: a request that nothing else tags gets its tag where it enters.

use std::collections::BTreeMap;

use super::*;
use crate::govern::{
    entry::Entry,
    policy::{Detour, EntryRule, Lane, PathMatch, RequestMatch, ValueMatch, ValueTest},
};

/// A service with a lane that takes such requests.
async fn bed_with_entry(matches: RequestMatch) -> Bed {
    bed_with_lane(matches, true).await
}

async fn bed_with_lane(matches: RequestMatch, trusts_incoming_tag: bool) -> Bed {
    let endpoints = [(named("base").await, None), (named("gray").await, Some("gray"))];
    let bed = bed(&endpoints);
    let lane = Arc::new(Lane {
        endpoints: Vec::new(),
        name: "shop/gray".into(),
        tag: "gray".parse().expect("a tag"),
        selector: None,
        fallback: Detour::default(),
        service_fallbacks: BTreeMap::default(),
        priority: 0,
        trusts_incoming_tag,
        targets: Vec::new(),
        entry: vec![EntryRule { matches, percentage: None }],
    });
    bed.change(2, &endpoints, |service| Service { entry: Arc::new(Entry::new([&lane])), ..service });
    bed
}

#[tokio::test]
async fn a_request_gets_its_tag_in_both_places() {
    let bed = bed_with_entry(RequestMatch::default()).await;
    let answer = ask(&mut bed.caller().await, get()).await;
    let headers = answer.headers();
    assert_eq!((header(headers, "x-name"), header(headers, "seen-x-mse-tag")), ("gray", "gray"));
    assert_eq!(header(headers, "seen-baggage"), "x-mse-tag=gray");
}

/// Who is in the lane is the rules' word alone, and pods of the lane stay in it.
#[tokio::test]
async fn a_tag_that_comes_along_does_not_count_where_the_lane_says_so() {
    let beta = ValueTest::Is(ValueMatch::Exact("1".to_owned()));
    let headers = vec![(http::HeaderName::from_static("x-beta"), beta)];
    let bed = bed_with_lane(RequestMatch { headers, ..RequestMatch::default() }, false).await;
    let mut caller = bed.caller().await;
    let with = |name: &'static str, value: &'static str| {
        Request::get("http://orders.shop/").header(name, value).header("baggage", "a=b,x-mse-tag=gray")
    };
    let answer = ask(&mut caller, with("x-mse-tag", "gray").body(()).expect("a request")).await;
    let headers = answer.headers();
    assert_eq!(header(headers, "x-name"), "base");
    assert!(!headers.contains_key("seen-x-mse-tag"), "{headers:?}");
    assert_eq!(header(headers, "seen-baggage"), "a=b");
    let answer = ask(&mut caller, with("x-beta", "1").body(()).expect("a request")).await;
    assert_eq!(header(answer.headers(), "x-name"), "gray", "it enters by a rule");
    assert_eq!(header(answer.headers(), "seen-x-mse-tag"), "gray");
    assert_eq!(header(answer.headers(), "seen-baggage"), "a=b,x-mse-tag=gray");
    let answer = ask(&mut caller, with("x-mse-tag", "red").body(()).expect("a request")).await;
    assert_eq!(header(answer.headers(), "seen-x-mse-tag"), "red", "another lane's is not its affair");
    assert_eq!(header(answer.headers(), "seen-baggage"), "a=b,x-mse-tag=red");
    bed.metric(&["sluice_tags_total", "untrusted"], |value| value == 3).await;
}

#[tokio::test]
async fn a_rule_on_the_host_takes_requests_of_http2() {
    let is = ValueTest::Is(ValueMatch::Exact("beta.shop".to_owned()));
    let matches = RequestMatch { headers: vec![(http::header::HOST, is)], ..RequestMatch::default() };
    let bed = bed_with_entry(matches).await;
    let mut caller = bed.caller().await;
    for (host, wanted) in [("beta.shop", "gray"), ("orders.shop", "base")] {
        let request = Request::get(format!("http://{host}/")).body(()).expect("a request");
        assert_eq!(header(ask(&mut caller, request).await.headers(), "x-name"), wanted, "{host}");
    }
}

/// All that a server takes for `/a` is `/a` to a rule, and it gets it as it was.
#[tokio::test]
async fn a_rule_on_a_path_knows_its_other_forms() {
    use super::raw::{Wire, Wishes, frames};

    for path in [PathMatch::Exact("/a".to_owned()), PathMatch::Prefix("/a".to_owned())] {
        let bed = bed_with_entry(RequestMatch { path: Some(path.clone()), ..RequestMatch::default() }).await;
        let wire = Wire::connect(bed.address, Wishes::default()).await;
        let forms =
            ["/a", "//a", "///a", "/%61", "/./a", "/x/../a", "/a;v=1", "/a?b=c", "/.//%2e/a", "/x/%2e%2e/a"];
        for (form, wanted) in forms
            .map(|form| (form, "gray"))
            .into_iter()
            .chain(["/", "/b", "/A", "/ab", "/a/../b", "/%2561", "/x/a"].map(|form| (form, "base")))
        {
            let answer = wire.handle.open(true, &frames::get(form)).await.answer().await;
            assert_eq!((answer.status, answer.header("x-name")), (200, wanted), "{form} by {path:?}");
            assert_eq!(answer.header("seen-path"), form, "forwarded as it came");
        }
    }
}
