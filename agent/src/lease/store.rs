//! The connection with the store.
//!
//! All that is due goes out at once, and the answers come back in the same order. Whatever is wrong ends the connection:
//! an answer that comes too late must not be taken for another one's.

use std::{fmt::Write as _, io, path::PathBuf, sync::Arc, time::Duration};

use ring::digest;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::pki_types::{InvalidDnsNameError, ServerName},
};

use super::{
    failure::{Failure, Said},
    ledger::{Call, Reply, SCRIPT},
    resp::{self, Malformed, Value},
};
use crate::{
    config::{LimitStore, StoreAddress},
    tls::{self, NoTrust},
};

/// How long it may take until there is a connection.
const CONNECT: Duration = Duration::from_secs(1);
/// How long it may take until everything is answered: what is slower does not renew anything in time.
const ANSWER: Duration = Duration::from_millis(250);
/// Before the name of each limit.
const PREFIX: &str = "sluice:limit:";
/// Behind the name of a limit to whose key others have written.
const INSTEAD: &str = ":instead";

/// Why the store cannot be used as the operator says.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    #[error("--limit-store-ca-file: {0}")]
    Authorities(#[from] NoTrust),
    #[error("--limit-store: its host is no name that a certificate can have: {0}")]
    Name(#[from] InvalidDnsNameError),
    #[error(
        "--limit-store-ca-file has no effect on {0}, which is spoken to without TLS: rediss:// is needed"
    )]
    InClear(StoreAddress),
    #[error("--limit-store-password-file: cannot read {path}: {error}")]
    Password { path: String, error: io::Error },
}

/// Why the store does not answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error("no connection within {} ms", CONNECT.as_millis())]
    ConnectLate,
    #[error("cannot read --limit-store-password-file: {0}")]
    Password(io::Error),
    #[error("--limit-store-password-file has more than one line: the password has to be alone in it")]
    Lines,
    #[error("{0}")]
    Broken(#[from] io::Error),
    #[error("it ended the connection")]
    Ended,
    #[error("no answer within {} ms", ANSWER.as_millis())]
    Late,
    #[error("{0}")]
    Malformed(#[from] Malformed),
    #[error("{0}")]
    Said(Said),
    #[error("the script's answer makes no sense")]
    Nonsense,
}

impl Trouble {
    pub(super) fn failure(&self) -> Failure {
        match self {
            Self::Connect(_) | Self::ConnectLate | Self::Broken(_) | Self::Ended => Failure::Unreachable,
            Self::Late => Failure::Timeout,
            Self::Password(_) | Self::Lines => Failure::Credentials,
            Self::Malformed(_) | Self::Nonsense => Failure::Protocol,
            Self::Said(said) => said.failure,
        }
    }
}

/// What the store says about one limit.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Answer {
    Leased(Reply),
    /// By way of a second key, because others have written to the first.
    Instead(Reply, Said),
    Refused(Said),
}

trait Stream: AsyncRead + AsyncWrite + Send + Sync + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Sync + Unpin> Stream for T {}

pub(super) struct Store {
    address: StoreAddress,
    user: Option<String>,
    password_file: Option<PathBuf>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    hash: String,
    connection: Option<Connection>,
}

struct Connection {
    stream: Box<dyn Stream>,
    /// What has come and not been read.
    read: Vec<u8>,
}

/// A call about one limit.
pub(super) struct Asked {
    pub(super) limit: Arc<str>,
    /// Who calls.
    pub(super) holder: String,
    pub(super) call: Call,
}

impl Store {
    /// `None`: there is none.
    pub(super) fn new(config: &LimitStore) -> Result<Option<Self>, Unusable> {
        let Some(address) = config.limit_store.clone() else { return Ok(None) };
        let tls = if address.tls {
            let trusted = match &config.limit_store_ca_file {
                Some(path) => tls::trusting(path, &tls::read(path)?),
                None => tls::trusting_public(),
            };
            Some((TlsConnector::from(trusted?), ServerName::try_from(address.host.to_string())?))
        } else if config.limit_store_ca_file.is_some() {
            return Err(Unusable::InClear(address));
        } else {
            None
        };
        if let Some(path) = &config.limit_store_password_file {
            let path_shown = || path.display().to_string();
            std::fs::read_to_string(path)
                .map_err(|error| Unusable::Password { path: path_shown(), error })?;
        }
        let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, SCRIPT.as_bytes());
        Ok(Some(Self {
            address,
            user: config.limit_store_user.clone(),
            password_file: config.limit_store_password_file.clone(),
            tls,
            hash: hex(hash.as_ref()),
            connection: None,
        }))
    }

    pub(super) fn address(&self) -> &StoreAddress {
        &self.address
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    pub(super) fn disconnect(&mut self) {
        self.connection = None;
    }

    /// Connects and signs in.
    pub(super) async fn connect(&mut self) -> Result<(), Trouble> {
        self.connection = None;
        let connection = timeout(CONNECT, self.opened()).await.map_err(|_| Trouble::ConnectLate)??;
        self.connection = Some(connection);
        Ok(())
    }

    async fn opened(&self) -> Result<Connection, Trouble> {
        let mut hello = Vec::new();
        let mut commands = 0;
        if let Some(path) = &self.password_file {
            let path = path.clone();
            let read = tokio::task::spawn_blocking(|| std::fs::read_to_string(path));
            let password = read.await.map_err(io::Error::from)?.map_err(Trouble::Password)?;
            let password = password.trim_end_matches(['\r', '\n']);
            if password.contains(['\r', '\n']) {
                return Err(Trouble::Lines);
            }
            let password = password.as_bytes();
            match &self.user {
                Some(user) => resp::encode(&[b"AUTH", user.as_bytes(), password], &mut hello),
                None => resp::encode(&[b"AUTH", password], &mut hello),
            }
            commands += 1;
        }
        if self.address.database > 0 {
            resp::encode(&[b"SELECT", self.address.database.to_string().as_bytes()], &mut hello);
            commands += 1;
        }
        // Who has not signed in is told so: of a script a store that wants a password would say that it is too long.
        resp::encode(&[b"PING"], &mut hello);
        let socket =
            TcpStream::connect((&*self.address.host, self.address.port)).await.map_err(Trouble::Connect)?;
        socket.set_nodelay(true)?;
        let stream: Box<dyn Stream> = match &self.tls {
            Some((connector, name)) => {
                Box::new(connector.connect(name.clone(), socket).await.map_err(Trouble::Connect)?)
            }
            None => Box::new(socket),
        };
        let mut connection = Connection { stream, read: Vec::new() };
        connection.send(&hello).await?;
        for _ in 0..commands {
            if let Value::Error(why) = connection.receive().await? {
                return Err(Trouble::Said(Said::new(why)));
            }
        }
        if let Value::Error(why) = connection.receive().await? {
            let said = Said::new(why);
            // A user who may run the script need not have the permission to ask this.
            if said.failure != Failure::Permission {
                return Err(Trouble::Said(said));
            }
        }
        Ok(connection)
    }

    /// Renews what is held of each limit, or says with what error the store answers about it. After an error of its own nothing of it
    /// counts, and there is no connection.
    pub(super) async fn renew(&mut self, asked: &[Asked]) -> Result<Vec<Answer>, Trouble> {
        let Some(mut connection) = self.connection.take() else { return Err(Trouble::Ended) };
        let replies =
            timeout(ANSWER, self.renewed(&mut connection, asked)).await.map_err(|_| Trouble::Late)??;
        self.connection = Some(connection);
        Ok(replies)
    }

    async fn renewed(&self, connection: &mut Connection, asked: &[Asked]) -> Result<Vec<Answer>, Trouble> {
        let first = self.run(connection, &asked.iter().collect::<Vec<_>>(), "").await?;
        // All agents find the same there, so all of them use the second key meanwhile, and the first one again when it is theirs.
        let is_taken = |reply: &Result<Reply, Said>| {
            reply.as_ref().is_err_and(|said| said.failure == Failure::WrongType)
        };
        let taken: Vec<&Asked> =
            asked.iter().zip(&first).filter(|(_, reply)| is_taken(reply)).map(|(one, _)| one).collect();
        let mut instead = self.run(connection, &taken, INSTEAD).await?.into_iter();
        let answers: Vec<_> = first
            .into_iter()
            .map(|reply| match reply {
                Ok(reply) => Answer::Leased(reply),
                Err(said) if said.failure == Failure::WrongType => match instead.next() {
                    Some(Ok(reply)) => Answer::Instead(reply, said),
                    _ => Answer::Refused(said),
                },
                Err(said) => Answer::Refused(said),
            })
            .collect();
        let refused = |answer: &Answer| match answer {
            Answer::Refused(said) => Some(said.clone()),
            _ => None,
        };
        // Of a cluster other nodes may have the other limits: as long as nobody asks them, agents that have reached different ones would
        // share nothing.
        let of_cluster = answers.iter().filter_map(refused).find(|said| said.failure == Failure::Cluster);
        let of_all =
            answers.iter().map(refused).collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().next());
        match of_cluster.or(of_all.filter(|said| !said.is_about_key())) {
            Some(said) => Err(Trouble::Said(said)),
            None => Ok(answers),
        }
    }

    /// Runs the script for each call, with what is behind the name of each limit.
    async fn run(
        &self,
        connection: &mut Connection,
        asked: &[&Asked],
        behind: &str,
    ) -> Result<Vec<Result<Reply, Said>>, Trouble> {
        if asked.is_empty() {
            return Ok(Vec::new());
        }
        let mut commands = Vec::new();
        for one in asked {
            write_call(one, behind, [b"EVALSHA", self.hash.as_bytes()], &mut commands);
        }
        connection.send(&commands).await?;
        let mut replies = Vec::with_capacity(asked.len());
        let mut unknown = Vec::new();
        for _ in asked {
            match connection.receive().await? {
                // One that is new, was restarted, or has been told to forget its scripts.
                Value::Error(why) if why.starts_with("NOSCRIPT") => {
                    unknown.push(replies.len());
                    replies.push(None);
                }
                value => replies.push(Some(reply(value)?)),
            }
        }
        commands.clear();
        for &at in &unknown {
            write_call(asked[at], behind, [b"EVAL", SCRIPT.as_bytes()], &mut commands);
        }
        if !unknown.is_empty() {
            connection.send(&commands).await?;
        }
        for at in unknown {
            replies[at] = Some(reply(connection.receive().await?)?);
        }
        Ok(replies.into_iter().flatten().collect())
    }
}

impl Connection {
    async fn send(&mut self, bytes: &[u8]) -> Result<(), Trouble> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await?;
        Ok(())
    }

    async fn receive(&mut self) -> Result<Value, Trouble> {
        loop {
            if let Some((value, length)) = resp::decode(&self.read)? {
                self.read.drain(..length);
                return Ok(value);
            }
            if self.stream.read_buf(&mut self.read).await? == 0 {
                return Err(Trouble::Ended);
            }
        }
    }
}

fn write_call(asked: &Asked, behind: &str, [command, script]: [&[u8]; 2], out: &mut Vec<u8>) {
    let Asked { limit, holder, call } = asked;
    // In braces, so that a proxy which spreads keys has all of a limit in one place.
    let key = format!("{PREFIX}{{{limit}}}{behind}");
    let numbers =
        [call.rate.to_string(), call.burst.to_string(), call.used.to_string(), call.demand.to_string()];
    let [rate, burst, used, demand] = numbers.each_ref().map(String::as_bytes);
    let pace: &[u8] = if call.idle { b"idle" } else { b"busy" };
    let words = [
        command,
        script,
        b"1",
        key.as_bytes(),
        holder.as_bytes(),
        rate,
        burst,
        used,
        demand,
        call.standing.as_str().as_bytes(),
        pace,
    ];
    resp::encode(&words, out);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Nothing can go wrong with a string.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What the script says.
fn reply(value: Value) -> Result<Result<Reply, Said>, Trouble> {
    let items = match value {
        Value::Items(items) => items,
        Value::Error(why) => return Ok(Err(Said::new(why))),
        _ => return Err(Trouble::Nonsense),
    };
    let words: Vec<&str> = items
        .iter()
        .filter_map(|item| match item {
            Value::Text(text) => Some(&**text),
            _ => None,
        })
        .collect();
    let [held, rate, part, period, agents, short] = words[..] else { return Err(Trouble::Nonsense) };
    // Whatever the store says, the agent goes on with what makes sense.
    let number = |text: &str, most: f64| match text.parse::<f64>() {
        Ok(number) if (0.0..=most).contains(&number) => Ok(number),
        _ => Err(Trouble::Nonsense),
    };
    Ok(Ok(Reply {
        held: number(held, 1e12)?,
        rate: number(rate, 1e12)?,
        part: number(part, 1.0)?.max(1e-6),
        period: number(period, 60.0)?.max(0.05),
        agents: agents.parse().map_err(|_| Trouble::Nonsense)?,
        short: short == "short",
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_answers_that_make_sense_count() {
        let text =
            |words: &[&str]| Value::Items(words.iter().map(|word| Value::Text((*word).into())).collect());
        let good = reply(text(&["12.5", "50", "0.25", "0.1", "4", "short"])).unwrap().unwrap();
        let wanted = Reply { held: 12.5, rate: 50.0, part: 0.25, period: 0.1, agents: 4, short: true };
        assert_eq!(good, wanted);
        for bad in [
            text(&["-1", "50", "0.25", "0.1", "4", "short"]),
            text(&["nan", "50", "0.25", "0.1", "4", "short"]),
            text(&["inf", "50", "0.25", "0.1", "4", "short"]),
            text(&["1", "50", "1.5", "0.1", "4", "enough"]),
            text(&["1", "50", "0.5", "0.1", "x", "enough"]),
            text(&["1", "50"]),
            Value::Text("OK".to_owned()),
            Value::Nil,
        ] {
            assert!(matches!(reply(bad.clone()), Err(Trouble::Nonsense)), "{bad:?}");
        }
        let said = reply(Value::Error("OOM command not allowed".to_owned()));
        assert!(matches!(said, Ok(Err(said)) if said.failure == Failure::Memory));
    }

    #[test]
    fn tls_needs_to_know_whom_to_trust() {
        let config = |address: &str, file: Option<PathBuf>| LimitStore {
            limit_store: Some(address.parse().unwrap()),
            limit_store_ca_file: file,
            ..LimitStore::default()
        };
        assert!(matches!(Store::new(&LimitStore::default()), Ok(None)));
        assert!(matches!(Store::new(&config("redis://valkey", None)), Ok(Some(_))));
        assert!(matches!(Store::new(&config("rediss://valkey", None)), Ok(Some(_))), "the public CAs");
        let missing = config("rediss://valkey", Some("/nowhere/ca.pem".into()));
        let error = Store::new(&missing).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.starts_with("--limit-store-ca-file: cannot read /nowhere/ca.pem: "), "{error}");
        let clear = Store::new(&config("redis://valkey", Some("/nowhere/ca.pem".into())));
        assert!(matches!(clear, Err(Unusable::InClear(_))));
        let mut secret = config("redis://valkey", None);
        secret.limit_store_password_file = Some("/nowhere/password".into());
        let error = Store::new(&secret).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.starts_with("--limit-store-password-file: cannot read /nowhere/password: "), "{error}");
    }
}
