//! The services of one node or of several, live: a screen that is drawn anew each second, or plain lines where there is no terminal.

mod keys;
mod lines;
#[cfg(test)]
mod tests;

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

pub(crate) use self::lines::Sort;
use self::{
    keys::{Key, Keys},
    lines::{Outcome, View},
};
use super::Failed;

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
    sort: Sort,
    overview: impl AsyncFnMut() -> Result<Value, Failed>,
) -> Result<(), Failed> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(live(times, sort, overview))
}

/// [`run`], within a runtime.
pub(crate) async fn live(
    times: Option<u32>,
    sort: Sort,
    mut ask: impl AsyncFnMut() -> Result<Value, Failed>,
) -> Result<(), Failed> {
    // Before the screen is changed: from here on no signal ends the process without it being restored.
    let (mut interrupt, mut terminate, mut hangup) =
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?);
    let mut overview = ask().await?;
    let screen = if io::stdout().is_terminal() { Some(Screen::enter()?) } else { None };
    // Without a screen there is nothing to be scrolled.
    let mut keys = if screen.is_some() { Keys::read()? } else { Keys::none() };
    let mut view = View::new(sort);
    let mut every = tokio::time::interval(Duration::from_secs(1));
    every.tick().await;
    let mut drawn = 0;
    loop {
        draw(&overview, screen.is_some().then_some(&mut view), sort)?;
        drawn += 1;
        if times == Some(drawn) {
            return Ok(());
        }
        loop {
            tokio::select! {
                _ = every.tick() => break,
                key = keys.next() => {
                    if view.key(key) == Outcome::Quit {
                        return Ok(());
                    }
                    draw(&overview, Some(&mut view), sort)?;
                }
                _ = interrupt.recv() => return Ok(()),
                _ = terminate.recv() => return Ok(()),
                _ = hangup.recv() => return Ok(()),
            }
        }
        overview = ask().await?;
    }
}

/// On the screen, as `view` has it; else all of it, as lines.
fn draw(overview: &Value, view: Option<&mut View>, sort: Sort) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match view {
        Some(view) => {
            let shown = view.screen(overview, size());
            out.write_all(HOME.as_bytes())?;
            out.write_all(shown.as_bytes())?;
        }
        None => out.write_all(lines::plain(overview, sort).as_bytes())?,
    }
    out.flush()
}

/// Columns and rows of the terminal.
fn size() -> (usize, usize) {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok();
    let size = size.filter(|size| size.ws_row > 0 && size.ws_col > 0);
    size.map_or((80, 24), |size| (size.ws_col.into(), size.ws_row.into()))
}
