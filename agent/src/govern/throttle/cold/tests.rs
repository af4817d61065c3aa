//! A limit of 10 a second, 10 s of warm-up and a cold factor of 3: `W` = 10 * 10 / 2 = 50, `M` = 50 + 2 * 100 / 4 = 100, and a
//! request gets dearer by 2 * 100 ms / 50 = 4 ms with each one that is stored.

use super::*;

const MILLI: Ticks = 1_000_000 << 32;

fn cold() -> ColdStart {
    ColdStart::new(100 * MILLI, 10_000 * MILLI, 3.0).expect("there is something to warm up")
}

#[test]
fn what_a_request_costs_falls_along_the_line() {
    for (stored, wanted_micros) in [
        // Halfway between 300 and 296 ms.
        (100.0, 298_000),
        (99.0, 294_000),
        (75.5, 200_000),
        (51.0, 102_000),
        // Half a request at 101 ms in the middle, half of one at 100 ms.
        (50.5, 100_500),
        (50.0, 100_000),
        (20.0, 100_000),
        (0.0, 100_000),
    ] {
        let cost = cold().cost(100 * MILLI, stored);
        assert_eq!((cost + MILLI / 2000) / (MILLI / 1000), wanted_micros, "with {stored} stored");
    }
}

#[test]
fn the_way_from_cold_to_warm_takes_the_warm_up_time() {
    let whole: Ticks = (51..=100).map(|stored| cold().cost(100 * MILLI, f64::from(stored))).sum();
    let wanted = 10_000 * MILLI;
    assert!(whole.abs_diff(wanted) < MILLI / 1000, "{whole} instead of {wanted}");
}

#[test]
fn it_is_cold_again_after_the_warm_up_time_without_load() {
    let cold = cold();
    for (idle_millis, wanted) in
        [(0, 0.0), (1, 0.01), (5_000, 50.0), (9_999, 99.99), (10_000, 100.0), (99_999, 100.0)]
    {
        let stored = cold.refilled(0.0, idle_millis * MILLI);
        assert!((stored - wanted).abs() < 1e-9, "{stored} instead of {wanted} after {idle_millis} ms");
    }
}

#[test]
fn there_is_nothing_to_warm_up_without_time_or_with_a_cold_rate_as_high_as_the_warm_one() {
    for (cost, duration, cold_factor) in [
        (100 * MILLI, 0, 3.0),
        (100 * MILLI, 10_000 * MILLI, 1.0),
        (100 * MILLI, 10_000 * MILLI, 0.5),
        (100 * MILLI, 10_000 * MILLI, f64::NAN),
        (100 * MILLI, 10_000 * MILLI, f64::INFINITY),
    ] {
        assert_eq!(ColdStart::new(cost, duration, cold_factor), None, "{cost} {duration} {cold_factor}");
    }
}
