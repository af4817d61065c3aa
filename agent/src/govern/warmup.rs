//! Warm-up: a new endpoint's share grows along a curve instead of beginning in full, so that its caches, pools and JIT
//! compiler come to temperature before the crowd does.
//!
//! The share `max(minimum, (max(t, 1 s) / duration) ^ (1 / aggression))` is Envoy's slow start:
//! <https://www.envoyproxy.io/docs/envoy/latest/intro/arch_overview/upstream/load_balancing/slow_start>
//! `t` counts from
//! - the pod's Ready transition (`startOn: Ready`): a fact of the cluster, so that every node is at the same point of the
//!   curve, and an agent that is restarted in the middle goes on where the other was. A container that restarts becomes
//!   Ready anew, and is warmed again. A pod that is not Ready for less than its curve takes, while its containers run on,
//!   goes on where it was: the time in which it was not Ready does not count;
//! - or the first request that came to it since (`startOn: FirstRequest`), health checks aside: the earliest of what this agent
//!   sent it, what this agent saw arrive at it, and what the agent of its node has written down for all
//!   (`cluster/first_request.rs`). Agents that know that agree, as far as their clocks do.
//!
//! `delay` comes before the curve and counts from Ready in both cases: until the first request nobody could say when
//! it ends. An endpoint of which nobody knows since when it is ready is warm.
//!
//! In a rollout the last of the old endpoints would get what the new ones do not take: of four, the last one 2.8 times its
//! part. So the curve yields where a warm endpoint would get more than [`MOST_PUSHED`] times what it carried before, or
//! carries when all are warm: the shares of those that warm up are raised to what keeps it below that. Where endpoints are only
//! added nothing is pushed onto anybody, and nothing yields. `sluice_warm_up_yields_total` counts requests while it does.
//!
//! What the share does to the choice is [`super::balance`]'s matter.

use std::time::Duration;

use super::{
    endpoint::Endpoint,
    policy::{StartOn, WarmUp},
    request::Request,
};

/// The user agent of the kubelet's probes begins with this.
/// <https://kubernetes.io/docs/concepts/configuration/liveness-readiness-startup-probes/>
const PROBE: &[u8] = b"kube-probe";

/// How many times its part a warm endpoint gets at most because others warm up.
const MOST_PUSHED: f64 = 1.5;

/// Raises the shares of a subset's warming endpoints (above 0) as far as others would get too much for them. `carried`: how many
/// warm endpoints have carried the requests of late. Returns whether any had to be raised.
pub(super) fn yield_shares(shares: &mut [f64], carried: usize) -> bool {
    let used = shares.iter().filter(|share| **share > 0.0).count();
    let largest = shares.iter().copied().fold(0.0, f64::max);
    let sum: f64 = shares.iter().sum();
    // All together get `sum`, a warm one `largest` of it.
    let wanted = largest * used.min(carried) as f64 / MOST_PUSHED;
    if sum >= wanted {
        return false;
    }
    let room: f64 = shares.iter().filter(|share| **share > 0.0).map(|share| largest - share).sum();
    let raised = (wanted - sum) / room;
    for share in shares.iter_mut().filter(|share| **share > 0.0) {
        *share += (largest - *share) * raised;
    }
    true
}

/// Where an endpoint is on its way.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Stage {
    /// It is ready, and gets nothing yet.
    Delayed,
    /// It gets this part of a warm endpoint's share: above 0, below 1.
    Warming(f64),
    Warm,
}

/// The share `elapsed` after the start of the curve: above 0, at most 1.
pub fn curve(policy: &WarmUp, elapsed: Duration) -> f64 {
    let least = policy.minimum_percent / 100.0;
    let part = elapsed.max(Duration::from_secs(1)).as_secs_f64() / policy.duration.as_secs_f64();
    if part >= 1.0 {
        return 1.0;
    }
    // Nearly every curve is a straight line, which costs less than a power.
    let linear = (policy.aggression - 1.0).abs() < f64::EPSILON;
    let share = if linear { part } else { part.powf(1.0 / policy.aggression) };
    share.max(least).min(1.0)
}

/// Where an endpoint is now. In whole nanoseconds: while anybody warms it is asked of every endpoint, for every request.
pub fn stage(policy: &WarmUp, endpoint: &Endpoint, now_nanos: u64) -> Stage {
    let Some(ready_since) = endpoint.ready_since_nanos else {
        return Stage::Warm;
    };
    let Some(since_delay) = elapsed(ready_since, now_nanos).checked_sub(nanos(policy.delay)) else {
        return Stage::Delayed;
    };
    let warming = match policy.start_on {
        StartOn::Ready => since_delay,
        StartOn::FirstRequest => match endpoint.load.first_request(Some(ready_since)) {
            // The first request may have come within the delay, when there was nobody else.
            Some(first) => elapsed(first, now_nanos).min(since_delay),
            None => 0,
        },
    };
    if warming >= nanos(policy.duration) {
        return Stage::Warm;
    }
    let share = curve(policy, Duration::from_nanos(warming));
    if share < 1.0 { Stage::Warming(share) } else { Stage::Warm }
}

/// The part of a warm endpoint's share that this one gets now, 0 to 1; for metrics.
pub fn factor(policy: Option<&WarmUp>, endpoint: &Endpoint, now_nanos: u64) -> f64 {
    match policy.map(|policy| stage(policy, endpoint, now_nanos)) {
        Some(Stage::Delayed) => 0.0,
        Some(Stage::Warming(share)) => share,
        Some(Stage::Warm) | None => 1.0,
    }
}

/// Time from then to now, none if then is yet to come: the clock that said so is another node's.
fn elapsed(since_nanos: i64, now_nanos: u64) -> u64 {
    (now_nanos as i64).saturating_sub(since_nanos).max(0) as u64
}

fn nanos(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1_000_000_000).saturating_add(u64::from(duration.subsec_nanos()))
}

/// Notes a request that is sent to an endpoint, if that begins its warm-up. Costs nothing but with `FirstRequest`, and
/// there a look at one number once it has begun.
pub fn note_request(policy: Option<&WarmUp>, endpoint: &Endpoint, request: &impl Request, now_nanos: u64) {
    if let Some(policy) = awaits_first(policy, endpoint)
        && counts_as_start(policy, request)
    {
        endpoint.load.note_first_request(endpoint.ready_since_nanos, now_nanos as i64);
    }
}

/// The same for a connection of which the bytes are not known.
pub fn note_connection(policy: Option<&WarmUp>, endpoint: &Endpoint, now_nanos: u64) {
    if awaits_first(policy, endpoint).is_some() {
        endpoint.load.note_first_request(endpoint.ready_since_nanos, now_nanos as i64);
    }
}

/// The policy, if what it begins the curve with has not come yet.
pub fn awaits_first<'p>(policy: Option<&'p WarmUp>, endpoint: &Endpoint) -> Option<&'p WarmUp> {
    policy.filter(|policy| {
        policy.start_on == StartOn::FirstRequest
            && endpoint.load.first_request(endpoint.ready_since_nanos).is_none()
    })
}

/// Whether a request is one that an endpoint is warmed by: no probe of a kubelet, and not on a path of health checks.
pub fn counts_as_start(policy: &WarmUp, request: &impl Request) -> bool {
    let path = request.normal_path();
    let is_check = |check: &str| match check.strip_suffix('*') {
        Some(prefix) => path.starts_with(prefix.as_bytes()),
        None => *path == *check.as_bytes(),
    };
    let is_probe = || {
        let agent = request.header(&http::header::USER_AGENT);
        agent.is_some_and(|agent| agent.starts_with(PROBE))
    };
    !policy.health_check_paths.iter().any(|check| is_check(check)) && !is_probe()
}

#[cfg(test)]
mod tests;
