//! What objects add up to. Objects are written as users write them.

mod doubt;
mod endpoints;
mod families;
mod firsts;
mod gates;
mod histories;
mod lives;
mod pods;
mod routes;
mod services;
mod sharing;

use super::*;
use crate::cluster::source::Sighting;
use crate::cluster::{manifests, model::Service};

pub(super) const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, annotations: {sluice.dev/capture: enabled}}
---
";

pub(super) fn sightings(text: &str) -> Vec<Sighting> {
    let (sightings, problems) = manifests::parse(text);
    assert_eq!(problems, []);
    sightings
}

pub(super) fn start(options: Options, text: &str) -> Builder {
    let mut builder = Builder::new(options);
    let mut by_kind: BTreeMap<Kind, Vec<Sighting>> = BTreeMap::new();
    for sighting in sightings(text) {
        by_kind.entry(sighting.object.key().kind).or_default().push(sighting);
    }
    for kind in Kind::ALL {
        builder.apply(Change::Restarted(kind, by_kind.remove(&kind).unwrap_or_default()));
    }
    builder
}

pub(super) fn snapshot_of(text: &str) -> Snapshot {
    start(Options::default(), text).build(Instant::now()).expect("the first snapshot always comes")
}

pub(super) fn apply(builder: &mut Builder, text: &str) {
    for sighting in sightings(text) {
        builder.apply(Change::Applied(sighting));
    }
}

pub(super) fn delete(builder: &mut Builder, text: &str) {
    for sighting in sightings(text) {
        builder.apply(Change::Deleted(sighting.object.key()));
    }
}

pub(super) fn next(builder: &mut Builder) -> Snapshot {
    builder.build(Instant::now()).expect("something has changed")
}

fn next_if_any(builder: &mut Builder) {
    builder.build(Instant::now());
}

pub(super) fn service(snapshot: &Snapshot, address: &str) -> Arc<Service> {
    destination(snapshot, address).service
}

fn destination(snapshot: &Snapshot, address: &str) -> Destination {
    let found = snapshot.destination(address.parse().unwrap());
    found.unwrap_or_else(|| panic!("{address} is not governed: {:?}", governed(snapshot))).clone()
}

fn addresses(endpoints: &[Arc<crate::govern::endpoint::Endpoint>]) -> Vec<String> {
    endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect()
}

fn governed(snapshot: &Snapshot) -> Vec<String> {
    let mut all: Vec<_> = snapshot.destinations.keys().collect();
    all.sort();
    all.into_iter().map(ToString::to_string).collect()
}

pub(super) fn messages(builder: &Builder) -> Vec<String> {
    messages_at(builder, Instant::now())
}

fn messages_at(builder: &Builder, now: Instant) -> Vec<String> {
    builder
        .problems(now)
        .iter()
        .map(|problem| Problem { file: None, line: None, ..problem.clone() }.to_string())
        .collect()
}

/// A Service with one port.
pub(super) fn svc(name: &str, ip: &str, extra: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Service, metadata: {{name: {name}, namespace: shop}}, \
         spec: {{clusterIP: {ip}, ports: [{{name: http, port: 80}}]{extra}}}}}\n"
    )
}

/// A slice of it with these endpoints, on port 8080.
pub(super) fn slice(name: &str, of: &str, endpoints: &str) -> String {
    format!(
        "---\n{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, addressType: IPv4, \
         metadata: {{name: {name}, namespace: shop, labels: {{kubernetes.io/service-name: {of}}}}}, \
         ports: [{{name: http, port: 8080}}], endpoints: [{endpoints}]}}\n"
    )
}

pub(super) fn pod(name: &str, ip: &str, extra: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop, uid: uid-{name}{extra}}}, \
         spec: {{nodeName: n1}}, status: {{podIP: {ip}, phase: Running}}}}\n"
    )
}

pub(super) fn endpoint(ip: &str, pod: &str) -> String {
    format!("{{addresses: [{ip}], targetRef: {{kind: Pod, name: {pod}, namespace: shop}}}}")
}

const GRAY: &str = ", labels: {sluice.dev/tag: gray}";

/// The same pod, ready since then.
fn ready_since(pod: &str, time: &str) -> String {
    let condition =
        format!("conditions: [{{type: Ready, status: \"True\", lastTransitionTime: \"{time}\"}}]");
    pod.replace("phase: Running", &format!("phase: Running, {condition}"))
}
