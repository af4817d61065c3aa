//! What is counted for the requests of one pod to one service and lane: atomics, no locks.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicI64, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use super::{
    distribution::Distribution,
    exemplars::{Exemplar, Exemplars, Kept},
    outcomes::{AttemptOutcome, CLASSES},
};
use crate::{
    govern::{tag::Tag, tally::Tally},
    observe::{reason::Reason, trace::context::TraceId},
};

/// Upper bounds of the histogram of whole requests, in nanoseconds.
pub(super) const BOUNDS_NANOS: [u64; 16] = [
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
    60_000_000_000,
];

const REASONS: usize = Reason::ALL.len();

/// The lane label of a request: that of the endpoint, not the tag of the request, which a caller may make up.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LaneLabel {
    /// No endpoint was chosen.
    None,
    Baseline,
    Lane(Tag),
}

impl LaneLabel {
    pub fn as_str(&self) -> &str {
        match self {
            Self::None => "",
            Self::Baseline => "baseline",
            Self::Lane(tag) => tag.as_str(),
        }
    }
}

/// The label of an endpoint with this tag.
impl From<Option<&Tag>> for LaneLabel {
    fn from(tag: Option<&Tag>) -> Self {
        tag.map_or(Self::Baseline, |tag| Self::Lane(tag.clone()))
    }
}

/// The numbers of one calling pod, service and lane.
#[derive(Debug, Default)]
pub struct Series {
    pub(super) requests_in_flight: AtomicI64,
    pub(super) tunnels_in_flight: AtomicI64,
    /// Requests that an endpoint answered, by class.
    pub(super) answered: [AtomicU64; CLASSES.len()],
    /// Requests with a reason, by class and reason; made when the first one comes.
    pub(super) faults: OnceLock<Box<Faults>>,
    /// Tunnels that ended by themselves.
    pub(super) tunnels: AtomicU64,
    pub(super) durations: Distribution<{ BOUNDS_NANOS.len() }>,
    /// Made when the first request of a sampled trace ends.
    exemplars: OnceLock<Box<Exemplars>>,
    /// From the caller to the endpoint.
    pub(super) request_bytes: AtomicU64,
    /// From the endpoint to the caller.
    pub(super) response_bytes: AtomicU64,
    /// Requests that the service failed to answer, whatever the status: gRPC says so elsewhere.
    pub(super) errors: AtomicU64,
    /// Requests that Sluice refused.
    pub(super) refused: AtomicU64,
    /// Attempts at endpoints, of which a request may have several.
    pub(super) attempts: [AtomicU64; AttemptOutcome::ALL.len()],
    /// Where the same requests are counted for the service as a whole.
    pub(super) service: Arc<Tally>,
}

#[derive(Debug, Default)]
pub(super) struct Faults {
    pub(super) requests: [[AtomicU64; REASONS]; CLASSES.len()],
    pub(super) tunnels: [AtomicU64; REASONS],
}

/// Requests of a pod to a service and lane, since ever.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    pub ended: u64,
    /// Of those, the ones that the service failed to answer.
    pub errors: u64,
    /// Of those, the ones that Sluice refused.
    pub refused: u64,
    pub in_flight: u32,
    pub tunnels_in_flight: u32,
}

impl Series {
    pub(super) fn of(service: Arc<Tally>) -> Self {
        Self { service, ..Self::default() }
    }

    /// Where the requests are counted for the service as a whole, whoever calls.
    pub fn service(&self) -> &Arc<Tally> {
        &self.service
    }

    pub fn requests(&self) -> Requests {
        let sum = |counters: &[AtomicU64]| counters.iter().map(|counter| counter.load(Relaxed)).sum::<u64>();
        let faults =
            self.faults.get().map_or(0, |faults| faults.requests.iter().map(|by| sum(by)).sum::<u64>());
        // A gauge is below 0 for moments in which its parts are read one after the other.
        let gauge = |gauge: &AtomicI64| u32::try_from(gauge.load(Relaxed)).unwrap_or(0);
        Requests {
            ended: sum(&self.answered) + faults,
            errors: self.errors.load(Relaxed),
            refused: self.refused.load(Relaxed),
            in_flight: gauge(&self.requests_in_flight),
            tunnels_in_flight: gauge(&self.tunnels_in_flight),
        }
    }

    /// A request has begun. It is in flight until the guard is finished or dropped.
    pub fn begin(self: &Arc<Self>) -> ActiveRequest {
        self.requests_in_flight.fetch_add(1, Relaxed);
        ActiveRequest { series: Some(Arc::clone(self)), failed: false }
    }

    /// A tunnel has begun.
    pub fn begin_tunnel(self: &Arc<Self>) -> ActiveTunnel {
        self.tunnels_in_flight.fetch_add(1, Relaxed);
        ActiveTunnel { series: Arc::clone(self) }
    }

    /// Counts bytes from the caller, for bodies and tunnels alike.
    pub fn add_request_bytes(&self, bytes: u64) {
        self.request_bytes.fetch_add(bytes, Relaxed);
    }

    /// Counts bytes to the caller.
    pub fn add_response_bytes(&self, bytes: u64) {
        self.response_bytes.fetch_add(bytes, Relaxed);
    }

    /// An attempt at an endpoint of the lane has ended.
    pub fn attempted(&self, how: AttemptOutcome) {
        self.attempts[how as usize].fetch_add(1, Relaxed);
    }

    fn count(&self, status: u16, reason: Option<Reason>) {
        let class = usize::from(status / 100);
        let class = if class < CLASSES.len() { class } else { 0 };
        let counter = match reason {
            None => &self.answered[class],
            Some(reason) => &self.faults().requests[class][reason.index()],
        };
        counter.fetch_add(1, Relaxed);
    }

    /// Tells those who look second by second. `latency_nanos`: `None` if the caller left before there was an answer.
    fn tell(&self, status: u16, reason: Option<Reason>, failed: bool, latency_nanos: Option<u64>) {
        if reason.is_some_and(Reason::is_refusal) {
            self.refused.fetch_add(1, Relaxed);
            self.service.refused();
        } else if let Some(nanos) = latency_nanos.filter(|_| reason != Some(Reason::ClientClosed)) {
            let error = failed || status == 0 || status >= 500 || reason.is_some();
            if error {
                self.errors.fetch_add(1, Relaxed);
            }
            self.service.answered(nanos, error);
        } else {
            self.service.left();
        }
    }

    /// The last requests of sampled traces, by bucket; `None`: there was none.
    pub(super) fn exemplars(&self) -> Option<Kept> {
        Some(self.exemplars.get()?.kept())
    }

    fn faults(&self) -> &Faults {
        self.faults.get_or_init(Box::default)
    }
}

/// A request in flight.
#[derive(Debug)]
#[must_use = "dropping it counts the request as left by its caller"]
pub struct ActiveRequest {
    /// Taken when the request is finished.
    series: Option<Arc<Series>>,
    failed: bool,
}

impl ActiveRequest {
    /// The request has ended. `status` is the one that the caller got, 0 if it got none; `reason` says why Sluice
    /// made the answer up, or broke off one that had begun. `latency` is from the request's head to the answer's end.
    pub fn finish(
        mut self,
        status: u16,
        reason: Option<Reason>,
        latency: Duration,
        request_bytes: u64,
        response_bytes: u64,
    ) {
        let Some(series) = self.series.take() else { return };
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        series.requests_in_flight.fetch_sub(1, Relaxed);
        series.count(status, reason);
        series.tell(status, reason, self.failed, Some(nanos));
        series.durations.observe(&BOUNDS_NANOS, nanos);
        if request_bytes > 0 {
            series.add_request_bytes(request_bytes);
        }
        if response_bytes > 0 {
            series.add_response_bytes(response_bytes);
        }
    }
}

impl ActiveRequest {
    /// The request, which ends now, belongs to a trace that is sampled.
    pub fn sampled(&self, trace: TraceId, latency: Duration, time: SystemTime) {
        if let Some(series) = &self.series {
            let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
            series.exemplars.get_or_init(Box::default).keep(Exemplar { trace, nanos, time });
        }
    }

    /// What the service answered is an error, though the status does not say so.
    pub fn note_failure(&mut self) {
        self.failed = true;
    }

    /// The request goes to another lane, where it is counted.
    pub fn withdraw(mut self) {
        if let Some(series) = self.series.take() {
            series.requests_in_flight.fetch_sub(1, Relaxed);
        }
    }
}

/// Whoever drops a request unfinished has lost its caller.
impl Drop for ActiveRequest {
    fn drop(&mut self) {
        if let Some(series) = self.series.take() {
            series.requests_in_flight.fetch_sub(1, Relaxed);
            series.count(0, Some(Reason::ClientClosed));
            series.tell(0, Some(Reason::ClientClosed), false, None);
        }
    }
}

/// A tunnel that is open.
#[derive(Debug)]
pub struct ActiveTunnel {
    series: Arc<Series>,
}

impl ActiveTunnel {
    pub fn series(&self) -> &Arc<Series> {
        &self.series
    }

    /// The tunnel has ended: by itself, or because of something.
    pub fn finish(self, reason: Option<Reason>) {
        let counter = match reason {
            None => &self.series.tunnels,
            Some(reason) => &self.series.faults().tunnels[reason.index()],
        };
        counter.fetch_add(1, Relaxed);
    }
}

impl Drop for ActiveTunnel {
    fn drop(&mut self) {
        self.series.tunnels_in_flight.fetch_sub(1, Relaxed);
    }
}
