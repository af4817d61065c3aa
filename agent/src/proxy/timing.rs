//! How long of a request's time was the endpoint's, and how long was Sluice's own.
//!
//! ```text
//!   head read        head sent            answer's head there     handed to the caller
//!       |--- added ------|------ upstream ---------|------ added --------|
//! ```
//!
//! What follows is the bodies' way, whose pace the caller and the endpoint set. With further attempts the middle part
//! comes again; what lies between (a connection that is opened, the wait before a retry) is Sluice's. So is what a rule
//! makes a request wait for.

use crate::clock::Nanos;

/// Notes the moments as they come. [`Nanos::ZERO`] stands for a moment that has not come.
#[derive(Debug, Default)]
pub(crate) struct Timing {
    /// When an endpoint was sent the request's head, while its answer is awaited.
    asked: Nanos,
    /// What endpoints have taken so far.
    upstream: Nanos,
    passed_on: bool,
    handed: Nanos,
}

/// How the time of a request is divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Division {
    pub(crate) upstream: Nanos,
    /// `None`: no answer of an endpoint was passed on, so there is nothing that anything was added to.
    pub(crate) added: Option<Nanos>,
}

impl Timing {
    /// An endpoint is sent the request's head.
    pub(crate) fn asked(&mut self, now: Nanos) {
        self.heard(now);
        self.asked = now;
    }

    /// The endpoint's answer has begun, or the attempt is over.
    pub(crate) fn heard(&mut self, now: Nanos) {
        if self.asked != Nanos::ZERO {
            self.upstream = self.upstream + now.since(self.asked);
            self.asked = Nanos::ZERO;
        }
    }

    /// An endpoint's answer was passed on, its head until `handed`; [`Nanos::ZERO`]: until its end, all at once.
    pub(crate) fn passed_on(&mut self, handed: Nanos) {
        self.passed_on = true;
        self.handed = handed;
    }

    /// What endpoints have taken, up to now.
    pub(crate) fn upstream(&self, now: Nanos) -> Nanos {
        match self.asked {
            Nanos::ZERO => self.upstream,
            asked => self.upstream + now.since(asked),
        }
    }

    /// Of a request that has begun then and ends now; `None` if no endpoint was asked.
    pub(crate) fn divide(&self, began: Nanos, now: Nanos) -> Option<Division> {
        let upstream = self.upstream(now);
        let handed = if self.handed == Nanos::ZERO { now } else { self.handed };
        let added = self.passed_on.then(|| handed.since(began).since(upstream));
        (upstream != Nanos::ZERO || self.passed_on).then_some(Division { upstream, added })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGAN: Nanos = Nanos(1_000);

    fn divided(timing: &Timing, now: u64) -> Option<(u64, Option<u64>)> {
        timing.divide(BEGAN, Nanos(now)).map(|parts| (parts.upstream.0, parts.added.map(|added| added.0)))
    }

    #[test]
    fn an_answer_that_is_whole_at_once_is_handed_over_at_its_end() {
        let mut timing = Timing::default();
        timing.asked(Nanos(1_030));
        timing.heard(Nanos(1_530));
        timing.passed_on(Nanos::ZERO);
        assert_eq!(divided(&timing, 1_550), Some((500, Some(50))));
    }

    #[test]
    fn the_bodys_way_is_nobodys() {
        let mut timing = Timing::default();
        timing.asked(Nanos(1_030));
        timing.heard(Nanos(1_530));
        timing.passed_on(Nanos(1_540));
        assert_eq!(divided(&timing, 9_000), Some((500, Some(40))));
    }

    #[test]
    fn attempts_add_up_and_what_lies_between_is_added() {
        let mut timing = Timing::default();
        timing.asked(Nanos(1_010));
        timing.heard(Nanos(1_110));
        // Heard twice: the attempt was over already.
        timing.heard(Nanos(1_200));
        // Asked again without an answer: over a connection that its server had closed.
        timing.asked(Nanos(1_310));
        timing.asked(Nanos(1_320));
        timing.heard(Nanos(1_420));
        timing.passed_on(Nanos::ZERO);
        assert_eq!(divided(&timing, 1_430), Some((210, Some(220))));
    }

    #[test]
    fn nothing_is_added_where_nothing_was_answered() {
        let mut timing = Timing::default();
        assert_eq!(divided(&timing, 5_000), None);
        timing.asked(Nanos(1_010));
        assert_eq!(divided(&timing, 1_510), Some((500, None)), "it was left while it was awaited");
        timing.heard(Nanos(1_110));
        assert_eq!(divided(&timing, 5_000), Some((100, None)));
    }
}
