//! Waiting for an event, as long as it takes and no longer: tests never sleep and hope.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// How long a test waits for something that must happen. Generous, because it is reached only by a failing test.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Repeats `attempt` until it succeeds, and gives its value; after [`PATIENCE`] fails with its last error.
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() > PATIENCE => {
                return Err(error).with_context(|| format!("waited {PATIENCE:?} in vain: {what}"));
            }
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// [`eventually`] for a plain condition.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    eventually(what, || if condition() { Ok(()) } else { bail!("not yet") })
}
