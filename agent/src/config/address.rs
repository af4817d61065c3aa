//! Where the agent's pages are served over TCP.
//!
//! A ConfigMap is the same for all nodes, and only the node's own agent knows the node's address. So an address may
//! name the node: `node:9465`, with the address itself from `--node-address`, which the DaemonSet takes from the pod's
//! status. This keeps every setting in one place, where nothing else overrides it.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

/// Stands for the node's address before a port.
const NODE: &str = "node";

/// One value of `--admin`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminAddress {
    /// A port at the node's address.
    Node(u16),
    At(SocketAddr),
}

/// `node` is used and its address is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "--admin {0}: the address of the node is not known: set --node-address (SLUICE_NODE_ADDRESS), or use an IP address \
     instead of `node`"
)]
pub struct NoNodeAddress(AdminAddress);

impl AdminAddress {
    /// The address to listen at, on a node with that address.
    ///
    /// # Errors
    /// The node's address is needed and not given.
    pub fn resolve(self, node: Option<IpAddr>) -> Result<SocketAddr, NoNodeAddress> {
        match (self, node) {
            (Self::At(address), _) => Ok(address),
            (Self::Node(port), Some(node)) => Ok(SocketAddr::new(node, port)),
            (Self::Node(_), None) => Err(NoNodeAddress(self)),
        }
    }
}

impl FromStr for AdminAddress {
    type Err = String;

    /// `ADDRESS:PORT` or `node:PORT`. An IPv6 address may lack its brackets: a manifest can only put a node's address
    /// before a port, and does not know of which family it is.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(address) = text.parse() {
            return Ok(Self::At(address));
        }
        let parse = || {
            let (host, port) = text.rsplit_once(':')?;
            let port = port.parse().ok()?;
            if host == NODE {
                return Some(Self::Node(port));
            }
            Some(Self::At(SocketAddr::from((host.parse::<Ipv6Addr>().ok()?, port))))
        };
        parse().ok_or_else(|| "an IP address or `node`, and a port, as in 127.0.0.1:9465".to_owned())
    }
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(port) => write!(f, "{NODE}:{port}"),
            Self::At(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families() {
        for (text, same) in [
            ("127.0.0.1:9465", "127.0.0.1:9465"),
            ("[fd00::1]:9465", "[fd00::1]:9465"),
            ("fd00::1:9465", "[fd00::1]:9465"),
            (":::9465", "[::]:9465"),
        ] {
            assert_eq!(text.parse(), Ok(AdminAddress::At(same.parse().unwrap())), "{text}");
        }
        for text in [
            "",
            ":9465",
            "9465",
            "127.0.0.1",
            "localhost:9465",
            "fd00::1:port",
            "fd00::1:70000",
            "node",
            "node:",
            "node:70000",
            "nodes:9465",
        ] {
            assert!(text.parse::<AdminAddress>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_node_is_where_its_address_is() {
        let admin: AdminAddress = "node:9465".parse().unwrap();
        assert_eq!(admin, AdminAddress::Node(9465));
        for (node, at) in [("10.0.0.7", "10.0.0.7:9465"), ("fd00::7", "[fd00::7]:9465")] {
            assert_eq!(admin.resolve(Some(node.parse().unwrap())), Ok(at.parse().unwrap()));
        }
        let error = admin.resolve(None).unwrap_err().to_string();
        assert!(error.contains("--admin node:9465") && error.contains("SLUICE_NODE_ADDRESS"), "{error}");
        let fixed: AdminAddress = "127.0.0.1:9465".parse().unwrap();
        assert_eq!(fixed.resolve(None), Ok("127.0.0.1:9465".parse().unwrap()));
    }
}
