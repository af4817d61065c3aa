//! The way that a request takes which was sent to a Service with routes (ARCHITECTURE.md#routes): found once, before its lane
//! and before the policies, which are those of the Service that it goes to.

use std::{borrow::Cow, sync::Arc};

use http::{HeaderName, HeaderValue, header};

use super::{
    answer::{Cause, Kind, MadeUp},
    known::Known,
    worker::{PodHere, Worker},
};
use crate::{
    govern::{
        edit::{self, Head},
        lane::TagNames,
        policy::{self, Edits, Mode},
        request::Request,
        routes::{Action, Found, Rule, filters::Rewrite},
    },
    observe::reason::Reason,
};

/// What routes have decided about a request.
pub(crate) struct Way {
    /// Of the Service that it goes to; else of the one that was called.
    pub(crate) known: Known,
    /// The rule that holds; `None`: none does.
    pub(crate) rule: Option<Arc<Rule>>,
    /// Which of its backends; `None`: it goes nowhere.
    backend: Option<usize>,
    /// Elements of the path that the rule's prefix has.
    prefix: usize,
    /// The request goes nowhere, and is answered so.
    answer: Option<Answer>,
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

/// Finds the way of a request; `None`: its Service has no routes for this client. `authority`: whom the client asked,
/// which few routes want to know.
pub(crate) fn find<'r>(
    worker: &Worker,
    pod: &PodHere,
    known: &Known,
    request: &impl Request,
    authority: impl FnOnce() -> &'r [u8],
) -> Option<Way> {
    let routed = known.routed()?;
    let group = routed.of(&pod.pod.workload.load().namespace)?;
    let nowhere = |rule: Option<&Arc<Rule>>, answer| {
        Some(Way {
            known: known.clone(),
            rule: rule.cloned(),
            backend: None,
            prefix: 0,
            answer: Some(answer),
        })
    };
    let Some(Found { rule, prefix }) = group.routes.find(request) else {
        return nowhere(None, Answer::NotFound);
    };
    match &rule.action {
        Action::Redirect(redirect) => {
            let port = known.destination.service.port;
            let location = redirect.location(authority(), port, request.target(), prefix);
            nowhere(Some(rule), Answer::Redirect { status: redirect.status.as_u16(), location })
        }
        Action::Forward { backends, .. } => {
            let chosen = backends.choose(&mut worker.rng.borrow_mut());
            let found = chosen.and_then(|at| {
                let service = group.backends.get(backends.get(at)?.service.as_ref()?)?;
                Some((at, known.backend(pod, service)))
            });
            match found {
                Some((at, known)) => {
                    Some(Way { known, rule: Some(rule.clone()), backend: Some(at), prefix, answer: None })
                }
                None => nowhere(Some(rule), Answer::NoBackend),
            }
        }
    }
}

impl Way {
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

    /// Whether it is sent on.
    pub(crate) fn goes_on(&self) -> bool {
        self.answer.is_none()
    }

    /// The answer in the place of a Service's.
    pub(crate) fn take_answer(&mut self) -> Option<Answer> {
        self.answer.take()
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

impl Answer {
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

/// The rule and the Service, as decisions show them.
pub(crate) fn shown(rule: Option<&Rule>) -> Cow<'static, str> {
    match rule {
        Some(rule) => format!("{} {}, rule {}", rule.kind.as_str(), rule.route, rule.name).into(),
        None => "no rule of its routes matched".into(),
    }
}
