//! What the cluster looks like: sources of Kubernetes objects, one model, immutable snapshots.

pub mod model;
