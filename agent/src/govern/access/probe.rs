//! The kubelet's probes: what of a node's requests is one.
//!
//! An address alone does not tell: what kube-proxy translates for a NodePort comes from the node, too.

use http::Method;

use crate::govern::request::Request;

/// A probe of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    pub port: u16,
    pub by: By,
}

/// How it is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// With the path and query.
    Http(String),
    /// Of which no more can be seen than that somebody connects.
    Https,
    Grpc,
    Tcp,
}

/// What the kubelet calls (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>).
const GRPC_HEALTH: &[u8] = b"/grpc.health.v1.Health/Check";

impl Probe {
    /// Whether a request to this port is one of these.
    pub fn is_one(probes: &[Self], port: u16, request: &impl Request) -> bool {
        probes.iter().filter(|probe| probe.port == port).any(|probe| match &probe.by {
            By::Http(target) => {
                request.method() == Method::GET.as_str().as_bytes() && request.target() == target.as_bytes()
            }
            By::Grpc => {
                request.method() == Method::POST.as_str().as_bytes() && request.target() == GRPC_HEALTH
            }
            By::Https | By::Tcp => false,
        })
    }

    /// Whether a connection to this port that is no HTTP may be one of these. One by TCP says nothing.
    pub fn may_be_connection(probes: &[Self], port: u16, spoke: bool) -> bool {
        probes.iter().filter(|probe| probe.port == port).any(|probe| match probe.by {
            By::Https => true,
            By::Tcp => !spoke,
            By::Http(_) | By::Grpc => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::govern::request::tests::Plain;

    #[test]
    fn probes_are_told_by_what_they_ask_for() {
        let probes = [
            Probe { port: 80, by: By::Http("/healthz?full=1".to_owned()) },
            Probe { port: 81, by: By::Grpc },
            Probe { port: 82, by: By::Https },
            Probe { port: 83, by: By::Tcp },
        ];
        let is = |port, request: Plain| Probe::is_one(&probes, port, &request);
        assert!(is(80, Plain::get("/healthz?full=1")));
        assert!(!is(80, Plain::get("/healthz")));
        assert!(!is(80, Plain::get("/healthz?full=1&x")));
        assert!(!is(80, Plain { method: "POST", ..Plain::get("/healthz?full=1") }));
        assert!(!is(81, Plain::get("/healthz?full=1")), "of another port");
        assert!(is(81, Plain { method: "POST", ..Plain::get("/grpc.health.v1.Health/Check") }));
        assert!(!is(82, Plain::get("/")) && !is(83, Plain::get("/")));
        let connection =
            |spoke| [80, 81, 82, 83, 84].map(|port| Probe::may_be_connection(&probes, port, spoke));
        assert_eq!(connection(false), [false, false, true, true, false]);
        assert_eq!(connection(true), [false, false, true, false, false], "a probe by TCP says nothing");
    }
}
