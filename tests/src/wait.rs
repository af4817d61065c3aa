//! Waiting for an event, as long as it takes and no longer: tests never sleep and hope.

use std::{
    sync::LazyLock,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

/// How long a test waits for something that must happen. Generous, because it is reached only by a failing test. Where a
/// processor is emulated all takes longer: the seconds in `SLUICE_TEST_PATIENCE` go before it.
pub static PATIENCE: LazyLock<Duration> = LazyLock::new(|| {
    let set = std::env::var("SLUICE_TEST_PATIENCE").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(set.unwrap_or(60))
});

/// Repeats `attempt` until it succeeds, and gives its value; fails with its last error when that takes too long.
pub fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() > *PATIENCE => {
                return Err(error).with_context(|| format!("waited {:?} in vain: {what}", *PATIENCE));
            }
            Err(_) => thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// [`eventually`] for a plain condition.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    eventually(what, || if condition() { Ok(()) } else { bail!("not yet") })
}
