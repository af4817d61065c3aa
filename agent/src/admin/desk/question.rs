//! A request that somebody asks about: a pod, where it calls, and a request line with headers.

use std::{net::SocketAddr, sync::Arc};

use http::{HeaderName, HeaderValue, Method};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    admin::view::Look,
    cluster::{
        model::{Service, Snapshot, Workload},
        strip,
        verdict::Reason,
    },
    proxy::explain::{self, Asked},
};

const POD: &str = "as in shop/client";
const TO: &str = "as in orders.shop:80, or 10.96.7.3:80";

/// What cannot be answered, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Wrong {
    /// The question makes no sense.
    #[error("{0}")]
    Question(String),
    /// What it is about is not there.
    #[error("{0}")]
    Missing(String),
    /// Not now.
    #[error("{0}")]
    Unavailable(String),
}

fn method() -> String {
    "GET".to_owned()
}

fn target() -> String {
    "/".to_owned()
}

/// Where a request goes, as somebody names it.
enum To<'q> {
    Address(SocketAddr),
    Service(&'q str, Option<u16>),
}

/// A request of a pod.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// The calling pod, as in `shop/client`: one of this node.
    pub pod: String,
    /// Where it calls: `service.namespace:port`, or `ip:port`. Without a namespace it is the pod's; without a port, the
    /// Service's only one.
    pub to: String,
    #[serde(default = "method")]
    pub method: String,
    /// Path and query.
    #[serde(default = "target")]
    pub target: String,
    /// Each as in `x-user: anna`.
    #[serde(default)]
    pub headers: Vec<String>,
}

impl Question {
    /// What the proxy would see.
    pub(super) fn resolve(&self, look: &Look) -> Result<Asked, Wrong> {
        let caller = self.caller(&look.snapshot)?;
        let not_captured = not_captured(&caller, look);
        let (dialled, host) = self.dialled(look, &caller)?;
        let head = self.head(&host)?;
        Ok(Asked { caller, not_captured, dialled, head, remembered: None, links: false })
    }

    /// Whether it makes sense, whatever there is in the cluster: whoever asks can find out before an agent is asked.
    pub fn check(&self) -> Result<(), Wrong> {
        self.named()?;
        self.dials()?;
        self.parts()?;
        Ok(())
    }

    /// Namespace and name of the pod.
    fn named(&self) -> Result<(&str, &str), Wrong> {
        let is_name = |name: &str| strip::wrong_name(name).is_none();
        let parts = self.pod.split_once('/').filter(|(namespace, name)| is_name(namespace) && is_name(name));
        parts.ok_or_else(|| Wrong::Question(format!("pod: {:?} is not namespace/name, {POD}", self.pod)))
    }

    /// Where it calls, as it is named.
    fn dials(&self) -> Result<To<'_>, Wrong> {
        if let Ok(address) = self.to.parse::<SocketAddr>() {
            return Ok(To::Address(address));
        }
        let (host, port) = match self.to.rsplit_once(':') {
            None => (&*self.to, None),
            Some((host, port)) => {
                let number = port.parse::<u16>().ok().filter(|number| *number > 0);
                let number =
                    number.ok_or_else(|| Wrong::Question(format!("to: {port:?} is no port, {TO}")))?;
                (host, Some(number))
            }
        };
        // A name may be a full one, with its dot.
        let host = host.strip_suffix('.').unwrap_or(host);
        if strip::wrong_name(host).is_some() || host.parse::<std::net::IpAddr>().is_ok() {
            return Err(Wrong::Question(format!("to: {:?} names no service, {TO}", self.to)));
        }
        Ok(To::Service(host, port))
    }

    pub(super) fn caller(&self, snapshot: &Snapshot) -> Result<Arc<Workload>, Wrong> {
        let (namespace, name) = self.named()?;
        let is = |pod: &&Arc<Workload>| &*pod.namespace == namespace && &*pod.name == name;
        snapshot.pods.values().find(is).cloned().ok_or_else(|| {
            Wrong::Missing(format!("there is no pod {:?} in an enrolled namespace on this node", self.pod))
        })
    }

    /// The address, and the name that the request would bear.
    pub(super) fn dialled(&self, look: &Look, caller: &Workload) -> Result<(SocketAddr, String), Wrong> {
        let snapshot = &look.snapshot;
        let (host, port) = match self.dials()? {
            To::Address(address) => return Ok((address, self.to.clone())),
            To::Service(host, port) => (host, port),
        };
        let mut labels = host.split('.');
        let name = labels.next().unwrap_or_default();
        let namespace = labels.next().unwrap_or(&caller.namespace);
        let of_service = snapshot.destinations.iter().filter(|(_, destination)| {
            &*destination.service.name == name && &*destination.service.namespace == namespace
        });
        let mut found: Vec<_> =
            of_service.map(|(address, it)| (it.service.port, address.is_ipv6(), *address)).collect();
        found.sort();
        let mut ports: Vec<_> = found.iter().map(|(port, ..)| *port).collect();
        ports.dedup();
        let port = match (port, &*ports) {
            (Some(port), _) => port,
            (None, [port]) => *port,
            (None, []) => 0,
            (None, several) => {
                return Err(Wrong::Question(format!(
                    "to: which port of {name}.{namespace}? It has {several:?}, {TO}"
                )));
            }
        };
        match found.into_iter().find(|(its, ..)| *its == port) {
            Some((_, _, address)) => Ok((address, format!("{host}:{port}"))),
            None if ports.is_empty() => Err(Wrong::Missing(format!(
                "no service {name} is managed in namespace {namespace}: connections to it go direct{}",
                why_not(look, namespace)
            ))),
            None => Err(Wrong::Missing(format!(
                "{name}.{namespace} has no managed port {port}: it has {ports:?}"
            ))),
        }
    }

    /// Whether the agent would get the pod's connection to this address at all. It says what to ask for instead.
    pub(super) fn is_managed(look: &Look, dialled: SocketAddr) -> Result<(), Wrong> {
        let snapshot = &look.snapshot;
        if snapshot.destination(dialled).is_some() {
            return Ok(());
        }
        let is_there = |service: &&Service| service.endpoints.iter().any(|one| one.address == dialled);
        let mut services = snapshot.destinations.values().map(|destination| &*destination.service);
        let instead = match services.find(is_there) {
            Some(service) => format!(
                "it is an endpoint of {service}: `--to {service} --endpoint {dialled}` sends the request straight to it"
            ),
            None => "call a Service of an enrolled namespace, as in orders.shop:80; `--endpoint IP:PORT` sends the request \
                     straight to an address"
                .to_owned(),
        };
        Err(Wrong::Missing(format!(
            "to: {dialled} is not the address of a managed Service, so connections to it go direct: {instead}"
        )))
    }

    /// The checked parts.
    pub(super) fn parts(&self) -> Result<(Method, Vec<(HeaderName, HeaderValue)>), Wrong> {
        let wrong = |what: &str, value: &str, example: &str| {
            Wrong::Question(format!("{what}: {value:?} is none, as in {example}"))
        };
        let upper = self.method.to_ascii_uppercase();
        if upper != self.method && Method::from_bytes(upper.as_bytes()).is_ok() {
            return Err(Wrong::Question(format!(
                "method: {:?} is no method: methods are in upper case, as in {upper}",
                self.method
            )));
        }
        let method =
            Method::from_bytes(self.method.as_bytes()).map_err(|_| wrong("method", &self.method, "GET"))?;
        if let Some(rejected) = explain::rejects(&self.method, &self.target) {
            return Err(Wrong::Question(format!(
                "target: {:?} is none, as in /orders/7?full=1: the proxy answers such a request {rejected}",
                self.target
            )));
        }
        let good_target = self.target.starts_with('/') || self.target == "*";
        if !good_target || self.target.bytes().any(|byte| byte <= b' ' || byte >= 0x7f) {
            return Err(wrong("target", &self.target, "/orders/7?full=1"));
        }
        let headers = self.headers.iter().map(|line| {
            let bad = || wrong("header", line, "\"x-user: anna\"");
            let (name, value) = line.split_once(':').ok_or_else(bad)?;
            let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| bad())?;
            Ok((name, HeaderValue::from_str(value.trim()).map_err(|_| bad())?))
        });
        Ok((method, headers.collect::<Result<_, Wrong>>()?))
    }

    fn head(&self, host: &str) -> Result<Vec<u8>, Wrong> {
        let (method, headers) = self.parts()?;
        let mut head = format!("{method} {} HTTP/1.1\r\n", self.target).into_bytes();
        if !headers.iter().any(|(name, _)| *name == http::header::HOST) {
            head.extend_from_slice(format!("host: {host}\r\n").as_bytes());
        }
        for (name, value) in headers {
            head.extend_from_slice(name.as_str().as_bytes());
            head.extend_from_slice(b": ");
            head.extend_from_slice(value.as_bytes());
            head.extend_from_slice(b"\r\n");
        }
        head.extend_from_slice(b"\r\n");
        Ok(head)
    }
}

/// Why nothing in a namespace is managed, if a policy there was told so.
fn why_not(look: &Look, namespace: &str) -> String {
    let told = look.verdicts.iter().find(|(key, judged)| {
        let reason = judged.verdict.programmed.reason;
        &*key.name.namespace == namespace && reason == Reason::NamespaceNotEnrolled
    });
    match told {
        Some((policy, judged)) => {
            format!(", and {policy} is not active: {}", judged.verdict.programmed.message)
        }
        None => " (is the namespace enrolled?)".to_owned(),
    }
}

/// Why connections of this pod do not come to the agent.
fn not_captured(pod: &Workload, look: &Look) -> Option<String> {
    if pod.host_network {
        return Some("the pod is on the node's own network: such pods are not enrolled".to_owned());
    }
    if let Some(mesh) = pod.own_proxy {
        return Some(format!("{mesh} redirects the pod's connections already: it is not enrolled"));
    }
    if !pod.capture {
        return Some(
            "the pod's annotation sluice.dev/capture, or that of its namespace, leaves it out".to_owned(),
        );
    }
    match look.pods.iter().find(|status| status.workload.uid == pod.uid) {
        None => Some(
            "the pod does not run on this node, or capture has not started: it is not enrolled".to_owned(),
        ),
        Some(status) => status.pending.as_ref().map(|why| format!("the pod is not enrolled yet: {why}")),
    }
}
