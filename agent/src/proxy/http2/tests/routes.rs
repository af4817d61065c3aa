//! Requests to a service that has routes.

use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::{
    api::gateway::grpc_route,
    cluster::model::{Group, Routed},
    govern::{
        entry::Entry,
        policy::{Detour, EntryRule, Lane, RequestMatch},
        routes::{Age, Route, Routes, backends::ServicePort},
    },
};

/// What these clients see where the Service `orders` has this GRPCRoute.
fn routed(spec: &serde_json::Value, base: SocketAddr, canary: SocketAddr) -> Snapshot {
    let endpoints = vec![Arc::new(Endpoint::new(canary))];
    routed_to(spec, base, Service::new("shop", "canary", 80).with_endpoints(endpoints))
}

fn routed_to(spec: &serde_json::Value, base: SocketAddr, canary: Service) -> Snapshot {
    let asked = grpc_route(spec, "shop", "shop/r").expect("it makes sense").expect("it is about a Service");
    let routes =
        Routes::new(vec![Route { age: Age { created: None, name: "shop/r".into() }, rules: asked.rules }]);
    let port = |name: &str| ServicePort { namespace: "shop".into(), name: name.into(), port: 80 };
    let mut snapshot = cluster(2, &[(base, None)]);
    let orders = snapshot.destinations.values().next().expect("there is one").service.clone();
    let backends = BTreeMap::from([(port("orders"), orders), (port("canary"), Arc::new(canary))]);
    let group = Group { routes: Arc::new(routes), backends, policies: ahash::AHashMap::new() };
    let routed = Arc::new(Routed { producer: Some(group), consumers: BTreeMap::new() });
    snapshot.routes = Arc::new([((port("orders"), false), routed)].into_iter().collect());
    snapshot
}

#[tokio::test]
async fn each_stream_takes_its_route() {
    let (base, canary) = (named("base").await, named("canary").await);
    let bed = bed(&[(base, None)]);
    let spec = json!({
        "parentRefs": [{ "group": "", "kind": "Service", "name": "orders" }],
        "rules": [
            { "matches": [{ "method": { "service": "shop.Orders", "method": "Get" } }],
              "filters": [
                { "type": "RequestHeaderModifier", "requestHeaderModifier": { "set": [{ "name": "x-mse-tag", "value": "gray" }] } },
                { "type": "ResponseHeaderModifier", "responseHeaderModifier": { "set": [{ "name": "x-new", "value": "1" }] } },
              ],
              "backendRefs": [{ "name": "canary", "port": 80 }] },
            { "matches": [{ "method": { "service": "shop.Orders" } }], "backendRefs": [{ "name": "orders", "port": 80 }] },
            { "matches": [{ "method": { "service": "shop.Gone" } }], "backendRefs": [{ "name": "gone", "port": 80 }] },
        ],
    });
    bed.current.store(Arc::new(routed(&spec, base, canary)));

    let mut caller = bed.caller().await;
    let call = |path: &str| {
        let request = Request::post(format!("http://orders.shop{path}"));
        request.header("content-type", "application/grpc").body(()).expect("a request")
    };
    let answer = ask(&mut caller, call("/shop.Orders/Get")).await;
    let headers = answer.headers();
    assert_eq!((header(headers, "x-name"), header(headers, "x-new")), ("canary", "1"));
    assert_eq!(header(headers, "seen-x-mse-tag"), "gray");
    assert_eq!(header(headers, "seen-baggage"), "x-mse-tag=gray");
    let answer = ask(&mut caller, call("/shop.Orders/List")).await;
    assert_eq!((header(answer.headers(), "x-name"), header(answer.headers(), "x-new")), ("base", ""));
    for (path, status, reason) in
        [("/shop.Carts/Get", "12", "route_not_found"), ("/shop.Gone/Get", "14", "backend_not_found")]
    {
        let answer = ask(&mut caller, call(path)).await;
        let headers = answer.headers();
        assert_eq!((header(headers, "grpc-status"), header(headers, "x-sluice-reason")), (status, reason));
    }
    let answer = ask(&mut caller, call("/shop.Orders/Get")).await;
    assert_eq!(header(answer.headers(), "x-name"), "canary", "the connection goes on");
    bed.metric(&["sluice_requests_total", "destination_service=\"canary\""], |value| value == 2).await;
}

/// Requests are copied to `canary`.
fn copied() -> serde_json::Value {
    json!({
        "parentRefs": [{ "group": "", "kind": "Service", "name": "orders" }],
        "rules": [{
            "filters": [{ "type": "RequestMirror", "requestMirror": { "backendRef": { "name": "canary", "port": 80 } } }],
            "backendRefs": [{ "name": "orders", "port": 80 }],
        }],
    })
}

#[tokio::test]
async fn a_stream_is_copied_with_its_body() {
    let (seen, mut copies) = tokio::sync::mpsc::unbounded_channel();
    let base = named("base").await;
    let mirror = endpoint(move |request: Request<RecvStream>, mut respond: SendResponse<Bytes>| {
        let seen = seen.clone();
        async move {
            let (parts, body) = request.into_parts();
            let (body, _) = read(body).await.expect("a body");
            seen.send((parts.uri.path().to_owned(), body)).expect("somebody waits");
            let response = Response::builder().status(500).body(()).expect("a response");
            respond.send_response(response, true).expect("it is taken");
        }
    })
    .await;
    let bed = bed(&[(base, None)]);
    bed.current.store(Arc::new(routed(&copied(), base, mirror)));
    let mut caller = bed.caller().await;
    let request =
        Request::post("http://orders.shop/shop.Orders/Get").header("content-type", "application/grpc");
    let (response, mut body) =
        caller.send_request(request.body(()).expect("a request"), false).expect("it is sent");
    body.send_data(Bytes::from_static(b"abc"), false).expect("it is taken");
    body.send_data(Bytes::from_static(b"def"), true).expect("it is taken");
    let response = response.await.expect("a response");
    assert_eq!(header(response.headers(), "x-name"), "base");
    let (path, body) = soon(copies.recv()).await.expect("a copy");
    assert_eq!((path.as_str(), body.as_slice()), ("/shop.Orders/Get", &b"abcdef"[..]));
    let answer = ask(&mut caller, get()).await;
    assert_eq!(header(answer.headers(), "x-name"), "base");
    let (_, body) = soon(copies.recv()).await.expect("a copy");
    assert_eq!(body, b"", "and one without a body");
    bed.metric(&["sluice_mirrored_requests_total", "outcome=\"answered\""], |value| value == 2).await;
}

/// Nobody reads it, and it does not go on for ever.
#[tokio::test]
async fn a_mirrors_long_answer_is_not_waited_for() {
    let base = named("base").await;
    let mirror = endpoint(|_, mut respond: SendResponse<Bytes>| async move {
        let mut body = respond.send_response(Response::new(()), false).expect("it is taken");
        loop {
            body.reserve_capacity(16 * 1024);
            let Some(Ok(room)) = poll_fn(|cx| body.poll_capacity(cx)).await else { return };
            if body.send_data(Bytes::from(vec![b'x'; room]), false).is_err() {
                return;
            }
        }
    })
    .await;
    let bed = bed(&[(base, None)]);
    bed.current.store(Arc::new(routed(&copied(), base, mirror)));
    let mut caller = bed.caller().await;
    ask(&mut caller, post("application/grpc")).await;
    bed.metric(&["sluice_mirrored_requests_total", "outcome=\"answered\""], |value| value == 1).await;
}

/// As over HTTP/1: a copy gets the tag of the lane that it enters, and the request stays as it is.
#[tokio::test]
async fn a_copy_enters_the_lane_of_its_mirror() {
    let (seen, mut copies) = tokio::sync::mpsc::unbounded_channel();
    let base = named("base").await;
    let mirror = endpoint(move |request: Request<RecvStream>, mut respond: SendResponse<Bytes>| {
        let seen = seen.clone();
        async move {
            let headers = request.headers();
            let lines = ["x-mse-tag", "baggage"].map(|name| header(headers, name).to_owned());
            seen.send(lines).expect("somebody waits");
            respond.send_response(Response::new(()), true).expect("it is taken");
        }
    })
    .await;
    let bed = bed(&[(base, None)]);
    let gray: Tag = "gray".parse().expect("a tag");
    let endpoints = vec![Arc::new(Endpoint { tag: Some(gray.clone()), ..Endpoint::new(mirror) })];
    let lane = Arc::new(Lane {
        endpoints: Vec::new(),
        name: "shop/gray".into(),
        tag: gray,
        selector: None,
        fallback: Detour::default(),
        service_fallbacks: BTreeMap::default(),
        priority: 0,
        trusts_incoming_tag: true,
        targets: Vec::new(),
        entry: vec![EntryRule { matches: RequestMatch::default(), percentage: None }],
    });
    let canary = Service {
        entry: Arc::new(Entry::new([&lane])),
        ..Service::new("shop", "canary", 80).with_endpoints(endpoints)
    };
    bed.current.store(Arc::new(routed_to(&copied(), base, canary)));
    let mut caller = bed.caller().await;
    let answer = ask(&mut caller, get()).await;
    assert_eq!(
        (header(answer.headers(), "x-name"), header(answer.headers(), "seen-x-mse-tag")),
        ("base", "")
    );
    assert_eq!(soon(copies.recv()).await.expect("a copy"), ["gray", "x-mse-tag=gray"]);
    let mut tagged = get();
    tagged.headers_mut().insert("x-mse-tag", HeaderValue::from_static("blue"));
    let answer = ask(&mut caller, tagged).await;
    assert_eq!(header(answer.headers(), "seen-x-mse-tag"), "blue");
    bed.metric(&["sluice_mirrored_requests_total", "outcome=\"no_endpoint\""], |value| value == 1).await;
    bed.metric(&["sluice_mirrored_requests_total", "outcome=\"answered\""], |value| value == 1).await;
}
