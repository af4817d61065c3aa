//! What would become of a request now.
//!
//! A [`Walk`] goes through the steps in their order, one room after the other: [`request`], [`limits`], [`endpoint`] (with its
//! [`candidates`]), the breaker of the endpoint's lane in [`limits`], [`access`], and [`afterwards`].

mod access;
mod afterwards;
mod candidates;
mod endpoint;
mod limits;
mod request;
mod walk;

use std::{net::SocketAddr, sync::Arc};

use bytes::BytesMut;
use fastrand::Rng;

use crate::{
    clock::Nanos,
    cluster::model::{Snapshot, Workload},
    govern::{
        lane::{Distrust, TagNames},
        remembered::Remembered,
        request::Request as _,
        route::Lane,
    },
    proxy::{
        explain::{Explanation, Outcome, Stage, Steps, Verdict, text},
        http1::{self, View},
        way::{self, Whence},
    },
};
use walk::Walk;

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
    /// A trace that it tells in B3's headers alone is told in another form, too.
    pub links: bool,
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
        return goes_direct(explanation, steps, snapshot, *dialled);
    }
    let enrolled = "the pod is enrolled: its new connections to managed addresses go to the agent";
    steps.say(Stage::Enrolled, Verdict::Passes, enrolled, Some(format!("Pod {}", explanation.caller)));
    let Some(destination) = snapshot.destination(*dialled) else {
        let what = format!(
            "{dialled} is not managed: no service of an enrolled namespace has that address and port"
        );
        steps.say(Stage::Managed, Verdict::Stops, what, None);
        return goes_direct(explanation, steps, snapshot, *dialled);
    };
    explanation.service = Some(destination.service.to_string());
    let mut rng = Rng::new();
    let routed = snapshot.routed(*dialled, destination).and_then(|routed| routed.of(&caller.namespace));
    let routed = routed.map(|group| {
        let (client, called) = (&**caller, &*destination.service);
        let whence = Whence { names, client, remembered: remembered.as_deref(), inherited: None, called };
        way::course(group, &view, whence, &mut rng)
    });
    let service = match &routed {
        Some((_, Ok(service))) => service,
        _ => &destination.service,
    };
    let mut edited = BytesMut::new();
    let mut distrust = service.distrusts(caller);
    if routed.is_some() {
        distrust = distrust.and(destination.service.distrusts(caller));
    }
    if let Some((course, _)) = routed.as_ref().filter(|(course, _)| course.changes_request()) {
        http1::edit_routed(head, course, names, distrust, &mut edited);
        if course.sets_tag(names) {
            distrust = Distrust::default();
        }
    }
    let mut walk = Walk {
        snapshot,
        steps,
        service,
        dialled: destination,
        routed: routed.as_ref().map(|(course, next)| (course, next.as_ref().err())),
        distrust,
        caller,
        remembered: remembered.as_deref(),
        links: asked.links,
        came: if edited.is_empty() { view } else { View(&edited) },
        forwarded: BytesMut::new(),
        ruled: None,
        beside: None,
        now: Nanos::now().0,
        candidates: Vec::new(),
    };
    explanation.outcome = walk.go(names, *dialled);
    explanation.steps = walk.steps.0;
    explanation.candidates = walk.candidates;
    explanation
}

/// The caller's agent does nothing. That of the endpoint, if it is one, asks its policies all the same.
fn goes_direct(
    mut explanation: Explanation,
    mut steps: Steps,
    snapshot: &Snapshot,
    dialled: SocketAddr,
) -> Explanation {
    let guards = access::guards(snapshot, dialled);
    for policy in &guards {
        let what = "the agent at the endpoint asks it, as it does for whoever calls; what it says of a request is shown where the \
                    Service is asked about (--to NAME.NAMESPACE:PORT)";
        steps.say(Stage::Access, Verdict::Passes, what, Some(format!("AccessPolicy {}", policy.name)));
    }
    if !guards.is_empty() {
        explanation.outcome =
            Outcome::of("the connection goes direct to the endpoint, whose AccessPolicies may deny it");
    }
    explanation.steps = steps.0;
    explanation
}

impl Walk<'_> {
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
}
