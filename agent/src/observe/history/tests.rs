use super::*;
use crate::govern::tally::Tally;

fn track(part: Part) -> Track {
    Track { namespace: "shop".into(), service: "orders".into(), port: 8080, part }
}

fn endpoint(number: u16) -> Track {
    track(Part::Endpoint(SocketAddr::from(([10, 0, 0, 1], number))))
}

/// A second in which this happened.
fn second(happened: impl FnOnce(&Tally)) -> Sample {
    let tally = Tally::default();
    happened(&tally);
    Sample { counts: tally.read(), ..Sample::default() }
}

fn busy() -> Sample {
    second(Tally::refused)
}

fn quiet() -> Sample {
    Sample::default()
}

#[test]
fn seconds_hold_what_happened_in_them() {
    let mut history = History::new(8);
    history.sample(1, [(track(Part::Service), quiet())]);
    assert_eq!(history.tracks().count(), 0);
    let answered = second(|tally| {
        tally.answered(2_000_000, false);
        tally.answered(2_000_000, true);
    });
    history.sample(
        2,
        [(track(Part::Service), Sample { in_flight: 3, warm_up: Some(0.25), ..answered.clone() })],
    );
    history.sample(4, [(track(Part::Service), Sample { closed_off: ClosedOff::Open, ..busy() })]);

    let seconds = history.last(&track(Part::Service), 4).unwrap();
    let [None, Some(second), None, Some(fourth)] = seconds[..] else { panic!("{seconds:?}") };
    assert_eq!((second.requests, second.errors, second.refused, second.in_flight), (2, 1, 0, 3));
    assert!(second.p50_micros.is_some_and(|micros| (1_500..2_500).contains(&micros.get())));
    assert_eq!(second.warm_up(), Some(0.25));
    assert_eq!((fourth.requests, fourth.errors, fourth.refused), (1, 0, 1));
    assert_eq!((fourth.p50_micros, fourth.closed_off), (None, ClosedOff::Open));
}

#[test]
fn the_last_ten_seconds_are_told_together() {
    let mut history = History::new(8);
    for number in 1..=25 {
        // One request more each second: 16 to 25 are the last ten.
        let sample = second(|tally| (0..number).for_each(|_| tally.answered(number * 1_000_000, false)));
        history.sample(number, [(track(Part::Service), sample)]);
    }
    let recent = history.recent(&track(Part::Service)).unwrap();
    assert_eq!(recent.requests, (16..=25).sum::<u64>());
    let median = f64::from(recent.percentile_micros(50.0).unwrap());
    assert!((median - 21_000.0).abs() / 21_000.0 < 0.125, "{median}");
    // Four seconds that nobody has looked at are seconds all the same.
    history.sample(30, [(endpoint(1), busy())]);
    assert_eq!(history.recent(&track(Part::Service)).unwrap().requests, (21..=25).sum::<u64>());
    assert!(history.recent(&endpoint(2)).is_none());
}

#[test]
fn a_second_is_taken_once() {
    let mut history = History::new(8);
    history.sample(5, [(track(Part::Service), busy())]);
    history.sample(5, [(track(Part::Service), busy())]);
    history.sample(4, [(track(Part::Service), busy())]);
    let seconds = history.last(&track(Part::Service), 1).unwrap();
    assert_eq!(seconds[0].map(|second| second.requests), Some(1));
}

#[test]
fn what_is_older_than_fifteen_minutes_is_forgotten() {
    let mut history = History::new(8);
    for number in 1..=SECONDS as u64 {
        let sample = if number == 1 { busy() } else { quiet() };
        history.sample(number, [(track(Part::Service), sample)]);
    }
    let seconds = history.last(&track(Part::Service), usize::MAX).unwrap();
    assert_eq!(seconds.len(), SECONDS);
    assert_eq!(seconds[0].map(|second| second.requests), Some(1));
    history.sample(SECONDS as u64 + 1, [(track(Part::Service), quiet())]);
    assert_eq!(history.last(&track(Part::Service), 1), None);
}

#[test]
fn what_is_gone_is_forgotten_when_it_is_said() {
    let mut history = History::new(8);
    history.sample(1, [(endpoint(1), busy()), (endpoint(2), busy())]);
    history.retain(|track| *track == endpoint(2));
    assert_eq!(history.tracks().collect::<Vec<_>>(), [&endpoint(2)]);
}

#[test]
fn there_are_never_more_tracks_than_allowed_and_the_quietest_goes() {
    let mut history = History::new(2);
    // The third is as busy as those that are there: they stay.
    history.sample(1, [(endpoint(1), busy()), (endpoint(2), busy()), (endpoint(3), busy())]);
    assert!(history.last(&endpoint(3), 1).is_none());
    history.sample(2, [(endpoint(2), busy()), (endpoint(3), busy()), (endpoint(4), busy())]);
    assert_eq!((history.tracks().count(), history.lost), (2, 3));
    for (number, there) in [(1, false), (2, true), (3, true), (4, false)] {
        assert_eq!(history.last(&endpoint(number), 1).is_some(), there, "{number}");
    }
}
