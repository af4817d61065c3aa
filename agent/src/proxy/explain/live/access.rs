//! What the endpoint's side says: the AccessPolicies that the agent of its node asks.

use std::{net::SocketAddr, time::SystemTime};

use super::walk::{Chosen, Stopped, Walk};
use crate::{
    cluster::model::{Service, Snapshot},
    govern::{
        access::{self, Access, Client, Decision, Identity},
        jwt::{Found, Jwt, token},
        policy::Mode,
    },
    observe::reason::Reason,
    proxy::{
        explain::{Stage, Verdict},
        http1::View,
    },
};

impl Walk<'_> {
    /// What AccessPolicies say of it, which the agent of the endpoint's node asks.
    pub(super) fn access(&mut self, chosen: Chosen) -> Result<Chosen, Stopped> {
        let to = chosen.endpoint.address;
        let ips = &self.caller.ips;
        let from = ips.iter().copied().find(|ip| ip.is_ipv4() == to.is_ipv4());
        let from = from.unwrap_or_else(|| self.caller.address());
        let pod = self.snapshot.clients.find(from);
        let client = Client::new(from, pod.as_deref());
        let who = whom(&client);
        let mut stops: Option<Decision<'_>> = None;
        for policy in guards(self.snapshot, to) {
            let token = policy.jwt.as_ref().map(|jwt| self.token(jwt));
            let known = token.as_ref().map_or(client, |token| client.with(token.into()));
            let decision = policy.decide(known, &View(&self.forwarded));
            if let Some(token) = &token {
                let source = Some(format!("jwt of AccessPolicy {}", policy.name));
                self.steps.say(Stage::Access, Verdict::Passes, of_token(token), source);
            }
            let (does, would) = match &decision {
                Decision::Allowed(_) => ("allows it", ""),
                Decision::Denied(_) => ("denies it", "would deny it"),
                Decision::Unauthenticated(_) => (
                    "denies it, for the rule asks for a valid token",
                    "would deny it: the rule asks for a valid token",
                ),
                Decision::Hidden(_) => ("hides the path", "would hide the path"),
            };
            let (verdict, what) = match policy.mode {
                _ if decision.is_allowed() => (Verdict::Passes, does.to_owned()),
                Mode::Enforce => (Verdict::Stops, does.to_owned()),
                Mode::Observe => (Verdict::WouldStop, format!("mode Observe: it {would}")),
            };
            let named = match (&decision, decision.rule()) {
                (_, None) if policy.closed => "the policy is invalid and has onInvalid: Deny; ".to_owned(),
                (_, None) => "no rule matches; ".to_owned(),
                _ => String::new(),
            };
            let source = match (&decision, decision.rule()) {
                (Decision::Hidden(_), Some(name)) => format!("hidden {name} of AccessPolicy {}", policy.name),
                (_, Some(name)) => format!("rule {name} of AccessPolicy {}", policy.name),
                (_, None) => format!("AccessPolicy {}", policy.name),
            };
            let what = format!("{named}the agent at the endpoint {what}: the client is {who}");
            let unattended = policy.closed_unattended().map_or_else(String::new, |time| {
                let seconds = time.as_secs();
                format!(
                    "; without an agent there connections are refused for {seconds} s (whenUnattended: Refuse)"
                )
            });
            self.steps.say(Stage::Access, verdict, what + &unattended, Some(source));
            let strictest = stops.is_none_or(|known| access::stricter(&decision, &known).is_gt());
            if verdict == Verdict::Stops && strictest {
                stops = Some(decision);
            }
        }
        match stops {
            None => Ok(chosen),
            Some(Decision::Hidden(_)) => Err(Stopped { reason: Reason::PathHidden, on: None, because: None }),
            Some(Decision::Unauthenticated(_)) => {
                Err(Stopped { reason: Reason::Unauthenticated, on: None, because: None })
            }
            Some(_) => Err(Stopped { reason: Reason::AccessDenied, on: None, because: None }),
        }
    }
}

impl Walk<'_> {
    fn token(&self, jwt: &Jwt) -> Found {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        match jwt.carried(&View(&self.forwarded)) {
            Ok(carried) => token::check(jwt, &carried.token, now),
            Err(failure) => Found::Invalid(failure),
        }
    }
}

/// What was found of a token, without anything of it that is secret.
fn of_token(found: &Found) -> String {
    match found {
        Found::Valid(verified) => {
            format!(
                "the token is valid, of provider {} ({})",
                verified.provider.name, verified.provider.issuer
            )
        }
        Found::Invalid(failure) => format!("{}: no rule that asks for one matches", failure.message()),
        Found::Unverifiable(provider) => {
            let why = provider.keys.known().trouble().map_or_else(String::new, |why| format!(": {why}"));
            format!(
                "the token says that it is of provider {}, whose keys are not known yet{why}",
                provider.name
            )
        }
    }
}

/// The AccessPolicies of Services that have this endpoint, each once.
pub(super) fn guards(snapshot: &Snapshot, endpoint: SocketAddr) -> Vec<&Access> {
    let services = snapshot.destinations.values().map(|destination| &*destination.service);
    let has = |service: &&Service| service.endpoints.iter().any(|one| one.address == endpoint);
    let policies = services.filter(|service| service.access.is_some()).filter(has);
    let mut policies: Vec<_> = policies.filter_map(|service| service.access.as_deref()).collect();
    policies.sort_by(|one, other| one.name.cmp(&other.name));
    policies.dedup_by(|one, other| one.name == other.name);
    policies
}

fn whom(client: &Client<'_>) -> String {
    match client.pod {
        Some(Identity { namespace, pod, workload, service_account, .. }) => {
            format!("Pod {namespace}/{pod} of {workload}, service account {service_account}")
        }
        None => format!("known by its address alone, {}", client.address),
    }
}
