//! The way that a request takes which was sent to a Service with routes (ARCHITECTURE.md#routes): found once, before its lane
//! and before the policies, which are those of the Service that it goes to.

use std::{
    cell::OnceCell,
    rc::Rc,
    sync::{Arc, LazyLock},
};

use bytes::Bytes;
use fastrand::Rng;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use super::{
    answer::{Cause, Kind, MadeUp},
    by_caller::ByCaller,
    mirror::Targets,
    resolved::Resolved,
    traced::Asking,
    worker::{PodHere, Worker},
};
use crate::{
    clock::Nanos,
    cluster::model::{Destination, Group, Service, Workload},
    govern::{
        edit::{self, Head},
        handled::Inherited,
        lane::{Distrust, RequestTag, TagNames, TagScan, TagSource, Tagging},
        policy::{self, Edits, Mode},
        remembered::Remembered,
        request::Request,
        routes::{
            Action, Found, Rule, Timeouts,
            backends::{Backend, Backends},
            cors::{self, Outcome},
            filters::Rewrite,
            mirror::Mirror,
        },
    },
    observe::reason::Reason,
};

/// What routes have decided about a request.
pub(crate) struct Way {
    pub(crate) course: Course,
    /// The Service that was called.
    pub(crate) called: Rc<Destination>,
    /// The target that came, if another is sent on.
    pub(crate) came: Option<Vec<u8>>,
    /// Who gets a copy of it.
    pub(crate) mirrors: Targets,
    /// The request goes nowhere, and is answered so.
    answer: Option<Answer>,
}

/// A head as it came, which routes are asked about.
pub(crate) trait Came: Request + Copy {
    /// Whom the client asked.
    fn authority(&self) -> &[u8];

    /// Shows each header, in the order of the head.
    fn each_line(&self, each: &mut dyn FnMut(&[u8], &[u8]));
}

/// How a rule's backend was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drawn {
    /// By the weights of all.
    ByWeight,
    /// It has endpoints of the request's lane, or of one that the lane falls back to. Others had none.
    ForLane,
}

/// The rule that holds for a request, and what it does with it.
#[derive(Default)]
pub(crate) struct Course {
    /// `None`: none does.
    pub(crate) rule: Option<Arc<Rule>>,
    /// Which of its backends, and why that; `None`: it goes nowhere.
    backend: Option<(usize, Drawn)>,
    /// Elements of the path that the rule's prefix has.
    prefix: usize,
    /// What the response says to the page that asks.
    cors: Option<Said>,
    /// The policy that targets the rule, or its route, as `shop/slow`.
    pub(crate) policy: Option<Arc<str>>,
    /// The tag that the lanes of the Service that was called give the request, which came with none: it is where the request comes
    /// in, wherever it goes on.
    pub(crate) entered: Option<RequestTag>,
}

/// What responses say of cross-origin requests.
enum Said {
    /// That they depend on who asks.
    Varies,
    /// That the page may read this one.
    Read(Box<Edits>),
}

impl Said {
    fn edits(&self) -> &Edits {
        static VARIES: LazyLock<Edits> =
            LazyLock::new(|| Edits { add: vec![(header::VARY, cors::VARY_BY)], ..Edits::default() });
        match self {
            Self::Varies => &VARIES,
            Self::Read(edits) => edits,
        }
    }
}

/// An answer that a route gives.
#[derive(Debug)]
pub(crate) enum Answer {
    /// No rule is about the request.
    NotFound,
    /// The backend is not there, or may not be referred to.
    NoBackend,
    Redirect {
        status: u16,
        location: Vec<u8>,
    },
    /// To a browser's question whether a page may ask.
    Preflight(Vec<(HeaderName, HeaderValue)>),
}

/// Finds the way of a request, and the Service that it goes to, which is the one that was called if it goes nowhere.
/// `None`: that one has no routes for this client.
pub(crate) fn find(
    worker: &Worker,
    pod: &PodHere,
    client: &Workload,
    (resolved, inherited): (&Resolved, Option<Inherited>),
    request: &impl Came,
) -> Option<(Resolved, Box<Way>)> {
    let group = resolved.routed()?.of(&client.namespace)?;
    let mut rng = worker.rng.borrow_mut();
    let whence = Whence {
        names: &worker.options.tag_names,
        client,
        remembered: Some(&pod.pod.remembered),
        inherited,
        called: &resolved.destination.service,
    };
    let (course, next) = course(group, request, whence, &mut rng);
    let called = resolved.destination.clone();
    let came = course.rewrites_path().then(|| request.target().to_vec());
    Some(match next {
        Ok(service) => {
            let drawn = course.mirrors().filter(|mirror| mirror.fraction.draws(&mut rng));
            let there = drawn.filter_map(|mirror| group.backends.get(mirror.service.as_ref()?));
            let mirrors = there.map(|service| resolved.backend(pod, service)).collect();
            (resolved.backend(pod, service), Box::new(Way { course, called, came, mirrors, answer: None }))
        }
        Err(answer) => {
            let way = Way { course, called, came: None, mirrors: Targets::new(), answer: Some(answer) };
            (resolved.clone(), Box::new(way))
        }
    })
}

/// Where a request comes in.
#[derive(Clone, Copy)]
pub(crate) struct Whence<'w> {
    pub(crate) names: &'w TagNames,
    pub(crate) client: &'w Workload,
    /// What the client's pod remembers of what came to it.
    pub(crate) remembered: Option<&'w Remembered>,
    /// What the request has from the one that the thread which sends it is handling.
    pub(crate) inherited: Option<Inherited>,
    /// The Service that was called.
    pub(crate) called: &'w Service,
}

/// The rule that holds for a request, and the Service that it goes to; or what is answered.
pub(crate) fn course<'g>(
    group: &'g Group,
    request: &impl Came,
    whence: Whence<'_>,
    rng: &mut Rng,
) -> (Course, Result<&'g Arc<Service>, Answer>) {
    let Some(Found { rule, prefix }) = group.routes.find(request) else {
        return (Course::default(), Err(Answer::NotFound));
    };
    let policy = group.policy_on(rule).cloned();
    let mut course = Course { rule: Some(rule.clone()), prefix, policy, ..Course::default() };
    match rule.cors.as_ref().map(|cors: &cors::Cors| cors.outcome(request)) {
        None | Some(Outcome::Passes) => {}
        Some(Outcome::Varies) => course.cors = Some(Said::Varies),
        Some(Outcome::Adds(edits)) => course.cors = Some(Said::Read(edits)),
        Some(Outcome::Preflight(lines)) => return (course, Err(Answer::Preflight(lines))),
    }
    match &rule.action {
        Action::Redirect(redirect) => {
            let location =
                redirect.location(request.authority(), whence.called.port, request.target(), prefix);
            (course, Err(Answer::Redirect { status: redirect.status.as_u16(), location }))
        }
        Action::Forward { backends, .. } => {
            let service = |backend: &Backend| group.backends.get(backend.service.as_ref()?);
            let called = whence.called;
            let tagging = OnceCell::new();
            let tagging = || tagging.get_or_init(|| came_with(request, whence));
            if !called.entry.is_empty() && tagging().source == Some(TagSource::Entry) {
                course.entered = tagging().tag;
            }
            let found = draw(group, backends, || tagging().tag, rng)
                .and_then(|found| Some((found, service(backends.get(found.0)?)?)));
            match found {
                Some((found, service)) => {
                    course.backend = Some(found);
                    (course, Ok(service))
                }
                None => (course, Err(Answer::NoBackend)),
            }
        }
    }
}

/// Draws the backend of a request. Weights are about requests that no lane has yet: one that came with a tag, or from a pod of
/// a lane, goes to the backends that have its lane, as long as any has. Else the second weighted hop of a chain would take
/// requests out of the lane that the first has put them into.
fn draw(
    group: &Group,
    backends: &Backends,
    tag: impl FnOnce() -> Option<RequestTag>,
    rng: &mut Rng,
) -> Option<(usize, Drawn)> {
    if backends.are_several()
        && group.has_lanes()
        && let Some(tag) = tag()
    {
        let distance =
            |backend: &Backend| group.backends.get(backend.service.as_ref()?)?.distance_to_lane(&tag);
        if let Some(at) = backends.choose_nearest(distance, rng) {
            return Some((at, Drawn::ForLane));
        }
    }
    Some((backends.choose(rng)?, Drawn::ByWeight))
}

/// The tag that a request has where it comes in, before any route has changed it.
fn came_with(request: &impl Came, whence: Whence<'_>) -> Tagging {
    let Whence { names, client, remembered, inherited, called } = whence;
    let mut scan = TagScan::new(names).distrusting(called.distrusts(client));
    let mut traced = remembered.and_then(|remembered| Asking::of(remembered, inherited, client, false));
    request.each_line(&mut |name, value| {
        scan.see(name, value);
        if let Some(traced) = &mut traced {
            traced.see(name, value);
        }
    });
    let caused = traced.map(|traced| traced.caused(Nanos::now())).unwrap_or_default();
    scan.decide(caused, client.tag.as_ref(), || {
        called.colour(&ByCaller { view: *request, workload: client }, client.address())
    })
}

/// The first tag that the headers of a request say and that must not be brought along.
pub(crate) fn distrusted(
    request: &impl Came,
    names: &TagNames,
    distrust: Distrust<'_>,
) -> Option<RequestTag> {
    let mut scan = TagScan::new(names).distrusting(distrust);
    request.each_line(&mut |name, value| scan.see(name, value));
    scan.distrusted()
}

impl Way {
    /// Whether it is sent on.
    pub(crate) fn goes_on(&self) -> bool {
        self.answer.is_none()
    }

    /// The answer in the place of a Service's.
    pub(crate) fn take_answer(&mut self) -> Option<Answer> {
        self.answer.take()
    }
}

impl Course {
    fn forward(&self) -> Option<(&Rule, &Rewrite, &policy::HeaderEdits)> {
        let (rule, rewrite, backend) = self.forward_to()?;
        Some((rule, rewrite, &backend.headers))
    }

    fn forward_to(&self) -> Option<(&Rule, &Rewrite, &Backend)> {
        let rule = self.rule.as_deref()?;
        let Action::Forward { rewrite, backends } = &rule.action else { return None };
        Some((rule, rewrite, backends.get(self.backend?.0)?))
    }

    /// Who may get a copy: those of the rule, then those of the backend.
    pub(crate) fn mirrors(&self) -> impl Iterator<Item = &Mirror> {
        let all = self.forward_to().map(|(rule, _, backend)| rule.mirrors.iter().chain(&backend.mirrors));
        all.into_iter().flatten()
    }

    /// Whether the request is sent on otherwise than it came.
    pub(crate) fn changes_request(&self) -> bool {
        self.forward().is_some_and(|(rule, rewrite, of_backend)| {
            !(rewrite.is_empty() && rule.headers.request.is_empty() && of_backend.request.is_empty())
        })
    }

    /// Changes headers: those of the rule, then those of the backend. The tag is read of what is there then, so that a route may
    /// set it. `strip`: see [`Course::strips`].
    pub(crate) fn edit(&self, head: &mut impl Head, names: &TagNames, strip: bool) {
        let Some((rule, _, of_backend)) = self.forward() else { return };
        if strip {
            edit::strip(head, names);
        }
        for edits in [&rule.headers.request, &of_backend.request] {
            edit::modify(head, edits, |_| false);
        }
    }

    /// Whether what the client says of the tag is to be taken out before the route says it: it does not count, the route's word does.
    pub(crate) fn strips(&self, request: &impl Came, names: &TagNames, distrust: Distrust<'_>) -> bool {
        let said = || distrust.is_of_some() && distrusted(request, names, distrust).is_some();
        self.sets_tag(names) && (distrust.is_of_all() || said())
    }

    /// Whether the route says which tag the request has.
    pub(crate) fn sets_tag(&self, names: &TagNames) -> bool {
        let sets = |edits: &Edits| {
            edits.set.iter().chain(&edits.add).any(|(name, _): &(HeaderName, _)| names.is_listed(name))
        };
        self.forward()
            .is_some_and(|(rule, _, of_backend)| sets(&rule.headers.request) || sets(&of_backend.request))
    }

    fn rewrites_path(&self) -> bool {
        self.forward().is_some_and(|(_, rewrite, _)| rewrite.path.is_some())
    }

    /// The target that is sent on, if it is another than `target`.
    pub(crate) fn target(&self, target: &[u8]) -> Option<Vec<u8>> {
        self.forward()?.1.target(target, self.prefix)
    }

    /// The host that is sent on, if it is another.
    pub(crate) fn hostname(&self) -> Option<&str> {
        self.forward()?.1.hostname.as_deref()
    }

    /// What is changed in responses: first what the backend asks for, then the rule.
    pub(crate) fn response_edits(&self) -> impl Iterator<Item = &Edits> {
        let edits =
            self.forward().map(|(rule, _, of_backend)| [&of_backend.response, &rule.headers.response]);
        edits.into_iter().flatten().chain(self.cors.as_ref().map(Said::edits))
    }

    /// A page of another origin may have asked: a response that Sluice makes is to say what it may do with it.
    pub(crate) fn speaks_to_pages(&self) -> bool {
        self.cors.is_some()
    }

    /// Says in a response that Sluice makes whether the page that asks may read it.
    pub(crate) fn speak_to_page(&self, headers: &mut HeaderMap) {
        let Some(edits) = self.cors.as_ref().map(Said::edits) else { return };
        for (name, value) in &edits.set {
            headers.insert(name.clone(), value.clone());
        }
        for (name, value) in &edits.add {
            headers.append(name.clone(), value.clone());
        }
    }

    /// How long the request may take: as the rule says, else as the policy does. Zero is without end.
    pub(crate) fn timeouts(&self, of_policy: policy::Timeouts) -> policy::Timeouts {
        let Some(said) = self.rule.as_deref().map(|rule| rule.timeouts) else { return of_policy };
        if (said.request, said.attempt) == (None, None) {
            return of_policy;
        }
        // One that only observes does not become one that ends requests.
        let enforced = if of_policy.mode == Mode::Enforce { of_policy } else { policy::Timeouts::default() };
        let of = |said: Option<std::time::Duration>, or| match said {
            Some(said) => (!said.is_zero()).then_some(said),
            None => or,
        };
        policy::Timeouts {
            request: of(said.request, enforced.request),
            backend_request: of(said.attempt, enforced.backend_request),
            stream_idle: enforced.stream_idle,
            connect: enforced.connect,
            mode: Mode::Enforce,
        }
    }

    /// The route that says how long the request may take, as a whole or an attempt at it: `HTTPRoute shop/orders`. `None`: what
    /// holds is the policy's.
    pub(crate) fn limits_time(&self, whole: bool) -> Option<String> {
        let rule = self.rule.as_deref()?;
        let limit = if whole { rule.timeouts.request } else { rule.timeouts.attempt };
        limit.is_some().then(|| format!("{} {}", rule.kind.as_str(), rule.route))
    }
}

impl Course {
    /// Why it goes to this one of the rule's backends, in words; `None`: all of its requests do.
    pub(crate) fn lot(&self) -> Option<String> {
        let Action::Forward { backends, .. } = &self.rule.as_deref()?.action else { return None };
        let (at, drawn) = self.backend?;
        let total: u64 = backends.iter().map(|backend| u64::from(backend.weight)).sum();
        let weight = u64::from(backends.get(at)?.weight);
        match drawn {
            _ if weight == total => None,
            Drawn::ByWeight => Some(format!("by lot: {weight} of {total} requests do")),
            Drawn::ForLane => {
                Some("which has endpoints of its lane: weights do not take a request out of it".to_owned())
            }
        }
    }

    /// What is changed on the way, in words.
    pub(crate) fn changes(&self) -> Vec<String> {
        let Some((rule, rewrite, of_backend)) = self.forward() else { return Vec::new() };
        let all = [
            (rewrite.hostname.is_some(), "its host is rewritten"),
            (rewrite.path.is_some(), "its path is rewritten"),
            (!rule.headers.request.is_empty(), "the rule changes request headers"),
            (!of_backend.request.is_empty(), "the backend's filters change request headers"),
            (!rule.headers.response.is_empty(), "the rule changes response headers"),
            (!of_backend.response.is_empty(), "the backend's filters change response headers"),
            (rule.timeouts != Timeouts::default(), "the rule limits its time"),
            (matches!(self.cors, Some(Said::Read(_))), "the response says which page may read it (CORS)"),
        ];
        let changes = all.into_iter().filter(|(is, _)| *is).map(|(_, what)| what.to_owned());
        let copies = self.mirrors().filter_map(|mirror| {
            let percent = mirror.fraction.percent();
            Some(format!("a copy of {percent} % of its requests goes to {}", mirror.service.as_ref()?))
        });
        changes.chain(copies).collect()
    }
}

impl Answer {
    /// In words.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::NotFound => "no rule of the routes matches the request".to_owned(),
            Self::NoBackend => {
                "the drawn backend does not exist, is not allowed, or there is none with a weight".to_owned()
            }
            Self::Redirect { location, .. } => format!("redirects to {}", String::from_utf8_lossy(location)),
            Self::Preflight(lines)
                if !lines.iter().any(|(name, _)| *name == header::ACCESS_CONTROL_ALLOW_ORIGIN) =>
            {
                "a preflight of an origin that is not allowed".to_owned()
            }
            Self::Preflight(_) => "a preflight, which the route answers (CORS)".to_owned(),
        }
    }

    /// Of the response, where that is not the reason's.
    pub(crate) fn status(&self) -> Option<u16> {
        match self {
            Self::Redirect { status, .. } => Some(*status),
            Self::Preflight(_) => Some(204),
            _ => None,
        }
    }

    pub(crate) fn cause(&self) -> Cause {
        Cause::from(match self {
            Self::NotFound => Reason::RouteNotFound,
            Self::NoBackend => Reason::BackendNotFound,
            Self::Redirect { .. } => Reason::RouteRedirect,
            Self::Preflight(_) => Reason::RoutePreflight,
        })
    }

    pub(crate) fn made_up(self, cause: &Cause, kind: Kind) -> MadeUp {
        let mut made_up = MadeUp::of(cause, kind);
        match self {
            Self::Redirect { status, location } => {
                made_up.status = status;
                // Names and paths were checked, and what the client sent is part of a head.
                if let Ok(location) = HeaderValue::from_bytes(&location) {
                    made_up.headers.insert(header::LOCATION, location);
                }
            }
            Self::Preflight(lines) => {
                (made_up.status, made_up.body, made_up.length) = (204, Bytes::new(), None);
                made_up.headers.remove(header::CONTENT_TYPE);
                made_up.headers.extend(lines);
            }
            Self::NotFound | Self::NoBackend => {}
        }
        made_up
    }
}

/// The authority of a target in absolute form (RFC 9112, section 3.2.2).
pub(crate) fn authority_of(target: &[u8]) -> Option<&[u8]> {
    let rest = &target[memchr::memmem::find(target, b"://").filter(|_| !target.starts_with(b"/"))? + 3..];
    Some(&rest[..rest.iter().position(|byte| matches!(byte, b'/' | b'?')).unwrap_or(rest.len())])
}

/// A rule, as decisions show it.
pub(crate) fn shown(rule: &Rule) -> String {
    format!("{} {}, rule {}", rule.kind.as_str(), rule.route, rule.name)
}
