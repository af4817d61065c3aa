//! The way that a request takes which was sent to a Service with routes (ARCHITECTURE.md#routes): found once, before its lane
//! and before the policies, which are those of the Service that it goes to.

use std::sync::Arc;

use fastrand::Rng;
use http::{HeaderName, HeaderValue, header};

use super::{
    answer::{Cause, Kind, MadeUp},
    known::Known,
    worker::{PodHere, Worker},
};
use crate::{
    cluster::model::{Group, Service},
    govern::{
        edit::{self, Head},
        lane::TagNames,
        policy::{self, Edits, Mode},
        request::Request,
        routes::{Action, Found, Rule, Timeouts, filters::Rewrite},
    },
    observe::reason::Reason,
};

/// What routes have decided about a request.
pub(crate) struct Way {
    /// Of the Service that it goes to; else of the one that was called.
    pub(crate) known: Known,
    pub(crate) course: Course,
    /// The request goes nowhere, and is answered so.
    answer: Option<Answer>,
}

/// The rule that holds for a request, and what it does with it.
#[derive(Default)]
pub(crate) struct Course {
    /// `None`: none does.
    pub(crate) rule: Option<Arc<Rule>>,
    /// Which of its backends; `None`: it goes nowhere.
    backend: Option<usize>,
    /// Elements of the path that the rule's prefix has.
    prefix: usize,
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
}

/// Finds the way of a request; `None`: its Service has no routes for this client. `authority`: whom the client asked.
pub(crate) fn find<'a>(
    worker: &Worker,
    pod: &PodHere,
    known: &Known,
    request: &impl Request,
    authority: impl FnOnce() -> &'a [u8],
) -> Option<Way> {
    let group = known.routed()?.of(&pod.pod.workload.load().namespace)?;
    let port = known.destination.service.port;
    let (course, next) = course(group, request, authority, port, &mut worker.rng.borrow_mut());
    Some(match next {
        Ok(service) => Way { known: known.backend(pod, service), course, answer: None },
        Err(answer) => Way { known: known.clone(), course, answer: Some(answer) },
    })
}

/// The rule that holds for a request, and the Service that it goes to; or what is answered. `port`: of the Service that was called.
pub(crate) fn course<'g, 'a>(
    group: &'g Group,
    request: &impl Request,
    authority: impl FnOnce() -> &'a [u8],
    port: u16,
    rng: &mut Rng,
) -> (Course, Result<&'g Arc<Service>, Answer>) {
    let Some(Found { rule, prefix }) = group.routes.find(request) else {
        return (Course::default(), Err(Answer::NotFound));
    };
    let course = |backend| Course { rule: Some(rule.clone()), backend, prefix };
    match &rule.action {
        Action::Redirect(redirect) => {
            let location = redirect.location(authority(), port, request.target(), prefix);
            (course(None), Err(Answer::Redirect { status: redirect.status.as_u16(), location }))
        }
        Action::Forward { backends, .. } => {
            let found = backends.choose(rng).and_then(|at| {
                let service = group.backends.get(backends.get(at)?.service.as_ref()?)?;
                Some((at, service))
            });
            match found {
                Some((at, service)) => (course(Some(at)), Ok(service)),
                None => (course(None), Err(Answer::NoBackend)),
            }
        }
    }
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
        let rule = self.rule.as_deref()?;
        let Action::Forward { rewrite, backends } = &rule.action else { return None };
        Some((rule, rewrite, &backends.get(self.backend?)?.headers))
    }

    /// Whether the request is sent on otherwise than it came.
    pub(crate) fn changes_request(&self) -> bool {
        self.forward().is_some_and(|(rule, rewrite, of_backend)| {
            !(rewrite.is_empty() && rule.headers.request.is_empty() && of_backend.request.is_empty())
        })
    }

    /// Changes headers: those of the rule, then those of the backend. The tag is read of what is there then, so that a route may
    /// set it. `strip`: what the client says of its tag does not count; the route's word does.
    pub(crate) fn edit(&self, head: &mut impl Head, names: &TagNames, strip: bool) {
        let Some((rule, _, of_backend)) = self.forward() else { return };
        if strip && self.sets_tag(names) {
            edit::strip(head, names);
        }
        for edits in [&rule.headers.request, &of_backend.request] {
            edit::modify(head, edits, |_| false);
        }
    }

    /// Whether the route says which tag the request has.
    pub(crate) fn sets_tag(&self, names: &TagNames) -> bool {
        let sets = |edits: &Edits| {
            edits.set.iter().chain(&edits.add).any(|(name, _): &(HeaderName, _)| names.is_listed(name))
        };
        self.forward()
            .is_some_and(|(rule, _, of_backend)| sets(&rule.headers.request) || sets(&of_backend.request))
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
        edits.into_iter().flatten()
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

    /// The route that says how long the request may take: `HTTPRoute shop/orders`.
    pub(crate) fn limits_time(&self) -> Option<String> {
        let rule = self.rule.as_deref()?;
        let limits = rule.timeouts.request.is_some() || rule.timeouts.attempt.is_some();
        limits.then(|| format!("{} {}", rule.kind.as_str(), rule.route))
    }
}

impl Course {
    /// What part of the rule's requests goes the same way: so many of so many.
    pub(crate) fn share(&self) -> Option<(u64, u64)> {
        let Action::Forward { backends, .. } = &self.rule.as_deref()?.action else { return None };
        let total = backends.iter().map(|backend| u64::from(backend.weight)).sum();
        Some((u64::from(backends.get(self.backend?)?.weight), total))
    }

    /// What is changed on the way, in words.
    pub(crate) fn changes(&self) -> Vec<&'static str> {
        let Some((rule, rewrite, of_backend)) = self.forward() else { return Vec::new() };
        let all = [
            (rewrite.hostname.is_some(), "its host is rewritten"),
            (rewrite.path.is_some(), "its path is rewritten"),
            (!rule.headers.request.is_empty(), "the rule changes request headers"),
            (!of_backend.request.is_empty(), "the backend's filters change request headers"),
            (!rule.headers.response.is_empty(), "the rule changes response headers"),
            (!of_backend.response.is_empty(), "the backend's filters change response headers"),
            (rule.timeouts != Timeouts::default(), "the rule limits its time"),
        ];
        all.into_iter().filter(|(is, _)| *is).map(|(_, what)| what).collect()
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
        }
    }

    /// Of the response, where that is not the reason's.
    pub(crate) fn status(&self) -> Option<u16> {
        match self {
            Self::Redirect { status, .. } => Some(*status),
            _ => None,
        }
    }

    pub(crate) fn cause(&self) -> Cause {
        Cause::from(match self {
            Self::NotFound => Reason::RouteNotFound,
            Self::NoBackend => Reason::BackendNotFound,
            Self::Redirect { .. } => Reason::RouteRedirect,
        })
    }

    pub(crate) fn made_up(self, cause: &Cause, kind: Kind) -> MadeUp {
        let mut made_up = MadeUp::of(cause, kind);
        if let Self::Redirect { status, location } = self {
            made_up.status = status;
            // Names and paths were checked, and what the client sent is part of a head.
            if let Ok(location) = HeaderValue::from_bytes(&location) {
                made_up.headers.insert(header::LOCATION, location);
            }
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
