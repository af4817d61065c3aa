//! Copies of requests, for the Services that a route names as mirrors (ARCHITECTURE.md#routes).
//!
//! A request is copied while it passes: nothing waits for a copy. When all of it is there, each mirror gets it over a connection
//! that no client waits for, and what is answered is thrown away. Whatever goes wrong with a copy is counted for its Service, and
//! nothing else comes of it: a request whose body is longer than [`LARGEST`], or that comes when its pod's copies have used up
//! what they may have, has no copy.

use std::{future::Future, rc::Rc, time::Duration};

use bytes::{Bytes, BytesMut};

use super::{
    choose::{self, Chosen},
    governed::Call,
    resolved::Resolved,
    share::{Share, Taken},
    upstream,
    worker::{PodHere, Worker},
};
use crate::{
    clock::Nanos,
    govern::{
        lane::{RequestTag, TagNames},
        request::Request,
        route::Within,
    },
    observe::metrics::MirrorOutcome,
};

/// Copies of a pod's requests that are on their way at a time, on one worker.
const ON_THE_WAY: usize = 32;
/// Bytes that they take together.
const BYTES: usize = 4 * 1024 * 1024;
/// Bytes of a body that are copied.
const LARGEST: usize = 64 * 1024;
/// How long a mirror may take, until all of its answer is there.
const WITHIN: Duration = Duration::from_secs(10);
/// How long it may take to accept a connection. Nobody waits, but a copy that does takes up what others could have.
pub(super) const CONNECT_WITHIN: Duration = upstream::CONNECT_TIMEOUT;
/// Bytes of an answer that are read. Of a longer one the rest is not waited for.
pub(super) const ANSWER: usize = 1024 * 1024;

/// What a pod's copies may use on a worker.
#[derive(Clone)]
pub(crate) struct Allowance {
    on_the_way: Rc<Share>,
    bytes: Rc<Share>,
}

impl Default for Allowance {
    fn default() -> Self {
        Self { on_the_way: Share::new(ON_THE_WAY), bytes: Share::new(BYTES) }
    }
}

/// The Services that get a copy of a request; mostly none.
pub(crate) type Targets = Vec<Resolved>;

/// The tags that a request without one gets where its copies enter, one for each of its targets. Empty: it has a tag.
pub(crate) type Entered = Vec<Option<RequestTag>>;

/// Asks the entry rules of the lanes of each Service that gets a copy, as they are asked for a request that is sent there.
pub(crate) fn entered(call: &Call, request: &impl Request) -> Entered {
    if call.tagging.tag.is_some() {
        return Entered::new();
    }
    let client = call.pod.pod.workload.load().address();
    let targets = call.way.iter().flat_map(|way| &way.mirrors);
    targets.map(|resolved| resolved.destination.service.colour(request, client)).collect()
}

/// A request that is being copied. Dropped before its end, it has no copy.
pub(crate) struct Copy<S: Sends> {
    targets: Targets,
    tag: Option<RequestTag>,
    entered: Entered,
    worker: Rc<Worker>,
    pod: Rc<PodHere>,
    /// How it is sent.
    sends: S,
    /// Of the bytes in `data`, those that are a head.
    head: usize,
    data: BytesMut,
    room: Taken,
}

/// How a protocol sends a copy.
pub(crate) trait Sends: Clone + 'static {
    /// Bytes that a copy takes whose head is another than that of the rest.
    fn apart(&self, data: &Bytes) -> usize;

    /// Puts a tag into its head: the first `head` bytes of `data`, or where else it is. Gives what it is then.
    fn colour(&mut self, tag: &RequestTag, names: &TagNames, head: usize, data: Bytes) -> Bytes;

    /// Sends it and waits for the whole answer; tells whether there was one.
    fn send(
        self,
        worker: Rc<Worker>,
        pod: Rc<PodHere>,
        chosen: Chosen,
        data: Bytes,
    ) -> impl Future<Output = bool> + 'static;
}

impl<S: Sends> Copy<S> {
    /// Begins a copy of a request; `None`: nobody wants one. `entered`: see [`entered`]. `head`: what the copy begins with;
    /// `beside`: bytes that `sends` holds.
    pub(crate) fn begin(
        call: &mut Call,
        entered: Entered,
        sends: S,
        head: &[u8],
        beside: usize,
    ) -> Option<Box<Self>> {
        let targets = std::mem::take(&mut call.way.as_mut()?.mirrors);
        if targets.is_empty() {
            return None;
        }
        let mut copy = Self {
            targets,
            tag: call.tagging.tag,
            entered,
            worker: call.worker.clone(),
            pod: call.pod.clone(),
            sends,
            head: head.len(),
            data: BytesMut::new(),
            room: call.pod.mirrors.bytes.take_none(),
        };
        if !copy.room.grow(beside) {
            copy.give_up(MirrorOutcome::OverBudget);
        }
        copy.see(head);
        Some(Box::new(copy))
    }

    /// It cannot be copied: what follows its head is another protocol.
    pub(crate) fn refuse(mut self) {
        self.give_up(MirrorOutcome::Unsupported);
    }

    /// The next part of it.
    pub(crate) fn see(&mut self, part: &[u8]) {
        if self.targets.is_empty() {
            return;
        }
        if self.data.len() + part.len() > self.head + LARGEST {
            self.give_up(MirrorOutcome::TooLarge);
        } else if self.room.grow(part.len()) {
            self.data.extend_from_slice(part);
        } else {
            self.give_up(MirrorOutcome::OverBudget);
        }
    }

    /// All of it is there.
    pub(crate) fn finish(mut self) {
        let data = std::mem::take(&mut self.data).freeze();
        let room = Rc::new(std::mem::replace(&mut self.room, self.pod.mirrors.bytes.take_none()));
        let mut entered = std::mem::take(&mut self.entered).into_iter();
        for resolved in std::mem::take(&mut self.targets) {
            let entered = entered.next().flatten();
            let Some(place) = self.pod.mirrors.on_the_way.take_one() else {
                resolved.numbers.mirrored(MirrorOutcome::OverBudget);
                continue;
            };
            let (worker, pod, mut sends) = (self.worker.clone(), self.pod.clone(), self.sends.clone());
            let (tag, mut data, room) = (self.tag.or(entered), data.clone(), room.clone());
            let mut apart = self.pod.mirrors.bytes.take_none();
            if let Some(tag) = &entered {
                if !apart.grow(sends.apart(&data)) {
                    resolved.numbers.mirrored(MirrorOutcome::OverBudget);
                    continue;
                }
                data = sends.colour(tag, &self.worker.options.tag_names, self.head, data);
            }
            self.pod.spawn(&self.worker, async move {
                let _held = (place, room, apart);
                let outcome = send(worker, pod, &resolved, tag.as_ref(), sends, data).await;
                resolved.numbers.mirrored(outcome);
            });
        }
    }

    /// There is no copy.
    fn give_up(&mut self, outcome: MirrorOutcome) {
        for resolved in std::mem::take(&mut self.targets) {
            resolved.numbers.mirrored(outcome);
        }
        self.data = BytesMut::new();
        self.room.release();
    }
}

impl<S: Sends> Drop for Copy<S> {
    fn drop(&mut self) {
        self.give_up(MirrorOutcome::Incomplete);
    }
}

async fn send(
    worker: Rc<Worker>,
    pod: Rc<PodHere>,
    resolved: &Resolved,
    tag: Option<&RequestTag>,
    sends: impl Sends,
    data: Bytes,
) -> MirrorOutcome {
    let chosen = choose::choose(&worker, &pod, &resolved.destination, tag, &[], Within::Any, Nanos::now());
    let Ok(Some(chosen)) = chosen else { return MirrorOutcome::NoEndpoint };
    let sent = tokio::time::timeout(WITHIN, sends.send(worker, pod, chosen, data)).await;
    if sent.unwrap_or_default() { MirrorOutcome::Answered } else { MirrorOutcome::Failed }
}
