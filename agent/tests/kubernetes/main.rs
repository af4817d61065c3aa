//! The source that watches the API server, against a double that does what real ones do: go away, forget, refuse.

mod absence;
mod connections;
mod credentials;
mod faults;
mod first_request;
mod kept;
mod opting;
mod permissions;
mod policies;
mod rig;
mod routes;
mod silence;
mod taint;
mod token_keys;
mod troubles;
mod warm_gate;
mod zone;
