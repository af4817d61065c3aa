//! Connections from outside to ports of enrolled pods that policies ask something for: steered to listeners of the agent in
//! the pod, and passed on to the application from the pod's own loopback in the name of the client.
//!
//! ```text
//!            ports are asked for             none is any more, or the pod goes
//!   nothing ---------------------> steering ----------------------------------> nothing
//!                                   |    ^
//!                                   +----+ ports come and go
//! ```
//!
//! Listeners come first, then what is known of the applications that listen, then the ports, last the program on the pod's
//! namespace. When it ends the other way round.

mod network;

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::Range,
    os::fd::AsFd as _,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use ahash::AHashSet;
use arc_swap::ArcSwap;
use aya::programs::SkLookup;
use sluice_ebpf::{Address, Listening, MAX_LISTENERS, Place, Steered};
use tokio_util::task::TaskTracker;

use self::network::InboundNetwork;
use super::{
    error::with_causes,
    listening, maps,
    netns::Netns,
    node_addresses::NodeAddresses,
    pod::Opened,
    programs::Links,
    threads::{self, Followed},
    unsteered::Unsteered,
};
use crate::{
    cluster::model::Workload,
    govern::remembered::Remembered,
    proxy::{OpenPod, Pod, Proxy},
};

/// What steering needs, on this node.
pub(crate) struct Inbound {
    pub(crate) program: SkLookup,
    pub(crate) links: Arc<Mutex<Links>>,
    pub(crate) maps: Arc<maps::Inbound>,
    pub(crate) threads: Arc<threads::Maps>,
    pub(crate) node: Arc<NodeAddresses>,
    pub(crate) slots: Slots,
}

/// What is steered in one pod.
pub(crate) struct Steering {
    pod: Arc<Pod>,
    open: Option<OpenPod>,
    entries: Arc<Entries>,
    slots: Range<u32>,
    /// Connections that are older.
    older: Unsteered,
}

/// Where a pod is, and who carries its connections.
pub(crate) struct Where<'a> {
    pub(crate) group: Option<&'a Path>,
    pub(crate) netns: &'a Arc<Netns>,
    pub(crate) home: &'a Arc<Netns>,
    pub(crate) netns_cookie: u64,
    /// What is known of requests that came to it.
    pub(crate) remembered: &'a Arc<Remembered>,
    pub(crate) proxy: &'a Proxy,
    pub(crate) closing: &'a TaskTracker,
}

impl Inbound {
    /// Steers what is `wanted` of a pod, and nothing else. What fails is to be tried again.
    pub(crate) fn sync(
        &mut self,
        steering: &mut Option<Steering>,
        workload: &Arc<Workload>,
        wanted: &BTreeSet<SocketAddr>,
        at: &Where<'_>,
    ) -> Result<(), String> {
        if wanted.is_empty() {
            self.end(steering, at);
            return Ok(());
        }
        let steering = match steering {
            Some(steering) => steering,
            None => steering.insert(self.begin(workload, at)?),
        };
        if !Arc::ptr_eq(&steering.pod.workload.load(), workload) {
            steering.pod.workload.store(workload.clone());
        }
        let before = steering.entries.lock().steered.clone();
        let outcome = steering.entries.sync(wanted);
        steering.entries.follow(workload.follows_threads() && self.threads.is_followed());
        steering.look_for_older(&before, workload, at);
        outcome
    }

    fn begin(&mut self, workload: &Arc<Workload>, at: &Where<'_>) -> Result<Steering, String> {
        let count = at.proxy.workers().min(sluice_ebpf::PORT_SLOTS);
        let opened =
            Opened::open(at.netns, at.home, count, &workload.ports).map_err(|error| error.to_string())?;
        let (v4, v6) = (opened.ports_v4.len() as u32, opened.ports_v6.len() as u32);
        let slots = self.slots.take(v4 + v6).ok_or("this node has no listeners left for it")?;
        // Those of IPv4 are first.
        let (first_v6, all) = (slots.start + v4, slots.clone());
        let set = opened.listeners.iter().zip(all).try_for_each(|(listener, slot)| {
            self.maps.set_listener(slot, listener.as_fd()).map_err(|error| with_causes(&error))
        });
        let entries = Arc::new(Entries {
            maps: self.maps.clone(),
            threads: self.threads.clone(),
            netns: at.netns.clone(),
            home: at.home.clone(),
            netns_cookie: at.netns_cookie,
            v4: slots.start..first_v6,
            v6: first_v6..slots.end,
            follows: AtomicBool::new(false),
            state: Mutex::default(),
        });
        let attached = set.and_then(|()| self.attach(at));
        if let Err(error) = attached {
            self.slots.give(slots);
            return Err(error);
        }
        let network = Arc::new(InboundNetwork { entries: entries.clone(), node: self.node.clone() });
        let pod = Pod::new(ArcSwap::new(workload.clone()), network).with(at.remembered.clone());
        let pod = Arc::new(pod);
        let open = Some(at.proxy.open_inbound(&pod, opened.listeners));
        Ok(Steering { pod, open, entries, slots, older: Unsteered::default() })
    }

    fn attach(&mut self, at: &Where<'_>) -> Result<(), String> {
        let link = self.program.attach(at.netns.as_fd()).and_then(|id| self.program.take_link(id)).map_err(
            |error| format!("cannot attach a program to its network namespace: {}", with_causes(&error)),
        )?;
        self.links.lock().unwrap_or_else(PoisonError::into_inner).keep_steering(at.netns_cookie, link);
        Ok(())
    }

    /// Nothing of the pod is steered any more. The proxy goes on accepting for a moment.
    pub(crate) fn end(&mut self, steering: &mut Option<Steering>, at: &Where<'_>) {
        let Some(mut steering) = steering.take() else { return };
        self.links.lock().unwrap_or_else(PoisonError::into_inner).stop_steering(at.netns_cookie);
        if let Err(error) = steering.entries.sync(&BTreeSet::new()) {
            tracing::warn!(error, "cannot remove a port from the kernel's list of steered ones");
        }
        steering.entries.follow(false);
        self.slots.give(steering.slots.clone());
        if let Some(open) = steering.open.take() {
            at.closing.spawn(open.close());
        }
    }
}

impl Steering {
    /// Finds the connections that are older than what has come to be steered since `before`.
    fn look_for_older(&mut self, before: &BTreeSet<SocketAddr>, workload: &Workload, at: &Where<'_>) {
        let now = self.entries.lock().steered.clone();
        if now == *before {
            return;
        }
        self.older.keep(&now);
        let new = now.difference(before).copied().collect();
        let count = self.older.steered(&new, at.group, at.netns, at.home);
        if count > 0 {
            tracing::info!(
                namespace = %workload.namespace, pod = %workload.name, connections = count,
                "connections from clients to a pod are older than what policies ask for there, and are not governed at the endpoint"
            );
        }
    }

    /// Looks which of the connections are still open that are older than the steering.
    pub(crate) fn look_at_older(&mut self, netns: &Netns, home: &Netns) {
        self.older.look(netns, home);
    }

    /// The addresses that they are to, one entry a connection.
    pub(crate) fn older(&self) -> Arc<[SocketAddr]> {
        self.older.addresses()
    }

    /// What the threads of its applications have shown, where they are followed.
    pub(crate) fn followed(&self) -> Arc<[Followed]> {
        let state = self.entries.lock();
        self.entries.threads.shown(self.entries.netns_cookie, &state.followed)
    }

    /// Looks who listens: of sockets that are older than the programs the kernel does not tell.
    pub(crate) fn look(&self) {
        self.entries.look();
    }

    /// Nothing may go past the agent at these addresses: one where the application has refused a connection is not left alone.
    pub(crate) fn close(&self, addresses: Arc<[SocketAddr]>) {
        self.entries.lock().closed = addresses;
    }

    /// The addresses that are steered.
    pub(crate) fn addresses(&self) -> Arc<[SocketAddr]> {
        self.entries.lock().steered.iter().copied().collect()
    }
}

/// Elements of the map of listeners that are free. They are given out in a row, and come back the same way.
pub(crate) struct Slots {
    next: u32,
    free: Vec<Range<u32>>,
}

impl Slots {
    pub(crate) fn new() -> Self {
        Self { next: 0, free: Vec::new() }
    }

    fn take(&mut self, count: u32) -> Option<Range<u32>> {
        if let Some(at) = self.free.iter().position(|free| free.len() >= count as usize) {
            let free = self.free.swap_remove(at);
            let taken = free.start..free.start + count;
            self.give(taken.end..free.end);
            return Some(taken);
        }
        let end = self.next.checked_add(count).filter(|end| *end as usize <= MAX_LISTENERS)?;
        Some(std::mem::replace(&mut self.next, end)..end)
    }

    fn give(&mut self, slots: Range<u32>) {
        if !slots.is_empty() {
            self.free.push(slots);
        }
    }
}

/// A pod's elements of the maps. Two write them: the enrolling task, and the proxy, which says where new connections are to go.
struct Entries {
    maps: Arc<maps::Inbound>,
    threads: Arc<threads::Maps>,
    netns: Arc<Netns>,
    home: Arc<Netns>,
    netns_cookie: u64,
    v4: Range<u32>,
    v6: Range<u32>,
    /// The threads of its applications are followed.
    follows: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    direct: bool,
    /// Where nothing may go past the agent.
    closed: Arc<[SocketAddr]>,
    steered: BTreeSet<SocketAddr>,
    /// Those of them where a connection was refused although somebody listens: they are left alone until the next look.
    paused: BTreeSet<SocketAddr>,
    /// Ports whose readers are followed.
    followed: BTreeSet<u16>,
}

impl Entries {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that holds it can leave it half-changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `None` where the pod has no listener of that family.
    fn value(&self, address: SocketAddr, direct: bool) -> Option<Steered> {
        let slots = if address.is_ipv4() { &self.v4 } else { &self.v6 };
        let (netns_cookie, count) = (self.netns_cookie, slots.len() as u32);
        (count > 0).then(|| Steered {
            netns_cookie,
            first: slots.start,
            count,
            direct: direct.into(),
            reserved: 0,
        })
    }

    fn sync(&self, wanted: &BTreeSet<SocketAddr>) -> Result<(), String> {
        let mut state = self.lock();
        if *wanted == state.steered {
            return Ok(());
        }
        let gone: Vec<_> = state.steered.difference(wanted).copied().collect();
        let stay: BTreeSet<_> = wanted.iter().flat_map(|address| Self::places(*address)).collect();
        for address in gone {
            self.maps.leave(address, self.netns_cookie).map_err(|error| with_causes(&error))?;
            state.steered.remove(&address);
            state.paused.remove(&address);
            for place in Self::places(address).filter(|place| !stay.contains(place)) {
                self.maps.forget_listening(self.place(place));
            }
        }
        let new: Vec<_> = wanted.difference(&state.steered).copied().collect();
        // A place first, so that whoever begins to listen from now on is counted; then those who do already.
        for place in new.iter().flat_map(|address| Self::places(*address)) {
            if self.maps.listening(self.place(place)).is_none() {
                self.maps.set_listening(self.place(place), 0).map_err(|error| with_causes(&error))?;
            }
        }
        self.count(&new)?;
        for address in new {
            if let Some(value) = self.value(address, state.direct) {
                self.maps.steer(address, value).map_err(|error| with_causes(&error))?;
            }
            state.steered.insert(address);
        }
        Ok(())
    }

    /// From now on the threads that read from the steered ports are followed, or none is.
    fn follow(&self, follow: bool) {
        self.follows.store(follow, Relaxed);
        let mut state = self.lock();
        let State { steered, followed, .. } = &mut *state;
        let ports = steered.iter().filter(|_| follow).map(SocketAddr::port).collect();
        self.threads.follow(self.netns_cookie, followed, &ports);
    }

    /// Where an application may listen that is called at this address.
    fn places(address: SocketAddr) -> impl Iterator<Item = SocketAddr> {
        let any_v4 = address.is_ipv4().then_some(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let ips = [Some(address.ip()), Some(IpAddr::V6(Ipv6Addr::UNSPECIFIED)), any_v4];
        ips.into_iter().flatten().map(move |ip| SocketAddr::new(ip, address.port()))
    }

    fn place(&self, at: SocketAddr) -> Place {
        Place::new(self.netns_cookie, Address::from(at))
    }

    /// Corrects what is counted by what is there, for these addresses.
    fn count(&self, addresses: &[SocketAddr]) -> Result<(), String> {
        let places: BTreeSet<_> = addresses.iter().flat_map(|address| Self::places(*address)).collect();
        let counted = |place: &SocketAddr| (*place, self.maps.listening(self.place(*place)));
        let before: Vec<_> = places.iter().map(counted).collect();
        let there = self.netns.within(&self.home, listening::sockets).map_err(|error| error.to_string())?;
        for (place, counted) in before {
            let found = there.iter().filter(|socket| **socket == place).count() as Listening;
            // What has changed meanwhile is looked at again.
            if counted != Some(found) && self.maps.listening(self.place(place)) == counted {
                self.maps.set_listening(self.place(place), found).map_err(|error| with_causes(&error))?;
            }
        }
        Ok(())
    }

    fn look(&self) {
        let mut state = self.lock();
        let addresses: Vec<_> = state.steered.iter().copied().collect();
        let paused = std::mem::take(&mut state.paused);
        let direct = state.direct;
        let mut outcome = self.count(&addresses);
        for address in paused {
            if let Some(value) = self.value(address, direct) {
                outcome = outcome.and(self.maps.steer(address, value).map_err(|error| with_causes(&error)));
            }
        }
        drop(state);
        if let Err(error) = outcome {
            tracing::debug!(error, "cannot look which ports of a pod are listened on");
        }
    }

    /// An application has refused a connection.
    fn refused(&self, address: SocketAddr) {
        let mut state = self.lock();
        if state.closed.contains(&address)
            || !state.steered.contains(&address)
            || self.count(&[address]).is_err()
        {
            return;
        }
        let listens =
            |place: SocketAddr| self.maps.listening(self.place(place)).is_some_and(|count| count > 0);
        if Self::places(address).any(listens) && self.maps.leave(address, self.netns_cookie).is_ok() {
            state.paused.insert(address);
        }
    }

    fn set_direct(&self, direct: bool) -> io::Result<()> {
        let mut state = self.lock();
        state.direct = direct;
        for address in state.steered.difference(&state.paused) {
            if let Some(value) = self.value(*address, direct) {
                self.maps.steer(*address, value).map_err(|error| io::Error::other(with_causes(&error)))?;
            }
        }
        Ok(())
    }
}

/// What of a pod's addresses is asked for.
pub(crate) fn wanted(workload: &Workload, ports: impl Fn(IpAddr) -> Vec<u16>) -> BTreeSet<SocketAddr> {
    let ips: AHashSet<_> = workload.ips.iter().copied().collect();
    ips.into_iter().flat_map(|ip| ports(ip).into_iter().map(move |port| SocketAddr::new(ip, port))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_given_out_once_and_come_back() {
        let mut slots = Slots::new();
        let [first, second] = [slots.take(4).unwrap(), slots.take(2).unwrap()];
        assert_eq!((first.clone(), second.clone()), (0..4, 4..6));
        slots.give(first);
        assert_eq!(slots.take(2), Some(0..2));
        assert_eq!(slots.take(3), Some(6..9), "what is left of the first is too little");
        assert_eq!(slots.take(2), Some(2..4));
        assert_eq!(slots.take(MAX_LISTENERS as u32), None);
        assert_eq!(slots.take(MAX_LISTENERS as u32 - 9), Some(9..MAX_LISTENERS as u32));
        assert_eq!(slots.take(1), None);
        slots.give(second);
        assert_eq!(slots.take(1), Some(4..5));
    }
}
