//! What a lane asks of requests: which of them it colours where they enter, and what becomes of those that it cannot
//! serve. Which pods are in it is the cluster model's business.

use std::sync::Arc;

use http::HeaderName;

use super::RequestMatch;
use crate::govern::tag::Tag;

/// A TrafficLane, as far as requests are concerned.
#[derive(Clone, Debug, PartialEq)]
pub struct Lane {
    /// The TrafficLane that it comes from, as `shop/gray`.
    pub name: Arc<str>,
    pub tag: Tag,
    /// Which requests without a tag get this one; the first rule that takes a request is enough.
    pub entry: Vec<EntryRule>,
    pub fallback: LaneFallback,
}

/// What becomes of a request of the lane at a service that has no usable endpoint in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum LaneFallback {
    /// The baseline answers.
    #[default]
    Baseline,
    /// It is refused.
    Fail,
}

/// Requests that enter the lane.
#[derive(Clone, Debug, PartialEq)]
pub struct EntryRule {
    /// The Services (of the lane's own namespace) at which requests are looked at; empty: at all of them.
    pub services: Vec<Arc<str>>,
    pub matches: RequestMatch,
    /// `None`: all that match.
    pub share: Option<Share>,
}

/// A stable part of the requests (see [`crate::govern::entry`]).
#[derive(Clone, Debug, PartialEq)]
pub struct Share {
    /// 0 to 100.
    pub percent: f64,
    /// A request without it is in no share.
    pub key: ShareKey,
}

/// What says whose request it is: the same value is always in the share, or never.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShareKey {
    Header(HeaderName),
    Cookie(Arc<str>),
    /// The calling pod's address.
    Caller,
}
