//! The endpoints that could be chosen from, and how often each would be.

use std::time::Duration;

use super::walk::shown;
use crate::{
    cluster::model::Service,
    govern::{
        endpoint::Endpoint,
        outlier,
        route::Yielded,
        warmup::{self, Stage as Warmth},
    },
    proxy::explain::Candidate,
};

pub(super) fn candidate(
    service: &Service,
    yielded: &Yielded,
    endpoint: &Endpoint,
    percent: u32,
    now: u64,
) -> Candidate {
    let policy = service.governor.policy();
    let warmup = policy.load_balancer.warmup.as_ref();
    let ejected = outlier::ejected_until(policy.outlier_detection.as_ref(), endpoint, now);
    let state = if endpoint.is_draining() {
        "draining".to_owned()
    } else if !endpoint.is_usable() {
        "not ready".to_owned()
    } else if endpoint.load.backoff().is_doubted() {
        "not answering".to_owned()
    } else if let Some(until) = ejected {
        format!("ejected for {}", shown(Duration::from_nanos(until.saturating_sub(now))))
    } else {
        match warmup.map(|warmup| warmup::stage(warmup, endpoint, now)) {
            Some(Warmth::Delayed) => "delayed".to_owned(),
            Some(Warmth::Warming(_)) if warmup::awaits_first(warmup, endpoint).is_some() => {
                "waiting for its first request".to_owned()
            }
            Some(Warmth::Warming(_)) => "warming".to_owned(),
            Some(Warmth::Warm) | None => "usable".to_owned(),
        }
    };
    let out = ejected.is_some() || !endpoint.is_usable();
    Candidate {
        endpoint: endpoint.address.to_string(),
        pod: endpoint.pod.as_deref().map(str::to_owned),
        lane: endpoint.tag.as_ref().map(|tag| tag.as_str().to_owned()),
        state,
        share: if out { 0.0 } else { yielded.factor(policy, endpoint, now) },
        in_flight: endpoint.load.in_flight.load(std::sync::atomic::Ordering::Relaxed),
        latency_ms: endpoint.load.cost().typical_nanos().map(|nanos| (nanos / 1e3).round() / 1e3),
        percent,
    }
}

/// How many of a hundred requests each would get: whole numbers that add up to 100, as near to the draws as that allows. What is
/// left after rounding down goes to those who lost most by it (the largest remainders).
pub(super) fn percentages(draws: &[u32]) -> Vec<u32> {
    let all: u64 = draws.iter().map(|draws| u64::from(*draws)).sum();
    if all == 0 {
        return vec![0; draws.len()];
    }
    // Of what is at most `all` the hundredfold over `all` is at most 100.
    let mut percentages: Vec<u32> =
        draws.iter().map(|draws| (u64::from(*draws) * 100 / all) as u32).collect();
    let mut by_remainder: Vec<usize> = (0..draws.len()).collect();
    by_remainder.sort_by_key(|at| std::cmp::Reverse(u64::from(draws[*at]) * 100 % all));
    let left = 100 - percentages.iter().sum::<u32>() as usize;
    for at in by_remainder.into_iter().take(left) {
        percentages[at] += 1;
    }
    percentages
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::percentages;

    #[test]
    fn percentages_are_those_of_the_draws() {
        for (draws, expected) in [
            (&[][..], &[][..]),
            (&[0, 0], &[0, 0]),
            (&[1000], &[100]),
            (&[504, 496], &[50, 50]),
            (&[334, 333, 333], &[34, 33, 33]),
            (&[5, 0, 995], &[1, 0, 99]),
            (&[4, 498, 498], &[0, 50, 50]),
            (&[1, 1, 1, 1, 1, 1], &[17, 17, 17, 17, 16, 16]),
        ] {
            assert_eq!(percentages(draws), expected, "{draws:?}");
        }
    }

    proptest! {
        #[test]
        fn percentages_add_up_to_a_hundred(draws in prop::collection::vec(0_u32..2000, 1..40)) {
            let found = percentages(&draws);
            let all: u32 = draws.iter().sum();
            prop_assert_eq!(found.iter().sum::<u32>(), if all == 0 { 0 } else { 100 });
            for (found, draws) in found.iter().zip(&draws) {
                // By less than one, and nobody who was never drawn.
                prop_assert!((found * all).abs_diff(draws * 100) < all.max(1), "{found} {draws} of {all}");
                prop_assert!(*draws > 0 || *found == 0);
            }
        }
    }
}
