//! OpenTelemetry's protocol: where a collector is, how it is spoken to, who we say we are, and the metrics that are sent.
//! (Spans are [`super::trace`]'s.)

pub mod metrics;

use std::{fmt, str::FromStr};

use opentelemetry::KeyValue;
use opentelemetry_sdk::Resource;

/// How a collector is spoken to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Protocol {
    /// OTLP over gRPC, usually port 4317.
    #[default]
    Grpc,
    /// OTLP over HTTP with protobuf, usually port 4318.
    Http,
}

/// A collector's address: `http://host:4317`, with a path only if OTLP over HTTP is not where it usually is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address(String);

/// Not the address of a collector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an address as in http://HOST:PORT is needed (it is spoken to in clear, inside the cluster)")]
pub struct NoAddress;

impl FromStr for Address {
    type Err = NoAddress;

    fn from_str(text: &str) -> Result<Self, NoAddress> {
        let uri: http::Uri = text.parse().map_err(|_| NoAddress)?;
        let authority = uri.authority().ok_or(NoAddress)?;
        // A password in it would be told by `/config`.
        let plain =
            !authority.as_str().contains('@') && !authority.host().is_empty() && uri.query().is_none();
        let good = uri.scheme_str() == Some("http") && plain;
        good.then(|| Self(text.trim_end_matches('/').to_owned())).ok_or(NoAddress)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Address {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Where OTLP over HTTP takes this signal: the collector's address alone means its usual path.
    pub(super) fn path_of(&self, usual: &str) -> String {
        let bare = self.0.trim_start_matches("http://").split_once('/').is_none();
        if bare { format!("{}{usual}", self.0) } else { self.0.clone() }
    }
}

/// An attribute of the resource that all signals name as their origin: `deployment.environment.name=test`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attribute {
    pub key: String,
    pub value: String,
}

/// Not an attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("KEY=VALUE is needed, as in deployment.environment.name=test")]
pub struct NoAttribute;

impl FromStr for Attribute {
    type Err = NoAttribute;

    fn from_str(text: &str) -> Result<Self, NoAttribute> {
        let (key, value) = text.trim().split_once('=').ok_or(NoAttribute)?;
        let good = !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic());
        good.then(|| Self { key: key.to_owned(), value: value.to_owned() }).ok_or(NoAttribute)
    }
}

impl fmt::Display for Attribute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}

/// What everything that this agent sends is told to come from: `service.*` and `k8s.node.name`, and what the operator says,
/// which goes before. <https://opentelemetry.io/docs/specs/semconv/resource/>
#[derive(Clone, Debug)]
pub struct Identity(Vec<(String, String)>);

impl Identity {
    /// Of this process: another one is another `service.instance.id`, since two agents are on a node during a rollout.
    pub fn new(node: Option<&str>, attributes: &[Attribute]) -> Self {
        let own = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let mut all = vec![
            own("service.name", "sluice"),
            own("service.version", env!("CARGO_PKG_VERSION")),
            own("service.instance.id", &format!("{:032x}", fastrand::u128(1..))),
        ];
        all.extend(node.map(|node| own("k8s.node.name", node)));
        for Attribute { key, value } in attributes {
            all.retain(|(known, _)| known != key);
            all.push(own(key, value));
        }
        Self(all)
    }

    pub(super) fn resource(&self) -> Resource {
        let pairs = self.0.iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
        Resource::builder_empty().with_attributes(pairs).build()
    }

    fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (&**key, &**value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_is_an_http_address() {
        for (text, traces) in [
            ("http://collector:4318", "http://collector:4318/v1/traces"),
            ("http://collector:4318/", "http://collector:4318/v1/traces"),
            ("http://[fd00::1]:4318", "http://[fd00::1]:4318/v1/traces"),
            ("http://collector/otlp/traces", "http://collector/otlp/traces"),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().path_of("/v1/traces"), traces, "{text}");
        }
        for text in [
            "",
            "collector:4317",
            "https://collector:4317",
            "ftp://collector",
            "http://",
            "http://me:secret@collector",
            "http://collector/?token=secret",
        ] {
            assert_eq!(text.parse::<Address>(), Err(NoAddress), "{text}");
        }
    }

    #[test]
    fn what_the_operator_says_goes_before() {
        let attributes = ["service.name=edge", "team=a=b"].map(|text| text.parse().unwrap());
        let resource = Identity::new(Some("node-a"), &attributes).resource();
        let of = |key: &'static str| resource.get(&key.into()).map(|value| value.to_string());
        assert_eq!(of("service.name").as_deref(), Some("edge"));
        assert_eq!(of("team").as_deref(), Some("a=b"));
        assert_eq!(of("k8s.node.name").as_deref(), Some("node-a"));
        assert!(of("service.instance.id").is_some_and(|id| id.len() == 32));
        for wrong in ["", "team", "=a", "a b=c"] {
            assert_eq!(wrong.parse::<Attribute>(), Err(NoAttribute), "{wrong}");
        }
    }
}
