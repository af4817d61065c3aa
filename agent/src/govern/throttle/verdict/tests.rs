use http::{HeaderName, Method};

use super::*;
use crate::govern::{
    policy::{LimitKey, RequestMatch, Scope},
    request::tests::Plain,
};

fn reject(name: &str, requests: f64, mode: Mode) -> RateLimit {
    RateLimit {
        name: name.into(),
        requests,
        interval: Duration::from_secs(1),
        burst: requests,
        behaviour: Behaviour::Reject,
        key: LimitKey::None,
        scope: Scope::Node,
        matches: RequestMatch::default(),
        mode,
    }
}

fn throttles(rules: &[RateLimit]) -> Throttles {
    Throttles::new(&rules.iter().cloned().map(Arc::new).collect::<Vec<_>>())
}

fn ask(throttles: &Throttles) -> Verdict<'_> {
    throttles.admit(&Plain::get("/"), "a", None, 0)
}

/// How many are admitted at once.
fn admitted(throttles: &Throttles, request: &Plain) -> usize {
    (0..100).filter(|_| throttles.admit(request, "a", None, 0).refusal().is_none()).count()
}

#[test]
fn without_rules_everything_is_admitted() {
    let none = Throttles::default();
    let verdict = ask(&none);
    assert!(verdict.refusal().is_none());
    assert_eq!(verdict.wait(), Duration::ZERO);
    assert_eq!(verdict.decisions().count(), 0);
}

#[test]
fn all_rules_that_are_about_a_request_must_admit_it() {
    let writes = RequestMatch { methods: vec![Method::POST], ..RequestMatch::default() };
    let rules = throttles(&[
        reject("all", 10.0, Mode::Enforce),
        RateLimit { matches: writes, ..reject("writes", 3.0, Mode::Enforce) },
    ]);
    let write = Plain { method: "POST", ..Plain::get("/") };
    assert_eq!(admitted(&rules, &write), 3);
    let refused = rules.admit(&write, "a", None, 0);
    let refusal = refused.refusal().expect("the three are gone");
    assert_eq!((&*refusal.rule.name, refusal.retry_after.as_millis()), ("writes", 333));
    // The 97 that were refused took nothing from the other rule.
    assert_eq!(admitted(&rules, &Plain::get("/")), 7);
    assert_eq!(admitted(&rules, &write), 0);
    assert_eq!(&*rules.admit(&write, "a", None, 0).refusal().expect("ten are gone").rule.name, "all");
}

#[test]
fn a_rule_of_several_counts_a_request_once() {
    let shared = throttles(&[reject("shared", 4.0, Mode::Enforce)]);
    let other = throttles(&[reject("other", 3.0, Mode::Enforce)]);
    assert_eq!(admitted(&shared.and([&shared].into_iter()), &Plain::get("/")), 4);
    let both = shared.and([&other, &shared, &other].into_iter());
    assert_eq!(admitted(&both, &Plain::get("/")), 0, "they are the same, and used up");
    assert_eq!(admitted(&other, &Plain::get("/")), 3, "which takes nothing from the other");
    assert_eq!(other.and([&other, &other].into_iter()).rules.len(), 1);
}

#[test]
fn a_rule_that_observes_refuses_nothing_and_says_what_it_would_have_refused() {
    let rules = throttles(&[reject("watched", 2.0, Mode::Observe), reject("enforced", 4.0, Mode::Enforce)]);
    let said = |verdict: &Verdict| -> Vec<(String, bool)> {
        verdict
            .decisions()
            .map(|(rule, admission)| (rule.name.to_string(), matches!(admission, Admission::Refused { .. })))
            .collect()
    };
    let both = |watched, enforced| vec![("watched".to_owned(), watched), ("enforced".to_owned(), enforced)];
    let verdicts: Vec<_> = (0..5).map(|_| ask(&rules)).collect();
    let refused: Vec<bool> = verdicts.iter().map(|verdict| verdict.refusal().is_some()).collect();
    assert_eq!(refused, [false, false, false, false, true]);
    let said: Vec<_> = verdicts.iter().map(said).collect();
    assert_eq!(
        said,
        [both(false, false), both(false, false), both(true, false), both(true, false), both(true, true)]
    );
}

#[test]
fn a_rule_that_observes_gets_back_what_others_refuse() {
    let rules = throttles(&[reject("watched", 5.0, Mode::Observe), reject("enforced", 2.0, Mode::Enforce)]);
    for _ in 0..50 {
        drop(ask(&rules));
    }
    let left = rules.iter().find(|throttle| &*throttle.rule().name == "watched").expect("it is there");
    let left = (0..10).filter(|_| left.admit(&Plain::get("/"), "a", 0) == Some(Admission::Now)).count();
    assert_eq!(left, 3);
}

#[test]
fn the_longest_wait_counts_and_waits_that_are_only_observed_do_not() {
    let queue = |name: &str, requests, mode| RateLimit {
        burst: 1.0,
        behaviour: Behaviour::Queue { timeout: Duration::from_secs(10) },
        ..reject(name, requests, mode)
    };
    let rules = throttles(&[
        queue("watched", 1.0, Mode::Observe),
        queue("slow", 10.0, Mode::Enforce),
        queue("fast", 100.0, Mode::Enforce),
    ]);
    let waits: Vec<_> = (0..3).map(|_| ask(&rules).wait().as_millis()).collect();
    assert_eq!(waits, [0, 100, 200]);
}

#[test]
fn nobody_queues_who_is_refused_elsewhere() {
    let queue = RateLimit {
        burst: 1.0,
        behaviour: Behaviour::Queue { timeout: Duration::from_secs(10) },
        ..reject("queue", 10.0, Mode::Enforce)
    };
    let rules = throttles(&[queue, reject("enforced", 2.0, Mode::Enforce)]);
    assert_eq!(admitted(&rules, &Plain::get("/")), 2);
    let queue = rules.iter().find(|throttle| &*throttle.rule().name == "queue").expect("it is there");
    let next = queue.admit(&Plain::get("/"), "a", 0);
    assert_eq!(next, Some(Admission::After(Duration::from_millis(200))));
}

#[test]
fn who_cannot_wait_for_its_turn_takes_nobodys() {
    let queue = RateLimit {
        burst: 1.0,
        behaviour: Behaviour::Queue { timeout: Duration::from_secs(2) },
        ..reject("queue", 10.0, Mode::Enforce)
    };
    let rules = throttles(&[queue, reject("all", 100.0, Mode::Enforce)]);
    let ask = |left| rules.admit(&Plain::get("/"), "a", Some(Duration::from_millis(left)), 0);
    let said: Vec<_> = (0..5)
        .map(|_| {
            let verdict = ask(250);
            (verdict.wait().as_millis(), verdict.refusal().map(|refusal| refusal.retry_after.as_millis()))
        })
        .collect();
    // Those that are refused may come again when the queue is shorter, and make it no longer.
    assert_eq!(said, [(0, None), (100, None), (200, None), (0, Some(50)), (0, Some(50))]);
    assert_eq!(ask(300).wait().as_millis(), 300);
}

#[test]
fn what_is_not_made_after_all_is_given_back() {
    let rules = throttles(&[reject("one", 1.0, Mode::Enforce), reject("two", 1.0, Mode::Observe)]);
    for _ in 0..10 {
        let verdict = ask(&rules);
        assert!(verdict.refusal().is_none());
        verdict.give_back(0);
    }
    drop(ask(&rules));
    assert!(ask(&rules).refusal().is_some());
}

#[test]
fn rules_keep_their_state_by_name() {
    let rules = |rules: &[RateLimit]| rules.iter().cloned().map(Arc::new).collect::<Vec<_>>();
    let (kept, gone) = (reject("kept", 5.0, Mode::Enforce), reject("gone", 1.0, Mode::Enforce));
    let before = Throttles::new(&rules(&[kept.clone(), gone]));
    assert_eq!(admitted(&before, &Plain::get("/")), 1);
    let new = RateLimit {
        key: LimitKey::Header(HeaderName::from_static("x-user")),
        ..reject("new", 100.0, Mode::Enforce)
    };
    let after = before.with_rules(&rules(&[new.clone(), kept.clone()]), 0);
    assert_eq!(admitted(&after, &Plain::get("/")), 4);
    // The same rules again change nothing, and one that was away begins anew.
    let again = after.with_rules(&rules(&[new.clone(), kept.clone()]), 0);
    assert_eq!(admitted(&again, &Plain::get("/")), 0);
    let without = again.with_rules(&rules(std::slice::from_ref(&new)), 0);
    assert_eq!(admitted(&without.with_rules(&rules(&[new, kept]), 0), &Plain::get("/")), 5);
}
