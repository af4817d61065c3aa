//! The interface between what knows the cluster (a directory of manifests, the API server) and the model.
//!
//! A source sends batches of [`Change`]s down a channel and tells its health beside it. It decides nothing: whether
//! an object matters is the builder's business. A source that loses its cluster falls silent; nothing is withdrawn.

use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};

use super::{
    object::{Key, Kind, Object},
    problem::Problem,
};

/// An object as a source saw it, and what was wrong with it and therefore left out of it.
#[derive(Clone, Debug, PartialEq, Eq)]
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
}

/// What a source gives.
#[derive(Debug)]
pub struct Feed {
    pub changes: mpsc::Receiver<Batch>,
    pub health: watch::Receiver<Health>,
}
