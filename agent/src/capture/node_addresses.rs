//! The addresses of the node itself, from which the kubelet probes its pods.

use std::{net::IpAddr, sync::Arc};

use ahash::AHashSet;
use arc_swap::ArcSwap;
use nix::ifaddrs::getifaddrs;

use super::netns::Netns;

/// Kept up to date by who looks now and then.
#[derive(Default)]
pub(crate) struct NodeAddresses(ArcSwap<AHashSet<IpAddr>>);

impl NodeAddresses {
    pub(crate) fn has(&self, address: IpAddr) -> bool {
        self.0.load().contains(&address)
    }

    /// Says those that are known.
    pub(crate) fn tell(&self, to: impl FnOnce(&AHashSet<IpAddr>)) {
        to(&self.0.load());
    }

    /// Looks which addresses there are: in the agent's own network namespace, and in that of the node's first process. What cannot
    /// be seen stays as it was.
    pub(crate) fn look(&self, home: &Netns) {
        let here = addresses();
        let of_node = Netns::of_process(1).and_then(|netns| netns.within(home, addresses));
        let found: AHashSet<IpAddr> = here.into_iter().chain(of_node.into_iter().flatten()).collect();
        if !found.is_empty() && **self.0.load() != found {
            self.0.store(Arc::new(found));
        }
    }
}

/// Those of the calling thread's network namespace that a pod can see.
fn addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = getifaddrs() else { return Vec::new() };
    let address = |storage: nix::sys::socket::SockaddrStorage| {
        let v4 = storage.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    };
    let addresses = interfaces.filter_map(|interface| address(interface.address?));
    addresses.filter(|ip| !ip.is_loopback()).collect()
}
