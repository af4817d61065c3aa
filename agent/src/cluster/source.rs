//! The interface between what knows the cluster (a directory of manifests, the API server) and the model.
//!
//! A source sends batches of [`Change`]s down a channel and tells its health beside it. It decides nothing: whether
//! an object matters is the builder's business. A source that loses its cluster falls silent; nothing is withdrawn.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{
    jwks::objects::AllHeld,
    object::{Key, Kind, Object},
    problem::Problem,
};

/// An object as a source saw it, and what was wrong with it and therefore left out of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sighting {
    pub object: Object,
    pub problems: Vec<Problem>,
}

/// One thing that a source has to say.
#[derive(Clone, Debug)]
pub enum Change {
    /// These are all the objects of that kind; others of that kind are no more. The first word on each kind, and
    /// after a resync.
    Restarted(Kind, Vec<Sighting>),
    /// This object is new or different.
    Applied(Sighting),
    /// This object is no more.
    Deleted(Key),
}

/// Changes that belong together: no snapshot shows a part of them.
pub type Batch = Vec<Change>;

/// How a source fares.
#[derive(Clone, Debug)]
pub struct Health {
    /// When the source last knew that its picture is the cluster's.
    pub heard: Instant,
    /// What it could not take at all (broken files, duplicates, a directory that is gone).
    pub problems: Vec<Problem>,
    /// Enrolled namespaces of which nothing has been told yet.
    pub unread: Vec<Unread>,
    /// How its watches fare, where it has any, by resource.
    pub watches: BTreeMap<&'static str, Watches>,
}

impl Health {
    pub fn new(heard: Instant) -> Self {
        Self { heard, problems: Vec::new(), unread: Vec::new(), watches: BTreeMap::new() }
    }
}

/// An enrolled namespace of which nothing has been told yet: nothing in it is managed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unread {
    pub namespace: Arc<str>,
    pub since: Instant,
    /// A kind in it cannot be read, which does not pass by itself. One of the source's problems says why.
    pub refused: bool,
}

/// How the watches on one resource fare.
#[derive(Clone, Debug)]
pub struct Watches {
    pub open: usize,
    /// When the one that has heard nothing for longest last heard something; `None` while there is none.
    pub heard: Option<Instant>,
    /// How often they ended and were opened again, since the start.
    pub ends: BTreeMap<WatchEnd, u64>,
}

/// Why a watch is opened again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum WatchEnd {
    /// The server ended it, as it does every few minutes, or closed the connection.
    Ended,
    /// The connection broke down, or what came was no watch.
    Broken,
    /// Nothing came for too long.
    Silent,
    /// 410: what was known is too old to go on from.
    Gone,
    /// The server's versions are older than they were.
    WentBack,
    /// No connection, or no answer.
    Unreachable,
    /// An answer with this status.
    Status(u16),
}

impl WatchEnd {
    /// Those that have a name, with what they mean.
    pub const NAMED: [(Self, &str); 6] = [
        (Self::Ended, "The API server ended the watch, as it does every few minutes."),
        (Self::Broken, "The connection broke, or what came was no watch."),
        (Self::Silent, "Nothing came for too long."),
        (Self::Gone, "410: the resource version was too old to go on from. The resource was listed again."),
        (
            Self::WentBack,
            "The API server's resource versions were lower than before. The resource was listed again.",
        ),
        (Self::Unreachable, "No connection to the API server, or no response."),
    ];

    /// As metrics name it.
    pub fn label(self) -> Cow<'static, str> {
        match self {
            Self::Ended => "ended".into(),
            Self::Broken => "reset".into(),
            Self::Silent => "idle_timeout".into(),
            Self::Gone => "expired".into(),
            Self::WentBack => "version_regressed".into(),
            Self::Unreachable => "unreachable".into(),
            Self::Status(code) => code.to_string().into(),
        }
    }
}

/// What a source gives.
#[derive(Debug)]
pub struct Feed {
    pub changes: mpsc::Receiver<Batch>,
    pub health: watch::Receiver<Health>,
    /// All ConfigMaps and Secrets, where they are at hand, for the keys that are in them.
    pub held: Option<watch::Receiver<Arc<AllHeld>>>,
}
