//! What is said between an agent and the store about one limit.
//!
//! The store keeps a *pot* for each limit: requests that are regained by time and that nobody holds. An agent says what it
//! has used and what it is asked for ([`Call`]), gives back what it holds, and is given the next piece ([`Reply`]). So all
//! that is in the pot and all that agents hold is never more than the limit's burst, or than what it regains in two periods
//! if that is more; and what agents use is never more than that and what was regained since. ARCHITECTURE.md#limits-of-the-whole-cluster has the
//! formulas.
//!
//! The store runs `script.lua`. Tests have a double of it (`double`), on which simulations run. What both must say to the same
//! calls is in `calls.txt`: a unit test asks the double, and a kernel test a store.

/// What the script is in the store.
pub(super) const SCRIPT: &str = include_str!("script.lua");

/// How an agent stands to a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It has not held anything of it.
    New,
    /// It holds what the store has given it last.
    Known,
    /// It has gone on without the store.
    Away,
}

impl Standing {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Known => "known",
            Self::Away => "away",
        }
    }
}

/// What an agent says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Call {
    /// Requests a second that the limit allows.
    pub(super) rate: f64,
    pub(super) burst: f64,
    /// How many requests of those that it held it has used since it was started.
    pub(super) used: u64,
    /// Requests a second that it is asked for.
    pub(super) demand: f64,
    pub(super) standing: Standing,
    /// It does not come again soon.
    pub(super) idle: bool,
}

/// What the store says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Reply {
    /// What the agent holds, if it has used as much as it has said.
    pub(super) held: f64,
    /// Requests a second that it may expect.
    pub(super) rate: f64,
    /// The part of the limit that is the agent's while the store is away: half by demand, half evenly.
    pub(super) part: f64,
    /// After how many seconds a busy agent comes again.
    pub(super) period: f64,
    /// How many agents there are.
    pub(super) agents: u64,
    /// It would have been given more if there were more.
    pub(super) short: bool,
}
