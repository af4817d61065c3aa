//! A fleet, simulated event by event: what one choice after the other adds up to.
//!
//! Hundreds of callers, spread over several agents, call one service. Each agent chooses with what it knows itself: its
//! own latencies, requests in flight and ejections, and a picture of the cluster that lags behind by its own while. A server
//! has so many threads and a queue; a new one is slow until it has served for a while, as a JIT-compiled one is. Time is
//! simulated and randomness seeded, so that a run is the same each time.

mod shares;
mod tests;

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BinaryHeap, VecDeque},
    net::{IpAddr, SocketAddr},
    ops::Range,
    sync::Arc,
};

use fastrand::Rng;

use super::{
    cost::Ending,
    endpoint::{Endpoint, InFlight, Load},
    outcome::{ErrorKind, Outcome},
    outlier::CallerId,
    policy::{Detour, Policy},
    route::{Call, Candidates, Within, route},
    subset::Subset,
};

const MS: u64 = 1_000_000;
const S: u64 = 1000 * MS;

/// What is simulated.
struct Plan {
    agents: usize,
    callers: usize,
    /// Of all callers together.
    requests_per_second: f64,
    /// Callers wait for an answer before they send the next request; else requests come at random.
    sequential: bool,
    /// Callers leave that have waited so long.
    patience: Option<u64>,
    policy: Policy,
    /// How long agents are behind the cluster, at most.
    lag: u64,
    seed: u64,
}

/// How much requests differ in what they take.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mix {
    /// By half of it.
    Even,
    /// As they do at random.
    Exponential,
    /// One in so many takes so long besides.
    Rarely { one_in: u32, takes: u64 },
}

/// What a server does with requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mood {
    Serves,
    /// Errors, at once.
    Fails,
    /// Answers 429, at once, and says when to come again.
    Sheds(Option<u64>),
    /// It takes requests, and does nothing.
    Hangs,
}

/// An instance of the service.
#[derive(Clone, Debug)]
struct Server {
    threads: u32,
    /// Of a request, on average, once it is warm.
    service: u64,
    /// How much longer the first request takes; it falls by 1/e with each 100 requests.
    cold: f64,
    mix: Mix,
    /// By how much, in logarithms, all requests of a moment (half a second) may take longer than usual, or less long.
    wavers: f64,
    mood: Mood,
    /// `None`: always has been.
    ready_since: Option<u64>,
    ready: bool,
    terminating: bool,
    /// It has exited: requests are lost.
    gone: bool,
    busy: u32,
    served: u32,
    queue: VecDeque<u64>,
    /// Requests that it has taken and does nothing about.
    held: Vec<u64>,
}

impl Server {
    fn new(threads: u32, service: u64) -> Self {
        Self {
            threads,
            service,
            cold: 0.0,
            mix: Mix::Even,
            wavers: 0.0,
            mood: Mood::Serves,
            ready_since: None,
            ready: true,
            terminating: false,
            gone: false,
            busy: 0,
            served: 0,
            queue: VecDeque::new(),
            held: Vec::new(),
        }
    }

    /// How many times as long as usual it takes for a request now.
    fn off(&self, number: usize, now: u64) -> f64 {
        if self.wavers == 0.0 {
            return 1.0;
        }
        let moment = now / (S / 2);
        let lot = Rng::with_seed(moment << 16 | number as u64).f64();
        (self.wavers * (2.0 * lot - 1.0)).exp()
    }
}

/// What one agent knows.
struct Agent {
    loads: Vec<Arc<Load>>,
    subset: Subset,
    rng: Rng,
}

/// What happened in a second, per server.
#[derive(Clone, Debug, Default)]
struct Second {
    sent: Vec<u32>,
    longest_queue: Vec<usize>,
    errors: u32,
    /// Callers that did not wait any longer.
    left: u32,
}

type Act = Box<dyn FnOnce(&mut World)>;

enum Event {
    /// A caller sends a request.
    Call(usize),
    /// A server is done with a request.
    Done(usize, u64),
    /// A caller waits for it no longer.
    Leave(u64),
    /// An agent hears of the cluster.
    Hear(usize),
    /// Something happens to the cluster.
    Act(Act),
}

/// An event and when it comes; of several at once the first that was thought of.
struct Due(u64, u64, Event);

/// A request on its way.
struct Request {
    caller: usize,
    agent: usize,
    sent: u64,
    in_flight: InFlight,
}

struct World {
    plan: Plan,
    now: u64,
    events: BinaryHeap<Due>,
    planned: u64,
    servers: Vec<Server>,
    agents: Vec<Agent>,
    requests: BTreeMap<u64, Request>,
    rng: Rng,
    seconds: Vec<Second>,
    /// Requests to a server that had exited.
    lost: u32,
    panics: u32,
    ejections: u32,
}

impl World {
    fn new(plan: Plan, servers: Vec<Server>) -> Self {
        let mut rng = Rng::with_seed(plan.seed);
        let agent = |_| Agent { loads: Vec::new(), subset: Subset::default(), rng: rng.fork() };
        let agents = (0..plan.agents).map(agent).collect();
        let mut world = Self {
            now: S,
            events: BinaryHeap::new(),
            planned: 0,
            servers,
            agents,
            requests: BTreeMap::new(),
            rng,
            seconds: Vec::new(),
            lost: 0,
            panics: 0,
            ejections: 0,
            plan,
        };
        (0..world.agents.len()).for_each(|agent| world.hear(agent));
        for caller in 0..world.plan.callers {
            let after = world.pause();
            world.after(after, Event::Call(caller));
        }
        world
    }

    fn after(&mut self, nanos: u64, event: Event) {
        self.planned += 1;
        self.events.push(Due(self.now + nanos, self.planned, event));
    }

    /// Has something happen so many seconds after the beginning.
    fn at(&mut self, seconds: u64, act: impl FnOnce(&mut Self) + 'static) {
        self.planned += 1;
        self.events.push(Due(S + seconds * S, self.planned, Event::Act(Box::new(act))));
    }

    /// Changes the cluster; agents hear of it each in its time.
    fn change(&mut self, change: impl FnOnce(&mut Vec<Server>, u64)) {
        change(&mut self.servers, self.now);
        for agent in 0..self.agents.len() {
            let lag = self.rng.u64(..=self.plan.lag);
            self.after(lag, Event::Hear(agent));
        }
    }

    /// Runs until so many seconds after the beginning.
    fn run(&mut self, seconds: u64) {
        while self.events.peek().is_some_and(|Due(at, ..)| *at < S + seconds * S) {
            let Some(Due(at, _, event)) = self.events.pop() else { return };
            self.now = at;
            match event {
                Event::Call(caller) => self.call(caller),
                Event::Done(server, request) => self.done(server, request),
                Event::Leave(request) => self.leave(request),
                Event::Hear(agent) => self.hear(agent),
                Event::Act(act) => act(self),
            }
        }
    }

    fn second(&mut self) -> &mut Second {
        let index = ((self.now - S) / S) as usize;
        if self.seconds.len() <= index {
            self.seconds.resize_with(index + 1, Second::default);
        }
        let (second, servers) = (&mut self.seconds[index], self.servers.len());
        second.sent.resize(servers, 0);
        second.longest_queue.resize(servers, 0);
        second
    }

    /// Between two requests of a caller: they come at random.
    fn pause(&mut self) -> u64 {
        let mean = self.plan.callers as f64 / self.plan.requests_per_second;
        (-(1.0 - self.rng.f64()).ln() * mean * 1e9) as u64
    }

    fn call_again(&mut self, caller: usize) {
        let pause = self.pause();
        self.after(pause, Event::Call(caller));
    }

    fn call(&mut self, caller: usize) {
        if !self.plan.sequential {
            self.call_again(caller);
        }
        let index = caller % self.agents.len();
        let agent = &mut self.agents[index];
        let (lanes, [high, low]) = (BTreeMap::new(), (caller as u16).to_be_bytes());
        let service = Candidates {
            baseline: &agent.subset,
            lanes: &lanes,
            session_affinity: false,
            policy: &self.plan.policy,
        };
        let call = Call {
            tag: None,
            fallback: &Detour::default(),
            caller: [10, 9, high, low].into(),
            tried: &[],
            within: Within::Any,
            now_nanos: self.now,
        };
        let Ok(decision) = route(service, &call, &mut agent.rng) else {
            self.second().errors += 1;
            if self.plan.sequential {
                self.call_again(caller);
            }
            return;
        };
        self.panics += u32::from(decision.panic);
        let server = server_at(decision.endpoint.address);
        self.second().sent[server] += 1;
        let in_flight = InFlight::begin(decision.endpoint, self.now);
        let request = Request { caller, agent: index, sent: self.now, in_flight };
        if self.servers[server].gone {
            self.lost += 1;
            return;
        }
        self.planned += 1;
        let id = self.planned;
        self.requests.insert(id, request);
        if let Some(patience) = self.plan.patience {
            self.after(patience, Event::Leave(id));
        }
        if self.servers[server].busy < self.servers[server].threads {
            self.serve(server, id);
        } else {
            self.servers[server].queue.push_back(id);
            let queue = self.servers[server].queue.len();
            let longest = &mut self.second().longest_queue[server];
            *longest = queue.max(*longest);
        }
    }

    fn serve(&mut self, server: usize, request: u64) {
        let of = &mut self.servers[server];
        let cold = 1.0 + of.cold * (-f64::from(of.served) / 100.0).exp();
        of.busy += 1;
        of.served += 1;
        let even = |rng: &mut Rng| 0.5 + rng.f64();
        let work = match of.mix {
            Mix::Exponential => -(1.0 - self.rng.f64()).ln(),
            Mix::Even | Mix::Rarely { .. } => even(&mut self.rng),
        };
        let takes = match of.mood {
            Mood::Hangs => {
                of.held.push(request);
                return;
            }
            Mood::Fails | Mood::Sheds(_) => MS / 10,
            Mood::Serves => match of.mix {
                Mix::Rarely { one_in, takes } if self.rng.u32(..one_in) == 0 => takes,
                _ => (of.service as f64 * cold * work * of.off(server, self.now)) as u64,
            },
        };
        self.after(takes, Event::Done(server, request));
    }

    /// A server does something else from now on; what it has held it does at last.
    fn set_mood(&mut self, server: usize, mood: Mood) {
        self.servers[server].mood = mood;
        for request in std::mem::take(&mut self.servers[server].held) {
            self.after(MS, Event::Done(server, request));
        }
    }

    /// The caller gives a request up, which its server does not hear of.
    fn leave(&mut self, request: u64) {
        let Some(mut request) = self.requests.remove(&request) else { return };
        request.in_flight.ended(Ending::Left, self.now - request.sent, self.now);
        self.second().left += 1;
        if self.plan.sequential {
            self.call_again(request.caller);
        }
    }

    fn done(&mut self, server: usize, request: u64) {
        let of = &mut self.servers[server];
        of.busy -= 1;
        let mood = of.mood;
        let outcome = match mood {
            Mood::Fails => Outcome::Error(ErrorKind::Status(500)),
            Mood::Serves | Mood::Sheds(_) | Mood::Hangs => Outcome::Success,
        };
        if let Some(next) = of.queue.pop_front() {
            self.serve(server, next);
        }
        let Some(Request { caller, agent, sent, mut in_flight }) = self.requests.remove(&request) else {
            return;
        };
        let waited = self.now - sent;
        match mood {
            Mood::Fails => in_flight.ended(Ending::Failed, waited, self.now),
            Mood::Sheds(after) => in_flight.ended(Ending::Shed(after), waited, self.now),
            Mood::Serves | Mood::Hangs => {
                in_flight.answered(Some(waited), self.now);
                in_flight.ended(Ending::Good, waited, self.now);
            }
        }
        self.second().errors += u32::from(outcome.is_error());
        if let Some(config) = &self.plan.policy.outlier_detection {
            let Agent { subset, rng, .. } = &mut self.agents[agent];
            let by = CallerId::new(caller as u64 + 1);
            let ejections = subset.observe(config, in_flight.endpoint(), by, outcome, self.now, rng);
            self.ejections += ejections.len() as u32;
        }
        if self.plan.sequential {
            self.call_again(caller);
        }
    }

    /// An agent takes the cluster in as it is.
    fn hear(&mut self, agent: usize) {
        let agent = &mut self.agents[agent];
        agent.loads.resize_with(self.servers.len(), Arc::default);
        let there = self.servers.iter().zip(&agent.loads).enumerate().filter(|(_, (server, _))| !server.gone);
        let endpoints = there.map(|(index, (server, load))| {
            Arc::new(Endpoint {
                ready: server.ready,
                terminating: server.terminating,
                ready_since_nanos: server.ready_since.map(|since| since as i64),
                load: load.clone(),
                ..Endpoint::new(address_of(index))
            })
        });
        agent.subset = Subset::new(endpoints.collect(), Some(&agent.subset));
    }

    /// How many requests each server got in each of these seconds.
    fn sent(&self, server: usize, seconds: Range<usize>) -> Vec<u32> {
        self.seconds[seconds].iter().map(|second| second.sent.get(server).copied().unwrap_or(0)).collect()
    }

    fn total(&self, server: usize, seconds: Range<usize>) -> f64 {
        self.sent(server, seconds).into_iter().map(f64::from).sum()
    }

    fn longest_queue(&self, seconds: Range<usize>) -> usize {
        self.seconds[seconds].iter().flat_map(|second| &second.longest_queue).copied().max().unwrap_or(0)
    }
}

fn address_of(server: usize) -> SocketAddr {
    let [high, low] = (server as u16).to_be_bytes();
    SocketAddr::from(([10, 1, high, low], 8080))
}

fn server_at(address: SocketAddr) -> usize {
    match address.ip() {
        IpAddr::V4(ip) => usize::from(u16::from_be_bytes([ip.octets()[2], ip.octets()[3]])),
        IpAddr::V6(_) => unreachable!("it was made of a number"),
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    /// The next is the greatest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.0, other.1).cmp(&(self.0, self.1))
    }
}
