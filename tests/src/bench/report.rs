//! Medians of the rounds, as a table and as records.

use std::{collections::BTreeSet, fmt::Write as _};

use serde::Serialize;

use super::{Load, ProxyKind, Work, load::IDLE, run::Sample};

/// The medians of one proxy under one load. What does not apply is `null`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Record {
    pub proxy: String,
    pub load: String,
    /// Requests per second; MiB per second for `tcp-bulk`; for `connect-ungoverned` the inverse of the median time of
    /// a `connect()`.
    pub rps: Option<f64>,
    /// Of a request, in microseconds; of a MiB, of a `connect()`.
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    /// CPU time of the proxy, user and system, a request, in microseconds.
    pub cpu_us_per_request: Option<f64>,
    /// Resident memory of the proxy: the peak since it was started for this load; for `idle-*` that at the end.
    pub peak_rss_kib: Option<u64>,
    /// Requests per second, as a share of those without a proxy in the same round.
    pub ratio_to_direct: Option<f64>,
    /// CPU time a request, as a multiple of nginx's in the same round.
    pub ratio_to_nginx: Option<f64>,
    /// CPU time a request, as a multiple of haproxy's in the same round.
    pub ratio_to_haproxy: Option<f64>,
    /// p99 as a multiple of nginx's in the same round; in the table only.
    #[serde(skip)]
    pub p99_to_nginx: Option<f64>,
    /// CPU time a request, as a multiple of that of Sluice without a policy in the same round; not in the table.
    #[serde(skip)]
    pub ratio_to_sluice: Option<f64>,
}

/// One record a proxy and load, in the order of the loads.
pub fn records(samples: &[Sample]) -> Vec<Record> {
    let mut seen = Vec::new();
    for sample in samples {
        if !seen.contains(&(sample.load, sample.proxy)) {
            seen.push((sample.load, sample.proxy));
        }
    }
    let mut loads: Vec<Load> = Vec::new();
    for (load, _) in &seen {
        if !loads.contains(load) {
            loads.push(*load);
        }
    }
    let ordered = loads.into_iter().flat_map(|load| ProxyKind::ALL.map(|proxy| (load, proxy)));
    ordered.filter(|cell| seen.contains(cell)).map(|(load, proxy)| record(samples, load, proxy)).collect()
}

fn record(samples: &[Sample], load: Load, proxy: ProxyKind) -> Record {
    let idle = load.work == Work::Idle;
    let of = |value: &dyn Fn(&Sample) -> Option<f64>| {
        median(samples.iter().filter(|s| s.load == load && s.proxy == proxy).filter_map(value))
    };
    // A value of this proxy over the same value of another, in the same round.
    let ratio = |other: ProxyKind, value: &dyn Fn(&Sample) -> Option<f64>| {
        of(&|sample| {
            let same = |s: &&Sample| s.round == sample.round && s.load == load && s.proxy == other;
            let base = value(samples.iter().find(same)?)?;
            (base > 0.0).then_some(value(sample)? / base)
        })
        .filter(|_| !idle)
    };
    Record {
        proxy: proxy.to_string(),
        load: load.to_string(),
        rps: of(&|s| Some(rps(s))).filter(|_| !idle),
        p50_us: of(&|s| Some(s.outcome.p50_us)).filter(|_| !idle),
        p99_us: of(&|s| Some(s.outcome.p99_us)).filter(|_| !idle),
        // A connect that is not redirected never reaches the proxy.
        cpu_us_per_request: of(&cpu).filter(|_| !idle && load.work != Work::Connect),
        peak_rss_kib: of(&|s| s.outcome.rss_kib.map(|kib| kib as f64)).map(|kib| kib as u64),
        ratio_to_direct: ratio(ProxyKind::Direct, &|s| Some(rps(s))),
        ratio_to_nginx: ratio(ProxyKind::Nginx, &cpu),
        ratio_to_haproxy: ratio(ProxyKind::Haproxy, &cpu),
        p99_to_nginx: ratio(ProxyKind::Nginx, &|s| Some(s.outcome.p99_us)),
        ratio_to_sluice: ratio(ProxyKind::Sluice, &cpu),
    }
}

fn rps(sample: &Sample) -> f64 {
    if sample.load.work == Work::Connect {
        // The few that the scheduler interrupted would outweigh what is looked for, a part of a microsecond.
        return 1e6 / sample.outcome.p50_us;
    }
    if sample.outcome.seconds > 0.0 { sample.outcome.requests as f64 / sample.outcome.seconds } else { 0.0 }
}

fn cpu(sample: &Sample) -> Option<f64> {
    let requests = sample.outcome.requests;
    (requests > 0).then_some(sample.outcome.cpu_us? / requests as f64)
}

/// The middle value, or the mean of the two middle ones.
fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

/// The records as people read them.
pub fn table(records: &[Record]) -> String {
    let mut text = format!(
        "{:<20} {:<8} {:>10} {:>9} {:>9} {:>10} {:>9} {:>8} {:>8} {:>9} {:>8}\n",
        "load",
        "proxy",
        "requests/s",
        "p50 us",
        "p99 us",
        "CPU us/req",
        "peak KiB",
        "rps",
        "CPU",
        "CPU",
        "p99"
    );
    let _ = writeln!(
        text,
        "{:<20} {:<8} {:>59} {:>8} {:>9} {:>8}",
        "", "", "x direct", "x nginx", "x haproxy", "x nginx"
    );
    let number =
        |value: Option<f64>, digits: usize| value.map_or("-".to_owned(), |value| format!("{value:.digits$}"));
    let mut previous = "";
    for record in records.iter().filter(|record| record.rps.is_some()) {
        if !previous.is_empty() && previous != record.load {
            text.push('\n');
        }
        previous = &record.load;
        let _ = writeln!(
            text,
            "{:<20} {:<8} {:>10} {:>9} {:>9} {:>10} {:>9} {:>8} {:>8} {:>9} {:>8}",
            record.load,
            record.proxy,
            number(record.rps, 0),
            number(record.p50_us, 1),
            number(record.p99_us, 1),
            number(record.cpu_us_per_request, 2),
            record.peak_rss_kib.map_or("-".to_owned(), |kib| kib.to_string()),
            number(record.ratio_to_direct, 3),
            number(record.ratio_to_nginx, 3),
            number(record.ratio_to_haproxy, 3),
            number(record.p99_to_nginx, 3),
        );
    }
    let pairs = idle_pairs(records);
    if !pairs.is_empty() {
        let pairs: Vec<_> = pairs.iter().map(|(proxy, kib)| format!("{proxy} {kib:.1} KiB")).collect();
        let _ = writeln!(text, "\nmemory of a further idle connection pair: {}", pairs.join(", "));
    }
    text
}

/// What Sluice aims at and what it reached, a line each, of the loads that were run.
pub fn aims(records: &[Record]) -> String {
    let busy = Load { work: Work::KeepAlive { bytes: 100 }, connections: 32 }.to_string();
    let connect = Load { work: Work::Connect, connections: 1 }.to_string();
    let of = |proxy: &str, load: &str| {
        records.iter().find(|record| record.proxy == proxy && record.load == load).cloned()
    };
    let sluice = |load: &str| of("sluice", load);
    let pair = idle_pairs(records).into_iter().find(|(proxy, _)| proxy == "sluice").map(|(_, kib)| kib);
    let reached = [
        (
            format!("{busy}: CPU a request, x nginx"),
            1.15,
            sluice(&busy).and_then(|record| record.ratio_to_nginx),
        ),
        (format!("{busy}: p99, x nginx"), 1.0, sluice(&busy).and_then(|record| record.p99_to_nginx)),
        (
            format!("{connect}: time, x without Sluice"),
            1.1,
            sluice(&connect).and_then(|record| record.ratio_to_direct).map(|ratio| 1.0 / ratio),
        ),
        (
            format!("{busy}: CPU a request with every rule on, x without a policy"),
            1.15,
            of("rules", &busy).and_then(|record| record.ratio_to_sluice),
        ),
        (
            format!("{busy}: CPU a request with history, access log and 1 % traces, x without"),
            1.15,
            of("observed", &busy).and_then(|record| record.ratio_to_sluice),
        ),
        (
            format!("{busy}: CPU a request at the endpoint, x at the client"),
            1.0,
            of("inbound", &busy).and_then(|record| record.ratio_to_sluice),
        ),
        (
            format!("{busy}: CPU a request on both sides, x at the client"),
            1.9,
            of("both", &busy).and_then(|record| record.ratio_to_sluice),
        ),
        (
            format!(
                "{busy}: CPU a request on both sides where threads are followed, x where an AccessPolicy asks"
            ),
            1.1,
            of("threads", &busy)
                .and_then(|record| Some(record.ratio_to_sluice? / of("both", &busy)?.ratio_to_sluice?)),
        ),
        ("KiB of a further idle connection pair".to_owned(), 20.0, pair),
    ];
    let http2 = records.iter().filter(|record| record.proxy == "sluice" && record.load.starts_with("h2-"));
    let http2 = http2
        .map(|record| (format!("{}: CPU a request, x haproxy", record.load), 1.0, record.ratio_to_haproxy));
    let mut text = String::new();
    for (what, aim, value) in reached.into_iter().chain(http2) {
        let Some(value) = value else { continue };
        let verdict = if value <= aim { "reached" } else { "missed" };
        let _ = writeln!(text, "{verdict:<8} {what}: {value:.2}, aim at most {aim}");
    }
    text
}

/// What a further pair of idle connections costs each proxy, in KiB: the difference of the two idle loads.
fn idle_pairs(records: &[Record]) -> Vec<(String, f64)> {
    let memory = |proxy: &str, connections: usize| {
        let load = Load { work: Work::Idle, connections }.to_string();
        let record = records.iter().find(|record| record.proxy == proxy && record.load == load)?;
        Some(record.peak_rss_kib? as f64)
    };
    let proxies: BTreeSet<&str> = records.iter().map(|record| record.proxy.as_str()).collect();
    let [few, many] = IDLE;
    let pair = |proxy: &str| {
        let growth = memory(proxy, many)? - memory(proxy, few)?;
        Some((proxy.to_owned(), growth / (many - few) as f64))
    };
    proxies.into_iter().filter_map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::load::Outcome;

    const KEEPALIVE: Load = Load { work: Work::KeepAlive { bytes: 100 }, connections: 32 };

    fn sample(round: u32, load: Load, proxy: ProxyKind, requests: u64, cpu_us: Option<f64>) -> Sample {
        let (p50_us, p99_us) = (10.0, requests as f64);
        let outcome =
            Outcome { requests, seconds: 2.0, p50_us, p99_us, cpu_us, rss_kib: cpu_us.map(|cpu| cpu as u64) };
        Sample { round, load, proxy, outcome }
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        use ProxyKind::{Direct, Nginx, Sluice};
        let mut samples = Vec::new();
        // The machine is three times as fast in the second round: the ratios are those of both.
        for (round, speed) in [(0, 1), (1, 3), (2, 2)] {
            samples.push(sample(round, KEEPALIVE, Direct, 1000 * speed, None));
            samples.push(sample(round, KEEPALIVE, Nginx, 400 * speed, Some(8000.0)));
            samples.push(sample(round, KEEPALIVE, Sluice, 500 * speed, Some(9000.0)));
        }
        let records = records(&samples);
        let names: Vec<_> = records.iter().map(|record| record.proxy.as_str()).collect();
        assert_eq!(names, ["direct", "sluice", "nginx"]);
        let [direct, sluice, nginx] = &records[..] else { panic!("three records") };
        assert_eq!((direct.rps, direct.cpu_us_per_request, direct.peak_rss_kib), (Some(1000.0), None, None));
        assert_eq!((direct.ratio_to_direct, direct.ratio_to_nginx), (Some(1.0), None));
        assert_eq!((sluice.rps, sluice.cpu_us_per_request), (Some(500.0), Some(9.0)));
        assert_eq!((sluice.ratio_to_direct, sluice.ratio_to_nginx), (Some(0.5), Some(0.9)));
        assert_eq!((sluice.p99_to_nginx, nginx.ratio_to_nginx), (Some(1.25), Some(1.0)));
        let aims = aims(&records);
        assert!(aims.starts_with("reached  keepalive-32-100b: CPU a request, x nginx: 0.90"), "{aims}");
        assert!(aims.contains("\nmissed   keepalive-32-100b: p99, x nginx: 1.25"), "{aims}");
        let table = table(&records);
        assert_eq!(table.lines().count(), 5, "{table}");
    }

    #[test]
    fn a_record_has_the_agreed_fields() {
        let json = serde_json::to_value(Record::default()).unwrap();
        let fields: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
        let mut agreed = [
            "proxy",
            "load",
            "rps",
            "p50_us",
            "p99_us",
            "cpu_us_per_request",
            "peak_rss_kib",
            "ratio_to_direct",
            "ratio_to_nginx",
            "ratio_to_haproxy",
        ];
        agreed.sort_unstable();
        let mut fields = fields;
        fields.sort_unstable();
        assert_eq!(fields, agreed);
    }

    #[test]
    fn an_idle_pair_costs_the_difference() {
        let idle = |connections, kib| {
            sample(0, Load { work: Work::Idle, connections }, ProxyKind::Sluice, 1, Some(kib))
        };
        let records = records(&[idle(100, 9000.0), idle(1100, 19000.0)]);
        assert_eq!(idle_pairs(&records), [("sluice".to_owned(), 10.0)]);
        assert!(records.iter().all(|record| record.rps.is_none() && record.ratio_to_nginx.is_none()));
        assert_eq!(aims(&records), "reached  KiB of a further idle connection pair: 10.00, aim at most 20\n");
        assert!(table(&records).ends_with("memory of a further idle connection pair: sluice 10.0 KiB\n"));
    }

    #[test]
    fn medians() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), Some(2.0));
        assert_eq!(median([4.0, 1.0, 2.0, 3.0].into_iter()), Some(2.5));
        assert_eq!(median(std::iter::empty()), None);
    }
}
