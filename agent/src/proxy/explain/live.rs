//! What would become of a request now.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use bytes::BytesMut;
use fastrand::Rng;
use http::HeaderName;

use super::{Candidate, Explanation, Outcome, Stage, Steps, Verdict, rule, text};
use crate::{
    clock::Nanos,
    cluster::model::{Destination, Protocol, Service, Snapshot, Workload},
    govern::{
        access::{self, Access, Client, Decision, Identity},
        endpoint::Endpoint,
        fallback,
        governor::{Governor, Ruled},
        lane::{RequestTag, TagNames, TagSource, Tagging},
        outlier,
        policy::{Detour, FallbackAction, FallbackOn, LaneFallback, Mode, Part, Scope},
        remembered::Remembered,
        request::Request,
        route::{self, Candidates, Lane, Refusal, Within, Yielded},
        subset::Subset,
        tag::Tag,
        throttle::Admission,
        warmup::{self, Stage as Warmth},
    },
    observe::reason::Reason,
    proxy::{
        by_caller::ByCaller,
        choose,
        http1::{self, Sources, View},
        traced::Asking,
        way::{self, Course, Whence},
    },
};

/// Draws that tell how often each endpoint is chosen.
const DRAWS: u32 = 1000;

/// A request that is asked about.
#[derive(Clone, Debug)]
pub struct Asked {
    pub caller: Arc<Workload>,
    /// Why its connections are not captured; `None`: they are.
    pub not_captured: Option<String>,
    /// What it dials.
    pub dialled: SocketAddr,
    /// A head of HTTP/1, with its empty line.
    pub head: Vec<u8>,
    /// What came to the pod; `None`: it is not known here.
    pub remembered: Option<Arc<Remembered>>,
}

/// Why the request ends at a step.
struct Stopped {
    reason: Reason,
    on: Option<FallbackOn>,
    /// What there is to say beyond the reason.
    because: Option<String>,
}

/// Where it goes.
struct Chosen {
    endpoint: Arc<Endpoint>,
    lane: Lane,
}

/// Goes through the decision. Nothing is changed by it: what the rules remember is asked as a copy.
pub fn explain(snapshot: &Snapshot, names: &TagNames, asked: &Asked) -> Explanation {
    let Asked { caller, head, dialled, remembered, .. } = asked;
    let view = View(head);
    let mut explanation = Explanation {
        ended: None,
        caller: format!("{}/{}", caller.namespace, caller.name),
        service: None,
        method: text(view.method()),
        path: text(view.path()),
        steps: Vec::new(),
        candidates: Vec::new(),
        outcome: Outcome::of("the connection goes direct, as if Sluice were not there"),
    };
    let mut steps = Steps::default();
    if let Some(why) = &asked.not_captured {
        steps.say(Stage::Enrolled, Verdict::Stops, why, Some(format!("Pod {}", explanation.caller)));
        explanation.steps = steps.0;
        return explanation;
    }
    let enrolled = "the pod is enrolled: its new connections to managed addresses go to the agent";
    steps.say(Stage::Enrolled, Verdict::Passes, enrolled, Some(format!("Pod {}", explanation.caller)));
    let Some(destination) = snapshot.destination(*dialled) else {
        let what = format!(
            "{dialled} is not managed: no service of an enrolled namespace has that address and port"
        );
        steps.say(Stage::Managed, Verdict::Stops, what, None);
        explanation.steps = steps.0;
        return explanation;
    };
    explanation.service = Some(destination.service.to_string());
    let mut rng = Rng::new();
    let routed = snapshot.routed(*dialled, destination).and_then(|routed| routed.of(&caller.namespace));
    let routed = routed.map(|group| {
        let (client, called) = (&**caller, &*destination.service);
        let whence = Whence { names, client, remembered: remembered.as_deref(), called };
        way::course(group, &view, whence, &mut rng)
    });
    let service = match &routed {
        Some((_, Ok(service))) => service,
        _ => &destination.service,
    };
    let mut edited = BytesMut::new();
    let entered = routed.as_ref().map(|(course, _)| &course.entered);
    let mut strip = entered.is_some_and(|entered| entered.strip) || service.strips_tags(caller);
    if let Some((course, _)) = routed.as_ref().filter(|(course, _)| course.changes_request()) {
        http1::edit_routed(head, course, names, strip, &mut edited);
        strip &= !course.sets_tag(names);
    }
    let mut walk = Walk {
        snapshot,
        steps,
        service,
        dialled: destination,
        routed: routed.as_ref().map(|(course, next)| (course, next.as_ref().err())),
        strip,
        caller,
        remembered: remembered.as_deref(),
        came: if edited.is_empty() { view } else { View(&edited) },
        forwarded: BytesMut::new(),
        ruled: None,
        now: Nanos::now().0,
        candidates: Vec::new(),
    };
    explanation.outcome = walk.go(names, *dialled);
    explanation.steps = walk.steps.0;
    explanation.candidates = walk.candidates;
    explanation
}

struct Walk<'a> {
    snapshot: &'a Snapshot,
    steps: Steps,
    /// That the request goes to.
    service: &'a Service,
    dialled: &'a Destination,
    /// What its routes have decided, if it has any, and what is answered if it goes nowhere.
    routed: Option<(&'a Course, Option<&'a way::Answer>)>,
    /// What the client says of its tag does not count.
    strip: bool,
    caller: &'a Workload,
    remembered: Option<&'a Remembered>,
    /// The head as it came, with what routes change in it, which is asked for the tag.
    came: View<'a>,
    /// The head with its tag, which policies are asked about.
    forwarded: BytesMut,
    /// The rule of the policy that holds for the request.
    ruled: Option<&'a Ruled>,
    now: u64,
    candidates: Vec<Candidate>,
}

impl<'a> Walk<'a> {
    fn go(&mut self, names: &TagNames, dialled: SocketAddr) -> Outcome {
        self.governed(dialled);
        if !self.protocol() {
            return Outcome::of("the connection is tunnelled to an endpoint, without HTTP rules");
        }
        let tagging = match self.request(names) {
            Ok(tagging) => tagging,
            Err(outcome) => return outcome,
        };
        if let Some(outcome) = self.routes() {
            return outcome;
        }
        self.tag(&tagging, names);
        self.rules();
        let tag = tagging.tag.as_ref();
        let chosen = self.admit().and_then(|()| self.route(tag)).and_then(|chosen| self.ask_breaker(chosen));
        match chosen.and_then(|chosen| self.access(chosen)) {
            Ok(chosen) => {
                self.afterwards();
                let pod = chosen.endpoint.pod.as_deref();
                let endpoint = chosen.endpoint.address.to_string();
                let lane = match (chosen.lane, tag) {
                    (Lane::Routed, Some(tag)) => format!("in lane {}", tag.as_str()),
                    (Lane::FellBack, Some(tag)) => {
                        let of = chosen.endpoint.tag.as_ref();
                        let of =
                            of.map_or_else(|| "the baseline".to_owned(), |other| format!("lane {other}"));
                        format!("of {of}, the fallback of lane {}", tag.as_str())
                    }
                    _ => "of the baseline".to_owned(),
                };
                let shown = pod.map_or_else(|| endpoint.clone(), |pod| format!("{pod} ({endpoint})"));
                let what = format!("goes to {shown} {lane}");
                let pod = pod.map(str::to_owned);
                Outcome { endpoint: Some(endpoint), pod, ..Outcome::of(what) }
            }
            Err(stopped) => self.stand_in(&stopped),
        }
    }

    /// What governs the request.
    fn governor(&self) -> &'a Governor {
        self.ruled.map_or(&self.service.governor, |ruled| &ruled.governor)
    }

    fn policy(&self) -> Option<&str> {
        self.governor().policy().name.as_deref()
    }

    /// A rule, and the policy that says it.
    #[expect(clippy::unnecessary_wraps, reason = "as a step takes it")]
    fn rule(&self, name: &str, part: Part) -> Option<String> {
        Some(rule(name, self.governor().policy().said_by(part).map(|name| &**name)))
    }

    #[expect(clippy::unnecessary_wraps, reason = "as a step takes it")]
    fn service_object(&self) -> Option<String> {
        Some(format!("Service {}/{}", self.service.namespace, self.service.name))
    }

    fn governed(&mut self, dialled: SocketAddr) {
        let service = &self.dialled.service;
        let what = match (&self.dialled.pinned, self.dialled.preferred()) {
            (None, _) => format!("{dialled} is {service}"),
            (_, Some(_)) => format!(
                "{dialled} is an endpoint of {service}, whose endpoints are managed (sluice.dev/endpoints)"
            ),
            (Some(_), None) => format!("{dialled} is an endpoint of {service}, which is headless"),
        };
        let object = Some(format!("Service {}/{}", service.namespace, service.name));
        self.steps.say(Stage::Managed, Verdict::Passes, what, object);
    }

    /// Whether requests are looked at.
    fn protocol(&mut self) -> bool {
        let service = &self.dialled.service;
        let object = Some(format!("Service {}/{}", service.namespace, service.name));
        let (verdict, what) = match service.protocol {
            Protocol::Detect => {
                (Verdict::Passes, "nothing is declared: the first bytes tell that it is HTTP")
            }
            Protocol::Http => (Verdict::Passes, "declared as HTTP by the port's appProtocol or name"),
            Protocol::Http2 => {
                (Verdict::Passes, "declared as HTTP/2 or gRPC by the port's appProtocol or name")
            }
            Protocol::Opaque => {
                (Verdict::Stops, "declared as something else than HTTP by the port's appProtocol or name")
            }
        };
        self.steps.say(Stage::Protocol, verdict, what, object);
        verdict == Verdict::Passes
    }

    /// Reads the request as the proxy does.
    fn request(&mut self, names: &TagNames) -> Result<Tagging, Outcome> {
        let Self { service, caller, came, forwarded, strip, routed, remembered, .. } = self;
        let entered = routed.and_then(|(course, _)| course.entered.tag);
        let asked = ByCaller { view: *came, workload: *caller };
        let entry = || entered.or_else(|| service.colour(&asked, caller.address()));
        let mut traced = remembered.and_then(|remembered| Asking::of(remembered, caller));
        let sources = Sources { strip: *strip, traced: traced.as_mut(), caller: caller.tag.as_ref(), entry };
        let read = http1::read(came.0, names, sources, None, forwarded);
        read.map(|request| request.tagging).map_err(|refused| {
            let reason = http1::reason_of(refused);
            self.steps.say(Stage::Request, Verdict::Stops, refused.to_string(), None);
            made_up(reason, format!("Sluice responds {}: {}", reason.status(), reason.message()))
        })
    }

    /// Which rule of the routes holds, and where that leads. Gives what comes of it if the request goes nowhere.
    fn routes(&mut self) -> Option<Outcome> {
        let (course, answer) = self.routed?;
        let source = course.rule.as_deref().map(way::shown);
        if let Some(answer) = answer {
            let (cause, what) = (answer.cause(), answer.shown());
            self.steps.say(Stage::Route, Verdict::Stops, what.clone(), source);
            let status = answer.status().unwrap_or_else(|| cause.reason.status());
            return Some(Outcome {
                status: Some(status),
                ..made_up(cause.reason, format!("Sluice responds {status}: {what}"))
            });
        }
        let all = std::iter::once(format!("goes to {}", self.service)).chain(course.lot());
        let what: Vec<_> = all.chain(course.changes()).collect();
        let what = what.join("; ");
        self.steps.say(Stage::Route, Verdict::Changes, what, source);
        None
    }

    fn tag(&mut self, tagging: &Tagging, names: &TagNames) {
        let because = match tagging.source {
            None => None,
            Some(TagSource::Header) => Some(format!("a tag header of the request ({})", names.header())),
            Some(TagSource::Carrier(carrier)) => {
                Some(format!("the member {} of the request's header {}", names.key(), carrier.header()))
            }
            Some(TagSource::Trace) => Some(format!(
                "the request's trace: it came to Pod {}/{} with this tag (sluice.dev/propagation: trace)",
                self.caller.namespace, self.caller.name
            )),
            Some(TagSource::Workload) => {
                Some(format!("Pod {}/{}, whose own tag it is", self.caller.namespace, self.caller.name))
            }
            Some(TagSource::Entry) => {
                // Where the request came in, or where its route leads.
                let entered = self.routed.is_some_and(|(course, _)| course.entered.tag.is_some());
                let service = if entered { &self.dialled.service } else { self.service };
                let coloured = service
                    .entry
                    .colour(&ByCaller { view: self.came, workload: self.caller }, self.caller.address());
                coloured.map(|coloured| format!("entry[{}] of TrafficLane {}", coloured.rule, coloured.lane))
            }
        };
        let ignored = match tagging.invalid {
            0 => String::new(),
            values => format!("; {values} values that are no tags were ignored"),
        };
        let conflict =
            if tagging.conflict { "; other headers say another tag, which does not count" } else { "" };
        let (verdict, what) = match &tagging.tag {
            Some(tag) => (Verdict::Changes, format!("{}{conflict}{ignored}", tag.as_str())),
            None if tagging.strip => (
                Verdict::Changes,
                "none: its own tag comes from outside and is removed (stripTags), and no entry rule matches"
                    .to_owned(),
            ),
            None => (Verdict::Passes, format!("none, and no entry rule matches{ignored}")),
        };
        self.steps.say(Stage::Tag, verdict, what, because);
    }

    /// Which rule of the policy holds, and what the policy changes in headers.
    fn rules(&mut self) {
        let service = self.service;
        let view = ByCaller { view: View(&self.forwarded), workload: self.caller };
        let on_route = self.routed.and_then(|(course, _)| course.policy.as_deref());
        self.ruled = service.governor.ruled(on_route, &view).map(|ruled| &**ruled);
        if let (Some(policy), Some(ruled)) = (on_route, self.ruled) {
            let parts: Vec<_> = ruled.rule.own.iter().map(Part::name).collect();
            let what = format!("targets the route: its {} apply", parts.join(", "));
            self.steps.say(Stage::Rule, Verdict::Changes, what, Some(format!("TrafficPolicy {policy}")));
        } else if !service.governor.rules().is_empty() {
            let (verdict, what) = match self.ruled {
                Some(ruled) => {
                    (Verdict::Changes, format!("{} applies: it is the first that matches", ruled.rule.name))
                }
                None => (Verdict::Passes, "none matches: the policy applies".to_owned()),
            };
            let name =
                self.ruled.map_or_else(|| "rules".to_owned(), |ruled| format!("rule {}", ruled.rule.name));
            let because = self.rule(&name, Part::Rules);
            self.steps.say(Stage::Rule, verdict, what, because);
        }
        let headers = &self.governor().policy().headers;
        for (edits, of) in [(&headers.request, "request"), (&headers.response, "response")] {
            if !edits.is_empty() {
                let names = |names: Vec<&HeaderName>| {
                    names.into_iter().map(HeaderName::as_str).collect::<Vec<_>>().join(", ")
                };
                let set = edits.set.iter().chain(&edits.add).map(|(name, _)| name).collect();
                let what = format!(
                    "headers of the {of}: sets or adds [{}], removes [{}]",
                    names(set),
                    names(edits.remove.iter().collect())
                );
                let because = self.rule(&format!("headers.{of}"), Part::Headers);
                self.steps.say(Stage::Rule, Verdict::Changes, what, because);
            }
        }
    }

    fn admit(&mut self) -> Result<(), Stopped> {
        let governor = self.governor();
        let at_endpoint = "limits what comes to each endpoint: the agent of its node decides";
        for limit in governor.policy().rate_limits.iter().filter(|limit| limit.scope == Scope::Endpoint) {
            let because = self.rule(&format!("rule {}", limit.name), Part::RateLimits);
            self.steps.say(Stage::RateLimit, Verdict::Passes, at_endpoint, because);
        }
        if governor.policy().concurrency.as_ref().is_some_and(|limit| limit.scope == Scope::Endpoint) {
            let because = self.rule("concurrency", Part::Concurrency);
            self.steps.say(Stage::Concurrency, Verdict::Passes, at_endpoint, because);
        }
        let view = ByCaller { view: View(&self.forwarded), workload: self.caller };
        let rules = governor.throttles().copy_for(&view, &self.caller.uid, self.now);
        let verdict = rules.admit(&view, &self.caller.uid, None, self.now);
        for (limit, admission) in verdict.decisions() {
            let enforced = limit.mode == Mode::Enforce;
            let (verdict, what) = match admission {
                Admission::Now => (Verdict::Passes, "admits it at once".to_owned()),
                Admission::After(wait) if enforced => {
                    (Verdict::Changes, format!("lets it wait for {} first", shown(wait)))
                }
                Admission::After(wait) => {
                    (Verdict::WouldStop, format!("mode Observe: it would let it wait for {}", shown(wait)))
                }
                Admission::Refused { retry_after } if enforced => {
                    (Verdict::Stops, format!("rejects it; retry after {}", shown(retry_after)))
                }
                Admission::Refused { .. } => {
                    (Verdict::WouldStop, "mode Observe: it would reject it".to_owned())
                }
            };
            let because = self.rule(&format!("rule {}", limit.name), Part::RateLimits);
            self.steps.say(Stage::RateLimit, verdict, what, because);
        }
        if verdict.refusal().is_some() {
            return Err(Stopped {
                reason: Reason::RateLimited,
                on: Some(FallbackOn::LimitExceeded),
                because: None,
            });
        }
        let Some(limiter) = governor.limiter() else { return Ok(()) };
        let (in_flight, limit) = (limiter.in_flight(), limiter.limit());
        let full = limiter.would_refuse(&self.caller.uid, self.now);
        let kept =
            if full && in_flight < limit { "; those that are left are kept for other pods" } else { "" };
        let counted = format!("{in_flight} requests are in flight, {limit} may be{kept}");
        let verdict = match (full, limiter.config().mode) {
            (false, _) => Verdict::Passes,
            (true, Mode::Enforce) => Verdict::Stops,
            (true, Mode::Observe) => Verdict::WouldStop,
        };
        let because = self.rule("concurrency", Part::Concurrency);
        self.steps.say(Stage::Concurrency, verdict, counted, because);
        match verdict {
            Verdict::Stops => Err(Stopped {
                reason: Reason::ConcurrencyLimited,
                on: Some(FallbackOn::LimitExceeded),
                because: None,
            }),
            _ => Ok(()),
        }
    }

    fn route(&mut self, tag: Option<&RequestTag>) -> Result<Chosen, Stopped> {
        if let Some(pinned) = self.dialled.held() {
            let what = "the client called this endpoint itself and stays with it";
            let object = self.service_object();
            self.steps.say(Stage::Endpoint, Verdict::Passes, what, object);
            return Ok(Chosen { endpoint: pinned.clone(), lane: Lane::Baseline });
        }
        let (service, original) = (self.service, self.service.candidates());
        let copied = original.baseline.copy();
        let lanes: BTreeMap<Tag, Subset> =
            original.lanes.iter().map(|(tag, subset)| (tag.clone(), subset.copy())).collect();
        let candidates = Candidates { baseline: &copied, lanes: &lanes, ..original };
        let fallback = service.fallback(tag);
        // At most one request asks such an endpoint again. That says nothing of where requests go.
        let doubted = service.endpoints.iter().filter(|one| one.load.backoff.is_doubted());
        let doubted: Vec<_> = doubted.map(|one| one.address).collect();
        let call = route::Call {
            tag,
            fallback,
            caller: self.caller.address(),
            tried: &doubted,
            within: Within::Any,
            now_nanos: self.now,
        };
        if let Some(kept) = self.dialled.preferred().and_then(|own| route::keep(original, &call, own)) {
            let what = "the client called this endpoint itself, and it is of the lane that is to answer";
            let object = self.service_object();
            self.steps.say(Stage::Endpoint, Verdict::Passes, what, object);
            return Ok(Chosen { endpoint: kept.endpoint, lane: kept.lane });
        }
        let mut rng = Rng::new();
        let decided = route::route(candidates, &call, &mut rng);
        let mut drawn: BTreeMap<SocketAddr, u32> = BTreeMap::new();
        for _ in 0..DRAWS {
            if let Ok(decision) = route::route(candidates, &call, &mut rng) {
                *drawn.entry(decision.endpoint.address).or_default() += 1;
            }
        }
        let subsets = std::iter::once(&copied).chain(lanes.values());
        let yielded = Yielded::of(service.governor.policy(), subsets, self.now);
        self.lane(tag, fallback, &decided);
        let of_lane = tag.and_then(|tag| lanes.get(tag.as_str()));
        let others = fallback.lanes.iter().filter(|_| tag.is_some()).filter_map(|other| lanes.get(other));
        let of_lanes = of_lane.into_iter().chain(others).flat_map(|lane| lane.iter());
        let endpoints: Vec<_> = of_lanes.chain(copied.iter()).collect();
        let draws = |one: &Arc<Endpoint>| drawn.get(&one.address).copied().unwrap_or_default();
        let draws: Vec<_> = endpoints.iter().map(|one| draws(one)).collect();
        for (endpoint, percent) in endpoints.into_iter().zip(percentages(&draws)) {
            self.candidates.push(candidate(service, &yielded, endpoint, percent, self.now));
        }
        match decided {
            Ok(decision) => {
                let (shown, of) = (draws.iter().filter(|draws| **draws > 0).count(), self.candidates.len());
                let mut what = format!(
                    "{} is chosen by {:?}; candidates: {shown} of {of}",
                    decision.endpoint.address,
                    service.governor.policy().load_balancer.algorithm
                );
                if service.session_affinity {
                    what = format!("{} is the caller's (sessionAffinity)", decision.endpoint.address);
                }
                if let Some(one) = doubted.iter().find(|one| **one != decision.endpoint.address) {
                    what = format!(
                        "{what}; {one} does not answer connection requests: it is asked now and then, by one request"
                    );
                }
                if decision.panic {
                    what += "; panic: too few are usable, so those that are held out are asked as well";
                }
                if decision.yields {
                    what += "; the warm-up curve yields, lest warm endpoints get too much";
                }
                let because =
                    self.rule("loadBalancer", Part::LoadBalancer).filter(|_| self.policy().is_some());
                let verdict = if decision.panic { Verdict::Changes } else { Verdict::Passes };
                self.steps.say(Stage::Endpoint, verdict, what, because);
                Ok(Chosen { endpoint: decision.endpoint, lane: decision.lane })
            }
            Err(refusal) => Err(Stopped {
                reason: choose::reason_of(refusal),
                on: Some(FallbackOn::NoEndpoint),
                because: choose::lanes_instead(service, tag, refusal),
            }),
        }
    }

    fn lane(
        &mut self,
        tag: Option<&RequestTag>,
        fallback: &Detour,
        decided: &Result<route::Decision, Refusal>,
    ) {
        let service = self.service;
        let (baseline, usable) = (service.baseline.len(), service.baseline.usable());
        let of_baseline = format!("endpoints of the baseline: {baseline}, ready: {usable}");
        let Some(tag) = tag else {
            let verdict = if decided.is_ok() { Verdict::Passes } else { Verdict::Stops };
            let object = self.service_object();
            let lanes = service.lanes.iter().filter(|(_, lane)| usable == 0 && lane.usable() > 0);
            let lanes: Vec<_> =
                lanes.map(|(tag, lane)| format!("; in lane {tag}: {}", lane.usable())).collect();
            let lanes = lanes.concat();
            self.steps.say(Stage::Lane, verdict, format!("no tag: {of_baseline}{lanes}"), object);
            return;
        };
        let tag = tag.as_str();
        let there = service.lanes.get(tag).map_or_else(
            || format!("{service} has no endpoint in lane {tag}"),
            |lane| format!("endpoints in lane {tag}: {}, ready: {}", lane.len(), lane.usable()),
        );
        let fails = fallback.then == LaneFallback::Fail;
        let because = if *fallback == Detour::default() {
            self.service_object()
        } else {
            Some(format!("fallback: {fallback} of the TrafficLane for {tag} in {}", service.namespace))
        };
        let (verdict, what) = match decided {
            Ok(decision) if decision.lane == Lane::FellBack => {
                let to = decision.endpoint.tag.as_ref().map_or_else(
                    || format!("the baseline, and keeps its tag; {of_baseline}"),
                    |other| format!("lane {other}, and keeps its tag"),
                );
                (Verdict::Changes, format!("{there}: falls back to {to}"))
            }
            Ok(_) => (Verdict::Passes, there),
            Err(_) if fails => (Verdict::Stops, format!("{there}, and it may not fall back")),
            Err(_) => (Verdict::Stops, format!("{there}; {of_baseline}")),
        };
        self.steps.say(Stage::Lane, verdict, what, because);
    }

    fn ask_breaker(&mut self, chosen: Chosen) -> Result<Chosen, Stopped> {
        let Some(breakers) = self.governor().breakers() else { return Ok(chosen) };
        let lane = chosen.endpoint.tag.as_ref();
        let breaker = breakers.copy_of(&self.caller.uid, lane);
        let state = breaker.state(self.now).code();
        let why = breaker
            .recent_transitions()
            .last()
            .map_or_else(String::new, |last| format!(", for {}", last.why));
        let whose = if breakers.are_shared() { "of the node" } else { "of this pod" };
        let of = format!("that {whose} for {} is {state}{why}", lane.map_or("the baseline", Tag::as_str));
        let (verdict, what) = match breaker.try_acquire(self.now) {
            Ok(leave) if leave.would_reject().is_some() => {
                (Verdict::WouldStop, format!("{of}; mode Observe: it would reject it"))
            }
            Ok(_) => (Verdict::Passes, of),
            Err(open) => (Verdict::Stops, format!("{of}; retry after {}", shown(open.retry_after))),
        };
        let because = self.rule("circuitBreaker", Part::CircuitBreaker);
        self.steps.say(Stage::CircuitBreaker, verdict, what, because);
        match verdict {
            Verdict::Stops => {
                Err(Stopped { reason: Reason::CircuitOpen, on: Some(FallbackOn::CircuitOpen), because: None })
            }
            _ => Ok(chosen),
        }
    }

    /// What AccessPolicies say of it, which the agent of the endpoint's node asks.
    fn access(&mut self, chosen: Chosen) -> Result<Chosen, Stopped> {
        let to = chosen.endpoint.address;
        let ips = &self.caller.ips;
        let from = ips.iter().copied().find(|ip| ip.is_ipv4() == to.is_ipv4());
        let from = from.unwrap_or_else(|| self.caller.address());
        let pod = self.snapshot.clients.find(from);
        let client = Client { address: from, pod: pod.as_deref() };
        let who = whom(&client);
        let mut stops: Option<Decision<'_>> = None;
        for policy in guards(self.snapshot, to) {
            let decision = policy.decide(client, &View(&self.forwarded));
            let (does, would) = match &decision {
                Decision::Allowed(_) => ("allows it", ""),
                Decision::Denied(_) => ("denies it", "would deny it"),
                Decision::Hidden(_) => ("hides the path", "would hide the path"),
            };
            let (verdict, what) = match policy.mode {
                _ if decision.is_allowed() => (Verdict::Passes, does.to_owned()),
                Mode::Enforce => (Verdict::Stops, does.to_owned()),
                Mode::Observe => (Verdict::WouldStop, format!("mode Observe: it {would}")),
            };
            let named = match (&decision, decision.rule()) {
                (_, None) if policy.closed => "the policy is invalid and has onInvalid: Deny; ".to_owned(),
                (_, None) => "no rule matches; ".to_owned(),
                _ => String::new(),
            };
            let source = match (&decision, decision.rule()) {
                (Decision::Hidden(_), Some(name)) => format!("hidden {name} of AccessPolicy {}", policy.name),
                (_, Some(name)) => format!("rule {name} of AccessPolicy {}", policy.name),
                (_, None) => format!("AccessPolicy {}", policy.name),
            };
            let what = format!("{named}the agent at the endpoint {what}: the client is {who}");
            self.steps.say(Stage::Access, verdict, what, Some(source));
            let strictest = stops.is_none_or(|known| access::stricter(&decision, &known).is_gt());
            if verdict == Verdict::Stops && strictest {
                stops = Some(decision);
            }
        }
        match stops {
            None => Ok(chosen),
            Some(Decision::Hidden(_)) => Err(Stopped { reason: Reason::PathHidden, on: None, because: None }),
            Some(_) => Err(Stopped { reason: Reason::AccessDenied, on: None, because: None }),
        }
    }

    /// What may still happen to it.
    fn afterwards(&mut self) {
        let policy = self.governor().policy();
        let times = [
            ("request", policy.timeouts.request),
            ("backendRequest", policy.timeouts.backend_request),
            ("streamIdle", policy.timeouts.stream_idle),
            ("connect", policy.timeouts.connect),
        ];
        for (name, time) in times {
            if let Some(time) = time {
                let because = self.rule(&format!("timeouts.{name}"), Part::Timeouts);
                self.steps.say(Stage::Timeout, Verdict::Passes, format!("has {}", shown(time)), because);
            }
        }
        if let Some(retry) = &policy.retry {
            let method = self.came.method();
            let may = retry.methods.iter().any(|allowed| allowed.as_str().as_bytes() == method);
            let what = if may {
                format!("may be retried up to {} times, within the budget", retry.attempts)
            } else {
                format!("{} is not retried", text(method))
            };
            let because = self.rule("retry", Part::Retry);
            self.steps.say(Stage::Retry, Verdict::Passes, what, because);
        }
    }

    /// What answers in an endpoint's place.
    fn stand_in(&mut self, stopped: &Stopped) -> Outcome {
        let reason = stopped.reason;
        let policy = self.governor().policy();
        let fallbacks = stopped.on.into_iter().flat_map(|on| fallback::candidates(&policy.fallbacks, on));
        for one in fallbacks {
            let because = self.rule(&format!("fallback {}", one.name), Part::Fallbacks);
            match &one.action {
                FallbackAction::Static(answer) => {
                    let what = format!("responds {} in place of the service", answer.status);
                    self.steps.say(Stage::Fallback, Verdict::Changes, &*what, because);
                    return Outcome {
                        status: Some(answer.status),
                        ..made_up(reason, format!("fallback {} {what}", one.name))
                    };
                }
                FallbackAction::Stale(_) => {
                    let what = "gives the last good response, if one is kept; else the next fallback";
                    self.steps.say(Stage::Fallback, Verdict::Changes, what, because);
                }
            }
        }
        let because = stopped.because.as_ref().map(|because| format!(": {because}")).unwrap_or_default();
        made_up(reason, format!("Sluice responds {} itself: {}{because}", reason.status(), reason.message()))
    }
}

/// The AccessPolicies of Services that have this endpoint, each once.
fn guards(snapshot: &Snapshot, endpoint: SocketAddr) -> Vec<&Access> {
    let services = snapshot.destinations.values().map(|destination| &*destination.service);
    let has = |service: &&Service| service.endpoints.iter().any(|one| one.address == endpoint);
    let policies = services.filter(|service| service.access.is_some()).filter(has);
    let mut policies: Vec<_> = policies.filter_map(|service| service.access.as_deref()).collect();
    policies.sort_by(|one, other| one.name.cmp(&other.name));
    policies.dedup_by(|one, other| one.name == other.name);
    policies
}

fn whom(client: &Client<'_>) -> String {
    match client.pod {
        Some(Identity { namespace, pod, workload, service_account, .. }) => {
            format!("Pod {namespace}/{pod} of {workload}, service account {service_account}")
        }
        None => format!("known by its address alone, {}", client.address),
    }
}

fn made_up(reason: Reason, what: String) -> Outcome {
    Outcome { status: Some(reason.status()), reason: Some(reason.code().to_owned()), ..Outcome::of(what) }
}

/// How many of a hundred requests each would get: whole numbers that add up to 100, as near to the draws as that allows. What is
/// left after rounding down goes to those who lost most by it (the largest remainders).
fn percentages(draws: &[u32]) -> Vec<u32> {
    let all: u64 = draws.iter().map(|draws| u64::from(*draws)).sum();
    if all == 0 {
        return vec![0; draws.len()];
    }
    // Of what is at most `all` the hundredfold over `all` is at most 100.
    let mut percentages: Vec<u32> =
        draws.iter().map(|draws| (u64::from(*draws) * 100 / all) as u32).collect();
    let mut by_remainder: Vec<usize> = (0..draws.len()).collect();
    by_remainder.sort_by_key(|at| std::cmp::Reverse(u64::from(draws[*at]) * 100 % all));
    let left = 100 - percentages.iter().sum::<u32>() as usize;
    for at in by_remainder.into_iter().take(left) {
        percentages[at] += 1;
    }
    percentages
}

fn candidate(service: &Service, yielded: &Yielded, endpoint: &Endpoint, percent: u32, now: u64) -> Candidate {
    let policy = service.governor.policy();
    let warmup = policy.load_balancer.warmup.as_ref();
    let ejected = outlier::ejected_until(policy.outlier_detection.as_ref(), endpoint, now);
    let state = if endpoint.is_draining() {
        "draining".to_owned()
    } else if !endpoint.is_usable() {
        "not ready".to_owned()
    } else if endpoint.load.backoff.is_doubted() {
        "not answering".to_owned()
    } else if let Some(until) = ejected {
        format!("ejected for {}", shown(Duration::from_nanos(until.saturating_sub(now))))
    } else {
        match warmup.map(|warmup| warmup::stage(warmup, endpoint, now)) {
            Some(Warmth::Delayed) => "delayed".to_owned(),
            Some(Warmth::Warming(_)) => "warming".to_owned(),
            Some(Warmth::Warm) | None => "usable".to_owned(),
        }
    };
    let out = ejected.is_some() || !endpoint.is_usable();
    Candidate {
        endpoint: endpoint.address.to_string(),
        pod: endpoint.pod.as_deref().map(str::to_owned),
        lane: endpoint.tag.as_ref().map(|tag| tag.as_str().to_owned()),
        state,
        share: if out { 0.0 } else { yielded.factor(policy, endpoint, now) },
        in_flight: endpoint.load.in_flight.load(std::sync::atomic::Ordering::Relaxed),
        latency_ms: endpoint.load.cost.typical_nanos().map(|nanos| (nanos / 1e3).round() / 1e3),
        percent,
    }
}

/// As people read it: `1.5s`, `38ms`.
fn shown(time: Duration) -> String {
    let rounded = if time >= Duration::from_secs(1) {
        Duration::from_millis((time.as_millis() / 100 * 100) as u64)
    } else {
        Duration::from_millis(time.as_millis() as u64)
    };
    if rounded.is_zero() { "less than 1ms".to_owned() } else { format!("{rounded:?}") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::percentages;

    #[test]
    fn percentages_are_those_of_the_draws() {
        for (draws, expected) in [
            (&[][..], &[][..]),
            (&[0, 0], &[0, 0]),
            (&[1000], &[100]),
            (&[504, 496], &[50, 50]),
            (&[334, 333, 333], &[34, 33, 33]),
            (&[5, 0, 995], &[1, 0, 99]),
            (&[4, 498, 498], &[0, 50, 50]),
            (&[1, 1, 1, 1, 1, 1], &[17, 17, 17, 17, 16, 16]),
        ] {
            assert_eq!(percentages(draws), expected, "{draws:?}");
        }
    }

    proptest! {
        #[test]
        fn percentages_add_up_to_a_hundred(draws in prop::collection::vec(0_u32..2000, 1..40)) {
            let found = percentages(&draws);
            let all: u32 = draws.iter().sum();
            prop_assert_eq!(found.iter().sum::<u32>(), if all == 0 { 0 } else { 100 });
            for (found, draws) in found.iter().zip(&draws) {
                // By less than one, and nobody who was never drawn.
                prop_assert!((found * all).abs_diff(draws * 100) < all.max(1), "{found} {draws} of {all}");
                prop_assert!(*draws > 0 || *found == 0);
            }
        }
    }
}
