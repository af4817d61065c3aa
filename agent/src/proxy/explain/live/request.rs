//! The first steps: whether requests are looked at, what the request is, where its routes lead, and which tag it has.

use std::net::SocketAddr;

use super::walk::{Walk, made_up};
use crate::{
    clock::Nanos,
    cluster::model::Protocol,
    govern::lane::{TagNames, TagSource, Tagging},
    proxy::{
        by_caller::ByCaller,
        explain::{LINKED, Outcome, Stage, Verdict, by_thread},
        http1::{self, Sources},
        traced::Asking,
        way,
    },
};

impl Walk<'_> {
    pub(super) fn governed(&mut self, dialled: SocketAddr) {
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
    pub(super) fn protocol(&mut self) -> bool {
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
    pub(super) fn request(&mut self, names: &TagNames) -> Result<Tagging, Outcome> {
        let Self { service, caller, came, forwarded, distrust, routed, remembered, links, .. } = self;
        let entered = routed.and_then(|(course, _)| course.entered);
        let asked = ByCaller { view: *came, workload: *caller };
        let entry = || entered.or_else(|| service.colour(&asked, caller.address()));
        let mut traced = remembered.and_then(|remembered| Asking::of(remembered, None, caller, *links));
        let sources =
            Sources { distrust: *distrust, traced: traced.as_mut(), caller: caller.tag.as_ref(), entry };
        let read = http1::read(came.0, names, sources, None, forwarded);
        if read.is_ok() && traced.is_some_and(|traced| traced.traceparent(Nanos::now()).is_some()) {
            self.steps.say(Stage::Request, Verdict::Changes, LINKED, None);
        }
        read.map(|request| request.tagging).map_err(|refused| {
            let reason = http1::reason_of(refused);
            self.steps.say(Stage::Request, Verdict::Stops, refused.to_string(), None);
            made_up(reason, format!("Sluice responds {}: {}", reason.status(), reason.message()))
        })
    }

    /// Which rule of the routes holds, and where that leads. Gives what comes of it if the request goes nowhere.
    pub(super) fn routes(&mut self) -> Option<Outcome> {
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

    pub(super) fn tag(&mut self, tagging: &Tagging, names: &TagNames) {
        let because = match tagging.source {
            None => None,
            Some(TagSource::Header) => Some(format!("a tag header of the request ({})", names.header())),
            Some(TagSource::Carrier(carrier)) => {
                Some(format!("the member {} of the request's header {}", names.key(), carrier.header()))
            }
            Some(TagSource::Trace) => Some(format!(
                "the request's trace: it came to Pod {}/{} with this tag (sluice.dev/propagation)",
                self.caller.namespace, self.caller.name
            )),
            Some(TagSource::Thread) => {
                Some(by_thread(&format!("{}/{}", self.caller.namespace, self.caller.name)))
            }
            Some(TagSource::Workload) => {
                Some(format!("Pod {}/{}, whose own tag it is", self.caller.namespace, self.caller.name))
            }
            Some(TagSource::Entry) => {
                // Where the request came in, or where its route leads.
                let entered = self.routed.is_some_and(|(course, _)| course.entered.is_some());
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
        let removed = tagging.distrusted.then(|| self.removed(names));
        let (verdict, what) = match &tagging.tag {
            Some(tag) => {
                let removed = removed.map(|removed| format!("; {removed}")).unwrap_or_default();
                (Verdict::Changes, format!("{}{removed}{conflict}{ignored}", tag.as_str()))
            }
            None if tagging.distrusted => (
                Verdict::Changes,
                format!("none: {}, and no entry rule matches{ignored}", removed.unwrap_or_default()),
            ),
            None if tagging.strip => (
                Verdict::Changes,
                "none: its own tag comes from outside and is removed (stripTags), and no entry rule matches"
                    .to_owned(),
            ),
            None => (Verdict::Passes, format!("none, and no entry rule matches{ignored}")),
        };
        self.steps.say(Stage::Tag, verdict, what, because);
    }

    /// Which tag the request must not bring along, and who says so.
    fn removed(&self, names: &TagNames) -> String {
        let tag = way::distrusted(&self.came, names, self.distrust);
        let lane = tag.and_then(|tag| Some((tag, self.distrust.lane_of(&tag)?)));
        match lane {
            Some((tag, lane)) => format!(
                "{}, which it came with, is removed (trustIncomingTag: false of TrafficLane {lane})",
                tag.as_str()
            ),
            None => "the tag of its trace does not count (trustIncomingTag: false)".to_owned(),
        }
    }
}
