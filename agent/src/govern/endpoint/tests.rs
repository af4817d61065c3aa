use super::*;

const MS: u64 = 1_000_000;
const S: u64 = 1000 * MS;

fn endpoint() -> Arc<Endpoint> {
    Arc::new(Endpoint::new(([10, 1, 0, 1], 8080).into()))
}

#[test]
fn in_flight_is_counted_until_the_guard_is_dropped() {
    let endpoint = endpoint();
    let mut one = InFlight::begin(Arc::clone(&endpoint), S);
    let two = InFlight::begin(Arc::clone(&endpoint), S);
    assert_eq!(endpoint.load.in_flight.load(Relaxed), 2);
    one.answered(Some(7 * MS), S);
    assert_eq!(endpoint.load.in_flight.load(Relaxed), 2);
    assert_eq!(endpoint.load.cost().typical_nanos().map(|nanos| (nanos / 1e6).round()), Some(7.0));
    drop((one, two));
    assert_eq!(endpoint.load.in_flight.load(Relaxed), 0);
}

#[test]
fn many_workers_lose_no_count() {
    let endpoint = endpoint();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let endpoint = &endpoint;
            scope.spawn(move || {
                for round in 0..1000 {
                    let mut guard = InFlight::begin(Arc::clone(endpoint), S);
                    guard.answered(Some(MS + round), S + round);
                }
            });
        }
    });
    assert_eq!(endpoint.load.in_flight.load(Relaxed), 0);
    let typical = endpoint.load.cost().typical_nanos().expect("there were answers");
    assert!((typical - 1e6).abs() < 2000.0, "{typical}");
}

#[test]
fn the_first_request_is_the_first_since_it_is_ready() {
    let load = Load::default();
    assert_eq!(load.first_request(Some(-5)), None);
    load.note_first_request(Some(-5), 0);
    assert_eq!(load.first_request(Some(-5)), Some(1), "zero means that there was none");
    load.note_first_request(Some(-5), 70);
    assert_eq!(load.first_request(Some(-5)), Some(1));
    // Ready anew.
    assert_eq!(load.first_request(Some(100)), None);
    load.note_first_request(Some(100), 130);
    assert_eq!(load.first_request(Some(100)), Some(130));
    // Who still has the endpoint of before changes nothing.
    load.note_first_request(Some(-5), 140);
    assert_eq!(load.first_request(Some(100)), Some(130));
    // A clock that is ahead has said when it became ready.
    load.note_first_request(Some(200), 190);
    assert_eq!(load.first_request(Some(200)), Some(200));
    // Nobody knows since when it is ready.
    assert_eq!(load.first_request(None), Some(200));
}

#[test]
fn of_what_is_known_of_the_first_request_the_earliest_counts() {
    let load = Load::default();
    load.hear_first_request(100, 130);
    assert_eq!(load.first_request(Some(100)), Some(130));
    load.hear_first_request(100, 140);
    load.note_first_request(Some(100), 150);
    assert_eq!(load.first_request(Some(100)), Some(130));
    load.hear_first_request(100, 120);
    assert_eq!(load.first_request(Some(100)), Some(120));
    // Before it was ready it was not asked; zero means that it was not.
    load.hear_first_request(100, 90);
    assert_eq!(load.first_request(Some(100)), Some(100));
    load.hear_first_request(-5, 0);
    assert_eq!(load.first_request(Some(-5)), Some(1));
    // Ready anew: what was before is not known any more.
    load.hear_first_request(200, 230);
    assert_eq!(load.first_request(Some(200)), Some(230));
}

#[test]
fn termination_is_seen_by_those_who_hold_the_endpoint_of_before() {
    let endpoint = endpoint();
    assert_eq!(endpoint.load.terminating_since(), None);
    endpoint.load.set_terminating(true, 0);
    endpoint.load.set_terminating(true, 50);
    assert_eq!(endpoint.load.terminating_since(), Some(1), "zero means that it does not");
    endpoint.load.set_terminating(false, 60);
    assert_eq!(endpoint.load.terminating_since(), None);
    endpoint.load.set_terminating(true, 70);
    assert_eq!(endpoint.load.terminating_since(), Some(70));
}

#[test]
fn the_family_that_took_the_last_connection_is_remembered_until_one_is_not_answered() {
    let load = Load::default();
    assert!(!load.answers_in_other_family());
    assert!(!load.note_family(false), "as was to be expected");
    assert!(load.note_family(true) && !load.note_family(true), "told once");
    assert!(load.answers_in_other_family());
    // What is not answered costs time, and the client's own choice may be better.
    load.missed(S, 2 * S);
    assert!(!load.answers_in_other_family());
    assert!(load.note_family(true) && load.note_family(false));
    assert!(!load.answers_in_other_family());
}
