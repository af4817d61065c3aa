//! What a peer may make us do besides carrying messages: by rate, never by what a connection has lived through. Pure.
//!
//! Frames that carry nothing (PING, SETTINGS, WINDOW_UPDATE, PRIORITY, empty DATA, ...) are paid for with what the peer has
//! [`earned`](Calm::earn) by the messages that it took or sent, since a healthy one answers these with just such frames;
//! beyond that from a bucket of its connection's, and one that all connections of its pod share. Streams that come to
//! nothing (given up, refused, broken) have buckets of their own, for they cost more.
//!
//! Whoever has nothing left is not read from for a while ([`PAUSE`]): that alone bounds what it costs, and a burst harms
//! nobody. Only a peer that goes on like that is ended: soon if it brings nothing but this, late if it brings something.

use std::{cell::RefCell, time::Duration};

use crate::clock::Nanos;

/// How long a peer that has used up what it may is not read from.
pub(crate) const PAUSE: Nanos = Nanos::of(Duration::from_millis(50));

/// A peer that has not been paused for so long is no longer under suspicion.
const FORGIVEN: Nanos = Nanos::of(Duration::from_secs(2));

/// How long a peer may be paused again and again: one that brings little else meanwhile, and one that does.
const PATIENCE: Nanos = Nanos::of(Duration::from_secs(1));
const PATIENCE_WITH_THE_USEFUL: Nanos = Nanos::of(Duration::from_secs(10));

/// One part of a message to so many things that had to be paid for is little.
const LITTLE: u32 = 8;

/// What may be earned in advance.
const MOST_EARNED: u32 = 4096;

/// What each frame with a part of a message earns, and each so many bytes of it: a reader answers it with updates of two
/// windows, and perhaps with a PING to measure how far away we are.
const EARNED_BY_FRAME: u32 = 4;
const BYTES_THAT_EARN: usize = 64;

/// What must be paid for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// A frame that carries nothing.
    Control,
    /// A stream that comes to nothing.
    Reset,
}

/// What becomes of a peer that has to pay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Go,
    /// It is not read from until then.
    Pause(Nanos),
    /// With `ENHANCE_YOUR_CALM`.
    End,
}

/// So much at once, and so much a second.
#[derive(Debug)]
struct Bucket {
    capacity: u64,
    rate: u64,
    /// In billionths, so that no nanosecond is lost.
    filled: u64,
    at: Nanos,
}

const UNIT: u64 = 1_000_000_000;

impl Bucket {
    fn new(capacity: u64, rate: u64, now: Nanos) -> Self {
        Self { capacity, rate, filled: capacity * UNIT, at: now }
    }

    fn refill(&mut self, now: Nanos) {
        let came = now.since(self.at).0.saturating_mul(self.rate);
        self.filled = self.filled.saturating_add(came).min(self.capacity * UNIT);
        self.at = self.at.max(now);
    }

    fn has_one(&mut self, now: Nanos) -> bool {
        self.refill(now);
        self.filled >= UNIT
    }

    fn take_one(&mut self) {
        self.filled = self.filled.saturating_sub(UNIT);
    }
}

/// The buckets of a kind.
#[derive(Debug)]
struct Buckets {
    control: Bucket,
    resets: Bucket,
}

impl Buckets {
    fn of(&mut self, work: Work) -> &mut Bucket {
        match work {
            Work::Control => &mut self.control,
            Work::Reset => &mut self.resets,
        }
    }
}

/// What all connections of a pod share.
#[derive(Debug)]
pub(crate) struct Shared(RefCell<Buckets>);

impl Shared {
    /// 10,000 empty frames cost about a millisecond, and as many streams as here some 50 milliseconds, in a second.
    pub(crate) fn new(now: Nanos) -> Self {
        Self(RefCell::new(Buckets {
            control: Bucket::new(8192, 10_000, now),
            resets: Bucket::new(8192, 16_384, now),
        }))
    }
}

/// The resets that an endpoint's connection bears. Servers end one on which too many come in too short a time, for they take
/// that for an attack (CVE-2023-44487): Netty above 200 in 30 seconds, nghttp2 (Node) above 1,000 at once and 33 a second. On
/// a connection that many clients share they add up, and what is none on any of theirs would end the calls of all. So new
/// streams are opened on another one before that.
#[derive(Debug)]
pub(crate) struct Wear(Bucket);

impl Wear {
    pub(crate) fn new(now: Nanos) -> Self {
        Self(Bucket::new(100, 3, now))
    }

    /// A stream was reset. Whether the connection has borne enough.
    pub(crate) fn note(&mut self, now: Nanos) -> bool {
        self.0.refill(now);
        self.0.take_one();
        self.0.filled < UNIT
    }
}

/// How a peer behaves.
#[derive(Debug)]
pub(crate) struct Calm {
    own: Buckets,
    earned: u32,
    /// Since when it is paused again and again, and when it was last.
    suspect: Option<(Nanos, Nanos)>,
    /// Parts of messages since it is suspect, and what it had to pay for.
    useful: u32,
    paid: u32,
}

impl Calm {
    pub(crate) fn new(now: Nanos) -> Self {
        let own = Buckets {
            control: Bucket::new(256, 256, now),
            // A client whose every call has the same deadline gives all of them up at once: as many as it may have.
            resets: Bucket::new(1536, 4096, now),
        };
        Self { own, earned: 0, suspect: None, useful: 0, paid: 0 }
    }

    /// A frame with so many bytes of a message has come or gone.
    #[inline]
    pub(crate) fn earn(&mut self, bytes: usize) {
        let more = EARNED_BY_FRAME + (bytes / BYTES_THAT_EARN) as u32;
        self.earned = (self.earned + more).min(MOST_EARNED);
        self.useful = self.useful.saturating_add(1);
    }

    /// A stream was opened, of which nothing is known yet.
    pub(crate) fn opened(&mut self) {
        self.earned = (self.earned + EARNED_BY_FRAME).min(MOST_EARNED);
    }

    /// The peer pays for something.
    pub(crate) fn spend(&mut self, work: Work, shared: &Shared, now: Nanos) -> Verdict {
        if work == Work::Control && self.earned > 0 {
            self.earned -= 1;
            return Verdict::Go;
        }
        self.paid = self.paid.saturating_add(1);
        let shared = &mut *shared.0.borrow_mut();
        let (own, shared) = (self.own.of(work), shared.of(work));
        if own.has_one(now) && shared.has_one(now) {
            own.take_one();
            shared.take_one();
            return Verdict::Go;
        }
        self.pause(now)
    }

    fn pause(&mut self, now: Nanos) -> Verdict {
        let since = match self.suspect {
            Some((since, last)) if now.since(last) < FORGIVEN => since,
            _ => {
                (self.useful, self.paid) = (0, 0);
                now
            }
        };
        self.suspect = Some((since, now));
        let little = self.useful < self.paid / LITTLE;
        let patience = if little { PATIENCE } else { PATIENCE_WITH_THE_USEFUL };
        if now.since(since) >= patience { Verdict::End } else { Verdict::Pause(now + PAUSE) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Nanos = Nanos(1_000_000_000);

    fn after(millis: u64) -> Nanos {
        START + Nanos::of(Duration::from_millis(millis))
    }

    /// Does `work` as often as it may within a time, paused when it has to be. Returns how often, and whether it was ended.
    fn flood(
        calm: &mut Calm,
        shared: &Shared,
        work: Work,
        millis: u64,
        mut beside: impl FnMut(&mut Calm),
    ) -> (u32, bool) {
        let (mut now, mut count) = (START, 0);
        while now < after(millis) {
            beside(calm);
            match calm.spend(work, shared, now) {
                Verdict::Go => {
                    count += 1;
                    now = now + Nanos(1000);
                }
                Verdict::Pause(until) => {
                    assert!(until > now);
                    now = until;
                }
                Verdict::End => return (count, true),
            }
        }
        (count, false)
    }

    #[test]
    fn who_only_floods_is_slowed_and_then_ended() {
        for (work, burst, rate) in [(Work::Control, 256, 256), (Work::Reset, 1536, 4096)] {
            let (count, ended) = flood(&mut Calm::new(START), &Shared::new(START), work, 60_000, |_| {});
            assert!(ended, "{work:?}");
            // For about a second.
            assert!(count >= burst && count <= burst + 2 * rate, "{count}");
        }
    }

    #[test]
    fn who_brings_something_beside_a_flood_is_ended_late() {
        let useful = |calm: &mut Calm| calm.useful += 1;
        let (mut calm, shared) = (Calm::new(START), Shared::new(START));
        assert!(!flood(&mut calm, &shared, Work::Control, 9_000, useful).1);
        let (mut calm, shared) = (Calm::new(START), Shared::new(START));
        assert!(flood(&mut calm, &shared, Work::Control, 60_000, useful).1);
        // Now and then is as good as never.
        let (mut calm, shared) = (Calm::new(START), Shared::new(START));
        let mut turns = 0;
        let rarely = |calm: &mut Calm| {
            turns += 1;
            calm.useful += u32::from(turns % 20 == 0);
        };
        assert!(flood(&mut calm, &shared, Work::Reset, 5_000, rarely).1);
    }

    #[test]
    fn bursts_and_steady_cancelling_are_nothing() {
        let (mut calm, shared) = (Calm::new(START), Shared::new(START));
        for _ in 0..1024 {
            assert_eq!(calm.spend(Work::Reset, &shared, START), Verdict::Go);
        }
        // 60 every 20 ms, for a minute.
        for turn in 1..3000 {
            for _ in 0..60 {
                assert_eq!(calm.spend(Work::Reset, &shared, after(turn * 20)), Verdict::Go, "{turn}");
            }
        }
    }

    #[test]
    fn a_reader_may_answer_every_message() {
        let (mut calm, shared) = (Calm::new(START), Shared::new(START));
        for _ in 0..1_000_000 {
            calm.earn(6);
            for _ in 0..3 {
                assert_eq!(calm.spend(Work::Control, &shared, START), Verdict::Go);
            }
        }
    }

    #[test]
    fn a_connection_wears_out_by_the_rate_of_resets_and_not_in_a_lifetime() {
        let mut wear = Wear::new(START);
        assert!((1..100).all(|_| !wear.note(START)) && wear.note(START), "a hundred at once");
        let mut wear = Wear::new(START);
        assert!((0..10_000).all(|count| !wear.note(after(count * 500))));
        // In any 30 seconds no more than Netty bears.
        let mut wear = Wear::new(START);
        let most = (0..1000).take_while(|count| !wear.note(after(count * 30_000 / 200))).count();
        assert!(most < 200, "{most}");
    }

    #[test]
    fn who_calms_down_is_forgiven() {
        let (mut calm, shared) = (Calm::new(START), Shared::new(START));
        let mut now = START;
        for _ in 0..100 {
            // Until it is paused, then silence.
            while calm.spend(Work::Control, &shared, now) == Verdict::Go {}
            assert!(matches!(calm.pause(now), Verdict::Pause(_)));
            now = now + FORGIVEN + Nanos(1);
        }
    }

    #[test]
    fn many_connections_of_a_pod_share_what_it_may() {
        let shared = Shared::new(START);
        let mut calms: Vec<_> = (0..2000).map(|_| Calm::new(START)).collect();
        let mut count = 0;
        for calm in &mut calms {
            while calm.spend(Work::Control, &shared, START) == Verdict::Go {
                count += 1;
            }
        }
        assert_eq!(count, 8192);
        // What was earned is not touched by that.
        calms[0].earn(0);
        assert_eq!(calms[0].spend(Work::Control, &shared, START), Verdict::Go);
    }
}
