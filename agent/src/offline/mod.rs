//! What `sluice` does without a cluster and without an agent: for those who write policies, and for their CI.

pub mod check;
pub mod crds;
pub mod reference;
pub mod settings;
pub mod version;
