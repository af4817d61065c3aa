//! Where limits of the whole cluster are kept: the flags of the store, a Valkey or Redis.

use std::{fmt, net::Ipv6Addr, path::PathBuf, str::FromStr, sync::Arc};

use clap::Args;

/// The port of Redis where none is said.
const PORT: u16 = 6379;
/// Databases have small numbers: 16 of them as a rule.
const MOST_DATABASES: u32 = 1 << 16;

/// Flags about the store of limits.
#[derive(Args, Clone, Debug, Default)]
pub struct LimitStore {
    /// The Valkey or Redis (6.0 or newer) from which the agents lease their shares of rate limits with scope Cluster, as in
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
    #[arg(long, value_name = "PATH", env = "SLUICE_LIMIT_STORE_PASSWORD_FILE", requires = "limit_store")]
    pub limit_store_password_file: Option<PathBuf>,

    /// File with the CAs, as PEM, that the store's certificate has to be of with `rediss://` [default: the public CAs that
    /// Mozilla trusts]
    #[arg(long, value_name = "PATH", env = "SLUICE_LIMIT_STORE_CA_FILE", requires = "limit_store")]
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

/// Why something is not the address of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoStoreAddress {
    #[error("an address as in redis://HOST:PORT, rediss://HOST:PORT or redis://HOST:PORT/DATABASE is needed")]
    Form,
    #[error(
        "a user and a password are not allowed in it: --limit-store-user and --limit-store-password-file say them"
    )]
    Credentials,
    #[error("its port is none of 1 to 65535")]
    Port,
    #[error("its database, after the last /, is none of 0 to {}", MOST_DATABASES - 1)]
    Database,
    #[error("a query (?) or a fragment (#) is not allowed in it")]
    More,
}

impl FromStr for StoreAddress {
    type Err = NoStoreAddress;

    fn from_str(text: &str) -> Result<Self, NoStoreAddress> {
        // The parser of URIs leaves a fragment out without a word.
        if text.contains(['?', '#']) {
            return Err(NoStoreAddress::More);
        }
        let (scheme, rest) = text.split_once("://").ok_or(NoStoreAddress::Form)?;
        let tls = match scheme {
            "redis" => false,
            "rediss" => true,
            _ => return Err(NoStoreAddress::Form),
        };
        let (authority, database) = rest.split_once('/').unwrap_or((rest, ""));
        // A password in it would be told by `/config`.
        if authority.contains('@') {
            return Err(NoStoreAddress::Credentials);
        }
        let (host, port) = match authority.strip_prefix('[') {
            Some(ipv6) => {
                let (ip, after) = ipv6.split_once(']').ok_or(NoStoreAddress::Form)?;
                let _: Ipv6Addr = ip.parse().map_err(|_| NoStoreAddress::Form)?;
                if !after.is_empty() && !after.starts_with(':') {
                    return Err(NoStoreAddress::Form);
                }
                (ip, after.strip_prefix(':'))
            }
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        let is_of_names = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
        if host.is_empty() || !host.bytes().all(is_of_names) {
            return Err(NoStoreAddress::Form);
        }
        let port = match port {
            None => PORT,
            Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or(NoStoreAddress::Port)?,
        };
        let database = match database {
            "" => 0,
            number => number.parse().ok().filter(|n| *n < MOST_DATABASES).ok_or(NoStoreAddress::Database)?,
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
        use NoStoreAddress::{Credentials, Database, Form, More, Port};

        for (text, shown) in [
            ("redis://valkey.sluice-system:6379", "redis://valkey.sluice-system:6379"),
            ("rediss://valkey", "rediss://valkey:6379"),
            ("redis://10.0.0.7:7000/3", "redis://10.0.0.7:7000/3"),
            ("redis://[fd00::7]:6379/", "redis://[fd00::7]:6379"),
        ] {
            assert_eq!(text.parse::<StoreAddress>().map(|address| address.to_string()), Ok(shown.to_owned()));
        }
        for (bad, why) in [
            ("", Form),
            ("valkey:6379", Form),
            ("http://valkey:6379", Form),
            ("redis://:6379", Form),
            ("redis://,h", Form),
            ("redis://fd00::7:6379", Port),
            ("redis://[fd00::7", Form),
            ("redis://[valkey]", Form),
            ("redis://user:secret@valkey:6379", Credentials),
            ("redis://valkey:0", Port),
            ("redis://valkey:port", Port),
            ("redis://valkey:6379/first", Database),
            ("redis://valkey:6379/-1", Database),
            ("redis://valkey:6379/70000", Database),
            ("redis://valkey?db=1", More),
            ("redis://valkey#1", More),
        ] {
            assert_eq!(bad.parse::<StoreAddress>(), Err(why), "{bad}");
        }
    }
}
