//! Copies of requests: to which Services they go, and of how many requests.

use fastrand::Rng;

use super::backends::ServicePort;

/// A Service that gets copies of requests. What it answers is thrown away.
#[derive(Clone, Debug, PartialEq)]
pub struct Mirror {
    /// `None`: what is named cannot be sent to, so no copy is made.
    pub service: Option<ServicePort>,
    pub fraction: Fraction,
}

/// A part of all requests: `numerator` of `denominator`, which is not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fraction {
    numerator: u32,
    denominator: u32,
}

impl Fraction {
    pub const ALL: Self = Self { numerator: 1, denominator: 1 };

    /// `None`: it is no part.
    pub fn new(numerator: u32, denominator: u32) -> Option<Self> {
        (denominator > 0 && numerator <= denominator).then_some(Self { numerator, denominator })
    }

    /// Whether a request is one of them, by lot.
    pub fn draws(self, rng: &mut Rng) -> bool {
        self.numerator == self.denominator || rng.u32(..self.denominator) < self.numerator
    }

    pub fn percent(self) -> f64 {
        f64::from(self.numerator) * 100.0 / f64::from(self.denominator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fraction_of_requests_is_drawn() {
        for (numerator, denominator) in [(0, 1), (0, 100), (1, 1), (100, 100), (20, 100), (1, 3), (5, 1000)] {
            let fraction = Fraction::new(numerator, denominator).unwrap();
            let mut rng = Rng::with_seed(3);
            let drawn = (0..20_000).filter(|_| fraction.draws(&mut rng)).count();
            let wanted = f64::from(numerator) / f64::from(denominator) * 20_000.0;
            assert!((drawn as f64 - wanted).abs() <= 20_000.0 * 0.01, "{fraction:?}: {drawn}, not {wanted}");
            if numerator == 0 || numerator == denominator {
                assert!((drawn as f64 - wanted).abs() < f64::EPSILON, "{fraction:?}");
            }
        }
    }

    #[test]
    fn what_is_more_than_all_is_no_part() {
        assert!(
            Fraction::new(2, 1).is_none() && Fraction::new(0, 0).is_none() && Fraction::new(1, 0).is_none()
        );
        assert!((Fraction::new(1, 8).unwrap().percent() - 12.5).abs() < f64::EPSILON);
    }
}
