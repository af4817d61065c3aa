//! Fetches the keys of sources in the background, when it is time, a few at once.

use std::{collections::HashMap, future::Future, sync::Arc, time::Duration};

use tokio::{task::JoinSet, time::MissedTickBehavior};

use super::{Outcome, Sources};
use crate::{
    clock::Nanos,
    govern::jwt::{
        Keys, Location,
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
}

impl Failed {
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Resolve(..) => Outcome::Resolve,
            Self::Connect(..) => Outcome::Connect,
            Self::Tls(..) => Outcome::Tls,
            Self::Timeout => Outcome::Timeout,
            Self::Redirect(_) => Outcome::Redirect,
            Self::Status(_) => Outcome::Status,
            Self::TooLarge => Outcome::TooLarge,
            Self::Http(_) => Outcome::Http,
            Self::Invalid(_) | Self::Private(..) => Outcome::Invalid,
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
