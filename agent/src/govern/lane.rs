//! Which tag a request carries, and which of the headers that carry it onwards must be written.
//!
//! The proxy walks through a request's headers once, showing each to a [`TagScan`]; HTTP/1 shows raw bytes,
//! HTTP/2 the bytes of its header map. The tag of the first that answers counts: a tag header (in the order in
//! which the operator lists them), the [carriers](super::carrier) in their order, the trace that it came with
//! ([`super::remembered`]), the caller workload's own tag (ARCHITECTURE.md#lanes). Nothing here allocates, but for a value that is encoded.

use std::{collections::BTreeMap, sync::Arc};

use http::HeaderName;

use super::{
    carrier::{self, Carrier, Carriers, Line},
    headers,
    tag::Tag,
};

/// The header that carries the tag if nothing else is chosen.
pub const DEFAULT_TAG_HEADER: &str = "x-mse-tag";

/// The longest tag, in bytes: that of a Kubernetes label value.
const MAX_TAG: usize = 63;

/// The names under which a request carries its tag.
#[derive(Clone, Debug)]
pub struct TagNames {
    /// Lower case, not empty.
    names: Vec<HeaderName>,
    /// Those that can have a member with such a key.
    carriers: Carriers,
    /// Tags are neither read nor written.
    none: bool,
}

/// A header name that cannot carry a tag.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TagNamesError {
    #[error("no tag header: at least one name is needed")]
    Empty,
    #[error("`{0}` cannot be a tag header: it has a meaning of its own in HTTP")]
    Reserved(HeaderName),
    #[error("`{0}` is listed twice as a tag header")]
    Twice(HeaderName),
}

impl TagNames {
    /// The first name is the one that is set on forwarded requests, and the key of the baggage member.
    pub fn new(names: &[HeaderName]) -> Result<Self, TagNamesError> {
        if names.is_empty() {
            return Err(TagNamesError::Empty);
        }
        for (index, name) in names.iter().enumerate() {
            if !headers::may_carry_a_tag(name.as_str().as_bytes()) {
                return Err(TagNamesError::Reserved(name.clone()));
            }
            if names[..index].contains(name) {
                return Err(TagNamesError::Twice(name.clone()));
            }
        }
        let mut carriers = Carriers::default();
        for carrier in Carrier::ALL {
            if carrier != Carrier::Tracestate || carrier::is_tracestate_key(names[0].as_str()) {
                carriers.insert(carrier);
            }
        }
        Ok(Self { names: names.to_vec(), carriers, none: false })
    }

    /// For requests that are passed on with what they say of tags, whatever that is.
    pub fn none() -> Self {
        Self {
            names: vec![HeaderName::from_static("x-sluice-no-tag")],
            carriers: Carriers::default(),
            none: true,
        }
    }

    /// The header that is set on forwarded requests.
    pub fn header(&self) -> &HeaderName {
        &self.names[0]
    }

    /// The key of the member of a carrier.
    pub fn key(&self) -> &str {
        self.names[0].as_str()
    }

    /// Whether `name`, in any case, is the header that is set on forwarded requests.
    pub fn is_header(&self, name: &[u8]) -> bool {
        name.eq_ignore_ascii_case(self.names[0].as_str().as_bytes())
    }

    /// All headers that may say a tag.
    pub fn iter(&self) -> impl Iterator<Item = &HeaderName> {
        self.names.iter()
    }

    /// Whether a header may say a tag, or does.
    pub fn is_listed(&self, name: &HeaderName) -> bool {
        self.names.contains(name) || Carrier::ALL.iter().any(|carrier| carrier.header() == name)
    }

    /// Whether servers take `name` for one of them, although it is spelt otherwise.
    fn is_misspelt(&self, name: &[u8]) -> bool {
        self.names.iter().any(|listed| headers::is_misspelt(name, listed))
    }

    /// The place of `name` in the list: lower answers first.
    fn rank(&self, name: &[u8]) -> Option<usize> {
        self.names.iter().position(|listed| name.eq_ignore_ascii_case(listed.as_str().as_bytes()))
    }
}

/// The tag that a request carries. Like [`Tag`] in syntax, but held in place: a caller may send any tag, so these
/// are neither shared nor kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct RequestTag {
    length: u8,
    bytes: [u8; MAX_TAG],
}

impl RequestTag {
    /// `None` if these bytes are not a tag.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        if !Tag::is_valid(bytes) {
            return None;
        }
        let mut tag = Self { length: bytes.len() as u8, bytes: [0; MAX_TAG] };
        tag.bytes[..bytes.len()].copy_from_slice(bytes);
        Some(tag)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    pub fn as_str(&self) -> &str {
        // A tag is ASCII, so the default is never taken.
        std::str::from_utf8(self.as_bytes()).unwrap_or_default()
    }
}

impl From<&Tag> for RequestTag {
    fn from(tag: &Tag) -> Self {
        // A `Tag` has been checked: the same syntax.
        Self::new(tag.as_str().as_bytes()).unwrap_or(Self { length: 0, bytes: [0; MAX_TAG] })
    }
}

impl std::fmt::Debug for RequestTag {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RequestTag({})", self.as_str())
    }
}

/// Who answered the question for the tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TagSource {
    /// A tag header.
    Header,
    /// One of the headers that carry it beside.
    Carrier(Carrier),
    /// The request's trace, with which it came to the pod ([`super::remembered`]).
    Trace,
    /// The thread that sends it, which handles a request that came with it ([`super::handled`]).
    Thread,
    /// The caller workload's own tag.
    Workload,
    /// An entry rule of a lane.
    Entry,
}

impl TagSource {
    /// In the order in which they are asked.
    pub const ALL: [Self; 8] = [
        Self::Header,
        Self::Carrier(Carrier::Baggage),
        Self::Carrier(Carrier::Tracestate),
        Self::Carrier(Carrier::Correlation),
        Self::Trace,
        Self::Thread,
        Self::Workload,
        Self::Entry,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Header => "header",
            Self::Carrier(Carrier::Baggage) => "baggage",
            Self::Carrier(Carrier::Tracestate) => "tracestate",
            Self::Carrier(Carrier::Correlation) => "sw8_correlation",
            Self::Trace => "trace_id",
            Self::Thread => "thread",
            Self::Workload => "workload",
            Self::Entry => "entry",
        }
    }

    /// Its place in [`Self::ALL`].
    pub fn index(self) -> usize {
        match self {
            Self::Header => 0,
            Self::Carrier(carrier) => 1 + carrier as usize,
            Self::Trace => 4,
            Self::Thread => 5,
            Self::Workload => 6,
            Self::Entry => 7,
        }
    }
}

/// The tags of requests that came to the pod which sends this one, as far as they are known to be what it is sent for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caused {
    /// That with which its trace came ([`super::remembered`]).
    pub by_trace: Option<RequestTag>,
    /// That of the request which the thread that sends it is handling ([`super::handled`]).
    pub by_thread: Option<RequestTag>,
}

impl Caused {
    fn each(self) -> impl Iterator<Item = (RequestTag, TagSource)> {
        let trace = self.by_trace.map(|tag| (tag, TagSource::Trace));
        trace.into_iter().chain(self.by_thread.map(|tag| (tag, TagSource::Thread)))
    }
}

/// Tags that requests must not bring along, with the TrafficLanes that say so, as `shop/gray`.
pub type Untrusted = BTreeMap<Tag, Arc<str>>;

/// What a request says of its own tag that does not count: its headers, and the trace by which its client knows it. It is taken
/// out of the request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Distrust<'d> {
    /// All of it (`stripTags` of a TrafficPolicy).
    all: bool,
    /// These tags (`trustIncomingTag: false` of TrafficLanes): those of the Service that the request goes to, and those of the one
    /// that was called, if a route leads from there.
    tags: [Option<&'d Untrusted>; 2],
}

impl<'d> Distrust<'d> {
    pub const ALL: Self = Self { all: true, tags: [None, None] };

    pub fn new(all: bool, tags: &'d Untrusted) -> Self {
        Self { all, tags: [(!tags.is_empty()).then_some(tags), None] }
    }

    /// That of two Services.
    #[must_use]
    pub fn and(self, called: Self) -> Self {
        Self { all: self.all || called.all, tags: [self.tags[0], called.tags[0]] }
    }

    /// Whether nothing that a request says counts.
    pub fn is_of_all(self) -> bool {
        self.all
    }

    /// Whether there are tags that must not be brought along.
    pub fn is_of_some(self) -> bool {
        self.tags.iter().any(Option::is_some)
    }

    /// The TrafficLane that does not let this tag be brought along.
    pub fn lane_of(self, tag: &RequestTag) -> Option<&'d Arc<str>> {
        self.tags.into_iter().flatten().find_map(|tags| tags.get(tag.as_str()))
    }
}

/// What a walk through the headers has found.
#[derive(Debug)]
pub struct TagScan<'n> {
    names: &'n TagNames,
    /// What the headers say that is not believed.
    distrust: Distrust<'n>,
    /// The first tag that they say and that is not believed.
    distrusted: Option<RequestTag>,
    /// The best answer of a tag header so far, and its rank.
    header: Option<(usize, RequestTag)>,
    /// Occurrences of the header that is set on forwarded requests, valid or not.
    header_seen: u32,
    /// By [`Carrier`].
    members: [Members; Carrier::ALL.len()],
    /// The carriers that the request's tracer looks at.
    used: Carriers,
    invalid: u32,
}

/// The members with our key in a carrier.
#[derive(Clone, Copy, Debug, Default)]
enum Members {
    #[default]
    None,
    /// All say this.
    One(RequestTag),
    /// They say different things; if any of them is a tag, the first that is counts.
    Several(Option<RequestTag>),
}

impl Members {
    /// Another one, in their order; `None`: it is no tag.
    fn and(self, tag: Option<RequestTag>) -> Self {
        match (self, tag) {
            (Self::None, Some(tag)) => Self::One(tag),
            (Self::One(first), Some(tag)) if first == tag => self,
            (Self::None, None) => Self::Several(None),
            (Self::One(first), _) => Self::Several(Some(first)),
            (Self::Several(first), tag) => Self::Several(first.or(tag)),
        }
    }

    fn tag(self) -> Option<RequestTag> {
        match self {
            Self::None => None,
            Self::One(tag) => Some(tag),
            Self::Several(first) => first,
        }
    }

    /// Whether who reads any of them reads this tag.
    fn say(self, tag: RequestTag) -> bool {
        matches!(self, Self::One(one) if one == tag)
    }
}

/// The tag of a request, and what must be done for it to travel on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tagging {
    pub tag: Option<RequestTag>,
    /// `None` exactly if `tag` is.
    pub source: Option<TagSource>,
    /// Whatever says a tag is to be taken out of the forwarded request first.
    pub strip: bool,
    /// The forwarded request must get [`TagNames::header`] with the tag, in the place of all it has by that name.
    pub set_header: bool,
    /// In these the forwarded request must get the tag: [`Carrier::set`].
    pub set: Carriers,
    /// Headers, the trace, or the thread say different tags: that of `source` counts.
    pub conflict: bool,
    /// Values that were ignored because they are no tags.
    pub invalid: u32,
    /// The request brought a tag along that it must not: see [`Untrusted`]. `strip` is set then.
    pub distrusted: bool,
}

impl<'n> TagScan<'n> {
    pub fn new(names: &'n TagNames) -> Self {
        let mut used = Carriers::default();
        used.insert(Carrier::Baggage);
        Self {
            names,
            distrust: Distrust::default(),
            distrusted: None,
            header: None,
            header_seen: 0,
            members: [Members::None; Carrier::ALL.len()],
            used,
            invalid: 0,
        }
    }

    /// The same for a request from outside: not all that its headers say of its tag counts, and that does not travel on.
    #[must_use]
    pub fn distrusting(mut self, distrust: Distrust<'n>) -> Self {
        self.distrust = distrust;
        self
    }

    /// The first tag that the headers say and that must not be brought along; `None` where nothing that they say counts.
    pub fn distrusted(&self) -> Option<RequestTag> {
        self.distrusted
    }

    /// Shows a header, in the order of the head. Names in any case; values without the white space around them.
    #[inline]
    pub fn see(&mut self, name: &[u8], value: &[u8]) {
        if self.names.none {
            return;
        }
        match Line::of(name) {
            Some(Line::Beside(carrier)) => self.used.insert(carrier),
            _ if self.distrust.all => {}
            Some(Line::Of(carrier)) => self.see_carrier(carrier, value),
            None => {
                if let Some(rank) = self.names.rank(name) {
                    self.see_header(rank, value);
                } else if self.distrust.is_of_some() && self.names.is_misspelt(name) {
                    self.see_misspelt(value);
                }
            }
        }
    }

    /// It is no tag here, but to a service behind the door it may be one.
    fn see_misspelt(&mut self, value: &[u8]) {
        let tag = RequestTag::new(value.trim_ascii());
        if let Some(tag) = tag.filter(|tag| self.distrust.lane_of(tag).is_some()) {
            self.distrusted.get_or_insert(tag);
        }
    }

    fn see_header(&mut self, rank: usize, value: &[u8]) {
        if rank == 0 {
            self.header_seen += 1;
        }
        match RequestTag::new(value.trim_ascii()) {
            Some(tag) if self.distrust.lane_of(&tag).is_some() => {
                self.distrusted.get_or_insert(tag);
            }
            // Among several of one name the first wins.
            Some(tag) if self.header.is_none_or(|(best, _)| rank < best) => self.header = Some((rank, tag)),
            Some(_) => {}
            None => self.invalid += 1,
        }
    }

    fn see_carrier(&mut self, carrier: Carrier, value: &[u8]) {
        let (members, invalid) = (&mut self.members[carrier as usize], &mut self.invalid);
        let (distrust, distrusted) = (self.distrust, &mut self.distrusted);
        carrier.values(value, self.names.key(), |value| {
            let tag = RequestTag::new(&value);
            if let Some(tag) = tag.filter(|tag| distrust.lane_of(tag).is_some()) {
                distrusted.get_or_insert(tag);
                return;
            }
            *invalid += u32::from(tag.is_none());
            *members = members.and(tag);
        });
    }

    /// Decides, once all headers have been seen. `caused` are the tags of what the request is sent for; `caller` is the caller
    /// workload's own tag; `entry` asks the entry rules ([`super::entry`]), if nobody else has an answer.
    pub fn decide(
        self,
        caused: Caused,
        caller: Option<&Tag>,
        entry: impl FnOnce() -> Option<RequestTag>,
    ) -> Tagging {
        if self.names.none {
            return Tagging {
                tag: None,
                source: None,
                strip: false,
                set_header: false,
                set: Carriers::default(),
                conflict: false,
                invalid: 0,
                distrusted: false,
            };
        }
        let Self { names, distrust, distrusted, header, header_seen, members, used, invalid } = self;
        let believes = |tag: &RequestTag| !distrust.all && distrust.lane_of(tag).is_none();
        let distrusted =
            distrusted.is_some() || !distrust.all && caused.each().any(|(tag, _)| !believes(&tag));
        let strip = distrust.all || distrusted;
        let usable =
            || Carrier::ALL.into_iter().filter(|one| used.contains(*one) && names.carriers.contains(*one));
        let of_carrier = |one: Carrier| Some((members[one as usize].tag()?, TagSource::Carrier(one)));
        let mut said = header
            .map(|(_, tag)| (tag, TagSource::Header))
            .into_iter()
            .chain(usable().filter_map(of_carrier))
            .chain(caused.each().filter(|(tag, _)| believes(tag)));
        let first = said.next();
        let conflict = first.is_some_and(|(first, _)| said.any(|(tag, _)| tag != first));
        let of_caller = || Some((RequestTag::from(caller?), TagSource::Workload));
        let of_entry = || Some((entry()?, TagSource::Entry));
        let Some((tag, source)) = first.or_else(of_caller).or_else(of_entry) else {
            return Tagging {
                tag: None,
                source: None,
                strip,
                set_header: false,
                set: Carriers::default(),
                conflict,
                invalid,
                distrusted,
            };
        };
        let mut set = Carriers::default();
        // What is stripped is gone, and what is believed has to be said again.
        usable().filter(|one| strip || !members[*one as usize].say(tag)).for_each(|one| set.insert(one));
        let set_header = strip || header_seen != 1 || header != Some((0, tag));
        Tagging {
            tag: Some(tag),
            source: Some(source),
            strip,
            set_header,
            set,
            conflict,
            invalid,
            distrusted,
        }
    }
}

#[cfg(test)]
mod tests;
