//! How much of the requests is told of: a ratio, and who is in it.
//!
//! Where a request belongs to a trace its id decides, as in OpenTelemetry's TraceIdRatioBased, so that everybody who
//! samples at the same ratio picks the same requests.
//! <https://opentelemetry.io/docs/specs/otel/trace/sdk/#traceidratiobased>

use std::{fmt, str::FromStr};

use super::trace::context::TraceId;

/// From 0 (none) to 1 (all).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio(f64);

/// It is never NaN.
impl Eq for Ratio {}

/// Not a number from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a number from 0 to 1 is needed, as in 0.01")]
pub struct NoRatio;

impl Ratio {
    pub const NONE: Self = Self(0.0);
    pub const ALL: Self = Self(1.0);

    /// `None` if it is no ratio.
    pub fn new(ratio: f64) -> Option<Self> {
        // (`-0` is 0.)
        (0.0..=1.0).contains(&ratio).then_some(Self(ratio.abs()))
    }

    pub fn get(self) -> f64 {
        self.0
    }

    pub fn is_none(self) -> bool {
        self.0 <= 0.0
    }

    /// Whether a request is in it, of this trace or of none.
    pub fn takes(self, trace: Option<TraceId>, rng: &mut fastrand::Rng) -> bool {
        if self.0 >= 1.0 {
            return true;
        }
        !self.is_none() && trace.map_or_else(|| rng.f64() < self.0, |trace| self.includes(trace))
    }

    /// Whether a trace is in it, by the last 63 bits of its id.
    pub fn includes(self, trace: TraceId) -> bool {
        let bound = (self.0 * (1_u64 << 63) as f64) as u64;
        self.0 >= 1.0 || (trace.get() as u64) >> 1 < bound
    }
}

impl FromStr for Ratio {
    type Err = NoRatio;

    fn from_str(text: &str) -> Result<Self, NoRatio> {
        text.trim().parse().ok().and_then(Self::new).ok_or(NoRatio)
    }
}

impl fmt::Display for Ratio {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_is_from_0_to_1() {
        for (text, ratio) in [("0", 0.0), ("-0", 0.0), ("0.25", 0.25), ("1", 1.0), (" 1e-3 ", 0.001)] {
            assert_eq!(text.parse(), Ok(Ratio(ratio)), "{text}");
        }
        for text in ["", "1.01", "-0.1", "NaN", "inf", "half", "50%"] {
            assert_eq!(text.parse::<Ratio>(), Err(NoRatio), "{text}");
        }
    }

    #[test]
    fn a_trace_is_in_or_out_for_everybody() {
        let mut rng = fastrand::Rng::with_seed(1);
        let tenth = Ratio::new(0.1).unwrap();
        let mut taken = 0;
        for _ in 0..20_000 {
            let trace = TraceId::random(&mut rng);
            let takes = tenth.takes(Some(trace), &mut rng);
            assert_eq!(takes, tenth.includes(trace));
            // Whoever samples more has what others have.
            assert!(!takes || Ratio::new(0.2).unwrap().includes(trace));
            taken += u32::from(takes);
        }
        assert!((1_800..2_200).contains(&taken), "{taken}");
    }

    #[test]
    fn requests_without_a_trace_are_drawn() {
        let mut rng = fastrand::Rng::with_seed(1);
        let taken = (0..20_000).filter(|_| Ratio::new(0.1).unwrap().takes(None, &mut rng)).count();
        assert!((1_800..2_200).contains(&taken), "{taken}");
        assert!((0..1000).all(|_| Ratio::ALL.takes(None, &mut rng)));
        assert!(!(0..1000).any(|_| Ratio::NONE.takes(None, &mut rng)));
        let trace = TraceId::new(1).unwrap();
        assert!(Ratio::ALL.takes(Some(trace), &mut rng) && !Ratio::NONE.takes(Some(trace), &mut rng));
    }
}
