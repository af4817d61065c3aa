//! Why the store does not do what it is asked, in terms of what its operator can do about it.
//!
//! The words are those of Redis 6.2, 7.0 and 8.2. Before 7 what a command in the script says stands behind where in the script it was
//! asked, and about a command that a user may not run within a script nothing is said but that; from the line follows which it is.

use std::fmt;

use super::ledger::SCRIPT;

/// Why the store fails: a label of metrics, and what goes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// There is no connection, or it was ended.
    Unreachable,
    /// No answer in time.
    Timeout,
    /// What comes is none of this protocol.
    Protocol,
    /// It wants another user or password.
    Credentials,
    /// The user may not run a command, or the store does not have it.
    Permission,
    /// It is a replica.
    ReadOnly,
    /// A primary that takes no writes at the moment.
    Unwritable,
    Loading,
    Memory,
    Cluster,
    /// A key is not what agents write there.
    WrongType,
    Other,
}

impl Failure {
    pub const ALL: [Self; 12] = [
        Self::Unreachable,
        Self::Timeout,
        Self::Protocol,
        Self::Credentials,
        Self::Permission,
        Self::ReadOnly,
        Self::Unwritable,
        Self::Loading,
        Self::Memory,
        Self::Cluster,
        Self::WrongType,
        Self::Other,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::Timeout => "timeout",
            Self::Protocol => "protocol",
            Self::Credentials => "credentials",
            Self::Permission => "permission",
            Self::ReadOnly => "read_only",
            Self::Unwritable => "unwritable",
            Self::Loading => "loading",
            Self::Memory => "memory",
            Self::Cluster => "cluster",
            Self::WrongType => "wrong_type",
            Self::Other => "other",
        }
    }

    pub fn meaning(self) -> &'static str {
        match self {
            Self::Unreachable => "The agent cannot connect, or the connection was ended.",
            Self::Timeout => "There was no answer in time.",
            Self::Protocol => "What it says is none of the protocol of Redis, or makes no sense.",
            Self::Credentials => "It does not know the user or the password.",
            Self::Permission => {
                "The user may not run a command that is needed, or the store does not have it."
            }
            Self::ReadOnly => {
                "It is a replica, which may only be read. The agent connects again to find the primary."
            }
            Self::Unwritable => {
                "It takes no writes at the moment, as it cannot save them or lacks replicas (MISCONF, NOREPLICAS)."
            }
            Self::Loading => "It is loading its data.",
            Self::Memory => "It has no memory left (maxmemory), and evicts nothing.",
            Self::Cluster => "It is in cluster mode, which is not supported.",
            Self::WrongType => {
                "The limit's key is no hash: others have written there. The limit is leased by way of a second key."
            }
            Self::Other => "Another error: `sluice status` has its words.",
        }
    }

    /// What an operator can do about it.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Unreachable | Self::Timeout => {
                "Check the store, and this node's way to it. The agent tries again by itself."
            }
            Self::Protocol => {
                "Check that --limit-store leads to a Valkey or Redis. The agent tries again by itself."
            }
            Self::Credentials => {
                "Check the password in --limit-store-password-file, and --limit-store-user. The agent tries again by itself, and reads the file anew."
            }
            Self::Permission => {
                "Give the store's user what is needed: ACL SETUSER NAME ~sluice:limit:* +ping +select +eval +evalsha +time +hgetall +hset +hdel +pexpire. The agent tries again by itself."
            }
            Self::ReadOnly => {
                "--limit-store has to lead to the primary, also after a fail-over: let the Service or the name that it has follow. The agent connects again by itself, and finds it then."
            }
            Self::Unwritable => {
                "Look at the store: its disk, if it saves what it has, or its replicas, if min-replicas-to-write is set. The agent tries again by itself."
            }
            Self::Loading => {
                "Wait: the agent tries again by itself. The store needs no persistence, with which it is ready at once."
            }
            Self::Memory => {
                "Give the store more maxmemory, or one of its own to limits: they need about 100 bytes for each limit and agent. The agent tries again by itself."
            }
            Self::Cluster => {
                "Let --limit-store lead to a Valkey or Redis that is not in cluster mode: one primary, with replicas if you like, behind one address. The agent tries again by itself."
            }
            Self::WrongType => {
                "Nobody else may write to keys sluice:limit:*: delete the key sluice:limit:{LIMIT}, with the name of the limit, and agents use it again."
            }
            Self::Other => "Look at the store. The agent tries again by itself.",
        }
    }

    /// What the store means by an error.
    pub(super) fn of(error: &str) -> Self {
        let known = error.split([' ', ':']).find_map(|word| match word.trim_start_matches('-') {
            "NOAUTH" | "WRONGPASS" => Some(Self::Credentials),
            "NOPERM" => Some(Self::Permission),
            "READONLY" | "MASTERDOWN" => Some(Self::ReadOnly),
            "MISCONF" | "NOREPLICAS" => Some(Self::Unwritable),
            "LOADING" => Some(Self::Loading),
            "OOM" => Some(Self::Memory),
            "MOVED" | "ASK" | "CLUSTERDOWN" | "CROSSSLOT" | "TRYAGAIN" => Some(Self::Cluster),
            "WRONGTYPE" => Some(Self::WrongType),
            _ => None,
        });
        let has = |text| error.contains(text);
        match known {
            Some(known) => known,
            None if has("can't run this command") || has("ACL failure") || has("unknown command") => {
                Self::Permission
            }
            None if has("cluster mode") => Self::Cluster,
            None if has("AUTH") || has("invalid password") => Self::Credentials,
            None => Self::Other,
        }
    }
}

/// An error of the store, in its words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) failure: Failure,
    words: String,
}

impl Said {
    pub(super) fn new(words: String) -> Self {
        Self { failure: Failure::of(&words), words }
    }

    /// Whether it says something of one key, and nothing of the store: as that it has no memory left, may not be written to, or is not
    /// ready, which it says of all.
    pub(super) fn is_about_key(&self) -> bool {
        match self.failure {
            Failure::WrongType => true,
            Failure::Permission => {
                self.words.contains("access a key") || self.words.contains("access one of the keys")
            }
            _ => false,
        }
    }
}

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = &self.words;
        match self.failure {
            Failure::Credentials => {
                write!(
                    f,
                    "it wants a user and a password that it knows (--limit-store-user, --limit-store-password-file)"
                )?;
            }
            Failure::Permission if self.is_about_key() => {
                f.write_str("the user may not use this key")?;
            }
            Failure::Permission => match command(words) {
                Some(command) => write!(f, "the user may not run {command}")?,
                None => f.write_str("the user may not run a command that is needed")?,
            },
            Failure::ReadOnly => {
                f.write_str(
                    "it is a replica, which may only be read: the agent connects again to find the primary",
                )?;
            }
            Failure::Unwritable => f.write_str("it takes no writes at the moment")?,
            Failure::Loading => f.write_str("it is loading its data")?,
            Failure::Memory => f.write_str("it has no memory left (maxmemory)")?,
            Failure::Cluster => {
                f.write_str("it is in cluster mode, which is not supported: one primary is")?;
            }
            Failure::WrongType => f.write_str("others have written to the limit's key")?,
            Failure::Unreachable | Failure::Timeout | Failure::Protocol | Failure::Other => {
                return write!(f, "it says: {words}");
            }
        }
        write!(f, ": it says: {words}")
    }
}

/// The command that may not be run: as the store says, `'hset' command`, or that of the line of the script that it says.
fn command(words: &str) -> Option<String> {
    if let Some((before, _)) = words.split_once("' command")
        && let Some((_, command)) = before.rsplit_once('\'')
    {
        return Some(command.to_ascii_uppercase());
    }
    // Before 8: `@user_script:117: ...`, or `..., on @user_script:117.`
    let (_, rest) = words.rsplit_once("@user_script:")?;
    let digits = rest.trim_start().split(|c: char| !c.is_ascii_digit()).next()?;
    let line = SCRIPT.lines().nth(digits.parse::<usize>().ok()?.checked_sub(1)?)?;
    let (_, call) = line.split_once("redis.call('")?;
    Some(call.split('\'').next()?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The number of the script's line that has this.
    fn line(has: &str) -> usize {
        SCRIPT.lines().position(|line| line.contains(has)).expect("the script has it") + 1
    }

    #[test]
    fn what_stores_say_is_told_as_what_it_means() {
        use Failure::*;

        for (words, failure, is_about_key) in [
            ("NOAUTH Authentication required.", Credentials, false),
            ("WRONGPASS invalid username-password pair or user is disabled.", Credentials, false),
            (
                "ERR AUTH <password> called without any password configured for the default user.",
                Credentials,
                false,
            ),
            ("ERR invalid password", Credentials, false),
            (
                "NOPERM this user has no permissions to run the 'evalsha' command or its subcommand",
                Permission,
                false,
            ),
            ("NOPERM User u has no permissions to run the 'eval' command", Permission, false),
            ("NOPERM No permissions to access a key", Permission, true),
            (
                "NOPERM this user has no permissions to access one of the keys used as arguments",
                Permission,
                true,
            ),
            ("ERR unknown command 'evalsha', with args beginning with: ", Permission, false),
            (
                "ERR ACL failure in script: User u has no permissions to run the 'hset' command script: 62, on @user_script:117.",
                Permission,
                false,
            ),
            (
                "READONLY You can't write against a read only replica. script: 62, on @user_script:117.",
                ReadOnly,
                false,
            ),
            (
                "ERR Error running script (call to f_62): @user_script:117: @user_script: 117: -READONLY You can't write against a read only replica.",
                ReadOnly,
                false,
            ),
            (
                "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
                ReadOnly,
                false,
            ),
            ("NOREPLICAS Not enough good replicas to write.", Unwritable, false),
            (
                "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
                Unwritable,
                false,
            ),
            ("LOADING Redis is loading the dataset in memory", Loading, false),
            (
                "OOM command not allowed when used memory > 'maxmemory'. script: 62, on @user_script:117.",
                Memory,
                false,
            ),
            (
                "ERR Error running script (call to f_62): @user_script:117: @user_script: 117: -OOM command not allowed when used memory > 'maxmemory'.",
                Memory,
                false,
            ),
            ("MOVED 3999 10.0.0.7:6379", Cluster, false),
            ("CLUSTERDOWN Hash slot not served", Cluster, false),
            ("ERR SELECT is not allowed in cluster mode", Cluster, false),
            (
                "WRONGTYPE Operation against a key holding the wrong kind of value script: 62, on @user_script:23.",
                WrongType,
                true,
            ),
            (
                "ERR Error running script (call to f_62): @user_script:23: WRONGTYPE Operation against a key holding the wrong kind of value",
                WrongType,
                true,
            ),
            ("ERR max number of clients reached", Other, false),
            ("BUSY Redis is busy running a script.", Other, false),
        ] {
            let said = Said::new(words.to_owned());
            assert_eq!((said.failure, said.is_about_key()), (failure, is_about_key), "{words}");
            assert!(said.to_string().ends_with(&format!("it says: {words}")), "{said}");
        }
        let texts: std::collections::BTreeSet<_> =
            Failure::ALL.iter().flat_map(|failure| [failure.as_str(), failure.meaning()]).collect();
        assert_eq!(texts.len(), 2 * Failure::ALL.len());
    }

    #[test]
    fn the_command_that_may_not_be_run_is_named_however_the_store_says_it() {
        let (hset, time) = (line("'HSET'"), line("'TIME'"));
        for (words, command) in [
            (
                "NOPERM this user has no permissions to run the 'evalsha' command or its subcommand"
                    .to_owned(),
                "EVALSHA",
            ),
            (
                format!(
                    "ERR ACL failure in script: User u has no permissions to run the 'hset' command script: 62, on @user_script:{hset}."
                ),
                "HSET",
            ),
            (
                format!(
                    "ERR The user executing the script can't run this command or subcommand script: 62, on @user_script:{hset}."
                ),
                "HSET",
            ),
            (
                format!(
                    "ERR Error running script (call to f_62): @user_script:{time}: @user_script: {time}: The user executing the script can't run this command or subcommand"
                ),
                "TIME",
            ),
        ] {
            let said = Said::new(words).to_string();
            assert!(said.starts_with(&format!("the user may not run {command}: it says: ")), "{said}");
        }
        let vague = Said::new("NOPERM something else".to_owned()).to_string();
        assert!(vague.starts_with("the user may not run a command that is needed: "), "{vague}");
    }
}
