use super::*;

#[test]
fn capture_is_enabled_or_disabled() {
    assert_eq!(parse_capture("enabled"), Ok(true));
    assert_eq!(parse_capture("disabled"), Ok(false));
    for bad in ["", "Enabled", "true", "yes", " enabled"] {
        assert!(parse_capture(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn the_schemas_are_structural() {
    TrafficPolicy::schema();
    TrafficLane::schema();
}
