//! The rules of routes for requests to a service, in the order in which they apply.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ahash::AHashMap;
use schemars::JsonSchema;
use serde::Serialize;

use super::Name;
use crate::{
    cluster::model::{Group, Snapshot},
    govern::routes::{Action, backends::ServicePort, words},
    observe::metrics::{Metrics, RouteRule},
};

/// A rule of a route whose parent the service is.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct RouteLine {
    /// As in `HTTPRoute shop/orders, rule slow`.
    pub rule: String,
    /// The namespace of the clients whose requests it is about; `null`: all that have none of their own.
    pub clients: Option<String>,
    /// What it is about; one of these is enough.
    pub matches: Vec<String>,
    /// What becomes of the request, in this order.
    pub does: Vec<String>,
    /// The TrafficPolicy that targets it, as in `shop/slow`.
    pub policy: Option<String>,
    /// Requests of this node since the agent started.
    pub requests: u64,
}

/// The other Services to which the routes for all clients send the requests of a Service, of each that has any.
pub(super) fn sent_to(snapshot: &Snapshot) -> BTreeMap<Name, Vec<String>> {
    let mut all = BTreeMap::new();
    for ((called, _), routed) in &*snapshot.routes {
        let rules = routed.producer.iter().flat_map(|group| group.routes.rules());
        let backends = rules.flat_map(|rule| match &rule.action {
            Action::Forward { backends, .. } => backends.iter().collect(),
            Action::Redirect(_) => Vec::new(),
        });
        let others =
            backends.filter(|backend| backend.weight > 0).filter_map(|backend| backend.service.as_ref());
        let others: BTreeSet<_> = others
            .filter(|service| *service != called)
            .map(|service| format!("{}/{}", service.namespace, service.name))
            .collect();
        if !others.is_empty() {
            let ServicePort { namespace, name, port } = called.clone();
            all.insert(Name { namespace, name, port }, others.into_iter().collect());
        }
    }
    all
}

pub(super) fn list(name: &Name, snapshot: &Snapshot, metrics: &Metrics) -> Vec<RouteLine> {
    let service = ServicePort { namespace: name.namespace.clone(), name: name.name.clone(), port: name.port };
    let of_family = |ipv6| snapshot.routes.get(&(service.clone(), ipv6));
    // They are the same in both families.
    let Some(routed) = of_family(false).or_else(|| of_family(true)) else { return Vec::new() };
    let totals = metrics.route_totals();
    let of_group = |(clients, group): (Option<&Arc<str>>, &Group)| -> Vec<_> {
        let line = |rule: &Arc<_>| line(clients, group, rule, &totals);
        group.routes.rules().map(line).collect()
    };
    let producer = routed.producer.iter().map(|group| (None, group));
    let consumers = routed.consumers.iter().map(|(namespace, group)| (Some(namespace), group));
    producer.chain(consumers).flat_map(of_group).collect()
}

fn line(
    clients: Option<&Arc<str>>,
    group: &Group,
    rule: &Arc<crate::govern::routes::Rule>,
    totals: &AHashMap<RouteRule, u64>,
) -> RouteLine {
    RouteLine {
        rule: format!("{} {}, rule {}", rule.kind.as_str(), rule.route, rule.name),
        clients: clients.map(ToString::to_string),
        matches: rule.matches.iter().map(words::about).collect(),
        does: words::does(rule),
        policy: group.policy_on(rule).map(ToString::to_string),
        requests: totals.get(&RouteRule::from(&**rule)).copied().unwrap_or_default(),
    }
}
