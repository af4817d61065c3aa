//! Which of a rule's backends a request goes to: by their weights, by lot. A request of a lane is drawn for among those that are
//! nearest to its lane, lest the lot takes it out of it (ARCHITECTURE.md#routes).

use std::sync::Arc;

use fastrand::Rng;

use super::{super::policy::HeaderEdits, mirror::Mirror};

/// A port of a Service, by its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServicePort {
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    pub port: u16,
}

impl std::fmt::Display for ServicePort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}:{}", self.name, self.namespace, self.port)
    }
}

/// One of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Backend {
    /// `None`: what is named cannot be sent to. Its part of the requests is answered with an error and is not the others'.
    pub service: Option<ServicePort>,
    pub weight: u32,
    /// What is changed in headers where it is chosen.
    pub headers: HeaderEdits,
    /// Who else gets the requests for which it is chosen.
    pub mirrors: Vec<Mirror>,
}

/// All of them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Backends {
    all: Vec<Backend>,
    total: u64,
}

impl Backends {
    pub fn new(all: Vec<Backend>) -> Self {
        let total = all.iter().map(|backend| u64::from(backend.weight)).sum();
        Self { all, total }
    }

    pub fn iter(&self) -> impl Iterator<Item = &Backend> {
        self.all.iter()
    }

    pub fn get(&self, at: usize) -> Option<&Backend> {
        self.all.get(at)
    }

    /// Which one is for a request; `None`: there is none, or none has any weight.
    pub fn choose(&self, rng: &mut Rng) -> Option<usize> {
        match &*self.all {
            // Most rules have one.
            [only] => (only.weight > 0).then_some(0),
            _ => self.draw(self.total, |_| true, rng),
        }
    }

    /// Which one is for a request of a lane: of those that are nearest to it. `distance`: how far a backend is from the lane;
    /// `None`: it has nothing of it. `None`: no backend with a weight has.
    pub fn choose_nearest(
        &self,
        distance: impl Fn(&Backend) -> Option<usize>,
        rng: &mut Rng,
    ) -> Option<usize> {
        let weighted = self.all.iter().filter(|backend| backend.weight > 0);
        let least = weighted.filter_map(&distance).min()?;
        let nearest = |backend: &Backend| distance(backend) == Some(least);
        let total = self.all.iter().filter(|one| nearest(one)).map(|one| u64::from(one.weight)).sum();
        self.draw(total, nearest, rng)
    }

    /// By lot, among those that may. `total`: their weights.
    fn draw(&self, total: u64, may: impl Fn(&Backend) -> bool, rng: &mut Rng) -> Option<usize> {
        if total == 0 {
            return None;
        }
        let mut drawn = rng.u64(..total);
        self.all.iter().position(|backend| {
            let weight = if may(backend) { u64::from(backend.weight) } else { 0 };
            let is = drawn < weight;
            drawn = drawn.saturating_sub(weight);
            is
        })
    }

    /// Whether there is anything to choose.
    pub fn are_several(&self) -> bool {
        self.all.len() > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backends(weights: &[u32]) -> Backends {
        let backend = |(at, weight): (usize, &u32)| Backend {
            service: Some(ServicePort { namespace: "shop".into(), name: format!("b{at}").into(), port: 80 }),
            weight: *weight,
            headers: HeaderEdits::default(),
            mirrors: Vec::new(),
        };
        Backends::new(weights.iter().enumerate().map(backend).collect())
    }

    #[test]
    fn each_gets_its_share() {
        for weights in [&[95, 5][..], &[1, 0, 2, 1], &[0, 1], &[1_000_000, 1_000_000, 500_000], &[7]] {
            let all = backends(weights);
            let total: u32 = weights.iter().sum();
            let mut rng = Rng::with_seed(7);
            let mut got = vec![0_u32; weights.len()];
            for _ in 0..20_000 {
                got[all.choose(&mut rng).unwrap()] += 1;
            }
            for (weight, got) in weights.iter().zip(got) {
                let wanted = f64::from(*weight) / f64::from(total) * 20_000.0;
                assert!(
                    (f64::from(got) - wanted).abs() <= 20_000.0 * 0.02,
                    "{weights:?}: {got}, not {wanted}"
                );
                assert!(*weight > 0 || got == 0, "{weights:?}");
            }
        }
    }

    #[test]
    fn who_has_no_weight_gets_nothing() {
        for weights in [&[][..], &[0], &[0, 0]] {
            assert!(backends(weights).choose(&mut Rng::with_seed(1)).is_none(), "{weights:?}");
        }
    }

    #[test]
    fn of_a_lane_the_nearest_are_chosen_by_their_weights() {
        let all = backends(&[90, 10, 30, 0]);
        let drawn = |distances: [Option<usize>; 4]| {
            let distance = |backend: &Backend| {
                let name = backend.service.as_ref()?.name.strip_prefix('b')?.parse::<usize>().ok()?;
                distances[name]
            };
            let mut rng = Rng::with_seed(3);
            let mut got = [0_u32; 4];
            for _ in 0..10_000 {
                got[all.choose_nearest(distance, &mut rng)?] += 1;
            }
            Some(got)
        };
        assert_eq!(drawn([None, Some(0), None, None]), Some([0, 10_000, 0, 0]));
        assert_eq!(drawn([Some(2), Some(1), None, None]), Some([0, 10_000, 0, 0]));
        let [none, canary, third, zero] = drawn([None, Some(0), Some(0), Some(0)]).expect("there are some");
        assert_eq!((none, zero), (0, 0));
        assert!((7_200..=7_800).contains(&third) && canary + third == 10_000, "{canary} {third}");
        // Who has no weight gets nothing, however near.
        assert_eq!(drawn([Some(5), None, None, Some(0)]), Some([10_000, 0, 0, 0]));
        assert_eq!(drawn([None, None, None, Some(0)]), None);
        assert_eq!(drawn([None; 4]), None);
    }
}
