//! What a TrafficLane asks for, checked and ready for use: which workloads share a tag, and which requests get it.

use std::{collections::BTreeMap, fmt, net::SocketAddr, sync::Arc};

use http::HeaderName;

use super::RequestMatch;
use crate::govern::tag::Tag;

/// The workloads that share a tag, and the requests that enter.
#[derive(Clone, Debug, PartialEq)]
pub struct Lane {
    /// The TrafficLane that it comes from, as `shop/gray`.
    pub name: Arc<str>,
    pub tag: Tag,
    /// The pods of the namespace that belong to it, besides those whose label says a tag; `None`: only those.
    pub selector: Option<Selector>,
    /// Where its requests go where it has no usable endpoint.
    pub fallback: Detour,
    /// The same for calls to these Services of the namespace.
    pub service_fallbacks: BTreeMap<Arc<str>, Detour>,
    /// Entry rules of lanes with a higher one are asked first.
    pub priority: i32,
    /// Endpoints of it that are no pods.
    pub endpoints: Vec<LaneEndpoint>,
    /// The Services of the namespace whose calls the entry rules are about; empty: all.
    pub targets: Vec<Target>,
    /// Requests that come to the targets with its tag keep it; else it is taken from them there, before the entry rules are asked.
    pub trusts_incoming_tag: bool,
    /// A request without a tag enters if one of these holds.
    pub entry: Vec<EntryRule>,
}

/// An endpoint outside the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneEndpoint {
    /// The Service that it answers for.
    pub target: Target,
    pub address: SocketAddr,
}

/// Where a request goes whose lane has no usable endpoint: to one of these lanes, in their order, and else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Detour {
    pub lanes: Vec<Tag>,
    pub then: LaneFallback,
}

/// `staging, Baseline`
impl fmt::Display for Detour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lanes.iter().try_for_each(|tag| write!(f, "{tag}, "))?;
        write!(f, "{:?}", self.then)
    }
}

/// What becomes of a tagged request that no lane has a usable endpoint for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LaneFallback {
    /// The baseline answers.
    #[default]
    Baseline,
    /// It is answered with 503.
    Fail,
}

/// A Service, or one port of it, in the namespace of the object that targets it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    pub service: Arc<str>,
    /// The port's name; `None`: every port.
    pub port: Option<Arc<str>>,
}

/// `stock`, or `stock:http` for a port
impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.service)?;
        self.port.as_ref().map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

/// A condition on the labels of a pod: all requirements must hold. Never empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Selector {
    pub requirements: Vec<Requirement>,
}

/// A condition on one label, as Kubernetes defines it.
/// <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#resources-that-support-set-based-requirements>
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Requirement {
    In(Arc<str>, Vec<Arc<str>>),
    /// Holds also where the label is not set.
    NotIn(Arc<str>, Vec<Arc<str>>),
    Exists(Arc<str>),
    DoesNotExist(Arc<str>),
}

/// Requests that enter a lane: those that match, or a share of them.
#[derive(Clone, Debug, PartialEq)]
pub struct EntryRule {
    pub matches: RequestMatch,
    pub percentage: Option<Percentage>,
}

/// A share of requests that is stable for a key.
#[derive(Clone, Debug, PartialEq)]
pub struct Percentage {
    /// 0 to 100.
    pub percent: f64,
    pub key: PercentageKey,
}

/// What tells requests apart that should fare alike. A request without it does not enter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PercentageKey {
    Header(HeaderName),
    Cookie(Arc<str>),
    /// The address of the calling pod.
    ClientAddress,
}

impl Selector {
    /// Whether a pod with these labels is selected.
    pub fn selects<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|requirement| match requirement {
            Requirement::In(key, values) => {
                label(key).is_some_and(|value| values.iter().any(|one| &**one == value))
            }
            Requirement::NotIn(key, values) => {
                label(key).is_none_or(|value| values.iter().all(|one| &**one != value))
            }
            Requirement::Exists(key) => label(key).is_some(),
            Requirement::DoesNotExist(key) => label(key).is_none(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_selector_selects_as_kubernetes_does() {
        let labels = |name: &str| match name {
            "app" => Some("orders"),
            "track" => Some("gray"),
            _ => None,
        };
        let values = |values: &[&str]| values.iter().map(|value| (*value).into()).collect::<Vec<Arc<str>>>();
        for (requirement, wanted) in [
            (Requirement::In("app".into(), values(&["orders", "stock"])), true),
            (Requirement::In("app".into(), values(&["stock"])), false),
            (Requirement::In("tier".into(), values(&["stock"])), false),
            (Requirement::NotIn("app".into(), values(&["orders"])), false),
            (Requirement::NotIn("app".into(), values(&["stock"])), true),
            (Requirement::NotIn("tier".into(), values(&["x"])), true),
            (Requirement::Exists("track".into()), true),
            (Requirement::Exists("tier".into()), false),
            (Requirement::DoesNotExist("track".into()), false),
            (Requirement::DoesNotExist("tier".into()), true),
        ] {
            let both =
                Selector { requirements: vec![Requirement::Exists("app".into()), requirement.clone()] };
            assert_eq!(both.selects(labels), wanted, "{requirement:?}");
        }
    }
}
