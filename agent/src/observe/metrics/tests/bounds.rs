//! How many lines there can be, and what can stand in them.

use super::*;

fn series_of(text: &str, name: &str) -> usize {
    text.lines().filter(|line| line.starts_with(name)).count()
}

#[test]
fn there_are_never_more_series_than_the_cap() {
    let metrics = Metrics::new();
    let gateway = pod(&metrics, "gateway");
    let batch = pod(&metrics, "batch");
    let ask = |pod: &Arc<PodMetrics>, port: usize| {
        let mut series = pod.service(&arc("shop"), &arc("orders"), port as u16);
        series.lane(None).begin().finish(200, None, Duration::ZERO, 0, 0);
    };
    for port in 1..=MAX_SERIES {
        ask(&gateway, port);
    }
    assert_eq!(value(&metrics, "sluice_series_overflowed_total", &[]), Some(0.0));
    // Both pods' further services share one line a pod, and known ones go on by themselves.
    for (pod, port) in [(&gateway, 5001), (&gateway, 5002), (&batch, 1), (&batch, 5003), (&gateway, 7)] {
        ask(pod, port);
    }
    let other = |pod: &str| {
        let labels = [pod, "destination_namespace=\"\"", "destination_service=\"other\""];
        value(&metrics, "sluice_requests_total", &labels)
    };
    assert_eq!((other("\"gateway\""), other("\"batch\"")), (Some(2.0), Some(2.0)));
    assert_eq!(value(&metrics, "sluice_requests_total", &["destination_port=\"7\""]), Some(2.0));
    assert_eq!(value(&metrics, "sluice_series_overflowed_total", &[]), Some(4.0));
    let text = metrics.render().expect("it can be rendered");
    assert_eq!(series_of(&text, "sluice_requests_in_flight{"), MAX_SERIES + 2);
    // A pod that goes makes room.
    evict(&metrics, "gateway");
    drop(gateway);
    metrics.render_at(Format::Text, Instant::now() + EVICTION_GRACE).expect("it can be rendered");
    ask(&batch, 5004);
    assert_eq!(value(&metrics, "sluice_requests_total", &["destination_port=\"5004\""]), Some(1.0));
}

#[test]
fn a_lane_or_service_that_is_gone_takes_its_series_with_it() {
    let metrics = Metrics::new();
    let gateway = pod(&metrics, "gateway");
    let gray: Tag = "gray".parse().expect("a tag");
    let mut open = orders(&gateway);
    let mut closed = gateway.service(&arc("shop"), &arc("stock"), 80);
    let ask = |series: &Arc<Series>| series.begin().finish(200, None, Duration::ZERO, 0, 0);
    ask(open.lane(Some(&gray)));
    ask(closed.lane(None));
    ask(closed.lane(Some(&gray)));
    drop(closed);
    let asked = |name: &str, lane: &str| {
        let labels = [format!("destination_service=\"{name}\""), format!("destination_lane=\"{lane}\"")];
        value(&metrics, "sluice_requests_total", &labels.each_ref().map(String::as_str))
    };
    let now = Instant::now();
    let no_gray = |_: &str, _: &str, _: u16, lane: Option<&Tag>| lane.is_none();
    metrics.retain_services_at(no_gray, now);
    assert_eq!(asked("stock", "gray"), Some(1.0), "it can be scraped once more");
    metrics.retain_services_at(no_gray, now + EVICTION_GRACE);
    assert_eq!(asked("stock", "gray"), None);
    assert_eq!(asked("stock", "baseline"), Some(1.0));
    assert_eq!(asked("orders", "gray"), Some(1.0), "a connection still counts in it");
    drop(open);
    // Gone for a while, back, and gone again: the grace begins anew.
    metrics.retain_services_at(|_, _, _, _| false, now + 2 * EVICTION_GRACE);
    metrics.retain_services_at(|_, _, _, _| true, now + 3 * EVICTION_GRACE);
    metrics.retain_services_at(|_, _, _, _| false, now + 3 * EVICTION_GRACE);
    assert_eq!(asked("orders", "gray"), Some(1.0));
    metrics.retain_services_at(|_, _, _, _| false, now + 4 * EVICTION_GRACE);
    assert_eq!(asked("orders", "gray"), None);
    assert_eq!(asked("stock", "baseline"), None);
}

#[test]
fn hostile_names_cannot_leave_their_label() {
    let metrics = Metrics::new();
    let hostile = "a\"} 1\nsluice_up 1\n# TYPE x \\";
    let mut series = pod(&metrics, hostile).service(&arc("shop"), &arc(hostile), 80);
    series.lane(None).begin().finish(200, None, Duration::ZERO, 0, 0);
    series.rate_limited(&arc(hostile), LimitDecision::Allowed);
    let text = metrics.render().expect("it can be rendered");
    let escaped = "\"a\\\"} 1\\nsluice_up 1\\n# TYPE x \\\\\"";
    assert!(text.contains(&format!("rule={escaped}")), "{text}");
    assert!(text.contains(&format!("source_pod={escaped}")), "{text}");
    let known = |line: &str| {
        let name = line.strip_prefix("# HELP ").or_else(|| line.strip_prefix("# TYPE ")).unwrap_or(line);
        metrics.descriptions().iter().any(|known| name.starts_with(&known.name))
    };
    assert_eq!(text.lines().find(|line| !known(line)), None, "a line that nobody has registered");
}

#[test]
fn what_is_registered_is_described_and_conventional() {
    let descriptions = Metrics::new().descriptions();
    let find = |name: &str| descriptions.iter().find(|known| known.name == name).expect(name);
    assert_eq!(find("sluice_request_duration_seconds").kind, "histogram");
    assert_eq!(find("sluice_added_duration_seconds").kind, "histogram");
    assert_eq!(find("sluice_build_info").labels, ["version"]);
    assert_eq!(
        find("sluice_retries_total").labels,
        ["destination_namespace", "destination_service", "destination_port", "cause"]
    );
    for Description { name, kind, help, .. } in &descriptions {
        assert_eq!(name.ends_with("_total"), *kind == "counter", "{name}");
        assert!(!help.is_empty() && help.ends_with('.'), "{name}: {help}");
    }
    // Each of them says what its values mean only for labels that it has.
    for Description { name, labels, values, .. } in &descriptions {
        assert!(values.iter().all(|(label, all)| labels.contains(label) && !all.is_empty()), "{name}");
    }
}
