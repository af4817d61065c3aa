//! The begin of a stream: what routes change in its request, its tag and its trace, and what the record of it says.

use std::rc::Rc;

use super::{
    Caller,
    engine::{fields::Fields, handle::Handle, message::Request},
    exchange::Exchange,
    hpack::StaticName,
    pipe::Pipe,
    view::View,
};
use crate::{
    clock::Nanos,
    govern::{
        edit,
        lane::{Distrust, RequestTag, TagNames, TagScan, Tagging},
        request::Request as _,
        tag::Tag,
    },
    observe::trace::context::Scan,
    proxy::{
        by_caller::ByCaller,
        decisions::Ids,
        governed::Call,
        record::{Described, Record},
        resolved::Resolved,
        traced::Asking,
        way::{self, Course},
    },
};

impl Exchange {
    /// A request has come: reads its tag, and sets it.
    pub(super) fn begin(caller: &Rc<Caller>, resolved: Resolved, request: Request, stream: Handle) -> Self {
        let mut record = Record::begin(&caller.worker);
        let Request { fields: mut head, facts } = request;
        let Caller { worker, pod, .. } = &**caller;
        let mut traces = worker.scan();
        let names = &worker.options.tag_names;
        let workload = pod.pod.workload.load();
        let found = way::find(worker, pod, &workload, (&resolved, None), &View(&head));
        let (resolved, way) = found.map_or((resolved, None), |(to, way)| (to, Some(way)));
        let (tagging, ids, linked) = {
            let service = &resolved.destination.service;
            let entered = way.as_ref().and_then(|way| way.course.entered);
            let mut distrust = service.distrusts(&workload);
            if let Some(way) = &way {
                distrust = distrust.and(way.called.service.distrusts(&workload));
            }
            if let Some(course) =
                way.as_ref().map(|way| &way.course).filter(|course| course.changes_request())
            {
                rewrite(&mut head, course, names, distrust);
                if course.sets_tag(names) {
                    // What is there now is the route's word.
                    distrust = Distrust::default();
                }
            }
            let entry = |head: &Fields| {
                let asked = ByCaller { view: View(head), workload: &**workload };
                entered.or_else(|| service.colour(&asked, workload.address()))
            };
            let mut traced = Asking::of(&pod.pod.remembered, None, &workload, worker.options.trace_link);
            let caller = workload.tag.as_ref();
            let (tagging, ids) =
                tag(&mut head, names, caller, entry, distrust, traced.as_mut(), traces.as_mut());
            (tagging, ids, traced.and_then(|traced| traced.traceparent(Nanos::now())))
        };
        drop(workload);
        let view = View(&head);
        record.note(pod, &resolved.destination, Some(&tagging), ids, (view.method_of(), view.path()));
        let mut begun = None;
        if let Some(mut traces) = traces {
            if let Some(value) = &linked {
                traces.see(b"traceparent", value);
            }
            let found = traces.finish();
            begun = record.describe(worker, pod, &resolved.destination, Some(&tagging), found, || {
                Described { protocol: "HTTP/2", method: view.method_of(), target: view.path() }
            });
        }
        let idempotent =
            matches!(view.method_of(), b"GET" | b"HEAD" | b"PUT" | b"DELETE" | b"OPTIONS" | b"TRACE");
        if let Some(value) = &linked {
            record.link_trace(value);
            head.add(b"traceparent", value);
        }
        if let Some((name, value)) = begun {
            record.note_trace(&value);
            head.add(name.as_bytes(), &value);
        }
        let up = Pipe::replayable(&stream, pod.kept.take_none());
        let (worker, pod) = (worker.clone(), pod.clone());
        let call = Call::new(worker, pod, resolved, tagging, record, View(&head), way);
        let edits = &call.headers().request;
        let seen = (!edits.is_empty()).then(|| head.clone());
        if seen.is_some() {
            let names = &call.worker.options.tag_names;
            edit::modify(&mut head, edits, |name| names.is_listed(name));
        }
        Self { call, head, seen, facts, idempotent, up, stream, reset: None }
    }
}

/// Reads the tag and puts it where the next hop looks for it. Shows the headers to `traces`, too.
fn tag(
    head: &mut Fields,
    names: &TagNames,
    caller: Option<&Tag>,
    entry: impl FnOnce(&Fields) -> Option<RequestTag>,
    distrust: Distrust<'_>,
    mut traced: Option<&mut Asking<'_>>,
    mut traces: Option<&mut Scan<'_>>,
) -> (Tagging, Ids) {
    let mut scan = TagScan::new(names).distrusting(distrust);
    let (mut request_id, mut traceparent) = (None, None);
    for field in head.iter() {
        scan.see(field.name, field.value);
        if let Some(traces) = &mut traces {
            traces.see(field.name, field.value);
        }
        if let Some(traced) = &mut traced {
            traced.see(field.name, field.value);
        }
        match field.name {
            b"x-request-id" => request_id = request_id.or(Some(field.value)),
            b"traceparent" => traceparent = traceparent.or(Some(field.value)),
            _ => {}
        }
    }
    let ids = Ids::new(request_id, traceparent);
    let caused = traced.map(|traced| traced.caused(Nanos::now())).unwrap_or_default();
    let tagging = scan.decide(caused, caller, || entry(head));
    edit::tag(head, names, &tagging);
    (tagging, ids)
}

/// Changes what routes change in a request.
fn rewrite(head: &mut Fields, course: &Course, names: &TagNames, distrust: Distrust<'_>) {
    let strip = course.strips(&View(head), names, distrust);
    course.edit(head, names, strip);
    if let Some(target) = course.target(View(head).target_of()) {
        head.set_known(StaticName::PATH, &target);
    }
    if let Some(host) = course.hostname() {
        // A `host` beside it would have to say the same (RFC 9113, section 8.3.1).
        head.remove(|name| name == b"host");
        head.set_known(StaticName::AUTHORITY, host.as_bytes());
    }
}
