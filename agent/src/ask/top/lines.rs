//! What is drawn: which services, in which order, and which of them fit. Pure.

use std::cmp::Ordering;

use clap::ValueEnum;
use serde_json::Value;

use super::{
    super::{inert::inert, table::table},
    Key,
};

/// What services are ordered by; all but the name with the largest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sort {
    /// Requests a second
    #[default]
    Requests,
    /// The name, so that each stays in its place
    Name,
    /// The ratio of requests that fail
    Errors,
    /// Rejected requests a second
    Rejected,
    /// The 99th percentile of the response time
    P99,
    /// Requests in flight
    InFlight,
}

impl Sort {
    const ALL: [Self; 6] =
        [Self::Requests, Self::Name, Self::Errors, Self::Rejected, Self::P99, Self::InFlight];

    fn next(self) -> Self {
        let at = Self::ALL.iter().position(|sort| *sort == self).unwrap_or_default();
        Self::ALL[(at + 1) % Self::ALL.len()]
    }

    fn word(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Name => "name",
            Self::Errors => "errors",
            Self::Rejected => "rejected",
            Self::P99 => "p99",
            Self::InFlight => "in flight",
        }
    }

    /// Those of the same value stay in the order of their names.
    fn compare(self, one: &Value, other: &Value) -> Ordering {
        let field = match self {
            Self::Requests => "rate",
            Self::Name => return name(one).cmp(&name(other)),
            Self::Errors => "error_ratio",
            Self::Rejected => "rejected_rate",
            Self::P99 => "p99_micros",
            Self::InFlight => "in_flight",
        };
        let value = |service: &Value| number(&service[field]);
        value(other).total_cmp(&value(one)).then_with(|| name(one).cmp(&name(other)))
    }
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_default()
}

/// `orders.shop:80`
fn name(service: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    format!("{}.{}:{}", text(&service["name"]), text(&service["namespace"]), service["port"])
}

/// Whether the screen goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Stay,
    Quit,
}

/// What of the services is on the screen.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    sort: Sort,
    /// The first that is shown.
    first: usize,
    /// How many fit, and how many there are, as of the last time.
    fit: usize,
    all: usize,
}

/// Lines of a screen that are no services: the title, the heads and the keys, each with its space.
const OTHER_LINES: usize = 5;

impl View {
    pub(super) fn new(sort: Sort) -> Self {
        Self { sort, first: 0, fit: 1, all: 0 }
    }

    pub(super) fn key(&mut self, key: Key) -> Outcome {
        let page = self.fit.max(1);
        self.first = match key {
            Key::Quit => return Outcome::Quit,
            Key::Sort => {
                self.sort = self.sort.next();
                0
            }
            Key::Up => self.first.saturating_sub(1),
            Key::Down => self.first + 1,
            Key::PageUp => self.first.saturating_sub(page),
            Key::PageDown => self.first + page,
            Key::Top => 0,
            Key::Bottom => self.all,
        };
        self.first = self.first.min(self.all.saturating_sub(page));
        Outcome::Stay
    }

    /// No line is longer than the screen is wide, and there are no more than it has.
    pub(super) fn screen(&mut self, overview: &Value, (columns, rows): (usize, usize)) -> String {
        let services = sorted(overview, self.sort);
        (self.all, self.fit) = (services.len(), rows.saturating_sub(OTHER_LINES).max(1));
        self.first = self.first.min(self.all.saturating_sub(self.fit));
        let last = (self.first + self.fit).min(self.all);
        let shown = format!(
            "{}\n{}\nq quit   s sort (by {})   up, down, page up, page down   {} to {last} of {}",
            title(overview, self.all),
            rows_of(&services[self.first..last]),
            self.sort.word(),
            (self.first + 1).min(last),
            self.all,
        );
        let cut = |line: &str| line.chars().take(columns).collect::<String>();
        shown.lines().take(rows).map(cut).collect::<Vec<_>>().join("\n")
    }
}

/// All services.
pub(super) fn plain(overview: &Value, sort: Sort) -> String {
    let services = sorted(overview, sort);
    format!("{}\n{}\n", title(overview, services.len()), rows_of(&services))
}

fn title(overview: &Value, count: usize) -> String {
    let node = overview["node"].as_str().unwrap_or("this node");
    let ports = if count == 1 { "port" } else { "ports" };
    format!("sluice on {}: {count} service {ports} managed\n", inert(node))
}

fn sorted(overview: &Value, sort: Sort) -> Vec<&Value> {
    let mut services: Vec<&Value> = overview["services"].as_array().into_iter().flatten().collect();
    services.sort_by(|one, other| sort.compare(one, other));
    services
}

fn rows_of(services: &[&Value]) -> String {
    let head =
        ["service", "req/s", "errors", "rejected", "p50", "p95", "p99", "in flight"].map(str::to_owned);
    let millis = |value: &Value| {
        value.as_f64().map_or_else(|| "-".to_owned(), |micros| format!("{:.1} ms", micros / 1000.0))
    };
    let row = |service: &&Value| {
        [
            name(service),
            format!("{:.1}", number(&service["rate"])),
            format!("{:.1} %", number(&service["error_ratio"]) * 100.0),
            format!("{:.1}/s", number(&service["rejected_rate"])),
            millis(&service["p50_micros"]),
            millis(&service["p95_micros"]),
            millis(&service["p99_micros"]),
            service["in_flight"].to_string(),
        ]
    };
    let rows: Vec<_> = std::iter::once(head).chain(services.iter().map(row)).collect();
    table(0, &rows)
}
