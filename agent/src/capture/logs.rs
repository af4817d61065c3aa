//! What the programs log (aya-log), forwarded to the agent's own log under the target `sluice::kernel`.
//!
//! The level is fixed when the programs are loaded: what is below it the kernel removes as dead code.

use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::io::{Interest, unix::AsyncFd};
use tracing::Level;

/// As aya-log counts: 0 is nothing, 1 errors, up to 5 everything.
pub(crate) fn level() -> u8 {
    let enabled = [
        tracing::enabled!(target: "sluice::kernel", Level::ERROR),
        tracing::enabled!(target: "sluice::kernel", Level::WARN),
        tracing::enabled!(target: "sluice::kernel", Level::INFO),
        tracing::enabled!(target: "sluice::kernel", Level::DEBUG),
        tracing::enabled!(target: "sluice::kernel", Level::TRACE),
    ];
    enabled.into_iter().filter(|enabled| *enabled).count() as u8
}

/// Reads the programs' log for as long as the runtime runs. Without it the agent works all the same.
pub(crate) fn forward(ebpf: &mut Ebpf) {
    let logger = match EbpfLogger::init_with_logger(ebpf, Forward) {
        Ok(logger) => logger,
        Err(error) => return tracing::warn!(%error, "the eBPF programs' log cannot be read"),
    };
    if level() == 0 {
        return;
    }
    // SAFETY: the logger owns the map's descriptor until it is dropped, and never changes it.
    let registered = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) };
    let mut logger = match registered {
        Ok(logger) => logger,
        Err(error) => return tracing::warn!(%error, "the eBPF programs' log cannot be read"),
    };
    tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    });
}

struct Forward;

impl log::Log for Forward {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let message = record.args();
        match record.level() {
            log::Level::Error => tracing::error!(target: "sluice::kernel", "{message}"),
            log::Level::Warn => tracing::warn!(target: "sluice::kernel", "{message}"),
            log::Level::Info => tracing::info!(target: "sluice::kernel", "{message}"),
            log::Level::Debug => tracing::debug!(target: "sluice::kernel", "{message}"),
            log::Level::Trace => tracing::trace!(target: "sluice::kernel", "{message}"),
        }
    }

    fn flush(&self) {}
}
