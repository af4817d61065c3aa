//! Between a request and [`Remembered`]: the ids of the traces that it is of, in whichever form it says them.
//!
//! What comes to a pod that asks for it is noted once it is admitted, and is unanswered until its exchange ends; what the pod sends
//! is looked up while its headers are gone through.

use http::HeaderName;
use smallvec::SmallVec;

use super::Pod;
use crate::{
    clock::Nanos,
    cluster::model::Workload,
    govern::{
        carrier::Carrier,
        handled::{Inherited, Shape},
        lane::{Caused, TagNames, TagScan},
        remembered::{Remembered, Trace, Unanswered},
        request::Request,
    },
    observe::trace::context::{
        Propagation, Scan, TraceId,
        link::{Link, Said},
    },
};

/// Whatever a tracer writes: a pod's may use another form than the agent is told to.
const FORMS: [Propagation; 3] = [Propagation::W3c, Propagation::B3, Propagation::B3Multi];

static TRACES: [HeaderName; 6] = [
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("b3"),
    HeaderName::from_static("x-b3-traceid"),
    HeaderName::from_static("x-b3-spanid"),
    HeaderName::from_static("x-b3-sampled"),
    HeaderName::from_static("x-b3-flags"),
];

/// Beside it a request may carry a tag in `sw8-correlation`.
static SW8: HeaderName = HeaderName::from_static("sw8");

/// A request that its pod sends, whose trace may have come to it with a tag.
pub(crate) struct Asking<'p> {
    remembered: &'p Remembered,
    inherited: Inherited,
    scan: Scan<'static>,
    /// `None`: it is not asked for.
    link: Option<Link>,
}

impl<'p> Asking<'p> {
    /// `None`: the pod does not ask for it. `links`: a trace that the request tells in B3's forms is told in W3C's, too.
    /// `inherited` is what the request has from the one that its thread is handling, where that is known.
    pub(crate) fn of(
        remembered: &'p Remembered,
        inherited: Option<Inherited>,
        workload: &Workload,
        links: bool,
    ) -> Option<Self> {
        workload.is_read().then(|| Self {
            remembered,
            inherited: inherited.unwrap_or_default(),
            scan: Scan::new(&FORMS),
            link: links.then(Link::default),
        })
    }

    /// Sees a header, its name in any case.
    pub(crate) fn see(&mut self, name: &[u8], value: &[u8]) {
        self.scan.see(name, value);
        if let Some(link) = &mut self.link {
            link.see(name, value);
        }
    }

    /// The tags of the requests that it is sent for.
    pub(crate) fn caused(&self, now: Nanos) -> Caused {
        let ids = ids(&self.scan);
        let by_trace = if ids.is_empty() { None } else { self.remembered.tag(ids, now) };
        Caused { by_trace, by_thread: self.inherited.tag }
    }
}

impl Asking<'_> {
    /// The `traceparent` that the request is to have: that of its own B3 context, if its trace came to the pod; if it says nothing of
    /// a trace, that of the request which its thread is handling.
    pub(crate) fn traceparent(&self, now: Nanos) -> Option<[u8; 55]> {
        let link = self.link.as_ref()?;
        if link.is_silent() {
            return self.inherited.traceparent;
        }
        let linked = link.finish()?;
        self.remembered.knows(linked.trace.get(), now).then_some(linked.traceparent)
    }
}

/// Notes a request that comes to a pod; `None`: the pod does not ask for it.
pub(crate) fn came(pod: &Pod, names: &TagNames, request: &impl Request, now: Nanos) -> Option<Unanswered> {
    let workload = pod.workload.load();
    if !workload.is_read() {
        return None;
    }
    let (mut tags, mut traces, mut parent) = (TagScan::new(names), Scan::new(&FORMS), Said::default());
    let carriers = Carrier::ALL.into_iter().map(Carrier::header);
    let mut show = |name: &HeaderName| {
        request.each_header(name, &mut |value| {
            tags.see(name.as_str().as_bytes(), value);
            traces.see(name.as_str().as_bytes(), value);
            parent.see(name.as_str().as_bytes(), value);
        });
    };
    names.iter().for_each(&mut show);
    carriers.chain(&TRACES).chain([&SW8]).for_each(show);
    let tag = tags.decide(Caused::default(), None, || None).tag;
    let said = Inherited { tag, traceparent: parent.finish() };
    let unanswered = pod.remembered.came(ids(&traces), said, now);
    Some(if workload.follows_threads() {
        unanswered.shaped(Shape::of(request.method(), request.path()))
    } else {
        unanswered
    })
}

/// A pod calls without a tag, although all that it is answering have one.
pub(crate) fn has_lost_tag(pod: &Pod) -> bool {
    pod.remembered.has_only_tagged() && pod.workload.load().is_read()
}

fn ids(scan: &Scan<'_>) -> SmallVec<[Trace; 3]> {
    let mut ids = SmallVec::new();
    for id in scan.traces().map(TraceId::get) {
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    ids
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arc_swap::ArcSwap;

    use super::*;
    use crate::{
        api::TagPropagation,
        proxy::{http1::View, testing::Here},
    };

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    fn pod(is_read: bool) -> Pod {
        let propagation = if is_read { TagPropagation::Trace } else { TagPropagation::Headers };
        let workload = Workload { propagation, ..Workload::new("uid", "shop", "orders") };
        Pod::new(ArcSwap::from_pointee(workload), Arc::new(Here))
    }

    fn names() -> TagNames {
        TagNames::new(&[HeaderName::from_static("x-mse-tag"), HeaderName::from_static("x-lane")])
            .expect("good")
    }

    fn comes(pod: &Pod, headers: &[(&str, &str)]) -> Option<Unanswered> {
        let lines: Vec<_> = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let lines = lines.concat();
        let head = format!("GET / HTTP/1.1\r\nhost: orders\r\n{lines}\r\n");
        came(pod, &names(), &View(head.as_bytes()), Nanos(1))
    }

    fn sends(pod: &Pod, headers: &[(&str, &str)]) -> Option<String> {
        let workload = pod.workload.load();
        let mut asking = Asking::of(&pod.remembered, None, &workload, false)?;
        for (name, value) in headers {
            asking.see(name.as_bytes(), value.as_bytes());
        }
        asking.caused(Nanos(2)).by_trace.map(|tag| tag.as_str().to_owned())
    }

    #[test]
    fn each_form_of_a_trace_is_known_in_each_other() {
        let w3c = format!("00-{TRACE}-b7ad6b7169203331-01");
        let b3 = format!("{TRACE}-b7ad6b7169203331-1");
        let forms: [&[(&str, &str)]; 3] = [
            &[("traceparent", &w3c)],
            &[("b3", &b3)],
            &[("X-B3-TraceId", TRACE), ("X-B3-SpanId", "b7ad6b7169203331")],
        ];
        for came in forms {
            for sent in forms {
                let pod = pod(true);
                drop(comes(&pod, &[came, &[("x-mse-tag", "gray")]].concat()));
                assert_eq!(sends(&pod, sent).as_deref(), Some("gray"), "{came:?} {sent:?}");
            }
        }
    }

    #[test]
    fn a_trace_in_b3_is_told_in_w3c_where_it_came_and_where_that_is_asked_for() {
        let traceparent = |pod: &Pod, links: bool, headers: &[(&str, &str)]| {
            let workload = pod.workload.load();
            let mut asking = Asking::of(&pod.remembered, None, &workload, links)?;
            for (name, value) in headers {
                asking.see(name.as_bytes(), value.as_bytes());
            }
            asking.traceparent(Nanos(2)).map(|value| String::from_utf8(value.to_vec()).unwrap())
        };
        let w3c = format!("00-{TRACE}-b7ad6b7169203331-01");
        let b3 = format!("{TRACE}-e457b5a2e4d86bd1-1");
        let wanted = format!("00-{TRACE}-e457b5a2e4d86bd1-01");
        let known = pod(true);
        drop(comes(&known, &[("traceparent", &w3c)]));
        assert_eq!(traceparent(&known, true, &[("b3", &b3)]), Some(wanted), "without a tag, too");
        assert_eq!(traceparent(&known, false, &[("b3", &b3)]), None, "it is off");
        assert_eq!(traceparent(&known, true, &[("b3", &b3), ("traceparent", &w3c)]), None);
        assert_eq!(traceparent(&pod(true), true, &[("b3", &b3)]), None, "it never came");
        assert_eq!(traceparent(&pod(false), true, &[("b3", &b3)]), None, "the pod does not ask for it");
    }

    #[test]
    fn each_carrier_says_the_tag_that_came() {
        let w3c = format!("00-{TRACE}-b7ad6b7169203331-01");
        for said in [
            &[("x-mse-tag", "gray")][..],
            &[("x-lane", "gray")],
            &[("baggage", "a=1,x-mse-tag=gray")],
            &[("tracestate", "x-mse-tag=gray")],
            &[("sw8", "1"), ("sw8-correlation", "eC1tc2UtdGFn:Z3JheQ==")],
            &[("baggage", "x-mse-tag=red"), ("x-mse-tag", "gray")],
        ] {
            let pod = pod(true);
            drop(comes(&pod, &[said, &[("traceparent", w3c.as_str())]].concat()));
            assert_eq!(sends(&pod, &[("traceparent", &w3c)]).as_deref(), Some("gray"), "{said:?}");
        }
    }

    #[test]
    fn two_traces_in_one_request_have_to_agree() {
        let w3c = format!("00-{TRACE}-b7ad6b7169203331-01");
        let other = "80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1";
        let pod = pod(true);
        drop(comes(&pod, &[("traceparent", &w3c), ("x-mse-tag", "gray")]));
        assert_eq!(sends(&pod, &[("traceparent", &w3c), ("b3", other)]).as_deref(), Some("gray"));
        drop(comes(&pod, &[("b3", other), ("x-mse-tag", "blue")]));
        assert_eq!(sends(&pod, &[("traceparent", &w3c), ("b3", other)]), None);
        assert_eq!(sends(&pod, &[("traceparent", "not one")]), None);
        assert_eq!(sends(&pod, &[]), None);
    }

    #[test]
    fn pods_that_do_not_ask_remember_nothing() {
        let w3c = format!("00-{TRACE}-b7ad6b7169203331-01");
        let pod = pod(false);
        assert!(comes(&pod, &[("traceparent", &w3c), ("x-mse-tag", "gray")]).is_none());
        assert_eq!(sends(&pod, &[("traceparent", &w3c)]), None);
        assert_eq!(pod.remembered.tag([0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c], Nanos(1)), None);
    }

    #[test]
    fn a_tag_is_lost_where_nothing_else_is_answered() {
        let pod = pod(true);
        let gray = comes(&pod, &[("x-mse-tag", "gray")]);
        assert!(has_lost_tag(&pod));
        let plain = comes(&pod, &[]);
        assert!(!has_lost_tag(&pod));
        drop((gray, plain));
        assert!(!has_lost_tag(&pod));
    }
}
