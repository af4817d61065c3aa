//! Fetches the keys of URIs in the background, when it is time, a few at once; and why keys cannot be had, from wherever.

use std::{collections::HashMap, fmt, future::Future, sync::Arc, time::Duration};

use tokio::{task::JoinSet, time::MissedTickBehavior};

use super::{Outcome, Sources};
use crate::{
    clock::Nanos,
    govern::jwt::{
        Holder, Keys, Location,
        keys::{KeysError, MAX_BYTES},
    },
};

/// How often is looked which are due, and whether a token has asked for a key that is not known.
const LOOK: Duration = Duration::from_millis(500);
/// So many are fetched at once.
const AT_ONCE: usize = 8;
/// A source that has not answered wholly by then has failed.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why keys could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    #[error("the name {0} cannot be resolved: {1}")]
    Resolve(String, String),
    #[error("no connection to {0}: {1}")]
    Connect(String, String),
    #[error("the TLS handshake with {0} failed: {1}")]
    Tls(String, String),
    #[error("no complete response within {} s", TIMEOUT.as_secs())]
    Timeout,
    #[error("the response is a redirect ({0}), which is not followed: name the URI that it leads to")]
    Redirect(u16),
    #[error("the status of the response is {0}, and has to be 200")]
    Status(u16),
    #[error("the response has more than {} KiB", MAX_BYTES / 1024)]
    TooLarge,
    #[error("no HTTP response: {0}")]
    Http(String),
    #[error("no set of keys: {0}")]
    Invalid(#[from] KeysError),
    #[error("keys[{0}] has {1}, which is secret: whoever can read the set can sign tokens")]
    Private(usize, &'static str),
    #[error("there is no such {}: it has to be in the namespace of the policy", .0.as_str())]
    NoObject(Holder),
    #[error("it has no such key in its data{0}")]
    NoEntry(Has),
    #[error("the value has {0} bytes, and may have {MAX_BYTES}")]
    EntryTooLarge(usize),
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    #[error("the agents may not {verb} it ({code}: {message}): {}", remedy(*.of))]
    Refused { of: Holder, verb: &'static str, code: u16, message: String },
    #[error("the API server does not give it: {0}")]
    Away(String),
}

/// What an object has instead of the entry that is looked for.
#[derive(Debug)]
pub struct Has(pub Vec<Arc<str>>);

/// So many are named.
const NAMED: usize = 5;

impl fmt::Display for Has {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(names) = self;
        if names.is_empty() {
            return f.write_str(": it has none at all");
        }
        let more = if names.len() > NAMED { " and others" } else { "" };
        write!(f, ": it has {}{more}", names[..names.len().min(NAMED)].join(", "))
    }
}

fn remedy(of: Holder) -> &'static str {
    match of {
        Holder::ConfigMap => {
            "apply deploy/overlays/token-keys, or give their service account list and watch on this one ConfigMap"
        }
        Holder::Secret => {
            "have the keys in a ConfigMap, or give the agents' service account list and watch on this one Secret, or apply deploy/overlays/token-keys-secrets"
        }
    }
}

impl Failed {
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Resolve(..) => Outcome::Resolve,
            Self::Connect(..) | Self::Away(_) => Outcome::Connect,
            Self::Tls(..) => Outcome::Tls,
            Self::Timeout => Outcome::Timeout,
            Self::Redirect(_) => Outcome::Redirect,
            Self::Status(_) => Outcome::Status,
            Self::TooLarge | Self::EntryTooLarge(_) => Outcome::TooLarge,
            Self::Http(_) => Outcome::Http,
            Self::Invalid(_) | Self::Private(..) | Self::Unreadable(_) => Outcome::Invalid,
            Self::NoObject(_) | Self::NoEntry(_) => Outcome::Missing,
            Self::Refused { .. } => Outcome::Forbidden,
        }
    }
}

/// Gets what is at a place, at most [`MAX_BYTES`] of it.
pub trait Transport: Send + Sync + 'static {
    fn get(&self, at: &Location) -> impl Future<Output = Result<Vec<u8>, Failed>> + Send;
}

/// Fetches for as long as it is polled.
pub async fn run(sources: Arc<Sources>, transport: impl Transport) {
    let transport = Arc::new(transport);
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut fetching = JoinSet::new();
    let mut which = HashMap::new();
    loop {
        tokio::select! {
            _ = look.tick() => {}
            () = sources.wanted.notified() => {}
            Some(ended) = fetching.join_next_with_id() => {
                let (id, fetched) = match ended {
                    Ok(ended) => ended,
                    Err(error) => (error.id(), Err(Failed::Http(error.to_string()))),
                };
                if let Some(location) = which.remove(&id) {
                    sources.end(&location, fetched, Nanos::now(), fastrand::f64());
                }
            }
        }
        for location in sources.due(Nanos::now(), AT_ONCE.saturating_sub(fetching.len())) {
            let (transport, at) = (transport.clone(), location.clone());
            let task = fetching.spawn(async move { fetch(&*transport, &at).await });
            which.insert(task.id(), location);
        }
    }
}

async fn fetch(transport: &impl Transport, at: &Location) -> Result<Keys, Failed> {
    let text = tokio::time::timeout(TIMEOUT, transport.get(at)).await.map_err(|_| Failed::Timeout)??;
    read(&text)
}

/// Reads what has come.
pub(super) fn read(text: &[u8]) -> Result<Keys, Failed> {
    if let Some((index, name)) = Keys::private(text) {
        return Err(Failed::Private(index, name));
    }
    Ok(Keys::read(text)?)
}
