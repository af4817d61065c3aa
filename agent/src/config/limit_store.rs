//! Where limits of the whole cluster are kept: the flags of the store, a Valkey or Redis.

use std::{fmt, path::PathBuf, str::FromStr, sync::Arc};

use clap::Args;

/// The port of Redis where none is said.
const PORT: u16 = 6379;
/// Databases have small numbers: 16 of them as a rule.
const MOST_DATABASES: u32 = 1 << 16;

/// Flags about the store of limits.
#[derive(Args, Clone, Debug, Default)]
pub struct LimitStore {
    /// The Valkey or Redis (5 or newer) from which the agents lease their shares of rate limits with scope Cluster, as in
    /// `redis://valkey.sluice-system:6379`, or `rediss://` for TLS, with `/N` for another database than 0 [default: none;
    /// such limits are counted on each node by itself]
    #[arg(long, value_name = "URL", env = "SLUICE_LIMIT_STORE")]
    pub limit_store: Option<StoreAddress>,

    /// The user (ACL) with which the agent signs in to the store [default: the store's default user]
    #[arg(
        long,
        value_name = "NAME",
        env = "SLUICE_LIMIT_STORE_USER",
        requires = "limit_store_password_file"
    )]
    pub limit_store_user: Option<String>,

    /// File with the password of the store, read at each connection [default: no password]
    #[arg(long, value_name = "PATH", env = "SLUICE_LIMIT_STORE_PASSWORD_FILE")]
    pub limit_store_password_file: Option<PathBuf>,

    /// File with the CAs, as PEM, that the store's certificate has to be of with `rediss://` [default: the public CAs that
    /// Mozilla trusts]
    #[arg(long, value_name = "PATH", env = "SLUICE_LIMIT_STORE_CA_FILE")]
    pub limit_store_ca_file: Option<PathBuf>,
}

/// Where the store is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreAddress {
    pub tls: bool,
    /// Without brackets if it is an IPv6 address.
    pub host: Arc<str>,
    pub port: u16,
    pub database: u32,
}

/// Not the address of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "an address as in redis://HOST:PORT, rediss://HOST:PORT or redis://HOST:PORT/DATABASE is needed; user and password have \
     settings of their own"
)]
pub struct NoStoreAddress;

impl FromStr for StoreAddress {
    type Err = NoStoreAddress;

    fn from_str(text: &str) -> Result<Self, NoStoreAddress> {
        let uri: http::Uri = text.parse().map_err(|_| NoStoreAddress)?;
        let tls = match uri.scheme_str() {
            Some("redis") => false,
            Some("rediss") => true,
            _ => return Err(NoStoreAddress),
        };
        let authority = uri.authority().ok_or(NoStoreAddress)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        // A password in it would be told by `/config`.
        if authority.as_str().contains('@') || host.is_empty() || uri.query().is_some() {
            return Err(NoStoreAddress);
        }
        let after = authority.as_str().strip_prefix(authority.host()).ok_or(NoStoreAddress)?;
        let port = match after.strip_prefix(':') {
            None => PORT,
            Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or(NoStoreAddress)?,
        };
        let database = match uri.path().trim_start_matches('/') {
            "" => 0,
            number => number.parse().ok().filter(|n| *n < MOST_DATABASES).ok_or(NoStoreAddress)?,
        };
        Ok(Self { tls, host: host.into(), port, database })
    }
}

impl fmt::Display for StoreAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tls, host, port, database } = self;
        let scheme = if *tls { "rediss" } else { "redis" };
        let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
        write!(f, "{scheme}://{open}{host}{close}:{port}")?;
        if *database > 0 { write!(f, "/{database}") } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_has_an_address() {
        for (text, shown) in [
            ("redis://valkey.sluice-system:6379", "redis://valkey.sluice-system:6379"),
            ("rediss://valkey", "rediss://valkey:6379"),
            ("redis://10.0.0.7:7000/3", "redis://10.0.0.7:7000/3"),
            ("redis://[fd00::7]:6379/", "redis://[fd00::7]:6379"),
        ] {
            assert_eq!(text.parse::<StoreAddress>().map(|address| address.to_string()), Ok(shown.to_owned()));
        }
        for bad in [
            "",
            "valkey:6379",
            "http://valkey:6379",
            "redis://:6379",
            "redis://user:secret@valkey:6379",
            "redis://valkey:0",
            "redis://valkey:port",
            "redis://valkey:6379/first",
            "redis://valkey:6379/70000",
            "redis://valkey?db=1",
        ] {
            assert_eq!(bad.parse::<StoreAddress>(), Err(NoStoreAddress), "{bad}");
        }
    }
}
