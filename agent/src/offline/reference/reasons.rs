//! Why Sluice responds itself.

use std::fmt::Write as _;

use super::{MADE, cell, code};
use crate::observe::reason::{Reason, grpc_name};

pub(super) fn page() -> String {
    let mut page = format!(
        "{MADE}\
# Reasons

A response that Sluice sends itself has the header `x-sluice-reason` with one of these codes, `server: sluice`, and a JSON body
with the reason, the rule and its TrafficPolicy. A gRPC client gets the gRPC status and a message. The response of a fallback has
the reason that it replaces, and `x-sluice-fallback` with the name of the fallback. The same codes are in the metrics
`sluice_requests_total` and `sluice_tunnels_total`, in the access log and in spans.

A *rejection* counts neither against the endpoint nor against the circuit breaker, and is no error on the dashboard.

| reason | HTTP | gRPC | counts as | meaning | what to do |
|---|---|---|---|---|---|
"
    );
    for reason in Reason::ALL {
        let grpc = grpc_name(reason.grpc_status());
        let counts_as = match reason {
            Reason::ClientClosed => "neither",
            _ if reason.is_refusal() => "rejection",
            _ => "error",
        };
        // What answers a preflight has no body, and a status that says so.
        let status = if reason == Reason::RoutePreflight { 204 } else { reason.status() };
        let code = code(reason.code());
        let (message, action) = (cell(reason.message()), cell(reason.action()));
        // Writing to a string does not fail.
        let _ = writeln!(page, "| {code} | {status} | {grpc} | {counts_as} | {message} | {action} |");
    }
    page
}
