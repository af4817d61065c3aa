//! What came too early from outside: connections to a pod's application that were open before its port was steered. They stay as
//! they are, and nothing that is asked for at the endpoint holds for them; so it is looked after which of them are still open.

use std::{
    collections::{BTreeSet, HashSet},
    net::SocketAddr,
    path::Path,
    sync::Arc,
};

use super::{
    bypass::{self, Connection},
    netns::Netns,
    sockets,
};

/// Connections past the agent at ports that are steered.
#[derive(Debug, Default)]
pub(crate) struct Unsteered {
    open: Vec<Connection>,
    /// The pod's addresses that they are to, one entry a connection.
    addresses: Arc<[SocketAddr]>,
}

impl Unsteered {
    /// These addresses are steered from now on. Says how many connections are older.
    pub(crate) fn steered(
        &mut self,
        new: &BTreeSet<SocketAddr>,
        group: Option<&Path>,
        netns: &Netns,
        home: &Netns,
    ) -> usize {
        let Some(group) = group.filter(|_| !new.is_empty()) else { return 0 };
        let found = netns.within(home, || bypass::open(|connection| is_from_outside(connection, new)));
        let Ok(mut found) = found else { return 0 };
        if !found.is_empty() {
            // A socket that the agent, or the one before it, has accepted has the same addresses.
            let inodes = found.iter().map(|connection| connection.inode).collect();
            let own = sockets::owned(group, &inodes).unwrap_or_default();
            found.retain(|connection| own.contains(&connection.inode));
        }
        let count = found.len();
        self.open.retain(|connection| !new.contains(&connection.local));
        self.open.append(&mut found);
        self.tell();
        count
    }

    /// Of these addresses alone some are steered.
    pub(crate) fn keep(&mut self, steered: &BTreeSet<SocketAddr>) {
        let before = self.open.len();
        self.open.retain(|connection| steered.contains(&connection.local));
        if self.open.len() != before {
            self.tell();
        }
    }

    /// Looks which of them are still open. What cannot be seen is taken to be as it was.
    pub(crate) fn look(&mut self, netns: &Netns, home: &Netns) {
        if self.open.is_empty() {
            return;
        }
        let known: HashSet<_> = self.open.iter().copied().collect();
        let open = netns.within(home, || bypass::open(|open| known.contains(open)));
        if let Ok(open) = open
            && open.len() != known.len()
        {
            self.open = open;
            self.tell();
        }
    }

    /// The addresses that they are to, one entry a connection.
    pub(crate) fn addresses(&self) -> Arc<[SocketAddr]> {
        self.addresses.clone()
    }

    fn tell(&mut self) {
        self.addresses = self.open.iter().map(|connection| connection.local).collect();
    }
}

/// What the pod sends to itself is not governed at the endpoint, and what the agent passes on comes from loopback.
fn is_from_outside(connection: &Connection, to: &BTreeSet<SocketAddr>) -> bool {
    let peer = connection.peer.ip();
    !peer.is_loopback() && peer != connection.local.ip() && to.contains(&connection.local)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_comes_from_outside_to_these_addresses_counts() {
        let to = BTreeSet::from(["10.0.0.1:80".parse().unwrap()]);
        let counts = |local: &str, peer: &str| {
            let [local, peer] = [local, peer].map(|address| address.parse().unwrap());
            is_from_outside(&Connection { local, peer, inode: 1 }, &to)
        };
        assert!(counts("10.0.0.1:80", "10.0.0.2:4000"));
        assert!(!counts("10.0.0.1:81", "10.0.0.2:4000"), "another port");
        assert!(!counts("10.0.0.1:4000", "10.0.0.2:80"), "a connection that the pod has made");
        assert!(!counts("10.0.0.1:80", "127.0.0.1:4000"), "the agent passes it on");
        assert!(!counts("10.0.0.1:80", "10.0.0.1:4000"), "its own");
    }
}
