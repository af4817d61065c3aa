//! The services of one node or of several, live: a screen that is drawn anew each second, or plain lines where there is no terminal.

use std::{
    cmp::Reverse,
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

use super::{Failed, inert::inert, table::table};

/// The other screen, without a cursor; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l";
const LEAVE: &str = "\x1b[?25h\x1b[?1049l";
/// To the top left, and what is below goes.
const HOME: &str = "\x1b[H\x1b[J";

/// Leaves the other screen, however it ends.
struct Screen;

impl Screen {
    fn enter() -> io::Result<Self> {
        let mut out = io::stdout();
        out.write_all(ENTER.as_bytes())?;
        out.flush()?;
        Ok(Self)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut out = io::stdout();
        // A terminal that has gone needs nothing restored.
        let _ = out.write_all(LEAVE.as_bytes()).and_then(|()| out.flush());
    }
}

/// Draws what `overview` says until it is interrupted or nobody looks any more, or `times` times.
pub(super) fn run(
    times: Option<u32>,
    overview: impl AsyncFnMut() -> Result<Value, Failed>,
) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(live(times, overview))
}

/// [`run`], within a runtime.
pub(crate) async fn live(
    times: Option<u32>,
    mut ask: impl AsyncFnMut() -> Result<Value, Failed>,
) -> Result<(), Failed> {
    // Before the screen is changed: from here on no signal ends the process without it being restored.
    let (mut interrupt, mut terminate, mut hangup) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    let first = ask().await?;
    let screen = if io::stdout().is_terminal() { Some(Screen::enter()?) } else { None };
    let mut every = tokio::time::interval(Duration::from_secs(1));
    every.tick().await;
    let mut overview = first;
    let mut drawn = 0;
    loop {
        draw(&overview, screen.is_some())?;
        drawn += 1;
        if times == Some(drawn) {
            return Ok(());
        }
        tokio::select! {
            _ = every.tick() => {}
            _ = interrupt.recv() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
        }
        overview = ask().await?;
    }
}

fn draw(overview: &Value, screen: bool) -> io::Result<()> {
    let shown = shown(overview);
    let mut out = io::stdout().lock();
    if screen {
        out.write_all(HOME.as_bytes())?;
    }
    out.write_all(shown.as_bytes())?;
    out.flush()
}

/// As many services as fit on a screen, the busiest first.
fn shown(overview: &Value) -> String {
    let number = |value: &Value| value.as_f64().unwrap_or_default();
    let mut services: Vec<&Value> = overview["services"].as_array().into_iter().flatten().collect();
    services.sort_by_key(|service| Reverse((number(&service["rate"]) * 1000.0) as u64));
    let head =
        ["service", "req/s", "errors", "rejected", "p50", "p95", "p99", "in flight"].map(str::to_owned);
    let millis = |value: &Value| {
        value.as_f64().map_or_else(|| "-".to_owned(), |micros| format!("{:.1} ms", micros / 1000.0))
    };
    let row = |service: &&Value| {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        [
            format!("{}.{}:{}", text(&service["name"]), text(&service["namespace"]), service["port"]),
            format!("{:.1}", number(&service["rate"])),
            format!("{:.1} %", number(&service["error_ratio"]) * 100.0),
            format!("{:.1}/s", number(&service["rejected_rate"])),
            millis(&service["p50_micros"]),
            millis(&service["p95_micros"]),
            millis(&service["p99_micros"]),
            service["in_flight"].to_string(),
        ]
    };
    let rows: Vec<_> = std::iter::once(head).chain(services.iter().take(40).map(row)).collect();
    let node = overview["node"].as_str().unwrap_or("this node");
    format!("sluice on {}: {} services managed\n\n{}\n", inert(node), services.len(), table(0, &rows))
}
