//! Which tag a request carries, and which of the headers that carry it onwards must be written.
//!
//! The proxy walks through a request's headers once, showing each to a [`TagScan`]; HTTP/1 shows raw bytes,
//! HTTP/2 the bytes of its header map. The tag of the first that answers counts: a tag header (in the order in
//! which the operator lists them), the [carriers](super::carrier) in their order, the trace that it came with
//! ([`super::remembered`]), the caller workload's own tag (ARCHITECTURE.md#lanes). Nothing here allocates, but for a value that is encoded.

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
    /// The caller workload's own tag.
    Workload,
    /// An entry rule of a lane.
    Entry,
}

impl TagSource {
    /// In the order in which they are asked.
    pub const ALL: [Self; 7] = [
        Self::Header,
        Self::Carrier(Carrier::Baggage),
        Self::Carrier(Carrier::Tracestate),
        Self::Carrier(Carrier::Correlation),
        Self::Trace,
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
            Self::Workload => 5,
            Self::Entry => 6,
        }
    }
}

/// What a walk through the headers has found.
#[derive(Debug)]
pub struct TagScan<'n> {
    names: &'n TagNames,
    /// What the headers say is not believed.
    strip: bool,
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
    /// Headers, or the trace, say different tags: that of `source` counts.
    pub conflict: bool,
    /// Values that were ignored because they are no tags.
    pub invalid: u32,
}

impl<'n> TagScan<'n> {
    pub fn new(names: &'n TagNames) -> Self {
        let mut used = Carriers::default();
        used.insert(Carrier::Baggage);
        Self {
            names,
            strip: false,
            header: None,
            header_seen: 0,
            members: [Members::None; Carrier::ALL.len()],
            used,
            invalid: 0,
        }
    }

    /// The same for a request from outside: what its headers say of its tag does not count, and does not travel on.
    #[must_use]
    pub fn stripping(mut self, strip: bool) -> Self {
        self.strip = strip;
        self
    }

    /// Shows a header, in the order of the head. Names in any case; values without the white space around them.
    #[inline]
    pub fn see(&mut self, name: &[u8], value: &[u8]) {
        if self.names.none {
            return;
        }
        match Line::of(name) {
            Some(Line::Beside(carrier)) => self.used.insert(carrier),
            _ if self.strip => {}
            Some(Line::Of(carrier)) => self.see_carrier(carrier, value),
            None => {
                if let Some(rank) = self.names.rank(name) {
                    self.see_header(rank, value);
                }
            }
        }
    }

    fn see_header(&mut self, rank: usize, value: &[u8]) {
        if rank == 0 {
            self.header_seen += 1;
        }
        match RequestTag::new(value.trim_ascii()) {
            // Among several of one name the first wins.
            Some(tag) if self.header.is_none_or(|(best, _)| rank < best) => self.header = Some((rank, tag)),
            Some(_) => {}
            None => self.invalid += 1,
        }
    }

    fn see_carrier(&mut self, carrier: Carrier, value: &[u8]) {
        let (members, invalid) = (&mut self.members[carrier as usize], &mut self.invalid);
        carrier.values(value, self.names.key(), |value| {
            let tag = RequestTag::new(&value);
            *invalid += u32::from(tag.is_none());
            *members = members.and(tag);
        });
    }

    /// Decides, once all headers have been seen. `traced` is the tag with which the request's trace came, if that is known
    /// ([`super::remembered`]); `caller` is the caller workload's own tag; `entry` asks the entry rules
    /// ([`super::entry`]), if nobody else has an answer.
    pub fn decide(
        self,
        traced: Option<RequestTag>,
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
            };
        }
        let Self { names, strip, header, header_seen, members, used, invalid } = self;
        let usable =
            || Carrier::ALL.into_iter().filter(|one| used.contains(*one) && names.carriers.contains(*one));
        let of_carrier = |one: Carrier| Some((members[one as usize].tag()?, TagSource::Carrier(one)));
        let mut said = header
            .map(|(_, tag)| (tag, TagSource::Header))
            .into_iter()
            .chain(usable().filter_map(of_carrier))
            .chain(traced.filter(|_| !strip).map(|tag| (tag, TagSource::Trace)));
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
            };
        };
        let mut set = Carriers::default();
        usable().filter(|one| !members[*one as usize].say(tag)).for_each(|one| set.insert(one));
        let set_header = header_seen != 1 || header != Some((0, tag));
        Tagging { tag: Some(tag), source: Some(source), strip, set_header, set, conflict, invalid }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names() -> TagNames {
        TagNames::new(&[HeaderName::from_static("x-mse-tag"), HeaderName::from_static("x-lane")])
            .expect("good")
    }

    fn tagging(headers: &[(&str, &str)], caller: Option<&str>) -> Tagging {
        let names = names();
        let mut scan = TagScan::new(&names);
        for (name, value) in headers {
            scan.see(name.as_bytes(), value.as_bytes());
        }
        scan.decide(None, caller.map(|tag| tag.parse().expect("a tag")).as_ref(), || None)
    }

    /// The tag, its source, whether the header and the baggage must be set, and how many values were invalid.
    fn outcome(
        headers: &[(&str, &str)],
        caller: Option<&str>,
    ) -> (Option<String>, Option<TagSource>, bool, bool, u32) {
        let it = tagging(headers, caller);
        let set_baggage = it.set.contains(Carrier::Baggage);
        (it.tag.map(|tag| tag.as_str().to_owned()), it.source, it.set_header, set_baggage, it.invalid)
    }

    #[test]
    fn without_names_nothing_is_read_or_written() {
        let names = TagNames::none();
        let mut scan = TagScan::new(&names);
        scan.see(b"x-mse-tag", b"gray");
        scan.see(b"baggage", b"x-mse-tag=gray");
        let workload = "blue".parse().ok();
        let tagging =
            scan.decide(None, workload.as_ref(), || Some(RequestTag::from(&"red".parse().unwrap())));
        assert_eq!((tagging.tag, tagging.set_header, tagging.set.is_empty()), (None, false, true));
    }

    #[test]
    fn the_trace_answers_after_headers_and_before_the_workload() {
        let names = names();
        let [gray, red] = ["gray", "red"].map(|tag| RequestTag::new(tag.as_bytes()));
        let decide = |headers: &[(&str, &str)], strip: bool, traced: Option<RequestTag>| {
            let mut scan = TagScan::new(&names).stripping(strip);
            for (name, value) in headers {
                scan.see(name.as_bytes(), value.as_bytes());
            }
            let it = scan.decide(traced, "blue".parse().ok().as_ref(), || None);
            (it.tag.map(|tag| tag.as_str().to_owned()), it.source, it.conflict)
        };
        let said =
            |tag: &str, source: TagSource, conflict: bool| (Some(tag.to_owned()), Some(source), conflict);
        let header = [("x-mse-tag", "red")];
        let member = [("baggage", "x-mse-tag=red")];
        assert_eq!(decide(&[], false, gray), said("gray", TagSource::Trace, false));
        assert_eq!(decide(&[], false, None), said("blue", TagSource::Workload, false));
        assert_eq!(decide(&header, false, red), said("red", TagSource::Header, false));
        assert_eq!(decide(&header, false, gray), said("red", TagSource::Header, true));
        assert_eq!(decide(&member, false, gray), said("red", TagSource::Carrier(Carrier::Baggage), true));
        // What comes from outside says no tag, and neither does what came to it.
        assert_eq!(decide(&header, true, gray), said("blue", TagSource::Workload, false));
        assert!(tagging(&[("traceparent", "x")], None).set.is_empty());
        let mut scan = TagScan::new(&names);
        scan.see(b"traceparent", b"x");
        let it = scan.decide(gray, None, || None);
        assert!(it.set_header && it.set.contains(Carrier::Baggage) && it.set.contains(Carrier::Tracestate));
    }

    #[test]
    fn the_first_that_answers_gives_the_tag() {
        use TagSource::{Header, Workload};
        const BAGGAGE: TagSource = TagSource::Carrier(Carrier::Baggage);
        let some = |tag: &str| Some(tag.to_owned());
        for (headers, caller, expected) in [
            (&[][..], None, (None, None, false, false, 0)),
            (&[("accept", "gray")][..], None, (None, None, false, false, 0)),
            (&[], Some("blue"), (some("blue"), Some(Workload), true, true, 0)),
            (&[("X-MSE-Tag", "gray")], Some("blue"), (some("gray"), Some(Header), false, true, 0)),
            (&[("x-mse-tag", " gray\t")], None, (some("gray"), Some(Header), false, true, 0)),
            (
                &[("Baggage", "a=1,x-mse-tag=gray")],
                Some("blue"),
                (some("gray"), Some(BAGGAGE), true, false, 0),
            ),
            // Both carriers there and agreed: nothing to do.
            (
                &[("baggage", "x-mse-tag=gray"), ("x-mse-tag", "gray")],
                None,
                (some("gray"), Some(Header), false, false, 0),
            ),
            // Disagreed: the header counts.
            (
                &[("baggage", "x-mse-tag=red"), ("x-mse-tag", "gray")],
                None,
                (some("gray"), Some(Header), false, true, 0),
            ),
            // The order of the list, not of the head.
            (&[("x-lane", "red"), ("x-mse-tag", "gray")], None, (some("gray"), Some(Header), false, true, 0)),
            // Only another of the list: the first is set.
            (&[("x-lane", "red")], None, (some("red"), Some(Header), true, true, 0)),
            // Twice: the first counts, and one is sent on.
            (
                &[("x-mse-tag", "gray"), ("x-mse-tag", "red")],
                None,
                (some("gray"), Some(Header), true, true, 0),
            ),
            (
                &[("baggage", "x-mse-tag=a"), ("baggage", "x-mse-tag=b")],
                None,
                (some("a"), Some(BAGGAGE), true, true, 0),
            ),
            (&[("baggage", "x-mse-tag=a,x-mse-tag=a")], None, (some("a"), Some(BAGGAGE), true, false, 0)),
            // What is no tag is as if it were not there, and is replaced if there is one.
            (&[("x-mse-tag", "")], None, (None, None, false, false, 1)),
            (&[("x-mse-tag", "a b"), ("baggage", "x-mse-tag=%2C")], None, (None, None, false, false, 2)),
            (&[("x-mse-tag", "-"), ("x-lane", "red")], None, (some("red"), Some(Header), true, true, 1)),
            (&[("x-mse-tag", "-"), ("x-mse-tag", "red")], None, (some("red"), Some(Header), true, true, 1)),
            (&[("baggage", "x-mse-tag=,x-mse-tag=b")], None, (some("b"), Some(BAGGAGE), true, true, 1)),
            (&[("x-mse-tag", "-")], Some("blue"), (some("blue"), Some(Workload), true, true, 1)),
            // Another key of the list is no baggage key.
            (&[("baggage", "x-lane=gray")], None, (None, None, false, false, 0)),
        ] {
            assert_eq!(outcome(headers, caller), expected, "{headers:?} from {caller:?}");
        }
    }

    #[test]
    fn carriers_are_believed_in_their_order_and_written_where_they_are_read() {
        type Case<'a> = (&'a [(&'a str, &'a str)], Option<(&'a str, TagSource)>, &'a [Carrier], bool);
        use Carrier::{Baggage, Correlation, Tracestate};
        let parent = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        let (sw8, gray, blue) = (("sw8", "1-"), "eC1tc2UtdGFn:Z3JheQ==", "eC1tc2UtdGFn:Ymx1ZQ==");
        let of = TagSource::Carrier;
        let cases: [Case<'_>; 10] = [
            (&[("tracestate", "x-mse-tag=gray")], None, &[], false),
            (&[("tracestate", "x-mse-tag=gray"), parent], Some(("gray", of(Tracestate))), &[Baggage], false),
            (&[("sw8-correlation", gray)], None, &[], false),
            (&[("SW8-Correlation", gray), sw8], Some(("gray", of(Correlation))), &[Baggage], false),
            (&[parent, sw8, ("x-mse-tag", "gray")], Some(("gray", TagSource::Header)), &Carrier::ALL, false),
            (
                &[parent, sw8, ("sw8-correlation", gray), ("tracestate", "x-mse-tag=blue")],
                Some(("blue", of(Tracestate))),
                &[Baggage, Correlation],
                true,
            ),
            (
                &[parent, sw8, ("tracestate", "x-mse-tag=blue"), ("sw8-correlation", blue)],
                Some(("blue", of(Tracestate))),
                &[Baggage],
                false,
            ),
            (
                &[("x-lane", "red"), ("baggage", "x-mse-tag=gray")],
                Some(("red", TagSource::Header)),
                &[Baggage],
                true,
            ),
            (&[("baggage", "x-mse-tag=a,x-mse-tag=b")], Some(("a", of(Baggage))), &[Baggage], false),
            // Whose readers would drop it is not asked.
            (
                &[("baggage", "x-mse-tag=a"), ("tracestate", "x-mse-tag=b")],
                Some(("a", of(Baggage))),
                &[],
                false,
            ),
        ];
        for (headers, expected, set, conflict) in cases {
            let it = tagging(headers, None);
            let found = it.tag.as_ref().map(RequestTag::as_str).zip(it.source);
            assert_eq!(found, expected, "{headers:?}");
            assert_eq!(it.set.iter().collect::<Vec<_>>(), set, "{headers:?}");
            assert_eq!(it.conflict, conflict, "{headers:?}");
        }
    }

    #[test]
    fn a_header_that_is_no_key_of_tracestate_leaves_it_alone() {
        let names = TagNames::new(&[HeaderName::from_static("x.tag")]).expect("a header");
        let mut scan = TagScan::new(&names);
        for (name, value) in [("traceparent", "00-"), ("tracestate", "x.tag=blue"), ("x.tag", "gray")] {
            scan.see(name.as_bytes(), value.as_bytes());
        }
        let it = scan.decide(None, None, || None);
        assert_eq!(it.set.iter().collect::<Vec<_>>(), [Carrier::Baggage]);
        assert!(!it.conflict);
    }

    #[test]
    fn sources_have_their_places() {
        for (index, source) in TagSource::ALL.into_iter().enumerate() {
            assert_eq!(source.index(), index, "{source:?}");
        }
    }

    #[test]
    fn names_with_a_meaning_of_their_own_are_refused() {
        let name = HeaderName::from_static;
        assert_eq!(TagNames::new(&[]).err(), Some(TagNamesError::Empty));
        let error = TagNames::new(&[name("x-a"), name("host")]).expect_err("reserved");
        assert_eq!(error.to_string(), "`host` cannot be a tag header: it has a meaning of its own in HTTP");
        assert_eq!(TagNames::new(&[name("x-a"), name("x-a")]).err(), Some(TagNamesError::Twice(name("x-a"))));
    }

    #[test]
    fn a_request_tag_holds_what_a_tag_holds() {
        let longest = "a".repeat(MAX_TAG);
        for text in ["a", "v1.2_3-x", &longest] {
            let tag: Tag = text.parse().expect("a tag");
            assert_eq!(RequestTag::from(&tag).as_str(), text);
            assert_eq!(RequestTag::new(text.as_bytes()), Some(RequestTag::from(&tag)));
        }
        assert_eq!(RequestTag::new("a".repeat(MAX_TAG + 1).as_bytes()), None);
    }

    fn header() -> impl Strategy<Value = (String, Vec<u8>)> {
        let name = prop::sample::select(vec![
            "x-mse-tag",
            "X-Mse-Tag",
            "x-lane",
            "baggage",
            "Baggage",
            "tracestate",
            "sw8-correlation",
            "accept",
            "traceparent",
            "sw8",
        ]);
        let value = prop_oneof![
            "[a-z-]{0,4}",
            "(x-mse-tag=[a-z%-]{0,4}|[a-z]=[a-z]{0,3})(,(x-mse-tag=[a-z%-]{0,4}|[a-z]=[a-z]{0,3})){0,3}",
            "(eC1tc2UtdGFn:[YZ]{4}|YQ==:Yg==)(,(eC1tc2UtdGFn:[YZ]{4}|YQ==:Yg==)){0,3}",
            any::<String>(),
        ];
        (name.prop_map(str::to_owned), value.prop_map(String::into_bytes))
    }

    proptest! {
        /// Doing what the decision says makes a request whose tag is the same, from the header, with nothing left
        /// to do: the next hop agrees with this one.
        #[test]
        fn the_next_hop_agrees(headers in prop::collection::vec(header(), 0..6), caller in prop::option::of("[a-z]{1,4}")) {
            let names = names();
            let caller: Option<Tag> = caller.map(|tag| tag.parse().expect("a tag"));
            let mut scan = TagScan::new(&names);
            for (name, value) in &headers {
                scan.see(name.as_bytes(), value);
            }
            let decision = scan.decide(None, caller.as_ref(), || None);
            let Some(tag) = decision.tag else {
                prop_assert!(!decision.set_header && decision.set.is_empty() && caller.is_none());
                return Ok(());
            };
            let mut sent = headers.clone();
            if decision.set_header {
                sent.retain(|(name, _)| !names.is_header(name.as_bytes()));
                sent.push((names.header().to_string(), tag.as_bytes().to_vec()));
            }
            let mut full = Carriers::default();
            for carrier in decision.set.iter() {
                let is_its = |name: &str| carrier.header().as_str().eq_ignore_ascii_case(name);
                let lines = headers.iter().filter(|(name, _)| is_its(name)).map(|(_, value)| value.as_slice());
                match carrier.set(lines, names.key(), tag.as_bytes()) {
                    Some(edited) => {
                        sent.retain(|(name, _)| !is_its(name));
                        sent.push((carrier.header().to_string(), edited));
                    }
                    None => full.insert(carrier),
                }
            }
            prop_assert!(!full.contains(Carrier::Baggage), "there is room");
            let mut scan = TagScan::new(&names);
            for (name, value) in &sent {
                scan.see(name.as_bytes(), value);
            }
            let next = scan.decide(None, None, || None);
            prop_assert_eq!(next.tag, Some(tag));
            prop_assert_eq!(next.source, Some(TagSource::Header));
            prop_assert!(!next.set_header && next.set == full && !next.conflict, "{:?}", next);
        }
    }
}
