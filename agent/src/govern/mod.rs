//! What is decided about a request: its tag, its lane, its endpoint.
//!
//! Pure: no sockets, no clock of its own, no global state. Time and randomness are arguments, so that tests are exact.
//!
//! In the order in which a request meets them: [`routes`] say to which Service it goes, [`lane`] reads its tag, [`entry`] gives it one if it has none and a lane
//! asks for it, [`remembered`] knows the tags that came to the calling pod, [`edit`] puts it into the head that is sent on, [`throttle`], [`concurrency`] and [`breaker`] admit it or refuse, [`route`] finds the endpoints that may
//! answer it ([`outlier`] and [`warmup`] hold some back), [`balance`] chooses one of them. What came of it is an
//! [`outcome`]; [`retry`] sends it again, [`fallback`] answers in the service's place. [`policy`] is what was asked for,
//! checked and with every default filled in; [`access`] is who may call at all, asked where the request arrives, and [`jwt`] the tokens that it may ask for; [`request`] is what rules may ask of a request and its [`caller`], with its [`path`] as its server will see
//! it.

pub mod access;
mod affinity;
pub mod backoff;
pub mod balance;
pub mod breaker;
pub mod caller;
pub mod carrier;
pub mod concurrency;
pub mod cost;
pub mod edit;
pub mod endpoint;
pub mod entry;
pub mod fallback;
pub mod governor;
pub mod handled;
pub mod headers;
pub mod jwt;
pub mod lane;
pub mod outcome;
pub mod outlier;
pub mod path;
pub mod per_pod;
pub mod policy;
pub mod remembered;
pub mod request;
pub mod retry;
pub mod route;
pub mod routes;
#[cfg(test)]
mod simulation;
pub mod subset;
pub mod tag;
pub mod tally;
pub mod throttle;
pub mod warmup;
pub mod window;
