//! The agent's own log. What it tells is decided by a filter that can be changed while the agent runs.

use std::{
    fmt,
    io::IsTerminal as _,
    sync::{Mutex, PoisonError},
};

use tracing_subscriber::{EnvFilter, filter::LevelFilter};

/// What libraries say of every attempt the agent says once itself. The filter may name them again.
const QUIET: &str = "error,kube_client=off,kube_runtime=off";

/// The modules that a filter may name, `kernel` being the eBPF programs.
const MODULES: [&str; 17] = [
    "admin", "api", "ask", "capture", "cli", "clock", "cluster", "config", "govern", "kernel", "kubectl",
    "lease", "observe", "offline", "proxy", "run", "tls",
];

/// A filter that cannot be read. One line, without the name of the flag.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?}: {reason}: a level (off, error, warn, info or debug), or one per module as in `info,sluice::proxy=debug`"
)]
pub struct FilterError {
    text: String,
    reason: String,
}

/// The filter of the log, shared by those who show and change it.
pub struct LogFilter {
    text: Mutex<String>,
    put_in_force: Box<dyn Fn(EnvFilter) + Send + Sync>,
}

impl fmt::Debug for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("LogFilter").field(&self.text()).finish()
    }
}

impl LogFilter {
    /// Begins to log to standard error. To be called once, before anything logs.
    ///
    /// # Errors
    /// The filter cannot be read; nothing is set up then.
    pub fn install(text: &str) -> Result<Self, FilterError> {
        let builder = tracing_subscriber::fmt()
            .with_env_filter(parse(text)?)
            .with_writer(std::io::stderr)
            // A line that cannot be written cannot be complained about there either: the complaint would panic.
            .log_internal_errors(false)
            // Colours are for people: what collects containers' logs would keep the codes.
            .with_ansi(
                std::io::stderr().is_terminal()
                    && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()),
            )
            .with_target(false)
            .with_filter_reloading();
        let handle = builder.reload_handle();
        builder.init();
        Ok(Self::new(text, move |filter| {
            // Fails only when the subscriber is gone, and it is there as long as the process.
            let _ = handle.reload(filter);
        }))
    }

    /// A filter that is put in force by somebody else.
    pub fn new(text: &str, put_in_force: impl Fn(EnvFilter) + Send + Sync + 'static) -> Self {
        Self { text: Mutex::new(text.trim().to_owned()), put_in_force: Box::new(put_in_force) }
    }

    /// The filter in force.
    pub fn text(&self) -> String {
        self.text.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another filter in force.
    ///
    /// # Errors
    /// The filter cannot be read; the old one stays.
    pub fn set(&self, text: &str) -> Result<(), FilterError> {
        let filter = parse(text)?;
        // Held until it is in force, so that of two changes at once the one that is told is the one that holds.
        let mut current = self.text.lock().unwrap_or_else(PoisonError::into_inner);
        (self.put_in_force)(filter);
        text.trim().clone_into(&mut current);
        Ok(())
    }
}

/// Whether it is a filter.
///
/// # Errors
/// It cannot be read.
pub fn check(text: &str) -> Result<(), FilterError> {
    parse(text).map(drop)
}

fn parse(text: &str) -> Result<EnvFilter, FilterError> {
    let unreadable = |reason: &str| FilterError { text: text.to_owned(), reason: reason.to_owned() };
    if text.trim().is_empty() {
        return Err(unreadable("it is empty"));
    }
    // A word alone that is no level would be a target: nothing else would be logged any more.
    let alone = text.split(',').map(str::trim).find(|part| {
        let word = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        word && part.parse::<LevelFilter>().is_err() && *part != env!("CARGO_PKG_NAME")
    });
    if let Some(word) = alone {
        return Err(unreadable(&format!("{word:?} is no level")));
    }
    // What follows an equals sign at the end; one in brackets compares a field.
    let level = text.split(',').filter(|part| !part.contains(['[', ']'])).find_map(|part| {
        part.rsplit_once('=')
            .map(|(_, level)| level.trim())
            .filter(|level| level.parse::<LevelFilter>().is_err())
    });
    if let Some(word) = level {
        return Err(unreadable(&format!("{word:?} is no level")));
    }
    if let Some(module) = text.split(',').find_map(unknown_module) {
        let known = MODULES.join(", ");
        return Err(unreadable(&format!("sluice::{module} is no module of the agent ({known})")));
    }
    EnvFilter::builder()
        .parse(format!("{QUIET},{}", text.trim()))
        .map_err(|error| unreadable(&error.to_string()))
}

/// The module that a part of a filter names, if there is none of that name: it would change nothing.
fn unknown_module(part: &str) -> Option<&str> {
    let target = part.trim().split(['=', '[']).next().unwrap_or_default();
    let module = target.strip_prefix("sluice::")?.split("::").next().unwrap_or_default();
    (!MODULES.contains(&module)).then_some(module)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[test]
    fn what_cannot_be_read_changes_nothing() {
        let applied = Arc::<Mutex<Vec<String>>>::default();
        let seen = applied.clone();
        let filter = LogFilter::new("info", move |filter| seen.lock().unwrap().push(filter.to_string()));
        for wrong in [
            "",
            "  ",
            "sluice=loud",
            "info,=,=",
            "verbose",
            "info,foo",
            "warning",
            "sluice::proxi=debug",
            "info, sluice::",
        ] {
            let error = filter.set(wrong).unwrap_err().to_string();
            assert!(error.contains(&format!("{wrong:?}")) && !error.contains('\n'), "{error}");
        }
        let error = filter.set("info,sluice::proxy=loud").unwrap_err().to_string();
        assert!(error.contains("\"loud\" is no level: a level (off, error"), "{error}");
        assert_eq!(filter.text(), "info");
        assert!(applied.lock().unwrap().is_empty());

        filter.set(" warn,sluice::proxy=debug\n").unwrap();
        assert_eq!(filter.text(), "warn,sluice::proxy=debug");
        let applied = applied.lock().unwrap();
        assert!(applied.len() == 1 && applied[0].contains("sluice::proxy=debug"), "{applied:?}");
    }

    #[test]
    fn every_module_of_the_agent_can_be_named() {
        let modules = include_str!("../lib.rs").lines().filter_map(|line| {
            let name = line.trim_start_matches("pub ").strip_prefix("mod ")?;
            name.strip_suffix(';').filter(|name| *name != "fuzzing")
        });
        let mut modules: Vec<_> = modules.chain(["kernel"]).collect();
        modules.sort_unstable();
        assert_eq!(MODULES[..], modules);
    }
}
