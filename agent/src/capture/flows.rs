//! What the kernel counts of pods' connections, with names: which pod, to which service.
//!
//! The kernel knows a pod by its network namespace's cookie and a service by a number that is handed out here, once each and
//! never again. The names of what is gone stay for as long as its numbers can be scraped.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use sluice_ebpf::{DIRECT, FlowCounts, FlowKey, OTHER};

use super::maps;
use crate::cluster::model::{Service, Workload};

/// How long the numbers of what is gone can still be read.
const GRACE: Duration = Duration::from_secs(60);

/// The numbers of one pod's connections to one destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    pub source_namespace: Arc<str>,
    pub source_pod: Arc<str>,
    /// `None`: to no governed service.
    pub destination: Option<Destination>,
    /// Whether the connections were redirected to the agent.
    pub redirected: bool,
    pub counts: FlowCounts,
}

/// A service port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    pub namespace: Arc<str>,
    pub service: Arc<str>,
    pub port: u16,
}

impl From<&Service> for Destination {
    fn from(service: &Service) -> Self {
        Self { namespace: service.namespace.clone(), service: service.name.clone(), port: service.port }
    }
}

/// A name, and since when what has it is gone.
#[derive(Debug)]
struct Named<N> {
    name: N,
    gone_at: Option<Instant>,
}

impl<N> Named<N> {
    fn new(name: N) -> Self {
        Self { name, gone_at: None }
    }

    /// Whether it can still be read.
    fn is_there(&self, now: Instant) -> bool {
        self.gone_at.is_none_or(|at| now.saturating_duration_since(at) < GRACE)
    }
}

/// Namespace and name of a pod.
type PodName = (Arc<str>, Arc<str>);

/// Who is behind the kernel's keys.
#[derive(Debug, Default)]
pub(crate) struct Names {
    pods: HashMap<u64, Named<PodName>>,
    services: HashMap<u32, Named<Destination>>,
    numbers: HashMap<Destination, u32>,
    last: u32,
}

impl Names {
    fn number(&mut self, service: &Service) -> u32 {
        let destination = Destination::from(service);
        if let Some(number) = self.numbers.get(&destination) {
            if let Some(named) = self.services.get_mut(number) {
                named.gone_at = None;
            }
            return *number;
        }
        // Two thousand million services later the first one's number comes again.
        self.last = self.last.checked_add(1).filter(|next| next & DIRECT == 0).unwrap_or(OTHER + 1);
        self.numbers.insert(destination.clone(), self.last);
        self.services.insert(self.last, Named::new(destination));
        self.last
    }

    /// The flow of a key, if it is anybody's.
    fn flow(&self, key: FlowKey, counts: FlowCounts) -> Option<Flow> {
        let (source_namespace, source_pod) = self.pods.get(&key.netns_cookie)?.name.clone();
        let destination = match key.destination {
            OTHER => None,
            number => Some(self.services.get(&number)?.name.clone()),
        };
        Some(Flow { source_namespace, source_pod, destination, redirected: key.redirected != 0, counts })
    }

    fn forget(&mut self, now: Instant) {
        self.pods.retain(|_, named| named.is_there(now));
        let numbers = &mut self.numbers;
        self.services.retain(|_, named| {
            let stays = named.is_there(now);
            if !stays {
                numbers.remove(&named.name);
            }
            stays
        });
    }
}

/// The names, shared by who enrols pods and who reads the numbers; and the kernel's sums, where it keeps them.
#[derive(Default)]
pub(crate) struct Flows {
    names: Mutex<Names>,
    sums: Mutex<Option<maps::Flows>>,
}

impl Flows {
    /// `sums`: where the programs count; `None` if they do not.
    pub(crate) fn new(sums: Option<maps::Flows>) -> Self {
        Self { names: Mutex::default(), sums: Mutex::new(sums) }
    }

    fn names(&self) -> MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A pod is enrolled, or its name is another one now.
    pub(crate) fn pod(&self, netns_cookie: u64, workload: &Workload) {
        let name = (workload.namespace.clone(), workload.name.clone());
        self.names().pods.insert(netns_cookie, Named::new(name));
    }

    pub(crate) fn pod_gone(&self, netns_cookie: u64, now: Instant) {
        if let Some(pod) = self.names().pods.get_mut(&netns_cookie) {
            pod.gone_at.get_or_insert(now);
        }
    }

    /// The number by which the programs know the service.
    pub(crate) fn number(&self, service: &Service) -> u32 {
        self.names().number(service)
    }

    /// No address leads to these services any more, by their numbers.
    pub(crate) fn gone(&self, numbers: &[u32], now: Instant) {
        let mut names = self.names();
        for number in numbers {
            if let Some(named) = names.services.get_mut(number) {
                named.gone_at.get_or_insert(now);
            }
        }
    }

    /// What has been counted, in no order. Forgets what has been gone for long enough.
    pub(crate) fn read(&self, now: Instant) -> Vec<Flow> {
        let mut sums = self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sums) = &mut *sums else { return Vec::new() };
        let mut names = self.names();
        names.forget(now);
        let mut flows = Vec::new();
        for (key, counts) in sums.read() {
            match names.flow(key, counts) {
                Some(flow) => flows.push(flow),
                None => sums.remove(key),
            }
        }
        flows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(netns_cookie: u64, destination: u32) -> FlowKey {
        FlowKey { netns_cookie, destination, redirected: 0 }
    }

    fn is_read(flows: &Flows, key: FlowKey, now: Instant) -> bool {
        let mut names = flows.names();
        names.forget(now);
        names.flow(key, FlowCounts::default()).is_some()
    }

    #[test]
    fn a_service_keeps_its_number_and_no_other_gets_it() {
        let flows = Flows::default();
        let [orders, stock] = ["orders", "stock"].map(|name| Service::new("shop", name, 80));
        let first = flows.number(&orders);
        assert_ne!(first, OTHER);
        assert_eq!(flows.number(&Service::new("shop", "orders", 80)), first);
        let second = flows.number(&stock);
        assert_ne!(second, first);
        flows.pod(7, &Workload::new("u", "shop", "gateway"));
        let now = Instant::now();
        flows.gone(&[first], now);
        assert!(is_read(&flows, key(7, first), now), "it can be read for a while");
        flows.gone(&[first], now + GRACE / 2);
        assert!(!is_read(&flows, key(7, first), now + GRACE));
        assert!(is_read(&flows, key(7, second), now + GRACE));
        let again = flows.number(&orders);
        assert!(again != first && again != second, "what still carries the old number is not its");
    }

    #[test]
    fn a_service_that_comes_back_in_time_goes_on() {
        let flows = Flows::default();
        let orders = Service::new("shop", "orders", 80);
        let number = flows.number(&orders);
        let now = Instant::now();
        flows.gone(&[number], now);
        assert_eq!(flows.number(&orders), number);
        flows.names().forget(now + GRACE);
        assert_eq!(flows.number(&orders), number);
    }

    #[test]
    fn a_pod_that_is_gone_can_be_read_for_a_while() {
        let flows = Flows::default();
        flows.pod(7, &Workload::new("u", "shop", "gateway"));
        let now = Instant::now();
        flows.pod_gone(7, now);
        flows.pod_gone(7, now + GRACE / 2);
        assert!(is_read(&flows, key(7, OTHER), now + GRACE / 2));
        assert!(!is_read(&flows, key(7, OTHER), now + GRACE));
        assert!(!is_read(&flows, key(8, OTHER), now), "nobody's");
    }

    #[test]
    fn without_programs_there_is_nothing_to_read() {
        assert_eq!(Flows::new(None).read(Instant::now()), []);
    }
}
