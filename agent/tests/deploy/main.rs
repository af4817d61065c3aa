//! `deploy/` is what people apply to their clusters: every manifest is what the API server takes, and what it says
//! about the agent is true.
//!
//! The files are read as they lie there. `cargo xtask ci` also has them rendered by kustomize, and names the directory
//! with the results in `SLUICE_RENDERED`.

mod canonical;
mod configuration;
mod daemon_set;
mod documents;
mod ending;
mod manifests;
mod monitoring;
mod strict;
mod version;
