//! What is on the screen, and what keys do to it.

use serde_json::{Value, json};

use super::{
    keys::Key,
    lines::{Outcome, Sort, View, plain},
};

fn overview(count: u32) -> Value {
    let service = |n: u32| {
        json!({ "name": format!("s-{n:03}"), "namespace": "shop", "port": 80, "rate": f64::from(n % 7), "error_ratio": 0.0,
                "rejected_rate": 0.0, "p50_micros": null, "p95_micros": 5, "p99_micros": n, "in_flight": 0 })
    };
    json!({ "node": "n1", "services": (0..count).map(service).collect::<Vec<_>>() })
}

/// The services that are shown, in their order.
fn names(screen: &str) -> Vec<&str> {
    screen.lines().filter_map(|line| line.split_once(".shop:80").map(|(name, _)| name)).collect()
}

#[test]
fn as_many_services_as_fit_are_shown_and_keys_scroll() {
    let overview = overview(500);
    let mut view = View::new(Sort::Name);
    let size = (80, 25);
    let screen = view.screen(&overview, size);
    assert!(
        screen.lines().count() <= 25 && screen.lines().all(|line| line.chars().count() <= 80),
        "{screen}"
    );
    assert_eq!(names(&screen).len(), 20, "{screen}");
    assert!(
        screen.contains("sluice on n1: 500 service ports managed") && screen.contains("1 to 20 of 500"),
        "{screen}"
    );
    let mut press = |key| {
        assert_eq!(view.key(key), Outcome::Stay);
        names(&view.screen(&overview, size))[0].to_owned()
    };
    assert_eq!(press(Key::Up), "s-000");
    assert_eq!(press(Key::Down), "s-001");
    assert_eq!(press(Key::PageDown), "s-021");
    assert_eq!(press(Key::Bottom), "s-480");
    assert_eq!(press(Key::Down), "s-480", "there is nothing below");
    assert_eq!(press(Key::PageUp), "s-460");
    assert_eq!(press(Key::Top), "s-000");
    assert_eq!(view.key(Key::Quit), Outcome::Quit);
    // It becomes smaller, and so does what is shown.
    view.key(Key::Bottom);
    assert_eq!(names(&view.screen(&self::overview(3), (20, 4))), ["s-002"]);
    assert_eq!(names(&view.screen(&self::overview(0), (80, 25))), [""; 0]);
}

#[test]
fn each_order_is_stable_and_the_next_begins_at_its_top() {
    let overview = overview(50);
    let mut view = View::new(Sort::Requests);
    let screen = view.screen(&overview, (80, 12));
    assert_eq!(names(&screen), ["s-006", "s-013", "s-020", "s-027", "s-034", "s-041", "s-048"], "{screen}");
    view.key(Key::PageDown);
    view.key(Key::Sort);
    let screen = view.screen(&overview, (80, 12));
    assert!(screen.contains("sort (by name)"), "{screen}");
    assert_eq!(names(&screen)[0], "s-000");
    for (word, first) in [
        ("errors", "s-000"),
        ("rejected", "s-000"),
        ("p99", "s-049"),
        ("in flight", "s-000"),
        ("requests", "s-006"),
    ] {
        view.key(Key::Sort);
        let screen = view.screen(&overview, (80, 12));
        assert!(screen.contains(&format!("sort (by {word})")), "{screen}");
        assert_eq!(names(&screen)[0], first, "{word}");
    }
}

#[test]
fn without_a_screen_there_are_all_of_them() {
    assert_eq!(names(&plain(&overview(60), Sort::P99))[..2], ["s-059", "s-058"]);
    assert_eq!(names(&plain(&overview(60), Sort::Name)).len(), 60);
    let hostile = json!({ "node": "\u{1b}[2J", "services": [{ "name": "\u{1b}]0;x\u{7}", "namespace": "shop", "port": 80 }] });
    assert!(!plain(&hostile, Sort::Name).contains('\u{1b}'));
}
