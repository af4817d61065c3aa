//! How the threads of a server handle requests, as far as they have shown.

use std::fmt::{self, Display};

use sluice_ebpf::{Conduct, TRIAL};

/// How a server handles requests, as its threads have shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handling {
    /// Not seen for long enough: so many requests of as many as are needed have shown that threads handle one at a time.
    OnTrial { shown: u64 },
    /// Each thread handles one request at a time, and what it sends is sent for that request.
    ByThread,
    /// A thread, of this name, reads requests while others are unanswered: nothing is known by threads.
    Multiplexes { thread: String },
    /// Requests are answered, or read on, by another thread, of this name, than the one that began to read them: nothing is known
    /// by threads.
    HandsOver { thread: String },
}

impl Handling {
    /// Requests that a server has to show.
    pub const NEEDED: u64 = TRIAL;

    pub(super) fn of(conduct: &Conduct) -> Self {
        let end = conduct.name.iter().position(|byte| *byte == 0).unwrap_or(conduct.name.len());
        let thread = || String::from_utf8_lossy(&conduct.name[..end]).into_owned();
        match conduct.fault {
            Conduct::MULTIPLEXES => Self::Multiplexes { thread: thread() },
            0 if conduct.shown >= TRIAL => Self::ByThread,
            0 => Self::OnTrial { shown: conduct.shown },
            _ => Self::HandsOver { thread: thread() },
        }
    }

    /// As the API says it.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::OnTrial { .. } => "on_trial",
            Self::ByThread => "by_thread",
            Self::Multiplexes { .. } => "multiplexes",
            Self::HandsOver { .. } => "hands_over",
        }
    }

    /// Whether it will never be known by threads what its requests are sent for.
    pub fn is_faulty(&self) -> bool {
        matches!(self, Self::Multiplexes { .. } | Self::HandsOver { .. })
    }
}

impl Display for Handling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OnTrial { shown } => {
                write!(f, "{shown} of {TRIAL} requests have shown that its threads handle one at a time")
            }
            Self::ByThread => f.write_str("its threads handle one request at a time"),
            Self::Multiplexes { thread } => {
                write!(f, "its thread \"{thread}\" has read a request while it had not answered another one")
            }
            Self::HandsOver { thread } => {
                write!(
                    f,
                    "its thread \"{thread}\" has answered, or read on, a request that another thread had read"
                )
            }
        }
    }
}

/// A process that reads from a port of a pod whose threads are followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Followed {
    pub port: u16,
    /// In the node's numbers.
    pub process: u32,
    pub handling: Handling,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_has_shown() {
        let named = |fault, shown, name: &[u8]| {
            let mut conduct = Conduct { fault, shown, ..Conduct::default() };
            conduct.name[..name.len()].copy_from_slice(name);
            Handling::of(&conduct)
        };
        assert_eq!(named(0, 0, b""), Handling::OnTrial { shown: 0 });
        assert_eq!(named(0, TRIAL - 1, b""), Handling::OnTrial { shown: TRIAL - 1 });
        assert_eq!(named(0, TRIAL, b""), Handling::ByThread);
        assert_eq!(
            named(Conduct::MULTIPLEXES, 9, b"node\0x"),
            Handling::Multiplexes { thread: "node".to_owned() }
        );
        let sixteen = named(Conduct::HANDS_OVER, TRIAL, b"sixteen-letters-");
        assert_eq!(sixteen, Handling::HandsOver { thread: "sixteen-letters-".to_owned() });
        assert!(sixteen.is_faulty() && !Handling::ByThread.is_faulty());
    }
}
